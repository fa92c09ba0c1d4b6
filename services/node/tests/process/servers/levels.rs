//! `herald finish-upgrade`, and a process that is of an earlier version than what is written.

use std::{
    net::TcpListener,
    process::Output,
    time::{Duration, Instant},
};

use herald_control_plane::levels::raise_alone;
use herald_core::{
    levels::FEATURE_LEVEL,
    policy::Policy,
    ports::fleet::{Fleet, ProcessReport},
};
use herald_node::world;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{SERVERS, installation::Installation};
use crate::support::PATIENCE;

/// What a command that failed said.
fn refusal(output: Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn an_upgrade_is_finished_once_every_process_reads_what_is_written_then() {
    let _shared = SERVERS.read().await;
    let (installation, world) = (Installation::new(), world::system());
    let finish = || installation.run(&["finish-upgrade", "--json"]);
    let nobody = refusal(finish());
    assert!(nobody.contains("no process has said within a minute that it runs"), "{nobody}");

    let process = installation.start("all", &["dev", "--set", "email.url=null:"]).await;
    let fleet = installation.fleet().await;
    let deadline = Instant::now() + PATIENCE;
    while fleet.running(0).await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "it does not report; its log is:\n{}", process.tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (seen_ms, versions) = (world.now_ms(), Default::default());
    let old = ProcessReport { process: "old-0".into(), seen_ms, versions, reads_level: FEATURE_LEVEL - 1 };
    fleet.report(old).await.unwrap();
    let behind = refusal(finish());
    let said =
        format!("1 process reads up to a lower feature level than {FEATURE_LEVEL}: old-0 ({})", FEATURE_LEVEL - 1);
    assert!(behind.contains(&said) && behind.contains("Run the new version there first"), "{behind}");

    fleet.leave("old-0").await.unwrap();
    let finished = finish();
    assert!(finished.status.success(), "{}", String::from_utf8_lossy(&finished.stderr));
    let told: Value = serde_json::from_slice(&finished.stdout).unwrap();
    // An installation begins at the first level.
    assert_eq!(told, json!({ "feature_level": FEATURE_LEVEL, "raised": FEATURE_LEVEL > 1 }));
}

/// Somebody raised the level although this process, which was overlooked, reads less.
#[tokio::test]
async fn a_process_that_meets_a_level_that_it_does_not_read_says_so_until_it_has_stopped() {
    let _shared = SERVERS.read().await;
    let installation = Installation::new();
    let ops = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let arguments = ["dev", "--set", "email.url=null:", "--ops-listen", &ops];
    let process = installation.start("all", &arguments).await;

    // A call is under way, which the process lets end before it stops.
    let mut call = TcpStream::connect(("127.0.0.1", process.port)).await.unwrap();
    let head = "POST /v1/notify HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer hk_dev_demo\r\nExpect: 100-continue\r\n\
                Content-Type: application/json\r\nContent-Length: 2\r\n\r\n";
    call.write_all(head.as_bytes()).await.unwrap();
    let mut goes_on = [0; 12];
    call.read_exact(&mut goes_on).await.unwrap();
    assert_eq!(&goes_on, b"HTTP/1.1 100");

    let log = installation.log().await;
    assert!(raise_alone(FEATURE_LEVEL + 1, &Policy::default(), &log, &world::system()).await.unwrap());
    let why = format!(
        "the installation is of feature level {}, and this program reads up to {FEATURE_LEVEL}: this process must run a newer \
         version",
        FEATURE_LEVEL + 1
    );
    let says_why = |reason: &Value| reason.as_str().unwrap().starts_with(&why);
    process.says(|status, said| status == 503 && said["reasons"].as_array().unwrap().iter().any(says_why)).await;
    drop(call);
    assert!(!process.ends().await.success(), "who watches it sees that it failed");

    // Nothing of that version runs here any more.
    for command in [&["dev", "--listen", "127.0.0.1:0"][..], &["finish-upgrade"]] {
        let refused = refusal(installation.run(command));
        assert!(refused.contains(&why), "{command:?}: {refused}");
    }
}
