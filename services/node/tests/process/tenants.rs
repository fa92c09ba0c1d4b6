//! Nobody reaches another tenant: every route of the OpenAPI document and every method of the descriptors, with another
//! tenant's ids. Both lists come from the process, and one without a case here fails the test.

use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use herald_api::descriptors;
use prost::Message;
use prost_reflect::DynamicMessage;
use serde_json::{Value, json};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::tokio_stream,
    metadata::{Ascii, MetadataKey},
    transport::{Channel, Endpoint},
};

use crate::{
    http::{Answer, send},
    support::{PATIENCE, Setup},
};

/// What is said in what belongs to the tenant `demo`, and nowhere else.
const CANARY: &str = "c4n4ry";

/// What a call with another tenant's ids must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leads {
    /// The id is nobody's for this caller.
    Nowhere,
    /// Only operators may call.
    Refused,
    /// Ids of this kind are each tenant's own, so the call means the caller's thing of the same name.
    Home,
}

use Leads::{Home, Nowhere, Refused};

/// A method, the fields of a call with another tenant's ids, and what it must come to.
type Case = (&'static str, Value, Leads);

/// A case for each method. Those that make things of the caller's own come last.
fn cases(owned: &Owned) -> Vec<Case> {
    let (user, template) = (json!({"user_id": "theirs"}), json!({"template_id": "theirs"}));
    let version = json!({"template_id": "theirs", "version": 1});
    let notify = json!({"template_id": "theirs", "audience": {"users": ["theirs"]}});
    let edges = json!({"edges": [{"follower": "theirs", "followee": "star"}]});
    let subscribers = json!({"topic": "theirs", "user_ids": ["theirs"]});
    vec![
        ("Notifications.Notify", notify.clone(), Nowhere),
        ("Notifications.GetStatus", json!({"request_id": owned.request}), Nowhere),
        ("Notifications.ListReceipts", json!({"request_id": owned.request}), Nowhere),
        ("Notifications.Cancel", json!({"request_id": owned.request}), Nowhere),
        ("Users.GetUser", user.clone(), Nowhere),
        ("Users.GetErasure", json!({"erasure_id": owned.erasure}), Nowhere),
        ("Templates.GetTemplate", template.clone(), Nowhere),
        ("Templates.PreviewTemplate", json!({"template_id": "theirs", "channel": "in_app"}), Nowhere),
        ("Templates.PublishTemplate", version.clone(), Nowhere),
        ("Templates.RollbackTemplate", version, Nowhere),
        ("Admin.PutTenant", json!({"tenant_id": "demo", "name": "taken over"}), Refused),
        ("Admin.GetTenant", json!({"tenant_id": "demo"}), Refused),
        ("Admin.ListTenants", json!({}), Refused),
        ("Admin.CreateKey", json!({"tenant_id": "demo", "name": "k", "scopes": ["users"]}), Refused),
        ("Admin.ListKeys", json!({"tenant_id": "demo"}), Refused),
        ("Admin.DeleteKey", json!({"key_id": "dev_demo"}), Refused),
        ("Admin.ListDeadLetters", json!({"tenant_id": "demo"}), Refused),
        ("Admin.GetDeadLetter", json!({"id": "0"}), Refused),
        ("Admin.RedriveDeadLetters", json!({"tenant_id": "demo"}), Refused),
        ("Admin.GetRedrive", json!({"redrive_id": owned.request}), Refused),
        ("Admin.GetLag", json!({}), Refused),
        ("Admin.PutLimit", json!({"scope": {"tenant": "demo"}, "per_second": 1}), Refused),
        ("Admin.ListLimits", json!({}), Refused),
        ("Admin.DeleteLimit", json!({"id": "theirs"}), Refused),
        ("Admin.PutSwitch", json!({"scope": {"tenant": "demo"}, "state": "off"}), Refused),
        ("Admin.ListSwitches", json!({}), Refused),
        ("Admin.DeleteSwitch", json!({"id": "sw_0"}), Refused),
        ("Admin.CreateBackup", json!({"directory": "/nowhere"}), Refused),
        ("Admin.GetBackup", json!({}), Refused),
        ("Admin.PutProvider", json!({"name": "p", "channel": "email", "kind": "smtp", "url": "smtp://h"}), Refused),
        ("Admin.GetProvider", json!({"name": "p"}), Refused),
        ("Admin.ListProviders", json!({}), Refused),
        ("Admin.DeleteProvider", json!({"name": "p"}), Refused),
        ("Admin.ListAudit", json!({"tenant": "demo"}), Refused),
        ("Notifications.NotifyBatch", json!({"notifications": [notify]}), Home),
        ("Notifications.NotifyStream", notify, Home),
        ("Notifications.ListRequests", json!({"template_id": "theirs"}), Home),
        ("Users.ListUsers", json!({}), Home),
        ("Users.GetPreferences", user.clone(), Home),
        ("Users.PutPreferences", json!({"user_id": "theirs", "channels": {"email": {"enabled": true}}}), Home),
        ("Users.PutUser", json!({"user_id": "theirs", "locale": "fr"}), Home),
        ("Users.PatchUser", json!({"user_id": "theirs", "locale": "fr"}), Home),
        ("Users.PutUsers", json!({"users": [{"user_id": "theirs", "locale": "fr"}]}), Home),
        ("Users.CreateUserToken", json!({"user_id": "theirs", "scopes": ["inbox"]}), Home),
        ("Users.Follow", edges.clone(), Home),
        ("Users.Unfollow", edges, Home),
        ("Users.Subscribe", subscribers.clone(), Home),
        ("Users.Unsubscribe", subscribers, Home),
        ("Users.DeleteUser", user.clone(), Home),
        ("Inbox.ListInbox", user.clone(), Home),
        ("Inbox.MarkInbox", json!({"user_id": "theirs", "instance_ids": [owned.instance], "as": "read"}), Home),
        ("Inbox.WatchInbox", user, Home),
        ("Templates.ListTemplates", json!({}), Home),
        ("Templates.PutTemplate", json!({"template_id": "theirs", "channels": {"in_app": {"title": "own"}}}), Home),
    ]
}

/// What belongs to the tenant `demo`, by ids that the process gave.
struct Owned {
    request: String,
    instance: String,
    erasure: String,
}

/// A process and who calls it.
struct World {
    port: u16,
    grpc: Channel,
    /// The other tenant's key, with every scope.
    other: String,
    /// A token of an end user of `demo` who is not `theirs`.
    token: String,
    /// The other tenant's token of its own `theirs`.
    namesake: String,
    /// A token of `theirs`, whose key is deleted.
    orphan: String,
}

/// One way to make a call.
#[derive(Clone)]
enum Way {
    Http { method: String, path: String, has_body: bool },
    Grpc,
}

/// What came of a call, on either face.
#[derive(Debug)]
enum Came {
    Done(String),
    Unauthenticated,
    Forbidden,
    /// Not found, or refused by a rule since what it names is not there.
    Unknown,
    /// Refused for another reason, in words.
    Otherwise(String),
}

impl World {
    async fn call(&self, way: &Way, case: &Case, headers: &[(&str, &str)]) -> Came {
        match way {
            Way::Http { method, path, has_body } => {
                let (path, rest) = fill(path, &case.1);
                let (path, body) = if *has_body { (path, Some(rest)) } else { (path + &query(&rest), None) };
                came(send(self.port, method, &path, headers, body.as_ref()).await)
            }
            Way::Grpc => match self.rpc(case, headers).await {
                Ok(answer) => Came::Done(answer),
                Err(status) => match status.code() {
                    Code::Unauthenticated => Came::Unauthenticated,
                    Code::PermissionDenied => Came::Forbidden,
                    Code::NotFound => Came::Unknown,
                    Code::FailedPrecondition if status.message().contains("template") => Came::Unknown,
                    _ => Came::Otherwise(status.to_string()),
                },
            },
        }
    }

    /// Calls a method by its descriptor.
    async fn rpc(&self, (name, fields, _): &Case, headers: &[(&str, &str)]) -> Result<String, Status> {
        let method = descriptors::method(name).unwrap();
        let message = DynamicMessage::deserialize(method.input(), fields).unwrap();
        let mut request = Request::new(tokio_stream::once(message));
        for (name, value) in headers {
            let name: MetadataKey<Ascii> = name.to_lowercase().parse().unwrap();
            request.metadata_mut().insert(name, value.parse().unwrap());
        }
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let mut grpc = Grpc::new(self.grpc.clone());
        grpc.ready().await.unwrap();
        let mut answers = grpc.streaming(request, path.parse().unwrap(), Raw).await?.into_inner();
        // A stream that is open says nothing until something happens.
        if method.is_server_streaming() && !method.is_client_streaming() {
            return Ok(String::new());
        }
        let answer = answers.message().await?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    async fn demo(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let answer = send(self.port, method, path, &[("Authorization", "Bearer hk_dev_demo")], body.as_ref()).await;
        assert!(answer.status < 300, "{method} {path}: {answer:?}");
        answer.json()
    }

    async fn operator(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let answer = send(self.port, method, path, &[("Authorization", "Bearer hk_dev_admin")], body.as_ref()).await;
        assert!(answer.status < 300, "{method} {path}: {answer:?}");
        answer.json()
    }

    /// Everything of the tenant `demo` that can be read.
    async fn everything(&self, owned: &Owned) -> Vec<Value> {
        let mut read = Vec::new();
        for path in [
            "/v1/users/theirs",
            "/v1/users/theirs/preferences",
            "/v1/users/theirs/inbox",
            "/v1/users",
            "/v1/templates",
            "/v1/templates/theirs",
            "/v1/requests",
            &format!("/v1/status/{}", owned.request),
            &format!("/v1/receipts?request_id={}", owned.request),
            &format!("/v1/erasures/{}", owned.erasure),
        ] {
            read.push(self.demo("GET", path, None).await);
        }
        read.push(self.operator("GET", "/v1/admin/tenants/demo", None).await);
        read.push(self.operator("GET", "/v1/admin/keys?tenant_id=demo", None).await);
        read
    }
}

/// Puts fields into a path; returns it and the fields that are left.
fn fill(path: &str, fields: &Value) -> (String, Value) {
    let (mut path, mut rest) = (path.to_owned(), fields.clone());
    for (name, value) in fields.as_object().unwrap() {
        let place = format!("{{{name}}}");
        if path.contains(&place) {
            path = path.replace(&place, value.as_str().unwrap());
            rest.as_object_mut().unwrap().remove(name);
        }
    }
    assert!(!path.contains('{'), "the case does not fill {path}");
    (path, rest)
}

fn query(fields: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let pairs: Vec<String> = fields.as_object().unwrap().iter().map(|(k, v)| format!("{k}={}", text(v))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

fn came(answer: Answer) -> Came {
    match answer.status {
        200..300 => Came::Done(answer.body),
        401 => Came::Unauthenticated,
        403 => Came::Forbidden,
        404 => Came::Unknown,
        422 if answer.json()["code"] == "unknown_template" => Came::Unknown,
        _ => Came::Otherwise(answer.body),
    }
}

/// Sends any message and takes any answer as it is on the wire.
struct Raw;

impl Codec for Raw {
    type Encode = DynamicMessage;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(out).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, answer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(answer.copy_to_bytes(answer.remaining())))
    }
}

/// The routes that need a key, by the method that they serve.
async fn routes(port: u16) -> Vec<(String, Way)> {
    let document = send(port, "GET", "/openapi.json", &[], None).await.json();
    let mut routes = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            if operation["security"] == json!([]) {
                continue;
            }
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let name = format!("{}.{}", text(&operation["tags"][0]), text(&operation["operationId"]));
            let has_body = operation.get("requestBody").is_some();
            routes.push((name, Way::Http { method: method.to_uppercase(), path: path.clone(), has_body }));
        }
    }
    routes
}

/// A token of a user, made by a key.
async fn token(port: u16, key: &str, user: &str) -> String {
    let (path, body) = (format!("/v1/users/{user}/tokens"), json!({"scopes": ["inbox", "preferences"]}));
    let answer = send(port, "POST", &path, &[("Authorization", &format!("Bearer {key}"))], Some(&body)).await;
    answer.json()["token"].as_str().unwrap().to_owned()
}

/// A token of `theirs` that opened their inbox until its key was deleted.
async fn orphan(world: &World) -> String {
    let key = json!({"tenant_id": "demo", "name": "short-lived", "scopes": ["tokens"]});
    let key = world.operator("POST", "/v1/admin/keys", Some(key)).await;
    let token = token(world.port, key["key"].as_str().unwrap(), "theirs").await;
    let headers = [("Authorization", &*format!("Bearer {token}"))];
    assert_eq!(send(world.port, "GET", "/v1/users/theirs/inbox", &headers, None).await.status, 200);
    world.operator("DELETE", &format!("/v1/admin/keys/{}", key["key_id"].as_str().unwrap()), None).await;
    token
}

/// Whether a call came to something of the caller's own.
fn is_home(came: &Came) -> bool {
    match came {
        Came::Done(answer) => !answer.contains(CANARY),
        // A browser's feed over HTTP asks for an upgrade once the caller is known.
        Came::Otherwise(problem) => problem.contains("upgrade_required"),
        _ => false,
    }
}

/// A tenant `demo` with something of everything, a second tenant, and who calls.
async fn world(setup: &Setup) -> (World, Owned) {
    let grpc = Endpoint::from_shared(format!("http://127.0.0.1:{}", setup.port)).unwrap().connect_lazy();
    let mut world = World {
        port: setup.port,
        grpc,
        other: String::new(),
        token: String::new(),
        namesake: String::new(),
        orphan: String::new(),
    };
    world.operator("PUT", "/v1/admin/tenants/other", Some(json!({"name": "Other"}))).await;
    let scopes = herald_core::auth::TENANT_SCOPES;
    let key = json!({"tenant_id": "other", "name": "all", "scopes": scopes});
    world.other = world.operator("POST", "/v1/admin/keys", Some(key)).await["key"].as_str().unwrap().to_owned();
    let template = json!({"channels": {"in_app": {"title": CANARY}}});
    world.demo("PUT", "/v1/templates/theirs", Some(template.clone())).await;
    world.demo("PUT", "/v1/templates/theirs", Some(template)).await;
    for user in ["theirs", "ben"] {
        world.demo("PUT", &format!("/v1/users/{user}"), Some(json!({"attributes": {"note": CANARY}}))).await;
    }
    let preferences = json!({"channels": {"email": {"categories": {CANARY: false}}}});
    world.demo("PUT", "/v1/users/theirs/preferences", Some(preferences)).await;
    world.demo("POST", "/v1/follows", Some(json!({"edges": [{"follower": "theirs", "followee": "star"}]}))).await;
    world.demo("POST", "/v1/topics/theirs/subscribers", Some(json!({"user_ids": ["theirs"]}))).await;
    let notify = json!({"template_id": "theirs", "audience": {"users": ["theirs"]}});
    let request = world.demo("POST", "/v1/notify", Some(notify)).await["request_id"].as_str().unwrap().to_owned();
    world.token = token(setup.port, "hk_dev_demo", "ben").await;
    world.namesake = token(setup.port, &world.other, "theirs").await;
    world.orphan = orphan(&world).await;
    let erasure = world.demo("DELETE", "/v1/users/gone", None).await["erasure_id"].as_str().unwrap().to_owned();
    let (mut owned, deadline) = (Owned { request, instance: String::new(), erasure }, Instant::now() + PATIENCE);
    loop {
        let inbox = world.demo("GET", "/v1/users/theirs/inbox", None).await;
        let status = world.demo("GET", &format!("/v1/status/{}", owned.request), None).await;
        let erasure = world.demo("GET", &format!("/v1/erasures/{}", owned.erasure), None).await;
        if let Some(instance) = inbox["items"][0]["instance_id"].as_str()
            && status["state"] == "complete"
            && erasure["state"] == "complete"
        {
            owned.instance = instance.to_owned();
            return (world, owned);
        }
        assert!(Instant::now() < deadline, "nothing settles: {inbox} {status} {erasure}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn no_route_and_no_method_reaches_another_tenant() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let _process = setup.start().await;
    let (world, owned) = world(&setup).await;
    let cases = cases(&owned);
    let methods = descriptors::methods();
    let mut ways: Vec<(String, Way)> = methods.iter().map(|m| (descriptors::short_name(m), Way::Grpc)).collect();
    ways.extend(routes(setup.port).await);
    for (name, _) in &ways {
        assert!(cases.iter().any(|(case, ..)| case == name), "{name} has no case: say what it must come to");
    }
    for case in &cases {
        assert!(ways.iter().any(|(name, _)| name == case.0), "{} is no method any more", case.0);
    }
    let before = world.everything(&owned).await;

    let bearer = |key: &str| format!("Bearer {key}");
    let (other, token) = (bearer(&world.other), bearer(&world.token));
    let (namesake, orphan) = (bearer(&world.namesake), bearer(&world.orphan));
    for case in &cases {
        for (_, way) in ways.iter().filter(|(name, _)| name == case.0) {
            let told = |came: &Came| format!("{case:?}: {came:?}");
            let came = world.call(way, case, &[]).await;
            assert!(matches!(came, Came::Unauthenticated), "without a key {}", told(&came));
            let came = world.call(way, case, &[("Authorization", &other), ("Herald-Tenant", "demo")]).await;
            assert!(matches!(came, Came::Forbidden), "another tenant named {}", told(&came));
            let came = world.call(way, case, &[("Authorization", &token)]).await;
            assert!(matches!(came, Came::Forbidden), "another user's token {}", told(&came));
            let came = world.call(way, case, &[("Authorization", &namesake), ("Herald-Tenant", "demo")]).await;
            assert!(matches!(came, Came::Forbidden), "another tenant's token that names this one {}", told(&came));
            let came = world.call(way, case, &[("Authorization", &namesake)]).await;
            let leads_home = case.2 == Home && is_home(&came);
            assert!(leads_home || matches!(came, Came::Forbidden), "another tenant's token {}", told(&came));
            let came = world.call(way, case, &[("Authorization", &orphan)]).await;
            assert!(matches!(came, Came::Unauthenticated), "a token of a deleted key {}", told(&came));
        }
    }
    for case in &cases {
        for (_, way) in ways.iter().filter(|(name, _)| name == case.0) {
            let came = world.call(way, case, &[("Authorization", &other)]).await;
            let as_it_must = match (case.2, &came) {
                (Nowhere, Came::Unknown) | (Refused, Came::Forbidden) => true,
                (Home, came) => is_home(came),
                _ => false,
            };
            assert!(as_it_must, "{case:?}: {came:?}");
        }
    }
    assert_eq!(world.everything(&owned).await, before, "something of another tenant has changed");
    let edges = json!({"edges": [{"follower": "theirs", "followee": "star"}]});
    assert_eq!(world.demo("POST", "/v1/follows:remove", Some(edges)).await["changed"], 1);
    let users = json!({"user_ids": ["theirs"]});
    assert_eq!(world.demo("POST", "/v1/topics/theirs/subscribers:remove", Some(users)).await["changed"], 1);
}
