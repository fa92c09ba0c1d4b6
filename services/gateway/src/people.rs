//! What callers say of people, checked, without IO.

use std::collections::BTreeMap;

use herald_core::{
    ids::{self, channel_of_name},
    people::{ChannelPreference, Endpoint, Preferences, QuietHours, QuietPolicy, User},
    problem::{FieldError, Problem},
    record::Channel,
};
use herald_proto::v1;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use crate::{config::NotificationLimits, data};

const MAX_ADDRESS_BYTES: usize = 4_096;
const MAX_MAIL_BYTES: usize = 320;
const MAX_FREE_TEXT_BYTES: usize = 128;
const MAX_CATEGORIES: usize = 100;
const PUSH_KINDS: [&str; 3] = ["apns", "fcm", "web_push"];

/// The profile in a `PUT`.
///
/// # Errors
/// 400, naming every field that is wrong.
pub fn check_profile(given: v1::PutUserRequest, limits: &NotificationLimits) -> Result<User, Problem> {
    let mut errors = Vec::new();
    if let Err(error) = ids::check_id("user_id", &given.user_id) {
        let code = if given.user_id.is_empty() { "required" } else { "invalid_value" };
        errors.push(FieldError::new("user_id", code, error.0));
    }
    if !given.clear.is_empty() {
        errors.push(FieldError::new("clear", "not_allowed", "A PUT replaces the whole profile."));
    }
    let attributes = check_attributes(given.attributes.as_ref(), limits, &mut errors);
    let (locale, time_zone) = (given.locale.unwrap_or_default(), given.time_zone.unwrap_or_default());
    check_locale("locale", &locale, &mut errors);
    check_time_zone("time_zone", &time_zone, &mut errors);
    let endpoints = check_endpoints("", given.endpoints, limits.max_endpoints, &mut errors);
    if !errors.is_empty() {
        return Err(Problem::malformed(errors));
    }
    Ok(User {
        user_id: given.user_id,
        attributes,
        locale: Some(locale).filter(|locale| !locale.is_empty()),
        time_zone: Some(time_zone).filter(|zone| !zone.is_empty()),
        endpoints,
        ..Default::default()
    })
}

/// A profile after a `PATCH`.
///
/// # Errors
/// 400, naming every field that is wrong.
pub fn merge_profile(
    stored: Option<&User>,
    patch: &v1::PutUserRequest,
    limits: &NotificationLimits,
) -> Result<User, Problem> {
    let mut errors = Vec::new();
    let unknown = |field: &&String| !["attributes", "locale", "time_zone", "endpoints"].contains(&field.as_str());
    if patch.clear.iter().any(|field| unknown(&field)) {
        let detail = "Fields to clear are attributes, locale, time_zone and endpoints.";
        errors.push(FieldError::new("clear", "invalid_value", detail));
    }
    // What is given passes the same checks as in a PUT.
    let given = check_profile(v1::PutUserRequest { clear: Vec::new(), ..patch.clone() }, limits);
    let given = given.unwrap_or_else(|problem| {
        errors.extend_from_slice(problem.errors());
        User::default()
    });
    let mut merged = stored.cloned().unwrap_or_default();
    merged.user_id.clone_from(&patch.user_id);
    for field in &patch.clear {
        match field.as_str() {
            "attributes" => merged.attributes.clear(),
            "locale" => merged.locale = None,
            "time_zone" => merged.time_zone = None,
            _ => merged.endpoints.clear(),
        }
    }
    merge_object(&mut merged.attributes, given.attributes);
    merged.locale = given.locale.or(merged.locale);
    merged.time_zone = given.time_zone.or(merged.time_zone);
    if !given.endpoints.is_empty() {
        merged.endpoints = given.endpoints;
    }
    let bytes = serde_json::to_vec(&merged.attributes).map_or(usize::MAX, |text| text.len());
    if bytes > limits.max_attributes_bytes {
        let detail = format!("Merged, they have {bytes} bytes; at most {} are allowed.", limits.max_attributes_bytes);
        errors.push(FieldError::new("attributes", "too_large", detail));
    }
    if errors.is_empty() { Ok(merged) } else { Err(Problem::malformed(errors)) }
}

/// Merges an object as RFC 7396 has it. How deep it goes was checked when it was read.
fn merge_object(merged: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (name, value) in patch {
        match value {
            Value::Null => {
                merged.remove(&name);
            }
            Value::Object(patch) => {
                let entry = merged.entry(name).or_insert(Value::Null);
                let mut object = match entry.take() {
                    Value::Object(object) => object,
                    _ => Map::new(),
                };
                merge_object(&mut object, patch);
                *entry = Value::Object(object);
            }
            value => {
                merged.insert(name, value);
            }
        }
    }
}

fn check_attributes(
    given: Option<&pbjson_types::Struct>,
    limits: &NotificationLimits,
    errors: &mut Vec<FieldError>,
) -> Map<String, Value> {
    let Some(given) = given else { return Map::new() };
    match data::to_json("attributes", given, limits.max_attributes_bytes) {
        // The text is our own.
        Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
        Err(error) => {
            errors.push(error);
            Map::new()
        }
    }
}

/// Checks endpoints; addresses are not repeated in errors.
pub fn check_endpoints(
    path: &str,
    given: Vec<v1::Endpoint>,
    max: usize,
    errors: &mut Vec<FieldError>,
) -> Vec<Endpoint> {
    let path = if path.is_empty() { "endpoints".to_owned() } else { format!("{path}.endpoints") };
    if given.len() > max {
        errors.push(FieldError::new(path, "too_many", format!("At most {max} endpoints are allowed.")));
        return Vec::new();
    }
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(given.len());
    for (i, endpoint) in given.into_iter().enumerate() {
        let endpoint = Endpoint {
            channel: endpoint.channel,
            address: endpoint.address,
            kind: endpoint.kind.unwrap_or_default(),
            platform: endpoint.platform.unwrap_or_default(),
            app_version: endpoint.app_version.unwrap_or_default(),
            registered_ms: 0,
        };
        if let Err((field, code, detail)) = check_endpoint(&endpoint) {
            errors.push(FieldError::new(format!("{path}[{i}].{field}"), code, detail));
        } else if endpoints.iter().any(|other| other.channel == endpoint.channel && other.address == endpoint.address) {
            errors.push(FieldError::new(format!("{path}[{i}]"), "duplicate", "The endpoint is there twice."));
        } else {
            endpoints.push(endpoint);
        }
    }
    endpoints
}

fn check_endpoint(endpoint: &Endpoint) -> Result<(), (&'static str, &'static str, &'static str)> {
    let channel = match channel_of_name(&endpoint.channel) {
        Some(Channel::InApp) => {
            return Err(("channel", "invalid_value", "In-app reaches every user without endpoint."));
        }
        Some(channel) => channel,
        None => return Err(("channel", "invalid_value", "Endpoints are on email, push or webhook.")),
    };
    let address = &endpoint.address;
    if address.is_empty() {
        return Err(("address", "required", "An address is required."));
    }
    if address.len() > MAX_ADDRESS_BYTES {
        return Err(("address", "too_long", "The address has more than 4,096 bytes."));
    }
    if address.chars().any(char::is_control) {
        return Err(("address", "invalid_value", "Control characters are not allowed."));
    }
    match channel {
        Channel::Email if !is_mail_address(address) => {
            return Err(("address", "invalid_value", "Expected one mail address, such as ada@example.org."));
        }
        Channel::Webhook if !address.starts_with("https://") && !address.starts_with("http://") => {
            return Err(("address", "invalid_value", "Expected an http or https URL."));
        }
        Channel::Push if !PUSH_KINDS.contains(&endpoint.kind.as_str()) => {
            return Err(("kind", "invalid_value", "Push endpoints are apns, fcm or web_push."));
        }
        _ => {}
    }
    for (field, text) in
        [("kind", &endpoint.kind), ("platform", &endpoint.platform), ("app_version", &endpoint.app_version)]
    {
        if text.len() > MAX_FREE_TEXT_BYTES {
            return Err((field, "too_long", "At most 128 bytes are allowed."));
        }
    }
    Ok(())
}

/// One address without a display name; what a server thinks of it is for sending to find out.
fn is_mail_address(address: &str) -> bool {
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let plain = |text: &str| !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || "<>,;:\\()[]".contains(c));
    address.len() <= MAX_MAIL_BYTES && plain(local) && plain(domain) && !local.contains('@')
}

/// Checks a language tag; empty is none.
pub fn check_locale(field: &str, locale: &str, errors: &mut Vec<FieldError>) {
    let subtag = |part: &str| (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric());
    if locale.is_empty() || (locale.len() <= 35 && locale.split(['-', '_']).all(subtag)) {
        return;
    }
    errors.push(FieldError::new(field, "invalid_value", "Expected a BCP 47 language tag, such as de or pt-BR."));
}

fn check_time_zone(field: &str, zone: &str, errors: &mut Vec<FieldError>) {
    if zone.is_empty() || (zone.len() <= 64 && TimeZone::get(zone).is_ok()) {
        return;
    }
    errors.push(FieldError::new(field, "invalid_value", "Expected an IANA time zone, such as Europe/Berlin."));
}

/// The preferences in a `PUT`, without source and time.
///
/// # Errors
/// 400, naming every field that is wrong.
pub fn check_preferences(given: v1::PutPreferencesRequest) -> Result<Preferences, Problem> {
    let mut errors = Vec::new();
    if let Err(error) = ids::check_id("user_id", &given.user_id) {
        errors.push(FieldError::new("user_id", "invalid_value", error.0));
    }
    let mut channels = BTreeMap::new();
    for (name, channel) in given.channels {
        if channel_of_name(&name).is_none() {
            let name: String = name.chars().take(64).collect();
            let detail = "The channels are in_app, email, push and webhook.";
            errors.push(FieldError::new(format!("channels.{name}"), "unknown_field", detail));
            continue;
        }
        let path = format!("channels.{name}.categories");
        if channel.categories.len() > MAX_CATEGORIES {
            let detail = format!("At most {MAX_CATEGORIES} categories are allowed.");
            errors.push(FieldError::new(path, "too_many", detail));
        } else if let Some(Err(error)) =
            channel.categories.keys().map(|category| ids::check_id("category", category)).find(Result::is_err)
        {
            errors.push(FieldError::new(path, "invalid_value", error.0));
        }
        channels.insert(name, ChannelPreference { enabled: channel.enabled, categories: channel.categories });
    }
    let quiet_hours = given.quiet_hours.and_then(|given| check_quiet_hours(given, &mut errors));
    if errors.is_empty() {
        Ok(Preferences { channels, quiet_hours, ..Default::default() })
    } else {
        Err(Problem::malformed(errors))
    }
}

fn check_quiet_hours(given: v1::QuietHours, errors: &mut Vec<FieldError>) -> Option<QuietHours> {
    let before = errors.len();
    let mut minute = |field: &str, text: &str| {
        minute_of_day(text).unwrap_or_else(|| {
            let detail = "Expected a local time of day as HH:MM, from 00:00 to 23:59.";
            errors.push(FieldError::new(format!("quiet_hours.{field}"), "invalid_value", detail));
            0
        })
    };
    let (start_minute, end_minute) = (minute("start", &given.start), minute("end", &given.end));
    let time_zone = given.time_zone.filter(|zone| !zone.is_empty());
    check_time_zone("quiet_hours.time_zone", time_zone.as_deref().unwrap_or_default(), errors);
    let policy = match given.policy.as_deref() {
        None | Some("" | "defer") => QuietPolicy::Defer,
        Some("drop") => QuietPolicy::Drop,
        Some(_) => {
            errors.push(FieldError::new("quiet_hours.policy", "invalid_value", "Policies are defer and drop."));
            QuietPolicy::Defer
        }
    };
    if errors.len() == before && start_minute == end_minute {
        let detail = "Quiet hours end at another time than they start; leave them away for none.";
        errors.push(FieldError::new("quiet_hours.end", "invalid_value", detail));
    }
    (errors.len() == before).then_some(QuietHours { start_minute, end_minute, time_zone, policy })
}

fn minute_of_day(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let two_digits = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
    if !two_digits(hours) || !two_digits(minutes) {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

/// A stored profile as a message.
pub fn user_message(user: User) -> v1::User {
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    v1::User {
        user_id: user.user_id,
        attributes: Some(data::to_struct(user.attributes)),
        locale: user.locale,
        time_zone: user.time_zone,
        endpoints: user
            .endpoints
            .into_iter()
            .map(|endpoint| v1::Endpoint {
                channel: endpoint.channel,
                address: endpoint.address,
                kind: text(endpoint.kind),
                platform: text(endpoint.platform),
                app_version: text(endpoint.app_version),
            })
            .collect(),
        version: u32::try_from(user.version).unwrap_or(u32::MAX),
        created_at: herald_api::time::some_timestamp(user.created_ms),
        updated_at: herald_api::time::some_timestamp(user.updated_ms),
    }
}

/// Stored preferences as a message.
pub fn preferences_message(user_id: String, preferences: Preferences) -> v1::Preferences {
    let time = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
    v1::Preferences {
        user_id,
        channels: preferences
            .channels
            .into_iter()
            .map(|(name, channel)| {
                (name, v1::ChannelPreference { enabled: channel.enabled, categories: channel.categories })
            })
            .collect(),
        quiet_hours: preferences.quiet_hours.map(|quiet| v1::QuietHours {
            start: time(quiet.start_minute),
            end: time(quiet.end_minute),
            time_zone: quiet.time_zone,
            policy: Some(if quiet.policy == QuietPolicy::Drop { "drop" } else { "defer" }.to_owned()),
        }),
        source: if preferences.source.is_empty() { "default".to_owned() } else { preferences.source },
        updated_at: herald_api::time::some_timestamp(preferences.updated_ms),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn put(body: Value) -> Result<User, Problem> {
        check_profile(serde_json::from_value(body).unwrap(), &NotificationLimits::default())
    }

    fn fields(problem: Problem) -> Vec<String> {
        problem.errors().iter().map(|error| error.field.clone()).collect()
    }

    #[test]
    fn a_bad_profile_is_refused_field_by_field() {
        let endpoint =
            |channel: &str, address: &str, kind: &str| json!({"channel": channel, "address": address, "kind": kind});
        let problem = put(json!({
            "user_id": "",
            "locale": "not a locale",
            "time_zone": "Mars/Olympus",
            "endpoints": [
                endpoint("email", "a@b", ""),
                endpoint("email", "a@b", ""),
                endpoint("email", "a@b@c d", ""),
                endpoint("email", "Ada <a@b>", ""),
                endpoint("push", "token", "sms"),
                endpoint("webhook", "ftp://x", ""),
                endpoint("in_app", "x", ""),
                endpoint("fax", "x", ""),
                endpoint("push", "", "fcm"),
                endpoint("email", "a\r\n@b", ""),
            ],
        }))
        .unwrap_err();
        let expected = [
            "user_id",
            "locale",
            "time_zone",
            "endpoints[1]",
            "endpoints[2].address",
            "endpoints[3].address",
            "endpoints[4].kind",
            "endpoints[5].address",
            "endpoints[6].channel",
            "endpoints[7].channel",
            "endpoints[8].address",
            "endpoints[9].address",
        ];
        assert_eq!(fields(problem), expected);
        assert!(put(json!({"user_id": "u", "locale": "pt-BR", "time_zone": "Europe/Berlin"})).is_ok());
    }

    #[test]
    fn a_patch_changes_what_it_names_and_nothing_else() {
        let stored = put(json!({
            "user_id": "u",
            "attributes": {"a": 1, "b": 2},
            "locale": "de",
            "endpoints": [{"channel": "email", "address": "a@b"}],
        }))
        .unwrap();
        let merge = |patch: Value| {
            let patch = serde_json::from_value(patch).unwrap();
            merge_profile(Some(&stored), &patch, &NotificationLimits::default())
        };
        let merged = merge(json!({"user_id": "u", "attributes": {"b": null, "c": 3}})).unwrap();
        assert_eq!(Value::Object(merged.attributes.clone()), json!({"a": 1, "c": 3}));
        assert_eq!((merged.locale.as_deref(), merged.endpoints.len()), (Some("de"), 1));
        let merged = merge(json!({"user_id": "u", "locale": "fr", "clear": ["endpoints", "attributes"]})).unwrap();
        assert_eq!((merged.locale.as_deref(), merged.endpoints.len(), merged.attributes.len()), (Some("fr"), 0, 0));
        assert_eq!(
            fields(merge(json!({"user_id": "u", "clear": ["version"], "locale": "?"})).unwrap_err()),
            ["clear", "locale"]
        );
    }

    #[test]
    fn preferences_come_back_or_are_refused_field_by_field() {
        let check = |body: Value| check_preferences(serde_json::from_value(body).unwrap());
        let body = json!({
            "user_id": "u",
            "channels": {"email": {"enabled": true, "categories": {"news": false}}},
            "quiet_hours": {"start": "22:00", "end": "07:30", "time_zone": "Europe/Berlin", "policy": "drop"},
        });
        let message = preferences_message("u".into(), check(body.clone()).unwrap());
        let back = serde_json::to_value(&message).unwrap();
        assert_eq!((&back["channels"], &back["quiet_hours"]), (&body["channels"], &body["quiet_hours"]));
        assert_eq!(back["source"], "default");
        let problem = check(json!({
            "user_id": "u",
            "channels": {"fax": {}},
            "quiet_hours": {"start": "24:00", "end": "7:30", "time_zone": "x", "policy": "y"},
        }))
        .unwrap_err();
        let expected =
            ["channels.fax", "quiet_hours.start", "quiet_hours.end", "quiet_hours.time_zone", "quiet_hours.policy"];
        assert_eq!(fields(problem), expected);
    }
}
