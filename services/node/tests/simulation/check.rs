//! What must be true once everything has settled.

use std::collections::{BTreeMap, BTreeSet};

use herald_core::{
    dead_letters::{letters, read_letter},
    ids::{InstanceId, NotificationId},
    ports::{
        inbox::StateFilter,
        ledger::{ReceiptRow, ReceiptScope},
    },
    record::{Channel, Envelope, Schema, State},
};
use herald_ledger::proof::prove;
use herald_node::backends::Backends;
use prost::Message;

use crate::{
    SETTLE,
    budgets::{Items, Limiting, check_retries},
    erasing::{Erasures, names_nobody},
    provider::Seen,
    scenario::{DAY_MS, GUEST, Scenario, ScenarioKind, Sent},
    steering::Steered,
    world::WallClock,
};

/// What is known of a run besides its books.
pub struct Facts<'a> {
    pub scenario: &'a Scenario,
    pub sent: &'a [Sent],
    pub seen: &'a Seen,
    pub restarts: u64,
    /// Workers that joined their group anew.
    pub rejoined: u64,
    pub in_doubt_instances: u64,
    /// When opt-outs were answered, or at the end of time if they were not, by tenant and user.
    pub opt_outs: &'a BTreeMap<(String, String), u64>,
    /// What was appended broken, and whether the append was answered.
    pub broken: &'a [(NotificationId, bool)],
    /// Orders to bring dead letters back.
    pub redrives: u64,
    /// When a start of the roles was followed by the next one in the same life.
    pub taken_over_ms: &'a BTreeMap<u64, u64>,
    /// Switches and cancels.
    pub steered: &'a Steered,
    pub erased: &'a Erasures,
    /// Limits, in-app items that were put out, and when the lives of the node began.
    pub limiting: &'a Limiting,
    pub items: &'a Items,
    pub starts_ms: &'a [u64],
    pub wall: &'a WallClock,
    /// When it all ended, in true time.
    pub end_ms: u64,
}

impl Facts<'_> {
    /// The latest time that the wall clock ever showed.
    fn latest_wall_ms(&self) -> u64 {
        self.wall.latest(0, self.end_ms)
    }
}

/// A send starts so long after it was decided at most.
pub const DECIDED_MS: u64 = 10_000;

/// An attempt is put off by so much at most, in the simulation.
const LONGEST_RETRY_MS: u64 = 10_000;

pub type Ends = BTreeMap<(NotificationId, String, i32), ReceiptRow>;

/// Every contradiction found; none means that the promises held.
pub async fn contradictions(facts: &Facts<'_>, backends: &Backends) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut sent = Vec::new();
    for one in facts.sent {
        let known = backends.ledger.request(&one.planned.tenant, &one.id).await?.is_some();
        if one.promised && !known {
            found.push(format!("{} was promised and is lost", one.id));
        }
        // What was never answered may be there or not; if it is, everything must hold for it too.
        if known {
            sent.push(one);
        }
    }
    let ids: Vec<NotificationId> = sent.iter().map(|one| one.id).collect();
    let proof = prove(backends.ledger.as_ref(), &ids).await?;
    if !proof.holds() {
        found.push(format!("the books do not hold: {proof:?}"));
    }
    for (id, promised) in facts.broken {
        let proof = prove(backends.ledger.as_ref(), &[*id]).await?;
        let absent = !proof.missing.is_empty() && !promised;
        if !absent && (!proof.holds() || proof.dead != 1) {
            found.push(format!("{id} could not be read and did not end as dead: {proof:?}"));
        }
    }
    let ends = ends(&sent, facts.redrives, backends, &mut found).await?;
    check_ends(facts, &sent, &ends, &dead_chains(backends).await?, &mut found);
    check_inboxes(facts, &sent, &ends, backends, &mut found).await?;
    check_provider(facts, &ends, &mut found);
    check_starts(facts, &mut found);
    facts.limiting.check(facts.seen, facts.items, facts.starts_ms, &mut found);
    check_retries(facts.seen, facts.in_doubt_instances, &mut found);
    check_quiet_hours(facts, &mut found);
    facts.erased.check_starts(facts.sent, &facts.seen.begun, &mut found);
    facts.erased.check_names(&sent, &ends, &mut found);
    facts.erased.check_rows(facts.scenario, backends, &mut found).await?;
    facts.steered.check_starts(&facts.seen.begun, facts.wall, &mut found);
    facts.steered.check_books(&ends, backends, &mut found).await?;
    if facts.scenario.kind == ScenarioKind::Orderly {
        check_order(facts, &mut found);
    }
    Ok(found)
}

/// The end of each instance; two ends of one are a contradiction.
async fn ends(sent: &[&Sent], redrives: u64, backends: &Backends, found: &mut Vec<String>) -> anyhow::Result<Ends> {
    let mut ends = Ends::new();
    for one in sent {
        let mut token: Option<Vec<u8>> = None;
        loop {
            let scope = ReceiptScope::Request(one.id);
            let page = backends.ledger.receipts(&one.planned.tenant, &scope, token.as_deref(), 500).await?;
            let page = page.map_err(|_| anyhow::anyhow!("a page token was refused"))?;
            for mut row in page.items {
                if names_nobody(&row.user_id) {
                    // Several may have the same name.
                    row.user_id = format!("{}#{}", row.user_id, ends.len());
                }
                let key = (one.id, row.user_id.clone(), row.shared.channel);
                // What was dead and brought back has a receipt for each end, in their order.
                let before = ends.insert(key.clone(), row);
                if before.is_some_and(|before| before.shared.state() != State::Dead || redrives == 0) {
                    found.push(format!("{key:?} has two receipts"));
                }
            }
            token = page.next;
            if token.is_none() {
                break;
            }
        }
    }
    Ok(ends)
}

/// Why requests and continuations are dead, by their notification.
async fn dead_chains(backends: &Backends) -> anyhow::Result<BTreeMap<NotificationId, String>> {
    let (mut causes, mut from) = (BTreeMap::new(), 0);
    loop {
        let (records, next) = backends.log.read(letters(), from, 100).await?;
        for letter in records.iter().filter_map(read_letter) {
            let envelope = Envelope::decode(letter.envelope)?;
            let is_chain = matches!(envelope.schema(), Schema::Request | Schema::Continuation);
            let id = envelope.sections.first().and_then(|section| NotificationId::from_slice(&section.notification_id));
            causes.extend(id.filter(|_| is_chain).map(|id| (id, letter.cause)));
        }
        if next == from {
            return Ok(causes);
        }
        from = next;
    }
}

fn check_ends(
    facts: &Facts<'_>,
    sent: &[&Sent],
    ends: &Ends,
    dead_chains: &BTreeMap<NotificationId, String>,
    found: &mut Vec<String>,
) {
    let mut delivered: BTreeMap<(String, String, i32, String), u64> = BTreeMap::new();
    for one in sent {
        for channel in [Channel::InApp, Channel::Email] {
            let ended: BTreeSet<&str> = ends
                .range((one.id, String::new(), 0)..)
                .take_while(|((id, ..), _)| *id == one.id)
                .filter(|((_, _, c), _)| *c == channel as i32)
                .map(|((_, user, _), _)| user.as_str())
                .filter(|user| !names_nobody(user))
                .collect();
            let wanted: BTreeSet<&str> = one.planned.recipients.iter().map(String::as_str).collect();
            // A chain that was stopped has no further pages.
            let stopped = facts.steered.cancelled.contains_key(&one.id)
                || facts.steered.may_have_killed(&one.planned.tenant, None);
            let stopped = stopped || facts.erased.may_have_cut(one);
            let missing = || wanted.difference(&ended).all(|user| facts.erased.may_have(&one.planned.tenant, user));
            if !ended.is_subset(&wanted) || !(stopped || missing()) {
                let chain =
                    dead_chains.get(&one.id).map_or(String::new(), |cause| format!("; its chain ended as {cause:?}"));
                found.push(format!("{} on {channel:?}: {ended:?} ended, {wanted:?} were to{chain}", one.id));
            }
        }
    }
    for ((id, user, channel), row) in ends {
        let Some(one) = sent.iter().find(|one| one.id == *id && !names_nobody(user)) else { continue };
        let reason = row.shared.reason.as_str();
        let is_mail = *channel == Channel::Email as i32;
        let may_be_late = reason == "expired" && facts.latest_wall_ms() + LONGEST_RETRY_MS >= one.expires_ms;
        let changed = facts.opt_outs.contains_key(&(one.planned.tenant.to_string(), user.clone()));
        let steered = (reason == "killed"
            && facts.steered.may_have_killed(&one.planned.tenant, Some(row.shared.channel())))
            || (reason == "cancelled" && facts.steered.cancelled.contains_key(id));
        let quiet = reason == "quiet_hours"
            && !one.planned.transactional
            && facts.scenario.night.as_ref().is_some_and(|night| night.quiet.get(user) == Some(&true));
        let erased = facts.erased.may_have(&one.planned.tenant, user);
        let unregistered = erased && matches!(reason, "unknown_user" | "unreachable" | "erased");
        let expected = if may_be_late || steered || quiet || unregistered {
            true
        } else if user == "nobody" {
            reason == "unknown_user"
        } else if user == GUEST && !is_mail {
            reason == "unreachable"
        } else if is_mail && !erased && facts.scenario.opted_out.contains(user) {
            // With a person their wishes are erased too.
            reason == "opted_out"
        } else {
            !matches!(
                reason,
                "killed"
                    | "cancelled"
                    | "unknown_user"
                    | "unreachable"
                    | "expired"
                    | "poison"
                    | "undecodable"
                    | "quiet_hours"
                    | "erased"
            ) && (reason != "opted_out" || (is_mail && (changed || facts.scenario.opted_out.contains(user))))
                && (reason != "duplicate" || !one.planned.dedupe_key.is_empty())
        };
        if !expected {
            found.push(format!("{id} {user} {channel}: ended as {reason:?}"));
        }
        if !one.planned.dedupe_key.is_empty() && row.shared.state() == State::Delivered {
            let tenant = one.planned.tenant.to_string();
            *delivered.entry((tenant, user.clone(), *channel, one.planned.dedupe_key.clone())).or_default() += 1;
        }
    }
    // Unless the clock was set so far that the window was over.
    let window_is_over = facts.wall.spread_ms() + SETTLE.as_millis() as u64 >= DAY_MS;
    for (key, count) in delivered.into_iter().filter(|(_, count)| *count > 1 && !window_is_over) {
        found.push(format!("{key:?} was delivered {count} times under one dedupe key"));
    }
}

async fn check_inboxes(
    facts: &Facts<'_>,
    sent: &[&Sent],
    ends: &Ends,
    backends: &Backends,
    found: &mut Vec<String>,
) -> anyhow::Result<()> {
    let in_order = facts.scenario.kind == ScenarioKind::Orderly;
    for tenant in &facts.scenario.tenants {
        for user in &facts.scenario.users {
            let (items, _) = backends.inbox.list(tenant, user, StateFilter::Active, None, 1_000).await?;
            let mut has: Vec<NotificationId> = items.iter().map(|item| item.notification).collect();
            // Newest first; the numbers of one actor and lane must fall.
            let mut last: BTreeMap<(String, bool), usize> = BTreeMap::new();
            for id in &has {
                if let Some(one) = sent.iter().find(|one| one.id == *id).filter(|_| in_order) {
                    let key = (one.planned.actor.clone(), one.planned.transactional);
                    if last.insert(key, one.planned.number).is_some_and(|later| later < one.planned.number) {
                        found.push(format!("{tenant} {user}: n{} is out of order", one.planned.number));
                    }
                }
            }
            has.sort();
            let wanted: BTreeSet<NotificationId> = ends
                .iter()
                .filter(|((id, u, channel), row)| {
                    u == user
                        && *channel == Channel::InApp as i32
                        && row.shared.state() == State::Delivered
                        && sent.iter().any(|one| one.id == *id && one.planned.tenant == *tenant)
                })
                .map(|((id, ..), _)| *id)
                .collect();
            if !has.iter().eq(wanted.iter()) {
                found.push(format!("{tenant} {user}: the inbox has {has:?}, delivered were {wanted:?}"));
            }
        }
    }
    Ok(())
}

fn check_provider(facts: &Facts<'_>, ends: &Ends, found: &mut Vec<String>) {
    let mut duplicates = 0;
    let mut known = BTreeSet::new();
    let of_mail =
        |((_, user, channel), _): &(&(_, String, i32), _)| *channel == Channel::Email as i32 && !names_nobody(user);
    for ((id, user, channel), row) in ends.iter().filter(of_mail) {
        let instance = InstanceId::of(id, user, Channel::Email);
        known.insert(instance);
        let taken = facts.seen.taken.get(&instance).copied().unwrap_or(0);
        duplicates += taken.saturating_sub(1);
        match row.shared.state() {
            State::Delivered if taken == 0 => found.push(format!("{id} {user} {channel}: delivered, never taken")),
            // Taken, and its worker died before it could commit that: whoever comes next decides anew. By then another may
            // hold the claim, the time be over, or the person have opted out.
            State::Suppressed
                if matches!(
                    row.shared.reason.as_str(),
                    "duplicate" | "expired" | "opted_out" | "killed" | "cancelled" | "quiet_hours" | "unknown_user"
                ) =>
            {
                duplicates += taken.min(1);
            }
            State::Suppressed if taken > 0 => {
                found.push(format!("{id} {user} {channel}: {} and taken {taken} times", row.shared.reason));
            }
            _ => {}
        }
    }
    // The receipts of those who were erased do not say whose they are.
    for one in facts.sent {
        for user in facts.erased.of(&one.planned.tenant) {
            let instance = InstanceId::of(&one.id, user, Channel::Email);
            if known.insert(instance) {
                duplicates += facts.seen.taken.get(&instance).map_or(0, |taken| taken.saturating_sub(1));
            }
        }
    }
    for instance in facts.seen.taken.keys().filter(|instance| !known.contains(*instance)) {
        found.push(format!("{instance} was taken and has no receipt"));
    }
    for user in &facts.seen.twice_in_a_batch {
        found.push(format!("{user} came twice in one batch of a provider"));
    }
    let allowed = facts.seen.unanswered + (facts.restarts + facts.rejoined) * facts.in_doubt_instances;
    if duplicates > allowed {
        found.push(format!("{duplicates} duplicates at the provider, at most {allowed} are allowed"));
    }
}

/// No send starts before its time, more than a second after an opt-out was answered, or for a worker that was replaced.
fn check_starts(facts: &Facts<'_>, found: &mut Vec<String>) {
    let sent: BTreeMap<NotificationId, &Sent> = facts.sent.iter().map(|one| (one.id, one)).collect();
    for begun in &facts.seen.begun {
        let late = |since_ms: Option<&u64>, grace_ms: u64| {
            since_ms.is_some_and(|since_ms| begun.at_ms > since_ms.saturating_add(grace_ms))
        };
        // Its time has come once the clock has shown it, whatever it shows later.
        let shown_ms = |one: &&Sent| facts.wall.latest(one.accepted_ms, begun.at_ms);
        if sent.get(&begun.notification).is_some_and(|one| shown_ms(one) < one.send_at_ms) {
            found.push(format!("{begun:?} was begun before its time"));
        }
        let opted_out = late(facts.opt_outs.get(&(begun.tenant.clone(), begun.user.clone())), 1_000);
        if opted_out && !facts.erased.may_have_come_before(begun) {
            found.push(format!("{begun:?} was begun more than a second after the opt-out"));
        }
        if late(facts.taken_over_ms.get(&begun.turn.generation), 3_000) {
            found.push(format!("{begun:?} was begun by a worker that was replaced"));
        }
    }
}

/// Nobody is sent bulk mail in quiet hours but what was decided before they began, or before the clock was set into them.
fn check_quiet_hours(facts: &Facts<'_>, found: &mut Vec<String>) {
    let Some(night) = &facts.scenario.night else { return };
    let bulk: BTreeSet<NotificationId> =
        facts.sent.iter().filter(|one| !one.planned.transactional).map(|one| one.id).collect();
    for begun in facts.seen.begun.iter().filter(|begun| bulk.contains(&begun.notification)) {
        let shown = facts.wall.shown(begun.at_ms - DECIDED_MS, begun.at_ms);
        let was_quiet = shown.into_iter().all(|wall_ms| night.is_quiet(wall_ms));
        let wants_quiet = night.quiet.contains_key(&begun.user)
            && !facts.opt_outs.contains_key(&(begun.tenant.clone(), begun.user.clone()))
            && !facts.erased.0.contains_key(&(begun.tenant.clone(), begun.user.clone()));
        if wants_quiet && was_quiet {
            found.push(format!("{begun:?} was begun in quiet hours"));
        }
    }
}

/// First attempts of one actor's notifications in one lane reach a user in the order in which they were accepted.
fn check_order(facts: &Facts<'_>, found: &mut Vec<String>) {
    let sent: BTreeMap<NotificationId, &Sent> = facts.sent.iter().map(|one| (one.id, one)).collect();
    let mut attempted = BTreeSet::new();
    let mut last: BTreeMap<(&str, &str, &str, bool), usize> = BTreeMap::new();
    for begun in &facts.seen.begun {
        let Some(one) = sent.get(&begun.notification).filter(|_| attempted.insert(begun.instance)) else { continue };
        let key = (begun.tenant.as_str(), begun.user.as_str(), one.planned.actor.as_str(), one.planned.transactional);
        let before = last.insert(key, one.planned.number);
        if before.is_some_and(|before| before > one.planned.number) {
            found.push(format!("{begun:?}: n{} was first attempted after n{before:?}", one.planned.number));
        }
    }
}
