//! Gathers ended instances of one section into receipts, one for each way to end.

use std::sync::Arc;

use bytes::Bytes;
use herald_core::{
    books::Tally,
    ids::{InstanceId, NotificationId},
    outputs::Outputs,
    packed::PackedWriter,
    record::{Channel, Notification, Receipts, State},
};

/// How instances ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    pub state: State,
    pub reason: &'static str,
    pub attempts: u32,
    /// Empty for none.
    pub provider: Arc<str>,
    pub error_code: String,
}

impl End {
    /// An end that a rule decided, without a provider.
    pub(crate) fn by_rule(state: State, reason: &'static str, attempts: u32) -> Self {
        Self { state, reason, attempts, provider: Arc::default(), error_code: String::new() }
    }
}

struct Group {
    end: End,
    users: PackedWriter,
    tally: Tally,
    provider_ids: Vec<String>,
}

/// The ended instances of one notification and channel in one commit.
pub(crate) struct Ended {
    id: NotificationId,
    channel: Channel,
    groups: Vec<Group>,
}

impl Ended {
    pub(crate) fn new(id: NotificationId, channel: Channel) -> Self {
        Self { id, channel, groups: Vec::new() }
    }

    /// Books the end of a user's instance.
    pub(crate) fn add(&mut self, user: &str, end: &End) {
        self.add_hashed(user, InstanceId::of(&self.id, user, self.channel).book_hash(), end, None);
    }

    /// Books the end of a user's instance whose hash is known.
    pub(crate) fn add_hashed(&mut self, user: &str, book_hash: u64, end: &End, provider_id: Option<String>) {
        // Sections end in few ways, so looking through them all is quicker than hashing.
        let at = self.groups.iter().position(|group| group.end == *end).unwrap_or_else(|| {
            let (users, tally) = (PackedWriter::default(), Tally::default());
            self.groups.push(Group { end: end.clone(), users, tally, provider_ids: Vec::new() });
            self.groups.len() - 1
        });
        let group = &mut self.groups[at];
        group.tally.add(book_hash);
        if let Some(provider_id) = provider_id {
            // The column has an entry for each user or is empty, so gaps in front are filled.
            group.provider_ids.resize(group.users.count() as usize, String::new());
            group.provider_ids.push(provider_id);
        }
        group.users.push(user);
    }

    /// Puts the receipts out and returns how many instances they hold.
    pub(crate) fn put_out(self, notification: &Notification, now_ms: u64, outputs: &mut Outputs) -> u64 {
        let mut count = 0;
        for mut group in self.groups {
            count += group.tally.count;
            if !group.provider_ids.is_empty() {
                group.provider_ids.resize(group.users.count() as usize, String::new());
            }
            outputs.receipts(Receipts {
                notification_id: Bytes::copy_from_slice(&self.id.0),
                tenant: notification.tenant.clone(),
                channel: self.channel as i32,
                state: group.end.state as i32,
                reason: group.end.reason.to_owned(),
                attempts: group.end.attempts,
                provider: group.end.provider.as_ref().to_owned(),
                error_code: group.end.error_code,
                count: group.users.count(),
                hash_sum: group.tally.hash_sum,
                users: group.users.finish(),
                provider_ids: group.provider_ids,
                accepted_ms: notification.accepted_ms,
                ended_ms: now_ms,
                negative: false,
            });
        }
        count
    }
}
