//! The durable log: topics of partitions of records, consumer groups, and commits that move positions and make
//! outputs visible at once.

use std::{pin::Pin, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    done_map::DoneMap,
    levels::TooNew,
    record::Envelope,
    topic::{Group, Layout, Topic, TopicPartition},
};

/// A record to be appended.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRecord {
    /// Where to.
    pub at: TopicPartition,
    /// What a compacted topic compacts by; empty elsewhere.
    pub key: Bytes,
    /// Milliseconds since the epoch.
    pub timestamp_ms: u64,
    /// What the body is and whose.
    pub envelope: Envelope,
    /// Opaque to the log. On a compacted topic an empty one says that its key is gone: such a record goes too, a day later or
    /// more, once no older one of its key is left.
    pub body: Bytes,
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Where it is.
    pub at: TopicPartition,
    /// Its place in the partition. Offsets grow; there may be gaps.
    pub offset: u64,
    /// What a compacted topic compacts by; empty elsewhere.
    pub key: Bytes,
    /// Milliseconds since the epoch.
    pub timestamp_ms: u64,
    /// What the body is and whose.
    pub envelope: Envelope,
    /// Opaque to the log.
    pub body: Bytes,
}

/// How far a group has come in a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// The first record that is not finished.
    pub offset: u64,
    /// Finished instances from there on.
    pub done: DoneMap,
    /// Starts without progress.
    pub starts: u32,
}

/// How far a log is written. Later marks cover earlier ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(pub u64);

/// What a poll brought.
#[derive(Debug, Default)]
pub struct Polled {
    /// Records, in order within each partition.
    pub records: Vec<Record>,
    /// Partitions that are this member's from now on, with the group's position. Reading begins there.
    pub assigned: Vec<(TopicPartition, Position)>,
    /// Partitions that are no longer this member's.
    pub revoked: Vec<TopicPartition>,
    /// The group wants this member's partitions back. It lets go of them by its next poll, which must come within some
    /// seconds, and may commit before what it has decided.
    pub wanted_back: bool,
    /// Another took this member's place, as far as the log can tell, and nothing comes any more. A new subscription takes
    /// it back, which is right unless another process has the place.
    pub taken_over: bool,
    /// Covers every record of this poll. Nothing may leave the process before the log is durable up to it.
    pub mark: Mark,
}

impl Polled {
    /// What was polled; whoever was taken over must join its group anew.
    ///
    /// # Errors
    /// [`Halted::Fenced`].
    pub fn or_halt(self) -> Result<Self, Halted> {
        if self.taken_over { Err(Halted::Fenced) } else { Ok(self) }
    }
}

/// One stage's transaction.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Commit {
    /// New positions of partitions that are this member's.
    pub positions: Vec<(TopicPartition, Position)>,
    /// Records that become visible with them.
    pub outputs: Vec<NewRecord>,
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// Positions and outputs are in; they are durable once the log is durable up to the mark.
    Done(Mark),
    /// Another member owns a partition now. Nothing was changed, and this member must drop what it holds of it.
    Fenced,
}

impl Committed {
    /// The mark of a commit that is in; whoever has none must join its group anew.
    ///
    /// # Errors
    /// [`Halted`], if it is not in, or may not be.
    pub fn or_halt(outcome: Result<Self, LogError>) -> Result<Mark, Halted> {
        match outcome {
            Ok(Self::Done(mark)) => Ok(mark),
            Ok(Self::Fenced) => Err(Halted::Fenced),
            Err(error) => Err(Halted::Unknown(error)),
        }
    }
}

/// A commit that was begun: it does both of what a [`Commit`] says, or neither. On an error it is unknown which, as it is
/// when the future is dropped. Its member may poll meanwhile, and begins another one when this one has ended.
pub type Committing = Pin<Box<dyn Future<Output = Result<Committed, LogError>> + Send + Sync>>;

/// Why a member cannot go on with what it holds. A new subscription, which is told the group's positions, can.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Halted {
    /// Another member owns a partition now.
    #[error("another member owns these partitions now")]
    Fenced,
    /// It is unknown whether a commit is in.
    #[error("a commit's outcome is unknown: {0}")]
    Unknown(LogError),
}

/// Why the log could not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The disk is full or below its low-water mark; consumers go on, appends from outside are refused.
    #[error("the log is full: {0}")]
    Full(String),
    /// The log is away. What was asked for may or may not have happened.
    #[error("the log is unavailable: {0}")]
    Unavailable(String),
    /// What is stored cannot be read.
    #[error("the log is damaged: {0}")]
    Damaged(String),
    /// What is stored can be read by a newer program than this one only.
    #[error(transparent)]
    TooNew(#[from] TooNew),
}

impl LogError {
    /// A word for it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Full(_) => "log_full",
            Self::Unavailable(_) => "log_unavailable",
            Self::Damaged(_) => "log_damaged",
            Self::TooNew(_) => "log_too_new",
        }
    }

    /// Whether it may pass. Whatever cannot ends the role that met it.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Unavailable(_))
    }
}

/// What identifies a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The region's name.
    pub region: String,
    /// Raised by each restore from a backup.
    pub epoch: u32,
    /// How many partitions there are.
    pub layout: Layout,
}

/// How far a group is in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Which partition.
    pub at: TopicPartition,
    /// The group's committed offset.
    pub committed: u64,
    /// The offset that the next record will get.
    pub end: u64,
}

/// One of `count` members that share a group's partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// From 0.
    pub ordinal: u32,
    /// At least 1.
    pub count: u32,
}

/// The log.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Region, epoch and layout.
    fn identity(&self) -> &Identity;

    /// Appends records and returns their offsets once they are durable. On an error it is unknown which of them are in;
    /// no reader may need one to know of another.
    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<u64>, LogError>;

    /// Joins a group. A second subscription of the same member takes over from the first, whose commits are then
    /// [`Committed::Fenced`].
    async fn subscribe(&self, group: Group, member: Member) -> Result<Box<dyn Subscription>, LogError>;

    /// Whether a poll has told a member's last subscription of this process which partitions are its, even if none are.
    fn is_assigned(&self, group: Group, ordinal: u32) -> bool;

    /// Reads a partition from an offset on, without a group: at most `max` records, and the offset to go on from.
    /// Records that are gone or superseded are left out.
    async fn read(&self, at: TopicPartition, from: u64, max: usize) -> Result<(Vec<Record>, u64), LogError>;

    /// Returns once everything up to the mark is durable.
    async fn durable(&self, mark: Mark) -> Result<(), LogError>;

    /// How far a group is, in every partition that it reads.
    async fn progress(&self, group: Group) -> Result<Vec<Progress>, LogError>;

    /// Returns once the topic has a record at `offset` or later in the partition.
    async fn reached(&self, at: TopicPartition, offset: u64) -> Result<(), LogError>;
}

/// One member's view of its group's partitions.
#[async_trait]
pub trait Subscription: Send + Sync {
    /// Brings at most `max` records of partitions that are not paused; returns at once if there are any, else after
    /// `wait` at the latest. The first poll assigns. Dropping the future loses nothing.
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<Polled, LogError>;

    /// Begins to move the positions and to make the outputs visible.
    fn commit(&mut self, commit: Commit) -> Committing;

    /// Stops or resumes the delivery of a partition's records; nothing is lost.
    fn pause(&mut self, at: TopicPartition, paused: bool);

    /// Where partitions end as of now, in order: behind the last record that there is. Who has read that record is at the
    /// end.
    async fn ends(&mut self, at: &[TopicPartition]) -> Result<Vec<u64>, LogError>;
}

/// The partition of a topic.
pub fn partition(topic: Topic, partition: u32) -> TopicPartition {
    TopicPartition { topic, partition }
}

/// Starts that a position counts at most.
const MAX_STARTS: u32 = 0x7f;

/// The bit of a position's starts that says that its unit was noted twice.
const NOTED_AGAIN: u32 = 0x80;

/// From this many starts without progress on, a stage takes what it polled singly and notes each unit first.
pub const CAREFUL_AFTER_STARTS: u32 = 3;

impl Position {
    /// How often a consumer began at this position without progress.
    pub fn start_count(&self) -> u32 {
        self.starts & MAX_STARTS
    }

    /// The unit, counted from the offset on, that was being tried when the consumer stopped.
    pub fn noted_unit(&self) -> Option<u32> {
        (self.starts >> 8).checked_sub(1)
    }

    /// Whether the unit was noted for the second time in a row.
    pub fn noted_again(&self) -> bool {
        self.starts & NOTED_AGAIN != 0
    }

    /// The same place and starts, with a note of the unit that is tried next, and whether it was noted before.
    pub fn trying(&self, noted_unit: Option<u32>, again: bool) -> Self {
        let note = noted_unit.map_or(0, |unit| (unit + 1).min(0xff_ffff));
        let again = if again { NOTED_AGAIN } else { 0 };
        Self { starts: note << 8 | again | self.start_count(), ..self.clone() }
    }

    /// The same place and note with one more start.
    pub fn started(&self) -> Self {
        let starts = (self.start_count() + 1).min(MAX_STARTS);
        Self { starts, ..self.clone() }.trying(self.noted_unit(), self.noted_again())
    }
}
