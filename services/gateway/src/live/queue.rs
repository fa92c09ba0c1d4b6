//! Where a connection takes its frames.

use herald_core::ports::{
    inbox::{EventId, Item},
    sessions::Inlet,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::item::json_of;

/// An item as it is sent.
#[derive(Debug)]
pub(super) struct Frame {
    pub id: EventId,
    /// JSON, on one line.
    pub text: String,
}

impl Frame {
    /// An item of ours always has a text; one that has none must not stop those behind it.
    pub(super) fn of(user: &str, item: &Item) -> Option<Self> {
        json_of(user, item)
            .inspect_err(|error| tracing::error!(%error, event = %item.event_id, "an item cannot be written as JSON"))
            .ok()
            .map(|text| Self { id: item.event_id, text })
    }
}

/// A bounded queue of frames. When it is full it takes no more until it is emptied, so that what it holds has no gap;
/// what comes after it is in the inbox.
pub(super) struct Queue {
    user: String,
    max_frames: usize,
    max_bytes: usize,
    state: Mutex<State>,
    /// Wakes the connection when the first frame comes, and not for those that it will find together with it.
    filled: Notify,
}

#[derive(Default)]
struct State {
    frames: Vec<Frame>,
    bytes: usize,
    gap: bool,
}

impl Queue {
    pub(super) fn new(user: String, max_frames: usize, max_bytes: usize) -> Self {
        Self { user, max_frames, max_bytes, state: Mutex::default(), filled: Notify::new() }
    }

    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// Swaps all frames with an empty `batch`. Returns whether frames were dropped after them.
    pub(super) fn take(&self, batch: &mut Vec<Frame>) -> bool {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.frames, batch);
        state.bytes = 0;
        std::mem::take(&mut state.gap)
    }

    /// Waits until there may be something to take.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }
}

impl Inlet for Queue {
    fn frame(&self, item: &Item) {
        let mut state = self.state.lock();
        if state.gap {
            return;
        }
        let wake = state.frames.is_empty();
        if state.frames.len() < self.max_frames && state.bytes < self.max_bytes {
            let Some(frame) = Frame::of(&self.user, item) else { return };
            state.bytes += frame.text.len();
            state.frames.push(frame);
        } else {
            state.gap = true;
        }
        drop(state);
        if wake {
            self.filled.notify_one();
        }
    }

    fn gap(&self) {
        self.state.lock().gap = true;
        self.filled.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use herald_core::ids::NotificationId;

    use super::*;

    fn item(offset: u64, body: &str) -> Item {
        Item {
            event_id: EventId { epoch: 1, offset, index: 0 },
            notification: NotificationId([1; 16]),
            title: String::new(),
            body: body.into(),
            data: bytes::Bytes::new(),
            created_ms: 1,
            seen_ms: 0,
            read_ms: 0,
            archived_ms: 0,
        }
    }

    fn offsets(batch: &[Frame]) -> Vec<u64> {
        batch.iter().map(|frame| frame.id.offset).collect()
    }

    #[test]
    fn a_full_queue_drops_everything_until_it_is_taken() {
        for queue in [Queue::new("u".into(), 2, 1 << 20), Queue::new("u".into(), 99, 700)] {
            let body = "x".repeat(300);
            (1..=4).for_each(|offset| queue.frame(&item(offset, &body)));
            let mut batch = Vec::new();
            assert!(queue.take(&mut batch), "the gap is remembered");
            assert_eq!(offsets(&batch), [1, 2]);
            batch.clear();
            queue.frame(&item(5, &body));
            assert!(!queue.take(&mut batch), "a gap is told once");
            assert_eq!(offsets(&batch), [5]);
        }
    }

    #[test]
    fn a_gap_wakes_and_is_told_after_what_came_before_it() {
        let queue = Queue::new("u".into(), 8, 1 << 20);
        let mut batch = Vec::new();
        queue.gap();
        assert!(queue.filled().now_or_never().is_some(), "nothing is queued, and there is something to do");
        assert!(queue.take(&mut batch) && batch.is_empty());
        queue.frame(&item(1, ""));
        queue.gap();
        queue.frame(&item(2, ""));
        assert!(queue.take(&mut batch));
        assert_eq!(offsets(&batch), [1]);
    }

    #[test]
    fn several_frames_wake_once() {
        let queue = Queue::new("u".into(), 8, 1 << 20);
        assert!(queue.filled().now_or_never().is_none());
        (1..=3).for_each(|offset| queue.frame(&item(offset, "")));
        assert!(queue.filled().now_or_never().is_some());
        assert!(queue.filled().now_or_never().is_none());
        queue.take(&mut Vec::new());
        queue.frame(&item(4, ""));
        assert!(queue.filled().now_or_never().is_some());
    }
}
