//! What the suites of the ports do not ask of the CQL stores: migrations, servers that are away, processes that do the
//! same at once, records that are written again, and lists that change while they are read.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use herald_core::{
    conformance::{
        directory::{in_order, memberships, read_all, user},
        inbox::{notification, section},
        ledger,
    },
    ids::{InstanceId, NotificationId, TenantId},
    people::{ChannelPreference, Preferences},
    ports::{
        StoreError,
        admissions::{Admissions, PlaceNote},
        directory::{AudienceKey, Changed, Directory, PersonChange},
        erasures::{Erasure, Erasures},
        inbox::{Inbox, MarkAs, StateFilter, Which},
        ledger::{Flush, Ledger, ReceiptScope},
        registry::{Registry, Written},
    },
    record::{Channel, InboxBatch, Place, Receipts},
};
use herald_distributed::cql::{CqlConfig, CqlStores, Migrated, migrate};

use crate::support::{Cut, Keyspace, config, session};

const NOW_MS: u64 = 1_700_000_000_000;

fn tenant() -> TenantId {
    TenantId::trusted("acme")
}

#[tokio::test]
async fn two_migrations_at_once_and_one_again_do_no_harm() {
    let keyspace = Keyspace::unused();
    let (config, url) = (config(), &keyspace.url);
    let error = CqlStores::open(url, &config).await.err().expect("there is no keyspace yet");
    assert!(!format!("{error:#}").is_empty());
    let both = join_all([migrate(url, &config), migrate(url, &config)]).await;
    let mut from: Vec<u32> = both.iter().map(|migrated| migrated.as_ref().unwrap().from).collect();
    from.sort_unstable();
    assert_eq!(from, [0, 1], "one of them did it, and the other found it done");
    assert_eq!(migrate(url, &config).await.unwrap(), Migrated { from: 1, to: 1 });
    CqlStores::open(url, &config).await.unwrap();

    let raw = session(url).await;
    let set = |version: &str| format!("UPDATE schema_version SET version = {version} WHERE name = 'schema'");
    raw.query_unpaged(set("99"), ()).await.unwrap();
    for error in [CqlStores::open(url, &config).await.err(), migrate(url, &config).await.err()] {
        let error = format!("{:#}", error.expect("a newer schema is refused"));
        assert!(error.contains("version 99") && error.contains("newer binary"), "{error}");
    }
    raw.query_unpaged(set("null"), ()).await.unwrap();
    let error = format!("{:#}", CqlStores::open(url, &config).await.err().expect("an older schema is refused"));
    assert!(error.contains("herald migrate"), "{error}");
    keyspace.drop().await;
}

/// A call that was repeated while the log was away is on it several times, and these are read together.
#[tokio::test]
async fn of_admissions_in_one_call_only_the_earliest_is_the_first() {
    Keyspace::with(config(), async |stores, _| {
        let place = |offset| Place { topic: 1, partition: 2, offset, log_epoch: 3 };
        for key in 0..50 {
            let id = NotificationId::of_idempotency_key(&tenant(), &key.to_string(), NOW_MS);
            let note = |offset| PlaceNote { tenant: tenant(), key: key.to_string(), id, place: place(offset) };
            let noted = stores.admissions.note_first_places((5..13).map(note).collect()).await.unwrap();
            assert_eq!(noted, [place(5); 8], "key {key}");
        }
    })
    .await;
}

#[tokio::test]
async fn servers_that_are_away_are_an_error_and_come_back() {
    let keyspace = Keyspace::new().await;
    let cut = Cut::new().await;
    let settings = CqlConfig { request_timeout_ms: 2_000, connect_timeout_ms: 1_000, ..config() };
    let url = format!("cql://{}/{}", cut.address(), keyspace.url.keyspace).parse().unwrap();
    let stores = CqlStores::open(&url, &settings).await.unwrap();
    assert_eq!(stores.registry.put("k", "a", Some(Bytes::from_static(b"1")), 0).await.unwrap(), Written::Done(1));
    cut.cut();
    let refused = stores.registry.put("k", "b", None, 0).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let unanswered = stores.directory.people(&tenant(), &["ann".to_owned()]).await;
    assert!(matches!(unanswered, Err(StoreError::Unavailable(_))), "an unanswered read is not absence");
    cut.mend();
    let back = async {
        while stores.registry.get("k", "a").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), back).await.expect("the stores come back by themselves");
    assert_eq!(stores.registry.get("k", "a").await.unwrap().unwrap().version, 1);
    drop(stores);
    keyspace.drop().await;
}

#[tokio::test]
async fn an_audience_is_cut_as_it_grows_and_read_while_it_changes() {
    let settings = CqlConfig { members_a_slice: 60, ..config() };
    Keyspace::with(settings, async |stores, url| {
        let (tenant, topic) = (tenant(), AudienceKey::Topic("t".into()));
        let directory = &*stores.directory;
        let name = |n: u32| format!("member-{n}");
        for begin in (0..1_500).step_by(100) {
            let some: Vec<String> = (begin..begin + 100).map(name).collect();
            assert_eq!(directory.set_members(&tenant, memberships(&topic, &some), true).await.unwrap(), 100);
        }
        let levels = session(url).await.query_unpaged("SELECT levels FROM audiences", ()).await.unwrap();
        let (levels,) = levels.into_rows_result().unwrap().first_row::<(i8,)>().unwrap();
        assert!(levels >= 2, "a slice of 60 is long, and there are {levels} levels");

        // Those in the first thousand stay; all others come and go while pages are read.
        let staying: BTreeSet<String> = (0..1_000).map(name).collect();
        let mut seen = Vec::new();
        let mut after = None;
        for round in 0.. {
            let page = directory.audience(&tenant, &topic, after, 90).await.unwrap();
            seen.extend(page.users);
            let some: Vec<String> = (1_000..1_500).filter(|n| n % 7 == round % 7).map(name).collect();
            directory.set_members(&tenant, memberships(&topic, &some), round % 2 == 1).await.unwrap();
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, in_order(seen.clone()), "in order, and nobody twice");
        let stayed = seen.iter().filter(|user| staying.contains(*user)).count();
        assert_eq!(stayed, 1_000, "who is there throughout is read once");

        let everybody: Vec<String> = (0..1_500).map(name).collect();
        directory.set_members(&tenant, memberships(&topic, &everybody), false).await.unwrap();
        assert!(read_all(directory, &tenant, &topic, None, 50).await.is_empty(), "they are gone on all levels");
    })
    .await;
}

#[tokio::test]
async fn changes_of_one_person_at_once_are_all_counted() {
    Keyspace::with(config(), async |stores, url| {
        let others = CqlStores::open(url, &config()).await.unwrap();
        let put = async |directory: &dyn Directory, locale: String| {
            let user = herald_core::people::User { locale: Some(locale), ..user("ann") };
            let change = PersonChange::Profile { user, expect: None };
            directory.change(&tenant(), vec![change], NOW_MS).await.unwrap().remove(0)
        };
        let changed = join_all((0..10).map(|n| {
            let directory = if n % 2 == 0 { stores.directory.clone() } else { others.directory.clone() };
            async move { put(&*directory, format!("l{n}")).await }
        }))
        .await;
        let versions: BTreeSet<u64> = changed
            .iter()
            .map(|changed| match changed {
                Changed::Done(person) => person.user.as_ref().unwrap().version,
                Changed::VersionMismatch(version) => panic!("refused; {version} is stored"),
            })
            .collect();
        assert_eq!(versions, (1..=10).collect(), "each is a version of its own");
        let out = ChannelPreference { enabled: Some(false), ..ChannelPreference::default() };
        let preferences = Preferences { channels: [("email".to_owned(), out)].into(), ..Preferences::default() };
        let opt_out = PersonChange::Preferences { user_id: "ann".into(), preferences: preferences.clone() };
        let tenant = tenant();
        let (done, _) = tokio::join!(
            others.directory.change(&tenant, vec![opt_out], NOW_MS),
            put(&*stores.directory, "last".to_owned()),
        );
        done.unwrap();
        let ann = stores.directory.people(&tenant, &["ann".to_owned()]).await.unwrap().remove(0);
        assert_eq!((ann.preferences, ann.user.unwrap().version), (preferences, 11), "neither change is lost");
    })
    .await;
}

#[tokio::test]
async fn marks_at_once_leave_the_counts_right() {
    Keyspace::with(config(), async |stores, url| {
        let others = CqlStores::open(url, &config()).await.unwrap();
        let put = async |numbers: std::ops::Range<u64>| {
            let record = |n| (n, InboxBatch { sections: vec![section(&tenant(), n, &["ann", "ben"])] });
            stores.inbox.put(0, 1, numbers.map(record).collect()).await.unwrap();
        };
        put(0..200).await;
        let marks = (0..8u64).map(|n| {
            let inbox = if n % 2 == 0 { stores.inbox.clone() } else { others.inbox.clone() };
            async move {
                let ids = (n * 20..n * 20 + 30).map(|n| InstanceId::of(&notification(n), "ann", Channel::InApp));
                let mark = [MarkAs::Seen, MarkAs::Read, MarkAs::Archived][n as usize % 3];
                inbox.mark(&tenant(), "ann", Which::Instances(ids.collect()), mark, NOW_MS).await.unwrap();
            }
        });
        tokio::join!(join_all(marks), put(200..300));
        let (inbox, tenant) = (&*stores.inbox, tenant());
        let length = async |filter| inbox.list(&tenant, "ann", filter, None, 1_000).await.unwrap().0.len() as u64;
        let counts = inbox.counts(&tenant, "ann").await.unwrap();
        let counted = (counts.unseen, counts.unread, counts.total);
        let listed =
            (length(StateFilter::Unseen).await, length(StateFilter::Unread).await, length(StateFilter::Active).await);
        assert_eq!(counted, listed);
        assert_eq!(length(StateFilter::Archived).await + counts.total, 300);
    })
    .await;
}

/// Erases a person to the end of the pass that is due.
async fn erase(stores: &CqlStores, id: &str, user: &str, begun_ms: u64) {
    let erasure = Erasure {
        id: id.into(),
        tenant: tenant(),
        user_id: user.into(),
        begun_ms,
        completed_ms: 0,
        log_gone_ms: begun_ms + 10 * 86_400_000,
        due_ms: begun_ms,
    };
    stores.erasures.begin(erasure).await.unwrap();
    for _ in 0..1_000 {
        let now = stores.erasures.step(&tenant(), id, begun_ms + 1).await.unwrap().unwrap();
        if now.due_ms > begun_ms + 1 {
            return;
        }
    }
    panic!("the pass does not end");
}

fn receipts_of(id: &NotificationId, users: &[&str]) -> Receipts {
    let users: Vec<String> = users.iter().map(|user| (*user).to_owned()).collect();
    ledger::receipts(&tenant(), id, &users, NOW_MS)
}

async fn names(stores: &CqlStores, id: NotificationId) -> Vec<String> {
    let rows = ledger::read_all(&*stores.ledger, &tenant(), &ReceiptScope::Request(id), 7).await;
    rows.into_iter().map(|row| row.user_id).collect()
}

#[tokio::test]
async fn what_was_erased_does_not_come_back_when_the_log_is_read_again() {
    Keyspace::with(config(), async |stores, _| {
        let id = NotificationId([5; 16]);
        let flush = |offsets: std::ops::Range<u64>| Flush {
            partition: 1,
            receipts: offsets.map(|offset| (offset, vec![receipts_of(&id, &["ann", "ben"])])).collect(),
            ..Flush::default()
        };
        let items = || vec![(4, InboxBatch { sections: vec![section(&tenant(), 4, &["ann", "ben"])] })];
        // A flush, and what a restart made of its end.
        stores.ledger.apply(flush(0..6)).await.unwrap();
        stores.ledger.apply(flush(3..5)).await.unwrap();
        stores.inbox.put(0, 1, items()).await.unwrap();
        erase(&stores, "e1", "ann", NOW_MS + 1_000).await;
        let expected: Vec<&str> = ["erased-e1", "ben"].repeat(6);
        assert_eq!(names(&stores, id).await, expected);
        stores.ledger.apply(flush(3..5)).await.unwrap();
        stores.ledger.apply(flush(0..6)).await.unwrap();
        stores.inbox.put(0, 1, items()).await.unwrap();
        assert_eq!(names(&stores, id).await, expected);
        let feed =
            async |user| stores.inbox.list(&tenant(), user, StateFilter::Active, None, 10).await.unwrap().0.len();
        assert_eq!((feed("ann").await, feed("ben").await), (0, 1));
        // Two erasures at once, of persons who are on the same rows.
        let both = flush(10..11);
        let both = Flush { receipts: vec![(10, vec![receipts_of(&id, &["cem", "dag", "eve"])])], ..both };
        stores.ledger.apply(both).await.unwrap();
        tokio::join!(erase(&stores, "e2", "cem", NOW_MS + 1_000), erase(&stores, "e3", "dag", NOW_MS + 1_000));
        assert_eq!(names(&stores, id).await[12..], ["erased-e2", "erased-e3", "eve"]);
    })
    .await;
}

#[tokio::test]
async fn many_receipts_of_one_flush_are_read_once() {
    Keyspace::with(config(), async |stores, _| {
        let id = NotificationId([6; 16]);
        let name = |n: u64| format!("a-user-whose-id-is-somewhat-long-{n:08}");
        let record = |offset: u64| {
            let users: Vec<String> = (offset * 500..(offset + 1) * 500).map(name).collect();
            (offset, vec![ledger::receipts(&tenant(), &id, &users, NOW_MS + offset)])
        };
        for offsets in [0..30u64, 10..20, 10..14] {
            let flush = Flush { partition: 2, receipts: offsets.map(record).collect(), ..Flush::default() };
            stores.ledger.apply(flush).await.unwrap();
        }
        for limit in [999, 10_000] {
            let rows = ledger::read_all(&*stores.ledger, &tenant(), &ReceiptScope::Request(id), limit).await;
            let users: Vec<String> = rows.into_iter().map(|row| row.user_id).collect();
            assert!(users == (0..15_000).map(name).collect::<Vec<_>>(), "by pages of {limit}: {}", users.len());
        }
        let scope = ledger::of_user(&name(12_345), NOW_MS, NOW_MS + 3_600_000);
        assert_eq!(ledger::read_all(&*stores.ledger, &tenant(), &scope, 5).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_policy_that_was_stored_by_somebody_who_stopped_is_found() {
    Keyspace::with(config(), async |stores, url| {
        let registry: Arc<dyn Registry> = stores.registry.clone();
        let value = || Some(Bytes::from_static(b"{}"));
        registry.put("k", "acme/a", value(), 0).await.unwrap();
        // Of ten who change it at once one does.
        let puts = join_all((0..10).map(|_| registry.put("k", "acme/a", value(), 1))).await;
        assert_eq!(puts.into_iter().filter(|put| matches!(put, Ok(Written::Done(2)))).count(), 1);
        registry.published("k", "acme/a", 2).await.unwrap();
        assert!(registry.unpublished(10).await.unwrap().is_empty());
        let raw = session(url).await;
        let stale = "INSERT INTO unpublished (slice, kind, key, version) VALUES (0, 'k', 'acme/a', 1)";
        raw.query_unpaged(stale, ()).await.unwrap();
        assert!(registry.unpublished(10).await.unwrap().is_empty(), "what is not so is not told");
        let left = raw.query_unpaged("SELECT * FROM unpublished", ()).await.unwrap().into_rows_result().unwrap();
        assert_eq!(left.rows_num(), 0, "and it is forgotten");
    })
    .await;
}
