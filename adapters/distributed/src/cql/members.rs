//! Audiences: members in the order of (hash, user), in slices that are cut from the hash.
//!
//! A follower list has a handful of members or a hundred million, and a partition should have neither. So an audience
//! has levels: level 0 is one slice, and each further level has sixteen times as many. Members are added to the last
//! level; when one of its slices is long, the next level is begun. Nothing is ever moved: whoever reads merges the levels,
//! of which there are four at most, and most audiences have one.

use herald_core::{
    ids::user_hash,
    ports::{
        StoreError,
        directory::{AudienceKey, AudiencePage},
    },
    record::Cursor,
};

use super::session::{Db, Plain, in_parallel};

/// The last level has 4,096 slices.
const LAST_LEVEL: i8 = 3;
/// Members that are read or written at a time.
const CHUNK: usize = 100;
/// A slice is measured for one in so many of the members it takes in before it is long.
const LOOKS: u64 = 16;

const FOLLOWERS: i8 = 1;
const TOPIC: i8 = 2;
const EVERYONE: i8 = 3;

/// A member in the order in which members are stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member {
    hash: u64,
    user: String,
}

impl Member {
    pub(super) fn of(user: &str) -> Self {
        Self { hash: user_hash(user), user: user.to_owned() }
    }

    /// The hash as a signed column in the same order.
    fn h(&self) -> i64 {
        signed(self.hash)
    }
}

fn signed(hash: u64) -> i64 {
    (hash ^ (1 << 63)) as i64
}

fn slice_of(level: i8, hash: u64) -> i32 {
    let bits = 4 * u32::from(level.unsigned_abs());
    hash.checked_shr(64 - bits).unwrap_or(0) as i32
}

/// An audience as the tables name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Audience {
    tenant: String,
    kind: i8,
    owner: String,
}

impl Audience {
    pub(super) fn of(tenant: &str, key: &AudienceKey) -> Self {
        let (kind, owner) = match key {
            AudienceKey::FollowersOf(user) => (FOLLOWERS, user.as_str()),
            AudienceKey::Topic(topic) => (TOPIC, topic.as_str()),
            AudienceKey::Everyone => (EVERYONE, ""),
        };
        Self { tenant: tenant.to_owned(), kind, owner: owner.to_owned() }
    }
}

/// The members of all audiences.
pub(super) struct Members {
    db: Db,
    /// Members from which on a slice is long.
    long_slice: u64,
    read_levels: Plain,
    raise_levels: Plain,
    page: Plain,
    count: Plain,
    find: Plain,
    add: Plain,
    remove: Plain,
    remove_slice: Plain,
    memberships: Plain,
    note: Plain,
    unnote: Plain,
}

/// The levels of an audience, from 0 up to one.
type Levels = std::ops::RangeInclusive<i8>;

impl Members {
    pub(super) async fn new(db: &Db, members_a_slice: u32) -> anyhow::Result<Self> {
        let audience = "tenant = ? AND kind = ? AND owner = ?";
        let slice = format!("WHERE {audience} AND level = ? AND slice = ?");
        let of_user = "WHERE tenant = ? AND user_id = ?";
        Ok(Self {
            long_slice: members_a_slice.into(),
            read_levels: db.plain(&format!("SELECT levels FROM audiences WHERE {audience}")).await?,
            raise_levels: db
                .plain("INSERT INTO audiences (tenant, kind, owner, levels) VALUES (?, ?, ?, ?) USING TIMESTAMP ?")
                .await?,
            page: db
                .plain(&format!("SELECT h, user_id FROM members {slice} AND (h, user_id) > (?, ?) LIMIT ?"))
                .await?,
            count: db.plain(&format!("SELECT count(*) FROM members {slice}")).await?,
            find: db.plain(&format!("SELECT h, user_id FROM members {slice} AND (h, user_id) IN ?")).await?,
            add: db
                .plain(
                    "INSERT INTO members (tenant, kind, owner, level, slice, h, user_id) VALUES (?, ?, ?, ?, ?, ?, ?)",
                )
                .await?,
            remove: db.plain(&format!("DELETE FROM members {slice} AND h = ? AND user_id = ?")).await?,
            remove_slice: db.plain(&format!("DELETE FROM members {slice}")).await?,
            memberships: db.plain(&format!("SELECT kind, owner FROM memberships {of_user} LIMIT ?")).await?,
            note: db.plain("INSERT INTO memberships (tenant, user_id, kind, owner) VALUES (?, ?, ?, ?)").await?,
            unnote: db.plain(&format!("DELETE FROM memberships {of_user} AND kind = ? AND owner = ?")).await?,
            db: db.clone(),
        })
    }

    async fn levels(&self, of: &Audience) -> Result<Levels, StoreError> {
        let row: Option<(Option<i8>,)> = self.db.row(&self.read_levels, (&of.tenant, of.kind, &of.owner)).await?;
        Ok(0..=row.and_then(|(levels,)| levels).unwrap_or(0))
    }

    /// The members after a cursor, at most `limit`.
    pub(super) async fn page(
        &self,
        of: &Audience,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<AudiencePage, StoreError> {
        let after = after.map(|cursor| Member { hash: cursor.hash, user: cursor.user.clone() });
        let limit = limit.max(1);
        // One more tells whether there is a next page.
        let levels = self.levels(of).await?.map(|level| self.level(of, level, after.as_ref(), limit + 1));
        let mut members: Vec<Member> = in_parallel(levels.collect()).await?.into_iter().flatten().collect();
        members.sort_unstable();
        members.dedup();
        let more = members.len() > limit;
        members.truncate(limit);
        let next = members.last().filter(|_| more).map(|last| Cursor { hash: last.hash, user: last.user.clone() });
        Ok(AudiencePage { users: members.into_iter().map(|member| member.user).collect(), next })
    }

    /// The first `limit` members of a level after one.
    async fn level(
        &self,
        of: &Audience,
        level: i8,
        after: Option<&Member>,
        limit: usize,
    ) -> Result<Vec<Member>, StoreError> {
        let mut found: Vec<Member> = Vec::new();
        let last = slice_of(level, u64::MAX);
        let begin = after.map_or(0, |after| slice_of(level, after.hash));
        let (h, user) = after.map_or((i64::MIN, ""), |after| (after.h(), after.user.as_str()));
        for slice in begin..=last {
            let left = i32::try_from(limit - found.len()).unwrap_or(i32::MAX);
            let values = (&of.tenant, of.kind, &of.owner, level, slice, h, user, left);
            let rows = self.db.rows::<(i64, String)>(&self.page, values).await?;
            found.extend(rows.into_iter().map(|(h, user)| Member { hash: signed(h as u64) as u64, user }));
            if found.len() == limit {
                break;
            }
        }
        Ok(found)
    }

    /// Adds members or removes them; they must be unique. Returns how many were not as they were to be.
    pub(super) async fn edit(&self, of: &Audience, members: &[Member], present: bool) -> Result<u64, StoreError> {
        let levels = self.levels(of).await?;
        let mut stored = Vec::new();
        for level in levels.clone() {
            let found = chunks(level, members).into_iter().map(|(slice, members)| self.find(of, level, slice, members));
            stored.extend(in_parallel(found.collect()).await?.into_iter().flatten());
        }
        stored.sort_unstable();
        stored.dedup();
        let different: Vec<Member> =
            members.iter().filter(|member| stored.binary_search(member).is_ok() != present).cloned().collect();
        if present {
            // Noted first, so that an erasure finds whatever was added.
            self.note(of, &different, &self.note).await?;
            self.write(of, *levels.end(), &different, &self.add).await?;
            self.measure(of, *levels.end(), &different).await?;
        } else {
            for level in levels {
                self.write(of, level, &different, &self.remove).await?;
            }
            self.note(of, &different, &self.unnote).await?;
        }
        Ok(different.len() as u64)
    }

    async fn find(
        &self,
        of: &Audience,
        level: i8,
        slice: i32,
        members: Vec<&Member>,
    ) -> Result<Vec<Member>, StoreError> {
        let keys: Vec<(i64, &str)> = members.iter().map(|member| (member.h(), member.user.as_str())).collect();
        let values = (&of.tenant, of.kind, &of.owner, level, slice, keys);
        let rows = self.db.rows::<(i64, String)>(&self.find, values).await?;
        Ok(rows.into_iter().map(|(h, user)| Member { hash: signed(h as u64) as u64, user }).collect())
    }

    async fn write(&self, of: &Audience, level: i8, members: &[Member], statement: &Plain) -> Result<(), StoreError> {
        let writes = chunks(level, members).into_iter().map(|(slice, members)| {
            let row = |m: &Member| (of.tenant.clone(), of.kind, of.owner.clone(), level, slice, m.h(), m.user.clone());
            self.db.write_all(statement, members.into_iter().map(row).collect())
        });
        in_parallel(writes.collect()).await.map(drop)
    }

    async fn note(&self, of: &Audience, members: &[Member], statement: &Plain) -> Result<(), StoreError> {
        if of.kind == EVERYONE {
            return Ok(());
        }
        let notes =
            members.iter().map(|member| self.db.write(statement, (&of.tenant, &member.user, of.kind, &of.owner)));
        in_parallel(notes.collect()).await.map(drop)
    }

    /// Begins the next level if a slice that took in members is long.
    async fn measure(&self, of: &Audience, level: i8, added: &[Member]) -> Result<(), StoreError> {
        let one_in = (self.long_slice / LOOKS).max(1);
        let Some(member) = added.iter().find(|member| member.hash.is_multiple_of(one_in)) else { return Ok(()) };
        if level == LAST_LEVEL {
            return Ok(());
        }
        let slice = slice_of(level, member.hash);
        let count: Option<(i64,)> = self.db.row(&self.count, (&of.tenant, of.kind, &of.owner, level, slice)).await?;
        if count.is_some_and(|(count,)| count as u64 >= self.long_slice) {
            let next = level + 1;
            self.db.write(&self.raise_levels, (&of.tenant, of.kind, &of.owner, next, i64::from(next))).await?;
        }
        Ok(())
    }

    /// Adds one member, whether it is there or not.
    pub(super) async fn add(&self, of: &Audience, user: &str) -> Result<(), StoreError> {
        let (levels, member) = (self.levels(of).await?, [Member::of(user)]);
        self.write(of, *levels.end(), &member, &self.add).await?;
        self.measure(of, *levels.end(), &member).await
    }

    /// Removes one member, whether it is there or not.
    pub(super) async fn remove(&self, of: &Audience, user: &str) -> Result<(), StoreError> {
        for level in self.levels(of).await? {
            self.write(of, level, &[Member::of(user)], &self.remove).await?;
        }
        Ok(())
    }

    /// Takes a user out of at most `limit` audiences; returns whether these were all.
    pub(super) async fn leave(&self, tenant: &str, user: &str, limit: i32) -> Result<bool, StoreError> {
        let rows = self.db.rows::<(i8, String)>(&self.memberships, (tenant, user, limit)).await?;
        let all = rows.len() < limit as usize;
        let left = rows.into_iter().map(|(kind, owner)| async move {
            let audience = Audience { tenant: tenant.to_owned(), kind, owner };
            self.remove(&audience, user).await?;
            self.note(&audience, &[Member::of(user)], &self.unnote).await
        });
        in_parallel(left.collect()).await?;
        Ok(all)
    }

    /// Lets all members of an audience go, at most `limit` a call; returns whether these were all.
    pub(super) async fn clear(&self, of: &Audience, limit: usize) -> Result<bool, StoreError> {
        let page = self.page(of, None, limit).await?;
        let members: Vec<Member> = page.users.iter().map(|user| Member::of(user)).collect();
        if page.next.is_some() {
            self.edit(of, &members, false).await?;
            return Ok(false);
        }
        self.note(of, &members, &self.unnote).await?;
        for level in self.levels(of).await? {
            let slices = 0..=slice_of(level, u64::MAX);
            let removed =
                slices.map(|slice| self.db.write(&self.remove_slice, (&of.tenant, of.kind, &of.owner, level, slice)));
            in_parallel(removed.collect()).await?;
        }
        Ok(true)
    }
}

/// Members by their slices, some at a time.
fn chunks(level: i8, members: &[Member]) -> Vec<(i32, Vec<&Member>)> {
    let mut sorted: Vec<(i32, &Member)> = members.iter().map(|member| (slice_of(level, member.hash), member)).collect();
    sorted.sort_unstable();
    let by_slice = sorted.chunk_by(|(a, _), (b, _)| a == b).flat_map(|slice| slice.chunks(CHUNK));
    by_slice.map(|chunk| (chunk[0].0, chunk.iter().map(|(_, member)| *member).collect())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_and_slices_are_in_the_order_of_the_hashes() {
        let hashes = [0, 1, 1 << 59, 1 << 60, (1 << 63) - 1, 1 << 63, u64::MAX];
        assert!(hashes.windows(2).all(|pair| signed(pair[0]) < signed(pair[1])));
        for level in 0..=LAST_LEVEL {
            assert!(hashes.windows(2).all(|pair| slice_of(level, pair[0]) <= slice_of(level, pair[1])));
            assert_eq!(slice_of(level, u64::MAX) + 1, 1 << (4 * level));
        }
        assert!(hashes.iter().all(|hash| signed(signed(*hash) as u64) as u64 == *hash));
    }
}
