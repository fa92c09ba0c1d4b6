//! What a template sees when it is rendered.

use serde_json::Value;

static NULL: Value = Value::Null;

/// A person: the user of a message, or its actor.
#[derive(Debug, Clone, Copy)]
pub struct PersonContext<'a> {
    /// The user id.
    pub id: &'a str,
    /// The locale, such as `de-AT`.
    pub locale: Option<&'a str>,
    /// The time zone, such as `Europe/Vienna`.
    pub time_zone: Option<&'a str>,
    /// The attributes, an object or null.
    pub attributes: &'a Value,
}

/// The tenant.
#[derive(Debug, Clone, Copy)]
pub struct TenantContext<'a> {
    /// The tenant id.
    pub id: &'a str,
    /// The tenant's name for people.
    pub name: &'a str,
}

/// What all users of a section have in common.
#[derive(Debug, Clone, Copy)]
pub struct SharedContext<'a> {
    /// The notification's data, nested no deeper than serde_json parses.
    pub data: &'a Value,
    /// Who caused it, if anybody did. Without an actor `actor` is null and its fields are missing.
    pub actor: Option<PersonContext<'a>>,
    /// Whose notification it is.
    pub tenant: TenantContext<'a>,
}

/// What varies by user.
#[derive(Debug, Clone, Copy)]
pub struct UserContext<'a> {
    /// The user id.
    pub id: &'a str,
    /// The locale, such as `de-AT`.
    pub locale: Option<&'a str>,
    /// The time zone, such as `Europe/Vienna`.
    pub time_zone: Option<&'a str>,
    /// The attributes, an object or null.
    pub attributes: &'a Value,
    /// Where to unsubscribe. Needed only if [`crate::Prepared::uses_unsubscribe_url`] says so.
    pub unsubscribe_url: Option<&'a str>,
}

/// A copy of a [`SharedContext`], for blocks that need it once a user is known.
#[derive(Debug)]
pub(crate) struct OwnedShared {
    data: Value,
    actor: Option<OwnedPerson>,
    tenant_id: String,
    tenant_name: String,
}

#[derive(Debug)]
struct OwnedPerson {
    id: String,
    locale: Option<String>,
    time_zone: Option<String>,
    attributes: Value,
}

impl From<&SharedContext<'_>> for OwnedShared {
    fn from(shared: &SharedContext<'_>) -> Self {
        Self {
            data: shared.data.clone(),
            actor: shared.actor.map(|actor| OwnedPerson {
                id: actor.id.to_owned(),
                locale: actor.locale.map(str::to_owned),
                time_zone: actor.time_zone.map(str::to_owned),
                attributes: actor.attributes.clone(),
            }),
            tenant_id: shared.tenant.id.to_owned(),
            tenant_name: shared.tenant.name.to_owned(),
        }
    }
}

/// The variables of one evaluation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variables<'a> {
    pub data: &'a Value,
    pub actor: Option<PersonContext<'a>>,
    pub tenant: TenantContext<'a>,
    pub user: Option<PersonContext<'a>>,
    pub unsubscribe_url: Option<&'a str>,
}

impl<'a> Variables<'a> {
    /// Before any user is known.
    pub(crate) fn shared(shared: &SharedContext<'a>) -> Self {
        Self { data: shared.data, actor: shared.actor, tenant: shared.tenant, user: None, unsubscribe_url: None }
    }

    /// For one user. `shared` is absent where nothing varies by user together with what is shared.
    pub(crate) fn of_user(user: &UserContext<'a>, shared: Option<&'a OwnedShared>) -> Self {
        Self {
            data: shared.map_or(&NULL, |shared| &shared.data),
            actor: shared.and_then(|shared| shared.actor.as_ref()).map(|actor| PersonContext {
                id: &actor.id,
                locale: actor.locale.as_deref(),
                time_zone: actor.time_zone.as_deref(),
                attributes: &actor.attributes,
            }),
            tenant: TenantContext {
                id: shared.map_or("", |shared| &shared.tenant_id),
                name: shared.map_or("", |shared| &shared.tenant_name),
            },
            user: Some(PersonContext {
                id: user.id,
                locale: user.locale,
                time_zone: user.time_zone,
                attributes: user.attributes,
            }),
            unsubscribe_url: user.unsubscribe_url,
        }
    }
}
