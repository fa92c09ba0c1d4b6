//! What the stores promise, against models, under random histories.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use herald_core::{
    conformance::{
        directory::{in_order, memberships},
        inbox::{notification, section},
        ledger,
    },
    ids::{InstanceId, NotificationId, TenantId},
    ports::{
        claims::{ClaimRequest, Claims},
        directory::{AudienceKey, Directory},
        inbox::{Counts, Inbox, MarkAs, StateFilter, Which},
        ledger::{Flush, Ledger, ReceiptScope},
    },
    record::{Channel, Claim, InboxBatch},
};
use herald_embedded::{
    claims::MemoryClaims,
    kv::{Kv, MemoryKv},
    store::Stores,
};
use proptest::prelude::*;

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn tenant() -> TenantId {
    TenantId::trusted("acme")
}

fn names(numbers: impl IntoIterator<Item = u16>) -> Vec<String> {
    numbers.into_iter().map(|n| format!("u{n}")).collect()
}

/// Users from a number on, who are made members or not.
type Edit = (u16, u16, bool);

fn edits(most: usize) -> impl Strategy<Value = Vec<Edit>> {
    proptest::collection::vec((0..3_000u16, 1..800u16, any::<bool>()), 0..most)
}

async fn edit(stores: &Stores, topic: &AudienceKey, members: &mut BTreeSet<String>, (from, count, present): Edit) {
    let users = names(from..from + count);
    let changed = users.iter().filter(|user| members.contains(*user) != present).count();
    let told = stores.directory.set_members(&tenant(), memberships(topic, &users), present).await.unwrap();
    assert_eq!(told, changed as u64);
    for user in users {
        if present {
            members.insert(user)
        } else {
            members.remove(&user)
        };
    }
}

/// A step in the life of one shard's feeds.
#[derive(Debug, Clone)]
enum FeedStep {
    /// So many records, from so many offsets before the end on; those written before are not written again.
    Put {
        back: u64,
        records: u64,
    },
    /// Items of these numbers, of this user.
    Mark {
        user: u8,
        numbers: Vec<u64>,
        all: bool,
        as_: u8,
    },
    /// The newest batches since the last sync are lost; then they are put again.
    Crash {
        kept: usize,
    },
    Sync,
}

fn feed_steps() -> impl Strategy<Value = Vec<FeedStep>> {
    let step = prop_oneof![
        4 => (0..20u64, 1..20u64).prop_map(|(back, records)| FeedStep::Put { back, records }),
        4 => (0..3u8, proptest::collection::vec(0..300u64, 0..40), any::<bool>(), 0..3u8)
            .prop_map(|(user, numbers, all, as_)| FeedStep::Mark { user, numbers, all, as_ }),
        1 => (0..4usize).prop_map(|kept| FeedStep::Crash { kept }),
        1 => Just(FeedStep::Sync),
    ];
    proptest::collection::vec(step, 1..25)
}

const USERS: [&str; 3] = ["a", "b", "c"];

/// Who gets the item of a number: not everybody gets everything.
fn users_of(number: u64) -> Vec<&'static str> {
    USERS.iter().enumerate().filter(|(n, _)| number % (*n as u64 + 2) != 1).map(|(_, user)| *user).collect()
}

/// The times of an item, by its number.
type Feed = BTreeMap<u64, [u64; 3]>;

fn model_counts(feed: &Feed) -> Counts {
    let count = |state: usize| feed.values().filter(|t| t[2] == 0 && t[state] == 0).count() as u64;
    Counts { unseen: count(0), unread: count(1), total: count(2) }
}

async fn put(stores: &Stores, numbers: std::ops::Range<u64>) {
    let batch = |n| InboxBatch { sections: vec![section(&tenant(), n, &users_of(n))] };
    stores.inbox.put(0, 1, numbers.map(|n| (n, batch(n))).collect()).await.unwrap();
}

async fn check_feeds(stores: &Stores, feeds: &[Feed; 3]) {
    for (user, feed) in USERS.iter().zip(feeds) {
        assert_eq!(stores.inbox.counts(&tenant(), user).await.unwrap(), model_counts(feed), "of {user}");
        for (filter, archived) in [(StateFilter::Active, false), (StateFilter::Archived, true)] {
            let (mut before, mut times) = (None, Vec::new());
            loop {
                let (items, next) = stores.inbox.list(&tenant(), user, filter, before, 50).await.unwrap();
                times.extend(items.iter().map(|i| (i.event_id.offset, [i.seen_ms, i.read_ms, i.archived_ms])));
                before = next;
                if next.is_none() {
                    break;
                }
            }
            let expected: Vec<_> =
                feed.iter().rev().filter(|(_, t)| (t[2] != 0) == archived).map(|(n, t)| (*n, *t)).collect();
            assert_eq!(times, expected, "of {user}");
        }
    }
}

fn flush(offsets: std::ops::Range<u64>) -> Flush {
    let record = |offset: u64| {
        let id = ledger_id(offset % 3);
        let users = names((0..40).filter(|n| (u64::from(*n) + offset).is_multiple_of(3)));
        // Every seventh record ends in the hour after.
        let ended_ms = LEDGER_MS + offset + if offset.is_multiple_of(7) { 3_600_000 } else { 0 };
        let (some, rest) = users.split_at(5);
        let receipts = [some, rest].map(|users| ledger::receipts(&tenant(), &id, users, ended_ms));
        (offset, receipts.into())
    };
    Flush { partition: 4, receipts: offsets.map(record).collect(), ..Flush::default() }
}

const LEDGER_MS: u64 = 1_700_000_000_000;

fn ledger_id(number: u64) -> NotificationId {
    ledger::notification(&tenant(), 1, number)
}

async fn all_receipts(stores: &Stores, limit: usize) -> Vec<Vec<(String, u64)>> {
    let day = |user: u64| ledger::of_user(&format!("u{user}"), LEDGER_MS, LEDGER_MS + 7_200_000);
    let scopes = (0..3).map(|n| ReceiptScope::Request(ledger_id(n))).chain((0..40).map(day));
    let mut all = Vec::new();
    for scope in scopes {
        let rows = ledger::read_all(&*stores.ledger, &tenant(), &scope, limit).await;
        all.push(rows.into_iter().map(|row| (row.user_id, row.shared.ended_ms)).collect());
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whoever is a member from before the first page until after the last is on exactly one page.
    #[test]
    fn paging_neither_skips_a_stable_member_nor_tells_one_twice(
        before in edits(8),
        between in edits(30),
        limit in 1..400usize,
    ) {
        run(async {
            let stores = Stores::open(Arc::new(MemoryKv::new()));
            let topic = AudienceKey::Topic("t".into());
            let mut members = BTreeSet::new();
            for step in before {
                edit(&stores, &topic, &mut members, step).await;
            }
            let (mut stable, mut ever) = (members.clone(), members.clone());
            let (mut after, mut told) = (None, Vec::new());
            let mut between = between.into_iter();
            loop {
                let page = stores.directory.audience(&tenant(), &topic, after, limit).await.unwrap();
                assert!(page.users.len() <= limit);
                told.extend(page.users);
                match page.next {
                    Some(next) => after = Some(next),
                    None => break,
                }
                if let Some(step) = between.next() {
                    edit(&stores, &topic, &mut members, step).await;
                    stable.retain(|user| members.contains(user));
                    ever.extend(members.iter().cloned());
                }
            }
            let unique: BTreeSet<String> = told.iter().cloned().collect();
            assert_eq!(unique.len(), told.len(), "somebody was told twice");
            assert!(unique.is_superset(&stable), "skipped: {:?}", stable.difference(&unique).collect::<Vec<_>>());
            assert!(unique.is_subset(&ever));
            assert_eq!(told, in_order(told.clone()));
        });
    }

    #[test]
    fn feeds_equal_a_model_through_marks_replays_and_crashes(steps in feed_steps()) {
        run(async {
            let kv = Arc::new(MemoryKv::new());
            let mut stores = Stores::open(kv.clone());
            let (mut end, mut now_ms) = (0, 1);
            let mut feeds: [Feed; 3] = Default::default();
            // What is on disk, and what it was after each batch since.
            let mut history = vec![(end, feeds.clone())];
            for step in steps {
                now_ms += 1;
                let put_first = matches!(step, FeedStep::Put { .. });
                match step {
                    FeedStep::Put { back, records } => {
                        let begin = end - back.min(end);
                        put(&stores, begin..begin + records).await;
                        for number in end..(begin + records).max(end) {
                            for (feed, _) in
                                feeds.iter_mut().zip(USERS).filter(|(_, user)| users_of(number).contains(user))
                            {
                                feed.insert(number, [0; 3]);
                            }
                        }
                        end = end.max(begin + records);
                    }
                    FeedStep::Mark { user, numbers, all, as_ } => {
                        let (name, feed) = (USERS[usize::from(user)], &mut feeds[usize::from(user)]);
                        let ids = numbers.iter().map(|n| InstanceId::of(&notification(*n), name, Channel::InApp));
                        let which = if all { Which::All } else { Which::Instances(ids.collect()) };
                        let mark = [MarkAs::Seen, MarkAs::Read, MarkAs::Archived][usize::from(as_)];
                        let counts = stores.inbox.mark(&tenant(), name, which, mark, now_ms).await.unwrap();
                        for (_, times) in feed.iter_mut().filter(|(n, t)| t[2] == 0 && (all || numbers.contains(n))) {
                            times.iter_mut().take(usize::from(as_) + 1).filter(|t| **t == 0).for_each(|t| *t = now_ms);
                        }
                        assert_eq!(counts, model_counts(feed));
                    }
                    FeedStep::Crash { kept } => {
                        let kept = kept.min(kv.unsynced());
                        kv.crash(kept);
                        stores = Stores::open(kv.clone());
                        (end, feeds) = history[kept].clone();
                        history = vec![(end, feeds.clone())];
                        check_feeds(&stores, &feeds).await;
                    }
                    FeedStep::Sync => {
                        Kv::sync(&*kv).unwrap();
                    }
                }
                let unsynced = kv.unsynced();
                if unsynced == 0 {
                    history.clear();
                }
                // A step may write several batches. Counts that are folded cannot be seen: a mark folds first, a put
                // last.
                let now = (end, feeds.clone());
                let between = history.last().filter(|_| !put_first).cloned().unwrap_or_else(|| now.clone());
                while history.len() < unsynced {
                    history.push(between.clone());
                }
                history.truncate(unsynced);
                history.push(now);
            }
            check_feeds(&stores, &feeds).await;
        });
    }

    /// After a crash the ledger goes on anywhere before where it was, and cuts its flushes anywhere.
    #[test]
    fn receipts_applied_again_in_other_groups_change_nothing(
        cuts in proptest::collection::vec((0..30u64, 1..12u64), 1..20),
        limit in 1..60usize,
    ) {
        run(async {
            let stores = Stores::open(Arc::new(MemoryKv::new()));
            let mut end = 0;
            for (back, records) in cuts {
                let begin = end - back.min(end);
                stores.ledger.apply(flush(begin..begin + records)).await.unwrap();
                // A replay goes on until it has passed what was applied before.
                if begin + records < end {
                    stores.ledger.apply(flush(begin + records..end)).await.unwrap();
                }
                end = end.max(begin + records);
            }
            let once = Stores::open(Arc::new(MemoryKv::new()));
            once.ledger.apply(flush(0..end)).await.unwrap();
            let mut found = all_receipts(&stores, limit).await;
            let mut expected = all_receipts(&once, 10_000).await;
            found.iter_mut().chain(&mut expected).for_each(|rows| rows.sort());
            assert_eq!(found, expected);
        });
    }
}

/// Whether it takes, which key, for whom, and for how long.
type ClaimStep = (bool, u8, u8, u64);

/// Who holds each key, and until when.
type Held = BTreeMap<u8, (u8, u64)>;

/// What a round trip must say, one step after the other.
fn claim(held: &mut Held, (takes, key, owner, for_ms): ClaimStep, now_ms: u64) -> u8 {
    let holder = held.get(&key).filter(|(_, expires_ms)| *expires_ms > now_ms).map(|(holder, _)| *holder);
    match (takes, holder) {
        (true, Some(holder)) => holder,
        (true, None) => {
            held.insert(key, (owner, now_ms + for_ms));
            owner
        }
        (false, holder) => {
            if holder == Some(owner) {
                held.remove(&key);
            }
            owner
        }
    }
}

proptest! {
    /// A key has one holder at any time, who keeps it until it is given back or expires; also through the loss of the cache.
    #[test]
    fn a_key_has_one_holder_through_expiry_and_loss(
        rounds in proptest::collection::vec(
            (
                proptest::collection::vec((any::<bool>(), 0..6u8, 0..4u8, 1..200_000u64), 0..6),
                0..90_000u64,
                proptest::bool::weighted(0.2),
            ),
            1..60,
        ),
    ) {
        let claims = MemoryClaims::new();
        let (mut held, mut now_ms, mut sequence) = (Held::new(), 1, 0);
        for (steps, pause_ms, is_lost) in rounds {
            now_ms += pause_ms;
            if is_lost {
                let all = held.iter().map(|(key, (owner, expires_ms))| Claim {
                    key: vec![*key; 16].into(),
                    owner: vec![*owner; 16].into(),
                    expires_ms: *expires_ms,
                    released: false,
                });
                sequence = run(claims.load(3, all.collect(), now_ms)).unwrap();
            }
            let requests: Vec<ClaimRequest> = steps
                .iter()
                .map(|&(takes, key, owner, for_ms)| {
                    let (key, owner) = ([key; 16], NotificationId([owner; 16]));
                    match takes {
                        true => ClaimRequest::Take { key, owner, expires_ms: now_ms + for_ms },
                        false => ClaimRequest::Release { key, owner },
                    }
                })
                .collect();
            let wanted: Vec<NotificationId> =
                steps.iter().map(|step| NotificationId([claim(&mut held, *step, now_ms); 16])).collect();
            let reply = run(claims.apply(3, sequence, &requests, now_ms)).unwrap();
            prop_assert_eq!(reply, Some(wanted));
            sequence += 1;
        }
    }
}
