//! Every role is killed, a worker is stopped and continued, and the servers are away for a while, while notifications flow:
//! nothing is lost, and nothing is sent twice but what went unanswered. Modelled on Kafka's own test of transactions.
//!
//! `HERALD_TEST_NIGHTLY` makes it long: ten times the notifications (or `HERALD_TEST_NOTIFICATIONS`), everything happens three
//! times, and the log is on three brokers, of which one is stopped and one is killed while the other two go on.

use std::{sync::Arc, time::Duration};

use super::{
    SERVERS,
    installation::{End, Installation, Running, Server, ThreeBrokers},
};
use crate::{
    kill::IN_DOUBT,
    support::{Chance, Client, PATIENCE, notification, seed},
    traffic::{Mails, PEOPLE, Traffic, prove},
};

/// Longer than a member may be silent before its partitions go to others.
const STOPPED: Duration = Duration::from_secs(8);
/// How long a server is away.
const AWAY: Duration = Duration::from_secs(10);

/// How much there is to come through.
struct Length {
    notifications: u64,
    /// How often everything happens.
    rounds: u64,
    /// Whether the log is on three brokers.
    three_brokers: bool,
}

impl Length {
    fn of_environment() -> Self {
        if std::env::var_os("HERALD_TEST_NIGHTLY").is_none() {
            return Self { notifications: 10_000, rounds: 1, three_brokers: false };
        }
        let notifications =
            std::env::var("HERALD_TEST_NOTIFICATIONS").map_or(100_000, |number| number.parse().unwrap());
        Self { notifications, rounds: (notifications / 33_000).max(1), three_brokers: true }
    }
}

/// A process that is started again under the same name.
struct Place {
    name: &'static str,
    mail: String,
    running: Option<Running>,
}

impl Place {
    async fn start(&mut self, installation: &Installation) {
        self.running = Some(installation.start_role(self.name, &[&self.mail, "instances=2"]).await);
    }

    fn take(&mut self) -> Running {
        self.running.take().unwrap()
    }
}

fn places(mails: &Mails) -> Vec<Place> {
    let names =
        ["front-0", "front-1", "ledger-0", "ledger-1", "orchestrator-0", "orchestrator-1", "worker-0", "worker-1"];
    let mail = format!("email.url={}", mails.url);
    names.map(|name| Place { name, mail: mail.clone(), running: None }).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_arrives_although_roles_are_killed_and_servers_are_away() {
    let _alone = SERVERS.write().await;
    let length = Length::of_environment();
    let brokers = length.three_brokers.then(ThreeBrokers::start);
    let chance = Arc::new(Chance::new(seed()));
    let installation = Arc::new(if brokers.is_some() { Installation::on_three_brokers() } else { Installation::new() });
    let mails = Mails::start().await;
    let mut places = places(&mails);
    for place in &mut places {
        place.start(&installation).await;
    }
    let clients: Vec<_> = places[..2].iter().map(|place| place.running.as_ref().unwrap().client()).collect();
    clients[0].clone().set_up(PEOPLE).await;

    let traffic = Traffic::of(length.notifications);
    let rounds = length.rounds;
    let harm = tokio::spawn(harm(places, length, installation.clone(), traffic.clone(), chance.clone()));
    let accepted = traffic.send(&clients, &chance).await;
    let places = harm.await.unwrap();
    let mut client = places[0].running.as_ref().unwrap().client();
    // Two workers, each killed and one stopped once a round, leave what they had in hand unanswered.
    prove(&mut client, &accepted, &mails, IN_DOUBT * 3 * rounds).await;
}

/// Returns once a call is accepted. It is to nobody, so nothing of it arrives anywhere.
async fn is_accepted(mut client: Client, key: &str) {
    loop {
        let answer = client.notify(vec![notification(key, vec!["nobody".into()])]).await;
        if answer.is_ok_and(|results| results.iter().all(|result| result.request_id.is_some())) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Does everything that may happen, one after the other, evenly over the traffic.
async fn harm(
    mut places: Vec<Place>,
    length: Length,
    installation: Arc<Installation>,
    traffic: Arc<Traffic>,
    chance: Arc<Chance>,
) -> Vec<Place> {
    let kafka = if length.three_brokers { Server::ThreeBrokers } else { Server::Kafka };
    let servers = [Server::Redis, Server::Cassandra, kafka];
    let ends: &[End] = if length.three_brokers { &[End::Stopped, End::Killed] } else { &[] };
    let events = length.rounds * (places.len() + 1 + servers.len() + ends.len()) as u64;
    let share = traffic.notifications / (events + 1);
    let mut event = 0;
    let mut next = async || {
        event += 1;
        traffic.reaches(share * (event - 1) + chance.below(share)).await;
    };
    for round in 0..length.rounds {
        for place in &mut places {
            next().await;
            println!("{} is killed", place.name);
            place.take().kill();
            place.start(&installation).await;
        }
        next().await;
        println!("a worker is stopped and continued");
        let stopped = places.last().unwrap().running.as_ref().unwrap();
        stopped.signal("STOP");
        tokio::time::sleep(STOPPED).await;
        stopped.signal("CONT");
        for end in ends {
            next().await;
            let number = 1 + chance.below(3);
            ThreeBrokers::end(number, *end).await;
            println!("broker {number} of three is {end:?}");
            tokio::time::sleep(AWAY).await;
            let call = format!("{round}-{end:?}");
            let taken = is_accepted(places[0].running.as_ref().unwrap().client(), &call);
            assert!(tokio::time::timeout(PATIENCE, taken).await.is_ok(), "two brokers of three take nothing");
            ThreeBrokers::start_again(number).await;
        }
        for server in servers {
            next().await;
            println!("{server:?} is away");
            let _away = server.away();
            tokio::time::sleep(AWAY).await;
        }
    }
    places
}
