//! Another process with this one's name. Each would take the other's partitions away, again and again.
//!
//! A process is called `NAME/RANDOM`: the name is its place among those with the same roles, and what is random tells it from
//! whoever had the name before.

use std::time::Duration;

use anyhow::Context;
use herald_control_plane::reports::REPORT_EVERY;
use herald_core::ports::{
    StoreError,
    fleet::{Fleet, ProcessReport},
};
use tokio_util::sync::CancellationToken;

/// How often another process of the same name is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks for a process of the same name that lives. One that was killed is silent, whatever it said last; to hear so takes
/// two seconds.
///
/// # Errors
/// If there is one, or the fleet does not answer (then the cause is a [`StoreError`]).
pub async fn refuse(process: &str, fleet: &dyn Fleet) -> anyhow::Result<()> {
    let (name, _) = process.split_once('/').unwrap_or((process, ""));
    let before = said(process, name, fleet).await?;
    if before.is_empty() {
        return Ok(());
    }
    tokio::time::sleep(2 * REPORT_EVERY).await;
    match said(process, name, fleet).await?.into_iter().find(|report| !before.contains(report)) {
        None => Ok(()),
        Some(other) => anyhow::bail!(
            "another process has the instance {name:?} ({}); give each a number of its own, and begin with 0",
            other.process
        ),
    }
}

async fn said(process: &str, name: &str, fleet: &dyn Fleet) -> anyhow::Result<Vec<ProcessReport>> {
    let mut all = fleet.running(0).await.context("the cache does not answer")?;
    let is_namesake = |report: &ProcessReport| {
        report.process != process && report.process.split_once('/').is_some_and(|(other, _)| other == name)
    };
    all.retain(is_namesake);
    Ok(all)
}

/// Looks for one until shutdown, since two that start at the same instant do not see each other.
///
/// # Errors
/// As soon as there is one.
pub async fn watch(process: String, fleet: &dyn Fleet, shutdown: CancellationToken) -> anyhow::Result<()> {
    while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        match refuse(&process, fleet).await {
            // A cache that is away is told of by the reports.
            Err(error) if !error.is::<StoreError>() => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
