//! People and audiences.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use herald_core::{
    ids::{TenantId, user_hash},
    people::{ChannelPreference, Endpoint, Person, Preferences, QuietHours, QuietPolicy, User},
    ports::{
        StoreError,
        directory::{AudienceKey, AudiencePage, Changed, Directory, Membership, PersonChange},
        erasures::Erasure,
    },
    record::Cursor,
};

use super::{
    chunks::{self, Chunks, Member},
    keys::{Key, Table},
    locks::Stripes,
    rows::{ChannelPreferenceRow, EndpointRow, PersonRow, PreferencesRow, QuietHoursRow, UserRow, decode, encode},
};
use crate::kv::{Batch, Kv, ready};

/// People and audiences in a key-value database.
pub struct DirectoryStore {
    kv: Arc<dyn Kv>,
    /// By tenant: held to write while a person or an audience is changed, to read while an audience is paged.
    locks: Stripes,
}

impl DirectoryStore {
    /// The directory of a database.
    pub fn new(kv: Arc<dyn Kv>) -> Self {
        Self { kv, locks: Stripes::default() }
    }

    fn person(&self, tenant: &str, user: &str) -> Result<Option<PersonRow>, StoreError> {
        let row = self.kv.get(person_key(tenant, user).bytes())?;
        row.map(|row| decode("people", &row)).transpose()
    }

    fn chunks(&self, tenant: &str, audience: &AudienceKey) -> Chunks {
        Chunks::of(self.kv.clone(), tenant, audience)
    }

    fn make_changes(&self, tenant: &str, changes: Vec<PersonChange>, now_ms: u64) -> Result<Vec<Changed>, StoreError> {
        let _held = self.locks.write(tenant);
        let mut batch = Batch::default();
        // What this call has changed already; the batch is not visible before its end.
        let mut changed: BTreeMap<String, PersonRow> = BTreeMap::new();
        let mut registered = Vec::new();
        let mut results = Vec::with_capacity(changes.len());
        for change in changes {
            let id = match &change {
                PersonChange::Profile { user, .. } => &user.user_id,
                PersonChange::Preferences { user_id, .. } => user_id,
            };
            let mut row = match changed.get(id) {
                Some(row) => row.clone(),
                None => self.person(tenant, id)?.unwrap_or_default(),
            };
            let id = id.clone();
            match change {
                PersonChange::Profile { user, expect } => {
                    let version = row.user.as_ref().map_or(0, |user| user.version);
                    if expect.is_some_and(|expect| expect != version) {
                        results.push(Changed::VersionMismatch(version));
                        continue;
                    }
                    if version == 0 {
                        registered.push(Member::of(&id));
                    }
                    row.user = Some(replace(row.user.as_ref(), user, now_ms)?);
                }
                PersonChange::Preferences { preferences, .. } => row.preferences = Some(preferences_row(preferences)),
            }
            results.push(Changed::Done(Box::new(to_person(&id, row.clone())?)));
            changed.insert(id, row);
        }
        for (id, row) in &changed {
            batch.put(person_key(tenant, id), encode(row));
        }
        registered.sort_unstable();
        registered.dedup();
        self.chunks(tenant, &AudienceKey::Everyone).edit(&registered, true, &mut batch)?;
        self.kv.write(batch)?;
        Ok(results)
    }

    fn make_members(&self, tenant: &str, members: Vec<Membership>, present: bool) -> Result<u64, StoreError> {
        let mut audiences: BTreeMap<(u8, String), Vec<Member>> = BTreeMap::new();
        for Membership { audience, user } in members {
            let owner = match audience {
                AudienceKey::FollowersOf(user) => (1, user),
                AudienceKey::Topic(topic) => (2, topic),
                AudienceKey::Everyone => {
                    return Err(StoreError::Unavailable("who is registered is everyone; it cannot be set".into()));
                }
            };
            audiences.entry(owner).or_default().push(Member::of(&user));
        }
        let _held = self.locks.write(tenant);
        let mut batch = Batch::default();
        let mut changed = 0;
        for ((kind, owner), mut members) in audiences {
            members.sort_unstable();
            members.dedup();
            let audience = if kind == 1 { AudienceKey::FollowersOf(owner) } else { AudienceKey::Topic(owner) };
            changed += self.chunks(tenant, &audience).edit(&members, present, &mut batch)?;
        }
        self.kv.write(batch)?;
        Ok(changed)
    }

    /// Makes a person one who was erased, unless an erasure has begun that `runs`; returns the id of that one.
    pub(super) fn begin_erasure(
        &self,
        erasure: &Erasure,
        runs: impl FnOnce(&str) -> Result<bool, StoreError>,
        mut batch: Batch,
    ) -> Result<Option<String>, StoreError> {
        let (tenant, user) = (erasure.tenant.as_str(), &erasure.user_id);
        let _held = self.locks.write(tenant);
        let before = self.person(tenant, user)?.unwrap_or_default();
        if !before.erasure_id.is_empty() && runs(&before.erasure_id)? {
            return Ok(Some(before.erasure_id));
        }
        let row = PersonRow { erased_ms: erasure.begun_ms, erasure_id: erasure.id.clone(), ..PersonRow::default() };
        batch.put(person_key(tenant, user), encode(&row));
        self.chunks(tenant, &AudienceKey::Everyone).edit(&[Member::of(user)], false, &mut batch)?;
        self.kv.write(batch)?;
        Ok(None)
    }

    /// Forgets that a person was erased, if it was this erasure that did it last.
    pub(super) fn end_erasure(&self, erasure: &Erasure) -> Result<(), StoreError> {
        let (tenant, user) = (erasure.tenant.as_str(), &erasure.user_id);
        let _held = self.locks.write(tenant);
        let Some(mut row) = self.person(tenant, user)?.filter(|row| row.erasure_id == erasure.id) else {
            return Ok(());
        };
        (row.erased_ms, row.erasure_id) = (0, String::new());
        let mut batch = Batch::default();
        if row == PersonRow::default() {
            batch.delete(person_key(tenant, user));
        } else {
            batch.put(person_key(tenant, user), encode(&row));
        }
        self.kv.write(batch)
    }

    /// Lets a person's followers go, at most `limit` rows of them; returns whether they are all gone.
    pub(super) fn erase_followers(&self, tenant: &str, user: &str, limit: usize) -> Result<bool, StoreError> {
        let _held = self.locks.write(tenant);
        let followers = self.chunks(tenant, &AudienceKey::FollowersOf(user.to_owned()));
        let mut batch = Batch::default();
        let all = followers.delete(limit, &mut batch)?;
        self.kv.write(batch)?;
        Ok(all)
    }

    /// Takes a person out of the audiences in the next `limit` rows behind a key; returns the last key that was read, or
    /// `None` at the end. Everyone who is registered is not among them.
    pub(super) fn erase_memberships(
        &self,
        tenant: &str,
        user: &str,
        behind: &[u8],
        limit: usize,
    ) -> Result<Option<Bytes>, StoreError> {
        let _held = self.locks.write(tenant);
        let (found, last) = chunks::audiences_with(&*self.kv, tenant, user, behind, limit)?;
        let mut batch = Batch::default();
        for audience in found {
            self.chunks(tenant, &audience).edit(&[Member::of(user)], false, &mut batch)?;
        }
        self.kv.write(batch)?;
        Ok(last)
    }

    fn page(
        &self,
        tenant: &str,
        audience: &AudienceKey,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<AudiencePage, StoreError> {
        let _held = self.locks.read(tenant);
        self.chunks(tenant, audience).page(after, limit)
    }
}

fn person_key(tenant: &str, user: &str) -> Key {
    Key::of(Table::Person).part(tenant).u64(user_hash(user)).tail(user)
}

/// The profile to store over the one that was there.
fn replace(before: Option<&UserRow>, user: User, now_ms: u64) -> Result<UserRow, StoreError> {
    let attributes = match user.attributes.is_empty() {
        true => Bytes::new(),
        false => serde_json::to_vec(&user.attributes)
            .map_err(|e| StoreError::Unavailable(format!("attributes cannot be encoded: {e}")))?
            .into(),
    };
    let known = before.map_or(&[][..], |before| &before.endpoints);
    let endpoints = user.endpoints.into_iter().map(|e| {
        let stored = known.iter().find(|k| k.channel == e.channel && k.address == e.address);
        EndpointRow {
            registered_ms: stored.map_or(now_ms, |k| k.registered_ms),
            channel: e.channel,
            address: e.address,
            kind: e.kind,
            platform: e.platform,
            app_version: e.app_version,
        }
    });
    Ok(UserRow {
        attributes,
        locale: user.locale,
        time_zone: user.time_zone,
        endpoints: endpoints.collect(),
        version: before.map_or(0, |before| before.version) + 1,
        created_ms: before.map_or(now_ms, |before| before.created_ms),
        updated_ms: now_ms,
    })
}

fn to_person(user_id: &str, row: PersonRow) -> Result<Person, StoreError> {
    Ok(Person {
        user: row.user.map(|user| to_user(user_id, user)).transpose()?,
        preferences: row.preferences.map(to_preferences).unwrap_or_default(),
        erased_ms: row.erased_ms,
    })
}

fn to_user(user_id: &str, row: UserRow) -> Result<User, StoreError> {
    let attributes = match row.attributes.is_empty() {
        true => serde_json::Map::new(),
        false => serde_json::from_slice(&row.attributes)
            .map_err(|e| StoreError::Damaged(format!("attributes of a person cannot be read: {e}")))?,
    };
    let endpoints = row.endpoints.into_iter().map(|e| Endpoint {
        channel: e.channel,
        address: e.address,
        kind: e.kind,
        platform: e.platform,
        app_version: e.app_version,
        registered_ms: e.registered_ms,
    });
    Ok(User {
        user_id: user_id.into(),
        attributes,
        locale: row.locale,
        time_zone: row.time_zone,
        endpoints: endpoints.collect(),
        version: row.version,
        created_ms: row.created_ms,
        updated_ms: row.updated_ms,
    })
}

fn preferences_row(preferences: Preferences) -> PreferencesRow {
    let channels = preferences.channels.into_iter();
    PreferencesRow {
        channels: channels
            .map(|(name, p)| (name, ChannelPreferenceRow { enabled: p.enabled, categories: p.categories }))
            .collect(),
        quiet_hours: preferences.quiet_hours.map(|quiet| QuietHoursRow {
            start_minute: quiet.start_minute.into(),
            end_minute: quiet.end_minute.into(),
            time_zone: quiet.time_zone,
            drop: quiet.policy == QuietPolicy::Drop,
        }),
        source: preferences.source,
        updated_ms: preferences.updated_ms,
    }
}

fn to_preferences(row: PreferencesRow) -> Preferences {
    let channels = row.channels.into_iter();
    Preferences {
        channels: channels
            .map(|(name, p)| (name, ChannelPreference { enabled: p.enabled, categories: p.categories }))
            .collect(),
        quiet_hours: row.quiet_hours.map(|quiet| QuietHours {
            start_minute: quiet.start_minute as u16,
            end_minute: quiet.end_minute as u16,
            time_zone: quiet.time_zone,
            policy: if quiet.drop { QuietPolicy::Drop } else { QuietPolicy::Defer },
        }),
        source: row.source,
        updated_ms: row.updated_ms,
    }
}

#[async_trait]
impl Directory for DirectoryStore {
    async fn people(&self, tenant: &TenantId, user_ids: &[String]) -> Result<Vec<Person>, StoreError> {
        let mut people = Vec::with_capacity(user_ids.len());
        for user in user_ids {
            people.push(match self.person(tenant.as_str(), user)? {
                Some(row) => to_person(user, row)?,
                None => Person::default(),
            });
        }
        Ok(people)
    }

    async fn change(
        &self,
        tenant: &TenantId,
        changes: Vec<PersonChange>,
        now_ms: u64,
    ) -> Result<Vec<Changed>, StoreError> {
        ready(&*self.kv).await?;
        self.make_changes(tenant.as_str(), changes, now_ms)
    }

    async fn list(
        &self,
        tenant: &TenantId,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<(Vec<User>, Option<Cursor>), StoreError> {
        let page = self.page(tenant.as_str(), &AudienceKey::Everyone, after.as_ref(), limit)?;
        let people = self.people(tenant, &page.users).await?;
        Ok((people.into_iter().filter_map(|person| person.user).collect(), page.next))
    }

    async fn set_members(&self, tenant: &TenantId, members: Vec<Membership>, present: bool) -> Result<u64, StoreError> {
        ready(&*self.kv).await?;
        self.make_members(tenant.as_str(), members, present)
    }

    async fn audience(
        &self,
        tenant: &TenantId,
        audience: &AudienceKey,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<AudiencePage, StoreError> {
        self.page(tenant.as_str(), audience, after.as_ref(), limit)
    }
}
