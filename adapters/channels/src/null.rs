//! A provider that takes everything and sends nothing: for measurements and synthetic traffic.

use std::sync::Arc;

use async_trait::async_trait;
use herald_core::{
    ports::channel::{Channel, Gate, Message, Outcome, Sink},
    record::Channel as ChannelKind,
};

/// Takes whatever passes the gate.
pub struct NullChannel {
    kind: ChannelKind,
}

impl NullChannel {
    /// For a channel.
    pub fn new(kind: ChannelKind) -> Self {
        Self { kind }
    }
}

#[async_trait]
impl Channel for NullChannel {
    fn kind(&self) -> ChannelKind {
        self.kind
    }

    fn provider(&self) -> &str {
        "null"
    }

    async fn deliver(&self, batch: Vec<Message>, gate: Arc<dyn Gate>, sink: Arc<dyn Sink>) {
        for index in 0..batch.len() {
            let outcome = match gate.open(index) {
                true => Outcome::Accepted { provider_id: None },
                false => Outcome::NotAttempted { code: "gate".into() },
            };
            sink.report(index, outcome);
        }
    }
}
