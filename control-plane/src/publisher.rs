//! Writing policies: the registry first, then `control`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use herald_core::{
    clock::World,
    control::{control_record, gone_record},
    policy::{Policy, kind},
    ports::{
        log::{Identity, Log, NewRecord},
        registry::{Registry, Versioned, Written},
    },
    problem::{FieldError, Kind, Problem},
    record::Control,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::{cancels, switches};

const APPLY_WITHIN: Duration = Duration::from_secs(5);
const SWEEP_AT_ONCE: usize = 100;
/// Attempts at a compare and set against other writers.
const MAX_ATTEMPTS: usize = 64;

/// Writes policies and publishes them.
///
/// A policy is stored, appended to `control`, and marked as published, in this order. What a crash leaves between is
/// published by [`Publisher::sweep`]. Two processes may append versions of one policy in either order: readers pass over
/// the older one, and whoever finds a newer version stored than it appended appends that too, so that the topic's last
/// record, which compaction keeps, is the newest.
pub struct Publisher {
    log: Arc<dyn Log>,
    registry: Arc<dyn Registry>,
    policy: watch::Receiver<Arc<Policy>>,
    world: World,
    /// One append at a time keeps the order within the process.
    appending: Mutex<()>,
}

impl Publisher {
    /// A publisher. `policy` is fed by this process's [`crate::feed::policy_feed`].
    pub fn new(
        log: Arc<dyn Log>,
        registry: Arc<dyn Registry>,
        policy: watch::Receiver<Arc<Policy>>,
        world: World,
    ) -> Self {
        Self { log, registry, policy, world, appending: Mutex::new(()) }
    }

    /// Where policies are stored.
    pub fn registry(&self) -> &dyn Registry {
        &*self.registry
    }

    /// What this process decides with.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.borrow().clone()
    }

    /// What this process decides with, and whatever replaces it.
    pub fn watch(&self) -> watch::Receiver<Arc<Policy>> {
        self.policy.clone()
    }

    /// Clock and entropy.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Stores a policy (`None` deletes it) if the stored version is `expect`, publishes it, and returns once this
    /// process decides with it. After an `Err` it is open whether it was stored; if it was, it will be published.
    pub async fn put(&self, kind: &str, key: &str, value: Option<Bytes>, expect: u64) -> Result<Written, Problem> {
        let written = self.registry.put(kind, key, value, expect).await?;
        if let Written::Done(_) = written {
            let offset = self.publish(kind, key).await?;
            self.applied(offset).await?;
        }
        Ok(written)
    }

    /// Reads a policy, decides, and stores what was decided, again whenever somebody else was faster. Returns what was
    /// stored and its version.
    pub async fn update<T: Serialize + DeserializeOwned>(
        &self,
        kind: &str,
        key: &str,
        decide: impl FnMut(Option<T>) -> Result<T, Problem>,
    ) -> Result<(T, u64), Problem> {
        self.update_version(kind, key, None, decide).await
    }

    /// As [`Publisher::update`], of this version only, if one is given (0 where there must be none); 409 if another one is
    /// stored.
    pub async fn update_version<T: Serialize + DeserializeOwned>(
        &self,
        kind: &str,
        key: &str,
        version: Option<u64>,
        mut decide: impl FnMut(Option<T>) -> Result<T, Problem>,
    ) -> Result<(T, u64), Problem> {
        for _ in 0..MAX_ATTEMPTS {
            let stored = self.registry.get(kind, key).await?;
            let expect = stored.as_ref().map_or(0, |stored| stored.version);
            let value = stored.and_then(|stored| stored.value);
            let current = if value.is_some() { expect } else { 0 };
            if version.is_some_and(|version| version != current) {
                return Err(version_mismatch(current));
            }
            let decided = decide(value.map(|value| read(kind, &value)).transpose()?)?;
            let value = serde_json::to_vec(&decided).map_err(|error| unwritable(&error))?;
            if let Written::Done(version) = self.put(kind, key, Some(value.into()), expect).await? {
                return Ok((decided, version));
            }
        }
        Err(contended())
    }

    /// Deletes a stored policy; 404 if there is no such `what`.
    pub async fn delete(&self, kind: &str, key: &str, what: &str) -> Result<(), Problem> {
        for _ in 0..MAX_ATTEMPTS {
            let stored = self.registry.get(kind, key).await?;
            let stored = stored.filter(|stored| stored.value.is_some()).ok_or_else(|| Problem::not_found(what))?;
            if let Written::Done(_) = self.put(kind, key, None, stored.version).await? {
                return Ok(());
            }
        }
        Err(contended())
    }

    /// A stored policy; `None` if there is none or it is deleted.
    pub async fn get<T: DeserializeOwned>(&self, kind: &str, key: &str) -> Result<Option<(T, u64)>, Problem> {
        let Some(Versioned { value: Some(value), version, .. }) = self.registry.get(kind, key).await? else {
            return Ok(None);
        };
        Ok(Some((read(kind, &value)?, version)))
    }

    /// Publishes what is stored and not known to be on `control`; returns how many policies.
    pub async fn sweep(&self) -> Result<usize, Problem> {
        let mut swept = 0;
        loop {
            let left_behind = self.registry.unpublished(SWEEP_AT_ONCE).await?;
            for policy in &left_behind {
                self.publish(&policy.kind, &policy.key).await?;
            }
            swept += left_behind.len();
            if left_behind.len() < SWEEP_AT_ONCE {
                return Ok(swept);
            }
        }
    }

    /// Appends the newest version until it is the newest; returns the last offset.
    async fn publish(&self, kind: &str, key: &str) -> Result<u64, Problem> {
        let _one_at_a_time = self.appending.lock().await;
        let vanished = || internal(kind, "a stored policy vanished");
        let mut newest = self.registry.get(kind, key).await?.ok_or_else(vanished)?;
        for _ in 0..MAX_ATTEMPTS {
            let offsets = self.log.append(vec![self.record(&newest)]).await?;
            let after = self.registry.get(kind, key).await?.ok_or_else(vanished)?;
            if after.version == newest.version {
                self.registry.published(kind, key, newest.version).await?;
                return offsets.first().copied().ok_or_else(|| internal(kind, "the log gave no offset"));
            }
            newest = after;
        }
        Err(contended())
    }

    fn record(&self, policy: &Versioned) -> NewRecord {
        let body = Control {
            kind: policy.kind.clone(),
            key: policy.key.clone(),
            version: policy.version,
            value: policy.value.clone().unwrap_or_default(),
            deleted: policy.value.is_none(),
        };
        control_record(self.log.identity(), &body, self.world.now_ms())
    }

    /// Writes policies to `control` and nowhere else (`None` deletes one), all or none, so that it works with every
    /// store down: see [`kind::is_log_first`]. Returns the version of the policies that has them, once it is durable.
    ///
    /// # Errors
    /// 503 where the log did not take them, or where it is open whether it did.
    pub async fn put_log_first(&self, kind: &str, policies: Vec<(String, Option<Bytes>)>) -> Result<u64, Problem> {
        debug_assert!(kind::is_log_first(kind), "{kind} belongs into the registry");
        let now_ms = self.world.now_ms();
        let identity = self.log.identity();
        let records = |(key, value): (String, Option<Bytes>)| {
            let gone = value.is_none().then(|| gone_record(identity, kind, &key, now_ms));
            let deleted = value.is_none();
            let value = value.unwrap_or_default();
            let policy = Control { kind: kind.to_owned(), key, version: now_ms, value, deleted };
            std::iter::once(control_record(identity, &policy, now_ms)).chain(gone)
        };
        let offsets = self.log.append(policies.into_iter().flat_map(records).collect()).await?;
        Ok(offsets.last().map_or(0, |offset| offset + 1))
    }

    /// Region, epoch and layout of the log.
    pub fn identity(&self) -> &Identity {
        self.log.identity()
    }

    /// Returns once this process's feed has passed `offset`.
    async fn applied(&self, offset: u64) -> Result<(), Problem> {
        let mut policy = self.policy.clone();
        let waited = tokio::time::timeout(APPLY_WITHIN, policy.wait_for(|policy| policy.version > offset)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Problem::unavailable("The process is stopping.")),
            Err(_) => Err(Problem::unavailable("The change is stored and not yet applied here.")),
        }
    }
}

/// Sweeps at once and then every `interval`, until shutdown.
pub async fn sweep_until(publisher: Arc<Publisher>, interval: Duration, shutdown: CancellationToken) {
    loop {
        match publisher.sweep().await {
            Ok(0) => {}
            Ok(policies) => tracing::info!(policies, "published what was left behind"),
            Err(error) => tracing::warn!(%error, "policies that were left behind could not be published"),
        }
        if let Err(error) = switches::forget_spent(&publisher).await {
            tracing::warn!(%error, "switches that are over could not be forgotten");
        }
        if let Err(error) = cancels::forget_over(&publisher).await {
            tracing::warn!(%error, "cancels that are over could not be forgotten");
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}

pub(crate) fn read<T: DeserializeOwned>(kind: &str, value: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(value).map_err(|error| internal(kind, &error.to_string()))
}

/// Many writers were faster, again and again.
pub(crate) fn contended() -> Problem {
    Problem::unavailable("Too many writers change this at once. Repeat the call.")
}

fn version_mismatch(stored: u64) -> Problem {
    let detail = format!("The stored version is {stored}. Read it again.");
    let errors = vec![FieldError::new("version", "version_mismatch", detail.clone())];
    Problem::new(Kind::Conflict, "version_mismatch", detail).with_errors(errors)
}

/// A row that cannot be written as JSON, which no row of ours does.
pub(crate) fn unwritable(error: &serde_json::Error) -> Problem {
    internal("policy", &error.to_string())
}

fn internal(kind: &str, cause: &str) -> Problem {
    tracing::error!(kind, cause, "a policy cannot be handled");
    Problem::new(Kind::Internal, "internal", "Stored data cannot be handled.")
}
