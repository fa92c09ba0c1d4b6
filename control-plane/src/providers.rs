//! Providers: set, shown and removed by operators while everything runs.
//!
//! What is given is tried before it is stored, so that a slip of the pen holds nothing up. Credentials are sealed before
//! they are stored and never shown again: neither in answers nor in the audit log, nor on `control`.

use std::time::Duration;

use herald_api::{audit::AuditNote, time::timestamp};
use herald_core::{
    ids::{TenantId, channel_of_name, check_id},
    policy::kind,
    ports::channel::ProviderFault,
    problem::{FieldError, Problem},
    providers::{MAX_PROVIDERS, MAX_WEIGHT, ProviderRow},
    secrets::{Sealed, SecretKeys},
};
use herald_proto::v1;

use crate::{
    publisher::{Publisher, read, unwritable},
    reports,
    service::Deps,
};

/// How long a call waits until every process runs what it changed.
const APPLIED_WITHIN: Duration = Duration::from_secs(2);

/// The kinds of the API. The adapters say which of them they speak to.
const KINDS: [&str; 5] = ["smtp", "apns", "fcm", "web_push", "webhook"];

const MAX_URL_BYTES: usize = 2_048;
const MAX_CREDENTIALS_BYTES: usize = 16_384;
const MAX_TENANTS: usize = 1_000;

/// Sets a provider.
///
/// # Errors
/// 400 for what cannot be; 422 for an unknown tenant, a name of the configuration, a kind that is not built, a provider
/// that does not let us in, and credentials where nothing can seal them.
pub async fn put(deps: &Deps, asked: v1::PutProviderRequest) -> Result<v1::Provider, Problem> {
    let publisher = &deps.publisher;
    check_form(&asked)?;
    check_rules(deps, &asked)?;
    let now_ms = publisher.world().now_ms();
    let new = New { asked: &asked, keys: deps.keys.as_deref(), now_ms };
    let stored: Option<(ProviderRow, u64)> = publisher.get(kind::PROVIDER, &asked.name).await?;
    let tried = new.row(stored.map(|(row, _)| row))?;
    deps.opener.open(&tried).map_err(refusal)?;
    if asked.check.unwrap_or(true) {
        deps.opener.check(&tried).await.map_err(refusal)?;
    }
    let (row, version) = publisher.update(kind::PROVIDER, &asked.name, |stored| new.row(stored)).await?;
    Ok(v1::Provider { applied: Some(applied(deps).await), ..message((row, version)) })
}

/// A provider that operators set.
///
/// # Errors
/// 404 where there is none.
pub async fn get(publisher: &Publisher, name: &str) -> Result<v1::Provider, Problem> {
    publisher.get(kind::PROVIDER, name).await?.map(message).ok_or_else(|| Problem::not_found("provider"))
}

/// Providers after a name, in the order of names.
///
/// # Errors
/// 503 where the registry is away.
pub async fn list(publisher: &Publisher, after: Option<&str>, limit: usize) -> Result<Vec<v1::Provider>, Problem> {
    let stored = publisher.registry().list(kind::PROVIDER, "", after, limit).await?;
    let there = stored.into_iter().filter_map(|stored| Some((stored.value?, stored.version)));
    there.map(|(value, version)| Ok(message((read(kind::PROVIDER, &value)?, version)))).collect()
}

/// Removes a provider.
///
/// # Errors
/// 404 where there is none.
pub async fn delete(deps: &Deps, name: &str) -> Result<v1::DeleteProviderResponse, Problem> {
    deps.publisher.delete(kind::PROVIDER, name, "provider").await?;
    Ok(v1::DeleteProviderResponse { applied: Some(applied(deps).await) })
}

/// What the audit log says of a provider that was set.
pub(crate) fn note_of(set: &v1::Provider) -> AuditNote {
    let v1::Provider { name, channel, kind, url, weight, tenants, credentials_set, .. } = set;
    let mut detail = format!("{name}: {channel} by {kind} at {url} weight={weight} credentials_set={credentials_set}");
    if !tenants.is_empty() {
        detail += &format!(" tenants={}", tenants.join(","));
    }
    let tenant = match tenants.as_slice() {
        [only] => Some(only.clone()),
        _ => None,
    };
    AuditNote { tenant, detail }
}

async fn applied(deps: &Deps) -> v1::Applied {
    // This process has the change already, so whoever has this version has it too.
    let version = deps.publisher.policy().version;
    reports::applied(&*deps.fleet, deps.publisher.world(), version, APPLIED_WITHIN).await
}

fn message((row, version): (ProviderRow, u64)) -> v1::Provider {
    v1::Provider {
        name: row.name,
        channel: row.channel,
        kind: row.kind,
        url: row.url,
        credentials_set: row.credentials.is_some(),
        weight: row.weight,
        tenants: row.tenants.into_iter().collect(),
        version: u32::try_from(version).unwrap_or(u32::MAX),
        created_at: Some(timestamp(row.created_ms)),
        updated_at: Some(timestamp(row.updated_ms)),
        applied: None,
    }
}

/// What is set, for a provider that may be there already.
struct New<'a> {
    asked: &'a v1::PutProviderRequest,
    keys: Option<&'a SecretKeys>,
    now_ms: u64,
}

impl New<'_> {
    fn row(&self, stored: Option<ProviderRow>) -> Result<ProviderRow, Problem> {
        let asked = self.asked;
        let row = ProviderRow {
            name: asked.name.clone(),
            channel: asked.channel.clone(),
            kind: asked.kind.clone(),
            url: asked.url.clone(),
            credentials: None,
            weight: asked.weight.unwrap_or(1),
            tenants: asked.tenants.iter().cloned().collect(),
            revision: stored.as_ref().map_or(1, |stored| stored.revision.saturating_add(1)),
            created_ms: stored.as_ref().map_or(self.now_ms, |stored| stored.created_ms),
            updated_ms: self.now_ms,
        };
        let credentials = self.credentials(&row, stored)?;
        Ok(ProviderRow { credentials, ..row })
    }

    /// The credentials that were given, or those that were given before to the same address, sealed for this revision.
    fn credentials(&self, row: &ProviderRow, stored: Option<ProviderRow>) -> Result<Option<Sealed>, Problem> {
        let json = match &self.asked.credentials {
            Some(given) if given.fields.is_empty() => return Ok(None),
            Some(given) => serde_json::to_vec(given).map_err(|error| unwritable(&error))?,
            None => {
                let Some((stored, sealed)) = stored.as_ref().and_then(|s| Some((s, s.credentials.as_ref()?))) else {
                    return Ok(None);
                };
                // They must not go to somebody else.
                if (&stored.url, &stored.kind) != (&row.url, &row.kind) {
                    let detail = "The provider has credentials, and its address changes. Give them again, or `{}`.";
                    return Err(Problem::field("credentials", "required", detail));
                }
                let keys = self.keys.ok_or_else(no_keys)?;
                keys.open(&stored.secret_context(), sealed).map_err(|error| refusal(error.into()))?
            }
        };
        if json.len() > MAX_CREDENTIALS_BYTES {
            let detail = format!("Credentials have at most {MAX_CREDENTIALS_BYTES} bytes.");
            return Err(Problem::field("credentials", "too_long", detail));
        }
        let keys = self.keys.ok_or_else(no_keys)?;
        keys.seal(&row.secret_context(), &json).map(Some).map_err(|error| refusal(error.into()))
    }
}

fn check_form(asked: &v1::PutProviderRequest) -> Result<(), Problem> {
    let mut errors = Vec::new();
    let mut wrong = |field: &str, code, detail: String| errors.push(FieldError::new(field, code, detail));
    let code_of = |text: &str| if text.is_empty() { "required" } else { "invalid_value" };
    if let Err(error) = check_id("name", &asked.name) {
        wrong("name", code_of(&asked.name), error.0);
    }
    match channel_of_name(&asked.channel) {
        None => wrong("channel", code_of(&asked.channel), "The channels are email, push and webhook.".into()),
        Some(herald_core::record::Channel::InApp) => {
            wrong("channel", "invalid_value", "In-app messages go through no provider.".into());
        }
        Some(_) => {}
    }
    if !KINDS.contains(&asked.kind.as_str()) {
        wrong("kind", code_of(&asked.kind), format!("The kinds are {}.", KINDS.join(", ")));
    }
    if asked.url.is_empty() || asked.url.len() > MAX_URL_BYTES || asked.url.contains(char::is_control) {
        let detail = format!("Say where it is, such as smtp://mail.example.org:587, in at most {MAX_URL_BYTES} bytes.");
        wrong("url", code_of(&asked.url), detail);
    }
    if asked.weight.is_some_and(|weight| weight > MAX_WEIGHT) {
        wrong("weight", "out_of_range", format!("A weight is 0 (no messages) to {MAX_WEIGHT}."));
    }
    if asked.tenants.len() > MAX_TENANTS {
        wrong("tenants", "too_many", format!("At most {MAX_TENANTS} tenants; leave them away for everybody."));
    }
    for (i, tenant) in asked.tenants.iter().enumerate().take(MAX_TENANTS) {
        if let Err(error) = TenantId::parse(tenant) {
            wrong(&format!("tenants[{i}]"), "invalid_value", error.0);
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Problem::malformed(errors)) }
}

fn check_rules(deps: &Deps, asked: &v1::PutProviderRequest) -> Result<(), Problem> {
    let policy = deps.publisher.policy();
    let unknown = asked.tenants.iter().enumerate().filter(|(_, tenant)| policy.tenant_id(tenant).is_none());
    let unknown = unknown.map(|(i, tenant)| {
        FieldError::new(format!("tenants[{i}]"), "unknown_tenant", format!("There is no tenant {tenant}."))
    });
    let unknown: Vec<FieldError> = unknown.collect();
    if !unknown.is_empty() {
        let detail = "A provider can be for tenants that exist. Create the tenant first.";
        return Err(Problem::refused("unknown_tenant", detail).with_errors(unknown));
    }
    if policy.providers().is_configured(&asked.name) {
        let detail = format!("{} is the provider of the configuration. Choose another name.", asked.name);
        return Err(Problem::refused("name_taken", detail));
    }
    let set = policy.providers().iter().filter(|provider| provider.row.is_some()).count();
    if set >= MAX_PROVIDERS && policy.providers().get(&asked.name).is_none() {
        let detail = format!("There are {MAX_PROVIDERS} providers already. Delete those that are not needed.");
        return Err(Problem::refused("too_many_providers", detail));
    }
    Ok(())
}

fn no_keys() -> Problem {
    let detail = "Credentials are sealed before they are stored, and this process has no key for it. Make one with \
                  `(umask 077; head -c 32 /dev/urandom | base64 > herald.key)`, set `secrets.key_file` to it in every \
                  process, and start again.";
    Problem::refused("no_secret_keys", detail)
}

fn refusal(fault: ProviderFault) -> Problem {
    let detail = format!("The provider was not set: {fault}.");
    match fault {
        ProviderFault::Setting { field, detail } => Problem::field(field, "invalid_value", detail),
        ProviderFault::NotBuilt(_) => Problem::refused("provider_kind_not_built", detail),
        ProviderFault::NoKeys => no_keys(),
        ProviderFault::Sealed(_) => {
            Problem::refused("credentials_unreadable", format!("{detail} Give the credentials again."))
        }
        ProviderFault::SignIn(_) => {
            let detail = format!("{detail} Check user name and password.");
            Problem::refused("provider_credentials_refused", detail)
        }
        ProviderFault::Unreachable(_) => {
            let detail = format!("{detail} Check host and port; with `check` false it is set all the same.");
            Problem::refused("provider_unreachable", detail)
        }
        ProviderFault::Tls(_) => Problem::refused("provider_tls", detail),
        ProviderFault::Refused(_) => Problem::refused("provider_refused", detail),
    }
}
