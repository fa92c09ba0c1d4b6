//! Backups of a process under traffic; restores elsewhere; both broken off by SIGKILL; and what `verify` finds.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::sync::Mutex;

use crate::{
    commands::{answered, herald, operator, said},
    support::{Chance, Client, PATIENCE, Setup, notification, seed, user},
};

const PEOPLE: u64 = 100;

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Checks a data directory; it must be sound, and nothing may be lost.
fn verified(data: &Path) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_herald")).args(["verify", "--json", "--data", text(data)]).output();
    let report = answered(&output.unwrap());
    assert_eq!(report["fault_count"], 0);
    report
}

/// Restores a backup from the command line.
pub fn restore(from: &Path, data: &Path) -> Output {
    let arguments = ["restore", "--json", "--from", text(from), "--data", text(data)];
    Command::new(env!("CARGO_BIN_EXE_herald")).args(arguments).output().unwrap()
}

/// Notifies until told to stop, and notes what was accepted.
async fn notify_on(mut client: Client, stop: Arc<AtomicBool>, accepted: Arc<Mutex<Vec<String>>>) {
    for batch in 0.. {
        if stop.load(Relaxed) {
            return;
        }
        let one = |n: u64| {
            let users = (0..5).map(|i| user((batch * 7 + n + i) % PEOPLE)).collect();
            notification(&format!("call-{batch}-{n}"), users)
        };
        let results = client.notify((0..20).map(one).collect()).await.unwrap();
        accepted.lock().await.extend(results.into_iter().filter_map(|result| result.request_id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_accepted_before_a_backup_is_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let process = setup.start().await;
    process.client().await.set_up(PEOPLE).await;
    let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let traffic = tokio::spawn(notify_on(process.client().await, stop.clone(), accepted.clone()));
    while accepted.lock().await.len() < 500 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = accepted.lock().await.clone();
    let backup = directory.path().join("backup");
    let taken = answered(&operator(&setup, &["backup", "--json", "--to", text(&backup)]));
    assert_eq!(taken["state"], "complete");
    assert!(taken["bytes"].as_u64() > Some(10_000) && taken["rows"].as_u64() > Some(PEOPLE), "{taken}");
    stop.store(true, Relaxed);
    traffic.await.unwrap();

    // A tenant's key takes none, a path must be whole, and a backup is never written over.
    let refused = herald(&setup, &["backup", "--to", text(&directory.path().join("other"))]);
    assert_eq!(refused.status.code(), Some(5), "{}", said(&refused));
    let again = operator(&setup, &["backup", "--to", text(&backup)]);
    assert!(again.status.code() == Some(3) && said(&again).contains("complete backup"), "{}", said(&again));
    // One that would go down with its data, or has no place to go to, is not begun, and trying again would not help.
    let within = operator(&setup, &["backup", "--to", text(&setup.data.join("journal/backup"))]);
    assert!(
        within.status.code() == Some(3) && said(&within).contains("within the data directory"),
        "{}",
        said(&within)
    );
    assert!(!setup.data.join("journal/backup").exists());
    let file = operator(&setup, &["backup", "--to", text(&backup.join("backup.json"))]);
    assert!(file.status.code() == Some(3) && said(&file).contains("cannot be made"), "{}", said(&file));
    // Nor is a restore, over data in use or at rest.
    let live = restore(&backup, &setup.data);
    assert!(!live.status.success() && said(&live).contains("never writes over data"), "{}", said(&live));
    process.kill();

    let restored = Setup::new(&directory.path().join("restored"));
    answered(&restore(&backup, &restored.data));
    let report = verified(&restored.data);
    assert!(report["notifications"].as_u64() >= Some(before.len() as u64), "{report}");
    let process = restored.start().await;
    let mut client = process.client().await;
    for id in &before {
        let counts = client.settled(id).await.instances.unwrap();
        assert_eq!(counts.delivered, 10, "{id}: {counts:?}");
    }
    // The books of what was left behind by the kill hold too.
    verified(&setup.data);
}

/// Kills that fall inside of what they are to break off, of each kind.
const KILLS: u32 = 3;
/// Kills at most, where some come too late.
const ATTEMPTS: u32 = 30;

/// Runs `herald`, which says nothing.
fn start(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until a directory holds what marks it as under way and so many other names, or the command has ended.
async fn is_under_way(directory: &Path, mark: &str, others: u64, command: &mut Child) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let names = std::fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().file_name());
        let names: Vec<_> = names.collect();
        let has_begun = names.iter().any(|name| name == mark) && names.len() as u64 > others;
        if has_begun || command.try_wait().unwrap().is_some() {
            return;
        }
        assert!(Instant::now() < deadline, "{mark} does not appear: {names:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_and_restores_that_are_killed_can_be_repeated() {
    let chance = Chance::new(seed());
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let process = setup.start().await;
    let mut client = process.client().await;
    client.set_up(PEOPLE).await;
    let mut last = String::new();
    for batch in 0..40u64 {
        let one = |n: u64| notification(&format!("{batch}-{n}"), (0..20).map(|i| user((n + i) % PEOPLE)).collect());
        last = client.notify((0..20).map(one).collect()).await.unwrap()[19].request_id.clone().unwrap();
    }
    client.settled(&last).await;
    let backup = directory.path().join("backup");
    // The process that writes the backup is the one that dies.
    let mut process = Some(process);
    let url = format!("http://127.0.0.1:{}", setup.port);
    let ask = ["backup", "--to", text(&backup), "--key", "hk_dev_admin", "--url", &url];
    let (mut inside, mut attempts) = (0, 0);
    while inside < KILLS && attempts < ATTEMPTS {
        attempts += 1;
        let mut asked = start(&ask);
        is_under_way(&backup, "backup.partial", chance.below(3), &mut asked).await;
        process.take().unwrap().kill();
        asked.wait().unwrap();
        process = Some(setup.start().await);
        if backup.join("backup.json").exists() {
            std::fs::remove_dir_all(&backup).unwrap();
        } else {
            assert!(backup.join("backup.partial").exists());
            let refused = restore(&backup, &directory.path().join("nothing"));
            assert!(said(&refused).contains("partial"), "{}", said(&refused));
            inside += 1;
        }
    }
    println!("{inside} of {attempts} kills fell into a backup");
    assert!(inside > 0, "every kill came too late");
    answered(&operator(&setup, &["backup", "--json", "--to", text(&backup)]));
    process.take().unwrap().kill();

    let restored = Setup::new(&directory.path().join("restored"));
    let arguments = ["restore", "--from", text(&backup), "--data", text(&restored.data)];
    let (mut inside, mut attempts) = (0, 0);
    while inside < KILLS && attempts < ATTEMPTS {
        attempts += 1;
        let mut restoring = start(&arguments);
        // The lock, the journal and the stores are its other names.
        is_under_way(&restored.data, "restore.partial", 1 + chance.below(3), &mut restoring).await;
        restoring.kill().unwrap();
        restoring.wait().unwrap();
        if restored.data.join("herald.json").exists() {
            verified(&restored.data);
            std::fs::remove_dir_all(&restored.data).unwrap();
        } else {
            assert!(restored.data.join("restore.partial").exists());
            assert!(restored.try_start().await.is_none(), "what is half restored is not started on");
            let log = std::fs::read_to_string(restored.data.with_extension("log")).unwrap();
            assert!(log.contains("broken off"), "{log}");
            inside += 1;
        }
    }
    println!("{inside} of {attempts} kills fell into a restore");
    assert!(inside > 0, "every kill came too late");
    answered(&restore(&backup, &restored.data));
    verified(&restored.data);
    let process = restored.start().await;
    process.client().await.settled(&last).await;
}

/// A data directory at rest, with work under way.
async fn at_rest(directory: &Path) -> PathBuf {
    let mut setup = Setup::new(&directory.join("data"));
    // Nobody answers there, so mail stays in flight.
    setup.smtp = Some("smtp://127.0.0.1:9?tls=off".to_owned());
    let process = setup.start().await;
    let mut client = process.client().await;
    client.set_up(5).await;
    let one = |n: u64| notification(&format!("n{n}"), vec![user(n % 5), user((n + 1) % 5)]);
    let results = client.notify((0..50).map(one).collect()).await.unwrap();
    let last = results[49].request_id.clone().unwrap();
    while client.status(&last).await.unwrap().instances.unwrap().delivered < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    process.kill();
    setup.data
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_tells_what_is_on_its_way_from_what_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let data = at_rest(directory.path()).await;
    let report = verified(&data);
    assert!(report["in_flight"].as_u64() >= Some(90), "{report}");
    let offline = directory.path().join("offline");
    let output = Command::new(env!("CARGO_BIN_EXE_herald"))
        .args(["backup", "--json", "--key", "none", "--data", text(&data), "--to", text(&offline)])
        .output()
        .unwrap();
    answered(&output);

    let said_of = |data: &Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_herald")).args(["verify", "--data", text(data)]).output();
        let output = output.unwrap();
        (output.status.code(), said(&output))
    };
    assert_eq!(said_of(&directory.path().join("nothing")).0, Some(1));

    // A backup is told from a data directory, and checked as one.
    let (code, text) = said_of(&offline);
    assert!(code == Some(0) && text.contains("every file is there with its checksum"), "{text}");
    let files = std::fs::read_dir(&offline).unwrap().map(|entry| entry.unwrap().path());
    let file = files.filter(|path| path.extension().is_some_and(|e| e == "rows")).max().unwrap();
    let sound = std::fs::read(&file).unwrap();
    let mut damaged = sound.clone();
    damaged[sound.len() / 2] ^= 1;
    std::fs::write(&file, damaged).unwrap();
    let (code, text) = said_of(&offline);
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(code == Some(8) && text.contains("FAULT     backup") && text.contains(name), "{text}");
    std::fs::write(&file, sound).unwrap();
    std::fs::rename(offline.join("backup.json"), offline.join("backup.partial")).unwrap();
    let (code, text) = said_of(&offline);
    assert!(code == Some(8) && text.contains("partial"), "{text}");

    // One byte of the journal.
    let journal = std::fs::read_dir(data.join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let segment = journal.filter(|path| path.extension().is_some_and(|e| e == "seg")).max().unwrap();
    let sound = std::fs::read(&segment).unwrap();
    let mut damaged = sound.clone();
    damaged[sound.len() / 2] ^= 1;
    std::fs::write(&segment, damaged).unwrap();
    let (code, text) = said_of(&data);
    let name = segment.file_name().unwrap().to_str().unwrap();
    assert!(code == Some(8) && text.contains("FAULT     journal") && text.contains(name), "{text}");
    assert!(text.contains("UNCHECKED books"), "{text}");
    std::fs::write(&segment, sound).unwrap();
    assert_eq!(said_of(&data).0, Some(0));

    // A description that is not whole is none. Behind it stands a line's end, which says nothing.
    let sound = std::fs::read(data.join("herald.json")).unwrap();
    for (length, found) in [(sound.len() - 1, 0), (sound.len() - 2, 1)] {
        std::fs::write(data.join("herald.json"), &sound[..length]).unwrap();
        let (code, text) = said_of(&data);
        assert!(code == Some(found) && (found == 0 || text.contains("herald.json is damaged")), "{text}");
    }
    std::fs::write(data.join("herald.json"), sound).unwrap();

    // A journal that ends in order and knows nothing of what the books say is on its way.
    let empty = directory.path().join("empty");
    let setup = Setup::new(&empty);
    setup.start().await.kill();
    for name in ["journal", "herald.json"] {
        let moved = data.join(name).with_extension("aside");
        std::fs::rename(data.join(name), moved).unwrap();
        std::fs::rename(empty.join(name), data.join(name)).unwrap();
    }
    let (code, text) = said_of(&data);
    assert!(code == Some(8) && text.contains("0 are on their way"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_tells_that_a_key_does_not_open_what_was_sealed() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let process = setup.start().await;
    let credentials = directory.path().join("credentials.json");
    std::fs::write(&credentials, r#"{"username": "herald", "password": "p"}"#).unwrap();
    let put = ["providers", "put", "relay", "smtp://localhost:1", "--unchecked", "--json", "--credentials"];
    answered(&operator(&setup, &[&put[..], &[text(&credentials)]].concat()));
    process.kill();
    verified(&setup.data);
    let verify = || {
        let arguments = ["verify", "--json", "--data", text(&setup.data)];
        let output = Command::new(env!("CARGO_BIN_EXE_herald")).args(arguments).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let fault = &report["faults"][0];
        (output.status.code(), fault["part"].clone(), fault["what"].as_str().unwrap_or_default().to_owned())
    };
    let path = setup.data.join("secrets.key");
    let key = std::fs::read_to_string(&path).unwrap();
    let other = format!("{}{}", if key.starts_with('A') { 'B' } else { 'A' }, &key[1..]);
    for (text, why) in
        [(other.as_str(), "credentials of provider relay"), (&key[1..], "line 1 is no key"), ("", "no key")]
    {
        std::fs::write(&path, text).unwrap();
        let (code, part, what) = verify();
        assert!(code == Some(8) && part == "secrets" && what.contains(why), "{code:?} {part}: {what}");
        assert!(what.contains("put the file back"), "{what}");
    }
    std::fs::write(&path, key).unwrap();
    verified(&setup.data);
}
