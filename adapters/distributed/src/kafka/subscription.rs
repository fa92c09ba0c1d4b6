//! One member's view of its group's partitions.
//!
//! Two sides share a [`View`]. The member's thread ([`super::membership`]) takes partitions and gives them back; this
//! side polls. Each partition has a queue of its own in librdkafka, which is bounded and is what a poll takes records from:
//! a partition that is paused is just not looked at, nobody's spike fills the queue of another partition, and a poll that
//! is dropped has taken nothing.
//!
//! **Letting go.** When the group wants partitions back, a poll says so, and the member lets go by the one after. What
//! it commits before is still right: until then nobody else gets them. A member that does not poll in time loses them, and
//! its commits are [`Committed::Fenced`]: each assignment has a number, an *epoch*, and a commit is for the epoch that its
//! member polled last.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use async_trait::async_trait;
use herald_core::{
    ports::log::{Commit, Committing, LogError, Mark, Member, Polled, Position, Record, Subscription},
    topic::{Group, TopicPartition},
};
use parking_lot::Mutex;
use rdkafka::{
    consumer::base_consumer::PartitionQueue,
    error::{KafkaError, RDKafkaErrorCode},
};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{
    config::KafkaConfig,
    context::Membership,
    membership::{self, Wish},
    names::Names,
    reading::Readers,
    record, unavailable,
};

/// A poll brings no further record beyond this.
const POLL_BYTES: usize = 8 << 20;

/// What the longest step of a member's thread, which is a commit, may take beyond the commit's own timeout.
const STEP_MARGIN: Duration = Duration::from_secs(10);

/// A member of a group.
pub(super) struct KafkaSubscription {
    shared: Arc<Shared>,
    wishes: mpsc::Sender<Wish>,
    readers: Arc<Readers>,
    /// A thread that is not seen for so long hangs.
    longest_step: Duration,
    /// The assignment that was polled; 0 while none holds. Others look whether there is one.
    epoch: Arc<AtomicU64>,
    /// Which partition is served first.
    turn: usize,
}

/// What the two sides share.
#[derive(Default)]
pub(super) struct Shared {
    pub view: Mutex<View>,
    /// When the member's thread was last seen between two calls of the client library.
    seen: Mutex<Option<Instant>>,
    /// Tells the polling side that there is something new.
    pub news: Arc<Notify>,
}

/// The partitions, and what the polling side was not told yet.
#[derive(Default)]
pub(super) struct View {
    inputs: BTreeMap<TopicPartition, Input>,
    assigned: Option<(u64, Vec<(TopicPartition, Position)>)>,
    revoked: Vec<TopicPartition>,
    wanted_back: WantedBack,
    /// Whether another has the member's name.
    taken_over: bool,
    failed: Option<LogError>,
}

/// Whether the group wants the partitions back, and the polling side knows.
#[derive(Default, Clone, Copy)]
enum WantedBack {
    #[default]
    No,
    Untold,
    Told,
}

/// A partition that is the member's.
pub(super) struct Input {
    queue: PartitionQueue<Membership>,
    /// Whether there may be something in the queue.
    ready: Arc<AtomicBool>,
    paused: bool,
}

impl Input {
    /// Takes a partition's queue; what comes into it is told to the polling side.
    pub fn new(mut queue: PartitionQueue<Membership>, news: Arc<Notify>) -> Self {
        let ready = Arc::new(AtomicBool::new(true));
        let tells = ready.clone();
        queue.set_nonempty_callback(move || {
            tells.store(true, Relaxed);
            news.notify_one();
        });
        Self { queue, ready, paused: false }
    }
}

impl Shared {
    /// The member has these partitions from now on.
    pub fn assign(&self, epoch: u64, inputs: BTreeMap<TopicPartition, Input>, from: Vec<(TopicPartition, Position)>) {
        let mut view = self.view.lock();
        view.inputs = inputs;
        view.assigned = Some((epoch, from));
        self.news.notify_one();
    }

    /// The group wants the partitions back. `false` if the polling side has none.
    pub fn want_back(&self) -> bool {
        let mut view = self.view.lock();
        let untold = view.assigned.take().is_some();
        if untold || view.inputs.is_empty() {
            view.inputs.clear();
            return false;
        }
        view.wanted_back = WantedBack::Untold;
        self.news.notify_one();
        true
    }

    /// The partitions are gone.
    pub fn lose(&self) {
        let mut view = self.view.lock();
        view.lose();
        self.news.notify_one();
    }

    /// The member's thread is here.
    pub fn sees(&self) {
        *self.seen.lock() = Some(Instant::now());
    }

    /// Whether the thread was not seen for so long that a call must hang in it, as one of the client library may after an
    /// outage. Whoever subscribes anew leaves it behind, and fences it.
    fn hangs(&self, longest: Duration) -> bool {
        self.seen.lock().is_some_and(|seen| seen.elapsed() >= longest)
    }

    /// Returns once the thread hangs.
    async fn hung(&self, longest: Duration) {
        while !self.hangs(longest) {
            let seen = self.seen.lock().unwrap_or_else(Instant::now);
            tokio::time::sleep_until(seen + longest).await;
        }
    }

    /// Every poll says from now on that another has the member's name.
    pub fn taken_over(&self) {
        self.view.lock().taken_over = true;
        self.news.notify_one();
    }

    /// Every poll says this from now on.
    pub fn fail(&self, error: LogError) {
        self.lose();
        self.view.lock().failed = Some(error);
    }
}

impl View {
    fn lose(&mut self) {
        self.wanted_back = WantedBack::No;
        let lost = std::mem::take(&mut self.inputs);
        if self.assigned.take().is_none() {
            self.revoked.extend(lost.into_keys());
        }
    }

    /// Takes at most `max` records, in fair shares.
    fn take(&mut self, max: usize, turn: &mut usize) -> Result<Vec<Record>, LogError> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        let count = self.inputs.len();
        let mut inputs: Vec<(&TopicPartition, &Input)> = self.inputs.iter().collect();
        inputs.rotate_left(*turn % count.max(1));
        inputs.retain(|(_, input)| !input.paused && input.ready.load(Relaxed));
        while !inputs.is_empty() && records.len() < max && bytes < POLL_BYTES {
            let share = ((max - records.len()) / inputs.len()).max(1);
            let mut still = Vec::with_capacity(inputs.len());
            for (at, input) in inputs {
                let room = share.min(max - records.len());
                let before = records.len();
                // Whatever comes later sets it again.
                input.ready.store(false, Relaxed);
                while records.len() - before < room && bytes < POLL_BYTES {
                    let Some(record) = next(*at, input)? else { break };
                    bytes += record.body.len();
                    records.push(record);
                }
                if records.len() - before == room || bytes >= POLL_BYTES {
                    input.ready.store(true, Relaxed);
                    still.push((at, input));
                }
            }
            inputs = still;
        }
        *turn = (*turn + 1) % count.max(1);
        Ok(records)
    }
}

/// The next record of a queue.
fn next(at: TopicPartition, input: &Input) -> Result<Option<Record>, LogError> {
    loop {
        match input.queue.poll(Duration::ZERO) {
            None => return Ok(None),
            Some(Ok(message)) => return record::record(at, &message).map(Some),
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                let what =
                    "has no records at this group's position, which is beyond its end: it lost what was acknowledged";
                return Err(LogError::Damaged(format!("{at} {what}")));
            }
            Some(Err(error)) => tracing::warn!(%at, %error, "a partition cannot be read now"),
        }
    }
}

impl KafkaSubscription {
    /// Joins a group. The first poll assigns, once the group has.
    pub fn join(
        config: &KafkaConfig,
        names: Arc<Names>,
        readers: Arc<Readers>,
        group: Group,
        member: Member,
    ) -> Result<Self, LogError> {
        let shared = Arc::new(Shared::default());
        let wishes = membership::start(config, names, group, member, shared.clone())
            .map_err(|error| unavailable("a member cannot start", &error))?;
        let longest_step = config.commit_timeout() + STEP_MARGIN;
        Ok(Self { shared, wishes, readers, longest_step, epoch: Arc::default(), turn: 0 })
    }

    /// The assignment that was polled, for whoever watches; 0 while none holds.
    pub fn epoch(&self) -> Arc<AtomicU64> {
        self.epoch.clone()
    }

    /// What there is for a poll; `None` if there is nothing.
    fn look(&mut self, max: usize) -> Result<Option<Polled>, LogError> {
        let mut view = self.shared.view.lock();
        match view.wanted_back {
            WantedBack::No => {}
            WantedBack::Untold => {
                view.wanted_back = WantedBack::Told;
                return Ok(Some(Polled { wanted_back: true, ..Polled::default() }));
            }
            WantedBack::Told => {
                view.lose();
                // A thread that has ended let go before.
                let _gone = self.wishes.send(Wish::LetGo);
            }
        }
        if !view.revoked.is_empty() {
            self.epoch.store(0, Relaxed);
            return Ok(Some(Polled { revoked: std::mem::take(&mut view.revoked), ..Polled::default() }));
        }
        if let Some((epoch, assigned)) = view.assigned.take() {
            self.epoch.store(epoch, Relaxed);
            return Ok(Some(Polled { assigned, ..Polled::default() }));
        }
        if view.taken_over || self.shared.hangs(self.longest_step) {
            return Ok(Some(Polled { taken_over: true, ..Polled::default() }));
        }
        if let Some(error) = &view.failed {
            return Err(error.clone());
        }
        let records = view.take(max, &mut self.turn)?;
        // What can be read is committed and durable.
        Ok((!records.is_empty()).then(|| Polled { records, mark: Mark::default(), ..Polled::default() }))
    }
}

#[async_trait]
impl Subscription for KafkaSubscription {
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<Polled, LogError> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(polled) = self.look(max)? {
                return Ok(polled);
            }
            let news = self.shared.news.clone();
            if tokio::time::timeout_at(deadline, news.notified()).await.is_err() {
                return Ok(Polled::default());
            }
        }
    }

    fn commit(&mut self, commit: Commit) -> Committing {
        let (answer, answered) = oneshot::channel();
        let epoch = self.epoch.load(Relaxed);
        // A thread that has ended drops the answer with the wish.
        let _ended = self.wishes.send(Wish::Commit { epoch, commit, answer });
        let (shared, longest_step) = (self.shared.clone(), self.longest_step);
        // A thread that goes on keeps its own time.
        Box::pin(async move {
            tokio::select! {
                biased;
                answered = answered => answered.map_err(|error| unavailable("the member has ended", &error))?,
                () = shared.hung(longest_step) => {
                    Err(LogError::Unavailable(format!("a member's thread has hung for {longest_step:?}")))
                }
            }
        })
    }

    fn pause(&mut self, at: TopicPartition, paused: bool) {
        if let Some(input) = self.shared.view.lock().inputs.get_mut(&at) {
            input.paused = paused;
        }
    }

    async fn ends(&mut self, at: &[TopicPartition]) -> Result<Vec<u64>, LogError> {
        self.readers.ends(at.to_vec()).await
    }
}

#[cfg(test)]
mod tests {
    use herald_core::ports::log::Committed;

    use super::*;

    /// A member whose thread is the test.
    fn member() -> (KafkaSubscription, Arc<Shared>, mpsc::Receiver<Wish>) {
        let (config, shared) = (KafkaConfig::default(), Arc::<Shared>::default());
        let readers = Arc::new(Readers::new(config.reader().unwrap(), Arc::new(Names::new("test"))));
        let (wishes, wished) = mpsc::channel();
        shared.sees();
        let longest_step = config.commit_timeout() + STEP_MARGIN;
        let epoch = Arc::default();
        let member = KafkaSubscription { shared: shared.clone(), wishes, readers, longest_step, epoch, turn: 0 };
        (member, shared, wished)
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_whose_thread_hangs_is_told_so_by_commits_and_polls() {
        let (mut member, _shared, _wished) = member();
        assert!(!member.poll(1, Duration::ZERO).await.unwrap().taken_over);
        let began = Instant::now();
        assert!(matches!(member.commit(Commit::default()).await, Err(LogError::Unavailable(_))));
        assert!(began.elapsed() < member.longest_step + Duration::from_secs(1), "{:?}", began.elapsed());
        assert!(member.poll(1, Duration::ZERO).await.unwrap().taken_over);
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_is_waited_for_while_the_thread_goes_on() {
        let (mut member, shared, wished) = member();
        let longest_step = member.longest_step;
        let thread = tokio::spawn(async move {
            for _ in 0..3 {
                tokio::time::sleep(longest_step - Duration::from_secs(1)).await;
                shared.sees();
            }
            let Ok(Wish::Commit { answer, .. }) = wished.recv() else { panic!("a commit is wished for") };
            answer.send(Ok(Committed::Fenced)).unwrap();
        });
        assert_eq!(member.commit(Commit::default()).await.unwrap(), Committed::Fenced);
        assert!(!member.poll(1, Duration::ZERO).await.unwrap().taken_over);
        thread.await.unwrap();
    }
}
