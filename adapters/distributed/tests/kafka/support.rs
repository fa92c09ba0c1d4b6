//! Logs on the broker that the tests were given.

use std::time::Duration;

use herald_core::{
    ports::log::{Log, Member, Subscription},
    topic::{Group, Layout},
};
use herald_distributed::kafka::{KafkaConfig, KafkaLog};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};

pub const LAYOUT: Layout = Layout { shards: 3, requests: 2, receipts: 1 };
/// How long a broker may take.
pub const ANSWER: Duration = Duration::from_secs(30);

fn broker() -> String {
    std::env::var("HERALD_TEST_KAFKA").unwrap_or_else(|_| {
        panic!(
            "HERALD_TEST_KAFKA is not set: these tests need a Kafka broker at the address that it names; \
             scripts/test starts one"
        )
    })
}

/// The settings of a log that nobody else has.
pub fn config() -> KafkaConfig {
    config_of(&format!("test-{}", uuid::Uuid::now_v7().simple()))
}

/// The settings of the log of a prefix.
pub fn config_of(prefix: &str) -> KafkaConfig {
    let config = KafkaConfig { replication_factor: 1, min_insync_replicas: 1, ..KafkaConfig::default() };
    config.at(&format!("kafka://{}/{prefix}", broker())).unwrap()
}

/// Joins a group and waits for partitions.
pub async fn joined(log: &impl Log, group: Group, member: Member) -> Box<dyn Subscription> {
    let mut member = log.subscribe(group, member).await.unwrap();
    while member.poll(1, Duration::from_millis(100)).await.unwrap().assigned.is_empty() {}
    member
}

/// A log that nobody else has.
pub async fn open() -> (KafkaLog, KafkaConfig) {
    let config = config();
    (KafkaLog::open(config.clone(), "r", Some(LAYOUT)).await.unwrap(), config)
}

/// Settings of a client that is not ours.
pub fn client() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker());
    config
}

pub fn admin() -> AdminClient<DefaultClientContext> {
    client().create().unwrap()
}

/// Deletes the topics of a log, so that a broker can be used again and again.
pub async fn clean_up(config: &KafkaConfig) {
    let prefix = format!("{}.", config.prefix);
    let admin = admin();
    let found = admin.inner().fetch_metadata(None, ANSWER).unwrap();
    let topics: Vec<&str> =
        found.topics().iter().map(|topic| topic.name()).filter(|name| name.starts_with(&prefix)).collect();
    admin.delete_topics(&topics, &AdminOptions::new()).await.unwrap();
}
