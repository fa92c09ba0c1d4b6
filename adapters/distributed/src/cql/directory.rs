//! Users and audiences.
//!
//! All that is stored of a person is one row, changed by compare and set on its revision. A person is made a member of
//! everyone before they are registered, and taken out before they are erased: so between the two rows a crash leaves a
//! member who is not registered, whom every reader passes over, and never somebody whom nobody finds.

use std::collections::BTreeMap;

use async_trait::async_trait;
use herald_core::{
    ids::TenantId,
    people::{Person, User},
    ports::{
        StoreError,
        directory::{AudienceKey, AudiencePage, Changed, Directory, Membership, PersonChange},
        erasures::Erasure,
    },
    record::Cursor,
};

use scylla::SerializeRow;

use super::{
    members::{Audience, Member, Members},
    people::PersonRow,
    session::{Conditional, Db, Plain, RACES, contended, in_parallel},
};

/// Users and audiences in CQL.
pub struct DirectoryStore {
    db: Db,
    members: Members,
    read: Plain,
    update: Conditional,
}

impl DirectoryStore {
    pub(super) async fn new(db: &Db, members_a_slice: u32) -> anyhow::Result<Self> {
        let columns = "version, attributes, locale, time_zone, endpoints, created_ms, updated_ms, channels, quiet, \
                       preferences_source, preferences_ms, erased_ms, erasure_id";
        let set: Vec<String> = columns.split(", ").map(|column| format!("{} = ?", column.trim())).collect();
        let of_user = "WHERE tenant = ? AND user_id = ?";
        Ok(Self {
            members: Members::new(db, members_a_slice).await?,
            read: db.plain(&format!("SELECT revision, {columns} FROM people {of_user}")).await?,
            update: db
                .conditional(&format!(
                    "UPDATE people SET revision = :next, {} {of_user} IF revision = :revision",
                    set.join(", ")
                ))
                .await?,
            db: db.clone(),
        })
    }

    /// Stores a person's row if its revision is still the one of the row.
    async fn store(&self, tenant: &str, user: &str, row: &PersonRow) -> Result<bool, StoreError> {
        let next = row.revision.unwrap_or(0) + 1;
        self.db.write_if(&self.update, UpdateRow { next, row, tenant, user_id: user }).await
    }

    async fn change_one(&self, tenant: &str, change: PersonChange, now_ms: u64) -> Result<Changed, StoreError> {
        let id = match &change {
            PersonChange::Profile { user, .. } => user.user_id.clone(),
            PersonChange::Preferences { user_id, .. } => user_id.clone(),
        };
        for _ in 0..RACES {
            let mut row = self.row(tenant, &id).await?;
            match &change {
                PersonChange::Profile { user, expect } => {
                    let version = row.version.unwrap_or(0) as u64;
                    if expect.is_some_and(|expect| expect != version) {
                        return Ok(Changed::VersionMismatch(version));
                    }
                    self.members.add(&Audience::of(tenant, &AudienceKey::Everyone), &id).await?;
                    row.set_profile(user.clone(), now_ms)?;
                }
                PersonChange::Preferences { preferences, .. } => row.set_preferences(preferences.clone()),
            }
            if self.store(tenant, &id, &row).await? {
                return Ok(Changed::Done(Box::new(row.to_person(&id)?)));
            }
        }
        Err(contended("a person"))
    }

    /// What is stored of a person.
    pub(super) async fn row(&self, tenant: &str, user: &str) -> Result<PersonRow, StoreError> {
        Ok(self.db.row(&self.read, (tenant, user)).await?.unwrap_or_default())
    }

    /// Makes a person one who was erased; `false` if the row is not the stored one any more.
    pub(super) async fn erase(&self, erasure: &Erasure, row: &PersonRow) -> Result<bool, StoreError> {
        let (tenant, user) = (erasure.tenant.as_str(), &erasure.user_id);
        self.members.remove(&Audience::of(tenant, &AudienceKey::Everyone), user).await?;
        self.store(tenant, user, &PersonRow::erased(row.revision, erasure.begun_ms, &erasure.id)).await
    }

    /// Forgets that a person was erased, if it was this erasure that did it last.
    pub(super) async fn end_erasure(&self, erasure: &Erasure) -> Result<(), StoreError> {
        let (tenant, user) = (erasure.tenant.as_str(), &erasure.user_id);
        for _ in 0..RACES {
            let row = self.row(tenant, user).await?;
            if row.erasure_id.as_ref() != Some(&erasure.id) {
                return Ok(());
            }
            if self.store(tenant, user, &PersonRow { erased_ms: None, erasure_id: None, ..row }).await? {
                return Ok(());
            }
        }
        Err(contended("a person"))
    }

    /// Lets at most `limit` of a person's followers go; returns whether they are all gone.
    pub(super) async fn erase_followers(&self, tenant: &str, user: &str, limit: usize) -> Result<bool, StoreError> {
        self.members.clear(&Audience::of(tenant, &AudienceKey::FollowersOf(user.to_owned())), limit).await
    }

    /// Takes a person out of at most `limit` audiences; returns whether these were all.
    pub(super) async fn erase_memberships(&self, tenant: &str, user: &str, limit: usize) -> Result<bool, StoreError> {
        // A registration that was overtaken by the erasure may have left them a member of everyone.
        if self.row(tenant, user).await?.version.is_none() {
            self.members.remove(&Audience::of(tenant, &AudienceKey::Everyone), user).await?;
        }
        self.members.leave(tenant, user, limit as i32).await
    }
}

/// A person's row as it is written: with its key, and its revision as what is compared.
#[derive(SerializeRow)]
struct UpdateRow<'a> {
    next: i64,
    #[scylla(flatten)]
    row: &'a PersonRow,
    tenant: &'a str,
    user_id: &'a str,
}

#[async_trait]
impl Directory for DirectoryStore {
    async fn people(&self, tenant: &TenantId, user_ids: &[String]) -> Result<Vec<Person>, StoreError> {
        let people = user_ids.iter().map(|user| async move { self.row(tenant.as_str(), user).await?.to_person(user) });
        in_parallel(people.collect()).await
    }

    async fn change(
        &self,
        tenant: &TenantId,
        changes: Vec<PersonChange>,
        now_ms: u64,
    ) -> Result<Vec<Changed>, StoreError> {
        // Changes of one person follow each other; those of others need not wait.
        let mut by_user: BTreeMap<String, Vec<(usize, PersonChange)>> = BTreeMap::new();
        for (index, change) in changes.into_iter().enumerate() {
            let id = match &change {
                PersonChange::Profile { user, .. } => &user.user_id,
                PersonChange::Preferences { user_id, .. } => user_id,
            };
            by_user.entry(id.clone()).or_default().push((index, change));
        }
        let changed = by_user.into_values().map(|changes| async move {
            let mut results = Vec::with_capacity(changes.len());
            for (index, change) in changes {
                results.push((index, self.change_one(tenant.as_str(), change, now_ms).await?));
            }
            Ok(results)
        });
        let mut results: Vec<_> = in_parallel(changed.collect()).await?.into_iter().flatten().collect();
        results.sort_unstable_by_key(|(index, _)| *index);
        Ok(results.into_iter().map(|(_, changed)| changed).collect())
    }

    async fn list(
        &self,
        tenant: &TenantId,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<(Vec<User>, Option<Cursor>), StoreError> {
        let page = self.audience(tenant, &AudienceKey::Everyone, after, limit).await?;
        let people = self.people(tenant, &page.users).await?;
        Ok((people.into_iter().filter_map(|person| person.user).collect(), page.next))
    }

    async fn set_members(&self, tenant: &TenantId, members: Vec<Membership>, present: bool) -> Result<u64, StoreError> {
        let mut audiences: BTreeMap<Audience, Vec<Member>> = BTreeMap::new();
        for Membership { audience, user } in members {
            if audience == AudienceKey::Everyone {
                return Err(StoreError::Unavailable("who is registered is everyone; it cannot be set".into()));
            }
            audiences.entry(Audience::of(tenant.as_str(), &audience)).or_default().push(Member::of(&user));
        }
        let edits = audiences.into_iter().map(|(audience, mut members)| async move {
            members.sort_unstable();
            members.dedup();
            self.members.edit(&audience, &members, present).await
        });
        Ok(in_parallel(edits.collect()).await?.into_iter().sum())
    }

    async fn audience(
        &self,
        tenant: &TenantId,
        audience: &AudienceKey,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<AudiencePage, StoreError> {
        self.members.page(&Audience::of(tenant.as_str(), audience), after.as_ref(), limit).await
    }
}
