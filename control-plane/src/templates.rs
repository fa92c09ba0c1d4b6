//! Templates: versions, drafts, which one is live, and previews.

use std::collections::BTreeMap;

use herald_core::{
    ids::{TenantId, check_id},
    policy::{TemplateHead, TemplateRow, kind, template_head_key, template_row_key},
    ports::registry::Written,
    problem::{FieldError, Problem},
    templates::{
        Channel, CompileError, Limits, Message, PersonContext, RenderError, Rendered, SharedContext, Template,
        TemplateSource, TenantContext, UserContext,
    },
};
use serde_json::Value;

use crate::publisher::{Publisher, contended, read, unwritable};

/// How many former live versions are remembered.
const MAX_PREVIOUS: usize = 16;
/// Attempts to find a free version number next to other writers.
const MAX_ATTEMPTS: u32 = 64;

/// What became of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The new version, from 1.
    pub version: u32,
    /// Whether it is live.
    pub published: bool,
}

/// A version of a template and which one is live.
#[derive(Debug, Clone)]
pub struct Found {
    /// The version.
    pub row: TemplateRow,
    /// Its template's head.
    pub head: TemplateHead,
}

impl Found {
    /// Whether this version is the live one.
    pub fn published(&self) -> bool {
        self.head.live == Some(self.row.version)
    }
}

/// What a preview is made of.
#[derive(Debug, Clone)]
pub struct PreviewRequest<'a> {
    /// The channel's name; the template's first unless set.
    pub channel: Option<&'a str>,
    /// The live version unless set.
    pub version: Option<u32>,
    /// The user's locale unless set.
    pub locale: Option<&'a str>,
    /// The notification's data.
    pub data: &'a Value,
    /// For whom.
    pub user: PersonContext<'a>,
}

/// A rendered message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// The channel's name.
    pub channel: &'static str,
    /// The version that was rendered.
    pub version: u32,
    /// Its parts by name.
    pub parts: BTreeMap<String, String>,
}

/// Stores a new version, and makes it live if `publish` says so.
///
/// Refused with line and column where it does not compile. Two uploads at once get different versions.
pub async fn put(
    publisher: &Publisher,
    tenant: &TenantId,
    id: &str,
    source: TemplateSource,
    publish: bool,
) -> Result<Stored, Problem> {
    check_template_id(id)?;
    check(&source)?;
    let version = put_row(publisher, tenant, id, source).await?;
    let (head, _) = publisher
        .update(kind::TEMPLATE_HEAD, &template_head_key(tenant, id), |head: Option<TemplateHead>| {
            let mut head = head.unwrap_or_default();
            // A later upload that was faster stays live.
            if publish && head.live.is_none_or(|live| live < version) {
                go_live(&mut head, version);
            }
            head.latest = head.latest.max(version);
            Ok(head)
        })
        .await?;
    Ok(Stored { version, published: head.live == Some(version) })
}

/// Stores the row under the next free number. A number is taken by another writer, or by one that died before it
/// could tell the head.
async fn put_row(publisher: &Publisher, tenant: &TenantId, id: &str, source: TemplateSource) -> Result<u32, Problem> {
    let head: Option<(TemplateHead, u64)> = publisher.get(kind::TEMPLATE_HEAD, &template_head_key(tenant, id)).await?;
    let first = head.map_or(0, |(head, _)| head.latest) + 1;
    let mut row = TemplateRow {
        tenant_id: tenant.to_string(),
        template_id: id.to_owned(),
        version: first,
        source,
        created_ms: publisher.world().now_ms(),
    };
    for version in first..first + MAX_ATTEMPTS {
        row.version = version;
        let value = serde_json::to_vec(&row).map_err(|error| unwritable(&error))?;
        let key = template_row_key(tenant, id, version);
        if let Written::Done(_) = publisher.put(kind::TEMPLATE, &key, Some(value.into()), 0).await? {
            return Ok(version);
        }
    }
    Err(contended())
}

fn go_live(head: &mut TemplateHead, version: u32) {
    if head.live == Some(version) {
        return;
    }
    head.previous.extend(head.live);
    head.previous.drain(..head.previous.len().saturating_sub(MAX_PREVIOUS));
    head.live = Some(version);
}

/// A version: the named one, else the live one, else the newest draft.
pub async fn get(publisher: &Publisher, tenant: &TenantId, id: &str, version: Option<u32>) -> Result<Found, Problem> {
    let head: Option<(TemplateHead, u64)> = publisher.get(kind::TEMPLATE_HEAD, &template_head_key(tenant, id)).await?;
    let (head, _) = head.ok_or_else(|| Problem::not_found("template"))?;
    let version = version.or(head.live).unwrap_or(head.latest);
    let row: Option<(TemplateRow, u64)> = publisher.get(kind::TEMPLATE, &template_row_key(tenant, id, version)).await?;
    let (row, _) = row.ok_or_else(|| Problem::not_found("version of this template"))?;
    Ok(Found { row, head })
}

/// A tenant's templates after a template id, in the order of ids, each in its live version or else its newest draft.
pub async fn list(
    publisher: &Publisher,
    tenant: &TenantId,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<Found>, Problem> {
    let prefix = template_head_key(tenant, "");
    let after = after.map(|id| template_head_key(tenant, id));
    let heads = publisher.registry().list(kind::TEMPLATE_HEAD, &prefix, after.as_deref(), limit).await?;
    let mut found = Vec::with_capacity(heads.len());
    for stored in heads {
        let (Some(value), Some(id)) = (stored.value, stored.key.strip_prefix(&prefix)) else { continue };
        let head: TemplateHead = read(kind::TEMPLATE_HEAD, &value)?;
        let version = head.live.unwrap_or(head.latest);
        if let Some((row, _)) = publisher.get(kind::TEMPLATE, &template_row_key(tenant, id, version)).await? {
            found.push(Found { row, head });
        }
    }
    Ok(found)
}

/// Makes a version live, the newest unless one is named.
pub async fn publish(
    publisher: &Publisher,
    tenant: &TenantId,
    id: &str,
    version: Option<u32>,
) -> Result<TemplateHead, Problem> {
    let newest = get(publisher, tenant, id, version).await?.head.latest;
    let version = version.unwrap_or(newest);
    // What an earlier release took may not compile any more.
    check(&get(publisher, tenant, id, Some(version)).await?.row.source)?;
    change_head(publisher, tenant, id, |head| {
        go_live(head, version);
        head.latest = head.latest.max(version);
        Ok(())
    })
    .await
}

/// Makes a former version live again: the named one, or the one that was live before.
pub async fn rollback(
    publisher: &Publisher,
    tenant: &TenantId,
    id: &str,
    version: Option<u32>,
) -> Result<TemplateHead, Problem> {
    if version.is_some() {
        return self::publish(publisher, tenant, id, version).await;
    }
    change_head(publisher, tenant, id, |head| {
        let nothing = || Problem::refused("nothing_to_roll_back", "No other version of this template was live before.");
        head.live = Some(head.previous.pop().ok_or_else(nothing)?);
        Ok(())
    })
    .await
}

async fn change_head(
    publisher: &Publisher,
    tenant: &TenantId,
    id: &str,
    mut change: impl FnMut(&mut TemplateHead) -> Result<(), Problem>,
) -> Result<TemplateHead, Problem> {
    let decide = |head: Option<TemplateHead>| {
        let mut head = head.ok_or_else(|| Problem::not_found("template"))?;
        change(&mut head)?;
        Ok(head)
    };
    Ok(publisher.update(kind::TEMPLATE_HEAD, &template_head_key(tenant, id), decide).await?.0)
}

/// Renders a message as a user would get it. Nothing is sent.
pub async fn preview(
    publisher: &Publisher,
    tenant: &TenantId,
    id: &str,
    request: &PreviewRequest<'_>,
) -> Result<Preview, Problem> {
    let found = get(publisher, tenant, id, request.version).await?;
    let template = check(&found.row.source)?;
    let channel = match request.channel {
        Some(name) => Channel::ALL.into_iter().find(|channel| channel.as_str() == name).ok_or_else(|| {
            Problem::field("channel", "invalid_value", "The channel is `in_app`, `email`, `push` or `webhook`.")
        })?,
        None => template.channels().next().ok_or_else(|| Problem::not_found("channel of this template"))?,
    };
    template.check_data(request.data).map_err(|errors| {
        let fields = errors
            .into_iter()
            .map(|error| FieldError::new(format!("/data{}", error.pointer), "data_schema", error.detail))
            .collect();
        Problem::refused("template_data", "`data` does not fit the template's data schema.").with_errors(fields)
    })?;
    let policy = publisher.policy();
    let name = policy.tenant(tenant).map_or("", |row| row.name.as_str());
    let shared = SharedContext { data: request.data, actor: None, tenant: TenantContext { id: tenant.as_str(), name } };
    let locale = request.locale.or(request.user.locale);
    let user = UserContext {
        id: request.user.id,
        locale,
        time_zone: request.user.time_zone,
        attributes: request.user.attributes,
        unsubscribe_url: Some("https://unsubscribe.invalid/preview"),
    };
    let mut rendered = Rendered::new();
    template
        .prepare(channel, locale, &shared)
        .and_then(|prepared| prepared.render(&user, &mut rendered))
        .map_err(|error| render_problem(&error))?;
    Ok(Preview { channel: channel.as_str(), version: found.row.version, parts: parts(&rendered) })
}

fn render_problem(error: &RenderError) -> Problem {
    let fields = match error {
        RenderError::Data { field, path, problem } => {
            vec![FieldError::new(*field, error.code(), format!("`{path}` {problem}"))]
        }
        RenderError::Limit { field, .. } => vec![FieldError::new(*field, error.code(), error.to_string())],
        RenderError::NoChannel { .. } => vec![FieldError::new("channel", error.code(), error.to_string())],
    };
    Problem::refused(error.code(), error.to_string()).with_errors(fields)
}

fn parts(rendered: &Rendered) -> BTreeMap<String, String> {
    let named = match rendered.message() {
        None => vec![],
        Some(Message::InApp { title, body }) => vec![("title", title), ("body", body)],
        Some(Message::Email { subject, text, html }) => vec![("subject", subject), ("text", text), ("html", html)],
        Some(Message::Push { title, body, data }) => vec![("title", title), ("body", body), ("data", data)],
        Some(Message::Webhook { body }) => vec![("body", body)],
    };
    named.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.to_owned()))).collect()
}

fn check(source: &TemplateSource) -> Result<Template, Problem> {
    Template::compile(source, &Limits::default()).map_err(|errors| {
        let detail = format!("The template does not compile: {} error(s).", errors.len());
        let field = |error: CompileError| {
            let detail = format!("line {}, column {}: {}", error.line, error.column, error.message);
            FieldError::new(error.field, error.code.as_str(), detail)
        };
        Problem::refused("template_invalid", detail).with_errors(errors.into_iter().map(field).collect())
    })
}

fn check_template_id(id: &str) -> Result<(), Problem> {
    check_id("template_id", id).map_err(|error| Problem::field("template_id", "invalid_id", error.to_string()))
}
