//! Herald's channels: how a rendered message leaves for its recipient.

pub mod email;
pub mod null;
