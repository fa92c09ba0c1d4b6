//! A compiled template: its translations and their channels.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jsonschema::Validator;
use serde_json::Value;

use crate::channel::MAX_PARTS;
use crate::compile::Compiler;
use crate::context::SharedContext;
use crate::error::{CompileCode, CompileError, DataError, RenderError};
use crate::prepared::Prepared;
use crate::program::{Escape, Field, Node};
use crate::source::{ChannelSources, TemplateSource};
use crate::{Channel, Limits, payload, schema};

const DEFAULT_DEDUPE_WINDOW: Duration = Duration::from_secs(86_400);
const MAX_CATEGORY_BYTES: usize = 64;

/// A compiled template. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct Template {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    category: Option<String>,
    dedupe_window: Duration,
    schema: Option<Validator>,
    /// The translations, and last what `channels` says.
    variants: Vec<LocaleVariant>,
    default_variant: usize,
    limits: Limits,
}

/// A template in one locale. Channels that the locale does not have are those of its language, then the default's.
#[derive(Debug)]
pub struct LocaleVariant {
    locale: String,
    messages: [Option<Arc<Message>>; Channel::ALL.len()],
}

/// The compiled parts of one channel's message, in the order of [`Channel::parts`].
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub parts: [Option<Arc<Field>>; MAX_PARTS],
}

impl Template {
    /// Compiles `source`, once at upload.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its place and how to mend it.
    pub fn compile(source: &TemplateSource, limits: &Limits) -> Result<Self, Vec<CompileError>> {
        let mut compiler = Compiler::new(limits);
        check_size(&mut compiler, source);
        if !compiler.errors.is_empty() {
            return Err(compiler.errors);
        }
        let dedupe_window = dedupe_window(&mut compiler, source.dedupe_window.as_deref());
        check_names(&mut compiler, source);
        let schema = source.data_schema.as_ref().and_then(|schema| {
            schema::compile(schema, limits)
                .map_err(|(code, message)| compiler.error("data_schema", (1, 1), code, message))
                .ok()
        });
        compiler.add_partials(&source.partials);
        let variants = compile_variants(&mut compiler, source);
        if !compiler.errors.is_empty() {
            return Err(compiler.errors);
        }
        let default_variant = source
            .default_locale
            .as_deref()
            .and_then(|locale| variants.iter().position(|variant| same_tag(&variant.locale, locale)))
            .unwrap_or(variants.len() - 1);
        let variants = complete(variants, default_variant);
        let category = source.category.clone();
        let inner = Inner { category, dedupe_window, schema, variants, default_variant, limits: *limits };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The category that preferences name.
    pub fn category(&self) -> Option<&str> {
        self.inner.category.as_deref()
    }

    /// How long a dedupe key guards a user; 24 hours unless set.
    pub fn dedupe_window(&self) -> Duration {
        self.inner.dedupe_window
    }

    /// Whether there is a data schema.
    pub fn has_data_schema(&self) -> bool {
        self.inner.schema.is_some()
    }

    /// Checks a notification's `data` against the data schema; without one everything fits.
    ///
    /// # Errors
    /// The places where it does not fit, at most twenty.
    pub fn check_data(&self, data: &Value) -> Result<(), Vec<DataError>> {
        self.inner.schema.as_ref().map_or(Ok(()), |validator| schema::check(validator, data))
    }

    /// The channels that the template offers to somebody of the default locale.
    pub fn channels(&self) -> impl Iterator<Item = Channel> + '_ {
        self.inner.variants[self.inner.default_variant].channels()
    }

    /// The variant for a user of `locale`: exact, language, default. Case and `_` for `-` make no difference.
    pub fn select(&self, locale: Option<&str>) -> &LocaleVariant {
        let variants = &self.inner.variants;
        let find = |tag: &str| variants.iter().find(|variant| same_tag(&variant.locale, tag));
        locale
            .and_then(|locale| find(locale).or_else(|| language(locale).and_then(find)))
            .unwrap_or(&variants[self.inner.default_variant])
    }

    /// Resolves what all users of `locale` have in common, once for a section.
    ///
    /// # Errors
    /// [`RenderError::NoChannel`], and what fails whoever the user is.
    pub fn prepare(
        &self,
        channel: Channel,
        locale: Option<&str>,
        shared: &SharedContext<'_>,
    ) -> Result<Prepared, RenderError> {
        match &self.select(locale).messages[channel as usize] {
            Some(message) => Prepared::new(channel, message, shared, self.inner.limits),
            None => Err(RenderError::NoChannel { channel }),
        }
    }
}

impl LocaleVariant {
    /// The locale as the template spells it; empty for an unnamed default. It tells variants apart.
    pub fn locale(&self) -> &str {
        &self.locale
    }

    /// The channels that have a message.
    pub fn channels(&self) -> impl Iterator<Item = Channel> + '_ {
        Channel::ALL.into_iter().filter(|channel| self.has(*channel))
    }

    /// Whether the channel has a message.
    pub fn has(&self, channel: Channel) -> bool {
        self.messages[channel as usize].is_some()
    }
}

fn language(locale: &str) -> Option<&str> {
    locale.find(['-', '_']).map(|end| &locale[..end])
}

fn same_tag(left: &str, right: &str) -> bool {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    left.len() == right.len() && left.bytes().map(plain).eq(right.bytes().map(plain))
}

fn is_tag(tag: &str) -> bool {
    let mut parts = tag.split(['-', '_']);
    let language = parts.next().unwrap_or_default();
    (2..=8).contains(&language.len())
        && language.bytes().all(|byte| byte.is_ascii_alphabetic())
        && tag.len() <= 35
        && parts.all(|part| (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn check_size(compiler: &mut Compiler<'_>, source: &TemplateSource) {
    let limits = compiler.limits;
    let payload_bytes = |value: &Option<Value>| match value {
        Some(Value::String(text)) => text.len(),
        Some(value) => value.to_string().len(),
        None => 0,
    };
    let text_bytes = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let bytes_of = |channels: &ChannelSources| {
        let in_app = channels.in_app.as_ref().map_or(0, |m| text_bytes(&m.title) + text_bytes(&m.body));
        let email =
            channels.email.as_ref().map_or(0, |m| text_bytes(&m.subject) + text_bytes(&m.text) + text_bytes(&m.html));
        let push =
            channels.push.as_ref().map_or(0, |m| text_bytes(&m.title) + text_bytes(&m.body) + payload_bytes(&m.data));
        in_app + email + push + channels.webhook.as_ref().map_or(0, |m| payload_bytes(&m.body))
    };
    let bytes = bytes_of(&source.channels)
        + source.locales.values().map(|locale| bytes_of(&locale.channels)).sum::<usize>()
        + source.partials.iter().map(|(name, text)| name.len() + text.len()).sum::<usize>();
    let sizes = [
        ("channels", bytes, limits.template_bytes, "bytes of source"),
        ("locales", source.locales.len(), limits.locales, "locales"),
        ("partials", source.partials.len(), limits.partials, "partials"),
    ];
    for (field, size, max, what) in sizes {
        if size > max {
            let message = format!("There are {size} {what}; at most {max} are allowed.");
            compiler.error(field, (1, 1), CompileCode::TooLarge, message);
        }
    }
}

fn check_names(compiler: &mut Compiler<'_>, source: &TemplateSource) {
    if let Some(category) = &source.category
        && (category.is_empty() || category.len() > MAX_CATEGORY_BYTES || category.contains(char::is_control))
    {
        let message = format!("A category has 1 to {MAX_CATEGORY_BYTES} bytes and no control characters.");
        compiler.error("category", (1, 1), CompileCode::InvalidValue, message);
    }
    let message = |tag: &str| format!("`{tag}` is no locale; write one such as `de` or `de-AT`.");
    if let Some(tag) = source.default_locale.as_deref().filter(|tag| !is_tag(tag)) {
        compiler.error("default_locale", (1, 1), CompileCode::InvalidValue, message(tag));
    }
    let mut seen: Vec<&str> = Vec::new();
    for tag in source.locales.keys() {
        let field = format!("locales.{tag}");
        if !is_tag(tag) {
            compiler.error(&field, (1, 1), CompileCode::InvalidValue, message(tag));
        } else if let Some(other) = seen.iter().find(|other| same_tag(other, tag)) {
            let message = format!("`{tag}` and `{other}` are the same locale; keep one.");
            compiler.error(&field, (1, 1), CompileCode::InvalidValue, message);
        }
        seen.push(tag);
    }
}

fn dedupe_window(compiler: &mut Compiler<'_>, text: Option<&str>) -> Duration {
    let Some(text) = text else { return DEFAULT_DEDUPE_WINDOW };
    let max = compiler.limits.dedupe_window_s;
    let digits = text.strip_suffix('s').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(seconds) if (1..=max).contains(&seconds) => Duration::from_secs(seconds),
        _ => {
            let message = format!("Write whole seconds from `1s` to `{max}s`, such as `86400s`.");
            compiler.error("dedupe_window", (1, 1), CompileCode::InvalidValue, message);
            DEFAULT_DEDUPE_WINDOW
        }
    }
}

fn compile_variants(compiler: &mut Compiler<'_>, source: &TemplateSource) -> Vec<LocaleVariant> {
    let mut variants: Vec<LocaleVariant> = source
        .locales
        .iter()
        .map(|(tag, locale)| {
            let messages = compile_channels(compiler, &format!("locales.{tag}.channels"), &locale.channels);
            LocaleVariant { locale: tag.clone(), messages }
        })
        .collect();
    // The translation of the default locale, if there is one, is found before `channels`.
    let messages = compile_channels(compiler, "channels", &source.channels);
    variants.push(LocaleVariant { locale: source.default_locale.clone().unwrap_or_default(), messages });
    if variants.iter().all(|variant| variant.channels().next().is_none()) {
        let message = "A template needs a channel: in_app, email, push or webhook.";
        compiler.error("channels", (1, 1), CompileCode::Missing, message);
    }
    variants
}

fn compile_channels(
    compiler: &mut Compiler<'_>,
    prefix: &str,
    sources: &ChannelSources,
) -> [Option<Arc<Message>>; Channel::ALL.len()] {
    let in_app = sources.in_app.as_ref().map(|source| {
        let mut parts = Parts::new(compiler, prefix, Channel::InApp);
        parts.text(0, source.title.as_deref(), Escape::None);
        parts.text(1, source.body.as_deref(), Escape::None);
        parts.require(source.title.is_some() || source.body.is_some(), "a title or a body");
        parts.finish()
    });
    let email = sources.email.as_ref().map(|source| {
        let mut parts = Parts::new(compiler, prefix, Channel::Email);
        parts.text(0, source.subject.as_deref(), Escape::Header);
        parts.text(1, source.text.as_deref(), Escape::None);
        parts.text(2, source.html.as_deref(), Escape::Html);
        parts.require(source.subject.is_some(), "a subject");
        parts.require(source.text.is_some() || source.html.is_some(), "a text or an html body");
        parts.finish()
    });
    let push = sources.push.as_ref().map(|source| {
        let mut parts = Parts::new(compiler, prefix, Channel::Push);
        parts.text(0, source.title.as_deref(), Escape::None);
        parts.text(1, source.body.as_deref(), Escape::None);
        parts.payload(2, source.data.as_ref(), false);
        parts.require(source.title.is_some() || source.body.is_some() || source.data.is_some(), "a part");
        parts.finish()
    });
    let webhook = sources.webhook.as_ref().map(|source| {
        let mut parts = Parts::new(compiler, prefix, Channel::Webhook);
        parts.payload(0, source.body.as_ref(), true);
        parts.require(source.body.is_some(), "a body");
        parts.finish()
    });
    [in_app, email, push, webhook]
}

/// The parts of one message while they are compiled.
struct Parts<'c, 's> {
    compiler: &'c mut Compiler<'s>,
    prefix: &'c str,
    channel: Channel,
    message: Message,
}

impl<'c, 's> Parts<'c, 's> {
    fn new(compiler: &'c mut Compiler<'s>, prefix: &'c str, channel: Channel) -> Self {
        Self { compiler, prefix, channel, message: Message::default() }
    }

    fn text(&mut self, part: usize, source: Option<&str>, escape: Escape) {
        if let Some(source) = source {
            let field = format!("{}.{}", self.prefix, self.channel.parts()[part]);
            let nodes = self.compiler.field(&field, source, escape);
            self.set(part, nodes);
        }
    }

    fn payload(&mut self, part: usize, source: Option<&Value>, text_allowed: bool) {
        if let Some(source) = source {
            let field = format!("{}.{}", self.prefix, self.channel.parts()[part]);
            let nodes = payload::compile(self.compiler, &field, source, text_allowed);
            self.set(part, nodes);
        }
    }

    fn set(&mut self, part: usize, nodes: Vec<Node>) {
        self.message.parts[part] = Some(Arc::new(Field { name: self.channel.parts()[part], nodes }));
    }

    fn require(&mut self, is_met: bool, what: &str) {
        if !is_met {
            let field = format!("{}.{}", self.prefix, self.channel);
            self.compiler.error(&field, (1, 1), CompileCode::Missing, format!("This channel needs {what}."));
        }
    }

    fn finish(self) -> Arc<Message> {
        Arc::new(self.message)
    }
}

/// Gives each variant the channels it lacks: its language's, the default's, then those of `channels`.
fn complete(variants: Vec<LocaleVariant>, default_variant: usize) -> Vec<LocaleVariant> {
    let own: BTreeMap<usize, _> = variants.iter().map(|variant| variant.messages.clone()).enumerate().collect();
    let base = variants.len() - 1;
    let languages: Vec<Option<usize>> = variants
        .iter()
        .map(|variant| {
            let language = language(&variant.locale)?;
            variants.iter().position(|other| same_tag(&other.locale, language))
        })
        .collect();
    let fill = |(variant, language): (LocaleVariant, Option<usize>)| {
        let LocaleVariant { locale, mut messages } = variant;
        for source in language.into_iter().chain([default_variant, base]) {
            for (message, other) in messages.iter_mut().zip(&own[&source]) {
                if message.is_none() {
                    message.clone_from(other);
                }
            }
        }
        LocaleVariant { locale, messages }
    };
    variants.into_iter().zip(languages).map(fill).collect()
}
