//! What is said of something that is away: a line when it begins, a reminder now and then, and a line when it is over.

use std::{
    fmt::Display,
    sync::{Mutex, PoisonError},
};

/// While it lasts it is told again after this time.
const REMINDER_MS: u64 = 60_000;

/// Between two beginnings that are told lies at least this time, for what comes and goes with each call.
const ANEW_MS: u64 = 10_000;

/// How long what is put off waits, unless something else is said.
const PUT_OFF_MS: u64 = 1_000;

/// Something that may be away. Its log lines are bounded, however often and by however many it is asked.
#[derive(Debug)]
pub struct Outage {
    what: &'static str,
    to_do: &'static str,
    put_off_ms: u64,
    told: Mutex<Told>,
}

/// What was told, in milliseconds of the caller's clock. A clock that jumps costs a line more, or the length that is told.
#[derive(Debug, Default)]
struct Told {
    /// When what is away now was first told to be.
    since_ms: Option<u64>,
    began_ms: Option<u64>,
    last_ms: u64,
    waiting: Waiting,
}

/// What was put off within the time for which it is: that is what waits.
#[derive(Debug, Default)]
struct Waiting {
    from_ms: u64,
    now: u64,
    before: u64,
}

impl Waiting {
    /// Adds what was put off now; returns about how much waits.
    fn put_off(&mut self, count: u64, for_ms: u64, now_ms: u64) -> u64 {
        let passed_ms = now_ms.abs_diff(self.from_ms);
        if passed_ms >= for_ms {
            let before = if passed_ms < 2 * for_ms { self.now } else { 0 };
            *self = Self { from_ms: now_ms, now: 0, before };
        }
        self.now += count;
        self.now.max(self.before)
    }
}

impl Told {
    /// Whether it is to be told that it is away: for how long already.
    fn failed(&mut self, now_ms: u64) -> Option<u64> {
        let is_due = |last_ms: u64, every_ms| now_ms.abs_diff(last_ms) >= every_ms;
        match self.since_ms {
            Some(_) if !is_due(self.last_ms, REMINDER_MS) => return None,
            None if self.began_ms.is_some_and(|began_ms| !is_due(began_ms, ANEW_MS)) => return None,
            Some(_) => {}
            None => (self.since_ms, self.began_ms) = (Some(now_ms), Some(now_ms)),
        }
        self.last_ms = now_ms;
        self.since_ms.map(|since_ms| now_ms.saturating_sub(since_ms))
    }

    /// Whether it is to be told that it is over: how long it was away.
    fn answered(&mut self, now_ms: u64) -> Option<u64> {
        self.since_ms.take().map(|since_ms| now_ms.saturating_sub(since_ms))
    }
}

impl Outage {
    /// Nothing is away. `what` is said of it while it is: what cannot be done, and what becomes of it; and `to_do` to
    /// whoever reads that.
    pub fn new(what: &'static str, to_do: &'static str) -> Self {
        Self { what, to_do, put_off_ms: PUT_OFF_MS, told: Mutex::default() }
    }

    /// The same for what is put off for another time than a second.
    #[must_use]
    pub fn put_off_for(self, put_off_ms: u64) -> Self {
        Self { put_off_ms, ..self }
    }

    /// It did not answer, and so many instances or requests are put off.
    pub fn failed(&self, error: &dyn Display, put_off: u64, now_ms: u64) {
        let (waiting, away_ms) = {
            let mut told = self.told();
            (told.waiting.put_off(put_off, self.put_off_ms, now_ms), told.failed(now_ms))
        };
        if let Some(away_ms) = away_ms {
            let waiting = (waiting > 0).then_some(waiting);
            tracing::warn!(%error, waiting, away_s = away_ms / 1_000, to_do = self.to_do, "{}", self.what);
        }
    }

    /// It did.
    pub fn answered(&self, now_ms: u64) {
        let away_ms = self.told().answered(now_ms);
        if let Some(away_ms) = away_ms {
            tracing::info!(away_s = away_ms / 1_000, "it is over: {}", self.what);
        }
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_when_it_begins_each_minute_and_when_it_is_over() {
        let mut told = Told::default();
        assert_eq!(told.answered(500), None, "it was not away");
        let lines: Vec<(u64, u64)> = (1_000..150_000)
            .step_by(10)
            .filter_map(|now_ms| told.failed(now_ms).map(|away_ms| (now_ms, away_ms)))
            .collect();
        assert_eq!(lines, [(1_000, 0), (61_000, 60_000), (121_000, 120_000)]);
        assert_eq!((told.answered(151_000), told.answered(151_001)), (Some(150_000), None));
        assert_eq!(told.failed(152_000), Some(0), "that is another");
    }

    #[test]
    fn what_comes_and_goes_with_each_call_is_no_flood() {
        let mut told = Told::default();
        let lines = (0..60_000)
            .step_by(20)
            .flat_map(|now_ms| [told.failed(now_ms), told.answered(now_ms + 10)])
            .flatten()
            .count();
        assert_eq!(lines, 12, "six beginnings and six ends");
        // And none that lasts is kept secret.
        assert_eq!((told.failed(59_999), told.failed(60_000), told.failed(60_001)), (None, Some(0), None));
    }

    #[test]
    fn a_clock_that_jumps_makes_no_outage_a_secret() {
        let mut told = Told::default();
        assert_eq!(told.failed(10_000_000), Some(0));
        assert_eq!(told.failed(5_000_000), Some(0), "it was set back by more than a reminder takes");
        assert_eq!(told.failed(5_000_100), None);
        assert_eq!(told.failed(5_060_000), Some(0));
    }

    #[test]
    fn what_was_put_off_within_a_second_is_what_waits() {
        let mut waiting = Waiting::default();
        let mut put_off = |count, now_ms| waiting.put_off(count, 1_000, now_ms);
        assert_eq!([5_000, 5_400, 5_900].map(|now_ms| put_off(100, now_ms)), [100, 200, 300]);
        // They come again.
        assert_eq!([6_000, 6_400, 6_950].map(|now_ms| put_off(90, now_ms)), [300, 300, 300]);
        assert_eq!(put_off(10, 7_000), 270);
        assert_eq!(put_off(10, 20_000), 10, "that was long ago");
    }
}
