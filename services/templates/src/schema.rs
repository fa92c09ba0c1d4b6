//! The JSON Schema of a template's data.
//!
//! A schema comes from a tenant and is evaluated at every notify, so its cost is bounded at upload: references stay
//! within it, they form no circle, and their expansion is counted. Patterns use an engine of linear time.

use std::collections::HashMap;

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

use crate::Limits;
use crate::error::{CompileCode, DataError};

/// Errors reported of one `data`.
const MAX_DATA_ERRORS: usize = 20;
/// Bytes of one error's detail.
const MAX_DETAIL_BYTES: usize = 300;

/// Compiles `schema`, or says why it is refused.
pub(crate) fn compile(schema: &Value, limits: &Limits) -> Result<Validator, (CompileCode, String)> {
    if !schema.is_object() {
        return Err((CompileCode::InvalidSchema, "A data schema is a JSON object.".to_owned()));
    }
    let bytes = schema.to_string().len();
    if bytes > limits.schema_bytes {
        let message = format!("The schema has {bytes} bytes; shorten it to {}.", limits.schema_bytes);
        return Err((CompileCode::TooLarge, message));
    }
    let mut expansion = Expansion { root: schema, sizes: HashMap::new() };
    let nodes = expansion.size(schema).map_err(|message| (CompileCode::InvalidSchema, message))?;
    if nodes > limits.schema_nodes {
        let message = format!(
            "With its references expanded the schema has more than {} parts; simplify it.",
            limits.schema_nodes
        );
        return Err((CompileCode::TooLarge, message));
    }
    jsonschema::options()
        .with_retriever(NoRetrieval)
        .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES))
        .build(schema)
        .map_err(|error| (CompileCode::InvalidSchema, format!("The schema is invalid: {}.", error.masked())))
}

/// Where `data` does not fit.
pub(crate) fn check(validator: &Validator, data: &Value) -> Result<(), Vec<DataError>> {
    if validator.is_valid(data) {
        return Ok(());
    }
    let errors = validator.iter_errors(data).take(MAX_DATA_ERRORS).map(|error| {
        let mut detail = error.masked().to_string();
        let end = detail.floor_char_boundary(MAX_DETAIL_BYTES);
        detail.truncate(end);
        DataError { pointer: error.instance_path().to_string(), detail }
    });
    Err(errors.collect())
}

/// Refuses to fetch anything.
struct NoRetrieval;

impl jsonschema::Retrieve for NoRetrieval {
    fn retrieve(
        &self,
        uri: &jsonschema::Uri<String>,
    ) -> Result<Value, Box<dyn std::error::Error + Send + Sync + 'static>> {
        Err(format!("`{uri}` is outside of this schema").into())
    }
}

/// What a pattern counts for: each is compiled to a machine of up to [`PATTERN_BYTES`].
const PATTERN_WEIGHT: u64 = 64;
const PATTERN_BYTES: usize = 256 * 1024;

/// Counts values with the references expanded.
struct Expansion<'s> {
    root: &'s Value,
    /// The size behind each reference, and `None` while it is being counted.
    sizes: HashMap<&'s str, Option<u64>>,
}

impl<'s> Expansion<'s> {
    fn size(&mut self, value: &'s Value) -> Result<u64, String> {
        match value {
            Value::Array(items) => items.iter().try_fold(1, |sum: u64, item| Ok(sum.saturating_add(self.size(item)?))),
            Value::Object(fields) => fields.iter().try_fold(1, |sum: u64, (name, field)| {
                let size = match (name.as_str(), field) {
                    ("$ref", Value::String(reference)) => self.referenced(reference)?,
                    ("$dynamicRef" | "$recursiveRef", Value::String(_)) => {
                        return Err(format!("`{name}` is not offered; use `$ref` into `$defs`."));
                    }
                    ("$id" | "id", Value::String(_)) if !std::ptr::eq(value, self.root) => {
                        return Err("Only the root of a schema has an `$id`; remove the inner ones.".to_owned());
                    }
                    ("pattern", Value::String(_)) => PATTERN_WEIGHT,
                    ("patternProperties", Value::Object(patterns)) => {
                        self.size(field)?.saturating_add(PATTERN_WEIGHT.saturating_mul(patterns.len() as u64))
                    }
                    _ => self.size(field)?,
                };
                Ok(sum.saturating_add(size))
            }),
            _ => Ok(1),
        }
    }

    fn referenced(&mut self, reference: &'s str) -> Result<u64, String> {
        match self.sizes.get(reference) {
            Some(Some(size)) => return Ok(*size),
            Some(None) => return Err(format!("`{reference}` refers to itself; schemas of data are not recursive.")),
            None => {}
        }
        let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        let Some(target) = target else {
            return Err(format!("`$ref` to `{reference}` is refused; refer to a part of this schema, `#/$defs/...`."));
        };
        self.sizes.insert(reference, None);
        let size = self.size(target)?;
        self.sizes.insert(reference, Some(size));
        Ok(size)
    }
}
