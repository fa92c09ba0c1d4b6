//! No tenant sees or changes what is another's: every route with another tenant's ids.

use herald_core::{
    ids::{NotificationId, TenantId},
    ports::{
        directory::Directory,
        ledger::{AdmittedRow, Flush, Ledger},
    },
};
use serde_json::json;

use crate::world::{NOW_MS, notification, send, with, world};

#[tokio::test]
async fn another_tenants_ids_lead_nowhere() {
    let world = world();
    let put =
        world.send("PUT", "/v1/users/secret", "hk_acme", &[], Some(json!({"attributes": {"canary": "c4n4ry"}}))).await;
    assert_eq!(put.status, 200);
    world.send("PUT", "/v1/users/secret/preferences", "hk_acme", &[], Some(json!({"channels": {"push": {}}}))).await;
    world.post("/v1/follows", json!({"edges": [{"follower": "secret", "followee": "x"}]})).await;
    world.put_template("acme", "c4n4ry", json!({"channels": {"in_app": {"title": "c4n4ry"}}}));
    let id = NotificationId([9; 16]);
    let row = AdmittedRow {
        id,
        tenant: TenantId::trusted("acme"),
        template_id: "c4n4ry".into(),
        template_version: 1,
        accepted_ms: NOW_MS,
        send_at_ms: 0,
        expires_ms: NOW_MS + 1,
        dedupe_key: String::new(),
    };
    world.stores.ledger.apply(Flush { admitted: vec![row], ..Default::default() }).await.unwrap();
    for path in [
        "/v1/users/secret".to_owned(),
        "/v1/users".to_owned(),
        "/v1/users/secret/preferences".to_owned(),
        "/v1/users/secret/inbox".to_owned(),
        format!("/v1/status/{id}"),
        "/v1/requests".to_owned(),
        format!("/v1/receipts?request_id={id}"),
        "/v1/receipts?user_id=secret".to_owned(),
    ] {
        let own = world.get(&path).await;
        assert_eq!(own.status, 200, "{path}: {own:?}");
        let foreign = world.send("GET", &path, "hk_other", &[], None).await;
        let text = foreign.body.to_string();
        assert!(!text.contains("c4n4ry") && !text.contains("push"), "{path}: {text}");
        assert!(foreign.status == 404 || foreign.status == 200, "{path}: {foreign:?}");
        let unknown = send(&world.app, "GET", &path, &[], Vec::new()).await;
        assert_eq!(unknown.problem().0, 401, "{path}");
        let weak = world.send("GET", &path, "hk_plain", &[], None).await;
        assert_eq!(weak.problem().0, 403, "{path}");
    }
    let template = with(notification(), json!({"template_id": "c4n4ry"}));
    assert_eq!(world.send("POST", "/v1/notify", "hk_other", &[], Some(template)).await.problem().1, "unknown_template");
    world.send("PATCH", "/v1/users/secret", "hk_other", &[], Some(json!({"attributes": {"canary": "theirs"}}))).await;
    world
        .send(
            "POST",
            "/v1/follows:remove",
            "hk_other",
            &[],
            Some(json!({"edges": [{"follower": "secret", "followee": "x"}]})),
        )
        .await;
    let person = world.stores.directory.people(&TenantId::trusted("acme"), &["secret".into()]).await.unwrap();
    assert_eq!(person[0].user.as_ref().unwrap().attributes["canary"], "c4n4ry");
    let edges = json!({"edges": [{"follower": "secret", "followee": "x"}]});
    assert_eq!(world.post("/v1/follows:remove", edges).await.body["changed"], 1, "the follow was still there");
}

#[tokio::test]
async fn every_route_that_writes_needs_its_scope() {
    let world = world();
    for (method, path) in [
        ("POST", "/v1/users:batch"),
        ("PUT", "/v1/users/u"),
        ("PATCH", "/v1/users/u"),
        ("PUT", "/v1/users/u/preferences"),
        ("POST", "/v1/users/u/tokens"),
        ("POST", "/v1/users/u/inbox:mark"),
        ("POST", "/v1/follows"),
        ("POST", "/v1/follows:remove"),
        ("POST", "/v1/topics/t/subscribers"),
        ("POST", "/v1/topics/t/subscribers:remove"),
    ] {
        let answer = world.send(method, path, "hk_plain", &[], Some(json!({}))).await;
        assert_eq!(answer.problem().0, 403, "{method} {path}");
        let answer = send(&world.app, method, path, &[("content-type", "application/json")], b"{}".to_vec()).await;
        assert_eq!(answer.problem().0, 401, "{method} {path}");
    }
}
