//! What a message looks like.

mod support;

use herald_templates::{
    Channel, DataProblem, Message, RenderError, Rendered, SharedContext, TenantContext, UserContext,
};
use serde_json::{Value, json};
use support::{World, compile};

fn missing(field: &'static str, path: &str) -> RenderError {
    RenderError::Data { field, path: path.to_owned(), problem: DataProblem::Missing }
}

#[test]
fn every_variable_is_seen() {
    let world = World::new(json!({"n": 3, "list": ["a", {"b": 1}], "flag": false, "nothing": null, "pi": 3.5}));
    let text = "{{data.n}} {{data.list}} {{data.list.1.b}} {{data.list.[0]}} {{data.flag}} {{data.nothing}} {{data.pi}} \
                {{user.id}} {{user.locale}} {{user.time_zone}} {{user.attributes.name}} {{user.attributes}} \
                {{actor.id}} {{actor.locale}} {{actor.attributes.name}} {{tenant.id}} {{tenant.name}} {{unsubscribe_url}}";
    assert_eq!(
        world.body(text).unwrap(),
        "3 [a, [object]] 1 a false  3.5 u-bo de-AT Europe/Vienna Bo [object] u-ada en Ada t1 Demo & Co \
         https://example.com/u?t=1"
    );
}

#[test]
fn a_missing_field_fails_with_its_path_unless_it_has_a_default() {
    let mut world = World::new(json!({"items": [{}]}));
    assert_eq!(world.body("{{data.a.b}}"), Err(missing("in_app.body", "data.a.b")));
    assert_eq!(world.body("{{user.attributes.x}}"), Err(missing("in_app.body", "user.attributes.x")));
    assert_eq!(world.body("{{#each data.items}}{{name}}{{/each}}"), Err(missing("in_app.body", "data.items[].name")));
    assert_eq!(world.body("{{#if (eq data.a 1)}}x{{/if}}"), Err(missing("in_app.body", "data.a")));
    assert_eq!(world.body("{{lookup data \"a\"}}").unwrap_err().code(), "template_data");
    assert_eq!(
        world.body("{{default data.a \"there\"}}, {{default user.attributes.x data.y \"you\"}}").unwrap(),
        "there, you"
    );
    assert_eq!(world.body("{{#if data.a}}1{{else}}2{{/if}}{{#unless (or data.a data.b)}}3{{/unless}}").unwrap(), "23");
    world.actor = None;
    assert_eq!(world.body("{{actor.id}}"), Err(missing("in_app.body", "actor.id")));
    assert_eq!(world.body("{{#if actor}}{{actor.id}}{{else}}somebody{{/if}}").unwrap(), "somebody");
}

#[test]
fn blocks_see_their_scopes() {
    let world =
        World::new(json!({"rows": [{"n": "a", "tags": ["x", "y"]}, {"n": "b", "tags": []}], "map": {"k": 1, "l": 2}}));
    assert_eq!(
        world
            .body("{{#each data.rows}}{{@index}}{{n}}:{{#each tags}}{{../n}}{{this}}{{@../index}}{{/each}}{{#unless @last}},{{/unless}}{{/each}}")
            .unwrap(),
        "0a:ax0ay0,1b:"
    );
    assert_eq!(world.body("{{#each data.map as |v k|}}{{k}}={{v}}{{@key}};{{/each}}").unwrap(), "k=1k;l=2l;");
    assert_eq!(
        world.body("{{#with user.attributes as |who|}}{{who.name}}{{name}}{{@root.user.id}}{{/with}}").unwrap(),
        "BoBou-bo"
    );
    assert_eq!(world.body("{{#each data.none}}x{{else}}empty{{/each}}").unwrap(), "empty");
    assert_eq!(
        world.body("{{#each data.none}}x{{/each}}").unwrap_err(),
        RenderError::Data { field: "in_app.body", path: "data.none".into(), problem: DataProblem::Empty }
    );
    assert_eq!(world.body("{{#eq data.map.k 1}}one{{else}}other{{/eq}}").unwrap(), "one");
    assert_eq!(world.body("{{#if data.x}}1{{else if data.map}}2{{else}}3{{/if}}").unwrap(), "2");
}

#[test]
fn helpers_do_what_they_say() {
    let world = World::new(json!({"one": 1, "two": 2, "word": "straße", "list": [1, 2], "big": u64::MAX}));
    for (text, expected) in [
        ("{{upper data.word}} {{lower \"ÄB\"}} {{len data.word}} {{len data.list}}", "STRASSE äb 6 2"),
        (
            "{{plural data.one \"comment\" \"comments\"}} {{plural data.two \"comment\" \"comments\"}}",
            "comment comments",
        ),
        (
            "{{gt data.two 1}} {{lt data.two 1}} {{gte 2 data.two}} {{lte \"a\" \"b\"}} {{gt data.big -1}}",
            "true false true true true",
        ),
        (
            "{{eq data.one 1.0}} {{ne \"1\" data.one}} {{eq null null}} {{eq data.list data.list}}",
            "true true true false",
        ),
        ("{{#if (and data.one (not data.none))}}yes{{/if}}", "yes"),
        ("{{lookup data.list 1}} {{lookup data \"word\"}}", "2 straße"),
    ] {
        assert_eq!(world.body(text).unwrap(), expected, "{text}");
    }
}

#[test]
fn each_part_escapes_for_its_place() {
    let world = World::new(json!({"x": "<a href=\"b\">'&`\u{1}\\", "o": {"k": ["<\"", 1, null]}}));
    assert_eq!(world.body("{{data.x}}").unwrap(), "<a href=\"b\">'&`\u{1}\\");
    assert_eq!(world.html("{{data.x}}").unwrap(), "&lt;a href&#x3D;&quot;b&quot;&gt;&#x27;&amp;&#x60;\u{1}\\");
    assert_eq!(world.html("{{{data.x}}}{{&data.x}}").unwrap(), "<a href=\"b\">'&`\u{1}\\".repeat(2));
    let json: Value = serde_json::from_str(
        &world
            .webhook(json!(
                "{\"in\": \"<{{data.x}}>\", \"raw\": \"{{{data.x}}}\", \"bare\": {{data.o}}, \"s\": {{data.x}}}"
            ))
            .unwrap(),
    )
    .unwrap();
    let x = world.data["x"].as_str().unwrap();
    assert_eq!(json, json!({"in": format!("<{x}>"), "raw": x, "bare": world.data["o"], "s": x}));
}

#[test]
fn structured_payloads_stay_json_whatever_the_data() {
    let world = World::new(json!({"x": "\"},{\n", "n": 5, "items": ["\\", "b"]}));
    let body = json!({"a\"b": ["{{data.x}}", 7, null, true], "text": "line\n\"{{#each data.items}}{{this}}\"{{/each}}", "n": "{{data.n}}"});
    let json: Value = serde_json::from_str(&world.webhook(body).unwrap()).unwrap();
    assert_eq!(json, json!({"a\"b": ["\"},{\n", 7, null, true], "text": "line\n\"\\\"b\"", "n": "5"}));
    assert_eq!(world.webhook(json!("{{data.items}}")).unwrap(), r#"["\\","b"]"#);
    assert_eq!(world.webhook(json!("Hello {{user.id}} \"{{data.n}}\"")).unwrap(), "Hello u-bo \"5\"");
    let list = "[{{#each data.items}}{{this}}{{#unless @last}},{{/unless}}{{/each}}]";
    assert_eq!(world.webhook(json!(list)).unwrap(), r#"["\\","b"]"#);
}

#[test]
fn a_subject_refuses_line_breaks_that_come_with_data() {
    for evil in ["a\r\nBcc: x@example.com", "a\nb", "a\rb", "a\0b"] {
        let world = World::new(json!({"x": evil, "list": [evil]}));
        for subject in
            ["Hi {{data.x}}", "{{{data.x}}}", "{{upper data.x}}", "{{data.list}}", "{{#if data.x}}{{data.x}}{{/if}}"]
        {
            let template = compile(json!({"channels": {"email": {"subject": subject, "text": "{{data.x}}"}}})).unwrap();
            let error = world.render(&template, Channel::Email).unwrap_err();
            assert!(
                matches!(error, RenderError::Data { field: "email.subject", problem: DataProblem::LineBreak, .. }),
                "{subject}: {error}"
            );
        }
    }
    let mut world = World::new(json!({}));
    world.user = json!({"name": "a\nb"});
    let template =
        compile(json!({"channels": {"email": {"subject": "{{user.attributes.name}}", "text": "t"}}})).unwrap();
    assert_eq!(world.render(&template, Channel::Email).unwrap_err().code(), "template_data");
}

#[test]
fn locales_fall_back_and_channels_are_completed() {
    let template = compile(json!({
        "channels": {"in_app": {"body": "en"}, "push": {"body": "en"}, "email": {"subject": "en", "text": "en"}},
        "default_locale": "en",
        "locales": {
            "de": {"channels": {"in_app": {"body": "de"}, "push": {"body": "de"}}},
            "de-AT": {"channels": {"in_app": {"body": "de-AT"}}},
        },
    }))
    .unwrap();
    let body = |channel, locale: Option<&'static str>| {
        let mut world = World::new(json!({}));
        world.locale = locale;
        world.render(&template, channel).unwrap()[1].clone().unwrap()
    };
    for (locale, in_app, push, email) in [
        (Some("de-AT"), "de-AT", "de", "en"),
        (Some("de_at"), "de-AT", "de", "en"),
        (Some("de-CH"), "de", "de", "en"),
        (Some("DE"), "de", "de", "en"),
        (Some("en-GB"), "en", "en", "en"),
        (Some("fr"), "en", "en", "en"),
        (Some(""), "en", "en", "en"),
        (None, "en", "en", "en"),
    ] {
        assert_eq!(body(Channel::InApp, locale), in_app, "{locale:?}");
        assert_eq!(body(Channel::Push, locale), push, "{locale:?}");
        assert_eq!(body(Channel::Email, locale), email, "{locale:?}");
    }
    assert_eq!(template.select(Some("de-CH")).locale(), "de");
    assert_eq!(template.channels().collect::<Vec<_>>(), [Channel::InApp, Channel::Email, Channel::Push]);
    let error = World::new(json!({})).render(&template, Channel::Webhook).unwrap_err();
    assert_eq!(error, RenderError::NoChannel { channel: Channel::Webhook });
}

#[test]
fn a_listed_default_locale_wins_over_the_channels() {
    let template = compile(json!({
        "channels": {"in_app": {"body": "base"}, "webhook": {"body": {"m": "base"}}},
        "default_locale": "fr",
        "locales": {"fr": {"channels": {"in_app": {"body": "fr"}}}, "de": {"channels": {"push": {"body": "de"}}}},
    }))
    .unwrap();
    let mut world = World::new(json!({}));
    world.locale = Some("de");
    assert_eq!(world.render(&template, Channel::InApp).unwrap()[1].as_deref(), Some("fr"));
    assert_eq!(world.render(&template, Channel::Webhook).unwrap()[0].as_deref(), Some("{\"m\":\"base\"}"));
}

#[test]
fn partials_are_put_in_place() {
    let template = compile(json!({
        "channels": {"in_app": {"body": "{{#each data.items}}{{> row}}{{/each}}{{> sign}}"}},
        "partials": {"row": "[{{name}}{{> mark}}]", "mark": "!", "sign": "{{tenant.name}}"},
    }))
    .unwrap();
    let world = World::new(json!({"items": [{"name": "a"}, {"name": "b"}]}));
    assert_eq!(world.render(&template, Channel::InApp).unwrap()[1].as_deref(), Some("[a!][b!]Demo & Co"));
}

#[test]
fn only_what_varies_by_user_stays_open() {
    let shared_data = json!({"title": "T", "offer": "O"});
    let shared = SharedContext { data: &shared_data, actor: None, tenant: TenantContext { id: "t", name: "n" } };
    let prepare = |body: &str| {
        compile(json!({"channels": {"in_app": {"body": body}}}))
            .unwrap()
            .prepare(Channel::InApp, None, &shared)
            .unwrap()
    };
    assert!(prepare("{{data.title}}{{#if data.offer}}{{upper tenant.name}}{{/if}}").is_constant());
    assert!(!prepare("{{data.title}}{{user.id}}").is_constant());
    assert!(!prepare("{{data.title}}{{user.id}}").uses_unsubscribe_url());
    assert!(prepare("{{#if data.offer}}{{unsubscribe_url}}{{/if}}").uses_unsubscribe_url());
    // One set of buffers serves all users, and nothing of one is left for the next.
    let prepared =
        prepare("{{data.title}}: {{#if user.attributes.vip}}{{data.offer}} {{/if}}{{user.attributes.name}}.");
    let mut rendered = Rendered::new();
    let mut texts = Vec::new();
    for attributes in [json!({"name": "Longer name", "vip": true}), json!({}), json!({"name": "B"})] {
        let user =
            UserContext { id: "u", locale: None, time_zone: None, attributes: &attributes, unsubscribe_url: None };
        let outcome = prepared.render(&user, &mut rendered);
        texts.push(outcome.map(|()| match rendered.message() {
            Some(Message::InApp { title: None, body: Some(body) }) => body.to_owned(),
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(
        texts,
        [
            Ok("T: O Longer name.".to_owned()),
            Err(missing("in_app.body", "user.attributes.name")),
            Ok("T: B.".to_owned())
        ]
    );
}

#[test]
fn buffers_are_reused_from_user_to_user() {
    let data = json!({"title": "T"});
    let shared = SharedContext { data: &data, actor: None, tenant: TenantContext { id: "t", name: "n" } };
    let body = "{{data.title}} {{user.id}} {{#if user.attributes.vip}}{{default user.attributes.name \"you\"}}{{/if}}";
    let template = compile(json!({"channels": {"in_app": {"body": body}}})).unwrap();
    let prepared = template.prepare(Channel::InApp, None, &shared).unwrap();
    let mut rendered = Rendered::new();
    let mut buffers = Vec::new();
    for id in ["a rather long user id, the longest of all", "b", "c"] {
        let attributes = json!({"vip": true});
        let user = UserContext { id, locale: None, time_zone: None, attributes: &attributes, unsubscribe_url: None };
        prepared.render(&user, &mut rendered).unwrap();
        let Some(Message::InApp { body: Some(body), .. }) = rendered.message() else { panic!("no body") };
        assert_eq!(body, format!("T {id} you"));
        assert_eq!(rendered.bytes(), body.len());
        buffers.push(body.as_ptr());
    }
    assert!(buffers.iter().all(|buffer| *buffer == buffers[0]));
}
