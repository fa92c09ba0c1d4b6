//! The HTTP face of dead letters and of what waits.

use axum::extract::{Path, State};
use herald_api::{
    auth::Authenticated,
    json::Json,
    query::Query,
    routes::{Route, Routes},
};
use herald_proto::v1;

use super::{Answer, Body};
use crate::{lag::lag, service::Deps};

pub(super) fn routes() -> Routes<Deps> {
    Routes::new()
        .on(Route::get("/v1/admin/dead-letters", "Admin.ListDeadLetters"), list)
        .on(Route::get("/v1/admin/dead-letters/{id}", "Admin.GetDeadLetter"), show)
        .on(Route::post("/v1/admin/dead-letters:redrive", "Admin.RedriveDeadLetters"), redrive)
        .on(Route::get("/v1/admin/redrives/{redrive_id}", "Admin.GetRedrive"), progress)
        .on(Route::get("/v1/admin/lag", "Admin.GetLag"), show_lag)
}

async fn list(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    mut query: Query,
) -> Answer<v1::ListDeadLettersResponse> {
    caller.require_operator()?;
    let asked = v1::ListDeadLettersRequest {
        tenant_id: query.text("tenant_id"),
        stage: query.text("stage"),
        cause: query.text("cause"),
        since: query.timestamp("since"),
        until: query.timestamp("until"),
        page_size: query.value("page_size"),
        page_token: query.text("page_token"),
    };
    query.finish()?;
    Ok(Json(deps.dead_letters.list(asked).await?))
}

async fn show(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    Path(id): Path<String>,
) -> Answer<v1::DeadLetter> {
    caller.require_operator()?;
    Ok(Json(deps.dead_letters.get(&id).await?))
}

async fn redrive(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    body: Body,
) -> Answer<v1::Redrive> {
    caller.require_operator()?;
    Ok(Json(deps.dead_letters.redrive(body.read()?).await?))
}

async fn progress(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    Path(redrive_id): Path<String>,
) -> Answer<v1::Redrive> {
    caller.require_operator()?;
    Ok(Json(deps.dead_letters.progress(&redrive_id).await?))
}

async fn show_lag(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    mut query: Query,
) -> Answer<v1::Lag> {
    caller.require_operator()?;
    let by_partition = query.value("partitions").unwrap_or(false);
    query.finish()?;
    Ok(Json(lag(deps.dead_letters.log(), deps.dead_letters.now_ms(), by_partition).await?))
}
