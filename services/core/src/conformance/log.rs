//! What every [`Log`] promises. [`all`] runs the whole suite; each function takes an empty log with at least two
//! shards, two requests partitions and one receipts partition.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    done_map::DoneMap,
    ports::log::{Commit, Committed, Log, Member, NewRecord, Polled, Position, Record, Subscription, partition},
    record::{Envelope, SectionSummary},
    topic::{Group, Lane, Topic, TopicPartition},
};

/// The only member of a group.
pub const ALONE: Member = Member { ordinal: 0, count: 1 };
const SOON: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);

/// Runs every test on a log of its own.
pub async fn all<F, L>(make: F)
where
    F: Fn() -> L,
    L: Future<Output = Arc<dyn Log>>,
{
    records_come_back_as_they_were(make().await).await;
    offsets_grow_in_each_partition(make().await).await;
    a_read_goes_on_where_it_stopped(make().await).await;
    the_first_poll_assigns_every_partition_of_the_group(make().await).await;
    a_member_is_assigned_once_its_last_subscription_was_told(make().await).await;
    a_poll_keeps_the_order_and_serves_every_partition(make().await).await;
    a_poll_brings_at_most_max_and_nothing_twice(make().await).await;
    an_idle_poll_ends_and_a_waiting_one_is_woken(make().await).await;
    a_commit_moves_positions_and_shows_outputs(make().await).await;
    a_position_comes_back_with_its_map_and_starts(make().await).await;
    what_was_not_committed_comes_again(make().await).await;
    a_taken_over_member_is_fenced_and_changes_nothing(make().await).await;
    an_empty_commit_tells_whether_the_member_is_fenced(make().await).await;
    members_divide_the_partitions_and_keep_shards_together(make().await).await;
    a_paused_partition_waits_and_loses_nothing(make().await).await;
    a_dropped_poll_loses_nothing(make().await).await;
    every_group_reads_for_itself(make().await).await;
    a_compacted_topic_keeps_the_last_of_each_key(make().await).await;
    reached_waits_for_the_record(make().await).await;
    what_a_poll_brought_becomes_durable(make().await).await;
}

/// A record with a body.
pub fn record(at: TopicPartition, body: &str) -> NewRecord {
    NewRecord {
        at,
        key: Bytes::new(),
        timestamp_ms: 1_000,
        envelope: Envelope { region: "r".to_owned(), tenant: "t".to_owned(), ..Envelope::default() },
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn deliveries(shard: u32) -> TopicPartition {
    partition(Topic::Deliveries(Lane::Bulk), shard)
}

fn bodies(records: &[Record]) -> Vec<String> {
    records.iter().map(|r| String::from_utf8_lossy(&r.body).into_owned()).collect()
}

/// Joins a group and takes the assignment.
async fn join(log: &Arc<dyn Log>, group: Group) -> (Box<dyn Subscription>, BTreeMap<TopicPartition, Position>) {
    let mut subscription = log.subscribe(group, ALONE).await.unwrap();
    let mut assigned = BTreeMap::new();
    // A remote log may need a while until it assigns.
    while assigned.is_empty() {
        let polled = subscription.poll(100, SOON).await.unwrap();
        assert!(polled.records.is_empty(), "records came before the assignment");
        assigned.extend(polled.assigned);
    }
    (subscription, assigned)
}

/// Polls until there are `count` records.
async fn take(subscription: &mut Box<dyn Subscription>, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    while records.len() < count {
        let polled = subscription.poll(count - records.len(), LONG).await.unwrap();
        assert!(!polled.records.is_empty(), "only {} of {count} records came", records.len());
        records.extend(polled.records);
    }
    records
}

async fn is_idle(subscription: &mut Box<dyn Subscription>) -> bool {
    let Polled { records, assigned, revoked, .. } = subscription.poll(100, SOON).await.unwrap();
    records.is_empty() && assigned.is_empty() && revoked.is_empty()
}

/// Runs two futures at once.
async fn both<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut done_a, mut done_b) = (None, None);
    poll_fn(move |cx| {
        if done_a.is_none()
            && let Poll::Ready(out) = a.as_mut().poll(cx)
        {
            done_a = Some(out);
        }
        if done_b.is_none()
            && let Poll::Ready(out) = b.as_mut().poll(cx)
        {
            done_b = Some(out);
        }
        match (done_a.is_some(), done_b.is_some()) {
            (true, true) => Poll::Ready((done_a.take().unwrap(), done_b.take().unwrap())),
            _ => Poll::Pending,
        }
    })
    .await
}

async fn records_come_back_as_they_were(log: Arc<dyn Log>) {
    let section = SectionSummary { tenant: "t".to_owned(), count: 3, hash_sum: u64::MAX, ..SectionSummary::default() };
    let sent = NewRecord {
        at: partition(Topic::Control, 0),
        key: Bytes::from_static(b"key \0 bytes"),
        timestamp_ms: 1_700_000_000_123,
        envelope: Envelope {
            schema: 8,
            feature_level: 7,
            synthetic: true,
            sections: vec![section],
            ..record(partition(Topic::Control, 0), "").envelope
        },
        body: Bytes::from(vec![0xA5; 70_000]),
    };
    let offset = log.append(vec![sent.clone()]).await.unwrap()[0];
    let (read, _) = log.read(sent.at, 0, 10).await.unwrap();
    let NewRecord { at, key, timestamp_ms, envelope, body } = sent;
    assert_eq!(read, [Record { at, offset, key, timestamp_ms, envelope, body }]);
}

async fn offsets_grow_in_each_partition(log: Arc<dyn Log>) {
    let (a, b) = (deliveries(0), deliveries(1));
    let first = log.append(vec![record(a, "a0"), record(b, "b0"), record(a, "a1")]).await.unwrap();
    let second = log.append(vec![record(a, "a2"), record(b, "b1")]).await.unwrap();
    assert_eq!((first.len(), second.len()), (3, 2));
    assert!(first[0] < first[2] && first[2] < second[0] && first[1] < second[1]);
    assert_eq!(bodies(&log.read(a, 0, 10).await.unwrap().0), ["a0", "a1", "a2"]);
    assert_eq!(bodies(&log.read(b, 0, 10).await.unwrap().0), ["b0", "b1"]);
    assert!(log.append(Vec::new()).await.unwrap().is_empty());
}

async fn a_read_goes_on_where_it_stopped(log: Arc<dyn Log>) {
    let at = deliveries(1);
    for i in 0..7 {
        log.append(vec![record(at, &i.to_string())]).await.unwrap();
    }
    let (mut from, mut all) = (0, Vec::new());
    loop {
        let (records, next) = log.read(at, from, 3).await.unwrap();
        assert!(records.len() <= 3 && records.iter().all(|r| r.offset >= from && r.offset < next));
        if records.is_empty() {
            break;
        }
        all.extend(bodies(&records));
        from = next;
    }
    assert_eq!(all, ["0", "1", "2", "3", "4", "5", "6"]);
    assert!(log.read(deliveries(0), 0, 10).await.unwrap().0.is_empty());
}

async fn the_first_poll_assigns_every_partition_of_the_group(log: Arc<dyn Log>) {
    log.append(vec![record(deliveries(0), "early")]).await.unwrap();
    let (mut worker, assigned) = join(&log, Group::Worker).await;
    let layout = log.identity().layout;
    let expected: BTreeSet<TopicPartition> = Group::Worker
        .topics()
        .into_iter()
        .flat_map(|t| (0..layout.partitions(t)).map(move |p| partition(t, p)))
        .collect();
    assert_eq!(assigned.keys().copied().collect::<BTreeSet<_>>(), expected);
    assert!(assigned.values().all(|position| *position == Position::default()));
    assert_eq!(bodies(&take(&mut worker, 1).await), ["early"]);
    assert!(is_idle(&mut worker).await);
}

async fn a_member_is_assigned_once_its_last_subscription_was_told(log: Arc<dyn Log>) {
    let is_assigned = |ordinal| log.is_assigned(Group::Router, ordinal);
    assert!(!is_assigned(0));
    let subscribed = log.subscribe(Group::Router, ALONE).await.unwrap();
    assert!(!is_assigned(0), "it was not polled");
    drop(subscribed);
    let (mut old, _) = join(&log, Group::Router).await;
    assert!(is_assigned(0) && !is_assigned(1) && !log.is_assigned(Group::Worker, 0));
    let mut new = log.subscribe(Group::Router, ALONE).await.unwrap();
    assert!(!is_assigned(0), "the last subscription was not polled");
    let mut assigned = Vec::new();
    while assigned.is_empty() {
        old.poll(10, SOON).await.unwrap();
        assert!(!is_assigned(0), "what another subscription was told is not what the last one was");
        assigned = new.poll(10, SOON).await.unwrap().assigned;
    }
    assert!(is_assigned(0));
}

async fn a_poll_keeps_the_order_and_serves_every_partition(log: Arc<dyn Log>) {
    const SPIKE: usize = 4_000;
    let shards = log.identity().layout.shards;
    let spike = (0..SPIKE).map(|i| record(deliveries(0), &i.to_string())).collect();
    log.append(spike).await.unwrap();
    for shard in 1..shards {
        log.append(vec![record(deliveries(shard), "other")]).await.unwrap();
    }
    let (mut worker, _) = join(&log, Group::Worker).await;
    let (mut all, mut served) = (Vec::new(), BTreeSet::new());
    while (served.len() as u32) < shards {
        all.extend(take(&mut worker, 100).await);
        served.extend(all.iter().map(|r: &Record| r.at.partition));
        // A remote log may bring one partition some round trips before the others.
        log.progress(Group::Worker).await.unwrap();
        assert!(all.len() <= SPIKE / 2, "a spike in one partition must not hold back the others");
    }
    let left = SPIKE + shards as usize - 1 - all.len();
    all.extend(take(&mut worker, left).await);
    let of_spike: Vec<Record> = all.into_iter().filter(|r| r.at.partition == 0).collect();
    assert_eq!(bodies(&of_spike), (0..SPIKE).map(|i| i.to_string()).collect::<Vec<_>>());
}

async fn a_poll_brings_at_most_max_and_nothing_twice(log: Arc<dyn Log>) {
    log.append((0..10).map(|i| record(deliveries(i % 2), &i.to_string())).collect()).await.unwrap();
    let (mut worker, _) = join(&log, Group::Worker).await;
    let mut seen = BTreeSet::new();
    while seen.len() < 10 {
        let records = worker.poll(3, LONG).await.unwrap().records;
        assert!((1..=3).contains(&records.len()));
        assert!(records.iter().all(|r| seen.insert((r.at, r.offset))), "a record came twice");
    }
    assert!(is_idle(&mut worker).await);
}

async fn an_idle_poll_ends_and_a_waiting_one_is_woken(log: Arc<dyn Log>) {
    let (mut worker, _) = join(&log, Group::Worker).await;
    assert!(is_idle(&mut worker).await);
    let (polled, _) = both(worker.poll(10, LONG), log.append(vec![record(deliveries(1), "late")])).await;
    assert_eq!(bodies(&polled.unwrap().records), ["late"]);
}

async fn a_commit_moves_positions_and_shows_outputs(log: Arc<dyn Log>) {
    let at = deliveries(0);
    log.append(vec![record(at, "in")]).await.unwrap();
    let (mut worker, _) = join(&log, Group::Worker).await;
    let (mut ledger, _) = join(&log, Group::LedgerReceipts).await;
    let input = take(&mut worker, 1).await.remove(0);
    let position = Position { offset: input.offset + 1, ..Position::default() };
    let outputs = vec![record(partition(Topic::Receipts, 0), "out"), record(partition(Topic::Dead, 0), "dead")];
    let committed = worker.commit(Commit { positions: vec![(at, position.clone())], outputs }).await.unwrap();
    let Committed::Done(mark) = committed else { panic!("the only member was fenced") };
    log.durable(mark).await.unwrap();
    assert_eq!(bodies(&take(&mut ledger, 1).await), ["out"]);
    assert_eq!(bodies(&log.read(partition(Topic::Dead, 0), 0, 10).await.unwrap().0), ["dead"]);
    let progress = log.progress(Group::Worker).await.unwrap();
    let here = progress.iter().find(|p| p.at == at).unwrap();
    assert_eq!((here.committed, here.end > input.offset), (position.offset, true));
    assert_eq!(worker.ends(&[at, deliveries(1)]).await.unwrap(), [here.end, 0]);
    assert!(progress.iter().filter(|p| p.at != at).all(|p| p.committed == 0));
}

async fn a_position_comes_back_with_its_map_and_starts(log: Arc<dyn Log>) {
    let at = deliveries(1);
    log.append((0..4).map(|i| record(at, &i.to_string())).collect()).await.unwrap();
    let (mut worker, _) = join(&log, Group::Worker).await;
    let records = take(&mut worker, 4).await;
    let done = DoneMap::from_flags((0..3_000).map(|i| i % 7 > 2));
    let position = Position { offset: records[1].offset, done, starts: 2 };
    worker.commit(Commit { positions: vec![(at, position.clone())], outputs: Vec::new() }).await.unwrap();
    drop(worker);
    let (mut worker, assigned) = join(&log, Group::Worker).await;
    assert_eq!(assigned[&at], position);
    assert_eq!(bodies(&take(&mut worker, 3).await), ["1", "2", "3"]);
}

async fn what_was_not_committed_comes_again(log: Arc<dyn Log>) {
    log.append((0..5).map(|i| record(deliveries(0), &i.to_string())).collect()).await.unwrap();
    let (mut worker, _) = join(&log, Group::Worker).await;
    assert_eq!(take(&mut worker, 5).await.len(), 5);
    drop(worker);
    let (mut worker, _) = join(&log, Group::Worker).await;
    assert_eq!(bodies(&take(&mut worker, 5).await), ["0", "1", "2", "3", "4"]);
}

async fn a_taken_over_member_is_fenced_and_changes_nothing(log: Arc<dyn Log>) {
    let at = deliveries(0);
    log.append(vec![record(at, "in")]).await.unwrap();
    let (mut old, _) = join(&log, Group::Worker).await;
    let input = take(&mut old, 1).await.remove(0);
    let (mut new, _) = join(&log, Group::Worker).await;
    let commit = Commit {
        positions: vec![(at, Position { offset: input.offset + 1, ..Position::default() })],
        outputs: vec![record(partition(Topic::Receipts, 0), "out")],
    };
    assert_eq!(old.commit(commit.clone()).await.unwrap(), Committed::Fenced);
    let progress = log.progress(Group::Worker).await.unwrap();
    assert!(progress.iter().all(|p| p.committed == 0), "a fenced commit moved a position");
    assert!(log.read(partition(Topic::Receipts, 0), 0, 10).await.unwrap().0.is_empty());
    // The old member learns what it lost, and gets nothing more.
    let lost = old.poll(10, SOON).await.unwrap();
    assert!(lost.records.is_empty() && lost.revoked.contains(&at));
    assert_eq!(bodies(&take(&mut new, 1).await), ["in"]);
    assert!(matches!(new.commit(commit).await.unwrap(), Committed::Done(_)));
    assert!(old.poll(10, SOON).await.unwrap().records.is_empty());
}

async fn an_empty_commit_tells_whether_the_member_is_fenced(log: Arc<dyn Log>) {
    let (mut old, _) = join(&log, Group::Worker).await;
    let Committed::Done(mark) = old.commit(Commit::default()).await.unwrap() else { panic!("fenced") };
    log.durable(mark).await.unwrap();
    let (_new, _) = join(&log, Group::Worker).await;
    assert_eq!(old.commit(Commit::default()).await.unwrap(), Committed::Fenced);
}

async fn members_divide_the_partitions_and_keep_shards_together(log: Arc<dyn Log>) {
    let mut members = Vec::new();
    for ordinal in 0..2 {
        members.push(log.subscribe(Group::Worker, Member { ordinal, count: 2 }).await.unwrap());
    }
    let mut of_member = [BTreeSet::new(), BTreeSet::new()];
    let layout = log.identity().layout;
    let topics = Group::Worker.topics();
    let all: usize = topics.iter().map(|t| layout.partitions(*t) as usize).sum();
    // The first may have everything until the second has joined.
    while of_member.iter().any(BTreeSet::is_empty) || of_member.iter().map(BTreeSet::len).sum::<usize>() < all {
        for (mine, member) in of_member.iter_mut().zip(&mut members) {
            let polled = member.poll(10, SOON).await.unwrap();
            mine.extend(polled.assigned.into_iter().map(|(at, _)| at));
            polled.revoked.iter().for_each(|at| assert!(mine.remove(at)));
        }
    }
    assert!(of_member[0].is_disjoint(&of_member[1]));
    for mine in of_member {
        let shards: BTreeSet<u32> = mine.iter().map(|at| at.partition).collect();
        assert!(!shards.is_empty());
        assert_eq!(mine.len(), shards.len() * topics.len(), "the topics of a shard are divided");
    }
}

async fn a_paused_partition_waits_and_loses_nothing(log: Arc<dyn Log>) {
    let (mut worker, _) = join(&log, Group::Worker).await;
    worker.pause(deliveries(0), true);
    log.append(vec![record(deliveries(0), "paused"), record(deliveries(1), "open")]).await.unwrap();
    assert_eq!(bodies(&take(&mut worker, 1).await), ["open"]);
    assert!(is_idle(&mut worker).await);
    worker.pause(deliveries(0), false);
    assert_eq!(bodies(&take(&mut worker, 1).await), ["paused"]);
}

async fn a_dropped_poll_loses_nothing(log: Arc<dyn Log>) {
    let (mut worker, _) = join(&log, Group::Worker).await;
    log.append((0..20).map(|i| record(deliveries(0), &i.to_string())).collect()).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 20 {
        let polled = {
            let mut poll = pin!(worker.poll(3, LONG));
            match poll.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(polled) => Some(polled),
                Poll::Pending => None,
            }
        };
        let polled = match polled {
            Some(polled) => polled,
            None => worker.poll(3, LONG).await,
        };
        seen.extend(bodies(&polled.unwrap().records));
    }
    assert_eq!(seen, (0..20).map(|i| i.to_string()).collect::<Vec<_>>());
}

async fn every_group_reads_for_itself(log: Arc<dyn Log>) {
    let at = partition(Topic::Requests(Lane::Transactional), 1);
    log.append((0..3).map(|i| record(at, &i.to_string())).collect()).await.unwrap();
    let (mut orchestrator, _) = join(&log, Group::Orchestrator).await;
    let last = take(&mut orchestrator, 3).await.pop().unwrap();
    let position = Position { offset: last.offset + 1, ..Position::default() };
    orchestrator.commit(Commit { positions: vec![(at, position)], outputs: Vec::new() }).await.unwrap();
    let (mut ledger, _) = join(&log, Group::LedgerRequests).await;
    assert_eq!(bodies(&take(&mut ledger, 3).await), ["0", "1", "2"], "consumed before every group had passed");
}

async fn a_compacted_topic_keeps_the_last_of_each_key(log: Arc<dyn Log>) {
    let at = partition(Topic::Control, 0);
    for i in 0..9 {
        let key = Bytes::from(format!("key {}", i % 3));
        log.append(vec![NewRecord { key, ..record(at, &i.to_string()) }]).await.unwrap();
    }
    // A log may compact late; it must never lose the last of a key.
    let (records, next) = log.read(at, 0, 100).await.unwrap();
    let mut last = BTreeMap::new();
    for record in &records {
        last.insert(record.key.clone(), String::from_utf8_lossy(&record.body).into_owned());
    }
    assert_eq!(last.into_values().collect::<Vec<_>>(), ["6", "7", "8"]);
    // One without a body is read by whoever knows its key still, and may go later.
    let gone = NewRecord { key: Bytes::from_static(b"key 1"), ..record(at, "") };
    let offset = log.append(vec![gone]).await.unwrap()[0];
    let (gone, next) = log.read(at, next, 100).await.unwrap();
    let read: Vec<_> = gone.iter().map(|r| (r.offset, &r.key[..], &r.body[..], r.envelope.tenant.as_str())).collect();
    assert_eq!(read, [(offset, &b"key 1"[..], &b""[..], "t")]);
    assert!(records.iter().all(|r| r.offset < next));
    assert!(log.read(at, next, 100).await.unwrap().0.is_empty());
}

async fn reached_waits_for_the_record(log: Arc<dyn Log>) {
    let at = partition(Topic::Receipts, 0);
    let first = log.append(vec![record(at, "0")]).await.unwrap()[0];
    log.reached(at, first).await.unwrap();
    let mut waiting = pin!(log.reached(at, first + 1));
    let early = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(early.is_pending(), "there is no such record yet");
    let (reached, appended) = both(waiting, log.append(vec![record(at, "1")])).await;
    reached.unwrap();
    assert!(appended.unwrap()[0] > first);
}

async fn what_a_poll_brought_becomes_durable(log: Arc<dyn Log>) {
    let (mut worker, _) = join(&log, Group::Worker).await;
    let (mut ledger, _) = join(&log, Group::LedgerReceipts).await;
    let outputs = vec![record(partition(Topic::Receipts, 0), "out")];
    let Committed::Done(committed) = worker.commit(Commit { positions: Vec::new(), outputs }).await.unwrap() else {
        panic!("fenced")
    };
    let polled = ledger.poll(1, LONG).await.unwrap();
    assert_eq!(bodies(&polled.records), ["out"]);
    log.durable(polled.mark).await.unwrap();
    log.durable(committed).await.unwrap();
}
