//! What the scopes of switches and limits name must be there.

use herald_core::{
    ids::TenantId,
    policy::Policy,
    problem::{FieldError, Problem},
};

/// What of a scope nothing fits, for a `what` that would do nothing. Such a scope is a slip of the pen: who thinks that
/// they have stopped or slowed something must not be wrong. A draft is a template, and a provider of no weight is one, so
/// either can be steered before it is used.
pub(crate) fn unknown(
    policy: &Policy,
    what: &str,
    tenant: Option<&str>,
    template: Option<&str>,
    provider: Option<&str>,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut unknown = |field: &str, which: &str| {
        let detail = format!("There is no such {field}: the {what} would do nothing.{which}");
        errors.push(FieldError::new(format!("scope.{field}"), "unknown", detail));
    };
    let tenant = tenant.map(|tenant| policy.tenant_id(tenant));
    if let Some(None) = tenant {
        unknown("tenant", "");
    }
    if let Some(template) = template {
        let has = |tenant: &TenantId| policy.template_head(tenant, template).is_some();
        let is_known = match tenant {
            Some(Some(tenant)) => has(tenant),
            Some(None) => true,
            None => policy.tenant_ids().any(has),
        };
        if !is_known {
            unknown("template", " `GET /v1/templates` lists a tenant's, drafts too.");
        }
    }
    if provider.is_some_and(|provider| policy.providers().get(provider).is_none()) {
        let names: Vec<&str> = policy.providers().iter().map(|provider| &*provider.name).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        unknown("provider", &format!(" Those that there are: {names}."));
    }
    errors
}

/// 422 for a `what` with such a scope.
pub(crate) fn matches_nothing(what: &str, errors: Vec<FieldError>) -> Problem {
    Problem::refused("scope_matches_nothing", format!("Nothing fits the scope; the {what} was not set."))
        .with_errors(errors)
}
