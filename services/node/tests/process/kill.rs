//! SIGKILL at random moments: what was accepted arrives, in the inbox exactly once, in the mail within the in-doubt
//! window.

use std::{sync::Arc, time::Duration};

use crate::{
    support::{Chance, Process, Setup, seed},
    traffic::{Mails, PEOPLE, Traffic, prove},
};

const NOTIFICATIONS: u64 = 20_000;
const KILLS: u64 = 5;

/// The default of `worker.in_doubt_instances`.
pub const IN_DOUBT: u64 = 1_024;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_accepted_arrives_although_the_process_is_killed() {
    let chance = Arc::new(Chance::new(seed()));
    let directory = tempfile::tempdir().unwrap();
    let mails = Mails::start().await;
    let mut setup = Setup::new(&directory.path().join("data"));
    setup.smtp = Some(mails.url.clone());

    let process = setup.start().await;
    process.client().await.set_up(PEOPLE).await;
    let traffic = Traffic::of(NOTIFICATIONS);
    let killer = tokio::spawn(kill_at_random(process, setup.clone(), traffic.clone(), chance.clone()));
    let accepted = traffic.send(&[setup.client().await], &chance).await;
    let process = killer.await.unwrap();
    prove(&mut process.client().await, &accepted, &mails, IN_DOUBT * KILLS).await;
}

/// Kills the process at random shares of the way and starts it again.
async fn kill_at_random(mut process: Process, setup: Setup, traffic: Arc<Traffic>, chance: Arc<Chance>) -> Process {
    for kill in 0..KILLS {
        let share = NOTIFICATIONS / (KILLS + 1);
        traffic.reaches(share * kill + chance.below(share)).await;
        tokio::time::sleep(Duration::from_millis(chance.below(20))).await;
        process.kill();
        process = setup.start().await;
    }
    process
}
