//! The policy feed: what every role decides with, read from `control`.

use std::{sync::Arc, time::Duration};

use herald_core::{
    clock::World,
    control::{ControlReads, control, policy_of},
    levels::Levels,
    outage::Outage,
    policy::Policy,
    ports::log::{Log, LogError, Record},
    providers::Providers,
    record::Schema,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const RECORDS_A_READ: usize = 1_000;
/// How often `control` is read although nothing new is known to be on it: no send starts unless it was read to its end
/// within the last second.
const READ_EVERY: Duration = Duration::from_millis(200);

/// The snapshot as of now: everything on `control`, and the providers of the configuration. A role starts with it, so that its
/// first decision is an informed one. From then on the process writes at the level that the installation has reached.
///
/// # Errors
/// If the log cannot be read, or the installation is of a higher level than this process reads.
pub async fn read_policy(log: &dyn Log, levels: &Levels, configured: Providers) -> Result<Policy, LogError> {
    let mut policy = Policy::default().with_configured(configured);
    catch_up(log, &mut policy).await?;
    levels.reached(policy.feature_level())?;
    Ok(policy)
}

/// Follows `control` from the snapshot in `sender` on and publishes a new one after each change, until shutdown; `reads`
/// tells how far it has come. While the log is away the last snapshot holds.
///
/// # Errors
/// As soon as anybody in this process has met what only a newer program can read.
pub async fn policy_feed(
    log: Arc<dyn Log>,
    levels: Arc<Levels>,
    sender: watch::Sender<Arc<Policy>>,
    reads: Arc<ControlReads>,
    world: World,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let away =
        Outage::new("control cannot be read; the last policies hold, and no send starts", "see that the log answers");
    let follow = async {
        loop {
            let (read, asked_ms) = (reads.begin(), world.steady_ms());
            let mut policy = Policy::clone(&sender.borrow());
            let before = policy.version;
            let reached_end = catch_up(&*log, &mut policy).await;
            let version = policy.version;
            levels.reached(policy.feature_level()).map_err(LogError::from)?;
            if version != before {
                sender.send_replace(Arc::new(policy));
            }
            match reached_end {
                Ok(()) => {
                    away.answered(world.now_ms());
                    reads.end(read, asked_ms);
                    // News is read at once. A log that has failed may still be read, so its error must not be asked for
                    // again without a pause.
                    if let Ok(Err(error)) = tokio::time::timeout(READ_EVERY, log.reached(control(), version)).await {
                        tracing::warn!(%error, "news on control are not heard of; it is read now and then");
                        tokio::time::sleep(READ_EVERY).await;
                    }
                }
                Err(error) => {
                    away.failed(&error, 0, world.now_ms());
                    tokio::time::sleep(READ_EVERY).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => Ok(()),
        ended = follow => ended,
    }
}

/// Reads from the policy's version to the end. What was read before an error is applied.
async fn catch_up(log: &dyn Log, policy: &mut Policy) -> Result<(), LogError> {
    loop {
        let (records, next) = log.read(control(), policy.version, RECORDS_A_READ).await?;
        if next == policy.version {
            return Ok(());
        }
        records.iter().for_each(|record| apply(policy, record));
        policy.version = next;
    }
}

/// Applies a record. One that cannot be read is passed over: an older binary must go on, and so must the feed.
fn apply(policy: &mut Policy, record: &Record) {
    if record.envelope.schema() != Schema::Control {
        return;
    }
    let applied = match policy_of(record) {
        Ok(control) => policy.apply(&control).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(cause) = applied {
        tracing::error!(offset = record.offset, cause, "a policy cannot be read and is passed over");
    }
}
