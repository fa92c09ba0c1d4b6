//! Every role is killed, a worker is stopped and continued, and the servers are away for a while, while notifications flow:
//! nothing is lost, and nothing is sent twice but what went unanswered. Modelled on Kafka's own test of transactions.
//!
//! `HERALD_TEST_NIGHTLY` makes it long: ten times the notifications, and every role is killed three times.

use std::{sync::Arc, time::Duration};

use super::{
    SERVERS,
    installation::{Installation, Running, Server},
};
use crate::{
    kill::IN_DOUBT,
    support::{Chance, seed},
    traffic::{Mails, PEOPLE, Traffic, prove},
};

/// Longer than a member may be silent before its partitions go to others.
const STOPPED: Duration = Duration::from_secs(8);
/// How long a server is away.
const AWAY: Duration = Duration::from_secs(10);

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
    let rounds = if std::env::var_os("HERALD_TEST_NIGHTLY").is_some() { 3 } else { 1 };
    let chance = Arc::new(Chance::new(seed()));
    let installation = Arc::new(Installation::new());
    let mails = Mails::start().await;
    let mut places = places(&mails);
    for place in &mut places {
        place.start(&installation).await;
    }
    let clients: Vec<_> = places[..2].iter().map(|place| place.running.as_ref().unwrap().client()).collect();
    clients[0].clone().set_up(PEOPLE).await;

    let traffic = Traffic::of(if rounds == 1 { 10_000 } else { 100_000 });
    let harm = tokio::spawn(harm(places, rounds, installation.clone(), traffic.clone(), chance.clone()));
    let accepted = traffic.send(&clients, &chance).await;
    let places = harm.await.unwrap();
    let mut client = places[0].running.as_ref().unwrap().client();
    // Two workers, each killed and one stopped once a round, leave what they had in hand unanswered.
    prove(&mut client, &accepted, &mails, IN_DOUBT * 3 * rounds).await;
}

/// Does everything that may happen, one after the other, evenly over the traffic.
async fn harm(
    mut places: Vec<Place>,
    rounds: u64,
    installation: Arc<Installation>,
    traffic: Arc<Traffic>,
    chance: Arc<Chance>,
) -> Vec<Place> {
    let servers = [Server::Redis, Server::Cassandra, Server::Kafka];
    let events = rounds * (places.len() + 1 + servers.len()) as u64;
    let share = traffic.notifications / (events + 1);
    let mut event = 0;
    let mut next = async || {
        event += 1;
        traffic.reaches(share * (event - 1) + chance.below(share)).await;
    };
    for _ in 0..rounds {
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
        for server in servers {
            next().await;
            println!("{server:?} is away");
            let _away = server.away();
            tokio::time::sleep(AWAY).await;
        }
    }
    places
}
