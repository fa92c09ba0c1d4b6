//! Herald's template engine: Handlebars, compiled once at upload and rendered millions of times.
//!
//! [`Template::compile`] checks and compiles a [`TemplateSource`]. [`Template::prepare`] resolves, once for a section,
//! what its users have in common; [`Prepared::render`] fills in what varies by user, into buffers that are reused.
//!
//! # The language
//! The handlebars crate parses, so white space control, comments, escapes and literals are its. Names are resolved and
//! checked at upload, and evaluation is ours: a foreign evaluator could be bounded neither in iterations nor in time,
//! and would need a copy of all data for each user.
//!
//! - Variables: `data`, `user` and `actor` {id, locale, time_zone, attributes}, `tenant` {id, name},
//!   `unsubscribe_url`. Any other name is refused at upload.
//! - Helpers: `if`, `unless`, `each`, `with`, `lookup`, `eq`, `ne`, `gt`, `gte`, `lt`, `lte`, `and`, `or`, `not`,
//!   `len` (characters or entries), `default value fallback ...`, `upper`, `lower` and `plural count "one" "many"`.
//! - Partials are put in place at upload and see what is visible there. They take no arguments.
//! - A missing field fails the render, except as the value of `if`, `unless`, `and`, `or`, `not` and `default`.
//!   `default` also replaces null and the empty string. `each` and `with` need an `{{else}}` if there may be nothing.
//!
//! - Numbers compare by value, so 1 equals 1.0; arrays and objects equal nothing.
//!
//! # How values print
//! As the handlebars crate prints them: strings, numbers and booleans as they are, null as nothing, an array as
//! `[a, b]`, an object as `[object]`.
//!
//! # Escaping
//! | part | `{{x}}` | `{{{x}}}` |
//! |---|---|---|
//! | `email.html` | HTML-escaped | as it is |
//! | `email.subject` | as it is; CR, LF and NUL fail | the same |
//! | `push.data`, `webhook.body` | escaped inside a JSON string, elsewhere a JSON value with its quotes | the same |
//! | all others | as it is: plain text, which clients escape | the same |
//!
//! A `webhook.body` whose text does not begin as JSON is plain text.

mod channel;
mod compile;
mod context;
mod error;
mod eval;
mod limits;
mod output;
mod paths;
mod payload;
mod prepared;
mod program;
mod rendered;
mod scan;
mod schema;
mod source;
mod template;

pub use channel::Channel;
pub use context::{PersonContext, SharedContext, TenantContext, UserContext};
pub use error::{CompileCode, CompileError, DataError, DataProblem, LimitKind, RenderError};
pub use limits::Limits;
pub use prepared::Prepared;
pub use rendered::{Message, Rendered};
pub use source::{ChannelSources, EmailSource, InAppSource, LocaleSource, PushSource, TemplateSource, WebhookSource};
pub use template::{LocaleVariant, Template};
