//! What librdkafka tells its clients.

use parking_lot::Mutex;
use rdkafka::{
    ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};

fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Debug | RDKafkaLogLevel::Info => tracing::debug!(facility, message, "librdkafka"),
        RDKafkaLogLevel::Notice => tracing::info!(facility, message, "librdkafka"),
        // It says of every broken connection that it is an error, and mends it.
        _ => tracing::warn!(facility, message, "librdkafka"),
    }
}

/// Of clients without a group.
pub(super) struct Plain;

impl ClientContext for Plain {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for Plain {}

/// Of the client that opens a log. It keeps what went wrong with a connection last: calls say no more than that nobody
/// answered.
#[derive(Default)]
pub(super) struct Opening {
    trouble: Mutex<Option<Trouble>>,
}

/// What went wrong with a connection.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    /// What librdkafka says.
    pub said: String,
    /// Its kind, if it is more than a connection that broke.
    pub kind: Option<RDKafkaErrorCode>,
}

impl Opening {
    /// What went wrong last.
    pub fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().clone()
    }
}

impl ClientContext for Opening {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
        // That a connection broke is told here alone, behind the name of a thread.
        if facility == "FAIL" {
            let said = message.split_once("]: ").map_or(message, |(_, said)| said).to_owned();
            self.trouble.lock().get_or_insert(Trouble { said: String::new(), kind: None }).said = said;
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
        if let KafkaError::Global(kind @ (RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL)) = error {
            *self.trouble.lock() = Some(Trouble { said: reason.to_owned(), kind: Some(kind) });
        }
    }
}

impl ConsumerContext for Opening {}

/// What a group's coordinator wants of a member.
pub(super) enum Rebalance {
    Assign(TopicPartitionList),
    /// `lost` says that the member was thrown out: another may own the partitions already.
    Revoke {
        lost: bool,
    },
}

/// Of members of a group. What the coordinator wants is kept for the member's thread, which answers by assigning when it
/// is ready to: librdkafka waits for that.
#[derive(Default)]
pub(super) struct Membership {
    wanted: Mutex<Wanted>,
}

#[derive(Default)]
struct Wanted {
    rebalances: Vec<Rebalance>,
    closing: bool,
}

impl Membership {
    /// What came since the last call, in order.
    pub fn take(&self) -> Vec<Rebalance> {
        std::mem::take(&mut self.wanted.lock().rebalances)
    }

    /// From now on nobody answers.
    pub fn close(&self) {
        self.wanted.lock().closing = true;
    }
}

impl ClientContext for Membership {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for Membership {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, wanted: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let mut kept = self.wanted.lock();
        if kept.closing {
            drop(kept);
            if let Err(error) = consumer.unassign() {
                tracing::debug!(%error, "a member that closes could not let go");
            }
            return;
        }
        kept.rebalances.push(match wanted {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Rebalance::Assign(list.clone()),
            _ => Rebalance::Revoke { lost: consumer.assignment_lost() },
        });
    }
}
