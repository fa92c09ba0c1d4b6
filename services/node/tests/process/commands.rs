//! The client commands, against a process of their own: what they print, and how they end.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

use crate::support::Setup;

/// Runs `herald` as a client with the tenant's key.
pub fn herald(setup: &Setup, arguments: &[&str]) -> Output {
    herald_as(setup, "hk_dev_demo", arguments)
}

/// Runs `herald` as a client with the operator's key.
pub fn operator(setup: &Setup, arguments: &[&str]) -> Output {
    herald_as(setup, "hk_dev_admin", arguments)
}

fn herald_as(setup: &Setup, key: &str, arguments: &[&str]) -> Output {
    herald_at(setup.port, key, arguments)
}

/// Runs `herald` as a client of whoever listens on a port.
pub fn herald_at(port: u16, key: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command.args(arguments).env("HERALD_URL", format!("http://127.0.0.1:{port}")).env("HERALD_KEY", key);
    command.stdin(Stdio::null()).output().unwrap()
}

/// What a command printed as JSON; it must have succeeded.
pub fn answered(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Both outputs, for messages.
pub fn said(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_is_sent_and_followed_from_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let _process = setup.start().await;
    let template = json!({"channels": {"in_app": {"title": "{{data.text}}"}, "email": {"subject": "s", "text": "t"}}});
    let template = write(directory.path(), "template.json", &template.to_string());
    assert_eq!(answered(&herald(&setup, &["template", "put", "note", &template, "--json"]))["version"], 1);
    let user = json!({"endpoints": [{"channel": "email", "address": "ada@example.org"}]});
    let user = write(directory.path(), "user.json", &user.to_string());
    assert_eq!(answered(&herald(&setup, &["users", "put", "ada", &user, "--json"]))["user_id"], "ada");

    let notify = ["notify", "note", "--user", "ada", "--user", "nobody", "--data", r#"{"text": "Hi"}"#];
    let output = herald(&setup, &[&notify[..], &["--watch"]].concat());
    let text = said(&output);
    assert!(output.status.success() && text.contains("is complete") && text.contains("The books balance"), "{text}");
    assert!(text.contains("suppressed, unknown_user: 2"), "{text}");

    let requests = answered(&herald(&setup, &["status", "--json"]));
    let id = requests["requests"][0]["request_id"].as_str().unwrap().to_owned();
    let receipts = answered(&herald(&setup, &["receipts", &id, "--limit", "0", "--json"]));
    assert_eq!(receipts["receipts"].as_array().unwrap().len(), 4);
    assert_eq!(answered(&herald(&setup, &["inbox", "list", "ada", "--json"]))["items"][0]["title"], "Hi");
    assert_eq!(answered(&herald(&setup, &["inbox", "mark", "ada", "--as", "read", "--all", "--json"]))["unread"], 0);

    // The same key is the same notification.
    let again = [&notify[..], &["--idempotency-key", "k", "--json"]].concat();
    let first = answered(&herald(&setup, &again));
    let second = answered(&herald(&setup, &again));
    assert_eq!((first["deduplicated"].clone(), second["deduplicated"].clone()), (json!(false), json!(true)));
    assert_eq!(first["request_id"], second["request_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_tenants_and_keys_are_kept_from_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let _process = setup.start().await;
    let template =
        |text: &str| write(directory.path(), "t.json", &json!({"channels": {"in_app": {"title": text}}}).to_string());
    herald(&setup, &["template", "put", "t", &template("one")]);
    let draft = herald(&setup, &["template", "put", "t", &template("two"), "--draft"]);
    assert!(said(&draft).contains("draft"), "{}", said(&draft));
    let preview = |version: &[&str]| {
        answered(&herald(&setup, &[&["template", "preview", "t", "--json"][..], version].concat()))["parts"]["title"]
            .clone()
    };
    assert_eq!((preview(&[]), preview(&["--version", "2"])), (json!("one"), json!("two")));
    assert_eq!(answered(&herald(&setup, &["template", "publish", "t", "--json"]))["version"], 2);
    assert_eq!(answered(&herald(&setup, &["template", "rollback", "t", "--json"]))["version"], 1);
    let shown = answered(&herald(&setup, &["template", "show", "t"]));
    assert_eq!(shown["channels"]["in_app"]["title"], "one");

    answered(&operator(&setup, &["tenants", "put", "acme", "--name", "Acme", "--json"]));
    let created = answered(&operator(&setup, &["keys", "create", "acme", "--scope", "status", "--json"]));
    let key = created["key"].as_str().unwrap();
    assert_eq!(answered(&herald_as(&setup, key, &["status", "--json"]))["requests"], json!([]));
    // An operator acts for the tenant that is named.
    assert_eq!(
        answered(&operator(&setup, &["template", "list", "--tenant", "demo", "--json"]))["templates"][0]["template_id"],
        "t"
    );
    operator(&setup, &["keys", "delete", created["key_id"].as_str().unwrap()]);
    assert_eq!(herald_as(&setup, key, &["status"]).status.code(), Some(5));
    let last = operator(&setup, &["keys", "delete", "dev_admin"]);
    assert!(last.status.code() == Some(3) && said(&last).contains("Create another one first"), "{}", said(&last));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_key_is_replaced_by_one_of_the_same_name() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let _process = setup.start().await;
    let create = ["keys", "create", "--operator", "--name", "ops", "--json"];
    let older = answered(&operator(&setup, &create));
    let as_older = |arguments: &[&str]| herald_as(&setup, older["key"].as_str().unwrap(), arguments);
    let newer = answered(&as_older(&create));
    let as_newer = |arguments: &[&str]| herald_as(&setup, newer["key"].as_str().unwrap(), arguments);
    let listed = said(&as_newer(&["keys", "list"]));
    let (older_id, newer_id) = (older["key_id"].as_str().unwrap(), newer["key_id"].as_str().unwrap());
    assert!(listed.contains(older_id) && listed.contains(newer_id) && listed.matches(" ops ").count() == 2, "{listed}");

    let by_name = as_newer(&["keys", "delete", "ops"]);
    assert!(by_name.status.code() == Some(4) && said(&by_name).contains("no such key"), "{}", said(&by_name));
    assert!(as_newer(&["keys", "delete", older_id]).status.success());
    assert_eq!(as_older(&["keys", "list"]).status.code(), Some(5));
    assert!(as_newer(&["keys", "delete", "dev_admin"]).status.success());
    let last = as_newer(&["keys", "delete", newer_id]);
    assert!(last.status.code() == Some(3) && said(&last).contains("Create another one first"), "{}", said(&last));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_has_its_exit_code_and_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let ends = |arguments: &[&str], code: i32, says: &str| {
        let output = herald(&setup, arguments);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
    };
    ends(&["status"], 6, "Is herald dev running?");
    let process = setup.start().await;
    ends(&["status", "--url", "ftp://x"], 2, "http://127.0.0.1:8080");
    ends(&["--url", "http://127.0.0.1:1", "config"], 2, "--url is for commands that call a server");
    ends(&["verify", "--data", "x", "--key", "k"], 2, "--key is for commands that call a server");
    ends(&["notify", "note"], 2, "--everyone");
    ends(&["switch", "off"], 2, "SCOPE");
    ends(&["switch", "off", "chanel=email"], 2, "channel=");
    ends(&["notify", "nothing", "--everyone"], 3, "unknown_template");
    ends(&["status", "not-an-id"], 3, "UUID");
    ends(&["status", "00000000-0000-0000-0000-000000000000"], 4, "no such request");
    ends(&["status", "--key", "hk_wrong"], 5, "HERALD_KEY");
    ends(&["tenants", "list"], 5, "operator");
    ends(&["template", "put", "t", "no-such-file"], 1, "no-such-file cannot be read");
    ends(&["config", "--set", "nothing=1"], 1, "nothing");
    ends(&["status", "--key", ""], 5, "no key is given");
    ends(&["receipts", "--user", "ada", "--since", "48h"], 2, "--until");
    ends(&["receipts", "--user", "ada", "--since", "24h"], 0, "none");
    ends(&["limits", "set", "all", "--per-second", "-1"], 2, "a rate is a number from 0");
    ends(&["limits", "set", "all", "--per-second", "NaN"], 2, "a rate is a number from 0");
    ends(&["status", "--limit", "-1"], 2, "invalid value '-1'");
    let large = json!({"channels": {"in_app": {"body": "x".repeat(8 << 20)}}}).to_string();
    let large = herald(&setup, &["template", "put", "large", &write(directory.path(), "large.json", &large)]);
    // Which of the two it is depends on who is faster.
    assert!(matches!(large.status.code(), Some(1 | 3)) && said(&large).contains("too large"), "{}", said(&large));
    let output = operator(&setup, &["template", "list"]);
    assert!(said(&output).contains("--tenant"), "{}", said(&output));
    let output = herald(&setup, &["status", "not-an-id", "--json"]);
    let problem: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(problem["status"], 400);
    let output = herald(&setup, &["status", "--json", "--limit", "many"]);
    let problem: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((output.status.code(), &problem["exit_code"]), (Some(2), &json!(2)));
    assert!(problem["detail"].as_str().unwrap().starts_with("invalid value 'many'"), "{problem}");
    process.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_of_the_connection_stand_before_or_behind_the_command() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let _process = setup.start().await;
    let url = format!("http://127.0.0.1:{}", setup.port);
    let plain = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
        command.args(arguments).env_remove("HERALD_URL").env_remove("HERALD_KEY").stdin(Stdio::null()).output().unwrap()
    };
    let flags = ["--url", &url, "--key", "hk_dev_admin", "--tenant", "demo", "--json"];
    for arguments in [
        [&flags[..], &["template", "list"]].concat(),
        [&["template"][..], &flags, &["list"]].concat(),
        [&["template", "list"][..], &flags].concat(),
        [&flags[..4], &["template", "list", "--tenant", "demo", "--json"]].concat(),
    ] {
        assert_eq!(answered(&plain(&arguments))["templates"], json!([]), "{arguments:?}");
    }
    // The flag behind the command holds, and a failure is JSON wherever --json stands.
    let output = plain(&["--json", "--key", "hk_dev_demo", "--url", &url, "status", "x", "--key", "hk_wrong"]);
    let problem: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((output.status.code(), &problem["status"]), (Some(5), &json!(401)));
    let help = said(&plain(&["dev", "--help"]));
    assert!(help.contains("--listen") && !help.contains("--ca-file"), "{help}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_herald_dev_prints_works_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command.args(["dev", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()]);
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
    let printed: Vec<String> = lines.by_ref().take_while(|line| !line.starts_with("Or with this program")).collect();
    let first = printed.iter().position(|line| line.trim_start().starts_with("curl")).expect("a call is printed");
    let script = format!("set -eu\n{}", printed[first..].join("\n"));
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    let text = said(&output);
    assert!(output.status.success(), "{script}\n{text} (the calls need curl)");
    assert!(text.contains("\"request_id\"") && text.contains("\"items\""), "{text}");
}

#[test]
fn completions_and_manual_pages_are_made() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(env!("CARGO_BIN_EXE_herald")).args(["completions", shell]).output().unwrap();
        assert!(output.status.success() && said(&output).contains("redrive"), "{shell}");
    }
    let dir = directory.path().join("man");
    let made =
        Command::new(env!("CARGO_BIN_EXE_herald")).args(["man", "--dir", dir.to_str().unwrap()]).status().unwrap();
    assert!(made.success());
    for page in ["herald.1", "herald-notify.1", "herald-dlq-redrive.1"] {
        assert!(std::fs::read_to_string(dir.join(page)).unwrap().contains(".TH"), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_set_and_deleted_from_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let _process = setup.start().await;
    let set = ["limits", "set", "tenant=demo", "channel=email", "--per-second", "5", "--burst", "7", "--json"];
    let limit = answered(&operator(&setup, &set));
    assert_eq!((limit["per_second"].as_f64(), &limit["scope"]["channel"]), (Some(5.0), &json!("email")));
    let wrong = operator(&setup, &["limits", "set", "provider=stmp", "--per-second", "5"]);
    assert_eq!(wrong.status.code(), Some(3));
    assert!(
        said(&wrong).contains("no such provider") && said(&wrong).contains("Those that there are: "),
        "{}",
        said(&wrong)
    );
    let everything = answered(&operator(&setup, &["limits", "set", "all", "--per-second", "1000", "--json"]));
    assert_eq!(everything["scope"]["tenant"], json!(null));
    let listed = operator(&setup, &["limits", "list"]);
    assert!(said(&listed).contains("channel=email tenant=demo"), "{}", said(&listed));
    assert!(said(&listed).contains("  all "), "{}", said(&listed));
    let id = limit["id"].as_str().unwrap();
    assert!(operator(&setup, &["limits", "delete", id]).status.success());
    let audit = said(&operator(&setup, &["audit"]));
    assert!(audit.contains(&format!("DELETE /v1/admin/limits/{id}")), "the path as it was called: {audit}");
    let left = answered(&operator(&setup, &["limits", "list", "--json"]));
    assert_eq!(left["limits"].as_array().unwrap().len(), 1);
    assert_eq!(operator(&setup, &["limits", "delete", "lim_nothing"]).status.code(), Some(4));
    assert_eq!(operator(&setup, &["limits", "set", "all", "--per-second", "-1"]).status.code(), Some(2));
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command.args(["demo", "--users", "2000"]).env("TMPDIR", directory.path());
    let mut demo = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stderr.take().unwrap()).lines().map_while(Result::ok);
    lines.find(|line| line.starts_with("edges:")).expect("the demo begins");
    assert!(directory.path().read_dir().unwrap().next().is_some());
    let interrupt = format!("kill -INT {}", demo.id());
    assert!(Command::new("sh").args(["-c", &interrupt]).status().unwrap().success());
    assert!(lines.any(|line| line.contains("interrupted")), "it says why");
    assert_eq!(demo.wait().unwrap().code(), Some(1));
    assert_eq!(directory.path().read_dir().unwrap().count(), 0, "its directory is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_said_of_a_tenant_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let _process = setup.start().await;
    let put = |options: &[&str]| {
        let tenant = answered(&operator(&setup, &[&["tenants", "put", "acme", "--json"], options].concat()));
        (tenant["name"].as_str().unwrap().to_owned(), tenant["quota"].clone())
    };
    let quota = |per_second: f64, burst: u64| json!({"per_second": per_second, "burst": burst});
    assert_eq!(put(&[]), ("acme".to_owned(), Value::Null));
    assert_eq!(put(&["--name", "Acme"]).0, "Acme");
    assert_eq!(put(&["--quota-per-second", "2.5"]), ("Acme".to_owned(), quota(2.5, 3)));
    assert_eq!(put(&["--quota-burst", "7"]).1, quota(2.5, 7));
    assert_eq!(put(&["--name", "Acme Ltd"]), ("Acme Ltd".to_owned(), quota(2.5, 7)));
    assert_eq!(put(&[]), ("Acme Ltd".to_owned(), quota(2.5, 7)));
    for shown in [&["tenants", "list"][..], &["tenants", "show", "acme"]] {
        let shown = said(&operator(&setup, shown));
        assert!(shown.contains("burst=7 per_second=2.5"), "{shown}");
    }
    let audit = said(&operator(&setup, &["audit", "tenant=acme"]));
    assert!(audit.contains("name=Acme Ltd quota per_second=2.5 burst=7"), "{audit}");

    // Two operators at once: what either says is there at the end.
    for round in 0..5u64 {
        let (name, burst) = (format!("Acme {round}"), (10 + round).to_string());
        std::thread::scope(|scope| {
            let renamed = scope.spawn(|| put(&["--name", &name]));
            let limited = scope.spawn(|| put(&["--quota-burst", &burst]));
            renamed.join().unwrap();
            limited.join().unwrap();
        });
        assert_eq!(put(&[]), (name, quota(2.5, 10 + round)));
    }
    assert_eq!(put(&["--no-quota"]), ("Acme 4".to_owned(), Value::Null));
    for wrong in
        [&["--quota-burst", "7"][..], &["--no-quota", "--quota-per-second", "1"], &["--quota-per-second", "-1"]]
    {
        let refused = operator(&setup, &[&["tenants", "put", "acme"], wrong].concat());
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    }
    let refused = operator(&setup, &["tenants", "put", "acme", "--quota-per-second", "1", "--quota-burst", "0"]);
    assert_eq!(refused.status.code(), Some(3), "{}", said(&refused));
    assert_eq!(put(&[]).1, Value::Null);
}
