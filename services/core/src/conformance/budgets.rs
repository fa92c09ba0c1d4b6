//! [`Budgets`].

use std::sync::Arc;

use crate::{
    bucket::{Ask, Lease, MAX_TOKENS, Quota},
    ports::budgets::Budgets,
};

const NOW_MS: u64 = 1_700_000_000_000;

/// The whole suite. It uses buckets whose names begin with `prefix`, of which the backend must know nothing.
pub async fn all(port: Arc<dyn Budgets>, prefix: &str) {
    a_bucket_starts_full_and_fills_at_its_rate(&*port, prefix).await;
    a_group_gives_of_all_or_of_none(&*port, prefix).await;
    a_floor_is_kept(&*port, prefix).await;
    a_changed_quota_holds_from_then_on(&*port, prefix).await;
    the_smallest_and_largest_quotas_are_kept(&*port, prefix).await;
}

fn ask(prefix: &str, bucket: &str, per_second: f64, burst: u64, tokens: u64) -> Ask {
    let quota = Quota::new(per_second, burst).unwrap();
    Ask { bucket: format!("{prefix}{bucket}").into(), quota, tokens, floor: 0 }
}

async fn lease(port: &dyn Budgets, asks: &[Ask], after_ms: u64) -> Lease {
    let leases = port.lease(&[asks.to_vec()], NOW_MS + after_ms).await.unwrap();
    assert_eq!(leases.len(), 1);
    leases[0].clone()
}

async fn a_bucket_starts_full_and_fills_at_its_rate(port: &dyn Budgets, prefix: &str) {
    let of = |tokens| [ask(prefix, "rate", 10.0, 5, tokens)];
    assert_eq!(lease(port, &of(3), 0).await, Lease::Granted(vec![3]));
    assert_eq!(lease(port, &of(9), 0).await, Lease::Granted(vec![2]));
    assert_eq!(lease(port, &of(1), 40).await, Lease::Denied { ask: 0, retry_after_ms: 60 });
    assert_eq!(
        lease(port, &of(4), 99).await,
        Lease::Denied { ask: 0, retry_after_ms: 301 },
        "long enough for all of them"
    );
    assert_eq!(lease(port, &of(4), 100).await, Lease::Granted(vec![1]));
    assert_eq!(lease(port, &of(9), 60_000).await, Lease::Granted(vec![5]), "never more than its burst");
    // Groups of one call see each other.
    let two = port.lease(&[of(4).to_vec(), of(4).to_vec()], NOW_MS + 120_000).await.unwrap();
    assert_eq!(two, [Lease::Granted(vec![4]), Lease::Granted(vec![1])]);
}

async fn a_group_gives_of_all_or_of_none(port: &dyn Budgets, prefix: &str) {
    let of = |bucket, burst, tokens| ask(prefix, bucket, 1.0, burst, tokens);
    assert_eq!(lease(port, &[of("wide", 9, 4), of("narrow", 1, 4)], 0).await, Lease::Granted(vec![4, 1]));
    let denied = Lease::Denied { ask: 1, retry_after_ms: 1_000 };
    assert_eq!(lease(port, &[of("wide", 9, 4), of("narrow", 1, 4)], 0).await, denied);
    assert_eq!(lease(port, &[of("wide", 9, 9)], 0).await, Lease::Granted(vec![5]), "nothing was reserved");
}

async fn a_floor_is_kept(port: &dyn Budgets, prefix: &str) {
    let of = |floor| [Ask { floor, ..ask(prefix, "floor", 1.0, 8, 8) }];
    assert_eq!(lease(port, &of(2), 0).await, Lease::Granted(vec![6]));
    assert!(matches!(lease(port, &of(2), 0).await, Lease::Denied { .. }));
    assert_eq!(lease(port, &of(0), 0).await, Lease::Granted(vec![2]));
}

async fn a_changed_quota_holds_from_then_on(port: &dyn Budgets, prefix: &str) {
    let of = |per_second, burst| [ask(prefix, "changed", per_second, burst, 100)];
    assert_eq!(lease(port, &of(1.0, 10), 0).await, Lease::Granted(vec![10]));
    assert_eq!(lease(port, &of(1.0, 10), 2_000).await, Lease::Granted(vec![2]));
    assert_eq!(lease(port, &of(50.0, 60), 3_000).await, Lease::Granted(vec![1]), "a second at the old rate");
    assert_eq!(lease(port, &of(50.0, 60), 4_000).await, Lease::Granted(vec![50]));
    assert_eq!(lease(port, &of(50.0, 7), 9_000).await, Lease::Granted(vec![7]));
    assert_eq!(lease(port, &of(0.0, 7), 99_000).await, Lease::Denied { ask: 0, retry_after_ms: u64::MAX });
}

async fn the_smallest_and_largest_quotas_are_kept(port: &dyn Budgets, prefix: &str) {
    let most = [ask(prefix, "most", MAX_TOKENS as f64, MAX_TOKENS, MAX_TOKENS)];
    assert_eq!(lease(port, &most, 0).await, Lease::Granted(vec![MAX_TOKENS]));
    assert_eq!(lease(port, &most, 500).await, Lease::Granted(vec![MAX_TOKENS / 2]));
    let least = [ask(prefix, "least", 0.000_001, 1, 1)];
    assert_eq!(lease(port, &least, 0).await, Lease::Granted(vec![1]));
    assert_eq!(lease(port, &least, 1).await, Lease::Denied { ask: 0, retry_after_ms: 999_999_999 });
    assert_eq!(lease(port, &least, 1_000_000_000).await, Lease::Granted(vec![1]));
}
