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

/// The same for a process that runs already: while the cache is away it goes on, and looks again later.
///
/// # Errors
/// If there is one.
pub async fn refuse_known(process: &str, fleet: &dyn Fleet) -> anyhow::Result<()> {
    match refuse(process, fleet).await {
        // That the cache is away is told of by the reports.
        Err(error) if error.is::<StoreError>() => Ok(()),
        looked => looked,
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
        refuse_known(&process, fleet).await?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod testing {
    use std::{sync::Arc, time::Duration};

    use async_trait::async_trait;
    use herald_core::ports::{
        StoreError,
        fleet::{Fleet, ProcessReport},
    };

    /// A process that says every half of a second that it lives.
    pub(crate) async fn live(process: &str, fleet: Arc<dyn Fleet>) {
        for seen_ms in 1.. {
            let report =
                ProcessReport { process: process.into(), seen_ms, reads_level: 1, versions: Default::default() };
            fleet.report(report).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// A fleet whose cache is away.
    pub(crate) struct Away;

    #[async_trait]
    impl Fleet for Away {
        async fn report(&self, _: ProcessReport) -> Result<(), StoreError> {
            Err(StoreError::Unavailable("away".into()))
        }

        async fn running(&self, _: u64) -> Result<Vec<ProcessReport>, StoreError> {
            Err(StoreError::Unavailable("away".into()))
        }

        async fn leave(&self, _: &str) -> Result<(), StoreError> {
            Err(StoreError::Unavailable("away".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use herald_embedded::fleet::LocalFleet;

    use super::{
        testing::{Away, live},
        *,
    };

    const PROCESS: &str = "worker-0/mine";

    #[tokio::test(start_paused = true)]
    async fn a_namesake_that_lives_is_refused_and_nobody_else() {
        let fleet = Arc::new(LocalFleet::new());
        for silent in ["worker-0/killed", PROCESS] {
            let report =
                ProcessReport { process: silent.into(), seen_ms: 1, reads_level: 1, versions: BTreeMap::new() };
            fleet.report(report).await.unwrap();
        }
        for other in [PROCESS, "worker-1/other", "worker-0"] {
            tokio::spawn(live(other, fleet.clone()));
        }
        refuse(PROCESS, &*fleet).await.unwrap();
        tokio::spawn(live("worker-0/other", fleet.clone()));
        tokio::time::sleep(Duration::from_millis(1)).await;
        for refused in [refuse(PROCESS, &*fleet).await, refuse_known(PROCESS, &*fleet).await] {
            let told = refused.unwrap_err().to_string();
            assert!(told.contains("another process has the instance \"worker-0\" (worker-0/other)"), "{told}");
        }
    }

    #[tokio::test]
    async fn without_the_cache_nobody_starts_and_whoever_runs_goes_on() {
        assert!(refuse(PROCESS, &Away).await.unwrap_err().is::<StoreError>());
        refuse_known(PROCESS, &Away).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_namesake_that_comes_later_is_seen_and_a_stop_ends_the_looking() {
        let (fleet, shutdown) = (Arc::new(LocalFleet::new()), CancellationToken::new());
        let stopped = {
            let (fleet, shutdown) = (fleet.clone(), shutdown.clone());
            tokio::spawn(async move { watch(PROCESS.into(), &*fleet, shutdown).await })
        };
        tokio::time::sleep(10 * LOOK_EVERY).await;
        assert!(!stopped.is_finished());
        shutdown.cancel();
        stopped.await.unwrap().unwrap();
        tokio::spawn(live("worker-0/other", fleet.clone()));
        let watched = watch(PROCESS.into(), &*fleet, CancellationToken::new());
        assert!(tokio::time::timeout(10 * LOOK_EVERY, watched).await.expect("it is seen").is_err());
    }
}
