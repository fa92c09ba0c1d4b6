//! Waiting between attempts, and the two reasons to stop trying.

use std::{fmt::Display, time::Duration};

use tokio_util::sync::CancellationToken;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// Why a reader lets go of its subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Halt {
    /// The process stops.
    Shutdown,
    /// Another member owns a partition now; what is held is dropped and read again.
    Fenced,
}

/// Doubling waits, from 50 ms to 5 s.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// Reports the error and waits. Once the process stops there are no further attempts: whatever was not committed
    /// is read again at the next start.
    pub(crate) async fn after(
        &mut self,
        what: &str,
        error: &(impl Display + ?Sized),
        shutdown: &CancellationToken,
    ) -> Result<(), Halt> {
        let wait_ms = self.next.as_millis() as u64;
        tracing::warn!(what, %error, wait_ms, "the ledger tries again");
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Err(Halt::Shutdown),
            () = tokio::time::sleep(self.next) => {
                self.next = (self.next * 2).min(LONGEST);
                Ok(())
            }
        }
    }
}
