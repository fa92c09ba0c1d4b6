//! A notification is followed through the spans of all its stages, as a collector receives them.

use std::collections::BTreeSet;

use tonic::Request;

use crate::{
    collector::{Collector, Seen, of_caller, text_of},
    support::{Client, Setup, notification, user},
};

/// Sends a notification with a caller's context, and waits until it is settled.
pub async fn send_traced(client: &mut Client, key: &str, users: Vec<String>, trace_parent: Option<String>) {
    let mut request = Request::new(notification(key, users));
    if let Some(trace_parent) = trace_parent {
        request.metadata_mut().insert("traceparent", trace_parent.parse().unwrap());
    }
    let id = client.notifications.notify(request).await.unwrap().into_inner().request_id;
    client.settled(&id).await;
}

/// The call is a child of the caller's span and all else of the call's; the ledger's span, which is for many, links to it.
pub fn check_parents(seen: &[Seen], trace: [u8; 16], caller: [u8; 8]) {
    let call = &seen.iter().find(|seen| seen.span.name == "notify").unwrap().span;
    for Seen { span, .. } in seen {
        let failed = span.status.as_ref().is_some_and(|status| status.code != 0);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano && !failed, "{span:?}");
        if span.name == "settle receipts" {
            let link = span.links.iter().find(|link| link.trace_id == trace).unwrap();
            assert_eq!(link.span_id, call.span_id);
            continue;
        }
        let parent = if span.name == "notify" { caller.to_vec() } else { call.span_id.clone() };
        assert_eq!((&span.trace_id[..], &span.parent_span_id), (&trace[..], &parent), "{}", span.name);
    }
}

#[tokio::test]
async fn a_notification_is_followed_through_all_stages_and_nobody_is_named() {
    let collector = Collector::default();
    let directory = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(&directory.path().join("data"));
    setup.settings.extend(collector.start());
    let process = setup.start().await;
    let mut client = process.client().await;
    client.set_up(3).await;

    let (wanted, trace, caller) = of_caller(true);
    // Neither is traced: the caller wants it not, and of a million calls none is.
    let users: Vec<String> = (0..3).map(user).collect();
    send_traced(&mut client, "unwanted", users.clone(), Some(of_caller(false).0)).await;
    send_traced(&mut client, "untraced", users.clone(), None).await;
    send_traced(&mut client, "traced", users, Some(wanted)).await;

    let seen = collector.follow(&trace).await;
    check_parents(&seen, trace, caller);
    let email = &seen.iter().find(|seen| seen.span.name == "send email").unwrap().span;
    let of_email = |name| text_of(&email.attributes, name);
    assert_eq!((of_email("herald.provider"), of_email("herald.tenant")), ("smtp", "demo"));
    let all = collector.all();
    let everything = format!("{all:?}");
    assert!(!everything.contains("user-") && !everything.contains("example.org"), "somebody is named: {everything}");
    let traces: BTreeSet<&[u8]> =
        all.iter().filter(|seen| seen.span.links.is_empty()).map(|seen| &seen.span.trace_id[..]).collect();
    assert_eq!(traces, [&trace[..]].into(), "something is traced that nobody asked for");
}
