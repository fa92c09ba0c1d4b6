//! `docs/one-node.md`, block by block: what operators copy and paste works as it is.

use std::{
    os::unix::{fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{commands::said, support::free_ports};

/// Commands in place of those that need root or systemd.
const STAND_INS: &str = include_str!("one_node.sh");

/// The blocks of a page that are for a shell.
fn blocks(page: &str) -> String {
    let blocks = page.split("```bash\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.collect::<Vec<_>>().join("\n")
}

/// A process group; killed when dropped.
struct Group(u32);

impl Drop for Group {
    fn drop(&mut self) {
        let group = format!("-{}", self.0);
        let _gone_already = Command::new("kill").args(["-s", "KILL", "--", &group]).stderr(Stdio::null()).status();
    }
}

#[test]
fn what_the_page_about_one_node_says_works_as_it_is() {
    let repository: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let [api, ops] = free_ports();
    let place = |text: &str| {
        let paths = ["/usr/local/bin", "/etc/herald", "/etc/systemd", "/etc/prometheus", "/var/lib/herald"];
        let moved = |text: String, path: &&str| text.replace(path, &format!("{}{path}", root.display()));
        let text = paths.iter().fold(text.replace("notify.example.org", "localhost"), moved);
        let text = text.replace("0.0.0.0:8443", &format!("127.0.0.1:{api}")).replace(":8443", &format!(":{api}"));
        text.replace("127.0.0.1:9090", &format!("127.0.0.1:{ops}"))
    };

    // What a machine has before: a clone with its build, and what systemd makes of the unit's StateDirectory.
    let clone = root.join("clone");
    for path in ["usr/local/bin", "etc/systemd/system", "etc/prometheus", "var/lib/herald/backups", "units"] {
        std::fs::create_dir_all(root.join(path)).unwrap();
    }
    std::fs::create_dir_all(clone.join("target/release")).unwrap();
    symlink(repository.join("deploy"), clone.join("deploy")).unwrap();
    symlink(env!("CARGO_BIN_EXE_herald"), clone.join("target/release/herald")).unwrap();
    for unit in ["herald.service", "herald-backup.service"] {
        let text = std::fs::read_to_string(repository.join("deploy/systemd").join(unit)).unwrap();
        std::fs::write(root.join("units").join(unit), place(&text)).unwrap();
    }

    let page = std::fs::read_to_string(repository.join("docs/one-node.md")).unwrap();
    let after = "export HERALD_TENANT=acme\nherald inbox list ada | sed 's/^/AFTER /'";
    let script = format!("{STAND_INS}\n{}\n{after}", place(&blocks(&page)));
    let path = format!("{}/usr/local/bin:{}", root.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-c", &script, "one-node"]).current_dir(&clone).process_group(0);
    command.env_clear().env("PATH", path).env("UNITS", root.join("units")).env("HOME", root);
    let script = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _group = Group(script.id());
    let output = script.wait_with_output().unwrap();

    let log = || std::fs::read_to_string(clone.join("herald.log")).unwrap_or_default();
    let text = said(&output);
    assert!(output.status.success(), "{text}\n{}", log());
    for told in ["is complete; 1 recipients", "every file is there", "everything is as it must be", "herald_build_info"]
    {
        assert!(text.contains(told), "{told} is not told in {text}");
    }
    assert_eq!(text.matches("\"ready\":true").count(), 3, "{text}");
    assert!(text.lines().any(|line| line.starts_with("AFTER ") && line.contains("Welcome, Ada")), "{text}");
}
