//! A commit that goes on while its member does.

use std::{
    future::poll_fn,
    pin::pin,
    task::{Context, Poll, Waker, ready},
};

use crate::ports::log::{Committed, Committing, LogError};

/// A member's commit, if one is under way, and what its end is needed for. On a cluster a commit takes tens of milliseconds.
pub struct UnderWay<T>(Option<(Committing, T)>);

/// What became of a commit, and what that is needed for.
pub type Ended<T> = (Result<Committed, LogError>, T);

impl<T> UnderWay<T> {
    /// Nothing is under way.
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether a commit is under way.
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Takes a commit that was begun, and returns its end if it comes at once. Nothing else must be under way.
    pub fn begin(&mut self, committing: Committing, then: T) -> Option<Ended<T>> {
        debug_assert!(self.0.is_none(), "a member commits one after the other");
        self.0 = Some((committing, then));
        match pin!(self.end()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ended) => Some(ended),
            Poll::Pending => None,
        }
    }

    /// Waits for the end, for ever where nothing is under way. Dropping the future loses nothing.
    pub async fn end(&mut self) -> Ended<T> {
        poll_fn(|context| {
            let Some((committing, _)) = &mut self.0 else { return Poll::Pending };
            let ended = ready!(committing.as_mut().poll(context));
            match self.0.take() {
                Some((_, then)) => Poll::Ready((ended, then)),
                None => Poll::Pending,
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    };

    use super::*;
    use crate::ports::log::Mark;

    /// What a wait of no length brings.
    fn looked_at<T>(under_way: &mut UnderWay<T>) -> Option<Ended<T>> {
        match pin!(under_way.end()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ended) => Some(ended),
            Poll::Pending => None,
        }
    }

    #[test]
    fn an_end_comes_once_and_is_not_lost_with_who_waited_for_it() {
        let (mut under_way, is_in) = (UnderWay::none(), Arc::<AtomicBool>::default());
        let seen = is_in.clone();
        let committing = poll_fn(move |_| match seen.load(Relaxed) {
            true => Poll::Ready(Ok(Committed::Done(Mark(7)))),
            false => Poll::Pending,
        });
        assert!(under_way.begin(Box::pin(committing), "then").is_none());
        assert!(looked_at(&mut under_way).is_none() && under_way.is_some());
        is_in.store(true, Relaxed);
        assert!(matches!(looked_at(&mut under_way), Some((Ok(Committed::Done(Mark(7))), "then"))));
        assert!(looked_at(&mut under_way).is_none() && !under_way.is_some());
        let at_once = under_way.begin(Box::pin(async { Ok(Committed::Fenced) }), "at once");
        assert!(matches!(at_once, Some((Ok(Committed::Fenced), "at once"))) && !under_way.is_some());
    }
}
