//! Erasures: what is to be erased, and the passes that do it.
//!
//! A pass goes through four stages, in steps that each read and write a bounded number of rows and then note where they
//! are, by compare and set: of two processes that take the same step one moves the erasure on, and both have changed the
//! same. The receipts of a person are found by the users' log, whose entries stay: they hold 32 bits of a hash.

use std::sync::Arc;

use async_trait::async_trait;
use herald_core::{
    ids::TenantId,
    ports::{
        StoreError,
        erasures::{Erasure, Erasures},
    },
    user_log::{GRACE_HOURS, hour_of},
};
use scylla::{DeserializeRow, SerializeRow};

use super::{
    directory::DirectoryStore,
    inbox::InboxStore,
    ledger::LedgerStore,
    session::{Conditional, Db, Plain, RACES, contended, in_parallel},
    spans::Spans,
};

/// Rows that one step reads or writes of a person's audiences, and hours of the users' log that it reads.
const STEP_ROWS: usize = 1_024;
const STEP_HOURS: u32 = 12;
/// The list of hours in which passes are due, and how long it is looked for entries that came late, in hours.
const LIST: &str = "erasures";
const LATE_HOURS: i32 = 24;
/// Hours are forgotten by whoever finds them empty.
const SPAN_TTL_S: i32 = 400 * 86_400;

/// The stages of a pass, as they are stored.
const FOLLOWERS: i8 = 0;
const MEMBERSHIPS: i8 = 1;
const INBOX: i8 = 2;
const RECEIPTS: i8 = 3;

/// Erasures in CQL.
pub struct ErasureStore {
    db: Db,
    spans: Spans,
    directory: Arc<DirectoryStore>,
    inbox: Arc<InboxStore>,
    ledger: Arc<LedgerStore>,
    read: Plain,
    update: Conditional,
    delete: Conditional,
    put_due: Plain,
    delete_due: Plain,
    due: Plain,
}

/// An erasure's row.
#[derive(Debug, Clone, DeserializeRow, SerializeRow)]
struct ErasureRow {
    /// Counts the changes.
    revision: i64,
    user_id: String,
    begun_ms: i64,
    completed_ms: i64,
    log_gone_ms: i64,
    due_ms: i64,
    /// Where the pass that is due is.
    stage: i8,
    /// The hour from which on receipts are looked at next; null for the oldest.
    from_hour: Option<i32>,
}

/// An erasure's row as it is written, if its revision is what it was.
#[derive(SerializeRow)]
struct UpdateRow<'a> {
    #[scylla(flatten)]
    row: &'a ErasureRow,
    tenant: &'a str,
    id: &'a str,
    before: Option<i64>,
}

const COLUMNS: &str = "revision, user_id, begun_ms, completed_ms, log_gone_ms, due_ms, stage, from_hour";

impl ErasureStore {
    pub(super) async fn new(
        db: &Db,
        directory: Arc<DirectoryStore>,
        inbox: Arc<InboxStore>,
        ledger: Arc<LedgerStore>,
    ) -> anyhow::Result<Self> {
        let set: Vec<String> = COLUMNS.split(", ").map(|column| format!("{column} = :{column}")).collect();
        let of_id = "WHERE tenant = ? AND id = ?";
        Ok(Self {
            spans: Spans::new(db).await?,
            directory,
            inbox,
            ledger,
            read: db.plain(&format!("SELECT {COLUMNS} FROM erasures {of_id}")).await?,
            update: db
                .conditional(&format!(
                    "UPDATE erasures SET {} WHERE tenant = :tenant AND id = :id IF revision = :before",
                    set.join(", ")
                ))
                .await?,
            delete: db.conditional(&format!("DELETE FROM erasures {of_id} IF revision = ?")).await?,
            put_due: db.plain("INSERT INTO erasures_due (hour, due_ms, tenant, id) VALUES (?, ?, ?, ?)").await?,
            delete_due: db
                .plain("DELETE FROM erasures_due WHERE hour = ? AND due_ms = ? AND tenant = ? AND id = ?")
                .await?,
            due: db.plain("SELECT due_ms, tenant, id FROM erasures_due WHERE hour = ? AND due_ms <= ? LIMIT ?").await?,
            db: db.clone(),
        })
    }

    async fn row(&self, tenant: &str, id: &str) -> Result<Option<ErasureRow>, StoreError> {
        self.db.row(&self.read, (tenant, id)).await
    }

    async fn store(&self, tenant: &str, id: &str, row: &ErasureRow, before: Option<i64>) -> Result<bool, StoreError> {
        self.db.write_if(&self.update, UpdateRow { row, tenant, id, before }).await
    }

    /// Makes an entry of when a pass is due.
    async fn put_due(&self, tenant: &str, id: &str, due_ms: i64) -> Result<(), StoreError> {
        self.spans.note(LIST, hour(due_ms), SPAN_TTL_S).await?;
        self.db.write(&self.put_due, (hour(due_ms), due_ms, tenant, id)).await
    }

    async fn delete_due(&self, tenant: &str, id: &str, due_ms: i64) -> Result<(), StoreError> {
        self.db.write(&self.delete_due, (hour(due_ms), due_ms, tenant, id)).await
    }

    /// Makes a person one who was erased, unless another erasure of theirs has begun and is not complete: that one is
    /// returned.
    async fn erase_person(&self, erasure: &Erasure) -> Result<Option<Erasure>, StoreError> {
        for _ in 0..RACES {
            let row = self.directory.row(erasure.tenant.as_str(), &erasure.user_id).await?;
            match &row.erasure_id {
                Some(id) if *id == erasure.id => return Ok(None),
                Some(id) => {
                    let other = self.get(&erasure.tenant, id).await?;
                    if other.as_ref().is_some_and(|other| !other.is_complete()) {
                        return Ok(other);
                    }
                }
                None => {}
            }
            if self.directory.erase(erasure, &row).await? {
                return Ok(None);
            }
        }
        Err(contended("a person"))
    }

    /// Erases a bounded number of rows; returns the row as it is after that.
    async fn work(&self, erasure: &Erasure, row: &ErasureRow, now_ms: u64) -> Result<ErasureRow, StoreError> {
        let (tenant, user) = (erasure.tenant.as_str(), &erasure.user_id);
        let mut after = row.clone();
        after.revision += 1;
        let through = match row.stage {
            FOLLOWERS => {
                // Whoever began it may have stopped before the person was erased.
                self.erase_person(erasure).await?;
                self.directory.erase_followers(tenant, user, STEP_ROWS).await?
            }
            MEMBERSHIPS => self.directory.erase_memberships(tenant, user, STEP_ROWS).await?,
            INBOX => self.inbox.erase(tenant, user, erasure.begun_ms).await?,
            _ => {
                let last = hour_of(now_ms) + GRACE_HOURS;
                let oldest = hour_of(now_ms).saturating_sub(self.ledger.hours_kept());
                let from = row.from_hour.map_or(oldest, |from| oldest.max(from as u32));
                let until = (from + STEP_HOURS).min(last + 1);
                let hours = (from..until).map(|hour| self.ledger.erase_hour(erasure, hour));
                in_parallel(hours.collect()).await?;
                after.from_hour = Some(until as i32);
                until > last
            }
        };
        if through && row.stage < RECEIPTS {
            after.stage = row.stage + 1;
        } else if through {
            let next = erasure.clone().after_pass(now_ms);
            if next.due_ms == 0 {
                self.directory.end_erasure(erasure).await?;
            }
            // Later passes look for what waited: nobody becomes a member by that.
            after.stage = if next.is_complete() { INBOX } else { FOLLOWERS };
            after.from_hour = Some(hour_of(erasure.due_ms).saturating_sub(GRACE_HOURS) as i32);
            (after.completed_ms, after.due_ms) = (next.completed_ms as i64, next.due_ms as i64);
            after.user_id = next.user_id;
        }
        Ok(after)
    }

    /// The erasure of an entry, if it is due then; an entry that does not hold goes.
    async fn of_entry(&self, due_ms: i64, tenant: String, id: String) -> Result<Option<Erasure>, StoreError> {
        let row = self.row(&tenant, &id).await?;
        let erasure = row.filter(|row| row.due_ms == due_ms).map(|row| from_row(&TenantId::trusted(&tenant), &id, row));
        if erasure.is_none() {
            self.delete_due(&tenant, &id, due_ms).await?;
        }
        Ok(erasure)
    }
}

fn hour(ms: i64) -> i32 {
    hour_of(ms as u64) as i32
}

fn from_row(tenant: &TenantId, id: &str, row: ErasureRow) -> Erasure {
    Erasure {
        id: id.to_owned(),
        tenant: tenant.clone(),
        user_id: row.user_id,
        begun_ms: row.begun_ms as u64,
        completed_ms: row.completed_ms as u64,
        log_gone_ms: row.log_gone_ms as u64,
        due_ms: row.due_ms as u64,
    }
}

#[async_trait]
impl Erasures for ErasureStore {
    async fn begin(&self, erasure: Erasure) -> Result<Erasure, StoreError> {
        let (tenant, id) = (erasure.tenant.as_str(), erasure.id.as_str());
        let row = ErasureRow {
            revision: 1,
            user_id: erasure.user_id.clone(),
            begun_ms: erasure.begun_ms as i64,
            completed_ms: erasure.completed_ms as i64,
            log_gone_ms: erasure.log_gone_ms as i64,
            due_ms: erasure.due_ms as i64,
            stage: FOLLOWERS,
            from_hour: None,
        };
        // The erasure is there before the person is erased: a crash in between leaves one that its first pass completes.
        self.put_due(tenant, id, row.due_ms).await?;
        self.store(tenant, id, &row, None).await?;
        let Some(running) = self.erase_person(&erasure).await? else { return Ok(erasure) };
        self.db.write_if(&self.delete, (tenant, id, 1_i64)).await?;
        self.delete_due(tenant, id, row.due_ms).await?;
        Ok(running)
    }

    async fn get(&self, tenant: &TenantId, id: &str) -> Result<Option<Erasure>, StoreError> {
        Ok(self.row(tenant.as_str(), id).await?.map(|row| from_row(tenant, id, row)))
    }

    async fn due(&self, now_ms: u64, limit: usize) -> Result<Vec<Erasure>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let now_hour = hour(now_ms as i64);
        let mut due = Vec::new();
        // Those that wait longest are in the first hours.
        for bucket in self.spans.oldest(LIST, now_hour, STEP_ROWS as i32).await? {
            let left = i32::try_from(limit - due.len()).unwrap_or(i32::MAX);
            let values = (bucket, now_ms as i64, left);
            let entries = self.db.rows::<(i64, String, String)>(&self.due, values).await?;
            if entries.is_empty() && bucket < now_hour - LATE_HOURS {
                self.spans.forget(LIST, bucket).await?;
            }
            let found = entries.into_iter().map(|(due_ms, tenant, id)| self.of_entry(due_ms, tenant, id));
            due.extend(in_parallel(found.collect()).await?.into_iter().flatten());
            if due.len() == limit {
                break;
            }
        }
        Ok(due)
    }

    async fn step(&self, tenant: &TenantId, id: &str, now_ms: u64) -> Result<Option<Erasure>, StoreError> {
        let Some(row) = self.row(tenant.as_str(), id).await? else { return Ok(None) };
        let erasure = from_row(tenant, id, row.clone());
        if erasure.due_ms == 0 || erasure.due_ms > now_ms {
            return Ok(Some(erasure));
        }
        let after = self.work(&erasure, &row, now_ms).await?;
        if after.due_ms != row.due_ms && after.due_ms > 0 {
            self.put_due(tenant.as_str(), id, after.due_ms).await?;
        }
        if !self.store(tenant.as_str(), id, &after, Some(row.revision)).await? {
            return self.get(tenant, id).await;
        }
        if after.due_ms != row.due_ms {
            self.delete_due(tenant.as_str(), id, row.due_ms).await?;
        }
        Ok(Some(from_row(tenant, id, after)))
    }
}
