//! Producers, and the threads in which they are told what was delivered.
//!
//! rdkafka's own such thread asks for 100 ms at a time and spins through the last millisecond of each, which is a hundredth of
//! a core for every producer that a process has. This one asks for longer.

use std::{
    io,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext, Message,
    config::RDKafkaLogLevel,
    error::{KafkaError, KafkaResult},
    message::DeliveryResult,
    producer::{BaseProducer, ProducerContext},
};
use tokio::sync::oneshot;

use super::context::Plain;

/// How long the thread asks at a time, and a producer lives on at most after it was dropped.
const ASKED_AT_ONCE: Duration = Duration::from_secs(2);

/// A producer whose deliveries are told to its context.
pub(super) struct Producing<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    stopped: Arc<AtomicBool>,
}

/// Why there is no producer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoProducer {
    #[error(transparent)]
    Client(#[from] KafkaError),
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] io::Error),
}

impl<C: ProducerContext + 'static> Producing<C> {
    /// Makes a producer and starts its thread.
    pub fn new(config: &ClientConfig, context: C) -> Result<Self, NoProducer> {
        let producer: KafkaResult<BaseProducer<C>> = config.create_with_context(context);
        let (producer, stopped) = (Arc::new(producer?), Arc::<AtomicBool>::default());
        let (told, stop) = (producer.clone(), stopped.clone());
        thread::Builder::new().name("kafka deliveries".to_owned()).spawn(move || {
            while !stop.load(Relaxed) {
                told.poll(ASKED_AT_ONCE);
            }
        })?;
        Ok(Self { producer, stopped })
    }
}

impl<C: ProducerContext + 'static> Deref for Producing<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &BaseProducer<C> {
        &self.producer
    }
}

impl<C: ProducerContext + 'static> Drop for Producing<C> {
    fn drop(&mut self) {
        self.stopped.store(true, Relaxed);
    }
}

/// Where somebody waits for the offset of a record.
pub(super) type Waiting = oneshot::Sender<Result<u64, KafkaError>>;

/// Tells whoever appended a record where it is.
pub(super) struct Appended;

impl ClientContext for Appended {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Plain.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Plain.error(error, reason);
    }
}

impl ProducerContext for Appended {
    type DeliveryOpaque = Box<Waiting>;

    fn delivery(&self, delivery: &DeliveryResult<'_>, waiting: Box<Waiting>) {
        let offset = match delivery {
            Ok(message) => Ok(message.offset() as u64),
            Err((error, _)) => Err(error.clone()),
        };
        // Whoever does not wait for the answer does not want it.
        let _unheard = waiting.send(offset);
    }
}
