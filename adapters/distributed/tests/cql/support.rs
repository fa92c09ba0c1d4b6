//! A keyspace of a test's own on the server that `HERALD_TEST_CQL` names.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use herald_distributed::cql::{CqlConfig, CqlStores, CqlUrl, migrate};

/// The address of the server, as `host:port`.
pub fn server() -> String {
    std::env::var("HERALD_TEST_CQL").expect(
        "the tests of the CQL stores need a server: scripts/test starts one, or set HERALD_TEST_CQL to its host:port",
    )
}

/// The settings of tests: one replica.
pub fn config() -> CqlConfig {
    CqlConfig {
        replication: "{'class': 'SimpleStrategy', 'replication_factor': 1}".to_owned(),
        request_timeout_ms: 30_000,
        ..CqlConfig::default()
    }
}

/// A keyspace that is dropped at the end.
pub struct Keyspace {
    /// Where it is.
    pub url: CqlUrl,
}

impl Keyspace {
    /// The name of a keyspace that is not there.
    pub fn unused() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, SeqCst));
        Self { url: format!("cql://{}/herald_test_{process}_{number}", server()).parse().unwrap() }
    }

    /// A keyspace with all tables.
    pub async fn new() -> Self {
        let keyspace = Self::unused();
        migrate(&keyspace.url, &config()).await.unwrap();
        keyspace
    }

    /// Runs a test on the stores of a new keyspace, and drops it also when the test fails.
    pub async fn with(config: CqlConfig, test: impl AsyncFnOnce(CqlStores, &CqlUrl)) {
        use futures::FutureExt;
        let keyspace = Self::new().await;
        let stores = CqlStores::open(&keyspace.url, &config).await.unwrap();
        let result = std::panic::AssertUnwindSafe(test(stores, &keyspace.url)).catch_unwind().await;
        keyspace.drop().await;
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }

    /// Drops it.
    pub async fn drop(self) {
        let session =
            scylla::client::session_builder::SessionBuilder::new().known_node(server()).build().await.unwrap();
        session.query_unpaged(format!("DROP KEYSPACE IF EXISTS {}", self.url.keyspace), ()).await.unwrap();
    }
}

/// A session of the test's own on a keyspace.
pub async fn session(url: &CqlUrl) -> scylla::client::session::Session {
    let builder = scylla::client::session_builder::SessionBuilder::new().known_nodes(&url.nodes);
    builder.use_keyspace(&url.keyspace, false).build().await.unwrap()
}

/// A way to the server that can be cut and mended.
pub struct Cut {
    address: std::net::SocketAddr,
    whole: tokio::sync::watch::Sender<bool>,
}

impl Cut {
    /// A way that is whole.
    pub async fn new() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, (whole, watched)) = (listener.local_addr().unwrap(), tokio::sync::watch::channel(true));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut watched = watched.clone();
                tokio::spawn(async move {
                    let Ok(mut server) = tokio::net::TcpStream::connect(server()).await else { return };
                    tokio::select! {
                        _ = watched.wait_for(|whole| !whole) => {}
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    }
                });
            }
        });
        Self { address, whole }
    }

    /// Where it begins.
    pub fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Breaks all connections; new ones end at once.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}
