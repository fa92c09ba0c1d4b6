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
        // Books that are wrong may say anything; the proof must come to its end and tell.
        let suppressed = totals.suppressed.values().copied().fold(0, u64::saturating_add);
        self.accepted += totals.created.count;
        *self.accepted_by_channel.entry(herald_core::ids::channel_name(channel)).or_default() += totals.created.count;
        self.delivered += totals.delivered;
        self.failed += totals.failed;
        self.dead += totals.dead;
        for (reason, count) in &totals.suppressed {
            let sum = self.suppressed.entry(reason.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
        self.unconfirmed += u64::from(totals.unconfirmed != Tally::default());
        // The states must add up to what ended, too.
        let states =
            [totals.delivered, suppressed, totals.failed, totals.dead].into_iter().fold(0, u64::saturating_add);
        if !totals.balanced() || states != totals.ended.count {
            self.unbalanced.push(Unbalanced { id, channel, created: totals.created, ended: totals.ended });
        }
    }
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
