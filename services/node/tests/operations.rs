//! What operators are given holds together: alerts, runbooks, the dashboard, and the page about metrics.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

const RULES: &str = "deploy/prometheus/herald.rules.yml";
const CASES: &str = "deploy/prometheus/herald.rules.test.yml";

/// What stands behind a key in the lines of a YAML file.
fn values<'a>(yaml: &'a str, key: &str) -> Vec<&'a str> {
    let strip = |line: &'a str| line.trim_start().trim_start_matches("- ").strip_prefix(key);
    yaml.lines().filter_map(strip).map(str::trim).collect()
}

/// The names of Herald's metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let names = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    names.filter(|name| name.starts_with("herald_") && !name.ends_with('_')).map(str::to_owned).collect()
}

/// The metrics of `docs/metrics.md`, each with the names of its samples.
fn documented() -> BTreeSet<String> {
    let page = read("docs/metrics.md");
    let mut names = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| `herald_")) {
        let name = line.split('`').nth(1).unwrap();
        names.insert(name.to_owned());
        if line.contains("| histogram |") {
            names.extend(["_bucket", "_count", "_sum"].map(|suffix| format!("{name}{suffix}")));
        }
    }
    assert!(names.len() > 30, "{names:?}");
    names
}

#[test]
fn each_alert_has_a_runbook_and_cases() {
    let (rules, cases) = (read(RULES), read(CASES));
    let alerts = values(&rules, "alert:");
    let runbooks = values(&rules, "runbook:");
    assert!(alerts.len() >= 10 && alerts.len() == runbooks.len(), "{alerts:?} {runbooks:?}");
    let index = read("docs/runbooks/README.md");
    for (alert, runbook) in alerts.iter().zip(&runbooks) {
        assert!(read(runbook).contains(alert), "{runbook} does not speak of {alert}");
        assert!(index.contains(alert), "docs/runbooks/README.md does not list {alert}");
        let fires = format!("alertname: {alert}\n        exp_alerts:\n");
        assert!(cases.contains(&fires), "{CASES} has no case in which {alert} fires");
    }
    let known: BTreeSet<&str> = runbooks.iter().map(|path| path.rsplit('/').next().unwrap()).collect();
    for entry in fs::read_dir(root().join("docs/runbooks")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "README.md" || known.contains(name.as_str()), "no alert leads to {name}");
    }
}

#[test]
fn whatever_operators_look_at_exists() {
    let documented = documented();
    let mut pages = vec![RULES.to_owned(), CASES.to_owned(), "deploy/grafana/herald.json".to_owned()];
    for entry in fs::read_dir(root().join("docs/runbooks")).unwrap() {
        pages.push(format!("docs/runbooks/{}", entry.unwrap().file_name().into_string().unwrap()));
    }
    for page in pages {
        let named = metrics_in(&read(&page));
        let unknown: Vec<&String> = named.difference(&documented).collect();
        assert!(unknown.is_empty(), "{page} names {unknown:?}, which docs/metrics.md does not");
    }
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana/herald.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.iter().all(|panel| panel["targets"][0]["expr"].is_string()) && panels.len() >= 10);
}
