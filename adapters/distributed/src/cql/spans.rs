//! Lists that are cut into buckets of time, and which of a list's buckets have rows: so a list is read from its newest
//! row on without a look at the buckets that are empty.

use herald_core::ports::StoreError;

use super::session::{Db, Plain};

/// The buckets of lists.
pub(super) struct Spans {
    db: Db,
    note: Plain,
    newest: Plain,
    oldest: Plain,
    forget: Plain,
}

impl Spans {
    pub(super) async fn new(db: &Db) -> anyhow::Result<Self> {
        Ok(Self {
            note: db.plain("INSERT INTO spans (list, bucket) VALUES (?, ?) USING TTL ?").await?,
            newest: db.plain("SELECT bucket FROM spans WHERE list = ? AND bucket >= ? AND bucket <= ? LIMIT ?").await?,
            oldest: db
                .plain("SELECT bucket FROM spans WHERE list = ? AND bucket <= ? ORDER BY bucket ASC LIMIT ?")
                .await?,
            forget: db.plain("DELETE FROM spans WHERE list = ? AND bucket = ?").await?,
            db: db.clone(),
        })
    }

    /// Notes that a bucket has rows, before the first of them is written. It is forgotten after `ttl_s`, when they are.
    pub(super) async fn note(&self, list: &str, bucket: i32, ttl_s: i32) -> Result<(), StoreError> {
        self.db.write(&self.note, (list, bucket, ttl_s)).await
    }

    /// The buckets of a list between two, the newest first.
    pub(super) async fn newest(&self, list: &str, from: i32, to: i32, limit: i32) -> Result<Vec<i32>, StoreError> {
        let rows = self.db.rows::<(i32,)>(&self.newest, (list, from, to, limit)).await?;
        Ok(rows.into_iter().map(|(bucket,)| bucket).collect())
    }

    /// The buckets of a list up to one, the oldest first.
    pub(super) async fn oldest(&self, list: &str, to: i32, limit: i32) -> Result<Vec<i32>, StoreError> {
        let rows = self.db.rows::<(i32,)>(&self.oldest, (list, to, limit)).await?;
        Ok(rows.into_iter().map(|(bucket,)| bucket).collect())
    }

    /// Forgets a bucket that has no rows and gets none any more.
    pub(super) async fn forget(&self, list: &str, bucket: i32) -> Result<(), StoreError> {
        self.db.write(&self.forget, (list, bucket)).await
    }
}
