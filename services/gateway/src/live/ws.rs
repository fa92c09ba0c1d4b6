//! The live feed on WebSocket (RFC 6455).

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{
    extract::{
        WebSocketUpgrade,
        ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code},
    },
    response::Response,
};
use futures::SinkExt;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::{
    Live,
    feed::{Feed, Filled},
    queue::Frame,
};

/// Of each connection, for reading and for writing.
const BUFFER_BYTES: usize = 4 << 10;

/// Clients have nothing to say.
const MAX_MESSAGE_BYTES: usize = 1 << 10;

/// What a client may nevertheless send from one ping to the next.
const MAX_MESSAGES: u32 = 256;

/// Pings that may be unanswered when the next one is due.
const MAX_UNANSWERED_PINGS: u32 = 2;

/// How long the closing handshake may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How a connection ends.
enum End {
    /// With a code and a reason.
    Close(u16, &'static str),
    /// By the client, whose close is to be answered.
    ByClient,
    /// Broken, or nobody is there.
    Broken,
}

/// The answer that opens the WebSocket.
pub(super) fn response(live: &Arc<Live>, upgrade: WebSocketUpgrade, feed: Feed) -> Response {
    let live = live.clone();
    upgrade
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(MAX_MESSAGE_BYTES)
        .max_frame_size(MAX_MESSAGE_BYTES)
        .on_failed_upgrade(|error| tracing::debug!(%error, "a live connection was not upgraded"))
        .on_upgrade(async move |socket| {
            let tasks = live.deps.tasks.clone();
            tasks.track_future(serve(&live, socket, feed)).await;
        })
}

async fn serve(live: &Live, mut socket: WebSocket, mut feed: Feed) {
    let end = run(live, &mut socket, &mut feed).await;
    // The handshake of a connection that ends takes no place.
    drop(feed);
    let close = match end {
        End::Close(code, reason) => {
            Some(Message::Close(Some(CloseFrame { code, reason: Utf8Bytes::from_static(reason) })))
        }
        End::ByClient => None,
        End::Broken => return,
    };
    let handshake = async {
        if let Some(close) = close
            && socket.send(close).await.is_err()
        {
            return;
        }
        // Reading answers the client's close, or waits for its answer to ours.
        while let Some(Ok(_)) = socket.recv().await {}
    };
    if timeout(CLOSE_TIMEOUT, handshake).await.is_err() {
        tracing::debug!("a live connection left its close unanswered");
    }
}

async fn run(live: &Live, socket: &mut WebSocket, feed: &mut Feed) -> End {
    let config = &live.deps.config;
    let (ping_interval, write_timeout) = (config.ping_interval(), config.write_timeout());
    let mut stopping = pin!(live.deps.shutdown.cancelled());
    let mut pings = interval_at(Instant::now() + ping_interval, ping_interval);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut unanswered, mut received) = (0, 0);
    let mut batch = Vec::new();
    loop {
        let filled = {
            let mut filling = pin!(feed.fill(&mut batch));
            loop {
                tokio::select! {
                    biased;
                    () = &mut stopping => return GOING_AWAY,
                    _ = pings.tick() => {
                        if unanswered >= MAX_UNANSWERED_PINGS {
                            return End::Broken;
                        }
                        unanswered += 1;
                        received = 0;
                        let ping = socket.send(Message::Ping(bytes::Bytes::new()));
                        if !matches!(timeout(write_timeout, ping).await, Ok(Ok(()))) {
                            return End::Broken;
                        }
                    }
                    message = socket.recv() => match message {
                        Some(Ok(Message::Close(_))) => return End::ByClient,
                        Some(Ok(_)) if received < MAX_MESSAGES => (unanswered, received) = (0, received + 1),
                        Some(Ok(_)) => return End::Close(close_code::POLICY, "too many messages"),
                        Some(Err(_)) | None => return End::Broken,
                    },
                    filled = &mut filling => break filled,
                }
            }
        };
        if filled == Filled::Revoked {
            return End::Close(close_code::POLICY, "the key or token is not valid any more");
        }
        tokio::select! {
            biased;
            written = write(socket, &mut batch, write_timeout) => if !written {
                return End::Broken;
            },
            () = &mut stopping => return GOING_AWAY,
        }
    }
}

const GOING_AWAY: End = End::Close(close_code::AWAY, "the gateway is stopping");

/// Writes all frames, then flushes once. Returns whether the client took them in time: a slow one may take long, as
/// long as it takes something.
async fn write(socket: &mut WebSocket, batch: &mut Vec<Frame>, write_timeout: Duration) -> bool {
    for frame in batch.drain(..) {
        let feeding = socket.feed(Message::Text(frame.text.into()));
        if !matches!(timeout(write_timeout, feeding).await, Ok(Ok(()))) {
            return false;
        }
    }
    matches!(timeout(write_timeout, socket.flush()).await, Ok(Ok(())))
}
