//! From sections to messages in providers' hands: decide, claim, render, hand over.
//!
//! Sections are taken together, up to some hundred instances a turn, of any shard, tenant and notification: what they
//! cost together (a read of missing people, a round trip for claims, a batch for a provider) they cost once.

use std::{collections::BTreeMap, sync::Arc};

use herald_core::{
    books::CANCELLED,
    ids::{InstanceId, TenantId, channel_name},
    outputs::Wait,
    policy::{Policy, SIGNING_SECRET},
    ports::{
        channel::{Message, Unsubscribe},
        claims::ClaimRequest,
    },
    record::{Channel, State, WaitCause},
    tokens::UnsubscribeLinks,
};
use herald_templates::Rendered;
use parking_lot::Mutex;

use crate::{
    burying::bury_users,
    decide::{Question, Verdict, may_send},
    delivery::DecidedAt,
    handing_over::Outgoing,
    in_app::InAppItems,
    moving::deliveries_home,
    order::{OrderKey, order_key},
    pacing::Pass,
    people::Known,
    prepare::{NoRenderer, Renderer, content_of},
    receipts::End,
    section::{Chunk, inline_known},
    shard::{Queued, Shard},
    spans::tell_of_items,
    stage::Worker,
    steering::{HOLD_MS, Steer},
};

/// How long a section waits that cannot be decided now.
const UNDECIDED_DELAY_MS: u64 = 1_000;

/// How long what is deferred waits at most before it is looked at again: whose quiet hours they are may remove them.
const QUIET_LOOK_MS: u64 = 1_024_000;

/// Instances decided before the loop looks at events again.
const INSTANCES_PER_TURN: u64 = 4_096;

/// Instances taken together, about.
const INSTANCES_AT_ONCE: u64 = 512;

/// Claims of a shard that a turn has room for at first: about its share of what is taken together.
const FIRST_CLAIMS: usize = 64;

/// A section whose turn it is.
pub(crate) struct Job {
    pub shard: u32,
    pub queued: Queued,
    pub order: Option<OrderKey>,
    /// Taken singly and noted first, since one like it killed its worker.
    careful: bool,
    /// By whom it is sent; nobody on in-app, and where there is nobody.
    pub provider: Option<Arc<str>>,
    /// What its instances are rendered with, once it is known.
    rendering: Option<Rendering>,
    /// Who they are for, in the order of its chunk.
    pub people: Vec<Arc<Known>>,
    /// What is to become of each.
    pub fates: Vec<Fate>,
    /// Whether a switch slows it.
    pub slowed: bool,
    /// What was taken of limits for them.
    pub pass: Option<Pass>,
}

pub(crate) enum Fate {
    /// Send.
    Send,
    /// It ends here; with an error code.
    End(State, &'static str, String),
    /// It waits.
    Wait(Wait),
}

struct Rendering {
    renderer: Arc<Mutex<Renderer>>,
    category: Arc<str>,
    dedupe_window_ms: u64,
}

impl Job {
    /// How many are to be sent.
    pub(crate) fn sending(&self) -> u64 {
        self.fates.iter().filter(|fate| matches!(fate, Fate::Send)).count() as u64
    }

    /// A job of which nothing else is known yet.
    fn new(shard: u32, queued: Queued, order: Option<OrderKey>, careful: bool) -> Self {
        Self {
            shard,
            queued,
            order,
            careful,
            provider: None,
            rendering: None,
            people: Vec::new(),
            fates: Vec::new(),
            slowed: false,
            pass: None,
        }
    }

    /// Some of its users, for a provider; before anything else is known of it.
    pub(crate) fn part(&self, provider: Arc<str>, users: Vec<u32>) -> Self {
        let chunk = Chunk { users, head: self.queued.chunk.head.clone(), ..self.queued.chunk };
        let part = Self::new(self.shard, Queued { chunk, ..self.queued }, self.order, self.careful);
        Self { provider: Some(provider), ..part }
    }

    fn category(&self) -> &str {
        self.rendering.as_ref().map_or("", |rendering| &rendering.category)
    }
}

impl Worker {
    /// Takes sections in turn, one a shard, while there is room in the in-doubt window.
    pub(crate) async fn serve(&mut self) -> anyhow::Result<()> {
        let mut left = INSTANCES_PER_TURN;
        while left > 0 {
            let mut jobs = self.take_jobs();
            if jobs.is_empty() {
                break;
            }
            left = left.saturating_sub(jobs.iter().map(|job| job.queued.cost()).sum());
            self.touch();
            let alone = jobs.pop_if(|last| last.careful);
            self.process(jobs).await;
            if let Some(job) = alone {
                if let Some(track) =
                    self.shards.get_mut(&job.shard).and_then(|shard| shard.tracks.get_mut(&job.queued.topic))
                {
                    track.note(job.queued.unit);
                }
                // With all that was finished before, whose outputs must not be parted from its position.
                let noted = self.commit().await?;
                self.made_durable(noted).await?;
                self.touch();
                self.process(vec![job]).await;
            }
        }
        self.deps.stats.set(|s| &s.window_instances, self.shards.values().map(|shard| shard.unfinished()).sum());
        self.deps.stats.set(|s| &s.in_doubt, self.in_doubt.total());
        Ok(())
    }

    /// Takes some hundred instances whose turn it is, and counts them as handed over. A careful one ends the list.
    fn take_jobs(&mut self) -> Vec<Job> {
        let numbers: Vec<u32> = self.shards.keys().copied().collect();
        let (mut jobs, mut taken, mut idle) = (Vec::new(), 0, 0);
        while taken < INSTANCES_AT_ONCE && idle < numbers.len() {
            self.next_shard = (self.next_shard + 1) % numbers.len();
            let number = numbers[self.next_shard];
            idle += 1;
            let Some(shard) = self.shards.get_mut(&number) else { continue };
            let Some((queued, waited)) = shard.next(&self.in_doubt) else { continue };
            idle = 0;
            let order = order_key(&queued.chunk.head);
            let queued = match order {
                Some(key) if !waited => match shard.order.admit(key, queued) {
                    Some(queued) => queued,
                    None => continue,
                },
                _ => queued,
            };
            let head = &queued.chunk.head;
            if let Some(key) = order {
                shard.order.handed_over(key, head.id);
            }
            self.in_doubt.hand_over(head.channel, queued.cost());
            taken += queued.cost();
            let careful = shard.tracks.get(&queued.topic).is_some_and(|track| track.is_careful(queued.unit));
            jobs.push(Job::new(number, queued, order, careful));
            if careful {
                break;
            }
        }
        jobs
    }

    async fn process(&mut self, jobs: Vec<Job>) {
        let policy: Arc<Policy> = self.deps.policy.borrow().clone();
        let jobs = self.with_providers(jobs);
        let jobs = self.that_may_go(jobs, &policy);
        let jobs = self.with_ways(jobs);
        let jobs = self.with_templates(jobs, &policy);
        let mut jobs = self.with_people(jobs).await;
        let decided_at = DecidedAt { generation: self.freshness.generation(), steered: policy.steered() };
        self.decide(&mut jobs);
        self.pace(&mut jobs, &policy).await;
        let jobs = self.hold_back(jobs);
        let mut jobs = self.claim(jobs).await;
        // Reading people and claiming take their time; in-app items pass no gate after this.
        let newest: Arc<Policy> = self.deps.policy.borrow().clone();
        if newest.steered() != policy.steered() {
            jobs = self.that_may_go(jobs, &newest);
        }
        let links = self.unsubscribe_links(&policy);
        let mut outgoing = Outgoing::new(jobs.iter().map(Job::sending).sum());
        let mut rendered = Rendered::new();
        for job in jobs {
            self.put_back_unsent(&job);
            if job.queued.chunk.head.channel == Channel::InApp {
                let now_ms = self.deps.world.steady_ms();
                self.pacing.slowing.sent(&job.queued.chunk.head, None, job.sending(), now_ms);
            }
            let (channel, cost) = (job.queued.chunk.head.channel, job.queued.cost());
            let (shard, order) = (job.shard, job.order);
            let sent = self.render(job, links.clone(), &mut rendered, &mut outgoing);
            self.done_with(shard, channel, order, cost - sent);
        }
        self.hand_over(outgoing, decided_at);
        self.pacing.turn_is_over();
    }

    /// Takes back what was counted as handed over and was not, and the turn's own hold on the order.
    pub(crate) fn done_with(&mut self, shard: u32, channel: Channel, order: Option<OrderKey>, not_sent: u64) {
        self.in_doubt.drop(channel, not_sent);
        if let Some(key) = order
            && let Some(shard) = self.shards.get_mut(&shard)
        {
            shard.order.begun(key);
        }
    }

    /// A section that cannot be decided now comes again in a second; nothing of it was attempted.
    fn put_off(&mut self, job: &Job) {
        self.put_off_until(job, Wait::until(self.deps.world.now_ms() + UNDECIDED_DELAY_MS));
    }

    pub(crate) fn put_off_until(&mut self, job: &Job, wait: Wait) {
        if let Some(shard) = self.shards.get_mut(&job.shard) {
            shard.send_on(&job.queued, deliveries_home(job.queued.topic, job.shard), Some(wait));
        }
        self.done_with(job.shard, job.queued.chunk.head.channel, job.order, job.queued.cost());
    }

    fn end_all(&mut self, job: &Job, end: &End) {
        let now_ms = self.deps.world.now_ms();
        if let Some(shard) = self.shards.get_mut(&job.shard) {
            shard.end_all(&job.queued, end, now_ms);
        }
        self.done_with(job.shard, job.queued.chunk.head.channel, job.order, job.queued.cost());
    }

    /// Those whose time is not over and that neither a switch nor a cancel keeps back; the others end or wait.
    fn that_may_go(&mut self, mut jobs: Vec<Job>, policy: &Policy) -> Vec<Job> {
        let now_ms = self.deps.world.now_ms();
        jobs.retain(|job| {
            let head = &job.queued.chunk.head;
            let steer = self.steering.decide(policy, head, job.provider.as_deref(), now_ms);
            // What is cancelled ends as that, whenever it comes up: so it may have been told already.
            if now_ms >= head.notification.expires_ms && steer != Steer::End(CANCELLED) {
                self.end_all(job, &head.expiry());
                return false;
            }
            match steer {
                Steer::Go => return true,
                Steer::Hold => {
                    self.deps.stats.add(|s| &s.held, job.queued.cost());
                    let wait = Wait { due_ms: now_ms + HOLD_MS, cause: WaitCause::Switch };
                    self.put_off_until(job, wait.at_most(head.notification.expires_ms));
                }
                Steer::End(reason) => {
                    self.end_all(job, &End::by_rule(State::Suppressed, reason, head.section.attempts));
                }
            }
            false
        });
        jobs
    }

    /// Those that can be rendered; the others end or wait.
    fn with_templates(&mut self, mut jobs: Vec<Job>, policy: &Arc<Policy>) -> Vec<Job> {
        jobs.retain_mut(|job| {
            let head = &job.queued.chunk.head;
            match self.renderers.of(head, policy) {
                Ok(renderer) => {
                    let (category, dedupe_window_ms) = {
                        let renderer = renderer.lock();
                        (renderer.category().clone(), renderer.dedupe_window_ms())
                    };
                    job.rendering = Some(Rendering { renderer, category, dedupe_window_ms });
                    return true;
                }
                Err(NoRenderer::Unknown) => {
                    let template = &head.notification.template_id;
                    tracing::warn!(template, "a template is not known yet; its messages wait");
                    self.put_off(job);
                }
                Err(NoRenderer::Refused(cause)) => {
                    tracing::error!(template = head.notification.template_id, %cause, "messages cannot be rendered");
                    self.end_all(job, &End::by_rule(State::Failed, "template_refused", head.section.attempts));
                }
            }
            false
        });
        jobs
    }

    /// Those whose users are known. If the directory does not answer, which is not absence, a section waits.
    async fn with_people(&mut self, mut jobs: Vec<Job>) -> Vec<Job> {
        let now_ms = self.deps.world.steady_ms();
        // By tenant: the job, the place in its chunk, and the id.
        let mut missing: BTreeMap<TenantId, Vec<(usize, usize, String)>> = BTreeMap::new();
        let mut found: Vec<Vec<Option<Arc<Known>>>> = Vec::with_capacity(jobs.len());
        for (j, job) in jobs.iter().enumerate() {
            let chunk = &job.queued.chunk;
            let mut people = Vec::with_capacity(chunk.users.len());
            for (i, user) in chunk.users().enumerate() {
                let known = self.people.get(&chunk.head.tenant, user, now_ms);
                if known.is_none() {
                    let tenant = chunk.head.tenant.clone();
                    missing.entry(tenant).or_default().push((j, i, user.to_owned()));
                }
                people.push(known);
            }
            found.push(people);
        }
        for (tenant, places) in missing {
            let ids: Vec<String> = places.iter().map(|(.., id)| id.clone()).collect();
            let away = &self.deps.outages.people;
            match self.deps.directory.people(&tenant, &ids).await {
                Ok(people) => {
                    away.answered(now_ms);
                    self.deps.stats.add(|s| &s.people_filled, ids.len() as u64);
                    for ((j, i, id), person) in places.into_iter().zip(people) {
                        let known = Arc::new(Known::of(&id, person));
                        self.people.insert(&tenant, &id, now_ms, known.clone());
                        found[j][i] = Some(known);
                    }
                }
                Err(error) => away.failed(&error, ids.len() as u64, now_ms),
            }
        }
        for (job, people) in jobs.iter_mut().zip(found) {
            job.people = people.into_iter().collect::<Option<_>>().unwrap_or_default();
            let chunk = &job.queued.chunk;
            if !chunk.head.section.inline.is_empty() {
                for (known, in_section) in job.people.iter_mut().zip(&chunk.users) {
                    if let Some(inline) = chunk.head.inline(*in_section as usize) {
                        *known = Arc::new(inline_known(inline, known));
                    }
                }
            }
        }
        self.keep(jobs, |job| job.people.len() == job.queued.chunk.users.len())
    }

    /// Those that may go on; the others are put off.
    fn keep(&mut self, jobs: Vec<Job>, may_go_on: impl Fn(&Job) -> bool) -> Vec<Job> {
        if jobs.iter().all(&may_go_on) {
            return jobs;
        }
        let (kept, put_off): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(may_go_on);
        put_off.iter().for_each(|job| self.put_off(job));
        kept
    }

    fn decide(&self, jobs: &mut [Job]) {
        let now_ms = self.deps.world.now_ms();
        for job in jobs {
            let head = &job.queued.chunk.head;
            let question = Question {
                notification: &head.notification,
                channel: head.channel,
                category: job.category(),
                attempts: head.section.attempts,
                inline: !head.section.inline.is_empty(),
                now_ms,
            };
            let fate = |known: &Arc<Known>| match may_send(&question, known) {
                Verdict::Send(_) => Fate::Send,
                Verdict::Suppress(reason) => Fate::End(State::Suppressed, reason, String::new()),
                Verdict::Dead(reason) => Fate::End(State::Dead, reason, String::new()),
                Verdict::Wait(until_ms) => {
                    self.deps.stats.add(|s| &s.quiet, 1);
                    Fate::Wait(Wait::until(until_ms.min(now_ms + QUIET_LOOK_MS)))
                }
            };
            job.fates = job.people.iter().map(fate).collect();
        }
    }

    /// Takes claims for what may be sent, in one round trip a shard. Jobs whose claims cannot be taken now wait.
    async fn claim(&mut self, mut jobs: Vec<Job>) -> Vec<Job> {
        let now_ms = self.deps.world.now_ms();
        let mut takes: BTreeMap<u32, Vec<ClaimRequest>> = BTreeMap::new();
        for job in &jobs {
            let head = &job.queued.chunk.head;
            let Some(mut keys) = head.claim_keys() else { continue };
            let window_ms = job.rendering.as_ref().map_or(0, |rendering| rendering.dedupe_window_ms);
            let takes = takes.entry(job.shard).or_insert_with(|| Vec::with_capacity(FIRST_CLAIMS));
            for (known, _) in job.people.iter().zip(&job.fates).filter(|(_, fate)| matches!(fate, Fate::Send)) {
                let (key, expires_ms) = (keys.of(&known.id), now_ms + window_ms);
                takes.push(ClaimRequest::Take { key, owner: head.id, expires_ms });
            }
        }
        if takes.is_empty() {
            return jobs;
        }
        let log = &self.deps.log;
        let asked = self.shards.iter_mut().filter_map(|(number, shard)| {
            let takes = takes.get(number)?;
            Some(async move { (*number, shard.claims.take(takes, log.as_ref(), now_ms).await) })
        });
        let mut holders: BTreeMap<u32, std::vec::IntoIter<_>> = BTreeMap::new();
        for (number, answer) in futures::future::join_all(asked).await {
            match answer {
                Ok(of_shard) => {
                    self.deps.outages.claims.answered(now_ms);
                    holders.insert(number, of_shard.into_iter());
                }
                Err(error) => {
                    let put_off = takes.get(&number).map_or(0, Vec::len) as u64;
                    self.deps.outages.claims.failed(&error, put_off, now_ms);
                }
            }
        }
        for job in &mut jobs {
            let head = &job.queued.chunk.head;
            let Some(of_shard) = holders.get_mut(&job.shard).filter(|_| !head.notification.dedupe_key.is_empty())
            else {
                continue;
            };
            for fate in job.fates.iter_mut().filter(|fate| matches!(fate, Fate::Send)) {
                if let Some(holder) = of_shard.next().filter(|holder| *holder != head.id) {
                    *fate = Fate::End(State::Suppressed, "duplicate", format!("winner:{holder}"));
                }
            }
        }
        let unguarded = |job: &Job| job.queued.chunk.head.notification.dedupe_key.is_empty();
        self.keep(jobs, |job| unguarded(job) || !takes.contains_key(&job.shard) || holders.contains_key(&job.shard))
    }

    /// Makes unsubscribe links with the policy's secret.
    fn unsubscribe_links(&mut self, policy: &Policy) -> Option<Arc<UnsubscribeLinks>> {
        let secret = policy.secret(SIGNING_SECRET)?;
        if self.links.as_ref().is_none_or(|(signed_with, _)| signed_with != secret) {
            let links = UnsubscribeLinks::new(&self.config.public_url, secret);
            self.links = Some((secret.to_owned(), Arc::new(links)));
        }
        self.links.as_ref().map(|(_, links)| links.clone())
    }

    /// Renders what is to be sent. In-app items are put out at once, messages for a provider are gathered. Returns how
    /// many there are for a provider.
    fn render(
        &mut self,
        mut job: Job,
        links: Option<Arc<UnsubscribeLinks>>,
        rendered: &mut Rendered,
        outgoing: &mut Outgoing,
    ) -> u64 {
        let now_ms = self.deps.world.now_ms();
        tell_of_items(&job.queued.chunk.head, job.sending(), &self.deps.world);
        let Some(shard) = self.shards.get_mut(&job.shard) else { return 0 };
        let Some(Rendering { renderer, category, .. }) = job.rendering.take() else { return 0 };
        let channel = job.queued.chunk.head.channel;
        let unsubscribe = links.map(|links| Arc::new(Unsubscribe { links, channel, category }));
        let mut renderer = renderer.lock();
        SectionRenderer { shard, renderer: &mut renderer, rendered, unsubscribe, now_ms }.run(job, outgoing)
    }
}

/// What the messages of one section are made with.
struct SectionRenderer<'a> {
    shard: &'a mut Shard,
    renderer: &'a mut Renderer,
    /// The message that was rendered last.
    rendered: &'a mut Rendered,
    unsubscribe: Option<Arc<Unsubscribe>>,
    now_ms: u64,
}

impl SectionRenderer<'_> {
    fn run(mut self, mut job: Job, outgoing: &mut Outgoing) -> u64 {
        let head = job.queued.chunk.head.clone();
        let attempts = head.section.attempts;
        let mut finished: Vec<u32> = Vec::with_capacity(job.fates.len());
        let mut in_app = InAppItems::new(&head);
        // Who has no provider has no messages for one.
        let mut batches = job.provider.as_ref().map(|provider| outgoing.of(provider, job.slowed));
        let mut sent = 0;
        let mut dead: Option<(End, Vec<u32>)> = None;
        let fates = std::mem::take(&mut job.fates);
        for (at, fate) in fates.into_iter().enumerate() {
            let known = &job.people[at];
            let index = job.queued.chunk.first + job.queued.chunk.users[at];
            let end = match fate {
                Fate::End(state, reason, error_code) => End { error_code, ..End::by_rule(state, reason, attempts) },
                // Held back before.
                Fate::Wait(_) => continue,
                Fate::Send if in_app.add_shared(&known.id, known.locale.as_deref()) => {
                    finished.push(index);
                    continue;
                }
                Fate::Send => match self.message(&job, known) {
                    Ok(Some(message)) => {
                        if let Some(batches) = &mut batches {
                            batches.push(&job, self.shard, at, message);
                            sent += 1;
                        }
                        continue;
                    }
                    Ok(None) => {
                        let locale = known.locale.as_deref();
                        in_app.add(&known.id, locale, self.renderer.is_constant(locale), self.rendered);
                        finished.push(index);
                        continue;
                    }
                    Err(end) => end,
                },
            };
            // A duplicate's claim is somebody else's.
            if end.reason != "duplicate" {
                self.shard.release(&head, &known.id);
            }
            self.shard.endings.of(&head, self.now_ms).add(&known.id, &end);
            finished.push(index);
            if end.state == State::Dead {
                // A rule has one word for it, so they all ended the same way.
                dead.get_or_insert_with(|| (end, Vec::new())).1.push(job.queued.chunk.users[at]);
            }
        }
        if let Some((end, users)) = dead {
            let place = self.shard.place(job.queued.topic, job.queued.offset);
            bury_users(&head, &users, &end, place, self.now_ms, &mut self.shard.outputs);
        }
        in_app.put_out(self.shard.number, &mut self.shard.outputs);
        self.shard.finish(job.queued.topic, job.queued.offset, finished);
        sent
    }

    /// Renders for one person; `None` for in-app, whose message is in `rendered`.
    fn message(&mut self, job: &Job, known: &Arc<Known>) -> Result<Option<Message>, End> {
        let head = &job.queued.chunk.head;
        let attempts = head.section.attempts;
        self.renderer.render(known, self.unsubscribe.as_deref(), self.rendered).map_err(|error| {
            let error_code = error.code().to_owned();
            End { error_code, ..End::by_rule(State::Failed, "template_data", attempts) }
        })?;
        let Some(content) = content_of(self.rendered) else { return Ok(None) };
        let channel = channel_name(head.channel);
        let endpoint = known.endpoints.iter().find(|endpoint| endpoint.channel == channel).cloned();
        match endpoint.filter(|_| job.provider.is_some()) {
            Some(endpoint) => Ok(Some(Message {
                instance: InstanceId::of(&head.id, &known.id, head.channel),
                notification: head.id,
                tenant: head.tenant.clone(),
                user: known.id.clone(),
                endpoint,
                content,
                unsubscribe: self.unsubscribe.clone(),
                expires_ms: head.notification.expires_ms,
            })),
            None => Err(End::by_rule(State::Suppressed, "channel_not_configured", attempts)),
        }
    }
}
