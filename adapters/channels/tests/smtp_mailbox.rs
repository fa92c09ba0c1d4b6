//! The client against Herald's own mailbox.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use herald_channels::email::mailbox::decode;
use support::{brief, briefs, client, mail, mailbox, mails, send};

#[tokio::test]
async fn every_message_arrives_once_and_unchanged() {
    for query in ["", "?chunking=off"] {
        let server = mailbox().await;
        let client = client(server.addr, query, |config| config.connections = 3);
        let outcomes = send(&client, mails(300)).await;
        assert!(outcomes.values().all(|o| brief(o) == "accepted"), "{outcomes:?}");
        let counts = server.store.counts();
        assert_eq!((counts.received, counts.distinct, counts.duplicates), (300, 300, 0));
        for stored in server.store.list(None, 1_000).mails {
            let token: u64 = stored.subject[1..].parse().unwrap();
            assert_eq!(stored.raw, mail(token).data, "{query}");
            assert_eq!(stored.rcpt_to, [format!("user{token}@example.com")]);
            assert_eq!(stored.mail_from, "bounce@herald.example");
        }
        client.close().await;
    }
}

#[tokio::test]
async fn one_connection_keeps_the_order() {
    let server = mailbox().await;
    let client = client(server.addr, "", |_| {});
    send(&client, mails(200)).await;
    let ids: Vec<_> = server.store.list(None, 1_000).mails.iter().rev().map(|m| m.subject.clone()).collect();
    assert_eq!(ids, (1..=200).map(|n| format!("n{n}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_gate_is_asked_before_each_message() {
    let server = mailbox().await;
    let client = client(server.addr, "", |config| config.messages_in_flight = 4);
    let asked = AtomicU64::new(0);
    let accepted = AtomicU64::new(0);
    let held = AtomicU64::new(0);
    // It closes for good in the middle of the batch, as a switch does.
    let gate = |_| asked.fetch_add(1, Ordering::Relaxed) < 10;
    let sink = |_, outcome: herald_channels::email::Outcome| match brief(&outcome).as_str() {
        "accepted" => _ = accepted.fetch_add(1, Ordering::Relaxed),
        "not-attempted smtp.gate" => _ = held.fetch_add(1, Ordering::Relaxed),
        other => panic!("{other}"),
    };
    client.send(mails(50), Some(&gate), &sink).await;
    assert_eq!((accepted.into_inner(), held.into_inner(), asked.into_inner()), (10, 40, 50));
    assert_eq!(server.store.counts().received, 10);
}

#[tokio::test]
async fn connections_are_kept_for_the_next_batch_and_closed_when_idle() {
    let server = mailbox().await;
    let client = client(server.addr, "", |config| {
        config.connections = 2;
        config.messages_in_flight = 1;
        config.idle_timeout = Duration::from_millis(50);
    });
    let (a, b) = tokio::join!(send(&client, mails(20)), send(&client, mails(20)));
    assert!(briefs(&a).iter().chain(&briefs(&b)).all(|b| b == "accepted"));
    assert!((1..=2).contains(&client.idle_connections()));
    tokio::time::timeout(Duration::from_secs(10), async {
        while client.idle_connections() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("idle connections are closed");
    assert_eq!(server.store.counts().duplicates, 20, "both batches held the same messages");
}

#[tokio::test]
async fn a_stopped_server_is_noticed_before_anything_is_risked() {
    let server = mailbox().await;
    let client = client(server.addr, "", |_| {});
    assert_eq!(briefs(&send(&client, mails(1)).await), ["accepted"]);
    assert_eq!(client.idle_connections(), 1);
    server.shutdown.cancel();
    server.served.await.unwrap().unwrap();
    let outcomes = send(&client, mails(2)).await;
    assert_eq!(briefs(&outcomes), ["not-attempted smtp.connect"; 2]);
    client.close().await;
    assert_eq!(briefs(&send(&client, mails(1)).await), ["not-attempted smtp.closed"]);
    assert_eq!(send(&client, vec![]).await.len(), 0);
}

#[tokio::test]
async fn bodies_larger_than_every_buffer_pass() {
    let server = mailbox().await;
    for query in ["", "?chunking=off"] {
        let client = client(server.addr, query, |_| {});
        let mut batch = mails(3);
        for mail in &mut batch {
            let lines = ".a line of text\r\n".repeat(200_000);
            mail.data = format!("Message-ID: <{}{query}@x>\r\n\r\n{lines}", mail.token).into();
        }
        let expected = batch[0].data.clone();
        assert_eq!(briefs(&send(&client, batch).await), ["accepted"; 3]);
        let first = server.store.list(None, 3).mails[2].clone();
        assert_eq!(first.raw, expected);
        assert_eq!(decode(&first.raw).text.unwrap().lines().count(), 200_000);
    }
    // One that is larger than SIZE allows is not sent at all.
    let client = client(server.addr, "", |_| {});
    let mut batch = mails(2);
    batch[0].data = "x\r\n".repeat(9 << 20).into();
    assert_eq!(briefs(&send(&client, batch).await), ["rejected smtp.size", "accepted"]);
}
