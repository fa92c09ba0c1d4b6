//! The last mails, bounded by count and octets, and what has been counted since the start.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use super::decode;

/// Bounds of a [`MailStore`] and of the server in front of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// Mails kept at most; older ones go first.
    pub mails: usize,
    /// Octets of raw messages kept at most. The newest mail is kept even if it alone is larger.
    pub octets: usize,
    /// Distinct Message-IDs told apart at most; beyond, duplicates are no longer found (8 octets each).
    pub message_ids: usize,
    /// The largest message that the server takes, in octets.
    pub message_octets: usize,
}

impl Default for StoreLimits {
    /// 1,000 mails, 64 MiB, 4,000,000 Message-IDs, 25 MiB a message.
    fn default() -> Self {
        Self { mails: 1_000, octets: 64 << 20, message_ids: 4_000_000, message_octets: 25 << 20 }
    }
}

/// One mail as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMail {
    /// Counts up from 1 in the order of arrival.
    pub id: u64,
    /// When the final dot came.
    pub received_at: SystemTime,
    /// The envelope's return path; empty for a bounce.
    pub mail_from: String,
    /// The envelope's recipients.
    pub rcpt_to: Vec<String>,
    /// `Subject`, decoded.
    pub subject: String,
    /// `Message-ID` with its angle brackets; empty if there is none.
    pub message_id: String,
    /// `List-Unsubscribe` as it stands; empty if there is none.
    pub list_unsubscribe: String,
    /// The message as it was received, dot-unstuffed.
    pub raw: Bytes,
}

/// What has been counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Mails received.
    pub received: u64,
    /// Mails with a Message-ID that was not seen before.
    pub distinct: u64,
    /// Mails with a Message-ID that was seen before.
    pub duplicates: u64,
    /// Mails without a Message-ID.
    pub without_message_id: u64,
    /// Whether the bound on Message-IDs was reached: from then on new ones are counted as distinct without being
    /// remembered, so `duplicates` may be too low. Message-IDs are compared by a 64-bit hash.
    pub capped: bool,
    /// Mails kept.
    pub kept: usize,
    /// Octets of the mails kept.
    pub kept_octets: usize,
}

/// One page of mails, newest first.
#[derive(Debug, Clone)]
pub struct Page {
    /// The mails.
    pub mails: Vec<Arc<StoredMail>>,
    /// What to give as `before` for the next page; `None` at the end.
    pub next_before: Option<u64>,
}

/// Keeps the last mails. Shared by the server and whoever shows them.
pub struct MailStore {
    limits: StoreLimits,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    mails: VecDeque<Arc<StoredMail>>,
    seen: HashSet<u64>,
    counts: Counts,
}

impl MailStore {
    /// An empty store.
    pub fn new(limits: StoreLimits) -> Self {
        Self { limits, inner: Mutex::new(Inner::default()) }
    }

    /// The bounds it was made with.
    pub fn limits(&self) -> StoreLimits {
        self.limits
    }

    /// Adds a mail, drops the oldest ones beyond the bounds, and returns the new mail's id.
    pub fn add(&self, mail_from: String, rcpt_to: Vec<String>, raw: Bytes, now: SystemTime) -> u64 {
        let headers = decode::Headers::parse(&raw);
        let text = |name: &str| headers.get(name).unwrap_or_default();
        let mut mail = StoredMail {
            id: 0,
            received_at: now,
            mail_from,
            rcpt_to,
            subject: decode::encoded_words(&text("subject")),
            message_id: text("message-id"),
            list_unsubscribe: text("list-unsubscribe"),
            raw,
        };
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        inner.counts.received += 1;
        mail.id = inner.counts.received;
        inner.count_message_id(&mail.message_id, self.limits.message_ids);
        inner.counts.kept += 1;
        inner.counts.kept_octets += mail.raw.len();
        inner.mails.push_back(Arc::new(mail));
        while inner.mails.len() > 1
            && (inner.mails.len() > self.limits.mails || inner.counts.kept_octets > self.limits.octets)
        {
            if let Some(old) = inner.mails.pop_front() {
                inner.counts.kept -= 1;
                inner.counts.kept_octets -= old.raw.len();
            }
        }
        inner.counts.received
    }

    /// At most `limit` mails with ids below `before` (all, if `None`), newest first.
    pub fn list(&self, before: Option<u64>, limit: usize) -> Page {
        let inner = self.inner.lock();
        let end = match before {
            Some(before) => inner.mails.partition_point(|mail| mail.id < before),
            None => inner.mails.len(),
        };
        let mails: Vec<_> = inner.mails.range(..end).rev().take(limit).cloned().collect();
        let next_before = mails.last().map(|mail| mail.id).filter(|_| mails.len() < end);
        Page { mails, next_before }
    }

    /// One mail, as long as it is kept.
    pub fn get(&self, id: u64) -> Option<Arc<StoredMail>> {
        let inner = self.inner.lock();
        let index = inner.mails.partition_point(|mail| mail.id < id);
        inner.mails.get(index).filter(|mail| mail.id == id).cloned()
    }

    /// The counters.
    pub fn counts(&self) -> Counts {
        self.inner.lock().counts
    }
}

impl Inner {
    fn count_message_id(&mut self, message_id: &str, bound: usize) {
        if message_id.is_empty() {
            self.counts.without_message_id += 1;
            return;
        }
        let hash = xxh3_64(message_id.as_bytes());
        if self.seen.contains(&hash) {
            self.counts.duplicates += 1;
            return;
        }
        self.counts.distinct += 1;
        if self.seen.len() < bound {
            self.seen.insert(hash);
        } else {
            self.counts.capped = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(store: &MailStore, id: &str, octets: usize) -> u64 {
        let head = if id.is_empty() { String::new() } else { format!("Message-ID: <{id}@x>\r\n") };
        let raw = format!("{head}Subject: =?utf-8?q?caf=C3=A9?=\r\n\r\n{}", "x".repeat(octets));
        store.add("a@x".into(), vec!["b@x".into()], raw.into(), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn pages_go_from_the_newest_to_the_oldest_without_gaps() {
        let store = MailStore::new(StoreLimits { mails: 5, ..StoreLimits::default() });
        for n in 0..7 {
            add(&store, &n.to_string(), 1);
        }
        let (mut before, mut ids) = (None, Vec::new());
        loop {
            let page = store.list(before, 2);
            ids.extend(page.mails.iter().map(|mail| mail.id));
            before = page.next_before;
            if before.is_none() {
                break;
            }
            add(&store, "later", 0);
        }
        // What arrives in between pushes the oldest out, and never shows up in the middle.
        assert_eq!(ids, [7, 6, 5, 4]);
        assert_eq!(store.get(6).unwrap().message_id, "<5@x>");
        assert_eq!(store.get(6).unwrap().subject, "café");
        assert!(store.get(1).is_none() && store.get(100).is_none());
        assert!(store.list(None, 100).next_before.is_none());
    }

    #[test]
    fn octets_are_bounded_but_the_newest_mail_is_kept() {
        let store = MailStore::new(StoreLimits { octets: 1_000, ..StoreLimits::default() });
        add(&store, "1", 400);
        add(&store, "2", 400);
        add(&store, "3", 2_000);
        assert_eq!((store.counts().kept, store.counts().received), (1, 3));
        assert_eq!(store.counts().kept_octets, store.get(3).unwrap().raw.len());
    }

    #[test]
    fn duplicates_are_exact_up_to_the_bound_which_is_told() {
        let store = MailStore::new(StoreLimits { message_ids: 3, mails: 1, ..StoreLimits::default() });
        for id in ["1", "2", "1", "3", "", "2"] {
            add(&store, id, 1);
        }
        let counts = store.counts();
        assert_eq!((counts.distinct, counts.duplicates, counts.without_message_id, counts.capped), (3, 2, 1, false));
        add(&store, "4", 1);
        add(&store, "4", 1);
        let counts = store.counts();
        assert_eq!((counts.distinct, counts.duplicates, counts.capped), (5, 2, true));
    }
}
