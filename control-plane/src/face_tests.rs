//! The two faces: who may do what, and the forms of answers and refusals.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode, header},
};
use herald_api::{audit::Auditing, auth::Authenticator, finish::Finish};
use herald_core::{auth::Scope, clock::World, ids::TenantId, record::Channel, secrets::SecretKeys};
use herald_proto::v1::{self, admin_server::Admin, templates_server::Templates};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    bootstrap::{DEV_ADMIN_KEY, DEV_KEY, ensure_dev},
    dead_letters::DeadLetters,
    grpc, http,
    service::Deps,
    testing::{FakeAudit, FakeDirectory, FakeFleet, FakeLedger, FakeLog, FakeOpener, FakeRegistry, Process},
};

pub(crate) struct Face {
    router: Router,
    pub(crate) deps: Deps,
    pub(crate) log: Arc<FakeLog>,
    pub(crate) ledger: Arc<FakeLedger>,
    pub(crate) fleet: Arc<FakeFleet>,
    pub(crate) opener: Arc<FakeOpener>,
    pub(crate) process: Process,
}

pub(crate) async fn face() -> Face {
    let (log, registry) = (FakeLog::new(), Arc::new(FakeRegistry::default()));
    let process = Process::start(&log, &registry);
    ensure_dev(&process.publisher).await.unwrap();
    let publisher = process.publisher.clone();
    let authenticator = Authenticator::new(publisher.watch(), publisher.world().clock.clone());
    let (world, finish) = (publisher.world().clone(), Finish::new(publisher.world().entropy.clone()));
    let (ledger, fleet, audit) =
        (Arc::<FakeLedger>::default(), Arc::<FakeFleet>::default(), Arc::<FakeAudit>::default());
    let opener = Arc::<FakeOpener>::default();
    let dead_letters = Arc::new(DeadLetters::new(log.clone(), publisher.world().clone()));
    let deps = Deps {
        publisher,
        dead_letters,
        directory: Arc::new(FakeDirectory),
        ledger: ledger.clone(),
        fleet: fleet.clone(),
        audit: audit.clone(),
        opener: opener.clone(),
        keys: Some(Arc::new(SecretKeys::parse(&SecretKeys::file_of(&[7; 32])).unwrap())),
        authenticator,
    };
    let router = router_of(&deps, audit, world, finish);
    Face { router, deps, log, ledger, fleet, opener, process }
}

fn router_of(deps: &Deps, audit: Arc<FakeAudit>, world: World, finish: Finish) -> Router {
    http::routes(deps.clone()).into_router().layer(Auditing::new(audit, world, Arc::default())).layer(finish)
}

impl Face {
    /// As a process without a key file.
    pub(crate) fn without_keys(&mut self) {
        self.deps.keys = None;
        let world = self.deps.publisher.world().clone();
        let finish = Finish::new(world.entropy.clone());
        self.router = router_of(&self.deps, Arc::default(), world, finish);
    }

    async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Value) -> (StatusCode, Value) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let response = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let status = response.status();
        let is_problem = response.headers()[header::CONTENT_TYPE] == "application/problem+json";
        assert_eq!(is_problem, !status.is_success(), "{method} {path}");
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    pub(crate) async fn as_key(&self, key: &str, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
        self.call(method, path, &[("authorization", &format!("Bearer {key}"))], body).await
    }
}

const ADMIN_CALLS: [(&str, &str); 18] = [
    ("PUT", "/v1/admin/tenants/x"),
    ("GET", "/v1/admin/tenants/demo"),
    ("GET", "/v1/admin/tenants"),
    ("POST", "/v1/admin/keys"),
    ("GET", "/v1/admin/keys"),
    ("DELETE", "/v1/admin/keys/dev_admin"),
    ("DELETE", "/v1/admin/keys/nothing"),
    ("PUT", "/v1/admin/limits"),
    ("GET", "/v1/admin/limits"),
    ("DELETE", "/v1/admin/limits/nothing"),
    ("PUT", "/v1/admin/switches"),
    ("GET", "/v1/admin/switches"),
    ("DELETE", "/v1/admin/switches/sw_1"),
    ("PUT", "/v1/admin/providers/p"),
    ("GET", "/v1/admin/providers"),
    ("GET", "/v1/admin/providers/p"),
    ("DELETE", "/v1/admin/providers/p"),
    ("GET", "/v1/admin/audit"),
];

const TEMPLATE_CALLS: [(&str, &str); 6] = [
    ("PUT", "/v1/templates/t"),
    ("GET", "/v1/templates/t"),
    ("GET", "/v1/templates"),
    ("POST", "/v1/templates/t:preview"),
    ("POST", "/v1/templates/t:publish"),
    ("POST", "/v1/templates/t:rollback"),
];

#[tokio::test(start_paused = true)]
async fn the_audit_log_says_what_was_changed_and_for_whom() {
    let face = face().await;
    for (method, path, body) in [
        ("PUT", "/v1/admin/tenants/acme", json!({"name": "Acme", "quota": {"per_second": 2}})),
        ("PUT", "/v1/admin/limits", json!({"scope": {"tenant": "acme", "channel": "email"}, "per_second": 0})),
        ("POST", "/v1/admin/keys", json!({"tenant_id": "acme", "name": "n", "scopes": ["notify", "status"]})),
    ] {
        assert_eq!(face.as_key(DEV_ADMIN_KEY, method, path, body).await.0, 200, "{path}");
    }
    let (_, answer) = face.as_key(DEV_ADMIN_KEY, "GET", "/v1/admin/audit?tenant=acme", Value::Null).await;
    let details: Vec<&str> =
        answer["entries"].as_array().unwrap().iter().map(|entry| entry["detail"].as_str().unwrap()).collect();
    let told = |what: &str| details.iter().any(|detail| detail.contains(what));
    assert_eq!(details.len(), 3, "{details:?}");
    assert!(
        told("name=Acme quota per_second=2 burst=2")
            && told("channel=email per_second=0")
            && told("scopes=notify,status"),
        "{details:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn only_a_key_that_may_gets_in() {
    let face = face().await;
    let (_, created) = face
        .as_key(
            DEV_ADMIN_KEY,
            "POST",
            "/v1/admin/keys",
            json!({"tenant_id": "demo", "name": "n", "scopes": ["notify"]}),
        )
        .await;
    let notify_only = created["key"].as_str().unwrap();
    for (method, path) in ADMIN_CALLS.into_iter().chain(TEMPLATE_CALLS) {
        assert_eq!(face.call(method, path, &[], Value::Null).await.0, 401, "{method} {path}");
        for forged in ["hk_dev_nobody", "hk_dev", "hk_", "", &notify_only[..notify_only.len() - 1]] {
            assert_eq!(face.as_key(forged, method, path, Value::Null).await.0, 401, "{method} {path} {forged}");
        }
        let (status, problem) = face.as_key(notify_only, method, path, json!({"name": "x"})).await;
        assert_eq!((status.as_u16(), problem["code"].as_str()), (403, Some("forbidden")), "{method} {path}");
    }
    for (method, path) in ADMIN_CALLS {
        assert_eq!(face.as_key(DEV_KEY, method, path, json!({"name": "x"})).await.0, 403, "{method} {path}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_acts_for_the_tenant_it_names_and_nobody_else_names_one() {
    let face = face().await;
    let template = json!({"channels": {"in_app": {"body": "Hi"}}});
    assert_eq!(face.as_key(DEV_KEY, "PUT", "/v1/templates/t", template).await.0, 200);
    let named = |key: &str, tenant: &'static str| {
        [("authorization", format!("Bearer {key}")), ("herald-tenant", tenant.into())]
    };
    let get = async |key: &str, tenant: &'static str| {
        let headers = named(key, tenant);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        face.call("GET", "/v1/templates/t", &headers, Value::Null).await.0.as_u16()
    };
    assert_eq!(get(DEV_ADMIN_KEY, "demo").await, 200);
    assert_eq!(get(DEV_ADMIN_KEY, "nobody").await, 404);
    assert_eq!(get(DEV_KEY, "demo").await, 403);
    assert_eq!(face.as_key(DEV_ADMIN_KEY, "GET", "/v1/templates/t", Value::Null).await.0, 400);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_or_expired_key_is_refused_at_once() {
    let face = face().await;
    let create = async |expires_at: &str| {
        let body =
            json!({"tenant_id": "demo", "name": "n", "scopes": [Scope::Templates.name()], "expires_at": expires_at});
        face.as_key(DEV_ADMIN_KEY, "POST", "/v1/admin/keys", body).await
    };
    let (_, created) = create("2100-01-01T00:00:00Z").await;
    let key = created["key"].as_str().unwrap();
    assert_eq!(face.as_key(key, "GET", "/v1/templates", Value::Null).await.0, 200);
    let path = format!("/v1/admin/keys/{}", created["key_id"].as_str().unwrap());
    assert_eq!(face.as_key(DEV_ADMIN_KEY, "DELETE", &path, Value::Null).await.0, 200);
    assert_eq!(face.as_key(key, "GET", "/v1/templates", Value::Null).await.0, 401);
    for at in ["1970-01-01T00:00:00Z", "soon"] {
        let (status, problem) = create(at).await;
        assert_eq!((status.as_u16(), &problem["errors"][0]["field"]), (400, &json!("expires_at")));
    }
    let (_, listed) = face.as_key(DEV_ADMIN_KEY, "GET", "/v1/admin/keys?tenant_id=demo", Value::Null).await;
    assert_eq!(listed["keys"].as_array().unwrap().len(), 1);
    assert!(!listed.to_string().contains("sha256"), "{listed}");
}

#[tokio::test(start_paused = true)]
async fn templates_go_in_and_come_out_with_every_field_of_the_contract() {
    let face = face().await;
    let template = json!({
        "channels": {"in_app": {"title": "{{data.n}}", "body": "Hi {{user.id}}"}},
        "locales": {"de": {"channels": {"in_app": {"body": "Hallo {{user.id}}"}}}},
        "data_schema": {"type": "object", "properties": {"n": {"type": "integer"}}},
        "category": "social",
        "dedupe_window": "60s"
    });
    let (status, draft) = face.as_key(DEV_KEY, "PUT", "/v1/templates/a?publish=false", template.clone()).await;
    assert_eq!((status.as_u16(), draft), (200, json!({"template_id": "a", "version": 1, "published": false})));
    let (_, second) = face.as_key(DEV_KEY, "PUT", "/v1/templates/a", template.clone()).await;
    assert_eq!(second, json!({"template_id": "a", "version": 2, "published": true}));
    let (_, live) = face.as_key(DEV_KEY, "POST", "/v1/templates/a:publish", json!({"version": 1})).await;
    assert_eq!(live["version"], 1);
    let (_, live) = face.as_key(DEV_KEY, "POST", "/v1/templates/a:rollback", Value::Null).await;
    assert_eq!(live["version"], 2);
    let (_, read) = face.as_key(DEV_KEY, "GET", "/v1/templates/a?version=1", Value::Null).await;
    for (name, value) in template.as_object().unwrap() {
        assert_eq!(&read[name], value);
    }
    assert_eq!((&read["published"], &read["live_version"]), (&json!(false), &json!(2)));

    let preview = json!({"data": {"n": 7}, "user_id": "u1", "channel": "in_app"});
    let (_, rendered) = face.as_key(DEV_KEY, "POST", "/v1/templates/a:preview", preview).await;
    assert_eq!(rendered["parts"], json!({"body": "Hallo u1"}), "the user's locale is German");
    let misfit = json!({"data": {"n": "x"}, "user": {"user_id": "me"}, "channel": "in_app"});
    let (status, problem) = face.as_key(DEV_KEY, "POST", "/v1/templates/a:preview", misfit).await;
    assert_eq!((status.as_u16(), &problem["errors"][0]["field"]), (422, &json!("/data/n")));

    assert_eq!(face.as_key(DEV_KEY, "PUT", "/v1/templates/b", template).await.0, 200);
    let (_, first) = face.as_key(DEV_KEY, "GET", "/v1/templates?page_size=1", Value::Null).await;
    let next = format!("/v1/templates?page_size=1&page_token={}", first["next_page_token"].as_str().unwrap());
    let (_, second) = face.as_key(DEV_KEY, "GET", &next, Value::Null).await;
    let ids = [&first, &second].map(|page| page["templates"][0]["template_id"].clone());
    assert_eq!(ids, [json!("a"), json!("b")]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_names_the_field_and_its_place() {
    let face = face().await;
    let broken = json!({"channels": {"email": {"subject": "s", "text": "one\n{{#if data.x}} no end"}}});
    let (status, problem) = face.as_key(DEV_KEY, "PUT", "/v1/templates/t", broken).await;
    assert_eq!((status.as_u16(), problem["code"].as_str()), (422, Some("template_invalid")));
    let error = &problem["errors"][0];
    assert_eq!(error["field"], "channels.email.text");
    assert!(error["detail"].as_str().unwrap().starts_with("line 2, column "), "{error}");

    let malformed = [
        (json!({"chanels": {}}), "chanels"),
        (json!({"channels": {"email": {"subject": 3}}}), "channels.email.subject"),
        (json!({"channels": {}, "publish": "yes"}), "publish"),
        (json!({"channels": {}, "template_id": "other"}), "template_id"),
    ];
    for (body, field) in malformed {
        let (status, problem) = face.as_key(DEV_KEY, "PUT", "/v1/templates/t", body).await;
        assert_eq!((status.as_u16(), &problem["errors"][0]["field"]), (400, &json!(field)), "{problem}");
    }
    for path in ["/v1/templates?page_size=x", "/v1/templates?page_sise=3", "/v1/templates?page_token=*"] {
        assert_eq!(face.as_key(DEV_KEY, "GET", path, Value::Null).await.0, 400, "{path}");
    }
    assert_eq!(face.as_key(DEV_KEY, "GET", "/v1/templates/none", Value::Null).await.0, 404);
    assert_eq!(face.as_key(DEV_KEY, "POST", "/v1/templates/t:explode", Value::Null).await.0, 404);
}

pub(crate) fn grpc_request<T>(key: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

#[tokio::test(start_paused = true)]
async fn the_grpc_face_keeps_the_same_rules() {
    let face = face().await;
    let (templates, admin) =
        (grpc::TemplatesService::new(face.deps.clone()), grpc::AdminService::new(face.deps.clone()));
    let tenant = v1::Tenant { tenant_id: "acme".into(), name: "Acme".into(), ..Default::default() };
    let refused = admin.put_tenant(grpc_request(DEV_KEY, tenant.clone())).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    let nobody = admin.put_tenant(tonic::Request::new(tenant.clone())).await.unwrap_err();
    assert_eq!(nobody.code(), tonic::Code::Unauthenticated);
    let stored = admin.put_tenant(grpc_request(DEV_ADMIN_KEY, tenant)).await.unwrap().into_inner();
    assert_eq!((stored.name.as_str(), stored.version), ("Acme", Some(1)));

    let in_app = v1::InAppTemplate { title: None, body: Some("Hi {{user.id}}".into()) };
    let channels = v1::TemplateChannels { in_app: Some(in_app), ..Default::default() };
    let put = v1::PutTemplateRequest { template_id: "t".into(), channels: Some(channels), ..Default::default() };
    let stored = templates.put_template(grpc_request(DEV_KEY, put)).await.unwrap().into_inner();
    assert_eq!((stored.version, stored.published), (1, true));
    let preview = v1::PreviewTemplateRequest { template_id: "t".into(), ..Default::default() };
    let rendered = templates.preview_template(grpc_request(DEV_KEY, preview)).await.unwrap().into_inner();
    assert_eq!((rendered.channel.as_str(), rendered.parts["body"].as_str()), ("in_app", "Hi preview"));
    let missing = v1::GetTemplateRequest { template_id: "none".into(), version: None };
    let missing = templates.get_template(grpc_request(DEV_KEY, missing)).await.unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn limits_are_set_by_scope_listed_and_deleted() {
    let face = face().await;
    let put = async |body: Value| face.as_key(DEV_ADMIN_KEY, "PUT", "/v1/admin/limits", body).await;
    let scope = json!({"tenant": "demo", "channel": "email"});
    let (status, first) = put(json!({"scope": scope, "per_second": 0.5})).await;
    assert_eq!((status.as_u16(), &first["burst"]), (200, &json!(1)));
    let shown = json!({"tenant": "demo", "template": null, "channel": "email", "provider": null});
    assert_eq!(first["scope"], shown);
    let (_, second) = put(json!({"scope": scope, "per_second": 1e12, "burst": 1_000_000_000_000u64})).await;
    assert_eq!((&second["id"], &second["version"]), (&first["id"], &json!(2)), "one limit a scope");
    let (status, _) = put(json!({"scope": {}, "per_second": 0})).await;
    assert_eq!(status.as_u16(), 200, "nothing at all is a limit too");

    let policy = face.deps.publisher.policy();
    let budgets = policy.limits().for_sending(&TenantId::trusted("demo"), "any", Channel::Email, "smtp");
    assert_eq!(budgets.len(), 2, "roles have them when the call is answered");

    let (_, page) = face.as_key(DEV_ADMIN_KEY, "GET", "/v1/admin/limits?page_size=1", Value::Null).await;
    let next = format!("/v1/admin/limits?page_token={}", page["next_page_token"].as_str().unwrap());
    let (_, rest) = face.as_key(DEV_ADMIN_KEY, "GET", &next, Value::Null).await;
    assert_eq!((page["limits"].as_array().unwrap().len(), rest["limits"].as_array().unwrap().len()), (1, 1));

    let path = format!("/v1/admin/limits/{}", first["id"].as_str().unwrap());
    assert_eq!(face.as_key(DEV_ADMIN_KEY, "DELETE", &path, Value::Null).await.0, 200);
    assert_eq!(face.as_key(DEV_ADMIN_KEY, "DELETE", &path, Value::Null).await.0, 404);
    assert_eq!(face.deps.publisher.policy().limits().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_makes_no_sense_is_refused_with_a_reason() {
    let face = face().await;
    let bad = [
        (json!({"per_second": 1}), "scope", "required"),
        (json!({"scope": {}}), "per_second", "required"),
        (json!({"scope": {}, "per_second": -1}), "per_second", "out_of_range"),
        (json!({"scope": {}, "per_second": 0.000_000_1}), "per_second", "out_of_range"),
        (json!({"scope": {}, "per_second": 2e12}), "per_second", "out_of_range"),
        (json!({"scope": {}, "per_second": "10"}), "per_second", "invalid_type"),
        (json!({"scope": {}, "per_second": 1, "burst": 0}), "burst", "out_of_range"),
        (json!({"scope": {}, "per_second": 1, "burst": -1}), "burst", "invalid_value"),
        (json!({"scope": {"planet": "x"}, "per_second": 1}), "scope.planet", "unknown_field"),
        (json!({"scope": {"channel": "fax"}, "per_second": 1}), "scope.channel", "invalid_value"),
        (json!({"scope": {"tenant": ""}, "per_second": 1}), "scope.tenant", "invalid_value"),
        (json!({"scope": {"template": ""}, "per_second": 1}), "scope.template", "invalid_value"),
    ];
    for (body, field, code) in bad {
        let (status, problem) = face.as_key(DEV_ADMIN_KEY, "PUT", "/v1/admin/limits", body.clone()).await;
        let error = &problem["errors"][0];
        let found = (status.as_u16(), error["field"].as_str(), error["code"].as_str());
        assert_eq!(found, (400, Some(field), Some(code)), "{body}");
    }
    let unknown = json!({"scope": {"tenant": "nobody"}, "per_second": 1});
    let (status, problem) = face.as_key(DEV_ADMIN_KEY, "PUT", "/v1/admin/limits", unknown).await;
    assert_eq!((status.as_u16(), problem["code"].as_str()), (422, Some("unknown_tenant")));
    let admin = grpc::AdminService::new(face.deps.clone());
    for per_second in [f64::NAN, f64::INFINITY, -0.5] {
        let put =
            v1::PutLimitRequest { scope: Some(v1::LimitScope::default()), per_second: Some(per_second), burst: None };
        let refused = admin.put_limit(grpc_request(DEV_ADMIN_KEY, put)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{per_second}");
    }
    assert!(face.deps.publisher.policy().limits().is_empty(), "nothing of it was stored");
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_what_is_not_there_is_refused_with_what_is() {
    let face = face().await;
    let put = async |scope: Value| {
        let body = json!({"scope": scope, "per_second": 1});
        let (status, answer) = face.as_key(DEV_ADMIN_KEY, "PUT", "/v1/admin/limits", body).await;
        (status.as_u16(), answer)
    };
    let draft = json!({"channels": {"in_app": {"body": "Hi"}}});
    assert_eq!(face.as_key(DEV_KEY, "PUT", "/v1/templates/draft?publish=false", draft).await.0, 200);
    assert_eq!(face.as_key(DEV_ADMIN_KEY, "PUT", "/v1/admin/tenants/acme", json!({})).await.0, 200);
    for (scope, field) in [
        (json!({"template": "daft"}), "scope.template"),
        (json!({"tenant": "demo", "template": "daft"}), "scope.template"),
        (json!({"tenant": "acme", "template": "draft"}), "scope.template"),
        (json!({"channel": "email", "provider": "stmp"}), "scope.provider"),
    ] {
        let (status, problem) = put(scope.clone()).await;
        let told = (status, problem["code"].as_str(), problem["errors"][0]["field"].as_str());
        assert_eq!(told, (422, Some("scope_matches_nothing"), Some(field)), "{scope}: {problem}");
        if field == "scope.provider" {
            let detail = "There is no such provider: the limit would do nothing. Those that there are: smtp.";
            assert_eq!(problem["errors"][0]["detail"], detail);
        }
    }
    assert!(face.deps.publisher.policy().limits().is_empty(), "nothing of it was stored");
    for scope in [json!({"template": "draft"}), json!({"tenant": "demo", "template": "draft", "provider": "smtp"})] {
        let (status, answer) = put(scope.clone()).await;
        assert_eq!(status, 200, "{scope}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_has_the_quota_that_was_put_last() {
    let face = face().await;
    let put = async |body: Value| face.as_key(DEV_ADMIN_KEY, "PUT", "/v1/admin/tenants/demo", body).await;
    let (_, tenant) = put(json!({"name": "Demo", "quota": {"per_second": 2.5}})).await;
    assert_eq!(tenant["quota"], json!({"per_second": 2.5, "burst": 3}));
    let (status, problem) = put(json!({"quota": {"per_second": 1, "burst": 0}})).await;
    assert_eq!((status.as_u16(), &problem["errors"][0]["field"]), (400, &json!("quota.burst")));
    let (_, tenant) = put(json!({"name": "Demo"})).await;
    assert_eq!(tenant["quota"], Value::Null);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_somebody_else_changed_is_not_written_over() {
    let face = face().await;
    let put = async |id: &str, body: Value| {
        let (status, answer) = face.as_key(DEV_ADMIN_KEY, "PUT", &format!("/v1/admin/tenants/{id}"), body).await;
        (status.as_u16(), answer)
    };
    let (_, read) = face.as_key(DEV_ADMIN_KEY, "GET", "/v1/admin/tenants/demo", Value::Null).await;
    let (_, theirs) = put("demo", json!({"name": "Theirs", "quota": {"per_second": 1}})).await;
    for version in [read["version"].clone(), json!(0)] {
        let (status, problem) = put("demo", json!({"name": "Ours", "version": version})).await;
        assert_eq!(
            (status, &problem["code"], &problem["errors"][0]["field"]),
            (409, &json!("version_mismatch"), &json!("version"))
        );
    }
    let (status, ours) = put("demo", json!({"name": "Ours", "version": theirs["version"]})).await;
    assert_eq!((status, &ours["name"]), (200, &json!("Ours")));
    assert_eq!(put("new", json!({"version": 1})).await.0, 409, "there is none");
    assert_eq!(put("new", json!({"version": 0})).await.0, 200);

    let admin = grpc::AdminService::new(face.deps.clone());
    let stale = v1::Tenant { tenant_id: "demo".into(), version: Some(1), ..Default::default() };
    let refused = admin.put_tenant(grpc_request(DEV_ADMIN_KEY, stale.clone())).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Aborted);
    let whatever = v1::Tenant { version: None, ..stale };
    admin.put_tenant(grpc_request(DEV_ADMIN_KEY, whatever)).await.unwrap();
}
