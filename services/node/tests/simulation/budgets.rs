//! Limits of a simulation, which are changed while it runs, and retries: how much may be sent.

use std::collections::BTreeMap;

use herald_control_plane::publisher::Publisher;
use herald_core::{ids::channel_name, limits::LimitRow, policy::kind, record::Channel};

use crate::provider::{Handed, Seen, Turn};

/// Tokens may be used for so long after they were leased, and a message that was handed to the provider is begun within
/// its deadline.
const LEASE_AND_DEADLINE_MS: u64 = 1_000 + 2_000;

/// A worker decides with a changed limit so long after the change was answered at most.
const TAKEN_UP_MS: u64 = 1_000;

/// Retries a second that cost nothing, and how many of them at once.
const FREE_RETRIES: u64 = 10;

/// First attempts that pay for one retry.
const PRICE: u64 = 10;

/// A limit that was set, or may have been.
#[derive(Debug, Clone)]
struct Set {
    row: LimitRow,
    /// When the call began.
    from_ms: u64,
    /// When it was answered; `None` if it was not, when nobody knows whether it is set.
    answered_ms: Option<u64>,
}

/// The limits that were ever set, in order.
#[derive(Debug, Default)]
pub struct Limiting(Vec<Set>);

/// In-app items that a worker put out: when, whose, and how many.
pub type Items = Vec<(u64, String, u64)>;

impl Limiting {
    /// Those that are there before anything is sent.
    pub fn from_the_start(limits: &[LimitRow]) -> Self {
        let set = |row: &LimitRow| Set { row: row.clone(), from_ms: 0, answered_ms: Some(0) };
        Self(limits.iter().map(set).collect())
    }

    /// Sets another rate and burst for the scope of a limit.
    pub async fn change(&mut self, row: &LimitRow, publisher: &Publisher, now_ms: impl Fn() -> u64) {
        self.0.push(Set { row: row.clone(), from_ms: now_ms(), answered_ms: None });
        let answered = publisher.update(kind::LIMIT, &row.id, |_| Ok(row.clone())).await;
        if let (Ok(_), Some(last)) = (answered, self.0.last_mut()) {
            last.answered_ms = Some(now_ms());
        }
    }

    /// How often a limit was raised and lowered.
    pub fn changes(&self) -> [usize; 2] {
        let mut changes = [0; 2];
        for (at, set) in self.0.iter().enumerate() {
            if let Some(before) = self.0[..at].iter().rev().find(|before| before.row.id == set.row.id) {
                changes[usize::from(set.row.per_second < before.row.per_second)] += 1;
            }
        }
        changes
    }

    /// Over any window no more is sent than the largest rate in it times (the window + 1 s) and the largest burst, or one
    /// more burst for each start of the node within, which forgets the buckets.
    pub fn check(&self, seen: &Seen, items: &Items, starts_ms: &[u64], found: &mut Vec<String>) {
        let mut by_scope: BTreeMap<&str, Vec<&Set>> = BTreeMap::new();
        self.0.iter().for_each(|set| by_scope.entry(&set.row.id).or_default().push(set));
        for sets in by_scope.values() {
            let scope = &sets[0].row.scope;
            let is_of = |tenant: &str, channel: Channel| {
                scope.tenant.as_deref().is_none_or(|of| of == tenant)
                    && scope.channel.as_deref().is_none_or(|of| of == channel_name(channel))
            };
            let mails =
                seen.begun.iter().filter(|begun| is_of(&begun.tenant, Channel::Email)).map(|begun| (begun.at_ms, 1));
            let items = items.iter().filter(|(_, tenant, _)| is_of(tenant, Channel::InApp));
            let mut sends: Vec<(u64, u64)> = mails.chain(items.map(|(at_ms, _, count)| (*at_ms, *count))).collect();
            sends.sort_unstable();
            let in_force = spans(sets);
            for (from, (first_ms, _)) in sends.iter().enumerate() {
                let mut sum: u64 = 0;
                let over = sends[from..].iter().find(|(last_ms, count)| {
                    sum += count;
                    sum as f64 > allowed(&in_force, starts_ms, *first_ms, *last_ms)
                });
                if let Some((last_ms, _)) = over {
                    found.push(format!("{scope:?} was exceeded: {sum} sends from {first_ms} to {last_ms}"));
                    break;
                }
            }
        }
    }
}

/// What may have been in force: a limit, from when, and until when, which is open for the last one.
fn spans<'a>(sets: &[&'a Set]) -> Vec<(&'a LimitRow, u64, u64)> {
    let until_ms = |at: usize| {
        let next = sets[at + 1..].iter().find_map(|next| next.answered_ms);
        next.map_or(u64::MAX, |answered_ms| answered_ms + TAKEN_UP_MS + LEASE_AND_DEADLINE_MS)
    };
    sets.iter().enumerate().map(|(at, set)| (&set.row, set.from_ms, until_ms(at))).collect()
}

fn allowed(in_force: &[(&LimitRow, u64, u64)], starts_ms: &[u64], first_ms: u64, last_ms: u64) -> f64 {
    let within = in_force.iter().filter(|(_, from_ms, until_ms)| *from_ms <= last_ms && *until_ms >= first_ms);
    let (mut per_second, mut burst) = (0.0_f64, 0);
    for (row, ..) in within {
        per_second = per_second.max(row.per_second);
        burst = burst.max(row.burst);
    }
    let starts = starts_ms.iter().filter(|at_ms| (first_ms + 1..=last_ms).contains(at_ms)).count() as u64;
    per_second * (last_ms - first_ms + LEASE_AND_DEADLINE_MS) as f64 / 1_000.0 + (burst * (1 + starts)) as f64
}

/// Of each worker no more retries have failed at any time than a tenth of what it had tried before, and ten a second. One
/// that went well costs nothing, so what it took of those ten may be used later.
pub fn check_retries(seen: &Seen, in_doubt_instances: u64, found: &mut Vec<String>) {
    let mut by_turn: BTreeMap<Turn, Vec<&Handed>> = BTreeMap::new();
    seen.handed.iter().for_each(|handed| by_turn.entry(handed.turn).or_default().push(handed));
    for (turn, handed) in by_turn {
        // Whoever joined anew begins with nothing saved, and what its predecessor had handed over may be begun yet.
        let of_before = if turn.joined > 0 { in_doubt_instances } else { 0 };
        let allowed = |now_ms: u64| {
            let before = handed.iter().take_while(|handed| handed.at_ms <= now_ms);
            // A batch that is under way to the provider is paid for already.
            let first_attempts = before.map(|handed| handed.first_attempts).sum::<u64>() + in_doubt_instances;
            let free = FREE_RETRIES * (now_ms - handed[0].at_ms + LEASE_AND_DEADLINE_MS) / 1_000;
            FREE_RETRIES + free + first_attempts / PRICE + of_before
        };
        let failed = seen.begun.iter().filter(|begun| begun.turn == turn && begun.again && begun.failed);
        if let Some((count, at)) = (1..).zip(failed).find(|(count, begun)| *count > allowed(begun.at_ms)) {
            let allowed = allowed(at.at_ms);
            found
                .push(format!("by {} {count} retries of {turn:?} had failed, at most {allowed} are allowed", at.at_ms));
        }
    }
}
