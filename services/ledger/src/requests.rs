//! The requests reader: a row for each admitted id, so that status never says 404 after a 202.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed, time::Duration};

use herald_core::{
    ids::{NotificationId, TenantId},
    ports::{
        ledger::{AdmittedRow, Flush},
        log::{Commit, Committed, Halted, Member, Polled, Position, Record, Subscription},
    },
    record::{Notification, Request, Schema},
    topic::{Group, TopicPartition},
};
use prost::Message;
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Deps,
    backoff::{Backoff, ended, wait_out},
};

const IDLE_WAIT: Duration = Duration::from_secs(1);

/// Runs one member of the reader until shutdown.
///
/// # Errors
/// A [`Halted`](herald_core::ports::log::Halted) where it must join its group anew: what was not committed is read again.
/// Otherwise the log has failed.
pub async fn run(config: Config, deps: Deps, member: Member, shutdown: CancellationToken) -> anyhow::Result<()> {
    let subscription = deps.log.subscribe(Group::LedgerRequests, member).await?;
    let reader = Reader { config, deps, subscription, shutdown: shutdown.clone() };
    ended(reader.read().await, &shutdown)
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
    subscription: Box<dyn Subscription>,
    shutdown: CancellationToken,
}

impl Reader {
    /// What was polled is stored and committed before the next poll.
    async fn read(mut self) -> anyhow::Result<()> {
        loop {
            let polled = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Ok(()),
                polled = self.subscription.poll(self.config.poll_max_records, IDLE_WAIT) => polled,
            };
            match polled {
                Ok(polled) => {
                    let polled = polled.or_halt()?;
                    self.store(&polled).await?;
                    self.commit(positions(&polled.records)).await?;
                }
                Err(error) => wait_out("requests.poll", error, &self.deps.stats, &self.shutdown).await?,
            }
        }
    }

    async fn store(&self, polled: &Polled) -> anyhow::Result<()> {
        let rows = self.rows(&polled.records);
        if rows.is_empty() {
            return Ok(());
        }
        self.deps.log.durable(polled.mark).await?;
        let noted = rows.len() as u64;
        let (mut rows, mut backoff) = (Some(rows), Backoff::new());
        loop {
            // A further attempt reads the rows again: they are not copied for the attempt that nearly always succeeds.
            let admitted = rows.take().unwrap_or_else(|| rows_of(&polled.records).0);
            match self.deps.ledger.apply(Flush { admitted, ..Flush::default() }).await {
                Ok(()) => break,
                Err(error) => backoff.after("requests.store", error, &self.deps.stats, &self.shutdown).await?,
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

    async fn commit(&mut self, positions: Vec<(TopicPartition, Position)>) -> Result<(), Halted> {
        if !positions.is_empty() {
            let commit = Commit { positions, outputs: Vec::new() };
            Committed::or_halt(self.subscription.commit(commit).await)?;
        }
        Ok(())
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
