//! Whether the members that run in this process have their partitions: until they do, they serve nothing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use herald_core::{
    ports::log::{
        Commit, Committed, Identity, Log, LogError, Mark, Member, NewRecord, Polled, Progress, Record, Subscription,
    },
    topic::{Group, TopicPartition},
};
use parking_lot::Mutex;

/// What each member was told. A member that has no partitions because there are enough others has been told so.
#[derive(Default)]
pub struct Assignments(Mutex<BTreeMap<(&'static str, u32), bool>>);

impl Assignments {
    /// The log for roles whose members are watched.
    pub fn watch(self: &Arc<Self>, log: Arc<dyn Log>) -> Arc<dyn Log> {
        Arc::new(Watched { log, assignments: self.clone() })
    }

    /// This member will join its group.
    pub fn expect(&self, group: Group, ordinal: u32) {
        self.0.lock().insert((group.name(), ordinal), false);
    }

    /// The members that wait for their group's answer.
    pub fn waiting(&self) -> Vec<String> {
        let members = self.0.lock();
        members.iter().filter(|(_, told)| !**told).map(|((group, ordinal), _)| format!("{group}.{ordinal}")).collect()
    }
}

struct Watched {
    log: Arc<dyn Log>,
    assignments: Arc<Assignments>,
}

#[async_trait]
impl Log for Watched {
    fn identity(&self) -> &Identity {
        self.log.identity()
    }

    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<u64>, LogError> {
        self.log.append(records).await
    }

    async fn subscribe(&self, group: Group, member: Member) -> Result<Box<dyn Subscription>, LogError> {
        let (assignments, of) = (self.assignments.clone(), (group.name(), member.ordinal));
        assignments.expect(group, member.ordinal);
        let subscription = self.log.subscribe(group, member).await?;
        Ok(Box::new(WatchedSubscription { subscription, assignments, of, told: false }))
    }

    async fn read(&self, at: TopicPartition, from: u64, max: usize) -> Result<(Vec<Record>, u64), LogError> {
        self.log.read(at, from, max).await
    }

    async fn durable(&self, mark: Mark) -> Result<(), LogError> {
        self.log.durable(mark).await
    }

    async fn progress(&self, group: Group) -> Result<Vec<Progress>, LogError> {
        self.log.progress(group).await
    }

    async fn reached(&self, at: TopicPartition, offset: u64) -> Result<(), LogError> {
        self.log.reached(at, offset).await
    }
}

struct WatchedSubscription {
    subscription: Box<dyn Subscription>,
    assignments: Arc<Assignments>,
    of: (&'static str, u32),
    told: bool,
}

#[async_trait]
impl Subscription for WatchedSubscription {
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<Polled, LogError> {
        let polled = self.subscription.poll(max, wait).await;
        let told = self.subscription.is_assigned();
        if told != self.told {
            self.told = told;
            self.assignments.0.lock().insert(self.of, told);
        }
        polled
    }

    async fn commit(&mut self, commit: Commit) -> Result<Committed, LogError> {
        self.subscription.commit(commit).await
    }

    fn pause(&mut self, at: TopicPartition, paused: bool) {
        self.subscription.pause(at, paused);
    }

    async fn ends(&mut self, at: &[TopicPartition]) -> Result<Vec<u64>, LogError> {
        self.subscription.ends(at).await
    }

    fn is_assigned(&self) -> bool {
        self.subscription.is_assigned()
    }
}
