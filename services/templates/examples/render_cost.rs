//! What a render costs: `cargo run --release --example render_cost -p herald-templates`.
//!
//! Prints nanoseconds of CPU time a render (from the kernel's account of this thread; wall time where there is none).

use std::hint::black_box;
use std::time::Instant;

use herald_templates::{
    Channel, Limits, PersonContext, Rendered, SharedContext, Template, TemplateSource, TenantContext, UserContext,
};
use serde_json::{Value, json};

const RENDERS: u32 = 2_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let html = format!(
        "<h1>{{{{data.title}}}}</h1><p>Dear {{{{user.attributes.name}}}},</p>{}\
         <a href=\"{{{{unsubscribe_url}}}}\">unsubscribe</a>",
        "<p>Lorem ipsum dolor sit amet</p>".repeat(60)
    );
    let cases = [
        (
            "constant",
            Channel::InApp,
            json!({"in_app": {"body": "{{actor.attributes.name}} commented on {{data.title}}"}}),
        ),
        (
            "three variables, two shared",
            Channel::InApp,
            json!({"in_app": {"body": "Hi {{user.attributes.name}}, {{actor.attributes.name}} commented on {{data.title}}"}}),
        ),
        (
            "title and body, three of the user",
            Channel::InApp,
            json!({"in_app": {
                "title": "{{user.attributes.name}}: {{data.title}}",
                "body": "{{default user.attributes.nick \"Hello\"}}, {{user.id}}",
            }}),
        ),
        (
            "a block over the user, with data",
            Channel::InApp,
            json!({"in_app": {"body": "{{#if user.attributes.vip}}{{upper data.title}}{{else}}{{data.title}}{{/if}}"}}),
        ),
        (
            "each of 20 items for a user",
            Channel::InApp,
            json!({"in_app": {"body": "{{#each data.items}}{{@root.user.id}}: {{this}}{{#unless @last}}, {{/unless}}{{/each}}"}}),
        ),
        ("2 KB of HTML", Channel::Email, json!({"email": {"subject": "{{data.title}}", "html": html}})),
        (
            "webhook",
            Channel::Webhook,
            json!({"webhook": {"body": {"user": "{{user.id}}", "name": "{{user.attributes.name}}", "title": "{{data.title}}"}}}),
        ),
    ];
    println!("{:<36} {:>10} {:>12} {:>8}", "template", "ns/render", "ns/prepare", "bytes");
    for (name, channel, channels) in cases {
        measure(name, channel, json!({"channels": channels}))?;
    }
    Ok(())
}

fn measure(name: &str, channel: Channel, source: Value) -> Result<(), Box<dyn std::error::Error>> {
    let source: TemplateSource = serde_json::from_value(source)?;
    let template = Template::compile(&source, &Limits::default()).map_err(|errors| format!("{errors:?}"))?;
    let data = json!({"title": "Fjords & <mountains>", "items": (0..20).collect::<Vec<_>>()});
    let actor = json!({"name": "Ada Lovelace"});
    let attributes = json!({"name": "Bo Diddley", "vip": true, "plan": "pro", "country": "DE"});
    let shared = SharedContext {
        data: &data,
        actor: Some(PersonContext { id: "u1", locale: None, time_zone: None, attributes: &actor }),
        tenant: TenantContext { id: "t1", name: "Demo" },
    };
    let user = UserContext {
        id: "u-123456",
        locale: Some("en"),
        time_zone: None,
        attributes: &attributes,
        unsubscribe_url: Some("https://example.com/unsubscribe?t=abcdef"),
    };
    let mut rendered = Rendered::new();
    let prepares = RENDERS / 20;
    let start = cpu_ns();
    for _ in 0..prepares {
        black_box(template.prepare(channel, black_box(None), black_box(&shared))?);
    }
    let prepare_ns = (cpu_ns() - start) as f64 / f64::from(prepares);
    let prepared = template.prepare(channel, None, &shared)?;
    let start = cpu_ns();
    for _ in 0..RENDERS {
        prepared.render(black_box(&user), &mut rendered)?;
        black_box(rendered.message());
    }
    let render_ns = (cpu_ns() - start) as f64 / f64::from(RENDERS);
    println!("{name:<36} {render_ns:>10.1} {prepare_ns:>12.0} {:>8}", rendered.bytes());
    Ok(())
}

/// CPU time of this thread.
fn cpu_ns() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let account = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    account
        .split(' ')
        .next()
        .and_then(|ns| ns.parse().ok())
        .unwrap_or_else(|| u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX))
}
