//! A data directory that an earlier release wrote opens in this one, with everything in it, and what was under way ends.
//!
//! `data/0.1.tar.gz` was written by `scripts/data-fixture` with herald 0.1: killed with work under way, it holds
//! people, an audience, preferences, a template, delivered notifications, one that is scheduled, and one whose mail
//! waits for a server that does not answer.
//!
//! `data/level-1.tar.gz` was written by the same script once there was more to write: also a tenant with a quota, a key, a
//! limit, a switch that holds a message, a message that waits for the end of quiet hours, a cancel, an erasure, a dead letter,
//! and what operators did. Much of that goes by the clock, so the process that opens it takes it for two hours old.

use std::{
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use crate::{
    http::send,
    support::{Client, PATIENCE, Setup, notification, preloaded, user},
};

const SCHEDULED: &str = "e33ac114-f79e-8529-abfe-c413866105dd";
const WAITING: &str = "d1117748-da4c-817e-bf17-f58811ec83ed";
/// What was delivered, with the instances that the channels took and those that an opt-out suppressed.
const DELIVERED: [(&str, u32, u32); 3] = [
    ("d3b6b49a-85c5-859f-9ac9-a118eb204b3e", 3, 1),
    ("78cc7efe-bbe2-8273-b7a1-c7d5ab631917", 7, 1),
    ("a2ad822f-5b3c-8af1-8b0c-6578ad6cea4e", 4, 0),
];

fn unpack(archive: &str, to: &Path) {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/process/data").join(archive);
    let unpacked = Command::new("tar").arg("-C").arg(to).arg("-xzf").arg(archive).status().unwrap();
    assert!(unpacked.success());
}

/// Waits until nothing of a notification is in flight.
async fn ended(client: &mut Client, request_id: &str) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let status = client.status(request_id).await.unwrap();
        let counts = status.instances.unwrap();
        if status.books_balanced && counts.accepted > 0 {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{request_id} does not end: {counts:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_release_0_1_wrote_is_served_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    unpack("0.1.tar.gz", directory.path());
    let mut setup = Setup::new(&directory.path().join("data"));
    // The fixture grows older than what is kept, and has another layout than the default.
    setup.settings = ["disk.receipts_retention_days=100000", "layout.shards=2"]
        .into_iter()
        .chain(["layout.requests_partitions=2", "layout.receipts_partitions=2"])
        .map(str::to_owned)
        .collect();
    let process = setup.start().await;
    let mut client = process.client().await;
    for (id, delivered, suppressed) in DELIVERED {
        let counts = client.status(id).await.unwrap().instances.unwrap();
        let opted_out = counts.suppressed.get("opted_out").copied().unwrap_or_default();
        assert_eq!((counts.delivered, opted_out, counts.in_flight), (delivered, suppressed, 0), "{id}");
    }
    // Its mail server is the built-in one now, unless its time is over.
    ended(&mut client, WAITING).await;
    let scheduled = client.status(SCHEDULED).await.unwrap();
    assert!(["scheduled", "running", "complete"].contains(&scheduled.state.as_str()), "{scheduled:?}");
    let inbox = client.inbox_of(&user(0)).await;
    assert!(inbox.contains(&DELIVERED[0].0.to_owned()) && inbox.contains(&WAITING.to_owned()), "{inbox:?}");
    // And it goes on: the template, the people and what they asked for are those of the release.
    let results = client.notify(vec![notification("after the upgrade", vec![user(1)])]).await.unwrap();
    let status = client.settled(results[0].request_id.as_ref().unwrap()).await;
    let counts = status.instances.unwrap();
    assert_eq!((counts.delivered, counts.suppressed.get("opted_out")), (1, Some(&1)), "{counts:?}");
}

/// What the script printed for `data/level-1.tar.gz`.
mod level_1 {
    /// In seconds since the epoch.
    pub const WRITTEN: u64 = 1_795_704_529;
    pub const KEY: &str = "hk_a26e214cre_1bx990szhx532gc7nht12swrbm";
    /// With the messages that were delivered.
    pub const DELIVERED: [(&str, u32); 3] = [
        ("5ab93297-40d9-83ba-870d-ed89f12e1a24", 3),
        ("afc09357-6882-8419-9a99-24971ec643f7", 7),
        ("f2d00e44-ef98-86da-98f6-7fc0bfac33d6", 4),
    ];
    pub const QUIET: &str = "0cd8e78a-f66e-89cf-9b1e-6c84f2401ba0";
    pub const HELD: &str = "2f4e6316-7aa5-8d9a-8791-e17373b9d019";
    pub const CANCELLED: &str = "174152fb-99b9-8446-a26b-caa8750eff27";
    pub const LEFT: &str = "b669a83d-060b-8cc4-9234-146721d13dcf";
    pub const ERASURE: &str = "01a21854-a5fc-7da6-9805-51ca8a21db8f";
    pub const SCHEDULED: &str = "3fabf8e2-853f-8625-8b02-2912b3526cbb";
    pub const DEAD: &str = "8ad7863f-1936-8b00-8055-f52059acff7e";
    pub const WAITING: &str = "10468875-e8da-84eb-878e-2887e73df9d9";
}

/// The process on `data/level-1.tar.gz`, over HTTP.
struct Level1(u16);

impl Level1 {
    async fn call(&self, key: &str, method: &str, path: &str, body: Option<Value>) -> Value {
        let bearer = format!("Bearer {key}");
        let answer = send(self.0, method, path, &[("Authorization", &bearer)], body.as_ref()).await;
        assert!(answer.status < 300, "{method} {path}: {answer:?}");
        answer.json()
    }

    async fn operate(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        self.call("hk_dev_admin", method, &format!("/v1/admin/{path}"), body).await
    }

    async fn status(&self, id: &str) -> Value {
        self.call("hk_dev_demo", "GET", &format!("/v1/status/{id}"), None).await
    }

    /// The state of a request whose books are closed.
    async fn ended(&self, id: &str) -> Value {
        let status = self.status(id).await;
        assert_eq!(status["books_balanced"], true, "{status}");
        status
    }

    /// Waits until so many of a request's messages are delivered, and nothing of it is under way.
    async fn delivers(&self, id: &str, messages: u64) {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let status = self.status(id).await;
            let counts = &status["instances"];
            if counts["delivered"] == messages && status["state"] == "complete" && status["books_balanced"] == true {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{id} is not delivered: {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_level_1_wrote_is_there_and_is_steered_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    unpack("level-1.tar.gz", directory.path());
    let mut setup = Setup::new(&directory.path().join("data"));
    setup.settings =
        ["layout.shards=2", "layout.requests_partitions=2", "layout.receipts_partitions=2"].map(str::to_owned).to_vec();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let ahead = (level_1::WRITTEN + 2 * 3_600).cast_signed() - now.cast_signed();
    setup.environment = vec![
        ("LD_PRELOAD".into(), preloaded("clock.c", directory.path()).display().to_string()),
        ("HERALD_TEST_CLOCK_AHEAD_S".into(), ahead.to_string()),
    ];
    let process = setup.start().await;
    let herald = Level1(setup.port);
    policies_are_as_they_were(&herald).await;
    ends_are_as_they_were(&herald).await;
    what_waits_goes_on(&herald).await;
    // And the log goes on behind what was there.
    let mut client = process.client().await;
    let results = client.notify(vec![notification("after the upgrade", vec![user(1)])]).await.unwrap();
    let counts = client.settled(results[0].request_id.as_ref().unwrap()).await.instances.unwrap();
    assert_eq!((counts.delivered, counts.suppressed.get("opted_out")), (1, Some(&1)), "{counts:?}");
}

/// A tenant, a key, a limit, a switch, and what was written down of their making.
async fn policies_are_as_they_were(herald: &Level1) {
    let other = herald.operate("GET", "tenants/other", None).await;
    assert_eq!((&other["name"], &other["quota"]), (&json!("Other"), &json!({"per_second": 5, "burst": 7})));
    let theirs = herald.call(level_1::KEY, "GET", "/v1/users/user-0", None).await;
    assert_eq!(theirs["attributes"], json!({"plan": "pro"}));
    let keys = herald.operate("GET", "keys?tenant_id=demo", None).await;
    assert!(keys["keys"].as_array().unwrap().iter().any(|key| key["name"] == "made"), "{keys}");
    let limits = herald.operate("GET", "limits", None).await;
    let limit = &limits["limits"][0];
    assert_eq!((&limit["per_second"], &limit["burst"]), (&json!(3), &json!(4)), "{limits}");
    assert_eq!(limit["scope"]["channel"], "push", "{limits}");
    let switches = herald.operate("GET", "switches", None).await;
    let switch = &switches["switches"][0];
    assert_eq!((&switch["state"], &switch["reason"]), (&json!("hold"), &json!("a fixture")), "{switches}");
    assert_eq!(
        (&switch["scope"]["template"], &switch["queued"]["instances"]),
        (&json!("held"), &json!(1)),
        "{switches}"
    );
    let audit = herald.operate("GET", "audit", None).await;
    let entries = audit["entries"].as_array().unwrap();
    for path in ["tenants/other", "keys", "limits", "switches"] {
        let is_it = |entry: &&Value| entry["action"].as_str().is_some_and(|action| action.ends_with(path));
        let entry = entries.iter().rev().find(is_it).unwrap_or_else(|| panic!("{path} is not in {audit}"));
        assert_eq!((&entry["actor"], &entry["result"]), (&json!("dev_admin"), &json!("ok")), "{entry}");
    }
}

/// What was delivered, cancelled, dead and erased.
async fn ends_are_as_they_were(herald: &Level1) {
    for (id, delivered) in level_1::DELIVERED {
        assert_eq!(herald.ended(id).await["instances"]["delivered"], delivered, "{id}");
    }
    let cancelled = herald.ended(level_1::CANCELLED).await;
    assert_eq!(
        (&cancelled["state"], &cancelled["instances"]["delivered"]),
        (&json!("cancelled"), &json!(0)),
        "{cancelled}"
    );
    assert_eq!(herald.ended(level_1::DEAD).await["instances"]["dead"], 1);
    let letters = herald.operate("GET", "dead-letters", None).await;
    let letters = letters["dead_letters"].as_array().unwrap();
    assert!(letters.len() == 1 && letters[0]["cause"] == "attempts_exhausted", "{letters:?}");
    let path = format!("dead-letters/{}", letters[0]["id"].as_str().unwrap());
    let letter = herald.operate("GET", &path, None).await;
    assert_eq!(letter["record"]["sections"][0]["request_id"], level_1::DEAD, "{letter}");

    let erasure = herald.call("hk_dev_demo", "GET", &format!("/v1/erasures/{}", level_1::ERASURE), None).await;
    assert_eq!(erasure["state"], "complete");
    let key = [("Authorization", "Bearer hk_dev_demo")];
    assert_eq!(send(herald.0, "GET", "/v1/users/leaves", &key, None).await.status, 404);
    let receipts = format!("/v1/receipts?request_id={}", level_1::LEFT);
    let receipts = herald.call("hk_dev_demo", "GET", &receipts, None).await;
    let [receipt] = receipts["receipts"].as_array().unwrap().as_slice() else { panic!("{receipts}") };
    assert!(receipt["state"] == "delivered" && receipt["user_id"] != "leaves", "{receipt}");
}

/// What is held waits until it is let go; what was put off or waited for a mail server arrives; what is due later waits; and a
/// letter is brought back.
async fn what_waits_goes_on(herald: &Level1) {
    herald.delivers(level_1::QUIET, 2).await;
    herald.delivers(level_1::WAITING, 4).await;
    assert_eq!(herald.status(level_1::SCHEDULED).await["state"], "scheduled");
    let held = herald.status(level_1::HELD).await;
    assert_eq!((&held["state"], &held["instances"]["in_flight"]), (&json!("held"), &json!(1)), "{held}");
    let lifted = json!({"scope": {"template": "held"}, "state": "on"});
    herald.operate("PUT", "switches", Some(lifted)).await;
    herald.delivers(level_1::HELD, 1).await;
    herald.operate("POST", "dead-letters:redrive", Some(json!({"all": true}))).await;
    herald.delivers(level_1::DEAD, 1).await;
}
