//! The control plane against a log and a registry whose faults are commanded. Time is paused: waits cost nothing.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use herald_core::{
    auth::{TENANT_SCOPES, sha256_hex},
    control::control,
    ids::TenantId,
    levels::Levels,
    people::User,
    policy::{SIGNING_SECRET, kind, template_head_key},
    ports::{log::Log, registry::Registry},
    problem::{Kind, Problem},
    templates::{ChannelSources, InAppSource, PersonContext, TemplateSource},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    bootstrap::{DEV_KEY, ensure_dev, ensure_operator, ensure_secrets},
    feed::read_policy,
    keys::{self, NewKey},
    publisher::sweep_until,
    templates::{self, PreviewRequest},
    tenants,
    testing::{FakeLog, FakeRegistry, Process},
};

fn source(body: &str) -> TemplateSource {
    let in_app = Some(InAppSource { title: None, body: Some(body.into()) });
    TemplateSource { channels: ChannelSources { in_app, ..Default::default() }, ..Default::default() }
}

fn demo() -> TenantId {
    TenantId::trusted("demo")
}

struct World {
    log: Arc<FakeLog>,
    registry: Arc<FakeRegistry>,
    process: Process,
}

fn world() -> World {
    let (log, registry) = (FakeLog::new(), Arc::new(FakeRegistry::default()));
    let process = Process::start(&log, &registry);
    World { log, registry, process }
}

#[tokio::test(start_paused = true)]
async fn what_a_put_answers_is_what_the_process_decides_with() {
    let world = world();
    let stored = templates::put(&world.process.publisher, &demo(), "hi", source("Hello"), true).await.unwrap();
    assert_eq!((stored.version, stored.published), (1, true));
    let policy = world.process.publisher.policy();
    assert_eq!(policy.template(&demo(), "hi", None).unwrap().row.source, source("Hello"));
    assert!(policy.template(&TenantId::trusted("other"), "hi", None).is_none());
    assert_eq!(world.registry.unpublished(10).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn two_uploads_at_once_get_different_versions_in_every_process() {
    let world = world();
    let other = Process::start(&world.log, &world.registry);
    let put = |process: &Process, n: u32| {
        let (publisher, body) = (process.publisher.clone(), format!("body {n}"));
        tokio::spawn(async move { templates::put(&publisher, &demo(), "t", source(&body), true).await.unwrap() })
    };
    let tasks: Vec<_> = (0..16).map(|n| put(if n % 2 == 0 { &world.process } else { &other }, n)).collect();
    let mut versions = Vec::new();
    for task in tasks {
        versions.push(task.await.unwrap().version);
    }
    versions.sort_unstable();
    assert_eq!(versions, (1..=16).collect::<Vec<u32>>());
    for process in [&world.process, &other] {
        let head = |p: &herald_core::policy::Policy| p.template_head(&demo(), "t").cloned();
        process.until("the newest is live", |p| head(p).is_some_and(|h| (h.live, h.latest) == (Some(16), 16))).await;
    }
    // A compacted topic keeps the last record of a key: that must be the newest.
    let stored = world.registry.get(kind::TEMPLATE_HEAD, &template_head_key(&demo(), "t")).await.unwrap().unwrap();
    let last = world.log.published().into_iter().rfind(|control| control.kind == kind::TEMPLATE_HEAD).unwrap();
    assert_eq!((last.version, Some(last.value)), (stored.version, stored.value));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_appends_late_does_not_leave_its_older_version_last() {
    let world = world();
    let other = Process::start(&world.log, &world.registry);
    world.log.hold_next_append.store(true, SeqCst);
    let publisher = world.process.publisher.clone();
    let late = tokio::spawn(async move { tenants::put(&publisher, "acme", "Old", None, None).await });
    while world.log.hold_next_append.load(SeqCst) {
        tokio::task::yield_now().await;
    }
    tenants::put(&other.publisher, "acme", "New", None, None).await.unwrap();
    world.log.release.notify_one();
    late.await.unwrap().unwrap();
    let versions: Vec<u64> = world.log.published().iter().map(|control| control.version).collect();
    assert_eq!(versions, [2, 1, 2]);
    for process in [&world.process, &other] {
        assert_eq!(process.publisher.policy().tenant(&TenantId::trusted("acme")).unwrap().name, "New");
    }
}

#[tokio::test(start_paused = true)]
async fn the_sweeper_publishes_what_a_crash_left_behind() {
    let world = world();
    world.log.fail_appends.store(1, SeqCst);
    let refused = tenants::put(&world.process.publisher, "acme", "Acme", None, None).await;
    assert_eq!(refused.unwrap_err().kind(), Kind::Unavailable);
    assert!(world.process.publisher.policy().tenant(&TenantId::trusted("acme")).is_none());

    let shutdown = CancellationToken::new();
    let sweeper = sweep_until(world.process.publisher.clone(), Duration::from_secs(10), shutdown.clone());
    let sweeper = tokio::spawn(sweeper);
    world.process.until("the tenant", |policy| policy.tenant(&TenantId::trusted("acme")).is_some()).await;
    assert_eq!(world.process.publisher.sweep().await.unwrap(), 0);

    // A deletion that was left behind is published too, later.
    let key = create_key(&world, Some("acme"), &["notify"]).await.unwrap();
    world.log.fail_appends.store(1, SeqCst);
    assert!(keys::delete(&world.process.publisher, &key.key_id).await.is_err());
    world.process.until("the deletion", |policy| policy.key(&key.key_id).is_none()).await;
    shutdown.cancel();
    sweeper.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn drafts_stay_back_and_a_rollback_never_makes_one_live() {
    let world = world();
    let publisher = &world.process.publisher;
    let put = async |body, publish| templates::put(publisher, &demo(), "t", source(body), publish).await;
    let draft = put("one", false).await.unwrap();
    assert_eq!((draft.version, draft.published), (1, false));
    assert!(publisher.policy().template(&demo(), "t", None).is_none());
    assert_eq!(templates::publish(publisher, &demo(), "t", None).await.unwrap().live, Some(1));
    put("two", false).await.unwrap();
    assert!(put("three", true).await.unwrap().published);
    assert_eq!(publisher.policy().template(&demo(), "t", None).unwrap().row.version, 3);

    assert_eq!(templates::rollback(publisher, &demo(), "t", None).await.unwrap().live, Some(1), "2 is a draft");
    let nothing = templates::rollback(publisher, &demo(), "t", None).await.unwrap_err();
    assert_eq!(nothing.code(), "nothing_to_roll_back");
    assert_eq!(templates::rollback(publisher, &demo(), "t", Some(3)).await.unwrap().live, Some(3));
    for missing in [Some(9), Some(0)] {
        let refused = templates::publish(publisher, &demo(), "t", missing).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::NotFound);
    }
    let other = templates::get(publisher, &TenantId::trusted("other"), "t", None).await.unwrap_err();
    assert_eq!(other.kind(), Kind::NotFound);

    let found = templates::get(publisher, &demo(), "t", Some(2)).await.unwrap();
    assert_eq!((found.published(), found.row.source), (false, source("two")));
    put("four", false).await.unwrap();
    templates::put(publisher, &demo(), "u", source("u"), false).await.unwrap();
    let listed = templates::list(publisher, &demo(), None, 10).await.unwrap();
    let listed: Vec<_> = listed.iter().map(|found| (found.row.template_id.as_str(), found.row.version)).collect();
    assert_eq!(listed, [("t", 3), ("u", 1)]);
    assert_eq!(templates::list(publisher, &demo(), Some("t"), 10).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_template_that_does_not_compile_is_refused_with_line_and_column() {
    let world = world();
    let broken = source("Hello\n  {{#if data.x}} no end");
    let refused = templates::put(&world.process.publisher, &demo(), "t", broken, true).await.unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (Kind::Refused, "template_invalid"));
    let fields = refused.errors();
    assert_eq!(fields[0].field, "channels.in_app.body");
    assert!(fields[0].detail.starts_with("line "), "{fields:?}");
    assert!(fields[0].detail.contains("column "), "{fields:?}");
    assert_eq!(world.log.published().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_preview_is_what_the_user_would_get() {
    let world = world();
    let publisher = &world.process.publisher;
    tenants::put(publisher, "demo", "Demo Inc", None, None).await.unwrap();
    let text = "{{user.id}} of {{tenant.name}}: {{data.n}}";
    templates::put(publisher, &demo(), "t", source(text), false).await.unwrap();
    let user = User { user_id: "u1".into(), ..User::default() };
    let preview = async |channel, data: Value| {
        let user = PersonContext { id: &user.user_id, locale: None, time_zone: None, attributes: &Value::Null };
        let request = PreviewRequest { channel: Some(channel), version: None, locale: None, data: &data, user };
        templates::preview(publisher, &demo(), "t", &request).await
    };
    assert_eq!(preview("in_app", json!({"n": 3})).await.unwrap().parts["body"], "u1 of Demo Inc: 3");
    let missing = preview("in_app", json!({})).await.unwrap_err();
    assert_eq!(missing.code(), "template_data");
    assert_eq!(preview("email", json!({"n": 3})).await.unwrap_err().code(), "template_channel");
    assert_eq!(preview("fax", json!({"n": 3})).await.unwrap_err().kind(), Kind::Malformed);
}

async fn create_key(world: &World, tenant: Option<&str>, scopes: &[&str]) -> Result<keys::CreatedKey, Problem> {
    let new = NewKey {
        tenant_id: tenant.map(str::to_owned),
        name: "k".into(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        expires_ms: None,
    };
    keys::create(&world.process.publisher, new).await
}

#[tokio::test(start_paused = true)]
async fn a_key_is_stored_as_its_hash_and_refused_after_its_deletion() {
    let world = world();
    tenants::put(&world.process.publisher, "acme", "Acme", None, None).await.unwrap();
    let created = create_key(&world, Some("acme"), &["notify"]).await.unwrap();
    let secret = created.key.strip_prefix(&format!("hk_{}_", created.key_id)).unwrap();
    assert_eq!((created.key_id.len(), secret.len()), (10, 26));
    let row = world.process.publisher.policy().key(&created.key_id).unwrap().clone();
    assert_eq!(row.sha256, sha256_hex(created.key.as_bytes()));
    let everything = format!("{:?}", world.log.read(control(), 0, 100).await.unwrap());
    assert!(!everything.contains(secret), "the secret is on the log");

    let second = create_key(&world, Some("acme"), &["notify"]).await.unwrap();
    assert_ne!(created.key, second.key);
    create_key(&world, None, &[]).await.unwrap();
    let (listed, next) = keys::list(&world.process.publisher, Some("acme"), None, 1).await.unwrap();
    assert_eq!(listed.len(), 1);
    let (rest, _) = keys::list(&world.process.publisher, Some("acme"), next.as_deref(), 10).await.unwrap();
    assert_eq!(rest.len(), 1);

    keys::delete(&world.process.publisher, &created.key_id).await.unwrap();
    assert!(world.process.publisher.policy().key(&created.key_id).is_none());
    let again = keys::delete(&world.process.publisher, &created.key_id).await;
    assert_eq!(again.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn the_last_valid_key_of_an_operator_stays() {
    let world = world();
    let publisher = &world.process.publisher;
    tenants::put(publisher, "acme", "Acme", None, None).await.unwrap();
    let tenants_key = create_key(&world, Some("acme"), &["notify"]).await.unwrap();
    let first = create_key(&world, None, &[]).await.unwrap();
    let expired = NewKey { expires_ms: Some(publisher.world().now_ms()), ..NewKey::default() };
    keys::put(publisher, "expired", "hk_expired_key", expired, 0).await.unwrap();
    let refused = keys::delete(publisher, &first.key_id).await.unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (Kind::Refused, "last_operator_key"));
    let second = create_key(&world, None, &[]).await.unwrap();
    keys::delete(publisher, &first.key_id).await.unwrap();
    assert_eq!(keys::delete(publisher, &second.key_id).await.unwrap_err().code(), "last_operator_key");
    keys::delete(publisher, &tenants_key.key_id).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_deleted_comes_back_in_development_only() {
    let world = world();
    let publisher = &world.process.publisher;
    let root = "hk_root_0123456789abcdefghijkl";
    ensure_dev(publisher).await.unwrap();
    ensure_operator(publisher, root).await.unwrap();
    assert_eq!(publisher.policy().key("root").unwrap().sha256, sha256_hex(root.as_bytes()));
    keys::delete(publisher, "dev_admin").await.unwrap();
    ensure_dev(publisher).await.unwrap();
    assert!(publisher.policy().key("dev_admin").is_some(), "herald dev says that it has it");
    keys::delete(publisher, "root").await.unwrap();
    ensure_operator(publisher, root).await.unwrap();
    assert!(publisher.policy().key("root").is_none(), "whoever deleted it had a reason");
}

#[tokio::test(start_paused = true)]
async fn a_key_needs_a_tenant_that_exists_and_scopes_that_are_known() {
    let world = world();
    tenants::put(&world.process.publisher, "acme", "Acme", None, None).await.unwrap();
    let unknown = create_key(&world, Some("nobody"), &["notify"]).await.err().unwrap();
    assert_eq!(unknown.code(), "unknown_tenant");
    for scopes in [&["root"][..], &[], &["operator"]] {
        let refused = create_key(&world, Some("acme"), scopes).await.err().unwrap();
        assert_eq!(refused.kind(), Kind::Malformed);
    }
}

#[tokio::test(start_paused = true)]
async fn what_must_be_there_is_created_once() {
    let world = world();
    let other = Process::start(&world.log, &world.registry);
    let (one, two) = tokio::join!(ensure_secrets(&world.process.publisher), ensure_secrets(&other.publisher));
    one.and(two).unwrap();
    ensure_dev(&world.process.publisher).await.unwrap();
    let before = world.log.published().len();
    let restarted = Process::start(&world.log, &world.registry);
    ensure_secrets(&restarted.publisher).await.unwrap();
    ensure_dev(&restarted.publisher).await.unwrap();
    assert_eq!(world.log.published().len(), before);

    let policy = read_policy(&*world.log, &Levels::default(), Default::default()).await.unwrap();
    assert_eq!(policy.secret(SIGNING_SECRET).map(str::len), Some(64));
    let key = policy.key("dev_demo").unwrap();
    assert_eq!(key.sha256, sha256_hex(DEV_KEY.as_bytes()));
    assert_eq!((key.tenant_id.as_deref(), key.scopes.as_slice()), (Some("demo"), &TENANT_SCOPES.map(String::from)[..]));
    assert_eq!(policy.key("dev_admin").unwrap().tenant_id, None);
}

#[tokio::test(start_paused = true)]
async fn the_role_creates_the_secrets_once_the_log_takes_them() {
    let world = world();
    world.log.fail_appends.store(5, SeqCst);
    let shutdown = CancellationToken::new();
    let role = tokio::spawn(crate::run(Default::default(), world.process.publisher.clone(), shutdown.clone()));
    world.process.until("the secret", |policy| policy.secret(SIGNING_SECRET).is_some()).await;
    shutdown.cancel();
    role.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_feed_passes_over_what_it_cannot_read() {
    let world = world();
    let (kind, key) = (kind::TENANT, "bad");
    world.process.publisher.put(kind, key, Some("not json".into()), 0).await.unwrap();
    world.process.publisher.put("a kind of the future", "x", Some("{}".into()), 0).await.unwrap();
    tenants::put(&world.process.publisher, "good", "Good", None, None).await.unwrap();
    assert!(world.process.publisher.policy().tenant(&TenantId::trusted("good")).is_some());
}
