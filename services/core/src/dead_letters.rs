//! Dead letters: what could not be processed or delivered, kept with its record so that it can be brought back.
//!
//! A letter's id is its offset on [`Topic::Dead`]. Orders to bring letters back and what became of them are on
//! [`Topic::Redrives`]; who reads that topic knows which letters have gone already.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use crate::{
    ids::{InstanceId, NotificationId},
    packed,
    ports::log::{Identity, Record, partition},
    record::{
        self, Channel, DeadLetter, DeadLetterFilter, Envelope, LedgerBatch, Manifest, Place, Receipts, Redrive, Schema,
        State,
    },
    topic::{Topic, TopicPartition},
};

/// The stages that give something up.
pub const STAGES: [&str; 4] = ["orchestrator", "worker", "router", "ledger"];

/// Why they do. What stands here never means anything else: letters are kept for long.
pub const CAUSES: [&str; 7] =
    ["attempts_exhausted", "expired", "undecodable", "poison", "unknown_audience", "damaged", "no_home"];

/// Redrives that are remembered, the newest.
const MAX_REDRIVES: usize = 1_000;

/// Where dead letters are.
pub fn letters() -> TopicPartition {
    partition(Topic::Dead, 0)
}

/// Where orders to bring them back are, and what became of these.
pub fn redrives() -> TopicPartition {
    partition(Topic::Redrives, 0)
}

/// A record's place, for good.
pub fn place_of(record: &Record, log: &Identity) -> Place {
    Place {
        topic: record.at.topic.code().into(),
        partition: record.at.partition,
        offset: record.offset,
        log_epoch: log.epoch,
    }
}

/// The letter of a record that a stage gives up, with the record as it is.
pub fn letter(record: &Record, place: Place, stage: &str, cause: &str, now_ms: u64) -> DeadLetter {
    DeadLetter {
        stage: stage.to_owned(),
        cause: cause.to_owned(),
        attempts: 0,
        dead_ms: now_ms,
        place: Some(place),
        envelope: record.envelope.encode_to_vec().into(),
        body: record.body.clone(),
        detail: String::new(),
    }
}

/// The letter in a record of [`Topic::Dead`]; `None` for anything else.
pub fn read_letter(record: &Record) -> Option<DeadLetter> {
    let is_letter = record.envelope.schema() == Schema::DeadLetter;
    is_letter.then(|| DeadLetter::decode(record.body.clone()).ok()).flatten()
}

/// Whether a filter takes a letter. A letter of several tenants is each one's.
pub fn takes(filter: &DeadLetterFilter, record: &Record, letter: &DeadLetter) -> bool {
    let is = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
    let of_tenant = || {
        is(&filter.tenant, &record.envelope.tenant)
            || Envelope::decode(letter.envelope.clone())
                .is_ok_and(|envelope| envelope.sections.iter().any(|section| section.tenant == filter.tenant))
    };
    is(&filter.stage, &letter.stage)
        && is(&filter.cause, &letter.cause)
        && letter.dead_ms >= filter.since_ms
        && (filter.until_ms == 0 || letter.dead_ms < filter.until_ms)
        && of_tenant()
}

/// Books of a request that cannot be processed: one dead instance that closes its chain. With `negative` they are taken
/// back.
pub fn dead_request_books(tenant: &str, id: &NotificationId, now_ms: u64, cause: &str, negative: bool) -> LedgerBatch {
    let hash_sum = InstanceId::of(id, "", Channel::Unspecified).book_hash();
    let notification_id = Bytes::copy_from_slice(&id.0);
    LedgerBatch {
        manifests: vec![Manifest {
            notification_id: notification_id.clone(),
            tenant: tenant.to_owned(),
            count: 1,
            hash_sum,
            last: true,
            negative,
            ..Default::default()
        }],
        receipts: vec![Receipts {
            notification_id,
            tenant: tenant.to_owned(),
            state: State::Dead as i32,
            reason: cause.to_owned(),
            count: 1,
            hash_sum,
            users: if negative { Bytes::new() } else { packed::pack([""]) },
            ended_ms: now_ms,
            accepted_ms: now_ms,
            negative,
            ..Default::default()
        }],
        ..LedgerBatch::default()
    }
}

/// Books of sections that cannot be read: all of their instances are dead. With `negative` they are taken back.
pub fn dead_section_books(
    sections: &[record::SectionSummary],
    now_ms: u64,
    cause: &str,
    negative: bool,
) -> impl Iterator<Item = Receipts> {
    sections.iter().map(move |summary| Receipts {
        notification_id: summary.notification_id.clone(),
        tenant: summary.tenant.clone(),
        channel: summary.channel,
        state: State::Dead as i32,
        reason: cause.to_owned(),
        count: summary.count,
        hash_sum: summary.hash_sum,
        ended_ms: now_ms,
        accepted_ms: now_ms,
        negative,
        ..Default::default()
    })
}

/// Offsets as ranges, since letters are mostly brought back one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offsets(BTreeMap<u64, u64>);

impl Offsets {
    /// Adds an offset.
    pub fn insert(&mut self, offset: u64) {
        if self.contains(offset) {
            return;
        }
        let end = self.0.remove(&(offset + 1)).unwrap_or(offset + 1);
        match self.0.range_mut(..offset).next_back() {
            Some((_, before)) if *before == offset => *before = end,
            _ => drop(self.0.insert(offset, end)),
        }
    }

    /// Whether an offset was added.
    pub fn contains(&self, offset: u64) -> bool {
        self.0.range(..=offset).next_back().is_some_and(|(_, end)| offset < *end)
    }
}

/// What [`Topic::Redrives`] says: which letters were brought back, and how far each order is.
#[derive(Debug, Clone, Default)]
pub struct RedriveIndex {
    next: u64,
    redriven: Offsets,
    orders: BTreeMap<Bytes, Redrive>,
}

impl RedriveIndex {
    /// Where to read on.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Takes what a read from [`Self::next`] on brought, and where the next one begins. `false` at the end.
    pub fn read(&mut self, records: &[Record], next: u64) -> bool {
        records.iter().for_each(|record| self.take(record));
        std::mem::replace(&mut self.next, next) != next
    }

    fn take(&mut self, record: &Record) {
        let schema = record.envelope.schema();
        let Ok(redrive) = Redrive::decode(record.body.clone()) else { return };
        if schema == Schema::Redriven {
            self.note(redrive);
        } else if schema == Schema::Redrive {
            self.orders.entry(redrive.id.clone()).or_insert(redrive);
        }
        // Ids grow with time.
        while self.orders.len() > MAX_REDRIVES {
            self.orders.pop_first();
        }
    }

    /// Notes what a commit did.
    pub fn note(&mut self, mut redriven: Redrive) {
        std::mem::take(&mut redriven.done).into_iter().for_each(|offset| self.redriven.insert(offset));
        self.orders.insert(redriven.id.clone(), redriven);
    }

    /// Whether a letter was brought back.
    pub fn is_redriven(&self, letter: u64) -> bool {
        self.redriven.contains(letter)
    }

    /// How far an order is.
    pub fn order(&self, id: &[u8]) -> Option<&Redrive> {
        self.orders.get(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_a_set() {
        let mut offsets = Offsets::default();
        for offset in [5, 7, 6, 1, 9, 0, 6] {
            offsets.insert(offset);
        }
        let inside: Vec<u64> = (0..12).filter(|offset| offsets.contains(*offset)).collect();
        assert_eq!(inside, [0, 1, 5, 6, 7, 9]);
        assert_eq!(offsets.0.len(), 3, "neighbours are one range");
    }

    fn dead(tenant: &str, of: &[&str], stage: &str, dead_ms: u64) -> (Record, DeadLetter) {
        let sections =
            of.iter().map(|tenant| record::SectionSummary { tenant: (*tenant).into(), ..Default::default() });
        let envelope = Envelope { sections: sections.collect(), ..Default::default() };
        let envelope = envelope.encode_to_vec().into();
        let letter =
            DeadLetter { stage: stage.into(), cause: "expired".into(), dead_ms, envelope, ..Default::default() };
        let envelope = Envelope { tenant: tenant.into(), ..Default::default() };
        let (at, body) = (letters(), Bytes::new());
        (Record { at, offset: 0, key: Bytes::new(), timestamp_ms: 0, envelope, body }, letter)
    }

    #[test]
    fn a_filter_takes_what_fits_all_of_it() {
        let filter = DeadLetterFilter {
            tenant: "a".into(),
            stage: "worker".into(),
            since_ms: 5,
            until_ms: 9,
            ..Default::default()
        };
        let fits = |tenant, of: &[&str], stage, dead_ms| {
            let (record, letter) = dead(tenant, of, stage, dead_ms);
            takes(&filter, &record, &letter)
        };
        assert!(fits("a", &[], "worker", 5) && fits("", &["b", "a"], "worker", 8));
        assert!(!fits("b", &["b"], "worker", 5), "another tenant's");
        assert!(!fits("a", &[], "ledger", 5) && !fits("a", &[], "worker", 4) && !fits("a", &[], "worker", 9));
        let (record, letter) = dead("", &[], "worker", 0);
        assert!(takes(&DeadLetterFilter::default(), &record, &letter));
    }
}
