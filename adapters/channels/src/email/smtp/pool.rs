//! A bounded set of connections to one server.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::connection::Connection;
use super::tls;
use crate::email::config::{ConfigError, SmtpConfig};
use crate::email::outcome::{Cause, Outcome};

/// A connection that was idle for longer is asked whether it is still there, before a message is risked on it.
const PROBE_AFTER: Duration = Duration::from_secs(1);

pub(crate) struct Pool {
    pub config: SmtpConfig,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// One permit for each connection in use. Idle ones need none: a new connection is opened only by a holder of a
    /// permit that finds none idle, so both together never exceed the bound.
    permits: Semaphore,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// The one used last is at the end, and is used first.
    connections: Vec<(Connection, Instant)>,
    reaper_runs: bool,
    closed: bool,
}

/// A connection in use.
pub(crate) struct Lease<'a> {
    pub connection: Connection,
    pool: &'a Arc<Pool>,
    _permit: SemaphorePermit<'a>,
}

impl Pool {
    pub fn new(config: SmtpConfig) -> Result<Arc<Self>, ConfigError> {
        config.check()?;
        let tls = tls::connector(&config)?;
        let permits = Semaphore::new(config.connections);
        Ok(Arc::new(Self { config, tls, permits, idle: Mutex::new(Idle::default()) }))
    }

    /// Waits for a free place. `None` once `still_wanted` says no; an error is the outcome of what waited.
    pub async fn acquire<'a>(
        self: &'a Arc<Self>,
        still_wanted: impl Fn() -> bool,
    ) -> Result<Option<Lease<'a>>, Outcome> {
        let closed = || Outcome::NotAttempted { cause: Cause::own("closed", "the client is closed") };
        let permit = self.permits.acquire().await.map_err(|_| closed())?;
        if !still_wanted() {
            return Ok(None);
        }
        loop {
            let idle = self.idle.lock().connections.pop();
            let Some((mut connection, since)) = idle else { break };
            let usable = !connection.is_stale().await
                && (since.elapsed() < PROBE_AFTER || connection.probe(self.config.timeouts.mail).await);
            if usable {
                return Ok(Some(Lease { connection, pool: self, _permit: permit }));
            }
        }
        let connection = Connection::open(&self.config, self.tls.as_ref()).await?;
        Ok(Some(Lease { connection, pool: self, _permit: permit }))
    }

    /// Closes idle connections and refuses new work; connections in use are closed when they are given back.
    pub async fn close(&self) {
        self.permits.close();
        let idle = {
            let mut idle = self.idle.lock();
            idle.closed = true;
            std::mem::take(&mut idle.connections)
        };
        let limit = self.config.timeouts.quit;
        futures::future::join_all(idle.into_iter().map(|(connection, _)| connection.quit(limit))).await;
    }

    /// Connections that are open and unused.
    pub fn idle_count(&self) -> usize {
        self.idle.lock().connections.len()
    }

    /// Takes out what has been idle for too long; `None` when nothing is left to watch.
    fn expired(&self, now: Instant) -> (Vec<Connection>, Option<Instant>) {
        let mut idle = self.idle.lock();
        let limit = self.config.idle_timeout;
        let fresh = idle.connections.iter().position(|(_, since)| *since + limit > now);
        let count = fresh.unwrap_or(idle.connections.len());
        let expired = idle.connections.drain(..count).map(|(connection, _)| connection).collect();
        let next = idle.connections.first().map(|(_, since)| *since + limit);
        idle.reaper_runs = next.is_some();
        (expired, next)
    }
}

impl Lease<'_> {
    /// Gives a connection with nothing in flight back for the next use.
    pub async fn give_back(self) {
        let Self { connection, pool, _permit } = self;
        let refused = {
            let mut idle = pool.idle.lock();
            if idle.closed {
                Some(connection)
            } else {
                let now = Instant::now();
                idle.connections.push((connection, now));
                if !idle.reaper_runs {
                    idle.reaper_runs = true;
                    tokio::spawn(reap(Arc::downgrade(pool), now + pool.config.idle_timeout));
                }
                None
            }
        };
        if let Some(connection) = refused {
            connection.quit(pool.config.timeouts.quit).await;
        }
    }
}

/// Closes connections that have been idle for too long; ends when none is idle or the pool is gone.
async fn reap(pool: Weak<Pool>, mut next: Instant) {
    loop {
        tokio::time::sleep_until(next).await;
        let Some(pool) = pool.upgrade() else { return };
        let (expired, watch) = pool.expired(Instant::now());
        let limit = pool.config.timeouts.quit;
        drop(pool);
        futures::future::join_all(expired.into_iter().map(|connection| connection.quit(limit))).await;
        match watch {
            Some(instant) => next = instant,
            None => return,
        }
    }
}
