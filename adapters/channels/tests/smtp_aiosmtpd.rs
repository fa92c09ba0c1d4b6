//! The client and the composer against a server and a parser that are not Herald's: aiosmtpd and Python's `email`.
//!
//! Needs `python3` with its `venv` module; aiosmtpd itself is installed into a virtual environment below `target/`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use herald_channels::email::address::Address;
use herald_channels::email::config::{Credentials, Timeouts, Tls};
use herald_channels::email::message::{Composer, Draft, NamedAddress, Sender};
use herald_channels::email::{EmailClient, OutgoingMail, SmtpConfig};
use serde_json::Value;
use support::{briefs, send};

const AIOSMTPD: &str = "aiosmtpd==1.4.6";

/// The virtual environment's interpreter; it is set up by the first test that asks.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join(AIOSMTPD.replace("==", "-"));
        let (python, complete) = (venv.join("bin/python"), venv.join("complete"));
        if !complete.exists() {
            let run = |program: &Path, arguments: &[&str]| match Command::new(program).args(arguments).output() {
                Ok(output) if output.status.success() => {}
                Ok(output) => panic!(
                    "{} {arguments:?} failed (on Debian: apt-get install python3 python3-venv):\n{}{}",
                    program.display(),
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                ),
                Err(error) => panic!(
                    "this test needs {}, which cannot be run ({error}); install Python 3 with venv \
                     (on Debian: apt-get install python3 python3-venv)",
                    program.display()
                ),
            };
            run(Path::new("python3"), &["-m", "venv", "--clear", venv.to_str().unwrap()]);
            run(&python, &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", AIOSMTPD]);
            std::fs::write(&complete, "").unwrap();
        }
        python
    })
}

struct Peer {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    addr: SocketAddr,
}

impl Peer {
    fn start(arguments: &[&Path]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/aiosmtpd_peer.py");
        let mut command = Command::new(python());
        command.arg(script).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut port = String::new();
        lines.read_line(&mut port).unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], port.trim().parse().expect("the peer prints its port")));
        Self { child, lines, addr }
    }

    fn message(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn composed(token: u64, to: &str, subject: &str, text: &str, html: &str) -> OutgoingMail {
    let from = NamedAddress { name: "Héräld, Inc.".into(), address: Address::parse("news@herald.example").unwrap() };
    let sender = Sender { from, reply_to: None, message_id_domain: None, eight_bit: false };
    let to = NamedAddress { name: "Ann \"A\" Lee".into(), address: Address::parse(to).unwrap() };
    let draft = Draft {
        instance_id: &format!("n{token}"),
        to: &to,
        subject,
        text: Some(text),
        html: Some(html),
        list_unsubscribe: Some("https://herald.example/u?t=abc"),
        date_unix_s: 1_751_364_000,
    };
    let data = Composer::new(&sender, Vec::new()).unwrap().compose(&draft).unwrap();
    let mail_from = Address::parse("bounce@herald.example").unwrap();
    OutgoingMail { token, mail_from, rcpt_to: to.address, data }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_and_another_parser_read_what_was_meant() {
    let mut peer = Peer::start(&[]);
    let client = support::client(peer.addr, "", |_| {});
    let long = "A rather long subject that has to be folded because it says a good deal more than it needs to say";
    let cases = [
        ("Hello", "plain text\n.with a dot\n..and two\n", "<p>plain</p>\n"),
        ("Grüße aus Köln", "trailing space \nund ein = Zeichen, täglich\n", "<p>é</p>\n"),
        (
            "日本語の件名はとても長いので何行にもなります。日本語の件名はとても長いので何行にもなります。",
            "良い一日を\n",
            "<p>良い</p>\n",
        ),
        (long, &"a very long line ".repeat(200), "<br>\nFrom the start\n"),
    ];
    let mut batch = vec![composed(0, "unknown@example.com", "x", "x", "x")];
    for (token, (subject, text, html)) in (1..).zip(cases) {
        batch.push(composed(token, "ann@bücher.example", subject, text, html));
    }
    batch.push(composed(9, "jürgen@example.com", "to SMTPUTF8", "a\n", "b\n"));
    let mut expected = vec!["bad smtp.550.5.1.1"];
    expected.extend(["accepted"; 5]);
    let outcomes = tokio::spawn(async move { briefs(&send(&client, batch).await) }).await.unwrap();
    assert_eq!(outcomes, expected);
    for (token, (subject, text, html)) in (1..).zip(cases) {
        let seen = peer.message();
        assert_eq!(seen["defects"], serde_json::json!([]), "{seen}");
        assert_eq!(seen["from"], "bounce@herald.example");
        assert_eq!(seen["to"], serde_json::json!(["ann@xn--bcher-kva.example"]));
        let headers = &seen["headers"];
        assert_eq!(headers["subject"], subject);
        assert_eq!(headers["message-id"], format!("<n{token}@herald.example>"));
        assert_eq!(headers["from"], "\"Héräld, Inc.\" <news@herald.example>");
        assert_eq!(headers["to"], "\"Ann \\\"A\\\" Lee\" <ann@xn--bcher-kva.example>");
        assert_eq!(headers["date"], "Tue, 01 Jul 2025 10:00:00 +0000");
        assert_eq!(headers["list-unsubscribe"], "<https://herald.example/u?t=abc>");
        assert_eq!(headers["list-unsubscribe-post"], "List-Unsubscribe=One-Click");
        // The line break before a delimiter belongs to the delimiter.
        assert_eq!(seen["text"].as_str().unwrap().trim_end(), text.trim_end());
        assert_eq!(seen["html"].as_str().unwrap().trim_end(), html.trim_end());
    }
    let seen = peer.message();
    assert_eq!(seen["to"], serde_json::json!(["jürgen@example.com"]));
    assert!(seen["mail_options"].as_array().unwrap().contains(&"SMTPUTF8".into()), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_agrees_on_starttls_and_auth() {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (cert_path, key_path) = (directory.join("peer-cert.pem"), directory.join("peer-key.pem"));
    std::fs::write(&cert_path, certificate.pem()).unwrap();
    std::fs::write(&key_path, key.serialize_pem()).unwrap();
    let mut peer = Peer::start(&[&cert_path, &key_path]);
    let config = |password: &str| {
        let mut config = SmtpConfig::parse(&format!("smtp://{}", peer.addr)).unwrap();
        config.tls = Tls::Required;
        config.timeouts = Timeouts::all(Duration::from_secs(20));
        config.extra_roots = vec![certificate.der().clone()];
        config.credentials = Some(Credentials { user: "ann".into(), password: password.into() });
        config
    };
    let right = EmailClient::new(config("s3cret")).unwrap();
    let wrong = EmailClient::new(config("guess")).unwrap();
    let mail = || vec![composed(1, "ann@example.com", "Hello", "x\n", "y\n")];
    assert_eq!(briefs(&send(&wrong, mail()).await), ["account smtp.535.5.7.8"]);
    assert_eq!(briefs(&send(&right, mail()).await), ["accepted"]);
    let seen = peer.message();
    assert_eq!((&seen["tls"], &seen["authenticated"]), (&true.into(), &true.into()), "{seen}");
    right.close().await;
}
