//! Connections and their end.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::world::{notification, world};

#[tokio::test]
async fn a_call_that_runs_at_shutdown_is_answered_and_then_all_ends() {
    let world = world();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (config, deps) = (world.gateway.config.clone(), world.gateway.deps.clone());
    let running =
        tokio::spawn(herald_gateway::run(listener, config, deps, axum::Router::new(), world.shutdown.clone()));
    // One that says nothing, one that is idle, and one whose call waits for the log.
    let _silent = TcpStream::connect(address).await.unwrap();
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /problems/not_found HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(idle.read(&mut [0; 1_000]).await.unwrap() > 0);
    world.faults.held.send_replace(true);
    let body = notification().to_string();
    let mut busy = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/notify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer hk_acme\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    busy.write_all((head + &body).as_bytes()).await.unwrap();
    while world.faults.appends.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    world.shutdown.cancel();
    assert_eq!(idle.read(&mut [0; 1_000]).await.unwrap(), 0, "an idle connection is closed");
    assert!(!running.is_finished());
    world.faults.held.send_replace(false);
    let mut answer = String::new();
    busy.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    tokio::time::timeout(Duration::from_secs(5), running).await.unwrap().unwrap().unwrap();
    assert_eq!(world.requests().await.len(), 1);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn more_calls_at_once_than_allowed_are_refused_before_the_log() {
    let config = herald_gateway::Config { max_admissions_in_flight: 1, ..Default::default() };
    let world = crate::world::world_with(config);
    world.faults.held.send_replace(true);
    let first = world.post("/v1/notify", notification());
    let second = async {
        while world.faults.appends.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let answer = world.post("/v1/notify", notification()).await;
        world.faults.held.send_replace(false);
        answer
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.status.as_u16(), &first.body["deduplicated"]), (202, &json!(false)));
    assert_eq!((second.problem().0, second.problem().1, second.header("retry-after")), (503, "overloaded", Some("1")));
}

#[tokio::test]
async fn what_is_too_long_for_http_is_refused_by_its_status_alone() {
    let world = world();
    let address = world.listen().await;
    let ask = async |path: &str, header: &str| {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let longest = format!("/{}", "x".repeat(65_533));
    let answer = ask(&longest, "").await;
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("application/problem+json"), "{answer}");
    for (path, header, status) in [
        (format!("{longest}x"), String::new(), "414"),
        ("/v1/users".to_owned(), (0..64).map(|n| format!("X-{n}: x\r\n")).collect(), "431"),
    ] {
        let answer = ask(&path, &header).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(answer.ends_with("\r\n\r\n") && !answer.contains("content-type"), "{answer}");
    }
}
