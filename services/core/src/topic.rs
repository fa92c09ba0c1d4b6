//! The topics of the log and who reads them. Names and codes are stored and must never change.

use std::fmt;

/// The two lanes. A spike of bulk traffic cannot delay transactional messages: each has its own topics at every stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Messages that somebody waits for.
    Transactional,
    /// Everything else.
    Bulk,
}

impl Lane {
    /// Both lanes, the urgent one first.
    pub const ALL: [Self; 2] = [Self::Transactional, Self::Bulk];
}

/// How many delay tiers there are: 250 ms x 4^k, the last about 18 hours.
pub const DELAY_TIERS: u8 = 10;

/// A topic of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Admitted requests and their continuations.
    Requests(Lane),
    /// Requests of a tenant that fills the orchestrator's window.
    RequestsOverflow(Lane),
    /// Sections of users, sharded.
    Deliveries(Lane),
    /// Sections of a tenant and channel that fill a worker's window, sharded.
    Overflow(Lane),
    /// Which user's profile or preferences changed, sharded.
    UserChanges,
    /// Rendered in-app items, sharded.
    Inbox,
    /// Dedupe claims won and released, sharded.
    Claims,
    /// What waits for this tier's delay.
    Delayed(u8),
    /// Manifests and receipts, partitioned by notification.
    Receipts,
    /// Policies, compacted by key.
    Control,
    /// Dead letters.
    Dead,
    /// Orders to bring dead letters back, and what became of them.
    Redrives,
}

/// When a record of a topic may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Once every group that reads the topic has passed it; never by time or size.
    Consumed,
    /// Once a later record has the same key.
    Compacted,
    /// After this many milliseconds.
    For(u64),
}

/// What sets the number of a topic's partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// The number of shards: these topics are assigned together.
    Shards,
    /// The number of requests partitions.
    Requests,
    /// The number of receipts partitions.
    Receipts,
    /// One partition.
    Single,
}

/// A group of consumers that share a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// Expands audiences.
    Orchestrator,
    /// Sends.
    Worker,
    /// Brings waiting records back.
    Router,
    /// Keeps a row for each admitted id.
    LedgerRequests,
    /// Adds up manifests and receipts.
    LedgerReceipts,
    /// Brings dead letters back.
    Redriver,
}

impl Group {
    /// Every group.
    pub const ALL: [Self; 6] =
        [Self::Orchestrator, Self::Worker, Self::Router, Self::LedgerRequests, Self::LedgerReceipts, Self::Redriver];

    /// The group's name on the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Orchestrator => "herald.orchestrator",
            Self::Worker => "herald.worker",
            Self::Router => "herald.router",
            Self::LedgerRequests => "herald.ledger.requests",
            Self::LedgerReceipts => "herald.ledger.receipts",
            Self::Redriver => "herald.redriver",
        }
    }

    /// The group's stored code.
    pub fn code(self) -> u8 {
        match self {
            Self::Orchestrator => 1,
            Self::Worker => 2,
            Self::Router => 3,
            Self::LedgerRequests => 4,
            Self::LedgerReceipts => 5,
            Self::Redriver => 6,
        }
    }

    /// The group of a stored code.
    pub fn of_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.code() == code)
    }

    /// What the group reads.
    pub fn topics(self) -> Vec<Topic> {
        Topic::all().filter(|topic| topic.readers().contains(&self)).collect()
    }
}

impl Topic {
    /// Every topic.
    pub fn all() -> impl Iterator<Item = Self> {
        Lane::ALL
            .into_iter()
            .flat_map(|lane| {
                [Self::Requests(lane), Self::RequestsOverflow(lane), Self::Deliveries(lane), Self::Overflow(lane)]
            })
            .chain([Self::UserChanges, Self::Inbox, Self::Claims, Self::Receipts])
            .chain([Self::Control, Self::Dead, Self::Redrives])
            .chain((0..DELAY_TIERS).map(Self::Delayed))
    }

    /// The topic's stored code.
    pub fn code(self) -> u8 {
        let lane = |base: u8, lane: Lane| base + u8::from(lane == Lane::Bulk);
        match self {
            Self::Requests(l) => lane(1, l),
            Self::RequestsOverflow(l) => lane(3, l),
            Self::Deliveries(l) => lane(5, l),
            Self::Overflow(l) => lane(7, l),
            Self::UserChanges => 9,
            Self::Inbox => 10,
            Self::Claims => 11,
            Self::Receipts => 12,
            Self::Control => 13,
            Self::Dead => 14,
            Self::Redrives => 15,
            Self::Delayed(tier) => 32 + tier,
        }
    }

    /// The topic of a stored code.
    pub fn of_code(code: u8) -> Option<Self> {
        Self::all().find(|topic| topic.code() == code)
    }

    /// Who reads the topic with a stored position.
    pub fn readers(self) -> &'static [Group] {
        match self {
            Self::Requests(_) => &[Group::Orchestrator, Group::LedgerRequests],
            Self::RequestsOverflow(_) => &[Group::Orchestrator],
            Self::Deliveries(_) | Self::Overflow(_) | Self::UserChanges | Self::Inbox => &[Group::Worker],
            Self::Receipts => &[Group::LedgerReceipts],
            Self::Delayed(_) => &[Group::Router],
            Self::Redrives => &[Group::Redriver],
            Self::Claims | Self::Control | Self::Dead => &[],
        }
    }

    /// When its records may go.
    pub fn retention(self) -> Retention {
        match self {
            Self::Control => Retention::Compacted,
            // The longest dedupe window, 30 days, and a day of grace.
            Self::Claims => Retention::For(31 * 86_400_000),
            // What was brought back is known as long as the letter is there.
            Self::Dead | Self::Redrives => Retention::For(30 * 86_400_000),
            _ => Retention::Consumed,
        }
    }

    /// What sets the number of its partitions.
    pub fn spread(self) -> Spread {
        match self {
            Self::Requests(_) | Self::RequestsOverflow(_) => Spread::Requests,
            Self::Deliveries(_) | Self::Overflow(_) | Self::UserChanges | Self::Inbox | Self::Claims => Spread::Shards,
            Self::Receipts => Spread::Receipts,
            Self::Control | Self::Dead | Self::Redrives | Self::Delayed(_) => Spread::Single,
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lane = |lane: &Lane| if *lane == Lane::Bulk { "bulk" } else { "transactional" };
        match self {
            Self::Requests(l) => write!(f, "requests.{}", lane(l)),
            Self::RequestsOverflow(l) => write!(f, "requests-overflow.{}", lane(l)),
            Self::Deliveries(l) => write!(f, "deliveries.{}", lane(l)),
            Self::Overflow(l) => write!(f, "overflow.{}", lane(l)),
            Self::UserChanges => f.write_str("user-changes"),
            Self::Inbox => f.write_str("inbox"),
            Self::Claims => f.write_str("claims"),
            Self::Receipts => f.write_str("receipts"),
            Self::Control => f.write_str("control"),
            Self::Dead => f.write_str("dead"),
            Self::Redrives => f.write_str("redrives"),
            Self::Delayed(tier) => write!(f, "delayed.{tier}"),
        }
    }
}

/// The delay of a tier, in milliseconds: 250 x 4^tier.
pub fn tier_delay_ms(tier: u8) -> u64 {
    250u64 << (2 * u32::from(tier))
}

/// The longest tier that does not pass the due time, else the shortest: where a record waits next.
pub fn tier_for(remaining_ms: u64) -> u8 {
    (0..DELAY_TIERS).rev().find(|tier| tier_delay_ms(*tier) <= remaining_ms).unwrap_or(0)
}

/// A partition of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Topic,
    /// Its partition, from 0.
    pub partition: u32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// How many partitions there are; fixed when a data directory or a cluster's topics are created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Shards of users, 1 to 64.
    pub shards: u32,
    /// Partitions of each requests topic.
    pub requests: u32,
    /// Partitions of the receipts topic.
    pub receipts: u32,
}

impl Layout {
    /// The number of a topic's partitions.
    pub fn partitions(&self, topic: Topic) -> u32 {
        match topic.spread() {
            Spread::Shards => self.shards,
            Spread::Requests => self.requests,
            Spread::Receipts => self.receipts,
            Spread::Single => 1,
        }
    }

    /// The receipts partition of a notification.
    pub fn receipts_of(&self, id: &crate::ids::NotificationId) -> TopicPartition {
        TopicPartition { topic: Topic::Receipts, partition: (id.hash() % u64::from(self.receipts.max(1))) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_and_names_are_distinct_and_come_back() {
        let codes: BTreeSet<u8> = Topic::all().map(Topic::code).collect();
        let names: BTreeSet<String> = Topic::all().map(|t| t.to_string()).collect();
        assert_eq!((codes.len(), names.len()), (25, 25));
        assert!(Topic::all().all(|t| Topic::of_code(t.code()) == Some(t)));
        assert!(Group::ALL.iter().all(|g| Group::of_code(g.code()) == Some(*g)));
    }

    #[test]
    fn a_waiting_record_never_passes_its_due_time_but_by_the_shortest_tier() {
        for remaining in [0, 1, 250, 999, 1_000, 60_000, 86_400_000, 30 * 86_400_000] {
            let delay = tier_delay_ms(tier_for(remaining));
            assert!(delay <= remaining.max(250), "{remaining} waits {delay}");
            assert!(delay * 4 > remaining || delay == tier_delay_ms(DELAY_TIERS - 1));
        }
    }
}
