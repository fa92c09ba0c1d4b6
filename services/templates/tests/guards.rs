//! Malicious and mistaken templates end as errors; none takes the process down or runs on.

mod support;

use herald_templates::{Channel, CompileCode, LimitKind, Limits, RenderError, Template, TemplateSource};
use serde_json::{Value, json};
use support::{World, compile, errors};

/// Line, column and code of the first error of an in-app body.
fn place(text: &str) -> (usize, usize, CompileCode) {
    let error = &errors(text)[0];
    assert_eq!(error.field, "channels.in_app.body");
    (error.line, error.column, error.code)
}

fn limit_of(result: Result<String, RenderError>) -> LimitKind {
    match result {
        Err(error @ RenderError::Limit { limit, .. }) => {
            assert_eq!(error.code(), "template_limit");
            limit
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn nesting_is_refused_before_it_is_parsed() {
    let nested = |open: &str, close: &str, n: usize| format!("{}x{}", open.repeat(n), close.repeat(n));
    let small = Limits { field_bytes: usize::MAX, template_bytes: usize::MAX, tags: usize::MAX, ..Limits::default() };
    for (text, code) in [
        (nested("{{#if data.a}}", "{{/if}}", 20_000), CompileCode::TooDeep),
        (nested("{{#each data.a}}", "{{/each}}", 33), CompileCode::TooDeep),
        (nested("{{# if data.a}}", "{{/ if}}", 33), CompileCode::TooDeep),
        (nested("{{~#if data.a~}}", "{{~/if~}}", 33), CompileCode::TooDeep),
        ("{{#if data.a}}".repeat(20_000), CompileCode::TooDeep),
        (format!("{{{{#if data.a}}}}{}{{{{/if}}}}", "{{else if data.b}}".repeat(20_000)), CompileCode::TooDeep),
        (format!("{{{{{}data.a{}}}}}", "(not ".repeat(20_000), ")".repeat(20_000)), CompileCode::TooDeep),
        (format!("{{{{len {}{}}}}}", "[".repeat(20_000), "]".repeat(20_000)), CompileCode::TooDeep),
        (format!("{{{{len {}1{}}}}}", "{\"a\":".repeat(20_000), "}".repeat(20_000)), CompileCode::TooDeep),
        (format!("{{{{upper [}}}}] {}", "(not ".repeat(20_000)), CompileCode::TooDeep),
        (format!("{{{{upper \"}}}}\" {}", "(not ".repeat(20_000)), CompileCode::TooDeep),
    ] {
        let source: TemplateSource = serde_json::from_value(json!({"channels": {"in_app": {"body": text}}})).unwrap();
        assert_eq!(Template::compile(&source, &small).unwrap_err()[0].code, code, "{}", &text[..60]);
    }
    // What is allowed does compile, and renders.
    let world = World::new(json!({"a": [1]}));
    assert_eq!(world.body(&nested("{{#if data.a}}", "{{/if}}", 32)).unwrap(), "x");
}

#[test]
fn closers_in_comments_and_strings_hide_no_nesting() {
    for hidden in ["{{!-- {{/if}} --}}", "{{! -- {{/if}} --}}", "{{len \"{{/if}}\"}}", "\\{{/if}}"] {
        let text = format!("{}x{}", format!("{{{{#if data.a}}}}{hidden}").repeat(33), "{{/if}}".repeat(33));
        assert_eq!(place(&text).2, CompileCode::TooDeep, "{hidden}");
    }
}

#[test]
fn sizes_are_capped() {
    assert_eq!(place(&"x".repeat(128 * 1024 + 1)).2, CompileCode::TooLarge);
    assert_eq!(place(&"{{data.a}}".repeat(1_025)).2, CompileCode::TooLarge);
    // The parser would take most of a minute for these.
    assert_eq!(place(&format!("x{}", "\\".repeat(100_000))), (1, 2, CompileCode::TooLarge));
    let large = format!("{}{}", "x".repeat(100_000), "{{data.a}}".repeat(1_000));
    let channels = json!({"email": {"subject": "s", "text": large, "html": large}, "in_app": {"title": large}});
    assert!(
        compile(json!({"channels": channels})).unwrap_err().iter().all(|error| error.code == CompileCode::TooLarge)
    );
    let many = vec!["x".repeat(100 * 1024); 11];
    let locales: serde_json::Map<String, Value> = many
        .into_iter()
        .enumerate()
        .map(|(index, text)| {
            (format!("a{}", (b'a' + index as u8) as char), json!({"channels": {"in_app": {"body": text}}}))
        })
        .collect();
    let error = &compile(json!({"channels": {}, "locales": locales})).unwrap_err()[0];
    assert_eq!((error.code, error.field.as_str()), (CompileCode::TooLarge, "channels"));
}

#[test]
fn partials_neither_circle_nor_explode() {
    let mutual = compile(json!({
        "channels": {"in_app": {"body": "{{> a}}"}},
        "partials": {"a": "1{{> b}}", "b": "2\n {{> a}}"},
    }))
    .unwrap_err();
    assert_eq!((mutual[0].code, mutual[0].line, mutual[0].column), (CompileCode::PartialCycle, 2, 2));
    assert_eq!(mutual[0].field, "partials.b");
    let own = compile(json!({"channels": {"in_app": {"body": "{{> a}}"}}, "partials": {"a": "{{> a}}"}}));
    assert_eq!(own.unwrap_err()[0].code, CompileCode::PartialCycle);
    let partials: serde_json::Map<String, Value> = (0..40)
        .map(|n| (format!("p{n}"), json!(format!("{{{{> p{0}}}}}{{{{> p{0}}}}}", n + 1))))
        .chain([("p40".to_owned(), json!("x"))])
        .collect();
    let bomb = compile(json!({"channels": {"in_app": {"body": "{{> p0}}"}}, "partials": partials})).unwrap_err();
    assert!(bomb.iter().any(|error| error.code == CompileCode::TooLarge), "{bomb:?}");
    let wide = compile(json!({
        "channels": {"push": {"data": {"k": vec!["{{> p}}"; 2_000]}}},
        "partials": {"p": "x".repeat(100_000)},
    }));
    assert_eq!(wide.unwrap_err()[0].code, CompileCode::TooLarge);
    assert_eq!(place("a{{> nobody}}"), (1, 2, CompileCode::UnknownPartial));
    for dynamic in ["{{> (lookup data \"p\")}}", "{{#> a}}x{{/a}}", "{{#*inline \"a\"}}x{{/inline}}", "{{* inline}}"] {
        assert!(matches!(place(dynamic).2, CompileCode::Unsupported), "{dynamic}");
    }
}

#[test]
fn mistakes_are_shown_where_they_are() {
    for (text, expected) in [
        ("one\ntwo {{data.a", (2, 5, CompileCode::Syntax)),
        ("ä {{#if data.a}}x", (1, 3, CompileCode::Syntax)),
        ("{{#if data.a}}\n{{/each}}", (2, 1, CompileCode::Syntax)),
        ("{{/if}}", (1, 1, CompileCode::Syntax)),
        ("x\n\n  {{frobnicate data.a}}", (3, 3, CompileCode::UnknownHelper)),
        ("{{#frobnicate data.a}}{{/frobnicate}}", (1, 1, CompileCode::UnknownHelper)),
        ("{{upper (log data.a)}}", (1, 1, CompileCode::UnknownHelper)),
        ("x{{name}}", (1, 2, CompileCode::UnknownVariable)),
        ("{{user.name}}", (1, 1, CompileCode::UnknownVariable)),
        ("{{tenant.secret}}", (1, 1, CompileCode::UnknownVariable)),
        ("{{this}}", (1, 1, CompileCode::UnknownVariable)),
        ("{{@index}}", (1, 1, CompileCode::UnknownVariable)),
        ("{{#each data.a}}\n{{../../data.b}}{{/each}}", (2, 1, CompileCode::UnknownVariable)),
        (&format!("{{{{data.{}}}}}", "a.".repeat(200) + "a"), (1, 1, CompileCode::UnknownVariable)),
        ("{{upper data.a data.b}}", (1, 1, CompileCode::BadArguments)),
        ("{{upper}}", (1, 1, CompileCode::BadArguments)),
        ("{{#if}}{{/if}}", (1, 1, CompileCode::BadArguments)),
        ("{{{{raw}}}}x{{{{/raw}}}}", (1, 1, CompileCode::Unsupported)),
        ("{{data.a b}}", (1, 10, CompileCode::Syntax)),
    ] {
        assert_eq!(place(text), expected, "{text}");
    }
    assert!(errors("{{name}}")[0].message.contains("data.name"));
    assert!(errors("{{user.name}}")[0].message.contains("user.attributes.name"));
    // All mistakes of all fields are reported at once.
    let all = compile(json!({
        "channels": {"in_app": {"title": "{{x}}", "body": "{{y}} {{z}}"}, "email": {"subject": "a\nb"}},
        "locales": {"de": {"channels": {"push": {"data": {"k": ["{{q}}"]}}}}, "x": {}},
        "dedupe_window": "1d", "category": "", "default_locale": "??",
    }))
    .unwrap_err();
    let fields: Vec<&str> = all.iter().map(|error| error.field.as_str()).collect();
    for field in [
        "channels.in_app.title",
        "channels.in_app.body",
        "channels.email.subject",
        "channels.email",
        "locales.de.channels.push.data.k.0",
        "locales.x",
        "dedupe_window",
        "category",
        "default_locale",
    ] {
        assert!(fields.contains(&field), "{field} in {fields:?}");
    }
}

#[test]
fn payloads_that_are_no_json_are_refused() {
    for (body, at) in [
        ("{\"a\": {{data.x}}", (1, 16)),
        ("{\"a\":\n {{data.x}} {{data.y}}}", (2, 2)),
        ("{\"a\": \"{{#if data.x}}\"{{/if}}}", (1, 8)),
        ("{\"a\": {{#each data.x}}\"{{/each}}\"}", (1, 7)),
    ] {
        let error = &compile(json!({"channels": {"push": {"data": body}}})).unwrap_err()[0];
        assert_eq!(error.code, CompileCode::InvalidJson, "{body}: {error}");
        assert_eq!(error.line, at.0, "{body}: {error}");
    }
    assert_eq!(
        compile(json!({"channels": {"push": {"data": "plain"}}})).unwrap_err()[0].code,
        CompileCode::InvalidJson
    );
    assert_eq!(compile(json!({"channels": {"push": {"data": 5}}})).unwrap_err()[0].code, CompileCode::InvalidValue);
}

#[test]
fn renders_that_never_end_are_stopped() {
    let world = World::new(json!({
        "list": (0..1_000).collect::<Vec<_>>(),
        "long": "ß".repeat(100_000),
        "long2": "ß".repeat(100_000),
    }));
    let loops = format!("{}{}", "{{#each @root.data.list}}".repeat(10), "{{/each}}".repeat(10));
    assert_eq!(limit_of(world.body(&loops)), LimitKind::Iterations);
    let printing = "{{#each data.list}}{{@root.data.long}}{{/each}}";
    assert_eq!(limit_of(world.body(printing)), LimitKind::OutputBytes);
    let html = format!("{{{{#each data.list}}}}{}{{{{/each}}}}", "&".repeat(1_000));
    assert_eq!(limit_of(world.html(&html)), LimitKind::OutputBytes);
    for work in [
        "{{#each data.list}}{{#if (eq (upper @root.data.long) \"x\")}}{{/if}}{{/each}}",
        "{{#each data.list}}{{#if (eq @root.data.long @root.data.long2)}}{{/if}}{{/each}}",
        "{{#each data.list}}{{#if (lookup @root.data @root.data.long)}}{{/if}}{{/each}}",
        "{{#each data.list}}{{#if (gt (len @root.data.long) -1)}}{{/if}}{{/each}}",
    ] {
        assert_eq!(limit_of(world.body(work)), LimitKind::WorkUnits, "{work}");
    }
    // The limits hold for what varies by user as well, and for all parts of a message together.
    let per_user = "{{#each @root.data.list}}{{@root.user.id}}{{#each @root.data.list}}{{/each}}{{/each}}";
    assert_eq!(limit_of(world.body(per_user)), LimitKind::Iterations);
    let source = "{{data.long}}";
    let template = compile(json!({"channels": {"in_app": {"title": source, "body": source}}})).unwrap();
    assert_eq!(world.render(&template, Channel::InApp).unwrap_err().code(), "template_limit");
}

#[test]
fn strange_sources_are_errors_and_no_panics() {
    for text in [
        "{{",
        "}}",
        "{{}}",
        "{{{}}}",
        "{{~}}",
        "{{#}}",
        "{{/}}",
        "{{else}}",
        "{{^}}",
        "{{#if data.a}}{{else}}{{else}}{{/if}}",
        "{{#each data.a}}{{else if data.b}}{{^}}{{/each}}",
        "{{#if data.a}}{{~else if data.b~}}{{~else~}}{{~/if}}",
        "{{\"}}",
        "{{data.[}}",
        "{{data..a}}",
        "{{data.}}",
        "{{.}}",
        "{{..}}",
        "{{@}}",
        "{{@root}}",
        "{{!",
        "{{!--",
        "{{!-- }}",
        "\\{{",
        "\\\\{{",
        "{{upper '\\x'}}",
        "{{upper \"\\ud800\"}}",
        "{{len 1E999}}",
        "{{as}}",
        "{{else x}}",
        "{{#if data.a as |x y z|}}{{/if}}",
        "{{&data.a}}}",
        "{{{data.a}}",
        "{{data.a}}}",
        "{{#with data.a as |b|}}{{b}}{{/with}}",
        "{{len -}}",
        "{{(upper data.a)}}",
        "{{((upper data.a))}}",
        "{{\u{0}}}",
        "{{ä}}",
        "{{#if data.a}}{{/if }}",
        "{{{{",
        "}}}}",
        "{{>}}",
        "{{#*}}",
        "{{#>}}{{/}}",
        "{{*}}",
    ] {
        // Compiled or refused, but settled.
        if let Ok(template) = compile(json!({"channels": {"in_app": {"body": text}}})) {
            let _ = World::new(json!({"a": {"b": [1]}})).render(&template, Channel::InApp);
        }
    }
}

#[test]
fn the_source_is_checked() {
    for unknown in
        [json!({"chanels": {}}), json!({"channels": {"sms": {}}}), json!({"channels": {"in_app": {"text": ""}}})]
    {
        assert!(serde_json::from_value::<TemplateSource>(unknown.clone()).is_err(), "{unknown}");
    }
    let minimal = json!({"channels": {"in_app": {"body": "x"}}});
    let source: TemplateSource = serde_json::from_value(minimal.clone()).unwrap();
    assert_eq!(serde_json::to_value(&source).unwrap(), minimal);
    for (window, seconds) in [
        (None, Some(86_400)),
        (Some("60s"), Some(60)),
        (Some("0s"), None),
        (Some("1.5s"), None),
        (Some("99999999999999999999s"), None),
        (Some("s"), None),
        (Some("-1s"), None),
    ] {
        let mut source = source.clone();
        source.dedupe_window = window.map(str::to_owned);
        let got =
            Template::compile(&source, &Limits::default()).ok().map(|template| template.dedupe_window().as_secs());
        assert_eq!(got, seconds, "{window:?}");
    }
    assert_eq!(compile(json!({"channels": {}})).unwrap_err()[0].code, CompileCode::Missing);
    let twice = json!({"channels": {"in_app": {"body": "x"}}, "locales": {"de-AT": {}, "de_at": {}}});
    assert_eq!(compile(twice).unwrap_err()[0].code, CompileCode::InvalidValue);
}
