//! The API as an OpenAPI 3.1 document, made of the table of routes and the descriptors: what each route takes and
//! answers is what its method's messages say, and their comments are its texts.

use std::collections::BTreeSet;

use prost_reflect::{FieldDescriptor, FileDescriptor, Kind, MessageDescriptor, MethodDescriptor};
use serde_json::{Map, Value, json};

use crate::{
    auth::HERALD_TENANT,
    descriptors::{PACKAGE, method, pool, services},
    present::holds_either,
    rejection::PROBLEM_JSON,
    request_id::REQUEST_ID,
    routes::{ProcessCall, Route, Serves},
};

/// Where schemas are in the document.
const SCHEMAS: &str = "#/components/schemas/";
/// The schema of `google.protobuf.Struct`.
const JSON_OBJECT: &str = "JsonObject";

/// The document of these routes.
pub fn document(table: &[Route]) -> Value {
    let mut paths = Map::new();
    for route in table {
        let operations = paths.entry(route.path).or_insert_with(|| json!({}));
        operations[route.method.as_str().to_lowercase()] = operation(route);
    }
    let schemas = referenced_schemas(&Value::Object(paths.clone()));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Herald",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Multi-tenant notifications. gRPC and this API are two faces of one service, with the same \
                names, errors and limits. Answers show every field; what has no value is null. Unknown fields are \
                refused. Every answer carries `Request-Id`.",
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": tags(),
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": "An API key, or an end user's token for that person's inbox, live feed and preferences.",
            }},
            "parameters": {"Tenant": {
                "name": HERALD_TENANT.as_str(),
                "in": "header",
                "description": "The tenant that an operator's key acts for; refused with any other key.",
                "schema": {"type": "string"},
            }},
            "responses": {"Problem": {
                "description": "Why the call was refused (RFC 9457).",
                "headers": {REQUEST_ID.as_str(): {"schema": {"type": "string"}}},
                "content": {PROBLEM_JSON: {"schema": reference("Problem")}},
            }},
            "schemas": schemas,
        },
    })
}

/// What a reader of the descriptors is told of a service, message, method or field: the comment before it.
pub fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref();
    let location = info.and_then(|info| info.location.iter().find(|location| location.path == path));
    let lines = location.map_or("", |location| location.leading_comments()).lines().map(str::trim);
    lines.collect::<Vec<_>>().join(" ").trim().to_owned()
}

fn tags() -> Vec<Value> {
    services().map(|s| json!({"name": s.name(), "description": comment(&s.parent_file(), s.path())})).collect()
}

fn operation(route: &Route) -> Value {
    match &route.serves {
        Serves::Page { summary, media_type } => page(route, summary, media_type),
        Serves::Process(call) => process(route, call),
        Serves::Rpc(name) => match method(name) {
            Some(method) => call(route, &method),
            // A test goes through the table of the real router; see `unknown_methods`.
            None => json!({"responses": {}}),
        },
    }
}

/// Names in a table that are no method of the API.
pub fn unknown_methods(table: &[Route]) -> Vec<&'static str> {
    let rpcs = table.iter().filter_map(|route| match route.serves {
        Serves::Rpc(name) => Some(name),
        Serves::Process(_) | Serves::Page { .. } => None,
    });
    rpcs.filter(|name| method(name).is_none()).collect()
}

fn page(route: &Route, summary: &str, media_type: &str) -> Value {
    let parameters: Vec<Value> =
        route.path_fields().map(|name| path_parameter(name, json!({"type": "string"}))).collect();
    json!({
        "summary": summary,
        "security": [],
        "parameters": parameters,
        "responses": {"200": {"description": summary, "content": {media_type: {"schema": {"type": "string"}}}}},
    })
}

fn call(route: &Route, method: &MethodDescriptor) -> Value {
    let (request, response) = (method.input(), method.output());
    let media_type = if method.is_server_streaming() { "text/event-stream" } else { "application/json" };
    let answer = json!({
        "description": format!("{}.", response.name()),
        "headers": {REQUEST_ID.as_str(): {"schema": {"type": "string"}}},
        "content": {media_type: {"schema": reference(response.name())}},
    });
    let text = comment(&method.parent_file(), method.path());
    let takes = route.has_body().then(|| reference(request.name()));
    let name = (method.parent_service().name().to_owned(), method.name().to_owned());
    described(route, name, &text, parameters(route, &request), takes, answer)
}

/// A call of one process, whose schemas are its own.
fn process(route: &Route, call: &ProcessCall) -> Value {
    // The texts are our own; a test reads those of the real routes.
    let schema = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let (service, name) = call.name.split_once('.').unwrap_or(("Admin", call.name));
    let answer = json!({
        "description": format!("What {name} answers."),
        "headers": {REQUEST_ID.as_str(): {"schema": {"type": "string"}}},
        "content": {"application/json": {"schema": schema(call.answers)}},
    });
    let parameters = vec![json!({"$ref": "#/components/parameters/Tenant"})];
    let name = (service.to_owned(), name.to_owned());
    described(route, name, call.text, parameters, call.takes.map(schema), answer)
}

fn described(
    route: &Route,
    (service, name): (String, String),
    text: &str,
    parameters: Vec<Value>,
    takes: Option<Value>,
    answer: Value,
) -> Value {
    let mut operation = json!({
        "operationId": name,
        "tags": [service],
        "summary": text.split_inclusive('.').next().unwrap_or_default().trim_end_matches('.'),
        "description": text,
        "parameters": parameters,
        "responses": {
            route.status.to_string(): answer,
            "default": {"$ref": "#/components/responses/Problem"},
        },
    });
    if let Some(schema) = takes {
        operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    operation
}

fn parameters(route: &Route, request: &MessageDescriptor) -> Vec<Value> {
    let in_path: BTreeSet<&str> = route.path_fields().collect();
    let described = |field: &FieldDescriptor, place: &str, name: &str| {
        let mut parameter = json!({"name": name, "in": place, "schema": plain(field)});
        describe(&mut parameter, field);
        parameter
    };
    let mut parameters = vec![json!({"$ref": "#/components/parameters/Tenant"})];
    for name in &in_path {
        let schema = request.get_field_by_name(name).map_or_else(|| json!({"type": "string"}), |field| plain(&field));
        parameters.push(path_parameter(name, schema));
    }
    for field in request.fields().filter(|field| !in_path.contains(field.name())) {
        if let Some((_, header)) = route.headers.iter().find(|(name, _)| *name == field.name()) {
            parameters.push(described(&field, "header", header));
        }
        if route.query.contains(&field.name()) || !route.has_body() {
            parameters.push(described(&field, "query", field.name()));
        }
    }
    parameters
}

fn path_parameter(name: &str, schema: Value) -> Value {
    json!({"name": name, "in": "path", "required": true, "schema": schema})
}

fn schemas() -> Map<String, Value> {
    let (taken, answered) = (reachable(|method| method.input()), reachable(|method| method.output()));
    let messages = pool().all_messages().filter(|message| message.package_name() == PACKAGE && !message.is_map_entry());
    let of_messages = messages.map(|message| {
        let name = message.full_name();
        let only_answered = answered.contains(name) && !taken.contains(name) || message.name() == "Problem";
        (message.name().to_owned(), schema(&message, only_answered, taken.contains(name)))
    });
    let object = json!({"type": "object", "description": "Any JSON object.", "additionalProperties": true});
    of_messages.chain([(JSON_OBJECT.to_owned(), object)]).collect()
}

/// The schemas that these paths and the answers of refusals lead to.
fn referenced_schemas(paths: &Value) -> Map<String, Value> {
    let mut all = schemas();
    let mut found = Map::new();
    let mut open = vec!["Problem".to_owned()];
    names_in(paths, &mut open);
    while let Some(name) = open.pop() {
        if let Some(schema) = all.remove(&name) {
            names_in(&schema, &mut open);
            found.insert(name, schema);
        }
    }
    found
}

/// Adds the names of the schemas that a part of the document refers to.
fn names_in(part: &Value, names: &mut Vec<String>) {
    match part {
        Value::Object(fields) => {
            let reference = fields.get("$ref").and_then(Value::as_str);
            names.extend(reference.and_then(|text| text.strip_prefix(SCHEMAS)).map(str::to_owned));
            fields.values().for_each(|field| names_in(field, names));
        }
        Value::Array(items) => items.iter().for_each(|item| names_in(item, names)),
        _ => {}
    }
}

/// The names of all messages within those of the methods.
fn reachable(of: impl Fn(&MethodDescriptor) -> MessageDescriptor) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open: Vec<MessageDescriptor> = crate::descriptors::methods().iter().map(of).collect();
    while let Some(message) = open.pop() {
        if found.insert(message.full_name().to_owned()) {
            open.extend(message.fields().filter_map(|field| field.kind().as_message().cloned()));
        }
    }
    found
}

fn schema(message: &MessageDescriptor, only_answered: bool, taken: bool) -> Value {
    let mut properties = Map::new();
    for field in message.fields() {
        let mut property = nullable(&field);
        describe(&mut property, &field);
        if property["description"].as_str().is_some_and(|text| text.contains("Output only.")) {
            property["readOnly"] = true.into();
        }
        properties.insert(field.name().to_owned(), property);
    }
    let mut schema = json!({"type": "object"});
    let text = comment(&message.parent_file(), message.path());
    if !text.is_empty() {
        schema["description"] = text.into();
    }
    // Every field of an answer is there; of a call only those that are needed, which the texts say.
    if only_answered && !holds_either(message.name()) && !properties.is_empty() {
        schema["required"] = properties.keys().cloned().collect();
    }
    if taken {
        schema["additionalProperties"] = false.into();
    }
    schema["properties"] = properties.into();
    schema
}

fn describe(property: &mut Value, field: &FieldDescriptor) {
    let text = comment(&field.parent_message().parent_file(), field.path());
    if !text.is_empty() {
        property["description"] = text.into();
    }
}

/// The schema of a field that may be null.
fn nullable(field: &FieldDescriptor) -> Value {
    let mut schema = plain(field);
    if !field.supports_presence() {
        return schema;
    }
    match schema.get("type").cloned() {
        Some(kind) => {
            schema["type"] = json!([kind, "null"]);
            schema
        }
        // Any value may be null already.
        None if schema.get("$ref").is_none() => schema,
        None => json!({"anyOf": [schema, {"type": "null"}]}),
    }
}

/// The schema of a field that is there.
fn plain(field: &FieldDescriptor) -> Value {
    if field.is_map() {
        let value = field.kind().as_message().map(|entry| one(&entry.map_entry_value_field().kind()));
        return json!({"type": "object", "additionalProperties": value});
    }
    if field.is_list() {
        return json!({"type": "array", "items": one(&field.kind())});
    }
    one(&field.kind())
}

fn one(kind: &Kind) -> Value {
    match kind {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Double | Kind::Float => json!({"type": "number"}),
        Kind::Uint32 | Kind::Fixed32 => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({"type": "integer", "format": "int32"}),
        Kind::Message(message) => match message.full_name() {
            "google.protobuf.Timestamp" => json!({"type": "string", "format": "date-time"}),
            "google.protobuf.Duration" => json!({"type": "string", "pattern": "^-?[0-9]+([.][0-9]{1,9})?s$"}),
            "google.protobuf.Struct" => reference(JSON_OBJECT),
            "google.protobuf.Value" => json!({}),
            _ => reference(message.name()),
        },
        // Numbers of 64 bits are text in protobuf's JSON, as names of enums and bytes in base 64 are.
        _ => json!({"type": "string"}),
    }
}

fn reference(message: &str) -> Value {
    json!({"$ref": format!("{SCHEMAS}{message}")})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_says_what_its_messages_say() {
        let table = [
            Route::post("/v1/notify", "Notifications.Notify")
                .answers(202)
                .in_headers(&[("idempotency_key", "Idempotency-Key")]),
            Route::get("/v1/users/{user_id}/inbox", "Inbox.ListInbox"),
        ];
        let document = document(&table);
        let notify = &document["paths"]["/v1/notify"]["post"];
        assert_eq!(notify["parameters"][1]["name"], "Idempotency-Key");
        assert_eq!(notify["requestBody"]["content"]["application/json"]["schema"], reference("NotifyRequest"));
        assert!(notify["responses"]["202"].is_object());
        assert_eq!(notify["summary"], "Accepts one notification");
        let inbox = &document["paths"]["/v1/users/{user_id}/inbox"]["get"];
        let names: Vec<_> = inbox["parameters"].as_array().unwrap().iter().skip(1).map(|p| &p["name"]).collect();
        assert_eq!(names, ["user_id", "state", "page_size", "page_token"]);
        let schemas = &document["components"]["schemas"];
        assert_eq!(schemas.get("ListInboxRequest"), None, "its fields are in the query");
        assert_eq!(schemas["InboxItem"]["properties"]["seen_at"]["type"], json!(["string", "null"]));
        assert_eq!(schemas["NotifyRequest"]["additionalProperties"], false);
        assert_eq!(schemas["InboxItem"]["required"].as_array().unwrap().len(), 10);
        assert_eq!(unknown_methods(&[Route::get("/x", "Users.Nothing")]), ["Users.Nothing"]);
    }
}
