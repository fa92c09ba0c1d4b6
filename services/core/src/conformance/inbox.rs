//! [`Inbox`].

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    ids::{InstanceId, NotificationId, TenantId},
    packed::pack,
    ports::inbox::{Counts, EventId, Inbox, Item, MAX_ITEMS, MarkAs, StateFilter, Which},
    record::{Channel, InboxBatch, InboxSection},
};

/// The whole suite. `run` is part of the tenants' names; it uses the shards from `shard` on, to which nothing was put.
pub async fn all(port: Arc<dyn Inbox>, run: &str, shard: u32) {
    let tenant = |test: &str| TenantId::parse(&format!("{run}-{test}")).unwrap();
    texts_are_shared_or_each_users_own(&*port, &tenant("texts"), shard).await;
    a_record_written_again_changes_nothing(&*port, &tenant("replay"), shard + 1).await;
    a_feed_is_listed_newest_first(&*port, &tenant("list"), shard + 2).await;
    a_resumed_connection_has_no_gaps(&*port, &tenant("since"), shard + 3).await;
    marks_include_those_before(&*port, &tenant("marks"), shard + 4).await;
    instances_are_marked_once(&*port, &tenant("instances"), shard + 5).await;
    a_higher_epoch_is_newer(&*port, &tenant("epoch"), shard + 6).await;
    a_feed_keeps_its_newest_items(&*port, &tenant("bound"), shard + 7).await;
}

/// The notification of a number.
pub fn notification(number: u64) -> NotificationId {
    let mut id = [7; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    NotificationId(id)
}

/// A section with one text for all.
pub fn section(tenant: &TenantId, number: u64, users: &[&str]) -> InboxSection {
    InboxSection {
        notification_id: Bytes::copy_from_slice(&notification(number).0),
        tenant: tenant.as_str().into(),
        users: pack(users.iter().copied()),
        count: users.len() as u32,
        titles: vec![format!("title {number}")],
        bodies: vec![format!("body {number}")],
        data: Bytes::from(format!("{{\"n\":{number}}}")),
        accepted_ms: 1_000 + number,
        attempts: 0,
    }
}

fn batch(sections: Vec<InboxSection>) -> InboxBatch {
    InboxBatch { sections }
}

async fn put_numbers(port: &dyn Inbox, tenant: &TenantId, shard: u32, numbers: std::ops::Range<u64>, users: &[&str]) {
    let batches = numbers.map(|n| (n, batch(vec![section(tenant, n, users)]))).collect();
    port.put(shard, 1, batches).await.unwrap();
}

async fn list(port: &dyn Inbox, tenant: &TenantId, user: &str, filter: StateFilter, limit: usize) -> Vec<Item> {
    let (mut items, mut before) = (Vec::new(), None);
    loop {
        let (page, next) = port.list(tenant, user, filter, before, limit).await.unwrap();
        assert!(page.len() <= limit);
        items.extend(page);
        match next {
            Some(next) => before = Some(next),
            None => return items,
        }
    }
}

fn titles(items: &[Item]) -> Vec<&str> {
    items.iter().map(|item| item.title.as_str()).collect()
}

fn counts(unseen: u64, unread: u64, total: u64) -> Counts {
    Counts { unseen, unread, total }
}

fn instances(user: &str, numbers: &[u64]) -> Which {
    let ids = numbers.iter().map(|n| InstanceId::of(&notification(*n), user, Channel::InApp));
    Which::Instances(ids.collect())
}

async fn texts_are_shared_or_each_users_own(port: &dyn Inbox, tenant: &TenantId, shard: u32) {
    let shared = section(tenant, 1, &["a", "b"]);
    let mut own = section(tenant, 2, &["a", "b", "c"]);
    own.bodies = ["for a", "for b", "for c"].map(str::to_owned).into();
    let alone = section(tenant, 3, &["a"]);
    port.put(shard, 1, vec![(10, batch(vec![shared, own])), (12, batch(vec![alone]))]).await.unwrap();
    let item = |index, offset, n, body: &str| Item {
        event_id: EventId { epoch: 1, offset, index },
        notification: notification(n),
        title: format!("title {n}"),
        body: body.into(),
        data: Bytes::from(format!("{{\"n\":{n}}}")),
        created_ms: 1_000 + n,
        seen_ms: 0,
        read_ms: 0,
        archived_ms: 0,
    };
    let of_a = [item(0, 12, 3, "body 3"), item(2, 10, 2, "for a"), item(0, 10, 1, "body 1")];
    assert_eq!(list(port, tenant, "a", StateFilter::Active, 10).await, of_a);
    assert_eq!(
        list(port, tenant, "b", StateFilter::Active, 10).await,
        [item(3, 10, 2, "for b"), item(1, 10, 1, "body 1")]
    );
    assert_eq!(list(port, tenant, "c", StateFilter::Active, 10).await, [item(4, 10, 2, "for c")]);
    assert_eq!(port.counts(tenant, "b").await.unwrap(), counts(2, 2, 2));
    assert_eq!(port.counts(tenant, "nobody").await.unwrap(), counts(0, 0, 0));
    let other = TenantId::parse(&format!("{tenant}-other")).unwrap();
    assert!(list(port, &other, "a", StateFilter::Active, 10).await.is_empty());
}

async fn a_record_written_again_changes_nothing(port: &dyn Inbox, tenant: &TenantId, shard: u32) {
    put_numbers(port, tenant, shard, 0..5, &["a", "b"]).await;
    assert_eq!(port.mark(tenant, "a", instances("a", &[3]), MarkAs::Read, 9_000).await.unwrap(), counts(4, 4, 5));
    put_numbers(port, tenant, shard, 2..7, &["a", "b"]).await;
    assert_eq!(port.counts(tenant, "a").await.unwrap(), counts(6, 6, 7));
    assert_eq!(port.counts(tenant, "b").await.unwrap(), counts(7, 7, 7));
    let items = list(port, tenant, "a", StateFilter::Active, 10).await;
    assert_eq!(titles(&items), ["title 6", "title 5", "title 4", "title 3", "title 2", "title 1", "title 0"]);
    assert_eq!((items[3].seen_ms, items[3].read_ms), (9_000, 9_000), "what was read stays read");
}

async fn a_feed_is_listed_newest_first(port: &dyn Inbox, tenant: &TenantId, shard: u32) {
    put_numbers(port, tenant, shard, 0..300, &["a"]).await;
    let all = list(port, tenant, "a", StateFilter::Active, 7).await;
    assert_eq!(all.len(), 300);
    assert!(all.windows(2).all(|pair| pair[0].event_id > pair[1].event_id));
    port.mark(tenant, "a", instances("a", &[10, 20]), MarkAs::Archived, 5).await.unwrap();
    port.mark(tenant, "a", instances("a", &[30, 40]), MarkAs::Read, 5).await.unwrap();
    port.mark(tenant, "a", instances("a", &[50]), MarkAs::Seen, 5).await.unwrap();
    let length = async |filter| list(port, tenant, "a", filter, 64).await.len();
    assert_eq!(length(StateFilter::Active).await, 298);
    assert_eq!(length(StateFilter::Unread).await, 296);
    assert_eq!(length(StateFilter::Unseen).await, 295);
    assert_eq!(titles(&list(port, tenant, "a", StateFilter::Archived, 1).await), ["title 20", "title 10"]);
    let before = Some(EventId { epoch: 1, offset: 2, index: 0 });
    let (page, next) = port.list(tenant, "a", StateFilter::Active, before, 10).await.unwrap();
    assert_eq!((titles(&page), next), (vec!["title 1", "title 0"], None));
}

async fn a_resumed_connection_has_no_gaps(port: &dyn Inbox, tenant: &TenantId, shard: u32) {
    assert!(port.since(tenant, "a", None, 10).await.unwrap().is_empty());
    put_numbers(port, tenant, shard, 0..20, &["a"]).await;
    let newest = port.since(tenant, "a", None, 10).await.unwrap();
    assert_eq!(titles(&newest), ["title 19"]);
    port.mark(tenant, "a", instances("a", &[16]), MarkAs::Archived, 5).await.unwrap();
    let after = EventId { epoch: 1, offset: 14, index: 0 };
    let page = port.since(tenant, "a", Some(after), 3).await.unwrap();
    assert_eq!(titles(&page), ["title 15", "title 16", "title 17"], "oldest first, whatever the state");
    let rest = port.since(tenant, "a", Some(page[2].event_id), 100).await.unwrap();
    assert_eq!(titles(&rest), ["title 18", "title 19"]);
    assert!(port.since(tenant, "a", Some(rest[1].event_id), 100).await.unwrap().is_empty());
}

async fn marks_include_those_before(port: &dyn Inbox, tenant: &TenantId, shard: u32) {
    put_numbers(port, tenant, shard, 0..3, &["a"]).await;
    assert_eq!(port.mark(tenant, "a", Which::All, MarkAs::Seen, 100).await.unwrap(), counts(0, 3, 3));
    put_numbers(port, tenant, shard, 3..4, &["a"]).await;
    assert_eq!(port.counts(tenant, "a").await.unwrap(), counts(1, 4, 4));
    assert_eq!(port.mark(tenant, "a", Which::All, MarkAs::Read, 200).await.unwrap(), counts(0, 0, 4));
    let times: Vec<_> =
        list(port, tenant, "a", StateFilter::Active, 10).await.iter().map(|i| (i.seen_ms, i.read_ms)).collect();
    assert_eq!(times, [(200, 200), (100, 200), (100, 200), (100, 200)], "the first time stays");
    assert_eq!(port.mark(tenant, "a", Which::All, MarkAs::Archived, 300).await.unwrap(), counts(0, 0, 0));
    put_numbers(port, tenant, shard, 4..5, &["a"]).await;
    assert_eq!(port.mark(tenant, "a", Which::All, MarkAs::Archived, 400).await.unwrap(), counts(0, 0, 0));
    let archived = list(port, tenant, "a", StateFilter::Archived, 10).await;
    let times: Vec<_> = archived.iter().map(|i| (i.seen_ms, i.read_ms, i.archived_ms)).collect();
    assert_eq!(times[..2], [(400, 400, 400), (200, 200, 300)]);
}

async fn instances_are_marked_once(port: &dyn Inbox, tenant: &TenantId, shard: u32) {
    put_numbers(port, tenant, shard, 0..600, &["a", "b"]).await;
    let marked = port.mark(tenant, "a", instances("a", &[0, 599, 9_999]), MarkAs::Seen, 10).await.unwrap();
    assert_eq!(marked, counts(598, 600, 600));
    assert_eq!(port.mark(tenant, "a", instances("a", &[0, 599]), MarkAs::Seen, 20).await.unwrap(), marked);
    assert_eq!(
        port.mark(tenant, "a", instances("b", &[5]), MarkAs::Seen, 20).await.unwrap(),
        marked,
        "of another user"
    );
    assert_eq!(port.mark(tenant, "a", Which::Instances(vec![]), MarkAs::Seen, 20).await.unwrap(), marked);
    assert_eq!(
        port.mark(tenant, "a", instances("a", &[0]), MarkAs::Archived, 30).await.unwrap(),
        counts(598, 599, 599)
    );
    assert_eq!(port.mark(tenant, "a", instances("a", &[0]), MarkAs::Read, 40).await.unwrap(), counts(598, 599, 599));
    assert_eq!(port.counts(tenant, "b").await.unwrap(), counts(600, 600, 600));
}

async fn a_higher_epoch_is_newer(port: &dyn Inbox, tenant: &TenantId, shard: u32) {
    port.put(shard, 1, vec![(500, batch(vec![section(tenant, 1, &["a", "b"])]))]).await.unwrap();
    assert_eq!(port.counts(tenant, "a").await.unwrap(), counts(1, 1, 1));
    port.put(shard, 2, vec![(3, batch(vec![section(tenant, 2, &["a", "b"])]))]).await.unwrap();
    assert_eq!(port.counts(tenant, "a").await.unwrap(), counts(2, 2, 2));
    assert_eq!(titles(&list(port, tenant, "a", StateFilter::Active, 1).await), ["title 2", "title 1"]);
    let since = port.since(tenant, "a", Some(EventId { epoch: 1, offset: 500, index: 0 }), 9).await.unwrap();
    assert_eq!(titles(&since), ["title 2"]);
}

async fn a_feed_keeps_its_newest_items(port: &dyn Inbox, tenant: &TenantId, shard: u32) {
    let beyond = 300;
    let end = MAX_ITEMS as u64 + beyond;
    for begin in (0..end).step_by(500) {
        put_numbers(port, tenant, shard, begin..(begin + 500).min(end), &["a", "b"]).await;
        if begin == 1_000 {
            port.mark(tenant, "a", instances("a", &[1, 2, 999]), MarkAs::Archived, 10).await.unwrap();
        }
    }
    let most = MAX_ITEMS as u64;
    assert_eq!(port.counts(tenant, "b").await.unwrap(), counts(most, most, most));
    assert_eq!(port.counts(tenant, "a").await.unwrap(), counts(most - 1, most - 1, most - 1), "999 is archived still");
    let all = list(port, tenant, "b", StateFilter::Active, 1_000).await;
    assert_eq!(all.len(), MAX_ITEMS);
    assert_eq!(all[MAX_ITEMS - 1].title, format!("title {beyond}"));
}
