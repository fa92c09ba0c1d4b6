//! [`Erasures`].

use std::sync::Arc;

use bytes::Bytes;

use super::inbox::{notification, section};
use crate::{
    ids::TenantId,
    packed::pack,
    people::{Preferences, User},
    ports::{
        directory::{AudienceKey, Directory, Membership, PersonChange},
        erasures::{Erasure, Erasures, SETTLE_MS},
        inbox::{Inbox, StateFilter},
        ledger::{Flush, Ledger, ReceiptScope},
    },
    record::{Channel, InboxBatch, Receipts, State},
};

/// The ports whose rows an erasure erases.
#[derive(Clone)]
pub struct Ports {
    /// The port that is tested.
    pub erasures: Arc<dyn Erasures>,
    /// People and audiences.
    pub directory: Arc<dyn Directory>,
    /// Feeds.
    pub inbox: Arc<dyn Inbox>,
    /// Receipts.
    pub ledger: Arc<dyn Ledger>,
}

/// The whole suite. `run` is part of the tenants' names; it uses the shards from `shard` on, to which nothing was put.
pub async fn all(ports: Ports, run: &str, shard: u32) {
    let tenant = |test: &str| TenantId::parse(&format!("{run}-{test}")).unwrap();
    a_person_is_gone_at_once_and_everywhere_in_the_end(&ports, &tenant("gone"), shard).await;
    nobody_else_loses_anything(&ports, &tenant("own"), &tenant("other"), shard + 1).await;
    an_erasure_that_runs_is_not_begun_again(&ports, &tenant("again")).await;
    what_came_after_stays_and_what_waited_goes(&ports, &tenant("late"), shard + 2).await;
}

const BEGUN_MS: u64 = 1_700_000_000_000;
const LOG_GONE_MS: u64 = BEGUN_MS + 10 * 86_400_000;

fn erasure(tenant: &TenantId, id: &str, user: &str) -> Erasure {
    Erasure {
        id: id.into(),
        tenant: tenant.clone(),
        user_id: user.into(),
        begun_ms: BEGUN_MS,
        completed_ms: 0,
        log_gone_ms: LOG_GONE_MS,
        due_ms: BEGUN_MS,
    }
}

async fn register(ports: &Ports, tenant: &TenantId, users: &[&str]) {
    let profile = |user: &&str| PersonChange::Profile {
        user: User { user_id: (*user).into(), locale: Some("de".into()), ..User::default() },
        expect: None,
    };
    ports.directory.change(tenant, users.iter().map(profile).collect(), 1).await.unwrap();
}

async fn join(ports: &Ports, tenant: &TenantId, memberships: &[(AudienceKey, &str)]) {
    let memberships =
        memberships.iter().map(|(audience, user)| Membership { audience: audience.clone(), user: (*user).into() });
    ports.directory.set_members(tenant, memberships.collect(), true).await.unwrap();
}

async fn members(ports: &Ports, tenant: &TenantId, audience: &AudienceKey) -> Vec<String> {
    let mut users = ports.directory.audience(tenant, audience, None, 1_000).await.unwrap().users;
    users.sort_unstable();
    users
}

fn follows(user: &str) -> AudienceKey {
    AudienceKey::FollowersOf(user.into())
}

fn topic(name: &str) -> AudienceKey {
    AudienceKey::Topic(name.into())
}

/// An item and a receipt for each user, accepted at a time.
async fn deliver(ports: &Ports, tenant: &TenantId, shard: u32, number: u64, accepted_ms: u64, users: &[&str]) {
    let item = crate::record::InboxSection { accepted_ms, ..section(tenant, number, users) };
    ports.inbox.put(shard, 1, vec![(number, InboxBatch { sections: vec![item] })]).await.unwrap();
    let receipts = Receipts {
        notification_id: Bytes::copy_from_slice(&notification(number).0),
        tenant: tenant.as_str().into(),
        channel: Channel::InApp as i32,
        state: State::Delivered as i32,
        count: users.len() as u32,
        users: pack(users.iter().copied()),
        accepted_ms,
        ended_ms: accepted_ms + 10,
        ..Receipts::default()
    };
    let flush = Flush { partition: shard, receipts: vec![(number, vec![receipts])], ..Flush::default() };
    ports.ledger.apply(flush).await.unwrap();
}

async fn items(ports: &Ports, tenant: &TenantId, user: &str) -> usize {
    let (items, _) = ports.inbox.list(tenant, user, StateFilter::Active, None, 100).await.unwrap();
    let counts = ports.inbox.counts(tenant, user).await.unwrap();
    assert_eq!((counts.total, counts.unseen), (items.len() as u64, items.len() as u64));
    items.len()
}

async fn receipts_of(ports: &Ports, tenant: &TenantId, user: &str) -> usize {
    let scope = ReceiptScope::User { user_id: user.into(), since_ms: BEGUN_MS - 86_400_000, until_ms: LOG_GONE_MS };
    ports.ledger.receipts(tenant, &scope, None, 100).await.unwrap().unwrap().items.len()
}

async fn named(ports: &Ports, tenant: &TenantId, number: u64) -> Vec<String> {
    let scope = ReceiptScope::Request(notification(number));
    let page = ports.ledger.receipts(tenant, &scope, None, 100).await.unwrap().unwrap();
    page.items.into_iter().map(|row| row.user_id).collect()
}

/// Takes steps until nothing is due any more at that time.
async fn work(ports: &Ports, tenant: &TenantId, id: &str, now_ms: u64) -> Erasure {
    for _ in 0..100_000 {
        let now = ports.erasures.step(tenant, id, now_ms).await.unwrap().expect("it was begun");
        if now.due_ms == 0 || now.due_ms > now_ms {
            return now;
        }
    }
    panic!("the erasure does not end");
}

async fn a_person_is_gone_at_once_and_everywhere_in_the_end(ports: &Ports, tenant: &TenantId, shard: u32) {
    register(ports, tenant, &["ann", "ben"]).await;
    let preferences = Preferences { source: "user".into(), updated_ms: 5, ..Preferences::default() };
    let change = PersonChange::Preferences { user_id: "ann".into(), preferences };
    ports.directory.change(tenant, vec![change], 1).await.unwrap();
    join(ports, tenant, &[(follows("ann"), "ben"), (follows("ben"), "ann"), (topic("t"), "ann"), (topic("t"), "ben")])
        .await;
    deliver(ports, tenant, shard, 1, BEGUN_MS - 5_000, &["ann", "ben"]).await;
    deliver(ports, tenant, shard, 2, BEGUN_MS - 4_000, &["ann"]).await;

    let begun = ports.erasures.begin(erasure(tenant, "e1", "ann")).await.unwrap();
    assert_eq!(begun, erasure(tenant, "e1", "ann"));
    let people = ports.directory.people(tenant, &["ann".into(), "ben".into()]).await.unwrap();
    assert!(people[0].user.is_none() && people[0].preferences == Preferences::default());
    assert_eq!((people[0].erased_ms, people[1].erased_ms), (BEGUN_MS, 0));
    assert_eq!(members(ports, tenant, &AudienceKey::Everyone).await, ["ben"]);
    assert!(ports.erasures.due(BEGUN_MS, 1_000).await.unwrap().contains(&begun));

    let first = work(ports, tenant, "e1", BEGUN_MS + 1).await;
    assert!(!first.is_complete() && first.due_ms == BEGUN_MS + SETTLE_MS);
    assert!(!ports.erasures.due(BEGUN_MS + 1, 1_000).await.unwrap().iter().any(|due| due.id == "e1"));
    let second = work(ports, tenant, "e1", BEGUN_MS + SETTLE_MS).await;
    assert_eq!(second.completed_ms, BEGUN_MS + SETTLE_MS);
    assert_eq!(ports.erasures.get(tenant, "e1").await.unwrap(), Some(second));

    assert!(members(ports, tenant, &follows("ann")).await.is_empty());
    assert!(members(ports, tenant, &follows("ben")).await.is_empty());
    assert_eq!(members(ports, tenant, &topic("t")).await, ["ben"]);
    assert_eq!((items(ports, tenant, "ann").await, items(ports, tenant, "ben").await), (0, 1));
    assert_eq!((receipts_of(ports, tenant, "ann").await, receipts_of(ports, tenant, "ben").await), (0, 1));
    assert_eq!(named(ports, tenant, 1).await, ["erased-e1", "ben"], "the receipt stays and names nobody");

    let last = work(ports, tenant, "e1", LOG_GONE_MS).await;
    let last = work(ports, tenant, "e1", last.due_ms.max(LOG_GONE_MS)).await;
    assert_eq!((last.due_ms, last.user_id.as_str()), (0, ""), "not even the erasure names the person any more");
    assert_eq!(ports.directory.people(tenant, &["ann".into()]).await.unwrap()[0].erased_ms, 0);
}

async fn nobody_else_loses_anything(ports: &Ports, tenant: &TenantId, other: &TenantId, shard: u32) {
    for tenant in [tenant, other] {
        register(ports, tenant, &["ann"]).await;
        join(ports, tenant, &[(topic("t"), "ann"), (follows("ann"), "ben")]).await;
    }
    deliver(ports, tenant, shard, 11, BEGUN_MS - 1, &["ann"]).await;
    deliver(ports, other, shard, 12, BEGUN_MS - 1, &["ann"]).await;
    ports.erasures.begin(erasure(tenant, "e1", "ann")).await.unwrap();
    work(ports, tenant, "e1", BEGUN_MS + 1).await;
    assert_eq!(ports.erasures.get(other, "e1").await.unwrap(), None, "another tenant's erasure");
    assert!(ports.directory.people(other, &["ann".into()]).await.unwrap()[0].user.is_some());
    assert_eq!(members(ports, other, &topic("t")).await, ["ann"]);
    assert_eq!(members(ports, other, &follows("ann")).await, ["ben"]);
    assert_eq!((items(ports, tenant, "ann").await, items(ports, other, "ann").await), (0, 1));
    assert_eq!(named(ports, other, 12).await, ["ann"]);
}

async fn an_erasure_that_runs_is_not_begun_again(ports: &Ports, tenant: &TenantId) {
    ports.erasures.begin(erasure(tenant, "e1", "ann")).await.unwrap();
    let again = Erasure { begun_ms: BEGUN_MS + 7, ..erasure(tenant, "e2", "ann") };
    assert_eq!(ports.erasures.begin(again.clone()).await.unwrap().id, "e1");
    assert_eq!(ports.erasures.get(tenant, "e2").await.unwrap(), None);
    work(ports, tenant, "e1", BEGUN_MS + 1).await;
    work(ports, tenant, "e1", BEGUN_MS + SETTLE_MS).await;
    assert_eq!(ports.erasures.begin(again).await.unwrap().id, "e2", "what came since is erased too");
}

async fn what_came_after_stays_and_what_waited_goes(ports: &Ports, tenant: &TenantId, shard: u32) {
    register(ports, tenant, &["ann"]).await;
    ports.erasures.begin(erasure(tenant, "e1", "ann")).await.unwrap();
    work(ports, tenant, "e1", BEGUN_MS + 1).await;
    let complete = work(ports, tenant, "e1", BEGUN_MS + SETTLE_MS).await;
    register(ports, tenant, &["ann"]).await;
    let person = ports.directory.people(tenant, &["ann".into()]).await.unwrap().remove(0);
    assert_eq!((person.user.is_some(), person.erased_ms), (true, BEGUN_MS), "what waits is still not for them");
    join(ports, tenant, &[(topic("t"), "ann")]).await;
    deliver(ports, tenant, shard, 21, BEGUN_MS - 1, &["ann"]).await;
    deliver(ports, tenant, shard, 22, BEGUN_MS + 6_000, &["ann"]).await;
    work(ports, tenant, "e1", complete.due_ms).await;
    assert_eq!((items(ports, tenant, "ann").await, receipts_of(ports, tenant, "ann").await), (1, 1));
    assert_eq!(named(ports, tenant, 21).await, ["erased-e1"]);
    assert_eq!(members(ports, tenant, &topic("t")).await, ["ann"]);
}
