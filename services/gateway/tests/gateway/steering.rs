//! Cancels, switches, and the audit log as callers meet them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use herald_core::{
    ids::{NotificationId, TenantId},
    policy::{CancelRow, Policy, kind},
    ports::{
        StoreError,
        audit::{Audit, AuditFilter, AuditRow},
        ledger::{AdmittedRow, Flush, ForeignToken, Ledger, Page},
        log::{Commit, Log, Member, Position},
    },
    record::{Control, Manifest},
    switches::{SwitchRow, SwitchScope, SwitchState},
    topic::{Group, Topic, TopicPartition},
};
use herald_gateway::Deps;
use herald_proto::v1::{self, notifications_client::NotificationsClient, notifications_server::Notifications};
use prost::Message;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::world::{NOW_MS, TestWorld, notification, with, world};

const CONTROL: TopicPartition = TopicPartition { topic: Topic::Control, partition: 0 };
const DAY_MS: u64 = 86_400_000;

fn row(n: u8, tenant: &str, template: &str, dedupe_key: &str) -> AdmittedRow {
    AdmittedRow {
        id: NotificationId([n; 16]),
        tenant: TenantId::trusted(tenant),
        template_id: template.into(),
        template_version: 1,
        accepted_ms: NOW_MS + u64::from(n),
        send_at_ms: 0,
        expires_ms: NOW_MS + 1_000,
        dedupe_key: dedupe_key.into(),
    }
}

async fn admit(world: &TestWorld, rows: Vec<AdmittedRow>) {
    world.stores.ledger.apply(Flush { admitted: rows, ..Flush::default() }).await.unwrap();
}

fn switch(world: &TestWorld, scope: SwitchScope, state: SwitchState) {
    let key = scope.switch_id();
    let row = SwitchRow { scope, state, reason: String::new(), expires_ms: None, set_ms: 0, set_by: String::new() };
    let value = serde_json::to_vec(&row).unwrap().into();
    let control = Control { kind: kind::SWITCH.into(), key, version: 0, value, deleted: false };
    world.policy.send_modify(|policy| std::sync::Arc::make_mut(policy).apply(&control).unwrap());
}

/// The cancels on `control`, after each was applied as a feed does.
async fn cancels(world: &TestWorld) -> Vec<(NotificationId, CancelRow)> {
    let (records, next) = world.log.read(CONTROL, 0, 1_000).await.unwrap();
    let controls: Vec<Control> = records.iter().map(|record| Control::decode(record.body.clone()).unwrap()).collect();
    world.policy.send_modify(|policy| {
        let policy: &mut Policy = std::sync::Arc::make_mut(policy);
        controls.iter().for_each(|control| policy.apply(control).unwrap());
        policy.version = next;
    });
    world.policy.borrow().cancels().iter().map(|(id, row)| (*id, row.clone())).collect()
}

fn states(answer: &Value) -> Vec<(NotificationId, String)> {
    let requests = answer["requests"].as_array().unwrap();
    let state = |request: &Value| {
        (request["request_id"].as_str().unwrap().parse().unwrap(), request["state"].as_str().unwrap().to_owned())
    };
    requests.iter().map(state).collect()
}

#[tokio::test]
async fn a_request_is_cancelled_by_its_id_and_by_nobody_else() {
    let world = world();
    admit(&world, vec![row(1, "acme", "comment", "")]).await;
    let id = NotificationId([1; 16]);
    let body = json!({"request_id": id.to_string()});
    let foreign = world.send("POST", "/v1/cancel", "hk_other", &[], Some(body.clone())).await;
    assert_eq!(foreign.problem(), (404, "not_found", vec![]));
    let poor = world.send("POST", "/v1/cancel", "hk_poor", &[], Some(body.clone())).await;
    assert_eq!(poor.problem().0, 403);
    assert!(cancels(&world).await.is_empty());

    let answer = world.post("/v1/cancel", body.clone()).await;
    assert_eq!((answer.status.as_u16(), states(&answer.body)), (200, vec![(id, "cancelling".into())]));
    let row = CancelRow { tenant_id: "acme".into(), cancelled_ms: NOW_MS, until_ms: NOW_MS + 1_000 + 31 * DAY_MS };
    assert_eq!(cancels(&world).await, [(id, row)]);
    let status = world.get(&format!("/v1/status/{id}")).await;
    assert_eq!(status.body["state"], "cancelling");
    let listed = world.get("/v1/requests?state=cancelling").await;
    assert_eq!(listed.body["requests"][0]["request_id"], id.to_string());

    let again = world.post("/v1/cancel", body).await;
    assert_eq!(states(&again.body), [(id, "cancelling".into())]);
    let (records, _) = world.log.read(CONTROL, 0, 10).await.unwrap();
    assert_eq!(records.len(), 1, "what is being cancelled is not cancelled again");
}

#[tokio::test]
async fn a_dedupe_key_cancels_what_was_admitted_before_the_call() {
    let world = world();
    // One that is over, one of another template, and those of another key and tenant.
    let rows = vec![
        row(1, "acme", "comment", "k"),
        row(2, "acme", "like", "k"),
        row(3, "acme", "comment", "k"),
        row(4, "acme", "comment", "kk"),
        row(5, "other", "comment", "k"),
    ];
    admit(&world, rows).await;
    let mut over = herald_core::books::Totals::new(TenantId::trusted("acme"));
    over.book_manifest(&Manifest { last: true, ..Manifest::default() });
    let totals = vec![(NotificationId([3; 16]), over)];
    world.stores.ledger.apply(Flush { totals, ..Flush::default() }).await.unwrap();

    let answer = world.post("/v1/cancel", json!({"dedupe_key": "k", "template_id": "comment"})).await;
    let of = |n: u8, state: &str| (NotificationId([n; 16]), state.to_owned());
    assert_eq!(states(&answer.body), [of(1, "cancelling"), of(3, "complete")]);
    let answer = world.post("/v1/cancel", json!({"dedupe_key": "k"})).await;
    assert_eq!(answer.body["more"], false);
    let cancelled: Vec<NotificationId> = cancels(&world).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(cancelled, [NotificationId([1; 16]), NotificationId([2; 16])]);
    let nothing = world.post("/v1/cancel", json!({"dedupe_key": "unheard of"})).await;
    assert_eq!((nothing.status.as_u16(), states(&nothing.body)), (200, vec![]));
}

/// A cancel by dedupe key waits until the ledger has read what was admitted before it.
#[tokio::test]
async fn a_dedupe_key_waits_for_what_was_accepted_just_before() {
    let world = world();
    let mut reader = world.log.subscribe(Group::LedgerRequests, Member { ordinal: 0, count: 1 }).await.unwrap();
    let accepted = world.post("/v1/notify", with(notification(), json!({"dedupe_key": "k"}))).await;
    let id: NotificationId = accepted.body["request_id"].as_str().unwrap().parse().unwrap();
    let cancelled = world.post("/v1/cancel", json!({"dedupe_key": "k"}));
    let read = async {
        let mut positions = std::collections::BTreeMap::new();
        while positions.is_empty() {
            let polled = reader.poll(100, std::time::Duration::from_secs(5)).await.unwrap();
            for record in polled.records {
                positions.insert(record.at, Position { offset: record.offset + 1, ..Default::default() });
            }
        }
        admit(&world, vec![AdmittedRow { id, ..row(1, "acme", "comment", "k") }]).await;
        let commit = Commit { positions: positions.into_iter().collect(), outputs: Vec::new() };
        reader.commit(commit).await.unwrap();
    };
    let (answer, ()) = tokio::join!(cancelled, read);
    assert_eq!(states(&answer.body), [(id, "cancelling".into())]);
}

#[tokio::test]
async fn a_cancel_that_cannot_be_is_refused_with_its_field() {
    let world = world();
    for (body, field) in [
        (json!({}), "request_id"),
        (json!({"request_id": NotificationId([1; 16]).to_string(), "dedupe_key": "k"}), "dedupe_key"),
        (json!({"request_id": NotificationId([1; 16]).to_string(), "template_id": "t"}), "template_id"),
        (json!({"request_id": "seven"}), "request_id"),
        (json!({"dedupe_key": ""}), "dedupe_key"),
        (json!({"dedupe_key": "k", "template_id": ""}), "template_id"),
        (json!({"dedupekey": "k"}), "dedupekey"),
    ] {
        let answer = world.post("/v1/cancel", body.clone()).await;
        let (status, _, fields) = answer.problem();
        assert_eq!((status, fields[0].0), (400, field), "{body}");
    }
    let mut call = tonic::Request::new(v1::CancelRequest::default());
    call.metadata_mut().insert("authorization", "Bearer hk_acme".parse().unwrap());
    let refused = Notifications::cancel(&world.gateway, call).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn notify_is_refused_only_if_no_channel_is_left() {
    let world = world();
    let keyed = [("idempotency-key", "before")];
    let first = world.send("POST", "/v1/notify", "hk_acme", &keyed, Some(notification())).await;
    assert_eq!(first.status, 202);
    let tenant = || SwitchScope { tenant: Some("acme".into()), ..SwitchScope::default() };
    let in_app = SwitchScope { channel: Some("in_app".into()), ..tenant() };
    switch(&world, in_app, SwitchState::Off);
    assert_eq!(world.post("/v1/notify", notification()).await.status, 202, "mail is left");
    let only = with(notification(), json!({"channels": ["in_app"]}));
    assert_eq!(world.post("/v1/notify", only.clone()).await.problem(), (422, "switched_off", vec![]));
    let provider = SwitchScope { provider: Some("smtp".into()), ..SwitchScope::default() };
    switch(&world, provider.clone(), SwitchState::Off);
    assert_eq!(world.post("/v1/notify", notification()).await.problem(), (422, "switched_off", vec![]));
    let again = world.send("POST", "/v1/notify", "hk_acme", &keyed, Some(notification())).await;
    assert_eq!((again.status.as_u16(), &again.body["deduplicated"]), (202, &json!(true)), "it was accepted before");
    let other = world.send("POST", "/v1/notify", "hk_other", &[], Some(notification())).await;
    assert_eq!(other.status, 202, "in-app of another tenant");
    for state in [SwitchState::Hold, SwitchState::Slow, SwitchState::On] {
        switch(&world, provider.clone(), state);
        assert_eq!(world.post("/v1/notify", notification()).await.status, 202, "{state:?}");
    }
}

async fn audited(world: &TestWorld) -> Vec<AuditRow> {
    world.stores.audit.list(&AuditFilter::default(), None, 100).await.unwrap().unwrap().items
}

#[tokio::test]
async fn every_call_of_an_operator_and_no_other_is_in_the_audit_log() {
    let world = world();
    assert_eq!(world.post("/v1/notify", notification()).await.status, 202);
    assert_eq!(world.send("GET", "/v1/requests", "hk_forged", &[], None).await.status, 401);
    assert!(audited(&world).await.is_empty());

    let for_other = [("herald-tenant", "other"), ("request-id", "mine")];
    let sent = world.send("POST", "/v1/notify", "hk_op", &for_other, Some(notification())).await;
    assert_eq!(sent.status, 202);
    world.advance(5);
    let refused = world.send("GET", "/v1/requests?state=no", "hk_op", &[("herald-tenant", "acme")], None).await;
    assert_eq!(refused.status, 400);
    let rows = audited(&world).await;
    let shown: Vec<(&str, &str, Option<&str>, u16, &str)> =
        rows.iter().map(|row| (&*row.actor, &*row.action, row.tenant.as_deref(), row.status, &*row.result)).collect();
    assert_eq!(
        shown,
        [
            ("op", "GET /v1/requests", Some("acme"), 400, "invalid_argument"),
            ("op", "POST /v1/notify", Some("other"), 202, "ok"),
        ]
    );
    assert_eq!((rows[1].request_id.as_str(), rows[1].at_ms), ("mine", NOW_MS));
}

/// A call about a request that an operator makes for a tenant.
fn operators_call(request_id: &str) -> tonic::Request<v1::GetStatusRequest> {
    let mut call = tonic::Request::new(v1::GetStatusRequest { request_id: request_id.into() });
    call.metadata_mut().insert("authorization", "Bearer hk_op".parse().unwrap());
    call.metadata_mut().insert("herald-tenant", "acme".parse().unwrap());
    call
}

#[tokio::test]
async fn the_grpc_face_is_audited_alike() {
    let world = world();
    let address = world.listen().await;
    let mut client = NotificationsClient::connect(format!("http://{address}")).await.unwrap();
    admit(&world, vec![row(1, "acme", "comment", "")]).await;
    client.get_status(operators_call(&NotificationId([1; 16]).to_string())).await.unwrap();
    world.advance(5);
    client.get_status(operators_call("seven")).await.unwrap_err();
    let rows = audited(&world).await;
    let shown: Vec<(&str, u16, &str)> = rows.iter().map(|row| (&*row.action, row.status, &*row.result)).collect();
    let action = "herald.v1.Notifications/GetStatus";
    assert_eq!(shown, [(action, 400, "invalid_argument"), (action, 200, "ok")]);
}

/// A store that is away for a while.
struct AwayAudit {
    inner: Arc<dyn Audit>,
    away: AtomicBool,
}

#[async_trait]
impl Audit for AwayAudit {
    async fn record(&self, row: AuditRow) -> Result<(), StoreError> {
        match self.away.load(SeqCst) {
            true => Err(StoreError::Unavailable("it is away".into())),
            false => self.inner.record(row).await,
        }
    }

    async fn list(
        &self,
        filter: &AuditFilter,
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Result<Page<AuditRow>, ForeignToken>, StoreError> {
        self.inner.list(filter, token, limit).await
    }
}

#[tokio::test]
async fn a_call_that_could_not_be_recorded_is_recorded_once_the_store_is_back() {
    let world = world();
    let audit = Arc::new(AwayAudit { inner: world.stores.audit.clone(), away: AtomicBool::new(true) });
    let deps = Deps { audit: audit.clone(), ..world.gateway.deps.clone() };
    let (config, stats) = (world.gateway.config.clone(), deps.stats.audit.clone());
    let counts = || (stats.waiting.load(SeqCst), stats.lost.load(SeqCst));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = herald_gateway::run(listener, config, deps, axum::Router::new(), world.shutdown.clone());
    let gateway = tokio::spawn(gateway);
    let mut client = NotificationsClient::connect(format!("http://{address}")).await.unwrap();
    for call in ["seven", "eight"] {
        let answer = client.get_status(operators_call(call)).await.unwrap_err();
        assert_eq!(answer.code(), tonic::Code::InvalidArgument, "it is answered all the same");
        world.advance(5);
    }
    assert_eq!(counts(), (2, 0));
    assert!(audited(&world).await.is_empty());

    audit.away.store(false, SeqCst);
    let recorded = async {
        while counts() != (0, 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), recorded).await.expect("they are recorded");
    let times: Vec<u64> = audited(&world).await.iter().map(|row| row.at_ms).collect();
    assert_eq!(times, [NOW_MS + 5, NOW_MS], "when they were answered");

    // What a process that ends cannot store is counted, and on its log.
    audit.away.store(true, SeqCst);
    client.get_status(operators_call("nine")).await.unwrap_err();
    drop(client);
    world.shutdown.cancel();
    gateway.await.unwrap().unwrap();
    assert_eq!((counts(), audited(&world).await.len()), ((0, 1), 2));
}
