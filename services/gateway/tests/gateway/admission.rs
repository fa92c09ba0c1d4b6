//! What is accepted, what is refused, and what goes on the log.

use std::collections::BTreeMap;

use herald_api::status::{BadRequest, ErrorInfo, RpcStatus};
use herald_core::{
    ids::{ordering_partition, user_hash},
    packed::unpack,
    record::{Channel, audience::Kind},
    topic::{Lane, Topic},
};
use herald_proto::v1::{self, notifications_client::NotificationsClient};
use prost::Message;
use serde_json::{Value, json};
use tonic::transport::Channel as Connection;

use crate::world::{NOW_MS, TestWorld, notification, put_template, send, with, world};

async fn client(world: &TestWorld) -> NotificationsClient<Connection> {
    let address = world.listen().await;
    NotificationsClient::connect(format!("http://{address}")).await.unwrap()
}

fn grpc<T>(key: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

#[tokio::test]
async fn an_accepted_notification_is_on_the_log() {
    let world = world();
    let body = json!({
        "template_id": "comment",
        "audience": {"users": ["u2", "u1", "u2", "ü"]},
        "channels": ["email", "in_app"],
        "actor_id": "a",
        "dedupe_key": "d",
        "priority": "transactional",
        "ttl": "60s",
        "data": {"text": "hi", "n": 3},
        "metadata": {"k": "v"},
        "exclude_actor": false,
    });
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let answer = world.send("POST", "/v1/notify", "hk_acme", &[("traceparent", trace)], Some(body)).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.body["deduplicated"], false);
    assert!(answer.header("idempotent-replayed").is_none() && answer.header("request-id").is_some());
    let requests = world.requests().await;
    let [(record, request, notification)] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!(record.at.topic, Topic::Requests(Lane::Transactional));
    assert_eq!(record.at.partition, ordering_partition("acme", "a", 2));
    assert_eq!((record.envelope.tenant.as_str(), record.envelope.trace_parent.as_str()), ("acme", trace));
    assert_eq!(record.envelope.sections[0].notification_id, notification.id);
    assert!(record.envelope.first_place.is_none());
    assert_eq!(uuid_text(&notification.id), answer.body["request_id"]);
    assert_eq!(notification.data, r#"{"n":3,"text":"hi"}"#);
    assert_eq!((notification.accepted_ms, notification.expires_ms), (NOW_MS, NOW_MS + 60_000));
    assert_eq!((notification.template_version, notification.dedupe_key.as_str()), (1, "d"));
    assert_eq!(notification.metadata, BTreeMap::from([("k".to_owned(), "v".to_owned())]));
    assert_eq!(request.channels, [Channel::InApp as i32, Channel::Email as i32]);
    assert!(!request.exclude_actor && request.idempotency_key.is_empty());
    let Some(Kind::Users(list)) = request.audience.as_ref().and_then(|a| a.kind.as_ref()) else { panic!() };
    let mut expected = vec!["u1", "u2", "ü"];
    expected.sort_by_key(|user| (user_hash(user), *user));
    assert_eq!(unpack(&list.packed).collect::<Result<Vec<_>, _>>().unwrap(), expected);
    assert_eq!(list.count, 3);
}

fn uuid_text(id: &[u8]) -> Value {
    json!(herald_core::ids::NotificationId::from_slice(id).unwrap().to_string())
}

#[tokio::test]
async fn without_a_choice_all_channels_with_a_provider_are_taken() {
    let world = world();
    assert_eq!(world.post("/v1/notify", notification()).await.status, 202);
    let requests = world.requests().await;
    let (record, request, notification) = &requests[0];
    assert_eq!(record.at.topic, Topic::Requests(Lane::Bulk));
    assert_eq!(request.channels, [Channel::InApp as i32, Channel::Email as i32], "push has no provider");
    assert_eq!(notification.expires_ms, NOW_MS + 86_400_000);
    assert!(request.exclude_actor);
    assert!(record.envelope.trace_parent.starts_with("00-"));
}

#[tokio::test]
async fn inline_recipients_get_ids_that_stay_the_same() {
    let world = world();
    let inline = json!([
        {"endpoints": [{"channel": "email", "address": "Ada@example.org"}], "attributes": {"n": 1}},
        {"endpoints": [{"channel": "email", "address": "ada@example.org"}]},
        {"user_id": "known", "locale": "de"},
    ]);
    let body = with(notification(), json!({"audience": {"inline": inline}}));
    assert_eq!(world.post("/v1/notify", body).await.status, 202);
    let requests = world.requests().await;
    let Some(Kind::Inline(list)) = requests[0].1.audience.as_ref().and_then(|a| a.kind.as_ref()) else { panic!() };
    let mut ids: Vec<&str> = list.recipients.iter().map(|recipient| recipient.user_id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids.len(), 2, "the same address twice is one person");
    assert!(ids[0].starts_with("inline:") && ids[1] == "known", "{ids:?}");
    let ada = list.recipients.iter().find(|recipient| recipient.user_id != "known").unwrap();
    assert_eq!((ada.attributes.as_ref(), ada.endpoints[0].address.as_str()), (&br#"{"n":1}"#[..], "Ada@example.org"));
}

#[tokio::test]
async fn a_time_in_the_past_means_now() {
    let world = world();
    let send_at = |text: &str| with(notification(), json!({"send_at": text, "ttl": "10s"}));
    assert_eq!(world.post("/v1/notify", send_at("2020-01-01T00:00:00Z")).await.status, 202);
    assert_eq!(world.post("/v1/notify", send_at("2023-11-14T22:13:30Z")).await.status, 202);
    let mut times: Vec<(u64, u64)> =
        world.requests().await.iter().map(|(_, _, n)| (n.send_at_ms, n.expires_ms)).collect();
    times.sort_unstable();
    assert_eq!(times, [(0, NOW_MS + 10_000), (NOW_MS + 10_000, NOW_MS + 20_000)]);
    let answer = world.post("/v1/notify", send_at("2024-01-14T22:13:30Z")).await;
    assert_eq!(answer.problem(), (400, "invalid_argument", vec![("send_at", "out_of_range")]));
}

/// What is wrong, and the answer to it: status, code, and the fields with their codes.
type BadCall = (Value, u16, &'static str, Vec<(&'static str, &'static str)>);

fn bad_calls() -> Vec<BadCall> {
    let base = notification;
    let users = |users: Value| with(base(), json!({"audience": {"users": users}}));
    let audience = |audience: Value| with(base(), json!({ "audience": audience }));
    let field = |fields: Value| with(base(), fields);
    let malformed = "invalid_argument";
    let many: Vec<String> = (0..10_001).map(|n| n.to_string()).collect();
    let endpoint = |endpoint: Value| audience(json!({"inline": [{"endpoints": [endpoint]}]}));
    vec![
        (json!({}), 400, malformed, vec![("template_id", "required"), ("audience", "required")]),
        (audience(json!({})), 400, malformed, vec![("audience", "required")]),
        (audience(json!({"users": []})), 400, malformed, vec![("audience", "required")]),
        (audience(json!({"users": ["a"], "topic": "t"})), 400, malformed, vec![("audience", "ambiguous")]),
        (audience(json!({"everyone": false})), 400, malformed, vec![("audience.everyone", "invalid_value")]),
        (audience(json!({"topic": ""})), 400, malformed, vec![("audience.topic", "empty")]),
        (audience(json!({"followers_of": "a\u{7}"})), 400, malformed, vec![("audience.followers_of", "invalid_value")]),
        (
            audience(json!({"segment": "plan = \"pro\""})),
            422,
            "segment_not_supported",
            vec![("audience.segment", "segment_not_supported")],
        ),
        (users(json!(["a", ""])), 400, malformed, vec![("audience.users[1]", "empty")]),
        (users(json!(["x".repeat(257)])), 400, malformed, vec![("audience.users[0]", "invalid_value")]),
        (users(json!(many)), 400, malformed, vec![("audience.users", "too_many")]),
        (audience(json!({"inline": [{}]})), 400, malformed, vec![("audience.inline[0]", "required")]),
        (
            endpoint(json!({"channel": "email", "address": "no address"})),
            400,
            malformed,
            vec![("audience.inline[0].endpoints[0].address", "invalid_value"), ("audience.inline[0]", "required")],
        ),
        (field(json!({"template_id": "nope"})), 422, "unknown_template", vec![("template_id", "unknown_template")]),
        (
            field(json!({"template_version": 9})),
            422,
            "unknown_template_version",
            vec![("template_version", "unknown_template_version")],
        ),
        (field(json!({"template_version": 0})), 400, malformed, vec![("template_version", "out_of_range")]),
        (field(json!({"channels": ["mail"]})), 400, malformed, vec![("channels[0]", "invalid_value")]),
        (field(json!({"channels": ["email", "email"]})), 400, malformed, vec![("channels[1]", "duplicate")]),
        (
            field(json!({"channels": ["webhook"]})),
            422,
            "channel_not_in_template",
            vec![("channels", "channel_not_in_template")],
        ),
        (
            field(json!({"channels": ["push"]})),
            422,
            "channel_not_configured",
            vec![("channels", "channel_not_configured")],
        ),
        (
            field(json!({"template_id": "push"})),
            422,
            "channel_not_configured",
            vec![("template_id", "channel_not_configured")],
        ),
        (field(json!({"priority": "urgent"})), 400, malformed, vec![("priority", "invalid_value")]),
        (field(json!({"ttl": "0s"})), 400, malformed, vec![("ttl", "out_of_range")]),
        (field(json!({"ttl": "9999999s"})), 400, malformed, vec![("ttl", "out_of_range")]),
        (field(json!({"ttl": "-5s"})), 400, malformed, vec![("ttl", "out_of_range")]),
        (field(json!({"dedupe_key": "x".repeat(256)})), 400, malformed, vec![("dedupe_key", "too_long")]),
        (field(json!({"metadata": {"k": "v".repeat(501)}})), 400, malformed, vec![("metadata.k", "too_long")]),
        (field(json!({"data": {"a": "x".repeat(70_000)}})), 400, malformed, vec![("data", "too_large")]),
        (field(json!({"data": {"ids": [1, 1e20]}})), 400, malformed, vec![("data.ids[1]", "out_of_range")]),
        (
            field(json!({"template_id": "strict", "data": {"n": "x"}})),
            422,
            "data_invalid",
            vec![("/data/n", "data_schema")],
        ),
    ]
}

#[tokio::test]
async fn every_bad_call_is_refused_alike_on_both_faces() {
    let world = world();
    world.put_template("acme", "push", json!({"channels": {"push": {"title": "t"}}}));
    world.put_template(
        "acme",
        "strict",
        json!({"channels": {"in_app": {"title": "t"}}, "data_schema": {"properties": {"n": {"type": "integer"}}}}),
    );
    let mut client = client(&world).await;
    for (body, status, code, fields) in bad_calls() {
        let answer = world.post("/v1/notify", body.clone()).await;
        assert_eq!(answer.problem(), (status, code, fields.clone()), "{body}");
        let request: v1::NotifyRequest = serde_json::from_value(body.clone()).unwrap();
        let refused = client.notify(grpc("hk_acme", request)).await.unwrap_err();
        let rich = RpcStatus::decode(refused.details()).unwrap();
        let info = ErrorInfo::decode(&*rich.details[0].value).unwrap();
        assert_eq!((info.reason.as_str(), info.metadata["status"].parse()), (code, Ok(status)), "{body}");
        assert_eq!(refused.message(), answer.body["detail"].as_str().unwrap());
        let violations = BadRequest::decode(&*rich.details[1].value).unwrap().field_violations;
        let violations: Vec<_> = violations.iter().map(|v| (v.field.as_str(), v.reason.as_str())).collect();
        assert_eq!(violations, fields, "{body}");
        assert_eq!(refused.metadata().get("request-id").unwrap().to_str().unwrap(), info.metadata["request_id"]);
    }
    assert!(world.requests().await.is_empty(), "nothing of it was accepted");
}

#[tokio::test]
async fn a_call_that_cannot_be_read_is_refused_with_the_place() {
    let world = world();
    let json = [("authorization", "Bearer hk_acme"), ("content-type", "application/json")];
    let text = [("authorization", "Bearer hk_acme"), ("content-type", "text/plain")];
    let post = |headers: Vec<(&'static str, &'static str)>, body: &[u8]| {
        let (app, body) = (world.app.clone(), body.to_vec());
        async move { send(&app, "POST", "/v1/notify", &headers, body).await }
    };
    let body = notification().to_string();
    assert_eq!(post(text.to_vec(), body.as_bytes()).await.problem().1, "unsupported_media_type");
    assert_eq!(post(json.to_vec(), b"{\"template_id\": \"\xff\"}").await.problem().1, "malformed_json");
    assert_eq!(post(json.to_vec(), b"").await.problem().1, "malformed_json");
    let unknown = with(notification(), json!({"template": 1})).to_string();
    let answer = post(json.to_vec(), unknown.as_bytes()).await;
    assert_eq!(answer.problem(), (400, "invalid_argument", vec![("template", "unknown_field")]));
    let large = vec![b' '; 4 << 20 | 1];
    assert_eq!(post(json.to_vec(), &large).await.problem(), (413, "body_too_large", vec![]));
    let keyed = with(notification(), json!({"idempotency_key": "k"})).to_string();
    let answer = post(json.to_vec(), keyed.as_bytes()).await;
    assert_eq!(answer.problem(), (400, "invalid_argument", vec![("idempotency_key", "not_allowed")]));
    // Beyond 64 bits a JSON parser makes a float of it.
    for number in ["9007199254740993", "-9007199254740993", "123456789012345678901234567890"] {
        let body = notification().to_string().replace("\"hi\"", number);
        let answer = post(json.to_vec(), body.as_bytes()).await;
        assert_eq!(answer.problem(), (400, "invalid_argument", vec![("data.text", "out_of_range")]), "{number}");
        assert!(answer.body["detail"].as_str().unwrap().ends_with("send it as a string."), "{answer:?}");
    }
    let answer = world.send("POST", "/v1/notify:batch", "hk_acme", &[("idempotency-key", "k")], Some(json!({}))).await;
    assert_eq!(answer.problem(), (400, "invalid_argument", vec![("Idempotency-Key", "not_allowed")]));
    let answer = world.get("/v1/nothing").await;
    assert_eq!(answer.problem(), (404, "not_found", vec![]));
    let answer = world.get("/v1/notify").await;
    assert_eq!(answer.problem(), (405, "method_not_allowed", vec![]));
    assert_eq!(answer.header("allow"), Some("POST"));
    let page = send(&world.app, "GET", answer.body["type"].as_str().unwrap(), &[], Vec::new()).await;
    assert!(page.status == 200 && page.body.as_str().unwrap().contains("`Allow`"), "{page:?}");
    assert_eq!(world.get("/problems/nothing").await.problem().0, 404);
}

#[tokio::test]
async fn who_may_not_is_told_so() {
    let world = world();
    let call = |key: &'static str, headers: Vec<(&'static str, &'static str)>| {
        let world = &world;
        async move { world.send("POST", "/v1/notify", key, &headers, Some(notification())).await }
    };
    let answer = call("hk_nobody", vec![]).await;
    assert_eq!(answer.problem().0, 401);
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    assert_eq!(call("hk_poor", vec![]).await.problem().0, 403);
    assert_eq!(call("hk_acme", vec![("herald-tenant", "acme")]).await.problem().0, 403);
    assert_eq!(call("hk_op", vec![]).await.problem(), (400, "invalid_argument", vec![("Herald-Tenant", "required")]));
    assert_eq!(call("hk_op", vec![("herald-tenant", "nobody")]).await.problem().0, 404);
    assert_eq!(call("hk_op", vec![("herald-tenant", "other")]).await.status, 202);
    assert_eq!(world.requests().await[0].2.tenant, "other");
    let overriding = with(notification(), json!({"override_preflight": true}));
    let answer = world.send("POST", "/v1/notify", "hk_plain", &[], Some(overriding.clone())).await;
    assert_eq!(answer.problem(), (403, "forbidden", vec![("override_preflight", "forbidden")]));
    assert_eq!(world.post("/v1/notify", overriding).await.status, 202);
    let answer = send(&world.app, "POST", "/v1/notify", &[("request-id", "my-id")], Vec::new()).await;
    assert_eq!((answer.problem().0, answer.header("request-id")), (401, Some("my-id")));
    // What another tenant calls its template is unknown here.
    world.put_template("other", "secret", json!({"channels": {"in_app": {"title": "t"}}}));
    let answer = world.post("/v1/notify", with(notification(), json!({"template_id": "secret"}))).await;
    assert_eq!(answer.problem().1, "unknown_template");
    let mut fresh = herald_core::policy::Policy::default();
    put_template(&mut fresh, "acme", "comment", json!({"channels": {"in_app": {"title": "t"}}}));
    world.policy.send_replace(fresh.into());
    assert_eq!(call("hk_acme", vec![]).await.problem().0, 401, "a deleted key opens nothing");
}

#[tokio::test]
async fn a_malformed_notification_takes_no_other_of_its_batch_with_it() {
    let world = world();
    let mut batch = vec![notification(); 1_000];
    batch[1] = with(notification(), json!({"ttl": "1d"}));
    batch[2] = with(notification(), json!({"audience": {"users": ["a", 5]}}));
    batch[3] = json!("comment");
    batch[999] = with(notification(), json!({"nope": 1}));
    let answer = world.post("/v1/notify:batch", json!({"notifications": batch})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let results = answer.body["results"].as_array().unwrap();
    assert_eq!((results.len(), results.iter().filter(|result| result.get("error").is_none()).count()), (1_000, 996));
    for (i, field) in [(1, "ttl"), (2, "audience.users[1]"), (3, ""), (999, "nope")] {
        let error = &results[i]["error"];
        assert_eq!((&error["status"], &error["errors"][0]["field"]), (&json!(400), &json!(field)), "{error}");
    }
    assert_eq!(*world.faults.appends.lock().unwrap(), [996], "one append");
    // What is wrong with the call as a whole is not one notification's fault.
    let bad = with(notification(), json!({"ttl": 1}));
    let answer = world.post("/v1/notify:batch", json!({"notifications": [bad], "nope": 1})).await;
    assert_eq!(answer.problem().0, 400);
    let answer = world.post("/v1/notify:batch", json!({"notifications": vec![bad; 1_001]})).await;
    assert_eq!(answer.problem().0, 400);
    assert_eq!(world.requests().await.len(), 996);
}

#[tokio::test]
async fn a_batch_is_one_append_with_a_result_for_each() {
    let world = world();
    let bad = with(notification(), json!({"template_id": "nope"}));
    let keyed = with(notification(), json!({"idempotency_key": "k"}));
    let other = with(keyed.clone(), json!({"data": {"text": "other"}}));
    let answer =
        world.post("/v1/notify:batch", json!({"notifications": [notification(), bad, keyed, keyed, other]})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let results = answer.body["results"].as_array().unwrap();
    assert_eq!(results.len(), 5);
    assert_eq!(results[0]["deduplicated"], false);
    assert_eq!(results[1]["error"]["code"], "unknown_template");
    assert_eq!(results[2]["deduplicated"], false);
    assert_eq!(results[3], json!({"request_id": results[2]["request_id"], "deduplicated": true}));
    assert_eq!(results[4]["error"]["code"], "idempotency_key_reused");
    assert_eq!(*world.faults.appends.lock().unwrap(), [2]);
    assert_eq!(world.requests().await.len(), 2);
    let many: Vec<Value> = (0..1_001).map(|_| json!({})).collect();
    let answer = world.post("/v1/notify:batch", json!({"notifications": many})).await;
    assert_eq!(answer.problem(), (400, "invalid_argument", vec![("notifications", "too_many")]));
    let answer = world.post("/v1/notify:batch", json!({"notifications": []})).await;
    assert_eq!(answer.problem(), (400, "invalid_argument", vec![("notifications", "required")]));
}

#[tokio::test]
async fn a_stream_answers_in_order_and_shares_appends() {
    let world = world();
    let mut client = client(&world).await;
    let requests: Vec<v1::NotifyRequest> = (0..500)
        .map(|n| {
            let template = if n % 10 == 3 { "nope" } else { "comment" };
            let body = with(notification(), json!({"template_id": template, "data": {"n": n}}));
            serde_json::from_value(body).unwrap()
        })
        .collect();
    let stream = grpc("hk_acme", futures::stream::iter(requests));
    let mut results = client.notify_stream(stream).await.unwrap().into_inner();
    let mut ids = Vec::new();
    let mut count = 0;
    while let Some(result) = results.message().await.unwrap() {
        assert_eq!(result.error.is_some(), count % 10 == 3, "{count}: {result:?}");
        ids.extend(result.request_id);
        count += 1;
    }
    assert_eq!((count, ids.len()), (500, 450));
    let mut by_id = BTreeMap::new();
    for (_, _, n) in world.requests().await {
        by_id.insert(uuid_text(&n.id).as_str().unwrap().to_owned(), n.data);
    }
    let expected: Vec<String> = (0..500).filter(|n| n % 10 != 3).map(|n| format!(r#"{{"n":{n}}}"#)).collect();
    let sent: Vec<String> = ids.iter().map(|id| String::from_utf8(by_id[id].to_vec()).unwrap()).collect();
    assert_eq!(sent, expected);
    assert!(world.faults.appends.lock().unwrap().len() < 450);
}

#[tokio::test]
async fn no_call_is_our_fault() {
    const SEED: u64 = 0x5eed;
    let world = world();
    let whole = json!({
        "template_id": "comment", "template_version": 1, "audience": {"users": ["u1", "u2"]}, "channels": ["in_app"],
        "actor_id": "a", "dedupe_key": "d", "priority": "bulk", "ttl": "5s", "send_at": "2023-11-20T00:00:00Z",
        "data": {"text": "x", "n": [1, {"m": null}]}, "metadata": {"k": "v"}, "exclude_actor": true,
    })
    .to_string();
    let pieces: [&[u8]; 14] = [
        b"null",
        b"-1",
        b"1e400",
        b"\"\"",
        b"[]",
        b"{}",
        b"true",
        b"\\u0000",
        b"\xff",
        b"99999999999999999999",
        b"\"",
        b"\"-315576000001s\"",
        b"\"9999-12-31T23:59:59Z\"",
        b"\"+292277026596-12-04T15:30:07Z\"",
    ];
    let mut state = SEED;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let headers = [("authorization", "Bearer hk_acme"), ("content-type", "application/json")];
    let mut accepted = 0;
    for round in 0..3_000 {
        let mut body = whole.clone().into_bytes();
        for _ in 0..=random(3) {
            let piece = pieces[random(pieces.len())].iter().copied();
            let (at, end) = if round % 2 == 0 {
                let at = random(body.len());
                (at, (at + random(12)).min(body.len()))
            } else {
                // A whole value goes, so that the text often stays JSON.
                let colons: Vec<usize> = (0..body.len()).filter(|i| body[*i] == b':').collect();
                let at = colons.get(random(colons.len().max(1))).map_or(0, |colon| colon + 1);
                let length = body[at..].iter().position(|b| matches!(b, b',' | b'}')).unwrap_or(0);
                (at, at + length)
            };
            body.splice(at..end, piece);
        }
        let answer = send(&world.app, "POST", "/v1/notify", &headers, body.clone()).await;
        let text = String::from_utf8_lossy(&body);
        assert!(matches!(answer.status.as_u16(), 202 | 400 | 422), "seed {SEED}, round {round}: {text} {answer:?}");
        if answer.status == 202 {
            accepted += 1;
        } else {
            answer.problem();
        }
    }
    assert_eq!(world.requests().await.len(), accepted);
    assert!(accepted > 50, "{accepted} were accepted");
}
