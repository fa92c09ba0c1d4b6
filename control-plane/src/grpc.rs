//! The gRPC face of templates, tenants and keys.

use herald_api::{auth::Authenticated, request_id::RequestId, status::status, time::millis};
use herald_core::{
    auth::{Caller, Scope},
    policy::TemplateHead,
    problem::Problem,
};
use herald_proto::v1::{
    self, admin_server::Admin, admin_server::AdminServer, templates_server::Templates,
    templates_server::TemplatesServer,
};
use tonic::{Request, Response, Status};

use crate::{
    audit,
    http::{bad_expiry, lists, no_scope},
    keys::{self, NewKey},
    lag::lag,
    limits::{self, NewQuota},
    messages::{self, object},
    providers,
    service::{Deps, Page, preview},
    switches, templates, tenants,
    views::{PreviewBody, PreviewUser},
};

/// The services of the control plane.
pub fn services(deps: Deps) -> (TemplatesServer<TemplatesService>, AdminServer<AdminService>) {
    (TemplatesServer::new(TemplatesService::new(deps.clone())), AdminServer::new(AdminService::new(deps)))
}

/// `herald.v1.Templates`.
pub struct TemplatesService(Deps);

/// `herald.v1.Admin`.
pub struct AdminService(Deps);

impl TemplatesService {
    /// The service.
    pub fn new(deps: Deps) -> Self {
        Self(deps)
    }
}

impl AdminService {
    /// The service.
    pub fn new(deps: Deps) -> Self {
        Self(deps)
    }
}

/// A call whose caller is known.
struct Call<T> {
    caller: Caller,
    message: T,
}

/// Finds out who calls, answers, and words a refusal.
async fn answer<T, R>(
    deps: &Deps,
    request: Request<T>,
    decide: impl AsyncFnOnce(Call<T>) -> Result<R, Problem>,
) -> Result<Response<R>, Status> {
    let (metadata, extensions, message) = request.into_parts();
    let answered = match deps.authenticator.authenticate_call(&metadata.into_headers(), &extensions) {
        Ok(Authenticated { caller, .. }) => decide(Call { caller, message }).await,
        Err(problem) => Err(problem),
    };
    answered.map(Response::new).map_err(|problem| status(&problem, RequestId::text(&extensions)))
}

#[tonic::async_trait]
impl Templates for TemplatesService {
    async fn put_template(
        &self,
        request: Request<v1::PutTemplateRequest>,
    ) -> Result<Response<v1::PutTemplateResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::PutTemplateRequest>| {
            let tenant = call.caller.require(Scope::Templates)?;
            let (template_id, publish) = (call.message.template_id.clone(), call.message.publish.unwrap_or(true));
            let source = messages::source(call.message);
            let stored = templates::put(&self.0.publisher, tenant, &template_id, source, publish).await?;
            Ok(v1::PutTemplateResponse { template_id, version: stored.version, published: stored.published })
        })
        .await
    }

    async fn get_template(&self, request: Request<v1::GetTemplateRequest>) -> Result<Response<v1::Template>, Status> {
        answer(&self.0, request, async |call: Call<v1::GetTemplateRequest>| {
            let tenant = call.caller.require(Scope::Templates)?;
            let v1::GetTemplateRequest { template_id, version } = call.message;
            Ok(messages::template(templates::get(&self.0.publisher, tenant, &template_id, version).await?))
        })
        .await
    }

    async fn list_templates(
        &self,
        request: Request<v1::ListTemplatesRequest>,
    ) -> Result<Response<v1::ListTemplatesResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::ListTemplatesRequest>| {
            let tenant = call.caller.require(Scope::Templates)?;
            let v1::ListTemplatesRequest { page_size, page_token } = call.message;
            let page = Page::open(lists::templates(tenant.as_str()), page_size, page_token.as_deref())?;
            let found = templates::list(&self.0.publisher, tenant, page.after.as_deref(), page.limit).await?;
            let next_page_token = page.next(found.len(), found.last().map(|last| last.row.template_id.as_str()));
            let templates = found.into_iter().map(messages::template).collect();
            Ok(v1::ListTemplatesResponse { templates, next_page_token })
        })
        .await
    }

    async fn preview_template(
        &self,
        request: Request<v1::PreviewTemplateRequest>,
    ) -> Result<Response<v1::PreviewTemplateResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::PreviewTemplateRequest>| {
            let tenant = call.caller.require(Scope::Templates)?;
            let (template_id, body) = preview_body(call.message);
            let rendered = preview(&self.0, tenant, &template_id, body).await?;
            Ok(v1::PreviewTemplateResponse {
                channel: rendered.channel.into(),
                version: rendered.version,
                parts: rendered.parts,
            })
        })
        .await
    }

    async fn publish_template(
        &self,
        request: Request<v1::TemplateVersionRequest>,
    ) -> Result<Response<v1::PutTemplateResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::TemplateVersionRequest>| {
            let tenant = call.caller.require(Scope::Templates)?;
            let v1::TemplateVersionRequest { template_id, version } = call.message;
            let head = templates::publish(&self.0.publisher, tenant, &template_id, version).await?;
            Ok(live(template_id, &head))
        })
        .await
    }

    async fn rollback_template(
        &self,
        request: Request<v1::TemplateVersionRequest>,
    ) -> Result<Response<v1::PutTemplateResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::TemplateVersionRequest>| {
            let tenant = call.caller.require(Scope::Templates)?;
            let v1::TemplateVersionRequest { template_id, version } = call.message;
            let head = templates::rollback(&self.0.publisher, tenant, &template_id, version).await?;
            Ok(live(template_id, &head))
        })
        .await
    }
}

/// The answer to a publication or a rollback.
fn live(template_id: String, head: &TemplateHead) -> v1::PutTemplateResponse {
    v1::PutTemplateResponse { template_id, version: head.live.unwrap_or_default(), published: true }
}

fn preview_body(request: v1::PreviewTemplateRequest) -> (String, PreviewBody) {
    let user = |user: v1::PutUserRequest| PreviewUser {
        user_id: Some(user.user_id).filter(|id| !id.is_empty()),
        locale: user.locale,
        time_zone: user.time_zone,
        attributes: user.attributes.map(object).unwrap_or_default(),
        endpoints: Vec::new(),
    };
    let body = PreviewBody {
        data: request.data.map(object),
        user: request.user.map(user),
        user_id: request.user_id,
        channel: Some(request.channel),
        locale: request.locale,
        version: request.version,
        template_id: None,
    };
    (request.template_id, body)
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn put_tenant(&self, request: Request<v1::Tenant>) -> Result<Response<v1::Tenant>, Status> {
        let mut answered = answer(&self.0, request, async |call: Call<v1::Tenant>| {
            call.caller.require_operator()?;
            let v1::Tenant { tenant_id, name, quota, version, .. } = call.message;
            let quota = quota.map(|quota| NewQuota { per_second: Some(quota.per_second), burst: quota.burst });
            let version = version.map(u64::from);
            Ok(messages::tenant(tenants::put(&self.0.publisher, &tenant_id, &name, quota, version).await?))
        })
        .await?;
        let note = audit::tenant_note(answered.get_ref());
        answered.extensions_mut().insert(note);
        Ok(answered)
    }

    async fn get_tenant(&self, request: Request<v1::GetTenantRequest>) -> Result<Response<v1::Tenant>, Status> {
        answer(&self.0, request, async |call: Call<v1::GetTenantRequest>| {
            call.caller.require_operator()?;
            Ok(messages::tenant(tenants::get(&self.0.publisher, &call.message.tenant_id).await?))
        })
        .await
    }

    async fn list_tenants(
        &self,
        request: Request<v1::ListTenantsRequest>,
    ) -> Result<Response<v1::ListTenantsResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::ListTenantsRequest>| {
            call.caller.require_operator()?;
            let v1::ListTenantsRequest { page_size, page_token } = call.message;
            let page = Page::open(lists::tenants(), page_size, page_token.as_deref())?;
            let found = tenants::list(&self.0.publisher, page.after.as_deref(), page.limit).await?;
            let next_page_token = page.next(found.len(), found.last().map(|(row, _)| row.tenant_id.as_str()));
            let tenants = found.into_iter().map(messages::tenant).collect();
            Ok(v1::ListTenantsResponse { tenants, next_page_token })
        })
        .await
    }

    async fn create_key(
        &self,
        request: Request<v1::CreateKeyRequest>,
    ) -> Result<Response<v1::CreateKeyResponse>, Status> {
        let (tenant_id, scopes) = (request.get_ref().tenant_id.clone(), request.get_ref().scopes.clone());
        let mut answered = answer(&self.0, request, async |call: Call<v1::CreateKeyRequest>| {
            call.caller.require_operator()?;
            let v1::CreateKeyRequest { tenant_id, name, scopes, expires_at } = call.message;
            let expires_ms = expires_at.map(|at| millis(&at).ok_or_else(bad_expiry)).transpose()?;
            let created = keys::create(&self.0.publisher, NewKey { tenant_id, name, scopes, expires_ms }).await?;
            Ok(v1::CreateKeyResponse { key_id: created.key_id, key: created.key })
        })
        .await?;
        let note = audit::key_note(&answered.get_ref().key_id, tenant_id, &scopes);
        answered.extensions_mut().insert(note);
        Ok(answered)
    }

    async fn list_keys(&self, request: Request<v1::ListKeysRequest>) -> Result<Response<v1::ListKeysResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::ListKeysRequest>| {
            call.caller.require_operator()?;
            let v1::ListKeysRequest { tenant_id, page_size, page_token } = call.message;
            let tenant = tenant_id.as_deref();
            let page = Page::open(lists::keys(tenant), page_size, page_token.as_deref())?;
            let (rows, next) = keys::list(&self.0.publisher, tenant, page.after.as_deref(), page.limit).await?;
            let next_page_token = page.token(next.as_deref());
            Ok(v1::ListKeysResponse { keys: rows.into_iter().map(messages::key).collect(), next_page_token })
        })
        .await
    }

    async fn delete_key(
        &self,
        request: Request<v1::DeleteKeyRequest>,
    ) -> Result<Response<v1::DeleteKeyResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::DeleteKeyRequest>| {
            call.caller.require_operator()?;
            keys::delete(&self.0.publisher, &call.message.key_id).await?;
            Ok(v1::DeleteKeyResponse {})
        })
        .await
    }

    async fn list_dead_letters(
        &self,
        request: Request<v1::ListDeadLettersRequest>,
    ) -> Result<Response<v1::ListDeadLettersResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::ListDeadLettersRequest>| {
            call.caller.require_operator()?;
            self.0.dead_letters.list(call.message).await
        })
        .await
    }

    async fn get_dead_letter(
        &self,
        request: Request<v1::GetDeadLetterRequest>,
    ) -> Result<Response<v1::DeadLetter>, Status> {
        answer(&self.0, request, async |call: Call<v1::GetDeadLetterRequest>| {
            call.caller.require_operator()?;
            self.0.dead_letters.get(&call.message.id).await
        })
        .await
    }

    async fn put_provider(&self, request: Request<v1::PutProviderRequest>) -> Result<Response<v1::Provider>, Status> {
        let mut answered = answer(&self.0, request, async |call: Call<v1::PutProviderRequest>| {
            call.caller.require_operator()?;
            providers::put(&self.0, call.message).await
        })
        .await?;
        let note = providers::note_of(answered.get_ref());
        answered.extensions_mut().insert(note);
        Ok(answered)
    }

    async fn get_provider(&self, request: Request<v1::GetProviderRequest>) -> Result<Response<v1::Provider>, Status> {
        answer(&self.0, request, async |call: Call<v1::GetProviderRequest>| {
            call.caller.require_operator()?;
            providers::get(&self.0.publisher, &call.message.name).await
        })
        .await
    }

    async fn list_providers(
        &self,
        request: Request<v1::ListProvidersRequest>,
    ) -> Result<Response<v1::ListProvidersResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::ListProvidersRequest>| {
            call.caller.require_operator()?;
            let v1::ListProvidersRequest { page_size, page_token } = call.message;
            let page = Page::open(lists::providers(), page_size, page_token.as_deref())?;
            let providers = providers::list(&self.0.publisher, page.after.as_deref(), page.limit).await?;
            let next_page_token = page.next(providers.len(), providers.last().map(|last| last.name.as_str()));
            Ok(v1::ListProvidersResponse { providers, next_page_token })
        })
        .await
    }

    async fn delete_provider(
        &self,
        request: Request<v1::DeleteProviderRequest>,
    ) -> Result<Response<v1::DeleteProviderResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::DeleteProviderRequest>| {
            call.caller.require_operator()?;
            providers::delete(&self.0, &call.message.name).await
        })
        .await
    }

    async fn put_switch(
        &self,
        request: Request<v1::PutSwitchRequest>,
    ) -> Result<Response<v1::PutSwitchResponse>, Status> {
        let mut answered = answer(&self.0, request, async |call: Call<v1::PutSwitchRequest>| {
            let operator = call.caller.require_operator()?;
            switches::put(&self.0, operator, call.message).await
        })
        .await?;
        let note = switches::note_of(answered.get_ref());
        answered.extensions_mut().insert(note);
        Ok(answered)
    }

    async fn list_switches(
        &self,
        request: Request<v1::ListSwitchesRequest>,
    ) -> Result<Response<v1::ListSwitchesResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::ListSwitchesRequest>| {
            call.caller.require_operator()?;
            let v1::ListSwitchesRequest { page_size, page_token } = call.message;
            let page = Page::open(lists::switches(), page_size, page_token.as_deref())?;
            let switches = switches::list(&self.0, page.after.as_deref(), page.limit).await;
            let next_page_token = page.next(switches.len(), switches.last().map(|last| last.id.as_str()));
            Ok(v1::ListSwitchesResponse { switches, next_page_token })
        })
        .await
    }

    async fn redrive_dead_letters(
        &self,
        request: Request<v1::RedriveDeadLettersRequest>,
    ) -> Result<Response<v1::Redrive>, Status> {
        answer(&self.0, request, async |call: Call<v1::RedriveDeadLettersRequest>| {
            call.caller.require_operator()?;
            self.0.dead_letters.redrive(call.message).await
        })
        .await
    }

    async fn delete_switch(
        &self,
        request: Request<v1::DeleteSwitchRequest>,
    ) -> Result<Response<v1::DeleteSwitchResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::DeleteSwitchRequest>| {
            call.caller.require_operator()?;
            switches::delete(&self.0, &call.message.id).await
        })
        .await
    }

    async fn get_redrive(&self, request: Request<v1::GetRedriveRequest>) -> Result<Response<v1::Redrive>, Status> {
        answer(&self.0, request, async |call: Call<v1::GetRedriveRequest>| {
            call.caller.require_operator()?;
            self.0.dead_letters.progress(&call.message.redrive_id).await
        })
        .await
    }

    async fn get_lag(&self, request: Request<v1::GetLagRequest>) -> Result<Response<v1::Lag>, Status> {
        answer(&self.0, request, async |call: Call<v1::GetLagRequest>| {
            call.caller.require_operator()?;
            let dead_letters = &self.0.dead_letters;
            lag(dead_letters.log(), dead_letters.now_ms(), call.message.partitions()).await
        })
        .await
    }

    async fn put_limit(&self, request: Request<v1::PutLimitRequest>) -> Result<Response<v1::Limit>, Status> {
        let mut answered = answer(&self.0, request, async |call: Call<v1::PutLimitRequest>| {
            call.caller.require_operator()?;
            let v1::PutLimitRequest { scope, per_second, burst } = call.message;
            let scope = messages::limit_scope(scope.ok_or_else(no_scope)?);
            Ok(messages::limit(limits::put(&self.0.publisher, scope, NewQuota { per_second, burst }).await?))
        })
        .await?;
        let note = audit::limit_note(answered.get_ref());
        answered.extensions_mut().insert(note);
        Ok(answered)
    }

    async fn list_limits(
        &self,
        request: Request<v1::ListLimitsRequest>,
    ) -> Result<Response<v1::ListLimitsResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::ListLimitsRequest>| {
            call.caller.require_operator()?;
            let v1::ListLimitsRequest { page_size, page_token } = call.message;
            let page = Page::open(lists::limits(), page_size, page_token.as_deref())?;
            let found = limits::list(&self.0.publisher, page.after.as_deref(), page.limit).await?;
            let next_page_token = page.next(found.len(), found.last().map(|(row, _)| row.id.as_str()));
            let limits = found.into_iter().map(messages::limit).collect();
            Ok(v1::ListLimitsResponse { limits, next_page_token })
        })
        .await
    }

    async fn delete_limit(
        &self,
        request: Request<v1::DeleteLimitRequest>,
    ) -> Result<Response<v1::DeleteLimitResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::DeleteLimitRequest>| {
            call.caller.require_operator()?;
            limits::delete(&self.0.publisher, &call.message.id).await?;
            Ok(v1::DeleteLimitResponse {})
        })
        .await
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        answer(&self.0, request, async |call: Call<v1::ListAuditRequest>| {
            call.caller.require_operator()?;
            audit::list(&self.0, call.message).await
        })
        .await
    }
}
