//! `herald lag` against processes whose worker is away: what waits, where, and whose it is.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use herald_core::ids::shard_of;
use serde_json::Value;

use super::{
    SERVERS,
    installation::{Installation, SHARDS},
};
use crate::{
    commands::{answered, said},
    support::{PATIENCE, notification, user},
};

#[tokio::test]
async fn what_waits_for_a_worker_is_told_by_partition_and_tenant() {
    let _shared = SERVERS.read().await;
    let installation = Installation::new();
    let settings = ["email.url=null:"];
    let mut each = installation.start_each_role(1, &settings).await;
    let front = &each.front;
    let mut client = front.client();
    client.set_up(1).await;
    let results = client.notify(vec![notification("before", vec![user(0)])]).await.unwrap();
    client.settled(results[0].request_id.as_ref().unwrap()).await;
    assert!(said(&front.operator(&["lag"])).contains("Nothing waits."));

    each.workers.pop().unwrap().kill();
    let ids: Vec<String> = {
        let each = (0..5).map(|number| notification(&format!("waits-{number}"), vec![user(0)])).collect();
        let results = client.notify(each).await.unwrap();
        results.into_iter().map(|result| result.request_id.unwrap()).collect()
    };
    // Five notifications, by mail and in the app; in the millisecond in which they come they have no age yet.
    let lag = until(
        || answered(&front.operator(&["lag", "--partitions", "--json"])),
        |lag| lag["tenants"][0]["instances"] == 10 && behind_worker(lag).values().all(|age| *age != 0),
    )
    .await;
    assert_eq!(lag["tenants"][0]["tenant_id"], "demo", "{lag}");
    let behind = behind_worker(&lag);
    let shard = u64::from(shard_of("demo", &user(0), SHARDS));
    assert_eq!(behind.keys().copied().collect::<Vec<_>>(), [("deliveries.bulk", shard)], "{lag}");
    assert!(behind.values().all(|age| age.as_u64().is_some_and(|age| age > 0)), "{lag}");
    let text = said(&front.operator(&["lag"]));
    assert!(text.contains("deliveries.bulk") && text.contains("herald.worker") && text.contains("demo"), "{text}");

    let _worker = installation.start_role("worker-0", &settings).await;
    for id in &ids {
        client.settled(id).await;
    }
    until(|| said(&front.operator(&["lag"])), |text| text.contains("Nothing waits.")).await;
}

/// The topics and partitions that wait for a worker, and the age of the oldest record in each.
fn behind_worker(lag: &Value) -> BTreeMap<(&str, u64), &Value> {
    let entries = lag["topics"].as_array().unwrap().iter();
    let waiting = entries.filter(|entry| entry["group"] == "herald.worker" && entry["records"] != 0);
    waiting
        .map(|entry| {
            ((entry["topic"].as_str().unwrap(), entry["partition"].as_u64().unwrap()), &entry["oldest_age_ms"])
        })
        .collect()
}

/// Asks until the answer is as wanted.
async fn until<T: std::fmt::Debug>(ask: impl Fn() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask();
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "the last answer: {answer:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
