//! A process in which the tenant `demo` has something of everything, and a second tenant has nothing yet.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

use crate::{
    http::send,
    support::{PATIENCE, Setup},
};

/// What is said in what belongs to the tenant `demo`, and nowhere else.
pub const CANARY: &str = "c4n4ry";

/// What belongs to the tenant `demo`, by ids that the process gave.
pub struct Owned {
    /// A request that is complete.
    pub request: String,
    /// One that is due in a week.
    pub scheduled: String,
    pub instance: String,
    pub event: String,
    pub erasure: String,
    pub pages: Pages,
}

/// Tokens of the second pages of lists.
pub struct Pages {
    pub requests: String,
    pub receipts: String,
    pub users: String,
    pub inbox: String,
    pub templates: String,
}

impl Owned {
    /// Whether a text tells anything of the tenant `demo`.
    pub fn is_told_in(&self, text: &str) -> bool {
        let ids = [CANARY, &self.request, &self.scheduled, &self.instance, &self.event, &self.erasure];
        ids.iter().any(|id| text.contains(*id))
    }
}

/// A process and who calls it.
pub struct World {
    pub port: u16,
    pub grpc: Channel,
    /// The other tenant's key, with every scope.
    pub other: String,
    /// A token of an end user of `demo` who is not `theirs`.
    pub token: String,
    /// The other tenant's token of its own `theirs`.
    pub namesake: String,
    /// A token of `theirs`, whose key is deleted.
    pub orphan: String,
}

impl World {
    /// The process with a second tenant.
    pub async fn of_two(setup: &Setup) -> Self {
        let grpc = Endpoint::from_shared(format!("http://127.0.0.1:{}", setup.port)).unwrap().connect_lazy();
        let none = String::new;
        let mut world = Self { port: setup.port, grpc, other: none(), token: none(), namesake: none(), orphan: none() };
        world.operator("PUT", "/v1/admin/tenants/other", Some(json!({"name": "Other"}))).await;
        let scopes = herald_core::auth::TENANT_SCOPES;
        let key = json!({"tenant_id": "other", "name": "all", "scopes": scopes});
        world.other = text(&world.operator("POST", "/v1/admin/keys", Some(key)).await["key"]);
        world
    }

    pub async fn demo(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        self.by("hk_dev_demo", method, path, body).await
    }

    pub async fn operator(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        self.by("hk_dev_admin", method, path, body).await
    }

    /// Calls with a key; what it asks for must be done.
    pub async fn by(&self, key: &str, method: &str, path: &str, body: Option<Value>) -> Value {
        let bearer = format!("Bearer {key}");
        let answer = send(self.port, method, path, &[("Authorization", &bearer)], body.as_ref()).await;
        assert!(answer.status < 300, "{method} {path}: {answer:?}");
        answer.json()
    }

    /// Asks with a key until what comes is as it should be.
    pub async fn until(&self, key: &str, path: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.by(key, "GET", path, None).await;
            if is_so(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{path} does not settle: {answer}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Has the tenant `demo` do something of everything.
    pub async fn fill(&mut self) -> Owned {
        for template in ["theirs", "theirs", "too"] {
            let body = json!({"channels": {"in_app": {"title": CANARY}}, "dedupe_window": "3600s"});
            self.demo("PUT", &format!("/v1/templates/{template}"), Some(body)).await;
        }
        for user in ["theirs", "ben"] {
            self.demo("PUT", &format!("/v1/users/{user}"), Some(json!({"attributes": {"note": CANARY}}))).await;
            let edges = json!({"edges": [{"follower": user, "followee": "star"}]});
            self.demo("POST", "/v1/follows", Some(edges)).await;
        }
        let preferences = json!({"channels": {"email": {"categories": {CANARY: false}}}});
        self.demo("PUT", "/v1/users/theirs/preferences", Some(preferences)).await;
        self.demo("POST", "/v1/topics/theirs/subscribers", Some(json!({"user_ids": ["theirs", "ben"]}))).await;
        self.token = self.token_by("hk_dev_demo", "ben").await;
        self.namesake = self.token_by(&self.other, "theirs").await;
        self.orphan = self.orphan().await;
        let erasure = text(&self.demo("DELETE", "/v1/users/gone", None).await["erasure_id"]);

        let mut notify = json!({"template_id": "theirs", "audience": {"users": ["theirs", "ben"]}});
        let again = notify.clone();
        notify["dedupe_key"] = "theirs".into();
        notify["idempotency_key"] = "theirs".into();
        let mut scheduled = notify.clone();
        scheduled["idempotency_key"] = "scheduled".into();
        scheduled["send_at"] = in_a_week().into();
        let batch = json!({"notifications": [notify, again, scheduled]});
        let accepted = self.demo("POST", "/v1/notify:batch", Some(batch)).await;
        let [request, again, scheduled] = [0, 1, 2].map(|at| text(&accepted["results"][at]["request_id"]));

        for id in [&request, &again] {
            self.until("hk_dev_demo", &format!("/v1/status/{id}"), |status| status["state"] == "complete").await;
        }
        let state = format!("/v1/status/{scheduled}");
        self.until("hk_dev_demo", &state, |status| status["state"] == "scheduled").await;
        let erased = format!("/v1/erasures/{erasure}");
        self.until("hk_dev_demo", &erased, |erasure| erasure["state"] == "complete").await;
        let is_whole = |inbox: &Value| inbox["items"].as_array().is_some_and(|items| items.len() == 2);
        let inbox = self.until("hk_dev_demo", "/v1/users/theirs/inbox", is_whole).await;
        let of_request = |item: &&Value| item["request_id"] == request.as_str();
        let item = inbox["items"].as_array().unwrap().iter().find(of_request).unwrap();
        let (instance, event) = (text(&item["instance_id"]), text(&item["event_id"]));
        let pages = self.second_pages().await;
        Owned { request, scheduled, instance, event, erasure, pages }
    }

    /// A token of a user, made by a key.
    async fn token_by(&self, key: &str, user: &str) -> String {
        let scopes = json!({"scopes": ["inbox", "preferences"]});
        text(&self.by(key, "POST", &format!("/v1/users/{user}/tokens"), Some(scopes)).await["token"])
    }

    /// A token of `theirs` that opened their inbox until its key was deleted.
    async fn orphan(&self) -> String {
        let key = json!({"tenant_id": "demo", "name": "short-lived", "scopes": ["tokens"]});
        let key = self.operator("POST", "/v1/admin/keys", Some(key)).await;
        let token = self.token_by(&text(&key["key"]), "theirs").await;
        self.by(&token, "GET", "/v1/users/theirs/inbox", None).await;
        self.operator("DELETE", &format!("/v1/admin/keys/{}", text(&key["key_id"])), None).await;
        token
    }

    async fn second_pages(&self) -> Pages {
        let token = async |path: &str| {
            let token = text(&self.demo("GET", path, None).await["next_page_token"]);
            assert!(!token.is_empty(), "{path} has no second page");
            token
        };
        Pages {
            requests: token("/v1/requests?page_size=1").await,
            receipts: token("/v1/receipts?user_id=theirs&page_size=1").await,
            users: token("/v1/users?page_size=1").await,
            inbox: token("/v1/users/theirs/inbox?page_size=1").await,
            templates: token("/v1/templates?page_size=1").await,
        }
    }

    /// Everything of the tenant `demo` that can be read.
    pub async fn everything(&self, owned: &Owned) -> Vec<Value> {
        let mut read = Vec::new();
        for path in [
            "/v1/users/theirs",
            "/v1/users/theirs/preferences",
            "/v1/users/theirs/inbox",
            "/v1/users/ben",
            "/v1/users/ben/inbox",
            "/v1/receipts?user_id=theirs",
            "/v1/receipts?user_id=ben",
            "/v1/users",
            "/v1/templates",
            "/v1/templates/theirs",
            "/v1/requests",
            &format!("/v1/status/{}", owned.request),
            &format!("/v1/status/{}", owned.scheduled),
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

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

fn in_a_week() -> String {
    (jiff::Timestamp::now() + Duration::from_hours(7 * 24)).to_string()
}
