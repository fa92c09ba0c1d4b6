//! A renewed certificate is served after SIGHUP, which does no harm where there is none.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use crate::support::{PATIENCE, Setup, notification, user};

/// The files of a certificate, which is its own root, and of its key.
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

impl Pair {
    /// Makes a new one for 127.0.0.1, whose files seem to have been changed at a time.
    fn make(directory: &Path, name: &str, changed: SystemTime) -> Self {
        let files = ["certificate", "key"].map(|what| directory.join(format!("{name}.{what}.pem")));
        let [certificate, key] = files;
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"])
            .args(["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"])
            .args([Path::new("-keyout"), &key, Path::new("-out"), &certificate])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        for path in [&certificate, &key] {
            std::fs::File::options().append(true).open(path).unwrap().set_modified(changed).unwrap();
        }
        Self { certificate, key }
    }
}

/// Killed when dropped.
struct Herald(Child);

impl Drop for Herald {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _reaped_already = self.0.wait();
    }
}

/// Whether the process answers somebody who trusts this certificate and no other.
fn answers(port: u16, trusted: &Path) -> bool {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--max-time", "5", "--output", "/dev/null", "--cacert"]).arg(trusted);
    curl.arg(format!("https://127.0.0.1:{port}/readyz")).status().unwrap().success()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The files' times stay the same, so the look at them that is taken now and then finds nothing new.
#[test]
fn a_renewed_certificate_is_served_after_sighup() {
    let directory = tempfile::tempdir().unwrap();
    let changed = SystemTime::now() - Duration::from_secs(60);
    let [used, first, second] = ["used", "first", "second"].map(|name| Pair::make(directory.path(), name, changed));
    let renew = |by: &Pair| {
        for (from, to) in [(&by.certificate, &used.certificate), (&by.key, &used.key)] {
            let copy = to.with_extension("new");
            std::fs::copy(from, &copy).unwrap();
            std::fs::File::options().append(true).open(&copy).unwrap().set_modified(changed).unwrap();
            std::fs::rename(copy, to).unwrap();
        }
    };
    renew(&first);
    let setup = Setup::new(&directory.path().join("data"));
    let child = Command::new(env!("CARGO_BIN_EXE_herald"))
        .arg("dev")
        .arg("--data")
        .arg(&setup.data)
        .args(["--listen", &format!("127.0.0.1:{}", setup.port)])
        .args(["--set", &format!("tls.certificate_file={}", used.certificate.display())])
        .args(["--set", &format!("tls.key_file={}", used.key.display())])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let herald = Herald(child);
    wait_until("it is ready", || answers(setup.port, &first.certificate));

    renew(&second);
    assert!(answers(setup.port, &first.certificate), "the one before stays until it is told");
    let told = Command::new("kill").args(["-s", "HUP", &herald.0.id().to_string()]).status().unwrap();
    assert!(told.success());
    wait_until("the new one is served", || answers(setup.port, &second.certificate));
    assert!(!answers(setup.port, &first.certificate));
}

/// Whoever sends it to all processes of a machine means those that have certificates.
#[tokio::test(flavor = "multi_thread")]
async fn without_certificates_sighup_is_logged_and_everything_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let process = setup.start().await;
    let mut client = process.client().await;
    client.set_up(1).await;
    for heard in 1..=2 {
        process.signal("HUP");
        wait_until("the signal is logged", || {
            let log = std::fs::read_to_string(setup.data.with_extension("log")).unwrap();
            log.matches("SIGHUP: there are no certificates").count() == heard
        });
    }
    let results = client.notify(vec![notification("after the signal", vec![user(0)])]).await.unwrap();
    client.settled(results[0].request_id.as_ref().unwrap()).await;
}
