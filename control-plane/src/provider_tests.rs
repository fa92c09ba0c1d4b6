//! Providers on both faces: what is taken and refused, and that credentials are seen by nobody.

use axum::http::StatusCode;
use herald_core::{
    policy::kind,
    ports::{
        channel::ProviderFault,
        fleet::{Fleet, ProcessReport},
    },
    providers::ProviderRow,
    record::Channel,
};
use serde_json::{Value, json};

use crate::{
    bootstrap::{DEV_ADMIN_KEY, DEV_KEY},
    face_tests::{Face, face},
};

const SECRET: &str = "sw0rdf1sh";

fn relay() -> Value {
    json!({
        "channel": "email",
        "kind": "smtp",
        "url": "smtp://mail.example:587",
        "credentials": {"username": "herald", "password": SECRET},
        "weight": 3,
        "tenants": ["demo"],
    })
}

fn with(mut body: Value, change: Value) -> Value {
    body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    body
}

/// The faces of a process that says what it runs.
async fn running() -> Face {
    let face = face().await;
    let versions = [("worker".to_owned(), u64::MAX)].into();
    face.fleet.report(ProcessReport { process: "p".into(), seen_ms: 0, versions, reads_level: 1 }).await.unwrap();
    face
}

async fn put(face: &Face, name: &str, body: Value) -> (StatusCode, Value) {
    face.as_key(DEV_ADMIN_KEY, "PUT", &format!("/v1/admin/providers/{name}"), body).await
}

/// The password of a provider as it is on `control`, opened with the process's keys.
fn password(face: &Face, name: &str) -> Option<String> {
    let policy = face.deps.publisher.policy();
    let row = policy.providers().get(name)?.row.clone()?;
    let opened = face.deps.keys.as_ref()?.open(&row.secret_context(), row.credentials.as_ref()?).unwrap();
    Some(serde_json::from_slice::<Value>(&opened).unwrap()["password"].as_str()?.to_owned())
}

#[tokio::test]
async fn what_is_put_is_routed_to_and_shown_without_its_credentials() {
    let face = running().await;
    let (status, set) = put(&face, "relay", relay()).await;
    assert_eq!(status, StatusCode::OK, "{set}");
    assert_eq!((&set["credentials_set"], &set["weight"], &set["applied"]["of"]), (&json!(true), &json!(3), &json!(1)));
    let policy = face.deps.publisher.policy();
    let serving = policy.providers().serving(Channel::Email, "demo");
    assert_eq!(serving.iter().map(|provider| &*provider.name).collect::<Vec<_>>(), ["relay"]);
    assert_eq!(password(&face, "relay").as_deref(), Some(SECRET));

    let (_, shown) = face.as_key(DEV_ADMIN_KEY, "GET", "/v1/admin/providers/relay", Value::Null).await;
    let (_, listed) = face.as_key(DEV_ADMIN_KEY, "GET", "/v1/admin/providers", Value::Null).await;
    let (_, audit) = face.as_key(DEV_ADMIN_KEY, "GET", "/v1/admin/audit", Value::Null).await;
    assert_eq!((&listed["providers"][0], &shown["url"]), (&shown, &json!("smtp://mail.example:587")));
    assert!(audit.to_string().contains("relay: email by smtp at smtp://mail.example:587 weight=3"), "{audit}");
    for (what, said) in [("the answer", set), ("show", shown), ("list", listed), ("the audit log", audit)] {
        assert!(!said.to_string().contains(SECRET), "{what} tells the password");
    }
    let on_control = face.log.published().into_iter().filter(|policy| policy.kind == kind::PROVIDER);
    let on_control: Vec<u8> = on_control.flat_map(|policy| policy.value.to_vec()).collect();
    assert!(!on_control.is_empty() && !on_control.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()));
    assert!(!format!("{policy:?}", policy = policy.providers().get("relay")).contains(SECRET));
    let asked = herald_proto::v1::PutProviderRequest { url: SECRET.into(), ..Default::default() };
    assert!(!format!("{asked:?}").contains(SECRET));

    let (status, gone) = face.as_key(DEV_ADMIN_KEY, "DELETE", "/v1/admin/providers/relay", Value::Null).await;
    assert_eq!((status, &gone["applied"]["processes"]), (StatusCode::OK, &json!(1)));
    let policy = face.deps.publisher.policy();
    assert_eq!(&*policy.providers().serving(Channel::Email, "demo")[0].name, "smtp", "the configured one is left");
    for method in ["GET", "DELETE"] {
        let (status, _) = face.as_key(DEV_ADMIN_KEY, method, "/v1/admin/providers/relay", Value::Null).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
    let (status, _) = face.as_key(DEV_KEY, "GET", "/v1/admin/providers", Value::Null).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "a tenant's key");
}

#[tokio::test]
async fn credentials_hold_on_for_the_same_address_and_never_go_to_another() {
    let face = running().await;
    assert_eq!(put(&face, "relay", relay()).await.0, StatusCode::OK);
    let mut again = with(relay(), json!({"weight": 0}));
    again.as_object_mut().unwrap().remove("credentials");
    assert_eq!(put(&face, "relay", again.clone()).await.0, StatusCode::OK);
    assert_eq!(password(&face, "relay").as_deref(), Some(SECRET), "sealed anew, for the new revision");
    let elsewhere = with(again.clone(), json!({"url": "smtp://evil.example"}));
    let (status, refused) = put(&face, "relay", elsewhere.clone()).await;
    assert_eq!((status, &refused["errors"][0]["field"]), (StatusCode::BAD_REQUEST, &json!("credentials")));
    let (status, set) = put(&face, "relay", with(elsewhere, json!({"credentials": {}}))).await;
    assert_eq!((status, &set["credentials_set"]), (StatusCode::OK, &json!(false)));
    assert_eq!(password(&face, "relay"), None);
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_nothing_of_it_is_stored() {
    let face = running().await;
    for (change, status, code, field) in [
        (json!({"channel": "fax"}), 400, "invalid_argument", "channel"),
        (json!({"channel": "in_app"}), 400, "invalid_argument", "channel"),
        (json!({"kind": "pigeon"}), 400, "invalid_argument", "kind"),
        (json!({"url": ""}), 400, "invalid_argument", "url"),
        (json!({"weight": 1_001}), 400, "invalid_argument", "weight"),
        (json!({"weight": -1}), 400, "invalid_argument", "weight"),
        (json!({"tenants": ["no such name!"]}), 400, "invalid_argument", "tenants[0]"),
        (json!({"name": "other"}), 400, "invalid_argument", "name"),
        (json!({"credentials": SECRET}), 400, "invalid_argument", "credentials"),
        (json!({"credentials": {"password": SECRET.repeat(4_000)}}), 400, "invalid_argument", "credentials"),
        (json!({"channel": "push", "kind": "apns"}), 422, "provider_kind_not_built", ""),
        (json!({"tenants": ["demo", "nobody"]}), 422, "unknown_tenant", "tenants[1]"),
    ] {
        let (answered, problem) = put(&face, "relay", with(relay(), change.clone())).await;
        let (got, named) = (problem["code"].as_str().unwrap(), problem["errors"][0]["field"].as_str().unwrap_or(""));
        assert_eq!((answered.as_u16(), got, named), (status, code, field), "{change}");
        assert!(!problem.to_string().contains(SECRET), "{problem}");
    }
    let (status, taken) = put(&face, "smtp", relay()).await;
    assert_eq!((status.as_u16(), &taken["code"]), (422, &json!("name_taken")));
    for (fault, code) in [
        (ProviderFault::Unreachable("connection refused".into()), "provider_unreachable"),
        (ProviderFault::SignIn("smtp.535".into()), "provider_credentials_refused"),
        (ProviderFault::Tls("a certificate has expired".into()), "provider_tls"),
    ] {
        *face.opener.fault.lock().unwrap() = Some(fault);
        let (status, problem) = put(&face, "relay", relay()).await;
        assert_eq!((status.as_u16(), &problem["code"]), (422, &json!(code)));
    }
    let stored = face.deps.publisher.get::<ProviderRow>(kind::PROVIDER, "relay").await.unwrap();
    assert!(stored.is_none(), "nothing was stored");
    assert_eq!(put(&face, "relay", with(relay(), json!({"check": false}))).await.0, StatusCode::OK, "it is not tried");
}

#[tokio::test]
async fn without_keys_no_credentials_are_stored_and_it_is_said_how_to_make_one() {
    let mut face = running().await;
    face.without_keys();
    let (status, problem) = put(&face, "relay", relay()).await;
    assert_eq!((status.as_u16(), &problem["code"]), (422, &json!("no_secret_keys")));
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("head -c 32 /dev/urandom | base64") && detail.contains("secrets.key_file"), "{detail}");
    let mut open = relay();
    open.as_object_mut().unwrap().remove("credentials");
    assert_eq!(put(&face, "relay", open).await.0, StatusCode::OK, "who asks for nothing needs none");
}
