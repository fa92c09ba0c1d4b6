//! Gathers what a stage puts out in one commit into few, large records.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use crate::{
    dead_letters::{CAUSES, STAGES},
    ids::NotificationId,
    ports::log::NewRecord,
    record::{
        CancelAck, ClaimBatch, DeadLetter, DeliveryBatch, Envelope, InboxBatch, InboxSection, LedgerBatch, Manifest,
        Receipts, Schema, Section, SectionSummary, WaitCause, Waiting,
    },
    topic::{Layout, Topic, TopicPartition, tier_for},
};

/// A delivery record is closed at this many instances.
pub const MAX_BATCH_INSTANCES: u32 = 512;

/// A ledger or inbox record is closed at about this many bytes.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// Until when something waits, and what makes it wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wait {
    /// In milliseconds since the epoch.
    pub due_ms: u64,
    /// What can be lifted before, if anything can.
    pub cause: WaitCause,
}

impl Wait {
    /// Until a time, whatever happens.
    pub fn until(due_ms: u64) -> Self {
        Self { due_ms, cause: WaitCause::Unspecified }
    }

    /// No longer than to this time.
    pub fn at_most(self, due_ms: u64) -> Self {
        Self { due_ms: self.due_ms.min(due_ms), ..self }
    }
}

#[derive(Default)]
struct OpenBatch {
    batch: DeliveryBatch,
    summaries: Vec<SectionSummary>,
    instances: u32,
}

#[derive(Default)]
struct OpenInbox {
    batch: InboxBatch,
    summaries: Vec<SectionSummary>,
    bytes: usize,
}

/// The outputs of one commit.
pub struct Outputs {
    layout: Layout,
    region: String,
    now_ms: u64,
    records: Vec<NewRecord>,
    deliveries: BTreeMap<(TopicPartition, Option<Wait>), OpenBatch>,
    ledger: BTreeMap<u32, (LedgerBatch, usize)>,
    inbox: BTreeMap<u32, OpenInbox>,
    dead_letters: u64,
}

impl Outputs {
    /// Empty outputs of a commit that is made at `now_ms`.
    pub fn new(layout: Layout, region: &str, now_ms: u64) -> Self {
        Self {
            layout,
            region: region.to_owned(),
            now_ms,
            records: Vec::new(),
            deliveries: BTreeMap::new(),
            ledger: BTreeMap::new(),
            inbox: BTreeMap::new(),
            dead_letters: 0,
        }
    }

    /// An envelope of this region.
    pub fn envelope(&self, schema: Schema, tenant: &str) -> Envelope {
        Envelope { schema: schema as i32, region: self.region.clone(), tenant: tenant.to_owned(), ..Default::default() }
    }

    /// Adds a section for a shard. One that waits goes to a delay tier first.
    pub fn section(&mut self, home: TopicPartition, wait: Option<Wait>, section: Section, summary: SectionSummary) {
        let open = self.deliveries.entry((home, wait)).or_default();
        open.instances += section.count;
        open.batch.sections.push(section);
        open.summaries.push(summary);
        if open.instances >= MAX_BATCH_INSTANCES {
            let full = std::mem::take(open);
            self.close_batch(home, wait, full);
        }
    }

    fn close_batch(&mut self, home: TopicPartition, wait: Option<Wait>, open: OpenBatch) {
        let tenant = match open.summaries.as_slice() {
            [first, rest @ ..] if rest.iter().all(|s| s.tenant == first.tenant) => first.tenant.clone(),
            _ => String::new(),
        };
        let envelope = Envelope { sections: open.summaries, ..self.envelope(Schema::DeliveryBatch, &tenant) };
        let body = open.batch.encode_to_vec().into();
        match wait {
            None => self.record(home, envelope, body),
            Some(wait) => self.delayed(home, wait, envelope, body),
        }
    }

    /// Adds a record that waits in a delay tier and then goes to `home`.
    pub fn delayed(&mut self, home: TopicPartition, wait: Wait, mut envelope: Envelope, body: Bytes) {
        let Wait { due_ms, cause } = wait;
        let tier = tier_for(due_ms.saturating_sub(self.now_ms));
        let (topic, partition) = (home.topic.code().into(), home.partition);
        envelope.waiting = Some(Waiting { due_ms, topic, partition, cause: cause as i32 });
        self.record(TopicPartition { topic: Topic::Delayed(tier), partition: 0 }, envelope, body);
    }

    /// Adds a manifest.
    pub fn manifest(&mut self, manifest: Manifest) {
        let size = manifest.encoded_len();
        self.ledger_batch(&manifest.notification_id.clone(), size, |batch| batch.manifests.push(manifest));
    }

    /// Adds receipts.
    pub fn receipts(&mut self, receipts: Receipts) {
        let size = receipts.encoded_len();
        self.ledger_batch(&receipts.notification_id.clone(), size, |batch| batch.receipts.push(receipts));
    }

    /// Adds the acknowledgement of a cancel.
    pub fn cancel_ack(&mut self, ack: CancelAck) {
        let size = ack.encoded_len();
        self.ledger_batch(&ack.notification_id.clone(), size, |batch| batch.cancel_acks.push(ack));
    }

    fn ledger_batch(&mut self, notification_id: &[u8], size: usize, add: impl FnOnce(&mut LedgerBatch)) {
        let id = NotificationId::from_slice(notification_id).unwrap_or(NotificationId([0; 16]));
        let partition = self.layout.receipts_of(&id).partition;
        let (batch, bytes) = self.ledger.entry(partition).or_default();
        add(batch);
        *bytes += size;
        if *bytes >= MAX_RECORD_BYTES {
            let (full, _) = std::mem::take(self.ledger.entry(partition).or_default());
            self.close_ledger(partition, full);
        }
    }

    fn close_ledger(&mut self, partition: u32, batch: LedgerBatch) {
        let at = TopicPartition { topic: Topic::Receipts, partition };
        let envelope = self.envelope(Schema::LedgerBatch, "");
        self.record(at, envelope, batch.encode_to_vec().into());
    }

    /// Adds rendered in-app items of a shard, and what is booked for them should they not be readable.
    pub fn inbox(&mut self, shard: u32, section: InboxSection, summary: SectionSummary) {
        let open = self.inbox.entry(shard).or_default();
        open.bytes += section.encoded_len();
        open.batch.sections.push(section);
        open.summaries.push(summary);
        if open.bytes >= MAX_RECORD_BYTES {
            let full = std::mem::take(open);
            self.close_inbox(shard, full);
        }
    }

    fn close_inbox(&mut self, shard: u32, open: OpenInbox) {
        let at = TopicPartition { topic: Topic::Inbox, partition: shard };
        let envelope = Envelope { sections: open.summaries, ..self.envelope(Schema::InboxBatch, "") };
        self.record(at, envelope, open.batch.encode_to_vec().into());
    }

    /// Adds claims won and released in a shard.
    pub fn claims(&mut self, shard: u32, batch: ClaimBatch) {
        let at = TopicPartition { topic: Topic::Claims, partition: shard };
        let envelope = self.envelope(Schema::ClaimBatch, "");
        self.record(at, envelope, batch.encode_to_vec().into());
    }

    /// Adds a dead letter, of a stage and for a cause that [`crate::dead_letters`] names.
    pub fn dead(&mut self, tenant: &str, letter: DeadLetter) {
        let is_known = STAGES.contains(&&*letter.stage) && CAUSES.contains(&&*letter.cause);
        debug_assert!(is_known, "nobody could ask for letters of {} for {}", letter.stage, letter.cause);
        let at = TopicPartition { topic: Topic::Dead, partition: 0 };
        let envelope = self.envelope(Schema::DeadLetter, tenant);
        self.record(at, envelope, letter.encode_to_vec().into());
        self.dead_letters += 1;
    }

    /// How many dead letters were added.
    pub fn dead_letters(&self) -> u64 {
        self.dead_letters
    }

    /// Adds any other record.
    pub fn record(&mut self, at: TopicPartition, envelope: Envelope, body: Bytes) {
        self.records.push(NewRecord { at, key: Bytes::new(), timestamp_ms: self.now_ms, envelope, body });
    }

    /// Adds what other outputs of the same commit gathered.
    pub fn absorb(&mut self, other: Self) {
        self.records.extend(other.records);
        self.dead_letters += other.dead_letters;
        for ((home, wait), open) in other.deliveries {
            for (section, summary) in open.batch.sections.into_iter().zip(open.summaries) {
                self.section(home, wait, section, summary);
            }
        }
        for (partition, (mut batch, bytes)) in other.ledger {
            let (mine, my_bytes) = self.ledger.entry(partition).or_default();
            mine.manifests.append(&mut batch.manifests);
            mine.receipts.append(&mut batch.receipts);
            mine.cancel_acks.append(&mut batch.cancel_acks);
            *my_bytes += bytes;
            if *my_bytes >= MAX_RECORD_BYTES {
                let (full, _) = std::mem::take(self.ledger.entry(partition).or_default());
                self.close_ledger(partition, full);
            }
        }
        for (shard, open) in other.inbox {
            for (section, summary) in open.batch.sections.into_iter().zip(open.summaries) {
                self.inbox(shard, section, summary);
            }
        }
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.deliveries.is_empty() && self.ledger.is_empty() && self.inbox.is_empty()
    }

    /// The records of the commit.
    pub fn finish(mut self) -> Vec<NewRecord> {
        for ((home, wait), open) in std::mem::take(&mut self.deliveries) {
            if open.instances > 0 {
                self.close_batch(home, wait, open);
            }
        }
        for (partition, (batch, bytes)) in std::mem::take(&mut self.ledger) {
            if bytes > 0 {
                self.close_ledger(partition, batch);
            }
        }
        for (shard, open) in std::mem::take(&mut self.inbox) {
            if open.bytes > 0 {
                self.close_inbox(shard, open);
            }
        }
        self.records
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::Lane;

    const LAYOUT: Layout = Layout { shards: 2, requests: 1, receipts: 2 };

    #[test]
    fn small_sections_share_a_record_and_large_ones_close_it() {
        let mut outputs = Outputs::new(LAYOUT, "eu", 5);
        let home = TopicPartition { topic: Topic::Deliveries(Lane::Bulk), partition: 1 };
        for (tenant, count) in [("a", 200), ("b", 300), ("a", 12), ("a", 1)] {
            let section = Section { count, ..Default::default() };
            outputs.section(home, None, section, SectionSummary { tenant: tenant.into(), count, ..Default::default() });
        }
        let records = outputs.finish();
        let sums: Vec<u32> = records.iter().map(|r| r.envelope.sections.iter().map(|s| s.count).sum()).collect();
        assert_eq!(sums, [512, 1]);
        assert_eq!((records[0].envelope.tenant.as_str(), records[1].envelope.tenant.as_str()), ("", "a"));
    }

    #[test]
    fn outputs_of_several_shards_become_few_records() {
        let mut all = Outputs::new(LAYOUT, "eu", 5);
        for shard in 0..2 {
            let mut one = Outputs::new(LAYOUT, "eu", 5);
            one.receipts(Receipts { notification_id: vec![7; 16].into(), ..Default::default() });
            let items = InboxSection { count: 1, tenant: "a".into(), ..Default::default() };
            one.inbox(shard, items, SectionSummary { count: 1, ..Default::default() });
            let home = TopicPartition { topic: Topic::Deliveries(Lane::Bulk), partition: shard };
            one.section(
                home,
                Some(Wait::until(9)),
                Section { count: 1, ..Default::default() },
                SectionSummary::default(),
            );
            all.absorb(one);
        }
        let records = all.finish();
        let of = |topic| records.iter().filter(|record| record.at.topic == topic).count();
        assert_eq!((of(Topic::Receipts), of(Topic::Inbox), of(Topic::Delayed(0))), (1, 2, 2));
        let inboxes = records.iter().filter(|record| record.at.topic == Topic::Inbox);
        assert!(
            inboxes.into_iter().all(|record| record.envelope.sections[0].count == 1),
            "what to book is told outside"
        );
        let ledger = records.iter().find(|record| record.at.topic == Topic::Receipts).unwrap();
        assert_eq!(LedgerBatch::decode(ledger.body.clone()).unwrap().receipts.len(), 2);
    }

    #[test]
    fn what_waits_goes_to_the_tier_of_its_due_time() {
        let mut outputs = Outputs::new(LAYOUT, "eu", 1_000);
        let home = TopicPartition { topic: Topic::Deliveries(Lane::Bulk), partition: 1 };
        let section = Section { count: 1, ..Default::default() };
        let wait = Wait { due_ms: 6_000, cause: WaitCause::Switch };
        outputs.section(home, Some(wait), section, SectionSummary::default());
        let records = outputs.finish();
        assert_eq!(records[0].at.topic, Topic::Delayed(2));
        let waiting = records[0].envelope.waiting.unwrap();
        assert_eq!((waiting.due_ms, waiting.topic, waiting.partition), (6_000, 6, 1));
        assert_eq!(waiting.cause(), WaitCause::Switch);
    }
}
