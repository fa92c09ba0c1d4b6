//! Templates: a source is compiled or refused with places, and what compiles renders within its limits or says why not.
//!
//! An input is a source as JSON, or a text for every part of one, and the data.

use herald_templates::{
    Channel, Limits, PersonContext, Rendered, SharedContext, Template, TemplateSource, TenantContext, UserContext,
};
use serde_json::{Value, json};

use crate::{SEPARATOR, parts};

/// Compiles and renders.
pub fn run(input: &[u8]) {
    let parts = parts(input);
    let [source, rest @ ..] = &parts[..] else { return };
    let data: Value = rest.first().and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default();
    let source = match serde_json::from_slice::<TemplateSource>(source) {
        Ok(source) => source,
        Err(_) => of_text(&String::from_utf8_lossy(source)),
    };
    let limits = Limits::default();
    let template = match Template::compile(&source, &limits) {
        Ok(template) => template,
        Err(errors) => {
            assert!(!errors.is_empty());
            return assert!(errors.iter().all(|e| e.line >= 1 && e.column >= 1 && !e.message.is_empty()), "{errors:?}");
        }
    };
    if let Err(errors) = template.check_data(&data) {
        assert!(!errors.is_empty());
    }
    for channel in template.channels().collect::<Vec<_>>() {
        render(&template, channel, &data, limits.output_bytes);
    }
}

fn of_text(text: &str) -> TemplateSource {
    let source = json!({
        "channels": {
            "in_app": {"title": text, "body": text},
            "email": {"subject": text, "text": text, "html": text},
            "push": {"title": text, "data": {"a": text}},
            "webhook": {"body": text},
        },
        "partials": {"p": "p{{data.a}}"},
    });
    serde_json::from_value(source).unwrap()
}

fn render(template: &Template, channel: Channel, data: &Value, most_bytes: usize) {
    let attributes = json!({"name": "Bo <b>", "tags": ["a", "b"]});
    let actor = PersonContext { id: "u-ada", locale: Some("en"), time_zone: None, attributes: &attributes };
    let shared = SharedContext { data, actor: Some(actor), tenant: TenantContext { id: "t1", name: "Demo & Co" } };
    let Ok(prepared) = template.prepare(channel, Some("de-AT"), &shared) else { return };
    let user = UserContext {
        id: "u-bo",
        locale: Some("de-AT"),
        time_zone: Some("Europe/Vienna"),
        attributes: &attributes,
        unsubscribe_url: Some("https://example.com/u?t=1"),
    };
    let mut rendered = Rendered::new();
    if prepared.render(&user, &mut rendered).is_err() {
        return;
    }
    use herald_templates::Message::{Email, InApp, Push, Webhook};
    let texts = match rendered.message().unwrap() {
        InApp { title, body } => [title, body, None],
        Email { subject, text, html } => {
            let subject = subject.unwrap_or_default();
            assert!(!subject.contains(['\r', '\n', '\0']), "a subject of several lines: {subject:?}");
            [None, text, html]
        }
        Push { title, body, data } => {
            let is_json = data.is_none_or(|data| serde_json::from_str::<Value>(data).is_ok());
            assert!(is_json, "a payload given as JSON stays JSON: {data:?}");
            [title, body, data]
        }
        Webhook { body } => [body, None, None],
    };
    let bytes: usize = texts.into_iter().flatten().map(str::len).sum();
    assert!(bytes <= most_bytes, "{bytes} bytes");
}

/// Texts with everything that the language has, and a source with a schema.
pub fn seeds() -> Vec<Vec<u8>> {
    let data = json!({"a": [1, {"a": "b"}], "b": "\"<", "n": 3, "o": {"k": null}});
    let whole = json!({
        "channels": {"email": {"subject": "{{data.b}}", "html": "{{> p}}{{{data.b}}}"}},
        "partials": {"p": "{{user.attributes.name}}"},
        "locales": {"de": {"channels": {"email": {"subject": "Hallo"}}}},
        "default_locale": "en",
        "data_schema": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 5}}, "required": ["b"]},
        "dedupe_window": "60s",
    });
    [
        "{{data.b}} {{{data.b}}} {{!-- c --}}{{~user.id~}}",
        "{{#each data.a}}{{@index}}{{this}}{{#if @first}}f{{else if @last}}l{{/if}}{{else}}none{{/each}}",
        "{{#with data.o as |o|}}{{default o.k \"x\" 5}}{{/with}}{{lookup data.a 1}}",
        "{{#unless (eq data.n 3)}}{{upper data.b}}{{/unless}}{{plural data.n \"one\" \"many\"}}{{len data.a}}",
        "{\"a\": {{data.b}}, \"c\": \"{{data.b}}\", \"n\": {{data.n}}}",
        "\\{{raw}} {{{{raw}}}} {{x}} {{{{/raw}}}} {{> p}}",
        "{{unsubscribe_url}} {{tenant.name}} {{actor.attributes.tags}} {{and (gt data.n 1) (not data.o.k)}}",
        &whole.to_string(),
    ]
    .into_iter()
    .map(|source| [source.as_bytes(), SEPARATOR, data.to_string().as_bytes()].concat())
    .collect()
}
