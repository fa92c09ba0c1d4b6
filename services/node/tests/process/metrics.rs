//! Health and metrics: on a listener of their own, and as `docs/metrics.md` says.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::TcpStream,
    path::Path,
};

use crate::support::{PATIENCE, Setup, notification, user};

/// What a plain GET answers: status and body.
pub fn get(port: u16, path: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// Type and labels of each metric, as the samples are named. Labels of what has no samples yet are not known.
fn shown(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        metrics.insert(format!("{name}{suffix}"), (kind.to_owned(), BTreeSet::new()));
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, labels)) = line.split_once('{') else { continue };
        let base = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        let labels = labels.rsplit_once('}').unwrap().0.split(',').filter_map(|label| label.split_once('='));
        let labels = labels.map(|(label, _)| label.to_owned()).filter(|label| label != "le");
        metrics.get_mut(base).unwrap().1.extend(labels);
    }
    metrics
}

fn documented() -> Metrics {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[3].split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), labels))
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_those_of_the_page_and_have_a_listener_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(&directory.path().join("data"));
    let ops = Setup::new(directory.path()).port;
    setup.settings.push(format!("ops_listen=127.0.0.1:{ops}"));
    let process = setup.start().await;
    let mut client = process.client().await;
    client.set_up(3).await;
    let results = client.notify(vec![notification("one", vec![user(0), user(1)])]).await.unwrap();
    client.settled(results[0].request_id.as_ref().unwrap()).await;

    assert_eq!(get(ops, "/healthz").0, 200);
    let (status, ready) = get(ops, "/readyz");
    assert!(status == 200 && ready.contains("\"stuck\":[]"), "{ready}");
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(setup.port, path).0, 404, "{path} has moved");
    }
    let (status, text) = get(ops, "/metrics");
    assert_eq!(status, 200);
    let (shown, documented) = (shown(&text), documented());
    for (name, (kind, labels)) in &shown {
        let Some((as_kind, as_labels)) = documented.get(name) else { panic!("{name} is not in docs/metrics.md") };
        assert_eq!(kind, as_kind, "{name}");
        assert!(labels.is_empty() || labels == as_labels, "{name} has {labels:?}, not {as_labels:?}");
    }
    let missing: Vec<_> = documented.keys().filter(|name| !shown.contains_key(*name)).collect();
    assert!(missing.is_empty(), "docs/metrics.md names {missing:?}");
    for sample in [
        "herald_instances_ended_total{channel=\"email\",state=\"delivered\"} 2",
        "herald_provider_instances_total{channel=\"in_app\",provider=\"in_app\",state=\"delivered\"} 2",
        "herald_send_seconds_count{channel=\"email\",provider=\"smtp\"} 2",
        "herald_dead_letters_total{stage=\"worker\"} 0",
        "herald_backlog_records{topic=\"deliveries.bulk\",group=\"herald.worker\"} 0",
        "herald_in_flight_idle_seconds 0.0",
        "herald_backup_last_success_timestamp_seconds 0.0",
    ] {
        assert!(text.contains(sample), "{sample} is not in\n{text}");
    }
    assert!(!text.contains(&user(0)), "no user is named");
}

/// Waits until the process tells of something stuck.
async fn told(port: u16) -> String {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let (status, ready) = get(port, "/readyz");
        if ready.contains("request_id") {
            assert_eq!(status, 200, "a stuck notification is no reason to send calls elsewhere");
            return ready;
        }
        assert!(std::time::Instant::now() < deadline, "nothing is said to be stuck: {ready}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_move_is_told_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(&directory.path().join("data"));
    // Nobody sends.
    setup.settings = ["members.worker=0", "ledger.stall_after_ms=300", "ledger.reconcile_interval_ms=100"]
        .map(str::to_owned)
        .to_vec();
    let process = setup.start().await;
    let mut client = process.client().await;
    client.set_up(2).await;
    let results = client.notify(vec![notification("one", vec![user(0), user(1)])]).await.unwrap();
    let id = results[0].request_id.clone().unwrap();
    let wanted = [id.as_str(), "\"stage\":\"sending\"", "\"finding\":\"stalled\"", "\"created\":2", "\"ended\":0"];
    let said = told(setup.port).await;
    assert!(wanted.iter().all(|part| said.contains(part)), "{said}");
    let (_, text) = get(setup.port, "/metrics");
    assert!(text.contains("herald_books_stalled 2") && !text.contains("herald_in_flight_idle_seconds 0.0"), "{text}");
    process.kill();

    // No receipt brings the books to memory, and yet they are looked at.
    let _process = setup.start().await;
    let said = told(setup.port).await;
    assert!(wanted.iter().all(|part| said.contains(part)), "{said}");
}
