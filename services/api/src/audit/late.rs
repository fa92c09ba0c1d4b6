//! Calls of operators whose record the store did not take in time: kept in memory, and stored once it answers.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use herald_core::ports::audit::{Audit, AuditRow};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Records that are kept at most; what comes beyond is on the process's log only.
const MAX_KEPT: usize = 1_000;

/// How long a store that did not take a record is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long a process that ends tries to store what it keeps.
const LAST_TRY_WITHIN: Duration = Duration::from_secs(2);

/// What became of records that were not stored in time.
#[derive(Debug, Default)]
pub struct AuditStats {
    /// Records that are kept until the store takes them.
    pub waiting: AtomicU64,
    /// Records that were given up since the start: the audit log will never have them.
    pub lost: AtomicU64,
}

/// The records, in the order of their calls.
pub(super) struct Late {
    rows: Mutex<VecDeque<AuditRow>>,
    added: Notify,
    stats: Arc<AuditStats>,
}

impl Late {
    pub(super) fn new(stats: Arc<AuditStats>) -> Self {
        Self { rows: Mutex::default(), added: Notify::new(), stats }
    }

    /// Keeps a record, which was not stored because of `error`, unless there are too many.
    pub(super) fn keep(&self, row: AuditRow, error: &str) {
        let AuditRow { actor, action, request_id, result, detail, .. } = row.clone();
        let mut rows = self.rows.lock();
        if rows.len() == MAX_KEPT {
            return self.give_up(&row, error);
        }
        rows.push_back(row);
        self.stats.waiting.store(rows.len() as u64, Relaxed);
        // The process may end before the store answers, so its log has all of it.
        tracing::warn!(
            actor,
            action,
            request_id,
            result,
            detail,
            error,
            "an operator's call is not in the audit log yet; it is stored once the store answers"
        );
        self.added.notify_one();
    }

    fn give_up(&self, row: &AuditRow, error: &str) {
        let AuditRow { actor, action, request_id, result, detail, .. } = row;
        self.stats.lost.fetch_add(1, Relaxed);
        tracing::error!(actor, action, request_id, result, detail, error, "an operator's call is not in the audit log");
    }

    /// Stores records as they come and as the store takes them.
    pub(super) async fn store_on(&self, audit: &dyn Audit) -> Infallible {
        loop {
            match self.store_all(audit).await {
                Ok(0) => {}
                Ok(stored) => tracing::info!(stored, "calls of operators that had to wait are in the audit log"),
                Err(_) => {
                    tokio::time::sleep(RETRY_AFTER).await;
                    continue;
                }
            }
            self.added.notified().await;
        }
    }

    /// Stores what there is, for the last time.
    pub(super) async fn store_last(&self, audit: &dyn Audit) {
        let error = match tokio::time::timeout(LAST_TRY_WITHIN, self.store_all(audit)).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error,
            Err(_) => "it took too long".to_owned(),
        };
        let left = std::mem::take(&mut *self.rows.lock());
        self.stats.waiting.store(0, Relaxed);
        left.iter().for_each(|row| self.give_up(row, &error));
    }

    /// Stores record after record up to the first that is not taken. Nobody else takes records out meanwhile, and one that
    /// was stored although its answer did not come is stored again as the same.
    async fn store_all(&self, audit: &dyn Audit) -> Result<usize, String> {
        let mut stored = 0;
        loop {
            let Some(row) = self.rows.lock().front().cloned() else { return Ok(stored) };
            audit.record(row).await.map_err(|error| error.to_string())?;
            let mut rows = self.rows.lock();
            rows.pop_front();
            self.stats.waiting.store(rows.len() as u64, Relaxed);
            stored += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use herald_core::ports::{
        StoreError,
        audit::AuditFilter,
        ledger::{ForeignToken, Page},
    };

    use super::*;

    /// A store that is away, or takes so many records and is away then.
    #[derive(Default)]
    struct Store {
        takes: AtomicU64,
        stored: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl Audit for Store {
        async fn record(&self, row: AuditRow) -> Result<(), StoreError> {
            if self.takes.load(Relaxed) == 0 {
                return Err(StoreError::Unavailable("away".into()));
            }
            self.takes.fetch_sub(1, Relaxed);
            self.stored.lock().push(row.request_id);
            Ok(())
        }

        async fn list(
            &self,
            _: &AuditFilter,
            _: Option<&[u8]>,
            _: usize,
        ) -> Result<Result<Page<AuditRow>, ForeignToken>, StoreError> {
            unreachable!("nobody lists")
        }
    }

    fn row(number: usize) -> AuditRow {
        AuditRow {
            at_ms: 1,
            actor: "op".into(),
            action: "PUT /v1/admin/switches".into(),
            tenant: None,
            result: "ok".into(),
            status: 200,
            request_id: number.to_string(),
            detail: "off all".into(),
        }
    }

    fn late() -> (Late, Arc<AuditStats>) {
        let stats = Arc::<AuditStats>::default();
        (Late::new(stats.clone()), stats)
    }

    fn counts(stats: &AuditStats) -> (u64, u64) {
        (stats.waiting.load(Relaxed), stats.lost.load(Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_stored_in_order_once_the_store_is_back() {
        let ((late, stats), store) = (late(), Store::default());
        let on = async {
            (0..5).for_each(|number| late.keep(row(number), "away"));
            tokio::time::sleep(Duration::from_mins(1)).await;
            assert_eq!(counts(&stats), (5, 0));
            store.takes.store(2, Relaxed);
            tokio::time::sleep(RETRY_AFTER * 2).await;
            assert_eq!(counts(&stats), (3, 0));
            store.takes.store(9, Relaxed);
            tokio::time::sleep(RETRY_AFTER * 2).await;
            assert_eq!(*store.stored.lock(), ["0", "1", "2", "3", "4"], "each once");
            late.keep(row(5), "it took too long");
            tokio::time::sleep(RETRY_AFTER).await;
            assert_eq!((store.stored.lock().len(), counts(&stats)), (6, (0, 0)));
        };
        tokio::select! { () = on => {}, never = late.store_on(&store) => match never {} }
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_kept_is_counted() {
        let ((late, stats), store) = (late(), Store::default());
        (0..MAX_KEPT + 3).for_each(|number| late.keep(row(number), "away"));
        assert_eq!(counts(&stats), (MAX_KEPT as u64, 3));
        // A process that ends stores what the store takes.
        store.takes.store(10, Relaxed);
        late.store_last(&store).await;
        assert_eq!((store.stored.lock().len(), counts(&stats)), (10, (0, MAX_KEPT as u64 + 3 - 10)));
    }
}
