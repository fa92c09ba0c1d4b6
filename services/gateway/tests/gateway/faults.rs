//! A log that can be stopped and made to fail.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use herald_core::{
    ports::log::{Identity, Log, LogError, Mark, Member, NewRecord, Progress, Record, Subscription},
    topic::{Group, TopicPartition},
};
use tokio::sync::watch;

/// What the next appends do.
#[derive(Default)]
pub struct Faults {
    /// Errors of the next appends.
    pub fail: Mutex<Vec<LogError>>,
    /// Appends wait while this is set.
    pub held: watch::Sender<bool>,
    /// How many records each append had.
    pub appends: Mutex<Vec<usize>>,
}

pub struct FaultyLog<L> {
    pub inner: L,
    pub faults: Arc<Faults>,
}

#[async_trait]
impl<L: Log> Log for FaultyLog<L> {
    fn identity(&self) -> &Identity {
        self.inner.identity()
    }

    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<u64>, LogError> {
        self.faults.appends.lock().unwrap().push(records.len());
        let mut held = self.faults.held.subscribe();
        held.wait_for(|held| !held).await.unwrap();
        if let Some(error) = self.faults.fail.lock().unwrap().pop() {
            return Err(error);
        }
        self.inner.append(records).await
    }

    async fn subscribe(&self, group: Group, member: Member) -> Result<Box<dyn Subscription>, LogError> {
        self.inner.subscribe(group, member).await
    }

    fn is_assigned(&self, group: Group, ordinal: u32) -> bool {
        self.inner.is_assigned(group, ordinal)
    }

    async fn read(&self, at: TopicPartition, from: u64, max: usize) -> Result<(Vec<Record>, u64), LogError> {
        self.inner.read(at, from, max).await
    }

    async fn durable(&self, mark: Mark) -> Result<(), LogError> {
        self.inner.durable(mark).await
    }

    async fn progress(&self, group: Group) -> Result<Vec<Progress>, LogError> {
        self.inner.progress(group).await
    }

    async fn reached(&self, at: TopicPartition, offset: u64) -> Result<(), LogError> {
        self.inner.reached(at, offset).await
    }
}
