//! People.

use axum::{
    Extension,
    body::Bytes,
    extract::{Path, State},
    response::Response,
};
use herald_api::{
    auth::Authenticated,
    items::parse_items,
    json::{Json, JsonText, answer, check_media_type, parse},
    query::Query,
    rejection::Rejection,
    request_id::RequestId,
};
use herald_core::problem::Problem;
use herald_proto::v1;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::{service::Gateway, users::MAX_USERS};

/// An id in a body must be the path's.
fn same(field: &'static str, path: String, body: &mut String) -> Result<(), Problem> {
    if !body.is_empty() && *body != path {
        return Err(Problem::field(field, "mismatch", "The id in the body is not that of the path."));
    }
    *body = path;
    Ok(())
}

/// `PUT /v1/users/{user_id}`
pub async fn put(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Path(user_id): Path<String>,
    Json(mut request): Json<v1::PutUserRequest>,
) -> Result<Json<v1::User>, Rejection> {
    same("user_id", user_id, &mut request.user_id)?;
    Ok(Json(gateway.put_user(&who, request).await?))
}

/// `PATCH /v1/users/{user_id}`: a merge patch (RFC 7396), so null and an empty list say something.
pub async fn patch(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Path(user_id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<v1::User>, Rejection> {
    check_media_type(&headers)?;
    let mut request = patch_of(&body)?;
    same("user_id", user_id, &mut request.user_id)?;
    Ok(Json(gateway.patch_user(&who, request).await?))
}

fn patch_of(body: &[u8]) -> Result<v1::PutUserRequest, Problem> {
    let mut cleared = Vec::new();
    let Ok(Value::Object(mut fields)) = serde_json::from_slice::<Value>(body) else {
        // The error is explained there.
        return parse(body);
    };
    for name in ["attributes", "locale", "time_zone", "endpoints"] {
        let empties = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        if fields.get(name).is_some_and(empties) {
            fields.remove(name);
            cleared.push(name.to_owned());
        }
    }
    if cleared.is_empty() {
        return parse(body);
    }
    let text = serde_json::to_vec(&fields).unwrap_or_default();
    let mut request: v1::PutUserRequest = parse(&text)?;
    request.clear.extend(cleared);
    Ok(request)
}

/// `GET /v1/users/{user_id}`
pub async fn get(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Path(user_id): Path<String>,
    query: Query,
) -> Result<Json<v1::User>, Rejection> {
    query.finish()?;
    Ok(Json(gateway.get_user(&who, &user_id).await?))
}

/// `DELETE /v1/users/{user_id}`
pub async fn delete(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Path(user_id): Path<String>,
    query: Query,
) -> Result<Response, Rejection> {
    query.finish()?;
    Ok(answer(StatusCode::ACCEPTED, &gateway.delete_user(&who, &user_id).await?))
}

/// `GET /v1/erasures/{erasure_id}`
pub async fn get_erasure(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Path(erasure_id): Path<String>,
    query: Query,
) -> Result<Json<v1::Erasure>, Rejection> {
    query.finish()?;
    Ok(Json(gateway.erasure(&who, &erasure_id).await?))
}

/// `GET /v1/users`
pub async fn list(
    State(gateway): State<Gateway>,
    who: Authenticated,
    mut query: Query,
) -> Result<Json<v1::ListUsersResponse>, Rejection> {
    let asked = v1::ListUsersRequest { page_size: query.value("page_size"), page_token: query.text("page_token") };
    query.finish()?;
    Ok(Json(gateway.list_users(&who, asked).await?))
}

/// `POST /v1/users:batch`
pub async fn batch(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Extension(request_id): Extension<RequestId>,
    JsonText(text): JsonText,
) -> Result<Json<v1::PutUsersResponse>, Rejection> {
    let users = parse_items::<v1::PutUsersRequest, _>(&text, "users", MAX_USERS)?;
    Ok(Json(gateway.put_users(&who, users, request_id.as_str()).await?))
}

/// `PUT /v1/users/{user_id}/preferences`
pub async fn put_preferences(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Path(user_id): Path<String>,
    Json(mut request): Json<v1::PutPreferencesRequest>,
) -> Result<Json<v1::Preferences>, Rejection> {
    same("user_id", user_id, &mut request.user_id)?;
    Ok(Json(gateway.put_preferences(&who, request).await?))
}

/// `GET /v1/users/{user_id}/preferences`
pub async fn get_preferences(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Path(user_id): Path<String>,
    query: Query,
) -> Result<Json<v1::Preferences>, Rejection> {
    query.finish()?;
    Ok(Json(gateway.get_preferences(&who, &user_id).await?))
}

/// `POST /v1/users/{user_id}/tokens`
pub async fn create_token(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Path(user_id): Path<String>,
    Json(mut request): Json<v1::CreateUserTokenRequest>,
) -> Result<Json<v1::CreateUserTokenResponse>, Rejection> {
    same("user_id", user_id, &mut request.user_id)?;
    Ok(Json(gateway.create_user_token(&who, request).await?))
}

/// `POST /v1/follows`
pub async fn follow(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Json(request): Json<v1::FollowRequest>,
) -> Result<Json<v1::MembershipResponse>, Rejection> {
    Ok(Json(gateway.set_follows(&who, request.edges, true).await?))
}

/// `POST /v1/follows:remove`
pub async fn unfollow(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Json(request): Json<v1::FollowRequest>,
) -> Result<Json<v1::MembershipResponse>, Rejection> {
    Ok(Json(gateway.set_follows(&who, request.edges, false).await?))
}

/// `POST /v1/topics/{topic}/subscribers`
pub async fn subscribe(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Path(topic): Path<String>,
    Json(mut request): Json<v1::SubscribeRequest>,
) -> Result<Json<v1::MembershipResponse>, Rejection> {
    same("topic", topic, &mut request.topic)?;
    Ok(Json(gateway.set_subscribers(&who, request, true).await?))
}

/// `POST /v1/topics/{topic}/subscribers:remove`
pub async fn unsubscribe(
    State(gateway): State<Gateway>,
    who: Authenticated,
    Path(topic): Path<String>,
    Json(mut request): Json<v1::SubscribeRequest>,
) -> Result<Json<v1::MembershipResponse>, Rejection> {
    same("topic", topic, &mut request.topic)?;
    Ok(Json(gateway.set_subscribers(&who, request, false).await?))
}
