//! What is on its way, read from the log: it must explain the books that are open.

use std::collections::{BTreeMap, HashMap, HashSet};

use herald_core::{
    books::{Tally, Totals},
    done_map::DoneMap,
    ids::{InstanceId, NotificationId, TenantId, channel_name},
    packed,
    ports::{ledger::RequestRow, log::Record},
    record::{Channel, DeliveryBatch, InboxBatch, LedgerBatch, Notification, Request, Schema},
    topic::{Group, Topic},
};
use herald_embedded::log::inspect::JournalReader;
use prost::Message;

/// Instances of a notification by channel.
type ByChannel = BTreeMap<i32, Tally>;

/// What the log holds that has not ended, or has ended and is not in the stored books yet.
#[derive(Default)]
pub(super) struct InFlight {
    instances: HashMap<NotificationId, ByChannel>,
    /// Notifications of which a request or a continuation is still to be expanded.
    requests: HashSet<NotificationId>,
    /// Manifests and receipts that the ledger has not read, with their offsets.
    unread: HashMap<NotificationId, Vec<(u64, LedgerBatch)>>,
}

impl InFlight {
    /// Reads the log. Records that cannot be read are left out; whoever checks the journal tells of them.
    pub(super) fn read(journal: &JournalReader) -> Self {
        let mut all = Self::default();
        for at in journal.partitions() {
            let group = match at.topic {
                Topic::Requests(_) | Topic::RequestsOverflow(_) => Group::Orchestrator,
                Topic::Deliveries(_) | Topic::Overflow(_) | Topic::Inbox => Group::Worker,
                Topic::Delayed(_) => Group::Router,
                Topic::Receipts => Group::LedgerReceipts,
                // Orders to bring letters back, and the letters: what comes back does so in deliveries.
                Topic::UserChanges | Topic::Claims | Topic::Control | Topic::Dead | Topic::Redrives => continue,
            };
            let position = journal.position(group, at);
            let mut done = Flags { map: &position.done, at: 0 };
            for record in journal.records(at).filter_map(Result::ok).filter(|r| r.offset >= position.offset) {
                all.add(&record, &mut done);
            }
        }
        all
    }

    fn add(&mut self, record: &Record, done: &mut Flags<'_>) {
        match record.envelope.schema() {
            Schema::Request | Schema::Continuation => {
                let is_done = done.take(1)[0];
                let request = Request::decode(record.body.clone()).ok();
                let notification = request.and_then(|request| Notification::decode(request.notification).ok());
                let id = notification.and_then(|notification| NotificationId::from_slice(&notification.id));
                self.requests.extend(id.filter(|_| !is_done));
            }
            Schema::DeliveryBatch => self.add_deliveries(record, done),
            Schema::InboxBatch => {
                for section in InboxBatch::decode(record.body.clone()).unwrap_or_default().sections {
                    let Some(id) = NotificationId::from_slice(&section.notification_id) else { continue };
                    let tally = self.tally(id, Channel::InApp as i32);
                    for user in packed::unpack(&section.users).map_while(Result::ok) {
                        tally.add(InstanceId::of(&id, user, Channel::InApp).book_hash());
                    }
                }
            }
            Schema::LedgerBatch => self.add_unread(record),
            _ => {}
        }
    }

    fn add_deliveries(&mut self, record: &Record, done: &mut Flags<'_>) {
        let summaries = &record.envelope.sections;
        let count = summaries.iter().map(|summary| summary.count as usize).sum();
        let flags = done.take(count);
        if !flags.iter().any(|flag| *flag) {
            for summary in summaries {
                let Some(id) = NotificationId::from_slice(&summary.notification_id) else { continue };
                *self.tally(id, summary.channel) += Tally { count: summary.count.into(), hash_sum: summary.hash_sum };
            }
            return;
        }
        let mut flags = flags.into_iter();
        for section in DeliveryBatch::decode(record.body.clone()).unwrap_or_default().sections {
            let channel = section.channel();
            let notification = Notification::decode(section.notification).unwrap_or_default();
            let Some(id) = NotificationId::from_slice(&notification.id) else { continue };
            let tally = self.tally(id, channel as i32);
            for user in packed::unpack(&section.users).map_while(Result::ok) {
                if !flags.next().unwrap_or(false) {
                    tally.add(InstanceId::of(&id, user, channel).book_hash());
                }
            }
        }
    }

    /// Sorts what a record of the ledger says by notification.
    fn add_unread(&mut self, record: &Record) {
        let batch = LedgerBatch::decode(record.body.clone()).unwrap_or_default();
        let mut by_id: BTreeMap<NotificationId, LedgerBatch> = BTreeMap::new();
        for manifest in batch.manifests {
            if let Some(id) = NotificationId::from_slice(&manifest.notification_id) {
                by_id.entry(id).or_default().manifests.push(manifest);
            }
        }
        for receipts in batch.receipts {
            if let Some(id) = NotificationId::from_slice(&receipts.notification_id) {
                by_id.entry(id).or_default().receipts.push(receipts);
            }
        }
        for (id, batch) in by_id {
            self.unread.entry(id).or_default().push((record.offset, batch));
        }
    }

    fn tally(&mut self, id: NotificationId, channel: i32) -> &mut Tally {
        self.instances.entry(id).or_default().entry(channel).or_default()
    }

    /// How many instances are on their way.
    pub(super) fn instances(&self) -> u64 {
        self.instances.values().flat_map(BTreeMap::values).map(|tally| tally.count).sum()
    }

    /// Checks the books of one notification, with what the ledger has yet to read; tells what they do not explain.
    pub(super) fn settle(&mut self, id: NotificationId, row: RequestRow) -> Vec<String> {
        let tenant = row.admitted.as_ref().map(|row| row.tenant.clone());
        let tenant = tenant.or_else(|| row.totals.as_ref().map(|totals| totals.tenant.clone()));
        let totals = row.totals.unwrap_or_else(|| Totals::new(tenant.unwrap_or_else(|| TenantId::trusted(""))));
        self.check(id, totals)
    }

    /// Checks what is on the log and has no stored books; returns how many notifications that are.
    pub(super) fn settle_rest(&mut self) -> (u64, Vec<String>) {
        let ids: HashSet<NotificationId> = self.unread.keys().chain(self.instances.keys()).copied().collect();
        let mut faults = Vec::new();
        for id in &ids {
            faults.extend(self.check(*id, Totals::new(TenantId::trusted(""))));
        }
        (ids.len() as u64, faults)
    }

    fn check(&mut self, id: NotificationId, mut totals: Totals) -> Vec<String> {
        for (offset, batch) in self.unread.remove(&id).unwrap_or_default() {
            if offset >= totals.applied {
                batch.manifests.iter().for_each(|manifest| totals.book_manifest(manifest));
                batch.receipts.iter().for_each(|receipts| totals.book_receipts(receipts));
            }
        }
        let mut on_the_way = self.instances.remove(&id).unwrap_or_default();
        let mut faults = Vec::new();
        for (channel, books) in &totals.channels {
            // What a cancel has closed may still come up, to confirm it.
            let mut open = books.unconfirmed;
            open.count = open.count.wrapping_add(books.created.count.wrapping_sub(books.ended.count));
            open.hash_sum = open.hash_sum.wrapping_add(books.created.hash_sum.wrapping_sub(books.ended.hash_sum));
            let found = on_the_way.remove(channel).unwrap_or_default();
            if open != found {
                let (created, ended, found) = (books.created.count, books.ended.count, found.count);
                let name = name_of(*channel);
                faults.push(format!(
                    "notification {id} on {name}: {created} were created, {ended} have ended, and {found} are on their way, \
                     which are not the ones that are missing"
                ));
            }
            let states = books.delivered + books.failed + books.dead + books.suppressed.values().sum::<u64>();
            if states != books.ended.count {
                let (name, ended) = (name_of(*channel), books.ended.count);
                faults.push(format!("notification {id} on {name}: {ended} have ended, the states add up to {states}"));
            }
        }
        for (channel, tally) in on_the_way.into_iter().filter(|(_, tally)| *tally != Tally::default()) {
            let (name, count) = (name_of(channel), tally.count);
            faults.push(format!("notification {id} on {name}: {count} are on their way, and no manifest created them"));
        }
        if !totals.complete && !self.requests.contains(&id) {
            faults.push(format!("notification {id} is not wholly expanded, and nothing on the log will go on with it"));
        }
        faults
    }
}

fn name_of(channel: i32) -> &'static str {
    channel_name(Channel::try_from(channel).unwrap_or(Channel::Unspecified))
}

/// The flags of a position's map, in the order of its records.
struct Flags<'a> {
    map: &'a DoneMap,
    at: usize,
}

impl Flags<'_> {
    /// Whether each of the next units is finished.
    fn take(&mut self, count: usize) -> Vec<bool> {
        let from = self.at;
        self.at += count;
        match from >= self.map.span() {
            true => vec![false; count],
            false => self.map.flags().skip(from).take(count).collect(),
        }
    }
}
