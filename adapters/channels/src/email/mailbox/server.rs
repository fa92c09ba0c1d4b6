//! The mailbox's side of SMTP.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::store::MailStore;

const MAX_SESSIONS: usize = 256;
/// A session that says nothing for this long is closed (RFC 5321, section 4.5.3.2.7).
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// 512 octets by RFC 5321; SMTPUTF8 and SIZE add to it.
const MAX_COMMAND_OCTETS: usize = 1_024;
const MAX_LINE_OCTETS: usize = 998;
const MAX_RECIPIENTS: usize = 100;
const READ_OCTETS: usize = 64 * 1_024;

pub(super) async fn serve(listener: TcpListener, store: Arc<MailStore>, shutdown: CancellationToken) -> io::Result<()> {
    let mut sessions = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = sessions.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let mut socket = match accepted {
            Ok((socket, _)) => socket,
            // A peer that went away while it waited is no fault of the listener.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        socket.set_nodelay(true)?;
        if sessions.len() >= MAX_SESSIONS {
            // Best effort: the peer learns of it by the closed connection too.
            let _ = timeout(Duration::from_secs(1), socket.write_all(b"421 4.3.2 too many sessions\r\n")).await;
            continue;
        }
        let session = Session { socket, store: store.clone(), dialogue: Dialogue::new(store.limits().message_octets) };
        sessions.spawn(session.run(shutdown.clone()));
    }
    while sessions.join_next().await.is_some() {}
    Ok(())
}

struct Session {
    socket: TcpStream,
    store: Arc<MailStore>,
    dialogue: Dialogue,
}

impl Session {
    async fn run(mut self, shutdown: CancellationToken) {
        let served = tokio::select! {
            served = self.serve() => served,
            () = shutdown.cancelled() => self.socket.write_all(b"421 4.3.2 shutting down\r\n").await,
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a mailbox session ended early");
        }
    }

    async fn serve(&mut self) -> io::Result<()> {
        self.socket.write_all(b"220 herald mailbox ESMTP\r\n").await?;
        let mut input = Vec::with_capacity(READ_OCTETS);
        let mut output = Vec::new();
        loop {
            let read = match timeout(IDLE_TIMEOUT, self.socket.read_buf(&mut input)).await {
                Ok(read) => read?,
                Err(_) => return self.socket.write_all(b"421 4.4.2 idle for too long\r\n").await,
            };
            if read == 0 {
                return Ok(());
            }
            let mut used = 0;
            while let Some(step) = self.dialogue.step(&input[used..], &mut output) {
                used += step.used;
                if let Some(mail) = step.mail {
                    self.store.add(mail.from, mail.to, mail.data, SystemTime::now());
                }
                if step.quit {
                    return self.socket.write_all(&output).await;
                }
            }
            input.drain(..used);
            if !output.is_empty() {
                self.socket.write_all(&output).await?;
                output.clear();
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Mail {
    from: String,
    to: Vec<String>,
    data: Bytes,
}

/// What one command or piece of text led to.
#[derive(Default)]
struct Step {
    used: usize,
    mail: Option<Mail>,
    quit: bool,
}

/// The session's state, without IO.
struct Dialogue {
    max_octets: usize,
    greeted: bool,
    from: Option<String>,
    to: Vec<String>,
    data: Vec<u8>,
    state: State,
    fault: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Command,
    /// A command line that is too long is skipped to its end.
    LongCommand,
    /// Text after DATA, up to the dot.
    Text,
    /// The rest of a line of text that is too long.
    LongText,
    /// Text after BDAT.
    Chunk {
        left: usize,
        last: bool,
    },
}

impl Dialogue {
    fn new(max_octets: usize) -> Self {
        Self {
            max_octets,
            greeted: false,
            from: None,
            to: Vec::new(),
            data: Vec::new(),
            state: State::Command,
            fault: None,
        }
    }

    /// Takes one command, one line of text or one piece of a chunk off `input`; `None` when more input is needed.
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Option<Step> {
        if let State::Chunk { left, last } = self.state {
            return self.chunk(input, left, last, output);
        }
        let Some(newline) = memchr::memchr(b'\n', input) else { return self.unfinished_line(input, output) };
        let line = &input[..newline];
        let used = newline + 1;
        if self.state == State::Text {
            return Some(self.text_line(line, used, output));
        }
        if matches!(self.state, State::LongCommand | State::LongText) {
            self.state = if self.state == State::LongText { State::Text } else { State::Command };
            return Some(Step { used, ..Step::default() });
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut step = match std::str::from_utf8(line) {
            Ok(_) if line.len() > MAX_COMMAND_OCTETS => say(output, "500 5.5.6 line too long"),
            Ok(line) => self.command(line, output),
            Err(_) => say(output, "500 5.5.2 not UTF-8"),
        };
        step.used = used;
        Some(step)
    }

    /// Input without an end of line is kept only up to a bound.
    fn unfinished_line(&mut self, input: &[u8], output: &mut Vec<u8>) -> Option<Step> {
        let used = input.len();
        match self.state {
            State::Text if used > MAX_LINE_OCTETS + 2 => {
                self.state = State::LongText;
                self.fault = Some("500 5.6.0 a line has more than 998 octets");
            }
            State::Command if used > MAX_COMMAND_OCTETS => {
                self.state = State::LongCommand;
                say(output, "500 5.5.6 line too long");
            }
            State::LongCommand | State::LongText if used > 0 => {}
            _ => return None,
        }
        Some(Step { used, ..Step::default() })
    }

    fn text_line(&mut self, line: &[u8], used: usize, output: &mut Vec<u8>) -> Step {
        let mut step = Step { used, ..Step::default() };
        // Only CRLF ends a line: a server that takes a bare LF for one can be made to see a second message.
        let Some(line) = line.strip_suffix(b"\r").filter(|line| !line.contains(&b'\r')) else {
            self.fault = Some("554 5.6.0 a CR or LF by itself");
            return step;
        };
        if line == b"." {
            self.state = State::Command;
            step.mail = self.end_of_text(output);
            return step;
        }
        let line = line.strip_prefix(b".").unwrap_or(line);
        if line.len() > MAX_LINE_OCTETS {
            self.fault = Some("500 5.6.0 a line has more than 998 octets");
        } else if self.data.len() + line.len() + 2 > self.max_octets {
            self.fault = Some("552 5.3.4 message too big");
        }
        if self.fault.is_none() {
            self.data.extend_from_slice(line);
            self.data.extend_from_slice(b"\r\n");
        }
        step
    }

    fn chunk(&mut self, input: &[u8], left: usize, last: bool, output: &mut Vec<u8>) -> Option<Step> {
        let used = left.min(input.len());
        if used == 0 && left > 0 {
            return None;
        }
        if self.fault.is_none() {
            self.data.extend_from_slice(&input[..used]);
        }
        let mut step = Step { used, ..Step::default() };
        if used < left {
            self.state = State::Chunk { left: left - used, last };
        } else {
            self.state = State::Command;
            if last {
                step.mail = self.end_of_text(output);
            } else {
                let answer = self.fault.unwrap_or("250 2.0.0 go on");
                say(output, answer);
            }
        }
        Some(step)
    }

    fn end_of_text(&mut self, output: &mut Vec<u8>) -> Option<Mail> {
        let fault = self.fault.take();
        let (from, to) = (self.from.take(), std::mem::take(&mut self.to));
        let data = std::mem::take(&mut self.data);
        match (fault, from) {
            (None, Some(from)) => {
                say(output, "250 2.0.0 kept");
                Some(Mail { from, to, data: data.into() })
            }
            (fault, _) => {
                say(output, fault.unwrap_or("503 5.5.1 MAIL first"));
                None
            }
        }
    }

    fn reset(&mut self) {
        self.from = None;
        self.to.clear();
        self.data.clear();
        self.fault = None;
    }

    fn command(&mut self, line: &str, output: &mut Vec<u8>) -> Step {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" | "LHLO" if rest.is_empty() => say(output, "501 5.5.4 EHLO needs a name"),
            "EHLO" => {
                self.reset();
                self.greeted = true;
                let size = self.max_octets;
                let lines = format!(
                    "250-herald mailbox\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n\
                     250-SIZE {size}\r\n250 ENHANCEDSTATUSCODES"
                );
                say(output, &lines)
            }
            "HELO" => {
                self.reset();
                self.greeted = true;
                say(output, "250 herald mailbox")
            }
            "MAIL" => self.mail(rest, output),
            "RCPT" => self.rcpt(rest, output),
            "DATA" if self.to.is_empty() => say(output, "503 5.5.1 RCPT first"),
            "DATA" => {
                self.state = State::Text;
                say(output, "354 end with a dot")
            }
            "BDAT" => self.bdat(rest, output),
            "RSET" => {
                self.reset();
                say(output, "250 2.0.0 ok")
            }
            "NOOP" => say(output, "250 2.0.0 ok"),
            "VRFY" => say(output, "252 2.5.0 send it and see"),
            "HELP" => say(output, "214 2.0.0 this mailbox keeps mail and sends none on"),
            "QUIT" => {
                say(output, "221 2.0.0 bye");
                Step { quit: true, ..Step::default() }
            }
            _ => say(output, "500 5.5.1 unknown command"),
        }
    }

    fn mail(&mut self, rest: &str, output: &mut Vec<u8>) -> Step {
        if !self.greeted {
            return say(output, "503 5.5.1 EHLO first");
        }
        if self.from.is_some() {
            return say(output, "503 5.5.1 nested MAIL");
        }
        let Some((path, parameters)) = path(rest, "FROM:") else { return say(output, "501 5.5.4 MAIL FROM:<address>") };
        for parameter in parameters.split_ascii_whitespace() {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match name.to_ascii_uppercase().as_str() {
                "SIZE" => match value.parse::<usize>() {
                    Ok(size) if size <= self.max_octets => {}
                    Ok(_) => return say(output, "552 5.3.4 message too big"),
                    Err(_) => return say(output, "501 5.5.4 SIZE needs a number"),
                },
                "BODY" if matches!(value.to_ascii_uppercase().as_str(), "7BIT" | "8BITMIME") => {}
                "SMTPUTF8" if value.is_empty() => {}
                _ => return say(output, "555 5.5.4 parameter not known"),
            }
        }
        self.from = Some(path.to_owned());
        say(output, "250 2.1.0 ok")
    }

    fn rcpt(&mut self, rest: &str, output: &mut Vec<u8>) -> Step {
        match path(rest, "TO:") {
            _ if self.from.is_none() => say(output, "503 5.5.1 MAIL first"),
            None | Some(("", _)) => say(output, "501 5.5.4 RCPT TO:<address>"),
            Some(_) if self.to.len() >= MAX_RECIPIENTS => say(output, "452 4.5.3 too many recipients"),
            Some((path, _)) => {
                self.to.push(path.to_owned());
                say(output, "250 2.1.5 ok")
            }
        }
    }

    fn bdat(&mut self, rest: &str, output: &mut Vec<u8>) -> Step {
        let mut words = rest.split_ascii_whitespace();
        let Some(size) = words.next().and_then(|n| n.parse::<usize>().ok()) else {
            return say(output, "501 5.5.4 BDAT needs a size");
        };
        let last = words.next().is_some_and(|word| word.eq_ignore_ascii_case("LAST"));
        if self.to.is_empty() {
            self.fault = Some("503 5.5.1 RCPT first");
        } else if self.data.len().saturating_add(size) > self.max_octets {
            self.fault = Some("552 5.3.4 message too big");
        }
        self.state = State::Chunk { left: size, last };
        Step::default()
    }
}

/// The path in angle brackets after `keyword`, and the parameters behind it.
fn path<'a>(rest: &'a str, keyword: &str) -> Option<(&'a str, &'a str)> {
    let head = rest.get(..keyword.len())?;
    if !head.eq_ignore_ascii_case(keyword) {
        return None;
    }
    let (path, parameters) = rest[keyword.len()..].trim_start().strip_prefix('<')?.split_once('>')?;
    (!path.contains(char::is_control)).then_some((path, parameters))
}

fn say(output: &mut Vec<u8>, answer: &str) -> Step {
    output.extend_from_slice(answer.as_bytes());
    output.extend_from_slice(b"\r\n");
    Step::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `input` in pieces of `piece` octets; returns the codes of the answers and the mails.
    fn feed(input: &[u8], piece: usize, max_octets: usize) -> (Vec<String>, Vec<Mail>) {
        let (mut dialogue, mut output, mut mails) = (Dialogue::new(max_octets), Vec::new(), Vec::new());
        let mut pending = Vec::new();
        for chunk in input.chunks(piece) {
            pending.extend_from_slice(chunk);
            while let Some(step) = dialogue.step(&pending, &mut output) {
                pending.drain(..step.used);
                mails.extend(step.mail);
            }
        }
        let answers = String::from_utf8(output).unwrap();
        let codes = answers.lines().filter(|l| l.as_bytes()[3] == b' ').map(|l| l[..3].to_owned()).collect();
        (codes, mails)
    }

    const SESSION: &[u8] = b"EHLO x\r\nMAIL FROM:<a@x> SIZE=9 BODY=8BITMIME SMTPUTF8\r\nRCPT TO:<b@x>\r\nDATA\r\n..a\r\n\
        b\r\n.\r\nRSET\r\nMAIL FROM:<>\r\nRCPT TO:<c@x>\r\nRCPT TO:<d@x>\r\nBDAT 3\r\nx\r\nBDAT 4 LAST\r\n.\r\n\nNOOP\r\n";

    #[test]
    fn the_way_input_is_cut_does_not_matter() {
        for piece in 1..SESSION.len() {
            let (codes, mails) = feed(SESSION, piece, 1_000);
            let expected = ["250", "250", "250", "354", "250", "250", "250", "250", "250", "250", "250", "250"];
            assert_eq!(codes, expected, "pieces of {piece}");
            let first = Mail { from: "a@x".into(), to: vec!["b@x".into()], data: ".a\r\nb\r\n".into() };
            let second = Mail { from: "".into(), to: vec!["c@x".into(), "d@x".into()], data: "x\r\n.\r\n\n".into() };
            assert_eq!(mails, [first, second], "pieces of {piece}");
        }
    }

    #[test]
    fn limits_refuse_the_mail_and_the_session_goes_on() {
        // The end of the long line looks like the final dot when the line is cut there.
        let long = format!("{}.", "x".repeat(1_001));
        let text =
            |body: &str| format!("EHLO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n{body}\r\n.\r\nNOOP\r\n");
        for (body, code) in [(long.as_str(), "500"), ("a\nb", "554"), (&"abc\r\n".repeat(300), "552"), ("a\rb", "554")]
        {
            for piece in [1, 7, 1_001, 4_096] {
                let (codes, mails) = feed(text(body).as_bytes(), piece, 1_200);
                assert_eq!(codes, ["250", "250", "250", "354", code, "250"], "{:.20?}", body);
                assert!(mails.is_empty());
            }
        }
        let (codes, mails) =
            feed(b"EHLO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nBDAT 9 LAST\r\n123456789NOOP\r\n", 3, 8);
        assert_eq!((codes.join(" ").as_str(), mails.len()), ("250 250 250 552 250", 0));
        let (codes, _) = feed(format!("{}\r\nNOOP\r\n", "x".repeat(5_000)).as_bytes(), 100, 8);
        assert_eq!(codes, ["500", "250"]);
    }

    #[test]
    fn commands_out_of_order_are_refused() {
        let session = b"MAIL FROM:<a@x>\r\nEHLO x\r\nRCPT TO:<b@x>\r\nDATA\r\nBDAT 2 LAST\r\nabMAIL FROM:<a@x\r\n\
            MAIL FROM:<a@x> SIZE=9999\r\nMAIL FROM:<a@x>\r\nMAIL FROM:<b@x>\r\nFOO\r\nQUIT\r\n";
        let (codes, mails) = feed(session, 5, 1_000);
        assert_eq!(codes.join(" "), "503 250 503 503 503 501 552 250 503 500 221");
        assert!(mails.is_empty());
    }
}
