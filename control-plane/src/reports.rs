//! Which policies run where: each process says so, and whoever changed a policy waits until all do.

use std::{sync::Arc, time::Duration};

use herald_core::{
    clock::World,
    control::RoleVersions,
    policy::Policy,
    ports::fleet::{Fleet, ProcessReport},
};
use herald_proto::v1;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// A process says again what it runs at least this often.
pub const REPORT_EVERY: Duration = Duration::from_secs(1);

/// A process that was silent for longer is taken for stopped.
const SILENT_AFTER_MS: u64 = 5_000;

/// How often somebody who waits looks again.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The role that a process's snapshot itself stands for: gateways and control planes decide with the newest one.
const SNAPSHOT: &str = "snapshot";

/// Reports what this process runs, and the highest feature level that it reads, until shutdown, at once after each change,
/// then takes its leave.
pub async fn report_until(
    fleet: Arc<dyn Fleet>,
    process: String,
    reads_level: u32,
    roles: Arc<RoleVersions>,
    mut policy: watch::Receiver<Arc<Policy>>,
    world: World,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let report = async {
        loop {
            let version = policy.borrow_and_update().version;
            let mut versions = roles.by_role();
            versions.insert(SNAPSHOT.to_owned(), version);
            let settled = versions.values().all(|runs| *runs >= version);
            let report = ProcessReport { process: process.clone(), seen_ms: world.now_ms(), versions, reads_level };
            if let Err(error) = fleet.report(report).await {
                tracing::warn!(%error, "what this process runs cannot be reported");
            }
            // Roles take up a new snapshot when they next decide.
            let wait = if settled { REPORT_EVERY } else { LOOK_EVERY };
            if let Ok(Err(_)) = tokio::time::timeout(wait, policy.changed()).await {
                // The feed has ended, and with it the process soon will.
                std::future::pending::<()>().await;
            }
        }
    };
    shutdown.run_until_cancelled(report).await;
    if let Err(error) = fleet.leave(&process).await {
        tracing::warn!(%error, "this process cannot take its leave; it will be taken for silent");
    }
    Ok(())
}

/// Waits until every process decides with this version of the policies, and no longer than `within`; says how many do,
/// and who does not.
pub async fn applied(fleet: &dyn Fleet, world: &World, version: u64, within: Duration) -> v1::Applied {
    let began = Instant::now();
    loop {
        let after_ms = u32::try_from(began.elapsed().as_millis()).unwrap_or(u32::MAX);
        let over = began.elapsed() >= within;
        match fleet.running(world.now_ms().saturating_sub(SILENT_AFTER_MS)).await {
            Ok(running) => {
                let missing: Vec<String> = running.iter().filter_map(|process| behind(process, version)).collect();
                if over || (missing.is_empty() && !running.is_empty()) {
                    let of = u32::try_from(running.len()).unwrap_or(u32::MAX);
                    let processes = of.saturating_sub(missing.len() as u32);
                    return v1::Applied { processes, of, after_ms, missing };
                }
            }
            Err(error) if over => {
                let missing = vec![format!("unknown: {error}")];
                return v1::Applied { processes: 0, of: 0, after_ms, missing };
            }
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Names a process and those of its roles that decide with older policies.
fn behind(process: &ProcessReport, version: u64) -> Option<String> {
    let roles: Vec<&str> = process.behind(version).collect();
    (!roles.is_empty()).then(|| format!("{} ({})", process.process, roles.join(", ")))
}
