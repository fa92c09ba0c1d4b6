//! How long the users of a worker that died wait for another.

use std::time::{Duration, Instant};

use herald_core::ids::shard_of;

use super::{
    SERVERS,
    installation::{Installation, SHARDS},
};
use crate::support::{notification, user};

/// Generous, since the machine of a test may be busy. What is aimed at is ten seconds.
const BOUND: Duration = Duration::from_secs(30);

#[tokio::test]
async fn users_of_a_worker_that_died_are_served_by_another() {
    let _shared = SERVERS.read().await;
    let installation = Installation::new();
    let mut each = installation.start_each_role(2, &["email.url=null:", "instances=2"]).await;
    let mut client = each.front.client();
    client.set_up(100).await;
    let of_shard = |shard| (0..100).map(user).find(|user| shard_of("demo", user, SHARDS) == shard).unwrap();
    let users: Vec<String> = (0..SHARDS).map(of_shard).collect();
    let before = client.notify(vec![notification("before", users.clone())]).await.unwrap();
    client.settled(before[0].request_id.as_ref().unwrap()).await;
    for worker in &each.workers {
        // Each is ready, so each has shards.
        worker.says(|status, _| status == 200).await;
    }

    each.workers.pop().unwrap().kill();
    let died = Instant::now();
    let each = users.iter().map(|user| notification(user, vec![user.clone()])).collect();
    let results = client.notify(each).await.unwrap();
    let ids: Vec<String> = results.into_iter().map(|result| result.request_id.unwrap()).collect();
    let mut waited = vec![None; users.len()];
    while waited.contains(&None) {
        for (shard, id) in ids.iter().enumerate().filter(|(shard, _)| waited[*shard].is_none()).collect::<Vec<_>>() {
            if client.inbox_of(&users[shard]).await.contains(id) {
                waited[shard] = Some(died.elapsed());
            }
        }
        assert!(died.elapsed() < BOUND, "after {BOUND:?} some are not served: {waited:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!(
        "after the kill the first message of each shard came in {:?}",
        waited.iter().flatten().collect::<Vec<_>>()
    );
    for id in &ids {
        client.settled(id).await;
    }
    for user in &users {
        assert_eq!(client.inbox_of(user).await.len(), 2, "each has what was sent before and after, once");
    }
}
