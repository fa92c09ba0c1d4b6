//! Live clients: a WebSocket for each user, which counts the items that arrive and notes when they do.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::{sink::Latencies, world::World};

/// Handshakes under way at once.
const HANDSHAKES: usize = 32;

/// Open sockets; they end with the process.
pub struct Sockets {
    seen: Arc<Seen>,
}

struct Seen {
    items: AtomicU64,
    latencies: Latencies,
}

impl Sockets {
    /// Opens one for each user. Times in texts count from `began`.
    pub async fn open(address: SocketAddr, world: &World, began: Instant) -> anyhow::Result<Self> {
        let seen = Arc::new(Seen { items: AtomicU64::new(0), latencies: Latencies::new(began) });
        let feeds = world.tenants.iter().flat_map(|tenant| tenant.users.iter().map(|user| (&tenant.api.key, user)));
        let sockets = stream::iter(feeds).map(|(key, user)| open(address, key, user)).buffer_unordered(HANDSHAKES);
        let count = |socket| {
            tokio::spawn(count(socket, seen.clone()));
            futures::future::ready(Ok(()))
        };
        sockets.try_for_each(count).await?;
        Ok(Self { seen })
    }

    /// Items that have arrived.
    pub fn items(&self) -> u64 {
        self.seen.items.load(Relaxed)
    }

    /// The times of what arrived for a group, in microseconds.
    pub fn latencies(&self) -> &Latencies {
        &self.seen.latencies
    }
}

async fn open(address: SocketAddr, key: &str, user: &str) -> anyhow::Result<WebSocketStream<TcpStream>> {
    let mut request = format!("ws://{address}/v1/users/{user}/live").into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse()?);
    let socket = TcpStream::connect(address).await?;
    let (socket, _) = client_async(request, socket).await.context("a live connection was refused")?;
    Ok(socket)
}

async fn count(mut socket: WebSocketStream<TcpStream>, seen: Arc<Seen>) {
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Text(text) = message {
            seen.items.fetch_add(1, Relaxed);
            seen.latencies.note(&text, Instant::now());
        }
    }
}
