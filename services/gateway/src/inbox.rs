//! In-app feeds: lists and marks.

use herald_api::{
    auth::Authenticated,
    page::{List, foreign_token, page_size},
};
use herald_core::{
    auth::Scope,
    ids::InstanceId,
    ports::inbox::{Counts, EventId, MarkAs, StateFilter, Which},
    problem::Problem,
};
use herald_proto::v1;

use crate::{live::item_of, service::Gateway, users::check_id};

const MAX_MARKED: usize = 1_000;

impl Gateway {
    /// A user's feed, newest first, and its counts.
    ///
    /// # Errors
    /// 400 for a state that cannot be.
    pub async fn list_inbox(
        &self,
        who: &Authenticated,
        asked: v1::ListInboxRequest,
    ) -> Result<v1::ListInboxResponse, Problem> {
        let tenant = who.caller.require_user(Scope::Inbox, &asked.user_id)?;
        let user = &asked.user_id;
        check_id("user_id", user)?;
        let state = asked.state.as_deref().unwrap_or_default();
        let filter = match state {
            "" => StateFilter::Active,
            "unseen" => StateFilter::Unseen,
            "unread" => StateFilter::Unread,
            "archived" => StateFilter::Archived,
            _ => {
                let detail = "The states are unseen, unread and archived.";
                return Err(Problem::field("state", "invalid_value", detail));
            }
        };
        let list = List::new("inbox", &[tenant.as_str(), user, state]);
        let before = match list.position(asked.page_token.as_deref())? {
            Some(position) => {
                let text = std::str::from_utf8(&position).map_err(|_| foreign_token())?;
                Some(text.parse::<EventId>().map_err(|_| foreign_token())?)
            }
            None => None,
        };
        let inbox = &self.deps.inbox;
        let (items, next) = inbox.list(tenant, user, filter, before, page_size(asked.page_size)).await?;
        let counts = inbox.counts(tenant, user).await?;
        let next = next.map(|event| event.to_string());
        Ok(v1::ListInboxResponse {
            items: items.iter().map(|item| item_of(user, item)).collect(),
            counts: Some(counts_message(counts)),
            next_page_token: list.token(next.as_ref().map(String::as_bytes)),
        })
    }

    /// Marks items as seen, read or archived.
    ///
    /// # Errors
    /// 400 for anything that is not one of these, or for ids that cannot be.
    pub async fn mark_inbox(
        &self,
        who: &Authenticated,
        request: v1::MarkInboxRequest,
    ) -> Result<v1::InboxCounts, Problem> {
        let tenant = who.caller.require_user(Scope::Inbox, &request.user_id)?;
        check_id("user_id", &request.user_id)?;
        let mark = match request.r#as.as_str() {
            "seen" => MarkAs::Seen,
            "read" => MarkAs::Read,
            "archived" => MarkAs::Archived,
            _ => return Err(Problem::field("as", "invalid_value", "Mark as seen, read or archived.")),
        };
        let which = which(&request)?;
        let counts = self.deps.inbox.mark(tenant, &request.user_id, which, mark, self.now_ms()).await?;
        Ok(counts_message(counts))
    }
}

fn which(request: &v1::MarkInboxRequest) -> Result<Which, Problem> {
    let all = request.all.unwrap_or(false);
    if all != request.instance_ids.is_empty() {
        return Err(Problem::field("instance_ids", "required", "Give instance_ids, or `all: true`, and not both."));
    }
    if all {
        return Ok(Which::All);
    }
    if request.instance_ids.len() > MAX_MARKED {
        return Err(Problem::field("instance_ids", "too_many", format!("At most {MAX_MARKED} are allowed.")));
    }
    let ids = request.instance_ids.iter().enumerate().map(|(i, id)| {
        id.parse::<InstanceId>()
            .map_err(|_| Problem::field(format!("instance_ids[{i}]"), "invalid_value", "Expected a UUID."))
    });
    Ok(Which::Instances(ids.collect::<Result<_, _>>()?))
}

fn counts_message(counts: Counts) -> v1::InboxCounts {
    let small = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    v1::InboxCounts { unseen: small(counts.unseen), unread: small(counts.unread), total: small(counts.total) }
}
