//! Expansion: one page of an audience becomes sections for shards, a manifest and, unless it was the last page, a
//! continuation. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use herald_core::{
    books::Tally,
    ids::{InstanceId, NotificationId, shard_of, user_hash},
    packed::PackedWriter,
    record::{self, Channel, Cursor, InlineRecipient, Manifest, Notification, Request, Section, SectionSummary},
};

/// The most users that a page may have in one shard.
pub const MAX_PAGE_USERS_PER_SHARD: u32 = 256;

/// The people of one page.
pub enum Recipients<'a> {
    /// Ids in the order of (hash, user).
    Users(Vec<&'a str>),
    /// Recipients that travel with the message.
    Inline(&'a [InlineRecipient]),
}

impl Recipients<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Users(users) => users.len(),
            Self::Inline(inline) => inline.len(),
        }
    }

    fn id(&self, index: usize) -> &str {
        match self {
            Self::Users(users) => users[index],
            Self::Inline(inline) => &inline[index].user_id,
        }
    }
}

/// What one page became.
#[derive(Debug, Default)]
pub struct Page {
    /// Sections and their summaries by shard.
    pub sections: BTreeMap<u32, Vec<(Section, SectionSummary)>>,
    /// One manifest a channel; at least one, so that the end of an audience of nobody is told.
    pub manifests: Vec<Manifest>,
    /// How many of the recipients the page took. The rest belong to the next page.
    pub taken: usize,
    /// Instances created.
    pub instances: u64,
}

/// Expands recipients until one shard has its share. `more` tells whether the audience goes on behind them.
pub fn expand(
    request: &Request,
    notification: &Notification,
    recipients: &Recipients<'_>,
    actor: &Bytes,
    more: bool,
    shards: u32,
) -> Page {
    let mut id = NotificationId([0; 16]);
    id.0.copy_from_slice(&notification.id[..16]);
    let excluded = (request.exclude_actor && !notification.actor_id.is_empty()).then_some(&*notification.actor_id);
    let channels: Vec<Channel> = request.channels().collect();

    let mut by_shard: Vec<ShardUsers> = (0..shards.max(1)).map(|_| ShardUsers::default()).collect();
    let mut recipients_taken = 0;
    let mut page = Page::default();
    for index in 0..recipients.len() {
        let user = recipients.id(index);
        if excluded != Some(user) {
            let shard = &mut by_shard[shard_of(&notification.tenant, user, shards) as usize];
            if shard.users.count() == MAX_PAGE_USERS_PER_SHARD {
                break;
            }
            shard.take(&id, user, index, &channels);
            recipients_taken += 1;
        }
        page.taken = index + 1;
    }

    let last = !more && page.taken == recipients.len();
    let mut totals = vec![Tally::default(); channels.len()];
    for (shard, users) in (0..).zip(by_shard).filter(|(_, users)| users.users.count() > 0) {
        let inline: Vec<InlineRecipient> = match recipients {
            Recipients::Users(_) => Vec::new(),
            Recipients::Inline(all) => users.indexes.iter().map(|i| all[*i].clone()).collect(),
        };
        let (count, column) = (users.users.count(), users.users.finish());
        let sections = channels.iter().enumerate().map(|(c, channel)| {
            totals[c] += users.tallies[c];
            let section = Section {
                notification: request.notification.clone(),
                channel: *channel as i32,
                users: column.clone(),
                count,
                inline: inline.clone(),
                actor: actor.clone(),
                attempts: 0,
            };
            (section, summary_of(notification, *channel, users.tallies[c]))
        });
        page.sections.insert(shard, sections.collect());
    }
    page.instances = totals.iter().map(|t| t.count).sum();
    page.manifests =
        channels.iter().zip(totals).map(|(channel, tally)| manifest_of(notification, *channel, tally)).collect();
    if page.manifests.is_empty() {
        page.manifests.push(last_manifest(notification));
    }
    page.manifests[0].recipients = recipients_taken;
    page.manifests[0].last = last;
    page
}

#[derive(Default)]
struct ShardUsers {
    users: PackedWriter,
    indexes: Vec<usize>,
    tallies: Vec<Tally>,
}

impl ShardUsers {
    fn take(&mut self, id: &NotificationId, user: &str, index: usize, channels: &[Channel]) {
        self.users.push(user);
        self.indexes.push(index);
        self.tallies.resize(channels.len(), Tally::default());
        for (tally, channel) in self.tallies.iter_mut().zip(channels) {
            tally.add(InstanceId::of(id, user, *channel).book_hash());
        }
    }
}

fn summary_of(notification: &Notification, channel: Channel, tally: Tally) -> SectionSummary {
    SectionSummary {
        tenant: notification.tenant.clone(),
        notification_id: notification.id.clone(),
        channel: channel as i32,
        count: tally.count as u32,
        hash_sum: tally.hash_sum,
    }
}

fn manifest_of(notification: &Notification, channel: Channel, tally: Tally) -> Manifest {
    Manifest {
        notification_id: notification.id.clone(),
        tenant: notification.tenant.clone(),
        channel: channel as i32,
        count: tally.count as u32,
        hash_sum: tally.hash_sum,
        template_id: notification.template_id.clone(),
        accepted_ms: notification.accepted_ms,
        ..Default::default()
    }
}

/// The manifest that closes a chain and creates nothing.
pub fn last_manifest(notification: &Notification) -> Manifest {
    Manifest { last: true, ..manifest_of(notification, Channel::Unspecified, Tally::default()) }
}

/// The request for the rest of an audience. Lists carry only what is left of them.
pub fn continuation(request: &Request, last_taken: &str, rest: Option<record::Audience>, taken: usize) -> Request {
    Request {
        audience: rest.or_else(|| request.audience.clone()),
        cursor: Some(Cursor { hash: user_hash(last_taken), user: last_taken.to_owned() }),
        expanded: request.expanded + taken as u64,
        ..request.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(channels: &[Channel], exclude_actor: bool) -> (Request, Notification) {
        let notification = Notification {
            id: Bytes::from_static(&[9; 16]),
            tenant: "acme".into(),
            actor_id: "user-3".into(),
            ..Default::default()
        };
        let request =
            Request { channels: channels.iter().map(|c| *c as i32).collect(), exclude_actor, ..Default::default() };
        (request, notification)
    }

    fn run(users: usize, more: bool, shards: u32) -> Page {
        let (request, notification) = request(&[Channel::InApp, Channel::Email], true);
        let ids: Vec<String> = (0..users).map(|i| format!("user-{i}")).collect();
        let recipients = Recipients::Users(ids.iter().map(String::as_str).collect());
        expand(&request, &notification, &recipients, &Bytes::new(), more, shards)
    }

    #[test]
    fn the_actor_is_left_out_and_counts_nowhere() {
        let page = run(10, false, 4);
        assert_eq!((page.taken, page.instances), (10, 18));
        assert_eq!(page.manifests[0].recipients, 9);
        assert!(page.manifests[0].last && !page.manifests[1].last);
    }

    #[test]
    fn manifests_are_the_sum_of_the_sections() {
        let page = run(500, true, 8);
        for manifest in &page.manifests {
            let mut sum = Tally::default();
            for (_, summary) in page.sections.values().flatten().filter(|(s, _)| s.channel == manifest.channel) {
                sum += Tally { count: summary.count.into(), hash_sum: summary.hash_sum };
            }
            assert_eq!((sum.count, sum.hash_sum), (u64::from(manifest.count), manifest.hash_sum));
            assert!(!manifest.last);
        }
    }

    #[test]
    fn a_page_ends_where_a_shard_is_full() {
        let page = run(2_000, false, 4);
        assert!(page.taken < 2_000);
        assert!(!page.manifests[0].last);
        let largest = page.sections.values().flatten().map(|(s, _)| s.count).max();
        assert_eq!(largest, Some(MAX_PAGE_USERS_PER_SHARD));
    }

    #[test]
    fn an_audience_of_nobody_is_told_as_complete() {
        let page = run(0, false, 4);
        assert_eq!(page.manifests.len(), 2);
        assert!(page.manifests[0].last && page.sections.is_empty());
    }
}
