//! Why a JSON text is not what it should be: which field, what was found there, and what belongs there. The descriptors
//! know what belongs where, so that this is said of every message alike.

use std::cell::Cell;

use herald_core::problem::{FieldError, Kind, Problem};
use prost_reflect::{FieldDescriptor, Kind as Type};
use serde::{
    Deserializer,
    de::{DeserializeOwned, Error as _, Visitor, value::Error},
    forward_to_deserialize_any,
};
use serde_json::Value;
use serde_path_to_error::Segment;

use crate::descriptors::pool;

/// What is said of a number in free JSON that protobuf's floating point cannot hold.
pub const LOSES_DIGITS: &str =
    "Numbers are exact up to 9007199254740991 only, and this one would lose digits; send it as a string.";

/// The longest text that is repeated.
pub(crate) const MAX_REPEATED_CHARS: usize = 40;

/// Explains why a text is no `T`.
pub(crate) fn explain<T: DeserializeOwned>(text: &[u8], error: &serde_json::Error) -> Problem {
    let no_json = |detail: String| Problem::new(Kind::Malformed, "malformed_json", detail);
    if error.is_syntax() || error.is_eof() {
        return no_json(match std::str::from_utf8(text) {
            Err(at) => format!("The body is not UTF-8 from byte {} on.", at.valid_up_to()),
            Ok(_) => format!("The body is not valid JSON: {error}."),
        });
    }
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let Err(traced) = serde_path_to_error::deserialize::<_, T>(&mut deserializer) else {
        return no_json(format!("The body is not valid JSON: {error}."));
    };
    let path: Vec<&Segment> = traced.path().iter().collect();
    let field = traced.path().to_string();
    let field = if field == "." { "" } else { &field };
    let message = traced.inner().to_string();
    Problem::malformed(vec![wrong_name(field, &message).unwrap_or_else(|| {
        let found: Option<Value> = serde_json::from_slice(text).ok();
        let found = found.as_ref().and_then(|value| path.iter().try_fold(value, |value, segment| at(value, segment)));
        wrong_value(field, &message, found, Belongs::at::<T>(&path).as_ref())
    })])
}

/// A field that is unknown, missing, or there twice. The messages are those of serde's own errors, which have had the
/// same form since its first release.
fn wrong_name(field: &str, message: &str) -> Option<FieldError> {
    let named = |prefix: &str| message.strip_prefix(prefix)?.split('`').next();
    let join = |name: &str| match field.rsplit('.').next() {
        Some(last) if last == name => field.to_owned(),
        _ if field.is_empty() => name.to_owned(),
        _ => format!("{field}.{name}"),
    };
    if let Some(name) = named("unknown field `") {
        // The generated code lists each name in camel case too.
        let known = message.split('`').skip(3).step_by(2).filter(|name| !name.contains(char::is_uppercase));
        let known = known.collect::<Vec<_>>().join(", ");
        return Some(FieldError::new(
            join(name),
            "unknown_field",
            format!("There is no such field; there are {known}."),
        ));
    }
    if let Some(name) = named("missing field `") {
        return Some(FieldError::new(join(name), "required", "This field is required."));
    }
    let name = named("duplicate field `")?;
    Some(FieldError::new(join(&snake_case(name)), "duplicate_field", "The field is there twice."))
}

/// The generated code names a duplicate in camel case.
fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

fn wrong_value(field: &str, message: &str, found: Option<&Value>, belongs: Option<&Belongs>) -> FieldError {
    if let Some(Belongs::Json) = belongs {
        return FieldError::new(field, "out_of_range", LOSES_DIGITS);
    }
    let code = if message.starts_with("invalid type") { "invalid_type" } else { "invalid_value" };
    // What serde expected, where the descriptors do not know.
    let serdes = || message.split(" at line ").next()?.rsplit_once("expected ").map(|(_, expected)| readable(expected));
    let expected = belongs.map(Belongs::text).or_else(|| serdes().map(str::to_owned));
    let detail = match (found, expected) {
        (Some(found), Some(expected)) => {
            format!("Found {}; expected {expected}.", said(found, belongs.is_some_and(Belongs::is_never_personal)))
        }
        (None, Some(expected)) => format!("Expected {expected}."),
        (_, None) => "The value does not fit.".to_owned(),
    };
    FieldError::new(field, code, detail)
}

/// `struct KeyBody` is an object to a reader of JSON.
fn readable(expected: &str) -> &str {
    match expected {
        _ if expected.starts_with("struct ") || expected == "a map" => "an object",
        "a sequence" => "a list",
        "f64" => "a number",
        "u8" | "u32" | "u64" | "usize" => "a whole number",
        _ => expected,
    }
}

/// What was found, repeated only where nobody puts personal data.
fn said(found: &Value, repeat: bool) -> String {
    match found {
        Value::String(text) if repeat && text.chars().count() <= MAX_REPEATED_CHARS => format!("{text:?}"),
        Value::Number(number) if repeat => format!("the number {number}"),
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(_) => "a number".to_owned(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn at<'v>(value: &'v Value, segment: &Segment) -> Option<&'v Value> {
    match segment {
        Segment::Seq { index } => value.get(index),
        Segment::Map { key } => value.get(key),
        Segment::Enum { .. } | Segment::Unknown => None,
    }
}

/// What belongs at a place.
#[derive(Debug)]
enum Belongs {
    One(Type),
    List(Type),
    Map(Type),
    /// Anything, within a free JSON object.
    Json,
}

impl Belongs {
    /// What belongs at a path below `T`, if `T` is a message.
    fn at<T: DeserializeOwned>(path: &[&Segment]) -> Option<Self> {
        let root = Self::One(Type::Message(pool().get_message_by_name(name_of::<T>()?)?));
        path.iter().try_fold(root, |belongs, segment| belongs.below(segment))
    }

    fn below(self, segment: &Segment) -> Option<Self> {
        match (self, segment) {
            (Self::Json, _) => Some(Self::Json),
            (Self::One(Type::Message(message)), _) if message.full_name() == "google.protobuf.Struct" => {
                Some(Self::Json)
            }
            (Self::One(Type::Message(message)), Segment::Map { key }) => {
                let by_json_name = || message.fields().find(|field| field.json_name() == key);
                message.get_field_by_name(key).or_else(by_json_name).map(|field| Self::in_field(&field))
            }
            (Self::List(of), Segment::Seq { .. }) | (Self::Map(of), Segment::Map { .. }) => Some(Self::One(of)),
            _ => None,
        }
    }

    fn in_field(field: &FieldDescriptor) -> Self {
        match field.kind() {
            Type::Message(entry) if field.is_map() => Self::Map(entry.map_entry_value_field().kind()),
            of if field.is_list() => Self::List(of),
            of => Self::One(of),
        }
    }

    /// Whether its values say nothing of a person.
    fn is_never_personal(&self) -> bool {
        match self {
            Self::One(Type::Message(message)) => {
                matches!(message.full_name(), "google.protobuf.Timestamp" | "google.protobuf.Duration")
            }
            Self::One(of) => !matches!(of, Type::String | Type::Bytes),
            _ => false,
        }
    }

    /// What belongs there in words, with an example.
    fn text(&self) -> String {
        let of = match self {
            Self::List(_) => return "a list".to_owned(),
            Self::Map(_) | Self::Json => return "an object".to_owned(),
            Self::One(of) => of,
        };
        let text = match of {
            Type::Bool => "true or false",
            Type::Double | Type::Float => "a number, such as 0.5",
            Type::Uint32 | Type::Fixed32 => "a whole number from 0 to 4294967295, such as 10",
            Type::String => "a string, such as \"abc\"",
            Type::Message(message) => match message.full_name() {
                "google.protobuf.Timestamp" => "a time as RFC 3339 has it, such as \"2026-01-31T08:00:00Z\"",
                "google.protobuf.Duration" => "a duration in seconds, such as \"3600s\"",
                "google.protobuf.Struct" => "an object, such as {\"name\": \"Ada\"}",
                _ => "an object",
            },
            Type::Bytes | Type::Enum(_) => "a string",
            _ => "a whole number, such as 10",
        };
        text.to_owned()
    }
}

/// The name under which a type asks for its fields: a message's is its full name.
fn name_of<T: DeserializeOwned>() -> Option<&'static str> {
    let name = Cell::new(None);
    // It is only asked, and never gets a value.
    let _refused = T::deserialize(Asked(&name));
    name.get()
}

struct Asked<'n>(&'n Cell<Option<&'static str>>);

impl<'de> Deserializer<'de> for Asked<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("there is no value"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.set(Some(name));
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use herald_proto::v1;

    use super::*;
    use crate::json::parse;

    fn error(text: &str) -> (&'static str, String, &'static str) {
        let problem = parse::<v1::NotifyRequest>(text.as_bytes()).unwrap_err();
        assert_eq!(problem.kind(), Kind::Malformed, "{text}");
        let (field, code) = problem.errors().first().map_or((String::new(), ""), |e| (e.field.clone(), e.code));
        (problem.code(), field, code)
    }

    #[test]
    fn an_error_names_the_path_of_its_field() {
        for (text, field, code) in [
            (r#"{"nope": 1}"#, "nope", "unknown_field"),
            (r#"{"audience": {"user": ["a"]}}"#, "audience.user", "unknown_field"),
            (
                r#"{"audience": {"inline": [{"endpoints": [{"chanel": "x"}]}]}}"#,
                "audience.inline[0].endpoints[0].chanel",
                "unknown_field",
            ),
            (r#"{"template_id": 5}"#, "template_id", "invalid_type"),
            (r#"{"template_id": "a", "template_id": "b"}"#, "template_id", "duplicate_field"),
            (r#"{"audience": {"users": ["a", 5]}}"#, "audience.users[1]", "invalid_type"),
            (r#"{"template_version": -1}"#, "template_version", "invalid_value"),
            (r#"{"send_at": "tomorrow"}"#, "send_at", "invalid_value"),
            (r#"{"ttl": "abc"}"#, "ttl", "invalid_value"),
            (r#"{"ttl": 5}"#, "ttl", "invalid_type"),
            (r#"{"data": []}"#, "data", "invalid_type"),
            (r#"{"data": {"n": 18446744073709551615}}"#, "data.n", "out_of_range"),
            (r#"{"data": {"list": [1, {"n": -9007199254740992}]}}"#, "data.list[1].n", "out_of_range"),
            (r#"{"metadata": {"a": 1}}"#, "metadata.a", "invalid_type"),
            (r#"[]"#, "", "invalid_type"),
        ] {
            assert_eq!(error(text), ("invalid_argument", field.to_owned(), code), "{text}");
        }
    }

    #[test]
    fn an_error_says_what_was_found_and_what_belongs_there() {
        for (text, said) in [
            (r#"{"ttl": "1d"}"#, r#"Found "1d"; expected a duration in seconds, such as "3600s"."#),
            (r#"{"ttl": 5}"#, r#"Found the number 5; expected a duration in seconds, such as "3600s"."#),
            (
                r#"{"send_at": "tomorrow"}"#,
                r#"Found "tomorrow"; expected a time as RFC 3339 has it, such as "2026-01-31T08:00:00Z"."#,
            ),
            (r#"{"data": [1]}"#, r#"Found a list; expected an object, such as {"name": "Ada"}."#),
            (r#"{"data": "Ada"}"#, r#"Found a string; expected an object, such as {"name": "Ada"}."#),
            (r#"{"data": {"n": 9007199254740993}}"#, LOSES_DIGITS),
            (
                r#"{"template_version": "new"}"#,
                r#"Found "new"; expected a whole number from 0 to 4294967295, such as 10."#,
            ),
            (
                r#"{"templateVersion": {}}"#,
                "Found an object; expected a whole number from 0 to 4294967295, such as 10.",
            ),
            (r#"{"exclude_actor": "yes"}"#, r#"Found "yes"; expected true or false."#),
            (r#"{"audience": {"users": "ada"}}"#, "Found a string; expected a list."),
            (r#"{"audience": {"users": [491701234567]}}"#, r#"Found a number; expected a string, such as "abc"."#),
            (r#"{"metadata": {"a": 1}}"#, r#"Found a number; expected a string, such as "abc"."#),
            (r#"{"audience": []}"#, "Found a list; expected an object."),
            (
                r#"{"audience": {"inline": [{"endpoints": [{"no": 1}]}]}}"#,
                "There is no such field; there are channel, address, kind, platform, app_version.",
            ),
            ("5", "Found a number; expected an object."),
        ] {
            let problem = parse::<v1::NotifyRequest>(text.as_bytes()).unwrap_err();
            assert_eq!(problem.errors()[0].detail, said, "{text}");
        }
        // What is no message has serde's own words.
        let problem = parse::<Vec<u8>>(b"[1, true]").unwrap_err();
        assert_eq!(problem.errors()[0].detail, "Found true; expected a whole number.");
    }

    #[test]
    fn what_is_no_json_is_said_to_be_none() {
        for text in ["", "{", "{\"template_id\": }", "{} {}", "nul", "{\"template_id\": \"\u{1}\"}"] {
            assert_eq!(error(text).0, "malformed_json", "{text}");
        }
        let problem = parse::<v1::NotifyRequest>(b"{\"template_id\": \"\xff\"}").unwrap_err();
        assert_eq!(problem.code(), "malformed_json");
        let deep = format!("{{\"data\": {}1{}}}", "{\"a\":".repeat(500), "}".repeat(500));
        assert_eq!(error(&deep).0, "malformed_json", "nesting is bounded");
    }
}
