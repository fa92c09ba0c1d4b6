//! A data directory that an earlier release wrote opens in this one, with everything in it, and what was under way ends.
//!
//! `data/0.1.tar.gz` was written by `scripts/data-fixture` with herald 0.1: killed with work under way, it holds
//! people, an audience, preferences, a template, delivered notifications, one that is scheduled, and one whose mail
//! waits for a server that does not answer.

use std::{path::Path, process::Command};

use crate::support::{Client, PATIENCE, Setup, notification, user};

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
