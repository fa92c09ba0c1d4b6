//! The order of commands and answers on one connection, as a state machine without IO.
//!
//! Three ways to send, chosen by what the server offers:
//! - `Lockstep`: every command waits for the answer to the one before.
//! - `Pipelined` (PIPELINING): MAIL, RCPT and DATA in one group, and the group of the next message together with the
//!   text of this one, which RFC 2920, section 3.1, allows. DATA must end a group, so it is one message per round trip.
//! - `Chunked` (PIPELINING and CHUNKING): RSET, MAIL, RCPT and BDAT LAST of many messages follow each other without
//!   waiting. RFC 3030 leaves the state after a failed BDAT open and asks for RSET, which is why each message has one.

use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

use bytes::Bytes;

use super::extensions::Extensions;
use super::reply::Reply;
use crate::email::address::Address;
use crate::email::outcome::{Cause, Outcome, Stage, cause, classify};

/// One message to one recipient. Its debug output shows no person and no text.
#[derive(Clone)]
pub struct OutgoingMail {
    /// The caller's name for it; outcomes refer to it.
    pub token: u64,
    /// The envelope's return path.
    pub mail_from: Address,
    /// The envelope's recipient.
    pub rcpt_to: Address,
    /// The message (RFC 5322): lines of at most 998 octets, each ended by CRLF, the last one too; not dot-stuffed.
    pub data: Bytes,
}

impl fmt::Debug for OutgoingMail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, mail_from, rcpt_to, data } = self;
        write!(f, "OutgoingMail({token}, {mail_from:?} to {rcpt_to:?}, {} octets)", data.len())
    }
}

/// How messages follow each other on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Lockstep,
    Pipelined,
    Chunked { window: usize },
}

/// A buffer that is never wholly written is moved to its start when this much of it is.
const COMPACT_OCTETS: usize = 256 * 1_024;

/// Octets on their way to the socket, counted from the connection's start.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub buffer: Vec<u8>,
    pub taken: usize,
    base: u64,
}

impl Outbox {
    /// What is still to be written.
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.taken..]
    }

    /// Notes that the socket took `count` octets.
    pub fn advance(&mut self, count: usize) {
        self.taken += count;
        if self.taken == self.buffer.len() {
            self.base += self.taken as u64;
            self.taken = 0;
            self.buffer.clear();
        } else if self.taken >= COMPACT_OCTETS {
            self.base += self.taken as u64;
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
    }

    fn queued_total(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    fn written_total(&self) -> u64 {
        self.base + self.taken as u64
    }
}

/// What a message needs from the server, found by [`preflight`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    eight_bit: bool,
    smtputf8: bool,
}

/// What an answer led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// More answers to come.
    Pending,
    /// The server waits for the text of this message: call [`Transfer::send_text`], or give the connection up.
    TextWanted { asked: Instant, token: u64 },
    /// A message has its outcome. `closing`: the server closes the connection and does nothing more on it.
    Finished { token: u64, outcome: Outcome, closing: bool },
    /// The server closes the connection or says what nobody asked for.
    Closing(Cause),
}

struct InFlight {
    mail: OutgoingMail,
    needs: Needs,
    /// When the gate let it pass.
    asked: Instant,
    step: Step,
    /// The first refusal; later answers follow from it.
    refused: Option<Outcome>,
    /// The count of octets at which all of its text is written.
    text_end: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Rset,
    Mail,
    Rcpt,
    Data,
    Body,
}

/// The messages in flight on one connection, in the order of their answers.
pub(crate) struct Transfer {
    mode: Mode,
    offers_size: bool,
    in_flight: VecDeque<InFlight>,
    reset_first: bool,
}

impl Transfer {
    pub fn new(mode: Mode, extensions: &Extensions) -> Self {
        let offers_size = extensions.size.is_some();
        Self { mode, offers_size, in_flight: VecDeque::new(), reset_first: false }
    }

    /// Whether another message may be begun now.
    pub fn can_start(&self) -> bool {
        match self.mode {
            Mode::Lockstep => self.in_flight.is_empty(),
            Mode::Pipelined => match self.in_flight.len() {
                0 => true,
                1 => self.in_flight.front().is_some_and(|m| m.step == Step::Body),
                _ => false,
            },
            Mode::Chunked { window } => self.in_flight.len() < window,
        }
    }

    /// Queues the first commands of a message: all of it when chunked.
    pub fn start(&mut self, mail: OutgoingMail, needs: Needs, asked: Instant, out: &mut Outbox) {
        let chunked = matches!(self.mode, Mode::Chunked { .. });
        let reset = chunked || std::mem::take(&mut self.reset_first);
        let buffer = &mut out.buffer;
        if reset {
            buffer.extend_from_slice(b"RSET\r\n");
        }
        let step = if reset { Step::Rset } else { Step::Mail };
        let mut message = InFlight { mail, needs, asked, step, refused: None, text_end: None };
        match self.mode {
            Mode::Lockstep if reset => {}
            Mode::Lockstep => self.write_mail(&message, buffer),
            Mode::Pipelined => {
                self.write_mail(&message, buffer);
                write_rcpt(&message, buffer);
                buffer.extend_from_slice(b"DATA\r\n");
            }
            Mode::Chunked { .. } => {
                self.write_mail(&message, buffer);
                write_rcpt(&message, buffer);
                buffer.extend_from_slice(format!("BDAT {} LAST\r\n", message.mail.data.len()).as_bytes());
                buffer.extend_from_slice(&message.mail.data);
                message.text_end = Some(out.queued_total());
            }
        }
        self.in_flight.push_back(message);
    }

    /// What the next answer will be about.
    pub fn expected(&self) -> Option<Stage> {
        self.in_flight.front().map(|message| match message.step {
            Step::Rset | Step::Mail => Stage::Mail,
            Step::Rcpt => Stage::Rcpt,
            Step::Data => Stage::Data,
            Step::Body => Stage::Body,
        })
    }

    /// Takes the next answer.
    pub fn on_reply(&mut self, reply: &Reply<'_>, out: &mut Outbox) -> Event {
        let Some(stage) = self.expected() else { return Event::Closing(cause(reply)) };
        let Some(message) = self.in_flight.front_mut() else { return Event::Closing(cause(reply)) };
        if reply.code == 421 {
            let outcome = message.refused.take().unwrap_or_else(|| classify(stage, reply));
            return self.finish(outcome, true);
        }
        let good = if message.step == Step::Data { reply.code == 354 } else { reply.is_positive() };
        if !good && message.refused.is_none() {
            message.refused = Some(classify(stage, reply));
        }
        match message.step {
            // In lockstep a refusal ends the message at once; otherwise the answers of its group are still to come.
            Step::Rset | Step::Mail | Step::Rcpt if !good && self.mode == Mode::Lockstep => self.give_up(),
            Step::Rset => self.next(Step::Mail, out),
            Step::Mail => self.next(Step::Rcpt, out),
            Step::Rcpt if matches!(self.mode, Mode::Chunked { .. }) => self.next(Step::Body, out),
            Step::Rcpt => self.next(Step::Data, out),
            Step::Data if !good => self.give_up(),
            Step::Data if message.refused.is_some() => {
                // The server accepted DATA without a recipient: RFC 2920, section 3.1, asks for an empty text.
                out.buffer.extend_from_slice(b".\r\n");
                message.step = Step::Body;
                Event::Pending
            }
            Step::Data => Event::TextWanted { asked: message.asked, token: message.mail.token },
            Step::Body => {
                let refused = message.refused.take();
                let outcome = refused.unwrap_or_else(|| Outcome::Accepted { provider_id: reply.text() });
                self.finish(outcome, false)
            }
        }
    }

    /// Queues the text of the message that [`Event::TextWanted`] named.
    pub fn send_text(&mut self, out: &mut Outbox) {
        if let Some(message) = self.in_flight.front_mut() {
            write_dot_stuffed(&message.mail.data, &mut out.buffer);
            message.step = Step::Body;
            message.text_end = Some(out.queued_total());
        }
    }

    /// Takes the message that [`Event::TextWanted`] named back; the connection is of no use after that.
    pub fn withdraw(&mut self) {
        self.in_flight.pop_front();
    }

    /// The connection is gone. Messages whose text was wholly written may have arrived, unless the server said that it
    /// does nothing more (`closing`); the others certainly did not. Returns (in doubt, refused, to be sent again).
    pub fn abandon(self, out: &Outbox, closing: bool) -> Abandoned {
        let mut abandoned = Abandoned::default();
        for message in self.in_flight {
            let written = message.text_end.is_some_and(|end| out.written_total() >= end);
            match message.refused {
                Some(outcome) => abandoned.refused.push((message.mail.token, outcome)),
                None if written && !closing => abandoned.in_doubt.push(message.mail.token),
                None => abandoned.unsent.push(message.mail),
            }
        }
        abandoned
    }

    fn next(&mut self, step: Step, out: &mut Outbox) -> Event {
        let lockstep = self.mode == Mode::Lockstep;
        if let Some(message) = self.in_flight.front_mut() {
            message.step = step;
        }
        if let (true, Some(message)) = (lockstep, self.in_flight.front()) {
            match step {
                Step::Mail => self.write_mail(message, &mut out.buffer),
                Step::Rcpt => write_rcpt(message, &mut out.buffer),
                Step::Data => out.buffer.extend_from_slice(b"DATA\r\n"),
                Step::Rset | Step::Body => {}
            }
        }
        Event::Pending
    }

    /// Ends a refused message before its text; its transaction may still be open.
    fn give_up(&mut self) -> Event {
        self.reset_first = true;
        let refused = self.in_flight.front_mut().and_then(|m| m.refused.take());
        let outcome = refused.unwrap_or_else(|| Outcome::NotAttempted { cause: Cause::own("lost", "given up") });
        self.finish(outcome, false)
    }

    fn finish(&mut self, outcome: Outcome, closing: bool) -> Event {
        match self.in_flight.pop_front() {
            Some(message) => Event::Finished { token: message.mail.token, outcome, closing },
            None => Event::Pending,
        }
    }

    fn write_mail(&self, message: &InFlight, buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(b"MAIL FROM:<");
        buffer.extend_from_slice(message.mail.mail_from.as_str().as_bytes());
        buffer.push(b'>');
        if self.offers_size {
            buffer.extend_from_slice(format!(" SIZE={}", message.mail.data.len()).as_bytes());
        }
        if message.needs.eight_bit {
            buffer.extend_from_slice(b" BODY=8BITMIME");
        }
        if message.needs.smtputf8 {
            buffer.extend_from_slice(b" SMTPUTF8");
        }
        buffer.extend_from_slice(b"\r\n");
    }
}

/// What [`Transfer::abandon`] found.
#[derive(Debug, Default)]
pub(crate) struct Abandoned {
    /// Wholly written, unanswered.
    pub in_doubt: Vec<u64>,
    /// Already refused.
    pub refused: Vec<(u64, Outcome)>,
    /// Certainly not handed over.
    pub unsent: Vec<OutgoingMail>,
}

fn write_rcpt(message: &InFlight, buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(b"RCPT TO:<");
    buffer.extend_from_slice(message.mail.rcpt_to.as_str().as_bytes());
    buffer.extend_from_slice(b">\r\n");
}

fn write_dot_stuffed(data: &[u8], buffer: &mut Vec<u8>) {
    buffer.reserve(data.len() + 16);
    let mut start = 0;
    if data.first() == Some(&b'.') {
        buffer.push(b'.');
    }
    for found in memchr::memmem::find_iter(data, b"\r\n.") {
        buffer.extend_from_slice(&data[start..found + 2]);
        buffer.push(b'.');
        start = found + 2;
    }
    buffer.extend_from_slice(&data[start..]);
    buffer.extend_from_slice(b".\r\n");
}

/// Looks a message over before any of it is sent.
///
/// Refused as `Rejected` is what the server said it cannot take (size, 8-bit text, SMTPUTF8), what is no valid text
/// (lines over 998 octets), and CR or LF apart, with which one message could smuggle another past a careless server.
pub(crate) fn preflight(mail: &OutgoingMail, offered: &Extensions) -> Result<Needs, Outcome> {
    let refuse = |word: &str, text: &str| Err(Outcome::Rejected { cause: Cause::own(word, text) });
    if let Some(Some(limit)) = offered.size
        && mail.data.len() as u64 > limit
    {
        return refuse("size", &format!("the message has {} octets, the server takes {limit}", mail.data.len()));
    }
    let eight_bit = !mail.data.is_ascii();
    if eight_bit && !offered.eight_bit {
        return refuse("8bitmime", "the message has 8-bit text, which the server does not take");
    }
    let utf8_address = mail.mail_from.needs_smtputf8() || mail.rcpt_to.needs_smtputf8();
    let smtputf8 = utf8_address || (eight_bit && !header_of(&mail.data).is_ascii());
    if smtputf8 && !offered.smtputf8 {
        return refuse("smtputf8", "a non-ASCII address or header needs SMTPUTF8, which the server does not offer");
    }
    let mut line_start = 0;
    let mut newlines = memchr::memchr2_iter(b'\r', b'\n', &mail.data);
    while let Some(at) = newlines.next() {
        if mail.data[at] != b'\r' || newlines.next() != Some(at + 1) || mail.data[at + 1] != b'\n' {
            return refuse("newline", "the message has a CR or LF by itself");
        }
        if at - line_start > 998 {
            return refuse("line_length", "the message has a line of more than 998 octets");
        }
        line_start = at + 2;
    }
    if line_start != mail.data.len() || mail.data.is_empty() {
        return refuse("newline", "the message does not end with CRLF");
    }
    Ok(Needs { eight_bit, smtputf8 })
}

fn header_of(data: &[u8]) -> &[u8] {
    memchr::memmem::find(data, b"\r\n\r\n").map_or(data, |end| &data[..end])
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
