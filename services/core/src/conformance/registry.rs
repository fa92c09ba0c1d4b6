//! [`Registry`].

use std::sync::Arc;

use bytes::Bytes;

use crate::ports::registry::{Registry, Versioned, Written};

/// The whole suite. `run` is part of the kinds' names.
pub async fn all(port: Arc<dyn Registry>, run: &str) {
    let kind = |test: &str| format!("{run}-{test}");
    a_policy_is_compared_and_set(&*port, &kind("cas")).await;
    a_deleted_policy_counts_on(&*port, &kind("deleted")).await;
    a_kind_is_listed_in_order(&*port, &kind("list"), &kind("list2")).await;
    what_is_not_published_is_found(&*port, &kind("publish")).await;
}

fn value(text: &'static str) -> Option<Bytes> {
    Some(Bytes::from_static(text.as_bytes()))
}

async fn a_policy_is_compared_and_set(port: &dyn Registry, kind: &str) {
    assert_eq!(port.get(kind, "k").await.unwrap(), None);
    assert_eq!(port.put(kind, "k", value("1"), 1).await.unwrap(), Written::VersionMismatch(0));
    assert_eq!(port.put(kind, "k", value("1"), 0).await.unwrap(), Written::Done(1));
    assert_eq!(port.put(kind, "k", value("2"), 0).await.unwrap(), Written::VersionMismatch(1));
    assert_eq!(port.put(kind, "k", value("2"), 1).await.unwrap(), Written::Done(2));
    let stored = Versioned { kind: kind.into(), key: "k".into(), version: 2, value: value("2"), published: false };
    assert_eq!(port.get(kind, "k").await.unwrap(), Some(stored));
}

async fn a_deleted_policy_counts_on(port: &dyn Registry, kind: &str) {
    port.put(kind, "k", value("1"), 0).await.unwrap();
    assert_eq!(port.put(kind, "k", None, 1).await.unwrap(), Written::Done(2));
    let deleted = port.get(kind, "k").await.unwrap().unwrap();
    assert_eq!((deleted.version, deleted.value), (2, None));
    assert!(port.list(kind, "", None, 10).await.unwrap().is_empty());
    assert_eq!(port.put(kind, "k", value("3"), 2).await.unwrap(), Written::Done(3));
    assert_eq!(port.list(kind, "", None, 10).await.unwrap().len(), 1);
}

async fn a_kind_is_listed_in_order(port: &dyn Registry, kind: &str, other: &str) {
    for key in ["b/2", "a/1", "b/10", "b", "c/1", "b/1", "b/3"] {
        port.put(kind, key, value("x"), 0).await.unwrap();
    }
    port.put(kind, "b/3", None, 1).await.unwrap();
    port.put(other, "b/0", value("x"), 0).await.unwrap();
    let keys = async |prefix, after, limit| -> Vec<String> {
        port.list(kind, prefix, after, limit).await.unwrap().into_iter().map(|v| v.key).collect()
    };
    assert_eq!(keys("", None, 10).await, ["a/1", "b", "b/1", "b/10", "b/2", "c/1"]);
    assert_eq!(keys("b/", None, 10).await, ["b/1", "b/10", "b/2"]);
    assert_eq!(keys("b/", Some("b/1"), 1).await, ["b/10"]);
    assert_eq!(keys("b/", Some("b/2"), 10).await, [""; 0]);
    assert_eq!(keys("b/", Some("a"), 1).await, ["b/1"], "a cursor before the prefix");
    assert_eq!(keys("", Some("b/2"), 10).await, ["c/1"]);
}

async fn what_is_not_published_is_found(port: &dyn Registry, kind: &str) {
    let mine = async || -> Vec<(String, u64)> {
        let all = port.unpublished(1_000).await.unwrap();
        all.into_iter().filter(|v| v.kind == kind).map(|v| (v.key, v.version)).collect()
    };
    port.put(kind, "a", value("1"), 0).await.unwrap();
    port.put(kind, "b", value("1"), 0).await.unwrap();
    assert_eq!(mine().await, [("a".to_owned(), 1), ("b".to_owned(), 1)]);
    port.put(kind, "a", value("2"), 1).await.unwrap();
    port.published(kind, "a", 1).await.unwrap();
    port.published(kind, "b", 1).await.unwrap();
    assert_eq!(mine().await, [("a".to_owned(), 2)], "a newer version of \"a\" is stored");
    assert!(port.get(kind, "b").await.unwrap().unwrap().published);
    port.published(kind, "a", 2).await.unwrap();
    assert!(mine().await.is_empty());
    port.put(kind, "b", None, 1).await.unwrap();
    assert_eq!(mine().await, [("b".to_owned(), 2)], "a deletion is published too");
    assert_eq!(port.unpublished(0).await.unwrap(), []);
    port.published(kind, "b", 2).await.unwrap();
}
