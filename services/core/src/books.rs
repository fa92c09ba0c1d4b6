//! The books: per notification and channel, what was created and what has ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{AddAssign, Sub},
};

use crate::{
    ids::TenantId,
    record::{self, Channel, State},
    topic::Layout,
};

/// The reason of instances that were suppressed because their notification was cancelled.
pub const CANCELLED: &str = "cancelled";

/// A number of instances and the wrapping sum of their id hashes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Instances.
    pub count: u64,
    /// Wrapping sum of [`crate::ids::InstanceId::book_hash`].
    pub hash_sum: u64,
}

impl Tally {
    /// Counts one instance.
    pub fn add(&mut self, book_hash: u64) {
        self.count += 1;
        self.hash_sum = self.hash_sum.wrapping_add(book_hash);
    }

    /// Counts some no more.
    fn take_back(&mut self, other: Self) {
        self.count = self.count.saturating_sub(other.count);
        self.hash_sum = self.hash_sum.wrapping_sub(other.hash_sum);
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.count = self.count.wrapping_add(other.count);
        self.hash_sum = self.hash_sum.wrapping_add(other.hash_sum);
    }
}

impl Sub for Tally {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        // What is taken away may be told before what it is taken from.
        Self { count: self.count.wrapping_sub(other.count), hash_sum: self.hash_sum.wrapping_sub(other.hash_sum) }
    }
}

/// One channel of one notification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChannelTotals {
    /// The sum of the manifests.
    pub created: Tally,
    /// The sum of the receipts.
    pub ended: Tally,
    /// Taken by the channel.
    pub delivered: u64,
    /// Not sent because a rule said so, by reason.
    pub suppressed: BTreeMap<String, u64>,
    /// Refused for good.
    pub failed: u64,
    /// Out of attempts or time after an attempt, or not processable.
    pub dead: u64,
    /// Booked as cancelled before they came up; each that comes up confirms it.
    pub unconfirmed: Tally,
}

impl ChannelTotals {
    /// Whether everything created has ended, in count and in hash sum.
    pub fn balanced(&self) -> bool {
        self.created == self.ended
    }

    /// Created and not yet ended. Zero where receipts came before their manifest was read.
    pub fn in_flight(&self) -> u64 {
        self.created.count.saturating_sub(self.ended.count)
    }
}

/// How far a cancel has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cancel {
    /// The requests partitions that have acknowledged it.
    pub requests: BTreeSet<u32>,
    /// The shards that have acknowledged it.
    pub shards: BTreeSet<u32>,
    /// Whether all have: the books are closed, and their counts are final.
    pub closed: bool,
}

/// Everything the ledger adds up for one notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Totals {
    /// Whose it is.
    pub tenant: TenantId,
    /// By channel.
    pub channels: BTreeMap<i32, ChannelTotals>,
    /// Recipients expanded so far.
    pub recipients: u64,
    /// Whether the last page is out.
    pub complete: bool,
    /// The offset after the last ledger record applied, on the notification's receipts partition.
    pub applied: u64,
    /// When the newest applied receipt ended, in milliseconds since the epoch.
    pub updated_ms: u64,
    /// Set once a cancel was acknowledged by somebody.
    pub cancel: Option<Cancel>,
}

impl Totals {
    /// Empty books.
    pub fn new(tenant: TenantId) -> Self {
        Self {
            tenant,
            channels: BTreeMap::new(),
            recipients: 0,
            complete: false,
            applied: 0,
            updated_ms: 0,
            cancel: None,
        }
    }

    /// Books what a commit created, or takes back what one before it did.
    pub fn book_manifest(&mut self, manifest: &record::Manifest) {
        let tally = Tally { count: manifest.count.into(), hash_sum: manifest.hash_sum };
        if self.is_cancelled() {
            if manifest.count > 0 {
                let unconfirmed = &mut self.channels.entry(manifest.channel).or_default().unconfirmed;
                match manifest.negative {
                    true => *unconfirmed = *unconfirmed - tally,
                    false => *unconfirmed += tally,
                }
            }
            return;
        }
        let created = |totals: &mut Self, book: fn(&mut Tally, Tally)| {
            if manifest.count > 0 {
                book(&mut totals.channels.entry(manifest.channel).or_default().created, tally);
            }
        };
        if manifest.negative {
            self.recipients = self.recipients.saturating_sub(manifest.recipients.into());
            self.complete &= !manifest.last;
            created(self, Tally::take_back);
        } else {
            self.recipients += u64::from(manifest.recipients);
            self.complete |= manifest.last;
            created(self, Tally::add_assign);
        }
    }

    /// Books what a commit ended. Once the books are closed by a cancel, it only confirms what they say.
    pub fn book_receipts(&mut self, receipts: &record::Receipts) {
        self.updated_ms = self.updated_ms.max(receipts.ended_ms);
        if self.is_cancelled() {
            let ended = Tally { count: receipts.count.into(), hash_sum: receipts.hash_sum };
            let unconfirmed = &mut self.channels.entry(receipts.channel).or_default().unconfirmed;
            match receipts.negative {
                true => *unconfirmed += ended,
                false => *unconfirmed = *unconfirmed - ended,
            }
            return;
        }
        let totals = self.channels.entry(receipts.channel).or_default();
        let (count, hash) = (u64::from(receipts.count), receipts.hash_sum);
        let book = |counter: &mut u64| {
            *counter = if receipts.negative { counter.saturating_sub(count) } else { *counter + count };
        };
        let tally = Tally { count, hash_sum: hash };
        if receipts.negative {
            totals.ended.take_back(tally);
        } else {
            totals.ended += tally;
        }
        match receipts.state() {
            State::Delivered => book(&mut totals.delivered),
            State::Suppressed => book(totals.suppressed.entry(receipts.reason.clone()).or_default()),
            State::Failed => book(&mut totals.failed),
            State::Dead | State::Unspecified => book(&mut totals.dead),
        }
    }

    /// Books that a requests partition or a shard has nothing of the notification out any more. With the last of them,
    /// whatever has not ended is booked as cancelled, and the books are closed.
    pub fn book_cancel_ack(&mut self, ack: &record::CancelAck, layout: &Layout) {
        let cancel = self.cancel.get_or_insert_default();
        if cancel.closed {
            return;
        }
        let (acknowledged, of) =
            if ack.shard { (&mut cancel.shards, layout.shards) } else { (&mut cancel.requests, layout.requests) };
        if ack.number < of {
            acknowledged.insert(ack.number);
        }
        let all = |acknowledged: &BTreeSet<u32>, of: u32| acknowledged.len() == of as usize;
        if !all(&cancel.requests, layout.requests) || !all(&cancel.shards, layout.shards) {
            return;
        }
        cancel.closed = true;
        self.complete = true;
        for totals in self.channels.values_mut() {
            let rest = totals.created - totals.ended;
            totals.ended = totals.created;
            totals.unconfirmed = rest;
            if rest.count > 0 {
                *totals.suppressed.entry(CANCELLED.to_owned()).or_default() += rest.count;
            }
        }
    }

    /// Whether the books are closed by a cancel.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.closed)
    }

    /// Whether everything that was booked as cancelled has come up, and nothing else. So it is where nothing was.
    pub fn is_confirmed(&self) -> bool {
        self.channels.values().all(|totals| totals.unconfirmed == Tally::default())
    }

    /// Whether the last page is out and every channel is balanced.
    pub fn settled(&self) -> bool {
        self.complete && self.channels.values().all(ChannelTotals::balanced)
    }

    /// The channels, by name.
    pub fn by_channel(&self) -> impl Iterator<Item = (Channel, &ChannelTotals)> {
        self.channels.iter().map(|(c, t)| (Channel::try_from(*c).unwrap_or(Channel::Unspecified), t))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{InstanceId, NotificationId};

    fn receipts(users: &[&str], state: State, negative: bool) -> record::Receipts {
        let id = NotificationId([1; 16]);
        let mut tally = Tally::default();
        users.iter().for_each(|u| tally.add(InstanceId::of(&id, u, Channel::Email).book_hash()));
        record::Receipts {
            channel: Channel::Email as i32,
            state: state as i32,
            count: users.len() as u32,
            hash_sum: tally.hash_sum,
            negative,
            ..Default::default()
        }
    }

    fn manifest(users: &[&str], last: bool) -> record::Manifest {
        let booked = receipts(users, State::Delivered, false);
        record::Manifest {
            channel: booked.channel,
            count: booked.count,
            hash_sum: booked.hash_sum,
            recipients: booked.count,
            last,
            ..Default::default()
        }
    }

    #[test]
    fn books_balance_only_when_the_same_instances_ended() {
        let mut totals = Totals::new(TenantId::trusted("t"));
        totals.book_manifest(&manifest(&["a", "b"], true));
        totals.book_receipts(&receipts(&["a"], State::Delivered, false));
        assert!(!totals.settled());
        // As many as were created, yet not the same ones: "a" was settled twice and "b" never.
        let mut twice = totals.clone();
        twice.book_receipts(&receipts(&["a"], State::Delivered, false));
        assert_eq!(twice.channels[&2].in_flight(), 0);
        assert!(!twice.settled());
        totals.book_receipts(&receipts(&["b"], State::Dead, false));
        assert!(totals.settled());
    }

    #[test]
    fn a_redrive_takes_back_what_was_booked() {
        let mut totals = Totals::new(TenantId::trusted("t"));
        totals.book_manifest(&manifest(&["a"], true));
        totals.book_receipts(&receipts(&["a"], State::Dead, false));
        totals.book_receipts(&receipts(&["a"], State::Dead, true));
        assert_eq!((totals.channels[&2].dead, totals.channels[&2].in_flight()), (0, 1));
        totals.book_receipts(&receipts(&["a"], State::Delivered, false));
        assert!(totals.settled());
    }

    #[test]
    fn a_redriven_request_opens_its_chain_again() {
        let mut totals = Totals::new(TenantId::trusted("t"));
        totals.book_manifest(&manifest(&["a"], true));
        totals.book_receipts(&receipts(&["a"], State::Dead, false));
        totals.book_manifest(&record::Manifest { negative: true, ..manifest(&["a"], true) });
        totals.book_receipts(&receipts(&["a"], State::Dead, true));
        assert_eq!(
            (totals.channels[&2].created, totals.channels[&2].dead, totals.complete),
            (Tally::default(), 0, false)
        );
        totals.book_manifest(&manifest(&["b", "c"], true));
        totals.book_receipts(&receipts(&["b", "c"], State::Delivered, false));
        assert!(totals.settled());
        assert_eq!(totals.recipients, 2);
    }

    #[test]
    fn an_audience_of_nobody_is_settled_by_its_last_manifest() {
        let mut totals = Totals::new(TenantId::trusted("t"));
        assert!(!totals.settled());
        totals.book_manifest(&record::Manifest { last: true, ..Default::default() });
        assert!(totals.settled());
    }

    const LAYOUT: Layout = Layout { shards: 2, requests: 1, receipts: 1 };

    fn acknowledge(totals: &mut Totals, shard: bool, number: u32) {
        totals.book_cancel_ack(&record::CancelAck { shard, number, ..Default::default() }, &LAYOUT);
    }

    fn acknowledge_all(totals: &mut Totals, by: &[(bool, u32)]) {
        by.iter().for_each(|(shard, number)| acknowledge(totals, *shard, *number));
    }

    fn cancelled(users: &[&str]) -> record::Receipts {
        record::Receipts { reason: CANCELLED.into(), ..receipts(users, State::Suppressed, false) }
    }

    #[test]
    fn a_cancel_closes_the_books_when_everybody_has_acknowledged_it() {
        let mut totals = Totals::new(TenantId::trusted("t"));
        totals.book_manifest(&manifest(&["a", "b", "c"], false));
        totals.book_receipts(&receipts(&["a"], State::Delivered, false));
        acknowledge(&mut totals, true, 0);
        acknowledge(&mut totals, true, 0);
        acknowledge(&mut totals, false, 0);
        // Still in a provider's hands on the other shard when the first had acknowledged.
        totals.book_receipts(&receipts(&["b"], State::Delivered, false));
        assert!(!totals.is_cancelled() && !totals.settled());
        acknowledge(&mut totals, true, 1);
        assert!(totals.is_cancelled() && totals.settled() && totals.complete && !totals.is_confirmed());
        let email = &totals.channels[&2];
        assert_eq!((email.delivered, email.suppressed[CANCELLED], email.in_flight()), (2, 1, 0));

        let counts = (email.delivered, email.suppressed.clone(), email.created, email.ended);
        totals.book_receipts(&cancelled(&["c"]));
        assert!(totals.is_confirmed());
        // A page that was under way in a delay tier, and its end.
        totals.book_manifest(&manifest(&["d"], true));
        assert!(!totals.is_confirmed());
        totals.book_receipts(&cancelled(&["d"]));
        assert!(totals.is_confirmed());
        let email = &totals.channels[&2];
        assert_eq!((email.delivered, email.suppressed.clone(), email.created, email.ended), counts, "they are final");
    }

    #[test]
    fn another_instance_than_the_one_that_was_cancelled_confirms_nothing() {
        let mut totals = Totals::new(TenantId::trusted("t"));
        totals.book_manifest(&manifest(&["a", "b"], true));
        totals.book_receipts(&receipts(&["a"], State::Delivered, false));
        acknowledge_all(&mut totals, &[(false, 0), (true, 0), (true, 1)]);
        totals.book_receipts(&cancelled(&["a"]));
        assert!(!totals.is_confirmed());
    }

    #[test]
    fn what_was_never_expanded_is_cancelled_with_nothing_to_count() {
        let mut totals = Totals::new(TenantId::trusted("t"));
        acknowledge_all(&mut totals, &[(true, 0), (true, 1), (true, 7)]);
        assert!(!totals.is_cancelled());
        acknowledge(&mut totals, false, 0);
        assert!(totals.is_cancelled() && totals.settled() && totals.is_confirmed());
    }
}
