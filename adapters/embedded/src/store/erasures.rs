//! Erasures: what is to be erased, and the passes that do it.
//!
//! A pass goes through four stages, in steps that each read and write a bounded number of rows and then note where they
//! are. The receipts of a person are found by the users' log, whose entries stay: they hold 32 bits of a hash.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use herald_core::{
    ids::TenantId,
    ports::{
        StoreError,
        erasures::{Erasure, Erasures},
    },
    user_log::{GRACE_HOURS, hour_of},
};
use parking_lot::Mutex;

use super::{
    directory::DirectoryStore,
    inbox::InboxStore,
    keys::{Key, Parts, Table},
    ledger::LedgerStore,
    rows::{ErasureRow, decode, encode},
};
use crate::kv::{Batch, Direction, Kv, ready};

/// Rows that one step reads.
const STEP_ROWS: usize = 1_024;

/// The stages of a pass, as they are stored.
const FOLLOWERS: u32 = 0;
const MEMBERSHIPS: u32 = 1;
const INBOX: u32 = 2;
const RECEIPTS: u32 = 3;

/// Erasures in a key-value database.
pub struct ErasureStore {
    kv: Arc<dyn Kv>,
    directory: Arc<DirectoryStore>,
    inbox: Arc<InboxStore>,
    ledger: Arc<LedgerStore>,
    /// Held from reading an erasure's row until it is written.
    stepping: Mutex<()>,
}

/// What became of a stage in one step.
enum Stage {
    /// There is more; the stage goes on from here.
    At(Bytes),
    Through,
}

impl ErasureStore {
    /// The erasures of a database.
    pub fn new(
        kv: Arc<dyn Kv>,
        directory: Arc<DirectoryStore>,
        inbox: Arc<InboxStore>,
        ledger: Arc<LedgerStore>,
    ) -> Self {
        Self { kv, directory, inbox, ledger, stepping: Mutex::new(()) }
    }

    fn row(&self, tenant: &TenantId, id: &str) -> Result<Option<ErasureRow>, StoreError> {
        let row = self.kv.get(row_key(tenant, id).bytes())?;
        row.map(|row| decode("erasures", &row)).transpose()
    }

    fn begin_now(&self, erasure: Erasure) -> Result<Erasure, StoreError> {
        let mut batch = Batch::default();
        let row = to_row(&erasure);
        batch.put(row_key(&erasure.tenant, &erasure.id), encode(&row));
        batch.put(due_key(&erasure), Bytes::new());
        let runs = |id: &str| Ok(self.row(&erasure.tenant, id)?.is_some_and(|row| row.completed_ms == 0));
        match self.directory.begin_erasure(&erasure, runs, batch)? {
            Some(running) => {
                let row = self.row(&erasure.tenant, &running)?.unwrap_or_default();
                Ok(from_row(&erasure.tenant, &running, row))
            }
            None => Ok(erasure),
        }
    }

    fn take_step(&self, tenant: &TenantId, id: &str, now_ms: u64) -> Result<Option<Erasure>, StoreError> {
        let _held = self.stepping.lock();
        let Some(mut row) = self.row(tenant, id)? else { return Ok(None) };
        let before = from_row(tenant, id, row.clone());
        if before.due_ms == 0 || before.due_ms > now_ms {
            return Ok(Some(before));
        }
        let mut batch = Batch::default();
        match self.stage(&before, &row, now_ms)? {
            Stage::At(cursor) => row.cursor = cursor,
            Stage::Through if row.stage < RECEIPTS => (row.stage, row.cursor) = (row.stage + 1, Bytes::new()),
            Stage::Through => {
                let after = before.clone().after_pass(now_ms);
                if after.due_ms == 0 {
                    self.directory.end_erasure(&before)?;
                }
                batch.delete(due_key(&before));
                if after.due_ms > 0 {
                    batch.put(due_key(&after), Bytes::new());
                }
                // Later passes look for what waited: nobody becomes a member by that.
                row.stage = if after.is_complete() { INBOX } else { FOLLOWERS };
                row.from_hour = hour_of(before.due_ms).saturating_sub(GRACE_HOURS);
                row = ErasureRow { stage: row.stage, from_hour: row.from_hour, ..to_row(&after) };
            }
        }
        batch.put(row_key(tenant, id), encode(&row));
        self.kv.write(batch)?;
        Ok(Some(from_row(tenant, id, row)))
    }

    fn stage(&self, erasure: &Erasure, row: &ErasureRow, now_ms: u64) -> Result<Stage, StoreError> {
        let (tenant, user) = (erasure.tenant.as_str(), &erasure.user_id);
        let more = |through: bool| if through { Stage::Through } else { Stage::At(Bytes::new()) };
        match row.stage {
            FOLLOWERS => Ok(more(self.directory.erase_followers(tenant, user, STEP_ROWS)?)),
            MEMBERSHIPS => {
                let last = self.directory.erase_memberships(tenant, user, &row.cursor, STEP_ROWS)?;
                Ok(last.map_or(Stage::Through, Stage::At))
            }
            INBOX => Ok(more(self.inbox.erase(tenant, user, erasure.begun_ms, STEP_ROWS)?)),
            _ => {
                let hour = match row.cursor.as_ref().try_into() {
                    Ok(hour) => u32::from_be_bytes(hour),
                    Err(_) => self.ledger.oldest_hour()?.unwrap_or(u32::MAX).max(row.from_hour),
                };
                if hour > hour_of(now_ms) + GRACE_HOURS {
                    return Ok(Stage::Through);
                }
                self.ledger.erase_hour(erasure, hour)?;
                Ok(Stage::At(Bytes::copy_from_slice(&(hour + 1).to_be_bytes())))
            }
        }
    }
}

fn row_key(tenant: &TenantId, id: &str) -> Key {
    Key::of(Table::Erasure).part(tenant.as_str()).tail(id)
}

fn due_key(erasure: &Erasure) -> Key {
    Key::of(Table::ErasureDue).u64(erasure.due_ms).part(erasure.tenant.as_str()).tail(&erasure.id)
}

fn to_row(erasure: &Erasure) -> ErasureRow {
    ErasureRow {
        user_id: erasure.user_id.clone(),
        begun_ms: erasure.begun_ms,
        completed_ms: erasure.completed_ms,
        log_gone_ms: erasure.log_gone_ms,
        due_ms: erasure.due_ms,
        ..ErasureRow::default()
    }
}

fn from_row(tenant: &TenantId, id: &str, row: ErasureRow) -> Erasure {
    Erasure {
        id: id.to_owned(),
        tenant: tenant.clone(),
        user_id: row.user_id,
        begun_ms: row.begun_ms,
        completed_ms: row.completed_ms,
        log_gone_ms: row.log_gone_ms,
        due_ms: row.due_ms,
    }
}

#[async_trait]
impl Erasures for ErasureStore {
    async fn begin(&self, erasure: Erasure) -> Result<Erasure, StoreError> {
        ready(&*self.kv).await?;
        self.begin_now(erasure)
    }

    async fn get(&self, tenant: &TenantId, id: &str) -> Result<Option<Erasure>, StoreError> {
        Ok(self.row(tenant, id)?.map(|row| from_row(tenant, id, row)))
    }

    async fn due(&self, now_ms: u64, limit: usize) -> Result<Vec<Erasure>, StoreError> {
        let all = Key::of(Table::ErasureDue);
        let end = all.clone().u64(now_ms.saturating_add(1));
        let mut due = Vec::new();
        for (key, _) in self.kv.scan(all.bytes()..end.bytes(), Direction::Forward, limit)? {
            let mut parts = Parts::of(&key)?;
            parts.u64()?;
            let tenant = TenantId::trusted(parts.text()?);
            due.extend(self.get(&tenant, parts.rest()?).await?);
        }
        Ok(due)
    }

    async fn step(&self, tenant: &TenantId, id: &str, now_ms: u64) -> Result<Option<Erasure>, StoreError> {
        ready(&*self.kv).await?;
        self.take_step(tenant, id, now_ms)
    }
}
