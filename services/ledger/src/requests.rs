//! The requests reader: a row for each admitted id, so that status never says 404 after a 202.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed, time::Duration};

use herald_core::{
    ids::{NotificationId, TenantId},
    ports::{
        ledger::{AdmittedRow, Flush},
        log::{Commit, Committed, Polled, Position, Record, Subscription},
    },
    record::{Notification, Request, Schema},
    topic::{Group, TopicPartition},
};
use prost::Message;
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Deps,
    backoff::{Backoff, Halt},
};

const IDLE_WAIT: Duration = Duration::from_secs(1);

/// Runs the reader until shutdown.
pub async fn run(config: Config, deps: Deps, shutdown: CancellationToken) {
    let reader = Reader { config, deps, shutdown };
    let mut backoff = Backoff::new();
    while let Err(Halt::Fenced) = reader.session().await {
        if backoff.after("requests", "another member took over", &reader.shutdown).await.is_err() {
            return;
        }
    }
}

/// What a record says of an admitted request: `None` for a continuation or another schema, whose request was noted
/// when it was admitted; an error where it cannot be read.
pub fn admitted(record: &Record) -> Result<Option<AdmittedRow>, prost::DecodeError> {
    if record.envelope.schema() != Schema::Request {
        return Ok(None);
    }
    let request = Request::decode(record.body.clone())?;
    let notification = Notification::decode(request.notification)?;
    let id = NotificationId::from_slice(&notification.id);
    Ok(id.map(|id| AdmittedRow {
        id,
        tenant: TenantId::trusted(&notification.tenant),
        template_id: notification.template_id,
        template_version: notification.template_version,
        accepted_ms: notification.accepted_ms,
        send_at_ms: notification.send_at_ms,
        expires_ms: notification.expires_ms,
        dedupe_key: notification.dedupe_key,
    }))
}

struct Reader {
    config: Config,
    deps: Deps,
    shutdown: CancellationToken,
}

impl Reader {
    /// Reads until the subscription must be let go. What was polled is stored and committed before the next poll.
    async fn session(&self) -> Result<std::convert::Infallible, Halt> {
        let mut backoff = Backoff::new();
        let mut subscription = loop {
            match self.deps.log.subscribe(Group::LedgerRequests, self.deps.member).await {
                Ok(subscription) => break subscription,
                Err(error) => self.again(&mut backoff, "requests.subscribe", &error).await?,
            }
        };
        loop {
            let polled = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Err(Halt::Shutdown),
                polled = subscription.poll(self.config.poll_max_records, IDLE_WAIT) => polled,
            };
            match polled {
                Ok(polled) => {
                    let polled = polled.or_halt().map_err(|_| Halt::Fenced)?;
                    backoff = Backoff::new();
                    self.store(&polled).await?;
                    self.commit(&mut *subscription, positions(&polled.records)).await?;
                }
                Err(error) => self.again(&mut backoff, "requests.poll", &error).await?,
            }
        }
    }

    async fn store(&self, polled: &Polled) -> Result<(), Halt> {
        let rows = self.rows(&polled.records);
        if rows.is_empty() {
            return Ok(());
        }
        let mut backoff = Backoff::new();
        while let Err(error) = self.deps.log.durable(polled.mark).await {
            self.again(&mut backoff, "requests.durable", &error).await?;
        }
        let noted = rows.len() as u64;
        let mut rows = Some(rows);
        loop {
            // A further attempt reads the rows again: they are not copied for the attempt that nearly always succeeds.
            let admitted = rows.take().unwrap_or_else(|| rows_of(&polled.records).0);
            match self.deps.ledger.apply(Flush { admitted, ..Flush::default() }).await {
                Ok(()) => break,
                Err(error) => self.again(&mut backoff, "requests.store", &error).await?,
            }
        }
        self.deps.stats.admitted.fetch_add(noted, Relaxed);
        Ok(())
    }

    fn rows(&self, records: &[Record]) -> Vec<AdmittedRow> {
        let (rows, unreadable) = rows_of(records);
        for (record, cause) in unreadable {
            // The orchestrator, which reads the same record, makes it a dead letter.
            tracing::error!(at = %record.at, offset = record.offset, cause, "a request cannot be read");
            self.deps.stats.unreadable.fetch_add(1, Relaxed);
        }
        rows
    }

    async fn commit(
        &self,
        subscription: &mut dyn Subscription,
        positions: Vec<(TopicPartition, Position)>,
    ) -> Result<(), Halt> {
        if positions.is_empty() {
            return Ok(());
        }
        let commit = Commit { positions, outputs: Vec::new() };
        let mut backoff = Backoff::new();
        loop {
            match subscription.commit(commit.clone()).await {
                Ok(Committed::Done(_)) => return Ok(()),
                Ok(Committed::Fenced) => return Err(Halt::Fenced),
                Err(error) => self.again(&mut backoff, "requests.commit", &error).await?,
            }
        }
    }

    async fn again(&self, backoff: &mut Backoff, what: &str, error: &impl std::fmt::Display) -> Result<(), Halt> {
        self.deps.stats.retries.fetch_add(1, Relaxed);
        backoff.after(what, error, &self.shutdown).await
    }
}

fn rows_of(records: &[Record]) -> (Vec<AdmittedRow>, Vec<(&Record, String)>) {
    let (mut rows, mut unreadable) = (Vec::new(), Vec::new());
    for record in records {
        match admitted(record) {
            Ok(row) => rows.extend(row),
            Err(error) => unreadable.push((record, error.to_string())),
        }
    }
    (rows, unreadable)
}

fn positions(records: &[Record]) -> Vec<(TopicPartition, Position)> {
    let next: BTreeMap<TopicPartition, u64> = records.iter().map(|record| (record.at, record.offset + 1)).collect();
    next.into_iter().map(|(at, offset)| (at, Position { offset, ..Position::default() })).collect()
}
