//! Two versions of the program side by side on one log: on paused time, without other faults.

use std::{collections::BTreeSet, time::Duration};

use herald_control_plane::levels::{NotRaised, raise};
use herald_core::{
    books::Totals,
    ports::log::{LogError, partition},
    topic::Topic,
};
use herald_embedded::fleet::LocalFleet;
use herald_node::{
    backends::Backends,
    roles::{Config, Place, Roles},
};

use crate::fan_out::{FanOut, USERS, email};

const OLD: u32 = 1;
const NEW: u32 = 2;

/// One of two processes.
fn process(name: &str, number: u32) -> Config {
    Config { place: Place { number, of: 2 }, process: name.into(), ..Config::default() }
}

async fn raised(by: &Backends, roles: &Roles, fan_out: &FanOut) -> Result<bool, NotRaised> {
    let policy = roles.policy.borrow().clone();
    raise(NEW, &policy, &*by.log, &*by.fleet, &fan_out.world).await
}

/// The levels of everything that is on the log now.
async fn levels(fan_out: &FanOut) -> BTreeSet<u32> {
    let mut levels = BTreeSet::new();
    for topic in Topic::all() {
        for number in 0..fan_out.log.identity().layout.partitions(topic) {
            let mut from = 0;
            loop {
                let (records, next) = fan_out.log.read(partition(topic, number), from, 1_000).await.unwrap();
                levels.extend(records.iter().map(|record| record.envelope.feature_level));
                if next == from {
                    break;
                }
                from = next;
            }
        }
    }
    levels
}

/// Why a process stopped by itself.
async fn stopped(roles: Roles) -> LogError {
    roles.failed.cancelled().await;
    let error = roles.stop(Duration::from_secs(10)).await.unwrap_err();
    error.downcast().unwrap_or_else(|error| panic!("{error:#}"))
}

#[tokio::test(start_paused = true)]
async fn the_level_rises_when_the_old_version_has_gone_and_it_does_not_come_back() {
    let mut fan_out = FanOut::start_as(&process("old-0", 0), OLD).await;
    let (new_backends, new_roles) = fan_out.join(&process("new-1", 1), NEW).await.unwrap();

    // Side by side: each serves its shards, and writes what the other can read.
    let first = fan_out.to_everyone().await;
    fan_out.until("it runs", first, |totals| totals.channels.len() == 2 && email(totals).delivered > 500).await;
    let refused = raised(&new_backends, &new_roles, &fan_out).await.unwrap_err();
    assert!(refused.to_string().contains("old-0 (1)") && !refused.to_string().contains("new-1"), "{refused}");
    let second = fan_out.to_everyone().await;
    fan_out.until("it runs", second, |totals| totals.channels.len() == 2 && email(totals).delivered > 0).await;
    assert_eq!(levels(&fan_out).await, [OLD].into());

    // The old one is replaced.
    let (backends, roles) = fan_out.join(&process("new-0", 0), NEW).await.unwrap();
    std::mem::replace(&mut fan_out.roles, roles).stop(Duration::from_secs(10)).await.unwrap();
    fan_out.backends = backends;
    assert!(raised(&new_backends, &new_roles, &fan_out).await.unwrap());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let third = fan_out.to_everyone().await;
    fan_out.until("it runs", third, |totals| totals.channels.len() == 2 && email(totals).delivered > 0).await;
    assert_eq!(levels(&fan_out).await, [OLD, NEW].into());

    let back = fan_out.join(&process("old-0", 0), OLD).await.err().unwrap();
    assert!(matches!(back.downcast_ref(), Some(LogError::TooNew(_))), "{back:#}");
    assert!(format!("{back:#}").contains("this process must run a newer version"), "{back:#}");

    for id in [first, second, third] {
        let totals = fan_out.until("everything is out", id, Totals::settled).await;
        assert_eq!(email(&totals).delivered, USERS as u64);
    }
    let (mails, instances) = fan_out.mails();
    assert_eq!(instances, 3 * USERS);
    // What the old one was sending when its place was taken.
    assert!(mails <= instances as u64 + 1_024, "{mails} mails for {instances}");
    new_roles.stop(Duration::from_secs(10)).await.unwrap();
    fan_out.stop().await;
}

/// It was silent for a minute, so nobody knew that it still runs.
#[tokio::test(start_paused = true)]
async fn an_old_process_that_was_overlooked_stops_when_the_level_is_raised() {
    let mut fan_out = FanOut::start_as(&process("new-0", 0), NEW).await;
    let new_fleet = std::mem::replace(&mut fan_out.backends.fleet, std::sync::Arc::new(LocalFleet::new()));
    let (old_backends, old_roles) = fan_out.join(&process("old-1", 1), OLD).await.unwrap();
    fan_out.backends.fleet = new_fleet;
    let first = fan_out.to_everyone().await;
    fan_out.until("it runs", first, |totals| totals.channels.len() == 2 && email(totals).delivered > 500).await;
    assert!(raised(&fan_out.backends, &fan_out.roles, &fan_out).await.unwrap());
    let error = tokio::time::timeout(Duration::from_secs(2), stopped(old_roles)).await.expect("it goes on");
    assert!(matches!(&error, LogError::TooNew(_)), "{error}");
    assert!(old_backends.levels.refused().is_some());
    replaced_and_settled(&fan_out, &[first]).await;
    fan_out.stop().await;
}

/// Records may come before the news that the level was raised.
#[tokio::test(start_paused = true)]
async fn a_record_of_a_higher_level_is_left_for_those_who_can_read_it() {
    let fan_out = FanOut::start_as(&process("new-0", 0), NEW).await;
    let (_, old_roles) = fan_out.join(&process("old-1", 1), OLD).await.unwrap();
    let first = fan_out.to_everyone().await;
    fan_out.until("it runs", first, |totals| totals.channels.len() == 2 && email(totals).delivered > 500).await;
    // A gateway that knows it already.
    fan_out.backends.levels.reached(NEW).unwrap();
    let second = fan_out.to_everyone().await;
    let error = tokio::time::timeout(Duration::from_secs(60), stopped(old_roles)).await.expect("it goes on");
    let LogError::TooNew(too_new) = &error else { panic!("{error}") };
    assert!(too_new.what.starts_with("the record ") && (too_new.level, too_new.reads) == (NEW, OLD), "{too_new}");
    replaced_and_settled(&fan_out, &[first, second]).await;
    fan_out.stop().await;
}

/// A new process takes the place of an old one that stopped, and everything ends once.
async fn replaced_and_settled(fan_out: &FanOut, sent: &[herald_core::ids::NotificationId]) {
    let (backends, roles) = fan_out.join(&process("new-1", 1), NEW).await.unwrap();
    for id in sent {
        let totals = fan_out.until("everything is out", *id, Totals::settled).await;
        assert_eq!(email(&totals).delivered, USERS as u64);
    }
    let (letters, _) = backends.log.read(partition(Topic::Dead, 0), 0, 10).await.unwrap();
    assert!(letters.is_empty(), "{letters:?}");
    let (mails, instances) = fan_out.mails();
    assert_eq!(instances, sent.len() * USERS);
    assert!(mails <= instances as u64 + 1_024, "{mails} mails for {instances}");
    roles.stop(Duration::from_secs(10)).await.unwrap();
}
