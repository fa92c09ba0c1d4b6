//! Providers that are set while a fan-out runs: on paused time, without other faults.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use herald_core::{
    books::Totals,
    clock::World,
    ids::InstanceId,
    policy::kind,
    ports::{
        channel::{Channel, Gate, Message, Opener, Outcome, ProviderFault, Sink},
        registry::Written,
    },
    providers::ProviderRow,
    record::Channel as ChannelKind,
    switches::{SwitchScope, SwitchState},
};
use herald_worker::OpenProviders;

use crate::fan_out::{FanOut, USERS, email};

/// What a server began to send.
struct Began {
    at_ms: u64,
    url: String,
    instance: InstanceId,
}

/// Servers by their URLs. That of `closed:` cannot be opened, that of `down:` takes nothing, and that of `account:` refuses who
/// sends.
struct Servers {
    world: World,
    began: Arc<Mutex<Vec<Began>>>,
}

#[async_trait]
impl Opener for Servers {
    fn open(&self, provider: &ProviderRow) -> Result<Arc<dyn Channel>, ProviderFault> {
        let (world, began) = (self.world.clone(), self.began.clone());
        match provider.url.as_str() {
            "closed:" => Err(ProviderFault::NoKeys),
            url => Ok(Arc::new(Server { name: provider.name.clone(), url: url.into(), world, began })),
        }
    }

    async fn check(&self, provider: &ProviderRow) -> Result<(), ProviderFault> {
        self.open(provider).map(|_| ())
    }
}

/// Takes a message every few milliseconds, one after the other in each batch.
struct Server {
    name: String,
    url: String,
    world: World,
    began: Arc<Mutex<Vec<Began>>>,
}

#[async_trait]
impl Channel for Server {
    fn kind(&self) -> ChannelKind {
        ChannelKind::Email
    }

    fn provider(&self) -> &str {
        &self.name
    }

    async fn deliver(&self, batch: Vec<Message>, gate: Arc<dyn Gate>, sink: Arc<dyn Sink>) {
        for (index, message) in batch.iter().enumerate() {
            if !gate.open(index) {
                sink.report(index, Outcome::NotAttempted { code: "gate".into() });
                continue;
            }
            let (at_ms, url) = (self.world.now_ms(), self.url.clone());
            self.began.lock().unwrap().push(Began { at_ms, url, instance: message.instance });
            tokio::time::sleep(Duration::from_millis(10)).await;
            sink.report(
                index,
                match self.url.as_str() {
                    "down:" => Outcome::RetryAfter { after: None, code: "down".into() },
                    "account:" => Outcome::AccountFault { code: "account".into() },
                    _ => Outcome::Accepted { provider_id: None },
                },
            );
        }
    }
}

/// A fan-out whose providers the test sets.
struct Set {
    fan_out: FanOut,
    began: Arc<Mutex<Vec<Began>>>,
}

impl Set {
    async fn start() -> Self {
        let began = Arc::<Mutex<Vec<Began>>>::default();
        let opener = |world: &World| Arc::new(Servers { world: world.clone(), began: began.clone() });
        let fan_out = FanOut::start_with(|world| OpenProviders::new(Vec::new(), opener(world))).await;
        Self { fan_out, began }
    }

    /// Sets a provider of mail; returns once every role runs it.
    async fn put(&self, name: &str, url: &str) -> u64 {
        let publisher = &self.fan_out.roles.publisher;
        let before = publisher.get::<ProviderRow>(kind::PROVIDER, name).await.unwrap();
        let row = ProviderRow {
            name: name.into(),
            channel: "email".into(),
            kind: "server".into(),
            url: url.into(),
            credentials: None,
            weight: 1,
            tenants: BTreeSet::new(),
            revision: before.as_ref().map_or(1, |(row, _)| row.revision + 1),
            created_ms: 0,
            updated_ms: 0,
        };
        let value = serde_json::to_vec(&row).unwrap().into();
        let expect = before.map_or(0, |(_, version)| version);
        let written = publisher.put(kind::PROVIDER, name, Some(value), expect).await.unwrap();
        assert!(matches!(written, Written::Done(_)), "{written:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.fan_out.world.now_ms()
    }

    async fn switch(&self, provider: &str, state: SwitchState) -> u64 {
        let scope = SwitchScope { provider: Some(provider.into()), ..SwitchScope::default() };
        self.fan_out.switch_of(scope, state, None).await
    }

    /// What a server began within a time.
    fn began(&self, url: &str, from_ms: u64, until_ms: u64) -> u64 {
        let began = self.began.lock().unwrap();
        began.iter().filter(|one| one.url == url && (from_ms..until_ms).contains(&one.at_ms)).count() as u64
    }

    /// Waits until a server began so many.
    async fn has_begun(&self, url: &str, count: u64) {
        for _ in 0..6_000 {
            if self.began(url, 0, u64::MAX) >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{url} began {}", self.began(url, 0, u64::MAX));
    }

    /// Everybody's mail was begun once.
    fn each_was_sent_once(&self, notifications: usize) {
        let began = self.began.lock().unwrap();
        let instances: BTreeSet<InstanceId> = began.iter().map(|one| one.instance).collect();
        assert_eq!((instances.len(), began.len()), (USERS * notifications, USERS * notifications));
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_is_swapped_hands_over_while_a_fan_out_runs() {
    let set = Set::start().await;
    set.put("relay", "first:").await;
    let id = set.fan_out.to_everyone().await;
    set.has_begun("first:", 500).await;
    let swapped_ms = set.put("relay", "second:").await;
    let totals = set.fan_out.until("everything is out", id, Totals::settled).await;
    assert_eq!(email(&totals).delivered, USERS as u64);
    set.each_was_sent_once(1);
    // A batch that it had in hand takes that long.
    assert_eq!(set.began("first:", swapped_ms + 3_000, u64::MAX), 0);
    assert!(set.began("second:", swapped_ms, u64::MAX) > 1_000);
    set.fan_out.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_for_a_provider_that_cannot_be_opened_waits() {
    let set = Set::start().await;
    set.put("relay", "closed:").await;
    let id = set.fan_out.to_everyone().await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let waiting = set.fan_out.totals(id).await.unwrap();
    assert_eq!(email(&waiting).in_flight(), USERS as u64, "nothing of it has ended");
    let opened_ms = set.put("relay", "first:").await;
    let totals = set.fan_out.until("everything is out", id, Totals::settled).await;
    assert_eq!(email(&totals).delivered, USERS as u64);
    set.each_was_sent_once(1);
    assert!(set.began("first:", opened_ms, opened_ms + 20_000) > 1_000);
    set.fan_out.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_for_a_provider_that_cannot_be_opened_can_be_switched_off() {
    let set = Set::start().await;
    set.put("relay", "closed:").await;
    let id = set.fan_out.to_everyone().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    set.switch("relay", SwitchState::Off).await;
    let totals = set.fan_out.until("it is over", id, Totals::settled).await;
    assert_eq!(email(&totals).suppressed["killed"], email(&totals).created.count);
    set.fan_out.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_for_a_provider_that_is_down_goes_by_another() {
    let set = Set::start().await;
    set.put("down", "down:").await;
    set.put("up", "up:").await;
    let id = set.fan_out.to_everyone().await;
    let totals = set.fan_out.until("everything is out", id, Totals::settled).await;
    assert_eq!(email(&totals).delivered, USERS as u64);
    assert_eq!(set.began("up:", 0, u64::MAX), USERS as u64, "each once");
    let in_vain = set.began("down:", 0, u64::MAX);
    assert!(in_vain < USERS as u64 / 2, "{in_vain} were tried in vain");
    set.fan_out.stop().await;
}

/// What was learnt of the server before it is not held against it.
#[tokio::test(start_paused = true)]
async fn a_provider_that_was_down_and_is_set_anew_is_sent_to_at_once() {
    let set = Set::start().await;
    set.put("relay", "down:").await;
    set.fan_out.to_everyone().await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    let set_ms = set.put("relay", "up:").await;
    set.fan_out.to_everyone().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(set.began("up:", set_ms, set_ms + 2_000) > 100);
    set.fan_out.stop().await;
}

/// It does not wait for the next probe of the one before, which may be a minute away, or for the end of its turn in a tier.
#[tokio::test(start_paused = true)]
async fn what_waited_for_a_provider_goes_at_once_when_another_takes_its_place() {
    for (before, cause) in [("down:", "down"), ("closed:", "not to be opened"), ("account:", "refusing the account")] {
        let set = Set::start().await;
        set.put("relay", before).await;
        let id = set.fan_out.to_everyone().await;
        // Long enough for the waits of the breaker to be at their longest; not a multiple of what is waited for.
        tokio::time::sleep(Duration::from_secs(153)).await;
        let waiting = email(&set.fan_out.totals(id).await.unwrap()).in_flight();
        assert!(waiting > USERS as u64 / 2, "{waiting} wait");
        let before_ms = set.fan_out.world.now_ms();
        set.put("relay", "up:").await;
        set.has_begun("up:", waiting / 2).await;
        let took_ms = set.fan_out.world.now_ms() - before_ms;
        assert!(took_ms < 5_000, "{cause}: it took {took_ms} ms to begin half of them");
        let totals = set.fan_out.until("everything is out", id, Totals::settled).await;
        assert_eq!((email(&totals).in_flight(), set.began("up:", 0, u64::MAX)), (0, email(&totals).delivered));
        set.fan_out.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn slow_of_one_provider_is_a_tenth_of_what_that_sent() {
    let set = Set::start().await;
    set.put("own", "own:").await;
    set.put("other", "other:").await;
    for _ in 0..8 {
        set.fan_out.to_everyone().await;
    }
    set.has_begun("own:", 1_500).await;
    let slow_ms = set.switch("own", SwitchState::Slow).await;
    let a_second = |url, from_ms, until_ms| set.began(url, from_ms, until_ms) * 1_000 / (until_ms - from_ms);
    let before = (a_second("own:", slow_ms - 3_000, slow_ms), a_second("other:", slow_ms - 3_000, slow_ms));
    // What was in its hands has gone by then.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let from_ms = slow_ms + 4_000;
    let slowed = (a_second("own:", from_ms, from_ms + 6_000), a_second("other:", from_ms, from_ms + 6_000));
    assert!((before.0 * 3..=before.0 * 5).contains(&(slowed.0 * 40)), "{slowed:?} a second of {before:?} before");
    assert!(slowed.1 >= before.1, "{slowed:?} a second of {before:?} before");
    set.fan_out.stop().await;
}
