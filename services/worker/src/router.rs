//! The router: what waits in a delay tier leaves it after the tier's delay, into the next tier that is not past its due
//! time, or back to its topic.
//!
//! Due times are the wall clock's, which may be set. What was written by a clock that was ahead of this one begins its time in
//! the tier anew, by this one: so nothing waits for the clock to come to where it was, or lies behind what does. Nothing is
//! sent before its time for that: whoever gets it home looks at the clock again.
//!
//! When a switch, a limit or a provider is lifted, what waits for it goes home at once: the tiers that may hold it are drained to the
//! ends that they had, in order, and what waits for something else goes on to the tier of what is left of its time.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use herald_core::{
    clock::World,
    control::RoleVersions,
    dead_letters::{dead_request_books, dead_section_books, letter, place_of},
    outputs::Outputs,
    policy::Policy,
    ports::log::{Commit, Committed, Identity, Log, Member, NewRecord, Position, Record, Subscription},
    record::{Schema, WaitCause},
    topic::{Group, Layout, Topic, TopicPartition, tier_delay_ms, tier_for},
    waiting::LONGEST_WAIT_MS,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Stats,
    burying::request_id,
    lifting::Lifting,
    outages::{of_log, wait_out},
    retry::LONGEST_DELAY_MS,
};

/// Why a record that does not say where it came from is dead.
const HOMELESS: &str = "no_home";

/// Records held in memory from one tier.
const HELD_RECORDS: usize = 1_000;

/// A record this much later than the clock is not of a clock that was set back, but of another process's.
const MAX_SKEW_MS: u64 = 1_000;

/// The longest time between two looks at the clock; a step of the wall clock is noticed within it.
const MAX_WAIT: Duration = Duration::from_millis(250);

/// What the router works with.
#[derive(Clone)]
pub struct RouterDeps {
    /// The log.
    pub log: Arc<dyn Log>,
    /// Switches and limits.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// Where the role says which policies it runs.
    pub versions: Arc<RoleVersions>,
    /// Clock and chance.
    pub world: World,
    /// What is counted.
    pub stats: Arc<Stats>,
}

/// One tier.
#[derive(Default)]
struct Tier {
    /// The first records that wait in it.
    held: VecDeque<Record>,
    /// By [`WaitCause`]: what is in front of this offset and waits for it goes home, since it was lifted.
    lifted: [u64; 4],
}

impl Tier {
    /// Whether a record leaves although the tier's delay is not over.
    fn is_drained(&self, record: &Record) -> bool {
        self.lifted.iter().any(|end| record.offset < *end)
    }

    /// Whether what a record waits for was lifted.
    fn is_lifted(&self, record: &Record) -> bool {
        let cause = record.envelope.waiting.as_ref().map_or(WaitCause::Unspecified, |waiting| waiting.cause());
        record.offset < self.lifted[cause as usize]
    }
}

struct Router {
    deps: RouterDeps,
    subscription: Box<dyn Subscription>,
    tiers: BTreeMap<TopicPartition, Tier>,
    lifting: Lifting,
}

/// Runs one member of the role until `shutdown`.
pub async fn run(deps: RouterDeps, member: Member, shutdown: CancellationToken) -> anyhow::Result<()> {
    let subscription = deps.log.subscribe(Group::Router, member).await?;
    let mut router = Router { deps, subscription, tiers: BTreeMap::new(), lifting: Lifting::default() };
    let outage = of_log("delay tiers cannot be polled; what waits comes back later");
    while !shutdown.is_cancelled() {
        let wait = router.wait();
        let polled = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            polled = router.subscription.poll(HELD_RECORDS, wait) => polled,
        };
        match polled {
            Ok(polled) => {
                outage.answered(router.deps.world.now_ms());
                let polled = polled.or_halt()?;
                for at in polled.revoked {
                    router.tiers.remove(&at);
                }
                for (at, _) in polled.assigned {
                    router.tiers.insert(at, Tier::default());
                    // What was lifted before is not known.
                    router.lifting = Lifting::default();
                }
                for record in polled.records {
                    router.tiers.entry(record.at).or_default().held.push_back(record);
                }
            }
            Err(error) => wait_out(&outage, error, &router.deps.world).await?,
        }
        let version = router.lift().await;
        router.pass_on().await?;
        router.deps.versions.runs("router", member, version);
    }
    Ok(())
}

impl Router {
    fn leaves_at_ms(at: &TopicPartition, record: &Record) -> u64 {
        let Topic::Delayed(tier) = at.topic else { return 0 };
        let due_ms = record.envelope.waiting.as_ref().map_or(0, |waiting| waiting.due_ms);
        // The shortest tier may hold what is due earlier than its delay.
        if tier == 0 {
            due_ms.min(record.timestamp_ms + tier_delay_ms(0))
        } else {
            record.timestamp_ms + tier_delay_ms(tier)
        }
    }

    fn leaves(at: &TopicPartition, tier: &Tier, record: &Record, now_ms: u64) -> bool {
        let leaves_at_ms = Self::leaves_at_ms(at, record);
        tier.is_drained(record) || leaves_at_ms <= now_ms || is_ahead(record, now_ms) || is_astray(at.topic, record)
    }

    fn wait(&self) -> Duration {
        let now_ms = self.deps.world.now_ms();
        let leaves_at_ms = |(at, tier): (&TopicPartition, &Tier)| {
            let first = tier.held.front()?;
            Some(if Self::leaves(at, tier, first, now_ms) { 0 } else { Self::leaves_at_ms(at, first) })
        };
        let next = self.tiers.iter().filter_map(leaves_at_ms).min();
        next.map_or(MAX_WAIT, |ms| Duration::from_millis(ms.saturating_sub(now_ms).max(1)).min(MAX_WAIT))
    }

    /// Sees what was lifted, and marks what is to go for it. Returns the version of the policies that it knows.
    async fn lift(&mut self) -> u64 {
        let (now_ms, policy) = (self.deps.world.now_ms(), self.deps.policy.borrow().clone());
        for cause in self.lifting.lifted(&policy, now_ms) {
            let at: Vec<TopicPartition> = self.tiers.keys().copied().filter(|at| may_be_lifted(at.topic)).collect();
            match self.subscription.ends(&at).await {
                Ok(ends) => {
                    for (at, end) in at.iter().zip(ends) {
                        if let Some(tier) = self.tiers.get_mut(at) {
                            tier.lifted[cause as usize] = end;
                        }
                    }
                }
                // It comes out after its tier's delay.
                Err(error) => tracing::warn!(%error, "what was lifted is not let go at once"),
            }
        }
        policy.version
    }

    /// Moves what has waited long enough, in one commit.
    async fn pass_on(&mut self) -> anyhow::Result<()> {
        let (now_ms, layout) = (self.deps.world.now_ms(), self.deps.log.identity().layout);
        let mut commit = Commit::default();
        for (at, tier) in &mut self.tiers {
            let mut moved = None;
            while tier.held.front().is_some_and(|record| Self::leaves(at, tier, record, now_ms)) {
                if let Some(record) = tier.held.pop_front() {
                    moved = Some(record.offset + 1);
                    let lifted = tier.is_lifted(&record);
                    match next_place(record, lifted, now_ms, layout) {
                        Ok(record) => commit.outputs.push(record),
                        Err(homeless) => {
                            self.deps.stats.add(|s| &s.router_dead_letters, 1);
                            commit.outputs.extend(bury(&homeless, self.deps.log.identity(), now_ms));
                        }
                    }
                }
            }
            if let Some(offset) = moved {
                commit.positions.push((*at, Position { offset, ..Position::default() }));
            }
            self.subscription.pause(*at, tier.held.len() >= HELD_RECORDS);
        }
        if commit.positions.is_empty() {
            return Ok(());
        }
        Committed::or_halt(self.subscription.commit(commit).await)?;
        Ok(())
    }
}

/// Whether a tier may hold what can be lifted: nothing waits for a switch or a limit longer without asking, and for a provider
/// only what that asked for itself.
fn may_be_lifted(topic: Topic) -> bool {
    matches!(topic, Topic::Delayed(tier) if tier <= tier_for(LONGEST_WAIT_MS))
}

/// Whether a record was written by a clock that was ahead of this one: nobody knows how long ago.
fn is_ahead(record: &Record, now_ms: u64) -> bool {
    record.timestamp_ms > now_ms + MAX_SKEW_MS
}

/// Whether deliveries are in a tier that is longer than anything makes them wait, since the clock was set while they were put
/// there.
fn is_astray(topic: Topic, record: &Record) -> bool {
    let Topic::Delayed(tier) = topic else { return false };
    record.envelope.schema() == Schema::DeliveryBatch && tier_delay_ms(tier) > LONGEST_DELAY_MS
}

/// Where a record goes from its tier, home at once if what it waits for was lifted; the record itself if it does not say
/// where it came from, or that is not there.
fn next_place(record: Record, lifted: bool, now_ms: u64, layout: Layout) -> Result<NewRecord, Box<Record>> {
    let home = record.envelope.waiting.as_ref().and_then(|waiting| {
        let topic = Topic::of_code(u8::try_from(waiting.topic).ok()?)?;
        let is_there = waiting.partition < layout.partitions(topic);
        is_there.then_some((waiting.due_ms, TopicPartition { topic, partition: waiting.partition }))
    });
    let Some((due_ms, home)) = home else { return Err(Box::new(record)) };
    let (ahead, astray) = (is_ahead(&record, now_ms), is_astray(record.at.topic, &record));
    let Record { mut envelope, body, timestamp_ms, .. } = record;
    let remaining_ms = match lifted || astray {
        true => 0,
        // All of its time: it may have come just now.
        false if ahead => due_ms.saturating_sub(timestamp_ms),
        false => due_ms.saturating_sub(now_ms),
    };
    let at = if remaining_ms == 0 {
        envelope.waiting = None;
        home
    } else {
        if let Some(waiting) = &mut envelope.waiting {
            waiting.due_ms = now_ms + remaining_ms;
        }
        TopicPartition { topic: Topic::Delayed(tier_for(remaining_ms)), partition: 0 }
    };
    Ok(NewRecord { at, key: Default::default(), timestamp_ms: now_ms, envelope, body })
}

/// A record without a home becomes a dead letter, and what it holds is booked dead.
fn bury(record: &Record, log: &Identity, now_ms: u64) -> Vec<NewRecord> {
    tracing::error!(at = %record.at, offset = record.offset, "a waiting record has no home; it is a dead letter");
    let mut outputs = Outputs::new(log.layout, &log.region, now_ms);
    let envelope = &record.envelope;
    match (envelope.schema(), request_id(envelope)) {
        (Schema::Request | Schema::Continuation, Some(id)) => {
            let books = dead_request_books(&envelope.tenant, &id, now_ms, HOMELESS, false);
            books.manifests.into_iter().for_each(|manifest| outputs.manifest(manifest));
            books.receipts.into_iter().for_each(|receipts| outputs.receipts(receipts));
        }
        _ => dead_section_books(&envelope.sections, now_ms, HOMELESS, false)
            .for_each(|receipts| outputs.receipts(receipts)),
    }
    outputs.dead(&envelope.tenant, letter(record, place_of(record, log), "router", HOMELESS, now_ms));
    outputs.finish()
}

#[cfg(test)]
mod tests {
    use herald_core::{
        record::{Envelope, LedgerBatch, SectionSummary, State, Waiting},
        topic::Lane,
    };
    use prost::Message;

    use super::*;

    const LAYOUT: Layout = Layout { shards: 4, requests: 4, receipts: 4 };

    fn waiting(due_ms: u64, tier: u8) -> Record {
        let topic = Topic::Deliveries(Lane::Bulk).code().into();
        let home = Waiting { due_ms, topic, partition: 3, cause: WaitCause::Unspecified as i32 };
        Record {
            at: TopicPartition { topic: Topic::Delayed(tier), partition: 0 },
            offset: 0,
            key: Default::default(),
            timestamp_ms: 0,
            envelope: Envelope { waiting: Some(home), ..Default::default() },
            body: Default::default(),
        }
    }

    /// From tier to tier a record comes home at its due time, at most one shortest delay late.
    #[test]
    fn a_record_comes_home_when_it_is_due() {
        for due_ms in [0, 1, 249, 250, 1_700, 63_999, 3_600_000, 30 * 86_400_000] {
            let (mut now_ms, mut hops) = (0, 0);
            let mut record = waiting(due_ms, tier_for(due_ms));
            loop {
                now_ms = Router::leaves_at_ms(&record.at, &record).max(now_ms);
                let next = next_place(record, false, now_ms, LAYOUT).unwrap();
                hops += 1;
                if next.at.topic == Topic::Deliveries(Lane::Bulk) {
                    assert_eq!((next.at.partition, next.envelope.waiting), (3, None));
                    break;
                }
                record = Record {
                    at: next.at,
                    offset: 0,
                    key: next.key,
                    timestamp_ms: next.timestamp_ms,
                    envelope: next.envelope,
                    body: next.body,
                };
            }
            assert!((due_ms..=due_ms + 250).contains(&now_ms), "due {due_ms}, home {now_ms}");
            assert!(hops <= 72, "{hops} hops for {due_ms}");
        }
    }

    /// It would lie there until the clock is where it was, and whatever comes later behind it.
    #[test]
    fn what_a_clock_wrote_that_was_ahead_waits_its_time_and_no_longer() {
        const DAY_MS: u64 = 86_400_000;
        let tier = tier_for(10_000);
        let written = Record { timestamp_ms: DAY_MS, ..waiting(DAY_MS + 10_000, tier) };
        let now_ms = 1_000_000;
        assert!(Router::leaves(&written.at, &Tier::default(), &written, now_ms));
        let again = next_place(written, false, now_ms, LAYOUT).unwrap();
        assert_eq!((again.at.topic, again.timestamp_ms), (Topic::Delayed(tier), now_ms));
        assert_eq!(again.envelope.waiting.as_ref().unwrap().due_ms, now_ms + 10_000);
        // Another process's clock need not be this one's to the millisecond.
        let skewed = Record { timestamp_ms: now_ms + MAX_SKEW_MS, ..waiting(now_ms + 10_000, tier) };
        assert!(!Router::leaves(&skewed.at, &Tier::default(), &skewed, now_ms));
    }

    #[test]
    fn a_delivery_in_a_tier_that_is_too_long_for_it_goes_home() {
        let far = Router::leaves_at_ms(&waiting(0, 8).at, &waiting(u64::MAX, 8));
        assert!(far > LONGEST_DELAY_MS);
        let mut astray = waiting(far, 8);
        assert!(!Router::leaves(&astray.at, &Tier::default(), &astray, 1), "what is scheduled may wait so long");
        astray.envelope.schema = Schema::DeliveryBatch as i32;
        assert!(Router::leaves(&astray.at, &Tier::default(), &astray, 1));
        assert_eq!(next_place(astray, false, 1, LAYOUT).unwrap().at.topic, Topic::Deliveries(Lane::Bulk));
    }

    #[test]
    fn a_record_without_a_home_is_booked_dead_and_kept() {
        let summary = SectionSummary { notification_id: vec![1; 16].into(), count: 3, ..Default::default() };
        let envelope = Envelope { sections: vec![summary], waiting: None, ..Default::default() };
        let fewer = Layout { shards: 3, ..LAYOUT };
        assert!(next_place(waiting(5, 0), false, 1_000, fewer).is_err(), "its partition is not there");
        let homeless = next_place(Record { envelope, ..waiting(5, 0) }, false, 1_000, LAYOUT).unwrap_err();
        let outputs = bury(&homeless, &Identity { region: "eu".into(), epoch: 1, layout: LAYOUT }, 1_000);
        let topics: Vec<Topic> = outputs.iter().map(|record| record.at.topic).collect();
        assert_eq!(topics, [Topic::Dead, Topic::Receipts]);
        let books = LedgerBatch::decode(outputs[1].body.clone()).unwrap();
        assert_eq!((books.receipts[0].count, books.receipts[0].state()), (3, State::Dead));
    }
}
