//! Users, preferences and audiences.

use async_trait::async_trait;

use super::StoreError;
use crate::{
    ids::TenantId,
    people::{Person, Preferences, User},
    record::Cursor,
};

/// One change of a person.
#[derive(Debug, Clone, PartialEq)]
pub enum PersonChange {
    /// Replaces the profile. `expect` is the version that must be stored (0 for none); `None` takes any. The stored
    /// version and `created_ms` are set by the store, and so is `registered_ms` of endpoints that were not there.
    Profile {
        /// The new profile.
        user: User,
        /// Compare and set.
        expect: Option<u64>,
    },
    /// Replaces the preferences.
    Preferences {
        /// Whose.
        user_id: String,
        /// What they want.
        preferences: Preferences,
    },
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq)]
pub enum Changed {
    /// The person as it is stored now.
    Done(Box<Person>),
    /// The stored version is another one: this.
    VersionMismatch(u64),
}

/// A stored audience.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AudienceKey {
    /// Those who follow this user.
    FollowersOf(String),
    /// Those who subscribed to this topic.
    Topic(String),
    /// Every registered user.
    Everyone,
}

/// A part of an audience, in the order of (hash, user).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AudiencePage {
    /// User ids.
    pub users: Vec<String>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Cursor>,
}

/// A membership to add to or to remove from an audience.
#[derive(Debug, Clone, PartialEq)]
pub struct Membership {
    /// Which audience; `Everyone` is kept by the store and is refused.
    pub audience: AudienceKey,
    /// Who.
    pub user: String,
}

/// Users and audiences.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// What is stored of each, in order; an unknown id gives an empty [`Person`].
    async fn people(&self, tenant: &TenantId, user_ids: &[String]) -> Result<Vec<Person>, StoreError>;

    /// Makes changes, each atomic by itself, in order; an `Err` leaves open which were made.
    async fn change(
        &self,
        tenant: &TenantId,
        changes: Vec<PersonChange>,
        now_ms: u64,
    ) -> Result<Vec<Changed>, StoreError>;

    /// Registered users after a cursor, in the order of (hash, user).
    async fn list(
        &self,
        tenant: &TenantId,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<(Vec<User>, Option<Cursor>), StoreError>;

    /// Adds or removes memberships; returns how many changed.
    async fn set_members(&self, tenant: &TenantId, members: Vec<Membership>, present: bool) -> Result<u64, StoreError>;

    /// The members after a cursor.
    async fn audience(
        &self,
        tenant: &TenantId,
        audience: &AudienceKey,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<AudiencePage, StoreError>;
}
