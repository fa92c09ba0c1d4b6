//! What both faces, HTTP and gRPC, share: previews for users, and pages of lists.

use std::sync::Arc;

use herald_api::{
    auth::Authenticator,
    page::{List, page_size},
};
use herald_core::{
    ids::TenantId,
    people::User,
    ports::{audit::Audit, channel::Opener, directory::Directory, fleet::Fleet, ledger::Ledger},
    problem::Problem,
    secrets::SecretKeys,
    templates::PersonContext,
};
use serde_json::Value;

use crate::{
    dead_letters::DeadLetters,
    publisher::Publisher,
    templates::{self, Preview, PreviewRequest},
    views::{PreviewBody, PreviewUser},
};

/// What the faces of the control plane need.
#[derive(Clone)]
pub struct Deps {
    /// Writes and reads policies.
    pub publisher: Arc<Publisher>,
    /// Whom previews are for.
    pub directory: Arc<dyn Directory>,
    /// Dead letters, and the log that they are on.
    pub dead_letters: Arc<DeadLetters>,
    /// What waits behind switches.
    pub ledger: Arc<dyn Ledger>,
    /// Which processes run, and which policies they run.
    pub fleet: Arc<dyn Fleet>,
    /// What operators did.
    pub audit: Arc<dyn Audit>,
    /// Opens providers, and tries them.
    pub opener: Arc<dyn Opener>,
    /// What seals their credentials, if anything does.
    pub keys: Option<Arc<SecretKeys>>,
    /// Who calls.
    pub authenticator: Authenticator,
}

/// A page of a list in the order of keys.
#[derive(Debug)]
pub(crate) struct Page {
    list: List,
    /// The last key of the page before.
    pub(crate) after: Option<String>,
    /// The most entries.
    pub(crate) limit: usize,
}

impl Page {
    pub(crate) fn open(list: List, size: Option<u32>, token: Option<&str>) -> Result<Self, Problem> {
        let after = list.position(token)?.map(String::from_utf8).transpose();
        let after = after.map_err(|_| herald_api::page::foreign_token())?;
        Ok(Self { list, after, limit: page_size(size) })
    }

    /// The token of what follows `last`; empty at the end of the list.
    pub(crate) fn token(&self, last: Option<&str>) -> String {
        self.list.token(last.map(str::as_bytes))
    }

    /// The token of the page after this one, of which `last` is the last of `entries`.
    pub(crate) fn next(&self, entries: usize, last: Option<&str>) -> String {
        self.token(last.filter(|_| entries == self.limit))
    }
}

/// Renders a preview for the named user, or for the made-up one.
pub(crate) async fn preview(deps: &Deps, tenant: &TenantId, id: &str, body: PreviewBody) -> Result<Preview, Problem> {
    let user = match (body.user_id, body.user) {
        (Some(_), Some(_)) => {
            return Err(Problem::field("user", "conflict", "Name a `user_id` or describe a `user`, not both."));
        }
        (Some(user_id), None) => registered(deps, tenant, user_id).await?,
        (None, user) => made_up(user.unwrap_or_default()),
    };
    let data = Value::Object(body.data.unwrap_or_default());
    let attributes = Value::Object(user.attributes);
    let request = PreviewRequest {
        channel: body.channel.as_deref().filter(|channel| !channel.is_empty()),
        version: body.version,
        locale: body.locale.as_deref(),
        data: &data,
        user: PersonContext {
            id: &user.user_id,
            locale: user.locale.as_deref(),
            time_zone: user.time_zone.as_deref(),
            attributes: &attributes,
        },
    };
    templates::preview(&deps.publisher, tenant, id, &request).await
}

async fn registered(deps: &Deps, tenant: &TenantId, user_id: String) -> Result<User, Problem> {
    let people = deps.directory.people(tenant, &[user_id]).await?;
    people.into_iter().next().and_then(|person| person.user).ok_or_else(|| Problem::not_found("user"))
}

fn made_up(user: PreviewUser) -> User {
    User {
        user_id: user.user_id.unwrap_or_else(|| "preview".into()),
        attributes: user.attributes,
        locale: user.locale,
        time_zone: user.time_zone,
        ..User::default()
    }
}
