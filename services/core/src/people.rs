//! People: profiles, endpoints and preferences.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where a person can be reached on a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Name of the channel.
    pub channel: String,
    /// Mail address, device token or URL.
    pub address: String,
    /// For push: `apns`, `fcm` or `web_push`.
    #[serde(default)]
    pub kind: String,
    /// Platform, free text.
    #[serde(default)]
    pub platform: String,
    /// Version of the app, free text.
    #[serde(default)]
    pub app_version: String,
    /// When the endpoint was first stored, in milliseconds since the epoch.
    #[serde(default)]
    pub registered_ms: u64,
}

/// A registered person.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct User {
    /// The id that the tenant gave.
    pub user_id: String,
    /// Free attributes for templates and segments.
    pub attributes: serde_json::Map<String, serde_json::Value>,
    /// BCP 47 language tag.
    pub locale: Option<String>,
    /// IANA time zone.
    pub time_zone: Option<String>,
    /// Where the person can be reached; in-app needs none.
    pub endpoints: Vec<Endpoint>,
    /// Counts the changes, from 1.
    pub version: u64,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
    /// Milliseconds since the epoch.
    pub updated_ms: u64,
}

/// What a person wants on one channel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelPreference {
    /// `Some(false)` is an opt-out of the channel.
    pub enabled: Option<bool>,
    /// `false` is an opt-out of that category on this channel.
    #[serde(default)]
    pub categories: BTreeMap<String, bool>,
}

impl ChannelPreference {
    /// Whether messages of the category may be sent.
    pub fn allows(&self, category: &str) -> bool {
        self.enabled != Some(false) && self.categories.get(category) != Some(&false)
    }
}

/// What happens to a message that meets quiet hours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuietPolicy {
    /// It waits until they end.
    #[default]
    Defer,
    /// It is suppressed.
    Drop,
}

/// A daily span of local time in which nothing is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuietHours {
    /// Minutes after midnight, local time.
    pub start_minute: u16,
    /// Minutes after midnight; before `start_minute` where the span passes midnight.
    pub end_minute: u16,
    /// IANA time zone; the user's unless set.
    pub time_zone: Option<String>,
    /// What happens to messages.
    pub policy: QuietPolicy,
}

/// What a person wants. They may be stored for somebody who is not registered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preferences {
    /// By name of the channel.
    pub channels: BTreeMap<String, ChannelPreference>,
    /// When to be quiet.
    pub quiet_hours: Option<QuietHours>,
    /// Who set them: `api`, `user`, `unsubscribe`; empty when never set.
    pub source: String,
    /// Milliseconds since the epoch.
    pub updated_ms: u64,
}

/// What is stored of a person.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Person {
    /// `None` where only preferences are stored.
    pub user: Option<User>,
    /// Default preferences where none are stored.
    pub preferences: Preferences,
    /// When the person was erased, in milliseconds since the epoch; 0 for never, or when the log has forgotten them. What
    /// was accepted until then is not sent, also where somebody is registered under the id again.
    pub erased_ms: u64,
}
