//! Admission, without IO: from what a caller sent to the record that goes on the log.

use std::collections::BTreeMap;

use bytes::Bytes;
use herald_api::time;
use herald_core::{
    ids::{self, NotificationId, TenantId, channel_name, channel_of_name, hash128, user_hash},
    packed::PackedWriter,
    policy::{Policy, TemplateVersion},
    ports::log::{Identity, NewRecord},
    problem::{FieldError, Kind, Problem},
    record::{self, Channel, Envelope, Schema, SectionSummary, audience},
    switches::{OnItsWay, SwitchState},
    templates::{self, Template},
    topic::{Lane, Topic, TopicPartition},
};
use herald_proto::v1;
use prost::Message;

use crate::{config::NotificationLimits, data, people};

/// What a notification is good for unless it says otherwise.
const DEFAULT_TTL_MS: u64 = 86_400_000;
/// The longest idempotency or dedupe key.
pub const MAX_KEY_BYTES: usize = 255;

/// A well-formed notification: what can be said without knowing any policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    template_id: String,
    template_version: Option<u32>,
    audience: record::Audience,
    channels: Vec<Channel>,
    actor_id: String,
    dedupe_key: String,
    lane: Lane,
    ttl_ms: u64,
    send_at_ms: u64,
    data: Bytes,
    metadata: BTreeMap<String, String>,
    exclude_actor: bool,
    override_preflight: bool,
    /// The call's idempotency key, if it has one.
    pub idempotency_key: Option<String>,
}

/// A notification that the policy admits: everything but its id.
#[derive(Debug, Clone, PartialEq)]
pub struct Admitted {
    notification: record::Notification,
    audience: record::Audience,
    channels: Vec<i32>,
    exclude_actor: bool,
    idempotency_key: String,
}

impl Draft {
    /// Checks the form of a notification.
    ///
    /// # Errors
    /// 400, naming every field that is wrong; 422 for an audience that is not offered yet.
    pub fn check(request: v1::NotifyRequest, limits: &NotificationLimits) -> Result<Self, Problem> {
        let mut errors = Vec::new();
        if let Err(error) = ids::check_id("template_id", &request.template_id) {
            let code = if request.template_id.is_empty() { "required" } else { "invalid_value" };
            errors.push(FieldError::new("template_id", code, error.0));
        }
        if request.template_version == Some(0) {
            errors.push(FieldError::new("template_version", "out_of_range", "Versions begin with 1."));
        }
        let audience = check_audience(request.audience, limits, &mut errors)?;
        let channels = check_channels(&request.channels, &mut errors);
        let actor_id = request.actor_id.unwrap_or_default();
        if !actor_id.is_empty() {
            check_id("actor_id", &actor_id, &mut errors);
        }
        let dedupe_key = request.dedupe_key.unwrap_or_default();
        if dedupe_key.len() > MAX_KEY_BYTES {
            errors.push(too_long("dedupe_key", MAX_KEY_BYTES));
        }
        let data = match &request.data {
            Some(object) => data::to_json("data", object, limits.max_data_bytes).unwrap_or_else(|error| {
                errors.push(error);
                Vec::new()
            }),
            None => b"{}".to_vec(),
        };
        check_metadata(&request.metadata, limits, &mut errors);
        let key = request.idempotency_key.as_deref().map(|key| check_idempotency_key("idempotency_key", key));
        errors.extend(key.and_then(Result::err));
        let lane = check_priority(request.priority.as_deref(), &mut errors);
        let ttl_ms = check_ttl(request.ttl.as_ref(), limits, &mut errors);
        let send_at_ms = check_send_at(request.send_at.as_ref(), &mut errors);
        if !errors.is_empty() {
            return Err(Problem::malformed(errors));
        }
        Ok(Self {
            template_id: request.template_id,
            template_version: request.template_version,
            audience,
            channels,
            actor_id,
            dedupe_key,
            lane,
            ttl_ms,
            send_at_ms,
            data: data.into(),
            metadata: request.metadata,
            exclude_actor: request.exclude_actor.unwrap_or(true),
            override_preflight: request.override_preflight.unwrap_or(false),
            idempotency_key: request.idempotency_key,
        })
    }

    /// Whether the caller wants to send although a preflight says no.
    pub fn overrides_preflight(&self) -> bool {
        self.override_preflight
    }

    /// The hash by which two calls under one idempotency key are told apart. The order of object keys and of listed
    /// users makes no difference.
    pub fn body_hash(&self) -> [u8; 16] {
        let channels: Vec<u8> = self.channels.iter().map(|channel| *channel as u8).collect();
        let flags = [self.lane as u8, self.exclude_actor.into(), self.override_preflight.into()];
        let audience = self.audience.encode_to_vec();
        let version = self.template_version.unwrap_or(0).to_be_bytes();
        let (ttl, send_at) = (self.ttl_ms.to_be_bytes(), self.send_at_ms.to_be_bytes());
        let mut parts: Vec<&[u8]> = vec![
            self.template_id.as_bytes(),
            &version,
            &audience,
            &channels,
            self.actor_id.as_bytes(),
            self.dedupe_key.as_bytes(),
            &flags,
            &ttl,
            &send_at,
            &self.data,
        ];
        parts.extend(self.metadata.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]));
        hash128(&parts)
    }

    /// Holds the notification against the tenant's templates and the channels that have a provider.
    ///
    /// # Errors
    /// 422, naming the rule; 400 for a `send_at` too far ahead.
    pub fn admit(
        self,
        policy: &Policy,
        tenant: &TenantId,
        limits: &NotificationLimits,
        now_ms: u64,
    ) -> Result<Admitted, Problem> {
        let version = find_template(policy, tenant, &self.template_id, self.template_version)?;
        let template = version.compiled().map_err(|reason| {
            Problem::refused("template_unusable", format!("This version cannot be used any more: {reason}"))
        })?;
        let is_served = |channel| channel == Channel::InApp || policy.providers().serve(channel, tenant.as_str());
        let channels = resolve_channels(template, &self.channels, is_served)?;
        if template.has_data_schema() {
            check_data(template, &self.data)?;
        }
        let send_at_ms = if self.send_at_ms > now_ms { self.send_at_ms } else { 0 };
        if send_at_ms > now_ms + limits.max_send_ahead_s * 1_000 {
            let detail = format!("At most {} days ahead.", limits.max_send_ahead_s / 86_400);
            return Err(Problem::field("send_at", "out_of_range", detail));
        }
        let notification = record::Notification {
            id: Bytes::new(),
            tenant: tenant.as_str().to_owned(),
            template_id: self.template_id,
            template_version: version.row.version,
            actor_id: self.actor_id,
            dedupe_key: self.dedupe_key,
            transactional: self.lane == Lane::Transactional,
            accepted_ms: now_ms,
            expires_ms: now_ms.max(send_at_ms) + self.ttl_ms,
            send_at_ms,
            data: self.data,
            metadata: self.metadata,
            trace_parent: String::new(),
        };
        Ok(Admitted {
            notification,
            audience: self.audience,
            channels,
            exclude_actor: self.exclude_actor,
            idempotency_key: self.idempotency_key.unwrap_or_default(),
        })
    }
}

impl Admitted {
    /// Refuses what no channel may send now. What one channel must not send another may; for the first it is accounted
    /// for where it would have been sent.
    ///
    /// # Errors
    /// 422 `switched_off`.
    pub fn check_switches(&self, policy: &Policy, region: &str, now_ms: u64) -> Result<(), Problem> {
        if policy.switches().is_empty() {
            return Ok(());
        }
        let record::Notification { tenant, template_id, .. } = &self.notification;
        let providers = policy.providers();
        let way = OnItsWay { tenant, template: template_id, region, providers };
        let channels = self.channels.iter().filter_map(|channel| Channel::try_from(*channel).ok());
        if way.state(channels, policy.switches(), now_ms) == SwitchState::Off {
            let detail = "An operator has switched this off, on every channel that is left.";
            return Err(Problem::refused("switched_off", detail));
        }
        Ok(())
    }

    /// The record that goes on the log.
    pub fn record(self, id: NotificationId, trace_parent: String, log: &Identity) -> NewRecord {
        let mut notification = self.notification;
        notification.id = Bytes::copy_from_slice(&id.0);
        notification.trace_parent = trace_parent;
        let tenant = notification.tenant.as_str();
        let partition = if notification.actor_id.is_empty() {
            (id.hash() % u64::from(log.layout.requests.max(1))) as u32
        } else {
            ids::ordering_partition(tenant, &notification.actor_id, log.layout.requests)
        };
        let lane = if notification.transactional { Lane::Transactional } else { Lane::Bulk };
        // Were the body unreadable, the request could still be closed from its envelope.
        let summary = SectionSummary {
            tenant: tenant.to_owned(),
            notification_id: notification.id.clone(),
            ..Default::default()
        };
        let timestamp_ms = notification.accepted_ms;
        let request = record::Request {
            notification: notification.encode_to_vec().into(),
            audience: Some(self.audience),
            channels: self.channels,
            exclude_actor: self.exclude_actor,
            idempotency_key: self.idempotency_key,
            cursor: None,
            expanded: 0,
        };
        let envelope = Envelope {
            schema: Schema::Request as i32,
            region: log.region.clone(),
            tenant: notification.tenant,
            trace_parent: notification.trace_parent,
            sections: vec![summary],
            ..Default::default()
        };
        NewRecord {
            at: TopicPartition { topic: Topic::Requests(lane), partition },
            key: Bytes::new(),
            timestamp_ms,
            envelope,
            body: request.encode_to_vec().into(),
        }
    }
}

fn check_id(field: &str, id: &str, errors: &mut Vec<FieldError>) {
    if let Err(error) = ids::check_id(field, id) {
        errors.push(FieldError::new(field, if id.is_empty() { "empty" } else { "invalid_value" }, error.0));
    }
}

fn too_long(field: &str, max_bytes: usize) -> FieldError {
    FieldError::new(field, "too_long", format!("At most {max_bytes} bytes are allowed."))
}

fn check_audience(
    given: Option<v1::Audience>,
    limits: &NotificationLimits,
    errors: &mut Vec<FieldError>,
) -> Result<record::Audience, Problem> {
    let given = given.unwrap_or_default();
    let kinds = usize::from(!given.users.is_empty())
        + usize::from(!given.inline.is_empty())
        + usize::from(given.followers_of.is_some())
        + usize::from(given.topic.is_some())
        + usize::from(given.segment.is_some())
        + usize::from(given.everyone.is_some());
    if kinds != 1 {
        let code = if kinds == 0 { "required" } else { "ambiguous" };
        let detail = "Set exactly one of users, inline, followers_of, topic, segment and everyone, and not to nothing.";
        errors.push(FieldError::new("audience", code, detail));
        return Ok(record::Audience::default());
    }
    let kind = if !given.users.is_empty() {
        audience::Kind::Users(check_users(given.users, limits, errors))
    } else if !given.inline.is_empty() {
        audience::Kind::Inline(check_inline(given.inline, limits, errors))
    } else if let Some(user) = given.followers_of {
        check_id("audience.followers_of", &user, errors);
        audience::Kind::FollowersOf(user)
    } else if let Some(topic) = given.topic {
        check_id("audience.topic", &topic, errors);
        audience::Kind::Topic(topic)
    } else if given.segment.is_some() {
        let detail = "Segments are not offered yet; list users, or use a topic.";
        let fields = vec![FieldError::new("audience.segment", "segment_not_supported", detail)];
        return Err(Problem::refused("segment_not_supported", detail).with_errors(fields));
    } else {
        if given.everyone == Some(false) {
            errors.push(FieldError::new("audience.everyone", "invalid_value", "Set it to true, or another field."));
        }
        audience::Kind::Everyone(true)
    };
    Ok(record::Audience { kind: Some(kind) })
}

/// Sorted by (hash, id), each once.
fn check_users(users: Vec<String>, limits: &NotificationLimits, errors: &mut Vec<FieldError>) -> record::UserList {
    if users.len() > limits.max_users {
        let detail = format!("{} users are listed; at most {} are allowed.", users.len(), limits.max_users);
        errors.push(FieldError::new("audience.users", "too_many", detail));
        return record::UserList::default();
    }
    for (i, user) in users.iter().enumerate() {
        if ids::check_id("user id", user).is_err() {
            check_id(&format!("audience.users[{i}]"), user, errors);
            return record::UserList::default();
        }
    }
    let mut sorted: Vec<(u64, &str)> = users.iter().map(|user| (user_hash(user), user.as_str())).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let mut column = PackedWriter::default();
    sorted.into_iter().for_each(|(_, user)| column.push(user));
    record::UserList { count: column.count(), packed: column.finish() }
}

fn check_inline(
    recipients: Vec<v1::InlineRecipient>,
    limits: &NotificationLimits,
    errors: &mut Vec<FieldError>,
) -> record::InlineList {
    if recipients.len() > limits.max_inline {
        let detail = format!("{} recipients are given; at most {} are allowed.", recipients.len(), limits.max_inline);
        errors.push(FieldError::new("audience.inline", "too_many", detail));
        return record::InlineList::default();
    }
    let mut sorted: BTreeMap<(u64, String), record::InlineRecipient> = BTreeMap::new();
    for (i, recipient) in recipients.into_iter().enumerate() {
        let path = format!("audience.inline[{i}]");
        let before = errors.len();
        let recipient = inline_recipient(&path, recipient, limits, errors);
        if errors.len() > before {
            // One recipient's errors are enough to mend a call.
            return record::InlineList::default();
        }
        let key = (user_hash(&recipient.user_id), recipient.user_id.clone());
        sorted.entry(key).or_insert(recipient);
    }
    record::InlineList { recipients: sorted.into_values().collect() }
}

fn inline_recipient(
    path: &str,
    given: v1::InlineRecipient,
    limits: &NotificationLimits,
    errors: &mut Vec<FieldError>,
) -> record::InlineRecipient {
    let endpoints = people::check_endpoints(path, given.endpoints, limits.max_endpoints, errors);
    let user_id = match given.user_id {
        Some(user_id) => {
            check_id(&format!("{path}.user_id"), &user_id, errors);
            user_id
        }
        None => match endpoints.first() {
            Some(first) => inline_id(&first.address),
            None => {
                let detail = "Give a user_id, or an endpoint to make one from.";
                errors.push(FieldError::new(path, "required", detail));
                String::new()
            }
        },
    };
    let attributes = match &given.attributes {
        Some(object) => data::to_json(&format!("{path}.attributes"), object, limits.max_attributes_bytes),
        None => Ok(Vec::new()),
    };
    let attributes = attributes.unwrap_or_else(|error| {
        errors.push(error);
        Vec::new()
    });
    let locale = given.locale.unwrap_or_default();
    people::check_locale(&format!("{path}.locale"), &locale, errors);
    let endpoints = endpoints
        .into_iter()
        .map(|endpoint| record::Endpoint {
            channel: channel_of_name(&endpoint.channel).unwrap_or(Channel::Unspecified) as i32,
            address: endpoint.address,
            kind: endpoint.kind,
            platform: endpoint.platform,
            app_version: endpoint.app_version,
            registered_ms: 0,
        })
        .collect();
    record::InlineRecipient { user_id, endpoints, locale, attributes: attributes.into() }
}

/// The id of a recipient without one: opt-outs hold under it whenever the same address comes again.
pub fn inline_id(address: &str) -> String {
    let hash = hash128(&[b"inline", address.trim().to_lowercase().as_bytes()]);
    format!("inline:{:032x}", u128::from_be_bytes(hash))
}

fn check_channels(names: &[String], errors: &mut Vec<FieldError>) -> Vec<Channel> {
    let mut channels = Vec::with_capacity(names.len());
    for (i, name) in names.iter().enumerate() {
        match channel_of_name(name) {
            Some(channel) if !channels.contains(&channel) => channels.push(channel),
            Some(_) => {
                errors.push(FieldError::new(format!("channels[{i}]"), "duplicate", "The channel is there twice."));
            }
            None => {
                let detail = "The channels are in_app, email, push and webhook.";
                errors.push(FieldError::new(format!("channels[{i}]"), "invalid_value", detail));
            }
        }
        if errors.len() > 10 {
            break;
        }
    }
    channels.sort_unstable();
    channels
}

fn check_metadata(metadata: &BTreeMap<String, String>, limits: &NotificationLimits, errors: &mut Vec<FieldError>) {
    if metadata.len() > limits.max_metadata {
        let detail = format!("At most {} entries are allowed.", limits.max_metadata);
        errors.push(FieldError::new("metadata", "too_many", detail));
        return;
    }
    for (name, value) in metadata {
        if name.is_empty() || name.len() > limits.max_metadata_bytes || value.len() > limits.max_metadata_bytes {
            let name: String = name.chars().take(64).collect();
            let detail = format!("Names and values have 1 and 0 to {} bytes.", limits.max_metadata_bytes);
            errors.push(FieldError::new(format!("metadata.{name}"), "too_long", detail));
            return;
        }
    }
}

/// Checks an idempotency key, in the field or the header of this name.
///
/// # Errors
/// Where it is empty, too long, or has other characters than printable ASCII.
pub fn check_idempotency_key(field: &str, key: &str) -> Result<(), FieldError> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES || !key.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        let detail = "An idempotency key has 1 to 255 printable ASCII characters, such as comment-17.";
        return Err(FieldError::new(field, "invalid_value", detail));
    }
    Ok(())
}

fn check_priority(priority: Option<&str>, errors: &mut Vec<FieldError>) -> Lane {
    match priority {
        None | Some("bulk") => Lane::Bulk,
        Some("transactional") => Lane::Transactional,
        Some(_) => {
            errors.push(FieldError::new("priority", "invalid_value", "Priorities are transactional and bulk."));
            Lane::Bulk
        }
    }
}

fn check_ttl(ttl: Option<&pbjson_types::Duration>, limits: &NotificationLimits, errors: &mut Vec<FieldError>) -> u64 {
    let Some(ttl) = ttl else { return DEFAULT_TTL_MS };
    match time::duration_ms(ttl) {
        Some(ms) if ms > 0 && ms <= limits.max_ttl_s * 1_000 => ms,
        _ => {
            let detail = format!("A ttl is more than 0s and at most {}s.", limits.max_ttl_s);
            errors.push(FieldError::new("ttl", "out_of_range", detail));
            0
        }
    }
}

fn check_send_at(send_at: Option<&pbjson_types::Timestamp>, errors: &mut Vec<FieldError>) -> u64 {
    let Some(send_at) = send_at else { return 0 };
    time::millis(send_at).unwrap_or_else(|| {
        errors.push(FieldError::new("send_at", "out_of_range", "The time is before 1970 or after 9999."));
        0
    })
}

fn find_template<'p>(
    policy: &'p Policy,
    tenant: &TenantId,
    template_id: &str,
    version: Option<u32>,
) -> Result<&'p TemplateVersion, Problem> {
    if let Some(found) = policy.template(tenant, template_id, version) {
        return Ok(found);
    }
    let (code, field, detail) = match (policy.template_head(tenant, template_id), version) {
        (None, _) => ("unknown_template", "template_id", "There is no such template."),
        (Some(_), Some(_)) => ("unknown_template_version", "template_version", "The template has no such version."),
        (Some(_), None) => ("template_not_published", "template_id", "The template has no live version; publish one."),
    };
    Err(Problem::refused(code, detail).with_errors(vec![FieldError::new(field, code, detail)]))
}

/// The channels to send on: those asked for, which the template must offer, or all of the template's that have a
/// provider.
fn resolve_channels(
    template: &Template,
    asked: &[Channel],
    is_served: impl Fn(Channel) -> bool,
) -> Result<Vec<i32>, Problem> {
    let offered: Vec<Channel> = template.channels().map(of_template).collect();
    let refuse = |code: &'static str, channel: Option<Channel>, detail: String| {
        let field = match channel.and_then(|channel| asked.iter().position(|asked| *asked == channel)) {
            Some(_) => "channels",
            None => "template_id",
        };
        let problem = Problem::refused(code, detail.clone());
        Err(problem.with_errors(vec![FieldError::new(field, code, detail)]))
    };
    for channel in asked {
        let name = channel_name(*channel);
        if !offered.contains(channel) {
            return refuse("channel_not_in_template", Some(*channel), format!("The template says nothing for {name}."));
        }
        if !is_served(*channel) {
            return refuse("channel_not_configured", Some(*channel), format!("No provider is set up for {name}."));
        }
    }
    let chosen = if asked.is_empty() { &offered } else { asked };
    let usable: Vec<i32> =
        chosen.iter().filter(|channel| is_served(**channel)).map(|channel| *channel as i32).collect();
    if usable.is_empty() {
        let names: Vec<&str> = offered.iter().map(|channel| channel_name(*channel)).collect();
        let detail = format!("No provider is set up for any channel of the template ({}).", names.join(", "));
        return refuse("channel_not_configured", None, detail);
    }
    Ok(usable)
}

fn of_template(channel: templates::Channel) -> Channel {
    match channel {
        templates::Channel::InApp => Channel::InApp,
        templates::Channel::Email => Channel::Email,
        templates::Channel::Push => Channel::Push,
        templates::Channel::Webhook => Channel::Webhook,
    }
}

fn check_data(template: &Template, data: &[u8]) -> Result<(), Problem> {
    // The text is our own, from `data::to_json`.
    let data: serde_json::Value = serde_json::from_slice(data)
        .map_err(|_| Problem::new(Kind::Internal, "internal", "The data cannot be read back."))?;
    template.check_data(&data).map_err(|errors| {
        let fields: Vec<FieldError> = errors
            .into_iter()
            .map(|error| FieldError::new(format!("/data{}", error.pointer), "data_schema", error.detail))
            .collect();
        let places: Vec<&str> = fields.iter().map(|field| field.field.as_str()).collect();
        let detail = format!("`data` does not fit the template's data_schema at {}.", places.join(", "));
        Problem::refused("data_invalid", detail).with_errors(fields)
    })
}
