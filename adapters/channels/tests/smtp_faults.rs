//! The client against servers that misbehave.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use support::Do::{Dribble, Octets, Read, Say, Stall, Text};
use support::{Do, briefs, client, mails, scripted, send};

const HELLO: [Do; 3] = [Say("220 hi"), Read("EHLO"), Say("250-hi\r\n250-ENHANCEDSTATUSCODES\r\n250 PIPELINING")];
const PLAIN_HELLO: [Do; 3] = [Say("220 hi"), Read("EHLO"), Say("250 hi")];
const CHUNKED_HELLO: [Do; 3] = [Say("220 hi"), Read("EHLO"), Say("250-hi\r\n250-CHUNKING\r\n250 PIPELINING")];
const ENVELOPE: [Do; 3] = [Read("MAIL"), Read("RCPT"), Read("DATA")];
const ENVELOPE_OK: [Do; 3] = [Say("250 ok"), Say("250 ok"), Say("354 go")];

fn script(parts: &[&[Do]]) -> Vec<Do> {
    parts.concat()
}

/// Plays the scripts against a client that sends messages 1 to `count`.
async fn play(scripts: Vec<Vec<Do>>, count: u64) -> Vec<String> {
    let (addr, played) = scripted(scripts).await;
    let client = client(addr, "?tls=off", |_| {});
    let outcomes = send(&client, mails(count)).await;
    drop(client);
    played.await.unwrap();
    briefs(&outcomes)
}

#[tokio::test]
async fn one_refused_recipient_does_not_touch_its_neighbours() {
    let refused = [Say("250 ok"), Say("450 4.2.1 busy"), Say("503 5.5.1 no recipient")];
    let server = script(&[
        &HELLO,
        &ENVELOPE,
        &ENVELOPE_OK,
        &[Text],
        &ENVELOPE,
        &[Say("250 ok")],
        &refused,
        &[Read("RSET")],
        &ENVELOPE,
        &[Say("250 ok")],
        &ENVELOPE_OK,
        &[Text, Say("250 ok")],
    ]);
    assert_eq!(play(vec![server], 3).await, ["accepted", "retry smtp.450.4.2.1", "accepted"]);
}

#[tokio::test]
async fn a_connection_lost_before_the_dot_is_safe_to_try_again_and_after_it_is_unknown() {
    let before = script(&[&HELLO, &ENVELOPE, &[Say("250 ok"), Say("250 ok")]]);
    assert_eq!(play(vec![before], 1).await, ["not-attempted smtp.lost"]);
    let after = script(&[&HELLO, &ENVELOPE, &ENVELOPE_OK, &[Text]]);
    // The second message's envelope was sent with the first one's text; nothing of its text was.
    assert_eq!(play(vec![after], 2).await, ["unknown smtp.lost", "not-attempted smtp.lost"]);
}

#[tokio::test]
async fn after_progress_a_lost_connection_is_replaced() {
    let one = script(&[&HELLO, &ENVELOPE, &ENVELOPE_OK, &[Text, Say("250 ok")], &ENVELOPE]);
    let two = script(&[&HELLO, &ENVELOPE, &ENVELOPE_OK, &[Text, Say("250 ok")]]);
    assert_eq!(play(vec![one, two], 2).await, ["accepted", "accepted"]);
}

#[tokio::test]
async fn a_421_in_the_middle_loses_nothing() {
    let busy = Say("421 4.3.2 enough for today");
    let one = script(&[&HELLO, &ENVELOPE, &ENVELOPE_OK, &[Text], &ENVELOPE, &[Say("250 ok"), busy]]);
    let two = script(&[&HELLO, &ENVELOPE, &ENVELOPE_OK, &[Text, Say("250 ok")]]);
    assert_eq!(play(vec![one, two], 3).await, ["accepted", "retry smtp.421.4.3.2", "accepted"]);
    // As the first thing said it stops the batch.
    assert_eq!(play(vec![vec![busy]], 2).await, ["not-attempted smtp.421.4.3.2"; 2]);
    let at_mail = script(&[&HELLO, &ENVELOPE, &[busy]]);
    assert_eq!(play(vec![at_mail], 2).await, ["retry smtp.421.4.3.2", "not-attempted smtp.421.4.3.2"]);
}

#[tokio::test]
async fn in_chunks_421_and_loss_are_told_apart() {
    let command = |n: usize| support::mail(n as u64).data.len();
    let message = |n: usize| [Read("RSET"), Read("MAIL"), Read("RCPT"), Read("BDAT"), Octets(command(n))];
    let ok = [Say("250 ok"); 4];
    let sent = script(&[&CHUNKED_HELLO, &message(1), &message(2), &message(3)]);
    let lost = script(&[&sent, &ok]);
    assert_eq!(play(vec![lost], 3).await, ["accepted", "unknown smtp.lost", "unknown smtp.lost"]);
    let closing = script(&[&sent, &ok, &[Say("421 bye")]]);
    let again = script(&[&CHUNKED_HELLO, &message(3), &ok]);
    assert_eq!(play(vec![closing, again], 3).await, ["accepted", "retry smtp.421", "accepted"]);
}

#[tokio::test]
async fn answers_may_come_octet_by_octet() {
    let server = [
        Dribble("220-hello\r\n220 there"),
        Read("EHLO"),
        Dribble("250-hi\r\n250 PIPELINING"),
        Read("MAIL"),
        Read("RCPT"),
        Read("DATA"),
        Dribble("250 ok\r\n250-first\r\n250 ok\r\n354 go"),
        Text,
        Dribble("250 2.0.0 queued as 7"),
    ];
    assert_eq!(play(vec![server.to_vec()], 1).await, ["accepted"]);
}

#[tokio::test]
async fn without_pipelining_each_command_waits() {
    // The script would fail on commands that come early only if it read ahead; the transfer's own tests prove that they
    // do not. This proves that the dialogue as a whole works, HELO included.
    let server = [
        Say("220 hi"),
        Read("EHLO"),
        Say("502 what"),
        Read("HELO"),
        Say("250 hi"),
        Read("MAIL"),
        Say("250 ok"),
        Read("RCPT"),
        Say("550 5.1.1 no such user"),
        Read("RSET"),
        Say("250 ok"),
        Read("MAIL"),
        Say("250 ok"),
        Read("RCPT"),
        Say("250 ok"),
        Read("DATA"),
        Say("354 go"),
        Text,
        Say("250 ok"),
    ];
    assert_eq!(play(vec![server.to_vec()], 2).await, ["bad smtp.550.5.1.1", "accepted"]);
}

#[tokio::test]
async fn a_silent_server_runs_into_the_timeout_of_its_stage() {
    let stages: [(&[Do], &str); 5] = [
        (&[Stall], "not-attempted smtp.timeout.connect"),
        (&[Read("MAIL"), Stall], "not-attempted smtp.timeout.mail"),
        (&[Read("MAIL"), Say("250 ok"), Read("RCPT"), Stall], "not-attempted smtp.timeout.rcpt"),
        (
            &[Read("MAIL"), Say("250 ok"), Read("RCPT"), Say("250 ok"), Read("DATA"), Stall],
            "not-attempted smtp.timeout.data",
        ),
        (
            &[Read("MAIL"), Say("250 ok"), Read("RCPT"), Say("250 ok"), Read("DATA"), Say("354 go"), Text, Stall],
            "unknown smtp.timeout.body",
        ),
    ];
    for (index, (steps, expected)) in stages.into_iter().enumerate() {
        let hello: &[Do] = if index == 0 { &[] } else { &PLAIN_HELLO };
        let (addr, played) = scripted(vec![script(&[hello, steps])]).await;
        let client = client(addr, "?tls=off", |config| {
            config.timeouts = herald_channels::email::config::Timeouts::all(Duration::from_millis(150));
        });
        assert_eq!(briefs(&send(&client, mails(1)).await), [expected]);
        drop(client);
        played.await.unwrap();
    }
}

#[tokio::test]
async fn a_message_is_taken_back_when_the_gate_closes_while_it_waits() {
    // The server asks for the text of the second message; instead the client leaves, and comes back for the third.
    let one = script(&[&HELLO, &ENVELOPE, &ENVELOPE_OK, &[Text], &ENVELOPE, &[Say("250 ok")], &ENVELOPE_OK, &[Stall]]);
    let two = script(&[&HELLO, &ENVELOPE, &ENVELOPE_OK, &[Text, Say("250 ok")]]);
    let (addr, played) = scripted(vec![one, two]).await;
    let client = client(addr, "?tls=off", |config| config.gate_holds = Duration::ZERO);
    let asked = std::sync::Mutex::new(Vec::new());
    let gate = |token| {
        let mut asked = asked.lock().unwrap();
        asked.push(token);
        asked.iter().filter(|t| **t == token).count() < 2 || token != 2
    };
    let outcomes = std::sync::Mutex::new(std::collections::BTreeMap::new());
    let sink = |token, outcome| _ = outcomes.lock().unwrap().insert(token, outcome);
    client.send(mails(3), Some(&gate), &sink).await;
    drop(client);
    played.await.unwrap();
    assert_eq!(briefs(&outcomes.into_inner().unwrap()), ["accepted", "not-attempted smtp.gate", "accepted"]);
    assert_eq!(asked.into_inner().unwrap(), [1, 1, 2, 2, 3, 3]);
}

#[tokio::test]
async fn what_is_no_smtp_is_told_from_a_refusal() {
    assert_eq!(play(vec![vec![Say("SSH-2.0-x")]], 1).await, ["account smtp.protocol"]);
    assert_eq!(play(vec![vec![Say("554 5.7.1 no mail from you")]], 2).await, ["account smtp.554.5.7.1"; 2]);
    let nonsense = script(&[&HELLO, &ENVELOPE, &ENVELOPE_OK, &[Text, Say("what?")]]);
    assert_eq!(play(vec![nonsense], 1).await, ["unknown smtp.protocol"]);
}

#[tokio::test]
async fn credentials_are_used_and_their_refusal_fails_no_message() {
    let hello = [Say("220 hi"), Read("EHLO"), Say("250-hi\r\n250 AUTH LOGIN PLAIN")];
    let login_hello = [Say("220 hi"), Read("EHLO"), Say("250-hi\r\n250 AUTH LOGIN")];
    let send_all = |steps: Vec<Do>| async move {
        let (addr, played) = scripted(vec![steps]).await;
        let config = herald_channels::email::SmtpConfig::parse(&format!("smtp://ann:pw@{addr}?tls=off")).unwrap();
        let client = herald_channels::email::EmailClient::new(config).unwrap();
        let outcomes = briefs(&send(&client, mails(2)).await);
        drop(client);
        played.await.unwrap();
        outcomes
    };
    // "\0ann\0pw", "ann" and "pw" in base64.
    let plain = [Read("AUTH PLAIN AGFubgBwdw==\r\n"), Say("535 5.7.8 no")];
    assert_eq!(send_all(script(&[&hello, &plain])).await, ["account smtp.535.5.7.8"; 2]);
    let login = [
        Read("AUTH LOGIN\r\n"),
        Say("334 VXNlcm5hbWU6"),
        Read("YW5u\r\n"),
        Say("334 UGFzc3dvcmQ6"),
        Read("cHc=\r\n"),
        Say("454 4.7.0 later"),
    ];
    assert_eq!(send_all(script(&[&login_hello, &login])).await, ["not-attempted smtp.454.4.7.0"; 2]);
    assert_eq!(send_all(PLAIN_HELLO.to_vec()).await, ["account smtp.auth"; 2]);
}
