//! Token buckets in whole numbers: nothing is ever rounded in favour of a sender. Pure.

use std::{collections::HashMap, sync::Arc};

/// A token in the bucket's own unit. A rate in millionths of a token a second, times milliseconds, gives these.
const NANOS: u128 = 1_000_000_000;

/// Millionths of a token.
const MICROS: f64 = 1e6;

/// The largest rate and the largest burst.
pub const MAX_TOKENS: u64 = 1_000_000_000_000;

/// Buckets are looked through for full ones, which need not be kept, when so many more than last time are held.
const KEPT_BUCKETS: usize = 1_024;

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota {
    micros_per_s: u64,
    burst: u64,
}

impl Quota {
    /// A quota of `per_second` tokens, in steps of a millionth, and of `burst` tokens at once. `None` for what is no
    /// quota: a rate that is not a number from 0 to [`MAX_TOKENS`] or that is lost below the first step, a burst that is
    /// 0 or more than [`MAX_TOKENS`]. A rate of 0 admits nothing, whatever the burst.
    pub fn new(per_second: f64, burst: u64) -> Option<Self> {
        if !(0.0..=MAX_TOKENS as f64).contains(&per_second) || !(1..=MAX_TOKENS).contains(&burst) {
            return None;
        }
        let micros_per_s = (per_second * MICROS).round() as u64;
        (micros_per_s > 0 || per_second == 0.0).then_some(Self { micros_per_s, burst })
    }

    /// A tenth of it, but never nothing of something.
    pub fn slowed(self) -> Self {
        self.divided(10)
    }

    /// Whether it lets through what another does not: more at once, or more in time.
    pub fn exceeds(self, other: Self) -> bool {
        self.micros_per_s > other.micros_per_s || self.capacity() > other.capacity()
    }

    /// The share of one of so many that use it.
    pub fn shared_by(self, members: u32) -> Self {
        self.divided(u64::from(members.max(1)))
    }

    fn divided(self, by: u64) -> Self {
        let micros_per_s = match self.micros_per_s {
            0 => 0,
            rate => (rate / by).max(1),
        };
        Self { micros_per_s, burst: (self.burst / by).max(1) }
    }

    /// Millionths of a token a second.
    pub fn micros_per_s(self) -> u64 {
        self.micros_per_s
    }

    /// What a full bucket holds.
    pub fn capacity(self) -> u64 {
        if self.micros_per_s == 0 { 0 } else { self.burst }
    }

    /// The tokens of `ms` milliseconds, rounded down.
    pub fn tokens_in(self, ms: u64) -> u64 {
        u64::try_from(u128::from(self.micros_per_s) * u128::from(ms) / NANOS).unwrap_or(u64::MAX)
    }

    /// How long `tokens` take to come, in milliseconds, rounded up; [`u64::MAX`] if they never do.
    pub fn ms_for(self, tokens: u64) -> u64 {
        self.ms_for_nanos(u128::from(tokens) * NANOS)
    }

    fn ms_for_nanos(self, nanos: u128) -> u64 {
        match (nanos, self.micros_per_s) {
            (0, _) => 0,
            (_, 0) => u64::MAX,
            (nanos, rate) => u64::try_from(nanos.div_ceil(u128::from(rate))).unwrap_or(u64::MAX),
        }
    }
}

/// One bucket. It starts full.
#[derive(Debug, Clone)]
pub struct Bucket {
    quota: Quota,
    nanos: u128,
    at_ms: u64,
}

impl Bucket {
    /// A full bucket.
    pub fn full(quota: Quota, now_ms: u64) -> Self {
        Self { quota, nanos: u128::from(quota.capacity()) * NANOS, at_ms: now_ms }
    }

    /// One that was kept elsewhere, with so many tokens and billionths of a token.
    pub fn holding(quota: Quota, tokens: u64, nanos: u64, now_ms: u64) -> Self {
        Self { quota, nanos: u128::from(tokens) * NANOS + u128::from(nanos), at_ms: now_ms }
    }

    /// Fills it up to `now_ms`. Another quota than before holds from now on. A clock that was set back costs nothing but
    /// the time it went back; one that was set forward fills the bucket at most.
    pub fn fill(&mut self, quota: Quota, now_ms: u64) {
        let gained = u128::from(self.quota.micros_per_s) * u128::from(now_ms.saturating_sub(self.at_ms));
        self.nanos = (self.nanos + gained).min(u128::from(quota.capacity()) * NANOS);
        self.quota = quota;
        self.at_ms = now_ms;
    }

    /// Whole tokens in it, above `floor`.
    pub fn tokens(&self, floor: u64) -> u64 {
        u64::try_from(self.nanos / NANOS).unwrap_or(u64::MAX).saturating_sub(floor)
    }

    /// Takes tokens; no more than are there.
    pub fn take(&mut self, tokens: u64) {
        self.nanos = self.nanos.saturating_sub(u128::from(tokens) * NANOS);
    }

    /// How long until so many tokens, or as many as it can hold, are there above `floor`, in milliseconds; [`u64::MAX`]
    /// if they never are.
    pub fn wait_ms(&self, tokens: u64, floor: u64) -> u64 {
        if self.quota.capacity() == 0 {
            return u64::MAX;
        }
        let wanted = tokens.max(1).saturating_add(floor).min(self.quota.capacity());
        self.quota.ms_for_nanos((u128::from(wanted) * NANOS).saturating_sub(self.nanos))
    }

    fn is_full(&self, now_ms: u64) -> bool {
        let mut filled = self.clone();
        filled.fill(self.quota, now_ms);
        filled.nanos == u128::from(self.quota.capacity()) * NANOS
    }
}

/// Tokens that somebody wants of one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Which bucket; its first ask makes it, full.
    pub bucket: Arc<str>,
    /// What it is made of.
    pub quota: Quota,
    /// How many tokens; fewer may be given.
    pub tokens: u64,
    /// Tokens that must stay in the bucket, for those who may take them.
    pub floor: u64,
}

/// What became of asks that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lease {
    /// So many tokens of each ask, at least one of every ask that wanted any.
    Granted(Vec<u64>),
    /// Some bucket has nothing to give, so nothing was taken of any.
    Denied {
        /// The ask that has to wait longest, by its index.
        ask: usize,
        /// When it is worth asking again, in milliseconds from now; [`u64::MAX`] while the quotas stay as they are.
        retry_after_ms: u64,
    },
}

/// Buckets by name.
#[derive(Debug, Default)]
pub struct Buckets {
    buckets: HashMap<Arc<str>, Bucket>,
    start_empty: bool,
    kept: usize,
}

impl Buckets {
    /// Buckets that start empty, for whoever may have taken of others just before.
    pub fn starting_empty() -> Self {
        Self { start_empty: true, ..Self::default() }
    }

    /// Takes tokens of every bucket that is asked, or of none.
    pub fn lease(&mut self, asks: &[Ask], now_ms: u64) -> Lease {
        let mut granted = Vec::with_capacity(asks.len());
        let mut longest_wait = None;
        for (ask, Ask { bucket, quota, tokens, floor }) in asks.iter().enumerate() {
            let bucket = match self.buckets.get_mut(bucket) {
                Some(bucket) => bucket,
                None => {
                    let mut new = Bucket::full(*quota, now_ms);
                    new.take(if self.start_empty { u64::MAX } else { 0 });
                    self.buckets.entry(bucket.clone()).or_insert(new)
                }
            };
            bucket.fill(*quota, now_ms);
            let given = bucket.tokens(*floor).min(*tokens);
            if given == 0 && *tokens > 0 {
                longest_wait = longest_wait.max(Some((bucket.wait_ms(*tokens, *floor), ask)));
            }
            granted.push(given);
        }
        self.purge(now_ms);
        if let Some((retry_after_ms, ask)) = longest_wait {
            return Lease::Denied { ask, retry_after_ms };
        }
        for (ask, tokens) in asks.iter().zip(&granted) {
            if let Some(bucket) = self.buckets.get_mut(&ask.bucket) {
                bucket.take(*tokens);
            }
        }
        Lease::Granted(granted)
    }

    /// Forgets buckets that are full, since they are made full again when they are asked.
    fn purge(&mut self, now_ms: u64) {
        if !self.start_empty && self.buckets.len() >= self.kept + KEPT_BUCKETS {
            self.buckets.retain(|_, bucket| !bucket.is_full(now_ms));
            self.kept = self.buckets.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quota(per_second: f64, burst: u64) -> Quota {
        Quota::new(per_second, burst).unwrap()
    }

    fn ask(bucket: &str, quota: Quota, tokens: u64) -> Ask {
        Ask { bucket: bucket.into(), quota, tokens, floor: 0 }
    }

    #[test]
    fn what_is_no_quota_is_refused() {
        for (per_second, burst) in [(-1.0, 1), (f64::NAN, 1), (f64::INFINITY, 1), (1e12 + 1e6, 1), (1e-7, 1), (1.0, 0)]
        {
            assert_eq!(Quota::new(per_second, burst), None, "{per_second} {burst}");
        }
        assert_eq!(Quota::new(1.0, MAX_TOKENS + 1), None);
        assert!(Quota::new(0.0, 1).is_some() && Quota::new(1e12, MAX_TOKENS).is_some());
    }

    #[test]
    fn nothing_comes_of_a_rate_of_zero() {
        let mut buckets = Buckets::default();
        for now_ms in [0, 1_000, u64::MAX] {
            let lease = buckets.lease(&[ask("none", quota(0.0, 5), 1)], now_ms);
            assert_eq!(lease, Lease::Denied { ask: 0, retry_after_ms: u64::MAX });
        }
        // What is raised later fills from then on.
        assert_eq!(Buckets::default().lease(&[ask("some", quota(2.0, 5), 9)], 0), Lease::Granted(vec![5]));
    }

    #[test]
    fn the_largest_rate_and_the_longest_time_do_not_overflow() {
        let most = quota(1e12, MAX_TOKENS);
        let mut buckets = Buckets::default();
        assert_eq!(buckets.lease(&[ask("most", most, u64::MAX)], 0), Lease::Granted(vec![MAX_TOKENS]));
        assert_eq!(buckets.lease(&[ask("most", most, u64::MAX)], 1), Lease::Granted(vec![1_000_000_000]));
        assert_eq!(buckets.lease(&[ask("most", most, u64::MAX)], u64::MAX), Lease::Granted(vec![MAX_TOKENS]));
        assert_eq!(most.ms_for(u64::MAX), 18_446_744_074);
        assert_eq!(quota(1e-6, 1).ms_for(1), 1_000_000_000);
        assert_eq!(quota(1e-6, 1).slowed(), quota(1e-6, 1));
    }

    #[test]
    fn where_one_bucket_has_nothing_none_gives_anything() {
        let (wide, narrow) = (quota(1.0, 100), quota(1.0, 1));
        let mut buckets = Buckets::default();
        let both = [ask("wide", wide, 10), ask("narrow", narrow, 10)];
        assert_eq!(buckets.lease(&both, 0), Lease::Granted(vec![10, 1]));
        assert_eq!(buckets.lease(&both, 400), Lease::Denied { ask: 1, retry_after_ms: 600 });
        assert_eq!(buckets.lease(&[ask("wide", wide, 100)], 400), Lease::Granted(vec![90]));
    }

    #[test]
    fn a_floor_stays_for_those_who_may_take_it() {
        let four = quota(1.0, 4);
        let mut buckets = Buckets::default();
        let polite = [Ask { floor: 1, ..ask("b", four, 9) }];
        assert_eq!(buckets.lease(&polite, 0), Lease::Granted(vec![3]));
        assert_eq!(buckets.lease(&polite, 0), Lease::Denied { ask: 0, retry_after_ms: 3_000 });
        assert_eq!(buckets.lease(&[ask("b", four, 9)], 0), Lease::Granted(vec![1]));
    }

    #[test]
    fn a_clock_that_is_set_back_stops_nobody() {
        let one = quota(1.0, 1);
        let mut buckets = Buckets::default();
        assert_eq!(buckets.lease(&[ask("b", one, 1)], 1_000_000), Lease::Granted(vec![1]));
        assert_eq!(buckets.lease(&[ask("b", one, 1)], 0), Lease::Denied { ask: 0, retry_after_ms: 1_000 });
        assert_eq!(buckets.lease(&[ask("b", one, 1)], 1_000), Lease::Granted(vec![1]));
    }

    #[test]
    fn full_buckets_are_forgotten() {
        let mut buckets = Buckets::default();
        for i in 0..10_000u64 {
            buckets.lease(&[ask(&format!("b{i}"), quota(1.0, 1), 1)], i * 10);
        }
        assert!(buckets.buckets.len() < 2 * KEPT_BUCKETS, "{}", buckets.buckets.len());
    }

    proptest! {
        /// Over any window no more is given than the rate times the window and one burst, and waiting as long as was
        /// said is enough.
        #[test]
        fn no_window_is_given_more_than_its_rate_and_one_burst(
            micros in 1..5_000_000u64,
            burst in 1..50u64,
            steps in proptest::collection::vec((0..3_000u64, 1..80u64), 1..80),
        ) {
            let quota = quota(micros as f64 / 1e6, burst);
            let mut buckets = Buckets::default();
            let (mut now_ms, mut given): (u64, Vec<(u64, u64)>) = (0, Vec::new());
            for (pause_ms, tokens) in steps {
                now_ms += pause_ms;
                match buckets.lease(&[ask("b", quota, tokens)], now_ms) {
                    Lease::Granted(granted) => given.push((now_ms, granted[0])),
                    Lease::Denied { retry_after_ms, .. } => {
                        prop_assert!(retry_after_ms > 0);
                        now_ms += retry_after_ms;
                        let Lease::Granted(granted) = buckets.lease(&[ask("b", quota, tokens)], now_ms) else {
                            panic!("denied again after {retry_after_ms} ms");
                        };
                        prop_assert_eq!(granted[0], tokens.min(burst));
                        given.push((now_ms, granted[0]));
                    }
                }
            }
            for from in 0..given.len() {
                let mut sum = 0;
                for (at_ms, tokens) in &given[from..] {
                    sum += u128::from(*tokens);
                    let window_ms = u128::from(at_ms - given[from].0);
                    prop_assert!(sum * NANOS <= u128::from(micros) * window_ms + u128::from(burst) * NANOS);
                }
            }
        }
    }
}
