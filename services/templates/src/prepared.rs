//! Rendering in two phases: once for a section, then for each of its users.

use std::sync::Arc;

use crate::channel::MAX_PARTS;
use crate::context::{OwnedShared, SharedContext, UserContext, Variables};
use crate::error::{LimitKind, RenderError};
use crate::eval::render_node;
use crate::output::{Fail, Meter, Output};
use crate::program::{Deps, Field, SHARED, UNSUBSCRIBE_URL, USER};
use crate::rendered::Rendered;
use crate::template::Message;
use crate::{Channel, Limits};

/// A message in which only what varies by user is open. It owns all it needs and can be shared.
#[derive(Debug)]
pub struct Prepared {
    channel: Channel,
    parts: [Option<PreparedField>; MAX_PARTS],
    /// The shared context, if something depends on it and on the user at once.
    shared: Option<Box<OwnedShared>>,
    deps: Deps,
    limits: Limits,
}

/// Resolved text, and the nodes that are open within it.
#[derive(Debug)]
struct PreparedField {
    field: Arc<Field>,
    text: String,
    open: Vec<Open>,
}

/// A node of the field, which follows the text up to `text_end`.
#[derive(Debug)]
struct Open {
    text_end: usize,
    node: usize,
}

impl Prepared {
    pub(crate) fn new(
        channel: Channel,
        message: &Message,
        shared: &SharedContext<'_>,
        limits: Limits,
    ) -> Result<Self, RenderError> {
        let variables = Variables::shared(shared);
        let mut meter = Meter::new(&limits);
        let mut prepared = Self { channel, parts: [const { None }; MAX_PARTS], shared: None, deps: 0, limits };
        let mut needs_shared = false;
        for (part, field) in message.parts.iter().enumerate() {
            let Some(field) = field else { continue };
            let mut text = String::new();
            let mut open = Vec::new();
            for (index, node) in field.nodes.iter().enumerate() {
                if node.deps & (USER | UNSUBSCRIBE_URL) != 0 {
                    prepared.deps |= node.deps;
                    needs_shared |= node.deps & SHARED != 0;
                    open.push(Open { text_end: text.len(), node: index });
                } else {
                    let mut out = Output { buffer: &mut text, meter: &mut meter };
                    render_node(node, &variables, None, &mut out).map_err(|fail| typed(*fail, field.name, &limits))?;
                }
            }
            text.shrink_to_fit();
            prepared.parts[part] = Some(PreparedField { field: Arc::clone(field), text, open });
        }
        prepared.shared = needs_shared.then(|| Box::new(OwnedShared::from(shared)));
        Ok(prepared)
    }

    /// The channel of the message.
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// Whether the message is the same for every user, so that one rendering serves all.
    pub fn is_constant(&self) -> bool {
        self.deps == 0
    }

    /// Whether the message holds an unsubscribe URL, which is then worth computing.
    pub fn uses_unsubscribe_url(&self) -> bool {
        self.deps & UNSUBSCRIBE_URL != 0
    }

    /// Renders the message for one user into `rendered`, whose buffers are reused. After an error it is empty.
    ///
    /// # Errors
    /// [`RenderError::Data`] and [`RenderError::Limit`]: this user's message fails, others may not.
    pub fn render(&self, user: &UserContext<'_>, rendered: &mut Rendered) -> Result<(), RenderError> {
        rendered.start(self.channel);
        let variables = Variables::of_user(user, self.shared.as_deref());
        let mut meter = Meter::new(&self.limits);
        for (part, prepared) in self.parts.iter().enumerate() {
            let Some(prepared) = prepared else { continue };
            let mut out = Output { buffer: rendered.open(part), meter: &mut meter };
            if let Err(fail) = prepared.render(&variables, &mut out) {
                rendered.start(self.channel);
                return Err(typed(*fail, prepared.field.name, &self.limits));
            }
        }
        Ok(())
    }
}

impl PreparedField {
    #[inline]
    fn render<'a>(&'a self, variables: &Variables<'a>, out: &mut Output<'_>) -> Result<(), Box<Fail>> {
        let mut written = 0;
        for open in &self.open {
            out.push(&self.text[written..open.text_end])?;
            written = open.text_end;
            render_node(&self.field.nodes[open.node], variables, None, out)?;
        }
        out.push(&self.text[written..])
    }
}

#[cold]
fn typed(fail: Fail, field: &'static str, limits: &Limits) -> RenderError {
    match fail {
        Fail::Data(path, problem) => RenderError::Data { field, path, problem },
        Fail::Limit(limit) => {
            let max = match limit {
                LimitKind::OutputBytes => limits.output_bytes as u64,
                LimitKind::Iterations => u64::from(limits.iterations),
                LimitKind::WorkUnits => limits.work_units as u64,
            };
            RenderError::Limit { field, limit, max }
        }
    }
}
