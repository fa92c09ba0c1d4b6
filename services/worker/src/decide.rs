//! Whether a message may go to a person, decided at the moment of sending. Pure.

use std::sync::Arc;

use herald_core::{
    ids::channel_name,
    people::Endpoint,
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
/// reached.
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
    if question.channel == Channel::InApp {
        // In-app reaches every registered user; an inline recipient without registration has no feed.
        return if known.registered { Verdict::Send(None) } else { Verdict::Suppress("unreachable") };
    }
    match known.endpoints.iter().find(|endpoint| endpoint.channel == channel) {
        Some(endpoint) => Verdict::Send(Some(endpoint)),
        None => Verdict::Suppress("unreachable"),
    }
}

#[cfg(test)]
mod tests {
    use herald_core::people::{ChannelPreference, Person, User};

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
}
