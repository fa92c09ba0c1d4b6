//! A member's thread: it owns the member's consumer and its transactional producer, answers the group's coordinator, and
//! commits. Nothing else blocks on the cluster for the member.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use herald_core::{
    ports::log::{Commit, Committed, LogError, Mark, Member, Position, partition},
    topic::{Group, Topic, TopicPartition},
};
use rdkafka::{
    TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::RDKafkaErrorCode,
    topic_partition_list::Offset,
};
use tokio::sync::oneshot;

use super::{
    config::KafkaConfig,
    context::{Membership, Plain, Rebalance},
    names::Names,
    reading::offsets,
    record,
    subscription::{Input, Shared},
    transaction::{Ended, Transactions},
    unavailable,
};

/// How often the coordinator is listened to.
const TICK: Duration = Duration::from_millis(20);
/// How long a new session waits after one that failed.
const AGAIN: Duration = Duration::from_millis(500);

/// What the polling side wants.
pub(super) enum Wish {
    Commit { epoch: u64, commit: Commit, answer: oneshot::Sender<Result<Committed, LogError>> },
    LetGo,
}

/// Starts the thread. It ends when the sender is dropped.
pub(super) fn start(
    config: &KafkaConfig,
    names: Arc<Names>,
    group: Group,
    member: Member,
    shared: Arc<Shared>,
) -> io::Result<mpsc::Sender<Wish>> {
    let (sender, wishes) = mpsc::channel();
    let name = names.member(group, member.ordinal);
    let thread = MemberThread::new(config.clone(), names, group, name, shared, wishes);
    thread::Builder::new().name(format!("kafka {}", group.name())).spawn(move || thread.run())?;
    Ok(sender)
}

/// The topic that a group's members read from its beginning when they take over a partition of another, to know what was
/// done before.
fn memory_of(group: Group) -> Option<(Topic, Topic)> {
    match group {
        Group::Worker => Some((Topic::UserChanges, Topic::Claims)),
        Group::Redriver => Some((Topic::Redrives, Topic::Redrives)),
        _ => None,
    }
}

/// The clients of one session: from a join until something is wrong that only new clients mend.
struct Session {
    consumer: Arc<BaseConsumer<Membership>>,
    transactions: Transactions,
    /// Whether what a predecessor left was ended.
    is_owner: bool,
}

/// Where the member stands.
enum Standing {
    Joining {
        not_before: Instant,
    },
    Joined,
    /// Something was fenced. The coordinator tells soon if another has this member's name.
    Suspect {
        until: Instant,
    },
    /// Another has this member's name. It keeps it, until a new subscription takes the name back: it may have been this
    /// member's own join whose answer was lost, which the coordinator cannot tell from another's.
    TakenOver,
}

struct MemberThread {
    config: KafkaConfig,
    names: Arc<Names>,
    group: Group,
    name: String,
    shared: Arc<Shared>,
    wishes: mpsc::Receiver<Wish>,
    session: Option<Session>,
    standing: Standing,
    /// Counts assignments; that of the partitions below.
    epoch: u64,
    /// The partitions that are this member's, with what the group committed last.
    positions: BTreeMap<TopicPartition, Position>,
    /// When partitions that the group wants back are given back at the latest.
    let_go_by: Option<Instant>,
    /// Since when the member waits to be told its partitions.
    waits_since: Option<Instant>,
    commits: u64,
}

impl MemberThread {
    fn new(
        config: KafkaConfig,
        names: Arc<Names>,
        group: Group,
        name: String,
        shared: Arc<Shared>,
        wishes: mpsc::Receiver<Wish>,
    ) -> Self {
        Self {
            config,
            names,
            group,
            name,
            shared,
            wishes,
            session: None,
            standing: Standing::Joining { not_before: Instant::now() },
            epoch: 0,
            positions: BTreeMap::new(),
            let_go_by: None,
            waits_since: None,
            commits: 0,
        }
    }

    fn run(mut self) {
        loop {
            self.shared.sees();
            match self.wishes.recv_timeout(TICK) {
                Ok(Wish::Commit { epoch, commit, answer }) => {
                    let committed = self.commit(epoch, &commit);
                    // Whoever does not wait for the answer does not want it.
                    let _unheard = answer.send(committed);
                }
                Ok(Wish::LetGo) => self.let_go(),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            self.serve();
        }
        self.lose();
        self.end_session();
    }

    // ---- the session ----

    fn serve(&mut self) {
        let now = Instant::now();
        match self.standing {
            Standing::Joining { not_before } if now >= not_before => match self.join() {
                Ok(session) => {
                    self.session = Some(session);
                    self.standing = Standing::Joined;
                    self.waits_since = Some(now);
                }
                Err(error) => {
                    tracing::warn!(member = self.name, %error, "a member cannot join its group; it tries again");
                    self.standing = Standing::Joining { not_before: now + AGAIN };
                }
            },
            Standing::Joined => {
                self.listen();
                self.rebalance();
                if self.let_go_by.is_some_and(|by| now >= by) {
                    tracing::warn!(member = self.name, "a member did not let go in time; it loses its partitions");
                    self.let_go();
                }
                self.check();
                self.check_wait();
            }
            Standing::Suspect { until } => {
                self.listen();
                if self.is_taken_over() {
                    tracing::warn!(member = self.name, "another has this member's name; it stays fenced");
                    self.end_session();
                    self.standing = Standing::TakenOver;
                    self.shared.taken_over();
                } else if now >= until {
                    self.end_session();
                    self.standing = Standing::Joining { not_before: now };
                }
            }
            Standing::Joining { .. } | Standing::TakenOver => {}
        }
    }

    fn join(&self) -> Result<Session, LogError> {
        let failed = |error: &dyn std::fmt::Display| unavailable("a member's clients cannot be made", error);
        let settings = self.config.member(&self.names.group(self.group), &self.name).map_err(|e| failed(&e))?;
        let consumer = settings.create_with_context(Membership::default());
        let consumer: Arc<BaseConsumer<Membership>> = Arc::new(consumer.map_err(|e| failed(&e))?);
        let settings = self.config.transactional(&self.name).map_err(|e| failed(&e))?;
        let transactions = Transactions::new(&settings, self.names.clone()).map_err(|e| failed(&e))?;
        let topics = self.group.topics();
        let topics: Vec<&str> = topics.iter().map(|topic| self.names.topic(*topic)).collect();
        consumer.subscribe(&topics).map_err(|e| failed(&e))?;
        Ok(Session { consumer, transactions, is_owner: false })
    }

    fn end_session(&mut self) {
        if let Some(session) = self.session.take() {
            session.consumer.context().close();
        }
    }

    /// Lets librdkafka tell what it has to tell.
    fn listen(&self) {
        let Some(session) = &self.session else { return };
        for _ in 0..100 {
            match session.consumer.poll(Duration::ZERO) {
                None => break,
                Some(Ok(_)) => tracing::error!(member = self.name, "a record came outside of its partition's queue"),
                Some(Err(error)) => tracing::debug!(member = self.name, %error, "a member goes on"),
            }
        }
    }

    fn is_taken_over(&self) -> bool {
        let fatal = self.session.as_ref().and_then(|session| session.consumer.client().fatal_error());
        matches!(fatal, Some((RDKafkaErrorCode::FencedInstanceId, _)))
    }

    /// Ends a session whose consumer is of no use any more.
    fn check(&mut self) {
        let fatal = self.session.as_ref().and_then(|session| session.consumer.client().fatal_error());
        if let Some((code, cause)) = fatal {
            tracing::warn!(member = self.name, ?code, cause, "a member's consumer has ended");
            self.suspect();
        }
    }

    /// Ends a session to which the group has told nothing for longer than any rebalance takes: after an outage the consumer
    /// may wait for a coordinator that does not know of it.
    fn check_wait(&mut self) {
        let longest = self.config.longest_rebalance();
        if self.waits_since.is_some_and(|since| since.elapsed() > longest) {
            tracing::warn!(
                member = self.name,
                ?longest,
                "a member heard nothing of its group; it joins with new clients"
            );
            self.suspect();
        }
    }

    /// Something was fenced, or is of no use any more: the partitions are gone, and what is to be done shows soon.
    fn suspect(&mut self) {
        self.lose();
        let heartbeat = Duration::from_millis((self.config.session_timeout_ms / 6).min(1_000).into());
        self.standing = Standing::Suspect { until: Instant::now() + 2 * heartbeat + AGAIN };
    }

    fn lose(&mut self) {
        (self.let_go_by, self.waits_since) = (None, None);
        self.positions.clear();
        self.shared.lose();
    }

    // ---- partitions ----

    fn rebalance(&mut self) {
        let wanted = self.session.as_ref().map_or_else(Vec::new, |session| session.consumer.context().take());
        for rebalance in wanted {
            match rebalance {
                Rebalance::Assign(list) => {
                    if let Err(error) = self.assign(&list) {
                        tracing::warn!(member = self.name, %error, "partitions cannot be taken");
                        match error {
                            LogError::Damaged(_) => self.shared.fail(error),
                            _ => self.suspect(),
                        }
                        return;
                    }
                }
                Rebalance::Revoke { lost } if !lost && self.shared.want_back() => {
                    self.let_go_by = Some(Instant::now() + self.config.let_go_timeout());
                }
                Rebalance::Revoke { .. } => self.let_go(),
            }
        }
    }

    /// Takes partitions: ends what a predecessor left open, and begins at the group's positions.
    fn assign(&mut self, list: &TopicPartitionList) -> Result<(), LogError> {
        let at = self.names.partitions(list);
        self.check_assignment(&at)?;
        let commit_timeout = self.config.commit_timeout();
        if let Some(session) = self.session.as_mut().filter(|session| !session.is_owner) {
            session.transactions.own(commit_timeout)?;
            session.is_owner = true;
            self.shared.sees();
        }
        let Some(session) = &self.session else { return Ok(()) };
        let committed = session.consumer.committed_offsets(list.clone(), commit_timeout);
        let committed = committed.map_err(|e| unavailable("the group's positions are not known", &e))?;
        self.shared.sees();
        let firsts = offsets(&session.consumer, &self.names, &at, Offset::Beginning)?;
        self.shared.sees();
        self.await_predecessor(&session.consumer, &at)?;
        let (mut inputs, mut positions, mut begin) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (at, first) in at.into_iter().zip(firsts) {
            let position = record::position_in(&committed, &self.names, at)?;
            // Before the first assignment, so that no record goes elsewhere.
            let queue = session.consumer.split_partition_queue(self.names.topic(at.topic), at.partition as i32);
            let queue = queue.ok_or_else(|| LogError::Damaged(format!("there is no partition {at}")))?;
            inputs.insert(at, Input::new(queue, self.shared.news.clone()));
            begin.push((at, Offset::Offset(position.offset.max(first) as i64)));
            positions.push((at, position));
        }
        let begun = session.consumer.assign(&self.names.list(begin));
        begun.map_err(|error| unavailable("partitions cannot be taken", &error))?;
        self.epoch += 1;
        self.positions = positions.iter().cloned().collect();
        self.waits_since = None;
        tracing::info!(member = self.name, partitions = positions.len(), epoch = self.epoch, "partitions are taken");
        self.shared.assign(self.epoch, inputs, positions);
        Ok(())
    }

    /// A commit is in before all partitions show it. What the member before committed is there for everybody who reads the
    /// group's memory from now on.
    fn await_predecessor(&self, consumer: &BaseConsumer<Membership>, taken: &[TopicPartition]) -> Result<(), LogError> {
        let Some((beside, memory)) = memory_of(self.group) else { return Ok(()) };
        let at: Vec<TopicPartition> =
            taken.iter().filter(|at| at.topic == beside).map(|at| partition(memory, at.partition)).collect();
        let failed = |error: &dyn std::fmt::Display| unavailable("a client cannot be made", error);
        let mut settings = self.config.reader().map_err(|e| failed(&e))?;
        let all = settings.set("isolation.level", "read_uncommitted").create_with_context(Plain);
        let written = offsets(&all.map_err(|e| failed(&e))?, &self.names, &at, Offset::End)?;
        let deadline = Instant::now() + self.config.commit_timeout();
        loop {
            let shown = offsets(consumer, &self.names, &at, Offset::End)?;
            let Some(hidden) = (0..at.len()).find(|i| shown[*i] < written[*i]).map(|i| at[i]) else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(LogError::Unavailable(format!("a transaction on {hidden} does not end")));
            }
            thread::sleep(TICK);
        }
    }

    /// Who has a number in one of the group's topics must have it in all that are divided alike.
    fn check_assignment(&self, at: &[TopicPartition]) -> Result<(), LogError> {
        let topics = self.group.topics();
        let beside = |at: &TopicPartition| {
            let (spread, number) = (at.topic.spread(), at.partition);
            topics.iter().filter(move |topic| topic.spread() == spread).map(move |topic| partition(*topic, number))
        };
        match at.iter().flat_map(beside).find(|beside| !at.contains(beside)) {
            None => Ok(()),
            Some(missing) => Err(LogError::Damaged(format!(
                "the group {} gave {missing} to another member than the partitions that belong to it, and two would decide \
                 for the same users; its members must be of one release and use range assignment",
                self.names.group(self.group)
            ))),
        }
    }

    /// Gives the partitions back.
    fn let_go(&mut self) {
        self.lose();
        self.waits_since = Some(Instant::now());
        if let Some(session) = &self.session
            && let Err(error) = session.consumer.unassign()
        {
            tracing::warn!(member = self.name, %error, "partitions cannot be given back");
            self.suspect();
        }
    }

    // ---- commits ----

    fn commit(&mut self, epoch: u64, commit: &Commit) -> Result<Committed, LogError> {
        let is_current = epoch == self.epoch && !self.positions.is_empty();
        let owns = |(at, _): &(TopicPartition, Position)| self.positions.contains_key(at);
        let Some(session) = self.session.as_ref().filter(|_| is_current && commit.positions.iter().all(owns)) else {
            return Ok(Committed::Fenced);
        };
        // A position that stays where it is proves that the member is still the group's.
        let proof = self.positions.iter().next().map(|(at, position)| (*at, position.clone()));
        let positions = match commit.positions.is_empty() {
            true => proof.into_iter().collect(),
            false => commit.positions.clone(),
        };
        let timeout = self.config.commit_timeout();
        match session.transactions.commit(&session.consumer, &positions, &commit.outputs, timeout)? {
            Ended::Committed => {
                self.positions.extend(positions);
                self.commits += 1;
                Ok(Committed::Done(Mark(self.commits)))
            }
            Ended::Fenced(cause) => {
                tracing::warn!(member = self.name, cause, "a member was fenced");
                self.suspect();
                Ok(Committed::Fenced)
            }
            Ended::Unknown(cause) => {
                tracing::error!(member = self.name, cause, "a commit's outcome is unknown");
                self.suspect();
                Err(LogError::Unavailable(cause))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member of a group of which nobody tells it anything: no broker listens at its address.
    fn member_that_hears_nothing() -> MemberThread {
        let config = KafkaConfig::default().at("kafka://127.0.0.1:1/herald").unwrap();
        let names = Arc::new(Names::new("herald"));
        let (name, shared) = (names.member(Group::Router, 0), Arc::<Shared>::default());
        let (_, wishes) = mpsc::channel();
        MemberThread::new(config, names, Group::Router, name, shared, wishes)
    }

    fn consumer(member: &MemberThread) -> Arc<BaseConsumer<Membership>> {
        member.session.as_ref().expect("it joins").consumer.clone()
    }

    #[test]
    fn a_member_that_hears_nothing_for_longer_than_any_rebalance_takes_joins_with_new_clients() {
        let mut member = member_that_hears_nothing();
        member.serve();
        let first = consumer(&member);
        let longest = member.config.longest_rebalance();
        let ago = |ago: Duration| Instant::now().checked_sub(ago).expect("the machine runs for longer");

        member.waits_since = Some(ago(longest - Duration::from_secs(5)));
        member.serve();
        assert!(matches!(member.standing, Standing::Joined) && Arc::ptr_eq(&first, &consumer(&member)));
        // It was told its partitions, and they do not change for a long time.
        member.waits_since = None;
        member.serve();
        assert!(matches!(member.standing, Standing::Joined));

        // They were wanted back, and nothing is heard of the group from then on.
        member.let_go();
        assert!(member.waits_since.is_some_and(|since| since.elapsed() < longest));
        member.waits_since = Some(ago(longest + Duration::from_millis(1)));
        member.serve();
        let Standing::Suspect { until } = member.standing else { panic!("it waits for ever") };
        assert!(until.saturating_duration_since(Instant::now()) < longest);
        member.standing = Standing::Suspect { until: Instant::now() };
        member.serve();
        assert!(member.session.is_none(), "what it had is of no use");
        member.serve();
        assert!(matches!(member.standing, Standing::Joined) && !Arc::ptr_eq(&first, &consumer(&member)));
        assert!(member.waits_since.is_some_and(|since| since.elapsed() < longest), "it waits anew");
    }
}
