//! Clients that are not ours, in another language, made from what Herald says of itself: the OpenAPI document is valid, and
//! a generated OpenAPI client and a generated gRPC client each go through one story.
//!
//! Needs `python3` with its `venv` module; the generators are installed into a virtual environment below `target/`.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::support::Setup;

/// What is installed, with versions, so that a run is the same next year.
const PACKAGES: [&str; 3] = ["openapi-python-client==0.29.1", "openapi-spec-validator==0.9.0", "grpcio-tools==1.85.1"];

async fn run(program: &Path, arguments: &[&str]) {
    match Command::new(program).args(arguments).output().await {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!(
            "{} {arguments:?} failed:\n{}{}",
            program.display(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => panic!(
            "this test needs {}, which cannot be run ({error}); install Python 3 with venv \
             (on Debian: apt-get install python3 python3-venv)",
            program.display()
        ),
    }
}

/// The interpreter of a virtual environment with these packages, which is set up unless it is there.
pub async fn python(packages: &[&str]) -> PathBuf {
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _held = ONE_AT_A_TIME.lock().await;
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join(packages.join("-").replace("==", "-"));
    let (python, complete) = (venv.join("bin/python"), venv.join("complete"));
    if !complete.exists() {
        run(Path::new("python3"), &["-m", "venv", "--clear", venv.to_str().unwrap()]).await;
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        run(&python, &[&install[..], packages].concat()).await;
        std::fs::write(&complete, "").unwrap();
    }
    python
}

#[tokio::test]
async fn generated_clients_go_through_a_story() {
    let python = python(&PACKAGES).await;
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let _process = setup.start().await;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let address = format!("127.0.0.1:{}", setup.port);
    let (protos, output) = (here.join("../../proto/proto"), directory.path().join("clients"));
    std::fs::create_dir(&output).unwrap();
    let (protos, output) = (protos.to_str().unwrap(), output.to_str().unwrap());
    let script = |name: &str| here.join("tests/clients").join(name).to_str().unwrap().to_owned();
    run(&python, &[&script("setup.py"), &address, protos, output]).await;
    run(&python, &[&script("http_story.py"), &address, output]).await;
    run(&python, &[&script("grpc_story.py"), &address, output]).await;
}
