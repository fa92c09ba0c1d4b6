//! A disk that is really full: a small file system in memory, mounted in a namespace of its own, which needs no privileges
//! where user namespaces are allowed.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    backup::{restore, text},
    commands::{answered, operator, said},
    http::send,
    support::{Client, PATIENCE, Setup, notification, user},
};

const DISK: &str = "HERALD_TEST_DISK";
const SIZE_MIB: u64 = 256;
const LOW_WATER_MIB: u64 = 48;
const PEOPLE: u64 = 10;

/// Where a test may mount its disk; `None` where it ran again, and passed, in a namespace in which it may.
fn place(name: &str) -> Option<PathBuf> {
    let place = std::env::var_os(DISK).map(PathBuf::from);
    if place.is_none() {
        in_a_namespace_of_its_own(name);
    }
    place
}

/// Mounts a small disk in a directory, which is made.
fn mount(disk: &Path, options: &str) {
    std::fs::create_dir(disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(disk).status().unwrap();
    assert!(mounted.success());
}

/// Runs this test again where it may mount; fails where that cannot be, rather than to pass without.
fn in_a_namespace_of_its_own(name: &str) {
    let directory = tempfile::tempdir().unwrap();
    let test = std::env::current_exe().unwrap();
    let namespaces: [&[&str]; 2] = [&["unshare", "-rm"], &["sudo", "-n", "--preserve-env", "unshare", "-m"]];
    let possible = namespaces.into_iter().find(|command| {
        let mut tried = Command::new(command[0]);
        tried.args(&command[1..]).args(["mount", "-t", "tmpfs", "tmpfs"]).arg(directory.path());
        tried.output().is_ok_and(|output| output.status.success())
    });
    let Some(command) = possible else {
        panic!(
            "this test fills a file system of its own, and neither unshare -rm nor sudo -n unshare -m may mount one here; \
             allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, or \
             kernel.apparmor_restrict_unprivileged_userns=0), or run it as root"
        );
    };
    let mut inner = Command::new(command[0]);
    let name = format!("full_disk::{name}");
    inner.args(&command[1..]).arg(test).args(["--exact", &name, "--nocapture"]).env(DISK, directory.path());
    let output = inner.output().unwrap();
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn free_bytes(disk: &Path) -> u64 {
    let found = rustix::fs::statvfs(disk).unwrap();
    found.f_bavail * found.f_frsize
}

/// Something else that fills the disk.
struct Ballast(PathBuf);

impl Ballast {
    /// Leaves so many bytes.
    fn leave(disk: &Path, free: u64) -> Self {
        let path = disk.join("ballast");
        let mut file = File::options().create(true).append(true).open(&path).unwrap();
        let block = vec![0; 64 << 10];
        while free_bytes(disk) > free {
            let left = (free_bytes(disk) - free).min(block.len() as u64) as usize;
            if file.write_all(&block[..left]).is_err() {
                break;
            }
        }
        Self(path)
    }

    fn remove(self) {
        std::fs::remove_file(self.0).unwrap();
    }
}

/// Sends notifications under their keys, again and again while they are refused.
struct Traffic {
    /// The request id of each key that was answered 202.
    accepted: BTreeMap<String, String>,
    next: u64,
}

impl Traffic {
    fn key(number: u64) -> String {
        format!("key-{number}")
    }

    /// Tries the next one; `false` if it was refused.
    async fn send(&mut self, client: &mut Client) -> bool {
        let key = Self::key(self.next);
        let answer = client.notify(vec![notification(&key, (0..PEOPLE).map(user).collect())]).await;
        let Some(id) = answer.ok().and_then(|mut results| results.remove(0).request_id) else { return false };
        let before = self.accepted.insert(key, id);
        assert!(before.is_none());
        self.next += 1;
        true
    }

    async fn until(&mut self, client: &mut Client, what: &str, accepted: bool) {
        let deadline = Instant::now() + PATIENCE;
        while self.send(client).await != accepted {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Everything that was accepted is delivered once, and nothing else is.
    async fn is_proven(&self, client: &mut Client) {
        for id in self.accepted.values() {
            let counts = client.settled(id).await.instances.unwrap();
            assert_eq!(u64::from(counts.delivered), PEOPLE * 2, "{counts:?}");
        }
        let mut wanted: Vec<&String> = self.accepted.values().collect();
        wanted.sort_unstable();
        for number in 0..PEOPLE {
            let mut inbox = client.inbox_of(&user(number)).await;
            inbox.sort_unstable();
            assert!(inbox.iter().eq(wanted.iter().copied()), "{} of {} are there", inbox.len(), wanted.len());
        }
    }
}

/// What a caller is told.
async fn refusal(port: u16) -> (u16, serde_json::Value) {
    let body =
        serde_json::json!({"template_id": "note", "audience": {"users": ["user-0"]}, "data": {"text": "refused"}});
    let answer = send(port, "POST", "/v1/notify", &[("Authorization", "Bearer hk_dev_demo")], Some(&body)).await;
    (answer.status, answer.json())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_loses_nothing_and_goes_on() {
    let Some(place) = place("a_full_disk_refuses_loses_nothing_and_goes_on") else { return };
    // The process's own log is beside the disk, not on it.
    let disk = place.join("data");
    mount(&disk, &format!("size={SIZE_MIB}m"));
    let mut setup = Setup::new(&disk);
    setup.settings = vec![format!("disk.low_water_bytes={}", LOW_WATER_MIB << 20)];
    let process = setup.start().await;
    let mut client = process.client().await;
    client.set_up(PEOPLE).await;
    let mut traffic = Traffic { accepted: BTreeMap::new(), next: 0 };

    // Nearly full: what comes is refused, what was accepted goes on, and so does everything once there is room.
    for _ in 0..3 {
        let begun = traffic.next;
        while traffic.next < begun + 20 {
            assert!(traffic.send(&mut client).await);
        }
        let ballast = Ballast::leave(&disk, (LOW_WATER_MIB << 20) - (64 << 10));
        traffic.until(&mut client, "a full disk refuses", false).await;
        let (status, problem) = refusal(setup.port).await;
        assert_eq!((status, problem["code"].as_str()), (503, Some("log_full")), "{problem}");
        traffic.is_proven(&mut client).await;
        ballast.remove();
        traffic.until(&mut client, "with room it goes on", true).await;
    }
    traffic.is_proven(&mut client).await;
    process.kill();

    // Full to the last byte: the log cannot tell what of a write is there, so the process ends, and says why.
    setup.settings = vec!["disk.low_water_bytes=0".to_owned()];
    let process = setup.start().await;
    let mut client = process.client().await;
    for _ in 0..20 {
        assert!(traffic.send(&mut client).await);
    }
    let ballast = Ballast::leave(&disk, 0);
    traffic.until(&mut client, "nothing is accepted that cannot be written", false).await;
    let ended = process.ends().await;
    assert!(!ended.success());
    ballast.remove();
    let log = std::fs::read_to_string(setup.data.with_extension("log")).unwrap_or_default();
    assert!(log.contains("the log has failed"), "{log}");

    // With room again it opens, and what was answered 202 is there and ends.
    let process = setup.start().await;
    let mut client = process.client().await;
    for _ in 0..5 {
        assert!(traffic.send(&mut client).await);
    }
    // The last one before the end was refused, and may have been accepted all the same: its key says.
    traffic.is_proven(&mut client).await;
}

/// Asks for a backup that the disk has no room for: it is refused, the words help, and nothing is left.
async fn has_no_room(setup: &Setup, to: &Path) -> bool {
    let body = serde_json::json!({ "directory": to });
    let key = [("Authorization", "Bearer hk_dev_admin")];
    let answer = send(setup.port, "POST", "/v1/admin/backups", &key, Some(&body)).await;
    if answer.status == 200 {
        return false;
    }
    let problem = answer.json();
    assert_eq!((answer.status, problem["code"].as_str()), (422, Some("backup_no_room")), "{problem}");
    assert!(
        problem["detail"].as_str().unwrap().contains("make room, or choose a directory on another disk"),
        "{problem}"
    );
    assert_eq!(answer.header("retry-after"), None, "{problem}");
    let left = std::fs::read_dir(to).map_or(0, Iterator::count);
    assert_eq!(left, 0, "{problem}");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_onto_a_full_disk_says_so_and_leaves_nothing() {
    let Some(place) = place("a_backup_onto_a_full_disk_says_so_and_leaves_nothing") else { return };
    let disk = place.join("disk");
    mount(&disk, "size=4m,nr_inodes=64");
    let mut setup = Setup::new(&place.join("data"));
    setup.settings = vec!["disk.low_water_bytes=0".to_owned()];
    let process = setup.start().await;
    let mut client = process.client().await;
    client.set_up(PEOPLE).await;
    let mut traffic = Traffic { accepted: BTreeMap::new(), next: 0 };
    for _ in 0..50 {
        assert!(traffic.send(&mut client).await);
    }
    traffic.is_proven(&mut client).await;

    let to = disk.join("backup");
    let ballast = Ballast::leave(&disk, 0);
    let refused = operator(&setup, &["backup", "--to", text(&to)]);
    let words = said(&refused);
    assert_eq!(refused.status.code(), Some(3), "{words}");
    assert!(words.contains("make room, or choose a directory on another disk") && !words.contains("again"), "{words}");
    assert!(said(&restore(&to, &place.join("nothing"))).contains("holds no backup"));
    // Elsewhere there is room.
    let elsewhere = place.join("elsewhere");
    assert_eq!(answered(&operator(&setup, &["backup", "--json", "--to", text(&elsewhere)]))["state"], "complete");
    ballast.remove();

    // It is the disk that says so wherever the room ends, be it within the last file.
    let mut free = 0;
    loop {
        let ballast = Ballast::leave(&disk, free);
        let refused = has_no_room(&setup, &to).await;
        ballast.remove();
        if !refused {
            break;
        }
        free += 4 << 10;
    }
    assert!(free > 8 << 10, "it broke off on its way, too");
    std::fs::remove_dir_all(&to).unwrap();
    // And so it is where not bytes but names have run out: for the directory, for its mark, for its files.
    let name = |number: usize| disk.join(format!("name-{number}"));
    let names = (0..).take_while(|number| File::create(name(*number)).is_ok()).count();
    for number in 0..3 {
        assert!(has_no_room(&setup, &to).await, "{number} of {names} are free");
        std::fs::remove_file(name(number)).unwrap();
    }
    (3..names).for_each(|number| std::fs::remove_file(name(number)).unwrap());

    // With room there it is taken, and both are good ones, of a process that went on as if nothing had been.
    answered(&operator(&setup, &["backup", "--json", "--to", text(&to)]));
    assert!(traffic.send(&mut client).await);
    traffic.is_proven(&mut client).await;
    for (number, backup) in [to, elsewhere].into_iter().enumerate() {
        answered(&restore(&backup, &place.join(format!("restored-{number}"))));
    }
}
