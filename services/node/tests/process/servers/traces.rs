//! A trace goes on from process to process.

use std::collections::{BTreeMap, BTreeSet};

use super::{SERVERS, installation::Installation};
use crate::{
    collector::{Collector, of_caller},
    support::user,
    traces::{check_parents, send_traced},
};

#[tokio::test]
async fn a_notification_is_followed_through_four_processes() {
    let _shared = SERVERS.read().await;
    let (collector, installation) = (Collector::default(), Installation::new());
    let tracing = collector.start();
    let settings = ["email.url=null:", &tracing[0], &tracing[1]];
    let each = installation.start_each_role(1, &settings).await;
    let mut client = each.front.client();
    client.set_up(3).await;
    let (wanted, trace, caller) = of_caller(true);
    send_traced(&mut client, "traced", (0..3).map(user).collect(), Some(wanted)).await;

    let seen = collector.follow(&trace).await;
    check_parents(&seen, trace, caller);
    let mut by_process: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for seen in &seen {
        by_process.entry(&seen.instance).or_default().insert(&seen.span.name);
    }
    let mut stages: Vec<BTreeSet<&str>> = by_process.values().cloned().collect();
    stages.sort();
    let expected = [
        ["notify"].into(),
        ["process requests.bulk"].into(),
        ["send email", "send in_app"].into(),
        ["settle receipts"].into(),
    ];
    assert_eq!(stages, expected, "{by_process:?}");
}
