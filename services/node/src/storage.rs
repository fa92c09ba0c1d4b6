//! Where the ports are: on this machine, or on servers that processes share.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use herald_core::{clock::World, levels::Levels, topic::Layout};
use herald_distributed::{
    cql::{CqlStores, CqlUrl},
    kafka::{KafkaConfig, KafkaLog},
    redis::{Redis, budgets::RedisBudgets, claims::RedisClaims, fleet::RedisFleet, sessions::RedisSessions},
};
use herald_embedded::{data_dir::Settings, log::LogOptions};

use crate::{
    backends::{Backends, Embedded},
    config::Config,
};

/// The addresses of shared servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Servers {
    /// `kafka://host:port,host:port/prefix`
    pub log: String,
    /// `cql://host:port,host:port/keyspace`
    pub store: String,
    /// `redis://host:port`, or another that [`herald_distributed::redis::RedisConfig`] names.
    pub cache: String,
}

impl Servers {
    /// What is set of the three; `None` if nothing is, and what is wrong if they do not go together.
    pub fn of(log: &str, store: &str, cache: &str) -> Result<Option<Self>, String> {
        let all = [("log", log, "kafka://"), ("store", store, "cql://"), ("cache", cache, "redis")];
        let missing: Vec<&str> = all.iter().filter(|(_, url, _)| url.is_empty()).map(|(name, ..)| *name).collect();
        if missing.len() == all.len() {
            return Ok(None);
        }
        if !missing.is_empty() {
            return Err(format!(
                "log, store and cache must all be set, or none: a log that processes share beside what is in the memory \
                 or on the disk of one of them would lose claims and people. What is missing: {}",
                missing.join(", ")
            ));
        }
        if let Some((name, url, scheme)) = all.iter().find(|(_, url, scheme)| !url.starts_with(scheme)) {
            return Err(format!("{name} is {:?}; it must begin with {scheme}", herald_distributed::shown(url)));
        }
        Ok(Some(Self { log: log.into(), store: store.into(), cache: cache.into() }))
    }
}

/// Storage that is open.
pub enum Storage {
    /// A data directory, which one process has for itself.
    Local(Box<Embedded>),
    /// Servers that other processes use too.
    Shared(Box<Backends>),
}

impl Storage {
    /// Opens what the configuration names.
    pub async fn open(config: &Config, world: &World) -> anyhow::Result<Self> {
        match config.servers().map_err(anyhow::Error::msg)? {
            None => open_embedded(config, world).map(|embedded| Self::Local(Box::new(embedded))),
            Some(servers) => open_shared(config, &servers).await.map(|backends| Self::Shared(Box::new(backends))),
        }
    }

    /// The ports.
    pub fn backends(&self) -> &Backends {
        match self {
            Self::Local(embedded) => &embedded.backends,
            Self::Shared(backends) => backends,
        }
    }

    /// What is on this machine.
    pub fn local(&self) -> Option<&Embedded> {
        match self {
            Self::Local(embedded) => Some(embedded),
            Self::Shared(_) => None,
        }
    }

    /// Makes everything durable and closes.
    pub async fn close(self) -> anyhow::Result<()> {
        match self {
            Self::Local(embedded) => tokio::task::spawn_blocking(move || embedded.close()).await?,
            // What was answered is on the servers.
            Self::Shared(_) => Ok(()),
        }
    }
}

fn layout(config: &Config) -> Layout {
    Layout {
        shards: config.layout.shards,
        requests: config.layout.requests_partitions,
        receipts: config.layout.receipts_partitions,
    }
}

fn open_embedded(config: &Config, world: &World) -> anyhow::Result<Embedded> {
    let path: PathBuf = config.data_directory().map(Into::into).context("storage must be embedded:DIRECTORY")?;
    let settings = Settings { layout: Some(layout(config)), region: config.region.clone() };
    let options = LogOptions {
        flush_interval_ms: config.disk.flush_interval_ms,
        cache_bytes: config.disk.cache_bytes,
        low_water_bytes: config.disk.low_water_bytes,
        sync: config.disk.sync,
        ..LogOptions::default()
    };
    Embedded::open(&path, &settings, options, world)
}

/// Opens the log, and begins it where there is none yet.
pub async fn open_log(config: &Config, url: &str) -> anyhow::Result<KafkaLog> {
    let kafka: KafkaConfig = config.kafka.clone().at(url)?;
    let opened = KafkaLog::open(kafka, &config.region, Some(layout(config))).await;
    opened.with_context(|| format!("the log at {url} cannot be used"))
}

async fn open_shared(config: &Config, servers: &Servers) -> anyhow::Result<Backends> {
    let url: CqlUrl = servers.store.parse()?;
    let stores = CqlStores::open(&url, &config.cql).await.context("the stores cannot be used")?;
    let redis = Redis::connect(&servers.cache, &config.redis).await?;
    let log = open_log(config, &servers.log).await?;
    let levels = Arc::<Levels>::default();
    Ok(Backends {
        log: levels.log(Arc::new(log)),
        levels,
        admissions: stores.admissions.clone(),
        directory: stores.directory.clone(),
        erasures: stores.erasures.clone(),
        ledger: stores.ledger.clone(),
        inbox: stores.inbox.clone(),
        registry: stores.registry.clone(),
        audit: stores.audit.clone(),
        claims: Arc::new(RedisClaims::new(redis.clone())),
        budgets: Arc::new(RedisBudgets::new(redis.clone())),
        sessions: Arc::new(RedisSessions::new(redis.clone())),
        fleet: Arc::new(RedisFleet::new(redis)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_together_or_not_at_all() {
        assert_eq!(Servers::of("", "", ""), Ok(None));
        let all = Servers::of("kafka://a/herald", "cql://b/herald", "rediss://c").unwrap().unwrap();
        assert_eq!(all.cache, "rediss://c");
        let told = Servers::of("kafka://a/herald", "", "").unwrap_err();
        assert!(told.contains("What is missing: store, cache"), "{told}");
        let told = Servers::of("kafka://a", "postgres://b", "redis://c").unwrap_err();
        assert!(told.contains("store is \"postgres://b\"; it must begin with cql://"), "{told}");
    }

    #[test]
    fn a_url_of_a_wrong_scheme_is_told_without_its_password() {
        let told = Servers::of("kafka://a", "postgres://user:hunter2@b/herald", "redis://c").unwrap_err();
        assert!(told.contains("store is \"postgres://b/herald\""), "{told}");
        for wrong in ["user:hunter2@b", "cassandra:user:hunter2@b", "postgres://user:hunter2@b@c"] {
            let told = Servers::of("kafka://a", wrong, "redis://c").unwrap_err();
            assert!(told.contains("it must begin with cql://") && !told.contains("hunter2"), "{told}");
        }
    }
}
