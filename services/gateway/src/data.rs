//! `google.protobuf.Struct` and JSON text.
//!
//! The text is canonical: keys are sorted and whole numbers print as integers, so that equal objects have equal texts.

use std::collections::HashMap;

use herald_api::json::LOSES_DIGITS;
use herald_core::problem::FieldError;
use pbjson_types::{ListValue, Struct, Value, value::Kind};

/// Objects and lists within one another.
pub const MAX_DEPTH: usize = 32;

/// Whole numbers below this are exact as floats; from it on nobody knows which digits were meant.
const INEXACT_FROM: f64 = 9_007_199_254_740_992.0;

/// What cannot be written, and the path to it.
enum Fault {
    Depth(String),
    NotFinite(String),
    Inexact(String),
}

/// The JSON text of an object.
///
/// # Errors
/// The field where it is nested too deeply, holds a number that JSON has not or that lost digits, or is too large.
pub fn to_json(field: &str, object: &Struct, max_bytes: usize) -> Result<Vec<u8>, FieldError> {
    let mut out = Vec::with_capacity(128);
    write_object(&object.fields, &mut out, 1).map_err(|fault| match fault {
        Fault::Depth(path) => {
            let detail = format!("Objects and lists are nested at most {MAX_DEPTH} deep.");
            FieldError::new(format!("{field}{path}"), "too_deep", detail)
        }
        Fault::NotFinite(path) => {
            FieldError::new(format!("{field}{path}"), "invalid_value", "JSON has no infinity and no NaN.")
        }
        Fault::Inexact(path) => FieldError::new(format!("{field}{path}"), "out_of_range", LOSES_DIGITS),
    })?;
    if out.len() > max_bytes {
        let detail = format!("It has {} bytes as JSON; at most {max_bytes} are allowed.", out.len());
        return Err(FieldError::new(field, "too_large", detail));
    }
    Ok(out)
}

fn write_object(fields: &HashMap<String, Value>, out: &mut Vec<u8>, depth: usize) -> Result<(), Fault> {
    if depth > MAX_DEPTH {
        return Err(Fault::Depth(String::new()));
    }
    let mut sorted: Vec<(&String, &Value)> = fields.iter().collect();
    sorted.sort_unstable_by_key(|(name, _)| *name);
    out.push(b'{');
    for (i, (name, value)) in sorted.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_text(name, out);
        out.push(b':');
        write_value(value, out, depth).map_err(|fault| fault.within(&format!(".{name}")))?;
    }
    out.push(b'}');
    Ok(())
}

fn write_value(value: &Value, out: &mut Vec<u8>, depth: usize) -> Result<(), Fault> {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => out.extend_from_slice(b"null"),
        Some(Kind::BoolValue(true)) => out.extend_from_slice(b"true"),
        Some(Kind::BoolValue(false)) => out.extend_from_slice(b"false"),
        Some(Kind::StringValue(text)) => write_text(text, out),
        Some(Kind::NumberValue(number)) => write_number(*number, out)?,
        Some(Kind::StructValue(object)) => write_object(&object.fields, out, depth + 1)?,
        Some(Kind::ListValue(list)) => {
            if depth + 1 > MAX_DEPTH {
                return Err(Fault::Depth(String::new()));
            }
            out.push(b'[');
            for (i, value) in list.values.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_value(value, out, depth + 1).map_err(|fault| fault.within(&format!("[{i}]")))?;
            }
            out.push(b']');
        }
    }
    Ok(())
}

fn write_number(number: f64, out: &mut Vec<u8>) -> Result<(), Fault> {
    if !number.is_finite() {
        return Err(Fault::NotFinite(String::new()));
    }
    if number.abs() >= INEXACT_FROM {
        return Err(Fault::Inexact(String::new()));
    }
    // A vector takes any text.
    let _ = if number.fract() == 0.0 {
        serde_json::to_writer(out, &(number as i64))
    } else {
        serde_json::to_writer(out, &number)
    };
    Ok(())
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    // Without an early exit the compiler looks at many bytes at once; nearly every text is plain.
    let special = text.bytes().fold(false, |special, b| special | (b < 0x20) | (b == b'"') | (b == b'\\'));
    if !special {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        // A vector takes any text.
        let _ = serde_json::to_writer(out, text);
    }
}

impl Fault {
    fn within(self, step: &str) -> Self {
        match self {
            Self::Depth(path) => Self::Depth(format!("{step}{path}")),
            Self::NotFinite(path) => Self::NotFinite(format!("{step}{path}")),
            Self::Inexact(path) => Self::Inexact(format!("{step}{path}")),
        }
    }
}

/// A JSON object as a struct. Numbers beyond a float's precision lose digits; those written by [`to_json`] do not.
pub fn to_struct(object: serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct { fields: object.into_iter().map(|(name, value)| (name, to_value(value))).collect() }
}

fn to_value(value: serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(bool) => Kind::BoolValue(bool),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::StringValue(text),
        serde_json::Value::Array(items) => {
            Kind::ListValue(ListValue { values: items.into_iter().map(to_value).collect() })
        }
        serde_json::Value::Object(object) => Kind::StructValue(to_struct(object)),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(value: serde_json::Value) -> String {
        let object: Struct = serde_json::from_value(value).unwrap();
        String::from_utf8(to_json("data", &object, 10_000).unwrap()).unwrap()
    }

    #[test]
    fn the_text_is_canonical() {
        assert_eq!(
            text(json!({"b": [1, 2.5, -3.0, null, true], "a": {"z": "\"\n", "é": ""}})),
            r#"{"a":{"z":"\"\n","é":""},"b":[1,2.5,-3,null,true]}"#
        );
        assert_eq!(text(json!({"n": 9_007_199_254_740_991u64, "m": 0.25})), r#"{"m":0.25,"n":9007199254740991}"#);
        assert_eq!(text(json!({})), "{}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let mut deep = json!(1);
        for _ in 0..40 {
            deep = json!({"a": deep});
        }
        let deep: Struct = serde_json::from_value(deep).unwrap();
        let error = to_json("data", &deep, 10_000).unwrap_err();
        assert_eq!((error.code, error.field.len()), ("too_deep", "data".len() + 32 * 2));
        let nan = Value { kind: Some(Kind::NumberValue(f64::NAN)) };
        let list = Value { kind: Some(Kind::ListValue(ListValue { values: vec![nan] })) };
        let object = Struct { fields: [("x".to_owned(), list)].into() };
        assert_eq!(to_json("data", &object, 10).unwrap_err().field, "data.x[0]");
        // Beyond 64 bits a whole number comes as a float; so does every number over gRPC.
        for lossy in [9_007_199_254_740_992.0, -1e20] {
            let object = Struct { fields: [("id".to_owned(), Value::from(lossy))].into() };
            let error = to_json("attributes", &object, 100).unwrap_err();
            assert_eq!((error.field.as_str(), error.code), ("attributes.id", "out_of_range"));
            assert!(error.detail.contains("as a string"));
        }
        let large = Struct { fields: [("x".to_owned(), Value::from("y".repeat(100)))].into() };
        assert_eq!(to_json("data", &large, 50).unwrap_err().code, "too_large");
    }

    #[test]
    fn an_object_comes_back() {
        let object = json!({"a": {"b": [1, "x", null, false, 2.5]}});
        let serde_json::Value::Object(map) = object.clone() else { panic!() };
        let back: serde_json::Value = serde_json::from_str(&text(object.clone())).unwrap();
        assert_eq!(back, object);
        assert_eq!(to_json("data", &to_struct(map), 100).unwrap(), object.to_string().into_bytes());
    }
}
