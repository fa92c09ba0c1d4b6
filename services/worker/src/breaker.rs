//! A circuit breaker for one provider: while it is wholly down, messages wait without spending attempts. Pure, but for
//! the jitter that it is given.

use herald_core::clock::World;

/// So many failures in a row, with no success between them, open the breaker.
const OPENS_AFTER: u32 = 10;

/// How long it stays open at first; each failed probe doubles that.
const FIRST_WAIT_MS: u64 = 1_000;

/// The longest wait between two probes, unless the provider asks for more.
const LONGEST_WAIT_MS: u64 = 60_000;

/// When so many messages at once have gone well after an outage, it is over.
const CLOSES_AT: u64 = 256;

/// What an answer says of the provider, whatever it says of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// It works.
    Up,
    /// It does not, and asks to come back after so many milliseconds, if it asks at all.
    Down { retry_after_ms: u64 },
    /// Nothing: the message was held back on our side.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    /// Nothing is sent until then.
    Open {
        until_ms: u64,
    },
    /// So many messages may be under way at once.
    Probing {
        at_once: u64,
    },
}

/// What the breaker says of messages that are to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    /// All may go.
    All,
    /// So many may go, at least one.
    Some(u64),
    /// None may go before this time, in milliseconds since the epoch.
    Not { until_ms: u64 },
}

/// One provider's breaker.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    /// Failures in a row.
    failures: u32,
    /// How often it was opened since it was last closed.
    opened: u32,
    /// Messages under way since it was opened.
    under_way: u64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed, failures: 0, opened: 0, under_way: 0 }
    }
}

impl Breaker {
    /// Whether messages may go.
    pub(crate) fn passage(&mut self, now_ms: u64) -> Passage {
        match self.state {
            State::Closed => return Passage::All,
            State::Open { until_ms } if self.is_waiting(now_ms) => return Passage::Not { until_ms },
            State::Open { .. } => self.state = State::Probing { at_once: 1 },
            State::Probing { .. } => {}
        }
        match self.state {
            State::Probing { at_once } if self.under_way < at_once => Passage::Some(at_once - self.under_way),
            _ => Passage::Not { until_ms: now_ms + FIRST_WAIT_MS / 2 },
        }
    }

    /// Whether nothing may go before a time that lies ahead.
    pub(crate) fn is_waiting(&self, now_ms: u64) -> bool {
        matches!(self.state, State::Open { until_ms } if now_ms < until_ms)
    }

    /// Whether what is sent now tries whether the provider is up again.
    pub(crate) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Notes messages that were handed over. Returns whether their answers count as those of probes.
    pub(crate) fn handed_over(&mut self, count: u64) -> bool {
        if !self.is_closed() {
            self.under_way += count;
        }
        !self.is_closed()
    }

    /// Notes an answer; `probe` is what [`Breaker::handed_over`] said of its message.
    pub(crate) fn answered(&mut self, health: Health, probe: bool, now_ms: u64, world: &World) {
        if probe {
            self.under_way = self.under_way.saturating_sub(1);
        }
        match (health, self.state) {
            (Health::Unknown, _) => {}
            (Health::Up, State::Closed) => self.failures = 0,
            (Health::Up, State::Probing { at_once }) if probe && self.under_way == 0 => {
                self.state = State::Probing { at_once: at_once * 2 };
                if at_once >= CLOSES_AT {
                    *self = Self::default();
                }
            }
            // Late answers of what was sent before say nothing of now.
            (Health::Up, _) => {}
            (Health::Down { retry_after_ms }, State::Closed) => {
                self.failures += 1;
                if self.failures >= OPENS_AFTER {
                    self.under_way = 0;
                    self.open(retry_after_ms, now_ms, world);
                }
            }
            (Health::Down { retry_after_ms }, State::Probing { .. }) if probe => {
                self.open(retry_after_ms, now_ms, world);
            }
            (Health::Down { .. }, _) => {}
        }
    }

    /// Notes that so many probes will have no answer any more.
    pub(crate) fn forget(&mut self, probes: u64) {
        self.under_way = self.under_way.saturating_sub(probes);
    }

    fn open(&mut self, retry_after_ms: u64, now_ms: u64, world: &World) {
        let longest_ms = FIRST_WAIT_MS.saturating_mul(1 << self.opened.min(16)).min(LONGEST_WAIT_MS);
        // Half of it is jitter, so that workers do not probe together.
        let wait_ms = longest_ms / 2 + world.below(longest_ms / 2 + 1);
        self.state = State::Open { until_ms: now_ms + wait_ms.max(retry_after_ms) };
        self.opened += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use herald_core::clock::{Clock, Entropy};

    use super::*;

    struct Fixed;

    impl Clock for Fixed {
        fn now_ms(&self) -> u64 {
            0
        }
    }

    impl Entropy for Fixed {
        fn next_u64(&self) -> u64 {
            u64::MAX
        }
    }

    const DOWN: Health = Health::Down { retry_after_ms: 0 };

    fn world() -> World {
        World::new(Arc::new(Fixed), Arc::new(Fixed))
    }

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..OPENS_AFTER {
            assert_eq!(breaker.passage(0), Passage::All);
            breaker.answered(DOWN, false, 0, &world());
        }
        breaker
    }

    /// Sends as many as may go and answers them; returns how many went.
    fn probe(breaker: &mut Breaker, health: Health, now_ms: u64) -> u64 {
        let Passage::Some(count) = breaker.passage(now_ms) else { return 0 };
        assert!(breaker.handed_over(count));
        assert!(matches!(breaker.passage(now_ms), Passage::Not { .. }), "no more until they are answered");
        (0..count).for_each(|_| breaker.answered(health, true, now_ms, &world()));
        count
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_not_after_some() {
        let mut breaker = Breaker::default();
        for _ in 0..100 {
            (1..OPENS_AFTER).for_each(|_| breaker.answered(DOWN, false, 0, &world()));
            breaker.answered(Health::Up, false, 0, &world());
            breaker.answered(Health::Unknown, false, 0, &world());
        }
        assert_eq!(breaker.passage(0), Passage::All);
        assert_eq!(opened().passage(0), Passage::Not { until_ms: 1_000 });
    }

    #[test]
    fn probes_come_ever_more_seldom_and_are_single() {
        let mut breaker = opened();
        let (mut now_ms, mut waits) = (0, Vec::new());
        for _ in 0..9 {
            let Passage::Not { until_ms } = breaker.passage(now_ms) else { panic!("{breaker:?}") };
            waits.push(until_ms - now_ms);
            now_ms = until_ms;
            assert_eq!(probe(&mut breaker, DOWN, now_ms), 1);
        }
        assert_eq!(waits, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
    }

    #[test]
    fn what_comes_back_is_loaded_step_by_step() {
        let mut breaker = opened();
        let steps: Vec<u64> = std::iter::from_fn(|| Some(probe(&mut breaker, Health::Up, 1_000))).take(10).collect();
        assert_eq!(steps, [1, 2, 4, 8, 16, 32, 64, 128, 256, 0]);
        assert_eq!(breaker.passage(1_000), Passage::All);
        let mut relapsed = opened();
        (0..3).for_each(|_| assert!(probe(&mut relapsed, Health::Up, 1_000) > 0));
        probe(&mut relapsed, DOWN, 1_000);
        assert_eq!(relapsed.passage(1_000), Passage::Not { until_ms: 3_000 });
    }

    #[test]
    fn the_provider_may_ask_for_a_longer_wait() {
        let mut breaker = opened();
        breaker.passage(1_000);
        breaker.handed_over(1);
        breaker.answered(Health::Down { retry_after_ms: 90_000 }, true, 1_000, &world());
        assert_eq!(breaker.passage(1_000), Passage::Not { until_ms: 91_000 });
    }

    #[test]
    fn late_answers_and_held_back_probes_change_nothing() {
        let mut breaker = opened();
        breaker.answered(Health::Up, false, 500, &world());
        assert_eq!(breaker.passage(500), Passage::Not { until_ms: 1_000 });
        assert_eq!(probe(&mut breaker, Health::Unknown, 1_000), 1);
        assert_eq!(probe(&mut breaker, Health::Up, 1_000), 1, "it is tried again");
    }
}
