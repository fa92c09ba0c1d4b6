//! Authentication of calls, on both faces.

use std::sync::Arc;

use axum::{
    extract::{FromRef, FromRequestParts, Request, State},
    middleware::Next,
    response::Response,
};
use herald_core::{
    auth::{Caller, Credentials},
    clock::Clock,
    policy::Policy,
    problem::Problem,
};
use http::{Extensions, HeaderMap, HeaderName, header, request::Parts};
use tokio::sync::watch;

use crate::{audit::Caught, rejection::Rejection, request_id::RequestId, status::status};

/// The header in which an operator names the tenant.
pub const HERALD_TENANT: HeaderName = HeaderName::from_static("herald-tenant");

/// Finds out who calls, from the newest policy.
#[derive(Clone)]
pub struct Authenticator {
    policy: watch::Receiver<Arc<Policy>>,
    clock: Arc<dyn Clock>,
}

impl Authenticator {
    /// Authenticates with the newest of these policies.
    pub fn new(policy: watch::Receiver<Arc<Policy>>, clock: Arc<dyn Clock>) -> Self {
        Self { policy, clock }
    }

    /// The newest policy.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.borrow().clone()
    }

    /// Who sent these headers.
    ///
    /// # Errors
    /// As [`Caller::authenticate`].
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Authenticated, Problem> {
        self.authenticate_with(headers, None)
    }

    /// Who made this call; an operator is noted for the audit log.
    ///
    /// # Errors
    /// As [`Caller::authenticate`].
    pub fn authenticate_call(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Authenticated, Problem> {
        let authenticated = self.authenticate(headers)?;
        Caught::note(extensions, &authenticated.caller);
        Ok(authenticated)
    }

    /// Who sent these headers, or a token outside of them where there is no `Authorization`.
    ///
    /// # Errors
    /// As [`Caller::authenticate`].
    pub fn authenticate_with(&self, headers: &HeaderMap, token: Option<&str>) -> Result<Authenticated, Problem> {
        let bearer = headers.get(header::AUTHORIZATION).map(|value| bearer(value.as_bytes()).unwrap_or_default());
        let tenant =
            match headers.get(HERALD_TENANT) {
                Some(value) => Some(value.to_str().map_err(|_| {
                    Problem::field("Herald-Tenant", "invalid_value", "A tenant's id is printable ASCII.")
                })?),
                None => None,
            };
        let policy = self.policy();
        let credentials = Credentials { bearer: bearer.or(token), tenant };
        let caller = Caller::authenticate(&policy, credentials, self.clock.now_ms())?;
        Ok(Authenticated { caller, policy })
    }
}

/// What is around the routes of gRPC: whoever is not known is refused before their message is read, which is many times
/// larger in memory than on the wire. Over HTTP handlers do so.
pub async fn known_first(State(authenticator): State<Authenticator>, request: Request, next: Next) -> Response {
    match authenticator.authenticate(request.headers()) {
        Ok(_) => next.run(request).await,
        Err(problem) => status(&problem, RequestId::text(request.extensions())).into_http(),
    }
}

fn bearer(header: &[u8]) -> Option<&str> {
    let (scheme, key) = std::str::from_utf8(header).ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Who calls, and the policy by which this was found; an extractor for handlers.
#[derive(Clone)]
pub struct Authenticated {
    /// Who calls.
    pub caller: Caller,
    /// The policy, for all decisions of this call.
    pub policy: Arc<Policy>,
}

impl<S> FromRequestParts<S> for Authenticated
where
    Authenticator: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
        Ok(Authenticator::from_ref(state).authenticate_call(&parts.headers, &parts.extensions)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        assert_eq!(bearer(b"bearer  hk_a "), Some("hk_a"));
        assert_eq!(bearer(b"Basic hk_a"), None);
        assert_eq!(bearer(b"hk_a"), None);
        assert_eq!(bearer(b"Bearer \xff"), None);
    }
}
