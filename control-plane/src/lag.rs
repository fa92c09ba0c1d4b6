//! What waits: from the log's positions, and nothing of the roles.

use std::collections::BTreeMap;

use herald_core::{
    ports::log::{Log, Progress},
    problem::Problem,
    record::Schema,
    topic::{Group, Topic},
};
use herald_proto::v1;

/// Records that are looked at to tell tenants apart, in all and of one partition.
const MAX_SCANNED: usize = 10_000;
const MAX_SCANNED_A_PARTITION: usize = 1_000;
const RECORDS_A_READ: usize = 500;

/// What each group has not finished, and about how much of it is whose.
///
/// # Errors
/// If the log does not answer.
pub async fn lag(log: &dyn Log, now_ms: u64, by_partition: bool) -> Result<v1::Lag, Problem> {
    let mut topics: BTreeMap<(String, &str, Option<u32>), v1::TopicLag> = BTreeMap::new();
    let mut tenants = Tenants::default();
    for group in Group::ALL {
        for progress in log.progress(group).await? {
            let behind = small(progress.end.saturating_sub(progress.committed));
            let topic = progress.at.topic.to_string();
            let partition = by_partition.then_some(progress.at.partition);
            let entry = topics.entry((topic.clone(), group.name(), partition)).or_insert_with(|| v1::TopicLag {
                topic,
                group: group.name().to_owned(),
                partition,
                ..Default::default()
            });
            if behind == 0 {
                continue;
            }
            let (oldest, _) = log.read(progress.at, progress.committed, 1).await?;
            let age_ms = oldest.first().map_or(0, |record| now_ms.saturating_sub(record.timestamp_ms));
            entry.records = entry.records.saturating_add(behind);
            entry.oldest_age_ms = entry.oldest_age_ms.max(small(age_ms));
            tenants.scan(log, group, &progress).await?;
        }
    }
    let Tenants { by_id, scanned, sampled } = tenants;
    Ok(v1::Lag { topics: topics.into_values().collect(), tenants: by_id.into_values().collect(), scanned, sampled })
}

#[derive(Default)]
struct Tenants {
    by_id: BTreeMap<String, v1::TenantLag>,
    scanned: u32,
    sampled: bool,
}

impl Tenants {
    /// Counts what a group has before it, by the envelopes of the records.
    async fn scan(&mut self, log: &dyn Log, group: Group, progress: &Progress) -> Result<(), Problem> {
        let waits = match progress.at.topic {
            Topic::Requests(_) | Topic::RequestsOverflow(_) => group == Group::Orchestrator,
            Topic::Deliveries(_) | Topic::Overflow(_) | Topic::Delayed(_) => true,
            _ => false,
        };
        if !waits {
            return Ok(());
        }
        let (mut from, mut scanned) = (progress.committed, 0);
        while from < progress.end {
            if scanned >= MAX_SCANNED_A_PARTITION || self.scanned as usize >= MAX_SCANNED {
                self.sampled = true;
                break;
            }
            let (records, next) = log.read(progress.at, from, RECORDS_A_READ).await?;
            if next == from {
                break;
            }
            for record in &records {
                match record.envelope.schema() {
                    Schema::Request | Schema::Continuation => self.of(&record.envelope.tenant).requests += 1,
                    _ => {
                        for section in &record.envelope.sections {
                            let tenant = self.of(&section.tenant);
                            tenant.instances = tenant.instances.saturating_add(section.count);
                        }
                    }
                }
            }
            scanned += records.len();
            self.scanned += records.len() as u32;
            from = next;
        }
        Ok(())
    }

    fn of(&mut self, tenant: &str) -> &mut v1::TenantLag {
        self.by_id
            .entry(tenant.to_owned())
            .or_insert_with(|| v1::TenantLag { tenant_id: tenant.to_owned(), ..Default::default() })
    }
}

fn small(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
