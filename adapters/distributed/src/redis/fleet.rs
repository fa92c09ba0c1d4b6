//! Which processes run: a hash of reports.

use std::collections::BTreeMap;

use async_trait::async_trait;
use herald_core::{
    levels::FIRST_LEVEL,
    ports::{
        StoreError,
        fleet::{Fleet, ProcessReport},
    },
};
use redis::cmd;
use serde::{Deserialize, Serialize};

use super::Redis;

/// Processes that were silent for so long are forgotten.
const FORGOTTEN_MS: u64 = 86_400_000;

/// Reports in Redis.
#[derive(Clone)]
pub struct RedisFleet(Redis);

#[derive(Serialize, Deserialize)]
struct Report {
    seen_ms: u64,
    versions: BTreeMap<String, u64>,
    /// Programs that do not say are of the first level.
    #[serde(default = "first_level")]
    reads_level: u32,
}

fn first_level() -> u32 {
    FIRST_LEVEL
}

impl RedisFleet {
    /// Reports behind a connection.
    pub fn new(redis: Redis) -> Self {
        Self(redis)
    }

    fn key(&self) -> String {
        self.0.key("fleet")
    }
}

#[async_trait]
impl Fleet for RedisFleet {
    async fn report(&self, report: ProcessReport) -> Result<(), StoreError> {
        let ProcessReport { process, seen_ms, versions, reads_level } = report;
        let text = serde_json::to_string(&Report { seen_ms, versions, reads_level })
            .map_err(|error| StoreError::Damaged(format!("a report cannot be written: {error}")))?;
        self.0.query(cmd("HSET").arg(self.key()).arg(process).arg(text)).await
    }

    async fn running(&self, since_ms: u64) -> Result<Vec<ProcessReport>, StoreError> {
        let reports: BTreeMap<String, String> = self.0.query(cmd("HGETALL").arg(self.key())).await?;
        let (mut running, mut forgotten) = (Vec::new(), Vec::new());
        for (process, text) in reports {
            let Report { seen_ms, versions, reads_level } = serde_json::from_str(&text)
                .map_err(|error| StoreError::Damaged(format!("the report of {process}: {error}")))?;
            if seen_ms >= since_ms {
                running.push(ProcessReport { process, seen_ms, versions, reads_level });
            } else if seen_ms.saturating_add(FORGOTTEN_MS) < since_ms {
                forgotten.push(process);
            }
        }
        if !forgotten.is_empty() {
            self.0.query::<()>(cmd("HDEL").arg(self.key()).arg(forgotten)).await?;
        }
        Ok(running)
    }

    async fn leave(&self, process: &str) -> Result<(), StoreError> {
        self.0.query(cmd("HDEL").arg(self.key()).arg(process)).await
    }
}
