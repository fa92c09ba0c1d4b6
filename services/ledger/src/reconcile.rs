//! Reconciliation: whether what was created has ended, as a check that runs all the time.

use crate::locate::Whereabouts;
use herald_core::{
    books::{Tally, Totals},
    ids::{NotificationId, TenantId},
    record::Channel,
};

/// The books of a notification and when they last moved.
#[derive(Debug, Clone, Copy)]
pub struct Open<'a> {
    /// Which notification.
    pub id: NotificationId,
    /// Its books.
    pub totals: &'a Totals,
    /// When a manifest or receipt was last booked, in milliseconds since the epoch.
    pub progress_ms: u64,
}

/// What is wrong with a channel's books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// More has ended than was created, or not what was created: a fault.
    Overbooked,
    /// Everything is out and some of it has not ended. It may wait for good reason (a hold, quiet hours, a retry).
    Stalled,
}

/// A channel of a notification whose books do not agree and do not move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// Which notification.
    pub id: NotificationId,
    /// Whose.
    pub tenant: TenantId,
    /// On which channel.
    pub channel: Channel,
    /// The sum of its manifests.
    pub created: Tally,
    /// The sum of its receipts.
    pub ended: Tally,
    /// What is wrong.
    pub finding: Finding,
    /// For how long nothing was booked.
    pub idle_ms: u64,
    /// Where those are that have not ended, as far as that is known.
    pub stage: &'static str,
}

impl Stuck {
    /// What is stuck beyond what waits for a due time; `None` if that is all. `all` says whether the whole log was looked
    /// at.
    pub fn beyond(self, found: Whereabouts, all: bool) -> Option<Self> {
        let open = self.created.count.saturating_sub(self.ended.count);
        if self.finding == Finding::Overbooked || open > found.waiting {
            let stage = match found {
                Whereabouts { sending: 1.., .. } => "sending",
                Whereabouts { inbox: 1.., .. } => "inbox",
                _ if all => "nowhere",
                _ => "unknown",
            };
            return Some(Self { stage, ..self });
        }
        None
    }
}

/// What is stuck: channels whose books do not agree, of notifications that are complete or where more ended than was
/// created, without progress for `stall_after_ms`.
pub fn reconcile<'a>(open: impl IntoIterator<Item = Open<'a>>, now_ms: u64, stall_after_ms: u64) -> Vec<Stuck> {
    open.into_iter()
        .filter(|open| now_ms.saturating_sub(open.progress_ms) >= stall_after_ms)
        .flat_map(|open| {
            open.totals.by_channel().filter_map(move |(channel, totals)| {
                let overbooked = totals.ended.count >= totals.created.count && !totals.balanced();
                let stalled = open.totals.complete && !totals.balanced();
                (overbooked || stalled).then(|| Stuck {
                    id: open.id,
                    tenant: open.totals.tenant.clone(),
                    channel,
                    created: totals.created,
                    ended: totals.ended,
                    finding: if overbooked { Finding::Overbooked } else { Finding::Stalled },
                    idle_ms: now_ms.saturating_sub(open.progress_ms),
                    stage: "unknown",
                })
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ended, manifest};
    use herald_core::record::State;

    fn findings(totals: &Totals, idle_ms: u64) -> Vec<Finding> {
        let open = Open { id: NotificationId([1; 16]), totals, progress_ms: 1_000 };
        reconcile([open], 1_000 + idle_ms, 60_000).into_iter().map(|stuck| stuck.finding).collect()
    }

    #[test]
    fn what_is_out_and_does_not_end_is_stuck_after_a_minute() {
        let id = NotificationId([1; 16]);
        let mut totals = Totals::new(TenantId::trusted("t"));
        totals.book_manifest(&manifest(&id, &["a", "b"], false));
        totals.book_receipts(&ended(&id, &["a"], State::Delivered));
        assert_eq!(findings(&totals, 60_000), [], "pages are still to come");
        totals.book_manifest(&manifest(&id, &[], true));
        assert_eq!(findings(&totals, 59_999), []);
        assert_eq!(findings(&totals, 60_000), [Finding::Stalled]);
        totals.book_receipts(&ended(&id, &["b"], State::Failed));
        assert_eq!(findings(&totals, 60_000), []);
    }

    #[test]
    fn what_waits_for_its_time_is_not_stuck() {
        let id = NotificationId([1; 16]);
        let mut totals = Totals::new(TenantId::trusted("t"));
        totals.book_manifest(&manifest(&id, &["a", "b"], true));
        let open = Open { id, totals: &totals, progress_ms: 1_000 };
        let stuck = reconcile([open], 91_000, 60_000).remove(0);
        assert_eq!(stuck.idle_ms, 90_000);
        let beyond = |waiting, sending| {
            let found = Whereabouts { waiting, sending, inbox: 0 };
            stuck.clone().beyond(found, true).map(|stuck| stuck.stage)
        };
        assert_eq!(beyond(2, 0), None);
        assert_eq!(beyond(1, 1), Some("sending"));
        assert_eq!(beyond(1, 0), Some("nowhere"));
    }

    #[test]
    fn a_person_settled_twice_in_place_of_another_is_a_fault() {
        let id = NotificationId([1; 16]);
        let mut totals = Totals::new(TenantId::trusted("t"));
        totals.book_manifest(&manifest(&id, &["a", "b"], false));
        totals.book_receipts(&ended(&id, &["a"], State::Delivered));
        totals.book_receipts(&ended(&id, &["a"], State::Delivered));
        assert_eq!(findings(&totals, 60_000), [Finding::Overbooked]);
    }
}
