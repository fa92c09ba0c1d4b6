//! Switches: what may be sent at all, set by operators while the system runs.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{channel_name, hash128},
    providers::Providers,
    record::Channel,
};

/// The most switches that there may be at a time.
pub const MAX_SWITCHES: usize = 1_000;

/// What a switch says, the milder first: of all that hold, the most severe wins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchState {
    /// Send.
    #[default]
    On,
    /// Send at a tenth of the rate, in batches of a tenth of the size.
    Slow,
    /// Send nothing now; what waits is kept.
    Hold,
    /// Send nothing; what comes is suppressed as `killed`.
    Off,
}

impl SwitchState {
    /// Every state, the milder first.
    pub const ALL: [Self; 4] = [Self::On, Self::Slow, Self::Hold, Self::Off];

    /// The state's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Slow => "slow",
            Self::Hold => "hold",
            Self::Off => "off",
        }
    }

    /// The state of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether messages wait for it to be lifted.
    pub fn makes_wait(self) -> bool {
        matches!(self, Self::Slow | Self::Hold)
    }

    /// Whether messages may be sent, slowly or not.
    pub fn sends(self) -> bool {
        self <= Self::Slow
    }
}

/// What a switch is about: all of its fields must fit. A scope without any field is about everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct SwitchScope {
    /// Of this tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// With this template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// On this channel, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// By this provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// In this region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

impl SwitchScope {
    fn fields(&self) -> [&Option<String>; 5] {
        [&self.tenant, &self.template, &self.channel, &self.provider, &self.region]
    }

    /// Whether it is about everything.
    pub fn is_all(&self) -> bool {
        self.fields().iter().all(|field| field.is_none())
    }

    /// Whether it is about this traffic. What is not known of the traffic fits no scope that names it.
    pub fn takes(&self, traffic: &Traffic<'_>) -> bool {
        let known =
            [Some(traffic.tenant), Some(traffic.template), traffic.channel, traffic.provider, Some(traffic.region)];
        let fits = |(field, known): (&Option<String>, Option<&str>)| field.is_none() || field.as_deref() == known;
        self.fields().into_iter().zip(known).all(fits)
    }

    /// The id of the switch of this scope: there is one, and setting it again replaces it.
    pub fn switch_id(&self) -> String {
        let mut parts: Vec<&[u8]> = vec![b"switch"];
        for field in self.fields() {
            parts.push(if field.is_some() { &[1] } else { &[0] });
            parts.push(field.as_deref().unwrap_or_default().as_bytes());
        }
        format!("sw_{:016x}", u128::from_be_bytes(hash128(&parts)) >> 64)
    }
}

/// A message, or what is known of one on its way.
#[derive(Debug, Clone, Copy)]
pub struct Traffic<'a> {
    /// Whose it is.
    pub tenant: &'a str,
    /// Its template.
    pub template: &'a str,
    /// Its channel, by name; `None` while it is not yet for a channel.
    pub channel: Option<&'a str>,
    /// Who delivers it; `None` where that is not yet known, and for in-app, which needs nobody.
    pub provider: Option<&'a str>,
    /// Where it is.
    pub region: &'a str,
}

/// A notification on its way, before or while it is sent on its channels.
#[derive(Debug, Clone, Copy)]
pub struct OnItsWay<'a> {
    /// Whose it is.
    pub tenant: &'a str,
    /// Its template.
    pub template: &'a str,
    /// Where it is.
    pub region: &'a str,
    /// Who delivers.
    pub providers: &'a Providers,
}

impl<'a> OnItsWay<'a> {
    /// As a whole, while nothing is known of its channels.
    pub fn as_a_whole(&self) -> Traffic<'a> {
        let Self { tenant, template, region, .. } = *self;
        Traffic { tenant, template, channel: None, provider: None, region }
    }

    /// Its messages on a channel by a provider; by nobody on in-app.
    pub fn by(&self, channel: Channel, provider: Option<&'a str>) -> Traffic<'a> {
        Traffic { channel: Some(channel_name(channel)), provider, ..self.as_a_whole() }
    }

    /// What holds on a channel: the mildest state of the providers that serve it, since what one of them must not send
    /// another may.
    pub fn on(&self, channel: Channel, switches: &Switches, now_ms: u64) -> SwitchState {
        let serving = self.providers.serving(channel, self.tenant);
        let states = serving.iter().map(|provider| switches.state(&self.by(channel, Some(&provider.name)), now_ms));
        states.min().unwrap_or_else(|| switches.state(&self.by(channel, None), now_ms))
    }

    /// What holds for it as a whole: the mildest state of its channels.
    pub fn state(&self, channels: impl Iterator<Item = Channel>, switches: &Switches, now_ms: u64) -> SwitchState {
        channels.map(|channel| self.on(channel, switches, now_ms)).min().unwrap_or_default()
    }
}

/// A switch as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchRow {
    /// What it is about.
    #[serde(default)]
    pub scope: SwitchScope,
    /// What it says.
    pub state: SwitchState,
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
    /// From then on it says nothing, in milliseconds since the epoch; `None` for never.
    #[serde(default)]
    pub expires_ms: Option<u64>,
    /// When it was set, in milliseconds since the epoch.
    #[serde(default)]
    pub set_ms: u64,
    /// Which operator's key set it.
    #[serde(default)]
    pub set_by: String,
}

impl SwitchRow {
    /// Whether its time is over.
    pub fn has_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms)
    }

    /// What it says now.
    pub fn state_at(&self, now_ms: u64) -> SwitchState {
        if self.has_expired(now_ms) { SwitchState::On } else { self.state }
    }
}

/// Every switch, by id.
#[derive(Debug, Clone, Default)]
pub struct Switches {
    by_id: BTreeMap<String, Arc<SwitchRow>>,
}

impl Switches {
    /// Sets a switch.
    pub fn set(&mut self, id: &str, row: SwitchRow) {
        self.by_id.insert(id.to_owned(), Arc::new(row));
    }

    /// Removes a switch.
    pub fn remove(&mut self, id: &str) {
        self.by_id.remove(id);
    }

    /// What holds for this traffic now: the most severe of all switches that are about it and have not expired.
    pub fn state(&self, traffic: &Traffic<'_>, now_ms: u64) -> SwitchState {
        let about = self.by_id.values().filter(|row| row.scope.takes(traffic));
        about.map(|row| row.state_at(now_ms)).max().unwrap_or_default()
    }

    /// Every switch that slows this traffic now, with its id.
    pub fn slowing<'a>(
        &'a self,
        traffic: &'a Traffic<'_>,
        now_ms: u64,
    ) -> impl Iterator<Item = (&'a str, &'a Arc<SwitchRow>)> {
        let slows = move |row: &SwitchRow| row.state_at(now_ms) == SwitchState::Slow && row.scope.takes(traffic);
        self.iter().filter(move |(_, row)| slows(row))
    }

    /// A switch by its id.
    pub fn get(&self, id: &str) -> Option<&Arc<SwitchRow>> {
        self.by_id.get(id)
    }

    /// Every switch, in the order of ids.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<SwitchRow>)> {
        self.by_id.iter().map(|(id, row)| (id.as_str(), row))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scope(fields: [Option<&str>; 5]) -> SwitchScope {
        let [tenant, template, channel, provider, region] = fields.map(|field| field.map(str::to_owned));
        SwitchScope { tenant, template, channel, provider, region }
    }

    fn row(scope: SwitchScope, state: SwitchState, expires_ms: Option<u64>) -> SwitchRow {
        SwitchRow { scope, state, reason: String::new(), expires_ms, set_ms: 0, set_by: String::new() }
    }

    fn mail<'a>(provider: Option<&'a str>) -> Traffic<'a> {
        Traffic { tenant: "acme", template: "comment", channel: Some("email"), provider, region: "eu" }
    }

    #[test]
    fn the_fields_of_a_scope_are_anded() {
        let fits = |fields, traffic: &Traffic<'_>| scope(fields).takes(traffic);
        let traffic = mail(Some("smtp"));
        for fields in [
            [None; 5],
            [Some("acme"), None, None, None, None],
            [None, Some("comment"), Some("email"), None, None],
            [Some("acme"), Some("comment"), Some("email"), Some("smtp"), Some("eu")],
        ] {
            assert!(fits(fields, &traffic), "{fields:?}");
        }
        for fields in [
            [Some("other"), None, None, None, None],
            [Some("acme"), Some("like"), None, None, None],
            [Some("acme"), None, Some("push"), None, None],
            [None, None, None, Some("other"), None],
            [Some("acme"), Some("comment"), Some("email"), Some("smtp"), Some("us")],
        ] {
            assert!(!fits(fields, &traffic), "{fields:?}");
        }
        // What is not known yet is not switched by what names it.
        assert!(!fits([None, None, None, Some("smtp"), None], &mail(None)));
        let page = Traffic { channel: None, provider: None, ..traffic };
        assert!(
            !fits([None, None, Some("email"), None, None], &page)
                && fits([Some("acme"), None, None, None, None], &page)
        );
    }

    #[test]
    fn an_expired_switch_says_nothing() {
        let mut switches = Switches::default();
        switches.set("a", row(scope([None; 5]), SwitchState::Off, Some(1_000)));
        switches.set("b", row(scope([None; 5]), SwitchState::Slow, None));
        let state = |now_ms| switches.state(&mail(None), now_ms);
        assert_eq!((state(999), state(1_000), state(1_001)), (SwitchState::Off, SwitchState::Slow, SwitchState::Slow));
    }

    #[test]
    fn each_scope_has_an_id_of_its_own_for_good() {
        let ids = [
            scope([None; 5]),
            scope([Some(""), None, None, None, None]),
            scope([Some("a"), None, None, None, None]),
            scope([None, Some("a"), None, None, None]),
            scope([Some("a"), Some("b"), None, None, None]),
            scope([Some("ab"), None, None, None, None]),
        ]
        .map(|scope| scope.switch_id());
        let distinct: std::collections::BTreeSet<&String> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
        assert_eq!(ids[0], scope([None; 5]).switch_id());
    }

    #[test]
    fn as_a_whole_it_may_go_while_one_channel_may() {
        let providers = Providers::configured([(Channel::Email, "smtp".to_owned())]);
        let way = OnItsWay { tenant: "acme", template: "comment", region: "eu", providers: &providers };
        let mut switches = Switches::default();
        let state = |switches: &Switches| way.state([Channel::InApp, Channel::Email].into_iter(), switches, 0);
        switches.set("a", row(scope([None, None, None, Some("smtp"), None]), SwitchState::Off, None));
        assert_eq!((state(&switches), way.on(Channel::Email, &switches, 0)), (SwitchState::On, SwitchState::Off));
        switches.set("b", row(scope([None, None, Some("in_app"), None, None]), SwitchState::Hold, None));
        assert_eq!(state(&switches), SwitchState::Hold);
        assert_eq!(way.state(std::iter::empty(), &switches, 0), SwitchState::On);
    }

    #[test]
    fn a_channel_may_go_while_one_of_its_providers_may() {
        let both = [(Channel::Email, "smtp".to_owned()), (Channel::Email, "spare".to_owned())];
        let providers = Providers::configured(both);
        let way = OnItsWay { tenant: "acme", template: "comment", region: "eu", providers: &providers };
        let mut switches = Switches::default();
        switches.set("a", row(scope([None, None, None, Some("smtp"), None]), SwitchState::Off, None));
        assert_eq!(way.on(Channel::Email, &switches, 0), SwitchState::On);
        switches.set("b", row(scope([None, None, None, Some("spare"), None]), SwitchState::Hold, None));
        assert_eq!(way.on(Channel::Email, &switches, 0), SwitchState::Hold);
    }

    fn field() -> impl Strategy<Value = Option<&'static str>> {
        prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))]
    }

    fn state() -> impl Strategy<Value = SwitchState> {
        (0..4usize).prop_map(|i| SwitchState::ALL[i])
    }

    proptest! {
        /// The state is the most severe of those that hold, whatever their order, and neither a milder nor an expired
        /// switch nor one about something else makes a difference.
        #[test]
        fn the_most_severe_wins(
            rows in proptest::collection::vec(([field(), field(), field(), field(), field()], state(), 0..4u64), 0..12),
            now_ms in 0..4u64,
        ) {
            let traffic = Traffic { tenant: "a", template: "a", channel: Some("a"), provider: Some("a"), region: "a" };
            let mut switches = Switches::default();
            let mut expected = SwitchState::On;
            for (i, (fields, state, expires_ms)) in rows.iter().enumerate() {
                switches.set(&i.to_string(), row(scope(*fields), *state, Some(*expires_ms)));
                if *expires_ms > now_ms && fields.iter().all(|field| field.is_none_or(|field| field == "a")) {
                    expected = expected.max(*state);
                }
            }
            prop_assert_eq!(switches.state(&traffic, now_ms), expected);
        }
    }
}
