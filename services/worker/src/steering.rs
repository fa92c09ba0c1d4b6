//! What switches and cancels do to messages, and how a shard acknowledges a cancel.
//!
//! A cancel is acknowledged in the commit after which nothing of its notification is out: nothing in a provider's hands,
//! and nothing on the shard's `inbox` that was not read back and booked.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::HashSet;
use herald_core::{
    books::CANCELLED,
    clock::Clock,
    control::ControlReads,
    ids::{NotificationId, TenantId, channel_name},
    outputs::Outputs,
    policy::Policy,
    ports::log::Member,
    record::{CancelAck, Channel},
    switches::{SwitchRow, SwitchState, Traffic},
    topic::{Topic, TopicPartition},
    waiting::LONGEST_WAIT_MS,
};
use tokio::sync::watch;

use crate::{Deps, section::Head, slowing::Kind, stage::Worker};

/// No send starts unless `control` was read to its end this recently.
const MAX_CONTROL_AGE_MS: u64 = 1_000;

/// How long what a switch holds waits before it is looked at again, if the switch is not lifted before.
pub(crate) const HOLD_MS: u64 = LONGEST_WAIT_MS;

/// Acknowledgements of a shard that one commit takes at most.
const MAX_ACKS: usize = 10_000;

/// What is to become of the messages of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Steer {
    /// They may be sent.
    Go,
    /// Not now.
    Hold,
    /// They are suppressed for this reason.
    End(&'static str),
}

/// Switches and cancels, for decisions and for the gate before each send.
pub(crate) struct Steering {
    policies: watch::Receiver<Arc<Policy>>,
    control: Arc<ControlReads>,
    region: String,
    clock: Arc<dyn Clock>,
}

impl Steering {
    pub(crate) fn new(deps: &Deps) -> Self {
        Self {
            policies: deps.policy.clone(),
            control: deps.control.clone(),
            region: deps.log.identity().region.clone(),
            clock: deps.world.clock.clone(),
        }
    }

    /// Messages of a tenant and template on a channel by a provider, as switches see them.
    fn traffic<'a>(
        &'a self,
        (tenant, template): (&'a TenantId, &'a str),
        channel: Channel,
        provider: Option<&'a str>,
    ) -> Traffic<'a> {
        let channel = Some(channel_name(channel));
        Traffic { tenant: tenant.as_str(), template, channel, provider, region: &self.region }
    }

    fn traffic_of<'a>(&'a self, head: &'a Head, provider: Option<&'a str>) -> Traffic<'a> {
        self.traffic((&head.tenant, &head.notification.template_id), head.channel, provider)
    }

    /// The switches that slow messages of a section by a provider.
    pub(crate) fn slowing(
        &self,
        policy: &Policy,
        head: &Head,
        provider: Option<&str>,
        now_ms: u64,
    ) -> Vec<(String, Arc<SwitchRow>)> {
        let traffic = self.traffic_of(head, provider);
        policy.switches().slowing(&traffic, now_ms).map(|(id, row)| (id.to_owned(), row.clone())).collect()
    }

    /// Whether a switch is about measured traffic.
    pub(crate) fn is_about(&self, row: &SwitchRow, kind: &Kind) -> bool {
        row.scope.takes(&self.traffic((&kind.tenant, &kind.template), kind.channel, kind.provider.as_deref()))
    }

    pub(crate) fn decide(&self, policy: &Policy, head: &Head, provider: Option<&str>, now_ms: u64) -> Steer {
        if policy.cancel(head.tenant.as_str(), &head.id).is_some() {
            return Steer::End(CANCELLED);
        }
        if policy.switches().is_empty() {
            return Steer::Go;
        }
        match policy.switch_state(&self.traffic_of(head, provider), now_ms) {
            SwitchState::On | SwitchState::Slow => Steer::Go,
            SwitchState::Hold => Steer::Hold,
            SwitchState::Off => Steer::End("killed"),
        }
    }

    /// Whether a message that was decided on with policies of this [`Policy::steered`] may be sent now by a provider.
    pub(crate) fn may_start(&self, head: &Head, provider: &str, decided_with: u64) -> bool {
        if self.clock.steady_ms().saturating_sub(self.control.asked_ms()) > MAX_CONTROL_AGE_MS {
            return false;
        }
        let policy = self.policies.borrow();
        // A switch that expires meanwhile only lets more through.
        policy.steered() == decided_with || self.decide(&policy, head, Some(provider), self.clock.now_ms()) == Steer::Go
    }
}

/// The cancels of one shard.
pub(crate) struct CancelAcks {
    /// Nothing is decided, and nothing acknowledged, before this read of `control`: who had the shard before may have
    /// acknowledged a cancel that this process does not know of.
    informed_by: u64,
    /// [`Policy::steered`] when cancels were noted last.
    noted_at: Option<u64>,
    pending: BTreeMap<NotificationId, Pending>,
    acknowledged: BTreeSet<NotificationId>,
}

struct Pending {
    tenant: String,
    inbox_end: InboxEnd,
}

/// The end of `inbox` when everything was on it that was decided without a cancel.
#[derive(Clone, Copy)]
enum InboxEnd {
    /// The next commit has the last of it.
    Later,
    /// The commit that is under way has the last of it.
    UnderWay,
    /// It is known.
    At(u64),
}

impl CancelAcks {
    /// Of a shard that has just come.
    pub(crate) fn new(control: &ControlReads) -> Self {
        let (pending, acknowledged) = (BTreeMap::new(), BTreeSet::new());
        Self { informed_by: control.next(), noted_at: None, pending, acknowledged }
    }

    /// Notes the cancels of the policies that everything is decided with from now on.
    fn note(&mut self, policy: &Policy) {
        if self.noted_at == Some(policy.steered()) {
            return;
        }
        self.noted_at = Some(policy.steered());
        let cancels = policy.cancels();
        self.acknowledged.retain(|id| cancels.contains_key(id));
        self.pending.retain(|id, _| cancels.contains_key(id));
        for (id, cancel) in cancels.iter().filter(|(id, _)| !self.acknowledged.contains(*id)) {
            let pending = || Pending { tenant: cancel.tenant_id.clone(), inbox_end: InboxEnd::Later };
            self.pending.entry(*id).or_insert_with(pending);
        }
    }

    fn is_ready(pending: &Pending, inbox_position: u64) -> bool {
        matches!(pending.inbox_end, InboxEnd::At(end) if inbox_position >= end)
    }

    /// A commit begins.
    fn commits(&mut self) {
        let later = self.pending.values_mut().filter(|pending| matches!(pending.inbox_end, InboxEnd::Later));
        later.for_each(|pending| pending.inbox_end = InboxEnd::UnderWay);
    }

    fn awaiting_end(&mut self) -> impl Iterator<Item = &mut Pending> {
        self.pending.values_mut().filter(|pending| matches!(pending.inbox_end, InboxEnd::UnderWay))
    }

    /// Puts out what is due, when `inbox` was read up to a position and `out` tells what is in providers' hands.
    fn put_out(
        &mut self,
        shard: u32,
        inbox_position: u64,
        out: impl Fn(&NotificationId) -> bool,
        outputs: &mut Outputs,
    ) {
        let ready = |(id, pending): &(&NotificationId, &Pending)| Self::is_ready(pending, inbox_position) && !out(id);
        let due: Vec<NotificationId> = self.pending.iter().filter(ready).take(MAX_ACKS).map(|(id, _)| *id).collect();
        for id in due {
            let Some(Pending { tenant, .. }) = self.pending.remove(&id) else { continue };
            self.acknowledged.insert(id);
            outputs.cancel_ack(CancelAck { notification_id: id.0.to_vec().into(), tenant, shard: true, number: shard });
        }
    }
}

impl Worker {
    /// Takes up the newest policies, and sees to it that cancels are acknowledged. To be called before anything is
    /// decided.
    pub(crate) fn take_up_policies(&mut self, member: Member) {
        let policy = self.deps.policy.borrow().clone();
        if self.runs_version != Some(policy.version) {
            self.runs_version = Some(policy.version);
            self.take_up_providers(policy.providers());
            self.deps.versions.runs("worker", member, policy.version);
        }
        let out = self.in_hands_of_providers();
        let mut is_due = false;
        for shard in self.shards.values_mut().filter(|shard| self.deps.control.has_ended(shard.cancels.informed_by)) {
            shard.cancels.note(&policy);
            is_due |= shard.cancels.pending.iter().any(|(id, pending)| {
                matches!(pending.inbox_end, InboxEnd::Later)
                    || (CancelAcks::is_ready(pending, shard.feed.position) && !out.contains(&(shard.number, *id)))
            });
        }
        if is_due {
            self.touch();
        }
    }

    /// Whether everything is known that was on `control` when the last shard came.
    pub(crate) fn is_informed(&self) -> bool {
        self.shards.values().all(|shard| self.deps.control.has_ended(shard.cancels.informed_by))
    }

    /// Puts out the acknowledgements that are due with everything that this commit puts out before them.
    pub(crate) fn acknowledge_cancels(&mut self, outputs: &mut Outputs) {
        let out = self.in_hands_of_providers();
        for shard in self.shards.values_mut() {
            let number = shard.number;
            shard.cancels.put_out(number, shard.feed.position, |id| out.contains(&(number, *id)), outputs);
            shard.cancels.commits();
        }
    }

    /// What is in providers' hands without an outcome, by shard; empty where no cancel waits for it.
    fn in_hands_of_providers(&self) -> HashSet<(u32, NotificationId)> {
        if self.shards.values().all(|shard| shard.cancels.pending.is_empty()) {
            return HashSet::new();
        }
        let batches = self.batches.values();
        let unanswered = batches
            .flat_map(|batch| batch.items.iter().filter(|item| !item.answered).map(|i| &batch.sections[i.section]));
        unanswered.map(|section| (section.shard, section.head.id)).collect()
    }

    /// After a commit: what was decided without a cancel is on `inbox` now, so its end says how far must be read.
    pub(crate) async fn ask_inbox_ends(&mut self) {
        let waiting = self.shards.values_mut().filter_map(|shard| {
            let at = TopicPartition { topic: Topic::Inbox, partition: shard.number };
            let mut waiting = shard.cancels.awaiting_end().peekable();
            waiting.peek().is_some().then_some((at, waiting))
        });
        let (at, waiting): (Vec<_>, Vec<_>) = waiting.unzip();
        if at.is_empty() {
            return;
        }
        let ends = self.subscription.ends(&at).await;
        if let Err(error) = &ends {
            tracing::warn!(%error, "the ends of inbox are not known; cancels wait");
        }
        for (i, pending) in waiting.into_iter().enumerate() {
            let end = ends.as_ref().map_or(InboxEnd::Later, |ends| InboxEnd::At(ends[i]));
            pending.for_each(|pending| pending.inbox_end = end);
        }
    }
}

#[cfg(test)]
mod tests {
    use herald_core::{
        policy::{CancelRow, kind},
        record::{Control, Notification, Section},
        switches::SwitchScope,
        topic::Layout,
    };

    use super::*;

    const ID: NotificationId = NotificationId([5; 16]);

    fn put(policy: &mut Policy, kind: &str, key: &str, value: &impl serde::Serialize) {
        let value = serde_json::to_vec(value).unwrap().into();
        policy.apply(&Control { kind: kind.into(), key: key.into(), version: 1, value, deleted: false }).unwrap();
    }

    fn cancel(policy: &mut Policy, tenant: &str) {
        let row = CancelRow { tenant_id: tenant.into(), cancelled_ms: 1, until_ms: 2 };
        put(policy, kind::CANCEL, &ID.to_string(), &row);
    }

    fn switch(policy: &mut Policy, provider: Option<&str>, state: SwitchState) {
        let scope = SwitchScope { provider: provider.map(str::to_owned), ..SwitchScope::default() };
        let key = scope.switch_id();
        let row = SwitchRow { scope, state, reason: String::new(), expires_ms: None, set_ms: 0, set_by: String::new() };
        put(policy, kind::SWITCH, &key, &row);
    }

    struct At(u64);

    impl Clock for At {
        fn now_ms(&self) -> u64 {
            self.0
        }
    }

    fn steering(policy: Policy, now_ms: u64) -> (Steering, watch::Sender<Arc<Policy>>) {
        let (sender, policies) = watch::channel(Arc::new(policy));
        let control = Arc::new(ControlReads::default());
        control.end(control.begin(), 5_000);
        (Steering { policies, control, region: "eu".into(), clock: Arc::new(At(now_ms)) }, sender)
    }

    fn head(channel: Channel) -> Head {
        Head {
            id: ID,
            tenant: TenantId::trusted("acme"),
            channel,
            notification: Arc::new(Notification { template_id: "comment".into(), ..Default::default() }),
            section: Section::default(),
            hash_sum: 0,
        }
    }

    #[test]
    fn a_switch_of_a_provider_is_about_its_channel_alone() {
        let mut policy = Policy::default();
        let decide = |policy: &Policy, channel| {
            let (steering, _sender) = steering(policy.clone(), 5_000);
            steering.decide(policy, &head(channel), Some("smtp").filter(|_| channel == Channel::Email), 5_000)
        };
        for (state, steer) in
            [(SwitchState::Slow, Steer::Go), (SwitchState::Hold, Steer::Hold), (SwitchState::Off, Steer::End("killed"))]
        {
            switch(&mut policy, Some("smtp"), state);
            assert_eq!((decide(&policy, Channel::Email), decide(&policy, Channel::InApp)), (steer, Steer::Go));
        }
        cancel(&mut policy, "other");
        assert_eq!(decide(&policy, Channel::InApp), Steer::Go, "another tenant's cancel");
        cancel(&mut policy, "acme");
        assert_eq!(decide(&policy, Channel::InApp), Steer::End("cancelled"));
    }

    #[test]
    fn the_gate_closes_for_what_was_decided_before_a_switch_or_a_cancel() {
        let (steering, sender) = steering(Policy::default(), 5_000);
        let decided_with = sender.borrow().steered();
        let open = || steering.may_start(&head(Channel::Email), "smtp", decided_with);
        assert!(open());
        sender.send_modify(|policy| switch(Arc::make_mut(policy), Some("smtp"), SwitchState::Hold));
        assert!(!open());
        sender.send_modify(|policy| switch(Arc::make_mut(policy), Some("smtp"), SwitchState::On));
        assert!(open());
        sender.send_modify(|policy| cancel(Arc::make_mut(policy), "acme"));
        assert!(!open());
    }

    #[test]
    fn the_gate_closes_when_nobody_reads_control() {
        assert!(steering(Policy::default(), 6_000).0.may_start(&head(Channel::Email), "smtp", 0));
        assert!(!steering(Policy::default(), 6_001).0.may_start(&head(Channel::Email), "smtp", 0));
    }

    #[test]
    fn a_cancel_is_acknowledged_once_when_nothing_of_it_is_out() {
        let mut policy = Policy::default();
        cancel(&mut policy, "acme");
        let mut acks = CancelAcks::new(&ControlReads::default());
        acks.note(&policy);
        let put_out = |acks: &mut CancelAcks, position, out: bool| {
            let layout = Layout { shards: 8, requests: 1, receipts: 1 };
            let mut outputs = Outputs::new(layout, "eu", 0);
            acks.put_out(7, position, |_| out, &mut outputs);
            outputs.finish().len()
        };
        assert_eq!(put_out(&mut acks, 100, false), 0, "where inbox ends is not known");
        acks.pending.values_mut().for_each(|pending| pending.inbox_end = InboxEnd::At(10));
        assert_eq!(put_out(&mut acks, 9, false), 0, "an item is not read back yet");
        assert_eq!(put_out(&mut acks, 10, true), 0, "a message is in a provider's hands");
        assert_eq!((put_out(&mut acks, 10, false), put_out(&mut acks, 10, false)), (1, 0));
        acks.note(&policy);
        assert!(acks.pending.is_empty());
    }

    #[test]
    fn what_was_decided_before_a_cancel_is_on_inbox_after_the_next_commit_and_not_the_one_under_way() {
        let mut policy = Policy::default();
        let mut acks = CancelAcks::new(&ControlReads::default());
        acks.commits();
        cancel(&mut policy, "acme");
        acks.note(&policy);
        assert_eq!(acks.awaiting_end().count(), 0);
        acks.commits();
        assert_eq!(acks.awaiting_end().count(), 1);
    }
}
