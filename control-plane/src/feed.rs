//! The policy feed: what every role decides with, read from `control`.

use std::{sync::Arc, time::Duration};

use herald_core::{
    policy::Policy,
    ports::log::{Log, LogError, Record, partition},
    record::{Control, Schema},
    topic::{Topic, TopicPartition},
};
use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const RECORDS_A_READ: usize = 1_000;
const RETRY: Duration = Duration::from_secs(1);

/// Where policies are.
pub fn control() -> TopicPartition {
    partition(Topic::Control, 0)
}

/// The snapshot as of now: everything on `control`. A role starts with it, so that its first decision is an informed one.
pub async fn read_policy(log: &dyn Log) -> Result<Policy, LogError> {
    let mut policy = Policy::default();
    catch_up(log, &mut policy).await?;
    Ok(policy)
}

/// Follows `control` from the snapshot in `sender` on and publishes a new one after each change, until shutdown.
/// While the log is away the last snapshot holds.
pub async fn policy_feed(
    log: Arc<dyn Log>,
    sender: watch::Sender<Arc<Policy>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let follow = async {
        loop {
            let mut policy = Policy::clone(&sender.borrow());
            let before = policy.version;
            let read = catch_up(&*log, &mut policy).await;
            let version = policy.version;
            if version != before {
                sender.send_replace(Arc::new(policy));
            }
            let reached = match read {
                Ok(()) => log.reached(control(), version).await,
                Err(error) => Err(error),
            };
            if let Err(error) = reached {
                tracing::warn!(%error, "control cannot be read; the last policies hold");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => Ok(()),
        () = follow => Ok(()),
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
    let applied = match Control::decode(record.body.clone()) {
        Ok(control) => policy.apply(&control).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(cause) = applied {
        tracing::error!(offset = record.offset, cause, "a policy cannot be read and is passed over");
    }
}
