//! What switches and cancels do to chains of pages, and the acknowledgement of cancels.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use herald_core::{
    control::ControlReads,
    ids::NotificationId,
    outputs::{Outputs, Wait},
    policy::Policy,
    record::{CancelAck, Notification, Request, WaitCause},
    switches::{OnItsWay, SwitchState},
    waiting::LONGEST_WAIT_MS,
};
use tokio::sync::watch;

/// How long a held continuation waits before it is looked at again, if the switch is not lifted before.
const HOLD_MS: u64 = LONGEST_WAIT_MS;

/// Acknowledgements that one commit takes at most.
const MAX_ACKS: usize = 10_000;

/// What is to become of the next page of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Steer {
    /// Expand it; if slowly, a tenth of it.
    Go { slow: bool },
    /// Look again later.
    Wait(Wait),
    /// There are no further pages.
    Stop,
}

/// The policies that a stage decides with, and the cancels that its partitions have acknowledged.
pub(crate) struct Steering {
    policies: watch::Receiver<Arc<Policy>>,
    control: Arc<ControlReads>,
    policy: Arc<Policy>,
    /// Nothing is expanded before this read of `control`: who had the partitions before may have acknowledged a cancel
    /// that this process does not know of.
    informed_by: u64,
    /// By number of a requests partition.
    acknowledged: BTreeMap<u32, BTreeSet<NotificationId>>,
    /// [`Policy::steered`] when everything was acknowledged last.
    settled_at: Option<u64>,
}

impl Steering {
    pub(crate) fn new(mut policies: watch::Receiver<Arc<Policy>>, control: Arc<ControlReads>) -> Self {
        let policy = policies.borrow_and_update().clone();
        let informed_by = control.next();
        Self { policies, control, policy, informed_by, acknowledged: BTreeMap::new(), settled_at: None }
    }

    /// Takes up the newest policies; returns their version.
    pub(crate) fn take_up(&mut self) -> u64 {
        self.policy = self.policies.borrow_and_update().clone();
        self.policy.version
    }

    /// A partition came: it acknowledges every cancel anew, once its owner knows all there are.
    pub(crate) fn assigned(&mut self, partition: u32) {
        self.informed_by = self.control.next();
        self.acknowledged.insert(partition, BTreeSet::new());
        self.settled_at = None;
    }

    /// A partition went.
    pub(crate) fn revoked(&mut self, partition: u32) {
        self.acknowledged.remove(&partition);
    }

    /// Whether everything is known that was on `control` when the last partition came.
    pub(crate) fn is_informed(&self) -> bool {
        self.control.has_ended(self.informed_by)
    }

    /// Decides on a page. A request's first page is expanded even if it must not be sent, so that every person of a short
    /// list is accounted for; a chain ends, or is held, at its next.
    pub(crate) fn decide(&self, request: &Request, notification: &Notification, region: &str, now_ms: u64) -> Steer {
        let id = NotificationId::from_slice(&notification.id);
        if id.is_some_and(|id| self.policy.cancel(&notification.tenant, &id).is_some()) {
            return Steer::Stop;
        }
        if notification.send_at_ms > now_ms {
            return Steer::Wait(Wait::until(notification.send_at_ms));
        }
        let tenant = notification.tenant.as_str();
        let providers = self.policy.providers();
        let way = OnItsWay { tenant, template: &notification.template_id, region, providers };
        let is_first = request.cursor.is_none();
        match way.state(request.channels(), self.policy.switches(), now_ms) {
            SwitchState::On => Steer::Go { slow: false },
            SwitchState::Slow => Steer::Go { slow: true },
            SwitchState::Hold | SwitchState::Off if is_first => Steer::Go { slow: false },
            // What was held to the end of its time is expanded, and ends as expired.
            SwitchState::Hold if notification.expires_ms <= now_ms => Steer::Go { slow: false },
            SwitchState::Hold => {
                let wait = Wait { due_ms: now_ms + HOLD_MS, cause: WaitCause::Switch };
                Steer::Wait(wait.at_most(notification.expires_ms))
            }
            SwitchState::Off => Steer::Stop,
        }
    }

    /// Puts out the acknowledgements that are due with everything decided since [`Self::take_up`]; returns how many.
    pub(crate) fn acknowledge(&mut self, outputs: &mut Outputs) -> usize {
        if self.settled_at == Some(self.policy.steered()) || !self.is_informed() {
            return 0;
        }
        let mut put_out = 0;
        for (partition, acknowledged) in &mut self.acknowledged {
            acknowledged.retain(|id| self.policy.cancels().contains_key(id));
            for (id, cancel) in self.policy.cancels() {
                if put_out == MAX_ACKS {
                    return put_out;
                }
                if acknowledged.insert(*id) {
                    put_out += 1;
                    outputs.cancel_ack(CancelAck {
                        notification_id: id.0.to_vec().into(),
                        tenant: cancel.tenant_id.clone(),
                        shard: false,
                        number: *partition,
                    });
                }
            }
        }
        self.settled_at = Some(self.policy.steered());
        put_out
    }
}

#[cfg(test)]
mod tests {
    use herald_core::{
        policy::{CancelRow, kind},
        record::{Channel, Control, Cursor},
        switches::{SwitchRow, SwitchScope},
    };

    use super::*;

    fn put(policy: &mut Policy, kind: &str, key: &str, value: &impl serde::Serialize) {
        let value = serde_json::to_vec(value).unwrap().into();
        policy.apply(&Control { kind: kind.into(), key: key.into(), version: 1, value, deleted: false }).unwrap();
    }

    fn switch(policy: &mut Policy, channel: Option<&str>, state: SwitchState) {
        let scope = SwitchScope { channel: channel.map(str::to_owned), ..SwitchScope::default() };
        let id = scope.switch_id();
        let row = SwitchRow { scope, state, reason: String::new(), expires_ms: None, set_ms: 0, set_by: String::new() };
        put(policy, kind::SWITCH, &id, &row);
    }

    fn held_until(due_ms: u64) -> Steer {
        Steer::Wait(Wait { due_ms, cause: WaitCause::Switch })
    }

    fn decide(policy: &Policy, change: impl FnOnce(&mut Request, &mut Notification)) -> Steer {
        let (_sender, policies) = watch::channel(Arc::new(policy.clone()));
        let mut request = Request {
            channels: vec![Channel::InApp as i32, Channel::Email as i32],
            cursor: Some(Cursor::default()),
            ..Default::default()
        };
        let id = vec![7; 16].into();
        let mut notification = Notification { id, tenant: "acme".into(), expires_ms: 100_000, ..Default::default() };
        change(&mut request, &mut notification);
        let steering = Steering::new(policies, Arc::default());
        steering.decide(&request, &notification, "eu", 50_000)
    }

    #[test]
    fn a_chain_is_stopped_or_held_at_its_next_page_and_never_at_its_first() {
        let mut policy = Policy::default();
        assert_eq!(decide(&policy, |_, _| ()), Steer::Go { slow: false });
        for (state, next, first) in [
            (SwitchState::Slow, Steer::Go { slow: true }, Steer::Go { slow: true }),
            (SwitchState::Hold, held_until(66_000), Steer::Go { slow: false }),
            (SwitchState::Off, Steer::Stop, Steer::Go { slow: false }),
        ] {
            switch(&mut policy, None, state);
            assert_eq!(decide(&policy, |_, _| ()), next);
            assert_eq!(decide(&policy, |request, _| request.cursor = None), first);
        }
    }

    #[test]
    fn a_hold_ends_with_the_time_of_what_it_holds() {
        let mut policy = Policy::default();
        switch(&mut policy, None, SwitchState::Hold);
        assert_eq!(decide(&policy, |_, n| n.expires_ms = 50_001), held_until(50_001));
        assert_eq!(decide(&policy, |_, n| n.expires_ms = 50_000), Steer::Go { slow: false });
    }

    #[test]
    fn a_channel_that_may_send_keeps_the_chain_going() {
        let mut policy = Policy::default();
        switch(&mut policy, Some("email"), SwitchState::Off);
        assert_eq!(decide(&policy, |_, _| ()), Steer::Go { slow: false });
        switch(&mut policy, Some("in_app"), SwitchState::Hold);
        assert_eq!(decide(&policy, |_, _| ()), held_until(66_000));
    }

    #[test]
    fn a_cancelled_notification_is_not_even_begun() {
        let mut policy = Policy::default();
        let cancel = CancelRow { tenant_id: "acme".into(), cancelled_ms: 1, until_ms: 2 };
        put(&mut policy, kind::CANCEL, &NotificationId([7; 16]).to_string(), &cancel);
        assert_eq!(decide(&policy, |request, n| (request.cursor, n.send_at_ms) = (None, 90_000)), Steer::Stop);
        assert_eq!(decide(&policy, |_, n| n.tenant = "other".into()), Steer::Go { slow: false });
    }

    #[test]
    fn each_partition_acknowledges_once_when_it_knows_everything() {
        let control = Arc::new(ControlReads::default());
        let (sender, policies) = watch::channel(Arc::new(Policy::default()));
        let mut steering = Steering::new(policies, control.clone());
        let acknowledged = |steering: &mut Steering| {
            steering.take_up();
            let layout = herald_core::topic::Layout { shards: 1, requests: 2, receipts: 1 };
            steering.acknowledge(&mut Outputs::new(layout, "eu", 0))
        };
        steering.assigned(0);
        steering.assigned(1);
        sender.send_modify(|policy| {
            let cancel = CancelRow { tenant_id: "acme".into(), cancelled_ms: 1, until_ms: 2 };
            put(Arc::make_mut(policy), kind::CANCEL, &NotificationId([7; 16]).to_string(), &cancel);
        });
        assert_eq!(acknowledged(&mut steering), 0, "there may be more on control");
        control.end(control.begin(), 0);
        assert_eq!((acknowledged(&mut steering), acknowledged(&mut steering)), (2, 0));
        steering.assigned(1);
        control.end(control.begin(), 0);
        assert_eq!(acknowledged(&mut steering), 1, "a new owner does not know what the last one said");
    }
}
