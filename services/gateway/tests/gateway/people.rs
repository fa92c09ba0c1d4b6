//! Users, preferences, follows, subscriptions, tokens and unsubscribe links.

use herald_core::{
    ids::{TenantId, shard_of},
    ports::{
        directory::{AudienceKey, Directory},
        log::{Log, LogError},
    },
    record::UserChange,
    tokens::UnsubscribeToken,
    topic::{Topic, TopicPartition},
};
use prost::Message;
use serde_json::{Value, json};

use crate::world::{NOW_MS, SECRET, TestWorld, send, world};

impl TestWorld {
    async fn put(&self, path: &str, body: Value) -> crate::world::Answer {
        self.send("PUT", path, "hk_acme", &[], Some(body)).await
    }

    async fn patch(&self, path: &str, body: Value) -> crate::world::Answer {
        self.send("PATCH", path, "hk_acme", &[], Some(body)).await
    }

    /// The changes that workers will read, as (partition, user, version).
    async fn changes(&self) -> Vec<(u32, String, u64)> {
        let mut changes = Vec::new();
        for partition in 0..4 {
            let at = TopicPartition { topic: Topic::UserChanges, partition };
            for record in self.log.read(at, 0, 1_000).await.unwrap().0 {
                let change = UserChange::decode(record.body).unwrap();
                assert_eq!(partition, shard_of(&change.tenant, &change.user_id, 4));
                changes.push((partition, change.user_id, change.version));
            }
        }
        changes.sort_by(|a, b| (&a.1, a.2).cmp(&(&b.1, b.2)));
        changes
    }
}

#[tokio::test]
async fn a_user_is_put_patched_and_read() {
    let world = world();
    let user = json!({
        "attributes": {"plan": "pro", "seats": 3},
        "locale": "de",
        "time_zone": "Europe/Berlin",
        "endpoints": [{"channel": "email", "address": "ada@example.org"}],
    });
    let answer = world.put("/v1/users/a%2Fda", user.clone()).await;
    assert_eq!((answer.status.as_u16(), &answer.body["version"]), (200, &json!(1)), "{answer:?}");
    assert_eq!((&answer.body["user_id"], &answer.body["created_at"]), (&json!("a/da"), &answer.body["updated_at"]));
    assert_eq!(answer.body["attributes"], user["attributes"], "whole numbers stay whole");
    let patch = json!({"attributes": {"seats": null, "n": 1.5}, "locale": null, "endpoints": []});
    let answer = world.patch("/v1/users/a%2Fda", patch).await;
    assert_eq!((answer.status.as_u16(), &answer.body["version"]), (200, &json!(2)), "{answer:?}");
    let read = world.get("/v1/users/a%2Fda").await;
    assert_eq!(read.body["attributes"], json!({"plan": "pro", "n": 1.5}));
    assert_eq!((&read.body["endpoints"], &read.body["locale"]), (&json!([]), &json!(null)));
    assert_eq!(read.body["time_zone"], "Europe/Berlin");
    let changes: Vec<_> = world.changes().await.into_iter().map(|(_, user, version)| (user, version)).collect();
    assert_eq!(changes, [("a/da".to_owned(), 1), ("a/da".to_owned(), 2)]);
    let answer = world.put("/v1/users/a%2Fda", json!({"version": 1})).await;
    assert_eq!(answer.problem(), (409, "version_mismatch", vec![("version", "version_mismatch")]));
    let answer = world.patch("/v1/users/a%2Fda", json!({"version": 1})).await;
    assert_eq!(answer.problem().1, "version_mismatch");
    assert_eq!(world.put("/v1/users/a%2Fda", json!({"version": 2})).await.body["attributes"], json!({}));
    assert_eq!(world.get("/v1/users/nobody").await.problem(), (404, "not_found", vec![]));
    for (body, field, code) in [
        (json!({"user_id": "other"}), "user_id", "mismatch"),
        (json!({"name": "x"}), "name", "unknown_field"),
        (json!({"locale": 5}), "locale", "invalid_type"),
        (json!({"endpoints": [{"channel": "email", "address": "x"}]}), "endpoints[0].address", "invalid_value"),
        (json!({"attributes": {"x": "y".repeat(20_000)}}), "attributes", "too_large"),
        (json!({"time_zone": "Nowhere/Land"}), "time_zone", "invalid_value"),
    ] {
        for method in ["PUT", "PATCH"] {
            let answer = world.send(method, "/v1/users/u", "hk_acme", &[], Some(body.clone())).await;
            assert_eq!(answer.problem(), (400, "invalid_argument", vec![(field, code)]), "{method} {body}");
        }
    }
}

#[tokio::test]
async fn merges_at_once_lose_nothing() {
    let world = world();
    let patches = (0..10).map(|n| {
        let body = json!({"attributes": {format!("k{n}"): n}});
        let world = &world;
        async move { world.patch("/v1/users/u", body).await }
    });
    let answers = futures::future::join_all(patches).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(world.get("/v1/users/u").await.body["attributes"].as_object().unwrap().len(), 10);
}

#[tokio::test]
async fn a_change_that_is_not_announced_is_not_confirmed() {
    let world = world();
    *world.faults.fail.lock().unwrap() = vec![LogError::Unavailable("cut".into())];
    let answer = world.put("/v1/users/u", json!({})).await;
    assert_eq!((answer.problem().0, answer.header("retry-after")), (503, Some("1")));
    assert!(world.changes().await.is_empty());
    assert_eq!(world.put("/v1/users/u", json!({})).await.status, 200);
    assert_eq!(world.changes().await.len(), 1);
}

#[tokio::test]
async fn users_come_in_batches_and_are_listed_in_pages() {
    let world = world();
    let mut users: Vec<Value> = (0..25).map(|n| json!({"user_id": format!("u{n}"), "attributes": {"n": n}})).collect();
    users[3] = json!({"user_id": "", "locale": "de"});
    users[4] = json!({"user_id": "u4", "version": 7});
    users[5] = json!({"user_id": "u5", "locale": 5});
    let answer = world.post("/v1/users:batch", json!({"users": users})).await;
    let results = answer.body["results"].as_array().unwrap();
    assert_eq!(results.len(), 25, "{answer:?}");
    assert_eq!(results[0], json!({"user_id": "u0", "version": 1}));
    assert_eq!(results[3]["error"]["errors"][0]["field"], "user_id");
    assert_eq!(results[4]["error"]["code"], "version_mismatch");
    assert_eq!(results[5]["error"]["errors"][0]["field"], "locale");
    assert_eq!(results[24]["version"], 1);
    assert_eq!(*world.faults.appends.lock().unwrap(), [22], "one append");
    assert_eq!(world.changes().await.len(), 22);
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let answer = world.get(&format!("/v1/users?page_size=10&page_token={token}")).await;
        seen.extend(answer.body["users"].as_array().unwrap().iter().map(|user| user["user_id"].to_string()));
        token = answer.body["next_page_token"].as_str().unwrap().to_owned();
        if token.is_empty() {
            break;
        }
        let foreign = format!("/v1/users?page_token={token}");
        assert_eq!(world.send("GET", &foreign, "hk_other", &[], None).await.problem().0, 400);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 22);
    let many: Vec<Value> = (0..1_001).map(|_| json!({})).collect();
    let answer = world.post("/v1/users:batch", json!({"users": many})).await;
    assert_eq!(answer.problem().2, [("users", "too_many")]);
}

#[tokio::test]
async fn objects_are_merged_at_every_depth() {
    let world = world();
    world.put("/v1/users/u", json!({"attributes": {"pet": {"name": "Rex", "toys": {"ball": 1, "bone": 2}}}})).await;
    let patch =
        json!({"attributes": {"pet": {"age": 3, "gone": null, "toys": {"ball": null}}, "new": {"a": null, "b": 1}}});
    let answer = world.patch("/v1/users/u", patch).await;
    let merged = json!({"pet": {"name": "Rex", "age": 3, "toys": {"bone": 2}}, "new": {"b": 1}});
    assert_eq!(answer.body["attributes"], merged, "{answer:?}");
}

#[tokio::test]
async fn preferences_hold_for_anybody() {
    let world = world();
    let defaults = world.get("/v1/users/x/preferences").await;
    assert_eq!((&defaults.body["source"], &defaults.body["updated_at"]), (&json!("default"), &json!(null)));
    let wanted = json!({
        "channels": {"email": {"enabled": false, "categories": {"news": true}}},
        "quiet_hours": {"start": "22:00", "end": "06:30", "policy": "drop"},
    });
    let answer = world.put("/v1/users/x/preferences", wanted.clone()).await;
    assert_eq!((answer.status.as_u16(), &answer.body["source"]), (200, &json!("api")), "{answer:?}");
    assert!(answer.body["updated_at"].is_string());
    let read = world.get("/v1/users/x/preferences").await;
    assert_eq!(read.body["channels"], wanted["channels"]);
    let quiet = json!({"start": "22:00", "end": "06:30", "time_zone": null, "policy": "drop"});
    assert_eq!(read.body["quiet_hours"], quiet);
    assert_eq!(world.changes().await.len(), 1, "workers are told of people who are not registered");
    let bad = json!({"channels": {"fax": {"enabled": true}}, "quiet_hours": {"start": "25:00", "end": "06:00"}});
    let answer = world.put("/v1/users/x/preferences", bad).await;
    assert_eq!(
        answer.problem(),
        (400, "invalid_argument", vec![("channels.fax", "unknown_field"), ("quiet_hours.start", "invalid_value")])
    );
}

#[tokio::test]
async fn follows_and_subscriptions_count_what_changed() {
    let world = world();
    let edges = json!({"edges": [
        {"follower": "a", "followee": "x"},
        {"follower": "b", "followee": "x"},
        {"follower": "a", "followee": "x"},
    ]});
    assert_eq!(world.post("/v1/follows", edges.clone()).await.body, json!({"changed": 2, "unchanged": 0}));
    assert_eq!(world.post("/v1/follows", edges.clone()).await.body, json!({"changed": 0, "unchanged": 2}));
    let subscribers = json!({"user_ids": ["a", "b", "c"]});
    let path = "/v1/topics/news/subscribers";
    assert_eq!(world.post(path, subscribers.clone()).await.body, json!({"changed": 3, "unchanged": 0}));
    let tenant = TenantId::trusted("acme");
    let members = |audience: AudienceKey| {
        let (directory, tenant) = (world.stores.directory.clone(), tenant.clone());
        async move { directory.audience(&tenant, &audience, None, 100).await.unwrap().users.len() }
    };
    assert_eq!(members(AudienceKey::FollowersOf("x".into())).await, 2);
    assert_eq!(members(AudienceKey::Topic("news".into())).await, 3);
    let one = json!({"edges": [{"follower": "a", "followee": "x"}, {"follower": "z", "followee": "x"}]});
    assert_eq!(world.post("/v1/follows:remove", one).await.body, json!({"changed": 1, "unchanged": 1}));
    let answer = world.post(&format!("{path}:remove"), json!({"user_ids": ["a"]})).await;
    assert_eq!(answer.body["changed"], 1);
    assert_eq!(members(AudienceKey::FollowersOf("x".into())).await, 1);
    assert_eq!(members(AudienceKey::Topic("news".into())).await, 2);
    let answer = world.post("/v1/follows", json!({"edges": [{"follower": "a"}]})).await;
    assert_eq!(answer.problem().2, [("edges[0].followee", "required")]);
    let answer = world.post("/v1/follows", json!({})).await;
    assert_eq!(answer.problem().2, [("edges", "required")]);
    let answer = world.post(path, json!({"user_ids": ["a", "\n"]})).await;
    assert_eq!(answer.problem().2, [("user_ids[1]", "invalid_value")]);
}

#[tokio::test]
async fn a_token_opens_one_users_feed_and_preferences() {
    let world = world();
    let answer = world.post("/v1/users/u/tokens", json!({"ttl": "60s", "scopes": ["inbox", "preferences"]})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let token = answer.body["token"].as_str().unwrap().to_owned();
    assert_eq!(
        herald_api::time::parse(answer.body["expires_at"].as_str().unwrap()).unwrap().seconds as u64,
        NOW_MS / 1_000 + 60
    );
    let as_user = |method: &'static str, path: &'static str, body: Option<Value>| {
        let (world, token) = (&world, token.clone());
        async move { world.send(method, path, &token, &[], body).await }
    };
    assert_eq!(as_user("GET", "/v1/users/u/inbox", None).await.status, 200);
    let answer = as_user("PUT", "/v1/users/u/preferences", Some(json!({}))).await;
    assert_eq!(answer.body["source"], "user");
    for path in ["/v1/users/v/inbox", "/v1/users/v/preferences", "/v1/users/u", "/v1/users", "/v1/requests"] {
        assert_eq!(as_user("GET", path, None).await.problem().0, 403, "{path}");
    }
    assert_eq!(as_user("POST", "/v1/users/u/tokens", Some(json!({"scopes": ["inbox"]}))).await.problem().0, 403);
    assert_eq!(world.get(&format!("/v1/users/u/inbox?token={token}")).await.problem().2[0].0, "token", "live only");
    world.advance(60_000);
    assert_eq!(as_user("GET", "/v1/users/u/inbox", None).await.problem().0, 401);
    for (body, field, code) in [
        (json!({"scopes": ["notify"]}), "scopes[0]", "unknown_scope"),
        (json!({}), "scopes", "required"),
        (json!({"scopes": ["inbox"], "ttl": "99999999s"}), "ttl", "out_of_range"),
    ] {
        let answer = world.post("/v1/users/u/tokens", body).await;
        assert_eq!(answer.problem(), (400, "invalid_argument", vec![(field, code)]));
    }
}

#[tokio::test]
async fn an_unsubscribe_link_asks_on_get_and_acts_on_post() {
    let world = world();
    world.put("/v1/users/u/preferences", json!({"channels": {"email": {"categories": {"other": true}}}})).await;
    let link = |category: &str| {
        let token = UnsubscribeToken {
            tenant: "acme".into(),
            user: "u".into(),
            channel: "email".into(),
            category: category.into(),
        };
        token.url("", SECRET)
    };
    let page = send(&world.app, "GET", &link("<news>"), &[], Vec::new()).await;
    assert_eq!((page.status.as_u16(), page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let html = page.body.as_str().unwrap();
    assert!(html.contains("<form method=\"post\">") && html.contains("&lt;news&gt;") && !html.contains("<news>"));
    let unchanged = world.get("/v1/users/u/preferences").await;
    assert_eq!(unchanged.body["channels"]["email"]["categories"], json!({"other": true}));
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let answer = send(&world.app, "POST", &link("news"), &headers, b"List-Unsubscribe=One-Click".to_vec()).await;
    assert_eq!(answer.status, 200);
    let read = world.get("/v1/users/u/preferences").await;
    assert_eq!(read.body["channels"]["email"]["categories"], json!({"other": true, "news": false}));
    assert_eq!(read.body["source"], "unsubscribe");
    assert_eq!(send(&world.app, "POST", &link(""), &[], Vec::new()).await.status, 200);
    let read = world.get("/v1/users/u/preferences").await;
    assert_eq!(read.body["channels"]["email"]["enabled"], false);
    let forged = link("news").replace('.', ".A");
    for method in ["GET", "POST"] {
        let answer = send(&world.app, method, &forged, &[], Vec::new()).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (404, Some("text/html; charset=utf-8")));
    }
}
