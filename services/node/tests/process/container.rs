//! What the image runs, as its Dockerfile has it, without an image: the same program with the same arguments and
//! environment, on paths and ports of the test's own.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    http::{Answer, send},
    support::{PATIENCE, free_ports},
};

const DOCKERFILE: &str = include_str!("../../../../Dockerfile");

/// A container's file system and ports.
struct Container {
    root: PathBuf,
    api: u16,
    ops: u16,
}

impl Container {
    fn new(root: &Path) -> Self {
        let [api, ops] = free_ports();
        for directory in ["etc/herald", "var/lib/herald"] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        Self { root: root.to_owned(), api, ops }
    }

    /// A text of the image, with the test's paths and ports in place of its own.
    fn place(&self, text: &str) -> String {
        let root = self.root.display();
        let paths = ["/etc/herald", "/var/lib/herald"];
        let placed = paths.iter().fold(text.to_owned(), |text, path| text.replace(path, &format!("{root}{path}")));
        let on = |port| format!("127.0.0.1:{port}");
        placed.replace("0.0.0.0:8080", &on(self.api)).replace("0.0.0.0:9090", &on(self.ops))
    }

    /// Starts what the image starts.
    fn start(&self) -> Started {
        let stage = DOCKERFILE.rsplit("\nFROM ").next().unwrap().replace("\\\n", " ");
        let said = |instruction: &str| {
            let mut lines = stage.lines().filter_map(|line| line.strip_prefix(instruction));
            self.place(lines.next().unwrap_or_else(|| panic!("the Dockerfile has no {instruction}")))
        };
        let words = |instruction: &str| serde_json::from_str::<Vec<String>>(&said(instruction)).unwrap();
        assert_eq!(words("ENTRYPOINT "), ["/usr/local/bin/herald"]);
        let environment = said("ENV ");
        let variables = environment.split_whitespace().map(|variable| variable.split_once('=').unwrap());
        let log = std::fs::File::create(self.log()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
        command.args(words("CMD ")).env_clear().envs(variables).current_dir(said("WORKDIR "));
        Started(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn log(&self) -> PathBuf {
        self.root.join("log")
    }
}

/// A running process; killed when dropped.
struct Started(Child);

impl Started {
    /// Waits until it has ended by itself.
    async fn ends(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _reaped_already = self.0.wait();
    }
}

/// What the head of the Dockerfile says, as one line.
fn head() -> String {
    DOCKERFILE.lines().map_while(|line| line.strip_prefix('#')).map(str::trim).collect::<Vec<_>>().join("\n")
}

/// Calls with a key once somebody listens.
async fn list_tenants(container: &Container, started: &mut Started, key: &str) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    let log = || std::fs::read_to_string(container.log()).unwrap();
    while tokio::net::TcpStream::connect(("127.0.0.1", container.api)).await.is_err() {
        assert!(started.0.try_wait().unwrap().is_none(), "it ended: {}", log());
        assert!(Instant::now() < deadline, "nobody listens: {}", log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    send(container.api, "GET", "/v1/admin/tenants", &[("Authorization", &format!("Bearer {key}"))], None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_runs_as_its_head_says_and_its_operator_can_call_it() {
    let directory = tempfile::tempdir().unwrap();
    let container = Container::new(directory.path());
    // The key is made, and mounted, as an operator does it.
    let head = head();
    let make = head.lines().find_map(|line| line.split_once(" && ").filter(|(make, _)| make.contains(">operator.key")));
    let made = Command::new("sh").args(["-c", make.unwrap().0]).current_dir(directory.path()).status().unwrap();
    assert!(made.success());
    let mount = head.split("$PWD/operator.key:").nth(1).and_then(|rest| rest.split_once(":ro")).unwrap().0;
    std::fs::rename(directory.path().join("operator.key"), container.place(mount)).unwrap();
    let key = std::fs::read_to_string(container.place(mount)).unwrap();

    let mut started = container.start();
    let answer = list_tenants(&container, &mut started, key.trim()).await;
    assert_eq!((answer.status, &answer.json()["tenants"]), (200, &json!([])), "{answer:?}");
    assert_eq!(send(container.api, "GET", "/v1/admin/tenants", &[], None).await.status, 401);
    assert_eq!(send(container.ops, "GET", "/readyz", &[], None).await.status, 200);
    let volume = "/var/lib/herald";
    assert!(DOCKERFILE.contains(&format!("VOLUME [\"{volume}\"]")), "data would be lost with the container");
    assert!(Path::new(&container.place(volume)).join("data/herald.json").is_file(), "data is not in the volume");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_operators_key_the_image_does_not_start_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let container = Container::new(directory.path());
    let status = container.start().ends().await;
    let log = std::fs::read_to_string(container.log()).unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("operator_key_file") && log.contains("/etc/herald/operator.key"), "{log}");
}
