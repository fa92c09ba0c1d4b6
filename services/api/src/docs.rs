//! The API as a page for people: made of the same document as [`crate::openapi`], without scripts and without anything
//! from elsewhere.

use std::fmt::Write;

use serde_json::Value;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222}\
    code,pre{font:14px/1.4 ui-monospace,monospace;background:#f4f4f2}pre{padding:.6rem;overflow:auto}\
    h2{margin-top:3rem;border-bottom:1px solid #ddd}h3{margin-bottom:.2rem}h3 b{display:inline-block;min-width:4.5rem}\
    table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;padding:.15rem 1rem .15rem 0}\
    details{margin:.4rem 0}nav a{margin-right:1rem}\
    @media(prefers-color-scheme:dark){body{background:#1b1b1b;color:#ddd}code,pre{background:#2a2a2a}a{color:#8bf}}";

/// The page of an OpenAPI document.
pub fn page(document: &Value) -> String {
    let mut html = String::with_capacity(64 << 10);
    let info = &document["info"];
    let tags: Vec<(&str, &str)> =
        list(&document["tags"]).iter().map(|tag| (text(&tag["name"]), text(&tag["description"]))).collect();
    let nav: String = tags.iter().fold(String::new(), |nav, (name, _)| nav + &link(&format!("#{name}"), name));
    // Writing to a string does not fail.
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Herald API</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><style>{STYLE}</style></head><body>\
         <h1>Herald API {}</h1>{}<p>Machines read <a href=\"/openapi.json\">openapi.json</a>, or ask gRPC's server \
         reflection. Errors are explained at the address that their <code>type</code> names.</p><nav>{nav}{}</nav>",
        escape(text(&info["version"])),
        paragraph(text(&info["description"])),
        link("#other", "Other") + &link("#messages", "Messages"),
    );
    for (name, description) in &tags {
        section(&mut html, document, name, name, description, |operation| text(&operation["tags"][0]) == *name);
    }
    section(&mut html, document, "other", "Other", "Without a key.", |operation| operation.get("tags").is_none());
    html.push_str("<h2 id=\"messages\">Messages</h2>");
    for (name, schema) in object(&document["components"]["schemas"]) {
        let _ = write!(html, "<h3 id=\"{name}\">{name}</h3>{}", paragraph(text(&schema["description"])));
        let fields = object(&schema["properties"]).map(|(name, field)| (name.as_str(), "", field, field));
        table(&mut html, fields);
    }
    html.push_str("</body></html>\n");
    html
}

fn section(html: &mut String, document: &Value, id: &str, title: &str, about: &str, belongs: impl Fn(&Value) -> bool) {
    let _ = write!(html, "<h2 id=\"{}\">{}</h2>{}", escape(id), escape(title), paragraph(about));
    for (path, operations) in object(&document["paths"]) {
        for (method, operation) in object(operations).filter(|(_, operation)| belongs(operation)) {
            call(html, document, path, method, operation);
        }
    }
}

fn call(html: &mut String, document: &Value, path: &str, method: &str, operation: &Value) {
    let about =
        [&operation["description"], &operation["summary"]].into_iter().map(text).find(|about| !about.is_empty());
    let (method, path) = (method.to_uppercase(), escape(path));
    let _ = write!(html, "<h3><b>{method}</b> <code>{path}</code></h3>{}", paragraph(about.unwrap_or_default()));
    let parameters = list(&operation["parameters"]).iter().map(|parameter| match parameter.get("$ref") {
        Some(reference) => resolve(document, text(reference)),
        None => parameter,
    });
    table(html, parameters.map(|p| (text(&p["name"]), text(&p["in"]), &p["schema"], p)));
    let body = schema_of(&operation["requestBody"]["content"]);
    if !body.is_null() {
        let _ = write!(html, "<p>Body: {}</p>", kind(body));
    }
    for (status, answer) in object(&operation["responses"]).filter(|(status, _)| *status != "default") {
        let media_type = object(&answer["content"]).next().map_or("", |(media_type, _)| media_type);
        let of = kind(schema_of(&answer["content"]));
        let _ = write!(html, "<p>Answer {status}: {of} as <code>{}</code></p>", escape(media_type));
    }
}

/// Rows of name, place, schema, and what has the description.
fn table<'a>(html: &mut String, rows: impl Iterator<Item = (&'a str, &'a str, &'a Value, &'a Value)>) {
    html.push_str("<table>");
    for (name, place, schema, described) in rows {
        let _ = write!(
            html,
            "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(name),
            escape(place),
            kind(schema),
            escape(text(&described["description"])),
        );
    }
    html.push_str("</table>");
}

/// A schema in a word or two.
fn kind(schema: &Value) -> String {
    if let Some(reference) = schema.get("$ref") {
        let name = text(reference).rsplit('/').next().unwrap_or_default();
        return link(&format!("#{name}"), name);
    }
    if let Some(first) = schema["anyOf"].get(0) {
        return kind(first) + " or null";
    }
    let names = match &schema["type"] {
        Value::Array(names) => names.iter().map(text).collect::<Vec<_>>().join(" or "),
        Value::String(name) => name.clone(),
        _ => "any".to_owned(),
    };
    match (names.as_str(), &schema["items"], &schema["additionalProperties"], &schema["format"]) {
        ("array", items, ..) => format!("list of {}", kind(items)),
        ("object", _, values, _) if values.is_object() => format!("object of {}", kind(values)),
        (_, _, _, Value::String(format)) => format!("{} ({})", escape(&names), escape(format)),
        _ => escape(&names),
    }
}

fn schema_of(content: &Value) -> &Value {
    object(content).next().map_or(&Value::Null, |(_, media)| &media["schema"])
}

fn resolve<'a>(document: &'a Value, reference: &str) -> &'a Value {
    document.pointer(reference.trim_start_matches('#')).unwrap_or(&Value::Null)
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn link(to: &str, name: &str) -> String {
    format!("<a href=\"{}\">{}</a>", escape(to), escape(name))
}

/// A text with its `code` set as such.
fn paragraph(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let mut html = String::from("<p>");
    for (place, part) in text.split('`').enumerate() {
        let part = escape(part);
        html += &if place % 2 == 1 { format!("<code>{part}</code>") } else { part };
    }
    html + "</p>"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{openapi::document, routes::Route};

    #[test]
    fn the_page_has_every_route_and_nothing_from_elsewhere() {
        let page = page(&document(&[
            Route::put("/v1/users/{user_id}", "Users.PutUser"),
            Route::page(http::Method::GET, "/healthz", "text/plain", "Whether the <process> lives"),
        ]));
        assert!(page.contains("<code>/v1/users/{user_id}</code>") && page.contains("href=\"#PutUserRequest\""));
        assert!(page.contains("Whether the &lt;process&gt; lives"));
        assert!(!page.contains("<script") && !page.contains("http://") && !page.contains("https://"));
    }
}
