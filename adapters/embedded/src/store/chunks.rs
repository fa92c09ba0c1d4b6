//! Audiences: sorted sets of user ids, cut into chunks of at most 256.
//!
//! The members of an audience are sorted by (hash, user), where hash is [`user_hash`]. A chunk is a row that holds
//! those from its own (hash, user), which its key ends with, up to the next chunk's: a format byte and the packed ids.
//! So the chunk of a member is the last one at or before it; where there is none, the first chunk is made with
//! (0, "") as its key. A chunk that grows too long is cut, one that runs low takes in its successor, an empty one goes.
//!
//! Editors of an audience hold its tenant's lock, and so do readers, because a chunk that is merged into the one before
//! would move below a reader that has just looked for its place.

use std::{cmp::Ordering, collections::VecDeque, sync::Arc};

use bytes::{BufMut, Bytes};
use herald_core::{
    ids::user_hash,
    packed::unpack,
    ports::{
        StoreError,
        directory::{AudienceKey, AudiencePage},
    },
    record::Cursor,
};
use prost::encoding::encode_varint;

use super::{
    keys::{Key, Parts, Table},
    rows::{FORMAT, damaged},
};
use crate::kv::{Batch, Direction, Kv};

/// The most members of a chunk.
pub const MAX_CHUNK: usize = 256;
/// What a chunk that was too long is cut into.
const CUT_CHUNK: usize = 160;
/// A chunk that loses members and has fewer than this takes in its successor, if both together are a chunk's cut.
const LOW_CHUNK: usize = 64;
const PAGE_CHUNKS: usize = 16;

/// The kinds of audiences in keys. Everyone comes last.
const FOLLOWERS: u8 = 1;
const TOPIC: u8 = 2;
const EVERYONE: u8 = 3;

/// A member in the order in which members are stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The user's hash.
    pub hash: u64,
    /// The user's id, in UTF-8; of a stored member a slice of its row.
    pub user: Bytes,
}

impl Member {
    /// A user as a member.
    pub fn of(user: &str) -> Self {
        Self { hash: user_hash(user), user: Bytes::copy_from_slice(user.as_bytes()) }
    }
}

/// One audience's rows.
pub struct Chunks {
    kv: Arc<dyn Kv>,
    prefix: Key,
}

impl Chunks {
    /// The rows of an audience.
    pub fn of(kv: Arc<dyn Kv>, tenant: &str, audience: &AudienceKey) -> Self {
        let tenant = Key::of(Table::Audience).part(tenant);
        let prefix = match audience {
            AudienceKey::FollowersOf(user) => tenant.u8(FOLLOWERS).part(user),
            AudienceKey::Topic(topic) => tenant.u8(TOPIC).part(topic),
            AudienceKey::Everyone => tenant.u8(EVERYONE).part(""),
        };
        Self { kv, prefix }
    }

    /// The members after a cursor, at most `limit`.
    pub fn page(&self, after: Option<&Cursor>, limit: usize) -> Result<AudiencePage, StoreError> {
        let limit = limit.max(1);
        let mut begin = match after {
            Some(cursor) => self.floor(&self.key(cursor.hash, &cursor.user))?.unwrap_or_else(|| self.prefix.clone()),
            None => self.prefix.clone(),
        };
        let end = self.prefix.end();
        let mut skip = after;
        let mut users: Vec<String> = Vec::with_capacity(limit.min(4_096));
        loop {
            let chunks = (limit / CUT_CHUNK + 2).min(PAGE_CHUNKS);
            let rows = self.kv.scan(begin.bytes()..end.bytes(), Direction::Forward, chunks)?;
            for (_, value) in &rows {
                for user in ids(value)? {
                    let user = user.map_err(|e| StoreError::Damaged(e.to_string()))?;
                    if let Some(cursor) = skip {
                        if user_hash(user).cmp(&cursor.hash).then_with(|| user.cmp(&cursor.user)) != Ordering::Greater {
                            continue;
                        }
                        skip = None;
                    }
                    if users.len() == limit {
                        let next = users.last().map(|last| Cursor { hash: user_hash(last), user: last.clone() });
                        return Ok(AudiencePage { users, next });
                    }
                    users.push(user.to_owned());
                }
            }
            match rows.last() {
                Some((key, _)) if rows.len() == chunks => begin = self.behind(key)?,
                _ => return Ok(AudiencePage { users, next: None }),
            }
        }
    }

    /// Adds members, or removes them. They must be sorted and unique, and the audience must not have been edited in
    /// this batch before. Returns how many were not as they were to be.
    pub fn edit(&self, members: &[Member], present: bool, batch: &mut Batch) -> Result<u64, StoreError> {
        let mut changed = 0;
        let mut rest = members;
        let mut ahead = VecDeque::new();
        while let Some(first) = rest.first() {
            let mut chunk = self.chunk_of(first, rest.len(), &mut ahead)?;
            if present && let Some(row) = &chunk.row {
                let mine = rest.partition_point(|m| chunk.holds(self, m));
                if let Some((row, count)) = insert(row, &rest[..mine])? {
                    rest = &rest[mine..];
                    changed += count;
                    if count > 0 {
                        batch.put(chunk.key, row);
                    }
                    continue;
                }
            }
            chunk.read()?;
            loop {
                let mine = rest.partition_point(|m| chunk.holds(self, m));
                let (edits, others) = rest.split_at(mine);
                rest = others;
                let (merged, count) = merge(std::mem::take(&mut chunk.members), edits, present);
                chunk.members = merged;
                changed += count;
                chunk.changed |= count > 0;
                if present || !chunk.changed || !self.absorb_successor(&mut chunk, &mut ahead, batch)? {
                    break;
                }
            }
            if chunk.changed {
                self.put(chunk, batch);
            }
        }
        Ok(changed)
    }

    /// Deletes at most `limit` chunks; returns whether these were all.
    pub fn delete(&self, limit: usize, batch: &mut Batch) -> Result<bool, StoreError> {
        let rows = self.kv.scan(self.prefix.bytes()..self.prefix.end().bytes(), Direction::Forward, limit)?;
        let all = rows.len() < limit;
        rows.into_iter().for_each(|(key, _)| batch.delete(key));
        Ok(all)
    }

    fn key(&self, hash: u64, user: impl AsRef<[u8]>) -> Key {
        self.prefix.clone().u64(hash).tail(user)
    }

    /// The key of the last chunk at or before a place.
    fn floor(&self, place: &Key) -> Result<Option<Key>, StoreError> {
        let rows = self.kv.scan(self.prefix.bytes()..place.next().bytes(), Direction::Backward, 1)?;
        rows.first().map(|(key, _)| self.parse(key)).transpose()
    }

    fn parse(&self, key: &[u8]) -> Result<Key, StoreError> {
        let mut parts = Parts::after(key, self.prefix.bytes().len())?;
        Ok(self.key(parts.u64()?, parts.rest()?))
    }

    fn behind(&self, key: &[u8]) -> Result<Key, StoreError> {
        Ok(self.parse(key)?.next())
    }

    fn next_chunk(&self, after: &Key) -> Result<Option<(Key, Bytes)>, StoreError> {
        let rows = self.kv.scan(after.next().bytes()..self.prefix.end().bytes(), Direction::Forward, 1)?;
        rows.into_iter().next().map(|(key, value)| Ok((self.parse(&key)?, value))).transpose()
    }

    /// The chunk of a member, and whatever chunks behind it were read at once because more members are to come.
    fn chunk_of(
        &self,
        member: &Member,
        to_come: usize,
        ahead: &mut VecDeque<(Key, Bytes)>,
    ) -> Result<Chunk, StoreError> {
        let place = self.key(member.hash, &member.user);
        while ahead.get(1).is_some_and(|(next, _)| next.bytes() <= place.bytes()) {
            ahead.pop_front();
        }
        // The end of the last chunk that was read is not known.
        let known = ahead.len() > 1 && ahead[0].0.bytes() <= place.bytes();
        let mut stored = known;
        if !known {
            let floor = self.floor(&place)?;
            stored = floor.is_some();
            let begin = floor.unwrap_or_else(|| self.prefix.clone());
            let chunks = if to_come == 1 { 2 } else { PAGE_CHUNKS };
            let rows = self.kv.scan(begin.bytes()..self.prefix.end().bytes(), Direction::Forward, chunks)?;
            *ahead = rows.into_iter().map(|(key, value)| Ok((self.parse(&key)?, value))).collect::<Result<_, _>>()?;
        }
        let (key, row) = match ahead.pop_front_if(|_| stored) {
            Some((key, row)) => (key, Some(row)),
            None => (self.key(0, ""), None),
        };
        let next = ahead.front().map(|(key, _)| key.clone());
        Ok(Chunk { key, stored, row, members: Vec::new(), next, changed: false })
    }

    /// Takes the next chunk into one that runs low; `false` where that is not to be done.
    fn absorb_successor(
        &self,
        chunk: &mut Chunk,
        ahead: &mut VecDeque<(Key, Bytes)>,
        batch: &mut Batch,
    ) -> Result<bool, StoreError> {
        if chunk.members.is_empty() || chunk.members.len() >= LOW_CHUNK {
            return Ok(false);
        }
        let Some(key) = chunk.next.clone() else { return Ok(false) };
        let Some(value) = self.kv.get(key.bytes())? else { return Ok(false) };
        let more = members(&value)?;
        if chunk.members.len() + more.len() > CUT_CHUNK {
            return Ok(false);
        }
        chunk.members.extend(more);
        if ahead.front().is_some_and(|(next, _)| *next == key) {
            ahead.pop_front();
        }
        chunk.next = match ahead.front() {
            Some((next, _)) => Some(next.clone()),
            None => self.next_chunk(&key)?.map(|(key, _)| key),
        };
        batch.delete(&key);
        Ok(true)
    }

    fn put(&self, chunk: Chunk, batch: &mut Batch) {
        if chunk.members.is_empty() {
            if chunk.stored {
                batch.delete(chunk.key);
            }
            return;
        }
        let pieces = match chunk.members.len() {
            0..=MAX_CHUNK => 1,
            long => long.div_ceil(CUT_CHUNK),
        };
        let length = chunk.members.len().div_ceil(pieces);
        for (index, piece) in chunk.members.chunks(length).enumerate() {
            let key = match (index, piece.first()) {
                (1.., Some(first)) => self.key(first.hash, &first.user),
                _ => chunk.key.clone(),
            };
            batch.put(key, encode(piece));
        }
    }
}

/// The audiences of a tenant, but for everyone, that a user is a member of by the next `limit` chunks behind a key; and
/// the last key that was read, or `None` at the end.
pub fn audiences_with(
    kv: &dyn Kv,
    tenant: &str,
    user: &str,
    behind: &[u8],
    limit: usize,
) -> Result<(Vec<AudienceKey>, Option<Bytes>), StoreError> {
    let all = Key::of(Table::Audience).part(tenant);
    let mut begin = if behind.is_empty() { all.bytes() } else { behind }.to_vec();
    begin.extend((!behind.is_empty()).then_some(0));
    let rows = kv.scan(&begin[..]..all.clone().u8(EVERYONE).bytes(), Direction::Forward, limit)?;
    let mut found = Vec::new();
    for (key, value) in &rows {
        let mut parts = Parts::after(key, all.bytes().len())?;
        let ([kind], owner) = (parts.array::<1>()?, parts.text()?);
        for member in ids(value)? {
            if member.map_err(|e| StoreError::Damaged(e.to_string()))? == user {
                found.push(match kind {
                    FOLLOWERS => AudienceKey::FollowersOf(owner.to_owned()),
                    _ => AudienceKey::Topic(owner.to_owned()),
                });
            }
        }
    }
    let last = rows.last().filter(|_| rows.len() == limit).map(|(key, _)| key.clone());
    Ok((found, last))
}

/// A chunk that is being edited.
struct Chunk {
    key: Key,
    stored: bool,
    /// As it is stored, until it is read.
    row: Option<Bytes>,
    members: Vec<Member>,
    /// The chunk after it, where it ends.
    next: Option<Key>,
    changed: bool,
}

impl Chunk {
    /// Reads the members.
    fn read(&mut self) -> Result<(), StoreError> {
        if let Some(row) = self.row.take() {
            self.members = members(&row)?;
        }
        Ok(())
    }

    fn holds(&self, chunks: &Chunks, member: &Member) -> bool {
        self.next.as_ref().is_none_or(|next| chunks.key(member.hash, &member.user).bytes() < next.bytes())
    }
}

fn ids(value: &[u8]) -> Result<herald_core::packed::Unpack<'_>, StoreError> {
    match value.split_first() {
        Some((&FORMAT, column)) => Ok(unpack(column)),
        _ => Err(damaged("an audience in an unknown format")),
    }
}

fn members(value: &Bytes) -> Result<Vec<Member>, StoreError> {
    let mut members = Vec::with_capacity(MAX_CHUNK);
    for user in ids(value)? {
        let user = user.map_err(|e| StoreError::Damaged(e.to_string()))?;
        members.push(Member { hash: user_hash(user), user: value.slice_ref(user.as_bytes()) });
    }
    Ok(members)
}

/// A row of members: as [`herald_core::packed`] packs ids, which were checked when they came.
fn encode(members: &[Member]) -> Bytes {
    let length: usize = members.iter().map(|member| member.user.len() + 2).sum();
    let mut value = Vec::with_capacity(1 + length);
    value.put_u8(FORMAT);
    for member in members {
        encode_varint(member.user.len() as u64, &mut value);
        value.put_slice(&member.user);
    }
    value.into()
}

/// A row with sorted members put into their places, and how many were not there; `None` if that is too long for one. A few
/// among many are mostly what comes, so what is there is copied as it is.
fn insert(row: &[u8], additions: &[Member]) -> Result<Option<(Bytes, u64)>, StoreError> {
    let mut additions = additions.iter().peekable();
    let mut inserted = Vec::with_capacity(row.len() + additions.clone().map(|m| m.user.len() + 3).sum::<usize>());
    let put = |inserted: &mut Vec<u8>, member: &Member| {
        encode_varint(member.user.len() as u64, inserted);
        inserted.put_slice(&member.user);
    };
    let (mut count, mut added, mut copied) = (0, 0, 0);
    let mut stored = ids(row)?;
    let mut begin = 1;
    while let Some(user) = stored.next() {
        let user = user.map_err(|e| StoreError::Damaged(e.to_string()))?;
        let hash = user_hash(user);
        let order = |member: &&Member| member.hash.cmp(&hash).then_with(|| member.user[..].cmp(user.as_bytes()));
        while let Some(member) = additions.next_if(|member| order(member) == Ordering::Less) {
            inserted.put_slice(&row[copied..begin]);
            copied = begin;
            put(&mut inserted, member);
            added += 1;
        }
        additions.next_if(|member| order(member) == Ordering::Equal);
        count += 1;
        begin = row.len() - stored.rest().len();
    }
    inserted.put_slice(&row[copied..]);
    for member in additions {
        put(&mut inserted, member);
        added += 1;
    }
    Ok((count + added <= MAX_CHUNK as u64).then(|| (inserted.into(), added)))
}

/// Adds or removes sorted edits; returns the members and how many edits changed something.
fn merge(members: Vec<Member>, edits: &[Member], present: bool) -> (Vec<Member>, u64) {
    let mut merged = Vec::with_capacity(members.len() + if present { edits.len() } else { 0 });
    let mut changed = 0;
    let mut edits = edits.iter().peekable();
    for member in members {
        while let Some(edit) = edits.next_if(|edit| **edit < member) {
            if present {
                merged.push(edit.clone());
                changed += 1;
            }
        }
        let named = edits.next_if(|edit| **edit == member).is_some();
        if named && !present {
            changed += 1;
        } else {
            merged.push(member);
        }
    }
    if present {
        changed += edits.len() as u64;
        merged.extend(edits.cloned());
    }
    (merged, changed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sorted(numbers: &[u16]) -> Vec<Member> {
        let mut members: Vec<Member> = numbers.iter().map(|n| Member::of(&format!("user-{n}"))).collect();
        members.sort_unstable();
        members.dedup();
        members
    }

    proptest! {
        /// Members that are put into a row give the row of the members merged.
        #[test]
        fn what_is_inserted_is_what_would_be_merged(
            there in proptest::collection::vec(0..400u16, 0..260),
            additions in proptest::collection::vec(0..400u16, 0..40),
        ) {
            let (mut there, additions) = (sorted(&there), sorted(&additions));
            there.truncate(MAX_CHUNK);
            let row = encode(&there);
            let (merged, changed) = merge(there, &additions, true);
            match insert(&row, &additions).unwrap() {
                Some(inserted) => prop_assert_eq!(inserted, (encode(&merged), changed)),
                None => prop_assert!(merged.len() > MAX_CHUNK),
            }
        }
    }
}
