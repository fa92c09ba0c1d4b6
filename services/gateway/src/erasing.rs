//! Erasing persons: at once for whoever asks or sends, and in passes over what is stored.

use std::time::Duration;

use herald_api::{
    auth::Authenticated,
    time::{some_timestamp, timestamp},
};
use herald_core::{
    auth::Scope,
    ids::NotificationId,
    ports::erasures::Erasure,
    problem::Problem,
    record::UserChange,
    topic::{Retention, Topic},
};
use herald_proto::v1;

use crate::{service::Gateway, users::check_id};

/// How often due passes are looked for.
const INTERVAL: Duration = Duration::from_secs(1);
/// Erasures that are worked on in turn, so that a long one does not hold up the others.
const AT_ONCE: usize = 64;
const HOUR_MS: u64 = 3_600_000;

impl Gateway {
    /// Begins to erase a person, whether registered or not, and announces it: no send starts a second later.
    ///
    /// # Errors
    /// 400 for an id that cannot be; 503 where it may have begun, and the call is to be repeated.
    pub async fn delete_user(&self, who: &Authenticated, user_id: &str) -> Result<v1::DeleteUserResponse, Problem> {
        let tenant = who.caller.require(Scope::Users)?;
        check_id("user_id", user_id)?;
        let (now_ms, entropy) = (self.now_ms(), &self.deps.world.entropy);
        let erasure = Erasure {
            id: NotificationId::at(now_ms, [entropy.next_u64(), entropy.next_u64()]).to_string(),
            tenant: tenant.clone(),
            user_id: user_id.to_owned(),
            begun_ms: now_ms,
            completed_ms: 0,
            log_gone_ms: now_ms + self.log_keeps_ms(),
            due_ms: now_ms,
        };
        let erasure = self.deps.erasures.begin(erasure).await?;
        let change =
            UserChange { tenant: tenant.as_str().to_owned(), user_id: user_id.to_owned(), version: 0, erased: true };
        self.announce(tenant, vec![change]).await?;
        self.erasure_begun.notify_one();
        Ok(v1::DeleteUserResponse { erasure_id: erasure.id })
    }

    /// How far an erasure is.
    ///
    /// # Errors
    /// 404 where the tenant has none of that id.
    pub async fn erasure(&self, who: &Authenticated, id: &str) -> Result<v1::Erasure, Problem> {
        let tenant = who.caller.require(Scope::Users)?;
        check_id("erasure_id", id)?;
        let erasure = self.deps.erasures.get(tenant, id).await?.ok_or_else(|| Problem::not_found("erasure"))?;
        Ok(v1::Erasure {
            state: if erasure.is_complete() { "complete" } else { "running" }.to_owned(),
            erasure_id: erasure.id,
            created_at: Some(timestamp(erasure.begun_ms)),
            completed_at: some_timestamp(erasure.completed_ms),
            log_gone_at: Some(timestamp(erasure.log_gone_ms)),
        })
    }

    /// How long the log may name a person: in a message that waits as long as one can, and then in a dead letter.
    fn log_keeps_ms(&self) -> u64 {
        let limits = &self.config.notification;
        let kept_ms = Topic::all().filter_map(|topic| match topic.retention() {
            Retention::For(ms) => Some(ms),
            _ => None,
        });
        (limits.max_send_ahead_s + limits.max_ttl_s) * 1_000 + kept_ms.max().unwrap_or(0) + HOUR_MS
    }

    /// Takes steps of all erasures of which a pass is due, until none is.
    ///
    /// # Errors
    /// Where a store is away; what is left is done by the next call.
    pub async fn erase_due(&self) -> Result<(), Problem> {
        loop {
            let due = self.deps.erasures.due(self.now_ms(), AT_ONCE).await?;
            let (mut steps, mut failed) = (0, None);
            for erasure in due {
                if self.shutdown.is_cancelled() {
                    return Ok(());
                }
                // One that cannot go on does not hold up the others.
                match self.deps.erasures.step(&erasure.tenant, &erasure.id, self.now_ms()).await {
                    Ok(_) => steps += 1,
                    Err(error) => failed = Some(error),
                }
                tokio::task::yield_now().await;
            }
            if steps == 0 {
                return failed.map_or(Ok(()), |error| Err(error.into()));
            }
        }
    }
}

/// Erases what is due until shutdown; a crash loses nothing, since the store knows what is due.
pub(crate) async fn run(gateway: Gateway) {
    while !gateway.shutdown.is_cancelled() {
        if let Err(problem) = gateway.erase_due().await {
            tracing::warn!(%problem, "an erasure waits for a store");
        }
        tokio::select! {
            biased;
            () = gateway.shutdown.cancelled() => return,
            () = gateway.erasure_begun.notified() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}
