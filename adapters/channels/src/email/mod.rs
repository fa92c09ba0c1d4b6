//! Email: composing messages, signing them, handing them to a mail server, and a mailbox to look at them.

pub mod address;
pub mod config;
pub mod mailbox;
pub mod outcome;
pub mod smtp;

pub use config::SmtpConfig;
pub use outcome::Outcome;
pub use smtp::{EmailClient, OutgoingMail};
