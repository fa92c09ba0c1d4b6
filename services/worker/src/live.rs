//! In-app: records of `inbox` become rows, receipts, and frames for live connections.

use std::collections::VecDeque;

use herald_core::{
    ids::{NotificationId, TenantId},
    outputs::Outputs,
    packed,
    ports::{
        inbox::{EventId, Item},
        log::{Mark, Record},
        sessions::{Frame, Sessions},
    },
    record::{Channel, InboxBatch, InboxSection, Notification, State},
};
use prost::Message;

use crate::{
    Deps,
    receipts::{End, Ended},
};

/// Records that one write takes at most.
const MAX_RECORDS_PER_WRITE: usize = 64;

/// One shard's `inbox`.
pub(crate) struct Feed {
    shard: u32,
    /// Polled and not yet written, with what their durability rests on.
    pending: VecDeque<(Record, Mark)>,
    /// The offset after the last written record.
    pub position: u64,
    pub dirty: bool,
}

impl Feed {
    pub(crate) fn new(shard: u32, position: u64) -> Self {
        Self { shard, pending: VecDeque::new(), position, dirty: false }
    }

    pub(crate) fn push(&mut self, record: Record, mark: Mark) {
        self.pending.push_back((record, mark));
    }

    /// Writes what is durable; returns how many instances it delivered. A store that is away leaves the rest for later.
    pub(crate) async fn write(&mut self, deps: &Deps, durable: Mark, outputs: &mut Outputs) -> u64 {
        let mut ended = 0;
        loop {
            let ready =
                self.pending.iter().take(MAX_RECORDS_PER_WRITE).take_while(|(_, mark)| *mark <= durable).count();
            if ready == 0 {
                return ended;
            }
            let mut batches: Vec<(u64, InboxBatch)> = Vec::with_capacity(ready);
            for (record, _) in self.pending.iter().take(ready) {
                match InboxBatch::decode(record.body.clone()) {
                    Ok(batch) => batches.push((record.offset, batch)),
                    Err(error) => {
                        // We wrote it and its checksum was right, so this is a fault of ours that must not stay silent.
                        deps.stats.add(|s| &s.undecodable, 1);
                        tracing::error!(at = %record.at, offset = record.offset, %error, "in-app items cannot be read");
                    }
                }
            }
            let epoch = deps.log.identity().epoch;
            if let Err(error) = deps.inbox.put(self.shard, epoch, batches.clone()).await {
                tracing::warn!(%error, shard = self.shard, "in-app items cannot be stored; they wait");
                return ended;
            }
            let now_ms = deps.world.now_ms();
            for (_, batch) in &batches {
                for section in &batch.sections {
                    ended += receipts_of(section, now_ms, outputs);
                }
            }
            hand_over(deps.sessions.as_ref(), epoch, &batches).await;
            if let Some((record, _)) = self.pending.drain(..ready).next_back() {
                self.position = record.offset + 1;
                self.dirty = true;
            }
        }
    }
}

fn receipts_of(section: &InboxSection, now_ms: u64, outputs: &mut Outputs) -> u64 {
    let Some(id) = NotificationId::from_slice(&section.notification_id) else { return 0 };
    let mut ended = Ended::new(id, Channel::InApp);
    let end = End { provider: "in_app".into(), ..End::by_rule(State::Delivered, "", section.attempts + 1) };
    for user in packed::unpack(&section.users).map_while(Result::ok) {
        ended.add(user, end.clone(), None);
    }
    let notification =
        Notification { tenant: section.tenant.clone(), accepted_ms: section.accepted_ms, ..Default::default() };
    ended.put_out(&notification, now_ms, outputs)
}

/// Hands frames to whoever is connected. The rows are written: a frame that is lost is found in the inbox.
async fn hand_over(sessions: &dyn Sessions, epoch: u32, batches: &[(u64, InboxBatch)]) {
    let mut frames = Vec::new();
    for (offset, batch) in batches {
        let mut first = 0;
        for section in &batch.sections {
            let tenant = TenantId::trusted(&section.tenant);
            let users: Vec<&str> = packed::unpack(&section.users).map_while(Result::ok).collect();
            match sessions.connected(&tenant, &users).await {
                Ok(connected) => {
                    for (i, user) in users.iter().enumerate().filter(|(i, _)| connected[*i]) {
                        let event_id = EventId { epoch, offset: *offset, index: first + i as u32 };
                        frames.push(Frame {
                            tenant: tenant.clone(),
                            user: (*user).to_owned(),
                            item: item_of(section, i, event_id),
                        });
                    }
                }
                Err(error) => tracing::warn!(%error, "live connections are not known; they read their inbox"),
            }
            first += section.count;
        }
    }
    if !frames.is_empty()
        && let Err(error) = sessions.hand_over(frames).await
    {
        tracing::warn!(%error, "live connections got no frames; they read their inbox");
    }
}

/// One user's item of a section.
fn item_of(section: &InboxSection, index: usize, event_id: EventId) -> Item {
    let text = |texts: &[String]| texts.get(index).or(texts.first()).cloned().unwrap_or_default();
    Item {
        event_id,
        notification: NotificationId::from_slice(&section.notification_id).unwrap_or(NotificationId([0; 16])),
        title: text(&section.titles),
        body: text(&section.bodies),
        data: section.data.clone(),
        created_ms: section.accepted_ms,
        seen_ms: 0,
        read_ms: 0,
        archived_ms: 0,
    }
}
