//! Appending outside of transactions.

use std::{sync::Arc, time::Duration};

use herald_core::ports::log::{LogError, NewRecord};
use parking_lot::Mutex;
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    producer::Producer,
};
use tokio::sync::oneshot;

use super::{
    names::Names,
    producing::{Appended, NoProducer, Producing},
    record, unavailable,
};

/// How long an append waits for room before it looks again.
const ROOM: Duration = Duration::from_millis(5);

/// Appends records to partitions.
pub(super) struct Appender {
    config: ClientConfig,
    names: Arc<Names>,
    producer: Mutex<Arc<Producing<Appended>>>,
}

impl Appender {
    /// Makes its client.
    pub fn new(config: ClientConfig, names: Arc<Names>) -> Result<Self, NoProducer> {
        let producer = Mutex::new(Arc::new(Producing::new(&config, Appended)?));
        Ok(Self { config, names, producer })
    }

    /// Appends records; returns their offsets. On an error it is unknown which of them are there.
    pub async fn append(&self, records: &[NewRecord]) -> Result<Vec<u64>, LogError> {
        let producer = self.producer.lock().clone();
        let mut sent = Vec::with_capacity(records.len());
        for record in records {
            let (waiting, delivered) = oneshot::channel();
            let mut message = record::message(record, self.names.topic(record.at.topic), Box::new(waiting));
            loop {
                match producer.send(message) {
                    Ok(()) => break sent.push(delivered),
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                        message = back;
                        tokio::time::sleep(ROOM).await;
                    }
                    Err((error, _)) => {
                        self.failed(&producer, &error);
                        return Err(unavailable(&format!("{} takes no record", record.at), &error));
                    }
                }
            }
        }
        let mut offsets = Vec::with_capacity(sent.len());
        for (delivered, record) in sent.into_iter().zip(records) {
            let what = || format!("{} was not appended to", record.at);
            let delivered = delivered.await.map_err(|error| unavailable(&what(), &error))?;
            offsets.push(delivered.map_err(|error| {
                self.failed(&producer, &error);
                unavailable(&what(), &error)
            })?);
        }
        Ok(offsets)
    }

    /// Takes a new client for what comes next, where the one that failed may be of no use any more: it says so itself, or a
    /// record was not answered in time. After an outage a client may go on like that for ever, with some of the partitions
    /// (confluent-kafka-go, issue 528). Whoever still waits for the old one keeps it.
    fn failed(&self, used: &Arc<Producing<Appended>>, error: &KafkaError) {
        let is_late = matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut));
        if !is_late && used.client().fatal_error().is_none() {
            return;
        }
        let mut producer = self.producer.lock();
        if !Arc::ptr_eq(&producer, used) {
            return;
        }
        match Producing::new(&self.config, Appended) {
            Ok(new) => {
                tracing::warn!(%error, "records are appended by a new client from now on");
                *producer = Arc::new(new);
            }
            Err(error) => tracing::error!(%error, "a client cannot be made; the one that failed is kept"),
        }
    }

    #[cfg(test)]
    fn client(&self) -> std::sync::Weak<Producing<Appended>> {
        Arc::downgrade(&self.producer.lock())
    }
}

#[cfg(test)]
mod tests {
    use herald_core::{
        ports::log::partition,
        record::Envelope,
        topic::{Lane, Topic},
    };

    use std::sync::Weak;

    use super::*;
    use crate::kafka::KafkaConfig;

    #[tokio::test]
    async fn a_client_that_answers_too_late_is_replaced_once() {
        // Nobody listens there.
        let config = KafkaConfig { brokers: "127.0.0.1:1".into(), append_timeout_ms: 100, ..KafkaConfig::default() };
        let appender = Appender::new(config.appender().unwrap(), Arc::new(Names::new("test"))).unwrap();
        let record = NewRecord {
            at: partition(Topic::Requests(Lane::Bulk), 0),
            key: bytes::Bytes::new(),
            timestamp_ms: 1,
            envelope: Envelope::default(),
            body: bytes::Bytes::from_static(b"x"),
        };
        let first = appender.client();
        let late = [record.clone(), record.clone()];
        let (one, other) = tokio::join!(appender.append(&late), appender.append(&late));
        assert!(matches!(one, Err(LogError::Unavailable(_))) && matches!(other, Err(LogError::Unavailable(_))));
        assert!(first.upgrade().is_none(), "nobody waits for the old client");
        let second = appender.client();
        appender.failed(&Arc::new(Producing::new(&appender.config, Appended).unwrap()), &late_error());
        assert!(Weak::ptr_eq(&second, &appender.client()), "a client that was replaced before is no reason");
    }

    fn late_error() -> KafkaError {
        KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut)
    }
}
