//! Frames as they travel to the gateways.

use bytes::Bytes;
use herald_core::{
    ids::NotificationId,
    ports::{
        inbox::{EventId, Item},
        sessions::Frame,
    },
};

/// Bytes of frames that one message carries, and one frame more.
pub(super) const WEIGHT_AT_ONCE: usize = 256 << 10;

/// Frames of one message. One without any is a sign of life.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FramesRecord {
    #[prost(message, repeated, tag = "1")]
    pub(super) frames: Vec<FrameRecord>,
}

/// A [`Frame`]. Its item is new, so nothing of it has been seen, read or archived.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FrameRecord {
    #[prost(string, tag = "1")]
    pub(super) tenant: String,
    #[prost(string, tag = "2")]
    pub(super) user: String,
    #[prost(uint32, tag = "3")]
    epoch: u32,
    #[prost(uint64, tag = "4")]
    offset: u64,
    #[prost(uint32, tag = "5")]
    index: u32,
    #[prost(bytes = "bytes", tag = "6")]
    notification: Bytes,
    #[prost(string, tag = "7")]
    title: String,
    #[prost(string, tag = "8")]
    body: String,
    #[prost(bytes = "bytes", tag = "9")]
    data: Bytes,
    #[prost(uint64, tag = "10")]
    created_ms: u64,
}

impl From<Frame> for FrameRecord {
    fn from(frame: Frame) -> Self {
        let Frame { tenant, user, item } = frame;
        Self {
            tenant: tenant.as_str().to_owned(),
            user,
            epoch: item.event_id.epoch,
            offset: item.event_id.offset,
            index: item.event_id.index,
            notification: Bytes::copy_from_slice(&item.notification.0),
            title: item.title,
            body: item.body,
            data: item.data,
            created_ms: item.created_ms,
        }
    }
}

impl FrameRecord {
    /// The item; `None` if its notification's id is none.
    pub(super) fn item(&self) -> Option<Item> {
        Some(Item {
            event_id: EventId { epoch: self.epoch, offset: self.offset, index: self.index },
            notification: NotificationId::from_slice(&self.notification)?,
            title: self.title.clone(),
            body: self.body.clone(),
            data: self.data.clone(),
            created_ms: self.created_ms,
            seen_ms: 0,
            read_ms: 0,
            archived_ms: 0,
        })
    }
}
