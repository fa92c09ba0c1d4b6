//! What the gateway counts: requests by route and status, with the time to the head of their answer; and operators' calls that
//! the audit log does not have.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use herald_api::audit::AuditStats;
use herald_core::problem::Kind;
use parking_lot::Mutex;

/// Upper bounds of the buckets, in seconds; one more takes what is longer.
pub const BOUNDS_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Where there is no route.
const NO_ROUTE: &str = "none";

/// Requests since the start, by route and HTTP status. For gRPC the status is that of the same refusal on HTTP. Both are
/// bounded: by the routes there are, and by the statuses that are answered.
#[derive(Debug, Default)]
pub struct RequestStats {
    /// Operators' calls that were not recorded in time.
    pub audit: Arc<AuditStats>,
    by: Mutex<BTreeMap<(String, u16), Times>>,
}

/// The times of some requests, as a Prometheus histogram counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Times {
    /// Requests in each bucket, not cumulative; the last is past all bounds.
    pub buckets: [u64; BOUNDS_SECONDS.len() + 1],
    /// The sum of all times.
    pub sum_seconds: f64,
}

impl RequestStats {
    /// Everything counted so far.
    pub fn snapshot(&self) -> BTreeMap<(String, u16), Times> {
        self.by.lock().clone()
    }

    fn count(&self, route: &str, status: u16, took: Duration) {
        let seconds = took.as_secs_f64();
        let mut by = self.by.lock();
        // A text is made for the first request of its kind only.
        let times = match by.iter_mut().find(|((known, code), _)| known == route && *code == status) {
            Some((_, times)) => times,
            None => by.entry((route.to_owned(), status)).or_default(),
        };
        times.buckets[BOUNDS_SECONDS.partition_point(|bound| *bound < seconds)] += 1;
        times.sum_seconds += seconds;
    }
}

/// Measures each request; a layer of the router, so that the route is known.
pub(crate) async fn measure(State(stats): State<Arc<RequestStats>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let route = route.as_ref().map_or(NO_ROUTE, MatchedPath::as_str);
    stats.count(route, status_of(&response), begun.elapsed());
    response
}

/// The status of an answer; of a refusal over gRPC that of its kind on HTTP.
fn status_of(response: &Response) -> u16 {
    let code = response.headers().get("grpc-status").and_then(|code| code.to_str().ok()?.parse::<i32>().ok());
    let kind = code
        .map(tonic::Code::from_i32)
        .and_then(|code| Kind::ALL.into_iter().find(|kind| herald_api::status::code(*kind) == code));
    match (code, kind) {
        (None | Some(0), _) => response.status().as_u16(),
        (_, Some(kind)) => kind.status(),
        // A code that none of our refusals has is a fault.
        (_, None) => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_on_a_bound_is_within_it() {
        let stats = RequestStats::default();
        stats.count("/v1/notify", 202, Duration::from_millis(1));
        stats.count("/v1/notify", 202, Duration::from_secs(60));
        stats.count("/v1/notify", 503, Duration::from_millis(2));
        let all = stats.snapshot();
        let accepted = all[&("/v1/notify".to_owned(), 202)];
        assert_eq!((accepted.buckets[0], accepted.buckets[12], accepted.sum_seconds), (1, 1, 60.001));
        assert_eq!(all[&("/v1/notify".to_owned(), 503)].buckets[1], 1);
    }

    #[test]
    fn a_refusal_over_grpc_has_the_status_of_http() {
        let answer = |code: &'static str| {
            let mut response = Response::new(axum::body::Body::empty());
            response.headers_mut().insert("grpc-status", http::HeaderValue::from_static(code));
            status_of(&response)
        };
        assert_eq!(["0", "3", "5", "9", "14", "4"].map(answer), [200, 400, 404, 422, 503, 500]);
    }
}
