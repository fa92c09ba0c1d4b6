//! The books: per notification and channel, what was created and what has ended.

use std::{collections::BTreeMap, ops::AddAssign};

use crate::{
    ids::TenantId,
    record::{self, Channel, State},
};

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
        self.count += other.count;
        self.hash_sum = self.hash_sum.wrapping_add(other.hash_sum);
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
}

impl Totals {
    /// Empty books.
    pub fn new(tenant: TenantId) -> Self {
        Self { tenant, channels: BTreeMap::new(), recipients: 0, complete: false, applied: 0, updated_ms: 0 }
    }

    /// Books what a commit created, or takes back what one before it did.
    pub fn book_manifest(&mut self, manifest: &record::Manifest) {
        let tally = Tally { count: manifest.count.into(), hash_sum: manifest.hash_sum };
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

    /// Books what a commit ended.
    pub fn book_receipts(&mut self, receipts: &record::Receipts) {
        self.updated_ms = self.updated_ms.max(receipts.ended_ms);
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
}
