//! In-app feeds.

use axum::extract::{Path, State};
use herald_api::{auth::Authenticated, json::Json, query::Query, rejection::Rejection};
use herald_core::problem::Problem;
use herald_proto::v1;

use crate::service::Gateway;

/// `GET /v1/users/{user_id}/inbox`
pub async fn list(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Path(user_id): Path<String>,
    mut query: Query,
) -> Result<Json<v1::ListInboxResponse>, Rejection> {
    let asked = v1::ListInboxRequest {
        user_id,
        state: query.text("state"),
        page_size: query.value("page_size"),
        page_token: query.text("page_token"),
    };
    query.finish()?;
    Ok(Json(gateway.list_inbox(&who, asked).await?))
}

/// `POST /v1/users/{user_id}/inbox:mark`
pub async fn mark(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Path(user_id): Path<String>,
    Json(mut request): Json<v1::MarkInboxRequest>,
) -> Result<Json<v1::InboxCounts>, Rejection> {
    if !request.user_id.is_empty() && request.user_id != user_id {
        return Err(Problem::field("user_id", "mismatch", "The id in the body is not that of the path.").into());
    }
    request.user_id = user_id;
    Ok(Json(gateway.mark_inbox(&who, request).await?))
}
