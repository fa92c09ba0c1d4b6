//! A mail provider that is slow, refuses, and loses answers. It outlives the node's restarts.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use herald_core::{
    ids::InstanceId,
    ports::channel::{Channel, Gate, Message, Outcome, Sink},
    record::Channel as ChannelKind,
};

use crate::world::Chance;

/// What the provider has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// How often each instance was taken.
    pub taken: BTreeMap<InstanceId, u64>,
    /// Messages that were taken without an answer.
    pub unanswered: u64,
    /// In the order in which they were taken: tenant, user, subject.
    pub sequence: Vec<(String, String, String)>,
}

#[derive(Clone)]
pub struct Provider {
    pub seen: Arc<Mutex<Seen>>,
    chance: Chance,
    /// Whether it misbehaves; off while a simulation settles.
    faulty: bool,
}

impl Provider {
    pub fn new(chance: Chance) -> Self {
        Self { seen: Arc::default(), chance, faulty: true }
    }

    /// The same provider, behaving well.
    pub fn healed(&self) -> Self {
        Self { faulty: false, ..self.clone() }
    }

    fn take(&self, message: &Message) {
        let mut seen = self.seen.lock().unwrap();
        *seen.taken.entry(message.instance).or_default() += 1;
        let subject = match &message.content {
            herald_core::ports::channel::Content::Email { subject, .. } => subject.clone(),
            _ => String::new(),
        };
        seen.sequence.push((message.tenant.as_str().to_owned(), message.user.to_string(), subject));
    }
}

#[async_trait]
impl Channel for Provider {
    fn kind(&self) -> ChannelKind {
        ChannelKind::Email
    }

    fn provider(&self) -> &str {
        "sim"
    }

    async fn deliver(&self, batch: Vec<Message>, gate: Arc<dyn Gate>, sink: Arc<dyn Sink>) {
        let mut lost = false;
        for (index, message) in batch.iter().enumerate() {
            if self.chance.one_in(3) {
                tokio::time::sleep(Duration::from_millis(self.chance.below(40))).await;
            }
            if !gate.open(index) {
                sink.report(index, Outcome::NotAttempted { code: "gate".into() });
                continue;
            }
            let fate = if self.faulty { self.chance.below(40) } else { 39 };
            let code = || "sim".to_owned();
            match fate {
                0 => sink.report(index, Outcome::Rejected { code: code() }),
                1 => sink.report(index, Outcome::AddressBad { code: code() }),
                2..=4 => sink.report(index, Outcome::RetryAfter { after: None, code: code() }),
                5 => sink.report(index, Outcome::NotAttempted { code: code() }),
                6 => {
                    // Taken, and the answer is lost.
                    self.take(message);
                    self.seen.lock().unwrap().unanswered += 1;
                    lost = true;
                }
                _ => {
                    self.take(message);
                    sink.report(index, Outcome::Accepted { provider_id: None });
                }
            }
        }
        if lost && self.chance.one_in(2) {
            std::future::pending::<()>().await;
        }
    }
}
