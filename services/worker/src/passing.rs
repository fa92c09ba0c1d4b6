//! Errors of the log that pass.

use std::time::Duration;

use herald_core::ports::log::LogError;

/// How long a loop waits before it asks again.
const WAIT: Duration = Duration::from_millis(250);

/// Says what cannot be done and waits a moment after a passing error of the log; any other ends the role.
pub(crate) async fn wait_out(error: LogError, what: &str) -> anyhow::Result<()> {
    if !error.is_passing() {
        return Err(error.into());
    }
    tracing::warn!(%error, "{what}");
    tokio::time::sleep(WAIT).await;
    Ok(())
}
