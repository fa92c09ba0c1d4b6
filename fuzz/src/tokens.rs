//! What comes back from callers and is to be taken for nothing but itself: page tokens, event ids, ids, times, signed
//! tokens, and the columns and maps of the log.
//!
//! The first byte of an input chooses what the rest is.

use std::cell::OnceCell;

use herald_api::{page::List, query::Query, time};
use herald_core::{
    done_map::{DoneMap, MAX_ENCODED_CHARS},
    ids::{InstanceId, NotificationId, TenantId},
    packed,
    ports::inbox::EventId,
    tokens::{UnsubscribeToken, UserToken},
};
use http::HeaderMap;

use crate::node::{Node, with_node};

/// Reads it.
pub fn run(input: &[u8]) {
    let [kind, rest @ ..] = input else { return };
    let text = String::from_utf8_lossy(rest);
    match kind % 8 {
        0 => page_tokens(rest),
        1 => column(rest),
        2 => done_map(&text),
        3 => ids(&text),
        4 => times(&text),
        5 => signed(&text),
        6 => {
            let mut query = Query::parse(&text);
            let _ = (query.timestamp("since"), query.value::<u32>("page_size"), query.text("page_token"));
            let _ = query.finish();
        }
        _ => assert_eq!(List::new("users", &["demo"]).position(Some(&text)).is_err(), !text.is_empty()),
    }
}

/// A token of the right list, with any position in it, is a page or refused.
fn page_tokens(position: &[u8]) {
    with_node(async |node| {
        node.still_delivers().await;
        for (path, list) in [
            ("/v1/users?", List::new("users", &["demo"])),
            ("/v1/users/u1/inbox?", List::new("inbox", &["demo", "u1", ""])),
            ("/v1/requests?", List::new("requests", &["demo", "", "", "0"])),
            ("/v1/receipts?user_id=u1&", List::new("receipts", &["demo", "", "u1", "", "", "", ""])),
            ("/v1/templates?", List::new("templates", &["demo"])),
        ] {
            let own = next_token(node, path).await;
            let token = list.token(Some(position));
            let path = format!("{path}page_token={token}");
            let answer = node.call("GET", &path, &HeaderMap::new(), Vec::new()).await.unwrap();
            let status = answer.status.as_u16();
            assert!(matches!(status, 200 | 400), "{path}: {status} {}", answer.json());
            // The list is the one that the path lists: its own tokens are taken.
            assert!(own.is_none_or(|own| list.position(Some(&own)).is_ok()), "{path}: the token is another list's");
        }
    });
}

async fn next_token(node: &Node, path: &str) -> Option<String> {
    let answer = node.call("GET", &format!("{path}page_size=1"), &HeaderMap::new(), Vec::new()).await?;
    answer.json()["next_page_token"].as_str().filter(|token| !token.is_empty()).map(str::to_owned)
}

fn column(bytes: &[u8]) {
    let ids: Result<Vec<&str>, _> = packed::unpack(bytes).collect();
    if let Ok(ids) = ids {
        let packed = packed::pack(ids.iter().copied());
        assert!(packed.len() <= bytes.len(), "packed anew it is no longer");
        assert!(packed::unpack(&packed).map(Result::unwrap).eq(ids));
    }
}

fn done_map(text: &str) {
    let Ok(map) = DoneMap::decode(&text[..text.len().min(MAX_ENCODED_CHARS)]) else { return };
    assert!(map.finished() <= map.span() as u64);
    assert_eq!(DoneMap::decode(&map.encode()).unwrap(), map);
}

fn ids(text: &str) {
    if let Ok(id) = text.parse::<EventId>() {
        assert_eq!(id.to_string().parse::<EventId>().unwrap(), id);
    }
    if let Ok(id) = text.parse::<NotificationId>() {
        assert_eq!(id.to_string().parse::<NotificationId>().unwrap(), id);
    }
    if let Ok(id) = text.parse::<InstanceId>() {
        assert_eq!(id.to_string().parse::<InstanceId>().unwrap(), id);
    }
    if let Ok(tenant) = TenantId::parse(text) {
        assert_eq!(tenant.as_str(), text);
    }
}

fn times(text: &str) {
    if let Some(ms) = time::parse(text).as_ref().and_then(time::millis) {
        assert_eq!(time::millis(&time::timestamp(ms)), Some(ms));
    }
}

/// Nobody guesses a signature, and what was signed comes back.
fn signed(text: &str) {
    thread_local!(static SECRET: OnceCell<String> = const { OnceCell::new() });
    SECRET.with(|secret| {
        let secret = secret.get_or_init(|| "00ff".repeat(16));
        assert!(UserToken::verify(text, secret, 0).is_err() && UnsubscribeToken::verify(text, secret).is_err());
        let token = UnsubscribeToken {
            tenant: "demo".into(),
            user: text.to_owned(),
            channel: "email".into(),
            category: text.to_owned(),
        };
        let read = UnsubscribeToken::verify(&token.sign(secret), secret);
        assert!(read.is_ok_and(|read| read == token) || text.len() > 256, "{text:?}");
    });
}

/// One of each.
pub fn seeds() -> Vec<Vec<u8>> {
    let map = DoneMap::from_runs([(false, 3), (true, 70), (false, 1), (true, 5_000)]).encode();
    let seeds: [(u8, &[u8]); 11] = [
        (0, &[0; 16]),
        // A user's receipts from billions of hours ahead: nobody waits until all of them are looked through.
        (0, &[5, 0xff, 0xff, 0xff, 0xff]),
        (0, b"\x00\x00\x00\x00\x00\x00\x00\x01u1"),
        (1, b"\x02u1\x03abc"),
        (2, map.as_bytes()),
        (3, b"1-2a-3"),
        (3, b"01234567-89ab-7def-8123-456789abcdef"),
        (4, b"2026-03-29T02:30:00.123+02:00"),
        (5, b"hu_eyJ0IjoiZGVtbyJ9.AAAA"),
        (6, b"since=2026-01-01T00:00:00Z&page_size=5&page_token=%00"),
        (7, b"AQAAAAAAAAAA"),
    ];
    seeds.into_iter().map(|(kind, rest)| [&[kind], rest].concat()).collect()
}
