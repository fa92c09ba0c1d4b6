//! A fan-out that is steered while it runs, as the provider sees it: on paused time, without faults.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use herald_core::{
    books::Totals,
    clock::World,
    ids::{InstanceId, NotificationId, TenantId},
    levels::{FEATURE_LEVEL, Levels},
    people::{Endpoint, Preferences, QuietHours, QuietPolicy, User},
    policy::{CancelRow, TemplateHead, TemplateRow, TenantRow, kind, template_head_key, template_row_key},
    ports::{
        StoreError,
        channel::{Channel, Gate, Message, Outcome, Sink},
        directory::PersonChange,
        log::Log,
        registry::{Registry, Versioned, Written},
    },
    record::Channel as ChannelKind,
    switches::{SwitchRow, SwitchScope, SwitchState},
    topic::Group,
};
use herald_embedded::{disk::MemoryDisk, kv::memory::MemoryKv, log::LogOptions, store::Stores};
use herald_node::{
    backends::Backends,
    roles::{Config, Roles},
};
use herald_worker::OpenProviders;

use crate::{
    scenario::{DAY_MS, Planned, limit, send, tell_change},
    setting::{log_on, to_everyone},
    world::{Chance, EPOCH_MS, world_at},
};

pub(crate) const USERS: usize = 3_000;

/// Takes a message every few milliseconds, one after the other in each batch, and some of them very slowly.
struct SlowMail {
    world: World,
    began: Arc<Mutex<Vec<(u64, InstanceId)>>>,
    taken: Arc<Mutex<BTreeMap<InstanceId, u64>>>,
}

#[async_trait]
impl Channel for SlowMail {
    fn kind(&self) -> ChannelKind {
        ChannelKind::Email
    }

    fn provider(&self) -> &str {
        "slow"
    }

    async fn deliver(&self, batch: Vec<Message>, gate: Arc<dyn Gate>, sink: Arc<dyn Sink>) {
        for (index, message) in batch.iter().enumerate() {
            if !gate.open(index) {
                sink.report(index, Outcome::NotAttempted { code: "gate".into() });
                continue;
            }
            self.began.lock().unwrap().push((self.world.now_ms(), message.instance));
            let slow = message.instance.0[0] == 7;
            tokio::time::sleep(Duration::from_millis(if slow { 900 } else { 10 })).await;
            *self.taken.lock().unwrap().entry(message.instance).or_default() += 1;
            sink.report(index, Outcome::Accepted { provider_id: None });
        }
    }
}

/// A registry that can be taken away.
struct Fragile {
    inner: Arc<dyn Registry>,
    away: Arc<AtomicBool>,
}

impl Fragile {
    fn here(&self) -> Result<(), StoreError> {
        match self.away.load(SeqCst) {
            true => Err(StoreError::Unavailable("taken away".into())),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Registry for Fragile {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Versioned>, StoreError> {
        self.here()?;
        self.inner.get(kind, key).await
    }

    async fn put(&self, kind: &str, key: &str, value: Option<Bytes>, expect: u64) -> Result<Written, StoreError> {
        self.here()?;
        self.inner.put(kind, key, value, expect).await
    }

    async fn list(
        &self,
        kind: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Versioned>, StoreError> {
        self.here()?;
        self.inner.list(kind, prefix, after, limit).await
    }

    async fn unpublished(&self, limit: usize) -> Result<Vec<Versioned>, StoreError> {
        self.here()?;
        self.inner.unpublished(limit).await
    }

    async fn published(&self, kind: &str, key: &str, version: u64) -> Result<(), StoreError> {
        self.here()?;
        self.inner.published(kind, key, version).await
    }
}

pub(crate) struct FanOut {
    pub world: World,
    /// The log as it is, without levels.
    pub log: Arc<dyn Log>,
    pub backends: Backends,
    pub roles: Roles,
    tenant: TenantId,
    began: Arc<Mutex<Vec<(u64, InstanceId)>>>,
    taken: Arc<Mutex<BTreeMap<InstanceId, u64>>>,
    registry_away: Arc<AtomicBool>,
    sent: AtomicU64,
}

impl FanOut {
    async fn start() -> Self {
        Self::start_as(&Config::default(), FEATURE_LEVEL).await
    }

    /// As this process, and as a program of this level.
    pub(crate) async fn start_as(config: &Config, level: u32) -> Self {
        let (began, taken) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<BTreeMap<_, _>>>::default());
        let mail = |world: &World| SlowMail { world: world.clone(), began: began.clone(), taken: taken.clone() };
        let fan_out = Self::begin(config, level, |world| OpenProviders::fixed(vec![Arc::new(mail(world))])).await;
        Self { began, taken, ..fan_out }
    }

    /// With providers that are looked at elsewhere.
    pub(crate) async fn start_with(providers: impl FnOnce(&World) -> OpenProviders) -> Self {
        Self::begin(&Config::default(), FEATURE_LEVEL, providers).await
    }

    async fn begin(config: &Config, level: u32, providers: impl FnOnce(&World) -> OpenProviders) -> Self {
        let chance = Chance::of_seed(1);
        let world = world_at(EPOCH_MS, &chance);
        let (disk, kv) = (MemoryDisk::new(), Arc::new(MemoryKv::new()));
        let log = log_on(&disk, &kv, LogOptions::default(), &world).unwrap();
        let mut backends = Backends::embedded(log.clone(), &Stores::open(kv));
        let log: Arc<dyn Log> = Arc::new(log);
        backends.levels = Arc::new(Levels::new(level));
        backends.log = backends.levels.log(log.clone());
        let registry_away = Arc::new(AtomicBool::new(false));
        backends.registry = Arc::new(Fragile { inner: backends.registry.clone(), away: registry_away.clone() });
        let providers = Arc::new(providers(&world));
        let roles = Roles::start_with(config, &backends, providers, &world).await.unwrap();
        let (tenant, sent) = (TenantId::trusted("acme"), AtomicU64::new(0));
        let (began, taken) = Default::default();
        let fan_out = Self { world, log, backends, roles, tenant, began, taken, registry_away, sent };
        fan_out.set_up().await;
        fan_out
    }

    /// Another process on the same log, with the same provider, as a program of this level.
    pub(crate) async fn join(&self, config: &Config, level: u32) -> anyhow::Result<(Backends, Roles)> {
        let levels = Arc::new(Levels::new(level));
        let backends = Backends { log: levels.log(self.log.clone()), levels, ..self.backends.clone() };
        let (began, taken) = (self.began.clone(), self.taken.clone());
        let mail = Arc::new(SlowMail { world: self.world.clone(), began, taken });
        let roles = Roles::start(config, &backends, vec![mail], &self.world).await?;
        Ok((backends, roles))
    }

    /// How many messages a provider took, and of how many instances.
    pub(crate) fn mails(&self) -> (u64, usize) {
        (self.taken(), self.taken.lock().unwrap().len())
    }

    async fn set_up(&self) {
        let (tenant, now_ms) = (&self.tenant, self.world.now_ms());
        let id = tenant.as_str().to_owned();
        let row =
            TenantRow { tenant_id: id.clone(), name: id.clone(), created_ms: now_ms, updated_ms: now_ms, quota: None };
        let source = r#"{"channels": {"email": {"subject": "s", "text": "t"}, "in_app": {"body": "b"}}}"#;
        let template = TemplateRow {
            tenant_id: id,
            template_id: "comment".into(),
            version: 1,
            source: serde_json::from_str(source).unwrap(),
            created_ms: now_ms,
        };
        let head = TemplateHead { live: Some(1), latest: 1, ..Default::default() };
        for (kind, key, value) in [
            (kind::TENANT, tenant.to_string(), serde_json::to_vec(&row).unwrap()),
            (kind::TEMPLATE, template_row_key(tenant, "comment", 1), serde_json::to_vec(&template).unwrap()),
            (kind::TEMPLATE_HEAD, template_head_key(tenant, "comment"), serde_json::to_vec(&head).unwrap()),
        ] {
            self.roles.publisher.put(kind, &key, Some(value.into()), 0).await.unwrap();
        }
        for chunk in (0..USERS).collect::<Vec<_>>().chunks(500) {
            let person = |n: &usize| {
                let address = format!("u{n}@example.org");
                let endpoints = vec![Endpoint { channel: "email".into(), address, ..Default::default() }];
                let user = User { user_id: format!("u{n}"), endpoints, ..Default::default() };
                PersonChange::Profile { user, expect: None }
            };
            self.backends.directory.change(tenant, chunk.iter().map(person).collect(), now_ms).await.unwrap();
        }
    }

    pub(crate) async fn to_everyone(&self) -> NotificationId {
        self.to_everyone_in(0).await
    }

    async fn to_everyone_in(&self, send_in_ms: u64) -> NotificationId {
        let id = self.world.notification_id();
        let number = self.sent.fetch_add(1, SeqCst) as usize;
        let planned = Planned { send_in_ms, ..to_everyone(&self.tenant, number) };
        send(&planned, id, false, &self.backends, [self.world.now_ms(); 2]).await.unwrap();
        id
    }

    /// Sets the switch of everything; returns when that was answered.
    async fn switch(&self, state: SwitchState) -> u64 {
        self.switch_until(state, None).await
    }

    async fn switch_until(&self, state: SwitchState, expires_ms: Option<u64>) -> u64 {
        self.switch_of(SwitchScope::default(), state, expires_ms).await
    }

    pub(crate) async fn switch_of(&self, scope: SwitchScope, state: SwitchState, expires_ms: Option<u64>) -> u64 {
        let id = scope.switch_id();
        let row = SwitchRow { scope, state, reason: String::new(), expires_ms, set_ms: 0, set_by: String::new() };
        let value = serde_json::to_vec(&row).unwrap().into();
        self.roles.publisher.put_log_first(kind::SWITCH, vec![(id, Some(value))]).await.unwrap();
        self.world.now_ms()
    }

    /// Sets or removes the limit of mail.
    async fn limit_mail(&self, per_second: Option<f64>) {
        let row = limit(None, Some("email"), per_second.unwrap_or(1.0), per_second.unwrap_or(1.0) as u64);
        let value = per_second.map(|_| serde_json::to_vec(&row).unwrap().into());
        let before = self.backends.registry.get(kind::LIMIT, &row.id).await.unwrap().map_or(0, |row| row.version);
        let written = self.roles.publisher.put(kind::LIMIT, &row.id, value, before).await.unwrap();
        assert!(matches!(written, Written::Done(_)), "{written:?}");
    }

    /// Records in the delay tiers.
    async fn waiting(&self) -> u64 {
        let tiers = self.backends.log.progress(Group::Router).await.unwrap();
        tiers.iter().map(|tier| tier.end - tier.committed).sum()
    }

    async fn cancel(&self, id: NotificationId) -> u64 {
        let (tenant_id, now_ms) = (self.tenant.to_string(), self.world.now_ms());
        let row = CancelRow { tenant_id, cancelled_ms: now_ms, until_ms: now_ms + DAY_MS };
        let value = serde_json::to_vec(&row).unwrap().into();
        self.roles.publisher.put_log_first(kind::CANCEL, vec![(id.to_string(), Some(value))]).await.unwrap();
        self.world.now_ms()
    }

    pub(crate) async fn totals(&self, id: NotificationId) -> Option<Totals> {
        self.backends.ledger.totals(&[id]).await.unwrap().into_iter().flatten().next()
    }

    pub(crate) async fn until(&self, what: &str, id: NotificationId, condition: impl Fn(&Totals) -> bool) -> Totals {
        for _ in 0..36_000 {
            if let Some(totals) = self.totals(id).await.filter(&condition) {
                return totals;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("in vain: {what}, {:?}", self.totals(id).await);
    }

    fn taken(&self) -> u64 {
        self.taken.lock().unwrap().values().sum()
    }

    /// Nothing was begun between a second after a switch and the next one.
    fn nothing_began_within(&self, from_ms: u64, until_ms: u64) {
        let late = self.began_within(from_ms + 1_001, until_ms);
        assert_eq!(late, 0, "sends began more than a second after {from_ms}");
    }

    fn began_within(&self, from_ms: u64, until_ms: u64) -> u64 {
        self.began.lock().unwrap().iter().filter(|(at_ms, _)| (from_ms..until_ms).contains(at_ms)).count() as u64
    }

    pub(crate) async fn stop(self) {
        assert!(!self.roles.failed.is_cancelled(), "a role has failed");
        self.roles.stop(Duration::from_secs(10)).await.unwrap();
    }
}

pub(crate) fn email(totals: &Totals) -> &herald_core::books::ChannelTotals {
    &totals.channels[&(ChannelKind::Email as i32)]
}

#[tokio::test(start_paused = true)]
async fn off_ends_a_running_fan_out_within_a_second() {
    let fan_out = FanOut::start().await;
    let id = fan_out.to_everyone().await;
    fan_out.until("it runs", id, |totals| totals.channels.len() == 2 && email(totals).delivered > 50).await;
    let off_ms = fan_out.switch(SwitchState::Off).await;
    let totals = fan_out.until("it is over", id, Totals::settled).await;
    fan_out.nothing_began_within(off_ms, u64::MAX);
    let mail = email(&totals);
    assert_eq!(mail.delivered, fan_out.taken());
    assert_eq!(mail.created.count, mail.delivered + mail.suppressed["killed"]);
    assert!(mail.delivered < 1_000, "{totals:?}");
    fan_out.stop().await;
}

/// The books balance where a chain of pages ends early.
#[tokio::test(start_paused = true)]
async fn a_chain_is_parked_while_it_is_held_and_ends_when_it_is_off() {
    let fan_out = FanOut::start().await;
    fan_out.switch(SwitchState::Hold).await;
    let id = fan_out.to_everyone().await;
    fan_out.until("its first page", id, |totals| !totals.channels.is_empty()).await;
    tokio::time::sleep(Duration::from_secs(40)).await;
    let held = fan_out.totals(id).await.unwrap();
    assert!(!held.complete && held.recipients < USERS as u64, "one page and no more: {held:?}");
    fan_out.switch(SwitchState::Off).await;
    let totals = fan_out.until("it is over", id, Totals::settled).await;
    assert_eq!(totals.recipients, held.recipients);
    assert_eq!((email(&totals).suppressed["killed"], fan_out.taken()), (email(&held).created.count, 0));
    fan_out.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_held_is_delivered_once_when_it_is_let_go() {
    let fan_out = FanOut::start().await;
    let id = fan_out.to_everyone().await;
    fan_out.until("it runs", id, |totals| totals.channels.len() == 2 && email(totals).delivered > 50).await;
    let held_ms = fan_out.switch(SwitchState::Hold).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(email(&fan_out.totals(id).await.unwrap()).in_flight() > 0);
    let on_ms = fan_out.switch(SwitchState::On).await;
    let totals = fan_out.until("everything is out", id, Totals::settled).await;
    fan_out.nothing_began_within(held_ms, on_ms);
    assert_eq!((totals.recipients, email(&totals).delivered), (USERS as u64, USERS as u64));
    let taken = fan_out.taken.lock().unwrap().clone();
    assert!(taken.len() == USERS && taken.values().all(|times| *times == 1), "each exactly once");
    fan_out.stop().await;
}

/// It does not wait for the end of its turn in the delay tier, whether the switch is lifted or expires.
#[tokio::test(start_paused = true)]
async fn what_was_held_goes_on_at_once_when_it_is_let_go() {
    for expires in [false, true] {
        let fan_out = FanOut::start().await;
        let held_ms = fan_out.switch(SwitchState::Hold).await;
        let id = fan_out.to_everyone().await;
        // Not a multiple of what it waits for.
        tokio::time::sleep(Duration::from_secs(41)).await;
        assert!(fan_out.waiting().await > 0 && fan_out.taken() == 0);
        let on_ms = match expires {
            true => {
                let at_ms = fan_out.world.now_ms() + 5_000;
                fan_out.switch_until(SwitchState::Hold, Some(at_ms)).await;
                tokio::time::sleep(Duration::from_secs(5)).await;
                at_ms
            }
            false => fan_out.switch(SwitchState::On).await,
        };
        fan_out.nothing_began_within(held_ms, on_ms);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(fan_out.waiting().await, 0, "everything has left the tiers");
        assert!(fan_out.taken() > 0);
        let totals = fan_out.until("everything is out", id, Totals::settled).await;
        assert_eq!((email(&totals).delivered, fan_out.taken()), (USERS as u64, USERS as u64));
        fan_out.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_held_goes_before_what_comes_after_it() {
    let fan_out = FanOut::start().await;
    fan_out.switch(SwitchState::Hold).await;
    let first = fan_out.to_everyone().await;
    tokio::time::sleep(Duration::from_secs(41)).await;
    fan_out.switch(SwitchState::On).await;
    let version = fan_out.roles.policy.borrow().version + 1;
    // As the answer to the call waits for it.
    while fan_out.backends.fleet.running(0).await.unwrap().iter().any(|p| p.behind(version).next().is_some()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let second = fan_out.to_everyone().await;
    for id in [first, second] {
        fan_out.until("everything is out", id, Totals::settled).await;
    }
    let began: BTreeMap<InstanceId, u64> = fan_out.began.lock().unwrap().iter().map(|(at, id)| (*id, *at)).collect();
    let of = |id: &NotificationId, n: usize| began[&InstanceId::of(id, &format!("u{n}"), ChannelKind::Email)];
    let overtaken = (0..USERS).filter(|n| of(&second, *n) < of(&first, *n)).count();
    assert_eq!(overtaken, 0, "of {USERS} were overtaken");
    fan_out.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_held_ends_at_once_when_it_is_switched_off() {
    let fan_out = FanOut::start().await;
    fan_out.switch(SwitchState::Hold).await;
    let id = fan_out.to_everyone().await;
    tokio::time::sleep(Duration::from_secs(41)).await;
    let off_ms = fan_out.switch(SwitchState::Off).await;
    let totals = fan_out.until("it is over", id, Totals::settled).await;
    assert!(fan_out.world.now_ms() - off_ms < 2_000);
    assert_eq!((email(&totals).suppressed["killed"], fan_out.taken()), (email(&totals).created.count, 0));
    fan_out.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_waited_for_a_limit_goes_on_at_once_when_it_is_raised_or_gone() {
    for lifted in [Some(1_000_000.0), None] {
        let fan_out = FanOut::start().await;
        fan_out.limit_mail(Some(1.0)).await;
        let id = fan_out.to_everyone().await;
        tokio::time::sleep(Duration::from_secs(41)).await;
        assert!(fan_out.waiting().await > 0 && fan_out.taken() < 60);
        let lifted_ms = fan_out.world.now_ms();
        fan_out.limit_mail(lifted).await;
        let totals = fan_out.until("everything is out", id, Totals::settled).await;
        assert_eq!((email(&totals).delivered, fan_out.taken()), (USERS as u64, USERS as u64));
        // As long as without a limit, and a second.
        let took_ms = fan_out.world.now_ms() - lifted_ms;
        assert!(took_ms < 12_000, "{lifted:?}: {took_ms}");
        fan_out.stop().await;
    }
}

/// A switch says what may be sent now: what is not due yet is not touched by it.
#[tokio::test(start_paused = true)]
async fn what_is_scheduled_is_killed_only_if_it_is_off_when_it_is_due() {
    let fan_out = FanOut::start().await;
    fan_out.switch(SwitchState::Off).await;
    let (soon, later) = (fan_out.to_everyone_in(30_000).await, fan_out.to_everyone_in(300_000).await);
    let killed = fan_out.until("it is due", soon, |totals| !totals.channels.is_empty() && totals.settled()).await;
    assert_eq!(email(&killed).created.count, email(&killed).suppressed["killed"]);
    assert!(fan_out.totals(later).await.is_none_or(|totals| totals.channels.is_empty()), "it has not begun");
    fan_out.switch(SwitchState::On).await;
    let sent = fan_out.until("it is sent", later, Totals::settled).await;
    assert_eq!((email(&sent).delivered, fan_out.taken()), (USERS as u64, USERS as u64));
    fan_out.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_removes_their_quiet_hours_waits_no_longer_than_to_the_next_look() {
    let fan_out = FanOut::start().await;
    let is_quiet = async |hours: Option<(u16, u16)>| {
        let quiet_hours = hours.map(|(start_minute, end_minute)| QuietHours {
            start_minute,
            end_minute,
            time_zone: Some("UTC".into()),
            policy: QuietPolicy::Defer,
        });
        let preferences = Preferences { quiet_hours, ..Default::default() };
        let change = PersonChange::Preferences { user_id: "u7".into(), preferences };
        fan_out.backends.directory.change(&fan_out.tenant, vec![change], fan_out.world.now_ms()).await.unwrap();
        tell_change(&fan_out.tenant, "u7", false, &fan_out.backends, fan_out.world.now_ms()).await.unwrap();
    };
    // The simulation begins at midnight.
    is_quiet(Some((0, 23 * 60))).await;
    let id = fan_out.to_everyone().await;
    let left = |totals: &Totals| email(totals).in_flight();
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let totals = fan_out.totals(id).await.unwrap();
    assert_eq!((left(&totals), fan_out.taken()), (1, USERS as u64 - 1));
    is_quiet(None).await;
    tokio::time::sleep(Duration::from_secs(1_030)).await;
    assert_eq!((left(&fan_out.totals(id).await.unwrap()), fan_out.taken()), (0, USERS as u64));
    fan_out.stop().await;
}

#[tokio::test(start_paused = true)]
async fn slow_sends_a_tenth_and_lifted_it_sends_as_before() {
    let fan_out = FanOut::start().await;
    let began_ms = fan_out.world.now_ms();
    let id = fan_out.to_everyone().await;
    fan_out.until("it runs", id, |totals| totals.channels.len() == 2 && email(totals).delivered > 700).await;
    let slow_ms = fan_out.switch(SwitchState::Slow).await;
    let before = fan_out.began_within(began_ms, slow_ms) * 1_000 / (slow_ms - began_ms);
    // What was in the provider's hands has gone by then.
    tokio::time::sleep(Duration::from_secs(14)).await;
    let slowed = fan_out.began_within(slow_ms + 4_000, slow_ms + 14_000) / 10;
    // Of what it was when it was in full swing.
    assert!(slowed > 0 && slowed * 10 <= before * 5 / 4, "{slowed} a second of {before} before");
    let on_ms = fan_out.switch(SwitchState::On).await;
    let totals = fan_out.until("everything is out", id, Totals::settled).await;
    let after = fan_out.began_within(on_ms, on_ms + 2_000) / 2;
    assert!(after * 2 >= before, "{after} a second after, of {before} before");
    assert_eq!((email(&totals).delivered, fan_out.taken()), (USERS as u64, USERS as u64));
    fan_out.stop().await;
}

#[tokio::test(start_paused = true)]
async fn slow_takes_limits_at_a_tenth() {
    let fan_out = FanOut::start().await;
    fan_out.limit_mail(Some(100.0)).await;
    let slow_ms = fan_out.switch(SwitchState::Slow).await;
    let id = fan_out.to_everyone().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let slowed = fan_out.began_within(slow_ms, slow_ms + 60_000);
    assert!((450..=620).contains(&slowed), "{slowed} in a minute at 10 a second");
    fan_out.switch(SwitchState::On).await;
    let totals = fan_out.until("everything is out", id, Totals::settled).await;
    assert_eq!((email(&totals).delivered, fan_out.taken()), (USERS as u64, USERS as u64));
    fan_out.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_cancels_counts_add_up_with_what_the_provider_received() {
    let fan_out = FanOut::start().await;
    let (id, other) = (fan_out.to_everyone().await, fan_out.to_everyone().await);
    fan_out.until("it runs", id, |totals| totals.channels.len() == 2 && email(totals).delivered > 50).await;
    let cancelled_ms = fan_out.cancel(id).await;
    let totals = fan_out.until("it is cancelled", id, Totals::is_cancelled).await;
    let until_closed_ms = fan_out.world.now_ms() - cancelled_ms;
    assert!(until_closed_ms < 3_000, "the slowest answer takes 900 ms, and this took {until_closed_ms}");
    let mail = email(&totals);
    assert_eq!((mail.in_flight(), mail.created.count), (0, mail.delivered + mail.suppressed["cancelled"]));
    let received = || {
        let taken = fan_out.taken.lock().unwrap();
        let of = |n: usize| InstanceId::of(&id, &format!("u{n}"), ChannelKind::Email);
        (0..USERS).filter_map(|n| taken.get(&of(n))).sum::<u64>()
    };
    assert_eq!(mail.delivered, received(), "what was told is what the provider has");
    let rest = fan_out.until("the other one is over", other, Totals::settled).await;
    assert_eq!(email(&rest).delivered, USERS as u64, "nobody else is cancelled");
    let after = fan_out.until("all of it came up", id, Totals::is_confirmed).await;
    assert_eq!((email(&after).delivered, &email(&after).suppressed), (mail.delivered, &mail.suppressed), "it is final");
    assert_eq!(email(&after).delivered, received());
    fan_out.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_held_or_scheduled_is_cancelled_at_once() {
    let fan_out = FanOut::start().await;
    fan_out.switch(SwitchState::Hold).await;
    let id = fan_out.to_everyone().await;
    fan_out.until("it is held", id, |totals| !totals.channels.is_empty()).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    fan_out.cancel(id).await;
    let began_ms = fan_out.world.now_ms();
    let totals = fan_out.until("it is cancelled", id, Totals::is_cancelled).await;
    assert!(fan_out.world.now_ms() - began_ms < 1_000, "nothing of it was out");
    let mail = email(&totals);
    assert_eq!((mail.delivered, mail.suppressed["cancelled"]), (0, mail.created.count));
    fan_out.switch(SwitchState::On).await;
    fan_out.until("what circled came up", id, Totals::is_confirmed).await;
    assert_eq!(fan_out.taken(), 0);
    fan_out.stop().await;
}

/// With the registry away the roles go on, and switches work.
#[tokio::test(start_paused = true)]
async fn roles_run_on_without_the_registry() {
    let fan_out = FanOut::start().await;
    fan_out.registry_away.store(true, SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let id = fan_out.to_everyone().await;
    fan_out.until("it runs", id, |totals| totals.channels.len() == 2 && email(totals).delivered > 50).await;
    let held_ms = fan_out.switch(SwitchState::Hold).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let on_ms = fan_out.switch(SwitchState::On).await;
    let totals = fan_out.until("everything is out", id, Totals::settled).await;
    fan_out.nothing_began_within(held_ms, on_ms);
    assert_eq!(email(&totals).delivered, USERS as u64);
    fan_out.stop().await;
}

/// Every role takes up a switch and says so, also while nothing happens.
#[tokio::test(start_paused = true)]
async fn every_role_reports_the_version_it_runs() {
    let fan_out = FanOut::start().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    fan_out.switch(SwitchState::Slow).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    let version = fan_out.roles.policy.borrow().version;
    let processes = fan_out.backends.fleet.running(0).await.unwrap();
    let [process] = processes.as_slice() else { panic!("{processes:?}") };
    assert!(process.behind(version).next().is_none(), "{process:?} at {version}");
    let roles: Vec<&str> = process.versions.keys().map(String::as_str).collect();
    assert_eq!(roles, ["orchestrator", "router", "snapshot", "worker"]);
    let backends = fan_out.backends.clone();
    fan_out.stop().await;
    assert_eq!(backends.fleet.running(0).await.unwrap(), [], "who stops takes its leave");
}
