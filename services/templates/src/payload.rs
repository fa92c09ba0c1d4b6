//! JSON payloads: `push.data` and `webhook.body`.
//!
//! A payload is JSON whose strings are templates, or one string that renders to JSON. In the latter the place of each
//! value is found at upload by following the quotes of the text: inside a string a value is escaped, elsewhere it
//! becomes a JSON value of its own, quotes included.

use serde::de::IgnoredAny;
use serde_json::Value;

use crate::compile::Compiler;
use crate::error::CompileCode;
use crate::output::json_escape;
use crate::program::{Escape, Node, NodeKind};

/// Compiles the payload of `field`. Unless `text_allowed`, a string must look like a JSON object.
pub(crate) fn compile(compiler: &mut Compiler<'_>, field: &str, value: &Value, text_allowed: bool) -> Vec<Node> {
    match value {
        Value::String(source) => text(compiler, field, source, text_allowed),
        Value::Object(_) => structure(compiler, field, value),
        Value::Array(_) if text_allowed => structure(compiler, field, value),
        _ => {
            let message = "A payload is a JSON object whose strings are templates, or a string that renders to one.";
            compiler.error(field, (1, 1), CompileCode::InvalidValue, message);
            Vec::new()
        }
    }
}

fn text(compiler: &mut Compiler<'_>, field: &str, source: &str, text_allowed: bool) -> Vec<Node> {
    let mut nodes = compiler.field(field, source, Escape::JsonValue);
    match first_character(&nodes) {
        // Text of another format is left alone.
        Some(first) if !matches!(first, '{' | '[' | '"') => {
            if !text_allowed {
                let message = "This payload is no JSON object; begin with `{`.";
                compiler.error(field, (1, 1), CompileCode::InvalidJson, message);
            }
            set_escape(&mut nodes, Escape::None);
        }
        _ => {
            let mut in_string = false;
            if let Err((at, message)) = place(&mut nodes, &mut in_string) {
                compiler.error(field, at, CompileCode::InvalidJson, message);
            } else if let Err((at, message)) = check_sample(&nodes) {
                compiler.error(field, at, CompileCode::InvalidJson, message);
            }
        }
    }
    nodes
}

/// The first character of the literal text, wherever it stands, that is no white space.
fn first_character(nodes: &[Node]) -> Option<char> {
    nodes.iter().find_map(|node| match &node.kind {
        NodeKind::Text(text) => text.trim_start().chars().next(),
        NodeKind::Value { .. } => None,
        NodeKind::If { then, otherwise, .. } => first_character(then).or_else(|| first_character(otherwise)),
        NodeKind::Each { body, otherwise, .. } | NodeKind::With { body, otherwise, .. } => {
            first_character(body).or_else(|| otherwise.as_deref().and_then(first_character))
        }
    })
}

fn set_escape(nodes: &mut [Node], to: Escape) {
    for node in nodes {
        match &mut node.kind {
            NodeKind::Text(_) => {}
            NodeKind::Value { escape, .. } => *escape = to,
            NodeKind::If { then, otherwise, .. } => {
                set_escape(then, to);
                set_escape(otherwise, to);
            }
            NodeKind::Each { body, otherwise, .. } | NodeKind::With { body, otherwise, .. } => {
                set_escape(body, to);
                set_escape(otherwise.as_deref_mut().unwrap_or_default(), to);
            }
        }
    }
}

type Misplaced = ((usize, usize), String);

/// Sets the escape of each value by its place. Every branch must leave the text where the others do.
fn place(nodes: &mut [Node], in_string: &mut bool) -> Result<(), Misplaced> {
    for node in nodes {
        let before = *in_string;
        let unbalanced = || {
            let message = "A quote is opened or closed in one branch only; keep whole strings within the block.";
            Err((node.at, message.to_owned()))
        };
        match &mut node.kind {
            NodeKind::Text(text) => follow_quotes(text, in_string),
            NodeKind::Value { escape, .. } => {
                *escape = if *in_string { Escape::JsonString } else { Escape::JsonValue };
            }
            NodeKind::If { then, otherwise, .. } => {
                let mut after_else = before;
                place(then, in_string)?;
                place(otherwise, &mut after_else)?;
                if *in_string != after_else {
                    return unbalanced();
                }
            }
            NodeKind::Each { body, otherwise, .. } | NodeKind::With { body, otherwise, .. } => {
                let mut after_else = before;
                place(body, in_string)?;
                place(otherwise.as_deref_mut().unwrap_or_default(), &mut after_else)?;
                if *in_string != before || after_else != before {
                    return unbalanced();
                }
            }
        }
    }
    Ok(())
}

fn follow_quotes(text: &str, in_string: &mut bool) {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => *in_string = !*in_string,
            b'\\' if *in_string => {
                bytes.next();
            }
            _ => {}
        }
    }
}

/// Parses the payload with stand-ins for its values, where no block leaves its shape open.
fn check_sample(nodes: &[Node]) -> Result<(), Misplaced> {
    let mut sample = String::new();
    let mut starts = Vec::with_capacity(nodes.len());
    for node in nodes {
        starts.push((sample.len(), node.at));
        match &node.kind {
            NodeKind::Text(text) => sample.push_str(text),
            NodeKind::Value { escape: Escape::JsonString, .. } => sample.push('0'),
            NodeKind::Value { .. } => sample.push_str("null"),
            _ => return Ok(()),
        }
    }
    let Err(error) = serde_json::from_str::<IgnoredAny>(&sample) else { return Ok(()) };
    let line_start: usize = sample.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let offset = line_start + error.column().saturating_sub(1);
    let at = starts.iter().rev().find(|(start, _)| *start <= offset).map_or((1, 1), |(_, at)| *at);
    let mut reason = error.to_string();
    if let Some(position) = reason.rfind(" at line ") {
        reason.truncate(position);
    }
    Err((at, format!("This payload does not render to JSON: {reason}, at or after this place.")))
}

/// JSON whose strings are templates.
fn structure(compiler: &mut Compiler<'_>, field: &str, value: &Value) -> Vec<Node> {
    let mut nodes = Vec::new();
    write(compiler, field, value, &mut nodes);
    nodes
}

fn write(compiler: &mut Compiler<'_>, field: &str, value: &Value, nodes: &mut Vec<Node>) {
    match value {
        Value::String(source) => {
            literal(nodes, "\"");
            let mut leaf = compiler.field(field, source, Escape::JsonString);
            escape_text(&mut leaf);
            nodes.append(&mut leaf);
            literal(nodes, "\"");
        }
        Value::Array(items) => {
            literal(nodes, "[");
            for (index, item) in items.iter().enumerate() {
                literal(nodes, if index == 0 { "" } else { "," });
                write(compiler, &format!("{field}.{index}"), item, nodes);
            }
            literal(nodes, "]");
        }
        Value::Object(fields) => {
            literal(nodes, "{");
            for (index, (name, item)) in fields.iter().enumerate() {
                literal(nodes, if index == 0 { "\"" } else { ",\"" });
                literal(nodes, &escaped(name));
                literal(nodes, "\":");
                write(compiler, &format!("{field}.{name}"), item, nodes);
            }
            literal(nodes, "}");
        }
        other => literal(nodes, &other.to_string()),
    }
}

/// Appends JSON as it is, to the text before if there is any.
fn literal(nodes: &mut Vec<Node>, json: &str) {
    match nodes.last_mut() {
        Some(Node { kind: NodeKind::Text(text), .. }) => text.push_str(json),
        _ => nodes.push(Node { kind: NodeKind::Text(json.to_owned()), deps: 0, at: (1, 1) }),
    }
}

fn escape_text(nodes: &mut [Node]) {
    for node in nodes {
        match &mut node.kind {
            NodeKind::Text(text) => *text = escaped(text),
            NodeKind::Value { .. } => {}
            NodeKind::If { then, otherwise, .. } => {
                escape_text(then);
                escape_text(otherwise);
            }
            NodeKind::Each { body, otherwise, .. } | NodeKind::With { body, otherwise, .. } => {
                escape_text(body);
                escape_text(otherwise.as_deref_mut().unwrap_or_default());
            }
        }
    }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match u8::try_from(character).ok().and_then(json_escape) {
            Some(sequence) => escaped.push_str(sequence),
            None => escaped.push(character),
        }
    }
    escaped
}
