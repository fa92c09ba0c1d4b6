//! Templates, tenants, keys and limits as messages of `herald.v1`.

use herald_api::time::timestamp;
use herald_core::{
    limits::{LimitRow, LimitScope},
    policy::{KeyRow, QuotaRow, TenantRow},
    templates::{ChannelSources, EmailSource, InAppSource, LocaleSource, PushSource, TemplateSource, WebhookSource},
};
use herald_proto::v1;
use pbjson_types::{Duration, Struct, value::Kind};
use serde_json::{Map, Number, Value};

use crate::templates::Found;

/// Values nested deeper than this are cut off; the API refuses them before.
const MAX_DEPTH: usize = 64;

/// What an upload says.
pub fn source(request: v1::PutTemplateRequest) -> TemplateSource {
    TemplateSource {
        channels: request.channels.map(channels).unwrap_or_default(),
        category: request.category,
        locales: request
            .locales
            .into_iter()
            .map(|(tag, locale)| (tag, LocaleSource { channels: locale.channels.map(channels).unwrap_or_default() }))
            .collect(),
        default_locale: request.default_locale,
        data_schema: request.data_schema.map(object).map(Value::Object),
        dedupe_window: request.dedupe_window.map(|window| match window.nanos {
            0 => format!("{}s", window.seconds),
            // The compiler refuses it, with the reason.
            nanos => format!("{}.{nanos:09}s", window.seconds),
        }),
        partials: request.partials,
    }
}

fn channels(channels: v1::TemplateChannels) -> ChannelSources {
    ChannelSources {
        in_app: channels.in_app.map(|m| InAppSource { title: m.title, body: m.body }),
        email: channels.email.map(|m| EmailSource { subject: m.subject, text: m.text, html: m.html }),
        push: channels.push.map(|m| PushSource { title: m.title, body: m.body, data: m.data.map(value) }),
        webhook: channels.webhook.map(|m| WebhookSource { body: m.body.map(Value::String) }),
    }
}

/// A version of a template.
pub fn template(found: Found) -> v1::Template {
    let published = found.published();
    let (row, head) = (found.row, found.head);
    v1::Template {
        template_id: row.template_id,
        version: row.version,
        published,
        channels: Some(channels_message(row.source.channels)),
        category: row.source.category,
        locales: row
            .source
            .locales
            .into_iter()
            .map(|(tag, locale)| (tag, v1::TemplateLocale { channels: Some(channels_message(locale.channels)) }))
            .collect(),
        default_locale: row.source.default_locale,
        data_schema: row.source.data_schema.and_then(|schema| match schema {
            Value::Object(schema) => Some(struct_message(schema)),
            _ => None,
        }),
        dedupe_window: row
            .source
            .dedupe_window
            .as_deref()
            .and_then(|window| Some(Duration { seconds: window.strip_suffix('s')?.parse().ok()?, nanos: 0 })),
        created_at: Some(timestamp(row.created_ms)),
        live_version: head.live,
        partials: row.source.partials,
    }
}

fn channels_message(channels: ChannelSources) -> v1::TemplateChannels {
    let text = |value: Value| match value {
        Value::String(text) => text,
        json => json.to_string(),
    };
    v1::TemplateChannels {
        in_app: channels.in_app.map(|m| v1::InAppTemplate { title: m.title, body: m.body }),
        email: channels.email.map(|m| v1::EmailTemplate { subject: m.subject, text: m.text, html: m.html }),
        push: channels.push.map(|m| v1::PushTemplate { title: m.title, body: m.body, data: m.data.map(value_message) }),
        webhook: channels.webhook.map(|m| v1::WebhookTemplate { body: m.body.map(text) }),
    }
}

/// A tenant and its version.
pub fn tenant((row, version): (TenantRow, u64)) -> v1::Tenant {
    v1::Tenant {
        tenant_id: row.tenant_id,
        name: row.name,
        version: Some(u32::try_from(version).unwrap_or(u32::MAX)),
        created_at: Some(timestamp(row.created_ms)),
        updated_at: Some(timestamp(row.updated_ms)),
        quota: row.quota.map(|QuotaRow { per_second, burst }| v1::Quota { per_second, burst: Some(burst) }),
    }
}

/// What a limit is about.
pub fn limit_scope(v1::LimitScope { tenant, template, channel, provider }: v1::LimitScope) -> LimitScope {
    LimitScope { tenant, template, channel, provider }
}

/// A limit and its version.
pub fn limit((row, version): (LimitRow, u64)) -> v1::Limit {
    let LimitScope { tenant, template, channel, provider } = row.scope;
    v1::Limit {
        id: row.id,
        scope: Some(v1::LimitScope { tenant, template, channel, provider }),
        per_second: row.per_second,
        burst: row.burst,
        version: u32::try_from(version).unwrap_or(u32::MAX),
        created_at: Some(timestamp(row.created_ms)),
        updated_at: Some(timestamp(row.updated_ms)),
    }
}

/// A key without its secret.
pub fn key(row: KeyRow) -> v1::Key {
    v1::Key {
        key_id: row.key_id,
        tenant_id: row.tenant_id,
        name: row.name,
        scopes: row.scopes,
        created_at: Some(timestamp(row.created_ms)),
        expires_at: row.expires_ms.map(timestamp),
    }
}

/// A struct as a JSON object.
pub fn object(message: Struct) -> Map<String, Value> {
    object_at(message, 0)
}

fn object_at(message: Struct, depth: usize) -> Map<String, Value> {
    message.fields.into_iter().map(|(name, field)| (name, value_at(field, depth + 1))).collect()
}

fn value(message: pbjson_types::Value) -> Value {
    value_at(message, 0)
}

fn value_at(message: pbjson_types::Value, depth: usize) -> Value {
    if depth > MAX_DEPTH {
        return Value::Null;
    }
    match message.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(bool)) => Value::Bool(bool),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::NumberValue(number)) => number_value(number),
        Some(Kind::StructValue(fields)) => Value::Object(object_at(fields, depth)),
        Some(Kind::ListValue(list)) => {
            Value::Array(list.values.into_iter().map(|item| value_at(item, depth + 1)).collect())
        }
    }
}

/// Protobuf knows floats only; what is whole and exact becomes an integer again, as its author wrote it.
fn number_value(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT {
        return Value::from(number as i64);
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn struct_message(object: Map<String, Value>) -> Struct {
    Struct { fields: object.into_iter().map(|(name, value)| (name, value_message(value))).collect() }
}

fn value_message(value: Value) -> pbjson_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(bool) => Kind::BoolValue(bool),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(items) => {
            let values = items.into_iter().map(value_message).collect();
            Kind::ListValue(pbjson_types::ListValue { values })
        }
        Value::Object(object) => Kind::StructValue(struct_message(object)),
    };
    pbjson_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use herald_core::policy::{TemplateHead, TemplateRow};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_comes_back_as_it_was_uploaded() {
        let uploaded: TemplateSource = serde_json::from_value(json!({
            "channels": {
                "in_app": {"title": "t", "body": "b"},
                "email": {"subject": "s", "text": "t", "html": "h"},
                "push": {"title": "t", "data": {"n": 3, "list": [1.5, null, true, "x"]}},
                "webhook": {"body": "{}"}
            },
            "category": "c",
            "locales": {"de": {"channels": {"in_app": {"title": "T"}}}},
            "default_locale": "en",
            "data_schema": {"type": "object", "maxProperties": 3},
            "dedupe_window": "60s",
            "partials": {"greeting": "Hello"}
        }))
        .unwrap();
        let row = TemplateRow {
            tenant_id: "t".into(),
            template_id: "id".into(),
            version: 3,
            source: uploaded.clone(),
            created_ms: 1_234,
        };
        let message = template(Found { row, head: TemplateHead { live: Some(2), latest: 3, previous: vec![] } });
        assert_eq!((message.version, message.published, message.live_version), (3, false, Some(2)));
        assert_eq!(herald_api::time::millis(&message.created_at.unwrap()), Some(1_234));
        let request = v1::PutTemplateRequest {
            template_id: message.template_id,
            channels: message.channels,
            category: message.category,
            locales: message.locales,
            default_locale: message.default_locale,
            data_schema: message.data_schema,
            dedupe_window: message.dedupe_window,
            publish: None,
            partials: message.partials,
        };
        assert_eq!(source(request), uploaded);
    }
}
