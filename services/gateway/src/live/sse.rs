//! The live feed as server-sent events (WHATWG HTML, 9.2).

use std::{convert::Infallible, fmt::Write, pin::pin, sync::Arc, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, header};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

use super::{
    Live,
    feed::{Feed, Filled},
    queue::Frame,
};

/// When a browser connects again after it lost the connection.
const RETRY_MS: u32 = 1_000;

/// A comment, which readers pass over. It ends no event.
const HEARTBEAT: &[u8] = b":\n";

/// The name and line ends of an event, and its id.
const FIXED_BYTES: usize = 64;

/// The answer that carries the events. The connection has a task of its own, since the server asks a body for more
/// only while the client takes it, so that nobody else would notice that it does not.
pub(super) fn response(live: &Arc<Live>, feed: Feed) -> Response {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(1);
    live.deps.tasks.spawn(run(live.clone(), feed, sender));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // Proxies that buffer answers know this one.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    let chunks =
        stream::poll_fn(move |context| receiver.poll_recv(context).map(|chunk| chunk.map(Ok::<_, Infallible>)));
    (headers, Body::from_stream(chunks)).into_response()
}

async fn run(live: Arc<Live>, mut feed: Feed, sender: mpsc::Sender<Bytes>) {
    let config = &live.deps.config;
    let (interval, write_timeout) = (config.ping_interval(), config.write_timeout());
    let mut stopping = pin!(live.deps.shutdown.cancelled());
    let mut heartbeats = interval_at(Instant::now() + interval, interval);
    heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // An id without data is no event, but the browser resumes from it if it loses the connection before the first one.
    let mut chunk = Bytes::from(format!("retry: {RETRY_MS}\nid: {}\n\n", feed.position()));
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            biased;
            sent = send(&sender, chunk, write_timeout) => if !sent {
                return;
            },
            () = &mut stopping => return,
        }
        let filled = {
            let mut filling = pin!(feed.fill(&mut batch));
            loop {
                tokio::select! {
                    biased;
                    () = &mut stopping => return,
                    () = sender.closed() => return,
                    _ = heartbeats.tick() => if !send(&sender, Bytes::from_static(HEARTBEAT), write_timeout).await {
                        return;
                    },
                    filled = &mut filling => break filled,
                }
            }
        };
        if filled == Filled::Revoked {
            return;
        }
        chunk = events(&mut batch);
    }
}

/// Hands over a chunk. Returns whether the server took the one before it in time.
async fn send(sender: &mpsc::Sender<Bytes>, chunk: Bytes, write_timeout: Duration) -> bool {
    matches!(timeout(write_timeout, sender.send(chunk)).await, Ok(Ok(())))
}

fn events(batch: &mut Vec<Frame>) -> Bytes {
    let mut text = String::with_capacity(batch.iter().map(|frame| FIXED_BYTES + frame.text.len()).sum());
    for frame in batch.drain(..) {
        // Writing to a string cannot fail.
        let _ = write!(text, "id: {}\ndata: ", frame.id);
        text.push_str(&frame.text);
        text.push_str("\n\n");
    }
    text.into()
}
