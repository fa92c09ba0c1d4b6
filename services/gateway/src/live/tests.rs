//! The live feed over real connections: a gateway's route on loopback, a WebSocket client, and HTTP/1.1 by hand.

mod client;
mod world;

use std::{sync::atomic::Ordering, time::Duration};

use futures::{SinkExt, StreamExt};
use herald_core::ports::sessions::Sessions;
use serde_json::Value;
use tokio::{io::AsyncWriteExt, time::timeout};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use super::LiveConfig;
use client::{Client, Events, get, web_socket};
use world::{KEY, Random, World, seed};

/// Long enough for a loaded machine; a test that waits so long fails.
const PATIENCE: Duration = Duration::from_secs(20);

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("nothing came in time")
}

/// Every queue and page is small, so that each run has gaps, overflows and pages. No check comes to their help.
fn small() -> LiveConfig {
    LiveConfig { queue: 4, read_items: 3, check_interval_ms: 3_600_000, ..LiveConfig::default() }
}

async fn receive(client: &mut Client, count: usize) -> Vec<Value> {
    let mut items = Vec::new();
    while items.len() < count {
        items.push(within(client.next()).await.expect("the connection ended"));
    }
    items
}

fn ids(items: &[Value]) -> Vec<&str> {
    items.iter().map(|item| item["event_id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_connections_have_no_gaps_and_no_duplicates_while_items_are_written() {
    const ITEMS: usize = 400;
    let seed = seed();
    let mut random = Random(seed);
    let world = World::new(small()).await;
    let writer = {
        let (world, mut random) = (world.clone(), Random(seed ^ 1));
        tokio::spawn(async move {
            let mut expected = Vec::new();
            while expected.len() < ITEMS {
                // Of a burst, one write may hold several records; others' items lie between.
                let records = 1 + random.below(6);
                expected.extend(world.write("u", records, &mut random).await);
                for _ in 0..random.below(4) {
                    tokio::task::yield_now().await;
                }
                if random.below(8) == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            expected
        })
    };
    let (mut received, mut connections): (Vec<String>, usize) = (Vec::new(), 0);
    while received.len() < ITEMS {
        let last = received.last().cloned().unwrap_or_else(|| "0-0-0".into());
        let mut client = world.connect(random.below(2) == 0, Some(&last)).await;
        connections += 1;
        let wanted = (1 + random.below(60)).min(ITEMS - received.len());
        received.extend(ids(&receive(&mut client, wanted).await).into_iter().map(str::to_owned));
    }
    let expected = within(writer).await.unwrap();
    assert!(connections > 3);
    assert_eq!(received[..ITEMS], expected[..ITEMS]);
}

#[tokio::test]
async fn what_overflows_the_queue_is_read_from_the_inbox() {
    let world = World::new(small()).await;
    let mut random = Random(3);
    for events in [true, false] {
        let mut client = world.connect(events, None).await;
        // Nothing else runs until all are handed over, since the stores of one machine do not wait.
        let expected = world.write("u", 50, &mut random).await;
        assert_eq!(ids(&receive(&mut client, expected.len()).await), expected);
        let expected = world.write("u", 2, &mut random).await;
        assert_eq!(ids(&receive(&mut client, expected.len()).await), expected, "and then by the queue again");
    }
}

#[tokio::test]
async fn what_comes_while_the_connection_opens_is_sent() {
    let world = World::new(small()).await;
    for events in [true, false] {
        world.write("u", 1, &mut Random(14)).await;
        world.write_on_open.store(true, Ordering::Relaxed);
        let mut client = world.connect(events, None).await;
        let stored = world.items("u").await;
        assert_eq!(receive(&mut client, 1).await[0], stored[stored.len() - 1]);
    }
}

#[tokio::test]
async fn both_transports_give_the_same_items_and_only_new_ones() {
    let world = World::new(LiveConfig::default()).await;
    let mut random = Random(4);
    let old = world.write("u", 2, &mut random).await;
    let (mut events, mut socket) = (world.connect(true, None).await, world.connect(false, None).await);
    let new = world.write("u", 3, &mut random).await;
    let items = receive(&mut events, new.len()).await;
    assert_eq!(ids(&items), new);
    assert_eq!(items, receive(&mut socket, new.len()).await);
    let first = &items[0];
    for field in ["instance_id", "request_id", "title", "body", "data", "created_at", "event_id"] {
        assert!(!first[field].is_null(), "{field} in {first}");
    }
    let all: Vec<_> = old.iter().chain(&new).cloned().collect();
    let stored = world.items("u").await;
    assert_eq!(ids(&stored), all, "as the inbox has them");
    assert_eq!(stored[old.len()..], items[..]);
}

#[tokio::test]
async fn a_connection_resumes_by_header_or_query_and_the_header_wins() {
    let world = World::new(LiveConfig::default()).await;
    let all = world.write("u", 5, &mut Random(5)).await;
    for events in [true, false] {
        let mut by_header = world.connect(events, Some(&all[1])).await;
        assert_eq!(ids(&receive(&mut by_header, all.len() - 2).await), all[2..]);
        let path = format!("/v1/users/u/live?last_event_id={}", all[0]);
        let mut by_query = world.open(events, &path, &[KEY]).await;
        assert_eq!(ids(&receive(&mut by_query, all.len() - 1).await), all[1..]);
        let mut by_both = world.open(events, &path, &[KEY, ("Last-Event-ID", &all[2])]).await;
        assert_eq!(ids(&receive(&mut by_both, all.len() - 3).await), all[3..]);
    }
}

#[tokio::test]
async fn a_place_ahead_of_the_feed_is_that_of_a_new_connection() {
    let world = World::new(LiveConfig::default()).await;
    for events in [true, false] {
        let (epoch, offset) = ("ffffffff-0-0", "1-ffffffffffffffff-0");
        for ahead in [epoch, offset] {
            world.write("u", 2, &mut Random(10)).await;
            let mut client = world.connect(events, Some(ahead)).await;
            let new = world.write("u", 3, &mut Random(11)).await;
            assert_eq!(ids(&receive(&mut client, new.len()).await), new, "after {ahead}");
        }
    }
    let stream = [KEY, ("Last-Event-ID", "ffffffff-0-0")];
    let mut stream = Events::open(world.address, "/v1/users/u/live", &stream).await.unwrap();
    let newest = world.items("u").await.last().unwrap()["event_id"].as_str().unwrap().to_owned();
    assert_eq!(within(stream.event()).await.unwrap().id, Some(newest), "the place that it goes on from");
}

#[tokio::test]
async fn an_event_stream_names_its_place_before_the_first_item() {
    let world = World::new(LiveConfig::default()).await;
    let old = world.write("u", 2, &mut Random(6)).await;
    let mut stream = Events::open(world.address, "/v1/users/u/live", &[KEY]).await.unwrap();
    let first = within(stream.event()).await.unwrap();
    assert_eq!((first.id.as_deref(), first.data), (old.last().map(String::as_str), None));
    let new = world.write("u", 1, &mut Random(7)).await;
    let event = within(stream.event()).await.unwrap();
    assert_eq!(event.id.as_deref(), Some(new[0].as_str()));
    assert!(event.data.unwrap().contains(&new[0]));
}

#[tokio::test]
async fn a_frame_that_was_lost_is_found_when_the_inbox_is_compared() {
    let world = World::new(LiveConfig { check_interval_ms: 20, ..LiveConfig::default() }).await;
    for events in [true, false] {
        let mut client = world.connect(events, None).await;
        world.lose_frames.store(true, Ordering::Relaxed);
        let lost = world.write("u", 3, &mut Random(8)).await;
        assert_eq!(ids(&receive(&mut client, lost.len()).await), lost);
        world.lose_frames.store(false, Ordering::Relaxed);
        let next = world.write("u", 1, &mut Random(9)).await;
        assert_eq!(ids(&receive(&mut client, next.len()).await), next, "each once");
    }
}

#[tokio::test]
async fn who_may_listen() {
    let world = World::new(LiveConfig::default()).await;
    let of = |user: &str, scopes: &[&str]| format!("/v1/users/u/live?token={}", world.token(user, scopes));
    let plain = "/v1/users/u/live";
    let bearer = format!("Bearer {}", world.token("u", &["inbox"]));
    for (path, header, status) in [
        (of("u", &["inbox"]), None, 200),
        (plain.to_owned(), Some(bearer.as_str()), 200),
        (plain.to_owned(), Some("Bearer hk_inbox"), 200),
        (of("v", &["inbox"]), None, 403),
        (of("u", &["preferences"]), None, 403),
        (plain.to_owned(), Some("Bearer hk_notify"), 403),
        (plain.to_owned(), None, 401),
        (plain.to_owned(), Some("Bearer hk_nobody"), 401),
        (format!("{plain}?token=hk_inbox"), None, 401),
    ] {
        let mut headers = vec![("Accept", "text/event-stream")];
        headers.extend(header.map(|header| ("Authorization", header)));
        assert_eq!(get(world.address, &path, &headers).await.status, status, "{path} {header:?}");
        let refused = web_socket(world.address, &path, &headers[1..]).await.err();
        assert_eq!(refused.unwrap_or(200), status, "{path} {header:?} on WebSocket");
    }
}

#[tokio::test]
async fn what_is_malformed_is_named() {
    let world = World::new(LiveConfig::default()).await;
    let accept = ("Accept", "text/html, Text/Event-Stream;q=0.9");
    let path = "/v1/users/u/live";
    for (path, header, field) in [
        (format!("{path}?last_event_id=12"), None, "last_event_id"),
        (path.to_owned(), Some(("Last-Event-ID", "x-y-z")), "Last-Event-ID"),
        (format!("{path}?since=1"), None, "since"),
        ("/v1/users/u%0A/live".to_owned(), None, "user_id"),
    ] {
        let headers: Vec<_> = [KEY, accept].into_iter().chain(header).collect();
        let answer = get(world.address, &path, &headers).await;
        let problem: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!((answer.status, problem["errors"][0]["field"].as_str()), (400, Some(field)), "{problem}");
    }
    let answer = get(world.address, path, &[KEY]).await;
    assert_eq!((answer.status, answer.body.contains("upgrade_required")), (400, true), "{}", answer.body);
}

#[tokio::test]
async fn a_user_has_a_bounded_number_of_connections() {
    let world = World::new(LiveConfig { max_connections_per_user: 2, max_connections: 3, ..small() }).await;
    let events = [KEY, ("Accept", "text/event-stream")];
    let first = world.connect(true, None).await;
    let _second = world.connect(false, None).await;
    let answer = get(world.address, "/v1/users/u/live", &events).await;
    assert_eq!((answer.status, answer.header("retry-after").is_some()), (429, true), "{}", answer.body);
    let _other = world.open(true, "/v1/users/v/live", &[KEY]).await;
    assert_eq!(get(world.address, "/v1/users/w/live", &events).await.status, 503, "the process is full");
    drop(first);
    while world.sessions.len() > 2 {
        tokio::task::yield_now().await;
    }
    let _again = world.connect(true, None).await;
}

#[tokio::test]
async fn shutdown_closes_web_sockets_as_going_away_and_ends_event_streams() {
    let world = World::new(LiveConfig::default()).await;
    let mut events = world.connect(true, None).await;
    let mut socket = web_socket(world.address, "/v1/users/u/live", &[KEY]).await.unwrap();
    world.shutdown.cancel();
    assert!(within(events.next()).await.is_none());
    let Some(Ok(Message::Close(Some(close)))) = within(socket.next()).await else { panic!("no close") };
    assert_eq!(close.code, CloseCode::Away);
    world.tasks.close();
    while let Some(Ok(_)) = within(socket.next()).await {}
    within(world.tasks.wait()).await;
    assert!(world.sessions.is_empty());
    assert_eq!(get(world.address, "/v1/users/u/live", &[KEY, ("Accept", "text/event-stream")]).await.status, 503);
}

#[tokio::test]
async fn a_revoked_key_ends_its_connections() {
    let world = World::new(LiveConfig { check_interval_ms: 20, ..LiveConfig::default() }).await;
    let mut events = world.connect(true, None).await;
    let mut socket = web_socket(world.address, "/v1/users/u/live", &[KEY]).await.unwrap();
    let by = |key: &str| format!("/v1/users/u/live?token={}", world.token_of(key, "u", &["inbox"]));
    let mut kept = world.open(false, &by("hk_notify"), &[]).await;
    let mut made_by_it = world.open(true, &by("hk_inbox"), &[]).await;
    world.revoke_keys();
    assert!(within(events.next()).await.is_none());
    assert!(within(made_by_it.next()).await.is_none(), "what the key made ends with it");
    let Some(Ok(Message::Close(Some(close)))) = within(socket.next()).await else { panic!("no close") };
    assert_eq!(close.code, CloseCode::Policy);
    let new = world.write("u", 1, &mut Random(10)).await;
    assert_eq!(ids(&receive(&mut kept, new.len()).await), new, "a token of another key goes on");
}

#[tokio::test]
async fn an_inbox_that_is_away_delays_and_loses_nothing() {
    let world = World::new(LiveConfig { check_interval_ms: 10, ..small() }).await;
    let all = world.write("u", 9, &mut Random(11)).await;
    let mut live = world.connect(true, None).await;
    let mut behind = world.connect(false, Some(&all[0])).await;
    assert_eq!(ids(&receive(&mut behind, 1).await), all[1..2]);
    world.inbox_away.store(true, Ordering::Relaxed);
    assert_eq!(get(world.address, "/v1/users/u/live", &[KEY, ("Accept", "text/event-stream")]).await.status, 503);
    let new = world.write("u", 1, &mut Random(12)).await;
    assert_eq!(ids(&receive(&mut live, new.len()).await), new, "the queue needs no inbox");
    while world.failed_reads.load(Ordering::Relaxed) < 5 {
        tokio::task::yield_now().await;
    }
    world.inbox_away.store(false, Ordering::Relaxed);
    let rest: Vec<_> = all[2..].iter().chain(&new).cloned().collect();
    assert_eq!(ids(&receive(&mut behind, rest.len()).await), rest);
}

#[tokio::test]
async fn a_silent_client_is_closed_and_one_that_answers_pings_is_not() {
    let world = World::new(LiveConfig { ping_interval_ms: 30, ..LiveConfig::default() }).await;
    let mut answers = web_socket(world.address, "/v1/users/u/live", &[KEY]).await.unwrap();
    let silent = client::silent_web_socket(world.address, "/v1/users/u/live", &[KEY]).await;
    assert_eq!(world.sessions.len(), 2);
    // The client's library answers pings while it reads.
    for _ in 0..6 {
        assert!(matches!(within(answers.next()).await, Some(Ok(Message::Ping(_)))));
    }
    while world.sessions.len() > 1 {
        assert!(matches!(within(answers.next()).await, Some(Ok(Message::Ping(_)))));
    }
    drop(silent);
    answers.send(Message::Text("clients have nothing to say".into())).await.unwrap();
    answers.send(Message::Text("x".repeat(5_000).into())).await.unwrap();
    while let Some(Ok(_)) = within(answers.next()).await {}
    world.tasks.close();
    within(world.tasks.wait()).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_costs_only_itself() {
    let world = World::new(LiveConfig { write_timeout_ms: 200, ..LiveConfig::default() }).await;
    let mut good = world.connect(false, None).await;
    let mut stuck_socket = client::silent_web_socket(world.address, "/v1/users/u/live", &[KEY]).await;
    let stuck_stream = Events::open(world.address, "/v1/users/u/live", &[KEY]).await.unwrap();
    let mut random = Random(13);
    world.body_bytes.store(100_000, Ordering::Relaxed);
    // Each connection has room for some megabytes in the buffers of the system.
    while world.sessions.len() > 1 {
        let expected = world.write("u", 8, &mut random).await;
        assert_eq!(ids(&receive(&mut good, expected.len()).await), expected);
    }
    assert!(world.sessions.connected(&world.tenant, &["u"]).await.unwrap()[0]);
    let _ = stuck_socket.shutdown().await;
    drop(stuck_stream);
}
