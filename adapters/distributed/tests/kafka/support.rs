//! Logs on the broker that the tests were given.

use std::time::Duration;

use herald_core::topic::Layout;
use herald_distributed::kafka::{KafkaConfig, KafkaLog};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};

pub const LAYOUT: Layout = Layout { shards: 3, requests: 2, receipts: 1 };

/// The settings of a log that nobody else has.
pub fn config() -> KafkaConfig {
    let Ok(broker) = std::env::var("HERALD_TEST_KAFKA") else {
        panic!(
            "HERALD_TEST_KAFKA is not set: these tests need a Kafka broker at the address that it names; \
             scripts/test starts one"
        );
    };
    let prefix = format!("{}{}", made_here(), uuid::Uuid::now_v7().simple());
    let config = KafkaConfig { replication_factor: 1, min_insync_replicas: 1, ..KafkaConfig::default() };
    config.at(&format!("kafka://{broker}/{prefix}")).unwrap()
}

/// What the prefixes of this process begin with.
fn made_here() -> String {
    format!("test-{}-", std::process::id())
}

/// A log that nobody else has.
pub async fn open() -> KafkaLog {
    KafkaLog::open(config(), "r", Some(LAYOUT)).await.unwrap()
}

/// Deletes the topics of every log that this process made, so that a broker can be used again and again.
pub async fn clean_up() {
    let config = config();
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &config.brokers).create().unwrap();
    let topics = admin.inner().fetch_metadata(None, Duration::from_secs(30)).unwrap();
    let ours = made_here();
    let topics: Vec<&str> =
        topics.topics().iter().map(|topic| topic.name()).filter(|name| name.starts_with(&ours)).collect();
    admin.delete_topics(&topics, &AdminOptions::new()).await.unwrap();
}
