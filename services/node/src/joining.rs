//! A member that joins its group, and joins it anew.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use herald_core::ports::{
    fleet::Fleet,
    log::{Halted, Member},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::namesakes;

/// How long a member waits before it joins its group anew, at first and at most.
const REJOIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A member of a role.
pub struct Joining {
    /// What it does.
    pub role: &'static str,
    /// Which member of its group it is.
    pub member: Member,
    /// The name of its process.
    pub process: String,
    /// Where a namesake of its process would be heard of.
    pub fleet: Arc<dyn Fleet>,
    /// Counts the times that it joined anew.
    pub rejoins: Arc<AtomicU64>,
    /// Cancelled when it is to stop.
    pub shutdown: CancellationToken,
}

impl Joining {
    /// Runs the member until shutdown or a failure. Where it lost its partitions, or does not know what became of a commit,
    /// it drops what it held and joins anew, which tells it where to go on; unless another process has its name.
    ///
    /// # Errors
    /// What the member failed with, or that there is a namesake. At shutdown a member that was fenced has only left to others
    /// what they have already; but a [`Halted::Unknown`] stays an error, for whoever stopped the process would take a good
    /// end for a promise that everything it did is recorded, and only who joins next can tell.
    pub async fn run<F>(self, member: impl Fn(Member, CancellationToken) -> F) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let (first, longest) = REJOIN;
        let mut pause = first;
        let (role, ordinal) = (self.role, self.member.ordinal);
        loop {
            let began = Instant::now();
            let error = match member(self.member, self.shutdown.clone()).await {
                Err(error) if may_rejoin(&error) => error,
                ended => return ended,
            };
            if self.shutdown.is_cancelled() {
                return at_shutdown(role, ordinal, error);
            }
            self.rejoins.fetch_add(1, Relaxed);
            tracing::warn!(role, ordinal, error = format!("{error:#}"), "a member joins its group anew");
            namesakes::refuse_known(&self.process, &*self.fleet).await?;
            pause = if began.elapsed() > longest { first } else { (pause * 2).min(longest) };
            if self.shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return at_shutdown(role, ordinal, error);
            }
        }
    }
}

/// A log that is damaged stays so, and so does one that is too new.
fn may_rejoin(error: &anyhow::Error) -> bool {
    let halted = error.downcast_ref::<Halted>();
    halted.is_some_and(|halted| !matches!(halted, Halted::Unknown(error) if !error.is_passing()))
}

/// What a member ends with that would join anew if it were not to stop.
fn at_shutdown(role: &'static str, ordinal: u32, error: anyhow::Error) -> anyhow::Result<()> {
    let Some(Halted::Fenced) = error.downcast_ref() else { return Err(error) };
    tracing::warn!(role, ordinal, "what a member had in hand is left to others");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use herald_core::ports::{StoreError, log::LogError};
    use herald_embedded::fleet::LocalFleet;
    use parking_lot::Mutex;

    use super::*;
    use crate::namesakes::testing::{Away, live};

    /// Runs a member whose runs end so, one after the other; how it ended, and how often it joined anew.
    async fn ends<const N: usize>(fleet: Arc<dyn Fleet>, ends: [anyhow::Result<()>; N]) -> (anyhow::Result<()>, u64) {
        stopped_after(usize::MAX, fleet, ends).await
    }

    /// The same, where the process is told to stop in the course of one of the runs.
    async fn stopped_after<const N: usize>(
        run: usize,
        fleet: Arc<dyn Fleet>,
        ends: [anyhow::Result<()>; N],
    ) -> (anyhow::Result<()>, u64) {
        let (shutdown, rejoins) = (CancellationToken::new(), Arc::<AtomicU64>::default());
        let joining = Joining {
            role: "worker",
            member: Member { ordinal: 0, count: 1 },
            process: "worker-0/mine".into(),
            fleet,
            rejoins: rejoins.clone(),
            shutdown: shutdown.clone(),
        };
        let left = Mutex::new(VecDeque::from(ends));
        let member = |_, _| {
            let mut left = left.lock();
            if N - left.len() == run {
                shutdown.cancel();
            }
            std::future::ready(left.pop_front().expect("it is not run again"))
        };
        let ended = joining.run(member).await;
        (ended, rejoins.load(Relaxed))
    }

    fn unknown() -> anyhow::Error {
        Halted::Unknown(LogError::Unavailable("no answer".into())).into()
    }

    fn fenced() -> anyhow::Error {
        Halted::Fenced.into()
    }

    fn alone() -> Arc<dyn Fleet> {
        Arc::new(LocalFleet::new())
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_fenced_or_does_not_know_joins_anew_and_is_counted() {
        for fleet in [alone(), Arc::new(Away)] {
            let (ended, rejoins) = ends(fleet, [Err(fenced()), Err(unknown()), Err(fenced()), Ok(())]).await;
            assert!(matches!((ended, rejoins), (Ok(()), 3)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_join_would_mend_ends_the_member() {
        let damaged = LogError::Damaged("a frame".into());
        let causes =
            [damaged.clone().into(), Halted::Unknown(damaged).into(), StoreError::Unavailable("away".into()).into()];
        for cause in causes {
            let (ended, rejoins) = ends(alone(), [Err(cause)]).await;
            assert!(ended.is_err() && rejoins == 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_fenced_by_a_namesake_does_not_fence_it_in_turn() {
        let fleet = alone();
        tokio::spawn(live("worker-0/other", fleet.clone()));
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (ended, _) = ends(fleet, [Err(fenced())]).await;
        assert!(ended.unwrap_err().to_string().contains("another process has the instance"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_forgives_a_member_that_was_fenced_and_not_one_that_does_not_know() {
        assert!(matches!(stopped_after(1, alone(), [Err(unknown()), Err(fenced())]).await, (Ok(()), 1)));
        let (ended, rejoins) = stopped_after(1, alone(), [Err(fenced()), Err(unknown())]).await;
        assert!(ended.unwrap_err().to_string().contains("a commit's outcome is unknown") && rejoins == 1);
    }
}
