//! The HTTP face of templates, tenants, keys and limits.

mod dead_letters;

use axum::{
    Extension,
    body::Bytes,
    extract::{FromRef, FromRequest, Path, Request, State},
    routing::post,
};
use herald_api::{
    audit::AuditNote,
    auth::{Authenticated, Authenticator},
    json::{self, Json},
    page::List,
    query::Query,
    rejection::Rejection,
    routes::{Route, Routes},
    time::millis,
};
use herald_core::{auth::Scope, problem::Problem};
use herald_proto::v1;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    audit,
    keys::{self, NewKey},
    limits::{self, NewQuota},
    messages, providers,
    service::{Deps, Page, preview},
    switches, templates, tenants,
    views::*,
};

/// The routes of the control plane. Around them belongs [`herald_api::finish::Finish`].
pub fn routes(deps: Deps) -> Routes {
    Routes::new()
        .on(Route::get("/v1/templates", "Templates.ListTemplates"), list_templates)
        .on(Route::get("/v1/templates/{template_id}", "Templates.GetTemplate"), get_template)
        .on(Route::put("/v1/templates/{template_id}", "Templates.PutTemplate").in_query(&["publish"]), put_template)
        // The action is part of the last segment, which the router takes as a whole.
        .map(|router| router.route("/v1/templates/{template_id}", post(act_on_template)))
        .note(Route::post("/v1/templates/{template_id}:preview", "Templates.PreviewTemplate"))
        .note(Route::post("/v1/templates/{template_id}:publish", "Templates.PublishTemplate"))
        .note(Route::post("/v1/templates/{template_id}:rollback", "Templates.RollbackTemplate"))
        .on(Route::get("/v1/admin/tenants", "Admin.ListTenants"), list_tenants)
        .on(Route::get("/v1/admin/tenants/{tenant_id}", "Admin.GetTenant"), get_tenant)
        .on(Route::put("/v1/admin/tenants/{tenant_id}", "Admin.PutTenant"), put_tenant)
        .on(Route::post("/v1/admin/keys", "Admin.CreateKey"), create_key)
        .on(Route::get("/v1/admin/keys", "Admin.ListKeys"), list_keys)
        .on(Route::delete("/v1/admin/keys/{key_id}", "Admin.DeleteKey"), delete_key)
        .on(Route::get("/v1/admin/audit", "Admin.ListAudit"), list_audit)
        .on(Route::get("/v1/admin/switches", "Admin.ListSwitches"), list_switches)
        .on(Route::put("/v1/admin/switches", "Admin.PutSwitch"), put_switch)
        .on(Route::delete("/v1/admin/switches/{id}", "Admin.DeleteSwitch"), delete_switch)
        .on(Route::get("/v1/admin/providers", "Admin.ListProviders"), list_providers)
        .on(Route::get("/v1/admin/providers/{name}", "Admin.GetProvider"), get_provider)
        .on(Route::put("/v1/admin/providers/{name}", "Admin.PutProvider"), put_provider)
        .on(Route::delete("/v1/admin/providers/{name}", "Admin.DeleteProvider"), delete_provider)
        .merge(dead_letters::routes())
        .on(Route::put("/v1/admin/limits", "Admin.PutLimit"), put_limit)
        .on(Route::get("/v1/admin/limits", "Admin.ListLimits"), list_limits)
        .on(Route::delete("/v1/admin/limits/{id}", "Admin.DeleteLimit"), delete_limit)
        .with_state(deps)
}

impl FromRef<Deps> for Authenticator {
    fn from_ref(deps: &Deps) -> Self {
        deps.authenticator.clone()
    }
}

type Answer<T> = Result<Json<T>, Rejection>;

/// A body that is read only after it is known that the caller may call.
struct Body {
    bytes: Bytes,
    media_type: Result<(), Problem>,
}

impl FromRequest<Deps> for Body {
    type Rejection = Rejection;

    async fn from_request(request: Request, deps: &Deps) -> Result<Self, Rejection> {
        let media_type = json::check_media_type(request.headers());
        Ok(Self { bytes: json::body(request, deps).await?, media_type })
    }
}

impl Body {
    fn read<T: DeserializeOwned>(self) -> Result<T, Problem> {
        self.media_type?;
        json::parse(&self.bytes)
    }

    /// As [`Body::read`], for a body that may be left away.
    fn read_or_default<T: DeserializeOwned + Default>(self) -> Result<T, Problem> {
        if self.bytes.is_empty() { Ok(T::default()) } else { self.read() }
    }
}

fn page(mut query: Query, list: List) -> Result<Page, Problem> {
    let (size, token) = (query.value("page_size"), query.text("page_token"));
    query.finish()?;
    Page::open(list, size, token.as_deref())
}

/// The lists of both faces, so that a token of one is good for the other.
pub(crate) mod lists {
    use herald_api::page::List;

    pub(crate) fn templates(tenant: &str) -> List {
        List::new("templates", &[tenant])
    }

    pub(crate) fn tenants() -> List {
        List::new("tenants", &[])
    }

    pub(crate) fn limits() -> List {
        List::new("limits", &[])
    }

    pub(crate) fn providers() -> List {
        List::new("providers", &[])
    }

    pub(crate) fn switches() -> List {
        List::new("switches", &[])
    }

    pub(crate) fn keys(tenant: Option<&str>) -> List {
        List::new("keys", &[tenant.unwrap_or_default()])
    }
}

fn same_id(field: &str, in_path: &str, in_body: Option<&str>) -> Result<(), Problem> {
    match in_body {
        Some(id) if id != in_path => Err(Problem::field(field, "conflict", "The id differs from the one in the path.")),
        _ => Ok(()),
    }
}

async fn put_template(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    Path(template_id): Path<String>,
    mut query: Query,
    body: Body,
) -> Answer<StoredView> {
    let tenant = caller.require(Scope::Templates)?;
    let publish = query.value("publish");
    query.finish()?;
    let body: TemplateBody = body.read()?;
    same_id("template_id", &template_id, body.template_id.as_deref())?;
    let publish = publish.or(body.publish).unwrap_or(true);
    let stored = templates::put(&deps.publisher, tenant, &template_id, body.into(), publish).await?;
    Ok(Json(StoredView { template_id, version: stored.version, published: stored.published }))
}

async fn get_template(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    Path(template_id): Path<String>,
    mut query: Query,
) -> Answer<TemplateView> {
    let tenant = caller.require(Scope::Templates)?;
    let version = query.value("version");
    query.finish()?;
    Ok(Json(templates::get(&deps.publisher, tenant, &template_id, version).await?.into()))
}

async fn list_templates(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    query: Query,
) -> Answer<TemplatesView> {
    let tenant = caller.require(Scope::Templates)?;
    let page = page(query, lists::templates(tenant.as_str()))?;
    let found = templates::list(&deps.publisher, tenant, page.after.as_deref(), page.limit).await?;
    let next_page_token = page.next(found.len(), found.last().map(|last| last.row.template_id.as_str()));
    Ok(Json(TemplatesView { templates: found.into_iter().map(TemplateView::from).collect(), next_page_token }))
}

async fn act_on_template(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    Path(segment): Path<String>,
    body: Body,
) -> Answer<ActionView> {
    let tenant = caller.require(Scope::Templates)?;
    let no_action = || Problem::not_found("action on a template");
    let (id, action) = segment.rsplit_once(':').ok_or_else(no_action)?;
    let head = match action {
        "preview" => {
            let body: PreviewBody = body.read_or_default()?;
            same_id("template_id", id, body.template_id.as_deref())?;
            let rendered = preview(&deps, tenant, id, body).await?;
            return Ok(Json(ActionView::Previewed(rendered.into())));
        }
        "publish" => {
            let VersionBody { template_id, version } = body.read_or_default()?;
            same_id("template_id", id, template_id.as_deref())?;
            templates::publish(&deps.publisher, tenant, id, version).await?
        }
        "rollback" => {
            let VersionBody { template_id, version } = body.read_or_default()?;
            same_id("template_id", id, template_id.as_deref())?;
            templates::rollback(&deps.publisher, tenant, id, version).await?
        }
        _ => return Err(no_action().into()),
    };
    let version = head.live.unwrap_or_default();
    Ok(Json(ActionView::Live(StoredView { template_id: id.to_owned(), version, published: true })))
}

/// An answer with what the audit log says of the call.
type Noted<T> = Result<(Extension<AuditNote>, Json<T>), Rejection>;

async fn put_tenant(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    Path(tenant_id): Path<String>,
    body: Body,
) -> Noted<TenantView> {
    caller.require_operator()?;
    let body: TenantBody = body.read()?;
    same_id("tenant_id", &tenant_id, body.tenant_id.as_deref())?;
    let quota = body.quota.map(NewQuota::from);
    let version = body.version.map(u64::from);
    let stored = tenants::put(&deps.publisher, &tenant_id, &body.name, quota, version).await?;
    let note = audit::tenant_note(&messages::tenant(stored.clone()));
    Ok((Extension(note), Json(stored.into())))
}

async fn get_tenant(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    Path(tenant_id): Path<String>,
) -> Answer<TenantView> {
    caller.require_operator()?;
    Ok(Json(tenants::get(&deps.publisher, &tenant_id).await?.into()))
}

async fn list_tenants(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    query: Query,
) -> Answer<TenantsView> {
    caller.require_operator()?;
    let page = page(query, lists::tenants())?;
    let found = tenants::list(&deps.publisher, page.after.as_deref(), page.limit).await?;
    let next_page_token = page.next(found.len(), found.last().map(|(row, _)| row.tenant_id.as_str()));
    Ok(Json(TenantsView { tenants: found.into_iter().map(TenantView::from).collect(), next_page_token }))
}

async fn create_key(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    body: Body,
) -> Noted<CreatedKeyView> {
    caller.require_operator()?;
    let KeyBody { tenant_id, name, scopes, expires_at } = body.read()?;
    let expires_ms = expires_at.map(|at| millis(&at).ok_or_else(bad_expiry)).transpose()?;
    let new = NewKey { tenant_id: tenant_id.clone(), name, scopes: scopes.clone(), expires_ms };
    let created = keys::create(&deps.publisher, new).await?;
    let note = audit::key_note(&created.key_id, tenant_id, &scopes);
    Ok((Extension(note), Json(CreatedKeyView { key_id: created.key_id, key: created.key })))
}

/// 400 for a time that no key can expire at.
pub(crate) fn bad_expiry() -> Problem {
    Problem::field("expires_at", "out_of_range", "The time lies before 1970 or after 9999.")
}

async fn list_keys(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    mut query: Query,
) -> Answer<KeysView> {
    caller.require_operator()?;
    let tenant = query.text("tenant_id");
    let page = page(query, lists::keys(tenant.as_deref()))?;
    let (rows, next) = keys::list(&deps.publisher, tenant.as_deref(), page.after.as_deref(), page.limit).await?;
    let next_page_token = page.token(next.as_deref());
    Ok(Json(KeysView { keys: rows.into_iter().map(KeyView::from).collect(), next_page_token }))
}

async fn delete_key(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    Path(key_id): Path<String>,
) -> Answer<Value> {
    caller.require_operator()?;
    keys::delete(&deps.publisher, &key_id).await?;
    Ok(Json(Value::Object(serde_json::Map::new())))
}

async fn put_limit(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    body: Body,
) -> Noted<LimitView> {
    caller.require_operator()?;
    let LimitBody { scope, per_second, burst } = body.read()?;
    let scope = scope.ok_or_else(no_scope)?;
    let stored = limits::put(&deps.publisher, scope.into(), NewQuota { per_second, burst }).await?;
    Ok((Extension(audit::limit_note(&messages::limit(stored.clone()))), Json(stored.into())))
}

/// 400 for a limit that does not say what it is about.
pub(crate) fn no_scope() -> Problem {
    Problem::field("scope", "required", "Say what is limited; `{}` is everything.")
}

async fn list_limits(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    query: Query,
) -> Answer<LimitsView> {
    caller.require_operator()?;
    let page = page(query, lists::limits())?;
    let found = limits::list(&deps.publisher, page.after.as_deref(), page.limit).await?;
    let next_page_token = page.next(found.len(), found.last().map(|(row, _)| row.id.as_str()));
    Ok(Json(LimitsView { limits: found.into_iter().map(LimitView::from).collect(), next_page_token }))
}

async fn delete_limit(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    Path(id): Path<String>,
) -> Answer<Value> {
    caller.require_operator()?;
    limits::delete(&deps.publisher, &id).await?;
    Ok(Json(Value::Object(serde_json::Map::new())))
}

async fn put_switch(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    body: Body,
) -> Noted<v1::PutSwitchResponse> {
    let operator = caller.require_operator()?;
    let set = switches::put(&deps, operator, body.read()?).await?;
    Ok((Extension(switches::note_of(&set)), Json(set)))
}

async fn list_switches(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    query: Query,
) -> Answer<v1::ListSwitchesResponse> {
    caller.require_operator()?;
    let page = page(query, lists::switches())?;
    let switches = switches::list(&deps, page.after.as_deref(), page.limit).await;
    let next_page_token = page.next(switches.len(), switches.last().map(|last| last.id.as_str()));
    Ok(Json(v1::ListSwitchesResponse { switches, next_page_token }))
}

async fn delete_switch(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    Path(id): Path<String>,
) -> Answer<v1::DeleteSwitchResponse> {
    caller.require_operator()?;
    Ok(Json(switches::delete(&deps, &id).await?))
}

async fn put_provider(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    Path(name): Path<String>,
    body: Body,
) -> Noted<v1::Provider> {
    caller.require_operator()?;
    let asked: v1::PutProviderRequest = body.read()?;
    same_id("name", &name, Some(asked.name.as_str()).filter(|name| !name.is_empty()))?;
    let set = providers::put(&deps, v1::PutProviderRequest { name, ..asked }).await?;
    Ok((Extension(providers::note_of(&set)), Json(set)))
}

async fn get_provider(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    Path(name): Path<String>,
) -> Answer<v1::Provider> {
    caller.require_operator()?;
    Ok(Json(providers::get(&deps.publisher, &name).await?))
}

async fn list_providers(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    query: Query,
) -> Answer<v1::ListProvidersResponse> {
    caller.require_operator()?;
    let page = page(query, lists::providers())?;
    let providers = providers::list(&deps.publisher, page.after.as_deref(), page.limit).await?;
    let next_page_token = page.next(providers.len(), providers.last().map(|last| last.name.as_str()));
    Ok(Json(v1::ListProvidersResponse { providers, next_page_token }))
}

async fn delete_provider(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    Path(name): Path<String>,
) -> Answer<v1::DeleteProviderResponse> {
    caller.require_operator()?;
    Ok(Json(providers::delete(&deps, &name).await?))
}

async fn list_audit(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    mut query: Query,
) -> Answer<v1::ListAuditResponse> {
    caller.require_operator()?;
    let asked = v1::ListAuditRequest {
        since: query.timestamp("since"),
        actor: query.text("actor"),
        tenant: query.text("tenant"),
        page_size: query.value("page_size"),
        page_token: query.text("page_token"),
    };
    query.finish()?;
    Ok(Json(audit::list(&deps, asked).await?))
}
