//! Sending and following notifications.

use axum::{
    Extension,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use herald_api::{
    auth::Authenticated,
    items::parse_items,
    json::{Json, JsonText, answer},
    query::Query,
    rejection::Rejection,
    request_id::RequestId,
};
use herald_core::problem::Problem;
use herald_proto::v1;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{IDEMPOTENCY_KEY, header_text};
use crate::{
    admit,
    grpc::notifications::{batch_response, response},
    service::Gateway,
};

const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// `POST /v1/notify`
pub async fn notify(
    State(gateway): State<Gateway>,
    who: Authenticated,
    headers: HeaderMap,
    Json(mut request): Json<v1::NotifyRequest>,
) -> Result<Response, Rejection> {
    if request.idempotency_key.is_some() {
        let detail = "Send a single call's key in the header Idempotency-Key.";
        return Err(Problem::field("idempotency_key", "not_allowed", detail).into());
    }
    if let Some(key) = headers.get(&IDEMPOTENCY_KEY) {
        // What is no text is refused as every other key with characters that are not allowed.
        let key = key.to_str().unwrap_or_default();
        admit::check_idempotency_key("Idempotency-Key", key).map_err(|error| Problem::malformed(vec![error]))?;
        request.idempotency_key = Some(key.to_owned());
    }
    let accepted = gateway.notify(&who, request, header_text(&headers, &TRACE_PARENT)).await;
    let mut answer = match &accepted {
        Ok(accepted) => answer(StatusCode::ACCEPTED, &response(*accepted)),
        Err(problem) => Rejection(problem.clone()).into_response(),
    };
    if accepted.is_ok_and(|accepted| accepted.deduplicated) {
        answer.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    gateway.tell_quota(&who, answer.headers_mut());
    Ok(answer)
}

/// `POST /v1/notify:batch`
pub async fn notify_batch(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Extension(request_id): Extension<RequestId>,
    headers: HeaderMap,
    JsonText(text): JsonText,
) -> Result<Response, Rejection> {
    if headers.contains_key(&IDEMPOTENCY_KEY) {
        let detail = "Give each notification of a batch its own idempotency_key.";
        return Err(Problem::field("Idempotency-Key", "not_allowed", detail).into());
    }
    let max = gateway.config.max_batch;
    let notifications = parse_items::<v1::NotifyBatchRequest, _>(&text, "notifications", max)?;
    let trace = header_text(&headers, &TRACE_PARENT);
    let mut answer = match gateway.notify_batch(&who, notifications, trace).await {
        Ok(answers) => answer(StatusCode::OK, &batch_response(answers, request_id.as_str())),
        Err(problem) => Rejection(problem).into_response(),
    };
    gateway.tell_quota(&who, answer.headers_mut());
    Ok(answer)
}

/// `GET /v1/status/{request_id}`
pub async fn status(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Path(request_id): Path<String>,
    query: Query,
) -> Result<Json<v1::RequestStatus>, Rejection> {
    query.finish()?;
    Ok(Json(gateway.status(&who, &request_id).await?))
}

/// `POST /v1/cancel`
pub async fn cancel(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Json(request): Json<v1::CancelRequest>,
) -> Result<Json<v1::CancelResponse>, Rejection> {
    Ok(Json(gateway.cancel(&who, request).await?))
}

/// `GET /v1/requests`
pub async fn requests(
    State(gateway): State<Gateway>,
    who: Authenticated,
    mut query: Query,
) -> Result<Json<v1::ListRequestsResponse>, Rejection> {
    let asked = v1::ListRequestsRequest {
        state: query.text("state"),
        template_id: query.text("template_id"),
        since: query.timestamp("since"),
        page_size: query.value("page_size"),
        page_token: query.text("page_token"),
    };
    query.finish()?;
    Ok(Json(gateway.requests(&who, asked).await?))
}

/// `GET /v1/receipts`
pub async fn receipts(
    State(gateway): State<Gateway>,
    who: Authenticated,
    mut query: Query,
) -> Result<Json<v1::ListReceiptsResponse>, Rejection> {
    let asked = v1::ListReceiptsRequest {
        request_id: query.text("request_id"),
        user_id: query.text("user_id"),
        since: query.timestamp("since"),
        until: query.timestamp("until"),
        channel: query.text("channel"),
        state: query.text("state"),
        page_size: query.value("page_size"),
        page_token: query.text("page_token"),
    };
    query.finish()?;
    Ok(Json(gateway.receipts(&who, asked).await?))
}
