//! The retry budget of one provider: retries that fail are a tenth of first attempts, so that a provider in trouble is not
//! sent twice as much for it. One that goes well costs nothing, so what has waited for a provider is sent once it is well
//! again, though nothing new comes that would pay for it. Pure.

use herald_core::bucket::{Bucket, Quota};

/// First attempts that pay for one retry.
const PRICE: u64 = 10;

/// Retries that can be saved up.
const MOST_SAVED: u64 = 1_000;

/// Retries a second that cost nothing, so that little traffic is retried too.
const FREE_PER_S: u64 = 10;

/// One provider's budget.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    /// First attempts that have not paid for a retry yet.
    saved: u64,
    free: Bucket,
}

impl RetryBudget {
    /// Only what costs nothing.
    pub(crate) fn new(now_ms: u64) -> Self {
        Self { saved: 0, free: Bucket::full(Self::free_quota(), now_ms) }
    }

    /// The rate of what costs nothing.
    pub(crate) fn free_quota() -> Quota {
        Quota::new(FREE_PER_S as f64, FREE_PER_S).unwrap_or_else(|| unreachable!("a rate and a burst above zero"))
    }

    /// Notes first attempts.
    pub(crate) fn earn(&mut self, first_attempts: u64) {
        self.saved = (self.saved + first_attempts).min(MOST_SAVED * PRICE);
    }

    /// How many retries may go now.
    pub(crate) fn room(&mut self, now_ms: u64) -> u64 {
        self.free.fill(Self::free_quota(), now_ms);
        self.saved / PRICE + self.free.tokens(0)
    }

    /// Notes retries that did not fail.
    pub(crate) fn give_back(&mut self, retries: u64) {
        self.earn(retries * PRICE);
    }

    /// Notes retries: what is free goes first.
    pub(crate) fn spend(&mut self, retries: u64) {
        let free = self.free.tokens(0).min(retries);
        self.free.take(free);
        self.saved = self.saved.saturating_sub((retries - free) * PRICE);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However first attempts and retries come, no more retries fail than a tenth, and the free ones.
        #[test]
        fn retries_that_fail_are_a_tenth_of_first_attempts(
            steps in proptest::collection::vec((0..5_000u64, 0..600u64, 0..900u64, 0..900u64), 1..100),
        ) {
            let mut budget = RetryBudget::new(0);
            let (mut now_ms, mut first, mut failed) = (0, 0, 0);
            for (pause_ms, first_attempts, wanted, well) in steps {
                now_ms += pause_ms;
                budget.earn(first_attempts);
                first += first_attempts;
                let retries = budget.room(now_ms).min(wanted);
                budget.spend(retries);
                budget.give_back(well.min(retries));
                failed += retries - well.min(retries);
                prop_assert!(failed <= first / 10 + FREE_PER_S * now_ms / 1_000 + FREE_PER_S);
            }
        }
    }

    #[test]
    fn what_waits_for_a_provider_that_is_well_again_is_soon_sent_though_nothing_new_comes() {
        let (mut budget, mut left) = (RetryBudget::new(0), 20_000);
        // Each is answered after 50 ms; what costs nothing alone would take 2,000 s.
        for now_ms in (0..20_000).step_by(50) {
            let retries = budget.room(now_ms).min(left);
            budget.spend(retries);
            budget.give_back(retries);
            left -= retries;
        }
        assert_eq!(left, 0);
    }

    #[test]
    fn a_little_traffic_is_retried_at_once_and_much_is_not() {
        let mut budget = RetryBudget::new(0);
        assert_eq!(budget.room(0), FREE_PER_S);
        budget.earn(1_000_000);
        assert_eq!(budget.room(0), MOST_SAVED + FREE_PER_S);
        budget.spend(FREE_PER_S + 400);
        assert_eq!((budget.room(0), budget.room(500)), (600, 605));
    }
}
