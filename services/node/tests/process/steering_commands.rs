//! What operators steer with, from the command line.

use std::time::Duration;

use serde_json::json;

use crate::{
    commands::{answered, herald, operator, said},
    support::{Setup, notification, user},
};

#[tokio::test(flavor = "multi_thread")]
async fn sending_is_switched_held_and_cancelled_from_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let process = setup.start().await;
    let mut client = process.client().await;
    client.set_up(3).await;

    let held = operator(&setup, &["switch", "hold", "channel=email", "--reason", "a provider is down"]);
    assert!(held.status.success() && said(&held).contains("1 of 1 processes run it"), "{}", said(&held));
    let results = client.notify(vec![notification("held", (0..3).map(user).collect())]).await.unwrap();
    let request = results[0].request_id.clone().unwrap();
    for number in 0..3 {
        client.receives(&user(number), &request).await;
    }
    while client.status(&request).await.unwrap().instances.unwrap().in_flight != 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What waits already is told first, then who runs it and how soon.
    let again = operator(&setup, &["switch", "hold", "channel=email"]);
    let lines = String::from_utf8_lossy(&again.stdout).into_owned();
    let [queued, runs] = lines.lines().collect::<Vec<_>>()[..] else { panic!("{}", said(&again)) };
    assert_eq!(queued, "Queued behind it: 3 messages.");
    let after =
        runs.split_once(" is hold: 1 of 1 processes run it, after ").and_then(|(_, after)| after.strip_suffix(" ms."));
    assert!(runs.starts_with("Switch sw_") && after.is_some_and(|ms| ms.parse::<u64>().is_ok()), "{runs}");
    let behind = answered(&operator(&setup, &["switch", "slow", "tenant=demo", "--expires", "1h", "--json"]));
    assert_eq!(behind["applied"]["processes"], behind["applied"]["of"]);
    let switches = answered(&operator(&setup, &["switch", "list", "--json"]));
    let mut states: Vec<String> =
        switches["switches"].as_array().unwrap().iter().map(|s| s["state"].to_string()).collect();
    states.sort();
    assert_eq!(states, [r#""hold""#, r#""slow""#]);

    let listed = said(&operator(&setup, &["switch", "list"]));
    assert!(listed.contains("QUEUED") && !listed.contains("instances="), "no objects in a table: {listed}");

    let cancelled = answered(&herald(&setup, &["cancel", &request, "--json"]));
    assert_eq!(cancelled["requests"][0]["request_id"], json!(request));
    let watched = herald(&setup, &["status", &request, "--watch"]);
    assert!(
        said(&watched).contains("is cancelled") && said(&watched).contains("suppressed, cancelled: 3"),
        "{}",
        said(&watched)
    );

    for scope in [&["channel=email"][..], &["tenant=demo"]] {
        let lifted = operator(&setup, &[&["switch", "on"], scope].concat());
        assert!(lifted.status.success(), "{}", said(&lifted));
    }
    let lifted = operator(&setup, &["switch", "list"]);
    assert!(said(&lifted).contains("channel=email") && !said(&lifted).contains("hold"), "{}", said(&lifted));
    let audit = operator(&setup, &["audit", "actor=dev_admin"]);
    assert!(said(&audit).contains("/v1/admin/switches"), "{}", said(&audit));
    assert_eq!(herald(&setup, &["switch", "off", "all"]).status.code(), Some(5), "a tenant's key");
}
