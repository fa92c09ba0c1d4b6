//! In-app: records of `inbox` become rows, receipts, and frames for live connections.

use std::collections::VecDeque;

use bytes::Bytes;
use herald_core::{
    ids::{NotificationId, TenantId},
    outputs::Outputs,
    packed,
    ports::{
        StoreError,
        inbox::{EventId, Item},
        log::{Mark, Record},
        sessions::{Frame, Sessions},
    },
    record::{Channel, InboxBatch, InboxSection, State},
};
use prost::Message;
use tokio::time::Instant;

use crate::{
    Deps,
    burying::bury_record,
    outages::STORE_RETRY,
    receipts::{End, Endings},
};

/// Records that one write takes at most.
const MAX_RECORDS_PER_WRITE: usize = 64;

/// What waits for the store is bounded by its bytes and its records; a poll may pass the bound.
const MAX_PENDING_BYTES: usize = 8 << 20;
const MAX_PENDING_RECORDS: usize = 1_024;

/// One shard's `inbox`.
pub(crate) struct Feed {
    shard: u32,
    /// Polled and not yet written, with what their durability rests on.
    pending: VecDeque<(Record, Mark)>,
    /// The offset after the last written record.
    pub position: u64,
    pub dirty: bool,
    pending_bytes: usize,
    /// After a failure of the store nothing is written before this time.
    again_at: Option<Instant>,
}

impl Feed {
    pub(crate) fn new(shard: u32, position: u64) -> Self {
        Self { shard, pending: VecDeque::new(), position, dirty: false, pending_bytes: 0, again_at: None }
    }

    pub(crate) fn push(&mut self, record: Record, mark: Mark) {
        self.pending_bytes += record.body.len();
        self.pending.push_back((record, mark));
    }

    /// Whether no more should be polled before what is here is written.
    pub(crate) fn is_full(&self) -> bool {
        self.pending_bytes >= MAX_PENDING_BYTES || self.pending.len() >= MAX_PENDING_RECORDS
    }

    /// How many instances wait to be written.
    fn instances(&self) -> u64 {
        let sections = self.pending.iter().flat_map(|(record, _)| &record.envelope.sections);
        sections.map(|section| u64::from(section.count)).sum()
    }

    /// Writes what is durable and books it as delivered. A store that is away leaves the rest for later.
    pub(crate) async fn write(&mut self, deps: &Deps, durable: Mark, outputs: &mut Outputs, endings: &mut Endings) {
        while self.again_at.is_none_or(|at| Instant::now() >= at) {
            let ready =
                self.pending.iter().take(MAX_RECORDS_PER_WRITE).take_while(|(_, mark)| *mark <= durable).count();
            if ready == 0 {
                break;
            }
            let mut undecodable = Vec::new();
            let mut batches: Vec<(u64, InboxBatch)> = Vec::with_capacity(ready);
            for (record, _) in self.pending.iter().take(ready) {
                match InboxBatch::decode(record.body.clone()) {
                    Ok(batch) => batches.push((record.offset, batch)),
                    Err(error) => {
                        // We wrote it and its checksum was right, so this is a fault of ours that must not stay silent.
                        deps.stats.add(|s| &s.undecodable, 1);
                        tracing::error!(at = %record.at, offset = record.offset, %error, "in-app items cannot be read");
                        undecodable.push(record.clone());
                    }
                }
            }
            // The store takes the texts; who they are for is kept for the receipts and the frames.
            let written: Vec<(u64, Vec<Written>)> = batches
                .iter()
                .map(|(offset, batch)| (*offset, batch.sections.iter().map(Written::of).collect()))
                .collect();
            let epoch = deps.log.identity().epoch;
            if let Err(error) = deps.inbox.put(self.shard, epoch, batches).await {
                deps.outages.inbox.failed(&error, self.instances(), deps.world.now_ms());
                self.again_at = Some(Instant::now() + STORE_RETRY);
                break;
            }
            let now_ms = deps.world.now_ms();
            deps.outages.inbox.answered(now_ms);
            for record in &undecodable {
                bury_record(record, "undecodable", deps, outputs);
            }
            for section in written.iter().flat_map(|(_, sections)| sections) {
                book(section, now_ms, endings);
            }
            let records = self.pending.iter().take(ready).map(|(record, _)| record);
            hand_over(deps, epoch, &written, records).await;
            for (record, _) in self.pending.drain(..ready) {
                self.pending_bytes -= record.body.len();
                self.position = record.offset + 1;
                self.dirty = true;
            }
        }
    }
}

/// What is kept of a section whose rows are written.
struct Written {
    notification_id: Bytes,
    tenant: String,
    users: Bytes,
    count: u32,
    attempts: u32,
    accepted_ms: u64,
}

impl Written {
    fn of(section: &InboxSection) -> Self {
        Self {
            notification_id: section.notification_id.clone(),
            tenant: section.tenant.clone(),
            users: section.users.clone(),
            count: section.count,
            attempts: section.attempts,
            accepted_ms: section.accepted_ms,
        }
    }
}

fn book(section: &Written, now_ms: u64, endings: &mut Endings) {
    let Some(id) = NotificationId::from_slice(&section.notification_id) else { return };
    let tenant = TenantId::trusted(&section.tenant);
    let ended = endings.of_notification(id, &tenant, Channel::InApp, section.accepted_ms, now_ms);
    let end = End { provider: "in_app".into(), ..End::by_rule(State::Delivered, "", section.attempts + 1) };
    packed::unpack(&section.users).map_while(Result::ok).for_each(|user| ended.add(user, &end));
}

/// Hands frames to whoever is connected. The rows are written: a frame that is lost is found in the inbox.
async fn hand_over(
    deps: &Deps,
    epoch: u32,
    written: &[(u64, Vec<Written>)],
    records: impl Iterator<Item = &Record> + Send,
) {
    let handed_over = match frames(deps.sessions.as_ref(), epoch, written, records).await {
        Ok(frames) if frames.is_empty() => Ok(()),
        Ok(frames) => deps.sessions.hand_over(frames).await,
        Err(error) => Err(error),
    };
    match handed_over {
        Ok(()) => deps.outages.sessions.answered(deps.world.now_ms()),
        Err(error) => deps.outages.sessions.failed(&error, 0, deps.world.now_ms()),
    }
}

/// What was written for those who are connected.
async fn frames(
    sessions: &dyn Sessions,
    epoch: u32,
    written: &[(u64, Vec<Written>)],
    records: impl Iterator<Item = &Record> + Send,
) -> Result<Vec<Frame>, StoreError> {
    let mut bodies = records.map(|record| (record.offset, &record.body));
    let mut frames = Vec::new();
    for (offset, sections) in written {
        let body = bodies.find(|(of, _)| of == offset).map(|(_, body)| body);
        // Read again only if somebody is connected, which few are.
        let mut batch: Option<InboxBatch> = None;
        let mut first = 0;
        for (at, section) in sections.iter().enumerate() {
            let tenant = TenantId::trusted(&section.tenant);
            let users: Vec<&str> = packed::unpack(&section.users).map_while(Result::ok).collect();
            let connected = sessions.connected(&tenant, &users).await?;
            for (i, user) in users.iter().enumerate().filter(|(i, _)| connected[*i]) {
                let batch = batch.get_or_insert_with(|| {
                    body.and_then(|body| InboxBatch::decode(body.clone()).ok()).unwrap_or_default()
                });
                let event_id = EventId { epoch, offset: *offset, index: first + i as u32 };
                frames.extend(batch.sections.get(at).map(|section| Frame {
                    tenant: tenant.clone(),
                    user: (*user).to_owned(),
                    item: item_of(section, i, event_id),
                }));
            }
            first += section.count;
        }
    }
    Ok(frames)
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
