//! What a simulation sends, and what must come of it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use herald_core::{
    ids::{NotificationId, TenantId, ordering_partition, user_hash},
    outputs::FEATURE_LEVEL,
    packed,
    people::{ChannelPreference, Endpoint, Preferences, User},
    policy::{TemplateHead, TemplateRow, TenantRow, kind, template_head_key, template_row_key},
    ports::{
        admissions::Admission,
        directory::{AudienceKey, Membership, PersonChange},
        log::{LogError, NewRecord},
    },
    record::{self, Channel, Envelope, Notification, Request, Schema, SectionSummary, audience::Kind},
    topic::{Lane, Topic, TopicPartition},
};
use herald_node::{backends::Backends, roles::Roles};
use prost::Message;

use crate::world::Chance;

const TEMPLATE: &str = r#"{"channels": {
    "in_app": {"title": "{{data.text}}", "body": "for {{user.id}}"},
    "email": {"subject": "{{data.text}}", "text": "{{actor.id}}"}
}, "category": "social"}"#;

/// A notification of the scenario.
#[derive(Debug, Clone)]
pub struct Planned {
    pub tenant: TenantId,
    pub number: usize,
    pub kind: Kind,
    pub actor: String,
    pub dedupe_key: String,
    pub idempotency_key: String,
    pub transactional: bool,
    pub pause_ms: u64,
    /// Users who must have an instance on each channel.
    pub recipients: BTreeSet<String>,
}

/// A notification that was handed over.
#[derive(Debug, Clone)]
pub struct Sent {
    pub id: NotificationId,
    pub planned: Planned,
    /// Whether a 202 would have been given.
    pub promised: bool,
}

/// Tenants, people and notifications.
pub struct Scenario {
    pub tenants: Vec<TenantId>,
    pub users: Vec<String>,
    /// Who does not want mail, in every tenant.
    pub opted_out: BTreeSet<String>,
    pub followers: BTreeMap<String, BTreeSet<String>>,
    pub planned: Vec<Planned>,
}

impl Scenario {
    pub fn of(chance: &Chance) -> Self {
        let tenants: Vec<TenantId> = (0..3 + chance.below(2)).map(|i| TenantId::trusted(&format!("t{i}"))).collect();
        let users: Vec<String> = (0..6 + chance.below(30)).map(|i| format!("u{i}")).collect();
        let opted_out = users.iter().filter(|_| chance.one_in(6)).cloned().collect();
        let mut followers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for followee in users.iter().take(4) {
            let some = users.iter().filter(|user| *user != followee && chance.one_in(2)).cloned().collect();
            followers.insert(followee.clone(), some);
        }
        let mut scenario = Self { tenants, users, opted_out, followers, planned: Vec::new() };
        scenario.planned = (0..25 + chance.below(40) as usize).map(|number| scenario.plan(number, chance)).collect();
        scenario
    }

    fn plan(&self, number: usize, chance: &Chance) -> Planned {
        let actor = self.users[chance.below(4) as usize].clone();
        let (kind, mut recipients): (Kind, BTreeSet<String>) = match chance.below(4) {
            0 => (Kind::FollowersOf(actor.clone()), self.followers[&actor].clone()),
            1 => (Kind::Everyone(true), self.users.iter().cloned().collect()),
            _ => {
                let mut listed: BTreeSet<String> = self.users.iter().filter(|_| chance.one_in(3)).cloned().collect();
                if chance.one_in(4) {
                    listed.insert("nobody".into());
                }
                (Kind::Users(user_list(&listed)), listed)
            }
        };
        recipients.remove(&actor);
        Planned {
            tenant: self.tenants[chance.below(self.tenants.len() as u64) as usize].clone(),
            number,
            kind,
            actor,
            dedupe_key: if chance.one_in(3) { format!("k{}", chance.below(3)) } else { String::new() },
            idempotency_key: if chance.one_in(4) { format!("call-{number}") } else { String::new() },
            transactional: chance.one_in(2),
            pause_ms: chance.below(40),
            recipients,
        }
    }

    /// Stores tenants, templates, people and edges.
    pub async fn set_up(&self, backends: &Backends, roles: &Roles, now_ms: u64) -> anyhow::Result<()> {
        for tenant in &self.tenants {
            let id = tenant.as_str().to_owned();
            let row = TenantRow { tenant_id: id.clone(), name: id.clone(), created_ms: now_ms, updated_ms: now_ms };
            let template = TemplateRow {
                tenant_id: id,
                template_id: "comment".into(),
                version: 1,
                source: serde_json::from_str(TEMPLATE)?,
                created_ms: now_ms,
            };
            let head = TemplateHead { live: Some(1), latest: 1, ..Default::default() };
            for (kind, key, value) in [
                (kind::TENANT, tenant.to_string(), serde_json::to_vec(&row)?),
                (kind::TEMPLATE, template_row_key(tenant, "comment", 1), serde_json::to_vec(&template)?),
                (kind::TEMPLATE_HEAD, template_head_key(tenant, "comment"), serde_json::to_vec(&head)?),
            ] {
                roles.publisher.put(kind, &key, Some(value.into()), 0).await.map_err(|e| anyhow::anyhow!("{e:?}"))?;
            }
            backends.directory.change(tenant, self.people(), now_ms).await?;
            let members = self.followers.iter().flat_map(|(followee, followers)| {
                followers
                    .iter()
                    .map(|user| Membership { audience: AudienceKey::FollowersOf(followee.clone()), user: user.clone() })
            });
            backends.directory.set_members(tenant, members.collect(), true).await?;
        }
        Ok(())
    }

    fn people(&self) -> Vec<PersonChange> {
        let mut changes = Vec::new();
        for user_id in &self.users {
            let address = format!("{user_id}@example.org");
            let endpoints = vec![Endpoint { channel: "email".into(), address, ..Default::default() }];
            let user = User { user_id: user_id.clone(), endpoints, ..Default::default() };
            changes.push(PersonChange::Profile { user, expect: None });
            if self.opted_out.contains(user_id) {
                let no_mail = ChannelPreference { enabled: Some(false), ..Default::default() };
                let preferences = Preferences { channels: [("email".into(), no_mail)].into(), ..Default::default() };
                changes.push(PersonChange::Preferences { user_id: user_id.clone(), preferences });
            }
        }
        changes
    }
}

fn user_list(users: &BTreeSet<String>) -> record::UserList {
    let mut users: Vec<&str> = users.iter().map(String::as_str).collect();
    users.sort_by_key(|user| (user_hash(user), *user));
    record::UserList { count: users.len() as u32, packed: packed::pack(users) }
}

/// The record of a notification.
pub fn request_record(planned: &Planned, id: NotificationId, backends: &Backends, now_ms: u64) -> NewRecord {
    let identity = backends.log.identity();
    let tenant = planned.tenant.as_str();
    let notification = Notification {
        id: Bytes::copy_from_slice(&id.0),
        tenant: tenant.into(),
        template_id: "comment".into(),
        template_version: 1,
        actor_id: planned.actor.clone(),
        dedupe_key: planned.dedupe_key.clone(),
        transactional: planned.transactional,
        accepted_ms: now_ms,
        expires_ms: now_ms + 86_400_000,
        data: serde_json::json!({"text": format!("n{}", planned.number)}).to_string().into(),
        ..Default::default()
    };
    let request = Request {
        notification: notification.encode_to_vec().into(),
        audience: Some(record::Audience { kind: Some(planned.kind.clone()) }),
        channels: vec![Channel::InApp as i32, Channel::Email as i32],
        exclude_actor: true,
        idempotency_key: planned.idempotency_key.clone(),
        ..Default::default()
    };
    let lane = if planned.transactional { Lane::Transactional } else { Lane::Bulk };
    let summary = SectionSummary { notification_id: notification.id.clone(), ..Default::default() };
    NewRecord {
        at: TopicPartition {
            topic: Topic::Requests(lane),
            partition: ordering_partition(tenant, &planned.actor, identity.layout.requests),
        },
        key: Bytes::new(),
        timestamp_ms: now_ms,
        envelope: Envelope {
            schema: Schema::Request as i32,
            feature_level: FEATURE_LEVEL,
            region: identity.region.clone(),
            tenant: tenant.into(),
            sections: vec![summary],
            ..Default::default()
        },
        body: request.encode_to_vec().into(),
    }
}

/// Hands a notification over as a gateway does; sometimes as two gateways do that both serve the same call.
pub async fn send(
    planned: &Planned,
    id: NotificationId,
    twice: bool,
    backends: &Backends,
    now_ms: u64,
) -> Result<(), LogError> {
    if !planned.idempotency_key.is_empty() {
        let admission = Admission {
            id,
            body_hash: [0; 16],
            first_use_ms: now_ms,
            running_since_ms: now_ms,
            answered: false,
            first_place: None,
        };
        let begun = backends.admissions.begin(&planned.tenant, &planned.idempotency_key, admission).await;
        begun.map_err(|error| LogError::Unavailable(error.to_string()))?;
    }
    let record = request_record(planned, id, backends, now_ms);
    if twice && !planned.idempotency_key.is_empty() {
        backends.log.append(vec![record.clone()]).await?;
    }
    backends.log.append(vec![record]).await.map(|_| ())
}
