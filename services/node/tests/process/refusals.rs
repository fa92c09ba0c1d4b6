//! What cannot work is refused with an error that says where and how to mend it, and nothing is lost.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::{Setup, notification, user};

/// Runs `herald` until it ends and returns what it says; fails if it goes on running.
fn refused(arguments: &[&str]) -> String {
    refused_with(arguments).1
}

/// As [`refused`], with the exit code.
fn refused_with(arguments: &[&str]) -> (i32, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_herald"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while child.try_wait().unwrap().is_none() {
        if std::time::Instant::now() > deadline {
            child.kill().unwrap();
            panic!("herald {arguments:?} was not refused");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn dev<'a>(data: &'a Path, listen: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["dev", "--data", data.to_str().unwrap(), "--listen", listen], more].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_and_a_port_in_use_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let process = setup.start().await;
    process.client().await.set_up(1).await;
    let said = refused(&dev(&setup.data, "127.0.0.1:0", &[]));
    assert!(said.contains("in use by another Herald process") && said.contains("data"), "{said}");
    let other = directory.path().join("other");
    let listen = format!("127.0.0.1:{}", setup.port);
    let said = refused(&dev(&other, &listen, &[]));
    assert!(said.contains(&listen) && said.contains("--listen"), "{said}");
    // The first process was not disturbed.
    let results = process.client().await.notify(vec![notification("still-there", vec![user(0)])]).await.unwrap();
    process.client().await.settled(results[0].request_id.as_ref().unwrap()).await;
}

#[test]
fn the_real_thing_does_not_run_on_defaults_by_accident() {
    let (code, said) = refused_with(&["run"]);
    assert!(code == 2 && said.contains("--config FILE") && said.contains("herald dev"), "{code}: {said}");
    let (code, said) = refused_with(&["run", "--no-config", "--config", "herald.toml"]);
    assert!(code == 2 && said.contains("cannot be used with"), "{code}: {said}");
    // What is asked for on purpose gets as far as its settings.
    let (code, said) = refused_with(&["run", "--no-config", "--set", "layout.shards=0"]);
    assert!(code == 1 && said.contains("layout.shards is 0"), "{code}: {said}");
}

#[test]
fn a_configuration_that_cannot_be_meant_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let said = |more: &[&str]| refused(&dev(&data, "127.0.0.1:0", more));
    assert!(said(&["--set", "worker.max_atempts=3"]).contains("max_atempts"));
    assert!(said(&["--set", "layout.shards=0"]).contains("layout.shards is 0; it must be 1 to 64"));
    assert!(said(&["--config", "no-such-file"]).contains("no-such-file cannot be read"));
    assert!(said(&["--smtp", "http://mail"]).contains("email.url"));
    let public = refused(&dev(&data, "0.0.0.0:0", &[]));
    assert!(public.contains("loopback"), "{public}");
    assert!(!data.exists(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_newer_and_damaged_directories_are_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let foreign = directory.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.txt"), "years of work").unwrap();
    let said = refused(&dev(&foreign, "127.0.0.1:0", &[]));
    assert!(said.contains("not a data directory of Herald") && said.contains("thesis.txt"), "{said}");

    let setup = Setup::new(&directory.path().join("data"));
    let process = setup.start().await;
    process.client().await.set_up(5).await;
    let notifications = (0..200).map(|n| notification(&format!("n{n}"), vec![user(n % 5)])).collect();
    let results = process.client().await.notify(notifications).await.unwrap();
    let last = results.last().unwrap().request_id.clone().unwrap();
    process.client().await.settled(&last).await;
    process.kill();
    let said = refused(&dev(&setup.data, "127.0.0.1:0", &["--set", "layout.shards=4"]));
    assert!(said.contains('4') && said.contains('8') && said.contains("shard"), "{said}");

    let segment = journal_segment(&setup.data);
    let sound = std::fs::read(&segment).unwrap();
    let mut damaged = sound.clone();
    damaged[sound.len() / 2] ^= 1;
    std::fs::write(&segment, &damaged).unwrap();
    let said = refused(&dev(&setup.data, "127.0.0.1:0", &[]));
    let name = segment.file_name().unwrap().to_str().unwrap();
    assert!(said.contains(name) && said.contains("backup"), "{said}");
    assert_eq!(std::fs::read(&segment).unwrap(), damaged, "nothing was changed");

    std::fs::write(&segment, &sound).unwrap();
    let description = setup.data.join("herald.json");
    let text = std::fs::read_to_string(&description).unwrap();
    std::fs::write(&description, text.replace("\"format_version\": 2", "\"format_version\": 9")).unwrap();
    let said = refused(&dev(&setup.data, "127.0.0.1:0", &[]));
    assert!(said.contains("newer"), "{said}");

    std::fs::write(&description, text).unwrap();
    let process = setup.start().await;
    process.client().await.settled(&last).await;
}

/// The largest segment of the journal.
fn journal_segment(data: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(data.join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let segments = files.filter(|path| path.extension().is_some_and(|extension| extension == "seg"));
    segments.max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_nothing_is_promised_and_what_was_accepted_drains() {
    let directory = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(&directory.path().join("data"));
    let process = setup.start().await;
    process.client().await.set_up(5).await;
    let results = process.client().await.notify(vec![notification("before", vec![user(1)])]).await.unwrap();
    let before = results[0].request_id.clone().unwrap();
    process.kill();
    // No disk has this much room.
    setup.settings = vec![format!("disk.low_water_bytes={}", i64::MAX)];
    let process = setup.start().await;
    let mut client = process.client().await;
    let status = client.notify(vec![notification("during", vec![user(1)])]).await;
    let refused = match &status {
        Err(status) => status.code() == tonic::Code::Unavailable,
        Ok(results) => results[0].error.as_ref().is_some_and(|problem| problem.status == 503),
    };
    assert!(refused, "{status:?}");
    client.settled(&before).await;
}
