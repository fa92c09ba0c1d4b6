//! `herald import`: garbage in the middle, and kills on the way.

use std::{
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    commands::{answered, herald, said},
    support::{Chance, PATIENCE, Setup, seed},
};

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_reported_with_its_lines_and_the_rest_is_imported() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let _process = setup.start().await;
    let file = directory.path().join("people.csv");
    let mut text = b"user_id,email,attributes.name\n".to_vec();
    for number in 0..3_000 {
        match number {
            100 => text.extend(b"\xff\xfe garbage\n"),
            200 => text.extend(b"u200,\"open,x\n"),
            300 => text.extend(b"u300,a@example.org,x,too,many\n"),
            400 => text.extend(b"u400,not an address,x\n"),
            _ => writeln!(text, "u{number},u{number}@example.org,Name {number}").unwrap(),
        }
    }
    // The later line of a user holds.
    text.extend(b"u7,u7@example.org,Last\n");
    std::fs::write(&file, text).unwrap();
    let output = herald(&setup, &["import", "users", file.to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((summary["imported"].as_u64(), summary["refused"].as_u64()), (Some(2_997), Some(4)));
    assert_eq!(refused_lines(&directory.path().join("people.csv.refused.jsonl")), [102, 202, 302, 402]);
    let users = answered(&herald(&setup, &["users", "list", "--limit", "0", "--json"]));
    assert_eq!(users["users"].as_array().unwrap().len(), 2_996);
    let user = answered(&herald(&setup, &["users", "show", "u7", "--json"]));
    assert_eq!(user["attributes"]["name"], "Last");

    // A field that the server does not know makes it refuse the whole call; only the line is refused.
    let file = directory.path().join("people.jsonl");
    let line = |number: u64| {
        if number == 77 { r#"{"user_id":"x","nope":1}"#.into() } else { format!(r#"{{"user_id":"j{number}"}}"#) }
    };
    std::fs::write(&file, (1..=200).map(line).collect::<Vec<String>>().join("\n")).unwrap();
    let output = herald(&setup, &["import", "users", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    assert_eq!(refused_lines(&directory.path().join("people.jsonl.refused.jsonl")), [77]);

    // The report is never written over what it is about.
    let name = file.to_str().unwrap();
    let output = herald(&setup, &["import", "users", name, "--report", &name.replace("/people", "/./people")]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(std::fs::read_to_string(&file).unwrap().contains("j200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_import_goes_on_where_it_was_and_does_no_harm() {
    let chance = Chance::new(seed());
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let mut process = setup.start().await;
    let file = directory.path().join("edges.csv");
    let mut text = b"follower,followee\n".to_vec();
    (0..20_000).for_each(|n| writeln!(text, "f{n},star{}", n % 10).unwrap());
    std::fs::write(&file, text).unwrap();
    let state = directory.path().join("edges.csv.import-state");
    for kill in 0..3 {
        let mut import = start_import(&setup, &file);
        let wanted = 1 + chance.below(6_000) + kill * 5_000;
        let deadline = Instant::now() + PATIENCE;
        while line_of(&state) < wanted && import.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the import does not get on");
            std::thread::sleep(Duration::from_millis(1));
        }
        import.kill().unwrap();
        import.wait().unwrap();
        // The server dies too now and then.
        if kill == 1 {
            process.kill();
            process = setup.start().await;
        }
    }
    let stopped_at = line_of(&state);
    let summary = answered(&herald(&setup, &["import", "edges", file.to_str().unwrap(), "--json"]));
    assert_eq!(summary["resumed_behind_line"].as_u64(), Some(stopped_at));
    assert!(!state.exists());
    // Again from the start: all of them are there already, and stay.
    let again = answered(&herald(&setup, &["import", "edges", file.to_str().unwrap(), "--json"]));
    assert_eq!(again["imported"], 20_000);
    drop(process);
}

fn start_import(setup: &Setup, file: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_herald"))
        .args(["import", "edges", file.to_str().unwrap(), "--batch", "100", "--key", "hk_dev_demo"])
        .args(["--url", &format!("http://127.0.0.1:{}", setup.port)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The last line that an interrupted import noted; 0 while it has noted none.
fn line_of(state: &Path) -> u64 {
    let stored = std::fs::read(state).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    stored.and_then(|state| state["line"].as_u64()).unwrap_or(0)
}

fn refused_lines(report: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(report).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["line"].as_u64().unwrap()).collect()
}
