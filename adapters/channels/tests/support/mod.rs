//! What the email tests share: messages, a recording sink, a mailbox on loopback, and a server that plays a script.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use herald_channels::email::address::Address;
use herald_channels::email::config::Timeouts;
use herald_channels::email::mailbox::{MailStore, Mailbox, StoreLimits};
use herald_channels::email::{EmailClient, Outcome, OutgoingMail, SmtpConfig};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Message `token`, with lines that begin with dots.
pub fn mail(token: u64) -> OutgoingMail {
    let data =
        format!("Message-ID: <{token}@herald.example>\r\nSubject: n{token}\r\n\r\n.dot {token}\r\n..\r\nend\r\n");
    OutgoingMail {
        token,
        mail_from: Address::parse("bounce@herald.example").unwrap(),
        rcpt_to: Address::parse(&format!("user{token}@example.com")).unwrap(),
        data: data.into(),
    }
}

/// Messages 1 to `count`.
pub fn mails(count: u64) -> Vec<OutgoingMail> {
    (1..=count).map(mail).collect()
}

/// A client of the server at `addr`: one connection, ten seconds for everything, changed by `adjust`.
pub fn client(addr: SocketAddr, query: &str, adjust: impl FnOnce(&mut SmtpConfig)) -> EmailClient {
    let mut config = SmtpConfig::parse(&format!("smtp://{addr}{query}")).unwrap();
    config.connections = 1;
    config.timeouts = Timeouts::all(Duration::from_secs(10));
    adjust(&mut config);
    EmailClient::new(config).unwrap()
}

/// Sends a batch; panics when a message is reported twice or not at all.
pub async fn send(client: &EmailClient, batch: Vec<OutgoingMail>) -> BTreeMap<u64, Outcome> {
    let tokens: Vec<u64> = batch.iter().map(|mail| mail.token).collect();
    let outcomes = Mutex::new(BTreeMap::new());
    let sink = |token, outcome| {
        let twice = outcomes.lock().unwrap().insert(token, outcome);
        assert!(twice.is_none(), "{token} reported twice");
    };
    client.send(batch, None, &sink).await;
    let outcomes = outcomes.into_inner().unwrap();
    assert!(tokens.iter().all(|token| outcomes.contains_key(token)), "not all reported: {outcomes:?}");
    outcomes
}

/// A short form of an outcome: its name and code.
pub fn brief(outcome: &Outcome) -> String {
    let name = match outcome {
        Outcome::Accepted { .. } => return "accepted".to_owned(),
        Outcome::RetryAfter { .. } => "retry",
        Outcome::EndpointGone { .. } => "gone",
        Outcome::AddressBad { .. } => "bad",
        Outcome::Rejected { .. } => "rejected",
        Outcome::AccountFault { .. } => "account",
        Outcome::NotAttempted { .. } => "not-attempted",
        Outcome::Unknown { .. } => "unknown",
    };
    format!("{name} {}", outcome.cause().unwrap().code)
}

/// The short forms in the order of tokens.
pub fn briefs(outcomes: &BTreeMap<u64, Outcome>) -> Vec<String> {
    outcomes.values().map(brief).collect()
}

/// A running mailbox.
pub struct RunningMailbox {
    pub addr: SocketAddr,
    pub store: Arc<MailStore>,
    pub shutdown: CancellationToken,
    pub served: JoinHandle<std::io::Result<()>>,
}

/// Starts a mailbox on a free port.
pub async fn mailbox() -> RunningMailbox {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let store = Arc::new(MailStore::new(StoreLimits::default()));
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(Mailbox::serve(listener, store.clone(), shutdown.clone()));
    RunningMailbox { addr, store, shutdown, served }
}

/// One step of a scripted server.
#[derive(Debug, Clone, Copy)]
pub enum Do {
    /// Write this and CRLF.
    Say(&'static str),
    /// Write this and CRLF octet by octet, each in a segment of its own.
    Dribble(&'static str),
    /// Read a line, which must begin with this.
    Read(&'static str),
    /// Read lines up to the final dot.
    Text,
    /// Read this many octets.
    Octets(usize),
    /// Say nothing until the client is gone.
    Stall,
}

/// A server that plays one script for each connection, in order, and then refuses more. Its result panics in the test
/// when the client did not keep to the script.
pub async fn scripted(scripts: Vec<Vec<Do>>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let played = tokio::spawn(async move {
        for script in scripts {
            let (socket, _) = listener.accept().await.unwrap();
            play(socket, script).await;
        }
    });
    (addr, played)
}

async fn play(socket: TcpStream, script: Vec<Do>) {
    socket.set_nodelay(true).unwrap();
    let mut socket = BufReader::new(socket);
    for step in script {
        match step {
            Do::Say(text) => socket.write_all(format!("{text}\r\n").as_bytes()).await.unwrap(),
            Do::Dribble(text) => {
                for octet in format!("{text}\r\n").bytes() {
                    socket.write_all(&[octet]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
            Do::Read(prefix) => {
                let mut line = String::new();
                socket.read_line(&mut line).await.unwrap();
                assert!(line.starts_with(prefix), "the script wants {prefix:?}, the client says {line:?}");
            }
            Do::Text => loop {
                let mut line = String::new();
                assert_ne!(socket.read_line(&mut line).await.unwrap(), 0, "the client left in the middle of its text");
                if line == ".\r\n" {
                    break;
                }
            },
            Do::Octets(count) => {
                socket.read_exact(&mut vec![0; count]).await.unwrap();
            }
            Do::Stall => {
                let mut rest = Vec::new();
                let _ = socket.read_to_end(&mut rest).await;
            }
        }
    }
}
