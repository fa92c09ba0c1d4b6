//! Erasing a person.

use herald_core::{
    ids::shard_of,
    ports::log::{Log, LogError},
    record::UserChange,
    topic::{Topic, TopicPartition},
};
use prost::Message;
use serde_json::json;

use crate::world::{Answer, TestWorld, world};

impl TestWorld {
    async fn erase(&self, user: &str) -> Answer {
        self.send("DELETE", &format!("/v1/users/{user}"), "hk_acme", &[], None).await
    }

    /// Whether a worker would be told that the user was erased.
    async fn told_erased(&self, user: &str) -> bool {
        let at = TopicPartition { topic: Topic::UserChanges, partition: shard_of("acme", user, 4) };
        let (records, _) = self.log.read(at, 0, 1_000).await.unwrap();
        records.into_iter().any(|record| {
            let change = UserChange::decode(record.body).unwrap();
            change.user_id == user && change.erased
        })
    }
}

#[tokio::test]
async fn an_erasure_holds_at_once_and_says_how_far_it_is() {
    let world = world();
    world.send("PUT", "/v1/users/ann", "hk_acme", &[], Some(json!({"locale": "de"}))).await;
    let begun = world.erase("ann").await;
    assert_eq!(begun.status, 202, "{begun:?}");
    assert!(world.told_erased("ann").await);
    assert_eq!(world.get("/v1/users/ann").await.problem().0, 404);

    let id = begun.body["erasure_id"].as_str().unwrap();
    let path = format!("/v1/erasures/{id}");
    world.gateway.erase_due().await.unwrap();
    let running = world.get(&path).await.body;
    assert_eq!((&running["state"], &running["completed_at"]), (&json!("running"), &json!(null)));
    assert_eq!(world.erase("ann").await.body["erasure_id"], id, "it runs already");
    world.advance(5_000);
    world.gateway.erase_due().await.unwrap();
    let complete = world.get(&path).await.body;
    assert_eq!(complete["state"], "complete");
    assert_eq!(complete["created_at"], "2023-11-14T22:13:20+00:00");
    assert_eq!(complete["completed_at"], "2023-11-14T22:13:25+00:00");
    // 30 days ahead, 30 days of ttl, 31 days of the longest topic, and an hour.
    assert_eq!(complete["log_gone_at"], "2024-02-13T23:13:20+00:00");

    assert_eq!(world.send("GET", &path, "hk_other", &[], None).await.problem().0, 404, "another tenant's");
    assert_eq!(world.get("/v1/erasures/nothing").await.problem().0, 404);
    for (method, path) in [("DELETE", "/v1/users/ann"), ("GET", path.as_str())] {
        assert_eq!(world.send(method, path, "hk_plain", &[], None).await.problem().0, 403, "{method} {path}");
    }
    assert_ne!(world.erase("ann").await.body["erasure_id"], id, "what came since is erased too");
}

#[tokio::test]
async fn an_erasure_that_could_not_be_announced_is_announced_by_the_next_call() {
    let world = world();
    *world.faults.fail.lock().unwrap() = vec![LogError::Unavailable("away".into())];
    assert_eq!(world.erase("ann").await.problem().0, 503);
    assert!(!world.told_erased("ann").await);
    assert_eq!(world.erase("ann").await.status, 202);
    assert!(world.told_erased("ann").await);
}
