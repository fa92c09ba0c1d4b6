//! Cancels that are over are forgotten. Gateways write them.

use bytes::Bytes;
use herald_core::{policy::kind, problem::Problem};

use crate::publisher::Publisher;

/// Cancels that one sweep forgets at most.
const MAX_FORGOTTEN: usize = 10_000;

/// Forgets cancels of which nothing can come up any more that would be sent. Returns how many.
pub(crate) async fn forget_over(publisher: &Publisher) -> Result<usize, Problem> {
    let (now_ms, policy) = (publisher.world().now_ms(), publisher.policy());
    let over = policy.cancels().iter().filter(|(_, cancel)| cancel.until_ms <= now_ms);
    let gone: Vec<(String, Option<Bytes>)> = over.take(MAX_FORGOTTEN).map(|(id, _)| (id.to_string(), None)).collect();
    let count = gone.len();
    if count > 0 {
        publisher.put_log_first(kind::CANCEL, gone).await?;
    }
    Ok(count)
}
