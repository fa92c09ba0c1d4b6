//! One connection for all ports: it comes back by itself, every round trip has an end, and a server that did not answer is
//! left alone for a while, so that nobody waits for it over and over.

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use herald_core::ports::StoreError;
use parking_lot::Mutex;
use redis::{
    Client, Cmd, ErrorKind, FromRedisValue, InfoDict, Pipeline, RedisError, RedisFuture, RedisResult, ScriptInvocation,
    Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig},
    cluster_async::ClusterConnection,
};

use super::RedisConfig;

/// How long a server that did not answer is left alone.
const AWAY: Duration = Duration::from_millis(500);

/// A connection to a Redis or a Redis Cluster, to be cloned.
#[derive(Clone)]
pub struct Redis {
    link: Link,
    shared: Arc<Shared>,
}

struct Shared {
    prefix: String,
    timeout: Duration,
    nodes: Vec<Client>,
    away_until: Mutex<Option<Instant>>,
}

#[derive(Clone)]
enum Link {
    Single(Box<ConnectionManager>),
    Cluster(Box<ClusterConnection>),
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(link) => link.req_packed_command(cmd),
            Self::Cluster(link) => link.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(link) => link.req_packed_commands(cmd, offset, count),
            Self::Cluster(link) => link.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(link) => link.get_db(),
            Self::Cluster(link) => link.get_db(),
        }
    }
}

impl Redis {
    /// Connects, and looks at how the server is set up.
    ///
    /// # Errors
    /// Where the settings are wrong, the server does not answer, or it evicts keys.
    pub async fn connect(url: &str, config: &RedisConfig) -> anyhow::Result<Self> {
        let clients = config.clients(url)?;
        let link = match clients.cluster {
            Some(cluster) => {
                let connection = tokio::time::timeout(config.timeout() * 4, cluster.get_async_connection()).await;
                let connection = connection.map_err(anyhow::Error::from).and_then(|link| Ok(link?));
                Link::Cluster(Box::new(connection.with_context(|| format!("{} does not answer", without_user(url)))?))
            }
            None => {
                let client = clients.nodes.first().context("no address of a Redis is set")?.clone();
                let settings = ConnectionManagerConfig::new()
                    .set_connection_timeout(Some(config.timeout()))
                    .set_response_timeout(Some(config.timeout()))
                    .set_max_delay(AWAY);
                Link::Single(Box::new(ConnectionManager::new_lazy_with_config(client, settings)?))
            }
        };
        let (prefix, timeout) = (config.prefix.clone(), config.timeout());
        let shared = Shared { prefix, timeout, nodes: clients.nodes, away_until: Mutex::default() };
        let redis = Self { link, shared: Arc::new(shared) };
        redis.check_eviction().await.with_context(|| {
            format!("the Redis of {} cannot be used (rediss:// in its URL asks for TLS)", without_user(url))
        })?;
        Ok(redis)
    }

    /// A server that evicts keys forgets claims in silence.
    async fn check_eviction(&self) -> anyhow::Result<()> {
        let mut command = redis::cmd("INFO");
        let info: InfoDict = match &self.link {
            Link::Single(_) => self.query(command.arg("memory")).await?,
            Link::Cluster(link) => {
                let any = redis::cluster_routing::RoutingInfo::SingleNode(
                    redis::cluster_routing::SingleNodeRoutingInfo::Random,
                );
                FromRedisValue::from_redis_value(link.clone().route_command(command.arg("memory").clone(), any).await?)?
            }
        };
        let limit: u64 = info.get("maxmemory").unwrap_or(0);
        let policy: String = info.get("maxmemory_policy").unwrap_or_else(|| "noeviction".into());
        anyhow::ensure!(
            limit == 0 || policy == "noeviction",
            "it evicts keys when it is full (maxmemory-policy {policy}), and dedupe claims would be lost: set \
             maxmemory-policy to noeviction"
        );
        Ok(())
    }

    /// The name of a key. What is in `tag` decides on its place in a cluster.
    pub(super) fn key(&self, tag: &str) -> String {
        format!("{{{}:{tag}}}", self.shared.prefix)
    }

    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let mut link = self.link.clone();
        self.within(async move { command.query_async(&mut link).await }).await
    }

    pub(super) async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, StoreError> {
        let mut link = self.link.clone();
        self.within(async move { pipeline.query_async(&mut link).await }).await
    }

    pub(super) async fn script<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, StoreError> {
        let mut link = self.link.clone();
        self.within(async move { script.invoke_async(&mut link).await }).await
    }

    /// A connection that messages of `channel` come in on. Each call takes the next node.
    pub(super) async fn subscribe(&self, channel: &str, attempt: usize) -> RedisResult<redis::aio::PubSub> {
        let away = || RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        let nodes = &self.shared.nodes;
        let node = nodes.get(attempt % nodes.len().max(1)).ok_or_else(away)?;
        let subscribed = async {
            let mut connection = node.get_async_pubsub().await?;
            connection.subscribe(channel).await?;
            Ok(connection)
        };
        tokio::time::timeout(self.shared.timeout * 2, subscribed).await.unwrap_or_else(|_| Err(away()))
    }

    async fn within<T>(&self, round_trip: impl Future<Output = RedisResult<T>>) -> Result<T, StoreError> {
        if self.shared.away_until.lock().is_some_and(|until| Instant::now() < until) {
            return Err(StoreError::Unavailable("Redis did not answer just now".into()));
        }
        let answer = tokio::time::timeout(self.shared.timeout, round_trip).await;
        let error = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) if matches!(error.kind(), ErrorKind::UnexpectedReturnType | ErrorKind::Parse) => {
                return Err(StoreError::Damaged(format!("Redis: {error}")));
            }
            Ok(Err(error)) if error.kind() == ErrorKind::AuthenticationFailed => {
                format!("{error}; check the user in its URL and what is in redis.password_file")
            }
            Ok(Err(error)) if is_of_tls(&error) => format!(
                "{error}; check that the port speaks TLS, and that redis.ca_file holds the authority of its certificate \
                 and this names the server's host"
            ),
            Ok(Err(error)) if error.code() == Some("OOM") => {
                return Err(StoreError::Unavailable(format!("Redis is full; raise its maxmemory: {error}")));
            }
            // It is there and refuses: read-only, nobody logged in, or something that the client has no name for.
            Ok(Err(error)) if matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) => {
                return Err(StoreError::Unavailable(format!("Redis: {error}")));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.shared.timeout),
        };
        *self.shared.away_until.lock() = Some(Instant::now() + AWAY);
        Err(StoreError::Unavailable(format!("Redis: {error}")))
    }
}

/// Whether the two do not come to TLS with each other.
fn is_of_tls(error: &RedisError) -> bool {
    // The client shares its causes.
    let shared = error.source().and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>());
    let io = shared.and_then(|shared| shared.downcast_ref::<std::io::Error>());
    io.and_then(std::io::Error::get_ref).is_some_and(|cause| cause.is::<rustls::Error>())
}

fn without_user(url: &str) -> &str {
    url.rsplit_once('@').map_or(url, |(_, hosts)| hosts)
}
