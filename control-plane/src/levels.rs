//! Raising the feature level of an installation, once nobody is left who could not read what is written then.

use herald_core::{
    clock::World,
    control::control_record,
    levels::LevelRow,
    policy::{Policy, kind},
    ports::{
        StoreError,
        fleet::{Fleet, ProcessReport},
        log::{Log, LogError},
    },
    record::Control,
};

/// A process that said something within this time is taken for running, unless it took its leave: long enough for one
/// that was stopped for a while, or whose clock is wrong.
const RUNS_FOR_MS: u64 = 60_000;

/// Why a level is not raised.
#[derive(Debug, thiserror::Error)]
pub enum NotRaised {
    /// These cannot read what would be written.
    #[error(
        "{} read{} up to a lower feature level than {to}: {}. Run the new version there first; one that was killed is waited for \
         a minute",
        count(.processes.len()), if .processes.len() == 1 { "s" } else { "" }, .processes.join(", ")
    )]
    Behind {
        /// The level that was asked for.
        to: u32,
        /// Their names, with the levels that they read.
        processes: Vec<String>,
    },
    /// Who runs is not known.
    #[error(
        "no process has said within a minute that it runs: start the new version first, and see that all use the same cache"
    )]
    NobodyRuns,
    /// Who runs is not known, since the cache is away.
    #[error("which processes run is not known: {0}")]
    Fleet(#[from] StoreError),
    /// It is open whether it was raised; a repeated call tells.
    #[error(transparent)]
    Log(#[from] LogError),
}

fn count(processes: usize) -> String {
    if processes == 1 { "1 process".into() } else { format!("{processes} processes") }
}

/// Raises the level to `to`, if every process reads that. Returns whether it was lower before.
///
/// # Errors
/// [`NotRaised`], if some process does not, or it cannot be known or written.
pub async fn raise(
    to: u32,
    policy: &Policy,
    log: &dyn Log,
    fleet: &dyn Fleet,
    world: &World,
) -> Result<bool, NotRaised> {
    let running = fleet.running(world.now_ms().saturating_sub(RUNS_FOR_MS)).await?;
    let behind = |process: &ProcessReport| format!("{} ({})", process.process, process.reads_level);
    let processes: Vec<String> = running.iter().filter(|process| process.reads_level < to).map(behind).collect();
    match (processes.is_empty(), running.is_empty()) {
        (false, _) => Err(NotRaised::Behind { to, processes }),
        (true, true) => Err(NotRaised::NobodyRuns),
        (true, false) => Ok(raise_alone(to, policy, log, world).await?),
    }
}

/// The same where no other process can be: on a data directory, which one process has for itself.
///
/// # Errors
/// If it is open whether it was raised.
pub async fn raise_alone(to: u32, policy: &Policy, log: &dyn Log, world: &World) -> Result<bool, LogError> {
    if policy.feature_level() >= to {
        return Ok(false);
    }
    let now_ms = world.now_ms();
    let row = LevelRow { level: to, reached_ms: now_ms };
    let value = serde_json::to_vec(&row).map_err(|error| LogError::Unavailable(error.to_string()))?;
    let (kind, key) = (kind::FEATURE_LEVEL.to_owned(), to.to_string());
    let reached = Control { kind, key, version: now_ms, value: value.into(), deleted: false };
    // Itself it is written at the level before, so that everybody can read why they must go.
    log.append(vec![control_record(log.identity(), &reached, now_ms)]).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use herald_core::{levels::Levels, ports::log::Log};

    use super::*;
    use crate::{
        feed::read_policy,
        testing::{FakeFleet, FakeLog, FakeRegistry, Process},
    };

    async fn level(log: &FakeLog) -> u32 {
        read_policy(log, &Levels::new(9), Default::default()).await.unwrap().feature_level()
    }

    #[tokio::test(start_paused = true)]
    async fn a_level_is_raised_once_all_who_run_read_it() {
        let log = FakeLog::new();
        let process = Process::start(&log, &Arc::new(FakeRegistry::default()));
        let (policy, world, fleet) = (Policy::default(), process.publisher.world().clone(), FakeFleet::default());
        let report = |process: &str, reads_level| ProcessReport {
            process: process.into(),
            seen_ms: world.now_ms(),
            versions: Default::default(),
            reads_level,
        };
        assert!(matches!(raise(2, &policy, &*log, &fleet, &world).await, Err(NotRaised::NobodyRuns)));

        fleet.report(report("new-0", 2)).await.unwrap();
        fleet.report(report("old-0", 1)).await.unwrap();
        let refused = raise(2, &policy, &*log, &fleet, &world).await.unwrap_err();
        assert!(refused.to_string().starts_with("1 process reads up to a lower feature level than 2: old-0 (1)."));
        assert_eq!(level(&log).await, 1);

        fleet.leave("old-0").await.unwrap();
        assert!(raise(2, &policy, &*log, &fleet, &world).await.unwrap());
        assert_eq!(level(&log).await, 2);
        process.until("it is raised", |policy| policy.feature_level() == 2).await;
        let policy = process.publisher.policy();
        let end = log.read(herald_core::control::control(), 0, 100).await.unwrap().1;
        assert!(!raise(2, &policy, &*log, &fleet, &world).await.unwrap(), "it was raised before");
        assert_eq!(log.read(herald_core::control::control(), 0, 100).await.unwrap().1, end);
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_of_a_lower_level_does_not_start() {
        let log = FakeLog::new();
        let process = Process::start(&log, &Arc::new(FakeRegistry::default()));
        assert!(raise_alone(3, &Policy::default(), &*log, process.publisher.world()).await.unwrap());
        let refused = read_policy(&*log, &Levels::new(2), Default::default()).await.err().unwrap();
        let said = refused.to_string();
        assert!(said.contains("the installation is of feature level 3, and this program reads up to 2"), "{said}");
    }
}
