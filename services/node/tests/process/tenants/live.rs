//! Live feeds of a user id that two tenants have: each hears its own tenant's items and no other's.

use std::net::SocketAddr;

use futures::StreamExt;
use herald_proto::v1::{InboxItem, WatchInboxRequest};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};
use tonic::Streaming;

use super::world::{World, text};
use crate::support::{PATIENCE, Setup, client_with};

/// An open feed.
enum Feed {
    Grpc(Box<Streaming<InboxItem>>),
    Socket(Box<WebSocketStream<TcpStream>>),
}

impl Feed {
    /// The title of the next item.
    async fn next(&mut self) -> String {
        let next = async {
            match self {
                Self::Grpc(stream) => stream.message().await.unwrap().unwrap().title,
                Self::Socket(socket) => loop {
                    if let Message::Text(frame) = socket.next().await.unwrap().unwrap() {
                        let item: Value = serde_json::from_str(&frame).unwrap();
                        break text(&item["title"]);
                    }
                },
            }
        };
        timeout(PATIENCE, next).await.unwrap_or_else(|_| panic!("no item comes"))
    }

    /// The titles of all items up to one of this title.
    async fn up_to(&mut self, last: &str) -> Vec<String> {
        let mut titles = Vec::new();
        while titles.last().is_none_or(|title| title != last) {
            titles.push(self.next().await);
        }
        titles
    }
}

/// Opens the feed of a tenant's user `same` on both faces, from where it is or from a place.
async fn feeds(port: u16, key: &str, from: Option<&str>) -> [Feed; 2] {
    let asked = WatchInboxRequest { user_id: "same".to_owned(), last_event_id: from.map(str::to_owned) };
    let stream = client_with(port, key).inbox.watch_inbox(asked).await.unwrap().into_inner();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let query = from.map(|from| format!("?last_event_id={from}")).unwrap_or_default();
    let mut request = format!("ws://{address}/v1/users/same/live{query}").into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    let (socket, _) = client_async(request, TcpStream::connect(address).await.unwrap()).await.unwrap();
    [Feed::Grpc(Box::new(stream)), Feed::Socket(Box::new(socket))]
}

/// Sends an item to a tenant's user `same`.
async fn send_item(world: &World, key: &str, title: &str) {
    let notify = json!({"template_id": "note", "audience": {"users": ["same"]}, "data": {"title": title}});
    world.by(key, "POST", "/v1/notify", Some(notify)).await;
}

#[tokio::test]
async fn live_feeds_of_two_tenants_with_the_same_user_are_apart() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let _process = setup.start().await;
    let world = World::of_two(&setup).await;
    let (demo, other) = ("hk_dev_demo", world.other.as_str());
    for key in [demo, other] {
        let template = json!({"channels": {"in_app": {"title": "{{data.title}}"}}});
        world.by(key, "PUT", "/v1/templates/note", Some(template)).await;
        world.by(key, "PUT", "/v1/users/same", Some(json!({"locale": "en"}))).await;
    }
    let (mut of_demo, mut of_other) = (feeds(setup.port, demo, None).await, feeds(setup.port, other, None).await);

    // What comes first of all to the other tenant's feeds is its own, although another tenant's item came to its feeds before.
    let rounds = [(demo, "demo 1"), (other, "other 1"), (demo, "demo 2"), (other, "other 2")];
    for (key, title) in rounds {
        send_item(&world, key, title).await;
        for feed in if key == demo { &mut of_demo } else { &mut of_other } {
            assert_eq!(feed.next().await, title);
        }
    }
    // Nor has the stored feed anything of another's: from the beginning, and from an item of another's.
    let inbox = world.until(demo, "/v1/users/same/inbox", |inbox| inbox["items"][1]["title"] == "demo 1").await;
    let of_another = text(&inbox["items"][1]["event_id"]);
    let from_the_beginning = feeds(setup.port, other, Some("0-0-0")).await;
    let from_anothers = feeds(setup.port, other, Some(&of_another)).await;
    send_item(&world, demo, "demo 3").await;
    for feed in &mut of_demo {
        assert_eq!(feed.next().await, "demo 3");
    }
    send_item(&world, other, "other 3").await;
    for mut feed in of_other {
        assert_eq!(feed.next().await, "other 3");
    }
    for mut feed in from_the_beginning {
        assert_eq!(feed.up_to("other 3").await, ["other 1", "other 2", "other 3"]);
    }
    for mut feed in from_anothers {
        let titles = feed.up_to("other 3").await;
        assert!(titles.iter().all(|title| title.starts_with("other")), "{titles:?}");
    }
    send_item(&world, demo, "demo 4").await;
    for mut feed in of_demo {
        assert_eq!(feed.next().await, "demo 4");
    }
}
