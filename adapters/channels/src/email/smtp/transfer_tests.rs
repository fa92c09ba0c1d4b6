use std::time::Instant;

use super::*;
use crate::email::smtp::reply;

fn mail(token: u64, data: &str) -> OutgoingMail {
    let address = |text| Address::parse(text).unwrap();
    OutgoingMail {
        token,
        mail_from: address("from@x.example"),
        rcpt_to: address("to@x.example"),
        data: data.to_owned().into(),
    }
}

/// A transfer that is fed answers as text and whose queued commands are read as text.
struct Harness {
    transfer: Transfer,
    out: Outbox,
    events: Vec<Event>,
}

impl Harness {
    fn new(mode: Mode) -> Self {
        Self { transfer: Transfer::new(mode, &Extensions::default()), out: Outbox::default(), events: Vec::new() }
    }

    fn start(&mut self, token: u64, data: &str) {
        let needs = Needs { eight_bit: false, smtputf8: false };
        self.transfer.start(mail(token, data), needs, Instant::now(), &mut self.out);
    }

    /// What would be written now, as if the socket took it all.
    fn written(&mut self) -> String {
        let text = String::from_utf8(self.out.pending().to_vec()).unwrap();
        self.out.advance(text.len());
        text
    }

    fn answer(&mut self, answers: &[&str]) -> Vec<Event> {
        for answer in answers {
            let bytes = format!("{answer}\r\n");
            let (reply, _) = reply::parse(bytes.as_bytes()).unwrap().unwrap();
            match self.transfer.on_reply(&reply, &mut self.out) {
                Event::Pending => {}
                Event::TextWanted { .. } => self.transfer.send_text(&mut self.out),
                event => self.events.push(event),
            }
        }
        std::mem::take(&mut self.events)
    }
}

fn accepted(token: u64) -> Event {
    Event::Finished { token, outcome: Outcome::Accepted { provider_id: "ok".into() }, closing: false }
}

fn code(event: &Event) -> (u64, &str, bool) {
    match event {
        Event::Finished { token, outcome, closing } => (*token, &outcome.cause().unwrap().code, *closing),
        other => panic!("{other:?}"),
    }
}

const ENVELOPE: &str = "MAIL FROM:<from@x.example>\r\nRCPT TO:<to@x.example>\r\n";

#[test]
fn the_next_envelope_travels_with_this_text() {
    let mut h = Harness::new(Mode::Pipelined);
    h.start(1, "A\r\n");
    assert!(!h.transfer.can_start(), "DATA must be the last of its group");
    assert_eq!(h.written(), format!("{ENVELOPE}DATA\r\n"));
    assert_eq!(h.answer(&["250 ok", "250 ok", "354 go"]), []);
    assert!(h.transfer.can_start());
    h.start(2, "B\r\n");
    assert!(!h.transfer.can_start());
    assert_eq!(h.written(), format!("A\r\n.\r\n{ENVELOPE}DATA\r\n"));
    assert_eq!(h.answer(&["250 ok", "250 ok", "250 ok", "354 go"]), [accepted(1)]);
    assert_eq!(h.written(), "B\r\n.\r\n");
    assert_eq!(h.answer(&["250 ok"]), [accepted(2)]);
}

#[test]
fn lockstep_waits_for_each_answer_and_resets_after_a_refusal() {
    let mut h = Harness::new(Mode::Lockstep);
    h.start(1, "A\r\n");
    assert_eq!(h.written(), "MAIL FROM:<from@x.example>\r\n");
    h.answer(&["250 ok"]);
    assert_eq!(h.written(), "RCPT TO:<to@x.example>\r\n");
    let events = h.answer(&["550 5.1.1 gone"]);
    assert_eq!(code(&events[0]), (1, "smtp.550.5.1.1", false));
    h.start(2, "B\r\n");
    assert_eq!(h.written(), "RSET\r\n");
    h.answer(&["250 ok"]);
    assert_eq!(h.written(), "MAIL FROM:<from@x.example>\r\n");
    h.answer(&["250 ok", "250 ok"]);
    assert_eq!(h.written(), "RCPT TO:<to@x.example>\r\nDATA\r\n");
    h.answer(&["354 go"]);
    assert_eq!(h.written(), "B\r\n.\r\n");
    assert_eq!(h.answer(&["250 ok"]), [accepted(2)]);
}

#[test]
fn chunks_of_many_messages_follow_each_other() {
    let mut h = Harness::new(Mode::Chunked { window: 2 });
    h.start(1, ".A\r\n");
    h.start(2, "B\r\n");
    assert!(!h.transfer.can_start());
    let expected = format!("RSET\r\n{ENVELOPE}BDAT 4 LAST\r\n.A\r\nRSET\r\n{ENVELOPE}BDAT 3 LAST\r\nB\r\n");
    assert_eq!(h.written(), expected);
    // The first recipient is refused: the rest of its answers follow from that and do not count.
    let events = h.answer(&["250 ok", "250 ok", "550 5.1.1 gone", "503 no rcpt", "250 ok", "250 ok", "250 ok"]);
    assert_eq!(code(&events[0]), (1, "smtp.550.5.1.1", false));
    assert_eq!(h.answer(&["250 ok"]), [accepted(2)]);
}

#[test]
fn a_refused_recipient_never_gets_its_text() {
    let mut h = Harness::new(Mode::Pipelined);
    h.start(1, "A\r\n");
    h.written();
    let events = h.answer(&["250 ok", "450 4.2.1 later", "503 5.5.1 no recipient"]);
    assert_eq!(code(&events[0]), (1, "smtp.450.4.2.1", false));
    h.start(2, "B\r\n");
    assert_eq!(h.written(), format!("RSET\r\n{ENVELOPE}DATA\r\n"));
    // A server may say 354 all the same; then the text is empty, and the refusal stands whatever it says of that.
    let events = h.answer(&["250 ok", "250 ok", "550 5.7.1 no", "354 go"]);
    assert_eq!(events, []);
    assert_eq!(h.written(), ".\r\n");
    let events = h.answer(&["250 taken"]);
    assert_eq!(code(&events[0]), (2, "smtp.550.5.7.1", false));
}

#[test]
fn what_is_in_doubt_is_told_apart() {
    let start = || {
        let mut h = Harness::new(Mode::Chunked { window: 9 });
        for token in 1..=3 {
            h.start(token, "text\r\n");
        }
        let total = h.out.pending().len();
        (h, total)
    };
    // The last octet of the third message was not written.
    let (mut h, total) = start();
    h.out.advance(total - 1);
    let abandoned = h.transfer.abandon(&h.out, false);
    assert_eq!(abandoned.in_doubt, [1, 2]);
    assert_eq!(abandoned.unsent.iter().map(|m| m.token).collect::<Vec<_>>(), [3]);
    // All was written, yet the server closed the channel at the first message: RFC 5321 lets it do nothing more.
    let (mut h, total) = start();
    h.out.advance(total);
    let events = h.answer(&["250 ok", "421 4.3.2 closing"]);
    assert_eq!(code(&events[0]), (1, "smtp.421.4.3.2", true));
    let abandoned = h.transfer.abandon(&h.out, true);
    assert_eq!((abandoned.in_doubt.len(), abandoned.unsent.len()), (0, 2));
    // Without PIPELINING's help: the text was not even asked for.
    let mut h = Harness::new(Mode::Lockstep);
    h.start(1, "A\r\n");
    h.written();
    let abandoned = h.transfer.abandon(&h.out, false);
    assert_eq!((abandoned.in_doubt.len(), abandoned.unsent.len()), (0, 1));
}

#[test]
fn dots_at_the_start_of_lines_are_doubled() {
    let stuffed = |text: &str| {
        let mut out = Vec::new();
        write_dot_stuffed(text.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(stuffed(".\r\n..\r\na.b\r\n.\r\n"), "..\r\n...\r\na.b\r\n..\r\n.\r\n");
    assert_eq!(stuffed("a\r\n"), "a\r\n.\r\n");
}

#[test]
fn preflight_refuses_what_the_server_cannot_take() {
    let offered = Extensions { size: Some(Some(1_100)), ..Extensions::default() };
    let refusal = |data: &str| match preflight(&mail(1, data), &offered) {
        Ok(_) => String::new(),
        Err(outcome) => outcome.cause().unwrap().code.clone(),
    };
    assert_eq!(refusal(&format!("{}\r\n", "x".repeat(998))), "");
    assert_eq!(refusal(&format!("{}\r\n", "x".repeat(999))), "smtp.line_length");
    assert_eq!(refusal(&"xx\r\n".repeat(300)), "smtp.size");
    assert_eq!(refusal("S: x\r\n\r\nü\r\n"), "smtp.8bitmime");
    for data in ["a\nb\r\n", "a\rb\r\n", "a\r\n.\n\r\n", "a\r\r\n", "a", "a\r", ""] {
        assert_eq!(refusal(data), "smtp.newline", "{data:?}");
    }
    let mut to_utf8 = mail(1, "a\r\n");
    to_utf8.rcpt_to = Address::parse("jürgen@x.example").unwrap();
    assert_eq!(preflight(&to_utf8, &offered).unwrap_err().cause().unwrap().code, "smtp.smtputf8");
    let all = Extensions { eight_bit: true, smtputf8: true, ..offered };
    assert_eq!(preflight(&to_utf8, &all), Ok(Needs { eight_bit: false, smtputf8: true }));
    assert_eq!(preflight(&mail(1, "S: x\r\n\r\nü\r\n"), &all), Ok(Needs { eight_bit: true, smtputf8: false }));
    assert_eq!(preflight(&mail(1, "S: ü\r\n\r\nx\r\n"), &all), Ok(Needs { eight_bit: true, smtputf8: true }));
}
