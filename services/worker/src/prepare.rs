//! The rendering of a section's messages.

use std::sync::Arc;

use herald_core::{
    ids::NotificationId,
    policy::Policy,
    ports::channel::{Content, Unsubscribe},
    record::{Actor, Channel},
};
use herald_templates::{
    Message, PersonContext, Prepared, RenderError, Rendered, SharedContext, Template, TenantContext, UserContext,
};
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::Value;

use crate::{people::Known, recent::Recent, section::Head};

/// Renders the messages of one section: what does not vary by user is resolved once a locale.
pub(crate) struct Renderer {
    template: Arc<Template>,
    category: Arc<str>,
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
            category: template.category().unwrap_or_default().into(),
            template,
            channel: template_channel(head.channel),
            data,
            actor,
            tenant_id: head.tenant.as_str().to_owned(),
            tenant_name: policy.tenant(&head.tenant).map_or_else(String::new, |tenant| tenant.name.clone()),
            // Many have one, and a renderer is kept when its section is done.
            variants: Vec::with_capacity(1),
        })
    }

    /// The template's category, which preferences name; empty for none.
    pub(crate) fn category(&self) -> &Arc<str> {
        &self.category
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
        known: &Known,
        unsubscribe: Option<&Unsubscribe>,
        rendered: &mut Rendered,
    ) -> Result<(), RenderError> {
        let at = self.variant(known.locale.as_deref());
        let prepared = self.variants[at].1.as_ref().map_err(Clone::clone)?;
        let unsubscribe = unsubscribe.filter(|_| prepared.uses_unsubscribe_url());
        let url = unsubscribe.map(|unsubscribe| unsubscribe.url(&self.tenant_id, &known.id));
        let context = UserContext {
            id: &known.id,
            locale: known.locale.as_deref(),
            time_zone: known.time_zone.as_deref(),
            attributes: &known.attributes,
            unsubscribe_url: url.as_deref(),
        };
        prepared.render(&context, rendered)
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

/// Renderers of the notifications that were sent last: the sections of one come one after the other, some from each shard.
pub(crate) struct Renderers {
    policy: Arc<Policy>,
    recent: Recent<(NotificationId, Channel), Arc<Mutex<Renderer>>>,
}

impl Renderers {
    /// How many bytes of notifications are held parsed, about.
    const MAX_BYTES: usize = 32 << 20;

    /// What a renderer takes, and a byte of JSON once it is parsed, about.
    const OVERHEAD_BYTES: usize = 1_024;
    const BYTES_PER_JSON_BYTE: usize = 8;

    pub(crate) fn new() -> Self {
        Self { policy: Arc::default(), recent: Recent::new(Self::MAX_BYTES) }
    }

    /// The renderer of a section.
    pub(crate) fn of(&mut self, head: &Head, policy: &Arc<Policy>) -> Result<Arc<Mutex<Renderer>>, NoRenderer> {
        if !Arc::ptr_eq(&self.policy, policy) {
            self.recent.clear();
            self.policy = policy.clone();
        }
        let key = (head.id, head.channel);
        if let Some(renderer) = self.recent.get(&key) {
            return Ok(renderer);
        }
        let renderer = Arc::new(Mutex::new(Renderer::new(head, policy)?));
        let json_bytes = head.notification.data.len() + head.section.actor.len();
        let weight = json_bytes * Self::BYTES_PER_JSON_BYTE + Self::OVERHEAD_BYTES;
        self.recent.insert(key, weight, renderer.clone());
        Ok(renderer)
    }
}
