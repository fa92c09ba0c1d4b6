//! The audit log: every call that an operator's key makes, on both faces.
//!
//! Who calls is found out deep inside, and what became of the call is known outside. So [`Auditing`] puts an empty
//! [`Caught`] into each request, whoever authenticates an operator fills it, and the answer to such a call waits until
//! the call is recorded, or for two seconds: a switch works with every store down. What is not recorded by then is kept,
//! and recorded once the store answers.

mod late;

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use axum::response::Response;
use herald_core::{
    auth::{Caller, Principal},
    clock::World,
    ports::audit::{Audit, AuditRow},
    problem::Problem,
};
use http::{Extensions, Request};
use tower::{Layer, Service};

pub use self::late::AuditStats;
use self::late::Late;
use crate::{finish::is_grpc, request_id::RequestId, status::problem_of};

/// How long an answer waits for its record. The call is done by then, so it is answered all the same.
const RECORD_WITHIN: Duration = Duration::from_secs(2);

/// The operator that was found to call, with the tenant it acts for; in the extensions of each request.
#[derive(Clone, Default)]
pub struct Caught(Arc<OnceLock<(String, Option<String>)>>);

impl Caught {
    /// Notes who calls, if it is an operator.
    pub fn note(extensions: &Extensions, caller: &Caller) {
        if let (Some(caught), Principal::Operator(key_id)) = (extensions.get::<Self>(), &caller.principal) {
            let tenant = caller.tenant().map(|tenant| tenant.as_str().to_owned());
            // A call is authenticated once; should it be again, it is the same operator.
            let _already_known = caught.0.set((key_id.clone(), tenant));
        }
    }
}

/// What a handler says of a call, in the extensions of its answer.
#[derive(Debug, Clone, Default)]
pub struct AuditNote {
    /// The tenant that the call acted upon.
    pub tenant: Option<String>,
    /// What was changed, in words.
    pub detail: String,
}

/// Records the calls of operators.
#[derive(Clone)]
pub struct Auditing {
    audit: Arc<dyn Audit>,
    world: World,
    late: Arc<Late>,
}

impl Auditing {
    /// Records in `audit`, and counts in `stats` what that does not take.
    pub fn new(audit: Arc<dyn Audit>, world: World, stats: Arc<AuditStats>) -> Self {
        Self { audit, world, late: Arc::new(Late::new(stats)) }
    }

    /// Serves calls, and meanwhile stores what was not recorded in time; at the end it is tried for the last time.
    pub async fn around<T>(&self, serving: impl Future<Output = T>) -> T {
        let served = tokio::select! {
            served = serving => served,
            never = self.late.store_on(&*self.audit) => match never {},
        };
        self.late.store_last(&*self.audit).await;
        served
    }
}

impl<S> Layer<S> for Auditing {
    type Service = Audited<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Audited { inner, auditing: self.clone() }
    }
}

/// The service of [`Auditing`]; it belongs inside of [`crate::finish::Finish`].
#[derive(Clone)]
pub struct Audited<S> {
    inner: S,
    auditing: Auditing,
}

impl<S, B> Service<Request<B>> for Audited<S>
where
    S: Service<Request<B>, Response = Response>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let caught = Caught::default();
        request.extensions_mut().insert(caught.clone());
        let request_id = RequestId::text(request.extensions()).to_owned();
        let grpc = is_grpc(request.headers());
        let action = match grpc {
            true => request.uri().path().trim_start_matches('/').to_owned(),
            false => format!("{} {}", request.method(), request.uri().path()),
        };
        let (auditing, answer) = (self.auditing.clone(), self.inner.call(request));
        Box::pin(async move {
            let mut response = answer.await?;
            let note = response.extensions_mut().remove::<AuditNote>().unwrap_or_default();
            if let Some((actor, tenant)) = caught.0.get() {
                let (status, result) = outcome(&response, grpc);
                let row = AuditRow {
                    at_ms: auditing.world.now_ms(),
                    actor: actor.clone(),
                    action,
                    tenant: note.tenant.or_else(|| tenant.clone()),
                    result,
                    status,
                    request_id,
                    detail: note.detail,
                };
                auditing.record(row).await;
            }
            Ok(response)
        })
    }
}

impl Auditing {
    async fn record(&self, row: AuditRow) {
        let recorded = tokio::time::timeout(RECORD_WITHIN, self.audit.record(row.clone())).await;
        let error = match recorded {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it took too long".to_owned(),
        };
        self.late.keep(row, &error);
    }
}

fn outcome(response: &Response, grpc: bool) -> (u16, String) {
    if grpc {
        return match tonic::Status::from_header_map(response.headers()) {
            Some(status) if status.code() != tonic::Code::Ok => problem_of(&status),
            // The status of an answer with a body comes behind it, and is ok.
            _ => (200, "ok".to_owned()),
        };
    }
    let status = response.status();
    let code = response.extensions().get::<Problem>().map(|problem| problem.code().to_owned());
    let refused = || status.canonical_reason().unwrap_or("refused").to_lowercase().replace(' ', "_");
    let ok = status.is_success() || status.is_informational() || status.is_redirection();
    (status.as_u16(), if ok { "ok".to_owned() } else { code.unwrap_or_else(refused) })
}
