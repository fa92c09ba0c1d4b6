//! The ledger as a whole, against a log and a store whose faults are commanded. Time is paused: waits cost nothing.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use herald_core::{
    ids::NotificationId,
    ports::log::{Halted, LogError, Member},
    record::{Channel, Notification, Receipts, Request, Schema, State},
    topic::{Lane, Topic},
};
use prost::Message;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Deps,
    proof::prove,
    receipts, requests,
    stats::LedgerStats,
    testing::{FakeLedger, FakeLog, LogHandle, acknowledged, batch, ended, manifest, record, until, world},
};

const ALONE: Member = Member { ordinal: 0, count: 1 };

struct Running {
    stats: Arc<LedgerStats>,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

fn deps(log: &Arc<FakeLog>, ledger: &Arc<FakeLedger>) -> Deps {
    Deps {
        log: Arc::new(LogHandle(log.clone())),
        ledger: ledger.clone(),
        world: world(),
        stats: Arc::new(LedgerStats::default()),
    }
}

fn start(log: &Arc<FakeLog>, ledger: &Arc<FakeLedger>, config: Config) -> Running {
    let (deps, shutdown) = (deps(log, ledger), CancellationToken::new());
    let (stats, told) = (deps.stats.clone(), shutdown.clone());
    let task = tokio::spawn(async move {
        let of_requests = supervised(|| requests::run(config.clone(), deps.clone(), ALONE, told.clone()));
        let of_receipts = supervised(|| receipts::run(config.clone(), deps.clone(), ALONE, told.clone()));
        tokio::try_join!(of_requests, of_receipts).map(|_| ())
    });
    Running { stats, shutdown, task }
}

/// Runs a reader again where it must join its group anew, as the node does.
async fn supervised<F: Future<Output = anyhow::Result<()>>>(reader: impl Fn() -> F) -> anyhow::Result<()> {
    loop {
        match reader().await {
            Err(error) if error.is::<Halted>() => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            ended => return ended,
        }
    }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Ends it as a power cut would.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

fn id(n: u8) -> NotificationId {
    NotificationId([n; 16])
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_the_store_and_the_commit_counts_nothing_twice() {
    let (log, ledger) = (FakeLog::new(1), Arc::new(FakeLedger::default()));
    log.write(vec![
        batch(0, vec![manifest(&id(1), &["a", "b", "c"], true)], vec![]),
        batch(0, vec![], vec![ended(&id(1), &["a"], State::Delivered), ended(&id(1), &["b"], State::Failed)]),
    ]);
    log.hang_commits.store(true, SeqCst);
    let first = start(&log, &ledger, Config::default());
    until("a commit after the store", || log.commits_begun.load(SeqCst) > 0).await;
    assert_eq!(log.commit_is_at(Topic::Receipts, 0), 0);
    let before = ledger.totals_of(&id(1)).unwrap();
    assert_eq!(before.channels[&2].ended.count, 2);
    first.kill().await;

    log.hang_commits.store(false, SeqCst);
    let second = start(&log, &ledger, Config::default());
    until("the replay", || log.commit_is_at(Topic::Receipts, 0) == 2).await;
    assert_eq!(ledger.totals_of(&id(1)).unwrap(), before);
    log.write(vec![batch(0, vec![], vec![ended(&id(1), &["c"], State::Delivered)])]);
    until("the last receipt", || ledger.settled(&id(1))).await;
    assert_eq!(ledger.rows.lock().unwrap().receipts.len(), 3);
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_store_refuses_or_the_log_leaves_open_is_written_later_and_once() {
    for lose_answers in [false, true] {
        let (log, ledger) = (FakeLog::new(1), Arc::new(FakeLedger::default()));
        ledger.fail_applies.store(4, SeqCst);
        ledger.lose_answers.store(lose_answers, SeqCst);
        log.fail_commits.store(2, SeqCst);
        let role = start(&log, &ledger, Config::default());
        log.write(vec![batch(
            0,
            vec![manifest(&id(1), &["a", "b"], true)],
            vec![ended(&id(1), &["a"], State::Delivered), ended(&id(1), &["b"], State::Suppressed)],
        )]);
        until("the commit", || log.commit_is_at(Topic::Receipts, 0) == 1).await;
        let totals = ledger.totals_of(&id(1)).unwrap();
        assert!(totals.settled(), "{totals:?}");
        assert_eq!((totals.channels[&2].delivered, totals.recipients), (1, 2));
        // The retries carry the receipts too, not the totals alone.
        assert_eq!(ledger.rows.lock().unwrap().receipts.len(), 2);
        assert_eq!(role.stats.retries.load(SeqCst), 4);
        assert_eq!(role.stats.ended(Channel::Email, State::Delivered), 1);
        role.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_fenced_reader_drops_what_it_holds_and_begins_at_the_commit() {
    let (log, ledger) = (FakeLog::new(1), Arc::new(FakeLedger::default()));
    log.fence_commits.store(1, SeqCst);
    let role = start(&log, &ledger, Config::default());
    log.write(vec![batch(0, vec![manifest(&id(1), &["a"], true)], vec![ended(&id(1), &["a"], State::Dead)])]);
    until("the commit", || log.commit_is_at(Topic::Receipts, 0) == 1).await;
    let totals = ledger.totals_of(&id(1)).unwrap();
    assert_eq!((totals.channels[&2].dead, totals.settled()), (1, true));
    role.stop().await;
}

/// Whether to join anew, and as whom, is for the supervisor to say.
#[tokio::test(start_paused = true)]
async fn a_reader_that_must_join_anew_ends_and_says_why() {
    for fenced in [false, true] {
        let (log, ledger) = (FakeLog::new(1), Arc::new(FakeLedger::default()));
        if fenced { &log.fence_commits } else { &log.fail_commits }.store(2, SeqCst);
        log.write(vec![batch(0, vec![manifest(&id(1), &["a"], true)], vec![]), request(0, 9)]);
        let of_requests = requests::run(Config::default(), deps(&log, &ledger), ALONE, CancellationToken::new());
        let of_receipts = receipts::run(Config::default(), deps(&log, &ledger), ALONE, CancellationToken::new());
        let soon = std::time::Duration::from_secs(60);
        for ended in [timeout(soon, of_requests).await, timeout(soon, of_receipts).await] {
            let error = ended.expect("it ends").unwrap_err();
            match error.downcast_ref::<Halted>() {
                Some(Halted::Fenced) => assert!(fenced),
                Some(Halted::Unknown(LogError::Unavailable(_))) => assert!(!fenced),
                _ => panic!("{error:#}"),
            }
        }
    }
}

/// What is not stored when the process stops is read again at its next start, so the store's absence is no failure.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_does_not_hold_up_a_stop() {
    let (log, ledger) = (FakeLog::new(1), Arc::new(FakeLedger::default()));
    ledger.fail_applies.store(u32::MAX, SeqCst);
    let role = start(&log, &ledger, Config::default());
    log.write(vec![batch(0, vec![manifest(&id(1), &["a"], true)], vec![]), request(0, 9)]);
    until("attempts of both", || role.stats.retries.load(SeqCst) >= 4).await;
    role.stop().await;
    assert_eq!((log.commit_is_at(Topic::Receipts, 0), log.commit_is_at(Topic::Requests(Lane::Bulk), 0)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_stored_before_it_is_durable_on_the_log() {
    let (log, ledger) = (FakeLog::new(1), Arc::new(FakeLedger::default()));
    log.hold_durable.store(true, SeqCst);
    let role = start(&log, &ledger, Config::default());
    log.write(vec![batch(0, vec![manifest(&id(1), &[], true)], vec![]), request(0, 9)]);
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    assert!(ledger.rows.lock().unwrap().totals.is_empty() && ledger.rows.lock().unwrap().admitted.is_empty());
    log.hold_durable.store(false, SeqCst);
    until("both", || ledger.settled(&id(1)) && ledger.rows.lock().unwrap().admitted.contains(&id(9))).await;
    role.stop().await;
}

#[tokio::test(start_paused = true)]
async fn partitions_are_booked_side_by_side() {
    let (log, ledger) = (FakeLog::new(3), Arc::new(FakeLedger::default()));
    let config = Config { poll_max_records: 2, ..Config::default() };
    let role = start(&log, &ledger, config);
    for n in 0..30u8 {
        log.write(vec![batch(u32::from(n % 3), vec![manifest(&id(n), &["a", "b"], true)], vec![])]);
    }
    for n in 0..30u8 {
        log.write(vec![batch(u32::from(n % 3), vec![], vec![ended(&id(n), &["a", "b"], State::Delivered)])]);
    }
    until("all", || (0..30).all(|n| ledger.settled(&id(n)))).await;
    let ids: Vec<_> = (0..30).map(id).collect();
    let proof = prove(&*ledger, &ids).await.unwrap();
    assert!(proof.holds(), "{proof:?}");
    assert_eq!((proof.notifications, proof.accepted, proof.delivered, proof.recipients), (30, 60, 60, 60));
    until("the commits", || (0..3).all(|p| log.commit_is_at(Topic::Receipts, p) == 20)).await;
    role.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_redrive_after_the_books_left_memory_is_booked_on_what_is_stored() {
    let (log, ledger) = (FakeLog::new(1), Arc::new(FakeLedger::default()));
    let role = start(&log, &ledger, Config::default());
    log.write(vec![batch(0, vec![manifest(&id(1), &["a"], true)], vec![ended(&id(1), &["a"], State::Dead)])]);
    until("the dead instance", || ledger.settled(&id(1)) && log.commit_is_at(Topic::Receipts, 0) == 1).await;
    let mut taken_back = ended(&id(1), &["a"], State::Dead);
    taken_back.negative = true;
    log.write(vec![batch(0, vec![], vec![taken_back])]);
    until("the redrive", || !ledger.settled(&id(1))).await;
    log.write(vec![batch(0, vec![], vec![ended(&id(1), &["a"], State::Delivered)])]);
    until("its end", || ledger.settled(&id(1))).await;
    let proof = prove(&*ledger, &[id(1), id(2)]).await.unwrap();
    assert_eq!((proof.accepted, proof.delivered, proof.dead), (1, 1, 0));
    assert_eq!(proof.missing, [id(2)]);
    assert!(!proof.holds());
    assert!(ledger.loads.load(SeqCst) >= 2, "settled books stay in memory");
    role.stop().await;
}

#[tokio::test(start_paused = true)]
async fn open_books_that_were_pushed_out_of_memory_are_loaded_again() {
    let (log, ledger) = (FakeLog::new(1), Arc::new(FakeLedger::default()));
    let role = start(&log, &ledger, Config { max_active: 4, poll_max_records: 3, ..Config::default() });
    log.write((0..50).map(|n| batch(0, vec![manifest(&id(n), &["a"], true)], vec![])).collect());
    until("the manifests", || log.commit_is_at(Topic::Receipts, 0) == 50).await;
    log.write((0..50).map(|n| batch(0, vec![], vec![ended(&id(n), &["a"], State::Delivered)])).collect());
    until("the receipts", || (0..50).all(|n| ledger.settled(&id(n)))).await;
    role.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_becomes_a_dead_letter_and_the_next_goes_on() {
    let (log, ledger) = (FakeLog::new(1), Arc::new(FakeLedger::default()));
    let role = start(&log, &ledger, Config::default());
    log.write(vec![
        record(Topic::Receipts, 0, Schema::LedgerBatch, b"\xff\xff\xff".to_vec()),
        record(Topic::Receipts, 0, Schema::InboxBatch, vec![]),
        batch(0, vec![manifest(&id(1), &[], true)], vec![]),
    ]);
    until("the last", || log.commit_is_at(Topic::Receipts, 0) == 3).await;
    assert!(ledger.settled(&id(1)));
    assert_eq!(log.records(Topic::Dead), 2);
    assert_eq!(role.stats.unreadable.load(SeqCst), 2);
    role.stop().await;
}

fn request(partition: u32, n: u8) -> herald_core::ports::log::NewRecord {
    let notification = Notification { id: id(n).0.to_vec().into(), tenant: "t".into(), ..Notification::default() };
    let request = Request { notification: notification.encode_to_vec().into(), ..Request::default() };
    record(Topic::Requests(Lane::Bulk), partition, Schema::Request, request.encode_to_vec())
}

#[tokio::test(start_paused = true)]
async fn each_admitted_request_has_a_row_and_garbage_or_continuations_hold_nothing_up() {
    let (log, ledger) = (FakeLog::new(1), Arc::new(FakeLedger::default()));
    ledger.fail_applies.store(2, SeqCst);
    let role = start(&log, &ledger, Config::default());
    let mut continuation = request(0, 2);
    continuation.envelope.schema = Schema::Continuation as i32;
    let garbage = record(Topic::Requests(Lane::Bulk), 0, Schema::Request, b"\xff\xff\xff".to_vec());
    log.write(vec![garbage, request(0, 1), continuation, request(1, 3)]);
    let topic = Topic::Requests(Lane::Bulk);
    until("the commits", || log.commit_is_at(topic, 0) == 3 && log.commit_is_at(topic, 1) == 1).await;
    assert_eq!(ledger.rows.lock().unwrap().admitted.iter().copied().collect::<Vec<_>>(), [id(1), id(3)]);
    assert_eq!(role.stats.unreadable.load(SeqCst), 1);
    role.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_pending_at_a_stop_is_written() {
    let (log, ledger) = (FakeLog::new(1), Arc::new(FakeLedger::default()));
    let role = start(&log, &ledger, Config { flush_interval_ms: 3_600_000, ..Config::default() });
    log.write(vec![batch(0, vec![manifest(&id(1), &[], true)], vec![])]);
    until("the manifest", || role.stats.manifests.load(SeqCst) == 1).await;
    assert!(!ledger.settled(&id(1)));
    role.stop().await;
    assert!(ledger.settled(&id(1)));
}

/// The books of a cancelled notification are final, whatever comes up later, also when it is read again after a crash.
#[tokio::test(start_paused = true)]
async fn a_cancel_closes_the_books_and_what_comes_up_later_confirms_them() {
    let (log, ledger) = (FakeLog::new(1), Arc::new(FakeLedger::default()));
    log.write(vec![
        batch(0, vec![manifest(&id(1), &["a", "b", "c"], false)], vec![]),
        batch(0, vec![], vec![ended(&id(1), &["a"], State::Delivered)]),
        acknowledged(0, &id(1)),
    ]);
    log.hang_commits.store(true, SeqCst);
    let first = start(&log, &ledger, Config::default());
    until("the books are closed", || ledger.totals_of(&id(1)).is_some_and(|totals| totals.is_cancelled())).await;
    first.kill().await;
    let closed = ledger.totals_of(&id(1)).unwrap();
    let email = &closed.channels[&2];
    assert_eq!((email.delivered, email.suppressed["cancelled"], email.unconfirmed.count), (1, 2, 2));
    assert!(closed.settled() && !closed.is_confirmed());

    log.hang_commits.store(false, SeqCst);
    let second = start(&log, &ledger, Config::default());
    let cancelled = |users| Receipts { reason: "cancelled".into(), ..ended(&id(1), users, State::Suppressed) };
    log.write(vec![
        batch(0, vec![manifest(&id(1), &["d"], true)], vec![cancelled(&["c"])]),
        acknowledged(0, &id(1)),
        batch(0, vec![], vec![cancelled(&["b"]), cancelled(&["d"])]),
    ]);
    until("all of it came up", || ledger.totals_of(&id(1)).is_some_and(|totals| totals.is_confirmed())).await;
    let confirmed = ledger.totals_of(&id(1)).unwrap();
    let email = &confirmed.channels[&2];
    assert_eq!((email.delivered, email.suppressed["cancelled"], email.created.count), (1, 2, 3));
    assert!(prove(&*ledger, &[id(1)]).await.unwrap().holds());
    assert_eq!(second.stats.contradictions.load(SeqCst), 0);

    log.write(vec![batch(0, vec![], vec![ended(&id(1), &["b"], State::Delivered)])]);
    until("the contradiction", || second.stats.contradictions.load(SeqCst) == 1).await;
    until("it is written", || ledger.totals_of(&id(1)).is_some_and(|totals| !totals.is_confirmed())).await;
    let proof = prove(&*ledger, &[id(1)]).await.unwrap();
    assert_eq!((proof.delivered, proof.unconfirmed), (1, 1), "what was told is final, and the fault shows");
    second.stop().await;
}
