//! Status, requests and receipts.

use herald_core::{
    ids::{InstanceId, NotificationId, TenantId},
    packed::pack,
    ports::{
        ledger::{AdmittedRow, Flush, Ledger},
        log::{Commit, Log, Member, Position},
    },
    record::{Channel, Receipts, State},
    topic::Group,
};
use serde_json::json;

use crate::world::{NOW_MS, TestWorld, notification, world};

fn row(n: u8, tenant: &str) -> AdmittedRow {
    AdmittedRow {
        id: NotificationId([n; 16]),
        tenant: TenantId::trusted(tenant),
        template_id: if n.is_multiple_of(2) { "even" } else { "odd" }.into(),
        template_version: 1,
        accepted_ms: NOW_MS + u64::from(n),
        send_at_ms: 0,
        expires_ms: NOW_MS + 1_000,
        dedupe_key: String::new(),
    }
}

async fn admit(world: &TestWorld, rows: Vec<AdmittedRow>) {
    world.stores.ledger.apply(Flush { admitted: rows, ..Default::default() }).await.unwrap();
}

#[tokio::test]
async fn an_accepted_request_is_never_unknown() {
    let world = world();
    let mut reader = world.log.subscribe(Group::LedgerRequests, Member { ordinal: 0, count: 1 }).await.unwrap();
    let accepted = world.post("/v1/notify", notification()).await;
    let id = accepted.body["request_id"].as_str().unwrap().to_owned();
    let path = format!("/v1/status/{id}");
    let asked = world.get(&path);
    let read = async {
        // The call is waiting; only now the reader gets to work.
        let mut positions = std::collections::BTreeMap::new();
        while positions.is_empty() {
            let polled = reader.poll(100, std::time::Duration::from_secs(5)).await.unwrap();
            for record in polled.records {
                let position = Position { offset: record.offset + 1, ..Default::default() };
                positions.insert(record.at, position);
            }
        }
        let admitted = AdmittedRow { id: id.parse().unwrap(), ..row(1, "acme") };
        admit(&world, vec![admitted]).await;
        let commit = Commit { positions: positions.into_iter().collect(), outputs: Vec::new() };
        reader.commit(commit).await.unwrap();
    };
    let (answer, ()) = tokio::join!(asked, read);
    assert_eq!((answer.status.as_u16(), &answer.body["state"]), (200, &json!("accepted")), "{answer:?}");
    let other = world.send("GET", &path, "hk_other", &[], None).await;
    assert_eq!(other.problem(), (404, "not_found", vec![]), "another tenant has no such request");
    let answer = world.get("/v1/status/00000000-0000-7000-8000-000000000000").await;
    assert_eq!(answer.problem().0, 404, "the reader has passed everything");
    assert_eq!(world.get("/v1/status/nope").await.problem().2, [("request_id", "invalid_value")]);
}

#[tokio::test]
async fn lists_go_on_with_their_own_tokens_only() {
    let world = world();
    admit(&world, (1..=9).map(|n| row(n, "acme")).chain([row(20, "other")]).collect()).await;
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let answer = world.get(&format!("/v1/requests?template_id=odd&page_size=2&page_token={token}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let requests = answer.body["requests"].as_array().unwrap().clone();
        assert!(requests.len() <= 2);
        seen.extend(requests.iter().map(|r| r["request_id"].as_str().unwrap()[..2].to_owned()));
        token = answer.body["next_page_token"].as_str().unwrap().to_owned();
        if token.is_empty() {
            break;
        }
        for foreign in [
            format!("/v1/requests?page_token={token}"),
            format!("/v1/requests?template_id=even&page_token={token}"),
            format!("/v1/receipts?user_id=u&page_token={token}"),
        ] {
            assert_eq!(world.get(&foreign).await.problem().2, [("page_token", "page_token_invalid")]);
        }
        let path = format!("/v1/requests?template_id=odd&page_token={token}");
        assert_eq!(world.send("GET", &path, "hk_other", &[], None).await.problem().0, 400);
    }
    assert_eq!(seen, ["09", "07", "05", "03", "01"], "newest first");
    let answer = world.get("/v1/requests?state=complete").await;
    assert_eq!(answer.body["requests"], json!([]));
    for (query, field) in
        [("state=done", "state"), ("since=x", "since"), ("nope=1", "nope"), ("page_size=x", "page_size")]
    {
        assert_eq!(world.get(&format!("/v1/requests?{query}")).await.problem().2[0].0, field);
    }
    let since = "2023-11-14T22:13:20.008Z";
    assert_eq!(world.get(&format!("/v1/requests?since={since}")).await.body["requests"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn receipts_of_a_request_and_of_a_user() {
    let world = world();
    admit(&world, vec![row(1, "acme")]).await;
    let receipts = |users: &[&str], state: State, reason: &str, ended_ms| Receipts {
        notification_id: vec![1; 16].into(),
        tenant: "acme".into(),
        channel: Channel::Email as i32,
        state: state as i32,
        reason: reason.into(),
        attempts: 1,
        count: users.len() as u32,
        users: pack(users.iter().copied()),
        accepted_ms: NOW_MS,
        ended_ms,
        ..Default::default()
    };
    let batch = vec![
        receipts(&["u1", "u2"], State::Delivered, "", NOW_MS + 40),
        receipts(&["u3"], State::Suppressed, "opted_out", NOW_MS + 50),
    ];
    world.stores.ledger.apply(Flush { receipts: vec![(0, batch)], ..Default::default() }).await.unwrap();
    world.advance(1_000);
    let id = NotificationId([1; 16]);
    let answer = world.get(&format!("/v1/receipts?request_id={id}")).await;
    let listed = answer.body["receipts"].as_array().unwrap();
    assert_eq!(listed.len(), 3, "{answer:?}");
    let u1 = listed.iter().find(|r| r["user_id"] == "u1").unwrap();
    assert_eq!(u1["instance_id"], InstanceId::of(&id, "u1", Channel::Email).to_string());
    assert_eq!((&u1["state"], &u1["latency_ms"], &u1["channel"]), (&json!("delivered"), &json!(40), &json!("email")));
    assert!(u1["delivered_at"].is_string());
    let answer = world.get(&format!("/v1/receipts?request_id={id}&state=suppressed")).await;
    assert_eq!(answer.body["receipts"][0]["reason"], "opted_out");
    assert_eq!(answer.body["receipts"].as_array().unwrap().len(), 1);
    let answer = world.get("/v1/receipts?user_id=u2").await;
    assert_eq!(answer.body["receipts"].as_array().unwrap().len(), 1, "{answer:?}");
    let foreign = world.send("GET", &format!("/v1/receipts?request_id={id}"), "hk_other", &[], None).await;
    assert_eq!(foreign.problem().0, 404);
    let foreign = world.send("GET", "/v1/receipts?user_id=u2", "hk_other", &[], None).await;
    assert_eq!(foreign.body["receipts"], json!([]));
    for (query, field) in [
        ("", "request_id"),
        ("?user_id=u&since=2023-01-01T00:00:00Z&until=2023-01-03T00:00:00Z", "since"),
        ("?user_id=u&state=sent", "state"),
        ("?user_id=u&channel=fax", "channel"),
        ("?user_id=u&page_size=many", "page_size"),
        ("?user_id=u&since=yesterday", "since"),
    ] {
        assert_eq!(world.get(&format!("/v1/receipts{query}")).await.problem().2[0].0, field, "{query}");
    }
}
