//! One member's view of its group's partitions.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use herald_core::{
    ports::log::{Commit, Committed, Committing, LogError, Mark, Member, Polled, Position, Subscription},
    topic::{Group, TopicPartition},
};
use tokio::{sync::Notify, time::Instant};

use super::{
    Shared,
    reading::Plan,
    state::{Owner, Partition, Session, State},
};

/// A member of a group.
pub struct EmbeddedSubscription {
    shared: Arc<Shared>,
    seat: Seat,
    wake: Arc<Notify>,
    /// Ordered by slot.
    cursors: Vec<Cursor>,
    /// Told by the first poll.
    assigned: Option<Vec<(TopicPartition, Position)>>,
    /// Which cursor is served first.
    turn: usize,
}

/// Who a member is, for as long as nobody takes its place.
#[derive(Clone, Copy)]
struct Seat {
    group: Group,
    member: Member,
    session: u64,
}

struct Cursor {
    slot: usize,
    next: u64,
    paused: bool,
}

/// What a poll found and where its cursors stand once the records are handed over.
struct Found {
    plan: Plan,
    advanced: Vec<(usize, u64)>,
    turn: usize,
}

impl Seat {
    /// Whether this member may still commit.
    fn is_current(&self, state: &State) -> bool {
        let last = state.sessions.get(&(self.group, self.member.ordinal));
        last.is_some_and(|last| last.number == self.session)
    }

    fn owns(&self, partition: &Partition) -> bool {
        let owner = reader_of(partition, self.group).and_then(|reader| partition.readers[reader].owner.as_ref());
        owner.is_some_and(|owner| owner.session == self.session)
    }

    async fn commit(self, shared: Arc<Shared>, commit: Commit) -> Result<Committed, LogError> {
        shared.room().await?;
        let mark = {
            let mut state = shared.state.lock();
            state.usable()?;
            if !self.is_current(&state) {
                return Ok(Committed::Fenced);
            }
            let mut positions = Vec::with_capacity(commit.positions.len());
            for (at, position) in commit.positions {
                let slot = state.existing_slot(at)?;
                let partition = &state.partitions[slot];
                if !self.owns(partition) {
                    let others = at.partition % self.member.count != self.member.ordinal;
                    debug_assert!(!others, "{at} was never a partition of this member");
                    return Ok(Committed::Fenced);
                }
                if position.offset > partition.next {
                    let (offset, end) = (position.offset, partition.next);
                    return Err(LogError::Damaged(format!("position {offset} of {at} is beyond its end {end}")));
                }
                positions.push((self.group, slot, position));
            }
            let outputs = state.place(commit.outputs)?;
            match positions.is_empty() && outputs.is_empty() {
                true => state.end,
                false => state.put(positions, outputs).1,
            }
        };
        shared.wake_flusher();
        Ok(Committed::Done(Mark(mark)))
    }
}

impl EmbeddedSubscription {
    /// Takes the member's partitions over from whoever has them.
    pub(super) fn join(shared: Arc<Shared>, group: Group, member: Member) -> Result<Self, LogError> {
        if member.ordinal >= member.count {
            return Err(LogError::Damaged(format!("no member {} of {}", member.ordinal, member.count)));
        }
        let wake = Arc::new(Notify::new());
        let (mut cursors, mut assigned) = (Vec::new(), Vec::new());
        let session = {
            let mut state = shared.state.lock();
            state.usable()?;
            state.last_session += 1;
            let session = state.last_session;
            state.sessions.insert((group, member.ordinal), Session { number: session, is_told: false });
            for (slot, partition) in state.partitions.iter_mut().enumerate() {
                let mine = partition.at.partition % member.count == member.ordinal;
                let Some(reader) = reader_of(partition, group).filter(|_| mine) else { continue };
                let reader = &mut partition.readers[reader];
                let owner = Owner { session, wake: wake.clone() };
                if let Some(before) = reader.owner.replace(owner) {
                    before.wake.notify_one();
                }
                let position = reader.position.clone().unwrap_or_default();
                cursors.push(Cursor { slot, next: position.offset, paused: false });
                assigned.push((partition.at, position));
            }
            session
        };
        let seat = Seat { group, member, session };
        Ok(Self { shared, seat, wake, cursors, assigned: Some(assigned), turn: 0 })
    }

    /// Lets go of partitions that are another's now, or of all if this member was replaced.
    fn drop_lost(&mut self) -> Vec<TopicPartition> {
        let shared = self.shared.clone();
        let state = shared.state.lock();
        let current = self.seat.is_current(&state);
        let lost = |cursor: &Cursor| !current || !self.seat.owns(&state.partitions[cursor.slot]);
        let revoked: Vec<TopicPartition> =
            self.cursors.iter().filter(|c| lost(c)).map(|c| state.partitions[c.slot].at).collect();
        let kept: Vec<bool> = self.cursors.iter().map(|cursor| !lost(cursor)).collect();
        let mut kept = kept.into_iter();
        self.cursors.retain(|_| kept.next().unwrap_or(true));
        revoked
    }

    /// Plans at most `max` records, in fair shares; `None` if there are none.
    fn find(&self, max: usize) -> Result<Option<Found>, LogError> {
        let mut state = self.shared.state.lock();
        state.usable()?;
        let count = self.cursors.len();
        let mut ready: Vec<(usize, u64)> = (0..count)
            .map(|i| (self.turn + i) % count)
            .filter(|i| {
                let cursor = &self.cursors[*i];
                !cursor.paused && cursor.next < state.partitions[cursor.slot].next
            })
            .map(|i| (i, self.cursors[i].next))
            .collect();
        let mut found =
            Found { plan: Plan::new(self.shared.options.poll_bytes), advanced: Vec::new(), turn: self.turn };
        while !ready.is_empty() && found.plan.len() < max && !found.plan.is_full() {
            let share = ((max - found.plan.len()) / ready.len()).max(1);
            let mut still = Vec::with_capacity(ready.len());
            for (i, next) in ready {
                if found.plan.len() == max || found.plan.is_full() {
                    found.advanced.push((i, next));
                    continue;
                }
                let slot = self.cursors[i].slot;
                let share = share.min(max - found.plan.len());
                let next = found.plan.add(&mut state, &*self.shared.disk, slot, next, share)?;
                found.turn = (i + 1) % count;
                match next < state.partitions[slot].next {
                    true => still.push((i, next)),
                    false => found.advanced.push((i, next)),
                }
            }
            ready = still;
        }
        found.advanced.extend(ready);
        // Without records only gaps were passed, which the next poll passes again.
        Ok((found.plan.len() > 0).then_some(found))
    }

    /// Hands over what was found. There is no waiting between the last step of the read and the cursors' advance, so a
    /// poll that is dropped has not advanced them.
    async fn take(&mut self, found: Found) -> Result<Polled, LogError> {
        let mark = Mark(found.plan.covers);
        let records = found.plan.fetch(&*self.shared.disk).await?;
        for (i, next) in found.advanced {
            self.cursors[i].next = next;
        }
        self.turn = found.turn;
        Ok(Polled { records, mark, ..Polled::default() })
    }

    fn cursor(&self, slot: usize) -> Option<usize> {
        self.cursors.binary_search_by_key(&slot, |cursor| cursor.slot).ok()
    }
}

fn reader_of(partition: &Partition, group: Group) -> Option<usize> {
    partition.at.topic.readers().iter().position(|reader| *reader == group)
}

#[async_trait]
impl Subscription for EmbeddedSubscription {
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<Polled, LogError> {
        let deadline = Instant::now() + wait;
        loop {
            let revoked = self.drop_lost();
            if let Some(assigned) = self.assigned.take() {
                let gone = |at: &TopicPartition| revoked.contains(at);
                let assigned = assigned.into_iter().filter(|(at, _)| !gone(at)).collect();
                let mut state = self.shared.state.lock();
                let Seat { group, member, session } = self.seat;
                if let Some(last) = state.sessions.get_mut(&(group, member.ordinal)) {
                    last.is_told |= last.number == session;
                }
                // The positions may rest on a commit that is not durable yet.
                return Ok(Polled { assigned, mark: Mark(state.end), ..Polled::default() });
            }
            if !revoked.is_empty() {
                return Ok(Polled { revoked, ..Polled::default() });
            }
            if let Some(found) = self.find(max)? {
                return self.take(found).await;
            }
            if tokio::time::timeout_at(deadline, self.wake.notified()).await.is_err() {
                return Ok(Polled::default());
            }
        }
    }

    fn commit(&mut self, commit: Commit) -> Committing {
        Box::pin(self.seat.commit(self.shared.clone(), commit))
    }

    fn pause(&mut self, at: TopicPartition, paused: bool) {
        let slot = self.shared.state.lock().slot(at);
        if let Some(cursor) = slot.and_then(|slot| self.cursor(slot)) {
            self.cursors[cursor].paused = paused;
        }
    }

    async fn ends(&mut self, at: &[TopicPartition]) -> Result<Vec<u64>, LogError> {
        let state = self.shared.state.lock();
        state.usable()?;
        at.iter().map(|at| Ok(state.partitions[state.existing_slot(*at)?].next)).collect()
    }
}
