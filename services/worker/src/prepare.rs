//! A section as the worker holds it, and the rendering of its messages.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use herald_core::{
    ids::{NotificationId, TenantId, claim_key},
    packed,
    people::Endpoint,
    policy::Policy,
    ports::channel::Content,
    record::{self, Actor, Channel, DeliveryBatch, InlineRecipient, Notification, Section, SectionSummary, State},
};
use herald_templates::{
    Message, PersonContext, Prepared, RenderError, Rendered, SharedContext, Template, TenantContext, UserContext,
};
use prost::Message as _;
use serde_json::Value;

use crate::{people::Known, receipts::End};

/// A record of deliveries that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("undecodable")]
pub(crate) struct Undecodable;

/// What its users have in common.
pub(crate) struct Head {
    pub id: NotificationId,
    pub tenant: TenantId,
    pub channel: Channel,
    pub notification: Notification,
    pub section: Section,
    /// Of all its instances, as its envelope has it.
    pub hash_sum: u64,
}

/// Some instances of a record: those of one section that are not finished and not of another chunk.
pub(crate) struct Chunk {
    pub head: Arc<Head>,
    /// Index of the section's first instance in the record.
    pub first: u32,
    /// Indexes in the section, in order.
    pub users: Vec<u32>,
}

/// Reads a record of deliveries; every section with the index of its first instance. Sections that are not those of
/// the envelope make it undecodable, since the envelope is what is booked.
pub(crate) fn decode_batch(body: Bytes, summaries: &[SectionSummary]) -> Result<Vec<(u32, Arc<Head>)>, Undecodable> {
    let batch = DeliveryBatch::decode(body).map_err(|_| Undecodable)?;
    let mut first = 0;
    let mut heads: Vec<(u32, Arc<Head>)> = Vec::with_capacity(batch.sections.len());
    if batch.sections.len() != summaries.len() {
        return Err(Undecodable);
    }
    for (section, summary) in batch.sections.into_iter().zip(summaries) {
        let notification = Notification::decode(section.notification.clone()).map_err(|_| Undecodable)?;
        let id = NotificationId::from_slice(&notification.id).ok_or(Undecodable)?;
        let channel = section.channel();
        let users = packed::unpack(&section.users).try_fold(0u32, |n, user| user.map(|_| n + 1));
        let inline_fits = section.inline.is_empty() || section.inline.len() == section.count as usize;
        let as_summed = section.count == summary.count && notification.id == summary.notification_id;
        if users != Ok(section.count) || channel == Channel::Unspecified || !inline_fits || !as_summed {
            return Err(Undecodable);
        }
        let count = section.count;
        // Neighbours are often of the same tenant; they share its id.
        let tenant = match heads.last() {
            Some((_, head)) if head.tenant.as_str() == notification.tenant => head.tenant.clone(),
            _ => TenantId::trusted(&notification.tenant),
        };
        heads.push((first, Arc::new(Head { id, tenant, channel, notification, section, hash_sum: summary.hash_sum })));
        first += count;
    }
    Ok(heads)
}

impl Head {
    /// The users in order. The column was checked when the section was read.
    pub(crate) fn users(&self) -> impl Iterator<Item = &str> {
        packed::unpack(&self.section.users).map_while(Result::ok)
    }

    /// The recipient that travels with the message, if any.
    pub(crate) fn inline(&self, index: usize) -> Option<&InlineRecipient> {
        self.section.inline.get(index)
    }
}

impl Head {
    /// The claim that a user's instance holds; `None` for notifications without a dedupe key.
    pub(crate) fn claim_of(&self, user: &str) -> Option<[u8; 16]> {
        let Notification { template_id, dedupe_key, .. } = &self.notification;
        let guarded = !dedupe_key.is_empty();
        guarded.then(|| claim_key(self.tenant.as_str(), template_id, user, self.channel, dedupe_key))
    }

    /// How instances end whose time is over.
    pub(crate) fn expiry(&self) -> End {
        let attempts = self.section.attempts;
        let state = if attempts == 0 { State::Suppressed } else { State::Dead };
        End::by_rule(state, "expired", attempts)
    }
}

/// An inline recipient as a person: what they asked for holds under their id, the rest travels with the message.
pub(crate) fn inline_known(inline: &InlineRecipient, stored: &Known) -> Known {
    let endpoints = inline.endpoints.iter().map(endpoint_of).collect();
    let attributes = serde_json::from_slice(&inline.attributes).unwrap_or(Value::Object(Default::default()));
    Known {
        registered: stored.registered,
        locale: Some(inline.locale.clone()).filter(|l| !l.is_empty()).or_else(|| stored.locale.clone()),
        time_zone: stored.time_zone.clone(),
        attributes,
        endpoints,
        preferences: stored.preferences.clone(),
    }
}

fn endpoint_of(endpoint: &record::Endpoint) -> Endpoint {
    Endpoint {
        channel: herald_core::ids::channel_name(endpoint.channel()).to_owned(),
        address: endpoint.address.clone(),
        kind: endpoint.kind.clone(),
        platform: endpoint.platform.clone(),
        app_version: endpoint.app_version.clone(),
        registered_ms: endpoint.registered_ms,
    }
}

/// Renders the messages of one section: what does not vary by user is resolved once a locale.
pub(crate) struct Renderer {
    template: Arc<Template>,
    channel: herald_templates::Channel,
    data: Value,
    actor: Option<(Actor, Value)>,
    tenant_id: String,
    tenant_name: String,
    variants: Vec<(Option<String>, Result<Prepared, RenderError>)>,
}

/// Why a section cannot be rendered at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoRenderer {
    /// The policy snapshot does not have the template's version (yet).
    Unknown,
    /// This binary refuses the template, or the record's data is not JSON.
    Refused(String),
}

impl Renderer {
    pub(crate) fn new(head: &Head, policy: &Policy) -> Result<Self, NoRenderer> {
        let notification = &head.notification;
        let version = policy
            .template(&head.tenant, &notification.template_id, Some(notification.template_version))
            .ok_or(NoRenderer::Unknown)?;
        let template = version.compiled().map_err(|cause| NoRenderer::Refused(cause.to_owned()))?.clone();
        let data = match notification.data.as_ref() {
            [] => Value::Object(Default::default()),
            data => serde_json::from_slice(data).map_err(|_| NoRenderer::Refused("data is not JSON".into()))?,
        };
        let actor = match head.section.actor.is_empty() {
            true => None,
            false => {
                let actor = Actor::decode(head.section.actor.clone())
                    .map_err(|_| NoRenderer::Refused("the actor cannot be read".into()))?;
                let attributes = serde_json::from_slice(&actor.attributes).unwrap_or(Value::Object(Default::default()));
                Some((actor, attributes))
            }
        };
        Ok(Self {
            template,
            channel: template_channel(head.channel),
            data,
            actor,
            tenant_id: head.tenant.as_str().to_owned(),
            tenant_name: policy.tenant(&head.tenant).map_or_else(String::new, |tenant| tenant.name.clone()),
            variants: Vec::new(),
        })
    }

    /// The template's category, which preferences name.
    pub(crate) fn category(&self) -> &str {
        self.template.category().unwrap_or_default()
    }

    /// How long a dedupe key guards a person.
    pub(crate) fn dedupe_window_ms(&self) -> u64 {
        self.template.dedupe_window().as_millis() as u64
    }

    /// Whether every user of the locale gets the same message.
    pub(crate) fn is_constant(&mut self, locale: Option<&str>) -> bool {
        let at = self.variant(locale);
        self.variants[at].1.as_ref().is_ok_and(Prepared::is_constant)
    }

    fn variant(&mut self, locale: Option<&str>) -> usize {
        if let Some(at) = self.variants.iter().position(|(known, _)| known.as_deref() == locale) {
            return at;
        }
        let shared = SharedContext {
            data: &self.data,
            actor: self.actor.as_ref().map(|(actor, attributes)| PersonContext {
                id: &actor.id,
                locale: Some(actor.locale.as_str()).filter(|l| !l.is_empty()),
                time_zone: Some(actor.time_zone.as_str()).filter(|z| !z.is_empty()),
                attributes,
            }),
            tenant: TenantContext { id: &self.tenant_id, name: &self.tenant_name },
        };
        let prepared = self.template.prepare(self.channel, locale, &shared);
        self.variants.push((locale.map(str::to_owned), prepared));
        self.variants.len() - 1
    }

    /// Renders for one person.
    pub(crate) fn render(
        &mut self,
        user: &str,
        known: &Known,
        unsubscribe_url: impl FnOnce() -> Option<String>,
        rendered: &mut Rendered,
    ) -> Result<Option<String>, RenderError> {
        let at = self.variant(known.locale.as_deref());
        let prepared = self.variants[at].1.as_ref().map_err(Clone::clone)?;
        let url = if self.channel == herald_templates::Channel::Email || prepared.uses_unsubscribe_url() {
            unsubscribe_url()
        } else {
            None
        };
        let context = UserContext {
            id: user,
            locale: known.locale.as_deref(),
            time_zone: known.time_zone.as_deref(),
            attributes: &known.attributes,
            unsubscribe_url: url.as_deref(),
        };
        prepared.render(&context, rendered)?;
        Ok(url)
    }
}

/// The rendered parts, for a provider. `None` for in-app, which has none.
pub(crate) fn content_of(rendered: &Rendered) -> Option<Content> {
    let owned = |part: Option<&str>| part.map(str::to_owned);
    match rendered.message()? {
        Message::InApp { .. } => None,
        Message::Email { subject, text, html } => Some(Content::Email {
            subject: subject.unwrap_or_default().to_owned(),
            text: owned(text),
            html: owned(html),
        }),
        Message::Push { title, body, data } => {
            Some(Content::Push { title: owned(title), body: owned(body), data: owned(data) })
        }
        Message::Webhook { body } => Some(Content::Webhook { body: body.unwrap_or_default().to_owned() }),
    }
}

fn template_channel(channel: Channel) -> herald_templates::Channel {
    match channel {
        Channel::Email => herald_templates::Channel::Email,
        Channel::Push => herald_templates::Channel::Push,
        Channel::Webhook => herald_templates::Channel::Webhook,
        Channel::InApp | Channel::Unspecified => herald_templates::Channel::InApp,
    }
}

/// Renderers of the notifications that were sent last: their sections come one after the other, one from each shard.
#[derive(Default)]
pub(crate) struct Renderers {
    policy: Arc<Policy>,
    by_section: HashMap<(NotificationId, Channel), Renderer>,
}

impl Renderers {
    const MAX: usize = 256;

    /// Takes the renderer of a section out, or makes one. It is to be put back.
    pub(crate) fn take(&mut self, head: &Head, policy: &Arc<Policy>) -> Result<Renderer, NoRenderer> {
        if !Arc::ptr_eq(&self.policy, policy) {
            self.by_section.clear();
            self.policy = policy.clone();
        }
        match self.by_section.remove(&(head.id, head.channel)) {
            Some(renderer) => Ok(renderer),
            None => Renderer::new(head, policy),
        }
    }

    pub(crate) fn put(&mut self, head: &Head, renderer: Renderer) {
        if self.by_section.len() >= Self::MAX {
            self.by_section.clear();
        }
        self.by_section.insert((head.id, head.channel), renderer);
    }
}
