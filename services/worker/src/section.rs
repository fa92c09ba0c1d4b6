//! A section as the worker holds it.

use std::sync::Arc;

use bytes::Bytes;
use herald_core::{
    ids::{ClaimKeys, NotificationId, TenantId},
    packed,
    people::Endpoint,
    record::{self, Channel, DeliveryBatch, InlineRecipient, Notification, Section, SectionSummary, State},
};
use prost::Message as _;
use serde_json::Value;

use crate::{people::Known, receipts::End, recent::Recent};

/// A record of deliveries that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("undecodable")]
pub(crate) struct Undecodable;

/// What its users have in common.
pub(crate) struct Head {
    pub id: NotificationId,
    pub tenant: TenantId,
    pub channel: Channel,
    pub notification: Arc<Notification>,
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

/// Notifications that were read last. The sections of one lie in a record of each shard, and hold the same bytes.
pub(crate) struct Notifications {
    recent: Recent<NotificationId, Read>,
}

#[derive(Clone)]
struct Read {
    encoded: Bytes,
    tenant: TenantId,
    notification: Arc<Notification>,
}

impl Notifications {
    /// How many bytes of notifications are remembered.
    const MAX_BYTES: usize = 16 << 20;

    /// What a remembered notification takes besides its bytes, about.
    const OVERHEAD_BYTES: usize = 512;

    pub(crate) fn new() -> Self {
        Self { recent: Recent::new(Self::MAX_BYTES) }
    }

    fn read(&mut self, encoded: &Bytes) -> Result<(NotificationId, Read), Undecodable> {
        // The id is the first field, and writers write fields in order; where it is not found, nothing is remembered.
        let id = encoded.strip_prefix(&[0x0a, 16]).and_then(|rest| NotificationId::from_slice(rest.get(..16)?));
        if let Some(id) = id
            && let Some(read) = self.recent.get(&id)
            && read.encoded == *encoded
        {
            return Ok((id, read));
        }
        let notification = Notification::decode(encoded.clone()).map_err(|_| Undecodable)?;
        let of_fields = NotificationId::from_slice(&notification.id).ok_or(Undecodable)?;
        let tenant = TenantId::trusted(&notification.tenant);
        // A copy, so that what is remembered does not hold its whole record.
        let read = Read { encoded: Bytes::copy_from_slice(encoded), tenant, notification: Arc::new(notification) };
        if id == Some(of_fields) {
            self.recent.insert(of_fields, encoded.len() * 2 + Self::OVERHEAD_BYTES, read.clone());
        }
        Ok((of_fields, read))
    }
}

/// Reads a record of deliveries; every section with the index of its first instance. Sections that are not those of
/// the envelope make it undecodable, since the envelope is what is booked.
pub(crate) fn decode_batch(
    body: Bytes,
    summaries: &[SectionSummary],
    notifications: &mut Notifications,
) -> Result<Vec<(u32, Arc<Head>)>, Undecodable> {
    let batch = DeliveryBatch::decode(body).map_err(|_| Undecodable)?;
    let mut first = 0;
    let mut heads: Vec<(u32, Arc<Head>)> = Vec::with_capacity(batch.sections.len());
    if batch.sections.len() != summaries.len() {
        return Err(Undecodable);
    }
    for (section, summary) in batch.sections.into_iter().zip(summaries) {
        let (id, Read { tenant, notification, .. }) = notifications.read(&section.notification)?;
        let channel = section.channel();
        let users = packed::unpack(&section.users).try_fold(0u32, |n, user| user.map(|_| n + 1));
        let inline_fits = section.inline.is_empty() || section.inline.len() == section.count as usize;
        let as_summed = section.count == summary.count && notification.id == summary.notification_id;
        if users != Ok(section.count) || channel == Channel::Unspecified || !inline_fits || !as_summed {
            return Err(Undecodable);
        }
        let count = section.count;
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

    /// The claims that its instances hold; `None` for notifications without a dedupe key.
    pub(crate) fn claim_keys(&self) -> Option<ClaimKeys> {
        let Notification { template_id, dedupe_key, .. } = &*self.notification;
        let guarded = !dedupe_key.is_empty();
        guarded.then(|| ClaimKeys::new(self.tenant.as_str(), template_id, self.channel, dedupe_key))
    }

    /// How instances end whose time is over.
    pub(crate) fn expiry(&self) -> End {
        let attempts = self.section.attempts;
        let state = if attempts == 0 { State::Suppressed } else { State::Dead };
        End::by_rule(state, "expired", attempts)
    }
}

impl Chunk {
    /// Its users, in order.
    pub(crate) fn users(&self) -> impl Iterator<Item = &str> {
        let mut wanted = self.users.iter().copied().peekable();
        self.head.users().enumerate().filter_map(move |(i, user)| wanted.next_if_eq(&(i as u32)).map(|_| user))
    }
}

/// An inline recipient as a person: what they asked for holds under their id, the rest travels with the message.
pub(crate) fn inline_known(inline: &InlineRecipient, stored: &Known) -> Known {
    let endpoints = inline.endpoints.iter().map(|endpoint| Arc::new(endpoint_of(endpoint))).collect();
    let attributes = serde_json::from_slice(&inline.attributes).unwrap_or(Value::Object(Default::default()));
    Known {
        id: stored.id.clone(),
        registered: stored.registered,
        locale: Some(inline.locale.clone()).filter(|l| !l.is_empty()).or_else(|| stored.locale.clone()),
        time_zone: stored.time_zone.clone(),
        attributes,
        endpoints,
        preferences: stored.preferences.clone(),
        erased_ms: stored.erased_ms,
        quiet_zone: stored.quiet_zone.clone(),
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
