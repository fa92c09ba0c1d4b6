//! A rendered message.

use crate::Channel;
use crate::channel::MAX_PARTS;

/// Buffers for one rendered message at a time, reused from user to user.
#[derive(Debug, Default)]
pub struct Rendered {
    channel: Option<Channel>,
    parts: [String; MAX_PARTS],
    is_present: [bool; MAX_PARTS],
}

/// A rendered message by channel. Parts that the template does not have are `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// In-app; both parts are plain text.
    InApp {
        /// The headline.
        title: Option<&'a str>,
        /// The text.
        body: Option<&'a str>,
    },
    /// Email.
    Email {
        /// The subject: a single line, not yet encoded for a header.
        subject: Option<&'a str>,
        /// The plain text body.
        text: Option<&'a str>,
        /// The HTML body.
        html: Option<&'a str>,
    },
    /// Push.
    Push {
        /// The headline.
        title: Option<&'a str>,
        /// The text.
        body: Option<&'a str>,
        /// The application's payload, a JSON object.
        data: Option<&'a str>,
    },
    /// Webhook.
    Webhook {
        /// The body: JSON, unless the template is of another format.
        body: Option<&'a str>,
    },
}

impl Rendered {
    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The message, or `None` before the first rendering.
    pub fn message(&self) -> Option<Message<'_>> {
        let part = |index: usize| self.is_present[index].then_some(self.parts[index].as_str());
        Some(match self.channel? {
            Channel::InApp => Message::InApp { title: part(0), body: part(1) },
            Channel::Email => Message::Email { subject: part(0), text: part(1), html: part(2) },
            Channel::Push => Message::Push { title: part(0), body: part(1), data: part(2) },
            Channel::Webhook => Message::Webhook { body: part(0) },
        })
    }

    /// Bytes of the message, all parts together.
    pub fn bytes(&self) -> usize {
        self.parts.iter().zip(self.is_present).map(|(part, is_present)| if is_present { part.len() } else { 0 }).sum()
    }

    /// Forgets the last message.
    pub(crate) fn start(&mut self, channel: Channel) {
        self.channel = Some(channel);
        self.is_present = [false; MAX_PARTS];
    }

    /// The emptied buffer of a part that is about to be written.
    pub(crate) fn open(&mut self, part: usize) -> &mut String {
        self.is_present[part] = true;
        let buffer = &mut self.parts[part];
        buffer.clear();
        buffer
    }
}
