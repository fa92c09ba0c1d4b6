//! The channels and the parts of their messages.

use std::fmt;

/// A way to reach a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    /// The in-app inbox: `title`, `body`.
    InApp,
    /// Email: `subject`, `text`, `html`.
    Email,
    /// Push to devices: `title`, `body`, `data`.
    Push,
    /// A call to the tenant's server: `body`.
    Webhook,
}

/// The most parts a message has.
pub(crate) const MAX_PARTS: usize = 3;

impl Channel {
    /// All channels.
    pub const ALL: [Self; 4] = [Self::InApp, Self::Email, Self::Push, Self::Webhook];

    /// The name as the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InApp => "in_app",
            Self::Email => "email",
            Self::Push => "push",
            Self::Webhook => "webhook",
        }
    }

    /// The parts of a message with the channel's name, in the order in which they are stored.
    pub(crate) fn parts(self) -> &'static [&'static str] {
        match self {
            Self::InApp => &["in_app.title", "in_app.body"],
            Self::Email => &["email.subject", "email.text", "email.html"],
            Self::Push => &["push.title", "push.body", "push.data"],
            Self::Webhook => &["webhook.body"],
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
