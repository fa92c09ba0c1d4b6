//! `herald migrate`: what must be on shared servers before roles run on them.

use clap::Args;
use herald_core::ports::log::Log;
use herald_distributed::cql::{CqlUrl, migrate};
use serde_json::json;

use super::{
    exit::Failure,
    output::{fields, print},
    serve::Settings,
};
use crate::{logging, storage::open_log};

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
