//! What operators are given holds together: alerts, runbooks, the dashboard, and the page about metrics.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
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

/// The samples of the metrics of `docs/metrics.md`, each with its labels.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let page = read("docs/metrics.md");
    let mut samples = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `herald_")) {
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        let (name, labels) = (columns[1].trim_matches('`'), words_of(columns[3]));
        if columns[2] == "histogram" {
            samples.insert(format!("{name}_bucket"), labels.iter().cloned().chain(["le".to_owned()]).collect());
            samples.extend(["_count", "_sum"].map(|suffix| (format!("{name}{suffix}"), labels.clone())));
        }
        samples.insert(name.to_owned(), labels);
    }
    assert!(samples.len() > 30, "{samples:?}");
    samples
}

/// The names in a list, whatever is between them.
fn words_of(list: &str) -> BTreeSet<String> {
    let names = list.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// What labels an expression uses that its metrics do not have.
fn unknown_labels(expression: &str, documented: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut unknown = Vec::new();
    let mut check = |metric: &str, labels: BTreeSet<String>| {
        // Prometheus itself adds these.
        let known = |label: &String| {
            ["job", "instance"].contains(&label.as_str())
                || documented.get(metric).is_some_and(|labels| labels.contains(label))
        };
        unknown.extend(labels.into_iter().filter(|label| !known(label)).map(|label| format!("{label} of {metric}")));
    };
    // What is compared: the names before the quoted values in braces behind a metric.
    for (at, _) in expression.match_indices('{') {
        let before = &expression[..at];
        let metric = &before[before.rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map_or(0, |i| i + 1)..];
        if documented.contains_key(metric) {
            let matchers: Vec<&str> = expression[at + 1..].split('"').collect();
            let end = matchers.iter().step_by(2).position(|part| part.contains('}')).unwrap();
            check(metric, matchers.iter().step_by(2).take(end).flat_map(|part| words_of(part)).collect());
        }
    }
    // What is grouped by: the labels behind `by`, of every metric in the parentheses behind them.
    for (at, by) in expression.match_indices("by (") {
        let (labels, operand) = expression[at + by.len()..].split_once(')').unwrap();
        let mut depth = 0;
        let closed = operand.char_indices().find(|(_, c)| {
            depth += i32::from(*c == '(') - i32::from(*c == ')');
            depth == 0 && *c == ')'
        });
        // Labels stand before what they group.
        let operand = &operand[..closed.unwrap().0];
        for metric in metrics_in(operand) {
            check(&metric, words_of(labels));
        }
    }
    unknown
}

/// The labels that are left of an expression's samples.
fn labels_left(expression: &str) -> BTreeSet<String> {
    let groups = expression.split("by (").skip(1).filter_map(|rest| rest.split_once(')'));
    groups.flat_map(|(labels, _)| words_of(labels)).collect()
}

/// The names of labels that a text shows, each behind `start` and before `}}`.
fn shown_labels(text: &str, start: &str) -> BTreeSet<String> {
    let behind = text.split(start).skip(1).filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase()).next());
    behind.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Expressions that operators are given, each with where it is and what is shown of its labels.
fn expressions() -> Vec<(String, String, BTreeSet<String>)> {
    let mut all = Vec::new();
    let rules = read(RULES);
    for rule in rules.split("\n      - ").skip(1) {
        let name = rule.lines().next().unwrap();
        let Some((_, rest)) = rule.split_once("expr:") else { continue };
        let ends = ["\n        for:", "\n        labels:"].iter().filter_map(|end| rest.find(end)).min();
        let expression = rest[..ends.unwrap_or(rest.len())].to_owned();
        all.push((format!("{RULES}: {name}"), expression, shown_labels(rule, "$labels.")));
    }
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana/herald.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let (expression, legend) =
                (target["expr"].as_str().unwrap(), target["legendFormat"].as_str().unwrap_or(""));
            all.push((format!("dashboard: {}", panel["title"]), expression.to_owned(), shown_labels(legend, "{{")));
        }
    }
    for entry in fs::read_dir(root().join("docs/runbooks")).unwrap() {
        let page = format!("docs/runbooks/{}", entry.unwrap().file_name().into_string().unwrap());
        let text = read(&page);
        let spans = text.split('`').skip(1).step_by(2);
        let queries = spans.filter(|span| span.contains("herald_") && span.contains(['(', '{']));
        all.extend(queries.map(|query| (page.clone(), query.replace('\n', " "), BTreeSet::new())));
    }
    all
}

#[test]
fn the_labels_that_operators_ask_for_exist() {
    let documented = documented();
    let all = expressions();
    assert!(all.len() > 50 && all.iter().any(|(place, ..)| place.starts_with("docs/runbooks")), "{all:?}");
    for (place, expression, shown) in all {
        let unknown = unknown_labels(&expression, &documented);
        assert!(unknown.is_empty(), "{place}: {expression}: docs/metrics.md knows no {unknown:?}");
        let left = labels_left(&expression);
        assert!(shown.is_subset(&left), "{place} shows {shown:?} of {left:?}");
    }
}

#[test]
fn a_label_that_is_not_there_is_told() {
    let documented = documented();
    let told = |expression: &str| unknown_labels(expression, &documented);
    let by =
        "sum by (channel, provider) (rate(herald_instances_ended_total[15m])) / sum(herald_provider_instances_total)";
    assert_eq!(told(by), ["provider of herald_instances_ended_total"]);
    assert_eq!(
        told("rate(herald_send_seconds_bucket{le=\"5\",tenant=~\"a}b\"}[5m])"),
        ["tenant of herald_send_seconds_bucket"]
    );
    assert_eq!(told("max by (le, channel) (herald_send_seconds_bucket{job=\"herald\", provider!~\"x,y\"})"), [""; 0]);
    assert_eq!(told("sum by (le) (herald_send_seconds_count)"), ["le of herald_send_seconds_count"]);
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
        let unknown: Vec<&String> = named.iter().filter(|name| !documented.contains_key(*name)).collect();
        assert!(unknown.is_empty(), "{page} names {unknown:?}, which docs/metrics.md does not");
    }
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana/herald.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.iter().all(|panel| panel["targets"][0]["expr"].is_string()) && panels.len() >= 10);
}
