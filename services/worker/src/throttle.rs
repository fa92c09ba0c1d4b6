//! What a provider takes a second, learnt from what it refuses as too much. Pure.
//!
//! Nothing is known, and nothing held back, until a provider asks to come back later. From then on a second brings what
//! it took in the last one, a little more with each second in which it refused nothing, until the bound is of no use any
//! more. How slowly a provider answers needs no rule: the window of what is in doubt bounds what it has in hand.

use herald_core::bucket::{Bucket, Quota};

const WINDOW_MS: u64 = 1_000;

/// The least rate that a provider is driven down to, messages a second.
const LEAST_PER_S: u64 = 10;

/// The part of what was taken that is sent in the next second, in percent.
const KEEP_PERCENT: u64 = 95;

/// What a second without refusals adds, in percent.
const GROW_PERCENT: u64 = 10;

/// The bound is dropped when so many seconds in a row did not need it.
const IDLE_WINDOWS: u32 = 10;

/// One provider's rate.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    bound: Option<(u64, Bucket)>,
    began_ms: u64,
    accepted: u64,
    refused: u64,
    /// Whether the bound held something back in this window.
    needed: bool,
    idle_windows: u32,
}

impl Throttle {
    /// How many of so many may go now; the wait for more, in milliseconds, if that is fewer.
    pub(crate) fn room(&mut self, wanted: u64, now_ms: u64) -> (u64, u64) {
        self.turn(now_ms);
        let Some((per_s, bucket)) = &mut self.bound else { return (wanted, 0) };
        let Some(quota) = quota(*per_s) else { return (wanted, 0) };
        bucket.fill(quota, now_ms);
        let room = bucket.tokens(0).min(wanted);
        self.needed |= room < wanted;
        (room, bucket.wait_ms(wanted - room, 0))
    }

    /// The bound, if there is one.
    pub(crate) fn quota(&self) -> Option<Quota> {
        self.bound.as_ref().and_then(|(per_s, _)| quota(*per_s))
    }

    /// Notes messages that go.
    pub(crate) fn take(&mut self, count: u64) {
        if let Some((_, bucket)) = &mut self.bound {
            bucket.take(count);
        }
    }

    /// Notes answers: whether each was refused as too much.
    pub(crate) fn answered(&mut self, refused: bool, now_ms: u64) {
        self.turn(now_ms);
        if refused {
            self.refused += 1;
        } else {
            self.accepted += 1;
        }
    }

    /// Begins a new window when the last one is over, and sets the rate by what it brought.
    fn turn(&mut self, now_ms: u64) {
        let elapsed_ms = now_ms.saturating_sub(self.began_ms);
        if elapsed_ms < WINDOW_MS {
            return;
        }
        let accepted = self.accepted * WINDOW_MS / elapsed_ms;
        if self.refused > 0 {
            let before = self.bound.as_ref().map_or(u64::MAX, |(per_s, _)| *per_s);
            let per_s = (accepted * KEEP_PERCENT / 100).clamp(LEAST_PER_S, before.max(LEAST_PER_S));
            match &mut self.bound {
                Some((bound, _)) => *bound = per_s,
                // It begins empty: the provider has had enough.
                None => self.bound = quota(per_s).map(|quota| (per_s, empty(quota, now_ms))),
            }
            self.idle_windows = 0;
        } else if let Some((per_s, _)) = &mut self.bound {
            match self.needed {
                true => {
                    *per_s += (*per_s * GROW_PERCENT / 100).max(1);
                    self.idle_windows = 0;
                }
                false => self.idle_windows += 1,
            }
            if self.idle_windows >= IDLE_WINDOWS {
                self.bound = None;
            }
        }
        (self.began_ms, self.accepted, self.refused, self.needed) = (now_ms, 0, 0, false);
    }
}

fn quota(per_s: u64) -> Option<Quota> {
    // A tenth of a second's worth at once, so that a second is used evenly.
    Quota::new(per_s as f64, per_s.div_ceil(10))
}

fn empty(quota: Quota, now_ms: u64) -> Bucket {
    let mut bucket = Bucket::full(quota, now_ms);
    bucket.take(u64::MAX);
    bucket
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends as much as may go to a provider that takes `capacity` a second, for some seconds; returns what was taken
    /// and what was refused.
    fn run(throttle: &mut Throttle, capacity: u64, offered: u64, from_s: u64, seconds: u64) -> (u64, u64) {
        let (mut taken, mut refused) = (0, 0);
        for second in from_s..from_s + seconds {
            let mut left = capacity;
            for tick in 0..100 {
                let now_ms = second * 1_000 + tick * 10;
                let (room, _) = throttle.room(offered / 100, now_ms);
                throttle.take(room);
                for _ in 0..room {
                    throttle.answered(left == 0, now_ms);
                    if left == 0 {
                        refused += 1;
                    } else {
                        (left, taken) = (left - 1, taken + 1);
                    }
                }
            }
        }
        (taken, refused)
    }

    #[test]
    fn nothing_is_held_back_until_something_is_refused() {
        let mut throttle = Throttle::default();
        assert_eq!(run(&mut throttle, 5_000, 5_000, 100, 10), (50_000, 0));
        assert!(throttle.quota().is_none());
    }

    #[test]
    fn a_provider_that_refuses_three_in_ten_is_sent_what_it_takes() {
        let mut throttle = Throttle::default();
        let (taken, refused) = run(&mut throttle, 700, 1_000, 100, 60);
        assert!(refused * 10 <= taken, "{refused} of {taken} refused");
        assert!(taken >= 60 * 700 * 85 / 100, "{taken} taken");
        // When it takes everything again, the bound goes.
        run(&mut throttle, 5_000, 1_000, 160, 120);
        assert!(throttle.quota().is_none(), "{throttle:?}");
    }

    #[test]
    fn the_rate_is_never_driven_to_nothing() {
        let mut throttle = Throttle::default();
        run(&mut throttle, 0, 1_000, 100, 60);
        assert_eq!(throttle.room(1, 161_000), (1, 0));
    }

    #[test]
    fn a_wait_is_long_enough() {
        let mut throttle = Throttle::default();
        run(&mut throttle, 100, 1_000, 100, 3);
        let (room, wait_ms) = throttle.room(1_000, 103_000);
        throttle.take(room);
        assert!(throttle.room(1, 103_000 + wait_ms).0 == 1, "{room} {wait_ms}");
    }
}
