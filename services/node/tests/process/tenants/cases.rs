//! The cases: each method, by everything that names something in its call.

use std::collections::BTreeSet;

use herald_api::descriptors::{PACKAGE, method};
use prost_reflect::{Kind, MessageDescriptor};
use serde_json::{Value, json};

use super::world::Owned;

/// What a call with another tenant's ids must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leads {
    /// The id is nobody's for this caller.
    Nowhere,
    /// Only operators may call.
    Refused,
    /// A page token of another tenant's list.
    Foreign,
    /// Ids of this kind are each tenant's own, so the call means the caller's thing of the same name.
    Home,
    /// The same for a live feed, which says nothing until something happens: `live.rs` sees what comes.
    HomeFeed,
}

use Leads::{Foreign, Home, HomeFeed, Nowhere, Refused};

/// A method, the fields of a call with another tenant's ids, and what it must come to.
#[derive(Debug)]
pub struct Case(pub &'static str, pub Value, pub Leads);

/// The cases of each method. Those that make things of the caller's own come last.
pub fn cases(owned: &Owned) -> Vec<Case> {
    let mut cases = of_nobody(owned);
    cases.extend(of_operators(owned));
    cases.extend(of_lists(owned));
    cases.extend(of_its_own(owned));
    cases
}

/// Ids that a process gave to another tenant, and names of what the caller does not have.
fn of_nobody(owned: &Owned) -> Vec<Case> {
    let version = json!({"template_id": "theirs", "version": 1});
    let preview = |user: Value| {
        let mut fields = json!({"template_id": "theirs", "channel": "in_app"});
        fields.as_object_mut().unwrap().extend(user.as_object().unwrap().clone());
        Case("Templates.PreviewTemplate", fields, Nowhere)
    };
    vec![
        Case("Notifications.Notify", json!({"template_id": "theirs", "audience": {"users": ["theirs"]}}), Nowhere),
        Case("Notifications.GetStatus", json!({"request_id": owned.request}), Nowhere),
        Case("Notifications.ListReceipts", json!({"request_id": owned.request}), Nowhere),
        Case("Notifications.ListReceipts", json!({"request_id": owned.request, "user_id": "theirs"}), Nowhere),
        // What is over cannot be cancelled: this one has not begun.
        Case("Notifications.Cancel", json!({"request_id": owned.scheduled}), Nowhere),
        Case("Users.GetUser", json!({"user_id": "theirs"}), Nowhere),
        Case("Users.GetErasure", json!({"erasure_id": owned.erasure}), Nowhere),
        Case("Templates.GetTemplate", json!({"template_id": "theirs"}), Nowhere),
        Case("Templates.GetTemplate", version.clone(), Nowhere),
        preview(json!({"user_id": "theirs"})),
        preview(json!({"user": {"user_id": "theirs"}})),
        Case("Templates.PublishTemplate", version.clone(), Nowhere),
        Case("Templates.RollbackTemplate", version, Nowhere),
    ]
}

/// What operators do.
fn of_operators(owned: &Owned) -> Vec<Case> {
    let provider = json!({"name": "p", "channel": "email", "kind": "smtp", "url": "smtp://h"});
    vec![
        Case("Admin.PutTenant", json!({"tenant_id": "demo", "name": "taken over"}), Refused),
        Case("Admin.GetTenant", json!({"tenant_id": "demo"}), Refused),
        Case("Admin.ListTenants", json!({}), Refused),
        Case("Admin.CreateKey", json!({"tenant_id": "demo", "name": "k", "scopes": ["users"]}), Refused),
        Case("Admin.ListKeys", json!({"tenant_id": "demo"}), Refused),
        Case("Admin.DeleteKey", json!({"key_id": "dev_demo"}), Refused),
        Case("Admin.ListDeadLetters", json!({"tenant_id": "demo"}), Refused),
        Case("Admin.GetDeadLetter", json!({"id": "0"}), Refused),
        Case("Admin.RedriveDeadLetters", json!({"tenant_id": "demo"}), Refused),
        Case("Admin.GetRedrive", json!({"redrive_id": owned.request}), Refused),
        Case("Admin.GetLag", json!({}), Refused),
        Case("Admin.PutLimit", json!({"scope": {"tenant": "demo"}, "per_second": 1}), Refused),
        Case("Admin.ListLimits", json!({}), Refused),
        Case("Admin.DeleteLimit", json!({"id": "theirs"}), Refused),
        Case("Admin.PutSwitch", json!({"scope": {"tenant": "demo"}, "state": "off"}), Refused),
        Case("Admin.ListSwitches", json!({}), Refused),
        Case("Admin.DeleteSwitch", json!({"id": "sw_0"}), Refused),
        Case("Admin.CreateBackup", json!({"directory": "/nowhere"}), Refused),
        Case("Admin.GetBackup", json!({}), Refused),
        Case("Admin.PutProvider", provider, Refused),
        Case("Admin.GetProvider", json!({"name": "p"}), Refused),
        Case("Admin.ListProviders", json!({}), Refused),
        Case("Admin.DeleteProvider", json!({"name": "p"}), Refused),
        Case("Admin.ListAudit", json!({"tenant": "demo"}), Refused),
    ]
}

/// Lists, and the next page of another tenant's.
fn of_lists(owned: &Owned) -> Vec<Case> {
    let lists = [
        ("Notifications.ListRequests", json!({}), &owned.pages.requests),
        ("Notifications.ListReceipts", json!({"user_id": "theirs"}), &owned.pages.receipts),
        ("Users.ListUsers", json!({}), &owned.pages.users),
        ("Inbox.ListInbox", json!({"user_id": "theirs"}), &owned.pages.inbox),
        ("Templates.ListTemplates", json!({}), &owned.pages.templates),
    ];
    let with_token = |fields: &Value, token: &str| {
        let mut fields = fields.clone();
        fields["page_token"] = token.into();
        fields
    };
    let of_list = |(method, fields, token): (&'static str, Value, &String)| {
        [Case(method, with_token(&fields, token), Foreign), Case(method, fields, Home)]
    };
    lists.into_iter().flat_map(of_list).collect()
}

/// What a tenant does with its own things, which are called as another's are.
fn of_its_own(owned: &Owned) -> Vec<Case> {
    let user = json!({"user_id": "theirs"});
    let french = json!({"user_id": "theirs", "locale": "fr"});
    let edges = json!({"edges": [{"follower": "theirs", "followee": "star"}]});
    let subscribers = json!({"topic": "theirs", "user_ids": ["theirs"]});
    let template = json!({"template_id": "theirs", "channels": {"in_app": {"title": "own"}}});
    let mut cases = vec![
        Case("Notifications.Cancel", json!({"dedupe_key": "theirs"}), Home),
        Case("Notifications.Cancel", json!({"dedupe_key": "theirs", "template_id": "theirs"}), Home),
        Case("Notifications.ListRequests", json!({"template_id": "theirs"}), Home),
        Case("Users.GetPreferences", user.clone(), Home),
        Case("Users.PutPreferences", json!({"user_id": "theirs", "channels": {"email": {"enabled": true}}}), Home),
        Case("Users.PutUser", french.clone(), Home),
        Case("Users.PatchUser", french.clone(), Home),
        Case("Users.PutUsers", json!({"users": [french]}), Home),
        Case("Users.CreateUserToken", json!({"user_id": "theirs", "scopes": ["inbox"]}), Home),
        Case("Users.Follow", edges.clone(), Home),
        Case("Users.Unfollow", edges, Home),
        Case("Users.Subscribe", subscribers.clone(), Home),
        Case("Users.Unsubscribe", subscribers, Home),
        Case("Inbox.WatchInbox", user.clone(), HomeFeed),
        Case("Inbox.WatchInbox", json!({"user_id": "theirs", "last_event_id": owned.event}), HomeFeed),
        Case("Inbox.MarkInbox", json!({"user_id": "theirs", "instance_ids": [owned.instance], "as": "read"}), Home),
        Case("Inbox.MarkInbox", json!({"user_id": "theirs", "all": true, "as": "archived"}), Home),
        Case("Templates.PutTemplate", template, Home),
    ];
    for notification in notifications() {
        let batch = json!({"notifications": [notification.clone()]});
        cases.push(Case("Notifications.NotifyBatch", batch, Home));
        cases.push(Case("Notifications.NotifyStream", notification.clone(), Home));
        cases.push(Case("Notifications.Notify", notification, Home));
    }
    cases.push(Case("Users.DeleteUser", user, Home));
    cases
}

/// A notification to each kind of audience, and one under the keys of another tenant's.
fn notifications() -> Vec<Value> {
    let to = |audience: Value| json!({"template_id": "theirs", "audience": audience, "actor_id": "star"});
    let mut under_keys = to(json!({"users": ["theirs"]}));
    under_keys["dedupe_key"] = "theirs".into();
    under_keys["idempotency_key"] = "theirs".into();
    vec![
        under_keys,
        to(json!({"inline": [{"user_id": "theirs"}]})),
        to(json!({"followers_of": "star"})),
        to(json!({"topic": "theirs"})),
        to(json!({"everyone": true})),
    ]
}

/// Fields that name something of a tenant's: a call that has one is a case.
const NAMES: [&str; 17] = [
    "request_id",
    "user_id",
    "user_ids",
    "users",
    "template_id",
    "erasure_id",
    "dedupe_key",
    "idempotency_key",
    "actor_id",
    "followers_of",
    "topic",
    "follower",
    "followee",
    "instance_ids",
    "last_event_id",
    "page_token",
    "everyone",
];

/// Fields of text that name nothing of a tenant's. `segment` would: it is not built, and no call with one is taken.
const WORDS: [&str; 24] = [
    "address",
    "app_version",
    "as",
    "body",
    "category",
    "channel",
    "channels",
    "clear",
    "default_locale",
    "end",
    "html",
    "kind",
    "locale",
    "platform",
    "policy",
    "priority",
    "scopes",
    "segment",
    "start",
    "state",
    "subject",
    "text",
    "time_zone",
    "title",
];

/// Fields of calls that name something and are in no case of their method, and fields of which it is not said whether
/// they do.
pub fn left_out(cases: &[Case]) -> Vec<String> {
    let open = cases.iter().filter(|case| case.2 != Refused);
    let methods: BTreeSet<&'static str> = open.map(|case| case.0).collect();
    let mut left_out = Vec::new();
    for name in methods {
        let Some(method) = method(name) else { continue };
        let mut given = BTreeSet::new();
        cases.iter().filter(|case| case.0 == name).for_each(|case| paths_of_case(&case.1, "", &mut given));
        let mut fields = BTreeSet::new();
        paths_of_message(&method.input(), "", &mut fields);
        for path in fields {
            let field = path.rsplit('.').next().unwrap_or_default();
            let is_name = NAMES.contains(&field);
            if is_name && !given.contains(&path) || !is_name && !WORDS.contains(&field) {
                left_out.push(format!("{name}: {path}"));
            }
        }
    }
    left_out
}

/// The fields of text of a message, and of those within, with where they are; and those that are names although no texts.
fn paths_of_message(message: &MessageDescriptor, within: &str, paths: &mut BTreeSet<String>) {
    for field in message.fields() {
        let path = format!("{within}{}", field.name());
        match field.kind() {
            // Keys are the caller's words; only what they lead to may name something.
            Kind::Message(entry) if field.is_map() => {
                if let Kind::Message(value) = entry.map_entry_value_field().kind() {
                    paths_of_message(&value, &format!("{path}."), paths);
                }
            }
            Kind::Message(inner) if inner.package_name() == PACKAGE => {
                paths_of_message(&inner, &format!("{path}."), paths);
            }
            kind if kind == Kind::String || NAMES.contains(&field.name()) => {
                paths.insert(path);
            }
            _ => {}
        }
    }
}

/// The fields that a case gives, with where they are.
fn paths_of_case(fields: &Value, within: &str, paths: &mut BTreeSet<String>) {
    match fields {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            paths.insert(format!("{within}{name}"));
            paths_of_case(value, &format!("{within}{name}."), paths);
        }),
        Value::Array(items) => items.iter().for_each(|item| paths_of_case(item, within, paths)),
        _ => {}
    }
}
