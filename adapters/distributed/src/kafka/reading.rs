//! Reading without a group, and where partitions end.
//!
//! A partition's end, as brokers tell it, lies behind what transactions leave there beside records: their markers, and
//! what was aborted. Nobody ever reads those, so a reader that waits to arrive at such an end waits for ever. [`Readers::ends`]
//! therefore looks for the last record that can be read; the result is kept for as long as the broker tells the same end.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use herald_core::{
    ports::log::{LogError, Record},
    topic::{Topic, TopicPartition},
};
use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, Message,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    topic_partition_list::Offset,
};
use tokio::sync::Semaphore;

use super::{context::Plain, names::Names, record, unavailable};

/// Clients at most; a read waits for one.
const CLIENTS: usize = 4;
/// How long a read or a question may take.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// A read brings no further record beyond this.
const READ_BYTES: usize = 8 << 20;
const TICK: Duration = Duration::from_millis(100);

pub(super) struct Readers {
    config: ClientConfig,
    names: Arc<Names>,
    permits: Semaphore,
    idle: Mutex<Vec<BaseConsumer<Plain>>>,
    ends: Mutex<HashMap<TopicPartition, End>>,
}

/// Where a partition ends.
#[derive(Clone, Copy)]
struct End {
    /// As the broker told it.
    told: u64,
    /// Behind the last record that can be read.
    visible: u64,
}

impl Readers {
    pub fn new(config: ClientConfig, names: Arc<Names>) -> Self {
        let permits = Semaphore::new(CLIENTS);
        Self { config, names, permits, idle: Mutex::default(), ends: Mutex::default() }
    }

    /// At most `max` records from an offset on, and where to go on.
    pub async fn read(
        self: &Arc<Self>,
        at: TopicPartition,
        from: u64,
        max: usize,
    ) -> Result<(Vec<Record>, u64), LogError> {
        self.with(move |readers, client| {
            let records = Reading { names: &readers.names, client, deadline: Instant::now() + ANSWER };
            let records = records.from(at, from, None, max)?;
            let next = records.last().map_or(from, |record| record.offset + 1);
            Ok((records, next))
        })
        .await
    }

    /// The offsets behind the last records of partitions, in order.
    pub async fn ends(self: &Arc<Self>, at: Vec<TopicPartition>) -> Result<Vec<u64>, LogError> {
        self.with(move |readers, client| {
            let reading = Reading { names: &readers.names, client, deadline: Instant::now() + ANSWER };
            let told = reading.offsets(&at, Offset::End)?;
            let visible = |(at, told): (TopicPartition, u64)| match only_appended(at.topic) {
                true => Ok(told),
                false => readers.visible_end(&reading, at, told),
            };
            at.into_iter().zip(told).map(visible).collect()
        })
        .await
    }

    /// Looks back from the end until there is a record.
    fn visible_end(&self, reading: &Reading<'_>, at: TopicPartition, told: u64) -> Result<u64, LogError> {
        let known = self.ends.lock().get(&at).copied().unwrap_or(End { told: 0, visible: 0 });
        if known.told == told {
            return Ok(known.visible);
        }
        let first = reading.offsets(&[at], Offset::Beginning)?[0];
        let floor = first.max(known.told.min(told));
        let (mut from, mut back, mut last) = (told, 2, None);
        while last.is_none() && from > floor {
            from = told.saturating_sub(back).max(floor);
            last = reading.from(at, from, Some(told), usize::MAX)?.pop();
            back *= 8;
        }
        let visible = last.map_or(first.max(known.visible), |last| last.offset + 1);
        self.ends.lock().insert(at, End { told, visible });
        Ok(visible)
    }

    /// Does something that blocks with a client of the pool.
    pub async fn with<T, F>(self: &Arc<Self>, work: F) -> Result<T, LogError>
    where
        T: Send + 'static,
        F: FnOnce(&Self, &BaseConsumer<Plain>) -> Result<T, LogError> + Send + 'static,
    {
        // The semaphore is never closed.
        let permit = self.permits.acquire().await.map_err(|error| unavailable("a reader", &error))?;
        let readers = self.clone();
        let worked = tokio::task::spawn_blocking(move || {
            let idle = readers.idle.lock().pop();
            let client = match idle {
                Some(client) => client,
                None => readers
                    .config
                    .create_with_context(Plain)
                    .map_err(|error| unavailable("a reader cannot be made", &error))?,
            };
            let worked = work(&readers, &client);
            // A client that failed may keep a wrong picture of the cluster for minutes; the next one asks anew.
            if worked.is_ok() {
                readers.idle.lock().push(client);
            }
            worked
        });
        let worked = worked.await.map_err(|error| unavailable("a read ended early", &error))?;
        drop(permit);
        worked
    }
}

/// Topics that are no output of any commit: their partitions end with a record.
fn only_appended(topic: Topic) -> bool {
    matches!(topic, Topic::UserChanges | Topic::Control)
}

/// One use of a client.
struct Reading<'a> {
    names: &'a Names,
    client: &'a BaseConsumer<Plain>,
    deadline: Instant,
}

impl Reading<'_> {
    /// First or next offsets of partitions, as the brokers tell them.
    fn offsets(&self, at: &[TopicPartition], which: Offset) -> Result<Vec<u64>, LogError> {
        offsets(self.client, self.names, at, which)
    }

    /// Records from an offset on, up to another or to the end.
    fn from(&self, at: TopicPartition, from: u64, until: Option<u64>, max: usize) -> Result<Vec<Record>, LogError> {
        let mut start = from;
        loop {
            match self.assigned(at, start, until, max) {
                // Behind the end there is nothing, and before the beginning not any more.
                Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)) => {
                    let first = self.offsets(&[at], Offset::Beginning)?[0];
                    if first <= start {
                        return Ok(Vec::new());
                    }
                    start = first;
                }
                Err(error) => return Err(unavailable(&format!("{at} cannot be read"), &error)),
                Ok(records) => return records,
            }
        }
    }

    fn assigned(
        &self,
        at: TopicPartition,
        from: u64,
        until: Option<u64>,
        max: usize,
    ) -> Result<Result<Vec<Record>, LogError>, KafkaError> {
        let offset = Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX));
        self.client.assign(&self.names.list([(at, offset)]))?;
        let records = self.collect(at, until, max);
        self.client.unassign()?;
        records
    }

    fn collect(
        &self,
        at: TopicPartition,
        until: Option<u64>,
        max: usize,
    ) -> Result<Result<Vec<Record>, LogError>, KafkaError> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while records.len() < max && bytes < READ_BYTES {
            match self.client.poll(TICK) {
                Some(Ok(message)) => {
                    if until.is_some_and(|until| message.offset() as u64 >= until) {
                        break;
                    }
                    bytes += message.payload_len() + message.key_len();
                    match record::record(at, &message) {
                        Ok(record) => records.push(record),
                        Err(error) => return Ok(Err(error)),
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error @ KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                    return Err(error);
                }
                // Of a connection, which is mended.
                Some(Err(error)) => tracing::debug!(%at, %error, "a read goes on"),
                None => {}
            }
            if Instant::now() >= self.deadline {
                return Ok(Err(LogError::Unavailable(format!("{at} was not read within {ANSWER:?}"))));
            }
        }
        Ok(Ok(records))
    }
}

/// First or next offsets of partitions, as the brokers tell them.
pub(super) fn offsets<C: rdkafka::consumer::ConsumerContext>(
    client: &BaseConsumer<C>,
    names: &Names,
    at: &[TopicPartition],
    which: Offset,
) -> Result<Vec<u64>, LogError> {
    if at.is_empty() {
        return Ok(Vec::new());
    }
    let asked = names.list(at.iter().map(|at| (*at, which)));
    let answer = client.offsets_for_times(asked, ANSWER).map_err(|e| unavailable("offsets are not known", &e))?;
    let of = |at: &TopicPartition| {
        let element = answer.find_partition(names.topic(at.topic), at.partition as i32);
        let element = element.ok_or_else(|| LogError::Damaged(format!("there is no partition {at}")))?;
        element.error().map_err(|error| unavailable(&format!("the offsets of {at} are not known"), &error))?;
        match element.offset() {
            Offset::Offset(offset) => Ok(offset.max(0) as u64),
            other => Err(LogError::Unavailable(format!("the offset of {at} is {other:?}"))),
        }
    };
    at.iter().map(of).collect()
}
