//! What a start refuses, and what it says then.

use std::time::Instant;

use herald_core::{
    ports::log::Log,
    topic::{Lane, Layout, Topic},
};
use herald_distributed::kafka::{KafkaConfig, KafkaLog, OpenError};
use rdkafka::{
    admin::{AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication},
    producer::{BaseProducer, BaseRecord, Producer},
};

use crate::support::{ANSWER, LAYOUT, admin, clean_up, client, config};

fn topic(config: &KafkaConfig, topic: Topic) -> String {
    format!("{}.{topic}", config.prefix)
}

/// Why a start is refused. Brokers show a change a moment after they took it.
async fn refusal(config: &KafkaConfig, region: &str, layout: Option<Layout>) -> String {
    let deadline = Instant::now() + ANSWER;
    loop {
        match KafkaLog::open(config.clone(), region, layout).await {
            Err(OpenError::Refused(cause)) => return cause,
            Err(other) => panic!("not refused, but: {other}"),
            Ok(log) => assert!(Instant::now() < deadline, "opened as {:?}", log.identity()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_what_it_was_when_it_began() {
    let config = config();
    let log = KafkaLog::open(config.clone(), "eu", Some(LAYOUT)).await.unwrap();
    let again = KafkaLog::open(config.clone(), "eu", None).await.unwrap();
    assert_eq!(log.identity(), again.identity());
    assert_eq!((again.identity().layout, again.identity().epoch), (LAYOUT, 1));
    let other = Layout { shards: 4, ..LAYOUT };
    let cause = refusal(&config, "eu", Some(other)).await;
    assert!(cause.contains("shards: 3") && cause.contains("shards: 4") && cause.contains("another prefix"), "{cause}");
    let cause = refusal(&config, "us", None).await;
    assert!(cause.contains("\"eu\"") && cause.contains("\"us\""), "{cause}");
    clean_up(&config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_somebody_changed_is_refused() {
    let config = config();
    KafkaLog::open(config.clone(), "eu", Some(LAYOUT)).await.unwrap();
    let (admin, options) = (admin(), AdminOptions::new());

    let waiting = topic(&config, Topic::Delayed(3));
    let expiring = AlterConfig::new(ResourceSpecifier::Topic(&waiting)).set("retention.ms", "1000");
    admin.alter_configs(&[expiring], &options).await.unwrap();
    let cause = refusal(&config, "eu", None).await;
    assert!(cause.contains(&waiting) && cause.contains("set retention.ms=-1"), "{cause}");
    let kept = AlterConfig::new(ResourceSpecifier::Topic(&waiting))
        .set("retention.ms", "-1")
        .set("retention.bytes", "-1")
        .set("cleanup.policy", "delete");
    admin.alter_configs(&[kept], &options).await.unwrap();

    let divided = topic(&config, Topic::Deliveries(Lane::Bulk));
    while KafkaLog::open(config.clone(), "eu", None).await.is_err() {}
    admin.create_partitions(&[NewPartitions::new(&divided, 5)], &options).await.unwrap();
    let cause = refusal(&config, "eu", None).await;
    assert!(cause.contains(&divided) && cause.contains("5 partitions where 3 are right"), "{cause}");

    admin.delete_topics(&[&divided], &options).await.unwrap();
    while !refusal(&config, "eu", None).await.contains("missing") {}
    clean_up(&config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_a_later_release_is_refused() {
    let config = config();
    let meta = format!("{}.meta", config.prefix);
    let made = NewTopic::new(&meta, 1, TopicReplication::Fixed(1));
    admin().create_topics(&[made], &AdminOptions::new().operation_timeout(Some(ANSWER))).await.unwrap();
    let producer: BaseProducer = client().create().unwrap();
    let later = r#"{"format_version":2,"region":"eu","epoch":1,"shards":3,"requests":2,"receipts":1,"news":[]}"#;
    producer.send(BaseRecord::<str, str>::to(&meta).payload(later)).unwrap();
    producer.flush(ANSWER).unwrap();
    let cause = refusal(&config, "eu", Some(LAYOUT)).await;
    assert!(cause.contains("later release") && cause.contains("format 2"), "{cause}");
    clean_up(&config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_copies_than_brokers_are_refused_with_what_to_set() {
    let config = KafkaConfig { replication_factor: 9, ..config() };
    let cause = refusal(&config, "eu", Some(LAYOUT)).await;
    assert!(cause.contains("9 copies") && cause.contains("replication_factor"), "{cause}");
}
