//! Outcomes become receipts, further attempts, and finished instances.

use std::collections::BTreeMap;

use herald_core::{
    outputs::Wait,
    ports::{channel::Outcome, log::Mark},
    record::{State, WaitCause},
};

use crate::{
    burying::bury_users,
    delivery::{Batch, BatchSection, Event, Item},
    moving::{deliveries_home, part_of},
    receipts::End,
    retry::{Next, Why, after},
    spans::tell,
    stage::Worker,
};

/// Messages of a section that are due within the same span share a record.
pub(crate) const DUE_GRAIN_MS: u64 = 100;

impl Worker {
    pub(crate) fn take_events(&mut self) {
        // What came for a batch at once is settled at once, so that it shares its receipts.
        let mut outcomes: BTreeMap<u64, Vec<(usize, Outcome)>> = BTreeMap::new();
        let mut over = Vec::new();
        let mut events = std::mem::take(&mut self.taken_events);
        self.events.take(&mut events);
        for event in events.drain(..) {
            match event {
                Event::Outcome { batch, index, outcome } => {
                    let items = || self.batches.get(&batch).map_or(0, |batch| batch.items.len());
                    let of_batch = outcomes.entry(batch).or_insert_with(|| Vec::with_capacity(items()));
                    of_batch.push((index, outcome));
                }
                Event::Started { batch, section } => self.begun(batch, section),
                Event::Over { batch } => over.push(batch),
                Event::Durable(mark) => self.became_durable(mark),
            }
        }
        self.taken_events = events;
        for (batch, outcomes) in outcomes {
            self.settle(batch, outcomes);
        }
        for batch in over {
            let unanswered: Vec<(usize, Outcome)> = self.batches.get(&batch).map_or_else(Vec::new, |batch| {
                let open = |(i, item): (usize, &Item)| {
                    (!item.answered).then(|| (i, Outcome::Unknown { code: "deadline".into() }))
                };
                batch.items.iter().enumerate().filter_map(open).collect()
            });
            self.settle(batch, unanswered);
            let sections = self.batches.get(&batch).map_or(0, |batch| batch.sections.len());
            (0..sections).for_each(|section| self.begun(batch, section));
            if let Some(batch) = self.batches.remove(&batch) {
                tell(&batch, &self.deps.world);
                self.pacing.forget(&batch.provider, batch.probes);
            }
        }
    }

    /// All messages of a section were begun or are over: whoever must come after them may go.
    fn begun(&mut self, batch: u64, section: usize) {
        if let Some(section) = self.batches.get_mut(&batch).and_then(|batch| batch.sections.get_mut(section))
            && let Some(key) = section.order.take()
            && let Some(shard) = self.shards.get_mut(&section.shard)
        {
            shard.order.begun(key);
        }
    }

    fn became_durable(&mut self, mark: Mark) {
        self.durable = self.durable.max(mark);
        self.in_doubt.durable(mark);
    }

    fn settle(&mut self, id: u64, mut outcomes: Vec<(usize, Outcome)>) {
        let Some(mut batch) = self.batches.remove(&id) else { return };
        let now_ms = self.deps.world.now_ms();
        let is_retry = |item: &Item| batch.sections[item.section].head.section.attempts > 0;
        let answers = outcomes.iter().map(|(i, outcome)| (batch.items.get(*i).is_some_and(is_retry), outcome));
        self.pacing.answered(&batch.provider, answers, &mut batch.probes, &self.deps.world);
        outcomes.retain(|(i, _)| batch.items.get(*i).is_some_and(|item| !item.answered));
        // Section by section, whatever the order of the answers; each counts once.
        outcomes.sort_by_key(|(i, _)| *i);
        outcomes.dedup_by_key(|(i, _)| *i);
        let mut outcomes = outcomes.into_iter().peekable();
        while let Some(section) = outcomes.peek().map(|(i, _)| batch.items[*i].section) {
            let items = &batch.items;
            let of_section = std::iter::from_fn(|| outcomes.next_if(|(i, _)| items[*i].section == section));
            let of_section: Vec<(usize, Outcome)> = of_section.collect();
            self.settle_section(&mut batch, section, of_section, now_ms);
        }
        self.batches.insert(id, batch);
        self.touch();
    }

    fn settle_section(&mut self, batch: &mut Batch, section: usize, outcomes: Vec<(usize, Outcome)>, now_ms: u64) {
        let BatchSection { shard, topic, offset, head, .. } = &batch.sections[section];
        let Some(shard) = self.shards.get_mut(shard) else { return };
        let sent_ms = self.deps.world.steady_ms();
        self.pacing.slowing.sent(head, Some(&batch.provider), outcomes.len() as u64, sent_ms);
        let ended = shard.endings.of(head, now_ms);
        let (mut finished, mut undelivered) = (Vec::with_capacity(outcomes.len()), Vec::new());
        let mut again: BTreeMap<(u32, Wait), Vec<u32>> = BTreeMap::new();
        let mut dead: BTreeMap<(&'static str, String), (End, Vec<u32>)> = BTreeMap::new();
        let refusal = outcomes.iter().rev().find_map(|(_, outcome)| outcome.code()).map(str::to_owned);
        for (i, outcome) in outcomes {
            let item = &mut batch.items[i];
            item.answered = true;
            finished.push(item.index);
            match after(outcome, head.section.attempts, &head.notification, &self.config, &self.deps.world, now_ms) {
                Next::End { state, reason, code, provider_id, attempts } => {
                    if state != State::Delivered {
                        undelivered.push(item.user.clone());
                    }
                    let end = End { state, reason, attempts, provider: batch.provider.clone(), error_code: code };
                    ended.add_hashed(&item.user, item.book_hash, &end, provider_id);
                    if state == State::Dead {
                        let key = (reason, end.error_code.clone());
                        dead.entry(key).or_insert_with(|| (end, Vec::new())).1.push(item.in_section);
                    }
                }
                Next::Again { delay_ms, attempts, why } => {
                    match why {
                        Why::Retry => self.deps.stats.add(|s| &s.retries, 1),
                        Why::Unanswered => self.deps.stats.add(|s| &s.unanswered, 1),
                        Why::NotAttempted => self.deps.stats.add(|s| &s.not_attempted, 1),
                        Why::AccountFault => self.deps.stats.add(|s| &s.account_faults, 1),
                    }
                    let due_ms = now_ms + delay_ms.div_ceil(DUE_GRAIN_MS) * DUE_GRAIN_MS;
                    // Another account may be set meanwhile; a backoff is over when it is over.
                    let cause = if why == Why::AccountFault { WaitCause::Provider } else { WaitCause::Unspecified };
                    again.entry((attempts, Wait { due_ms, cause })).or_default().push(item.in_section);
                }
            }
        }
        undelivered.iter().for_each(|user| shard.release(head, user));
        let home = deliveries_home(*topic, shard.number);
        for ((attempts, wait), users) in again {
            let (section, summary) = part_of(head, &users, attempts);
            shard.outputs.section(home, Some(wait), section, summary);
        }
        let place = shard.place(*topic, *offset);
        for (end, users) in dead.into_values() {
            bury_users(head, &users, &end, place, now_ms, &mut shard.outputs);
        }
        shard.answered.add(batch.channel, finished.len() as u64);
        self.in_doubt.answered(batch.channel, finished.len() as u64);
        shard.finish(*topic, *offset, finished);
        if refusal.is_some() {
            batch.sections[section].refusal = refusal;
        }
    }
}
