//! Members in processes of their own, which are killed and stopped.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use herald_core::{
    conformance::log::record,
    ports::log::{Commit, Committed, Log, Member, Position, Record, partition},
    topic::{Group, Lane, Topic, TopicPartition},
};
use herald_distributed::kafka::{KafkaConfig, KafkaLog};
use tokio::time::{Instant, sleep};

use crate::support::{ANSWER, LAYOUT, clean_up, config, config_of};

const LOG: &str = "HERALD_TEST_MEMBER_OF";
const ORDINAL: &str = "HERALD_TEST_MEMBER_ORDINAL";
const OUT: TopicPartition = TopicPartition { topic: Topic::Receipts, partition: 0 };
const RECORDS: usize = 3_000;

/// A member in a process of its own: passes requests on to receipts.
#[test]
#[ignore = "the process that other tests start, kill and stop"]
fn member() {
    let config = config_of(&std::env::var(LOG).unwrap());
    let ordinal = std::env::var(ORDINAL).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let log = KafkaLog::open(config, "r", None).await.unwrap();
        loop {
            // A commit whose outcome is unknown ends the stage; a new one reads the positions.
            if let Err(error) = pass_on(&log, Member { ordinal, count: 2 }).await {
                println!("member {ordinal} begins again: {error}");
            }
        }
    });
}

async fn pass_on(log: &KafkaLog, member: Member) -> anyhow::Result<()> {
    let mut subscription = log.subscribe(Group::Orchestrator, member).await?;
    loop {
        let polled = subscription.poll(50, Duration::from_millis(200)).await?;
        if !polled.assigned.is_empty() {
            println!("assigned");
        }
        if polled.records.is_empty() {
            continue;
        }
        let next: BTreeMap<TopicPartition, u64> = polled.records.iter().map(|r| (r.at, r.offset + 1)).collect();
        let positions = next.into_iter().map(|(at, offset)| (at, Position { offset, ..Position::default() })).collect();
        let outputs = polled.records.iter().map(|r| record(OUT, &text(r))).collect();
        if subscription.commit(Commit { positions, outputs }).await? == Committed::Fenced {
            println!("fenced");
        }
    }
}

fn text(record: &Record) -> String {
    String::from_utf8_lossy(&record.body).into_owned()
}

struct Process(Child);

impl Process {
    /// Starts a member and waits until it has partitions.
    async fn start(prefix: &str, ordinal: u32) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "processes::member", "--nocapture"])
            .env(LOG, prefix)
            .env(ORDINAL, ordinal.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (told, assigned) = tokio::sync::oneshot::channel();
        // Reads on to the end, so that the member never waits for its reader.
        std::thread::spawn(move || {
            let mut told = Some(told);
            for line in lines.map_while(Result::ok) {
                if line.ends_with("assigned")
                    && let Some(told) = told.take()
                {
                    let _given_up = told.send(());
                }
            }
        });
        tokio::time::timeout(2 * ANSWER, assigned).await.unwrap().unwrap();
        Self(child)
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be dead already.
        let _dead = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_killed_and_stopped_members_pass_on_arrives_once() {
    // Brokers may be away for a while too.
    let config = KafkaConfig { append_timeout_ms: 60_000, ..config() };
    let log = KafkaLog::open(config.clone(), "r", Some(LAYOUT)).await.unwrap();
    let feed = {
        let log = log.clone();
        tokio::spawn(async move {
            for i in 0..RECORDS {
                let at = partition(Topic::Requests(Lane::Bulk), (i % 2) as u32);
                log.append(vec![record(at, &i.to_string())]).await.unwrap();
                sleep(Duration::from_millis(5)).await;
            }
        })
    };
    let mut killed = Process::start(&config.prefix, 0).await;
    let stopped = Process::start(&config.prefix, 1).await;
    // In the middle of its work, and again when it has taken over from itself.
    for _ in 0..2 {
        sleep(Duration::from_millis(300)).await;
        killed.signal("-KILL");
        killed = Process::start(&config.prefix, 0).await;
    }
    // Longer than its session and its transaction may be silent, so that the other has its partitions meanwhile.
    stopped.signal("-STOP");
    sleep(Duration::from_secs(9)).await;
    stopped.signal("-CONT");
    feed.await.unwrap();

    let deadline = Instant::now() + 2 * ANSWER;
    loop {
        let progress = log.progress(Group::Orchestrator).await.unwrap();
        if progress.iter().all(|p| p.committed == p.end) {
            break;
        }
        assert!(Instant::now() < deadline, "not everything was passed on: {progress:?}");
        sleep(Duration::from_millis(100)).await;
    }
    let (mut from, mut arrived) = (0, Vec::new());
    loop {
        let (records, next) = log.read(OUT, from, 1_000).await.unwrap();
        if records.is_empty() {
            break;
        }
        arrived.extend(records.iter().map(|record| text(record).parse::<usize>().unwrap()));
        from = next;
    }
    arrived.sort_unstable();
    assert_eq!(arrived.len(), RECORDS, "lost or twice");
    assert_eq!(arrived, (0..RECORDS).collect::<Vec<_>>());
    drop((killed, stopped));
    clean_up(&config).await;
}
