//! Where instances are that do not end: read from the log, for the few notifications whose books do not move.

use std::collections::{BTreeMap, HashSet};

use herald_core::{
    ids::NotificationId,
    ports::log::{Log, LogError, Record},
    record::InboxBatch,
    topic::{Group, Topic, TopicPartition},
};
use prost::Message;

/// Records that one look reads at most.
const MOST_RECORDS: usize = 10_000;
const RECORDS_A_READ: usize = 256;

/// How many instances of a notification and channel are where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// In a delay tier, with a due time.
    pub waiting: u64,
    /// In records that a worker has not finished.
    pub sending: u64,
    /// In in-app items that are not stored.
    pub inbox: u64,
}

/// Instances by notification and channel.
pub type Located = BTreeMap<(NotificationId, i32), Whereabouts>;

/// Looks for the instances of some notifications. Returns whether all of the log was looked at.
///
/// # Errors
/// Where the log cannot be read.
pub async fn locate(log: &dyn Log, wanted: &HashSet<NotificationId>) -> Result<(Located, bool), LogError> {
    let (mut located, mut left) = (Located::new(), MOST_RECORDS);
    if wanted.is_empty() {
        return Ok((located, true));
    }
    for group in [Group::Router, Group::Worker] {
        for progress in log.progress(group).await? {
            if !holds_instances(progress.at.topic) {
                continue;
            }
            let mut next = progress.committed;
            while next < progress.end {
                let (records, after) = log.read(progress.at, next, RECORDS_A_READ.min(left)).await?;
                left -= records.len().min(left);
                records.iter().for_each(|record| add(record, wanted, &mut located));
                if left == 0 {
                    return Ok((located, false));
                }
                next = after.max(next + 1);
            }
        }
    }
    Ok((located, true))
}

/// The notifications of the oldest unfinished records that are older than `before_ms`: nothing of them moves, also where
/// no receipt has brought their books to memory since this process began.
///
/// # Errors
/// Where the log cannot be read.
pub async fn oldest_unfinished(log: &dyn Log, before_ms: u64) -> Result<HashSet<NotificationId>, LogError> {
    let mut found = HashSet::new();
    for progress in log.progress(Group::Worker).await? {
        if progress.committed == progress.end || !holds_instances(progress.at.topic) {
            continue;
        }
        let (oldest, _) = log.read(progress.at, progress.committed, 1).await?;
        for record in oldest.iter().filter(|record| record.timestamp_ms < before_ms) {
            found.extend(instances_of(record).into_iter().map(|(id, ..)| id));
        }
    }
    Ok(found)
}

fn holds_instances(topic: Topic) -> bool {
    matches!(topic, Topic::Deliveries(_) | Topic::Overflow(_) | Topic::Inbox | Topic::Delayed(_))
}

fn add(record: &Record, wanted: &HashSet<NotificationId>, located: &mut Located) {
    for (id, channel, count) in instances_of(record) {
        if wanted.contains(&id) {
            let found = located.entry((id, channel)).or_default();
            let TopicPartition { topic, .. } = record.at;
            *match topic {
                Topic::Delayed(_) => &mut found.waiting,
                Topic::Inbox => &mut found.inbox,
                _ => &mut found.sending,
            } += count;
        }
    }
}

/// The instances that a record holds, finished or not.
fn instances_of(record: &Record) -> Vec<(NotificationId, i32, u64)> {
    if record.at.topic == Topic::Inbox {
        let sections = InboxBatch::decode(record.body.clone()).unwrap_or_default().sections;
        let in_app = herald_core::record::Channel::InApp as i32;
        let of = |section: &herald_core::record::InboxSection| {
            Some((NotificationId::from_slice(&section.notification_id)?, in_app, u64::from(section.count)))
        };
        return sections.iter().filter_map(of).collect();
    }
    let sections = record.envelope.sections.iter();
    sections
        .filter_map(|s| Some((NotificationId::from_slice(&s.notification_id)?, s.channel, u64::from(s.count))))
        .collect()
}
