//! People: profiles, preferences, follows, subscriptions, and tokens for end users.
//!
//! A change is stored, then announced on `user-changes`, then answered: a notify after the answer sees it.

use std::collections::BTreeSet;

use bytes::Bytes;
use herald_api::{
    auth::Authenticated,
    page::{List, foreign_token, page_size},
    time::{duration_ms, timestamp},
};
use herald_core::{
    auth::{Principal, Scope},
    ids::{self, TenantId, shard_of},
    people::{Person, Preferences},
    policy::SIGNING_SECRET,
    ports::{
        directory::{AudienceKey, Changed, Membership, PersonChange},
        log::NewRecord,
    },
    problem::{FieldError, Kind, Problem},
    record::{Cursor, Envelope, Schema, UserChange},
    tokens::UserToken,
    topic::{Topic, TopicPartition},
};
use herald_proto::v1;
use prost::Message;

use crate::{
    people::{check_preferences, check_profile, merge_profile, preferences_message, user_message},
    service::Gateway,
};

pub(crate) const MAX_USERS: usize = 1_000;
const MAX_MEMBERS: usize = 10_000;
/// Attempts at a merge against other writers.
const MAX_MERGES: usize = 16;
const DEFAULT_TOKEN_TTL_MS: u64 = 3_600_000;

impl Gateway {
    /// Replaces a profile.
    ///
    /// # Errors
    /// 400 for a bad profile; 409 where `version` is another one.
    pub async fn put_user(&self, who: &Authenticated, request: v1::PutUserRequest) -> Result<v1::User, Problem> {
        let tenant = who.caller.require(Scope::Users)?;
        let expect = request.version.map(u64::from);
        let user = check_profile(request, &self.config.notification)?;
        let changed = self.change(tenant, vec![PersonChange::Profile { user, expect }]).await?;
        stored_user(changed.into_iter().next())
    }

    /// Merges a profile.
    ///
    /// # Errors
    /// As [`Gateway::put_user`]; 503 where too many others write at once.
    pub async fn patch_user(&self, who: &Authenticated, request: v1::PutUserRequest) -> Result<v1::User, Problem> {
        let tenant = who.caller.require(Scope::Users)?;
        for _ in 0..MAX_MERGES {
            let stored = self.person(tenant, &request.user_id).await?.user;
            let version = stored.as_ref().map_or(0, |user| user.version);
            if request.version.is_some_and(|expected| u64::from(expected) != version) {
                return Err(version_mismatch(version));
            }
            let user = merge_profile(stored.as_ref(), &request, &self.config.notification)?;
            let change = PersonChange::Profile { user, expect: Some(version) };
            match self.change(tenant, vec![change]).await?.pop() {
                Some(Changed::VersionMismatch(_)) => {}
                changed => return stored_user(changed),
            }
        }
        Err(Problem::unavailable("Too many others change this user. Repeat the call."))
    }

    /// A profile.
    ///
    /// # Errors
    /// 404 for a user that is not registered.
    pub async fn get_user(&self, who: &Authenticated, user_id: &str) -> Result<v1::User, Problem> {
        let tenant = who.caller.require(Scope::Users)?;
        let user = self.person(tenant, user_id).await?.user.ok_or_else(|| Problem::not_found("user"))?;
        Ok(user_message(user))
    }

    /// Registered users, in an order of the store.
    ///
    /// # Errors
    /// 400 for a token of another list.
    pub async fn list_users(
        &self,
        who: &Authenticated,
        asked: v1::ListUsersRequest,
    ) -> Result<v1::ListUsersResponse, Problem> {
        let tenant = who.caller.require(Scope::Users)?;
        let list = List::new("users", &[tenant.as_str()]);
        let after = match list.position(asked.page_token.as_deref())? {
            Some(position) => Some(cursor(&position).ok_or_else(foreign_token)?),
            None => None,
        };
        let (users, next) = self.deps.directory.list(tenant, after, page_size(asked.page_size)).await?;
        let next = next.map(|cursor| [&cursor.hash.to_be_bytes()[..], cursor.user.as_bytes()].concat());
        Ok(v1::ListUsersResponse {
            users: users.into_iter().map(user_message).collect(),
            next_page_token: list.token(next.as_deref()),
        })
    }

    /// Replaces many profiles; each has its own result, also one that could not be read.
    ///
    /// # Errors
    /// 400 where there are none or too many.
    pub async fn put_users(
        &self,
        who: &Authenticated,
        users: Vec<Result<v1::PutUserRequest, Problem>>,
        request_id: &str,
    ) -> Result<v1::PutUsersResponse, Problem> {
        let tenant = who.caller.require(Scope::Users)?;
        check_count("users", users.len(), MAX_USERS)?;
        let mut changes = Vec::with_capacity(users.len());
        let checked: Vec<(String, Result<(), Problem>)> = users
            .into_iter()
            .map(|request| {
                let request = match request {
                    Ok(request) => request,
                    Err(problem) => return (String::new(), Err(problem)),
                };
                let (user_id, expect) = (request.user_id.clone(), request.version.map(u64::from));
                let user = check_profile(request, &self.config.notification);
                (user_id, user.map(|user| changes.push(PersonChange::Profile { user, expect })))
            })
            .collect();
        let mut changed = self.change(tenant, changes).await?.into_iter();
        let results =
            checked.into_iter().map(|(user_id, checked)| match checked.and_then(|()| stored_user(changed.next())) {
                Ok(user) => v1::PutUserResult { user_id, version: Some(user.version), error: None },
                Err(problem) => {
                    let error = Some(herald_api::rejection::message(&problem, request_id));
                    v1::PutUserResult { user_id, version: None, error }
                }
            });
        Ok(v1::PutUsersResponse { results: results.collect() })
    }

    /// Replaces preferences; the user need not be registered.
    ///
    /// # Errors
    /// 400 for bad preferences.
    pub async fn put_preferences(
        &self,
        who: &Authenticated,
        request: v1::PutPreferencesRequest,
    ) -> Result<v1::Preferences, Problem> {
        let tenant = who.caller.require_user(Scope::Preferences, &request.user_id)?;
        let user_id = request.user_id.clone();
        let source = if matches!(who.caller.principal, Principal::EndUser(_)) { "user" } else { "api" };
        let preferences = check_preferences(request)?;
        let stored = self.store_preferences(tenant, &user_id, preferences, source).await?;
        Ok(preferences_message(user_id, stored))
    }

    /// Stores and announces preferences.
    pub(crate) async fn store_preferences(
        &self,
        tenant: &TenantId,
        user_id: &str,
        preferences: Preferences,
        source: &str,
    ) -> Result<Preferences, Problem> {
        let preferences = Preferences { source: source.to_owned(), updated_ms: self.now_ms(), ..preferences };
        let change = PersonChange::Preferences { user_id: user_id.to_owned(), preferences };
        match self.change(tenant, vec![change]).await?.pop() {
            Some(Changed::Done(person)) => Ok(person.preferences),
            _ => Err(unanswered()),
        }
    }

    /// Preferences; defaults for somebody who never set any.
    ///
    /// # Errors
    /// 400 for an id that cannot be.
    pub async fn get_preferences(&self, who: &Authenticated, user_id: &str) -> Result<v1::Preferences, Problem> {
        let tenant = who.caller.require_user(Scope::Preferences, user_id)?;
        let person = self.person(tenant, user_id).await?;
        Ok(preferences_message(user_id.to_owned(), person.preferences))
    }

    /// Adds or removes follows.
    ///
    /// # Errors
    /// 400, naming the edge that is wrong.
    pub async fn set_follows(
        &self,
        who: &Authenticated,
        edges: Vec<v1::Edge>,
        present: bool,
    ) -> Result<v1::MembershipResponse, Problem> {
        let tenant = who.caller.require(Scope::Users)?;
        check_count("edges", edges.len(), MAX_MEMBERS)?;
        for (i, edge) in edges.iter().enumerate() {
            for (name, id) in [("follower", &edge.follower), ("followee", &edge.followee)] {
                check_id(&format!("edges[{i}].{name}"), id)?;
            }
        }
        let memberships: BTreeSet<(String, String)> =
            edges.into_iter().map(|edge| (edge.followee, edge.follower)).collect();
        let memberships =
            memberships.into_iter().map(|(of, user)| Membership { audience: AudienceKey::FollowersOf(of), user });
        self.set_members(tenant, memberships.collect(), present).await
    }

    /// Adds or removes subscribers of a topic.
    ///
    /// # Errors
    /// 400, naming the id that is wrong.
    pub async fn set_subscribers(
        &self,
        who: &Authenticated,
        request: v1::SubscribeRequest,
        present: bool,
    ) -> Result<v1::MembershipResponse, Problem> {
        let tenant = who.caller.require(Scope::Users)?;
        check_id("topic", &request.topic)?;
        check_count("user_ids", request.user_ids.len(), MAX_MEMBERS)?;
        for (i, user_id) in request.user_ids.iter().enumerate() {
            check_id(&format!("user_ids[{i}]"), user_id)?;
        }
        let users: BTreeSet<String> = request.user_ids.into_iter().collect();
        let memberships = users
            .into_iter()
            .map(|user| Membership { audience: AudienceKey::Topic(request.topic.clone()), user })
            .collect();
        self.set_members(tenant, memberships, present).await
    }

    async fn set_members(
        &self,
        tenant: &TenantId,
        members: Vec<Membership>,
        present: bool,
    ) -> Result<v1::MembershipResponse, Problem> {
        let given = members.len() as u64;
        let changed = self.deps.directory.set_members(tenant, members, present).await?;
        let small = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        Ok(v1::MembershipResponse { changed: small(changed), unchanged: small(given.saturating_sub(changed)) })
    }

    /// A token with which an end user's browser reads its feed and sets its preferences.
    ///
    /// # Errors
    /// 400 for scopes that no end user has, or a ttl that is too long.
    pub async fn create_user_token(
        &self,
        who: &Authenticated,
        request: v1::CreateUserTokenRequest,
    ) -> Result<v1::CreateUserTokenResponse, Problem> {
        let tenant = who.caller.require(Scope::Tokens)?;
        check_id("user_id", &request.user_id)?;
        let max_s = self.config.max_user_token_ttl_s;
        let ttl_ms = request.ttl.as_ref().map_or(Some(DEFAULT_TOKEN_TTL_MS), duration_ms);
        let Some(ttl_ms) = ttl_ms.filter(|ms| (1_000..=max_s * 1_000).contains(ms)) else {
            let detail = format!("A token is valid for 1s to {max_s}s.");
            return Err(Problem::field("ttl", "out_of_range", detail));
        };
        let mut scopes = request.scopes;
        let known = Scope::OF_END_USERS.map(Scope::name);
        if let Some(at) = scopes.iter().position(|scope| !known.contains(&scope.as_str())) {
            let detail = format!("An end user's scopes are {}.", known.join(" and "));
            return Err(Problem::field(format!("scopes[{at}]"), "unknown_scope", detail));
        }
        if scopes.is_empty() {
            return Err(Problem::field("scopes", "required", format!("Name {} or both.", known.join(" or "))));
        }
        scopes.sort_unstable();
        scopes.dedup();
        let secret = who
            .policy
            .secret(SIGNING_SECRET)
            .ok_or_else(|| Problem::unavailable("Tokens cannot be signed yet: the signing secret has not arrived."))?;
        let expires_ms = self.now_ms() + ttl_ms;
        let (tenant, key_id) = (tenant.as_str().to_owned(), who.caller.key_id().unwrap_or_default().to_owned());
        let token = UserToken { tenant, user: request.user_id, scopes, expires_ms, key_id };
        Ok(v1::CreateUserTokenResponse { token: token.sign(secret), expires_at: Some(timestamp(expires_ms)) })
    }

    pub(crate) async fn person(&self, tenant: &TenantId, user_id: &str) -> Result<Person, Problem> {
        check_id("user_id", user_id)?;
        let people = self.deps.directory.people(tenant, &[user_id.to_owned()]).await?;
        people.into_iter().next().ok_or_else(unanswered)
    }

    /// Stores changes, then announces those that were made.
    async fn change(&self, tenant: &TenantId, changes: Vec<PersonChange>) -> Result<Vec<Changed>, Problem> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<String> = changes.iter().map(|change| user_id_of(change).to_owned()).collect();
        let now_ms = self.now_ms();
        let changed = self.deps.directory.change(tenant, changes, now_ms).await?;
        let announced = ids.into_iter().zip(&changed).filter_map(|(user_id, changed)| match changed {
            Changed::Done(person) => {
                let version = person.user.as_ref().map_or(0, |user| user.version);
                Some(UserChange { tenant: tenant.as_str().to_owned(), user_id, version, erased: false })
            }
            Changed::VersionMismatch(_) => None,
        });
        self.announce(tenant, announced.collect()).await?;
        Ok(changed)
    }

    /// Announces changes that are stored, so that whoever remembers these persons reads them again.
    pub(crate) async fn announce(&self, tenant: &TenantId, changes: Vec<UserChange>) -> Result<(), Problem> {
        let identity = self.deps.log.identity();
        let records = changes.into_iter().map(|change| NewRecord {
            at: TopicPartition {
                topic: Topic::UserChanges,
                partition: shard_of(tenant.as_str(), &change.user_id, identity.layout.shards),
            },
            key: Bytes::new(),
            timestamp_ms: self.now_ms(),
            envelope: Envelope {
                schema: Schema::UserChange as i32,
                region: identity.region.clone(),
                tenant: tenant.as_str().to_owned(),
                ..Default::default()
            },
            body: change.encode_to_vec().into(),
        });
        let records: Vec<NewRecord> = records.collect();
        if records.is_empty() {
            return Ok(());
        }
        let appended = self.deps.log.append(records).await;
        appended.map(|_| ()).map_err(|error| {
            tracing::warn!(%error, "a change of a user is stored and not announced");
            Problem::unavailable("The change is stored, and it may take minutes to hold everywhere. Repeat it.")
        })
    }
}

fn user_id_of(change: &PersonChange) -> &str {
    match change {
        PersonChange::Profile { user, .. } => &user.user_id,
        PersonChange::Preferences { user_id, .. } => user_id,
    }
}

fn stored_user(changed: Option<Changed>) -> Result<v1::User, Problem> {
    match changed {
        Some(Changed::Done(person)) => person.user.map(user_message).ok_or_else(unanswered),
        Some(Changed::VersionMismatch(stored)) => Err(version_mismatch(stored)),
        None => Err(unanswered()),
    }
}

fn version_mismatch(stored: u64) -> Problem {
    let detail = format!("The stored version is {stored}. Read the user again.");
    let errors = vec![FieldError::new("version", "version_mismatch", detail.clone())];
    Problem::new(Kind::Conflict, "version_mismatch", detail).with_errors(errors)
}

/// A store that breaks its contract.
fn unanswered() -> Problem {
    Problem::new(Kind::Internal, "internal", "A store gave no answer.")
}

pub(crate) fn check_id(field: &str, id: &str) -> Result<(), Problem> {
    let code = if id.is_empty() { "required" } else { "invalid_value" };
    ids::check_id(field, id).map_err(|error| Problem::field(field, code, error.0))
}

fn check_count(field: &str, count: usize, max: usize) -> Result<(), Problem> {
    match count {
        0 => Err(Problem::field(field, "required", "The list is empty.")),
        _ if count > max => {
            Err(Problem::field(field, "too_many", format!("{count} are given; at most {max} are allowed.")))
        }
        _ => Ok(()),
    }
}

fn cursor(position: &[u8]) -> Option<Cursor> {
    let (hash, user) = position.split_at_checked(8)?;
    let user = std::str::from_utf8(user).ok()?.to_owned();
    Some(Cursor { hash: u64::from_be_bytes(hash.try_into().ok()?), user })
}
