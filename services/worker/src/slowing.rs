//! What the switch state `slow` does to sending: a tenth of the rate.
//!
//! Limits are taken at a tenth. And a worker lets through a tenth of what it sent of the switch's scope in the seconds
//! before it heard of the switch: on each channel for itself, since some are much faster than others.

use std::{hash::BuildHasher, sync::Arc};

use hashbrown::HashMap;
use herald_core::{
    bucket::{Bucket, Quota},
    ids::{TenantId, channel_name},
    leases::Budget,
    policy::Policy,
    record::Channel,
    switches::SwitchState,
};

use crate::section::Head;

/// Seconds that a rate is measured over.
const MEASURED_S: u64 = 10;

/// Kinds of traffic whose rates are kept.
const MAX_KINDS: usize = 4_096;

/// What `slow` divides rates and batches by.
pub(crate) const DIVISOR: u64 = 10;

/// What goes in a second where there is no limit, and nothing was sent just before that could be measured.
const UNMEASURED_PER_S: f64 = 10.0;

/// A tenth of limits, in buckets of their own: what is not slowed has their whole rate.
pub(crate) fn slowed_limits(switch: &str, limits: &[Budget]) -> Vec<Budget> {
    limits.iter().map(|(bucket, quota)| (format!("slow/{switch}/{bucket}").into(), quota.slowed())).collect()
}

/// Whether a budget is one that only a switch makes.
pub(crate) fn is_slowed(budget: &str) -> bool {
    budget.starts_with("slow/")
}

/// A switch by its id, and a channel that it slows.
pub(crate) type Slow = (String, Channel);

/// The budget of what was measured.
pub(crate) fn measured_budget((switch, channel): &Slow) -> String {
    format!("slow/{switch}/{}", channel_name(*channel))
}

/// Traffic whose rate is measured, with what was sent of it, second by second.
pub(crate) struct Kind {
    pub tenant: TenantId,
    pub template: String,
    pub channel: Channel,
    /// By whom; nobody on in-app.
    pub provider: Option<Arc<str>>,
    /// Seconds since the epoch, and messages.
    sent: [(u64, u64); MEASURED_S as usize],
}

/// What a slowed scope lets through.
struct Slowed {
    quota: Quota,
    bucket: Bucket,
    is_measured: bool,
}

/// What was sent lately, and the scopes that are slowed now.
#[derive(Default)]
pub(crate) struct Slowing {
    kinds: HashMap<u64, Kind>,
    /// By switch and channel.
    slowed: HashMap<Slow, Slowed>,
    /// [`Policy::steered`] at the last look.
    steered: u64,
}

impl Slowing {
    /// Notes messages that were sent by a provider.
    pub(crate) fn sent(&mut self, head: &Head, provider: Option<&Arc<str>>, count: u64, now_ms: u64) {
        let (tenant, template, channel) = (&head.tenant, &head.notification.template_id, head.channel);
        let (second, key) =
            (now_ms / 1_000, self.kinds.hasher().hash_one((tenant, template, channel as i32, provider)));
        if self.kinds.len() >= MAX_KINDS && !self.kinds.contains_key(&key) {
            self.kinds.retain(|_, kind| kind.sent.iter().any(|(at, _)| at + MEASURED_S > second));
            if self.kinds.len() >= MAX_KINDS {
                return;
            }
        }
        let kind = self.kinds.entry(key).or_insert_with(|| {
            let (tenant, template, provider) = (tenant.clone(), template.clone(), provider.cloned());
            Kind { tenant, template, channel, provider, sent: Default::default() }
        });
        let slot = &mut kind.sent[(second % MEASURED_S) as usize];
        if slot.0 != second {
            *slot = (second, 0);
        }
        slot.1 += count;
    }

    /// Forgets the switches that slow no longer.
    pub(crate) fn take_up(&mut self, policy: &Policy) {
        if self.steered != policy.steered() {
            self.steered = policy.steered();
            let slows = |id: &str| policy.switches().get(id).is_some_and(|row| row.state == SwitchState::Slow);
            self.slowed.retain(|(id, _), _| slows(id));
        }
    }

    /// Begins to slow what a switch is about on a channel, if it is not slowed yet.
    pub(crate) fn slow(&mut self, switch: &Slow, is_about: impl Fn(&Kind) -> bool, now_ms: u64) {
        if self.slowed.contains_key(switch) {
            return;
        }
        let rate = self.rate(|kind| kind.channel == switch.1 && is_about(kind), now_ms / 1_000);
        let per_second = rate.map_or(UNMEASURED_PER_S, |rate| rate / DIVISOR as f64);
        let burst = (per_second / 2.0).ceil().max(1.0) as u64;
        let Some(quota) = Quota::new(per_second, burst) else { return };
        let mut bucket = Bucket::full(quota, now_ms);
        bucket.take(burst);
        self.slowed.insert(switch.clone(), Slowed { quota, bucket, is_measured: rate.is_some() });
    }

    /// Messages a second in the seconds before this one, from the first in which anything was sent on.
    fn rate(&self, is_about: impl Fn(&Kind) -> bool, second: u64) -> Option<f64> {
        let about = self.kinds.values().filter(|kind| is_about(kind)).flat_map(|kind| kind.sent);
        let lately = about.filter(|(at, _)| (second.saturating_sub(MEASURED_S)..second).contains(at));
        let (first, sent) = lately.fold((second, 0), |(first, sent), (at, count)| (first.min(at), sent + count));
        (sent > 0).then(|| sent as f64 / (second - first) as f64)
    }

    /// How many of so many messages a slowed scope lets through, its rate, and when it is worth asking for more, in
    /// milliseconds from now; `None` where limits say it.
    pub(crate) fn room(&mut self, switch: &Slow, count: u64, limited: bool, now_ms: u64) -> Option<(u64, Quota, u64)> {
        let Slowed { quota, bucket, is_measured } = self.slowed.get_mut(switch)?;
        if limited && !*is_measured {
            return None;
        }
        bucket.fill(*quota, now_ms);
        Some((bucket.tokens(0).min(count), *quota, bucket.wait_ms(count, 0)))
    }

    /// Takes what was let through.
    pub(crate) fn take(&mut self, switch: &Slow, count: u64) {
        if let Some(slowed) = self.slowed.get_mut(switch) {
            slowed.bucket.take(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use herald_core::{
        ids::NotificationId,
        record::{Notification, Section},
    };

    use super::*;

    fn head(template: &str) -> Head {
        Head {
            id: NotificationId([1; 16]),
            tenant: TenantId::trusted("acme"),
            channel: Channel::Email,
            notification: Arc::new(Notification { template_id: template.into(), ..Default::default() }),
            section: Section::default(),
            hash_sum: 0,
        }
    }

    fn sw() -> Slow {
        ("sw".to_owned(), Channel::Email)
    }

    /// What goes in so many seconds of a scope of one template.
    fn goes_in(slowing: &mut Slowing, from_ms: u64, seconds: u64, limited: bool) -> u64 {
        let mut gone = 0;
        for now_ms in (from_ms..from_ms + seconds * 1_000).step_by(100) {
            slowing.slow(&sw(), |kind| kind.template == "a", now_ms);
            let Some((room, ..)) = slowing.room(&sw(), 1_000, limited, now_ms) else { return u64::MAX };
            slowing.take(&sw(), room);
            gone += room;
        }
        gone
    }

    #[test]
    fn a_scope_has_a_tenth_of_what_it_had_and_keeps_it() {
        let mut slowing = Slowing::default();
        for second in 100..104 {
            slowing.sent(&head("a"), None, 300, second * 1_000);
            slowing.sent(&head("b"), None, 5_000, second * 1_000);
            slowing.sent(&Head { channel: Channel::InApp, ..head("a") }, None, 9_000, second * 1_000);
        }
        let gone = goes_in(&mut slowing, 104_000, 60, false);
        assert!((1_750..=1_800).contains(&gone), "{gone} in a minute at 30 a second");
    }

    #[test]
    fn what_others_send_on_the_channel_is_not_the_providers() {
        let mut slowing = Slowing::default();
        let [own, other] = ["own", "other"].map(Arc::<str>::from);
        for second in 100..104 {
            slowing.sent(&head("a"), Some(&own), 300, second * 1_000);
            slowing.sent(&head("a"), Some(&other), 5_000, second * 1_000);
        }
        slowing.slow(&sw(), |kind| kind.provider.as_ref() == Some(&own), 104_000);
        let (_, quota, _) = slowing.room(&sw(), 1, false, 104_000).unwrap();
        assert_eq!(quota, Quota::new(30.0, 15).unwrap());
    }

    #[test]
    fn what_was_not_measured_goes_at_a_rate_of_its_own_unless_limits_say_it() {
        let mut slowing = Slowing::default();
        slowing.sent(&head("a"), None, 300, 50_000);
        let gone = goes_in(&mut slowing, 104_000, 10, false);
        assert!((95..=100).contains(&gone), "{gone}");
        assert_eq!(goes_in(&mut slowing, 104_000, 10, true), u64::MAX);
    }

    #[test]
    fn kinds_are_bounded_and_the_newest_stay() {
        let mut slowing = Slowing::default();
        for i in 0..2 * MAX_KINDS as u64 {
            slowing.sent(&head(&i.to_string()), None, 1, i * 20);
        }
        assert!(slowing.kinds.len() <= MAX_KINDS);
        slowing.sent(&head("a"), None, 7, 1_000_000);
        assert!(slowing.rate(|kind| kind.template == "a", 1_001).is_some());
    }
}
