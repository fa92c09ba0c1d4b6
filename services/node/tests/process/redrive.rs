//! `herald dlq`: what a mail server refused for too long is brought back, whatever is killed meanwhile.

use std::{sync::Arc, time::Duration};

use herald_channels::email::mailbox::{MailStore, Mailbox, StoreLimits};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};
use tokio_util::sync::CancellationToken;

use crate::{
    commands::{answered, herald, operator, said},
    http::send,
    metrics::get,
    support::{Chance, Process, Setup, notification, seed, user},
};

const PEOPLE: u64 = 300;
const KILLS: u64 = 3;

/// The default of `worker.in_doubt_instances`.
const IN_DOUBT: u64 = 1_024;

/// For whom the busy mail server asks to come back later. Not for many in a row: it would be taken for down, and then
/// nothing is attempted.
fn is_refused(number: u64) -> bool {
    number.is_multiple_of(3)
}

/// A mail server that takes mail for some, and asks for the others to come back later.
async fn serve_a_busy_mail_server(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (reader, mut writer) = stream.into_split();
            let mut lines = BufReader::new(reader).lines();
            let mut in_mail = false;
            let mut answer = "220 busy.example ESMTP\r\n";
            while writer.write_all(answer.as_bytes()).await.is_ok() {
                let Ok(Some(line)) = lines.next_line().await else { return };
                answer = match line.get(..4).unwrap_or(&line).to_ascii_uppercase().as_str() {
                    "." if in_mail => {
                        in_mail = false;
                        "250 2.0.0 taken\r\n"
                    }
                    _ if in_mail => "",
                    "RCPT" => {
                        let digits: String = line.chars().filter(char::is_ascii_digit).collect();
                        match is_refused(digits.parse().unwrap()) {
                            true => "451 4.3.2 come back later\r\n",
                            false => "250 2.1.5 fine\r\n",
                        }
                    }
                    "DATA" => {
                        in_mail = true;
                        "354 go on\r\n"
                    }
                    _ => "250 busy.example\r\n",
                };
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dead_is_brought_back_once_although_the_process_is_killed() {
    let chance = Chance::new(seed());
    let directory = tempfile::tempdir().unwrap();
    let busy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let working = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = Setup::new(&directory.path().join("data"));
    setup.smtp = Some(format!("smtp://{}?tls=off", busy.local_addr().unwrap()));
    // The first refusal is the last, so that retries are not held back.
    setup.settings = vec!["worker.max_attempts=1".to_owned()];
    tokio::spawn(serve_a_busy_mail_server(busy));
    let process = setup.start().await;
    let mut client = process.client().await;
    client.set_up(PEOPLE).await;
    let results = client.notify(vec![notification("dead", (0..PEOPLE).map(user).collect())]).await.unwrap();
    let request = results[0].request_id.clone().unwrap();
    let counts = client.settled(&request).await.instances.unwrap();
    let dead = (0..PEOPLE).filter(|number| is_refused(*number)).count() as u64;
    assert_eq!((u64::from(counts.delivered), u64::from(counts.dead)), (PEOPLE * 2 - dead, dead), "{counts:?}");
    letters_are_shown_without_personal_data(&setup, dead);
    letters_are_counted_by_stage(&setup);
    process.kill();

    let mails = Arc::new(MailStore::new(StoreLimits::default()));
    let stop = CancellationToken::new();
    setup.smtp = Some(format!("smtp://{}?tls=off", working.local_addr().unwrap()));
    tokio::spawn(Mailbox::serve(working, mails.clone(), stop.clone()));
    let mut process = setup.start().await;
    let rate = ["dlq", "redrive", "--all", "--per-second", "40", "--no-wait", "--json"];
    let ordered = answered(&operator(&setup, &rate));
    let id = ordered["redrive_id"].as_str().unwrap().to_owned();
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(chance.below(700))).await;
        process.kill();
        process = setup.start().await;
    }
    let done = until_complete(&setup, &id).await;
    assert_eq!(done["instances"].as_u64(), Some(dead), "{done}");
    all_is_delivered(&process, &request, PEOPLE * 2).await;
    assert_eq!(mails.counts().distinct, dead);
    assert!(mails.counts().duplicates <= IN_DOUBT * KILLS, "{:?}", mails.counts());

    // Each letter goes once, unless it is asked for again.
    let again = answered(&operator(&setup, &["dlq", "redrive", "--all", "--json"]));
    assert_eq!((again["redriven"].as_u64(), again["skipped"].as_u64()), (Some(0), done["redriven"].as_u64()));
    all_is_delivered(&process, &request, PEOPLE * 2).await;
    assert_eq!(mails.counts().distinct, dead);

    // Asked for again, its messages are sent once more and counted as new ones.
    let letters = answered(&operator(&setup, &["dlq", "list", "--json"]));
    let letter = &letters["dead_letters"][0];
    let anew = answered(&operator(&setup, &["dlq", "redrive", letter["id"].as_str().unwrap(), "--again", "--json"]));
    assert_eq!((anew["redriven"].as_u64(), &anew["instances"]), (Some(1), &letter["instances"]));
    all_is_delivered(&process, &request, PEOPLE * 2 + letter["instances"].as_u64().unwrap()).await;
    stop.cancel();
}

/// Lists, shows and counts, and refuses what is not there.
fn letters_are_shown_without_personal_data(setup: &Setup, dead: u64) {
    let letters = answered(&operator(setup, &["dlq", "list", "cause=attempts_exhausted", "--limit", "0", "--json"]));
    let letters = letters["dead_letters"].as_array().unwrap();
    let messages: u64 = letters.iter().map(|letter| letter["instances"].as_u64().unwrap()).sum();
    assert_eq!(messages, dead);
    assert!(letters.iter().all(|letter| letter["tenant_id"] == "demo" && letter["stage"] == "worker"));
    let id = letters[0]["id"].as_str().unwrap();
    let shown = operator(setup, &["dlq", "show", id, "--json"]);
    assert_eq!(answered(&shown)["record"]["sections"][0]["template_id"], "note");
    assert!(!said(&shown).contains("example.org") && !said(&shown).contains("user-"), "{}", said(&shown));
    let dry = answered(&operator(setup, &["dlq", "redrive", "tenant=demo", "stage=worker", "--dry-run", "--json"]));
    assert_eq!((dry["state"].as_str(), dry["instances"].as_u64()), (Some("dry_run"), Some(dead)));
    let other = answered(&operator(setup, &["dlq", "redrive", "tenant=other", "--dry-run", "--json"]));
    assert_eq!(other["matched"], 0);
    let gone = operator(setup, &["dlq", "redrive", id, "999999"]);
    assert_eq!(gone.status.code(), Some(3), "{}", said(&gone));
    assert!(said(&gone).contains("dead_letter_gone") && said(&gone).contains("Nothing was done"), "{}", said(&gone));
    assert_eq!(operator(setup, &["dlq", "show", "999999"]).status.code(), Some(4));
    assert_eq!(operator(setup, &["dlq", "redrive"]).status.code(), Some(2), "never everything by accident");
    assert_eq!(herald(setup, &["dlq", "list"]).status.code(), Some(5), "a tenant's key");
}

/// As many as there are on the log.
fn letters_are_counted_by_stage(setup: &Setup) {
    let letters = answered(&operator(setup, &["dlq", "list", "--limit", "0", "--json"]));
    let count = letters["dead_letters"].as_array().unwrap().len();
    let (_, text) = get(setup.port, "/metrics");
    let sample = format!("herald_dead_letters_total{{stage=\"worker\"}} {count}\n");
    assert!(text.contains(&sample), "{sample} is not in\n{text}");
}

async fn until_complete(setup: &Setup, id: &str) -> Value {
    let path = format!("/v1/admin/redrives/{id}");
    let deadline = tokio::time::Instant::now() + crate::support::PATIENCE;
    loop {
        let operator = [("Authorization", "Bearer hk_dev_admin")];
        let redrive = send(setup.port, "GET", &path, &operator, None).await.json();
        if redrive["state"] == "complete" {
            return redrive;
        }
        assert!(tokio::time::Instant::now() < deadline, "the redrive does not end: {redrive}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// So many messages are delivered and none is dead; the books balance.
async fn all_is_delivered(process: &Process, request: &str, messages: u64) {
    let mut client = process.client().await;
    let deadline = tokio::time::Instant::now() + crate::support::PATIENCE;
    loop {
        let counts = client.settled(request).await.instances.unwrap();
        if (u64::from(counts.delivered), counts.dead, counts.in_flight) == (messages, 0, 0) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{messages} were to be delivered: {counts:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
