//! Instances handed to providers whose outcome is not durably committed: what may be sent twice after a crash. Pure.

use herald_core::{ports::log::Mark, record::Channel};

/// Instances by channel.
type Counts = [u64; 5];

/// The windows of what is in doubt, and of what providers have not answered.
///
/// What is answered waits for a commit only, and where a commit takes long there is much of it. What is not answered makes
/// whoever comes next wait, so there is less of it.
pub(crate) struct InDoubt {
    all: Window,
    unanswered: Window,
    /// Answered and committed, and the mark from which on they are no longer in doubt.
    settling: Vec<(Mark, Counts)>,
}

/// Up to where a message may fill the windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Eleven sixteenths.
    Bulk,
    /// Bulk of a tenant that came new and finds what others have filled: three quarters.
    Newcomers,
    /// All.
    Transactional,
}

impl Share {
    fn of(self, limit: u64) -> u64 {
        match self {
            Self::Bulk => limit * 11 / 16,
            Self::Newcomers => limit * 3 / 4,
            Self::Transactional => limit,
        }
    }
}

/// Instances that are counted up to a limit.
///
/// One provider that hangs must not hold up the others, nor bulk traffic what somebody waits for: where there are
/// several channels, one has at most half of the window, and the last parts are for newcomers and for transactional
/// messages.
struct Window {
    limit: u64,
    channel_limit: u64,
    counts: Counts,
}

impl Window {
    fn new(limit: u64) -> Self {
        Self { limit, channel_limit: limit, counts: Counts::default() }
    }

    fn serve(&mut self, channels: usize) {
        let channel_limit = if channels > 1 { self.limit / 2 } else { self.limit };
        self.channel_limit = channel_limit.max(1);
    }

    fn largest_batch(&self) -> u64 {
        self.channel_limit.min(Share::Bulk.of(self.limit)).max(1)
    }

    fn has_room(&self, share: Share, channel: Channel, count: u64) -> bool {
        self.total() + count <= share.of(self.limit).max(1) && self.fits_channel(channel, count)
    }

    /// Whether the channel's part has room. What was put together while that was larger goes alone.
    fn fits_channel(&self, channel: Channel, count: u64) -> bool {
        let counted = self.counts[channel as usize];
        counted == 0 || counted + count <= self.channel_limit
    }

    fn remove(&mut self, counts: &Counts) {
        self.counts.iter_mut().zip(counts).for_each(|(counted, count)| *counted -= count);
    }

    fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl InDoubt {
    pub(crate) fn new(limit: u64, unanswered_limit: u64, channels: usize) -> Self {
        let (all, unanswered) = (Window::new(limit), Window::new(unanswered_limit.min(limit)));
        let mut in_doubt = Self { all, unanswered, settling: Vec::new() };
        in_doubt.serve(channels);
        in_doubt
    }

    /// From now on there are so many channels.
    pub(crate) fn serve(&mut self, channels: usize) {
        self.all.serve(channels);
        self.unanswered.serve(channels);
    }

    /// The most instances that can be handed over at once, whatever they are.
    pub(crate) fn largest_batch(&self) -> usize {
        self.unanswered.largest_batch() as usize
    }

    /// Whether so many more can be handed over.
    pub(crate) fn has_room(&self, share: Share, channel: Channel, count: u64) -> bool {
        let windows = [&self.all, &self.unanswered];
        channel == Channel::InApp || windows.into_iter().all(|window| window.has_room(share, channel, count))
    }

    /// Counts what is handed over. In-app has no provider, so it is never in doubt.
    pub(crate) fn hand_over(&mut self, channel: Channel, count: u64) {
        if channel != Channel::InApp {
            self.all.counts[channel as usize] += count;
            self.unanswered.counts[channel as usize] += count;
        }
    }

    /// What was handed over is no longer ours to answer for.
    pub(crate) fn drop(&mut self, channel: Channel, count: u64) {
        if channel != Channel::InApp {
            self.all.counts[channel as usize] -= count;
            self.unanswered.counts[channel as usize] -= count;
        }
    }

    /// What was answered waits for its commit only.
    pub(crate) fn answered(&mut self, channel: Channel, count: u64) {
        self.unanswered.counts[channel as usize] -= count;
    }

    /// What was answered is in doubt until its commit is durable.
    pub(crate) fn committed(&mut self, answered: Answered, mark: Mark) {
        if answered.0.iter().any(|count| *count > 0) {
            self.settling.push((mark, answered.0));
        }
    }

    /// The log is durable up to here.
    pub(crate) fn durable(&mut self, mark: Mark) {
        let all = &mut self.all;
        self.settling.retain(|(needs, counts)| {
            let settled = *needs <= mark;
            if settled {
                all.remove(counts);
            }
            !settled
        });
    }

    /// How many are in doubt.
    pub(crate) fn total(&self) -> u64 {
        self.all.total()
    }
}

/// Instances that were answered since the last commit.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Answered(Counts);

impl Answered {
    pub(crate) fn add(&mut self, channel: Channel, count: u64) {
        self.0[channel as usize] += count;
    }

    pub(crate) fn absorb(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, more)| *mine += more);
    }

    /// Takes all of them out of doubt, since their shard is another's.
    pub(crate) fn forget(self, in_doubt: &mut InDoubt) {
        in_doubt.all.remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_answered_stays_in_doubt_until_its_commit_is_durable() {
        let mut in_doubt = InDoubt::new(100, 100, 1);
        in_doubt.hand_over(Channel::Email, 70);
        assert!(
            in_doubt.has_room(Share::Newcomers, Channel::Email, 5)
                && !in_doubt.has_room(Share::Newcomers, Channel::Email, 6)
        );
        let mut answered = Answered::default();
        in_doubt.answered(Channel::Email, 70);
        answered.add(Channel::Email, 70);
        assert!(!in_doubt.has_room(Share::Newcomers, Channel::Email, 6));
        in_doubt.committed(answered, Mark(9));
        in_doubt.durable(Mark(8));
        assert_eq!(in_doubt.total(), 70);
        in_doubt.durable(Mark(9));
        assert_eq!(in_doubt.total(), 0);
    }

    #[test]
    fn there_is_less_of_what_is_not_answered_than_of_what_waits_for_a_commit() {
        let mut in_doubt = InDoubt::new(400, 100, 1);
        in_doubt.hand_over(Channel::Email, 75);
        assert!(!in_doubt.has_room(Share::Newcomers, Channel::Email, 1));
        for _ in 0..3 {
            in_doubt.answered(Channel::Email, 75);
            assert!(in_doubt.has_room(Share::Newcomers, Channel::Email, 75));
            in_doubt.hand_over(Channel::Email, 75);
        }
        in_doubt.answered(Channel::Email, 75);
        assert_eq!(in_doubt.total(), 300);
        assert!(!in_doubt.has_room(Share::Newcomers, Channel::Email, 1), "all wait for a commit");
    }

    #[test]
    fn a_channel_that_hangs_leaves_room_for_others_and_bulk_leaves_room_for_transactional_messages() {
        let mut in_doubt = InDoubt::new(100, 100, 2);
        in_doubt.hand_over(Channel::Email, 20);
        assert!(!in_doubt.has_room(Share::Transactional, Channel::Email, 31));
        in_doubt.hand_over(Channel::Email, 30);
        assert!(!in_doubt.has_room(Share::Transactional, Channel::Email, 1));
        assert!(
            in_doubt.has_room(Share::Newcomers, Channel::Push, 25)
                && !in_doubt.has_room(Share::Newcomers, Channel::Push, 26)
        );
        assert!(in_doubt.has_room(Share::Transactional, Channel::Push, 50));
        assert!(in_doubt.has_room(Share::Newcomers, Channel::InApp, 10_000));
    }

    #[test]
    fn who_comes_new_finds_room_where_others_have_filled_their_share() {
        let mut in_doubt = InDoubt::new(160, 160, 1);
        in_doubt.hand_over(Channel::Email, 110);
        assert!(!in_doubt.has_room(Share::Bulk, Channel::Email, 1));
        assert!(in_doubt.has_room(Share::Newcomers, Channel::Email, 10));
        assert!(!in_doubt.has_room(Share::Newcomers, Channel::Email, 11));
    }

    #[test]
    fn what_was_put_together_before_another_channel_came_goes_alone() {
        let mut in_doubt = InDoubt::new(100, 100, 1);
        let put_together = in_doubt.largest_batch() as u64;
        in_doubt.serve(2);
        in_doubt.hand_over(Channel::Email, 1);
        assert!(!in_doubt.has_room(Share::Newcomers, Channel::Email, put_together));
        in_doubt.drop(Channel::Email, 1);
        assert!(in_doubt.has_room(Share::Newcomers, Channel::Email, put_together));
    }

    #[test]
    fn the_largest_batch_always_finds_room_in_an_empty_window() {
        for (limit, channels) in [(1, 1), (1, 3), (2, 2), (64, 1), (1_024, 3)] {
            let in_doubt = InDoubt::new(limit, 50, channels);
            assert!(in_doubt.has_room(Share::Bulk, Channel::Email, in_doubt.largest_batch() as u64), "{limit}");
        }
    }
}
