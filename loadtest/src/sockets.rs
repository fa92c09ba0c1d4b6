//! Live clients: a WebSocket for each user, which counts the items that arrive.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::world::World;

/// Handshakes under way at once.
const HANDSHAKES: usize = 32;

/// Open sockets; they end with the process.
pub struct Sockets {
    items: Arc<AtomicU64>,
}

impl Sockets {
    /// Opens one for each user.
    pub async fn open(address: SocketAddr, world: &World) -> anyhow::Result<Self> {
        let items = Arc::new(AtomicU64::new(0));
        let feeds = world.tenants.iter().flat_map(|tenant| tenant.users.iter().map(|user| (&tenant.api.key, user)));
        let sockets = stream::iter(feeds).map(|(key, user)| open(address, key, user)).buffer_unordered(HANDSHAKES);
        let count = |socket| {
            tokio::spawn(count(socket, items.clone()));
            futures::future::ready(Ok(()))
        };
        sockets.try_for_each(count).await?;
        Ok(Self { items })
    }

    /// Items that have arrived.
    pub fn items(&self) -> u64 {
        self.items.load(Relaxed)
    }
}

async fn open(address: SocketAddr, key: &str, user: &str) -> anyhow::Result<WebSocketStream<TcpStream>> {
    let mut request = format!("ws://{address}/v1/users/{user}/live").into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse()?);
    let socket = TcpStream::connect(address).await?;
    let (socket, _) = client_async(request, socket).await.context("a live connection was refused")?;
    Ok(socket)
}

async fn count(mut socket: WebSocketStream<TcpStream>, items: Arc<AtomicU64>) {
    while let Some(Ok(message)) = socket.next().await {
        if matches!(message, Message::Text(_)) {
            items.fetch_add(1, Relaxed);
        }
    }
}
