//! Measures the SMTP client: messages a second, and the client's CPU time a message; and what composing costs.
//!
//! The client runs on one thread, the mailbox that takes the mail on another. Run it in release mode:
//!
//! ```text
//! cargo run --release -p herald-channels --example smtp_rate -- [messages] [octets a message] [?query of the URL]
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use herald_channels::email::address::Address;
use herald_channels::email::dkim::Signer;
use herald_channels::email::mailbox::{MailStore, Mailbox, StoreLimits};
use herald_channels::email::message::{Composer, Draft, NamedAddress, Sender};
use herald_channels::email::{EmailClient, Outcome, OutgoingMail, SmtpConfig};
use rustix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;

const BATCH: usize = 512;

fn main() {
    measure_composing();
    let mut arguments = std::env::args().skip(1);
    let messages: u64 = arguments.next().map_or(200_000, |n| n.parse().expect("messages: a number"));
    let octets: usize = arguments.next().map_or(2_000, |n| n.parse().expect("octets: a number"));
    let queries = arguments.next().map_or_else(|| vec![String::new(), "&chunking=off".to_owned()], |query| vec![query]);
    for query in queries {
        for connections in [1, 4] {
            measure(messages, octets, connections, &query);
        }
    }
}

fn measure(messages: u64, octets: usize, connections: usize, query: &str) {
    let (addr, store) = sink();
    let mut config = SmtpConfig::parse(&format!("smtp://{addr}?tls=off{query}")).unwrap();
    config.connections = connections;
    let client = EmailClient::new(config).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let data = Bytes::from(format!("Subject: x\r\n\r\n{}", format!("{}\r\n", "x".repeat(70)).repeat(octets / 72)));
    let (from, to) = (Address::parse("a@herald.example").unwrap(), Address::parse("b@example.com").unwrap());
    let accepted = AtomicU64::new(0);
    let (begin, cpu_begin) = (Instant::now(), thread_cpu());
    runtime.block_on(async {
        let sink = |_, outcome| {
            if let Outcome::Accepted { .. } = outcome {
                accepted.fetch_add(1, Ordering::Relaxed);
            }
        };
        let mut sent = 0;
        while sent < messages {
            let mail = |token| OutgoingMail { token, mail_from: from.clone(), rcpt_to: to.clone(), data: data.clone() };
            let batch = (sent..messages.min(sent + BATCH as u64)).map(mail).collect();
            client.send(batch, None, &sink).await;
            sent += BATCH as u64;
        }
    });
    let (elapsed, cpu) = (begin.elapsed(), thread_cpu() - cpu_begin);
    assert_eq!((accepted.into_inner(), store.counts().received), (messages, messages));
    println!(
        "{connections} connection(s) {query:14} {:>9.0} messages/s {:>6.2} us client CPU a message",
        messages as f64 / elapsed.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / messages as f64
    );
}

fn measure_composing() {
    let bare = |address| NamedAddress::bare(Address::parse(address).unwrap());
    let to = bare("b@example.com");
    let (text, html) = ("A line of text.\n".repeat(30), "<p>A line of <b>text</b>, täglich.</p>\n".repeat(30));
    let draft = Draft {
        instance_id: "01J0000000000000",
        to: &to,
        subject: "Ann commented on your photo",
        text: Some(&text),
        html: Some(&html),
        list_unsubscribe: Some("https://herald.example/u/abc"),
        date_unix_s: 1_751_364_000,
    };
    let signer = |algorithm| {
        let pem = rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem();
        vec![Signer::from_pem("herald.example", "s", pem.as_bytes()).unwrap()]
    };
    let cases = [
        ("unsigned", Vec::new(), 20_000),
        ("ed25519", signer(&rcgen::PKCS_ED25519), 5_000),
        ("rsa 2048", signer(&rcgen::PKCS_RSA_SHA256), 500),
    ];
    for (name, signers, rounds) in cases {
        let from = bare("a@herald.example");
        let sender = Sender { from, reply_to: None, message_id_domain: None, eight_bit: false };
        let composer = Composer::new(&sender, signers).unwrap();
        let (begin, mut octets) = (thread_cpu(), 0);
        for _ in 0..rounds {
            octets = composer.compose(&draft).unwrap().len();
        }
        let cpu = (thread_cpu() - begin).as_secs_f64() * 1e6 / f64::from(rounds);
        println!("composing {octets} octets, {name:8} {cpu:>8.2} us CPU a message");
    }
}

/// A mailbox on a thread of its own.
fn sink() -> (SocketAddr, Arc<MailStore>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let store = Arc::new(MailStore::new(StoreLimits { mails: 10, ..StoreLimits::default() }));
    let kept = store.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            Mailbox::serve(listener, kept, CancellationToken::new()).await.unwrap();
        });
    });
    (addr, store)
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
