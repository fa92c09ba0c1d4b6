//! Feature levels: what records a program can read, and what records an installation writes.
//!
//! A program of a new release may be able to write what one of the release before cannot read. As long as both run, both
//! write what the older one reads: the level of the installation, which is a policy and is raised when the last older
//! process has gone. Whoever writes records says nothing of levels; the log that [`Levels::log`] makes does.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicU32,
            Ordering::{Acquire, Release},
        },
    },
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    ports::log::{
        Commit, Committing, Identity, Log, LogError, Mark, Member, NewRecord, Polled, Progress, Record, Subscription,
    },
    topic::{Group, TopicPartition},
};

/// The level of the records that this program can read, and of those that it writes once the installation has reached it.
pub const FEATURE_LEVEL: u32 = 1;

/// The level of an installation of which none is known.
pub const FIRST_LEVEL: u32 = 1;

/// A level that an installation has reached, for good: a policy of its own for each level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelRow {
    /// The level.
    pub level: u32,
    /// When, in milliseconds since the epoch.
    pub reached_ms: u64,
}

/// Something is of a higher level than this program reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} is of feature level {level}, and this program reads up to {reads}: this process must run a newer version. What it \
     did not read is still there"
)]
pub struct TooNew {
    /// The installation, or a record by its place.
    pub what: String,
    /// Its level.
    pub level: u32,
    /// What this program reads.
    pub reads: u32,
}

/// The levels of a process.
#[derive(Debug)]
pub struct Levels {
    reads: u32,
    writes: AtomicU32,
    refused: OnceLock<TooNew>,
}

impl Default for Levels {
    /// Those of this program.
    fn default() -> Self {
        Self::new(FEATURE_LEVEL)
    }
}

impl Levels {
    /// The levels of a program that reads up to `reads`.
    pub fn new(reads: u32) -> Self {
        Self { reads, writes: AtomicU32::new(FIRST_LEVEL), refused: OnceLock::new() }
    }

    /// The highest level that this process reads.
    pub fn reads(&self) -> u32 {
        self.reads
    }

    /// The level of what it writes now.
    pub fn writes(&self) -> u32 {
        self.writes.load(Acquire)
    }

    /// What it met and could not read, if anything: from then on it reads nothing.
    pub fn refused(&self) -> Option<&TooNew> {
        self.refused.get()
    }

    /// Takes up the level that the installation has reached. To be called before anybody decides with policies of that level:
    /// what is decided with them may be written in the way of that level.
    ///
    /// # Errors
    /// If it is higher than this process reads; it then reads nothing any more.
    pub fn reached(&self, level: u32) -> Result<(), TooNew> {
        self.check(level, || "the installation".to_owned())?;
        self.writes.fetch_max(level, Release);
        Ok(())
    }

    /// A log that gives records this process's level of writing, where they do not have one that they were written with, and
    /// reads none of a higher level than this process reads.
    pub fn log(self: &Arc<Self>, log: Arc<dyn Log>) -> Arc<dyn Log> {
        Arc::new(Levelled { log, levels: self.clone() })
    }

    fn check(&self, level: u32, what: impl FnOnce() -> String) -> Result<(), TooNew> {
        match self.refused.get() {
            Some(refused) => Err(refused.clone()),
            None if level <= self.reads => Ok(()),
            None => Err(self.refused.get_or_init(|| TooNew { what: what(), level, reads: self.reads }).clone()),
        }
    }

    /// Once one record was refused, none is let through: a later one would move the position past it.
    fn check_records(&self, records: &[Record]) -> Result<(), LogError> {
        self.check(0, String::new)?;
        for record in records {
            self.check(record.envelope.feature_level, || {
                format!("the record {}, offset {}", record.at, record.offset)
            })?;
        }
        Ok(())
    }

    /// A record that is moved keeps the level that it was written with.
    fn stamp(&self, records: &mut [NewRecord]) {
        let level = self.writes();
        for record in records.iter_mut().filter(|record| record.envelope.feature_level == 0) {
            record.envelope.feature_level = level;
        }
    }
}

struct Levelled {
    log: Arc<dyn Log>,
    levels: Arc<Levels>,
}

#[async_trait]
impl Log for Levelled {
    fn identity(&self) -> &Identity {
        self.log.identity()
    }

    async fn append(&self, mut records: Vec<NewRecord>) -> Result<Vec<u64>, LogError> {
        self.levels.stamp(&mut records);
        self.log.append(records).await
    }

    async fn subscribe(&self, group: Group, member: Member) -> Result<Box<dyn Subscription>, LogError> {
        let subscription = self.log.subscribe(group, member).await?;
        Ok(Box::new(LevelledSubscription { subscription, levels: self.levels.clone() }))
    }

    fn is_assigned(&self, group: Group, ordinal: u32) -> bool {
        self.log.is_assigned(group, ordinal)
    }

    async fn read(&self, at: TopicPartition, from: u64, max: usize) -> Result<(Vec<Record>, u64), LogError> {
        let (records, next) = self.log.read(at, from, max).await?;
        self.levels.check_records(&records)?;
        Ok((records, next))
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

struct LevelledSubscription {
    subscription: Box<dyn Subscription>,
    levels: Arc<Levels>,
}

#[async_trait]
impl Subscription for LevelledSubscription {
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<Polled, LogError> {
        let polled = self.subscription.poll(max, wait).await?;
        self.levels.check_records(&polled.records)?;
        Ok(polled)
    }

    fn commit(&mut self, mut commit: Commit) -> Committing {
        self.levels.stamp(&mut commit.outputs);
        self.subscription.commit(commit)
    }

    fn pause(&mut self, at: TopicPartition, paused: bool) {
        self.subscription.pause(at, paused);
    }

    async fn ends(&mut self, at: &[TopicPartition]) -> Result<Vec<u64>, LogError> {
        self.subscription.ends(at).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ports::log::partition, record::Envelope, topic::Topic};

    fn record(feature_level: u32, offset: u64) -> Record {
        Record {
            at: partition(Topic::Dead, 0),
            offset,
            key: Default::default(),
            timestamp_ms: 0,
            envelope: Envelope { feature_level, ..Envelope::default() },
            body: Default::default(),
        }
    }

    #[test]
    fn after_a_record_of_a_higher_level_nothing_is_read() {
        let levels = Levels::new(2);
        levels.check_records(&[record(0, 0), record(1, 1), record(2, 2)]).unwrap();
        let error = levels.check_records(&[record(1, 3), record(3, 4)]).unwrap_err();
        let LogError::TooNew(too_new) = error else { panic!("{error}") };
        assert_eq!((too_new.level, too_new.reads), (3, 2));
        assert!(too_new.what.contains("offset 4"), "{too_new}");
        assert!(
            levels.check_records(&[record(1, 5)]).is_err(),
            "a later record moves the position past the one before"
        );
        assert!(levels.check_records(&[]).is_err());
        assert_eq!(levels.refused(), Some(&too_new));
    }

    #[test]
    fn what_is_written_is_of_the_level_that_was_reached_and_what_is_moved_of_its_own() {
        let levels = Levels::new(3);
        let written = |level| {
            let Record { at, key, timestamp_ms, envelope, body, .. } = record(level, 0);
            let mut records = [NewRecord { at, key, timestamp_ms, envelope, body }];
            levels.stamp(&mut records);
            records[0].envelope.feature_level
        };
        assert_eq!((written(0), written(2)), (FIRST_LEVEL, 2));
        levels.reached(3).unwrap();
        levels.reached(2).unwrap();
        assert_eq!((written(0), written(1)), (3, 1), "a level does not fall");
        assert!(levels.reached(4).is_err());
        assert_eq!(written(0), 3, "nothing is written that this program does not know");
    }
}
