//! The proof of the books: for given notifications, that every instance created has ended, once.

use std::collections::BTreeMap;

use herald_core::{
    books::{ChannelTotals, Tally},
    ids::NotificationId,
    ports::{StoreError, ledger::Ledger},
    record::Channel,
};

const IDS_A_READ: usize = 1_000;

/// The sums over notifications, and whatever contradicts them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proof {
    /// Notifications with books.
    pub notifications: u64,
    /// Recipients expanded.
    pub recipients: u64,
    /// Instances created.
    pub accepted: u64,
    /// Instances that the channel took.
    pub delivered: u64,
    /// Instances that a rule suppressed, by reason.
    pub suppressed: BTreeMap<String, u64>,
    /// Instances refused for good.
    pub failed: u64,
    /// Instances out of attempts or time, or not processable.
    pub dead: u64,
    /// Instances by channel.
    pub accepted_by_channel: BTreeMap<&'static str, u64>,
    /// Instances that the channel took, by channel.
    pub delivered_by_channel: BTreeMap<&'static str, u64>,
    /// Notifications of which the ledger knows nothing.
    pub missing: Vec<NotificationId>,
    /// Notifications whose last page is not out.
    pub incomplete: Vec<NotificationId>,
    /// Channels on which something that was booked as cancelled has not come up yet, or something else has.
    pub unconfirmed: u64,
    /// Channels whose books do not agree.
    pub unbalanced: Vec<Unbalanced>,
}

/// A channel of a notification whose manifests and receipts do not agree, in count or in hash sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unbalanced {
    /// Which notification.
    pub id: NotificationId,
    /// On which channel.
    pub channel: Channel,
    /// The sum of its manifests.
    pub created: Tally,
    /// The sum of its receipts.
    pub ended: Tally,
}

impl Proof {
    /// Whether everything accepted has ended, exactly once.
    pub fn holds(&self) -> bool {
        self.missing.is_empty() && self.incomplete.is_empty() && self.unbalanced.is_empty()
    }

    fn add(&mut self, id: NotificationId, channel: Channel, totals: &ChannelTotals) {
        let name = herald_core::ids::channel_name(channel);
        add(self.accepted_by_channel.entry(name).or_default(), totals.created.count);
        add(self.delivered_by_channel.entry(name).or_default(), totals.delivered);
        add(&mut self.accepted, totals.created.count);
        add(&mut self.delivered, totals.delivered);
        add(&mut self.failed, totals.failed);
        add(&mut self.dead, totals.dead);
        // The states must add up to what ended, too.
        let mut states = 0;
        [totals.delivered, totals.failed, totals.dead].into_iter().for_each(|count| add(&mut states, count));
        for (reason, count) in &totals.suppressed {
            add(self.suppressed.entry(reason.clone()).or_default(), *count);
            add(&mut states, *count);
        }
        self.unconfirmed += u64::from(totals.unconfirmed != Tally::default());
        if !totals.balanced() || states != totals.ended.count {
            self.unbalanced.push(Unbalanced { id, channel, created: totals.created, ended: totals.ended });
        }
    }
}

/// Books that are wrong may say anything, such as less than nothing; the proof must come to its end and tell. It does not
/// wrap as tallies do, or two wrongs would make a right.
fn add(sum: &mut u64, count: u64) {
    *sum = sum.saturating_add(count);
}

/// Reads the books of these notifications and adds them up.
pub async fn prove(ledger: &dyn Ledger, ids: &[NotificationId]) -> Result<Proof, StoreError> {
    let mut proof = Proof::default();
    for ids in ids.chunks(IDS_A_READ) {
        for (id, totals) in ids.iter().zip(ledger.totals(ids).await?) {
            let Some(totals) = totals else {
                proof.missing.push(*id);
                continue;
            };
            proof.notifications += 1;
            proof.recipients += totals.recipients;
            if !totals.complete {
                proof.incomplete.push(*id);
            }
            totals.by_channel().for_each(|(channel, channel_totals)| proof.add(*id, channel, channel_totals));
        }
    }
    Ok(proof)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_from_which_too_much_was_taken_back_do_not_hold() {
        let mut proof = Proof::default();
        let less_than_nothing = Tally { count: u64::MAX, hash_sum: 1 };
        for _ in 0..2 {
            let suppressed = [("cancelled".to_owned(), u64::MAX)].into();
            let totals = ChannelTotals { created: less_than_nothing, suppressed, delivered: 5, ..Default::default() };
            proof.add(NotificationId([1; 16]), Channel::Email, &totals);
        }
        assert!(!proof.holds() && proof.unbalanced.len() == 2, "{proof:?}");
    }
}
