//! The live feed: a user's in-app items as they come, on WebSocket or as server-sent events.
//!
//! A connection registers its queue first and reads the inbox second, so nothing falls between the two. From then on
//! it sends what is newer than the last item it sent, in the order of event ids: frames from its queue, or rows of the
//! inbox after a gap. [`feed`] decides what to send; [`ws`] and [`sse`] only write it.

mod feed;
mod grpc;
mod item;
mod queue;
mod slots;
mod sse;
mod ws;

#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use axum::{
    extract::{FromRequestParts, Path, Request, State, WebSocketUpgrade},
    response::Response,
};
use herald_api::{
    audit::Caught,
    auth::{Authenticator, HERALD_TENANT},
    query::Query,
    rejection::Rejection,
    routes::{Route, Routes},
};
use herald_core::{
    auth::{Caller, Scope},
    ids::{TenantId, check_id},
    outage::Outage,
    ports::{
        inbox::{EventId, Inbox},
        sessions::Sessions,
    },
    problem::{Kind, Problem},
    tokens::USER_TOKEN_PREFIX,
};
use http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use item::item_of;

use feed::{Feed, Grant};
use slots::Slots;

/// Where a resumed connection goes on: the event id of the last item that the client has.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The event id from which an answered connection goes on, for clients that lose it before the first item.
pub(crate) const HERALD_EVENT_ID: &str = "herald-event-id";

/// Live connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LiveConfig {
    /// Live connections of this process; beyond it they are answered 503.
    pub max_connections: usize,
    /// Live connections of one user on this process; beyond it they are answered 429.
    pub max_connections_per_user: usize,
    /// Items that wait for one connection; beyond it the connection reads the inbox instead.
    pub queue: usize,
    /// Bytes of items that wait for one connection; beyond it the connection reads the inbox instead.
    pub queue_bytes: usize,
    /// Items of one read of the inbox.
    pub read_items: usize,
    /// How often a connection is pinged; a WebSocket that leaves two pings unanswered is closed.
    pub ping_interval_ms: u64,
    /// How often what was sent is compared with the inbox, and the key or token is checked again.
    pub check_interval_ms: u64,
    /// How long a connection may take no bytes before it is closed.
    pub write_timeout_ms: u64,
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self {
            max_connections: 50_000,
            max_connections_per_user: 16,
            queue: 256,
            queue_bytes: 256 << 10,
            read_items: 128,
            ping_interval_ms: 20_000,
            check_interval_ms: 15_000,
            write_timeout_ms: 10_000,
        }
    }
}

impl LiveConfig {
    fn ping_interval(&self) -> Duration {
        Duration::from_millis(self.ping_interval_ms.max(1))
    }

    fn check_interval(&self) -> Duration {
        Duration::from_millis(self.check_interval_ms.max(1))
    }

    fn write_timeout(&self) -> Duration {
        Duration::from_millis(self.write_timeout_ms)
    }
}

/// What the live feed works with.
pub struct LiveDeps {
    /// The items.
    pub inbox: Arc<dyn Inbox>,
    /// Where connections are registered.
    pub sessions: Arc<dyn Sessions>,
    /// Who calls.
    pub authenticator: Authenticator,
    /// Limits and waits.
    pub config: LiveConfig,
    /// Ends all connections: WebSockets with 1001, event streams at the end of an event.
    pub shutdown: CancellationToken,
    /// Holds a task for each connection, so that whoever stops the process can wait until they are closed.
    pub tasks: TaskTracker,
}

/// `GET /v1/users/{user_id}/live`. Refusals are [`Rejection`]s, so [`herald_api::finish::Finish`] goes around it.
pub fn routes(live: Arc<Live>) -> Routes {
    let route =
        Route::get("/v1/users/{user_id}/live", "Inbox.WatchInbox").in_headers(&[("last_event_id", "Last-Event-ID")]);
    Routes::new().on(route, open).with_state(live)
}

/// What all connections share.
pub struct Live {
    deps: LiveDeps,
    slots: Arc<Slots>,
    inbox_away: Outage,
    started: Instant,
    /// Counts connections, to spread their checks.
    opened: AtomicU64,
}

impl Live {
    /// A live feed without connections.
    pub fn new(deps: LiveDeps) -> Arc<Self> {
        let slots = Slots::new(deps.config.max_connections, deps.config.max_connections_per_user);
        let inbox_away =
            Outage::new("live connections cannot read the inbox; they try again", "see that the stores answer");
        Arc::new(Self { deps, slots, inbox_away, started: Instant::now(), opened: AtomicU64::new(0) })
    }

    fn running_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Opens the feed of a user for a caller that is found to be allowed.
    async fn feed(
        self: &Arc<Self>,
        grant: Grant,
        tenant: TenantId,
        user: &str,
        resume: Option<EventId>,
    ) -> Result<Feed, Problem> {
        if self.deps.shutdown.is_cancelled() {
            return Err(Problem::unavailable("The gateway is stopping. Connect again."));
        }
        let slot = self.slots.take(&tenant, user)?;
        Ok(Feed::open(self.clone(), slot, grant, tenant, user, resume).await?)
    }
}

/// What the client can take.
enum Transport {
    Events,
    WebSocket(Box<WebSocketUpgrade>),
}

async fn open(State(live): State<Arc<Live>>, request: Request) -> Result<Response, Rejection> {
    let (mut parts, _) = request.into_parts();
    let Path(user) = Path::<String>::from_request_parts(&mut parts, &())
        .await
        .map_err(|_| Problem::field("user_id", "invalid_value", "A user id is percent-encoded UTF-8."))?;
    let mut query = Query::parse(parts.uri.query().unwrap_or_default());
    let grant = Grant::of(&parts.headers, query.text("token"))?;
    let caller = grant.caller(&live.deps.authenticator)?;
    Caught::note(&parts.extensions, &caller);
    let tenant = caller.require_user(Scope::Inbox, &user)?.clone();
    check_id("user_id", &user).map_err(|error| Problem::field("user_id", "invalid_value", error.0))?;
    let resume = resume_after(&parts.headers, query.text("last_event_id"))?;
    query.finish()?;
    let transport = transport(&mut parts).await?;
    let feed = live.feed(grant, tenant, &user, resume).await?;
    let position = HeaderValue::try_from(feed.position().to_string());
    let mut response = match transport {
        Transport::Events => sse::response(&live, feed),
        Transport::WebSocket(upgrade) => ws::response(&live, *upgrade, feed),
    };
    if let Ok(position) = position {
        response.headers_mut().insert(HeaderName::from_static(HERALD_EVENT_ID), position);
    }
    Ok(response)
}

impl Grant {
    /// What the call presents. A key never belongs into a URL, so `?token=` takes tokens of end users only.
    fn of(headers: &HeaderMap, token: Option<String>) -> Result<Self, Problem> {
        let tenant = headers.get(HERALD_TENANT).and_then(copy);
        if let Some(authorization) = headers.get(header::AUTHORIZATION) {
            return Ok(Self { tenant, authorization: copy(authorization), token: None });
        }
        if token.as_ref().is_some_and(|token| !token.starts_with(USER_TOKEN_PREFIX)) {
            let detail = "`?token=` takes the token of an end user. Send a key as `Authorization: Bearer <key>`.";
            return Err(Problem::new(Kind::Unauthenticated, "unauthenticated", detail));
        }
        Ok(Self { tenant, authorization: None, token })
    }

    /// The tenant, while the key or token is good for this user's feed.
    fn check(&self, authenticator: &Authenticator, user: &str) -> Result<TenantId, Problem> {
        self.caller(authenticator)?.require_user(Scope::Inbox, user).cloned()
    }

    fn caller(&self, authenticator: &Authenticator) -> Result<Caller, Problem> {
        let mut headers = HeaderMap::new();
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        if let Some(tenant) = &self.tenant {
            headers.insert(HERALD_TENANT, tenant.clone());
        }
        Ok(authenticator.authenticate_with(&headers, self.token.as_deref())?.caller)
    }
}

/// A header is part of the whole request's buffer; its copy is not.
fn copy(header: &HeaderValue) -> Option<HeaderValue> {
    HeaderValue::from_bytes(header.as_bytes()).ok()
}

/// A browser that connects again repeats the URL, so the header is the newer of the two.
fn resume_after(headers: &HeaderMap, query: Option<String>) -> Result<Option<EventId>, Problem> {
    let of_query = parse_event_id("last_event_id", query.as_deref().unwrap_or_default())?;
    let header = headers.get(LAST_EVENT_ID).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let of_header = parse_event_id("Last-Event-ID", header.as_deref().unwrap_or_default())?;
    Ok(of_header.or(of_query))
}

fn parse_event_id(field: &str, text: &str) -> Result<Option<EventId>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let detail = "Expected the `event_id` of an item of this feed.";
    text.parse().map(Some).map_err(|_| Problem::field(field, "invalid_value", detail))
}

async fn transport(parts: &mut Parts) -> Result<Transport, Problem> {
    if accepts_events(&parts.headers) {
        return Ok(Transport::Events);
    }
    let upgrade = WebSocketUpgrade::from_request_parts(parts, &()).await.map_err(|_| {
        let detail = "Open a WebSocket (version 13) here, or send `Accept: text/event-stream`.";
        Problem::new(Kind::Malformed, "upgrade_required", detail)
    })?;
    Ok(Transport::WebSocket(Box::new(upgrade)))
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let names_it = |accept: &str| {
        let media_types = accept.split(',').filter_map(|range| range.split(';').next());
        media_types.map(str::trim).any(|media_type| media_type.eq_ignore_ascii_case("text/event-stream"))
    };
    headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok()).any(names_it)
}
