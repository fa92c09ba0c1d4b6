//! Whether a message may go to a person, decided at the moment of sending. Pure.

use std::sync::Arc;

use herald_core::{
    ids::channel_name,
    people::{Endpoint, QuietPolicy},
    quiet_hours::quiet_until,
    record::{Channel, Notification},
};

use crate::people::Known;

/// The reason of a message to somebody who was erased after it was accepted.
pub(crate) const ERASED: &str = "erased";

/// What the rules say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict<'a> {
    /// Send, for channels with endpoints to this one.
    Send(Option<&'a Arc<Endpoint>>),
    /// Do not send; the reason is part of the API.
    Suppress(&'static str),
    /// Its time ran out after an attempt.
    Dead(&'static str),
    /// It waits until then, in milliseconds since the epoch.
    Wait(u64),
}

/// What is asked about.
pub(crate) struct Question<'a> {
    pub notification: &'a Notification,
    pub channel: Channel,
    pub category: &'a str,
    pub attempts: u32,
    /// Whether the recipient travels with the message and need not be registered.
    pub inline: bool,
    pub now_ms: u64,
}

/// Decides for one person: whether they were erased, the ttl, then who it is, then what they want, then where they can be
/// reached, then whether it is quiet there. Nobody is left without what they wait for, such as a code to log in, because it
/// is night: quiet hours are for bulk messages.
pub(crate) fn may_send<'a>(question: &Question<'_>, known: &'a Known) -> Verdict<'a> {
    if known.erased_ms > 0 && question.notification.accepted_ms <= known.erased_ms {
        return Verdict::Suppress(ERASED);
    }
    if question.now_ms >= question.notification.expires_ms {
        return if question.attempts == 0 { Verdict::Suppress("expired") } else { Verdict::Dead("expired") };
    }
    if !known.registered && !question.inline {
        return Verdict::Suppress("unknown_user");
    }
    let channel = channel_name(question.channel);
    if known.preferences.channels.get(channel).is_some_and(|preference| !preference.allows(question.category)) {
        return Verdict::Suppress("opted_out");
    }
    // In-app reaches every registered user; an inline recipient without registration has no feed.
    let endpoint = match question.channel {
        Channel::InApp => None,
        _ => known.endpoints.iter().find(|endpoint| endpoint.channel == channel),
    };
    let reachable = if question.channel == Channel::InApp { known.registered } else { endpoint.is_some() };
    if !reachable {
        return Verdict::Suppress("unreachable");
    }
    if let Some((quiet, zone)) = known.quiet_hours().filter(|_| !question.notification.transactional)
        && let Some(until_ms) = quiet_until(quiet, zone, question.now_ms)
    {
        return match quiet.policy {
            QuietPolicy::Drop => Verdict::Suppress("quiet_hours"),
            QuietPolicy::Defer => Verdict::Wait(until_ms.min(question.notification.expires_ms)),
        };
    }
    Verdict::Send(endpoint)
}

#[cfg(test)]
mod tests {
    use herald_core::people::{ChannelPreference, Person, Preferences, QuietHours, User};

    use super::*;

    fn ask(known: &Known, channel: Channel, change: impl FnOnce(&mut Question<'_>)) -> String {
        let notification = Notification { expires_ms: 1_000, ..Default::default() };
        let mut question = Question {
            notification: &notification,
            channel,
            category: "social",
            attempts: 0,
            inline: false,
            now_ms: 10,
        };
        change(&mut question);
        format!("{:?}", may_send(&question, known)).split(' ').next().unwrap_or_default().to_owned()
    }

    fn person(registered: bool) -> Known {
        let endpoint = Endpoint { channel: "email".into(), address: "a@example.org".into(), ..Default::default() };
        let user = registered.then(|| User { endpoints: vec![endpoint], ..Default::default() });
        Known::of("u", Person { user, ..Default::default() })
    }

    #[test]
    fn every_rule_has_its_reason() {
        let known = person(true);
        assert!(ask(&known, Channel::Email, |_| ()).starts_with("Send(Some("));
        assert_eq!(ask(&known, Channel::InApp, |_| ()), "Send(None)");
        assert_eq!(ask(&known, Channel::Push, |_| ()), "Suppress(\"unreachable\")");
        assert_eq!(ask(&known, Channel::Email, |q| q.now_ms = 1_000), "Suppress(\"expired\")");
        assert_eq!(ask(&known, Channel::Email, |q| (q.now_ms, q.attempts) = (1_000, 1)), "Dead(\"expired\")");
        assert_eq!(ask(&person(false), Channel::Email, |_| ()), "Suppress(\"unknown_user\")");
        assert_eq!(ask(&person(false), Channel::InApp, |q| q.inline = true), "Suppress(\"unreachable\")");
    }

    #[test]
    fn what_was_accepted_before_an_erasure_is_not_sent_whoever_comes_back() {
        let asked = |registered: bool, inline: bool, accepted_ms: u64| {
            let known = Known { erased_ms: 5, ..person(registered) };
            let notification = Notification { accepted_ms, expires_ms: 1_000, ..Default::default() };
            let question = Question {
                notification: &notification,
                channel: Channel::Email,
                category: "social",
                attempts: 0,
                inline,
                now_ms: 10,
            };
            format!("{:?}", may_send(&question, &known))
        };
        for registered in [true, false] {
            for inline in [true, false] {
                assert_eq!(asked(registered, inline, 5), "Suppress(\"erased\")");
            }
        }
        assert!(asked(true, false, 6).starts_with("Send("));
        assert_eq!(asked(false, false, 6), "Suppress(\"unknown_user\")");
    }

    #[test]
    fn opt_outs_hold_by_channel_and_by_category_even_for_inline_recipients() {
        let mut known = person(true);
        let preference = ChannelPreference { enabled: None, categories: [("social".to_owned(), false)].into() };
        known.preferences.channels.insert("email".into(), preference);
        assert_eq!(ask(&known, Channel::Email, |_| ()), "Suppress(\"opted_out\")");
        assert!(ask(&known, Channel::Email, |q| q.category = "billing").starts_with("Send"));
        known
            .preferences
            .channels
            .insert("in_app".into(), ChannelPreference { enabled: Some(false), ..Default::default() });
        assert_eq!(ask(&known, Channel::InApp, |q| q.inline = true), "Suppress(\"opted_out\")");
    }

    #[test]
    fn quiet_hours_make_bulk_messages_wait_or_end_and_no_others() {
        let known = |quiet_hours| {
            let endpoint = Endpoint { channel: "email".into(), address: "a@example.org".into(), ..Default::default() };
            let (endpoints, time_zone) = (vec![endpoint], Some("Asia/Tokyo".into()));
            let user = User { endpoints, time_zone, ..Default::default() };
            let preferences = Preferences { quiet_hours: Some(quiet_hours), ..Default::default() };
            Known::of("u", Person { user: Some(user), preferences, ..Default::default() })
        };
        let (nine, ten) = (9 * 60, 10 * 60);
        let hours = QuietHours { start_minute: nine, end_minute: ten, time_zone: None, policy: QuietPolicy::Defer };
        // The epoch was at nine in Tokyo.
        let hour_ms = 3_600_000;
        let ask_at = |known: &Known, channel, now_ms, expires_ms, transactional| {
            let notification = Notification { expires_ms, transactional, ..Default::default() };
            let question =
                Question { notification: &notification, channel, category: "", attempts: 0, inline: false, now_ms };
            format!("{:?}", may_send(&question, known))
        };
        let deferred = known(hours.clone());
        assert_eq!(ask_at(&deferred, Channel::Email, 5, u64::MAX, false), format!("Wait({hour_ms})"));
        assert_eq!(ask_at(&deferred, Channel::InApp, 5, u64::MAX, false), format!("Wait({hour_ms})"));
        assert_eq!(ask_at(&deferred, Channel::Email, 5, 60_000, false), "Wait(60000)", "no longer than its ttl");
        assert!(ask_at(&deferred, Channel::Email, hour_ms, u64::MAX, false).starts_with("Send"));
        assert!(ask_at(&deferred, Channel::Email, 5, u64::MAX, true).starts_with("Send"));
        let dropped = known(QuietHours { policy: QuietPolicy::Drop, ..hours.clone() });
        assert_eq!(ask_at(&dropped, Channel::Email, 5, u64::MAX, false), "Suppress(\"quiet_hours\")");
        let elsewhere = known(QuietHours { time_zone: Some("Europe/London".into()), ..hours.clone() });
        assert!(ask_at(&elsewhere, Channel::Email, 5, u64::MAX, false).starts_with("Send"));
        let nowhere = known(QuietHours { time_zone: Some("Mars/Olympus".into()), ..hours });
        assert!(ask_at(&nowhere, Channel::Email, 5, u64::MAX, false).starts_with("Wait"), "then the person's own zone");
    }
}
