//! [`Directory`].

use std::sync::Arc;

use crate::{
    ids::{TenantId, user_hash},
    people::{ChannelPreference, Endpoint, Preferences, User},
    ports::directory::{AudienceKey, Changed, Directory, Membership, PersonChange},
    record::Cursor,
};

/// The whole suite. `run` is part of the tenants' names.
pub async fn all(port: Arc<dyn Directory>, run: &str) {
    let tenant = |test: &str| TenantId::parse(&format!("{run}-{test}")).unwrap();
    an_unknown_person_is_empty(&*port, &tenant("unknown")).await;
    profiles_count_their_versions(&*port, &tenant("versions")).await;
    a_profile_is_compared_and_set(&*port, &tenant("cas")).await;
    endpoints_keep_their_first_day(&*port, &tenant("endpoints")).await;
    preferences_need_no_profile(&*port, &tenant("preferences")).await;
    changes_of_one_call_follow_each_other(&*port, &tenant("order")).await;
    everyone_is_who_is_registered(&*port, &tenant("everyone")).await;
    an_audience_is_paged_in_order(&*port, &tenant("paged")).await;
    audiences_are_apart(&*port, &tenant("apart"), &tenant("apart2")).await;
    a_cursor_outlives_its_member(&*port, &tenant("cursor")).await;
}

/// A user with one mail address.
pub fn user(id: &str) -> User {
    let endpoint = Endpoint { channel: "email".into(), address: format!("{id}@example.com"), ..Endpoint::default() };
    User { user_id: id.into(), endpoints: vec![endpoint], ..User::default() }
}

async fn put(port: &dyn Directory, tenant: &TenantId, user: User, expect: Option<u64>, now_ms: u64) -> Changed {
    port.change(tenant, vec![PersonChange::Profile { user, expect }], now_ms).await.unwrap().remove(0)
}

fn stored(changed: &Changed) -> &User {
    match changed {
        Changed::Done(person) => person.user.as_ref().unwrap(),
        Changed::VersionMismatch(version) => panic!("refused; {version} is stored"),
    }
}

fn ids(users: &[&str]) -> Vec<String> {
    users.iter().map(|u| (*u).to_owned()).collect()
}

/// Members of one audience.
pub fn memberships(audience: &AudienceKey, users: &[String]) -> Vec<Membership> {
    users.iter().map(|user| Membership { audience: audience.clone(), user: user.clone() }).collect()
}

/// Ids in the order in which members are stored.
pub fn in_order(mut users: Vec<String>) -> Vec<String> {
    users.sort_by_key(|user| (user_hash(user), user.clone()));
    users
}

/// Reads an audience page by page.
pub async fn read_all(
    port: &dyn Directory,
    tenant: &TenantId,
    audience: &AudienceKey,
    mut after: Option<Cursor>,
    limit: usize,
) -> Vec<String> {
    let mut users = Vec::new();
    loop {
        let page = port.audience(tenant, audience, after, limit).await.unwrap();
        assert!(page.users.len() <= limit, "a page of {} is longer than {limit}", page.users.len());
        users.extend(page.users);
        match page.next {
            Some(next) => after = Some(next),
            None => return users,
        }
    }
}

async fn an_unknown_person_is_empty(port: &dyn Directory, tenant: &TenantId) {
    put(port, tenant, user("known"), None, 5).await;
    let people = port.people(tenant, &ids(&["nobody", "known", "nobody"])).await.unwrap();
    assert_eq!(people.len(), 3);
    assert_eq!(people[0], Default::default());
    assert_eq!(people[1].user.as_ref().unwrap().user_id, "known");
    assert_eq!(people[2], Default::default());
    assert!(port.people(tenant, &[]).await.unwrap().is_empty());
}

async fn profiles_count_their_versions(port: &dyn Directory, tenant: &TenantId) {
    let mut profile = user("u");
    profile.attributes.insert("plan".into(), serde_json::json!({"name": "pro", "seats": 3}));
    profile.locale = Some("de-AT".into());
    profile.time_zone = Some("Europe/Vienna".into());
    let first = put(port, tenant, profile.clone(), None, 1_000).await;
    assert_eq!((stored(&first).version, stored(&first).created_ms, stored(&first).updated_ms), (1, 1_000, 1_000));
    let second = put(port, tenant, profile.clone(), None, 2_000).await;
    assert_eq!((stored(&second).version, stored(&second).created_ms, stored(&second).updated_ms), (2, 1_000, 2_000));
    let read = port.people(tenant, &ids(&["u"])).await.unwrap().remove(0).user.unwrap();
    assert_eq!(&read, stored(&second));
    assert_eq!((read.attributes, read.locale, read.time_zone), (profile.attributes, profile.locale, profile.time_zone));
    put(port, tenant, User { user_id: "u".into(), ..User::default() }, None, 3_000).await;
    let bare = port.people(tenant, &ids(&["u"])).await.unwrap().remove(0).user.unwrap();
    assert!(bare.attributes.is_empty() && bare.endpoints.is_empty() && bare.locale.is_none(), "it replaces: {bare:?}");
}

async fn a_profile_is_compared_and_set(port: &dyn Directory, tenant: &TenantId) {
    assert_eq!(put(port, tenant, user("u"), Some(3), 1).await, Changed::VersionMismatch(0));
    assert_eq!(stored(&put(port, tenant, user("u"), Some(0), 1).await).version, 1);
    assert_eq!(put(port, tenant, user("u"), Some(0), 2).await, Changed::VersionMismatch(1));
    assert_eq!(stored(&put(port, tenant, user("u"), Some(1), 2).await).version, 2);
    let read = port.people(tenant, &ids(&["u"])).await.unwrap().remove(0).user.unwrap();
    assert_eq!((read.version, read.updated_ms), (2, 2));
}

async fn endpoints_keep_their_first_day(port: &dyn Directory, tenant: &TenantId) {
    put(port, tenant, user("u"), None, 1_000).await;
    let mut two = user("u");
    two.endpoints.push(Endpoint { channel: "push".into(), address: "token".into(), ..Endpoint::default() });
    two.endpoints[0].app_version = "2".into();
    put(port, tenant, two, None, 2_000).await;
    let read = port.people(tenant, &ids(&["u"])).await.unwrap().remove(0).user.unwrap();
    let days: Vec<_> = read.endpoints.iter().map(|e| (e.channel.as_str(), e.registered_ms)).collect();
    assert_eq!(days, [("email", 1_000), ("push", 2_000)]);
    assert_eq!(read.endpoints[0].app_version, "2");
}

async fn preferences_need_no_profile(port: &dyn Directory, tenant: &TenantId) {
    let out = ChannelPreference { enabled: Some(false), categories: [("news".to_owned(), true)].into() };
    let preferences = Preferences {
        channels: [("email".to_owned(), out)].into(),
        source: "unsubscribe".into(),
        ..Default::default()
    };
    let change = PersonChange::Preferences { user_id: "u".into(), preferences: preferences.clone() };
    let changed = port.change(tenant, vec![change], 7).await.unwrap();
    assert!(matches!(&changed[0], Changed::Done(p) if p.user.is_none() && p.preferences == preferences));
    assert!(read_all(port, tenant, &AudienceKey::Everyone, None, 10).await.is_empty(), "nobody is registered");
    // They outlast a registration, which begins at version 1.
    assert_eq!(stored(&put(port, tenant, user("u"), Some(0), 8).await).version, 1);
    let read = port.people(tenant, &ids(&["u"])).await.unwrap().remove(0);
    assert_eq!(read.preferences, preferences);
    assert!(read.user.is_some());
}

async fn changes_of_one_call_follow_each_other(port: &dyn Directory, tenant: &TenantId) {
    let changes = vec![
        PersonChange::Profile { user: user("a"), expect: Some(0) },
        PersonChange::Profile { user: user("a"), expect: Some(0) },
        PersonChange::Profile { user: user("a"), expect: Some(1) },
        PersonChange::Preferences { user_id: "a".into(), preferences: Preferences::default() },
        PersonChange::Profile { user: user("b"), expect: None },
    ];
    let changed = port.change(tenant, changes, 9).await.unwrap();
    assert_eq!(changed.len(), 5);
    assert_eq!(changed[1], Changed::VersionMismatch(1));
    assert_eq!(stored(&changed[2]).version, 2);
    assert_eq!(stored(&changed[3]).version, 2);
    assert_eq!(port.people(tenant, &ids(&["a"])).await.unwrap()[0].user.as_ref().unwrap().version, 2);
    assert_eq!(read_all(port, tenant, &AudienceKey::Everyone, None, 10).await, in_order(ids(&["a", "b"])));
}

async fn everyone_is_who_is_registered(port: &dyn Directory, tenant: &TenantId) {
    let all: Vec<String> = (0..700).map(|n| format!("user-{n}")).collect();
    for hundred in all.chunks(100) {
        let changes = hundred.iter().map(|id| PersonChange::Profile { user: user(id), expect: None }).collect();
        port.change(tenant, changes, 1).await.unwrap();
    }
    put(port, tenant, user("user-3"), None, 2).await;
    let order = in_order(all);
    assert_eq!(read_all(port, tenant, &AudienceKey::Everyone, None, 64).await, order);
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let (users, next) = port.list(tenant, after, 300).await.unwrap();
        listed.extend(users.into_iter().map(|u| (u.user_id, u.version)));
        match next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let expected: Vec<_> = order.into_iter().map(|id| (id.clone(), if id == "user-3" { 2 } else { 1 })).collect();
    assert_eq!(listed, expected);
    let everyone = vec![Membership { audience: AudienceKey::Everyone, user: "x".into() }];
    assert!(port.set_members(tenant, everyone, true).await.is_err(), "everyone cannot be set");
}

async fn an_audience_is_paged_in_order(port: &dyn Directory, tenant: &TenantId) {
    let topic = AudienceKey::Topic("t".into());
    assert_eq!(port.audience(tenant, &topic, None, 10).await.unwrap(), Default::default());
    let members: Vec<String> = (0..3_000).map(|n| format!("member-{n}")).collect();
    assert_eq!(port.set_members(tenant, memberships(&topic, &members), true).await.unwrap(), 3_000);
    assert_eq!(port.set_members(tenant, memberships(&topic, &members[..10]), true).await.unwrap(), 0);
    let order = in_order(members.clone());
    for limit in [1, 7, 256, 3_000, 10_000] {
        let after = (limit == 1).then(|| Cursor { hash: user_hash(&order[2_900]), user: order[2_900].clone() });
        let from = if limit == 1 { 2_901 } else { 0 };
        assert_eq!(read_all(port, tenant, &topic, after, limit).await, order[from..], "by pages of {limit}");
    }
    // Twice in one call counts once; most of them go.
    let twice: Vec<String> = members[..2_990].iter().chain(&members[..5]).cloned().collect();
    assert_eq!(port.set_members(tenant, memberships(&topic, &twice), false).await.unwrap(), 2_990);
    assert_eq!(read_all(port, tenant, &topic, None, 4).await, in_order(members[2_990..].to_vec()));
    assert_eq!(port.set_members(tenant, memberships(&topic, &members), false).await.unwrap(), 10);
    assert_eq!(port.audience(tenant, &topic, None, 10).await.unwrap(), Default::default());
}

async fn audiences_are_apart(port: &dyn Directory, tenant: &TenantId, other: &TenantId) {
    let audiences = [
        AudienceKey::Topic("a".into()),
        AudienceKey::Topic("ab".into()),
        AudienceKey::FollowersOf("a".into()),
        AudienceKey::FollowersOf("ab".into()),
    ];
    let members = audiences.iter().enumerate();
    let members: Vec<_> = members.flat_map(|(n, a)| memberships(a, &[format!("only-{n}"), "all".to_owned()])).collect();
    assert_eq!(port.set_members(tenant, members, true).await.unwrap(), 8);
    for (n, audience) in audiences.iter().enumerate() {
        let expected = in_order(vec![format!("only-{n}"), "all".to_owned()]);
        assert_eq!(read_all(port, tenant, audience, None, 10).await, expected);
        assert!(read_all(port, other, audience, None, 10).await.is_empty());
    }
    let gone = memberships(&audiences[0], &ids(&["all"]));
    assert_eq!(port.set_members(other, gone.clone(), false).await.unwrap(), 0);
    assert_eq!(port.set_members(tenant, gone, false).await.unwrap(), 1);
    assert_eq!(read_all(port, tenant, &audiences[0], None, 10).await, ["only-0"]);
    assert_eq!(read_all(port, tenant, &audiences[2], None, 10).await.len(), 2);
}

async fn a_cursor_outlives_its_member(port: &dyn Directory, tenant: &TenantId) {
    let followers = AudienceKey::FollowersOf("star".into());
    let members = in_order((0..1_000).map(|n| format!("fan-{n}")).collect());
    port.set_members(tenant, memberships(&followers, &members), true).await.unwrap();
    let page = port.audience(tenant, &followers, None, 300).await.unwrap();
    assert_eq!(page.users, members[..300]);
    let next = page.next.unwrap();
    assert_eq!((next.hash, next.user.as_str()), (user_hash(&members[299]), members[299].as_str()));
    // The cursor's member goes, and everybody around it.
    port.set_members(tenant, memberships(&followers, &members[100..500]), false).await.unwrap();
    assert_eq!(read_all(port, tenant, &followers, Some(next), 90).await, members[500..]);
}
