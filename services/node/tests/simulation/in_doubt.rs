//! How much a provider is given before it has answered, and before it is known for good what it answered: on paused time, with a
//! worker that is killed in the middle.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use herald_core::{
    ids::{InstanceId, TenantId},
    ports::channel::{Channel, Gate, Message, Outcome, Sink},
    record::Channel as ChannelKind,
};
use herald_embedded::{disk::MemoryDisk, kv::memory::MemoryKv, log::LogOptions};
use herald_node::roles::{Config, Roles};

use crate::{
    scenario::{Planned, send},
    setting::{backends_on, people, to_everyone},
    world::{Chance, EPOCH_MS, world_at},
};

/// What may be in doubt, and what of it may be unanswered.
const LIMITS: [u64; 2] = [64, 24];

/// As good as no limit.
const IGNORED: u64 = 1 << 20;

const USERS: usize = 400;

/// A life that is cut off ends after this time: sooner than a worker proves that it owns its shards, which commits what was
/// answered too.
const CUT_AFTER: Duration = Duration::from_millis(600);

/// A provider that takes everything, and says so at once or never.
#[derive(Default)]
struct Taking {
    is_silent: bool,
    taken: Mutex<BTreeMap<InstanceId, u64>>,
}

#[async_trait]
impl Channel for Taking {
    fn kind(&self) -> ChannelKind {
        ChannelKind::Email
    }

    fn provider(&self) -> &str {
        "taking"
    }

    async fn deliver(&self, batch: Vec<Message>, gate: Arc<dyn Gate>, sink: Arc<dyn Sink>) {
        for (index, message) in batch.iter().enumerate() {
            if !gate.open(index) {
                sink.report(index, Outcome::NotAttempted { code: "gate".into() });
                continue;
            }
            *self.taken.lock().unwrap().entry(message.instance).or_default() += 1;
            if !self.is_silent {
                sink.report(index, Outcome::Accepted { provider_id: None });
            }
        }
        if self.is_silent {
            std::future::pending::<()>().await;
        }
    }
}

/// What a worker under these limits had sent when it was killed, and what was sent twice in the end.
struct Killed {
    sent: u64,
    repeated: u64,
}

fn kill_a_worker([in_doubt, unanswered]: [u64; 2], is_silent: bool) -> Killed {
    let (disk, kv, chance) = (MemoryDisk::new(), Arc::new(MemoryKv::new()), Chance::of_seed(5));
    let cut = Arc::new(Taking { is_silent, ..Taking::default() });
    let mut config = Config::default();
    config.worker.in_doubt_instances = in_doubt;
    config.worker.unanswered_instances = unanswered;
    // What is answered is not committed before the end.
    config.worker.commit_interval_ms = 2 * CUT_AFTER.as_millis() as u64;
    live(&disk, &kv, &chance, &config, cut.clone(), true);
    let sent = cut.taken.lock().unwrap().clone();
    kv.crash(chance.below(kv.unsynced() as u64 + 1) as usize);
    let healed = Arc::new(Taking { taken: Mutex::new(sent.clone()), ..Taking::default() });
    live(&disk.crash(|| chance.next()), &kv, &chance, &Config::default(), healed.clone(), false);
    let all = healed.taken.lock().unwrap();
    assert_eq!(all.len(), USERS, "everybody has it in the end");
    let repeated = all.values().map(|times| times - 1).sum();
    Killed { sent: sent.values().sum(), repeated }
}

/// One life of the node. The first one sends to everybody and is cut off.
fn live(
    disk: &MemoryDisk,
    kv: &Arc<MemoryKv>,
    chance: &Chance,
    config: &Config,
    provider: Arc<Taking>,
    is_first: bool,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world = world_at(EPOCH_MS + if is_first { 0 } else { 60_000 }, chance);
        let backends = backends_on(disk, kv, LogOptions::default(), &world).unwrap();
        let roles = Roles::start(config, &backends, vec![provider.clone()], &world).await.unwrap();
        if !is_first {
            // Whatever waits for anything has come by then, once or twice.
            tokio::time::sleep(Duration::from_secs(600)).await;
            return;
        }
        let tenant = TenantId::trusted("acme");
        let scenario = people(vec![tenant.clone()], USERS, Vec::new());
        scenario.set_up(&backends, &roles, world.now_ms()).await.unwrap();
        // Transactional messages may use all of a window.
        let planned = Planned { actor: "somebody".into(), transactional: true, ..to_everyone(&tenant, 0) };
        send(&planned, world.notification_id(), false, &backends, [world.now_ms(); 2]).await.unwrap();
        tokio::time::sleep(CUT_AFTER).await;
    });
}

/// What is answered and not committed is in doubt too.
#[test]
fn a_killed_worker_repeats_no_more_than_may_be_in_doubt() {
    let [in_doubt, unanswered] = LIMITS;
    let killed = kill_a_worker(LIMITS, false);
    assert!((in_doubt * 3 / 4..=in_doubt).contains(&killed.repeated), "{} of {in_doubt}", killed.repeated);
    // The limit of what is unanswered does not do this.
    let ignored = kill_a_worker([IGNORED, unanswered], false);
    assert!(ignored.repeated > in_doubt, "{} were repeated without a limit", ignored.repeated);
}

#[test]
fn a_silent_provider_holds_no_more_than_may_be_unanswered() {
    let [in_doubt, unanswered] = LIMITS;
    let killed = kill_a_worker(LIMITS, true);
    // In parts that are as large as bulk may fill the window.
    assert!((unanswered * 2 / 3..=unanswered).contains(&killed.sent), "{} of {unanswered}", killed.sent);
    // The limit of what is in doubt does not do this.
    let ignored = kill_a_worker([in_doubt, IGNORED], true);
    assert!(ignored.sent > unanswered, "{} were sent without a limit", ignored.sent);
}
