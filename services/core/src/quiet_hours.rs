//! Quiet hours: until when nothing is sent, by the clock on the person's wall. Pure.

use jiff::{Timestamp, tz::TimeZone};

use crate::people::QuietHours;

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 86_400_000;

/// Steps of the clock that are looked through: more than any zone has within two days.
const MAX_STEPS: usize = 8;

/// When the quiet hours end in which `now_ms` lies, both in milliseconds since the epoch; `None` outside of them.
///
/// What counts is what the local clock says. Where it steps forward over the end, they end at the step; where it is set
/// back into them, they are kept again. Hours that end when they start are none.
pub fn quiet_until(quiet: &QuietHours, zone: &TimeZone, now_ms: u64) -> Option<u64> {
    let mut at_ms = i64::try_from(now_ms).ok()?;
    if !is_quiet(quiet, local_ms_of_day(zone, at_ms)?) {
        return None;
    }
    for _ in 0..MAX_STEPS {
        // Up to its next step the clock runs evenly.
        let left_ms = i64::from(quiet.end_minute) * MINUTE_MS - local_ms_of_day(zone, at_ms)?;
        let end_ms = at_ms + left_ms.rem_euclid(DAY_MS);
        let step_ms = zone.following(timestamp(at_ms)?).next().map(|step| step.timestamp().as_millisecond());
        match step_ms.filter(|step_ms| *step_ms <= end_ms) {
            None => return u64::try_from(end_ms).ok(),
            Some(step_ms) if !is_quiet(quiet, local_ms_of_day(zone, step_ms)?) => return u64::try_from(step_ms).ok(),
            Some(step_ms) => at_ms = step_ms,
        }
    }
    u64::try_from(at_ms).ok()
}

fn is_quiet(quiet: &QuietHours, ms_of_day: i64) -> bool {
    let start_ms = i64::from(quiet.start_minute) * MINUTE_MS;
    let end_ms = i64::from(quiet.end_minute) * MINUTE_MS;
    if start_ms <= end_ms {
        (start_ms..end_ms).contains(&ms_of_day)
    } else {
        ms_of_day >= start_ms || ms_of_day < end_ms
    }
}

fn local_ms_of_day(zone: &TimeZone, at_ms: i64) -> Option<i64> {
    let offset_s = i64::from(zone.to_offset(timestamp(at_ms)?).seconds());
    Some((at_ms + offset_s * 1_000).rem_euclid(DAY_MS))
}

/// `None` after the year 9999.
fn timestamp(at_ms: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(at_ms).ok()
}

#[cfg(test)]
mod tests {
    use jiff::Zoned;
    use proptest::prelude::*;

    use super::*;
    use crate::people::QuietPolicy;

    fn hours(start: (u16, u16), end: (u16, u16)) -> QuietHours {
        let minute = |(hour, minute)| hour * 60 + minute;
        let (start_minute, end_minute) = (minute(start), minute(end));
        QuietHours { start_minute, end_minute, time_zone: None, policy: QuietPolicy::Defer }
    }

    /// The end of the quiet hours at a moment such as `2026-03-29T01:00+01:00[Europe/Berlin]`, in the same form.
    fn end(quiet: &QuietHours, at: &str) -> Option<String> {
        let at: Zoned = at.parse().unwrap();
        let until_ms = quiet_until(quiet, at.time_zone(), at.timestamp().as_millisecond() as u64)?;
        let until = Timestamp::from_millisecond(until_ms as i64).unwrap().to_zoned(at.time_zone().clone());
        Some(until.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string())
    }

    #[test]
    fn they_may_pass_midnight_and_begin_and_end_sharply() {
        let night = hours((22, 0), (7, 30));
        let berlin = |time: &str| end(&night, &format!("{time}[Europe/Berlin]"));
        assert_eq!(berlin("2026-07-01T21:59:59.999"), None);
        assert_eq!(berlin("2026-07-01T22:00").as_deref(), Some("2026-07-02T07:30:00+02:00"));
        assert_eq!(berlin("2026-07-02T07:29:59.999").as_deref(), Some("2026-07-02T07:30:00+02:00"));
        assert_eq!(berlin("2026-07-02T07:30"), None);
        let noon = hours((12, 0), (13, 0));
        assert_eq!(end(&noon, "2026-07-01T12:30[Asia/Kolkata]").as_deref(), Some("2026-07-01T13:00:00+05:30"));
        assert_eq!(end(&hours((9, 0), (9, 0)), "2026-07-01T09:00[UTC]"), None);
    }

    #[test]
    fn the_night_in_which_the_clock_goes_forward() {
        // In Berlin 02:00 to 03:00 is left out on 2026-03-29.
        let at = "2026-03-29T01:00+01:00[Europe/Berlin]";
        assert_eq!(end(&hours((22, 0), (7, 0)), at).as_deref(), Some("2026-03-29T07:00:00+02:00"), "an hour less");
        assert_eq!(end(&hours((22, 0), (2, 30)), at).as_deref(), Some("2026-03-29T03:00:00+02:00"), "at the step");
        assert_eq!(end(&hours((2, 10), (2, 50)), "2026-03-29T03:00[Europe/Berlin]"), None, "they are left out");
    }

    #[test]
    fn the_night_in_which_the_clock_goes_back() {
        // In Berlin 02:00 to 03:00 comes twice on 2026-10-25.
        let night = hours((22, 0), (2, 30));
        let (first, second) = ("2026-10-25T02:10+02:00[Europe/Berlin]", "2026-10-25T02:10+01:00[Europe/Berlin]");
        assert_eq!(end(&night, first).as_deref(), Some("2026-10-25T02:30:00+02:00"));
        assert_eq!(end(&night, second).as_deref(), Some("2026-10-25T02:30:00+01:00"));
        assert_eq!(end(&hours((22, 0), (7, 0)), first).as_deref(), Some("2026-10-25T07:00:00+01:00"), "an hour more");
        let late = hours((2, 50), (3, 10));
        let at = "2026-10-25T02:55+02:00[Europe/Berlin]";
        assert_eq!(end(&late, at).as_deref(), Some("2026-10-25T02:00:00+01:00"), "the clock leaves them by its step");
    }

    #[test]
    fn a_day_that_a_country_left_out() {
        // Samoa went from 2011-12-29 to 2011-12-31.
        let at = "2011-12-29T23:30-10:00[Pacific/Apia]";
        assert_eq!(end(&hours((22, 0), (7, 0)), at).as_deref(), Some("2011-12-31T07:00:00+14:00"));
    }

    /// Zones with steps of an hour, of half an hour, around noon of UTC, and with none.
    const ZONES: [&str; 6] =
        ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Chatham", "Africa/Casablanca", "UTC"];

    proptest! {
        /// Until the end the clock says that it is quiet, and at the end that it is not.
        #[test]
        fn it_is_quiet_up_to_the_end_and_not_at_it(
            zone in 0..ZONES.len(),
            start_minute in 0..1_440u16,
            end_minute in 0..1_440u16,
            step in 0..40usize,
            before_ms in 0..90_000_000i64,
        ) {
            let zone = TimeZone::get(ZONES[zone]).unwrap();
            let since = Timestamp::from_second(1_600_000_000).unwrap();
            // Shortly before a step of the clock, if it has any.
            let near = zone.following(since).nth(step).map_or(since, |step| step.timestamp());
            let now_ms = near.as_millisecond() - before_ms;
            let quiet = QuietHours { start_minute, end_minute, time_zone: None, policy: QuietPolicy::Defer };
            let is_quiet_at = |at_ms: i64| {
                let local = timestamp(at_ms).unwrap().to_zoned(zone.clone());
                let minute = local.hour() as u16 * 60 + local.minute() as u16;
                match start_minute <= end_minute {
                    true => (start_minute..end_minute).contains(&minute),
                    false => minute >= start_minute || minute < end_minute,
                }
            };
            match quiet_until(&quiet, &zone, now_ms as u64) {
                None => prop_assert!(!is_quiet_at(now_ms)),
                Some(until_ms) => {
                    let until_ms = until_ms as i64;
                    prop_assert!(!is_quiet_at(until_ms) && until_ms > now_ms && until_ms <= now_ms + 2 * DAY_MS);
                    for at_ms in (now_ms..until_ms).step_by(300_000).chain([until_ms - 1]) {
                        prop_assert!(is_quiet_at(at_ms), "{at_ms} of {now_ms} to {until_ms}");
                    }
                }
            }
        }
    }
}
