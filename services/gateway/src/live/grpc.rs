//! The live feed as a stream of gRPC messages.

use std::{pin::pin, sync::Arc};

use futures::{Stream, stream};
use herald_api::status::status;
use herald_core::{
    ids::check_id,
    problem::{Kind, Problem},
};
use herald_proto::v1;
use http::HeaderMap;
use tokio::{sync::mpsc, time::timeout};
use tonic::Status;

use super::{
    Live,
    feed::{Feed, Filled},
    parse_event_id,
    queue::Frame,
};

/// Items that wait for the client to take them, beside those in the feed's own queue.
const WAITING: usize = 16;

/// An open stream.
pub(crate) struct Watch<S> {
    /// The event id from which it goes on, for clients that lose it before the first item.
    pub position: String,
    /// The items.
    pub items: S,
}

impl Live {
    /// Opens the feed that a call asks for, with the key or token in its metadata.
    ///
    /// # Errors
    /// As those of the feed over HTTP.
    pub(crate) async fn watch(
        self: &Arc<Self>,
        metadata: &HeaderMap,
        asked: v1::WatchInboxRequest,
        request_id: &str,
    ) -> Result<Watch<impl Stream<Item = Result<v1::InboxItem, Status>> + use<>>, Problem> {
        let grant = super::Grant::of(metadata, None)?;
        let tenant = grant.check(&self.deps.authenticator, &asked.user_id)?;
        check_id("user_id", &asked.user_id).map_err(|error| Problem::field("user_id", "invalid_value", error.0))?;
        let resume = parse_event_id("last_event_id", asked.last_event_id.as_deref().unwrap_or_default())?;
        let feed = self.feed(grant, tenant, &asked.user_id, resume).await?;
        let position = feed.position().to_string();
        let (sender, mut receiver) = mpsc::channel(WAITING);
        self.deps.tasks.spawn(run(self.clone(), feed, sender, request_id.to_owned()));
        Ok(Watch { position, items: stream::poll_fn(move |context| receiver.poll_recv(context)) })
    }
}

/// Sends items until the client is gone or takes none for too long; the server's pings find out who is silent.
async fn run(live: Arc<Live>, mut feed: Feed, sender: mpsc::Sender<Result<v1::InboxItem, Status>>, request_id: String) {
    let mut stopping = pin!(live.deps.shutdown.cancelled());
    let mut batch = Vec::new();
    let end = loop {
        let filled = tokio::select! {
            biased;
            () = &mut stopping => break Problem::unavailable("The gateway is stopping. Connect again."),
            () = sender.closed() => return,
            filled = feed.fill(&mut batch) => filled,
        };
        if filled == Filled::Revoked {
            let detail = "The key or token is not valid any more.";
            break Problem::new(Kind::Unauthenticated, "unauthenticated", detail);
        }
        for frame in batch.drain(..) {
            let Some(item) = message(&frame) else { continue };
            if !matches!(timeout(live.deps.config.write_timeout(), sender.send(Ok(item))).await, Ok(Ok(()))) {
                return;
            }
        }
    };
    // Whoever does not take the reason is gone already.
    let _gone = timeout(live.deps.config.write_timeout(), sender.send(Err(status(&end, &request_id)))).await;
}

/// A frame is the JSON of the message.
fn message(frame: &Frame) -> Option<v1::InboxItem> {
    serde_json::from_str(&frame.text)
        .inspect_err(|error| tracing::error!(%error, event = %frame.id, "an item cannot be read as a message"))
        .ok()
}
