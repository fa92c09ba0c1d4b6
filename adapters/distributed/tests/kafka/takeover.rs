//! Who may still commit when partitions move.

use std::time::Duration;

use herald_core::{
    conformance::log::{ALONE, record},
    ports::log::{Commit, Committed, Log, Member, Position, partition},
    topic::{Group, Lane, Topic, TopicPartition},
};
use herald_distributed::kafka::{KafkaConfig, KafkaLog};
use tokio::time::Instant;

use crate::support::{LAYOUT, clean_up, config, joined, open};

const SOON: Duration = Duration::from_millis(50);
const OUT: TopicPartition = TopicPartition { topic: Topic::Receipts, partition: 0 };

fn member(ordinal: u32) -> Member {
    Member { ordinal, count: 2 }
}

/// A commit of all that a member has.
fn commit(text: &str) -> Commit {
    let requests = |number| partition(Topic::Requests(Lane::Bulk), number);
    let positions = (0..LAYOUT.requests).map(|number| (requests(number), Position::default())).collect();
    Commit { positions, outputs: vec![record(OUT, text)] }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_taken_over_does_not_come_back() {
    let (log, config) = open().await;
    let mut old = joined(&log, Group::Orchestrator, ALONE).await;
    let mut new = joined(&log, Group::Orchestrator, ALONE).await;
    assert_eq!(old.commit(commit("old")).await.unwrap(), Committed::Fenced);
    assert!(!old.poll(1, SOON).await.unwrap().revoked.is_empty());
    // Longer than a fenced member needs to find out why.
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        assert!(old.poll(1, SOON).await.unwrap().assigned.is_empty(), "it took its name back");
        assert!(new.poll(1, SOON).await.unwrap().revoked.is_empty());
        assert!(matches!(new.commit(commit("new")).await.unwrap(), Committed::Done(_)));
        assert_eq!(old.commit(Commit::default()).await.unwrap(), Committed::Fenced);
    }
    assert!(old.poll(1, SOON).await.unwrap().taken_over, "whoever polls it would wait for ever");
    clean_up(&config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_commits_what_it_has_before_it_lets_go() {
    let (log, config) = open().await;
    let mut first = joined(&log, Group::Orchestrator, member(0)).await;
    let mut second = log.subscribe(Group::Orchestrator, member(1)).await.unwrap();
    // Its join wants the partitions back at some time of this.
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        assert!(second.poll(1, SOON).await.unwrap().assigned.is_empty(), "two have the same partition");
        assert!(matches!(first.commit(commit("first")).await.unwrap(), Committed::Done(_)));
    }
    assert!(first.poll(1, SOON).await.unwrap().wanted_back);
    assert!(matches!(first.commit(commit("first")).await.unwrap(), Committed::Done(_)));
    assert_eq!(first.poll(1, SOON).await.unwrap().revoked.len(), 2 * 2 * LAYOUT.requests as usize);
    assert_eq!(first.commit(commit("late")).await.unwrap(), Committed::Fenced);
    let (mut taken, mut shares) = (0, Vec::new());
    while taken < 2 * 2 * LAYOUT.requests as usize {
        for member in [&mut first, &mut second] {
            let assigned = member.poll(1, SOON).await.unwrap().assigned.len();
            taken += assigned;
            shares.extend((assigned > 0).then_some(assigned));
        }
    }
    assert_eq!(shares, [4, 4]);
    assert!(log.read(OUT, 0, 1_000).await.unwrap().0.iter().all(|record| record.body != "late"));
    clean_up(&config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_let_go_loses_its_partitions() {
    let config = KafkaConfig { let_go_timeout_ms: 300, ..config() };
    let log = KafkaLog::open(config.clone(), "r", Some(LAYOUT)).await.unwrap();
    let mut hangs = joined(&log, Group::Orchestrator, member(0)).await;
    let _waits = joined(&log, Group::Orchestrator, member(1)).await;
    assert_eq!(hangs.commit(commit("late")).await.unwrap(), Committed::Fenced);
    assert!(log.read(OUT, 0, 10).await.unwrap().0.is_empty());
    assert_eq!(hangs.poll(1, SOON).await.unwrap().revoked.len(), 2 * 2 * LAYOUT.requests as usize);
    clean_up(&config).await;
}
