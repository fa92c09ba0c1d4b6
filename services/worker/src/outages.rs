//! What may be away while a worker goes on: said once by all members of a process, and waited for.

use std::{sync::Arc, time::Duration};

use herald_core::{clock::World, leases::Leases, outage::Outage, ports::log::LogError};

/// How long the store of the in-app feeds is left alone after it failed.
pub(crate) const STORE_RETRY: Duration = Duration::from_millis(100);

/// How long a loop waits before it asks the log again.
const WAIT: Duration = Duration::from_millis(250);

/// What the roles of the worker share of each other's outages.
#[derive(Debug)]
pub struct Outages {
    pub(crate) claims: Outage,
    pub(crate) people: Outage,
    pub(crate) inbox: Outage,
    pub(crate) sessions: Outage,
    pub(crate) budgets: Arc<Outage>,
    pub(crate) log: Outage,
}

impl Default for Outages {
    fn default() -> Self {
        let (cache, stores) = ("see that the cache answers and has room", "see that the stores answer");
        Self {
            claims: Outage::new("claims cannot be taken; what has a dedupe key waits, all else is sent", cache),
            people: Outage::new("profiles cannot be read; messages to people who are not in memory wait", stores),
            inbox: Outage::new("in-app items cannot be stored; they wait", stores)
                .put_off_for(STORE_RETRY.as_millis() as u64),
            sessions: Outage::new("live connections are not known; they read their inbox now and then", cache),
            budgets: Leases::outage(),
            log: of_log("the log cannot be read; nothing is decided meanwhile"),
        }
    }
}

/// What a loop says while it cannot read the log.
pub(crate) fn of_log(what: &'static str) -> Outage {
    Outage::new(what, "see that the log answers")
}

/// Says what cannot be done and waits a moment after a passing error of the log; any other ends the role.
pub(crate) async fn wait_out(outage: &Outage, error: LogError, world: &World) -> anyhow::Result<()> {
    if !error.is_passing() {
        return Err(error.into());
    }
    outage.failed(&error, 0, world.now_ms());
    tokio::time::sleep(WAIT).await;
    Ok(())
}
