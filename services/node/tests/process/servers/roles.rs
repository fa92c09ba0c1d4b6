//! Roles in one process on servers, and each in its own.

use super::{
    SERVERS,
    installation::{Installation, SecureCassandra},
};
use crate::support::{notification, user};

#[tokio::test]
async fn the_demo_runs_on_shared_servers_and_its_books_are_proven() {
    let _shared = SERVERS.read().await;
    let installation = Installation::new();
    let demo = installation.run(&["demo", "--users", "200", "--json"]);
    let (report, errors) = (String::from_utf8_lossy(&demo.stdout), String::from_utf8_lossy(&demo.stderr));
    assert!(demo.status.success(), "{report}\n{errors}");
}

/// Each role is a process, of workers there are two, and one of them is killed while it sends.
#[tokio::test]
async fn roles_are_processes_and_a_worker_that_is_killed_is_replaced() {
    let _shared = SERVERS.read().await;
    let installation = Installation::new();
    let settings = ["email.url=null:", "instances=2"];
    let mut each = installation.start_each_role(2, &settings).await;
    let mut client = each.front.client();
    client.set_up(100).await;
    let mut ids = Vec::new();
    for round in 0..40u64 {
        let users = (0..50).map(|n| user((round * 7 + n) % 100)).collect();
        let results = client.notify(vec![notification(&format!("n{round}"), users)]).await.unwrap();
        ids.extend(results.into_iter().map(|result| result.request_id.unwrap()));
        if round == 20 {
            each.workers.pop().unwrap().kill();
        }
    }
    let _two = installation.start_role("worker-1", &settings).await;
    for id in &ids {
        let status = client.settled(id).await;
        let instances = status.instances.unwrap();
        assert_eq!((instances.accepted, instances.delivered), (100, 100), "{id}");
    }
    for number in 0..100 {
        let mut inbox = client.inbox_of(&user(number)).await;
        inbox.sort();
        let all = inbox.len();
        inbox.dedup();
        assert_eq!(inbox.len(), all, "nobody has an item twice");
    }
    assert!(each.workers.remove(0).terminate(), "a worker drains and ends well");
}

#[tokio::test]
async fn a_process_runs_on_servers_with_tls_and_logins() {
    let _shared = SERVERS.read().await;
    let _cassandra = SecureCassandra::start();
    let installation = Installation::secured();
    let running = installation.start("all", &["run"]).await;
    let (status, ready) = running.readyz().await.unwrap();
    assert_eq!((status, &ready["degraded"]), (200, &serde_json::json!([])), "{ready}");
    assert!(running.terminate(), "it ends well");
}

#[tokio::test]
async fn two_processes_of_one_name_and_mixtures_are_refused() {
    let _shared = SERVERS.read().await;
    let installation = Installation::new();
    let worker = ["run", "--no-config", "--roles", "worker", "--instance", "worker-0"];
    let running = installation.start("worker-0", &worker).await;
    let told = |arguments: &[&str]| {
        let output = installation.run(arguments);
        assert!(!output.status.success(), "{arguments:?} is not refused");
        String::from_utf8(output.stderr).unwrap()
    };
    let second = told(&[&worker[..], &["--listen", "127.0.0.1:0"]].concat());
    assert!(second.contains("another process has the instance \"worker-0\""), "{second}");
    running.kill();
    // Whoever comes back after it was killed is not taken for a second one.
    let again = installation.start("worker-0", &worker).await;
    assert!(again.terminate());
    let nameless = told(&["run", "--no-config", "--roles", "worker"]);
    assert!(nameless.contains("instance must be set"), "{nameless}");
    let mixed = told(&["run", "--no-config", "--set", "cache="]);
    assert!(mixed.contains("What is missing: cache"), "{mixed}");
    let other = told(&["run", "--no-config", "--listen", "127.0.0.1:0", "--set", "layout.shards=8"]);
    assert!(other.contains("shards"), "{other}");
    let unmigrated = told(&["run", "--no-config", "--listen", "127.0.0.1:0", "--set", "store=cql://127.0.0.1:1/none"]);
    assert!(unmigrated.contains("the stores cannot be used"), "{unmigrated}");
}
