//! A person's row, and what it says.

use std::collections::BTreeMap;

use herald_core::{
    people::{ChannelPreference, Endpoint, Person, Preferences, QuietHours, QuietPolicy, User},
    ports::StoreError,
};
use scylla::{DeserializeRow, DeserializeValue, SerializeRow, SerializeValue};

use super::session::damaged;

/// What is stored of a person; everything is null for somebody who is not known.
#[derive(Debug, Clone, Default, PartialEq, SerializeRow, DeserializeRow)]
pub(super) struct PersonRow {
    /// Counts all changes; what is compared and set.
    pub(super) revision: Option<i64>,
    /// Null where the person is not registered.
    pub(super) version: Option<i64>,
    /// A JSON object; null for an empty one.
    pub(super) attributes: Option<String>,
    pub(super) locale: Option<String>,
    pub(super) time_zone: Option<String>,
    pub(super) endpoints: Option<Vec<EndpointValue>>,
    pub(super) created_ms: Option<i64>,
    pub(super) updated_ms: Option<i64>,
    pub(super) channels: Option<BTreeMap<String, ChannelPreferenceValue>>,
    pub(super) quiet: Option<QuietHoursValue>,
    /// Null where preferences were never set.
    pub(super) preferences_source: Option<String>,
    pub(super) preferences_ms: Option<i64>,
    /// Of the last erasure, until the log has forgotten the person.
    pub(super) erased_ms: Option<i64>,
    pub(super) erasure_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, SerializeValue, DeserializeValue)]
pub(super) struct EndpointValue {
    channel: String,
    address: String,
    kind: String,
    platform: String,
    app_version: String,
    registered_ms: i64,
}

#[derive(Debug, Clone, PartialEq, SerializeValue, DeserializeValue)]
pub(super) struct ChannelPreferenceValue {
    enabled: Option<bool>,
    categories: Option<BTreeMap<String, bool>>,
}

#[derive(Debug, Clone, PartialEq, SerializeValue, DeserializeValue)]
pub(super) struct QuietHoursValue {
    start_minute: i32,
    end_minute: i32,
    time_zone: Option<String>,
    policy: String,
}

const DROP: &str = "drop";
const DEFER: &str = "defer";

impl PersonRow {
    /// Replaces the profile.
    pub(super) fn set_profile(&mut self, user: User, now_ms: u64) -> Result<(), StoreError> {
        let now_ms = now_ms as i64;
        let known = self.endpoints.take().unwrap_or_default();
        let endpoint = |e: Endpoint| EndpointValue {
            registered_ms: known
                .iter()
                .find(|k| k.channel == e.channel && k.address == e.address)
                .map_or(now_ms, |k| k.registered_ms),
            channel: e.channel,
            address: e.address,
            kind: e.kind,
            platform: e.platform,
            app_version: e.app_version,
        };
        let attributes = serde_json::to_string(&user.attributes)
            .map_err(|e| StoreError::Unavailable(format!("attributes cannot be encoded: {e}")))?;
        self.endpoints = Some(user.endpoints.into_iter().map(endpoint).collect());
        self.attributes = (!user.attributes.is_empty()).then_some(attributes);
        (self.locale, self.time_zone) = (user.locale, user.time_zone);
        self.created_ms = self.version.map_or(Some(now_ms), |_| self.created_ms);
        self.updated_ms = Some(now_ms);
        self.version = Some(self.version.unwrap_or(0) + 1);
        Ok(())
    }

    /// Replaces the preferences.
    pub(super) fn set_preferences(&mut self, preferences: Preferences) {
        let channel =
            |p: ChannelPreference| ChannelPreferenceValue { enabled: p.enabled, categories: Some(p.categories) };
        self.channels = Some(preferences.channels.into_iter().map(|(name, p)| (name, channel(p))).collect());
        self.quiet = preferences.quiet_hours.map(|quiet| QuietHoursValue {
            start_minute: quiet.start_minute.into(),
            end_minute: quiet.end_minute.into(),
            time_zone: quiet.time_zone,
            policy: if quiet.policy == QuietPolicy::Drop { DROP } else { DEFER }.to_owned(),
        });
        self.preferences_source = Some(preferences.source);
        self.preferences_ms = Some(preferences.updated_ms as i64);
    }

    /// The row of somebody of whom only the erasure is known.
    pub(super) fn erased(revision: Option<i64>, erased_ms: u64, erasure_id: &str) -> Self {
        Self { revision, erased_ms: Some(erased_ms as i64), erasure_id: Some(erasure_id.to_owned()), ..Self::default() }
    }

    /// The person.
    pub(super) fn to_person(&self, user_id: &str) -> Result<Person, StoreError> {
        let user = self.version.map(|version| self.to_user(user_id, version)).transpose()?;
        Ok(Person { user, preferences: self.to_preferences(), erased_ms: self.erased_ms.unwrap_or_default() as u64 })
    }

    fn to_user(&self, user_id: &str, version: i64) -> Result<User, StoreError> {
        let attributes = match &self.attributes {
            Some(json) => serde_json::from_str(json)
                .map_err(|e| damaged(format!("attributes of a person cannot be read: {e}")))?,
            None => serde_json::Map::new(),
        };
        let endpoint = |e: &EndpointValue| Endpoint {
            channel: e.channel.clone(),
            address: e.address.clone(),
            kind: e.kind.clone(),
            platform: e.platform.clone(),
            app_version: e.app_version.clone(),
            registered_ms: e.registered_ms as u64,
        };
        Ok(User {
            user_id: user_id.to_owned(),
            attributes,
            locale: self.locale.clone(),
            time_zone: self.time_zone.clone(),
            endpoints: self.endpoints.iter().flatten().map(endpoint).collect(),
            version: version as u64,
            created_ms: self.created_ms.unwrap_or_default() as u64,
            updated_ms: self.updated_ms.unwrap_or_default() as u64,
        })
    }

    fn to_preferences(&self) -> Preferences {
        let channel = |p: &ChannelPreferenceValue| ChannelPreference {
            enabled: p.enabled,
            categories: p.categories.clone().unwrap_or_default(),
        };
        let quiet = |quiet: &QuietHoursValue| QuietHours {
            start_minute: quiet.start_minute as u16,
            end_minute: quiet.end_minute as u16,
            time_zone: quiet.time_zone.clone(),
            policy: if quiet.policy == DROP { QuietPolicy::Drop } else { QuietPolicy::Defer },
        };
        Preferences {
            channels: self.channels.iter().flatten().map(|(name, p)| (name.clone(), channel(p))).collect(),
            quiet_hours: self.quiet.as_ref().map(quiet),
            source: self.preferences_source.clone().unwrap_or_default(),
            updated_ms: self.preferences_ms.unwrap_or_default() as u64,
        }
    }
}
