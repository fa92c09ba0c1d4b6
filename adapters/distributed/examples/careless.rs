//! What an engine costs that is written without care: each instance is a record of its own on the log, is claimed in a round
//! trip of its own, and its outcome is another record. This is what batches are measured against.
//!
//! ```text
//! cargo run --profile dist -p herald-distributed --example careless -- 127.0.0.1:9092 redis://127.0.0.1:6379 [INSTANCES]
//! ```
//!
//! One process appends the deliveries and handles them, at the same time, so its CPU is that of expansion, worker and receipts
//! of an engine without transactions, which loses and repeats what is in hand when it is killed.

mod cpu;

use std::time::{Duration, Instant};

use anyhow::Context;
use cpu::cpu_us;
use futures::StreamExt;
use rdkafka::{
    ClientConfig, Message,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};

const PARTITIONS: i32 = 4;
/// Claims under way at once, each a command of its own on a shared connection.
const CLAIMS_AT_ONCE: usize = 64;
/// Bytes of a delivery beside its user: ids, and what the notification carries.
const DELIVERY_BYTES: usize = 200;
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let brokers = arguments.next().context("a broker is missing, such as 127.0.0.1:9092")?;
    let redis = arguments.next().context("the URL of Redis is missing, such as redis://127.0.0.1:6379")?;
    let instances: u64 = arguments.next().map_or(Ok(300_000), |count| count.parse()).context("not a number")?;
    let name = format!("careless-{}", uuid::Uuid::now_v7().simple());
    let (deliveries, receipts) = (format!("{name}.deliveries"), format!("{name}.receipts"));

    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &brokers).set("compression.type", "lz4").set("linger.ms", "5");
    let admin: AdminClient<_> = client.create()?;
    let topics = [&deliveries, &receipts].map(|topic| NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1)));
    admin.create_topics(&topics, &AdminOptions::new()).await?;
    let producer: ThreadedProducer<DefaultProducerContext> = client.create()?;
    client.set("group.id", &name).set("auto.offset.reset", "earliest").set("enable.auto.commit", "true");
    let consumer: BaseConsumer = client.create()?;
    consumer.subscribe(&[&deliveries])?;
    let claims = redis::Client::open(redis)?.get_multiplexed_async_connection().await?;

    let (begun, before) = (Instant::now(), cpu_us(std::process::id()));
    let (appending, topic) = (producer.clone(), deliveries.clone());
    let appended = std::thread::spawn(move || append(&appending, &topic, instances));
    let (sender, taken) = tokio::sync::mpsc::channel(CLAIMS_AT_ONCE);
    let reading = std::thread::spawn(move || read(&consumer, instances, &sender));
    let taken = futures::stream::unfold(taken, async |mut taken| taken.recv().await.map(|user| (user, taken)));
    let handled = taken
        .map(|user| {
            let mut claims = claims.clone();
            let key = format!("{name}:{user}");
            async move {
                let mut claim = redis::cmd("SET");
                claim.arg(key).arg("owner").arg("NX").arg("GET").arg("PX").arg(60_000);
                claim.query_async::<Option<String>>(&mut claims).await.map(|other| (user, other))
            }
        })
        .buffer_unordered(CLAIMS_AT_ONCE);
    let mut handled = std::pin::pin!(handled);
    let mut sent = 0_u64;
    while let Some(claimed) = handled.next().await {
        let (user, None) = claimed? else { continue };
        let message = format!("Hi Name of {user}, somebody has news for you.");
        send(&producer, &receipts, &user, message.as_bytes())?;
        sent += 1;
    }
    producer.flush(PATIENCE)?;
    let (elapsed, cpu) = (begun.elapsed().as_secs_f64(), cpu_us(std::process::id()) - before);
    appended.join().map_err(|_| anyhow::anyhow!("appending failed"))??;
    reading.join().map_err(|_| anyhow::anyhow!("reading failed"))??;
    anyhow::ensure!(sent == instances, "{sent} of {instances} were handled once");
    println!("{:.1} us of CPU an instance, {:.0} instances/s", cpu / sent as f64, sent as f64 / elapsed);
    Ok(())
}

fn append(producer: &ThreadedProducer<DefaultProducerContext>, topic: &str, instances: u64) -> anyhow::Result<()> {
    let body = [7; DELIVERY_BYTES];
    (0..instances).try_for_each(|number| send(producer, topic, &format!("user-{number}"), &body))
}

fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    key: &str,
    body: &[u8],
) -> anyhow::Result<()> {
    let mut record = BaseRecord::to(topic).key(key).payload(body);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => record = back,
            Err((error, _)) => return Err(error.into()),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn read(consumer: &BaseConsumer, instances: u64, taken: &tokio::sync::mpsc::Sender<String>) -> anyhow::Result<()> {
    let (mut read, mut last) = (0, Instant::now());
    while read < instances {
        let Some(record) = consumer.poll(Duration::from_secs(1)) else {
            anyhow::ensure!(last.elapsed() < PATIENCE, "no more records come");
            continue;
        };
        let record = record?;
        let user = str::from_utf8(record.key().context("a record without a key")?)?;
        taken.blocking_send(user.to_owned())?;
        (read, last) = (read + 1, Instant::now());
    }
    Ok(())
}
