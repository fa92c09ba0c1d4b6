//! A mail provider that is slow, refuses, hangs, answers in any order and loses answers. It outlives the node's
//! restarts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use herald_core::{
    ids::{InstanceId, NotificationId},
    ports::channel::{Channel, Gate, Message, Outcome, Sink},
    record::Channel as ChannelKind,
};

use crate::world::{Chance, SimClock};

/// A send that was begun.
#[derive(Debug, Clone)]
pub struct Begun {
    /// In true time, as everything that is not said to be the wall clock's.
    pub at_ms: u64,
    /// Which start of the roles began it.
    pub generation: u64,
    pub instance: InstanceId,
    pub notification: NotificationId,
    pub tenant: String,
    pub user: String,
}

/// What the provider has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// How often each instance was taken.
    pub taken: BTreeMap<InstanceId, u64>,
    /// Messages that were taken without an answer.
    pub unanswered: u64,
    /// Every send that was begun, in order.
    pub begun: Vec<Begun>,
    /// Users that came twice in one batch.
    pub twice_in_a_batch: Vec<String>,
}

#[derive(Clone)]
pub struct Provider {
    pub seen: Arc<Mutex<Seen>>,
    chance: Chance,
    manner: Manner,
    /// The clock of this life, and which start of the roles sends.
    life: Option<(Arc<SimClock>, u64)>,
}

/// How a provider behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It does whatever providers do.
    Rough,
    /// It is slow and refuses, but everything it is asked to send is put on the wire.
    Orderly,
    /// It takes everything.
    Healed,
}

impl Provider {
    pub fn new(chance: Chance, manner: Manner) -> Self {
        Self { seen: Arc::default(), chance, manner, life: None }
    }

    /// The same provider, in another manner.
    pub fn in_manner(&self, manner: Manner) -> Self {
        Self { manner, ..self.clone() }
    }

    /// The same provider as one start of the roles sees it.
    pub fn of(&self, clock: &Arc<SimClock>, generation: u64) -> Self {
        Self { life: Some((clock.clone(), generation)), ..self.clone() }
    }

    fn begin(&self, message: &Message) {
        let (clock, generation) = self.life.as_ref().unwrap();
        self.seen.lock().unwrap().begun.push(Begun {
            at_ms: clock.true_ms(),
            generation: *generation,
            instance: message.instance,
            notification: message.notification,
            tenant: message.tenant.as_str().to_owned(),
            user: message.user.to_string(),
        });
    }

    fn look_at(&self, batch: &[Message]) {
        let mut seen = self.seen.lock().unwrap();
        let mut users = BTreeSet::new();
        for Message { tenant, user, .. } in batch {
            if !users.insert((tenant, user)) {
                seen.twice_in_a_batch.push(format!("{tenant}/{user}"));
            }
        }
    }

    fn take(&self, message: &Message) {
        *self.seen.lock().unwrap().taken.entry(message.instance).or_default() += 1;
    }

    /// What it says of one message; `None` if the message is taken and the answer is lost.
    fn answer(&self, message: &Message) -> Option<Outcome> {
        let code = || "sim".to_owned();
        let fate = match self.manner {
            Manner::Healed => 40,
            Manner::Orderly | Manner::Rough => self.chance.below(40),
        };
        Some(match fate {
            0 => Outcome::Rejected { code: code() },
            1 => Outcome::AddressBad { code: code() },
            2..=4 => Outcome::RetryAfter { after: None, code: code() },
            5 if self.manner == Manner::Rough => Outcome::NotAttempted { code: code() },
            6 => Outcome::AccountFault { code: code() },
            7 => {
                self.take(message);
                self.seen.lock().unwrap().unanswered += 1;
                return None;
            }
            _ => {
                self.take(message);
                Outcome::Accepted { provider_id: None }
            }
        })
    }
}

/// Answers that are in and not told yet: told in reverse, before anything is waited for.
struct Answers<'a> {
    sink: &'a dyn Sink,
    held: Vec<(usize, Outcome)>,
}

impl Answers<'_> {
    fn tell(&mut self) {
        for (index, outcome) in self.held.drain(..).rev() {
            self.sink.report(index, outcome);
        }
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
        self.look_at(&batch);
        if self.manner == Manner::Rough && self.chance.one_in(25) {
            // Within the deadline or beyond it.
            tokio::time::sleep(Duration::from_millis(self.chance.below(5_000))).await;
        }
        let mut lost = false;
        let mut answers = Answers { sink: &*sink, held: Vec::new() };
        for (index, message) in batch.iter().enumerate() {
            if self.chance.one_in(3) {
                answers.tell();
                tokio::time::sleep(Duration::from_millis(self.chance.below(40))).await;
            }
            if !gate.open(index) {
                sink.report(index, Outcome::NotAttempted { code: "gate".into() });
                continue;
            }
            self.begin(message);
            match self.answer(message) {
                Some(outcome) => answers.held.push((index, outcome)),
                None => lost = true,
            }
        }
        answers.tell();
        if lost && self.chance.one_in(2) {
            std::future::pending::<()>().await;
        }
    }
}
