//! What is looked up anew for each scrape: what waits on the log, the room on the disk, and the age of policies.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use herald_core::{
    clock::World,
    policy::Policy,
    ports::log::{Log, LogError, partition},
    topic::{Group, Topic},
};
use herald_embedded::{kv::FjallKv, log::EmbeddedLog};
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};
use tokio::sync::watch;

use crate::export::ExportStats;

/// Looks things up, and remembers them for the encoder.
#[derive(Clone)]
pub struct Gauges {
    /// The port, for what waits on it.
    pub log: Arc<dyn Log>,
    /// What is on this machine's disk.
    pub local: Option<LocalDisk>,
    /// The snapshot that decides.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// The clock.
    pub world: World,
    /// When the process started, in milliseconds since the epoch.
    pub started_ms: u64,
    /// When the last backup was complete, in milliseconds since the epoch; 0 for never since the start.
    pub last_backup_ms: Arc<std::sync::atomic::AtomicU64>,
    /// What is exported before it is deleted.
    pub exports: Arc<ExportStats>,
    /// What was found last.
    pub sample: Arc<Mutex<Sample>>,
}

/// Embedded storage, for its size.
#[derive(Clone)]
pub struct LocalDisk {
    /// The journal.
    pub journal: EmbeddedLog,
    /// The stores.
    pub stores: Arc<FjallKv>,
    /// Where both are.
    pub directory: PathBuf,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    backlog: BTreeMap<(String, &'static str), Backlog>,
    policy_version: u64,
    policy_age_ms: u64,
    journal_bytes: Option<u64>,
    journal_live_bytes: Option<u64>,
    store_bytes: Option<u64>,
    free_bytes: Option<u64>,
}

/// What a group has yet to finish of a topic.
#[derive(Debug, Clone, Copy, Default)]
struct Backlog {
    records: u64,
    age_ms: u64,
}

impl std::fmt::Debug for Gauges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gauges")
    }
}

impl Gauges {
    /// Nothing was looked up yet.
    pub fn new(
        log: Arc<dyn Log>,
        local: Option<LocalDisk>,
        policy: watch::Receiver<Arc<Policy>>,
        exports: Arc<ExportStats>,
        world: &World,
    ) -> Self {
        Self {
            log,
            local,
            policy,
            world: world.clone(),
            started_ms: world.now_ms(),
            last_backup_ms: Arc::default(),
            exports,
            sample: Arc::default(),
        }
    }

    /// Looks everything up.
    ///
    /// # Errors
    /// Where the log does not answer.
    pub async fn refresh(&self) -> Result<(), LogError> {
        let now_ms = self.world.now_ms();
        let mut sample = Sample { backlog: self.backlog(now_ms).await?, ..Sample::default() };
        sample.policy_version = self.policy.borrow().version;
        let (unapplied, _) = self.log.read(partition(Topic::Control, 0), sample.policy_version, 1).await?;
        sample.policy_age_ms = unapplied.first().map_or(0, |record| now_ms.saturating_sub(record.timestamp_ms));
        if let Some(LocalDisk { journal, stores, directory }) = &self.local {
            let (journal_bytes, live_bytes) = journal.usage_bytes();
            (sample.journal_bytes, sample.journal_live_bytes) = (Some(journal_bytes), Some(live_bytes));
            sample.store_bytes = stores.disk_bytes().ok();
            let found = rustix::fs::statvfs(directory).ok();
            sample.free_bytes = found.map(|found| found.f_bavail.saturating_mul(found.f_frsize));
        }
        *self.sample.lock() = sample;
        Ok(())
    }

    async fn backlog(&self, now_ms: u64) -> Result<BTreeMap<(String, &'static str), Backlog>, LogError> {
        let mut all: BTreeMap<(String, &'static str), Backlog> = BTreeMap::new();
        for group in Group::ALL {
            for progress in self.log.progress(group).await? {
                let backlog = all.entry((progress.at.topic.to_string(), group.name())).or_default();
                let behind = progress.end.saturating_sub(progress.committed);
                if behind == 0 {
                    continue;
                }
                backlog.records += behind;
                let (oldest, _) = self.log.read(progress.at, progress.committed, 1).await?;
                let age_ms = oldest.first().map_or(0, |record| now_ms.saturating_sub(record.timestamp_ms));
                backlog.age_ms = backlog.age_ms.max(age_ms);
            }
        }
        Ok(all)
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let sample = self.sample.lock().clone();
        let help = "Records of a topic that a group has yet to finish";
        let mut family = encoder.encode_descriptor("backlog_records", help, None, MetricType::Gauge)?;
        for ((topic, group), backlog) in &sample.backlog {
            let labels = [("topic", topic.as_str()), ("group", *group)];
            ConstGauge::new(backlog.records as i64).encode(family.encode_family(&labels)?)?;
        }
        let help = "Age of the oldest record of a topic that a group has yet to finish";
        let mut family = encoder.encode_descriptor("backlog_age", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        for ((topic, group), backlog) in &sample.backlog {
            let labels = [("topic", topic.as_str()), ("group", *group)];
            ConstGauge::new(seconds(backlog.age_ms)).encode(family.encode_family(&labels)?)?;
        }
        let help = "The offset on control up to which this process applied policies";
        let version = encoder.encode_descriptor("policy_version", help, None, MetricType::Gauge)?;
        ConstGauge::new(sample.policy_version as i64).encode(version)?;
        let help = "How long the oldest policy that this process has not applied is on control; 0 when it has all";
        let age = encoder.encode_descriptor("policy_age", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        ConstGauge::new(seconds(sample.policy_age_ms)).encode(age)?;
        // Servers have backups of their own.
        if self.local.is_some() {
            let last_backup_ms = self.last_backup_ms.load(Relaxed);
            let help = "When the last backup since the start was complete, in Unix time; 0 for none";
            let name = "backup_last_success_timestamp";
            let backup = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
            ConstGauge::new(seconds(last_backup_ms)).encode(backup)?;
        }
        let bytes = [
            ("journal", "The journal on disk", sample.journal_bytes),
            ("journal_live", "The part of the journal that is still needed", sample.journal_live_bytes),
            ("store", "The stores on disk", sample.store_bytes),
            ("disk_free", "What can still be written to the disk of the data directory", sample.free_bytes),
        ];
        // What the system does not tell is left out, and what is on other machines.
        for (name, help, value) in bytes.into_iter().filter_map(|(name, help, value)| Some((name, help, value?))) {
            let gauge = encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
            ConstGauge::new(value as i64).encode(gauge)?;
        }
        let exports = &self.exports;
        let help = "Expiring receipts that were exported before they were deleted";
        let receipts = encoder.encode_descriptor("export_receipts", help, None, MetricType::Counter)?;
        ConstCounter::new(exports.receipts.load(Relaxed)).encode(receipts)?;
        let since_ms = exports.failing_since_ms.load(Relaxed);
        let failing_ms = if since_ms == 0 { 0 } else { self.world.now_ms().saturating_sub(since_ms).max(1) };
        let help = "For how long every export of expiring receipts has failed; 0 while none does";
        let failing = encoder.encode_descriptor("export_failing", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        ConstGauge::new(seconds(failing_ms)).encode(failing)?;
        let help = "When the process started, in Unix time";
        let start = encoder.encode_descriptor("start_time", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        ConstGauge::new(seconds(self.started_ms)).encode(start)?;
        Ok(())
    }
}
