//! In-app feeds; the live feed has tests of its own.

use herald_core::{
    packed::pack,
    ports::inbox::Inbox,
    record::{InboxBatch, InboxSection},
};
use serde_json::json;

use crate::world::{NOW_MS, TestWorld, world};

impl TestWorld {
    async fn put_items(&self, tenant: &str, user: &str, count: u64) {
        let batches = (0..count).map(|offset| {
            let section = InboxSection {
                notification_id: vec![offset as u8; 16].into(),
                tenant: tenant.into(),
                users: pack([user]),
                count: 1,
                titles: vec![format!("t{offset}")],
                bodies: vec!["b".into()],
                data: br#"{"n":1}"#.to_vec().into(),
                accepted_ms: NOW_MS,
                attempts: 0,
            };
            (offset, InboxBatch { sections: vec![section] })
        });
        let shard = herald_core::ids::shard_of(tenant, user, 4);
        self.stores.inbox.put(shard, 1, batches.collect()).await.unwrap();
    }
}

#[tokio::test]
async fn a_feed_is_listed_newest_first_and_marked() {
    let world = world();
    world.put_items("acme", "u", 5).await;
    let first = world.get("/v1/users/u/inbox?page_size=3").await;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(first.body["counts"], json!({"unseen": 5, "unread": 5, "total": 5}));
    let titles = |answer: &crate::world::Answer| -> Vec<String> {
        answer.body["items"].as_array().unwrap().iter().map(|i| i["title"].as_str().unwrap().into()).collect()
    };
    assert_eq!(titles(&first), ["t4", "t3", "t2"]);
    assert_eq!(first.body["items"][0]["data"], json!({"n": 1}));
    let token = first.body["next_page_token"].as_str().unwrap();
    let second = world.get(&format!("/v1/users/u/inbox?page_size=3&page_token={token}")).await;
    assert_eq!(titles(&second), ["t1", "t0"]);
    assert_eq!(second.body["next_page_token"], "");
    for foreign in ["/v1/users/v/inbox?", "/v1/users/u/inbox?state=unread&"] {
        let answer = world.get(&format!("{foreign}page_token={token}")).await;
        assert_eq!(answer.problem().2, [("page_token", "page_token_invalid")]);
    }
    let id = first.body["items"][1]["instance_id"].as_str().unwrap();
    let answer = world.post("/v1/users/u/inbox:mark", json!({"instance_ids": [id], "as": "read"})).await;
    assert_eq!(answer.body, json!({"unseen": 4, "unread": 4, "total": 5}), "{answer:?}");
    assert_eq!(titles(&world.get("/v1/users/u/inbox?state=unread").await), ["t4", "t2", "t1", "t0"]);
    let answer = world.post("/v1/users/u/inbox:mark", json!({"all": true, "as": "archived"})).await;
    assert_eq!(answer.body, json!({"unseen": 0, "unread": 0, "total": 0}));
    assert_eq!(titles(&world.get("/v1/users/u/inbox").await), Vec::<String>::new());
    assert_eq!(titles(&world.get("/v1/users/u/inbox?state=archived").await).len(), 5);
    for (body, field) in [
        (json!({"as": "read"}), "instance_ids"),
        (json!({"as": "read", "all": true, "instance_ids": [id]}), "instance_ids"),
        (json!({"as": "read", "instance_ids": ["x"]}), "instance_ids[0]"),
        (json!({"as": "gone", "all": true}), "as"),
    ] {
        let answer = world.post("/v1/users/u/inbox:mark", body).await;
        assert_eq!((answer.problem().0, answer.problem().2[0].0), (400, field));
    }
    assert_eq!(world.get("/v1/users/u/inbox?state=old").await.problem().2[0].0, "state");
}

#[tokio::test]
async fn the_live_feed_is_on_the_same_port() {
    let world = world();
    let answer = world.send("GET", "/v1/users/u/live", "hk_poor", &[], None).await;
    assert_eq!(answer.problem().0, 403);
    let answer = world.send("GET", "/v1/users/u/live", "hk_acme", &[], None).await;
    assert_eq!(answer.problem().1, "upgrade_required");
}
