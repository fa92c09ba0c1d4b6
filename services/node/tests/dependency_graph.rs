//! Who may see whom: the workspace's dependency graph, held against `docs/architecture.md`.
//!
//! A crate sees only crates of lower layers, so those of one layer never see each other. Beyond that, some clients may
//! be named in few places only.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// The layers, lowest first. `docs/architecture.md` shows the same.
const LAYERS: &[&[&str]] = &[
    &["herald-proto", "herald-templates"],
    &["herald-core"],
    &["herald-api"],
    &[
        "herald-gateway",
        "herald-orchestrator",
        "herald-worker",
        "herald-ledger",
        "herald-control-plane",
        "herald-channels",
        "herald-embedded",
        "herald-distributed",
    ],
    &["herald-node"],
    &["herald-loadtest", "herald-fuzz"],
];

/// The roles and what they share at their HTTP and gRPC edge. They name no vendor.
const SERVICES: &[&str] =
    &["herald-api", "herald-gateway", "herald-orchestrator", "herald-worker", "herald-ledger", "herald-control-plane"];

/// The only ones of their layer that speak to callers.
const SEE_API: &[&str] = &["herald-gateway", "herald-control-plane", "herald-node", "herald-loadtest", "herald-fuzz"];

/// What services may use in their tests besides lower layers: a real backend of the ports.
const BACKEND_FOR_TESTS: &str = "herald-embedded";

/// Clients of stores and logs, and who may name them.
const STORAGE_CLIENTS: &[&str] = &[
    "cassandra-cpp",
    "cdrs-tokio",
    "diesel",
    "fjall",
    "fred",
    "heed",
    "kafka",
    "lsm-tree",
    "mongodb",
    "rdkafka",
    "redb",
    "redis",
    "rocksdb",
    "rskafka",
    "rusqlite",
    "samsa",
    "scylla",
    "sea-orm",
    "sled",
    "sqlx",
    "tokio-postgres",
];
const NAME_STORAGE_CLIENTS: &[&str] = &["herald-embedded", "herald-distributed", "herald-node"];

/// Clients of providers, and who may name them.
const PROVIDER_CLIENTS: &[&str] = &["a2", "fcm", "fcm-service", "lettre", "mail-auth", "mail-send", "web-push"];
const NAME_PROVIDER_CLIENTS: &[&str] = &["herald-channels", "herald-node"];

/// What the functional core does without: runtimes, servers, clients and the loading of configuration.
const NOT_IN_CORE: &[&str] = &[
    "async-std",
    "axum",
    "clap",
    "config",
    "figment",
    "hyper",
    "hyper-util",
    "reqwest",
    "smol",
    "tokio",
    "tokio-stream",
    "tokio-util",
    "toml",
    "tonic",
    "tower",
    "tower-http",
];
const CORE: &[&str] = &["herald-core", "herald-templates"];

/// A crate of the workspace with the names it depends on.
#[derive(Default)]
struct Crate {
    /// For the build itself, build scripts included.
    normal: Vec<String>,
    /// For its tests, examples and benchmarks.
    dev: Vec<String>,
}

type Workspace = BTreeMap<String, Crate>;

fn workspace() -> Workspace {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().expect("cargo metadata");
    let mut crates = Workspace::new();
    for package in metadata.packages {
        let entry = crates.entry(package.name.to_string()).or_default();
        for dependency in package.dependencies {
            let names = if dependency.kind == DependencyKind::Development { &mut entry.dev } else { &mut entry.normal };
            names.push(dependency.name);
        }
    }
    crates
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&name))
}

/// All that is wrong with `workspace`, a sentence each.
fn violations(workspace: &Workspace) -> Vec<String> {
    let mut found = Vec::new();
    for (name, its) in workspace {
        let Some(own) = layer(name) else {
            found.push(format!(
                "{name} is in no layer: add it to LAYERS in services/node/tests/dependency_graph.rs and to the table of \
                 crates in docs/architecture.md"
            ));
            continue;
        };
        for (target, for_tests) in its.normal.iter().map(|t| (t, false)).chain(its.dev.iter().map(|t| (t, true))) {
            let seen_in = if for_tests { "its tests" } else { "itself" };
            if workspace.contains_key(target) {
                if !may_see(name, own, target, for_tests) {
                    found.push(format!("{name} ({seen_in}) may not depend on {target}"));
                }
            } else if let Some(why) = refused_vendor(name, target, for_tests) {
                found.push(format!("{name} ({seen_in}) may not name {target}: {why}"));
            }
        }
    }
    found
}

fn may_see(name: &str, own: usize, target: &str, for_tests: bool) -> bool {
    // The conformance suites of core are a feature that a crate's own tests may turn on, hence the crate itself.
    if for_tests && (target == name || (target == BACKEND_FOR_TESTS && SERVICES.contains(&name))) {
        return true;
    }
    let lower = layer(target).is_some_and(|other| other < own);
    lower && (target != "herald-api" || SEE_API.contains(&name))
}

/// Why `name` may not name the foreign crate `target`, if it may not. Tests are free to use what they like as a peer,
/// but for stores: a service that needs one in its tests takes a backend.
fn refused_vendor(name: &str, target: &str, for_tests: bool) -> Option<&'static str> {
    if STORAGE_CLIENTS.contains(&target) && !NAME_STORAGE_CLIENTS.contains(&name) {
        return Some("only the adapters and the node know a store or a log by name; go through a port of herald-core");
    }
    if for_tests {
        return None;
    }
    if PROVIDER_CLIENTS.contains(&target) && !NAME_PROVIDER_CLIENTS.contains(&name) {
        return Some("only herald-channels knows a provider by name; go through the port Channel");
    }
    if NOT_IN_CORE.contains(&target) && CORE.contains(&name) {
        return Some("the functional core has no client, runtime or configuration loading");
    }
    None
}

#[test]
fn the_workspace_keeps_the_graph() {
    let workspace = workspace();
    assert!(workspace.contains_key("herald-core") && workspace.contains_key("herald-worker"), "metadata was not read");
    let found = violations(&workspace);
    assert!(found.is_empty(), "docs/architecture.md says who may see whom:\n  {}", found.join("\n  "));
}

/// A workspace in which everything is right, plus one dependency.
fn with(name: &str, target: &str, for_tests: bool) -> Vec<String> {
    let mut crates: Workspace = LAYERS.concat().into_iter().map(|name| (name.to_owned(), Crate::default())).collect();
    assert!(violations(&crates).is_empty());
    let its = crates.entry(name.to_owned()).or_default();
    if for_tests { &mut its.dev } else { &mut its.normal }.push(target.to_owned());
    violations(&crates)
}

#[test]
fn what_is_forbidden_is_found() {
    let forbidden = [
        ("herald-gateway", "herald-worker", false),
        ("herald-worker", "herald-embedded", false),
        ("herald-channels", "herald-embedded", true),
        ("herald-embedded", "herald-ledger", false),
        ("herald-templates", "herald-core", false),
        ("herald-core", "herald-api", false),
        ("herald-worker", "herald-api", false),
        ("herald-node", "herald-loadtest", false),
        ("herald-core", "tokio", false),
        ("herald-ledger", "fjall", true),
        ("herald-channels", "redis", false),
        ("herald-control-plane", "rdkafka", false),
        ("herald-worker", "lettre", false),
    ];
    for (name, target, for_tests) in forbidden {
        let found = with(name, target, for_tests);
        assert!(
            found.len() == 1 && found[0].contains(name) && found[0].contains(target),
            "{name} -> {target}: {found:?}"
        );
    }
}

#[test]
fn what_is_allowed_is_not_found() {
    let allowed = [
        ("herald-core", "herald-templates", false),
        ("herald-api", "herald-core", false),
        ("herald-gateway", "herald-api", false),
        ("herald-control-plane", "herald-api", false),
        ("herald-worker", "herald-embedded", true),
        ("herald-embedded", "fjall", false),
        ("herald-core", "tokio", true),
        ("herald-gateway", "tokio", false),
        ("herald-node", "herald-channels", false),
        ("herald-loadtest", "herald-node", false),
    ];
    for (name, target, for_tests) in allowed {
        assert_eq!(with(name, target, for_tests), Vec::<String>::new(), "{name} -> {target}");
    }
}

#[test]
fn a_new_crate_is_told_where_it_goes() {
    let found = with("herald-new", "serde", false);
    assert!(found.len() == 1 && found[0].contains("LAYERS") && found[0].contains("docs/architecture.md"), "{found:?}");
}
