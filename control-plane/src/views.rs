//! The JSON of templates, tenants, keys and limits, as `api.md`'s HTTP face has it: every field is there, also when it is false.
//!
//! A body has the name of its message, whose fields tell what is said of a value that does not fit.

use std::collections::BTreeMap;

use herald_api::time::timestamp;
use herald_core::{
    limits::{LimitRow, LimitScope},
    policy::{KeyRow, QuotaRow, TenantRow},
    templates::{ChannelSources, LocaleSource, TemplateSource},
};
use pbjson_types::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    limits::NewQuota,
    templates::{Found, Preview},
};

/// The body of `PUT /v1/templates/{template_id}`: a [`TemplateSource`], and the fields that gRPC's message has besides.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename = "herald.v1.PutTemplateRequest")]
pub struct TemplateBody {
    /// As in the path, if given.
    pub template_id: Option<String>,
    /// True unless said.
    pub publish: Option<bool>,
    channels: ChannelSources,
    category: Option<String>,
    locales: BTreeMap<String, LocaleSource>,
    default_locale: Option<String>,
    data_schema: Option<Value>,
    dedupe_window: Option<String>,
    partials: BTreeMap<String, String>,
}

impl From<TemplateBody> for TemplateSource {
    fn from(body: TemplateBody) -> Self {
        Self {
            channels: body.channels,
            category: body.category,
            locales: body.locales,
            default_locale: body.default_locale,
            data_schema: body.data_schema,
            dedupe_window: body.dedupe_window,
            partials: body.partials,
        }
    }
}

/// The answer to an upload, a publication and a rollback.
#[derive(Debug, Serialize)]
pub struct StoredView {
    /// Which template.
    pub template_id: String,
    /// The version stored, or now live.
    pub version: u32,
    /// Whether it is live.
    pub published: bool,
}

/// The answer to what is done with a template.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum ActionView {
    /// A version is live now.
    Live(StoredView),
    /// A message was rendered.
    Previewed(PreviewView),
}

/// A version of a template.
#[derive(Debug, Serialize)]
pub struct TemplateView {
    template_id: String,
    version: u32,
    published: bool,
    channels: ChannelSources,
    category: Option<String>,
    locales: BTreeMap<String, LocaleSource>,
    default_locale: Option<String>,
    data_schema: Option<Value>,
    dedupe_window: Option<String>,
    created_at: Timestamp,
    live_version: Option<u32>,
    partials: BTreeMap<String, String>,
}

/// A page of templates.
#[derive(Debug, Serialize)]
pub struct TemplatesView {
    /// In the order of ids.
    pub templates: Vec<TemplateView>,
    /// Empty at the end.
    pub next_page_token: String,
}

/// The body of a preview.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename = "herald.v1.PreviewTemplateRequest")]
pub struct PreviewBody {
    /// As in the path, if given.
    pub template_id: Option<String>,
    /// The notification's data.
    pub data: Option<serde_json::Map<String, Value>>,
    /// For whom, as in a `PUT` of a user; sample values where it is left away.
    pub user: Option<PreviewUser>,
    /// For which registered user.
    pub user_id: Option<String>,
    /// The channel's name; the template's first unless set.
    pub channel: Option<String>,
    /// Instead of the user's.
    pub locale: Option<String>,
    /// The live version unless set.
    pub version: Option<u32>,
}

/// A made-up user.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreviewUser {
    /// The user id.
    pub user_id: Option<String>,
    /// BCP 47 language tag.
    pub locale: Option<String>,
    /// IANA time zone.
    pub time_zone: Option<String>,
    /// Free attributes.
    pub attributes: serde_json::Map<String, Value>,
    /// Taken and not looked at.
    pub endpoints: Vec<Value>,
}

/// A rendered message.
#[derive(Debug, Serialize)]
pub struct PreviewView {
    /// The channel's name.
    pub channel: &'static str,
    /// The version that was rendered.
    pub version: u32,
    /// The parts by name.
    pub parts: BTreeMap<String, String>,
}

/// The body of a publication or a rollback.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename = "herald.v1.TemplateVersionRequest")]
pub struct VersionBody {
    /// As in the path, if given.
    pub template_id: Option<String>,
    /// Which version.
    pub version: Option<u32>,
}

/// The body of `PUT /v1/admin/tenants/{tenant_id}`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename = "herald.v1.Tenant")]
pub struct TenantBody {
    /// As in the path, if given.
    pub tenant_id: Option<String>,
    /// For people; the id unless set.
    pub name: String,
    /// How many notifications it may hand over; as many as it likes unless set.
    pub quota: Option<QuotaBody>,
    /// The version that must be the stored one, 0 for none; any unless set.
    pub version: Option<u32>,
}

/// A rate and a burst.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaBody {
    /// Required.
    pub per_second: Option<f64>,
    /// What comes in a second, and at least 1, unless set.
    pub burst: Option<u64>,
}

impl From<QuotaBody> for NewQuota {
    fn from(QuotaBody { per_second, burst }: QuotaBody) -> Self {
        Self { per_second, burst }
    }
}

/// The body of `PUT /v1/admin/limits`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename = "herald.v1.PutLimitRequest")]
pub struct LimitBody {
    /// Required; `{}` is about everything.
    pub scope: Option<ScopeBody>,
    /// Required.
    pub per_second: Option<f64>,
    /// What comes in a second, and at least 1, unless set.
    pub burst: Option<u64>,
}

/// The scope of a limit.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScopeBody {
    tenant: Option<String>,
    template: Option<String>,
    channel: Option<String>,
    provider: Option<String>,
}

impl From<ScopeBody> for LimitScope {
    fn from(ScopeBody { tenant, template, channel, provider }: ScopeBody) -> Self {
        Self { tenant, template, channel, provider }
    }
}

/// A limit.
#[derive(Debug, Serialize)]
pub struct LimitView {
    id: String,
    scope: ScopeView,
    per_second: f64,
    burst: u64,
    version: u64,
    created_at: Timestamp,
    updated_at: Timestamp,
}

/// The scope of a limit.
#[derive(Debug, Serialize)]
pub struct ScopeView {
    tenant: Option<String>,
    template: Option<String>,
    channel: Option<String>,
    provider: Option<String>,
}

/// A page of limits.
#[derive(Debug, Serialize)]
pub struct LimitsView {
    /// In the order of ids.
    pub limits: Vec<LimitView>,
    /// Empty at the end.
    pub next_page_token: String,
}

impl From<(LimitRow, u64)> for LimitView {
    fn from((row, version): (LimitRow, u64)) -> Self {
        let LimitScope { tenant, template, channel, provider } = row.scope;
        Self {
            id: row.id,
            scope: ScopeView { tenant, template, channel, provider },
            per_second: row.per_second,
            burst: row.burst,
            version,
            created_at: timestamp(row.created_ms),
            updated_at: timestamp(row.updated_ms),
        }
    }
}

/// A tenant.
#[derive(Debug, Serialize)]
pub struct TenantView {
    tenant_id: String,
    name: String,
    version: u64,
    created_at: Timestamp,
    updated_at: Timestamp,
    quota: Option<QuotaRow>,
}

/// A page of tenants.
#[derive(Debug, Serialize)]
pub struct TenantsView {
    /// In the order of ids.
    pub tenants: Vec<TenantView>,
    /// Empty at the end.
    pub next_page_token: String,
}

/// The body of `POST /v1/admin/keys`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename = "herald.v1.CreateKeyRequest")]
pub struct KeyBody {
    /// Absent for an operator's key.
    pub tenant_id: Option<String>,
    /// For people.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// RFC 3339; never unless set.
    pub expires_at: Option<Timestamp>,
}

/// A new key, shown once.
#[derive(Serialize)]
pub struct CreatedKeyView {
    /// Its public part.
    pub key_id: String,
    /// The whole key.
    pub key: String,
}

/// A key without its secret.
#[derive(Debug, Serialize)]
pub struct KeyView {
    key_id: String,
    tenant_id: Option<String>,
    name: String,
    scopes: Vec<String>,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
}

/// A page of keys.
#[derive(Debug, Serialize)]
pub struct KeysView {
    /// In the order of ids.
    pub keys: Vec<KeyView>,
    /// Empty at the end.
    pub next_page_token: String,
}

impl From<Found> for TemplateView {
    fn from(found: Found) -> Self {
        Self {
            published: found.published(),
            live_version: found.head.live,
            template_id: found.row.template_id,
            version: found.row.version,
            channels: found.row.source.channels,
            category: found.row.source.category,
            locales: found.row.source.locales,
            default_locale: found.row.source.default_locale,
            data_schema: found.row.source.data_schema,
            dedupe_window: found.row.source.dedupe_window,
            partials: found.row.source.partials,
            created_at: timestamp(found.row.created_ms),
        }
    }
}

impl From<Preview> for PreviewView {
    fn from(preview: Preview) -> Self {
        Self { channel: preview.channel, version: preview.version, parts: preview.parts }
    }
}

impl From<(TenantRow, u64)> for TenantView {
    fn from((row, version): (TenantRow, u64)) -> Self {
        Self {
            tenant_id: row.tenant_id,
            name: row.name,
            version,
            created_at: timestamp(row.created_ms),
            updated_at: timestamp(row.updated_ms),
            quota: row.quota,
        }
    }
}

impl From<KeyRow> for KeyView {
    fn from(row: KeyRow) -> Self {
        Self {
            key_id: row.key_id,
            tenant_id: row.tenant_id,
            name: row.name,
            scopes: row.scopes,
            created_at: timestamp(row.created_ms),
            expires_at: row.expires_ms.map(timestamp),
        }
    }
}

#[cfg(test)]
mod tests {
    use herald_api::json::parse;
    use serde::de::DeserializeOwned;

    use super::*;

    /// Only where the message of a body's name is found is there an example.
    #[test]
    fn each_body_is_explained_by_its_message() {
        fn detail<T: DeserializeOwned>(field: &str) -> String {
            let text = format!("{{\"{field}\": true}}");
            let problem = parse::<T>(text.as_bytes()).err().expect("it does not fit");
            problem.errors()[0].detail.clone()
        }
        for detail in [
            detail::<TemplateBody>("category"),
            detail::<PreviewBody>("locale"),
            detail::<VersionBody>("version"),
            detail::<TenantBody>("name"),
            detail::<LimitBody>("per_second"),
            detail::<KeyBody>("expires_at"),
        ] {
            assert!(detail.starts_with("Found true; expected a") && detail.contains(", such as "), "{detail}");
        }
    }
}
