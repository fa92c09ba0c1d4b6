//! The books: every request that was sent is complete, its books are balanced, and every instance was delivered.

use std::time::Duration;

use herald_proto::v1::ListRequestsRequest;
use tokio::time::{Instant, sleep};

use crate::{
    sender::Sent,
    world::{Tenant, World},
};

/// How long the last books may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the lists of requests say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Books {
    requests: u64,
    settled: u64,
    accepted: u64,
    delivered: u64,
}

/// Reads every tenant's requests until they prove what was sent.
///
/// # Errors
/// When they do not within a minute.
pub async fn prove(world: &World, sent: Sent) -> anyhow::Result<()> {
    let wanted = Books {
        requests: sent.notifications,
        settled: sent.notifications,
        accepted: sent.instances,
        delivered: sent.instances,
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut found = Books::default();
        for tenant in &world.tenants {
            add_books(tenant, &mut found).await?;
        }
        if found == wanted {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "the books are not proven: found {found:?}, wanted {wanted:?}");
        sleep(Duration::from_millis(200)).await;
    }
}

async fn add_books(tenant: &Tenant, books: &mut Books) -> anyhow::Result<()> {
    let mut api = tenant.api.notifications();
    let mut page_token = None;
    loop {
        let request = ListRequestsRequest { page_size: Some(1_000), page_token, ..Default::default() };
        let page = api.list_requests(request).await?.into_inner();
        for status in page.requests {
            let instances = status.instances.unwrap_or_default();
            books.requests += 1;
            books.settled += u64::from(status.state == "complete" && status.books_balanced);
            books.accepted += u64::from(instances.accepted);
            books.delivered += u64::from(instances.delivered);
        }
        if page.next_page_token.is_empty() {
            return Ok(());
        }
        page_token = Some(page.next_page_token);
    }
}
