//! Calls of the API: no input is answered with a fault of ours, and a refusal is always a documented problem.
//!
//! An input is up to eight requests, each a line `METHOD path`, header lines, an empty line, and the body. A path below
//! `/herald.v1.` is a gRPC call, whose body is the message.

use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;
use serde_json::json;

use crate::{
    SEPARATOR,
    node::{Answer, Node, with_node},
    parts,
};

const MAX_REQUESTS: usize = 8;

/// Calls, and lets the pipeline work on whatever was accepted.
pub fn run(input: &[u8]) {
    with_node(async |node| {
        for request in parts(input).into_iter().take(MAX_REQUESTS) {
            call(node, request).await;
        }
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    });
}

async fn call(node: &Node, request: &[u8]) -> Option<()> {
    let head_end = request.windows(2).position(|window| window == b"\n\n").unwrap_or(request.len());
    let head = std::str::from_utf8(&request[..head_end]).ok()?;
    let body = request.get(head_end + 2..).unwrap_or_default();
    let mut lines = head.lines();
    let (method, path) = lines.next()?.split_once(' ')?;
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        headers.insert(HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?);
    }
    let answer = node.call(method, path, &headers, body.to_vec()).await?;
    let seen = || format!("{method} {path}: {} {:?} {}", answer.status, answer.headers, answer.json());
    match answer.header("content-type").starts_with("application/grpc") {
        true => check_grpc(&answer, &seen),
        false => check_http(&answer, method, &seen),
    }
    Some(())
}

/// What may be unavailable for a while may say so; nothing is INTERNAL or UNKNOWN but what is no message, which gRPC has
/// be INTERNAL (its `statuscodes.md`: "Error parsing request proto").
fn check_grpc(answer: &Answer, seen: &dyn Fn() -> String) {
    assert!(answer.status.is_success(), "{}", seen());
    let unreadable = answer.header("grpc-message").starts_with("failed%20to%20decode%20Protobuf%20message");
    assert!(unreadable || !matches!(answer.header("grpc-status"), "2" | "13"), "{}", seen());
}

fn check_http(answer: &Answer, method: &str, seen: &dyn Fn() -> String) {
    let status = answer.status.as_u16();
    assert!(status < 500 || status == 503, "{}", seen());
    if status < 400 || method == "HEAD" {
        return;
    }
    assert_eq!(answer.header("content-type"), "application/problem+json", "{}", seen());
    let problem = answer.json();
    assert_eq!(problem["status"], status, "{}", seen());
    let code = problem["code"].as_str().unwrap_or_default();
    assert!(herald_api::problems::page(code).is_some(), "{} has a code without a page", seen());
}

/// One story, and one call of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let notify = json!({
        "template_id": "t",
        "audience": {"users": ["u1", "u2"]},
        "data": {"text": "hi", "n": [1, 2.5, {"a": null}]},
        "dedupe_key": "d",
        "priority": "transactional",
        "ttl": "60s",
        "send_at": "2026-01-01T00:00:05Z",
        "metadata": {"a": "b"},
    });
    let inline = json!([{"endpoints": [{"channel": "email", "address": "x@e.org"}], "locale": "de"}]);
    let quiet = json!({"start": "22:00", "end": "07:00", "time_zone": "Europe/Berlin", "policy": "defer"});
    let mut seeds: Vec<Vec<u8>> = [
        ("POST", "/v1/notify", notify.clone()),
        ("POST", "/v1/notify", json!({"template_id": "t", "audience": {"inline": inline}})),
        ("POST", "/v1/notify", json!({"template_id": "t", "audience": {"everyone": true}, "channels": ["email"]})),
        ("POST", "/v1/notify:batch", json!({"notifications": [notify, {}]})),
        ("POST", "/v1/cancel", json!({"dedupe_key": "d", "template_id": "t"})),
        ("PUT", "/v1/users/u2", json!({"attributes": {"a": 1}, "locale": "de-AT", "time_zone": "Europe/Vienna"})),
        ("PATCH", "/v1/users/u1", json!({"attributes": {"name": null}, "version": 1})),
        ("POST", "/v1/users:batch", json!({"users": [{"user_id": "u3"}]})),
        ("PUT", "/v1/users/u1/preferences", json!({"channels": {"email": {"enabled": false}}, "quiet_hours": quiet})),
        ("POST", "/v1/users/u1/tokens", json!({"ttl": "60s", "scopes": ["inbox"]})),
        ("POST", "/v1/follows", json!({"edges": [{"follower": "u1", "followee": "u2"}]})),
        ("POST", "/v1/topics/news/subscribers", json!({"user_ids": ["u1"]})),
        ("POST", "/v1/users/u1/inbox:mark", json!({"all": true, "as": "read"})),
        ("PUT", "/v1/templates/t2", json!({"channels": {"webhook": {"body": "{{data.a}}"}}, "data_schema": {}})),
        ("POST", "/v1/templates/t:preview", json!({"data": {"text": "x"}, "user_id": "u1", "channel": "email"})),
        ("POST", "/v1/templates/t:rollback", json!({"version": 1})),
        ("PUT", "/v1/admin/tenants/x", json!({"name": "X", "quota": {"per_second": 5, "burst": 9}})),
        ("POST", "/v1/admin/keys", json!({"tenant_id": "demo", "name": "k", "scopes": ["notify"]})),
        ("PUT", "/v1/admin/limits", json!({"scope": {"channel": "email"}, "per_second": 1.5, "burst": 3})),
        ("PUT", "/v1/admin/switches", json!({"scope": {"template": "t"}, "state": "hold", "reason": "r"})),
        ("POST", "/v1/admin/dead-letters:redrive", json!({"all": true, "per_second": 5})),
    ]
    .into_iter()
    .map(|(method, path, body)| request(method, path, body.to_string().as_bytes()))
    .collect();
    for path in [
        "/v1/users?page_size=1&page_token=AQ",
        "/v1/users/u1/inbox?state=unread",
        "/v1/users/u1/live?last_event_id=1-2-3",
        "/v1/status/00000000-0000-7000-8000-000000000000",
        "/v1/requests?state=running&since=2026-01-01T00:00:00Z",
        "/v1/receipts?user_id=u1&channel=email",
        "/v1/admin/audit?tenant=demo",
        "/openapi.json",
    ] {
        seeds.push(request("GET", path, b""));
    }
    seeds.push(request("DELETE", "/v1/users/u1", b""));
    let by_grpc = herald_proto::v1::NotifyRequest {
        template_id: "t".into(),
        audience: Some(herald_proto::v1::Audience { users: vec!["u1".into()], ..Default::default() }),
        ..Default::default()
    };
    seeds.push(request("POST", "/herald.v1.Notifications/Notify", &by_grpc.encode_to_vec()));
    seeds.push(request("POST", "/herald.v1.Users/ListUsers", b""));
    let story: Vec<&[u8]> = [5, 8, 10, 0, 12].iter().map(|at| seeds[*at].as_slice()).collect();
    let story = story.join(SEPARATOR);
    seeds.push(story);
    seeds
}

/// Operators' calls are made with the operator's key; live feeds are asked for as events.
fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let headers = match path {
        _ if path.starts_with("/v1/admin/") => "authorization: Bearer hk_dev_admin\n",
        _ if path.contains("/live") => "accept: text/event-stream\nlast-event-id: 1-a-0\n",
        "/v1/notify" => "idempotency-key: k\n",
        _ => "",
    };
    [format!("{method} {path}\n{headers}\n").as_bytes(), body].concat()
}
