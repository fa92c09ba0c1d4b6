//! [`Admissions`].

use std::sync::Arc;

use crate::{
    ids::{NotificationId, TenantId},
    ports::admissions::{Admission, Admissions, PlaceNote},
    record::Place,
};

const HOUR_MS: u64 = 3_600_000;
const NOW_MS: u64 = 1_700_000_000_000;

/// The whole suite. `run` is part of the tenants' names.
pub async fn all(port: Arc<dyn Admissions>, run: &str) {
    let tenant = |test: &str| TenantId::parse(&format!("{run}-{test}")).unwrap();
    the_first_call_wins(&*port, &tenant("first")).await;
    one_of_many_at_once_wins(port.clone(), &tenant("race")).await;
    a_key_lasts_a_day(&*port, &tenant("day")).await;
    one_caller_restarts(&*port, &tenant("restart")).await;
    only_its_own_call_is_withdrawn(&*port, &tenant("withdraw")).await;
    the_first_place_stays(&*port, &tenant("place")).await;
}

/// An admission that has just begun.
pub fn admission(tenant: &TenantId, key: &str, body: u8, now_ms: u64) -> Admission {
    Admission {
        id: NotificationId::of_idempotency_key(tenant, key, now_ms),
        body_hash: [body; 16],
        first_use_ms: now_ms,
        running_since_ms: now_ms,
        answered: false,
        first_place: None,
    }
}

fn place(offset: u64) -> Place {
    Place { topic: 1, partition: 2, offset, log_epoch: 3 }
}

async fn the_first_call_wins(port: &dyn Admissions, tenant: &TenantId) {
    let first = admission(tenant, "k", 1, NOW_MS);
    assert_eq!(port.begin(tenant, "k", first.clone()).await.unwrap(), None);
    let second = admission(tenant, "k", 2, NOW_MS + 5);
    assert_eq!(port.begin(tenant, "k", second.clone()).await.unwrap(), Some(first.clone()));
    port.answered(tenant, "k", &NotificationId([9; 16])).await.unwrap();
    assert_eq!(port.begin(tenant, "k", second.clone()).await.unwrap(), Some(first.clone()), "of another call");
    port.answered(tenant, "k", &first.id).await.unwrap();
    let answered = Admission { answered: true, ..first };
    assert_eq!(port.begin(tenant, "k", second.clone()).await.unwrap(), Some(answered));
    assert_eq!(port.begin(tenant, "k2", second.clone()).await.unwrap(), None, "another key");
    let other = TenantId::parse(&format!("{tenant}-other")).unwrap();
    assert_eq!(port.begin(&other, "k", second).await.unwrap(), None, "another tenant");
    port.answered(tenant, "never begun", &NotificationId([8; 16])).await.unwrap();
    let begun = admission(tenant, "never begun", 1, NOW_MS);
    assert_eq!(port.begin(tenant, "never begun", begun).await.unwrap(), None);
}

async fn one_of_many_at_once_wins(port: Arc<dyn Admissions>, tenant: &TenantId) {
    for round in 0..20 {
        let key = format!("key-{round}");
        let calls = (0..8u8).map(|n| {
            let (port, tenant, key) = (port.clone(), tenant.clone(), key.clone());
            let call: std::pin::Pin<Box<dyn Future<Output = bool> + Send>> = Box::pin(async move {
                port.begin(&tenant, &key, admission(&tenant, &key, n, NOW_MS)).await.unwrap().is_none()
            });
            call
        });
        // Each is polled in turn, so that they overlap wherever the backend waits.
        let mut calls: Vec<_> = calls.map(Some).collect();
        let mut won = 0;
        std::future::poll_fn(|context| {
            for call in &mut calls {
                if let Some(future) = call
                    && let std::task::Poll::Ready(first) = future.as_mut().poll(context)
                {
                    won += usize::from(first);
                    *call = None;
                }
            }
            if calls.iter().all(Option::is_none) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        assert_eq!(won, 1);
    }
}

async fn a_key_lasts_a_day(port: &dyn Admissions, tenant: &TenantId) {
    let first = admission(tenant, "k", 1, NOW_MS);
    port.begin(tenant, "k", first.clone()).await.unwrap();
    let late = admission(tenant, "k", 2, NOW_MS + 24 * HOUR_MS - 1);
    assert_eq!(port.begin(tenant, "k", late).await.unwrap(), Some(first));
    let next_day = admission(tenant, "k", 2, NOW_MS + 24 * HOUR_MS);
    assert_eq!(port.begin(tenant, "k", next_day.clone()).await.unwrap(), None);
    assert_eq!(port.begin(tenant, "k", next_day.clone()).await.unwrap(), Some(next_day));
}

async fn one_caller_restarts(port: &dyn Admissions, tenant: &TenantId) {
    port.begin(tenant, "k", admission(tenant, "k", 1, NOW_MS)).await.unwrap();
    assert!(!port.restart(tenant, "other", NOW_MS, NOW_MS + 10_000).await.unwrap());
    assert!(port.restart(tenant, "k", NOW_MS, NOW_MS + 10_000).await.unwrap());
    assert!(!port.restart(tenant, "k", NOW_MS, NOW_MS + 10_001).await.unwrap(), "another was faster");
    let stored = port.begin(tenant, "k", admission(tenant, "k", 1, NOW_MS + 1)).await.unwrap().unwrap();
    assert_eq!((stored.first_use_ms, stored.running_since_ms), (NOW_MS, NOW_MS + 10_000));
}

async fn only_its_own_call_is_withdrawn(port: &dyn Admissions, tenant: &TenantId) {
    let first = admission(tenant, "k", 1, NOW_MS);
    port.begin(tenant, "k", first.clone()).await.unwrap();
    port.withdraw(tenant, "k", &NotificationId([9; 16])).await.unwrap();
    assert_eq!(port.begin(tenant, "k", first.clone()).await.unwrap(), Some(first.clone()));
    port.withdraw(tenant, "k", &first.id).await.unwrap();
    assert_eq!(port.begin(tenant, "k", first).await.unwrap(), None);
}

async fn the_first_place_stays(port: &dyn Admissions, tenant: &TenantId) {
    for key in ["a", "b"] {
        port.begin(tenant, key, admission(tenant, key, 1, NOW_MS)).await.unwrap();
    }
    let note = |key: &str, offset| PlaceNote {
        tenant: tenant.clone(),
        key: key.into(),
        id: NotificationId::of_idempotency_key(tenant, key, NOW_MS),
        place: place(offset),
    };
    let noted = port.note_first_places(vec![note("a", 5), note("b", 6), note("a", 7)]).await.unwrap();
    assert_eq!(noted, [place(5), place(6), place(5)]);
    assert_eq!(port.note_first_places(vec![note("a", 8)]).await.unwrap(), [place(5)]);
    let stored = port.begin(tenant, "a", admission(tenant, "a", 1, NOW_MS)).await.unwrap().unwrap();
    assert_eq!(stored.first_place, Some(place(5)));
    // A record whose key is not known, or is another call's by now, is the first that it knows of.
    let foreign = PlaceNote { id: NotificationId([3; 16]), ..note("a", 9) };
    assert_eq!(port.note_first_places(vec![foreign, note("c", 1)]).await.unwrap(), [place(9), place(1)]);
}
