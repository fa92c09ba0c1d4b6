//! [`Ledger`].

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    books::{Cancel, Tally, Totals},
    ids::{InstanceId, NotificationId, TenantId},
    packed::pack,
    ports::ledger::{AdmittedRow, Flush, Ledger, ReceiptRow, ReceiptScope, RequestRow, RequestScope},
    record::{Channel, Manifest, Receipts, State},
};

const NOW_MS: u64 = 1_700_000_000_000;
const HOUR_MS: u64 = 3_600_000;

/// The whole suite. `run` is part of the tenants' names, and `number` of the notifications'.
pub async fn all(port: Arc<dyn Ledger>, run: &str, number: u32) {
    let tenant = |test: &str| TenantId::parse(&format!("{run}-{test}")).unwrap();
    older_totals_lose(&*port, &tenant("totals"), number).await;
    a_request_is_admitted_once(&*port, &tenant("admitted"), number).await;
    another_tenants_ids_give_nothing(&*port, &tenant("mine"), &tenant("theirs"), number).await;
    requests_are_listed_newest_first(&*port, &tenant("requests"), number).await;
    requests_are_found_by_their_dedupe_key(&*port, &tenant("dedupe"), &tenant("dedupe-other"), number).await;
    receipts_of_a_request_are_paged(&*port, &tenant("receipts"), number).await;
    a_users_day_is_found(&*port, &tenant("user"), number).await;
    a_users_hour_is_newest_first(&*port, &tenant("hour"), number).await;
    a_flush_in_other_groups_changes_nothing(&*port, &tenant("replay"), number).await;
    foreign_tokens_are_refused(&*port, &tenant("tokens")).await;
}

/// The notification of a test and two numbers.
pub fn notification(tenant: &TenantId, run: u32, number: u64) -> NotificationId {
    let hash = crate::ids::hash128(&[tenant.as_str().as_bytes(), &run.to_be_bytes(), &number.to_be_bytes()]);
    NotificationId(hash)
}

/// Receipts of users that ended the same way.
pub fn receipts(tenant: &TenantId, id: &NotificationId, users: &[String], ended_ms: u64) -> Receipts {
    let mut tally = Tally::default();
    users.iter().for_each(|user| tally.add(InstanceId::of(id, user, Channel::Email).book_hash()));
    Receipts {
        notification_id: Bytes::copy_from_slice(&id.0),
        tenant: tenant.as_str().into(),
        channel: Channel::Email as i32,
        state: State::Delivered as i32,
        attempts: 1,
        provider: "smtp".into(),
        count: users.len() as u32,
        hash_sum: tally.hash_sum,
        users: pack(users.iter().map(String::as_str)),
        accepted_ms: NOW_MS,
        ended_ms,
        ..Receipts::default()
    }
}

fn users(from: u32, to: u32) -> Vec<String> {
    (from..to).map(|n| format!("user-{n}")).collect()
}

fn totals(tenant: &TenantId, applied: u64, delivered: u32) -> Totals {
    let id = NotificationId([1; 16]);
    let mut totals = Totals::new(tenant.clone());
    let receipts = receipts(tenant, &id, &users(0, delivered), NOW_MS + applied);
    let created = Manifest { channel: receipts.channel, count: 9, hash_sum: 77, recipients: 9, ..Manifest::default() };
    totals.book_manifest(&created);
    totals.book_receipts(&receipts);
    let suppressed = Receipts { state: State::Suppressed as i32, reason: "opted_out".into(), ..receipts };
    totals.book_receipts(&suppressed);
    totals.applied = applied;
    totals.cancel = Some(Cancel { requests: [0].into(), shards: [2, 63].into(), closed: true });
    for channel in totals.channels.values_mut() {
        // Confirmations may be read before what they confirm.
        channel.unconfirmed = Tally { count: u64::MAX, hash_sum: 5 };
    }
    totals
}

fn admitted(tenant: &TenantId, id: NotificationId, accepted_ms: u64) -> AdmittedRow {
    AdmittedRow {
        id,
        tenant: tenant.clone(),
        template_id: "welcome".into(),
        template_version: 3,
        accepted_ms,
        send_at_ms: 0,
        expires_ms: accepted_ms + 24 * HOUR_MS,
        dedupe_key: "d".into(),
    }
}

/// Reads a list of receipts page by page.
pub async fn read_all(port: &dyn Ledger, tenant: &TenantId, scope: &ReceiptScope, limit: usize) -> Vec<ReceiptRow> {
    let (mut rows, mut token) = (Vec::new(), None::<Vec<u8>>);
    loop {
        let page = port.receipts(tenant, scope, token.as_deref(), limit).await.unwrap().unwrap();
        assert!(page.items.len() <= limit);
        rows.extend(page.items);
        match page.next {
            Some(next) => token = Some(next),
            None => return rows,
        }
    }
}

/// A user's receipts of a span.
pub fn of_user(user: &str, since_ms: u64, until_ms: u64) -> ReceiptScope {
    ReceiptScope::User { user_id: user.into(), since_ms, until_ms }
}

async fn older_totals_lose(port: &dyn Ledger, tenant: &TenantId, run: u32) {
    let (id, unknown) = (notification(tenant, run, 1), notification(tenant, run, 2));
    let flush = |totals| Flush { totals: vec![(id, totals)], ..Flush::default() };
    port.apply(flush(totals(tenant, 10, 4))).await.unwrap();
    port.apply(flush(totals(tenant, 9, 3))).await.unwrap();
    assert_eq!(port.totals(&[unknown, id]).await.unwrap(), [None, Some(totals(tenant, 10, 4))]);
    port.apply(flush(totals(tenant, 10, 4))).await.unwrap();
    port.apply(flush(totals(tenant, 11, 5))).await.unwrap();
    assert_eq!(port.totals(&[id]).await.unwrap(), [Some(totals(tenant, 11, 5))]);
}

async fn a_request_is_admitted_once(port: &dyn Ledger, tenant: &TenantId, run: u32) {
    let id = notification(tenant, run, 1);
    assert_eq!(port.request(tenant, &id).await.unwrap(), None);
    let first = admitted(tenant, id, NOW_MS);
    let flush = Flush { admitted: vec![first.clone()], ..Flush::default() };
    port.apply(flush).await.unwrap();
    let again = Flush { admitted: vec![admitted(tenant, id, NOW_MS + 50)], ..Flush::default() };
    port.apply(again).await.unwrap();
    let row = RequestRow { admitted: Some(first.clone()), totals: None };
    assert_eq!(port.request(tenant, &id).await.unwrap(), Some(row.clone()));
    let page = port.requests(tenant, &RequestScope::Since(0), None, 10).await.unwrap().unwrap();
    assert_eq!((page.items, page.next), (vec![row], None), "it is listed once");
    // Receipts may be read before the request.
    let early = notification(tenant, run, 2);
    port.apply(Flush { totals: vec![(early, totals(tenant, 1, 1))], ..Flush::default() }).await.unwrap();
    let row = RequestRow { admitted: None, totals: Some(totals(tenant, 1, 1)) };
    assert_eq!(port.request(tenant, &early).await.unwrap(), Some(row));
}

async fn another_tenants_ids_give_nothing(port: &dyn Ledger, mine: &TenantId, theirs: &TenantId, run: u32) {
    let id = notification(mine, run, 1);
    let flush = Flush {
        admitted: vec![admitted(mine, id, NOW_MS)],
        totals: vec![(id, totals(mine, 1, 2))],
        receipts: vec![(0, vec![receipts(mine, &id, &users(0, 2), NOW_MS)])],
        ..Flush::default()
    };
    port.apply(flush).await.unwrap();
    let scopes = [ReceiptScope::Request(id), of_user("user-1", NOW_MS - HOUR_MS, NOW_MS + HOUR_MS)];
    for (scope, count) in scopes.iter().zip([2, 1]) {
        assert_eq!(read_all(port, mine, scope, 10).await.len(), count);
        assert!(read_all(port, theirs, scope, 10).await.is_empty());
    }
    assert_eq!(port.request(theirs, &id).await.unwrap(), None);
    assert!(port.requests(theirs, &RequestScope::Since(0), None, 10).await.unwrap().unwrap().items.is_empty());
}

async fn requests_are_listed_newest_first(port: &dyn Ledger, tenant: &TenantId, run: u32) {
    let ids: Vec<_> = (0..25).map(|n| notification(tenant, run, n)).collect();
    // Two are accepted within each millisecond.
    let row = |n: usize| admitted(tenant, ids[n], NOW_MS + n as u64 / 2);
    port.apply(Flush { admitted: (0..25).map(row).collect(), ..Flush::default() }).await.unwrap();
    let (mut seen, mut token) = (Vec::new(), None::<Vec<u8>>);
    loop {
        let page = port.requests(tenant, &RequestScope::Since(NOW_MS + 2), token.as_deref(), 4).await.unwrap().unwrap();
        seen.extend(page.items.into_iter().map(|row| row.admitted.unwrap()));
        if token.is_none() {
            // What is accepted later does not move what is on the next page.
            let late = notification(tenant, run, 99);
            let newest = admitted(tenant, late, NOW_MS + 500);
            port.apply(Flush { admitted: vec![newest], ..Flush::default() }).await.unwrap();
        }
        match page.next {
            Some(next) => token = Some(next),
            None => break,
        }
    }
    assert_eq!(seen.len(), 21);
    assert!(seen.windows(2).all(|pair| pair[0].accepted_ms >= pair[1].accepted_ms));
    let mut listed: Vec<_> = seen.iter().map(|row| row.id).collect();
    let mut expected = ids[4..].to_vec();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
}

async fn requests_are_found_by_their_dedupe_key(port: &dyn Ledger, tenant: &TenantId, other: &TenantId, run: u32) {
    let row = |owner: &TenantId, n: u64, key: &str| AdmittedRow {
        dedupe_key: key.into(),
        ..admitted(owner, notification(owner, run, n), NOW_MS + n)
    };
    let mut rows: Vec<_> = (0..7).map(|n| row(tenant, n, "a")).collect();
    rows.extend([row(tenant, 8, "ab"), row(tenant, 9, ""), row(other, 1, "a")]);
    port.apply(Flush { admitted: rows, ..Flush::default() }).await.unwrap();
    let (mut found, mut token) = (Vec::new(), None::<Vec<u8>>);
    let scope = RequestScope::DedupeKey("a".into());
    loop {
        let page = port.requests(tenant, &scope, token.as_deref(), 3).await.unwrap().unwrap();
        found.extend(page.items.into_iter().map(|row| row.admitted.unwrap().accepted_ms - NOW_MS));
        match page.next {
            Some(next) => token = Some(next),
            None => break,
        }
    }
    assert_eq!(found, [6, 5, 4, 3, 2, 1, 0]);
    let of_all = port.requests(tenant, &RequestScope::Since(0), None, 3).await.unwrap().unwrap();
    let foreign = port.requests(tenant, &scope, of_all.next.as_deref(), 3).await.unwrap();
    assert!(foreign.is_err(), "a token of another list");
}

async fn receipts_of_a_request_are_paged(port: &dyn Ledger, tenant: &TenantId, run: u32) {
    let (id, other) = (notification(tenant, run, 1), notification(tenant, run, 2));
    let with_ids = Receipts {
        provider_ids: (0..40).map(|n| format!("smtp-{n}")).collect(),
        ..receipts(tenant, &id, &users(0, 40), NOW_MS)
    };
    let records = vec![
        (7, vec![with_ids.clone(), receipts(tenant, &other, &users(0, 3), NOW_MS)]),
        (8, (40..60).map(|n| receipts(tenant, &id, &users(n, n + 1), NOW_MS + 5)).collect()),
    ];
    port.apply(Flush { partition: 3, receipts: records, ..Flush::default() }).await.unwrap();
    for limit in [1, 7, 40, 1_000] {
        let rows = read_all(port, tenant, &ReceiptScope::Request(id), limit).await;
        let mut found: Vec<_> = rows.iter().map(|row| row.user_id.clone()).collect();
        found.sort_by_key(|user| user[5..].parse::<u32>().unwrap());
        assert_eq!(found, users(0, 60), "by pages of {limit}");
        let row = rows.iter().find(|row| row.user_id == "user-17").unwrap();
        assert_eq!((row.id, row.provider_id.as_str()), (id, "smtp-17"));
        assert_eq!((row.shared.provider.as_str(), row.shared.attempts, row.shared.ended_ms), ("smtp", 1, NOW_MS));
        assert!(row.shared.users.is_empty() && row.shared.provider_ids.is_empty(), "the columns are empty");
    }
}

async fn a_users_day_is_found(port: &dyn Ledger, tenant: &TenantId, run: u32) {
    for hour in 0..30u64 {
        let id = notification(tenant, run, hour);
        let ended_ms = NOW_MS + hour * HOUR_MS;
        let records = vec![
            (hour * 10, vec![receipts(tenant, &id, &users(0, 20), ended_ms)]),
            (hour * 10 + 5, vec![receipts(tenant, &id, &users(20, 40), ended_ms)]),
        ];
        port.apply(Flush { partition: (hour % 3) as u32, receipts: records, ..Flush::default() }).await.unwrap();
    }
    for limit in [1, 5, 100] {
        for user in ["user-3", "user-33"] {
            let rows = read_all(port, tenant, &of_user(user, NOW_MS + HOUR_MS, NOW_MS + 25 * HOUR_MS), limit).await;
            let hours: Vec<_> = rows.iter().map(|row| (row.shared.ended_ms - NOW_MS) / HOUR_MS).collect();
            assert_eq!(hours, (1..25).rev().collect::<Vec<_>>(), "{user} by pages of {limit}, newest first");
            assert!(rows.iter().all(|row| row.user_id == user));
        }
    }
    assert_eq!(read_all(port, tenant, &of_user("user-3", NOW_MS, NOW_MS + 1), 9).await.len(), 1);
    assert!(read_all(port, tenant, &of_user("user-3", NOW_MS + 1, NOW_MS + HOUR_MS), 9).await.is_empty());
    assert!(read_all(port, tenant, &of_user("nobody", NOW_MS, NOW_MS + 24 * HOUR_MS), 9).await.is_empty());
}

/// Receipts of one hour come from every partition in turn.
async fn a_users_hour_is_newest_first(port: &dyn Ledger, tenant: &TenantId, run: u32) {
    let second = |n: u64| NOW_MS + n * 1_000;
    for n in 0..12u64 {
        let id = notification(tenant, run, n);
        // A place on the log is one tenant's only; the other tests use smaller ones.
        let records = vec![(1_000 + n, vec![receipts(tenant, &id, &users(0, 3), second(n))])];
        port.apply(Flush { partition: (n % 4) as u32, receipts: records, ..Flush::default() }).await.unwrap();
    }
    for limit in [1, 3, 5, 100] {
        let rows = read_all(port, tenant, &of_user("user-1", NOW_MS, NOW_MS + HOUR_MS / 2), limit).await;
        let ended: Vec<u64> = rows.iter().map(|row| row.shared.ended_ms).collect();
        assert_eq!(ended, (0..12).rev().map(second).collect::<Vec<_>>(), "by pages of {limit}");
    }
}

async fn a_flush_in_other_groups_changes_nothing(port: &dyn Ledger, tenant: &TenantId, run: u32) {
    let id = notification(tenant, run, 1);
    let record = |offset: u64| (offset, vec![receipts(tenant, &id, &users(0, 4), NOW_MS + offset)]);
    // What is flushed before a crash, after the first restart, and after the second.
    for offsets in [0..10, 10..20, 12..15, 12..18, 18..25, 3..25] {
        let flush = Flush { partition: 1, receipts: offsets.map(record).collect(), ..Flush::default() };
        port.apply(flush).await.unwrap();
    }
    for scope in [ReceiptScope::Request(id), of_user("user-2", NOW_MS, NOW_MS + HOUR_MS)] {
        for limit in [2, 3, 100] {
            let rows = read_all(port, tenant, &scope, limit).await;
            let mut ended: Vec<_> =
                rows.iter().filter(|row| row.user_id == "user-2").map(|row| row.shared.ended_ms - NOW_MS).collect();
            ended.sort_unstable();
            assert_eq!(ended, (0..25).collect::<Vec<_>>(), "{scope:?} by pages of {limit}");
        }
    }
}

async fn foreign_tokens_are_refused(port: &dyn Ledger, tenant: &TenantId) {
    let scopes = [ReceiptScope::Request(NotificationId([1; 16])), of_user("u", 0, 1)];
    for token in [&b""[..], b"x", &[0xff; 64]] {
        assert!(port.requests(tenant, &RequestScope::Since(0), Some(token), 5).await.unwrap().is_err());
        for scope in &scopes {
            assert!(port.receipts(tenant, scope, Some(token), 5).await.unwrap().is_err());
        }
    }
}
