//! Values: a format byte and protobuf. Fields are never renumbered or reused.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};
use herald_core::ports::StoreError;
use prost::Message;

/// The format of every value written today.
pub const FORMAT: u8 = 1;

/// Encodes a row.
pub fn encode(row: &impl Message) -> Bytes {
    let mut bytes = Vec::with_capacity(1 + row.encoded_len());
    bytes.put_u8(FORMAT);
    row.encode_raw(&mut bytes);
    bytes.into()
}

/// Decodes a row.
pub fn decode<M: Message + Default>(what: &str, row: &Bytes) -> Result<M, StoreError> {
    match row.first() {
        Some(&FORMAT) => {
            M::decode(row.slice(1..)).map_err(|e| StoreError::Damaged(format!("a row of {what} cannot be read: {e}")))
        }
        Some(other) => Err(StoreError::Damaged(format!("a row of {what} has the unknown format {other}"))),
        None => Err(StoreError::Damaged(format!("a row of {what} is empty"))),
    }
}

/// The error of a row that holds something impossible.
pub fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(format!("a row holds {what}"))
}

#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct PersonRow {
    #[prost(message, optional, tag = "1")]
    pub user: Option<UserRow>,
    #[prost(message, optional, tag = "2")]
    pub preferences: Option<PreferencesRow>,
    /// Of the last erasure, until the log has forgotten the person.
    #[prost(uint64, tag = "3")]
    pub erased_ms: u64,
    #[prost(string, tag = "4")]
    pub erasure_id: String,
}

#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct ErasureRow {
    #[prost(string, tag = "1")]
    pub user_id: String,
    #[prost(uint64, tag = "2")]
    pub begun_ms: u64,
    #[prost(uint64, tag = "3")]
    pub completed_ms: u64,
    #[prost(uint64, tag = "4")]
    pub log_gone_ms: u64,
    #[prost(uint64, tag = "5")]
    pub due_ms: u64,
    /// Where the pass that is due is: see [`super::erasures`].
    #[prost(uint32, tag = "6")]
    pub stage: u32,
    #[prost(bytes = "bytes", tag = "7")]
    pub cursor: Bytes,
    /// The hour at which the pass begins to look at receipts; 0 for the oldest.
    #[prost(uint32, tag = "8")]
    pub from_hour: u32,
}

#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct UserRow {
    /// A JSON object, or empty.
    #[prost(bytes = "bytes", tag = "1")]
    pub attributes: Bytes,
    #[prost(string, optional, tag = "2")]
    pub locale: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub time_zone: Option<String>,
    #[prost(message, repeated, tag = "4")]
    pub endpoints: Vec<EndpointRow>,
    #[prost(uint64, tag = "5")]
    pub version: u64,
    #[prost(uint64, tag = "6")]
    pub created_ms: u64,
    #[prost(uint64, tag = "7")]
    pub updated_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct EndpointRow {
    #[prost(string, tag = "1")]
    pub channel: String,
    #[prost(string, tag = "2")]
    pub address: String,
    #[prost(string, tag = "3")]
    pub kind: String,
    #[prost(string, tag = "4")]
    pub platform: String,
    #[prost(string, tag = "5")]
    pub app_version: String,
    #[prost(uint64, tag = "6")]
    pub registered_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct PreferencesRow {
    #[prost(btree_map = "string, message", tag = "1")]
    pub channels: BTreeMap<String, ChannelPreferenceRow>,
    #[prost(message, optional, tag = "2")]
    pub quiet_hours: Option<QuietHoursRow>,
    #[prost(string, tag = "3")]
    pub source: String,
    #[prost(uint64, tag = "4")]
    pub updated_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct ChannelPreferenceRow {
    #[prost(bool, optional, tag = "1")]
    pub enabled: Option<bool>,
    #[prost(btree_map = "string, bool", tag = "2")]
    pub categories: BTreeMap<String, bool>,
}

#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct QuietHoursRow {
    #[prost(uint32, tag = "1")]
    pub start_minute: u32,
    #[prost(uint32, tag = "2")]
    pub end_minute: u32,
    #[prost(string, optional, tag = "3")]
    pub time_zone: Option<String>,
    /// Whether messages are dropped instead of deferred.
    #[prost(bool, tag = "4")]
    pub drop: bool,
}

#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct AdmissionRow {
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub body_hash: Bytes,
    #[prost(uint64, tag = "3")]
    pub first_use_ms: u64,
    #[prost(uint64, tag = "4")]
    pub running_since_ms: u64,
    #[prost(bool, tag = "5")]
    pub answered: bool,
    #[prost(message, optional, tag = "6")]
    pub first_place: Option<herald_core::record::Place>,
}

#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct ExportRow {
    #[prost(uint32, tag = "1")]
    pub day: u32,
    #[prost(uint32, tag = "2")]
    pub part: u32,
    #[prost(bool, tag = "3")]
    pub written: bool,
}

#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct TotalsRow {
    #[prost(string, tag = "1")]
    pub tenant: String,
    #[prost(btree_map = "int32, message", tag = "2")]
    pub channels: BTreeMap<i32, ChannelTotalsRow>,
    #[prost(uint64, tag = "3")]
    pub recipients: u64,
    #[prost(bool, tag = "4")]
    pub complete: bool,
    #[prost(uint64, tag = "5")]
    pub applied: u64,
    #[prost(uint64, tag = "6")]
    pub updated_ms: u64,
    #[prost(message, optional, tag = "7")]
    pub cancel: Option<CancelProgressRow>,
}

/// Who has acknowledged a cancel.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct CancelProgressRow {
    #[prost(uint32, repeated, tag = "1")]
    pub requests: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    pub shards: Vec<u32>,
    #[prost(bool, tag = "3")]
    pub closed: bool,
}

#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct ChannelTotalsRow {
    #[prost(uint64, tag = "1")]
    pub created: u64,
    #[prost(fixed64, tag = "2")]
    pub created_hash_sum: u64,
    #[prost(uint64, tag = "3")]
    pub ended: u64,
    #[prost(fixed64, tag = "4")]
    pub ended_hash_sum: u64,
    #[prost(uint64, tag = "5")]
    pub delivered: u64,
    #[prost(btree_map = "string, uint64", tag = "6")]
    pub suppressed: BTreeMap<String, u64>,
    #[prost(uint64, tag = "7")]
    pub failed: u64,
    #[prost(uint64, tag = "8")]
    pub dead: u64,
    #[prost(uint64, tag = "9")]
    pub unconfirmed: u64,
    #[prost(fixed64, tag = "10")]
    pub unconfirmed_hash_sum: u64,
}

#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct AdmittedRowValue {
    #[prost(string, tag = "1")]
    pub tenant: String,
    #[prost(string, tag = "2")]
    pub template_id: String,
    #[prost(uint32, tag = "3")]
    pub template_version: u32,
    #[prost(uint64, tag = "4")]
    pub accepted_ms: u64,
    #[prost(uint64, tag = "5")]
    pub send_at_ms: u64,
    #[prost(uint64, tag = "6")]
    pub expires_ms: u64,
    #[prost(string, tag = "7")]
    pub dedupe_key: String,
}

/// What the items of an inbox section share.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct SectionRow {
    #[prost(string, tag = "1")]
    pub title: String,
    #[prost(string, tag = "2")]
    pub body: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
    /// How many items refer to it.
    #[prost(uint32, tag = "4")]
    pub count: u32,
}

/// The counts of a feed, of its items up to and with an event.
#[derive(Clone, Copy, PartialEq, Message)]
#[allow(missing_docs)]
pub struct FeedRow {
    #[prost(uint64, tag = "1")]
    pub unseen: u64,
    #[prost(uint64, tag = "2")]
    pub unread: u64,
    #[prost(uint64, tag = "3")]
    pub total: u64,
    /// Archived items too.
    #[prost(uint64, tag = "4")]
    pub stored: u64,
    #[prost(uint32, tag = "5")]
    pub epoch: u32,
    #[prost(uint64, tag = "6")]
    pub offset: u64,
    #[prost(uint32, tag = "7")]
    pub index: u32,
}

#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct PolicyRow {
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// `None` when deleted.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub value: Option<Bytes>,
    #[prost(bool, tag = "3")]
    pub published: bool,
}

#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct AuditRowValue {
    #[prost(uint64, tag = "1")]
    pub at_ms: u64,
    #[prost(string, tag = "2")]
    pub actor: String,
    #[prost(string, tag = "3")]
    pub action: String,
    #[prost(string, optional, tag = "4")]
    pub tenant: Option<String>,
    #[prost(string, tag = "5")]
    pub result: String,
    #[prost(uint32, tag = "6")]
    pub status: u32,
    #[prost(string, tag = "7")]
    pub request_id: String,
    #[prost(string, tag = "8")]
    pub detail: String,
}
