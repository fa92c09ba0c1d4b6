//! Limits and providers in trouble, without other faults: what is attempted, and whose turn it is. On paused time shares
//! and counts are exact, so they are asserted and speeds are not.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use herald_core::{
    clock::World,
    ids::{InstanceId, NotificationId, TenantId},
    limits::LimitRow,
    policy::kind,
    ports::{
        channel::{Channel, Gate, Message, Opener, Outcome, ProviderFault, Sink},
        registry::Written,
    },
    providers::ProviderRow,
    record::Channel as ChannelKind,
    switches::{SwitchRow, SwitchScope, SwitchState},
};
use herald_embedded::{disk::MemoryDisk, kv::memory::MemoryKv, log::LogOptions};
use herald_node::{
    backends::Backends,
    roles::{Config, Roles},
};
use herald_worker::OpenProviders;

use crate::{
    IN_DOUBT,
    scenario::{Planned, limit, send},
    setting::{backends_on, people, to_everyone},
    world::{Chance, EPOCH_MS, SimClock, WallClock, world_with},
};

const HOUR_MS: i64 = 3_600_000;

/// How a provider behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Up,
    /// It answers that it is out of order.
    Down,
    /// Nobody can connect to it.
    Refuses,
    /// It does not answer.
    Hangs,
    /// It takes so many a second, and asks to come back in a second for what is more.
    Throttles(u64),
    /// It refuses three of ten whatever it is sent, and may say when to come back.
    RefusesSome(Option<Duration>),
}

#[derive(Default)]
struct Seen {
    /// When each attempt was made, and for whom.
    attempts: Vec<(u64, String)>,
    /// When each batch came, and how much of whom was in it.
    batches: Vec<(u64, BTreeMap<String, u64>)>,
    taken: BTreeSet<InstanceId>,
    /// The second, and how many were taken in it.
    second: (u64, u64),
}

/// A provider whose mood the test sets.
pub(crate) struct Moody {
    name: &'static str,
    mood: Mutex<Mood>,
    seen: Mutex<Seen>,
    world: World,
}

impl Moody {
    fn new(name: &'static str, world: &World) -> Arc<Self> {
        Arc::new(Self { name, mood: Mutex::new(Mood::Up), seen: Mutex::default(), world: world.clone() })
    }

    fn answer(&self, message: &Message) -> Option<Outcome> {
        let (now_ms, mood) = (self.world.now_ms(), *self.mood.lock().unwrap());
        let code = || "mood".to_owned();
        let mut seen = self.seen.lock().unwrap();
        if mood == Mood::Refuses {
            return Some(Outcome::NotAttempted { code: code() });
        }
        seen.attempts.push((now_ms, message.tenant.as_str().to_owned()));
        if seen.second.0 != now_ms / 1_000 {
            seen.second = (now_ms / 1_000, 0);
        }
        match mood {
            Mood::Hangs => return None,
            Mood::RefusesSome(after) if seen.attempts.len() % 10 < 3 => {
                return Some(Outcome::RetryAfter { after, code: code() });
            }
            Mood::Down => return Some(Outcome::RetryAfter { after: None, code: code() }),
            Mood::Throttles(most) if seen.second.1 >= most => {
                return Some(Outcome::RetryAfter { after: Some(Duration::from_secs(1)), code: code() });
            }
            _ => {}
        }
        seen.second.1 += 1;
        seen.taken.insert(message.instance);
        Some(Outcome::Accepted { provider_id: None })
    }
}

#[async_trait]
impl Channel for Moody {
    fn kind(&self) -> ChannelKind {
        ChannelKind::Email
    }

    fn provider(&self) -> &str {
        self.name
    }

    async fn deliver(&self, batch: Vec<Message>, gate: Arc<dyn Gate>, sink: Arc<dyn Sink>) {
        let mut of = BTreeMap::new();
        batch.iter().for_each(|message| *of.entry(message.tenant.as_str().to_owned()).or_default() += 1);
        self.seen.lock().unwrap().batches.push((self.world.now_ms(), of));
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut hangs = false;
        for (index, message) in batch.iter().enumerate() {
            match gate.open(index) {
                false => sink.report(index, Outcome::NotAttempted { code: "gate".into() }),
                true => match self.answer(message) {
                    Some(outcome) => sink.report(index, outcome),
                    None => hangs = true,
                },
            }
        }
        if hangs {
            std::future::pending::<()>().await;
        }
    }
}

/// Opens the provider that a tenant has of its own.
struct OpensOwn(Arc<Moody>);

#[async_trait]
impl Opener for OpensOwn {
    fn open(&self, _: &ProviderRow) -> Result<Arc<dyn Channel>, ProviderFault> {
        Ok(self.0.clone())
    }

    async fn check(&self, _: &ProviderRow) -> Result<(), ProviderFault> {
        Ok(())
    }
}

/// A node with tenants of the same people, everybody's provider, and one that a tenant may have of its own.
pub(crate) struct Node {
    pub backends: Backends,
    provider: Arc<Moody>,
    own: Arc<Moody>,
    pub world: World,
    clock: Arc<SimClock>,
    pub tenants: Vec<TenantId>,
    users: usize,
    pub sent: Vec<(TenantId, NotificationId)>,
    roles: Roles,
}

impl Node {
    pub(crate) async fn start(tenants: usize, users: usize, limits: Vec<LimitRow>) -> Self {
        Self::start_by(WallClock::default(), tenants, users, limits).await
    }

    async fn start_by(wall: WallClock, tenants: usize, users: usize, limits: Vec<LimitRow>) -> Self {
        let (world, clock) = world_with(EPOCH_MS, Arc::new(wall), &Chance::of_seed(7));
        let (disk, kv) = (MemoryDisk::new(), Arc::new(MemoryKv::new()));
        let backends = backends_on(&disk, &kv, LogOptions::default(), &world).unwrap();
        let (provider, own) = (Moody::new("moody", &world), Moody::new("own", &world));
        let mut config = Config::default();
        config.worker.in_doubt_instances = IN_DOUBT;
        config.worker.send_deadline_ms = 2_000;
        let providers = OpenProviders::new(vec![provider.clone()], Arc::new(OpensOwn(own.clone())));
        let roles = Roles::start_with(&config, &backends, Arc::new(providers), &world).await.unwrap();
        let tenants = (0..tenants).map(|i| TenantId::trusted(&format!("t{i}"))).collect();
        let scenario = people(tenants, users, limits);
        scenario.set_up(&backends, &roles, world.now_ms()).await.unwrap();
        let tenants = scenario.tenants;
        Self { backends, provider, own, world, clock, tenants, users, sent: Vec::new(), roles }
    }

    /// Gives a tenant a provider of its own; returns once every role runs it.
    pub(crate) async fn has_its_own_provider(&self, tenant: usize) {
        let row = ProviderRow {
            name: "own".into(),
            channel: "email".into(),
            kind: "moody".into(),
            url: String::new(),
            credentials: None,
            weight: 1,
            tenants: BTreeSet::from([self.tenants[tenant].to_string()]),
            revision: 1,
            created_ms: 0,
            updated_ms: 0,
        };
        let value = serde_json::to_vec(&row).unwrap().into();
        let written = self.roles.publisher.put(kind::PROVIDER, "own", Some(value), 0).await.unwrap();
        assert!(matches!(written, Written::Done(_)), "{written:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    /// Sends to everybody of a tenant, so many times.
    pub(crate) async fn send_to_all(&mut self, tenant: usize, times: usize) {
        for number in 0..times {
            let (planned, id) = self.plan_for_all(tenant, number);
            send(&planned, id, false, &self.backends, [self.world.now_ms(); 2]).await.unwrap();
        }
    }

    /// A notification to everybody of a tenant, noted as sent.
    fn plan_for_all(&mut self, tenant: usize, number: usize) -> (Planned, NotificationId) {
        let actor = format!("actor-{number}");
        let planned = Planned { actor, ..to_everyone(&self.tenants[tenant], number) };
        let id = self.world.notification_id();
        self.sent.push((planned.tenant.clone(), id));
        (planned, id)
    }

    /// Sets the switch of a tenant; returns when that was answered.
    async fn switch(&self, tenant: usize, state: SwitchState) -> u64 {
        let scope = SwitchScope { tenant: Some(self.tenants[tenant].to_string()), ..SwitchScope::default() };
        let id = scope.switch_id();
        let row = SwitchRow { scope, state, reason: String::new(), expires_ms: None, set_ms: 0, set_by: String::new() };
        let value = serde_json::to_vec(&row).unwrap().into();
        self.roles.publisher.put_log_first(kind::SWITCH, vec![(id, Some(value))]).await.unwrap();
        self.world.now_ms()
    }

    /// Sends to everybody of two tenants at once, ten times a second; returns when.
    async fn send_steadily(&mut self, seconds: u64) -> Vec<u64> {
        let (mut due, mut sent_ms) = (tokio::time::interval(Duration::from_millis(100)), Vec::new());
        for _ in 0..seconds * 10 {
            due.tick().await;
            sent_ms.push(self.world.now_ms());
            let (at_ms, [one, other]) = ([self.world.now_ms(); 2], [0, 1].map(|tenant| self.plan_for_all(tenant, 0)));
            let (one, other) = tokio::join!(
                send(&one.0, one.1, false, &self.backends, at_ms),
                send(&other.0, other.1, false, &self.backends, at_ms)
            );
            one.and(other).unwrap();
        }
        sent_ms
    }

    /// Attempts of a tenant's messages in a span of time.
    fn attempts_within(&self, tenant: &str, from_ms: u64, until_ms: u64) -> u64 {
        let seen = self.provider.seen.lock().unwrap();
        let within = seen.attempts.iter().filter(|(at_ms, of)| of == tenant && (from_ms..until_ms).contains(at_ms));
        within.count() as u64
    }

    pub(crate) fn is_now(&self, mood: Mood) {
        *self.provider.mood.lock().unwrap() = mood;
    }

    pub(crate) fn attempts(&self) -> usize {
        self.provider.seen.lock().unwrap().attempts.len()
    }

    /// Attempts by tenant.
    fn shares(&self) -> BTreeMap<String, u64> {
        let mut shares = BTreeMap::new();
        for (_, tenant) in &self.provider.seen.lock().unwrap().attempts {
            *shares.entry(tenant.clone()).or_default() += 1;
        }
        shares
    }

    /// Instances that exist so far, on all channels.
    async fn accepted(&self) -> u64 {
        let ids: Vec<NotificationId> = self.sent.iter().map(|(_, id)| *id).collect();
        let totals = self.backends.ledger.totals(&ids).await.unwrap();
        totals.iter().flatten().flat_map(|totals| totals.channels.values()).map(|channel| channel.created.count).sum()
    }

    /// Waits until everybody has every mail, for `within` of simulated time.
    pub(crate) async fn all_taken(&self, within: Duration) {
        let wanted = self.sent.len() * self.users;
        let taken = || [&self.provider, &self.own].map(|provider| provider.seen.lock().unwrap().taken.len());
        let waiting = async {
            while taken().iter().sum::<usize>() < wanted {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let all = tokio::time::timeout(within, waiting).await;
        assert!(all.is_ok(), "{:?} of {wanted} were taken in {} attempts", taken(), self.attempts());
    }
}

pub(crate) fn run<T, F: Future<Output = T>>(test: impl FnOnce() -> F) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async { test().await })
}

/// Jain's index of fairness: 1 where all shares are equal, 1/n where one has everything.
fn jain(shares: &BTreeMap<String, u64>) -> f64 {
    let sum: f64 = shares.values().map(|share| *share as f64).sum();
    let squares: f64 = shares.values().map(|share| (*share as f64).powi(2)).sum();
    sum * sum / (shares.len() as f64 * squares)
}

#[test]
fn a_provider_that_is_wholly_down_costs_few_attempts() {
    for mood in [Mood::Down, Mood::Refuses, Mood::Hangs] {
        run(async || {
            let mut node = Node::start(2, 300, Vec::new()).await;
            node.is_now(mood);
            node.send_to_all(0, 1).await;
            node.send_to_all(1, 1).await;
            tokio::time::sleep(Duration::from_secs(600)).await;
            let messages = 600;
            let while_down = node.attempts();
            assert!(while_down * 10 <= messages * 11, "{mood:?}: {while_down} attempts of {messages} messages");
            node.is_now(Mood::Up);
            node.all_taken(Duration::from_secs(300)).await;
            let attempts = node.attempts();
            assert!(
                attempts * 10 <= messages * 11 + IN_DOUBT as usize * 10,
                "{mood:?}: {attempts} attempts of {messages} messages in the end"
            );
        });
    }
}

#[test]
fn a_provider_that_asks_for_less_is_sent_what_it_takes() {
    run(async || {
        let mut node = Node::start(1, 300, Vec::new()).await;
        node.is_now(Mood::Throttles(70));
        node.send_to_all(0, 20).await;
        node.all_taken(Duration::from_secs(600)).await;
        let attempts = node.attempts();
        assert!(attempts * 10 <= 6_000 * 11, "{attempts} attempts of 6000 messages");
    });
}

#[test]
fn what_waits_for_a_provider_is_sent_once_it_is_well_though_nothing_new_comes() {
    run(async || {
        let mut node = Node::start(1, 300, Vec::new()).await;
        node.is_now(Mood::RefusesSome(None));
        node.send_to_all(0, 40).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let taken = node.provider.seen.lock().unwrap().taken.len();
        assert!((4_000..11_500).contains(&taken), "{taken} of 12000 were taken of a provider in trouble");
        node.is_now(Mood::Up);
        node.all_taken(Duration::from_secs(60)).await;
    });
}

#[test]
fn equal_tenants_have_equal_shares_of_a_limit() {
    run(async || {
        let mut node = Node::start(5, 200, vec![limit(None, Some("email"), 100.0, 100)]).await;
        // Who comes first has no more for it.
        for tenant in 0..5 {
            node.send_to_all(tenant, 5).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
        let shares = node.shares();
        let sent: u64 = shares.values().sum();
        assert!((2_500..=3_400).contains(&sent), "a limit of 100/s is used and kept: {sent} in 31 s");
        assert!(shares.len() == 5 && jain(&shares) >= 0.95, "{shares:?}: {}", jain(&shares));
    });
}

/// It would not be if steady time were set with the wall clock: each time that this goes forward would bring a burst.
#[test]
fn a_limit_is_kept_however_often_the_clock_is_set() {
    for moves_steady_time in [false, true] {
        run(async || {
            let wall = WallClock::new(moves_steady_time);
            let mut node = Node::start_by(wall, 1, 300, vec![limit(None, Some("email"), 10.0, 100)]).await;
            node.send_to_all(0, 10).await;
            for ahead_ms in [HOUR_MS, -HOUR_MS, 20 * HOUR_MS, 0].into_iter().cycle().take(40) {
                tokio::time::sleep(Duration::from_secs(1)).await;
                node.clock.set(ahead_ms);
            }
            let attempts = node.attempts();
            assert!(attempts > 100, "{attempts}");
            assert_eq!(attempts > 100 + 10 * (40 + 3), moves_steady_time, "{attempts} in 40 s at 10 a second");
        });
    }
}

/// It does not lie in its tier until the clock is again where it was, nor behind what does.
#[test]
fn what_waits_goes_on_once_a_clock_that_was_ahead_is_right() {
    for ahead_ms in [HOUR_MS / 2, 20 * HOUR_MS] {
        run(async || {
            let mut node = Node::start(1, 300, vec![limit(None, Some("email"), 10.0, 10)]).await;
            node.clock.set(ahead_ms);
            node.send_to_all(0, 4).await;
            tokio::time::sleep(Duration::from_secs(30)).await;
            node.clock.set(0);
            let before = node.attempts();
            tokio::time::sleep(Duration::from_secs(60)).await;
            let since = node.attempts() - before;
            assert!(before > 200 && since > 300, "{before} in half a minute, and {since} in the next one");
        });
    }
}

#[test]
fn a_tenant_at_a_hundred_times_its_share_does_not_starve_a_small_one() {
    run(async || {
        let mut node = Node::start(2, 50, vec![limit(None, Some("email"), 100.0, 100)]).await;
        node.send_to_all(0, 100).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        node.send_to_all(1, 1).await;
        // Alone it would take half a second; with half of the limit, a second, and a turn of the shortest delays.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let shares = node.shares();
        assert_eq!(shares.get("t1"), Some(&50), "{shares:?}");
        assert!(shares["t0"] < 2_000, "{shares:?}");
    });
}

/// A newcomer waits for what is in the provider's hands and for a turn of the spike in each shard, not for its queue.
#[test]
fn a_small_tenant_waits_for_few_messages_of_a_spike() {
    run(async || {
        let mut node = Node::start(2, 50, Vec::new()).await;
        node.send_to_all(0, 200).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = node.attempts();
        node.send_to_all(1, 1).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let seen = node.provider.seen.lock().unwrap();
        let since = &seen.attempts[before..];
        let last = since.iter().rposition(|(_, tenant)| tenant == "t1").unwrap();
        let of_spike = since[..last].iter().filter(|(_, tenant)| tenant == "t0").count();
        assert_eq!(last + 1 - of_spike, 50, "all of the small tenant's are sent");
        assert!(
            before > 1_000 && since.len() > last + 1_000,
            "the spike goes on: {before} before, {} since",
            since.len()
        );
        assert!(of_spike < 400, "{of_spike} of the spike came between");
    });
}

#[test]
fn a_limit_without_a_channel_paces_expansion_too() {
    run(async || {
        let mut node = Node::start(1, 1_000, vec![limit(Some("t0"), None, 100.0, 100)]).await;
        node.send_to_all(0, 1).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let accepted = node.accepted().await;
        assert!((300..=700).contains(&accepted), "{accepted} instances of 2000 after 5 s");
        node.all_taken(Duration::from_secs(120)).await;
        assert_eq!(node.accepted().await, 2_000);
    });
}

/// Messages of two tenants come together, are decided on in one turn and go by one provider; one of the tenants is slowed.
#[test]
fn what_is_slowed_holds_up_nothing_that_comes_with_it() {
    run(async || {
        let mut node = Node::start(2, 50, Vec::new()).await;
        node.send_steadily(10).await;
        let slow_ms = node.switch(0, SwitchState::Slow).await;
        let sent_ms = node.send_steadily(10).await;
        let end_ms = node.world.now_ms();
        // Everybody was sent 500 a second, so 50 are left of the slowed.
        let slowed = node.attempts_within("t0", slow_ms + 1_000, end_ms) * 1_000 / (end_ms - slow_ms - 1_000);
        let other = node.attempts_within("t1", slow_ms + 1_000, end_ms) * 1_000 / (end_ms - slow_ms - 1_000);
        assert!((45..=55).contains(&slowed) && (490..=510).contains(&other), "{slowed} and {other} a second");
        for (before, at_ms) in (1..).zip(sent_ms.iter().take(sent_ms.len() - 5)) {
            let begun = node.attempts_within("t1", sent_ms[0], at_ms + 300);
            assert!(begun >= before * 50, "{begun} of {} had begun", before * 50);
        }
        let seen = node.provider.seen.lock().unwrap();
        let is_mixed = |batch: &BTreeMap<String, u64>| batch.len() == 2;
        let (before, since): (Vec<_>, Vec<_>) = seen.batches.iter().partition(|(at_ms, _)| *at_ms < slow_ms);
        assert!(before.iter().filter(|(_, batch)| is_mixed(batch)).count() > 50, "they share turns");
        let since = || since.iter().filter(|(at_ms, _)| *at_ms > slow_ms + 1_000).map(|(_, batch)| batch);
        assert!(!since().any(is_mixed), "a small batch is for the slowed alone");
        let largest = |tenant| since().filter_map(|batch| batch.get(tenant)).max();
        assert!(largest("t0") <= Some(&25) && largest("t1") > Some(&25), "{:?}, {:?}", largest("t0"), largest("t1"));
    });
}
