//! A mail provider that is slow, refuses, hangs, answers in any order and loses answers. It outlives the node's
//! restarts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use herald_core::{
    ids::{InstanceId, NotificationId},
    ports::channel::{Channel, Gate, Message, Outcome, Sink},
    record::Channel as ChannelKind,
};

use crate::world::{Chance, SimClock};

/// Who sends: a worker from when it joined its group until it joined anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    /// Which start of the roles it is of.
    pub generation: u64,
    /// How many workers had joined anew since.
    pub joined: u64,
}

/// A batch that was handed over.
#[derive(Debug, Clone)]
pub struct Handed {
    pub at_ms: u64,
    pub turn: Turn,
    /// Messages in it of which the same worker has had no answer that counts as an attempt.
    pub first_attempts: u64,
}

/// A send that was begun.
#[derive(Debug, Clone)]
pub struct Begun {
    /// In true time, as everything that is not said to be the wall clock's.
    pub at_ms: u64,
    pub turn: Turn,
    /// Whether the same worker has had an answer that counts as an attempt before.
    pub again: bool,
    /// Whether the answer says that the provider is in trouble, or there is none.
    pub failed: bool,
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
    /// Every batch, in order.
    pub handed: Vec<Handed>,
    /// Attempts of each instance that failed and that the same worker counts.
    attempts: BTreeMap<(Turn, InstanceId), u32>,
    /// Users that came twice in one batch.
    pub twice_in_a_batch: Vec<String>,
}

/// For so long an overloaded provider stays so in the last life of the node.
const OVERLOADED_MS: u64 = 30_000;

/// A worker's, by default.
const MAX_ATTEMPTS: u32 = 8;

#[derive(Clone)]
pub struct Provider {
    pub seen: Arc<Mutex<Seen>>,
    chance: Chance,
    manner: Manner,
    /// From then on it takes everything.
    heals_ms: u64,
    life: Option<Life>,
}

/// By which a life of the node is told from others.
#[derive(Clone)]
pub struct Life {
    pub clock: Arc<SimClock>,
    /// Which start of the roles sends.
    pub generation: u64,
    /// How many workers had joined anew before, and how many have by now.
    pub joined_before: u64,
    pub joined: Arc<AtomicU64>,
}

impl Life {
    fn turn(&self) -> Turn {
        Turn { generation: self.generation, joined: self.joined.load(Relaxed) - self.joined_before }
    }
}

/// How a provider behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It does whatever providers do.
    Rough,
    /// It is slow and refuses, but everything it is asked to send is put on the wire.
    Orderly,
    /// It refuses every other message, as one that is overloaded and does not say when to come back.
    Overloaded,
}

impl Provider {
    pub fn new(chance: Chance, manner: Manner) -> Self {
        Self { seen: Arc::default(), chance, manner, heals_ms: u64::MAX, life: None }
    }

    /// The same provider, which takes everything from a time on; one that is overloaded is so for a while yet.
    pub fn healing(&self, now_ms: u64) -> Self {
        let heals_ms = now_ms + if self.manner == Manner::Overloaded { OVERLOADED_MS } else { 0 };
        Self { heals_ms, ..self.clone() }
    }

    /// The same provider as one start of the roles sees it.
    pub fn of(&self, life: &Life) -> Self {
        Self { life: Some(life.clone()), ..self.clone() }
    }

    /// Notes that a send begins, and what will be said of it.
    fn begin(&self, message: &Message, answer: Option<&Outcome>) {
        let life = self.life.as_ref().unwrap();
        let (turn, mut seen) = (life.turn(), self.seen.lock().unwrap());
        let attempts = seen.attempts.entry((turn, message.instance)).or_default();
        let again = *attempts > 0;
        // What spends an attempt; with the last one it is dead, and what is brought back begins anew.
        if matches!(answer, None | Some(Outcome::RetryAfter { .. })) {
            *attempts = (*attempts + 1) % MAX_ATTEMPTS;
        }
        let answered =
            matches!(answer, Some(Outcome::Accepted { .. } | Outcome::Rejected { .. } | Outcome::AddressBad { .. }));
        seen.begun.push(Begun {
            at_ms: life.clock.true_ms(),
            turn,
            again,
            failed: !answered,
            instance: message.instance,
            notification: message.notification,
            tenant: message.tenant.as_str().to_owned(),
            user: message.user.to_string(),
        });
    }

    fn look_at(&self, batch: &[Message]) {
        let life = self.life.as_ref().unwrap();
        let (turn, mut seen) = (life.turn(), self.seen.lock().unwrap());
        let is_first =
            |message: &&Message| seen.attempts.get(&(turn, message.instance)).is_none_or(|spent| *spent == 0);
        let first_attempts = batch.iter().filter(is_first).count() as u64;
        seen.handed.push(Handed { at_ms: life.clock.true_ms(), turn, first_attempts });
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
        let life = self.life.as_ref().unwrap();
        let fate = match self.manner {
            _ if life.clock.true_ms() >= self.heals_ms => 40,
            Manner::Overloaded if self.chance.one_in(2) => 2,
            Manner::Overloaded => 40,
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
        let is_healed = self.life.as_ref().is_some_and(|life| life.clock.true_ms() >= self.heals_ms);
        if self.manner == Manner::Rough && !is_healed && self.chance.one_in(25) {
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
            let answer = self.answer(message);
            self.begin(message, answer.as_ref());
            match answer {
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
