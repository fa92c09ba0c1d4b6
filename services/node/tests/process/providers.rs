//! `herald providers`: mail servers that ask for a password, set, swapped and deleted while mail is under way.
//!
//! Needs `python3` with its `venv` module; aiosmtpd is installed into a virtual environment below `target/`.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    clients::python,
    commands::{answered, herald, operator, said},
    support::{Client, PATIENCE, Setup, notification, user},
};

const PASSWORD: &str = "sw0rdf1sh";
const PEOPLE: u64 = 20;

/// aiosmtpd, which takes mail of `herald` with [`PASSWORD`].
struct MailServer {
    child: Child,
    port: u16,
    /// Recipient and subject of each mail, in order.
    mails: Arc<Mutex<Vec<String>>>,
}

impl MailServer {
    async fn start() -> Self {
        let python = python(&["aiosmtpd==1.4.6"]).await;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/process/mail_server.py");
        let mut command = Command::new(python);
        let mut child = command.arg(script).arg(PASSWORD).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.next().unwrap().unwrap().parse().unwrap();
        let mails = Arc::<Mutex<Vec<String>>>::default();
        let seen = mails.clone();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|mail| seen.lock().unwrap().push(mail)));
        Self { child, port, mails }
    }

    fn at(&self) -> String {
        format!("smtp://127.0.0.1:{}?tls=off", self.port)
    }

    fn mails(&self) -> Vec<String> {
        self.mails.lock().unwrap().clone()
    }

    /// Waits until it has so many mails.
    async fn has(&self, mails: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.mails().len() < mails {
            assert!(Instant::now() < deadline, "{} mails, not {mails}", self.mails().len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}

/// Sets a provider, with a password from standard input.
fn put(setup: &Setup, name: &str, at: &str, password: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command.args(["providers", "put", name, at, "--credentials", "-", "--json"]).args(more);
    command.env("HERALD_URL", format!("http://127.0.0.1:{}", setup.port)).env("HERALD_KEY", "hk_dev_admin");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let credentials = json!({"username": "herald", "password": password});
    serde_json::to_writer(child.stdin.take().unwrap(), &credentials).unwrap();
    child.wait_with_output().unwrap()
}

/// Notifies everybody so many times, one after the other; returns the request ids.
async fn notify(client: &mut Client, name: &str, times: u64) -> Vec<String> {
    let mut requests = Vec::new();
    for number in 0..times {
        let one = notification(&format!("{name}-{number}"), (0..PEOPLE).map(user).collect());
        requests.push(client.notify(vec![one]).await.unwrap().remove(0).request_id.unwrap());
    }
    requests
}

/// Notifies everybody again and again, each time when the one before has ended, until it is told to stop.
async fn keep_notifying(mut client: Client, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut requests = Vec::new();
    while !stop.load(Relaxed) {
        let next = notify(&mut client, &format!("swap-{}", requests.len()), 1).await.remove(0);
        client.settled(&next).await;
        requests.push(next);
    }
    requests
}

/// Waits until all is delivered and the books are proven; returns who delivered the mails.
async fn delivered(setup: &Setup, client: &mut Client, requests: &[String]) -> BTreeSet<String> {
    let mut providers = BTreeSet::new();
    for request in requests {
        let counts = client.settled(request).await.instances.unwrap();
        assert_eq!(u64::from(counts.delivered), PEOPLE * 2, "{counts:?}");
        let receipts = answered(&herald(setup, &["receipts", request, "--limit", "0", "--json"]));
        let mails = receipts["receipts"].as_array().unwrap().iter().filter(|receipt| receipt["channel"] == "email");
        providers.extend(mails.map(|receipt| receipt["provider"].as_str().unwrap().to_owned()));
    }
    providers
}

fn names(providers: &[&str]) -> BTreeSet<String> {
    providers.iter().map(|name| (*name).to_owned()).collect()
}

/// Whether any file below a directory holds a text.
fn holds(directory: &Path, text: &[u8]) -> bool {
    std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).any(|path| match path.is_dir() {
        true => holds(&path, text),
        false => std::fs::read(path).unwrap().windows(text.len()).any(|part| part == text),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_are_swapped_under_traffic_and_each_message_is_sent_once() {
    let (first, second) = (MailServer::start().await, MailServer::start().await);
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let process = setup.start().await;
    let mut client = process.client().await;
    client.set_up(PEOPLE).await;

    let set = answered(&put(&setup, "relay", &first.at(), PASSWORD, &[]));
    assert_eq!((&set["credentials_set"], &set["applied"]["processes"]), (&json!(true), &json!(1)), "{set}");
    let stop = Arc::<AtomicBool>::default();
    let sending = tokio::spawn(keep_notifying(process.client().await, stop.clone()));
    first.has(100).await;
    answered(&put(&setup, "relay", &second.at(), PASSWORD, &[]));
    second.has(100).await;
    let before = first.mails().len();
    answered(&put(&setup, "spare", &first.at(), PASSWORD, &["--weight", "2"]));
    first.has(before + 100).await;
    stop.store(true, Relaxed);
    let requests = sending.await.unwrap();
    assert_eq!(delivered(&setup, &mut client, &requests).await, names(&["relay", "spare"]));
    let (of_first, of_second) = (first.mails(), second.mails());
    let all: BTreeSet<&String> = of_first.iter().chain(&of_second).collect();
    let sent = requests.len() * PEOPLE as usize;
    assert_eq!((all.len(), of_first.len() + of_second.len()), (sent, sent), "each once, and none to anybody else");

    // Both serve; a restart opens their credentials again, and shares stay as they are.
    process.kill();
    let process = setup.start().await;
    let mut client = process.client().await;
    let requests = notify(&mut client, "restarted", 4).await;
    assert_eq!(delivered(&setup, &mut client, &requests).await, names(&["relay", "spare"]));

    // A switch names them as any other.
    answered(&operator(&setup, &["switch", "off", "provider=spare", "--json"]));
    let requests = notify(&mut client, "off", 2).await;
    for request in &requests {
        let counts = client.settled(request).await.instances.unwrap();
        assert!(counts.suppressed["killed"] > 0 && counts.delivered > PEOPLE as u32, "{counts:?}");
    }
    answered(&operator(&setup, &["switch", "on", "provider=spare", "--json"]));

    // Those of the configuration, here the built-in mailbox, are what is left.
    for name in ["relay", "spare"] {
        answered(&operator(&setup, &["providers", "delete", name, "--json"]));
    }
    let requests = notify(&mut client, "deleted", 2).await;
    assert_eq!(delivered(&setup, &mut client, &requests).await, names(&["smtp"]));

    let audit = answered(&operator(&setup, &["audit", "--json"])).to_string();
    assert!(audit.contains("relay: email by smtp at smtp://127.0.0.1") && !audit.contains(PASSWORD), "{audit}");
    let log = std::fs::read(setup.data.with_extension("log")).unwrap();
    assert!(!log.windows(PASSWORD.len()).any(|part| part == PASSWORD.as_bytes()), "the log tells the password");
    drop(process);
    assert!(!holds(&setup.data, PASSWORD.as_bytes()), "the data tells the password");
    assert!(holds(&setup.data, b"relay"), "and would be seen to");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_would_not_work_is_refused_with_what_is_wrong() {
    let server = MailServer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let _process = setup.start().await;
    let closed = Setup::new(directory.path()).port;
    let (at, closed) = (server.at(), format!("smtp://127.0.0.1:{closed}?tls=off"));
    let in_plain = at.replace("?tls=off", "");
    let with_password = at.replace("//", "//herald:sw0rdf1sh@");
    for (at, password, more, said_so) in [
        (&at, "wr0ng", &[][..], "provider_credentials_refused"),
        (&closed, PASSWORD, &[], "provider_unreachable"),
        (&in_plain, PASSWORD, &[], "does not offer STARTTLS"),
        (&with_password, PASSWORD, &[], "credentials do not belong in the URL"),
        (&"http://mail.example".to_owned(), PASSWORD, &[], "the scheme must be smtp or smtps"),
        (&at, PASSWORD, &["--kind", "fcm", "--channel", "push"], "the kind fcm are not built yet"),
        (&at, PASSWORD, &["--for", "nobody"], "There is no tenant nobody"),
        (&at, PASSWORD, &["--weight", "5000"], "0 (no messages) to 1000"),
    ] {
        let output = put(&setup, "relay", at, password, more);
        let said = said(&output);
        assert!(output.status.code() == Some(3) && said.contains(said_so), "{said_so}: {said}");
        assert!(!said.contains(password), "{said}");
    }
    assert_eq!(operator(&setup, &["providers", "show", "relay"]).status.code(), Some(4), "nothing was set");
    assert_eq!(herald(&setup, &["providers", "list"]).status.code(), Some(5), "a tenant's key");
    let unchecked = answered(&put(&setup, "relay", &closed, PASSWORD, &["--unchecked"]));
    assert_eq!(unchecked["url"], closed);
    let listed: Value = answered(&operator(&setup, &["providers", "list", "--json"]));
    assert_eq!(listed["providers"][0]["name"], "relay");
    let shown = said(&operator(&setup, &["providers", "show", "relay"]));
    assert!(shown.contains(&closed) && !shown.contains(PASSWORD), "{shown}");
}
