//! The topic `control`: writing policies to it, and how far it is known to be read.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use bytes::Bytes;
use prost::{DecodeError, Message};

use crate::{
    policy::policy_key,
    ports::log::{Identity, Member, NewRecord, Record, partition},
    record::{Control, Envelope, Schema},
    topic::{Topic, TopicPartition},
};

/// Where policies are.
pub fn control() -> TopicPartition {
    partition(Topic::Control, 0)
}

/// The record of a policy. Its key is the policy's, so that compaction keeps the last one.
pub fn control_record(identity: &Identity, policy: &Control, now_ms: u64) -> NewRecord {
    NewRecord {
        at: control(),
        key: policy_key(&policy.kind, &policy.key).into(),
        timestamp_ms: now_ms,
        envelope: Envelope { schema: Schema::Control as i32, region: identity.region.clone(), ..Envelope::default() },
        body: policy.encode_to_vec().into(),
    }
}

/// The record that lets `control` forget a policy that was deleted: one without a body. It stands behind the record that says
/// so, which who knows nothing of this one reads.
pub fn gone_record(identity: &Identity, kind: &str, key: &str, now_ms: u64) -> NewRecord {
    let policy = Control { kind: kind.to_owned(), key: key.to_owned(), ..Control::default() };
    NewRecord { body: Bytes::new(), ..control_record(identity, &policy, now_ms) }
}

/// The policy that a record of `control` is about.
///
/// # Errors
/// Where its body is none.
pub fn policy_of(record: &Record) -> Result<Control, DecodeError> {
    if !record.body.is_empty() {
        return Control::decode(record.body.clone());
    }
    let key = String::from_utf8_lossy(&record.key);
    let (kind, key) = key.split_once('/').unwrap_or_default();
    Ok(Control { kind: kind.to_owned(), key: key.to_owned(), deleted: true, ..Control::default() })
}

/// How far a process's feed has read `control`: shared by the feed and by everyone who must not act on what is old.
///
/// A read brings everything that was on the topic when it began, and the snapshot with it is there before the read ends.
#[derive(Debug, Default)]
pub struct ControlReads {
    begun: AtomicU64,
    ended: AtomicU64,
    asked_ms: AtomicU64,
}

impl ControlReads {
    /// Begins a read; returns its number.
    pub fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Relaxed) + 1
    }

    /// Notes that a read, begun at `asked_ms` of steady time, came to the end of the topic, and that its snapshot is there.
    pub fn end(&self, read: u64, asked_ms: u64) {
        // Who sees these sees the snapshot.
        self.asked_ms.store(asked_ms, Release);
        self.ended.store(read, Release);
    }

    /// The number of the first read that has not begun: it knows everything that was written until now.
    pub fn next(&self) -> u64 {
        self.begun.load(Relaxed) + 1
    }

    /// Whether a read, or one after it, has ended.
    pub fn has_ended(&self, read: u64) -> bool {
        self.ended.load(Acquire) >= read
    }

    /// When the last read that has ended began, in milliseconds of steady time; 0 before the first.
    pub fn asked_ms(&self) -> u64 {
        self.asked_ms.load(Acquire)
    }
}

/// Which version of the policies each role of a process decides with.
#[derive(Debug, Default)]
pub struct RoleVersions {
    by_member: Mutex<BTreeMap<(&'static str, u32), u64>>,
}

impl RoleVersions {
    /// Notes that a member of a role decides with this version from now on.
    pub fn runs(&self, role: &'static str, member: Member, version: u64) {
        let mut by_member = self.by_member.lock().unwrap_or_else(PoisonError::into_inner);
        by_member.insert((role, member.ordinal), version);
    }

    /// The versions, by the names of roles; of several members the oldest.
    pub fn by_role(&self) -> BTreeMap<String, u64> {
        let by_member = self.by_member.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_role = BTreeMap::new();
        for ((role, _), version) in by_member.iter() {
            by_role.entry((*role).to_owned()).and_modify(|v: &mut u64| *v = (*v).min(*version)).or_insert(*version);
        }
        by_role
    }
}

#[cfg(test)]
mod tests {
    use crate::topic::Layout;

    use super::*;

    #[test]
    fn only_a_read_that_begins_later_knows_what_is_written_now() {
        let reads = ControlReads::default();
        let running = reads.begin();
        let needed = reads.next();
        reads.end(running, 10);
        assert!(reads.has_ended(running) && !reads.has_ended(needed));
        let read = reads.begin();
        reads.end(read, 20);
        assert!(reads.has_ended(needed));
        assert_eq!(reads.asked_ms(), 20);
    }

    #[test]
    fn a_role_runs_what_the_last_of_its_members_runs() {
        let versions = RoleVersions::default();
        versions.runs("worker", Member { ordinal: 0, count: 2 }, 7);
        versions.runs("worker", Member { ordinal: 1, count: 2 }, 5);
        versions.runs("gateway", Member { ordinal: 0, count: 1 }, 8);
        assert_eq!(versions.by_role(), [("gateway".to_owned(), 8), ("worker".to_owned(), 5)].into());
        versions.runs("worker", Member { ordinal: 1, count: 2 }, 8);
        assert_eq!(versions.by_role()["worker"], 7);
    }

    #[test]
    fn a_record_without_a_body_is_of_a_policy_that_is_gone() {
        let layout = Layout { shards: 1, requests: 1, receipts: 1 };
        let identity = Identity { region: "eu".into(), epoch: 1, layout };
        let as_read = |new: NewRecord| {
            let NewRecord { at, key, timestamp_ms, envelope, body } = new;
            Record { at, offset: 0, key, timestamp_ms, envelope, body }
        };
        let policy = Control { kind: "switch".into(), key: "a/b".into(), version: 3, ..Control::default() };
        let written = as_read(control_record(&identity, &policy, 5));
        assert_eq!(policy_of(&written).unwrap(), policy);
        let gone = as_read(gone_record(&identity, "switch", "a/b", 6));
        assert_eq!((&gone.key, gone.body.len()), (&written.key, 0));
        assert_eq!(policy_of(&gone).unwrap(), Control { version: 0, deleted: true, ..policy });
    }
}
