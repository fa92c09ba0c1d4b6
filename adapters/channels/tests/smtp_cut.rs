//! Connections that are cut at any octet: what the client reports must be true.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use support::{brief, client, mailbox, mails, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// Passes at most `up` octets to the server and `down` octets to the client, then leaves the client; the server gets
/// an end of input and is listened to until it has worked through what it has.
async fn cut(client: TcpStream, server: TcpStream, up: usize, down: usize) {
    let (mut client_read, mut client_write) = client.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let upwards = async {
        let mut buffer = [0; 700];
        let mut left = up;
        while left > 0 {
            let bound = left.min(buffer.len());
            match client_read.read(&mut buffer[..bound]).await {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    server_write.write_all(&buffer[..count]).await.unwrap();
                    left -= count;
                }
            }
        }
    };
    let downwards = async {
        let mut buffer = [0; 300];
        let mut left = down;
        while left > 0 {
            let bound = left.min(buffer.len());
            match server_read.read(&mut buffer[..bound]).await {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    if client_write.write_all(&buffer[..count]).await.is_err() {
                        break;
                    }
                    left -= count;
                }
            }
        }
    };
    tokio::select! { () = upwards => {}, () = downwards => {} }
    drop((client_read, client_write));
    drop(server_write);
    let _ = server_read.read_to_end(&mut Vec::new()).await;
}

/// A proxy before `server` that cuts each connection somewhere, until `done` drops its listener. Returns its address
/// and a way to wait for all its connections.
async fn cutting_proxy(server: SocketAddr, seed: u64) -> (SocketAddr, Arc<tokio::sync::Mutex<JoinSet<()>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(tokio::sync::Mutex::new(JoinSet::new()));
    let running = connections.clone();
    tokio::spawn(async move {
        let mut random = Random(seed);
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(server).await.unwrap();
            let (up, down) = (random.below(9_000), 150 + random.below(1_800));
            running.lock().await.spawn(cut(client, server, up, down));
        }
    });
    (addr, connections)
}

#[tokio::test]
async fn whatever_is_cut_the_report_is_true() {
    let seen = Mutex::new(BTreeSet::new());
    for seed in 0..120 {
        for query in ["?tls=off", "?tls=off&chunking=off"] {
            let server = mailbox().await;
            let (addr, connections) = cutting_proxy(server.addr, seed).await;
            let client = client(addr, query, |config| {
                config.connections = 2;
                config.messages_in_flight = 8;
            });
            let outcomes = send(&client, mails(40)).await;
            drop(client);
            while connections.lock().await.join_next().await.is_some() {}
            let context = format!("seed {seed} {query}");
            let stored: Vec<_> = server.store.list(None, 1_000).mails.iter().map(|m| m.subject.clone()).collect();
            assert_eq!(server.store.counts().duplicates, 0, "{context}: sent twice");
            for (token, outcome) in &outcomes {
                let arrived = stored.contains(&format!("n{token}"));
                let brief = brief(outcome);
                match brief.split(' ').next().unwrap() {
                    "accepted" => assert!(arrived, "{context}: {token} is accepted and did not arrive"),
                    "not-attempted" => assert!(!arrived, "{context}: {token} is not attempted and arrived"),
                    "unknown" => {}
                    other => panic!("{context}: {token} {other}"),
                }
                seen.lock().unwrap().insert((brief.split(' ').next().unwrap().to_owned(), arrived));
            }
            server.shutdown.cancel();
        }
    }
    // The cuts were where they had to be: both kinds of doubt occurred.
    let expected = [("accepted", true), ("not-attempted", false), ("unknown", false), ("unknown", true)];
    assert_eq!(seen.into_inner().unwrap(), expected.map(|(name, arrived)| (name.to_owned(), arrived)).into());
}
