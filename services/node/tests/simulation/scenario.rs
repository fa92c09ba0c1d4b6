//! What a simulation sends, and what must come of it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use herald_control_plane::dead_letters::DeadLetters;
use herald_core::{
    clock::World,
    dead_letters::redrives,
    ids::{InstanceId, NotificationId, TenantId, ordering_partition, shard_of, user_hash},
    limits::{LimitRow, LimitScope},
    packed,
    people::{ChannelPreference, Endpoint, Preferences, QuietHours, QuietPolicy, User},
    policy::{TemplateHead, TemplateRow, TenantRow, kind, template_head_key, template_row_key},
    ports::{
        admissions::Admission,
        directory::{AudienceKey, Membership, PersonChange},
        log::{LogError, NewRecord},
    },
    record::{
        self, Channel, Envelope, InlineList, InlineRecipient, LedgerBatch, Manifest, Notification, Request, Schema,
        SectionSummary, UserChange, audience::Kind,
    },
    switches::SwitchState,
    topic::{Lane, Topic, TopicPartition},
};
use herald_node::{backends::Backends, roles::Roles};
use herald_proto::v1;
use prost::Message;

use crate::world::{Chance, EPOCH_MS};

const TEMPLATE: &str = r#"{"channels": {
    "in_app": {"title": "{{data.text}}", "body": "for {{user.id}}"},
    "email": {"subject": "{{data.text}}", "text": "{{actor.id}}"}
}, "category": "social"}"#;

/// A notification of the scenario.
#[derive(Debug, Clone)]
pub struct Planned {
    pub tenant: TenantId,
    pub number: usize,
    pub kind: Kind,
    pub actor: String,
    pub dedupe_key: String,
    pub idempotency_key: String,
    pub transactional: bool,
    /// How far ahead it is to be sent.
    pub send_in_ms: u64,
    pub ttl_ms: u64,
    /// Users who must have an instance on each channel.
    pub recipients: BTreeSet<String>,
}

/// What happens next.
#[derive(Debug, Clone)]
pub enum Step {
    Notify(Planned),
    /// A person does not want mail any more.
    OptOut {
        tenant: TenantId,
        user: String,
    },
    /// A request that nobody can read.
    BrokenRequest {
        tenant: TenantId,
    },
    /// Deliveries that nobody can read.
    BrokenDeliveries {
        tenant: TenantId,
        user: String,
    },
    /// Whatever is dead is brought back.
    Redrive,
    /// An operator sets the switch of a tenant, or of its mail alone.
    Switch {
        tenant: TenantId,
        mail: bool,
        state: SwitchState,
        /// After this time it says nothing.
        expires_in_ms: Option<u64>,
    },
    /// One of the last so many notifications is cancelled.
    Cancel {
        back: usize,
    },
    /// A person is erased.
    Erase {
        tenant: TenantId,
        user: String,
    },
    /// Somebody who was erased, if anybody was, is registered again.
    Return,
    /// An operator raises or lowers a limit.
    Limit(LimitRow),
    /// The wall clock is set, so that it is ahead by so much, or behind, or right.
    SetClock {
        ahead_ms: i64,
    },
}

/// A notification that was handed over.
#[derive(Debug, Clone)]
pub struct Sent {
    pub id: NotificationId,
    pub planned: Planned,
    /// When it was accepted, in true time and by the wall clock.
    pub accepted_ms: u64,
    pub accepted_wall_ms: u64,
    /// Before this time of the wall clock nothing of it may be sent; 0 for at once.
    pub send_at_ms: u64,
    /// When its time to live is over, by the wall clock.
    pub expires_ms: u64,
    /// Whether a 202 would have been given.
    pub promised: bool,
}

/// Tenants, people and notifications.
pub struct Scenario {
    pub tenants: Vec<TenantId>,
    pub users: Vec<String>,
    /// Who does not want mail, in every tenant.
    pub opted_out: BTreeSet<String>,
    pub followers: BTreeMap<String, BTreeSet<String>>,
    pub steps: Vec<Step>,
    pub limits: Vec<LimitRow>,
    /// A night in which the clock is set, and who wants quiet then.
    pub night: Option<Night>,
    /// Whether somebody sets the wall clock.
    pub sets_clock: bool,
    pub kind: ScenarioKind,
}

/// A night in which daylight saving begins or ends in Berlin, at 01:00 UTC.
#[derive(Debug, Clone)]
pub struct Night {
    /// When the simulation begins.
    pub begins_ms: u64,
    /// When the clocks there are set, and what they are ahead of UTC before and after.
    pub set_ms: u64,
    pub ahead_hours: [u64; 2],
    /// Who wants quiet, in every tenant, and whether the messages are dropped.
    pub quiet: BTreeMap<String, bool>,
}

impl Night {
    /// Local time of the quiet hours, in minutes: over the step of the clock.
    const QUIET: [u16; 2] = [105, 195];
    /// 2026-03-29T01:00:00Z and 2026-10-25T01:00:00Z.
    const SPRING_MS: u64 = 1_774_746_000_000;
    const AUTUMN_MS: u64 = 1_792_890_000_000;
    /// As long it takes at most until it is not quiet any more.
    pub const LASTS_MS: i64 = 3 * 3_600_000;

    fn of(users: &[String], opted_out: &BTreeSet<String>, chance: &Chance) -> Self {
        let (set_ms, ahead_hours) =
            if chance.one_in(2) { (Self::SPRING_MS, [1, 2]) } else { (Self::AUTUMN_MS, [2, 1]) };
        let quiet_ms = set_ms - set_ms % DAY_MS + u64::from(Self::QUIET[0]) * 60_000 - ahead_hours[0] * 3_600_000;
        // Half a minute before it becomes quiet, or while it is.
        let begins_ms = if chance.one_in(4) { quiet_ms - 30_000 } else { quiet_ms + 30_000 + chance.below(1_500_000) };
        let some = users.iter().filter(|user| chance.one_in(2) && !opted_out.contains(*user));
        let quiet = some.map(|user| (user.clone(), chance.one_in(2))).collect();
        Self { begins_ms, set_ms, ahead_hours, quiet }
    }

    /// Whether it is quiet in Berlin at a time of the wall clock.
    pub fn is_quiet(&self, wall_ms: u64) -> bool {
        let ahead_ms = self.ahead_hours[usize::from(wall_ms >= self.set_ms)] * 3_600_000;
        let minute = (wall_ms + ahead_ms) % DAY_MS / 60_000;
        (u64::from(Self::QUIET[0])..u64::from(Self::QUIET[1])).contains(&minute)
    }

    fn preferences(&self, user_id: &str) -> Option<PersonChange> {
        let policy = if *self.quiet.get(user_id)? { QuietPolicy::Drop } else { QuietPolicy::Defer };
        let [start_minute, end_minute] = Self::QUIET;
        let quiet = QuietHours { start_minute, end_minute, time_zone: Some("Europe/Berlin".into()), policy };
        let preferences = Preferences { quiet_hours: Some(quiet), ..Default::default() };
        Some(PersonChange::Preferences { user_id: user_id.to_owned(), preferences })
    }
}

/// What a scenario is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScenarioKind {
    /// Everything at once.
    Mixed,
    /// Nothing has to wait, so that order is promised.
    Orderly,
    /// Audiences of several pages.
    Crowds,
}

/// How often the wall clock is set in a run at most.
const MAX_CLOCK_SETS: usize = 6;

/// The time to live where none is asked for.
pub const DAY_MS: u64 = 86_400_000;

impl Scenario {
    pub fn of(seed: u64, chance: &Chance) -> Self {
        let kind = match seed % 20 {
            4 => ScenarioKind::Crowds,
            1 | 6 | 11 | 16 => ScenarioKind::Orderly,
            _ => ScenarioKind::Mixed,
        };
        let (crowd, steps) = match kind {
            ScenarioKind::Crowds => (1_100, 5 + chance.below(4)),
            _ => (6, 25 + chance.below(40)),
        };
        let tenants: Vec<TenantId> =
            (0..if crowd > 6 { 1 } else { 3 + chance.below(2) }).map(|i| TenantId::trusted(&format!("t{i}"))).collect();
        let users: Vec<String> = (0..crowd + chance.below(30)).map(|i| format!("u{i}")).collect();
        let opted_out = users.iter().filter(|_| chance.one_in(6)).cloned().collect();
        let mut followers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for followee in users.iter().take(4) {
            let some = users.iter().filter(|user| *user != followee && chance.one_in(2)).cloned().collect();
            followers.insert(followee.clone(), some);
        }
        // Of one tenant on all channels, and of mail of everybody.
        let limits = match kind {
            ScenarioKind::Mixed if seed.is_multiple_of(3) => {
                vec![limit(Some("t0"), None, 10.0, 8), limit(None, Some("email"), 30.0, 20)]
            }
            _ => Vec::new(),
        };
        let is_night = kind == ScenarioKind::Mixed && seed % 10 == 2;
        let night = is_night.then(|| Night::of(&users, &opted_out, chance));
        let sets_clock = is_night || (kind != ScenarioKind::Orderly && (seed % 3 == 1 || seed % 6 == 3));
        let mut scenario =
            Self { tenants, users, opted_out, followers, steps: Vec::new(), limits, night, sets_clock, kind };
        scenario.steps = (0..steps as usize).map(|number| scenario.step(number, chance)).collect();
        let mut sets = 0;
        scenario.steps.retain(|step| {
            sets += usize::from(matches!(step, Step::SetClock { .. }));
            sets <= MAX_CLOCK_SETS || !matches!(step, Step::SetClock { .. })
        });
        scenario
    }

    /// When it begins, in milliseconds since the epoch.
    pub fn begins_ms(&self) -> u64 {
        self.night.as_ref().map_or(EPOCH_MS, |night| night.begins_ms)
    }

    fn step(&self, number: usize, chance: &Chance) -> Step {
        let tenant = self.tenants[chance.below(self.tenants.len() as u64) as usize].clone();
        let user = self.users[chance.below(self.users.len() as u64) as usize].clone();
        match chance.below(28) {
            0..=2 if self.kind != ScenarioKind::Orderly => Step::OptOut { tenant, user },
            3 => Step::BrokenRequest { tenant },
            4 => Step::BrokenDeliveries { tenant, user },
            5 => Step::Redrive,
            6..=7 if self.kind != ScenarioKind::Orderly => Step::Switch {
                tenant,
                mail: chance.one_in(2),
                state: match chance.below(5) {
                    0 | 1 => SwitchState::Hold,
                    2 => SwitchState::Off,
                    3 => SwitchState::Slow,
                    _ => SwitchState::On,
                },
                // Within the run, or once the clock is set an hour or a day ahead.
                expires_in_ms: chance
                    .one_in(2)
                    .then(|| 1 + chance.below([2_000, 3_600_000, DAY_MS][chance.below(3) as usize])),
            },
            8..=9 if self.kind != ScenarioKind::Orderly => Step::Cancel { back: 1 + chance.below(4) as usize },
            10 if self.kind != ScenarioKind::Orderly => Step::Erase { tenant, user },
            14 if self.kind != ScenarioKind::Orderly => Step::Return,
            15..=17 if !self.limits.is_empty() => Step::Limit(self.other_limit(chance)),
            11..=13 if self.sets_clock => Step::SetClock { ahead_ms: self.clock_error_ms(chance) },
            _ => Step::Notify(self.plan(tenant, number, chance)),
        }
    }

    fn plan(&self, tenant: TenantId, number: usize, chance: &Chance) -> Planned {
        let actor = self.users[chance.below(4) as usize].clone();
        let (kind, mut recipients): (Kind, BTreeSet<String>) = match chance.below(5) {
            0 => (Kind::FollowersOf(actor.clone()), self.followers[&actor].clone()),
            1 => (Kind::Everyone(true), self.users.iter().cloned().collect()),
            2 => {
                let mut inline: Vec<InlineRecipient> = Vec::new();
                for user in self.users.iter().take(40).filter(|_| chance.one_in(4)) {
                    inline.push(inline_recipient(user));
                }
                inline.push(inline_recipient(GUEST));
                let listed = inline.iter().map(|recipient| recipient.user_id.clone()).collect();
                (Kind::Inline(InlineList { recipients: inline }), listed)
            }
            _ => {
                let mut listed: BTreeSet<String> = self.users.iter().filter(|_| chance.one_in(3)).cloned().collect();
                if chance.one_in(4) {
                    listed.insert("nobody".into());
                }
                (Kind::Users(user_list(&listed)), listed)
            }
        };
        recipients.remove(&actor);
        Planned {
            tenant,
            number,
            kind,
            actor,
            dedupe_key: if chance.one_in(3) { format!("k{}", chance.below(3)) } else { String::new() },
            idempotency_key: if chance.one_in(4) { format!("call-{number}") } else { String::new() },
            transactional: chance.one_in(2),
            send_in_ms: match self.kind {
                ScenarioKind::Mixed if chance.one_in(6) => chance.below(120_000),
                _ => 0,
            },
            ttl_ms: match self.kind {
                ScenarioKind::Mixed if chance.one_in(8) => chance.below(3_000),
                // Some are over when the clock is set a day ahead.
                _ if self.sets_clock && !chance.one_in(4) => 3 * DAY_MS,
                _ => DAY_MS,
            },
            recipients,
        }
    }

    /// One of the limits with another rate and burst.
    pub fn other_limit(&self, chance: &Chance) -> LimitRow {
        let row = self.limits[chance.below(self.limits.len() as u64) as usize].clone();
        let (per_second, burst) = [(4.0, 4), (10.0, 8), (30.0, 20)][chance.below(3) as usize];
        LimitRow { per_second, burst, ..row }
    }

    /// Whether the provider is one that is overloaded. It takes a crowd to use up what retries may be.
    pub fn is_overloaded(&self, seed: u64) -> bool {
        match self.kind {
            ScenarioKind::Mixed => seed % 5 == 3,
            ScenarioKind::Crowds => seed % 40 == 4,
            ScenarioKind::Orderly => false,
        }
    }

    /// By how much the clock is wrong once somebody has set it: not at all, ahead by minutes, hours or a day, or behind by
    /// seconds, minutes or an hour. Nights are too short for a day.
    fn clock_error_ms(&self, chance: &Chance) -> i64 {
        let most_ms = |of: [u64; 3]| 1 + chance.below(of[chance.below(3) as usize]) as i64;
        let longest_ms = if self.night.is_some() { 2 * 3_600_000 } else { DAY_MS + 3_600_000 };
        match chance.below(5) {
            0 => 0,
            1 | 2 => most_ms([600_000, 2 * 3_600_000, longest_ms]),
            _ => -most_ms([10_000, 600_000, 3_600_000]),
        }
    }

    /// Lets the fourth notification go to somebody whose profile kills whoever reads it.
    pub fn send_to_a_killer(&mut self) {
        // Who is brought back would kill again, and nothing must keep it from being tried.
        let gets_in_the_way = |step: &Step| {
            matches!(
                step,
                Step::Redrive
                    | Step::Switch { .. }
                    | Step::Cancel { .. }
                    | Step::Erase { .. }
                    | Step::Return
                    | Step::Limit(_)
            )
        };
        self.steps.retain(|step| !gets_in_the_way(step));
        let fourth = self.steps.iter_mut().filter_map(|step| match step {
            Step::Notify(planned) => Some(planned),
            _ => None,
        });
        if let Some(planned) = fourth.into_iter().nth(3) {
            planned.recipients = self.users.iter().take(4).cloned().chain([KILLER.to_owned()]).collect();
            planned.recipients.remove(&planned.actor);
            planned.kind = Kind::Users(user_list(&planned.recipients));
            (planned.dedupe_key, planned.ttl_ms, planned.send_in_ms) = (String::new(), DAY_MS, 0);
        }
    }

    /// Stores limits, tenants, templates, people and edges.
    pub async fn set_up(&self, backends: &Backends, roles: &Roles, now_ms: u64) -> anyhow::Result<()> {
        for limit in &self.limits {
            let value = serde_json::to_vec(limit)?.into();
            let put = roles.publisher.put(kind::LIMIT, &limit.id, Some(value), 0).await;
            put.map_err(|e| anyhow::anyhow!("{e:?}"))?;
        }
        for tenant in &self.tenants {
            let id = tenant.as_str().to_owned();
            let row = TenantRow {
                tenant_id: id.clone(),
                name: id.clone(),
                created_ms: now_ms,
                updated_ms: now_ms,
                quota: None,
            };
            let template = TemplateRow {
                tenant_id: id,
                template_id: "comment".into(),
                version: 1,
                source: serde_json::from_str(TEMPLATE)?,
                created_ms: now_ms,
            };
            let head = TemplateHead { live: Some(1), latest: 1, ..Default::default() };
            for (kind, key, value) in [
                (kind::TENANT, tenant.to_string(), serde_json::to_vec(&row)?),
                (kind::TEMPLATE, template_row_key(tenant, "comment", 1), serde_json::to_vec(&template)?),
                (kind::TEMPLATE_HEAD, template_head_key(tenant, "comment"), serde_json::to_vec(&head)?),
            ] {
                roles.publisher.put(kind, &key, Some(value.into()), 0).await.map_err(|e| anyhow::anyhow!("{e:?}"))?;
            }
            backends.directory.change(tenant, self.people(), now_ms).await?;
            let members = self.followers.iter().flat_map(|(followee, followers)| {
                followers
                    .iter()
                    .map(|user| Membership { audience: AudienceKey::FollowersOf(followee.clone()), user: user.clone() })
            });
            backends.directory.set_members(tenant, members.collect(), true).await?;
            // What is stored before an append is durable once the append is.
            tell_change(tenant, "nobody", false, backends, now_ms).await?;
        }
        Ok(())
    }

    fn people(&self) -> Vec<PersonChange> {
        let mut changes = Vec::new();
        for user_id in &self.users {
            changes.push(profile(user_id));
            if self.opted_out.contains(user_id) {
                changes.push(no_mail(user_id));
            }
            changes.extend(self.night.as_ref().and_then(|night| night.preferences(user_id)));
        }
        changes
    }
}

/// A limit of a tenant, a channel, or both.
pub fn limit(tenant: Option<&str>, channel: Option<&str>, per_second: f64, burst: u64) -> LimitRow {
    let (tenant, channel) = (tenant.map(str::to_owned), channel.map(str::to_owned));
    let scope = LimitScope { tenant, channel, ..Default::default() };
    LimitRow { id: scope.id(), scope, per_second, burst, created_ms: 0, updated_ms: 0 }
}

/// Somebody whose profile kills whoever reads it.
pub const KILLER: &str = "killer";

/// Somebody who is not registered and is written to inline.
pub const GUEST: &str = "guest";

fn inline_recipient(user: &str) -> InlineRecipient {
    let address = format!("{user}@inline.example.org");
    let endpoint = record::Endpoint { channel: Channel::Email as i32, address, ..Default::default() };
    InlineRecipient { user_id: user.to_owned(), endpoints: vec![endpoint], ..Default::default() }
}

pub fn user_list(users: &BTreeSet<String>) -> record::UserList {
    let mut users: Vec<&str> = users.iter().map(String::as_str).collect();
    users.sort_by_key(|user| (user_hash(user), *user));
    record::UserList { count: users.len() as u32, packed: packed::pack(users) }
}

fn profile(user_id: &str) -> PersonChange {
    let address = format!("{user_id}@example.org");
    let endpoints = vec![Endpoint { channel: "email".into(), address, ..Default::default() }];
    let user = User { user_id: user_id.to_owned(), endpoints, ..Default::default() };
    PersonChange::Profile { user, expect: None }
}

fn no_mail(user_id: &str) -> PersonChange {
    let no_mail = ChannelPreference { enabled: Some(false), ..Default::default() };
    let preferences = Preferences { channels: [("email".into(), no_mail)].into(), ..Default::default() };
    PersonChange::Preferences { user_id: user_id.to_owned(), preferences }
}

/// Stores an opt-out and tells the workers, as a gateway does before it answers.
pub async fn opt_out(tenant: &TenantId, user: &str, backends: &Backends, now_ms: u64) -> Result<(), LogError> {
    change(tenant, user, no_mail(user), backends, now_ms).await
}

/// Registers somebody, who may have been here before.
pub async fn register(tenant: &TenantId, user: &str, backends: &Backends, now_ms: u64) -> Result<(), LogError> {
    change(tenant, user, profile(user), backends, now_ms).await
}

async fn change(
    tenant: &TenantId,
    user: &str,
    change: PersonChange,
    backends: &Backends,
    now_ms: u64,
) -> Result<(), LogError> {
    let stored = backends.directory.change(tenant, vec![change], now_ms).await;
    stored.map_err(|error| LogError::Unavailable(error.to_string()))?;
    tell_change(tenant, user, false, backends, now_ms).await
}

/// Tells the workers that a person has changed, as a gateway does.
pub async fn tell_change(
    tenant: &TenantId,
    user: &str,
    erased: bool,
    backends: &Backends,
    now_ms: u64,
) -> Result<(), LogError> {
    let change = UserChange { tenant: tenant.as_str().into(), user_id: user.into(), version: 2, erased };
    let shard = shard_of(tenant.as_str(), user, backends.log.identity().layout.shards);
    let at = TopicPartition { topic: Topic::UserChanges, partition: shard };
    let record = record_at(at, tenant, Schema::UserChange, Vec::new(), change.encode_to_vec(), backends, now_ms);
    backends.log.append(vec![record]).await.map(|_| ())
}

/// Orders that dead letters are brought back, as the API does.
pub async fn redrive(backends: &Backends, world: &World) -> anyhow::Result<()> {
    let order = v1::RedriveDeadLettersRequest { all: Some(true), ..Default::default() };
    let dead_letters = DeadLetters::new(backends.log.clone(), world.clone());
    dead_letters.redrive(order).await.map(|_| ()).map_err(|problem| anyhow::anyhow!("{problem}"))
}

/// How many dead letters were brought back, by what the log says of it.
pub async fn redriven(backends: &Backends) -> anyhow::Result<u64> {
    let (mut count, mut from) = (0, 0);
    loop {
        let (records, next) = backends.log.read(redrives(), from, 100).await?;
        for record in records.iter().filter(|record| record.envelope.schema() == Schema::Redriven) {
            count += record::Redrive::decode(record.body.clone())?.done.len() as u64;
        }
        if next == from {
            return Ok(count);
        }
        from = next;
    }
}

/// Appends a request whose body cannot be read.
pub async fn break_request(
    tenant: &TenantId,
    id: NotificationId,
    backends: &Backends,
    now_ms: u64,
) -> Result<(), LogError> {
    let at = TopicPartition { topic: Topic::Requests(Lane::Bulk), partition: 0 };
    let summary = SectionSummary { notification_id: id.0.to_vec().into(), ..Default::default() };
    let record = record_at(at, tenant, Schema::Request, vec![summary], GARBAGE.to_vec(), backends, now_ms);
    backends.log.append(vec![record]).await.map(|_| ())
}

/// Appends deliveries whose body cannot be read, with the manifest that says that they are there.
pub async fn break_deliveries(
    tenant: &TenantId,
    user: &str,
    id: NotificationId,
    backends: &Backends,
    now_ms: u64,
) -> Result<(), LogError> {
    let layout = backends.log.identity().layout;
    let hash_sum = InstanceId::of(&id, user, Channel::Email).book_hash();
    let summary = SectionSummary {
        tenant: tenant.as_str().into(),
        notification_id: id.0.to_vec().into(),
        channel: Channel::Email as i32,
        count: 1,
        hash_sum,
    };
    let manifest = Manifest {
        notification_id: id.0.to_vec().into(),
        tenant: tenant.as_str().into(),
        channel: Channel::Email as i32,
        count: 1,
        hash_sum,
        last: true,
        ..Default::default()
    };
    let batch = LedgerBatch { manifests: vec![manifest], ..LedgerBatch::default() };
    let shard = shard_of(tenant.as_str(), user, layout.shards);
    let home = TopicPartition { topic: Topic::Deliveries(Lane::Transactional), partition: shard };
    let garbage = GARBAGE.to_vec();
    let records = vec![
        record_at(home, tenant, Schema::DeliveryBatch, vec![summary], garbage, backends, now_ms),
        record_at(
            layout.receipts_of(&id),
            tenant,
            Schema::LedgerBatch,
            Vec::new(),
            batch.encode_to_vec(),
            backends,
            now_ms,
        ),
    ];
    backends.log.append(records).await.map(|_| ())
}

const GARBAGE: &[u8] = &[0xff; 40];

fn record_at(
    at: TopicPartition,
    tenant: &TenantId,
    schema: Schema,
    sections: Vec<SectionSummary>,
    body: Vec<u8>,
    backends: &Backends,
    now_ms: u64,
) -> NewRecord {
    let envelope = Envelope {
        schema: schema as i32,
        region: backends.log.identity().region.clone(),
        tenant: tenant.as_str().into(),
        sections,
        ..Default::default()
    };
    NewRecord { at, key: Bytes::new(), timestamp_ms: now_ms, envelope, body: body.into() }
}

impl Planned {
    /// When it is to be sent by its caller, whose clock is right, and when its time is over by the gateway's.
    pub fn times(&self, true_ms: u64, now_ms: u64) -> (u64, u64) {
        let send_at_ms = if self.send_in_ms > 0 { true_ms + self.send_in_ms } else { 0 };
        (send_at_ms, now_ms.max(send_at_ms) + self.ttl_ms)
    }
}

/// The record of a notification that is accepted now, by the true and by the wall clock.
fn request_record(
    planned: &Planned,
    id: NotificationId,
    backends: &Backends,
    [true_ms, now_ms]: [u64; 2],
) -> NewRecord {
    let (send_at_ms, expires_ms) = planned.times(true_ms, now_ms);
    let identity = backends.log.identity();
    let tenant = planned.tenant.as_str();
    let notification = Notification {
        id: Bytes::copy_from_slice(&id.0),
        tenant: tenant.into(),
        template_id: "comment".into(),
        template_version: 1,
        actor_id: planned.actor.clone(),
        dedupe_key: planned.dedupe_key.clone(),
        transactional: planned.transactional,
        accepted_ms: now_ms,
        send_at_ms,
        expires_ms,
        data: serde_json::json!({"text": format!("n{}", planned.number)}).to_string().into(),
        ..Default::default()
    };
    let request = Request {
        notification: notification.encode_to_vec().into(),
        audience: Some(record::Audience { kind: Some(planned.kind.clone()) }),
        channels: vec![Channel::InApp as i32, Channel::Email as i32],
        exclude_actor: true,
        idempotency_key: planned.idempotency_key.clone(),
        ..Default::default()
    };
    let lane = if planned.transactional { Lane::Transactional } else { Lane::Bulk };
    let summary = SectionSummary { notification_id: notification.id.clone(), ..Default::default() };
    let partition = ordering_partition(tenant, &planned.actor, identity.layout.requests);
    let at = TopicPartition { topic: Topic::Requests(lane), partition };
    record_at(at, &planned.tenant, Schema::Request, vec![summary], request.encode_to_vec(), backends, now_ms)
}

/// Hands a notification over as a gateway does, at a time by the true and by the wall clock; sometimes as two gateways do that
/// both serve the same call.
pub async fn send(
    planned: &Planned,
    id: NotificationId,
    twice: bool,
    backends: &Backends,
    at_ms: [u64; 2],
) -> Result<(), LogError> {
    let [_, now_ms] = at_ms;
    if !planned.idempotency_key.is_empty() {
        let admission = Admission {
            id,
            body_hash: [0; 16],
            first_use_ms: now_ms,
            running_since_ms: now_ms,
            answered: false,
            first_place: None,
        };
        let begun = backends.admissions.begin(&planned.tenant, &planned.idempotency_key, admission).await;
        begun.map_err(|error| LogError::Unavailable(error.to_string()))?;
    }
    let record = request_record(planned, id, backends, at_ms);
    if twice && !planned.idempotency_key.is_empty() {
        backends.log.append(vec![record.clone()]).await?;
    }
    backends.log.append(vec![record]).await.map(|_| ())
}
