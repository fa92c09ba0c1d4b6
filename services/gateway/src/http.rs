//! The HTTP face.

mod inbox;
mod notifications;
mod users;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Path, Request},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use herald_api::{
    finish::is_grpc,
    problems,
    rejection::{Rejection, of_status},
};
use herald_core::problem::Problem;
use http::{HeaderMap, HeaderName, StatusCode, header};

use crate::{service::Gateway, unsubscribe};

/// The header of a call's idempotency key.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The routes of the gateway.
pub fn routes(gateway: &Gateway) -> Router {
    let max_batch = DefaultBodyLimit::max(gateway.config.max_batch_body_bytes);
    Router::new()
        .route("/v1/notify", post(notifications::notify))
        .route("/v1/notify:batch", post(notifications::notify_batch).layer(max_batch))
        .route("/v1/status/{request_id}", get(notifications::status))
        .route("/v1/requests", get(notifications::requests))
        .route("/v1/receipts", get(notifications::receipts))
        .route("/v1/users", get(users::list))
        .route("/v1/users:batch", post(users::batch).layer(max_batch))
        .route("/v1/users/{user_id}", get(users::get).put(users::put).patch(users::patch))
        .route("/v1/users/{user_id}/preferences", get(users::get_preferences).put(users::put_preferences))
        .route("/v1/users/{user_id}/tokens", post(users::create_token))
        .route("/v1/users/{user_id}/inbox", get(inbox::list))
        .route("/v1/users/{user_id}/inbox:mark", post(inbox::mark))
        .route("/v1/follows", post(users::follow))
        .route("/v1/follows:remove", post(users::unfollow))
        .route("/v1/topics/{topic}/subscribers", post(users::subscribe))
        .route("/v1/topics/{topic}/subscribers:remove", post(users::unsubscribe))
        .route("/v1/unsubscribe/{token}", get(unsubscribe::page).post(unsubscribe::act))
        .route("/problems/{code}", get(problem))
        .layer(DefaultBodyLimit::max(gateway.config.max_body_bytes))
        .with_state(gateway.clone())
}

/// `GET /problems/{code}`: what a problem's type means.
async fn problem(Path(code): Path<String>) -> Result<Response, Rejection> {
    let page = problems::page(&code).ok_or_else(|| Problem::not_found("problem"))?;
    Ok(([(header::CONTENT_TYPE, "text/markdown; charset=utf-8")], page).into_response())
}

/// Answers for paths that nobody serves.
pub async fn not_found(request: Request) -> Response {
    if is_grpc(request.headers()) {
        return tonic::Status::unimplemented("There is no such service or method.").into_http();
    }
    Rejection(of_status(StatusCode::NOT_FOUND)).into_response()
}

/// Answers for methods that a path has not; the header `Allow` is set by the router.
pub async fn method_not_allowed() -> Response {
    Rejection(of_status(StatusCode::METHOD_NOT_ALLOWED)).into_response()
}

fn header_text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
