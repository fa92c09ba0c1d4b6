//! Short ways to compile and render.
#![allow(dead_code, clippy::expect_used)]

use herald_templates::{
    Channel, CompileError, Limits, Message, PersonContext, RenderError, Rendered, SharedContext, Template,
    TemplateSource, TenantContext, UserContext,
};
use serde_json::{Value, json};

pub fn compile(source: Value) -> Result<Template, Vec<CompileError>> {
    let source: TemplateSource = serde_json::from_value(source).expect("the source has the right shape");
    Template::compile(&source, &Limits::default())
}

/// The errors of `text` as an in-app body.
pub fn errors(text: &str) -> Vec<CompileError> {
    compile(json!({"channels": {"in_app": {"body": text}}})).expect_err("this is refused")
}

/// A world with one of everything.
pub struct World {
    pub data: Value,
    pub actor: Option<Value>,
    pub user: Value,
    pub locale: Option<&'static str>,
}

impl World {
    pub fn new(data: Value) -> Self {
        Self {
            data,
            actor: Some(json!({"name": "Ada"})),
            user: json!({"name": "Bo", "vip": true}),
            locale: Some("de-AT"),
        }
    }

    /// Renders `channel` and returns its parts.
    pub fn render(&self, template: &Template, channel: Channel) -> Result<[Option<String>; 3], RenderError> {
        let shared = SharedContext {
            data: &self.data,
            actor: self.actor.as_ref().map(|attributes| PersonContext {
                id: "u-ada",
                locale: Some("en"),
                time_zone: None,
                attributes,
            }),
            tenant: TenantContext { id: "t1", name: "Demo & Co" },
        };
        let prepared = template.prepare(channel, self.locale, &shared)?;
        let user = UserContext {
            id: "u-bo",
            locale: self.locale,
            time_zone: Some("Europe/Vienna"),
            attributes: &self.user,
            unsubscribe_url: Some("https://example.com/u?t=1"),
        };
        let mut rendered = Rendered::new();
        prepared.render(&user, &mut rendered)?;
        let own = |part: Option<&str>| part.map(str::to_owned);
        Ok(match rendered.message().expect("rendered") {
            Message::InApp { title, body } => [own(title), own(body), None],
            Message::Email { subject, text, html } => [own(subject), own(text), own(html)],
            Message::Push { title, body, data } => [own(title), own(body), own(data)],
            Message::Webhook { body } => [own(body), None, None],
        })
    }

    /// Renders `text` as an in-app body.
    pub fn body(&self, text: &str) -> Result<String, RenderError> {
        let template = compile(json!({"channels": {"in_app": {"body": text}}})).expect(text);
        Ok(self.render(&template, Channel::InApp)?[1].clone().expect("a body"))
    }

    /// Renders `text` as an email's HTML.
    pub fn html(&self, text: &str) -> Result<String, RenderError> {
        let template = compile(json!({"channels": {"email": {"subject": "s", "html": text}}})).expect(text);
        Ok(self.render(&template, Channel::Email)?[2].clone().expect("html"))
    }

    /// Renders `body` as a webhook's body.
    pub fn webhook(&self, body: Value) -> Result<String, RenderError> {
        let template = compile(json!({"channels": {"webhook": {"body": body}}})).expect("compiles");
        Ok(self.render(&template, Channel::Webhook)?[0].clone().expect("a body"))
    }
}
