//! Rendered in-app items of one section on their way to `inbox`. Texts that do not vary by user are put out once.

use herald_core::{
    books::Tally,
    ids::InstanceId,
    outputs::Outputs,
    packed::{self, PackedWriter},
    record::{Channel, InboxSection, SectionSummary},
};
use herald_templates::{Message, Rendered};

use crate::section::Head;

struct Group {
    /// The locale that its users share, where the texts are the same for all of them.
    shared: Option<Option<String>>,
    users: PackedWriter,
    titles: Vec<String>,
    bodies: Vec<String>,
}

/// Items by what they share.
pub(crate) struct InAppItems<'a> {
    head: &'a Head,
    groups: Vec<Group>,
}

impl<'a> InAppItems<'a> {
    pub(crate) fn new(head: &'a Head) -> Self {
        Self { head, groups: Vec::new() }
    }

    /// Adds a user whose message is that of their locale, if it was rendered before.
    pub(crate) fn add_shared(&mut self, user: &str, locale: Option<&str>) -> bool {
        let group =
            self.groups.iter_mut().find(|g| g.shared.as_ref().is_some_and(|shared| shared.as_deref() == locale));
        group.map(|group| group.users.push(user)).is_some()
    }

    /// Adds a user with the message that was rendered last; `constant` if it is that of everyone with their locale.
    pub(crate) fn add(&mut self, user: &str, locale: Option<&str>, constant: bool, rendered: &Rendered) {
        let (title, body) = match rendered.message() {
            Some(Message::InApp { title, body }) => (title.unwrap_or_default(), body.unwrap_or_default()),
            _ => ("", ""),
        };
        let shared = constant.then(|| locale.map(str::to_owned));
        let at = match constant {
            true => None,
            false => self.groups.iter().position(|group| group.shared.is_none()),
        };
        let at = at.unwrap_or_else(|| {
            let users = PackedWriter::default();
            self.groups.push(Group { shared, users, titles: Vec::new(), bodies: Vec::new() });
            self.groups.len() - 1
        });
        let group = &mut self.groups[at];
        group.users.push(user);
        group.titles.push(title.to_owned());
        group.bodies.push(body.to_owned());
    }

    /// Puts the items out for their shard.
    pub(crate) fn put_out(self, shard: u32, outputs: &mut Outputs) {
        debug_assert!(self.groups.is_empty() || self.head.channel == Channel::InApp);
        for group in self.groups {
            let section = InboxSection {
                notification_id: self.head.notification.id.clone(),
                tenant: self.head.notification.tenant.clone(),
                count: group.users.count(),
                users: group.users.finish(),
                titles: group.titles,
                bodies: group.bodies,
                data: self.head.notification.data.clone(),
                accepted_ms: self.head.notification.accepted_ms,
                attempts: self.head.section.attempts,
            };
            let mut tally = Tally::default();
            for user in packed::unpack(&section.users).map_while(Result::ok) {
                tally.add(InstanceId::of(&self.head.id, user, Channel::InApp).book_hash());
            }
            let summary = SectionSummary {
                tenant: section.tenant.clone(),
                notification_id: section.notification_id.clone(),
                channel: Channel::InApp as i32,
                count: section.count,
                hash_sum: tally.hash_sum,
            };
            outputs.inbox(shard, section, summary);
        }
    }
}
