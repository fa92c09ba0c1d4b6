//! What a repeated idempotency key means, without IO.

use herald_core::{
    ports::admissions::Admission,
    problem::{Kind, Problem},
};

/// What to do about a key that was there already.
#[derive(Debug, Clone, PartialEq)]
pub enum Repeated {
    /// The same call was accepted: give the same answer.
    Replay,
    /// The same call was begun and never finished: append it again under its id.
    Again,
    /// Answer this.
    Refuse(Problem),
}

/// What a call under a key that another call began comes to.
///
/// A key that began before this process did, or longer ago than `stale_ms`, is not being worked on any more. Should it
/// be, in another process, the record is appended twice under one id and the orchestrator drops the second.
pub fn repeated(existing: &Admission, body_hash: &[u8; 16], now_ms: u64, started_ms: u64, stale_ms: u64) -> Repeated {
    if existing.body_hash != *body_hash {
        return Repeated::Refuse(key_reused());
    }
    if existing.answered || existing.first_place.is_some() {
        return Repeated::Replay;
    }
    let since_ms = existing.running_since_ms;
    if since_ms >= started_ms && now_ms.saturating_sub(since_ms) < stale_ms {
        return Repeated::Refuse(in_flight());
    }
    Repeated::Again
}

/// 422: another body under the same key.
pub fn key_reused() -> Problem {
    Problem::refused("idempotency_key_reused", "Another body was sent under this idempotency key; use a new key.")
}

/// 409: the same call is still running.
pub fn in_flight() -> Problem {
    let detail = "A call under this idempotency key is still running. Repeat this one a little later.";
    Problem::new(Kind::Conflict, "idempotency_key_in_flight", detail).with_retry_after(1)
}

#[cfg(test)]
mod tests {
    use herald_core::{ids::NotificationId, record::Place};

    use super::*;

    fn admission(running_since_ms: u64) -> Admission {
        Admission {
            id: NotificationId([1; 16]),
            body_hash: [7; 16],
            first_use_ms: running_since_ms,
            running_since_ms,
            answered: false,
            first_place: None,
        }
    }

    fn code(repeated: Repeated) -> &'static str {
        match repeated {
            Repeated::Replay => "replay",
            Repeated::Again => "again",
            Repeated::Refuse(problem) => problem.code(),
        }
    }

    #[test]
    fn a_repeated_key_is_replayed_refused_or_done_again() {
        let decide = |admission: &Admission, hash: u8, now_ms| repeated(admission, &[hash; 16], now_ms, 1_000, 10_000);
        let answered = Admission { answered: true, ..admission(2_000) };
        let placed = Admission { first_place: Some(Place::default()), ..admission(2_000) };
        for (admission, hash, now_ms, expected) in [
            (answered.clone(), 7, 3_000, "replay"),
            (answered, 8, 3_000, "idempotency_key_reused"),
            (placed, 7, 3_000, "replay"),
            (admission(2_000), 7, 11_999, "idempotency_key_in_flight"),
            (admission(2_000), 7, 12_000, "again"),
            (admission(2_000), 8, 12_000, "idempotency_key_reused"),
            (admission(999), 7, 1_001, "again"),
        ] {
            assert_eq!(code(decide(&admission, hash, now_ms)), expected, "{admission:?} at {now_ms}");
        }
    }
}
