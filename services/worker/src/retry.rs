//! What follows from an outcome. Pure, but for the jitter that it is given.

use std::time::Duration;

use herald_core::{
    clock::World,
    ports::channel::Outcome,
    record::{Notification, State},
};

use crate::Config;

/// A message whose account is at fault is tried again after this time.
const ACCOUNT_FAULT_DELAY_MS: u64 = 15_000;

/// No attempt is put off for longer, whatever a provider asks for or is set.
pub(crate) const LONGEST_DELAY_MS: u64 = 3_600_000;

/// What happens next to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// It has ended.
    End { state: State, reason: &'static str, code: String, provider_id: Option<String>, attempts: u32 },
    /// It waits and comes again.
    Again { delay_ms: u64, attempts: u32, why: Why },
}

/// Why an instance comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Retry,
    Unanswered,
    NotAttempted,
    AccountFault,
}

/// Decides what follows from the outcome of an attempt; `attempts` are those before it.
pub(crate) fn after(
    outcome: Outcome,
    attempts: u32,
    notification: &Notification,
    config: &Config,
    world: &World,
    now_ms: u64,
) -> Next {
    let end = |state, reason, code| Next::End { state, reason, code, provider_id: None, attempts: attempts + 1 };
    let again = |why, at_least_ms: u64, code: String| {
        let delay_ms = backoff_ms(attempts, config, world).max(at_least_ms);
        if attempts + 1 >= config.max_attempts {
            end(State::Dead, "attempts_exhausted", code)
        } else if now_ms + delay_ms >= notification.expires_ms {
            end(State::Dead, "expired", code)
        } else {
            Next::Again { delay_ms, attempts: attempts + 1, why }
        }
    };
    match outcome {
        Outcome::Accepted { provider_id } => {
            let attempts = attempts + 1;
            Next::End { state: State::Delivered, reason: "", code: String::new(), provider_id, attempts }
        }
        Outcome::RetryAfter { after, code } => again(Why::Retry, after.map_or(0, hint_ms), code),
        Outcome::Unknown { code } => again(Why::Unanswered, 0, code),
        Outcome::EndpointGone { code } => end(State::Failed, "endpoint_gone", code),
        Outcome::AddressBad { code } => end(State::Failed, "address_bad", code),
        Outcome::Rejected { code } => end(State::Failed, "rejected", code),
        // Neither spends an attempt: nothing was sent. What they meet at their ttl is decided when they come again.
        Outcome::AccountFault { .. } => {
            Next::Again { delay_ms: ACCOUNT_FAULT_DELAY_MS, attempts, why: Why::AccountFault }
        }
        Outcome::NotAttempted { .. } => {
            Next::Again { delay_ms: config.retry_base_ms, attempts, why: Why::NotAttempted }
        }
    }
}

/// When a provider wants to be asked again, in milliseconds from now.
pub(crate) fn hint_ms(after: Duration) -> u64 {
    after.as_millis().min(u128::from(LONGEST_DELAY_MS)) as u64
}

/// Exponential with full jitter.
fn backoff_ms(attempts: u32, config: &Config, world: &World) -> u64 {
    let ceiling =
        config.retry_base_ms.saturating_mul(1 << attempts.min(20)).min(config.retry_cap_ms).min(LONGEST_DELAY_MS);
    world.below(ceiling + 1)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use herald_core::clock::{Clock, Entropy};

    use super::*;

    struct Fixed(u64);

    impl Clock for Fixed {
        fn now_ms(&self) -> u64 {
            0
        }
    }

    impl Entropy for Fixed {
        fn next_u64(&self) -> u64 {
            self.0
        }
    }

    fn next(outcome: Outcome, attempts: u32, expires_ms: u64) -> Next {
        let world = World::new(Arc::new(Fixed(0)), Arc::new(Fixed(u64::MAX)));
        let notification = Notification { expires_ms, ..Default::default() };
        after(outcome, attempts, &notification, &Config::default(), &world, 1_000)
    }

    fn busy(after_ms: Option<u64>) -> Outcome {
        Outcome::RetryAfter { after: after_ms.map(Duration::from_millis), code: "busy".into() }
    }

    #[test]
    fn backoff_doubles_to_its_cap_and_heeds_the_provider() {
        let delay = |outcome, attempts| match next(outcome, attempts, u64::MAX) {
            Next::Again { delay_ms, .. } => delay_ms,
            end => panic!("{end:?}"),
        };
        assert_eq!((delay(busy(None), 0), delay(busy(None), 3)), (250, 2_000));
        assert_eq!(delay(busy(Some(90_000)), 0), 90_000);
        assert_eq!(delay(busy(Some(u64::MAX / 2)), 0), 3_600_000);
    }

    #[test]
    fn attempts_and_time_end() {
        let reason = |next| match next {
            Next::End { state: State::Dead, reason, attempts, .. } => (reason, attempts),
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(next(busy(None), 7, u64::MAX)), ("attempts_exhausted", 8));
        assert_eq!(reason(next(busy(Some(5_000)), 0, 6_000)), ("expired", 1));
    }

    #[test]
    fn what_was_not_sent_spends_no_attempt() {
        for outcome in [Outcome::NotAttempted { code: String::new() }, Outcome::AccountFault { code: String::new() }] {
            assert!(matches!(next(outcome, 7, 6_000), Next::Again { attempts: 7, .. }));
        }
    }
}
