//! The same call under the same key, whatever happened to the first.

use herald_core::ports::log::LogError;
use serde_json::{Value, json};

use crate::world::{Answer, TestWorld, notification, send, with, world};

async fn keyed(world: &TestWorld, body: Value) -> Answer {
    world.send("POST", "/v1/notify", "hk_acme", &[("idempotency-key", "k")], Some(body)).await
}

#[tokio::test]
async fn the_same_call_gets_the_same_answer_and_another_body_none() {
    let world = world();
    let first = keyed(&world, notification()).await;
    assert_eq!((first.status.as_u16(), first.header("idempotent-replayed")), (202, None));
    // The order of keys and of listed users is not the call's meaning.
    let body = r#"{"data":{"text":"hi"},"audience":{"users":["u1","u1"]},"template_id":"comment"}"#;
    let second = keyed(&world, serde_json::from_str(body).unwrap()).await;
    assert_eq!((second.status.as_u16(), second.header("idempotent-replayed")), (202, Some("true")));
    assert_eq!(second.body, json!({"request_id": first.body["request_id"], "deduplicated": true}));
    for fields in [
        json!({"data": {"text": "ho"}}),
        json!({"ttl": "5s"}),
        json!({"exclude_actor": false}),
        json!({"template_version": 1}),
        json!({"metadata": {"a": "b"}}),
        json!({"audience": {"topic": "u1"}}),
    ] {
        let answer = keyed(&world, with(notification(), fields)).await;
        assert_eq!(answer.problem().1, "idempotency_key_reused");
    }
    let other = world.send("POST", "/v1/notify", "hk_other", &[("idempotency-key", "k")], Some(notification())).await;
    assert_eq!(other.body["deduplicated"], false, "another tenant's key is another key");
    assert_eq!(world.requests().await.len(), 2);
    world.advance(24 * 3_600_000 + 1);
    assert_eq!(keyed(&world, notification()).await.body["deduplicated"], false);
}

#[tokio::test]
async fn a_call_that_is_running_is_in_flight_until_it_is_stale() {
    let world = world();
    world.faults.held.send_replace(true);
    let running = {
        let app = world.app.clone();
        let headers = [("authorization", "Bearer hk_acme"), ("idempotency-key", "k")];
        tokio::spawn(async move { send(&app, "POST", "/v1/notify", &headers, notification().to_string().into()).await })
    };
    while world.faults.appends.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let answer = keyed(&world, notification()).await;
    assert_eq!((answer.problem().0, answer.problem().1), (409, "idempotency_key_in_flight"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    world.advance(10_000);
    world.faults.held.send_replace(false);
    let again = keyed(&world, notification()).await;
    let first = running.await.unwrap();
    assert_eq!((first.status.as_u16(), again.status.as_u16()), (202, 202));
    assert_eq!(first.body["request_id"], again.body["request_id"], "both are one notification");
}

#[tokio::test]
async fn a_key_whose_process_died_is_done_again_at_once_under_its_id() {
    let world = world();
    *world.faults.fail.lock().unwrap() = vec![LogError::Unavailable("cut".into())];
    let lost = keyed(&world, notification()).await;
    assert_eq!((lost.problem().0, lost.problem().1), (503, "unavailable"));
    assert!(lost.header("retry-after").is_some());
    assert_eq!(keyed(&world, notification()).await.problem().0, 409, "it may still be on its way");
    world.advance(1);
    let headers = [("authorization", "Bearer hk_acme"), ("idempotency-key", "k")];
    let app = world.restarted();
    let first = send(&app, "POST", "/v1/notify", &headers, notification().to_string().into()).await;
    assert_eq!((first.status.as_u16(), &first.body["deduplicated"]), (202, &json!(false)));
    let second = keyed(&world, notification()).await;
    assert_eq!(second.body, json!({"request_id": first.body["request_id"], "deduplicated": true}));
    assert_eq!(world.requests().await.len(), 1);
}

#[tokio::test]
async fn a_key_is_free_again_when_nothing_was_accepted() {
    let world = world();
    *world.faults.fail.lock().unwrap() = vec![LogError::Full("disk".into())];
    assert_eq!(keyed(&world, notification()).await.problem().1, "log_full");
    let refused = with(notification(), json!({"template_id": "nope"}));
    assert_eq!(keyed(&world, refused).await.problem().1, "unknown_template");
    let answer = keyed(&world, notification()).await;
    assert_eq!((answer.status.as_u16(), &answer.body["deduplicated"]), (202, &json!(false)));
    // What was accepted stays accepted, even when it would be refused today.
    world.policy.send_modify(|policy| {
        let policy = std::sync::Arc::make_mut(policy);
        crate::world::put_template(policy, "acme", "comment", json!({"channels": {"push": {"title": "t"}}}));
    });
    assert_eq!(keyed(&world, notification()).await.body["request_id"], answer.body["request_id"]);
    assert_eq!(world.post("/v1/notify", notification()).await.problem().1, "channel_not_configured");
}

#[tokio::test]
async fn of_many_calls_at_once_one_is_accepted() {
    let world = world();
    let calls = (0..20).map(|_| keyed(&world, notification()));
    let answers = futures::future::join_all(calls).await;
    let ids: std::collections::BTreeSet<String> =
        answers.iter().filter(|a| a.status == 202).map(|a| a.body["request_id"].to_string()).collect();
    assert_eq!(ids.len(), 1, "{answers:?}");
    assert!(answers.iter().all(|a| matches!(a.status.as_u16(), 202 | 409)));
    assert_eq!(world.requests().await.len(), 1);
}

#[tokio::test]
async fn a_key_is_printable_ascii() {
    let world = world();
    for key in ["", "ü", &"k".repeat(256)] {
        let answer =
            world.send("POST", "/v1/notify", "hk_acme", &[("idempotency-key", key)], Some(notification())).await;
        assert_eq!(answer.problem(), (400, "invalid_argument", vec![("Idempotency-Key", "invalid_value")]), "{key}");
    }
}
