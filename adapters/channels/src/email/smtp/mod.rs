//! The SMTP client.

mod connection;
mod extensions;
mod pool;
pub(crate) mod reply;
mod tls;
mod transfer;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::time::timeout;

use self::connection::Connection;
use self::extensions::Extensions;
use self::pool::{Lease, Pool};
pub use self::transfer::OutgoingMail;
use self::transfer::{Event, Mode, Transfer, preflight};
use super::config::{ConfigError, SmtpConfig};
use super::outcome::{Cause, Outcome, Stage};

/// Asked with a message's token right before it is put on the wire; `false` keeps it back.
pub type Gate<'a> = &'a (dyn Fn(u64) -> bool + Send + Sync);

/// Told each message's token and outcome as soon as it is in.
pub type Sink<'a> = &'a (dyn Fn(u64, Outcome) + Send + Sync);

/// Sends mail to one server over a bounded set of connections, which are kept for the next batch. Cheap to clone.
///
/// Nothing is retried here but what certainly was not handed over, within the same call, when a connection that has
/// got messages through goes away.
#[derive(Clone)]
pub struct EmailClient {
    pool: Arc<Pool>,
}

impl EmailClient {
    /// Makes a client; connects to nothing yet.
    ///
    /// # Errors
    /// [`ConfigError`] when a setting contradicts another or TLS cannot be set up.
    pub fn new(config: SmtpConfig) -> Result<Self, ConfigError> {
        Ok(Self { pool: Pool::new(config)? })
    }

    /// Sends a batch, in order as far as one connection carries it, and calls `sink` exactly once for each message.
    /// Returns when all outcomes are in. Must run in a Tokio runtime.
    ///
    /// A batch uses one connection for each `messages_in_flight` messages it holds, up to the bound. Dropping the
    /// future closes the connections in use; what was not reported then may or may not have arrived.
    pub async fn send(&self, batch: Vec<OutgoingMail>, gate: Option<Gate<'_>>, sink: Sink<'_>) {
        let config = &self.pool.config;
        let drivers = config.connections.min(batch.len().div_ceil(config.messages_in_flight));
        let job = Job { pool: &self.pool, queue: Mutex::new(batch.into()), gate, sink };
        let faults = futures::future::join_all((0..drivers).map(|_| job.drive())).await;
        let left = job.queue.into_inner();
        let fault = faults.into_iter().flatten().next();
        let fault = fault.unwrap_or_else(|| Outcome::NotAttempted { cause: Cause::own("lost", "no connection") });
        for mail in left {
            sink(mail.token, fault.clone());
        }
    }

    /// Connects and signs in as a batch would, and says QUIT.
    ///
    /// # Errors
    /// The outcome that a batch would have.
    pub async fn check(&self) -> Result<(), Outcome> {
        let lease = self.pool.acquire(|| true).await?;
        if let Some(lease) = lease {
            lease.give_back().await;
        }
        self.close().await;
        Ok(())
    }

    /// Says QUIT on idle connections and refuses further batches as `NotAttempted`. Calls that run finish.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Connections that are open and unused.
    pub fn idle_connections(&self) -> usize {
        self.pool.idle_count()
    }
}

/// One call of [`EmailClient::send`].
struct Job<'a> {
    pool: &'a Arc<Pool>,
    queue: Mutex<VecDeque<OutgoingMail>>,
    gate: Option<Gate<'a>>,
    sink: Sink<'a>,
}

/// How work on a connection ended.
enum End {
    /// All done; the connection may be used again.
    Drained,
    /// The connection is gone or useless. `progress`: it got an answer to at least one message, so that another
    /// connection may be worth trying.
    Gone { progress: bool, fault: Outcome },
}

impl Job<'_> {
    /// Works on the queue until it is empty, over as many connections, one after the other, as make progress. Returns
    /// what keeps the rest from being sent.
    async fn drive(&self) -> Option<Outcome> {
        loop {
            let mut lease = match self.pool.acquire(|| !self.queue.lock().is_empty()).await {
                Ok(Some(lease)) => lease,
                Ok(None) => return None,
                Err(fault) => return Some(fault),
            };
            match self.transfer(&mut lease).await {
                End::Drained => {
                    lease.give_back().await;
                    return None;
                }
                End::Gone { progress: false, fault } => return Some(fault),
                End::Gone { progress: true, .. } => {}
            }
        }
    }

    async fn transfer(&self, lease: &mut Lease<'_>) -> End {
        let config = &self.pool.config;
        let extensions = lease.connection.extensions.clone();
        let mode = match (extensions.pipelining, extensions.chunking && config.chunking) {
            (false, _) => Mode::Lockstep,
            (true, false) => Mode::Pipelined,
            (true, true) => Mode::Chunked { window: config.messages_in_flight },
        };
        let transfer = Transfer::new(mode, &extensions);
        let mut run = Run { job: self, connection: &mut lease.connection, extensions, transfer, progress: false };
        loop {
            run.fill();
            let Some(stage) = run.transfer.expected() else { return End::Drained };
            let stop = match timeout(self.limit(stage), run.connection.exchange()).await {
                Ok(Ok(())) => run.settle(),
                Ok(Err(error)) => Some(Stop::lost(Cause::own("lost", error.to_string()))),
                Err(_) => {
                    let word = format!("timeout.{}", stage.name());
                    Some(Stop::lost(Cause::own(&word, "the server does not answer")))
                }
            };
            if let Some(stop) = stop {
                return run.gone(stop);
            }
        }
    }

    fn may_go(&self, token: u64) -> bool {
        self.gate.is_none_or(|gate| gate(token))
    }

    fn limit(&self, stage: Stage) -> Duration {
        let timeouts = &self.pool.config.timeouts;
        match stage {
            Stage::Connect | Stage::Auth => timeouts.greeting,
            Stage::Mail => timeouts.mail,
            Stage::Rcpt => timeouts.rcpt,
            Stage::Data => timeouts.data,
            Stage::Body => timeouts.body,
        }
    }
}

/// A job's work on one connection.
struct Run<'r> {
    job: &'r Job<'r>,
    connection: &'r mut Connection,
    extensions: Extensions,
    transfer: Transfer,
    /// Whether an answer to a message, other than 421, has come on this connection.
    progress: bool,
}

/// Why nothing more can be done on a connection.
struct Stop {
    cause: Cause,
    /// The server said that it does nothing more, so that what it has not answered did not happen.
    closing: bool,
}

impl Stop {
    fn lost(cause: Cause) -> Self {
        Self { cause, closing: false }
    }

    fn closing(cause: Cause) -> Self {
        Self { cause, closing: true }
    }
}

impl Run<'_> {
    /// Begins as many messages as may be begun now.
    fn fill(&mut self) {
        let limit = self.job.pool.config.write_buffer_octets;
        while self.transfer.can_start() && self.connection.out.pending().len() < limit {
            let Some(mail) = self.job.queue.lock().pop_front() else { return };
            let token = mail.token;
            if !self.job.may_go(token) {
                (self.job.sink)(token, held_back());
                continue;
            }
            match preflight(&mail, &self.extensions) {
                Ok(needs) => self.transfer.start(mail, needs, Instant::now(), &mut self.connection.out),
                Err(outcome) => (self.job.sink)(token, outcome),
            }
        }
    }

    /// Works through the answers that have been received.
    fn settle(&mut self) -> Option<Stop> {
        loop {
            let (inbox, out) = self.connection.received();
            let (event, used) = match reply::parse(inbox) {
                Ok(None) => return None,
                Ok(Some((reply, used))) => (self.transfer.on_reply(&reply, out), used),
                Err(error) => return Some(Stop::lost(Cause::own("protocol", error.to_string()).alerting())),
            };
            self.connection.consume(used);
            match event {
                Event::Pending => {}
                Event::Finished { token, outcome, closing } => {
                    let stop = closing.then(|| outcome.cause().cloned()).flatten().map(Stop::closing);
                    (self.job.sink)(token, outcome);
                    if stop.is_some() {
                        return stop;
                    }
                    self.progress = true;
                }
                Event::Closing(cause) => return Some(Stop::closing(cause)),
                Event::TextWanted { asked, token } => {
                    if asked.elapsed() >= self.job.pool.config.gate_holds && !self.job.may_go(token) {
                        // The server waits for the text; only giving the connection up takes the message back.
                        self.transfer.withdraw();
                        (self.job.sink)(token, held_back());
                        self.progress = true;
                        return Some(Stop::closing(Cause::own("gate", "held back")));
                    }
                    self.transfer.send_text(&mut self.connection.out);
                }
            }
        }
    }

    /// Reports what is decided by the loss of the connection and puts what was not handed over back into the queue.
    fn gone(self, stop: Stop) -> End {
        let Self { job, connection, transfer, progress, .. } = self;
        let abandoned = transfer.abandon(&connection.out, stop.closing);
        for (token, outcome) in abandoned.refused {
            (job.sink)(token, outcome);
        }
        for token in abandoned.in_doubt {
            (job.sink)(token, Outcome::Unknown { cause: stop.cause.clone() });
        }
        let mut queue = job.queue.lock();
        for mail in abandoned.unsent.into_iter().rev() {
            queue.push_front(mail);
        }
        End::Gone { progress, fault: Outcome::NotAttempted { cause: stop.cause } }
    }
}

fn held_back() -> Outcome {
    Outcome::NotAttempted { cause: Cause::own("gate", "held back before it was sent") }
}
