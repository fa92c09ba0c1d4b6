//! Problems on HTTP: RFC 9457 documents.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use herald_core::problem::{Kind, Problem};
use herald_proto::v1;
use http::{HeaderValue, StatusCode, header};

/// The media type of problem documents.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A problem as a handler's error. [`crate::finish::Finish`] renders it, since the document names the request id.
#[derive(Debug, Clone)]
pub struct Rejection(pub Problem);

impl From<Problem> for Rejection {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let mut response = status_code(self.0.kind()).into_response();
        response.extensions_mut().insert(self.0);
        response
    }
}

/// A problem as a message of the API.
pub fn message(problem: &Problem, request_id: &str) -> v1::Problem {
    v1::Problem {
        r#type: problem.type_uri(),
        title: problem.title(),
        status: problem.kind().status().into(),
        code: problem.code().to_owned(),
        detail: problem.detail().to_owned(),
        request_id: request_id.to_owned(),
        errors: problem
            .errors()
            .iter()
            .map(|error| v1::FieldError {
                field: error.field.clone(),
                code: error.code.to_owned(),
                detail: error.detail.clone(),
            })
            .collect(),
    }
}

/// Makes a response the document of a problem; headers that are there already, such as `Allow`, stay.
pub fn render(problem: &Problem, request_id: &str, response: &mut Response) {
    // A message of strings and numbers always serializes.
    let body = serde_json::to_vec(&message(problem, request_id)).unwrap_or_default();
    *response.status_mut() = status_code(problem.kind());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = problem.retry_after_s() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if problem.kind() == Kind::Unauthenticated {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    *response.body_mut() = Body::from(body);
}

/// The problem behind an answer that a library gave without one.
pub fn of_status(status: StatusCode) -> Problem {
    match status.as_u16() {
        404 => Problem::new(Kind::NotFound, "not_found", "There is no such path."),
        405 => Problem::new(Kind::MethodNotAllowed, "method_not_allowed", "The path has no such method; see `Allow`."),
        413 => Problem::new(Kind::TooLarge, "body_too_large", "The body is too large."),
        415 => Problem::new(Kind::UnsupportedMedia, "unsupported_media_type", "Send `application/json`."),
        429 => Problem::new(Kind::TooMany, "too_many_requests", "Too many calls.").with_retry_after(1),
        503 => Problem::unavailable("The service is unavailable."),
        500..600 => Problem::new(Kind::Internal, "internal", "Something went wrong on our side."),
        _ => {
            Problem::new(Kind::Malformed, "malformed", "The request cannot be read. A path is UTF-8, percent-encoded.")
        }
    }
}

fn status_code(kind: Kind) -> StatusCode {
    StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
