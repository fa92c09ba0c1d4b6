//! One connection: its socket, its buffers, and how it is opened and closed.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::extensions::Extensions;
use super::reply::{self, Reply};
use super::transfer::Outbox;
use crate::email::config::{Credentials, SmtpConfig, Tls};
use crate::email::outcome::{Cause, Outcome, Stage, classify};

const READ_BUFFER_OCTETS: usize = 16 * 1_024;

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// An open connection, past EHLO, STARTTLS and AUTH.
pub(crate) struct Connection {
    stream: Stream,
    /// What has been read and not yet been parsed is `inbox[parsed..filled]`.
    inbox: Vec<u8>,
    parsed: usize,
    filled: usize,
    pub out: Outbox,
    pub extensions: Extensions,
}

impl Connection {
    /// Connects and gets ready for MAIL. An error is the outcome of every message that waited for it.
    pub async fn open(config: &SmtpConfig, tls: Option<&(TlsConnector, ServerName<'static>)>) -> Result<Self, Outcome> {
        let connect = TcpStream::connect((config.host.as_str(), config.port));
        let tcp = match timeout(config.timeouts.connect, connect).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => return Err(not_attempted("connect", &error)),
            Err(_) => return Err(not_attempted("timeout.connect", &"the server does not answer")),
        };
        // Without it the kernel holds a short write back until the one before is acknowledged, which takes up to 40 ms.
        tcp.set_nodelay(true).map_err(|e| not_attempted("connect", &e))?;
        let mut connection = Self {
            stream: Stream::Plain(tcp),
            inbox: vec![0; READ_BUFFER_OCTETS],
            parsed: 0,
            filled: 0,
            out: Outbox::default(),
            extensions: Extensions::default(),
        };
        if config.tls == Tls::Implicit {
            connection = connection.encrypt(tls, config).await?;
        }
        connection.ask(config, "", |r| r.code == 220).await?;
        connection.hello(config).await?;
        if matches!(config.tls, Tls::Opportunistic | Tls::Required) {
            connection = connection.start_tls(tls, config).await?;
        }
        if let Some(credentials) = &config.credentials {
            connection.authenticate(config, credentials).await?;
        }
        Ok(connection)
    }

    async fn hello(&mut self, config: &SmtpConfig) -> Result<(), Outcome> {
        let limit = config.timeouts.greeting;
        let name = &config.ehlo_name;
        let answer = self.call(&format!("EHLO {name}\r\n"), limit, |r| (r.is_positive(), Extensions::parse(r))).await?;
        if answer.0 {
            self.extensions = answer.1;
            return Ok(());
        }
        // RFC 5321, section 3.2: a server of old answers EHLO with an error and is greeted with HELO.
        self.extensions = Extensions::default();
        self.ask(config, &format!("HELO {name}\r\n"), |r| r.is_positive()).await
    }

    async fn start_tls(
        mut self,
        tls: Option<&(TlsConnector, ServerName<'static>)>,
        config: &SmtpConfig,
    ) -> Result<Self, Outcome> {
        if !self.extensions.starttls {
            if config.tls == Tls::Opportunistic {
                return Ok(self);
            }
            return Err(account_fault("tls", "TLS is required and the server does not offer STARTTLS"));
        }
        self.ask(config, "STARTTLS\r\n", |r| r.code == 220).await?;
        if self.parsed < self.filled {
            // Somebody in between could have put it there (CVE-2011-0411).
            return Err(account_fault("tls", "the server sent more in plain text after its answer to STARTTLS"));
        }
        let mut encrypted = self.encrypt(tls, config).await?;
        encrypted.hello(config).await?;
        Ok(encrypted)
    }

    async fn encrypt(
        mut self,
        tls: Option<&(TlsConnector, ServerName<'static>)>,
        config: &SmtpConfig,
    ) -> Result<Self, Outcome> {
        let (Some((connector, name)), Stream::Plain(tcp)) = (tls, self.stream) else {
            return Err(account_fault("tls", "TLS is not set up"));
        };
        let handshake = connector.connect(name.clone(), tcp);
        let stream = match timeout(config.timeouts.connect, handshake).await {
            Ok(Ok(stream)) => stream,
            // What the TLS library refuses, such as a certificate, stays refused until somebody repairs it.
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(account_fault("tls", &error.to_string()));
            }
            Ok(Err(error)) => return Err(not_attempted("tls", &error)),
            Err(_) => return Err(not_attempted("timeout.tls", &"the TLS handshake takes too long")),
        };
        self.stream = Stream::Tls(Box::new(stream));
        Ok(self)
    }

    async fn authenticate(&mut self, config: &SmtpConfig, credentials: &Credentials) -> Result<(), Outcome> {
        let Credentials { user, password } = credentials;
        let limit = config.timeouts.greeting;
        if self.extensions.auth_plain {
            let response = BASE64_STANDARD.encode(format!("\0{user}\0{password}"));
            let answer = self.call(&format!("AUTH PLAIN {response}\r\n"), limit, |r| auth_result(r, 235)).await?;
            return answer;
        }
        if !self.extensions.auth_login {
            return Err(account_fault("auth", "the server offers neither AUTH PLAIN nor AUTH LOGIN"));
        }
        self.call("AUTH LOGIN\r\n", limit, |r| auth_result(r, 334)).await??;
        let user = format!("{}\r\n", BASE64_STANDARD.encode(user));
        self.call(&user, limit, |r| auth_result(r, 334)).await??;
        let password = format!("{}\r\n", BASE64_STANDARD.encode(password));
        self.call(&password, limit, |r| auth_result(r, 235)).await?
    }

    /// Sends a command and requires an answer of the opening dialogue.
    async fn ask(&mut self, config: &SmtpConfig, command: &str, good: fn(&Reply<'_>) -> bool) -> Result<(), Outcome> {
        let check = |r: &Reply<'_>| if good(r) { Ok(()) } else { Err(classify(Stage::Connect, r)) };
        self.call(command, config.timeouts.greeting, check).await?
    }

    /// Sends a command, waits for its answer and returns what `read` makes of it.
    async fn call<T>(&mut self, command: &str, limit: Duration, read: impl Fn(&Reply<'_>) -> T) -> Result<T, Outcome> {
        self.out.buffer.extend_from_slice(command.as_bytes());
        let dialogue = async {
            loop {
                let (inbox, _) = self.received();
                if let Some((reply, used)) =
                    reply::parse(inbox).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?
                {
                    let value = read(&reply);
                    self.consume(used);
                    return Ok::<T, io::Error>(value);
                }
                self.exchange().await?;
            }
        };
        match timeout(limit, dialogue).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                Err(account_fault("protocol", &error.to_string()))
            }
            Ok(Err(error)) => Err(not_attempted("lost", &error)),
            Err(_) => Err(not_attempted("timeout.connect", &"the server does not answer")),
        }
    }

    /// Whether the connection still answers, asked with a RSET.
    pub async fn probe(&mut self, limit: Duration) -> bool {
        matches!(self.call("RSET\r\n", limit, |r| r.is_positive()).await, Ok(true))
    }

    /// Whether the server has closed the idle connection or said something on it, as far as is known without waiting.
    pub async fn is_stale(&mut self) -> bool {
        if self.parsed < self.filled {
            return true;
        }
        let mut byte = [0_u8; 1];
        let mut buffer = ReadBuf::new(&mut byte);
        poll_fn(|cx| Poll::Ready(self.stream.poll_read(cx, &mut buffer).is_ready())).await
    }

    /// Says goodbye. What was accepted does not depend on it, so errors are of no interest.
    pub async fn quit(mut self, limit: Duration) {
        let _ = self.call("QUIT\r\n", limit, |_| ()).await;
    }

    /// What has been received and not been consumed, with the outbox beside it.
    pub fn received(&mut self) -> (&[u8], &mut Outbox) {
        (&self.inbox[self.parsed..self.filled], &mut self.out)
    }

    /// Drops the first `used` octets of what has been received.
    pub fn consume(&mut self, used: usize) {
        self.parsed += used;
        if self.parsed == self.filled {
            self.parsed = 0;
            self.filled = 0;
        }
    }

    /// Writes what is queued and waits until something is received, or until a part of much to write was taken. Both at
    /// once, so that neither side can block the other while both have much to say.
    ///
    /// # Errors
    /// Of the socket; `UnexpectedEof` when the server has closed.
    pub async fn exchange(&mut self) -> io::Result<()> {
        if self.parsed > 0 {
            self.inbox.copy_within(self.parsed..self.filled, 0);
            self.filled -= self.parsed;
            self.parsed = 0;
        }
        if self.filled == self.inbox.len() {
            // Half a reply fills the buffer. The parser refuses replies that are too long, so this ends.
            self.inbox.resize(self.filled + READ_BUFFER_OCTETS, 0);
        }
        poll_fn(|cx| {
            let before = self.out.pending().len();
            let written = self.poll_write_out(cx);
            let progress = self.out.pending().len() < before;
            // What the server said before it closed is read first: it may explain an error in writing.
            match (self.poll_fill(cx), written) {
                (Poll::Ready(result), _) => Poll::Ready(result),
                (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
                // The caller's limit on silence starts again.
                (Poll::Pending, Poll::Pending) if progress => Poll::Ready(Ok(())),
                (Poll::Pending, _) => Poll::Pending,
            }
        })
        .await
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.pending().is_empty() {
            return self.stream.poll_flush(cx);
        }
        while !self.out.pending().is_empty() {
            let count = ready!(self.stream.poll_write(cx, self.out.pending()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(count);
        }
        self.stream.poll_flush(cx)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffer = ReadBuf::new(&mut self.inbox[self.filled..]);
        ready!(self.stream.poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        self.filled += count;
        Poll::Ready(if count == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) })
    }
}

fn auth_result(reply: &Reply<'_>, good: u16) -> Result<(), Outcome> {
    if reply.code == good { Ok(()) } else { Err(classify(Stage::Auth, reply)) }
}

fn not_attempted(word: &str, error: &dyn std::fmt::Display) -> Outcome {
    Outcome::NotAttempted { cause: Cause::own(word, error.to_string()) }
}

fn account_fault(word: &str, text: &str) -> Outcome {
    Outcome::AccountFault { cause: Cause::own(word, text).alerting() }
}

impl Stream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buffer),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, data),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, data),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }
}
