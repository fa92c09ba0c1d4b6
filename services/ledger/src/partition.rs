//! The books of one receipts partition: totals of the notifications that are under way, and what is not yet written.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use herald_core::{
    books::Totals,
    ids::{NotificationId, TenantId},
    ports::ledger::Flush,
    record::{LedgerBatch, Receipts, State},
    topic::Layout,
};
use prost::Message;

use crate::{reconcile::Open, stats::LedgerStats};

/// The books of one partition. Pure: the reader does the IO.
///
/// Records must be booked in the order of the log, after the totals of the notifications that [`PartitionBooks::missing`]
/// names were given to [`PartitionBooks::load`].
#[derive(Debug)]
pub struct PartitionBooks {
    partition: u32,
    layout: Layout,
    /// The offset after the last record seen.
    next: u64,
    /// The offset that is committed.
    committed: u64,
    active: HashMap<NotificationId, Active>,
    /// Notifications that moved since the last flush.
    dirty: Vec<NotificationId>,
    /// Records booked since the last flush, undecoded.
    records: Vec<(u64, Bytes)>,
    /// Their receipts; taken by the first attempt to write them and decoded again for further ones.
    receipts: Option<Vec<(u64, Vec<Receipts>)>>,
    /// Instances in `records`, and at least one for each section.
    weight: u64,
    flushes: u64,
}

#[derive(Debug)]
struct Active {
    totals: Totals,
    /// Records below this offset are in `totals` as they were loaded: a replay passes over them.
    floor: u64,
    dirty: bool,
    progress_ms: u64,
    last_flush: u64,
}

impl PartitionBooks {
    /// Empty books of a partition whose records before `committed` are written.
    pub fn new(partition: u32, layout: Layout, committed: u64) -> Self {
        Self {
            partition,
            layout,
            next: committed,
            committed,
            active: HashMap::new(),
            dirty: Vec::new(),
            records: Vec::new(),
            receipts: Some(Vec::new()),
            weight: 0,
            flushes: 0,
        }
    }

    /// The notifications of a batch whose totals are not in memory.
    pub fn missing(&self, batch: &LedgerBatch, missing: &mut HashSet<NotificationId>) {
        let manifests = batch.manifests.iter().map(|m| &m.notification_id);
        let receipts = batch.receipts.iter().map(|r| &r.notification_id);
        let acks = batch.cancel_acks.iter().map(|a| &a.notification_id);
        let ids = manifests.chain(receipts).chain(acks).filter_map(|id| NotificationId::from_slice(id));
        missing.extend(ids.filter(|id| !self.active.contains_key(id)));
    }

    /// Whether a notification's totals are in memory.
    pub fn knows(&self, id: &NotificationId) -> bool {
        self.active.contains_key(id)
    }

    /// Takes totals as they are stored.
    pub fn load(&mut self, id: NotificationId, totals: Totals, now_ms: u64) {
        let active =
            Active { floor: totals.applied, totals, dirty: false, progress_ms: now_ms, last_flush: self.flushes };
        self.active.insert(id, active);
    }

    /// Books one record. `batch` is what [`decode`] made of `body`.
    pub fn book(&mut self, offset: u64, body: Bytes, batch: LedgerBatch, now_ms: u64, stats: &LedgerStats) {
        use std::sync::atomic::Ordering::Relaxed;
        for manifest in &batch.manifests {
            self.weight += 1;
            if let Some(totals) = self.open(&manifest.notification_id, &manifest.tenant, offset, now_ms) {
                totals.book_manifest(manifest);
                stats.manifests.fetch_add(1, Relaxed);
                // What is taken back was counted; counters only grow.
                let count = if manifest.negative { 0 } else { manifest.count };
                stats.created.fetch_add(count.into(), Relaxed);
            }
        }
        for receipts in &batch.receipts {
            self.weight += u64::from(receipts.count).max(1);
            if let Some(totals) = self.open(&receipts.notification_id, &receipts.tenant, offset, now_ms) {
                if totals.is_cancelled() && receipts.state() == State::Delivered {
                    let (tenant, count) = (&receipts.tenant, receipts.count);
                    tracing::error!(tenant, count, "delivered after the books were closed by a cancel");
                    stats.contradictions.fetch_add(1, Relaxed);
                }
                totals.book_receipts(receipts);
                stats.count_receipts(receipts);
            }
        }
        for ack in &batch.cancel_acks {
            self.weight += 1;
            let layout = self.layout;
            if let Some(totals) = self.open(&ack.notification_id, &ack.tenant, offset, now_ms) {
                totals.book_cancel_ack(ack, &layout);
            }
        }
        self.records.push((offset, body));
        if let Some(pending) = self.receipts.as_mut().filter(|_| !batch.receipts.is_empty()) {
            pending.push((offset, batch.receipts));
        }
        self.seen(offset);
    }

    /// Moves on past a record, read or not.
    pub fn seen(&mut self, offset: u64) {
        self.next = self.next.max(offset + 1);
    }

    /// The totals of a notification, unless this record is in them already.
    fn open(&mut self, id: &[u8], tenant: &str, offset: u64, now_ms: u64) -> Option<&mut Totals> {
        let id = NotificationId::from_slice(id)?;
        let last_flush = self.flushes;
        let active = self.active.entry(id).or_insert_with(|| Active {
            totals: Totals::new(TenantId::trusted(tenant)),
            floor: 0,
            dirty: false,
            progress_ms: now_ms,
            last_flush,
        });
        if offset < active.floor {
            return None;
        }
        if !active.dirty {
            active.dirty = true;
            self.dirty.push(id);
        }
        active.progress_ms = now_ms;
        active.totals.applied = offset + 1;
        Some(&mut active.totals)
    }

    /// How much there is to write, in instances.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// How many notifications are in memory.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// The offset to commit, if it moved.
    pub fn moved_to(&self) -> Option<u64> {
        (self.next != self.committed).then_some(self.next)
    }

    /// What is to be written; `None` for nothing. Asked again after a failed attempt, it gives the same.
    pub fn flush(&mut self) -> Option<Flush> {
        let receipts = self.receipts.take().unwrap_or_else(|| self.receipts_again());
        if self.dirty.is_empty() && receipts.is_empty() {
            return None;
        }
        let totals = self.dirty.iter().filter_map(|id| Some((*id, self.active.get(id)?.totals.clone()))).collect();
        Some(Flush { admitted: Vec::new(), partition: self.partition, totals, receipts })
    }

    fn receipts_again(&self) -> Vec<(u64, Vec<Receipts>)> {
        let decoded =
            self.records.iter().filter_map(|(offset, body)| Some((*offset, decode(body.clone()).ok()?.0.receipts)));
        decoded.filter(|(_, receipts)| !receipts.is_empty()).collect()
    }

    /// Notes that the flush is written and its position committed. Settled notifications leave memory, and so do those
    /// that rested longest where there are more than `max_active`.
    pub fn flushed(&mut self, max_active: usize) {
        self.flushes += 1;
        self.committed = self.next;
        self.records.clear();
        self.receipts = Some(Vec::new());
        self.weight = 0;
        for id in self.dirty.drain(..) {
            let Some(active) = self.active.get_mut(&id) else { continue };
            active.dirty = false;
            active.last_flush = self.flushes;
            if active.totals.settled() {
                self.active.remove(&id);
            }
        }
        if self.active.len() > max_active {
            self.evict(max_active - max_active / 10);
        }
    }

    /// Forgets all but the `keep` notifications that moved last.
    fn evict(&mut self, keep: usize) {
        let mut by_rest: Vec<(u64, NotificationId)> = self.active.iter().map(|(id, a)| (a.last_flush, *id)).collect();
        let excess = by_rest.len().saturating_sub(keep);
        if excess > 0 {
            by_rest.select_nth_unstable(excess - 1);
            by_rest[..excess].iter().for_each(|(_, id)| drop(self.active.remove(id)));
        }
    }

    /// The notifications in memory that are not settled.
    pub fn unsettled(&self) -> impl Iterator<Item = Open<'_>> {
        self.active.iter().filter(|(_, active)| !active.totals.settled()).map(|(id, active)| Open {
            id: *id,
            totals: &active.totals,
            progress_ms: active.progress_ms,
        })
    }
}

/// Reads the body of a ledger batch, and says how many of its sections name no notification and were left out.
pub fn decode(body: Bytes) -> Result<(LedgerBatch, usize), prost::DecodeError> {
    let mut batch = LedgerBatch::decode(body)?;
    let sections = batch.manifests.len() + batch.receipts.len() + batch.cancel_acks.len();
    batch.manifests.retain(|manifest| manifest.notification_id.len() == 16);
    batch.receipts.retain(|receipts| receipts.notification_id.len() == 16);
    batch.cancel_acks.retain(|ack| ack.notification_id.len() == 16);
    let left_out = sections - batch.manifests.len() - batch.receipts.len() - batch.cancel_acks.len();
    Ok((batch, left_out))
}
