//! The data schema: what it accepts, where it points, and what it may not be.

mod support;

use herald_templates::{CompileCode, CompileError};
use serde_json::{Value, json};
use support::compile;

fn with_schema(schema: Value) -> Result<herald_templates::Template, Vec<CompileError>> {
    compile(json!({"channels": {"in_app": {"body": "x"}}, "data_schema": schema}))
}

#[test]
fn errors_point_into_the_data_without_repeating_it() {
    let template = with_schema(json!({
        "type": "object",
        "required": ["title"],
        "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/item"}}},
        "$defs": {"item": {"type": "object", "properties": {"a/b": {"type": "integer"}}}},
    }))
    .unwrap();
    assert!(template.has_data_schema());
    assert_eq!(template.check_data(&json!({"title": 1, "items": [{"a/b": 1}]})), Ok(()));
    let errors = template.check_data(&json!({"items": [{}, {"a/b": "secret"}]})).unwrap_err();
    let pointers: Vec<&str> = errors.iter().map(|error| error.pointer.as_str()).collect();
    assert_eq!(pointers, ["", "/items/1/a~1b"], "{errors:?}");
    assert!(errors.iter().all(|error| !error.detail.contains("secret")), "{errors:?}");
    let many = template.check_data(&json!({"title": 1, "items": vec![json!(1); 1_000]})).unwrap_err();
    assert_eq!(many.len(), 20);
}

#[test]
fn schemas_that_reach_out_or_never_end_are_refused() {
    let doubling: serde_json::Map<String, Value> = (0..40)
        .map(|n| {
            let next = json!({"$ref": format!("#/$defs/d{}", n + 1)});
            (format!("d{n}"), json!({"allOf": [next, next]}))
        })
        .chain([("d40".to_owned(), json!({"type": "string"}))])
        .collect();
    for schema in [
        json!({"$ref": "https://example.com/schema.json"}),
        json!({"$ref": "file:///etc/passwd"}),
        json!({"properties": {"a": {"$ref": "other.json#/a"}}}),
        json!({"$ref": "#"}),
        json!({"allOf": [{"$ref": "#"}]}),
        json!({"properties": {"a": {"$ref": "#"}}}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        json!({"$ref": "#/$defs/none"}),
        json!({"$dynamicRef": "#x"}),
        json!({"$ref": "#/$defs/d0", "$defs": doubling}),
        json!({"$schema": "https://example.com/my-meta-schema"}),
        json!({"type": "nonsense"}),
        json!({"pattern": "("}),
        json!({"pattern": "(?=look)around"}),
        json!({"pattern": "(a{1000}){1000}"}),
        json!({"anyOf": vec![json!({"pattern": "a"}); 100]}),
        json!({"description": "x".repeat(70_000)}),
        json!([]),
        json!("string"),
    ] {
        let errors = with_schema(schema.clone()).expect_err(&schema.to_string());
        assert_eq!(errors[0].field, "data_schema");
        assert!(matches!(errors[0].code, CompileCode::InvalidSchema | CompileCode::TooLarge), "{schema}: {errors:?}");
    }
}

#[test]
fn patterns_take_linear_time() {
    let template = with_schema(json!({"properties": {"a": {"pattern": "^(a+)+$"}}})).unwrap();
    assert!(template.check_data(&json!({"a": format!("{}!", "a".repeat(50_000))})).is_err());
}
