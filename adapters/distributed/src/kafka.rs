//! The log, on Apache Kafka.
//!
//! A topic is a topic, a group is a consumer group, and a commit is a transaction of a producer that belongs to the
//! group's member: its outputs and the group's offsets, or neither. Positions are offsets with metadata. Everything is
//! acknowledged by `min_insync_replicas` brokers before anybody hears of it, so a [`Mark`] is always durable.
//!
//! A member is known by its ordinal: `group.instance.id` and `transactional.id` are made of it. So a process that starts
//! again takes over from itself, in the group without a rebalance and in the transactions without waiting for a timeout,
//! and what is left of its predecessor is fenced. Two processes with the same ordinal would fence each other: the one that
//! started last goes on, the other stays fenced, and its polls say so.

mod appending;
mod config;
mod context;
mod membership;
mod names;
mod producing;
mod reading;
mod record;
mod subscription;
mod topics;
mod transaction;
mod trimming;

pub mod plan;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use herald_core::{
    ports::log::{Identity, Log, LogError, Mark, Member, NewRecord, Progress, Record, Subscription, partition},
    topic::{Group, Layout, TopicPartition},
};
use parking_lot::Mutex;
use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    topic_partition_list::Offset,
};

use self::{appending::Appender, context::Plain, names::Names, reading::Readers, subscription::KafkaSubscription};
pub use self::{
    config::{BadKafkaConfig, KafkaConfig, SecurityProtocol},
    topics::OpenError,
};

/// How often somebody who waits for a record looks for it.
const LOOK: Duration = Duration::from_millis(50);

/// The log on a cluster. Clones are the same log.
#[derive(Clone)]
pub struct KafkaLog {
    shared: Arc<Shared>,
}

struct Shared {
    config: KafkaConfig,
    identity: Identity,
    names: Arc<Names>,
    readers: Arc<Readers>,
    appender: Appender,
    /// One client a group, to ask for its positions.
    groups: Mutex<HashMap<Group, Arc<BaseConsumer<Plain>>>>,
    /// The assignments of this process's members; 0 for those that wait for one.
    epochs: Mutex<HashMap<(Group, u32), Arc<AtomicU64>>>,
}

impl KafkaLog {
    /// Opens the log under the configuration's prefix, or begins one: `layout` says how a new one is divided.
    ///
    /// # Errors
    /// The cluster cannot be reached, or what is there is not what was asked for.
    pub async fn open(config: KafkaConfig, region: &str, layout: Option<Layout>) -> Result<Self, OpenError> {
        let names = Arc::new(Names::new(&config.prefix));
        let readers = Arc::new(Readers::new(config.reader()?, names.clone()));
        let appender = Appender::new(config.appender()?, names.clone())
            .map_err(|error| OpenError::Refused(format!("a client cannot be made: {error}")))?;
        let (asked, its_names, region) = (config.clone(), names.clone(), region.to_owned());
        let opened = tokio::task::spawn_blocking(move || topics::open(&asked, &its_names, &region, layout));
        let identity = opened.await.map_err(|error| OpenError::Refused(format!("opening ended early: {error}")))??;
        let (groups, epochs) = (Mutex::default(), Mutex::default());
        let shared = Shared { config, identity, names, readers, appender, groups, epochs };
        let log = Self { shared: Arc::new(shared) };
        log.spawn_trimming();
        Ok(log)
    }

    /// The partitions that a group reads.
    fn partitions(&self, group: Group) -> Vec<TopicPartition> {
        let layout = self.shared.identity.layout;
        let of = |topic| (0..layout.partitions(topic)).map(move |number| partition(topic, number));
        group.topics().into_iter().flat_map(of).collect()
    }

    /// A group's positions, in order.
    async fn committed(&self, group: Group, at: Vec<TopicPartition>) -> Result<Vec<u64>, LogError> {
        let shared = self.shared.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let client = shared.group_client(group)?;
            let list = shared.names.list(at.iter().map(|at| (*at, Offset::Invalid)));
            let committed = client.committed_offsets(list, reading::ANSWER);
            let committed = committed.map_err(|e| unavailable("a group's positions are not known", &e))?;
            at.iter().map(|at| Ok(record::position_in(&committed, &shared.names, *at)?.offset)).collect()
        });
        asked.await.map_err(|error| unavailable("a question ended early", &error))?
    }
}

impl Shared {
    fn group_client(&self, group: Group) -> Result<Arc<BaseConsumer<Plain>>, LogError> {
        let mut groups = self.groups.lock();
        if let Some(client) = groups.get(&group) {
            return Ok(client.clone());
        }
        let config = self.config.reader().map_err(|e| unavailable("a client cannot be made", &e))?;
        let client = { config }
            .set("group.id", self.names.group(group))
            .create_with_context(Plain)
            .map_err(|e| unavailable("a client cannot be made", &e))?;
        Ok(groups.entry(group).or_insert(Arc::new(client)).clone())
    }
}

fn unavailable(what: &str, error: &dyn std::fmt::Display) -> LogError {
    LogError::Unavailable(format!("{what}: {error}"))
}

#[async_trait]
impl Log for KafkaLog {
    fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<u64>, LogError> {
        self.shared.appender.append(&records).await
    }

    async fn subscribe(&self, group: Group, member: Member) -> Result<Box<dyn Subscription>, LogError> {
        let Shared { config, names, readers, .. } = &*self.shared;
        let joined = KafkaSubscription::join(config, names.clone(), readers.clone(), group, member)?;
        self.shared.epochs.lock().insert((group, member.ordinal), joined.epoch());
        Ok(Box::new(joined))
    }

    fn is_assigned(&self, group: Group, ordinal: u32) -> bool {
        self.shared.epochs.lock().get(&(group, ordinal)).is_some_and(|epoch| epoch.load(Relaxed) != 0)
    }

    async fn read(&self, at: TopicPartition, from: u64, max: usize) -> Result<(Vec<Record>, u64), LogError> {
        self.shared.readers.read(at, from, max).await
    }

    async fn durable(&self, _: Mark) -> Result<(), LogError> {
        Ok(())
    }

    async fn progress(&self, group: Group) -> Result<Vec<Progress>, LogError> {
        let at = self.partitions(group);
        // Positions first: nobody is further than an end that is looked up later.
        let committed = self.committed(group, at.clone()).await?;
        let ends = self.shared.readers.ends(at.clone()).await?;
        let progress = at.into_iter().zip(committed).zip(ends);
        Ok(progress.map(|((at, committed), end)| Progress { at, committed, end: end.max(committed) }).collect())
    }

    async fn reached(&self, at: TopicPartition, offset: u64) -> Result<(), LogError> {
        while self.shared.readers.ends(vec![at]).await?[0] <= offset {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}
