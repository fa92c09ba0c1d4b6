//! [`Audit`].

use std::sync::Arc;

use crate::ports::audit::{Audit, AuditFilter, AuditRow};

const NOW_MS: u64 = 1_700_000_000_000;

/// The whole suite. `run` is part of the operators' names.
pub async fn all(port: Arc<dyn Audit>, run: &str) {
    let row = |n: u64| AuditRow {
        at_ms: NOW_MS + n / 2,
        actor: format!("{run}-{}", if n.is_multiple_of(3) { "ann" } else { "bob" }),
        action: format!("PUT /v1/admin/switches#{n}"),
        tenant: n.is_multiple_of(2).then(|| "acme".to_owned()),
        result: if n == 4 { "forbidden".into() } else { "ok".into() },
        status: 200,
        request_id: format!("r{n}"),
        detail: "hold".into(),
    };
    for n in 0..10 {
        port.record(row(n)).await.unwrap();
    }
    port.record(row(9)).await.unwrap();
    let ann = AuditFilter { actor: Some(format!("{run}-ann")), ..AuditFilter::default() };
    let found = read(&*port, &ann, 2).await;
    assert_eq!(found.len(), 4, "a call that is recorded again is there once");
    assert!(found.windows(2).all(|pair| pair[0].at_ms >= pair[1].at_ms), "newest first");
    assert!(found.contains(&row(0)) && found.contains(&row(9)));
    let upon = AuditFilter { tenant: Some("acme".into()), since_ms: NOW_MS + 2, ..ann.clone() };
    assert_eq!(read(&*port, &upon, 10).await, [row(6)]);
    let bob = AuditFilter { actor: Some(format!("{run}-bob")), since_ms: NOW_MS + 3, ..AuditFilter::default() };
    assert_eq!(read(&*port, &bob, 1).await.len(), 2);
    for token in [&b"x"[..], &[9; 40]] {
        assert!(port.list(&ann, Some(token), 5).await.unwrap().is_err());
    }
}

async fn read(port: &dyn Audit, filter: &AuditFilter, limit: usize) -> Vec<AuditRow> {
    let (mut rows, mut token) = (Vec::new(), None::<Vec<u8>>);
    loop {
        let page = port.list(filter, token.as_deref(), limit).await.unwrap().unwrap();
        assert!(page.items.len() <= limit);
        rows.extend(page.items);
        match page.next {
            Some(next) => token = Some(next),
            None => return rows,
        }
    }
}
