//! What transactions leave behind is nowhere seen, and what everybody has passed goes.

use herald_core::{
    conformance::log::{ALONE, record},
    ports::log::{Commit, Committed, Log, Position, partition},
    topic::{Group, Lane, Topic, TopicPartition},
};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::support::{ANSWER, clean_up, client, joined, open};

const REQUESTS: TopicPartition = TopicPartition { topic: Topic::Requests(Lane::Bulk), partition: 0 };

async fn position(log: &impl Log, group: Group, offset: u64) {
    let mut member = joined(log, group, ALONE).await;
    let position = Position { offset, ..Position::default() };
    let committed = member.commit(Commit { positions: vec![(REQUESTS, position)], outputs: Vec::new() }).await.unwrap();
    assert!(matches!(committed, Committed::Done(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_transaction_is_nowhere_seen() {
    let (log, config) = open().await;
    let receipts = partition(Topic::Receipts, 0);
    let topic = format!("{}.{}", config.prefix, Topic::Receipts);
    let mut ledger = joined(&log, Group::LedgerReceipts, ALONE).await;
    let offset = log.append(vec![record(receipts, "before")]).await.unwrap()[0];

    let id = format!("{}.stranger", config.prefix);
    let producer: ThreadedProducer<DefaultProducerContext> = client().set("transactional.id", id).create().unwrap();
    producer.init_transactions(ANSWER).unwrap();
    producer.begin_transaction().unwrap();
    for _ in 0..40 {
        // Not even a record of ours: whoever saw it would complain.
        producer.send(BaseRecord::<str, str>::to(&topic).partition(0).payload("aborted")).unwrap();
    }
    producer.flush(ANSWER).unwrap();
    producer.abort_transaction(ANSWER).unwrap();

    let polled = ledger.poll(100, ANSWER).await.unwrap();
    assert_eq!(polled.records.iter().map(|r| &r.body[..]).collect::<Vec<_>>(), [b"before"]);
    assert_eq!(log.read(receipts, 0, 100).await.unwrap().0.len(), 1);
    assert_eq!(ledger.ends(&[receipts]).await.unwrap(), [offset + 1], "nobody would ever arrive at another end");
    let after = log.append(vec![record(receipts, "after")]).await.unwrap()[0];
    assert!(after > offset + 40);
    // The brokers answer an abort before they have marked it everywhere, and until then nobody sees what came after it.
    let polled = ledger.poll(100, ANSWER).await.unwrap();
    assert_eq!(polled.records.iter().map(|r| &r.body[..]).collect::<Vec<_>>(), [b"after"]);
    assert_eq!(ledger.ends(&[receipts]).await.unwrap(), [after + 1]);
    clean_up(&config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_group_has_passed_is_deleted_and_nothing_else() {
    let (log, config) = open().await;
    log.append((0..10).map(|i| record(REQUESTS, &i.to_string())).collect()).await.unwrap();
    position(&log, Group::Orchestrator, 7).await;
    log.trim().await.unwrap();
    let first = async || log.read(REQUESTS, 0, 100).await.unwrap().0.first().map(|r| r.offset);
    assert_eq!(first().await, Some(0), "the ledger has not read it");
    position(&log, Group::LedgerRequests, 4).await;
    log.trim().await.unwrap();
    assert_eq!(first().await, Some(4));
    // Whoever begins late begins with what is there.
    let mut member = joined(&log, Group::LedgerRequests, ALONE).await;
    assert_eq!(member.poll(100, ANSWER).await.unwrap().records[0].offset, 4);
    position(&log, Group::LedgerRequests, 10).await;
    position(&log, Group::Orchestrator, 10).await;
    log.trim().await.unwrap();
    assert_eq!(first().await, None);
    let progress = log.progress(Group::Orchestrator).await.unwrap();
    let progress = progress.iter().find(|progress| progress.at == REQUESTS).unwrap();
    assert_eq!((progress.committed, progress.end), (10, 10));
    clean_up(&config).await;
}
