//! A commit as a transaction: begin, produce, offsets, commit, in one burst.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use herald_core::{
    ports::log::{LogError, NewRecord, Position},
    topic::TopicPartition,
};
use rdkafka::{
    ClientConfig, ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{Producer, ProducerContext},
    topic_partition_list::Offset,
};

use super::{
    context::{Membership, Plain},
    names::Names,
    producing::{NoProducer, Producing},
    record, unavailable,
};

/// How long one call of the client may take; then it is called again.
const CALL: Duration = Duration::from_secs(2);
/// How long a full queue is left alone.
const ROOM: Duration = Duration::from_millis(1);

/// How a commit ended.
pub(super) enum Ended {
    Committed,
    /// Nothing is in, and the member is not the group's any more.
    Fenced(String),
    /// Only the stored positions can tell whether it is in.
    Unknown(String),
}

/// Why a step failed, in the order in which the client's errors must be asked.
enum Failure {
    /// The producer is of no use any more.
    Over(String),
    /// The transaction must be aborted; the member may try again, unless the group does not know it.
    Abort { is_member: bool, cause: String },
    /// Nothing was sent: what is asked for cannot be.
    Refused(LogError),
    /// It took too long.
    Late(String),
}

/// A member's transactional producer.
pub(super) struct Transactions {
    producer: Producing<Deliveries>,
    names: Arc<Names>,
}

/// Counts what is on the way and wakes the member's thread when it has arrived.
struct Deliveries {
    under_way: Arc<AtomicUsize>,
    member: Thread,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Plain.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Plain.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {
        // What was not delivered fails the transaction.
        if self.under_way.fetch_sub(1, SeqCst) == 1 {
            self.member.unpark();
        }
    }
}

impl Transactions {
    /// Makes the producer, for the calling thread.
    pub fn new(config: &ClientConfig, names: Arc<Names>) -> Result<Self, NoProducer> {
        let deliveries = Deliveries { under_way: Arc::default(), member: thread::current() };
        Ok(Self { producer: Producing::new(config, deliveries)?, names })
    }

    /// Ends what a predecessor left open; from now on it is fenced.
    pub fn own(&self, timeout: Duration) -> Result<(), LogError> {
        let owned = again(Instant::now() + timeout, || self.producer.init_transactions(CALL));
        owned.map_err(|failure| match failure {
            Failure::Refused(error) => error,
            Failure::Over(cause) | Failure::Abort { cause, .. } | Failure::Late(cause) => LogError::Unavailable(cause),
        })
    }

    /// Commits positions and outputs, or neither.
    ///
    /// # Errors
    /// What is asked for cannot be committed by anybody; nothing is in.
    pub fn commit(
        &self,
        consumer: &BaseConsumer<Membership>,
        positions: &[(TopicPartition, Position)],
        outputs: &[NewRecord],
        timeout: Duration,
    ) -> Result<Ended, LogError> {
        let offsets = self.offsets(positions)?;
        let deadline = Instant::now() + timeout;
        loop {
            let prepared = self.prepare(consumer, &offsets, outputs, deadline);
            let (failure, decided) = match prepared {
                Err(failure) => (failure, false),
                Ok(()) => match again(deadline, || self.producer.commit_transaction(CALL)) {
                    Ok(()) => return Ok(Ended::Committed),
                    Err(failure) => (failure, true),
                },
            };
            match failure {
                // The commit may have come through and only its answer was lost.
                Failure::Over(cause) | Failure::Late(cause) if decided => return Ok(Ended::Unknown(cause)),
                Failure::Over(cause) | Failure::Late(cause) => return Ok(Ended::Fenced(cause)),
                Failure::Abort { is_member, cause } => {
                    if self.abort(deadline).is_err() || !is_member || Instant::now() >= deadline {
                        return Ok(Ended::Fenced(cause));
                    }
                    tracing::warn!(cause, "a transaction was aborted; it is tried again");
                }
                Failure::Refused(error) => {
                    return match self.abort(deadline) {
                        Ok(()) => Err(error),
                        Err(_) => Ok(Ended::Fenced(error.to_string())),
                    };
                }
            }
        }
    }

    fn offsets(&self, positions: &[(TopicPartition, Position)]) -> Result<TopicPartitionList, LogError> {
        let offset = |position: &Position| Offset::Offset(i64::try_from(position.offset).unwrap_or(i64::MAX));
        let list = self.names.list(positions.iter().map(|(at, position)| (*at, offset(position))));
        for (at, position) in positions {
            if let Some(mut element) = list.find_partition(self.names.topic(at.topic), at.partition as i32) {
                element.set_metadata(record::metadata(position)?);
            }
        }
        Ok(list)
    }

    /// Everything but the commit.
    fn prepare(
        &self,
        consumer: &BaseConsumer<Membership>,
        offsets: &TopicPartitionList,
        outputs: &[NewRecord],
        deadline: Instant,
    ) -> Result<(), Failure> {
        self.producer.begin_transaction().map_err(|error| failure(&error).unwrap_or_else(|| over(&error)))?;
        for output in outputs {
            self.send(output, deadline)?;
        }
        // As it is now: what the group knew earlier is refused after each join.
        let Some(member) = consumer.group_metadata() else {
            return Err(Failure::Abort { is_member: false, cause: "the consumer is in no group".to_owned() });
        };
        again(deadline, || self.producer.send_offsets_to_transaction(offsets, &member, CALL))?;
        self.arrived(deadline)
    }

    fn send(&self, output: &NewRecord, deadline: Instant) -> Result<(), Failure> {
        let under_way = &self.producer.context().under_way;
        let mut message = record::message(output, self.names.topic(output.at.topic), ());
        loop {
            under_way.fetch_add(1, SeqCst);
            let Err((error, back)) = self.producer.send(message) else { return Ok(()) };
            under_way.fetch_sub(1, SeqCst);
            match error {
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) if Instant::now() < deadline => {
                    message = back;
                    thread::sleep(ROOM);
                }
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => return Err(late(&error)),
                // The transaction has failed before; its other calls say how.
                KafkaError::MessageProduction(RDKafkaErrorCode::State | RDKafkaErrorCode::Fatal) => {
                    let cause = format!("a record was refused: {error}");
                    return Err(Failure::Abort { is_member: true, cause });
                }
                _ => return Err(Failure::Refused(unavailable(&format!("{} takes no such record", output.at), &error))),
            }
        }
    }

    /// Waits until all outputs have arrived: the client's own wait sleeps in steps of 100 ms.
    fn arrived(&self, deadline: Instant) -> Result<(), Failure> {
        while self.producer.context().under_way.load(SeqCst) > 0 {
            let now = Instant::now();
            if now >= deadline {
                return Err(late(&"outputs did not arrive"));
            }
            thread::park_timeout(deadline - now);
        }
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    fn abort(&self, deadline: Instant) -> Result<(), Failure> {
        again(deadline, || self.producer.abort_transaction(CALL))
    }
}

/// Makes a call until it succeeds, fails for good, or takes too long.
fn again(deadline: Instant, mut call: impl FnMut() -> KafkaResult<()>) -> Result<(), Failure> {
    loop {
        let Err(error) = call() else { return Ok(()) };
        match failure(&error) {
            Some(failure) => return Err(failure),
            None if Instant::now() >= deadline => return Err(late(&error)),
            None => thread::sleep(ROOM),
        }
    }
}

/// What an error means; `None` if the same call may be made again.
fn failure(error: &KafkaError) -> Option<Failure> {
    let KafkaError::Transaction(transaction) = error else {
        return match error {
            KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut) => None,
            _ => Some(over(error)),
        };
    };
    if transaction.is_fatal() {
        return Some(over(error));
    }
    if transaction.txn_requires_abort() {
        let is_member = !matches!(
            transaction.code(),
            RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::FencedInstanceId
                | RDKafkaErrorCode::RebalanceInProgress
        );
        return Some(Failure::Abort { is_member, cause: cause(error) });
    }
    (!transaction.is_retriable()).then(|| over(error))
}

fn over(error: &KafkaError) -> Failure {
    Failure::Over(cause(error))
}

fn late(error: &dyn std::fmt::Display) -> Failure {
    Failure::Late(format!("it took too long: {error}"))
}

fn cause(error: &KafkaError) -> String {
    match error {
        KafkaError::Transaction(transaction) => format!("{}: {}", transaction.name(), transaction.string()),
        _ => error.to_string(),
    }
}
