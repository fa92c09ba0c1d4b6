//! [`Fleet`].

use std::sync::Arc;

use crate::ports::fleet::{Fleet, ProcessReport};

/// The whole suite. `run` is part of the processes' names.
pub async fn all(port: Arc<dyn Fleet>, run: &str) {
    let report = |name: &str, seen_ms: u64, version: u64| ProcessReport {
        process: format!("{run}-{name}"),
        seen_ms,
        versions: [("worker".to_owned(), version), ("gateway".to_owned(), version + 1)].into(),
        reads_level: 3,
    };
    let running = async |since_ms: u64| {
        let reports = port.running(since_ms).await.unwrap();
        reports.into_iter().filter(|report| report.process.starts_with(run)).collect::<Vec<_>>()
    };
    port.report(report("b", 2_000, 1)).await.unwrap();
    port.report(report("a", 1_000, 1)).await.unwrap();
    assert_eq!(running(1_000).await, [report("a", 1_000, 1), report("b", 2_000, 1)]);
    assert_eq!(running(1_001).await, [report("b", 2_000, 1)], "who was silent is left out");

    port.report(report("a", 3_000, 2)).await.unwrap();
    assert_eq!(running(2_500).await, [report("a", 3_000, 2)], "the last word counts");

    port.leave(&format!("{run}-a")).await.unwrap();
    port.leave(&format!("{run}-nobody")).await.unwrap();
    assert_eq!(running(0).await, [report("b", 2_000, 1)]);
    assert_eq!(report("a", 0, 4).behind(5).collect::<Vec<_>>(), ["worker"]);
}
