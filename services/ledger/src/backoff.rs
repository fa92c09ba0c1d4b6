//! Waiting between attempts.

use std::{fmt::Display, sync::atomic::Ordering::Relaxed, time::Duration};

use herald_core::ports::{StoreError, log::LogError};
use tokio_util::sync::CancellationToken;

use crate::stats::LedgerStats;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// Doubling waits between attempts at the store, from 50 ms to 5 s.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// Counts and reports the error, and waits.
    ///
    /// # Errors
    /// The same one once the process stops, for then there are no further attempts.
    pub(crate) async fn after(
        &mut self,
        what: &str,
        error: StoreError,
        stats: &LedgerStats,
        shutdown: &CancellationToken,
    ) -> Result<(), StoreError> {
        report(what, &error, self.next, stats);
        shutdown.run_until_cancelled(tokio::time::sleep(self.next)).await.ok_or(error)?;
        self.next = (self.next * 2).min(LONGEST);
        Ok(())
    }
}

/// Counts and reports that the log could not be polled, and waits a moment, or until the process stops.
///
/// # Errors
/// The same one if it does not pass.
pub(crate) async fn wait_out(
    what: &str,
    error: LogError,
    stats: &LedgerStats,
    shutdown: &CancellationToken,
) -> Result<(), LogError> {
    if !error.is_passing() {
        return Err(error);
    }
    report(what, &error, FIRST, stats);
    shutdown.run_until_cancelled(tokio::time::sleep(FIRST)).await;
    Ok(())
}

/// What a reader ends with. That the store was away when the process stopped was reported and is no failure: whatever was
/// not committed is read again at the next start.
pub(crate) fn ended(result: anyhow::Result<()>, shutdown: &CancellationToken) -> anyhow::Result<()> {
    match result {
        Err(error) if shutdown.is_cancelled() && error.is::<StoreError>() => Ok(()),
        result => result,
    }
}

fn report(what: &str, error: &dyn Display, wait: Duration, stats: &LedgerStats) {
    stats.retries.fetch_add(1, Relaxed);
    tracing::warn!(what, %error, wait_ms = wait.as_millis() as u64, "the ledger tries again");
}
