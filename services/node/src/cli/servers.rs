//! `herald migrate` and `finish-upgrade`: what must be done to shared servers before a version runs on them, and after all
//! processes run it.

use anyhow::Context;
use clap::Args;
use herald_control_plane::{feed::read_policy, levels};
use herald_core::ports::log::Log;
use herald_distributed::cql::{CqlUrl, migrate};
use serde_json::json;

use super::{
    exit::Failure,
    output::{fields, print},
    serve::Settings,
};
use crate::{
    logging,
    storage::{Storage, open_log},
    world,
};

/// Brings the stores to this program's version and makes the topics of the log, where the configuration names shared
/// servers. It can be run again, and twice at once.
#[derive(Debug, Args)]
pub struct Migrate {
    /// Prints JSON for programs.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Migrate {
    /// Runs the command.
    ///
    /// # Errors
    /// If the configuration names no servers, they are away, or what is there is newer or divided otherwise.
    pub async fn run(self) -> Result<(), Failure> {
        logging::start("warn");
        let config = self.settings.load(Vec::new())?;
        let Some(servers) = config.servers().map_err(Failure::Usage)? else {
            let refused = "there is nothing to migrate: log, store and cache are not set, and a data directory is brought up to \
                           date when it is opened";
            return Err(Failure::Usage(refused.into()));
        };
        let url: CqlUrl = servers.store.parse().map_err(anyhow::Error::from)?;
        let migrated = migrate(&url, &config.cql).await?;
        let log = open_log(&config, &servers.log).await?;
        let layout = log.identity().layout;
        let done = json!({
            "stores": { "from_version": migrated.from, "version": migrated.to },
            "log": {
                "region": log.identity().region,
                "shards": layout.shards,
                "requests_partitions": layout.requests,
                "receipts_partitions": layout.receipts,
            },
        });
        print(self.json, &done, fields)
    }
}

/// Lets all processes on shared servers write what this version can read and earlier ones cannot: to be called once every
/// process runs it, and refused while one does not. There is no way back.
#[derive(Debug, Args)]
pub struct FinishUpgrade {
    /// Prints JSON for programs.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

impl FinishUpgrade {
    /// Runs the command.
    ///
    /// # Errors
    /// If a process runs an earlier version, it cannot be known who runs, the configuration names no servers, or they are
    /// away.
    pub async fn run(self) -> Result<(), Failure> {
        logging::start("warn");
        let config = self.settings.load(Vec::new())?;
        if config.servers().map_err(Failure::Usage)?.is_none() {
            let refused = "there is nothing to finish: log, store and cache are not set, and the one process on a data directory \
                           writes what it can read from its start on";
            return Err(Failure::Usage(refused.into()));
        }
        let world = world::system();
        let storage = Storage::open(&config, &world).await?;
        let backends = storage.backends();
        let (log, to) = (&*backends.log, backends.levels.reads());
        let policy =
            read_policy(log, &backends.levels, Default::default()).await.context("the policies cannot be read")?;
        let raised = levels::raise(to, &policy, log, &*backends.fleet, &world).await.map_err(anyhow::Error::from)?;
        print(self.json, &json!({ "feature_level": to, "raised": raised }), fields)
    }
}
