//! A server is away for a while. Whatever was answered 202 before, meanwhile and after arrives once, and what cannot be
//! taken is refused with a time to come back.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    SERVERS,
    installation::{Installation, Running, Server},
};
use crate::{
    commands::said,
    http::Answer,
    kill::IN_DOUBT,
    support::{Chance, PATIENCE, seed, user},
    traffic::{Mails, PEOPLE, Traffic, prove},
};

/// Notifications that flow while a server goes away and comes back.
const NOTIFICATIONS: u64 = 1_000;

/// Somebody whom the traffic does not write to.
fn witness() -> String {
    user(PEOPLE)
}

/// A notification in the app to the witness, over HTTP, with these headers and fields.
async fn notify(process: &Running, headers: &[(&str, &str)], fields: Value) -> Answer {
    let mut body = json!({
        "template_id": "note",
        "audience": {"users": [witness()]},
        "channels": ["in_app"],
        "data": {"text": "Hi"},
    });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    process.post("/v1/notify", headers, &body).await
}

/// The id of what was accepted.
fn accepted(answer: &Answer) -> String {
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()["request_id"].as_str().unwrap().to_owned()
}

fn is_told_to_come_back(answer: &Answer) {
    let after: Option<u32> = answer.header("retry-after").and_then(|seconds| seconds.parse().ok());
    assert!(answer.status == 503 && after.is_some_and(|seconds| seconds > 0), "{answer:?}");
}

fn names(said: &Value, list: &str, what: &str) -> bool {
    said[list].as_array().unwrap().iter().any(|text| text.as_str().unwrap().starts_with(what))
}

/// Takes a server away while traffic flows, does something meanwhile that returns what was accepted for the witness, and
/// proves that all arrived; then does something afterwards. Returns what the process logged.
async fn without(
    server: Server,
    meanwhile: impl AsyncFnOnce(&Running) -> Vec<String>,
    afterwards: impl AsyncFnOnce(&Running),
) -> Vec<Value> {
    let _alone = SERVERS.write().await;
    let chance = Chance::new(seed());
    let (installation, mails) = (Installation::new(), Mails::start().await);
    let process = installation.start("all", &["dev", "--smtp", &mails.url]).await;
    let mut client = process.client();
    client.set_up(PEOPLE + 1).await;

    let traffic = Traffic::of(NOTIFICATIONS);
    let (sender, clients) = (traffic.clone(), [client.clone()]);
    let sending = tokio::spawn(async move { sender.send(&clients, &chance).await });
    traffic.reaches(NOTIFICATIONS / 4).await;
    let away = server.away();
    // At once: later the clients know that it is away, and say so without asking.
    assert!(process.readyz().await.is_some(), "a probe that gets no answer takes the process for dead");
    let of_witness = meanwhile(&process).await;
    drop(away);
    process.says(|status, said| status == 200 && said["degraded"] == json!([])).await;
    prove(&mut client, &sending.await.unwrap(), &mails, IN_DOUBT).await;
    for id in &of_witness {
        client.settled(id).await;
    }
    let mut inbox = client.inbox_of(&witness()).await;
    // What was refused may have arrived, since the answer was that it is open.
    inbox.sort();
    assert!(of_witness.iter().all(|id| inbox.contains(id)), "{of_witness:?} in {inbox:?}");
    assert!(inbox.windows(2).all(|two| two[0] != two[1]), "nothing is there twice: {inbox:?}");
    afterwards(&process).await;
    process.logged().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The lines that begin so.
fn lines<'a>(log: &'a [Value], message: &str) -> Vec<&'a Value> {
    log.iter().filter(|line| line["message"].as_str().is_some_and(|text| text.starts_with(message))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_nothing_is_accepted_and_what_was_is_not_lost() {
    let meanwhile = async |process: &Running| {
        let key = [("Idempotency-Key", "witness")];
        let (plain, keyed) = tokio::join!(notify(process, &[], json!({})), notify(process, &key, json!({})));
        is_told_to_come_back(&plain);
        is_told_to_come_back(&keyed);
        process.says(|status, said| status == 503 && names(said, "reasons", "the log does not answer")).await;
        Vec::new()
    };
    let log = without(Server::Kafka, meanwhile, async |_: &Running| {}).await;
    for cannot in ["the log cannot be read", "control cannot be read", "requests cannot be polled"] {
        let begun = lines(&log, cannot).len();
        assert!(begun <= 2 && begun == lines(&log, &format!("it is over: {cannot}")).len(), "{cannot}: {begun} times");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_cassandra_what_needs_no_key_is_accepted() {
    let meanwhile = async |process: &Running| {
        let key = [("Idempotency-Key", "witness")];
        let (plain, keyed) = tokio::join!(notify(process, &[], json!({})), notify(process, &key, json!({})));
        is_told_to_come_back(&keyed);
        process.says(|status, said| status == 200 && names(said, "degraded", "the stores")).await;
        // A switch works, and nobody can say how much waits behind it.
        let switched = process.operator(&["switch", "off", "channel=push", "--reason", "the stores are away"]);
        assert!(switched.status.success(), "{}", said(&switched));
        let words = said(&switched);
        // A worker that waits for the stores takes it up when it next decides.
        assert!(words.contains("at least 0 messages") && words.contains("of 1 processes run it"), "{words}");
        vec![accepted(&plain), accepted(&notify(process, &[], json!({})).await)]
    };
    let log = without(Server::Cassandra, meanwhile, async |process: &Running| {
        let deadline = Instant::now() + PATIENCE;
        let audit = || said(&process.operator(&["audit", "--limit", "0"]));
        while !audit().contains("off channel=push: the stores are away") {
            assert!(Instant::now() < deadline, "what an operator did meanwhile is in the audit log: {}", audit());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert_eq!(lines(&log, "an operator's call is not in the audit log yet").len(), 1);
    let (begun, over) = (lines(&log, "in-app items cannot be stored"), lines(&log, "it is over: in-app items cannot"));
    // What was asked may be answered as soon as the server is back, and then nothing failed.
    assert!(begun.len() <= 1 && begun.len() == over.len(), "{begun:?} {over:?}");
    assert!(begun.iter().all(|line| line["waiting"].as_u64().is_some_and(|waiting| waiting > 0)), "{begun:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_only_what_needs_a_claim_waits_and_the_log_says_so_once() {
    let meanwhile = async |process: &Running| {
        let claims = accepted(&notify(process, &[], json!({"dedupe_key": "once"})).await);
        let plain = accepted(&notify(process, &[("Idempotency-Key", "witness")], json!({})).await);
        let mut client = process.client();
        client.settled(&plain).await;
        process.says(|status, said| status == 200 && names(said, "degraded", "the cache")).await;
        let waits = client.status(&claims).await.unwrap();
        assert_eq!(waits.instances.unwrap().delivered, 0, "nobody knows whether it was sent before");
        vec![claims, plain]
    };
    let log = without(Server::Redis, meanwhile, async |_: &Running| {}).await;
    let (begun, over) = (lines(&log, "claims cannot be taken"), lines(&log, "it is over: claims cannot be taken"));
    let [begun] = begun.as_slice() else { panic!("{begun:?}") };
    assert_eq!((&begun["level"], &begun["waiting"], over.len()), (&json!("WARN"), &json!(1), 1), "{begun}");
    assert!(begun["to_do"].as_str().is_some_and(|to_do| to_do.contains("the cache")), "{begun}");
    // Each item that is stored asks who is connected.
    let (begun, over) = (lines(&log, "live connections are not known"), lines(&log, "it is over: live connections"));
    assert!((1..=2).contains(&begun.len()) && begun.len() == over.len(), "{begun:?} {over:?}");
}
