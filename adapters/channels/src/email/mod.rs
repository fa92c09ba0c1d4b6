//! Email: composing messages, signing them, handing them to a mail server, and a mailbox to look at them.
//!
//! | module | what it does |
//! |---|---|
//! | [`address`] | validated addresses |
//! | [`message`] | composes messages; what a batch shares is prepared once |
//! | [`dkim`] | signs them |
//! | [`config`] | the server's URL and the client's bounds |
//! | [`smtp`] | the client |
//! | [`outcome`] | what the server's answers mean |
//! | [`mailbox`] | a server that keeps mail in memory, for development |

pub mod address;
mod channel;
pub mod config;
pub mod dkim;
pub mod mailbox;
pub mod message;
pub mod outcome;
pub mod smtp;

pub use channel::EmailChannel;
pub use config::SmtpConfig;
pub use outcome::Outcome;
pub use smtp::{EmailClient, OutgoingMail};
