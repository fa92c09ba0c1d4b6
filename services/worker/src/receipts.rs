//! Gathers what ended since the last commit into receipts: one for each notification, channel and way to end.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use herald_core::{
    books::Tally,
    ids::{InstanceId, NotificationId, TenantId},
    outputs::Outputs,
    packed::PackedWriter,
    record::{Channel, Receipts, State},
    trace::TraceParent,
};

use crate::{decide::ERASED, section::Head};

/// How instances ended.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub state: State,
    pub reason: &'static str,
    pub attempts: u32,
    /// Empty for none.
    pub provider: Arc<str>,
    pub error_code: String,
}

impl End {
    /// An end that a rule decided, without a provider.
    pub(crate) fn by_rule(state: State, reason: &'static str, attempts: u32) -> Self {
        Self { state, reason, attempts, provider: Arc::default(), error_code: String::new() }
    }

    /// Whether both are the same. Nearly all texts are empty or one and the same, which is looked at first.
    fn is(&self, other: &Self) -> bool {
        let same = |a: &str, b: &str| a.len() == b.len() && (a.is_empty() || std::ptr::eq(a, b) || a == b);
        (self.state, self.attempts) == (other.state, other.attempts)
            && same(self.reason, other.reason)
            && same(&self.error_code, &other.error_code)
            && same(&self.provider, &other.provider)
    }
}

struct Group {
    end: End,
    users: PackedWriter,
    tally: Tally,
    provider_ids: Vec<String>,
}

/// The ended instances of one notification and channel.
pub(crate) struct Ended {
    id: NotificationId,
    tenant: TenantId,
    channel: Channel,
    accepted_ms: u64,
    ended_ms: u64,
    /// Empty where nothing is traced.
    trace_parent: String,
    groups: Vec<Group>,
}

/// What ended since the last commit.
#[derive(Default)]
pub(crate) struct Endings {
    /// In the order in which they began to end.
    ended: Vec<Ended>,
    places: HashMap<(NotificationId, Channel), usize>,
}

impl Endings {
    /// What ended of a section's notification and channel, to which something is added now.
    pub(crate) fn of(&mut self, head: &Head, now_ms: u64) -> &mut Ended {
        let accepted_ms = head.notification.accepted_ms;
        let ended = self.of_notification(head.id, &head.tenant, head.channel, accepted_ms, now_ms);
        if ended.groups.is_empty() && TraceParent::sampled(&head.notification.trace_parent).is_some() {
            ended.trace_parent.clone_from(&head.notification.trace_parent);
        }
        ended
    }

    /// What ended of a notification on a channel, to which something is added now.
    pub(crate) fn of_notification(
        &mut self,
        id: NotificationId,
        tenant: &TenantId,
        channel: Channel,
        accepted_ms: u64,
        now_ms: u64,
    ) -> &mut Ended {
        let place = *self.places.entry((id, channel)).or_insert(self.ended.len());
        if place == self.ended.len() {
            let tenant = tenant.clone();
            // Nearly all end in one way.
            let (trace_parent, groups) = (String::new(), Vec::with_capacity(1));
            self.ended.push(Ended { id, tenant, channel, accepted_ms, ended_ms: now_ms, trace_parent, groups });
        }
        let ended = &mut self.ended[place];
        ended.ended_ms = ended.ended_ms.max(now_ms);
        ended
    }

    /// Adds what ended in another shard.
    pub(crate) fn absorb(&mut self, other: Self) {
        for Ended { id, tenant, channel, accepted_ms, ended_ms, trace_parent, groups } in other.ended {
            let mine = self.of_notification(id, &tenant, channel, accepted_ms, ended_ms);
            if !trace_parent.is_empty() {
                mine.trace_parent = trace_parent;
            }
            groups.into_iter().for_each(|group| mine.absorb(group));
        }
    }

    /// Puts the receipts out and returns how many instances they hold.
    pub(crate) fn put_out(self, outputs: &mut Outputs) -> u64 {
        self.ended.into_iter().map(|ended| ended.put_out(outputs)).sum()
    }
}

impl Ended {
    /// Books the end of a user's instance.
    pub(crate) fn add(&mut self, user: &str, end: &End) {
        self.add_hashed(user, InstanceId::of(&self.id, user, self.channel).book_hash(), end, None);
    }

    /// Books the end of a user's instance whose hash is known.
    pub(crate) fn add_hashed(&mut self, user: &str, book_hash: u64, end: &End, provider_id: Option<String>) {
        let group = self.group(end);
        group.tally.add(book_hash);
        if let Some(provider_id) = provider_id {
            // The column has an entry for each user or is empty, so gaps in front are filled.
            group.provider_ids.resize(group.users.count() as usize, String::new());
            group.provider_ids.push(provider_id);
        }
        // The receipt of somebody who was erased names nobody; the books go by the hash.
        group.users.push(if end.reason == ERASED { ERASED } else { user });
    }

    /// Instances end in few ways, so looking through them all is quicker than hashing.
    fn group(&mut self, end: &End) -> &mut Group {
        let at = self.groups.iter().position(|group| group.end.is(end)).unwrap_or_else(|| {
            let (users, tally) = (PackedWriter::default(), Tally::default());
            self.groups.push(Group { end: end.clone(), users, tally, provider_ids: Vec::new() });
            self.groups.len() - 1
        });
        &mut self.groups[at]
    }

    fn absorb(&mut self, mut other: Group) {
        let mine = self.group(&other.end);
        if !other.provider_ids.is_empty() || !mine.provider_ids.is_empty() {
            mine.provider_ids.resize(mine.users.count() as usize, String::new());
            other.provider_ids.resize(other.users.count() as usize, String::new());
            mine.provider_ids.append(&mut other.provider_ids);
        }
        mine.tally += other.tally;
        mine.users.append(other.users);
    }

    fn put_out(self, outputs: &mut Outputs) -> u64 {
        let mut count = 0;
        for mut group in self.groups {
            count += group.tally.count;
            if !group.provider_ids.is_empty() {
                group.provider_ids.resize(group.users.count() as usize, String::new());
            }
            outputs.receipts(Receipts {
                notification_id: Bytes::copy_from_slice(&self.id.0),
                tenant: self.tenant.as_str().to_owned(),
                channel: self.channel as i32,
                state: group.end.state as i32,
                reason: group.end.reason.to_owned(),
                attempts: group.end.attempts,
                provider: group.end.provider.as_ref().to_owned(),
                error_code: group.end.error_code,
                count: group.users.count(),
                hash_sum: group.tally.hash_sum,
                users: group.users.finish(),
                provider_ids: group.provider_ids,
                accepted_ms: self.accepted_ms,
                ended_ms: self.ended_ms,
                negative: false,
                trace_parent: self.trace_parent.clone(),
            });
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use herald_core::{
        packed,
        record::LedgerBatch,
        topic::{Layout, Topic},
    };
    use prost::Message as _;

    use super::*;

    #[test]
    fn what_ended_the_same_way_in_several_shards_is_one_receipt() {
        let (id, tenant) = (NotificationId([7; 16]), TenantId::trusted("acme"));
        let delivered = End { provider: "smtp".into(), ..End::by_rule(State::Delivered, "", 1) };
        let shard = |users: &[(&str, Option<&str>)]| {
            let mut endings = Endings::default();
            for (user, provider_id) in users {
                let ended = endings.of_notification(id, &tenant, Channel::Email, 5, 9);
                ended.add_hashed(user, 10, &delivered, provider_id.map(str::to_owned));
            }
            endings
        };
        let mut all = shard(&[("a", None)]);
        all.absorb(shard(&[("b", Some("p")), ("c", None)]));
        all.of_notification(id, &tenant, Channel::Email, 5, 9)
            .add("d", &End::by_rule(State::Suppressed, "opted_out", 0));
        all.of_notification(id, &tenant, Channel::Email, 5, 9).add("e", &End::by_rule(State::Suppressed, ERASED, 0));
        let mut outputs = Outputs::new(Layout { shards: 2, requests: 1, receipts: 1 }, "eu", 9);
        assert_eq!(all.put_out(&mut outputs), 5);
        let records = outputs.finish();
        assert_eq!((records.len(), records[0].at.topic), (1, Topic::Receipts));
        let receipts = LedgerBatch::decode(records[0].body.clone()).unwrap().receipts;
        let users: Vec<&str> = packed::unpack(&receipts[0].users).map(Result::unwrap).collect();
        assert_eq!((users, receipts[0].hash_sum, receipts[0].count), (vec!["a", "b", "c"], 30, 3));
        assert_eq!(receipts[0].provider_ids, ["", "p", ""]);
        assert_eq!((receipts.len(), receipts[1].reason.as_str()), (3, "opted_out"));
        let erased = InstanceId::of(&id, "e", Channel::Email).book_hash();
        assert_eq!((&receipts[2].users[..], receipts[2].hash_sum), (&b"\x06erased"[..], erased), "it names nobody");
    }
}
