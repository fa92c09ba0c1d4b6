//! The power fails: every file is as long as it was when it was last synced, and renames whose directory was not synced
//! have not happened. Every 202 must be there afterwards.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::support::{Chance, Setup, notification, preloaded, seed, user};

const PEOPLE: u64 = 50;
const CUTS: u64 = 3;

/// What the process synced.
#[derive(Default)]
struct Synced {
    lengths: BTreeMap<PathBuf, u64>,
    /// Renames whose directory was not synced since: what was there before, if anything, and the name.
    pending_renames: Vec<(Option<PathBuf>, PathBuf)>,
}

fn read_log(path: &Path) -> Synced {
    let mut synced = Synced::default();
    for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
        let (kind, rest) = line.split_once(' ').unwrap();
        let (first, name) = rest.split_once(' ').unwrap();
        let name = PathBuf::from(name);
        match kind {
            "file" => {
                synced.lengths.insert(name, first.parse().unwrap());
            }
            "directory" => synced.pending_renames.retain(|(_, to)| to.parent() != Some(&name)),
            "rename" => synced.pending_renames.push(((first != "-").then(|| first.into()), name)),
            other => panic!("the recorder wrote {other:?}"),
        }
    }
    synced
}

/// Puts the directory into the state that a power cut leaves.
fn cut_power(data: &Path, log: &Path) {
    let synced = read_log(log);
    for (before, name) in synced.pending_renames.iter().rev() {
        std::fs::remove_file(name).unwrap();
        if let Some(before) = before {
            std::fs::rename(before, name).unwrap();
        }
    }
    let mut directories = vec![data.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            // A file may have been synced under the name that it had before a rename.
            let length = std::fs::metadata(&path).unwrap().len();
            let kept = synced.lengths.get(&path).copied().unwrap_or(if was_renamed(&path, log) { length } else { 0 });
            if kept < length {
                std::fs::File::options().write(true).open(&path).unwrap().set_len(kept).unwrap();
            }
        }
    }
}

fn was_renamed(path: &Path, log: &Path) -> bool {
    let name = path.to_str().unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    log.lines().any(|line| line.starts_with("rename ") && line.ends_with(&format!(" {name}")))
}

/// Sends, cuts the power, starts again; returns how many 202s were lost.
async fn lost_after_power_cuts(settings: &[&str]) -> u64 {
    let chance = Chance::new(seed());
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let log = directory.path().join("sync.log");
    let mut setup = Setup::new(&data);
    setup.settings = settings.iter().map(ToString::to_string).collect();
    setup.environment = vec![
        ("LD_PRELOAD".into(), preloaded("sync_recorder.c", directory.path()).display().to_string()),
        ("HERALD_TEST_SYNC_LOG".into(), log.display().to_string()),
    ];
    let mut process = setup.start().await;
    process.client().await.set_up(PEOPLE).await;
    let mut accepted = Vec::new();
    for cut in 0..CUTS {
        let mut client = process.client().await;
        let sending = async {
            for number in 0.. {
                let users = vec![user(chance.below(PEOPLE))];
                let Ok(results) = client.notify(vec![notification(&format!("{cut}-{number}"), users)]).await else {
                    return;
                };
                accepted.extend(results.into_iter().filter_map(|result| result.request_id));
            }
        };
        // The moment is random; how much was accepted by then does not matter.
        let _cut = tokio::time::timeout(Duration::from_millis(300 + chance.below(1_500)), sending).await;
        process.kill();
        cut_power(&data, &log);
        match setup.try_start().await {
            Some(started) => process = started,
            None => return accepted.len() as u64,
        }
    }
    assert!(!accepted.is_empty(), "nothing was accepted");
    let mut client = process.client().await;
    let mut lost = 0;
    for request_id in &accepted {
        match client.status(request_id).await {
            Ok(_) => {
                client.settled(request_id).await;
            }
            Err(status) if status.code() == tonic::Code::NotFound => lost += 1,
            Err(status) => panic!("{status}"),
        }
    }
    println!("{} accepted, {CUTS} power cuts, {lost} lost", accepted.len());
    lost
}

#[tokio::test(flavor = "multi_thread")]
async fn every_202_survives_power_cuts() {
    assert_eq!(lost_after_power_cuts(&[]).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_power_cut_is_real_without_syncing_202s_are_lost() {
    assert!(lost_after_power_cuts(&["disk.sync=false"]).await > 0);
}
