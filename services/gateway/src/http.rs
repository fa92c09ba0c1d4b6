//! The HTTP face.

mod inbox;
mod notifications;
mod users;

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Request},
    response::{IntoResponse, Response},
    routing::get,
};
use herald_api::{
    docs,
    finish::is_grpc,
    openapi, problems,
    rejection::{Rejection, of_status},
    routes::{Route, Routes},
};
use herald_core::problem::Problem;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};

use crate::{service::Gateway, unsubscribe};

/// The header of a call's idempotency key.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

const KEY: &[(&str, &str)] = &[("idempotency_key", "Idempotency-Key")];
const HTML: &str = "text/html";

/// The routes of the gateway.
pub fn routes(gateway: &Gateway) -> Routes {
    let max_batch = gateway.config.max_batch_body_bytes;
    Routes::new()
        .on(Route::post("/v1/notify", "Notifications.Notify").answers(202).in_headers(KEY), notifications::notify)
        .on(
            Route::post("/v1/notify:batch", "Notifications.NotifyBatch").max_body(max_batch),
            notifications::notify_batch,
        )
        .on(Route::get("/v1/status/{request_id}", "Notifications.GetStatus"), notifications::status)
        .on(Route::get("/v1/requests", "Notifications.ListRequests"), notifications::requests)
        .on(Route::get("/v1/receipts", "Notifications.ListReceipts"), notifications::receipts)
        .on(Route::post("/v1/cancel", "Notifications.Cancel"), notifications::cancel)
        .on(Route::get("/v1/users", "Users.ListUsers"), users::list)
        .on(Route::post("/v1/users:batch", "Users.PutUsers").max_body(max_batch), users::batch)
        .on(Route::get("/v1/users/{user_id}", "Users.GetUser"), users::get)
        .on(Route::put("/v1/users/{user_id}", "Users.PutUser"), users::put)
        .on(Route::patch("/v1/users/{user_id}", "Users.PatchUser"), users::patch)
        .on(Route::delete("/v1/users/{user_id}", "Users.DeleteUser").answers(202), users::delete)
        .on(Route::get("/v1/erasures/{erasure_id}", "Users.GetErasure"), users::get_erasure)
        .on(Route::get("/v1/users/{user_id}/preferences", "Users.GetPreferences"), users::get_preferences)
        .on(Route::put("/v1/users/{user_id}/preferences", "Users.PutPreferences"), users::put_preferences)
        .on(Route::post("/v1/users/{user_id}/tokens", "Users.CreateUserToken"), users::create_token)
        .on(Route::get("/v1/users/{user_id}/inbox", "Inbox.ListInbox"), inbox::list)
        .on(Route::post("/v1/users/{user_id}/inbox:mark", "Inbox.MarkInbox"), inbox::mark)
        .on(Route::post("/v1/follows", "Users.Follow"), users::follow)
        .on(Route::post("/v1/follows:remove", "Users.Unfollow"), users::unfollow)
        .on(Route::post("/v1/topics/{topic}/subscribers", "Users.Subscribe"), users::subscribe)
        .on(Route::post("/v1/topics/{topic}/subscribers:remove", "Users.Unsubscribe"), users::unsubscribe)
        .on(Route::page(Method::GET, "/v1/unsubscribe/{token}", HTML, "Asks whether to unsubscribe"), unsubscribe::page)
        .on(Route::page(Method::POST, "/v1/unsubscribe/{token}", HTML, "Unsubscribes (RFC 8058)"), unsubscribe::act)
        .on(Route::page(Method::GET, "/problems/{code}", "text/markdown", "What a problem's type means"), problem)
        .map(|router| router.layer(DefaultBodyLimit::max(gateway.config.max_body_bytes)))
        .with_state(gateway.clone())
}

/// The pages about the API itself, which are made of the routes that are served.
pub fn about(routes: Routes) -> Router {
    let routes = routes
        .note(Route::page(Method::GET, "/openapi.json", "application/json", "This API as OpenAPI 3.1"))
        .note(Route::page(Method::GET, "/docs", HTML, "This API as a page"));
    let document = openapi::document(routes.table());
    let page = Bytes::from(docs::page(&document));
    let document = Bytes::from(document.to_string());
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    let json = [(header::CONTENT_TYPE, "application/json")];
    let html = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy)];
    routes
        .into_router()
        .route("/openapi.json", get(async move || (json, document)))
        .route("/docs", get(async move || (html, page)))
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
