//! A request's row: as it was admitted, and its books.

use std::collections::{BTreeMap, BTreeSet};

use herald_core::{
    books::{Cancel, ChannelTotals, Tally, Totals},
    ids::{NotificationId, TenantId},
    ports::ledger::{AdmittedRow, RequestRow},
};
use scylla::{DeserializeRow, DeserializeValue, SerializeRow, SerializeValue};

/// The timestamp of what was admitted at the epoch. It lies in the past, since servers refuse later ones.
const ADMITTED_FIRST: i64 = 1_000_000_000_000_000;

/// What is stored of a request. Either half may be null.
#[derive(DeserializeRow)]
pub(super) struct StoredRequest {
    admitted_tenant: Option<String>,
    template_id: Option<String>,
    template_version: Option<i32>,
    accepted_ms: Option<i64>,
    send_at_ms: Option<i64>,
    expires_ms: Option<i64>,
    dedupe_key: Option<String>,
    tenant: Option<String>,
    channels: Option<BTreeMap<i32, ChannelTotalsValue>>,
    recipients: Option<i64>,
    complete: Option<bool>,
    applied: Option<i64>,
    updated_ms: Option<i64>,
    cancel: Option<CancelValue>,
    /// The ranges of the log in which it has receipts.
    pub(super) ranges: Option<BTreeSet<i32>>,
}

/// The columns of [`StoredRequest`].
pub(super) const COLUMNS: &str = "admitted_tenant, template_id, template_version, accepted_ms, send_at_ms, expires_ms, \
     dedupe_key, tenant, channels, recipients, complete, applied, updated_ms, cancel, ranges";

#[derive(SerializeValue, DeserializeValue)]
struct ChannelTotalsValue {
    created: i64,
    created_hash_sum: i64,
    ended: i64,
    ended_hash_sum: i64,
    delivered: i64,
    suppressed: Option<BTreeMap<String, i64>>,
    failed: i64,
    dead: i64,
    unconfirmed: i64,
    unconfirmed_hash_sum: i64,
}

#[derive(SerializeValue, DeserializeValue)]
struct CancelValue {
    requests: Option<BTreeSet<i32>>,
    shards: Option<BTreeSet<i32>>,
    closed: bool,
}

impl StoredRequest {
    /// The request, if a tenant has it.
    pub(super) fn of_tenant(self, id: NotificationId, tenant: &TenantId) -> Option<RequestRow> {
        let (admitted, totals) = (self.admitted(id), self.totals());
        let row = RequestRow {
            admitted: admitted.filter(|admitted| admitted.tenant == *tenant),
            totals: totals.filter(|totals| totals.tenant == *tenant),
        };
        (row.admitted.is_some() || row.totals.is_some()).then_some(row)
    }

    fn admitted(&self, id: NotificationId) -> Option<AdmittedRow> {
        Some(AdmittedRow {
            id,
            tenant: TenantId::trusted(self.admitted_tenant.as_ref()?),
            template_id: self.template_id.clone()?,
            template_version: self.template_version? as u32,
            accepted_ms: self.accepted_ms? as u64,
            send_at_ms: self.send_at_ms? as u64,
            expires_ms: self.expires_ms? as u64,
            dedupe_key: self.dedupe_key.clone()?,
        })
    }

    /// Its books.
    pub(super) fn totals(self) -> Option<Totals> {
        Some(Totals {
            tenant: TenantId::trusted(self.tenant.as_ref()?),
            channels: self.channels?.into_iter().map(|(channel, value)| (channel, to_channel(value))).collect(),
            recipients: self.recipients? as u64,
            complete: self.complete?,
            applied: self.applied? as u64,
            updated_ms: self.updated_ms? as u64,
            cancel: self.cancel.map(|cancel| Cancel {
                requests: cancel.requests.into_iter().flatten().map(|number| number as u32).collect(),
                shards: cancel.shards.into_iter().flatten().map(|number| number as u32).collect(),
                closed: cancel.closed,
            }),
        })
    }
}

/// Books to write. Their timestamp is the position that they are of: whoever has applied as much of the log has the same
/// books, and whoever has applied less loses, whatever the clocks say.
#[derive(SerializeRow)]
pub(super) struct TotalsUpdate {
    stamp: i64,
    ttl: i32,
    tenant: String,
    channels: BTreeMap<i32, ChannelTotalsValue>,
    recipients: i64,
    complete: bool,
    applied: i64,
    updated_ms: i64,
    cancel: Option<CancelValue>,
    ranges: BTreeSet<i32>,
    id: Vec<u8>,
}

impl TotalsUpdate {
    pub(super) const CQL: &str = "UPDATE requests USING TIMESTAMP :stamp AND TTL :ttl SET tenant = :tenant, \
         channels = :channels, recipients = :recipients, complete = :complete, applied = :applied, \
         updated_ms = :updated_ms, cancel = :cancel, ranges = ranges + :ranges WHERE id = :id";

    pub(super) fn of(id: &NotificationId, totals: &Totals, ranges: BTreeSet<i32>, ttl: i32) -> Self {
        let cancel = totals.cancel.as_ref().map(|cancel| CancelValue {
            requests: Some(cancel.requests.iter().map(|number| *number as i32).collect()),
            shards: Some(cancel.shards.iter().map(|number| *number as i32).collect()),
            closed: cancel.closed,
        });
        Self {
            stamp: (totals.applied as i64).max(1),
            ttl,
            tenant: totals.tenant.as_str().to_owned(),
            channels: totals.channels.iter().map(|(channel, t)| (*channel, of_channel(t))).collect(),
            recipients: totals.recipients as i64,
            complete: totals.complete,
            applied: totals.applied as i64,
            updated_ms: totals.updated_ms as i64,
            cancel,
            ranges,
            id: id.0.to_vec(),
        }
    }
}

/// A request to write as it was admitted. Its timestamp is the larger, the earlier it was accepted: the first stays.
#[derive(SerializeRow)]
pub(super) struct AdmittedInsert {
    stamp: i64,
    pub(super) ttl: i32,
    pub(super) admitted_tenant: String,
    template_id: String,
    template_version: i32,
    pub(super) accepted_ms: i64,
    send_at_ms: i64,
    expires_ms: i64,
    pub(super) dedupe_key: String,
    pub(super) id: Vec<u8>,
}

impl AdmittedInsert {
    pub(super) const CQL: &str = "INSERT INTO requests (id, admitted_tenant, template_id, template_version, accepted_ms, \
         send_at_ms, expires_ms, dedupe_key) VALUES (:id, :admitted_tenant, :template_id, :template_version, \
         :accepted_ms, :send_at_ms, :expires_ms, :dedupe_key) USING TIMESTAMP :stamp AND TTL :ttl";

    /// A request that is kept for so long after it can end.
    pub(super) fn of(row: AdmittedRow, retention_s: i32) -> Self {
        let ends_ms = row.accepted_ms.max(row.send_at_ms).max(row.expires_ms);
        let lives_s = i32::try_from((ends_ms - row.accepted_ms) / 1_000).unwrap_or(i32::MAX / 8);
        Self {
            stamp: (ADMITTED_FIRST - row.accepted_ms as i64).max(1),
            ttl: retention_s.saturating_add(lives_s),
            admitted_tenant: row.tenant.as_str().to_owned(),
            template_id: row.template_id,
            template_version: row.template_version as i32,
            accepted_ms: row.accepted_ms as i64,
            send_at_ms: row.send_at_ms as i64,
            expires_ms: row.expires_ms as i64,
            dedupe_key: row.dedupe_key,
            id: row.id.0.to_vec(),
        }
    }
}

fn of_channel(totals: &ChannelTotals) -> ChannelTotalsValue {
    ChannelTotalsValue {
        created: totals.created.count as i64,
        created_hash_sum: totals.created.hash_sum as i64,
        ended: totals.ended.count as i64,
        ended_hash_sum: totals.ended.hash_sum as i64,
        delivered: totals.delivered as i64,
        suppressed: Some(totals.suppressed.iter().map(|(reason, count)| (reason.clone(), *count as i64)).collect()),
        failed: totals.failed as i64,
        dead: totals.dead as i64,
        unconfirmed: totals.unconfirmed.count as i64,
        unconfirmed_hash_sum: totals.unconfirmed.hash_sum as i64,
    }
}

fn to_channel(value: ChannelTotalsValue) -> ChannelTotals {
    let tally = |count: i64, hash_sum: i64| Tally { count: count as u64, hash_sum: hash_sum as u64 };
    ChannelTotals {
        created: tally(value.created, value.created_hash_sum),
        ended: tally(value.ended, value.ended_hash_sum),
        delivered: value.delivered as u64,
        suppressed: value.suppressed.into_iter().flatten().map(|(reason, count)| (reason, count as u64)).collect(),
        failed: value.failed as u64,
        dead: value.dead as u64,
        unconfirmed: tally(value.unconfirmed, value.unconfirmed_hash_sum),
    }
}
