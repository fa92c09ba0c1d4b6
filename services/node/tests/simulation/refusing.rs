//! A mail provider that refuses three of ten as too much and says when to come back: how often it is asked, and whom it
//! delays. On paused time times are exact, so they are compared.

use std::time::Duration;

use herald_core::{ports::ledger::ReceiptScope, record::Channel};

use crate::pacing::{Mood, Node, run};

/// A tenant that sends much, one that has a provider of its own, and one that sends a little by the same provider as the first.
const MUCH: usize = 0;
const APART: usize = 1;
const LITTLE: usize = 2;

const USERS: usize = 10;

/// What came of a run.
#[derive(Debug)]
struct Came {
    /// By everybody's provider.
    mails: usize,
    attempts: usize,
    /// The 99th percentile from acceptance to the outcome, in milliseconds: in-app of each tenant, and mail of each.
    in_app_ms: [u64; 3],
    mail_ms: [u64; 3],
}

/// Has everybody's provider be sent 100 mails a second for a while, in a mood, and the other one 20.
fn sent_for(seconds: usize, mood: Mood) -> Came {
    run(async || {
        let mut node = Node::start(3, USERS, Vec::new()).await;
        node.has_its_own_provider(APART).await;
        node.is_now(mood);
        let mut due = tokio::time::interval(Duration::from_millis(100));
        for tick in 0..seconds * 10 {
            due.tick().await;
            node.send_to_all(if tick % 10 == 9 { LITTLE } else { MUCH }, 1).await;
            if tick % 5 == 0 {
                node.send_to_all(APART, 1).await;
            }
        }
        node.all_taken(Duration::from_secs(3_600)).await;
        // What was taken last is booked by then.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let (mut in_app_ms, mut mail_ms) = ([0; 3], [0; 3]);
        for tenant in [MUCH, APART, LITTLE] {
            in_app_ms[tenant] = slowest_of_a_hundred(&node, tenant, Channel::InApp).await;
            mail_ms[tenant] = slowest_of_a_hundred(&node, tenant, Channel::Email).await;
        }
        Came { mails: seconds * 10 * USERS, attempts: node.attempts(), in_app_ms, mail_ms }
    })
}

/// The 99th percentile of a tenant's messages by a channel, from acceptance to the outcome.
async fn slowest_of_a_hundred(node: &Node, tenant: usize, channel: Channel) -> u64 {
    let mut took_ms = Vec::new();
    let sent = node.sent.iter().filter(|(of, _)| *of == node.tenants[tenant]);
    for (tenant, id) in sent {
        let page = node.backends.ledger.receipts(tenant, &ReceiptScope::Request(*id), None, 4 * USERS).await.unwrap();
        let rows = page.unwrap().items;
        assert_eq!(rows.len(), 2 * USERS, "every message has a receipt");
        let of_channel = rows.iter().filter(|row| row.shared.channel() == channel);
        took_ms.extend(of_channel.map(|row| row.shared.ended_ms - row.shared.accepted_ms));
    }
    took_ms.sort_unstable();
    took_ms[took_ms.len() * 99 / 100]
}

/// Nobody waits a fifth longer beside it: in-app of those who send by it, and both of who has a provider of its own.
fn delays_nobody_else(came: &Came, well: &Came) {
    let others = came.in_app_ms.into_iter().zip(well.in_app_ms).chain([(came.mail_ms[APART], well.mail_ms[APART])]);
    for (beside_ms, well_ms) in others {
        assert!(beside_ms * 10 <= well_ms * 12, "{came:?} beside it, and {well:?} beside one that is well");
    }
}

/// Of a hundred a second it takes seventy: it is sent that, and what it takes is shared.
#[test]
fn a_provider_that_takes_seven_of_ten_is_asked_little_more_and_delays_nobody_else() {
    let (well, busy) = (sent_for(60, Mood::Up), sent_for(60, Mood::Throttles(70)));
    println!("{well:?}\n{busy:?}");
    assert_eq!(well.attempts, well.mails);
    assert!(busy.attempts > busy.mails && busy.attempts * 10 <= busy.mails * 11, "{busy:?}");
    delays_nobody_else(&busy, &well);
}

/// Whatever it is sent, it refuses three of ten. Each mail must be taken in the end, so whoever asks asks 1 / 0.7 = 1.43 times
/// for each; nobody is asked more, and nobody else is delayed.
#[test]
fn a_provider_that_refuses_three_of_ten_at_random_is_asked_no_oftener_than_must_be_and_delays_nobody_else() {
    let (well, picky) = (sent_for(6, Mood::Up), sent_for(6, Mood::RefusesSome(Some(Duration::from_secs(1)))));
    println!("{well:?}\n{picky:?}");
    assert!((142..=144).contains(&(picky.attempts * 100 / picky.mails)), "{picky:?}");
    delays_nobody_else(&picky, &well);
}
