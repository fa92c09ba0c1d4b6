//! Whatever is uploaded, the answer is a template or a list of errors.

mod support;

use herald_templates::Channel;
use proptest::prelude::*;
use serde_json::json;
use support::{World, compile};

fn token() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "{{",
        "}}",
        "{{{",
        "}}}",
        "{{#",
        "{{/",
        "{{else",
        "{{^",
        "{{~",
        "~}}",
        "{{!--",
        "--}}",
        "{{!",
        "{{>",
        "{{{{",
        "}}}}",
        "#",
        "/",
        "if",
        "each",
        "with",
        "unless",
        "else",
        "as",
        "|a|",
        "|a b|",
        "|",
        " ",
        "\n",
        "data",
        ".",
        "..",
        "../",
        "data.a",
        "this",
        "@index",
        "@root.",
        "@",
        "(",
        ")",
        "[",
        "]",
        "\"",
        "'",
        "\\",
        "=",
        "x=1",
        "1",
        "-1.5E3",
        "true",
        "null",
        "{",
        "}",
        "eq",
        "upper",
        "{{data.a}}",
        "{{#if data.a}}",
        "{{/if}}",
        "{{#each data.a}}",
        "{{/each}}",
        "{{else}}",
        "{{else if data.b}}",
        "{{> p}}",
        "&",
        "*",
        "ä",
        "~",
        "p",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, ..ProptestConfig::default() })]

    #[test]
    fn any_source_is_settled(tokens in prop::collection::vec(token(), 0..24)) {
        let text = tokens.concat();
        let source = json!({
            "channels": {"email": {"subject": text, "text": text, "html": text}, "push": {"data": {"a": text}}, "webhook": {"body": text}},
            "partials": {"p": "p{{data.a}}"},
        });
        match compile(source) {
            Ok(template) => {
                let world = World::new(json!({"a": [1, {"a": "b"}], "b": "\"<"}));
                for channel in Channel::ALL {
                    let _ = world.render(&template, channel);
                }
                // A payload given as JSON stays JSON.
                if let Ok([_, _, Some(data)]) = world.render(&template, Channel::Push) {
                    prop_assert!(serde_json::from_str::<serde_json::Value>(&data).is_ok(), "{data}");
                }
            }
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                for error in errors {
                    prop_assert!(error.line >= 1 && error.column >= 1 && !error.message.is_empty());
                }
            }
        }
    }
}
