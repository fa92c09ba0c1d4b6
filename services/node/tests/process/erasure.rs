//! An erasure goes on after the process was killed, and what was queued is not sent.

use std::time::{Duration, Instant};

use herald_proto::v1::{
    DeleteUserRequest, Edge, FollowRequest, GetErasureRequest, GetUserRequest, ListReceiptsRequest, ListUsersRequest,
    NotifyRequest,
};
use pbjson_types::Timestamp;

use crate::support::{Client, PATIENCE, Setup, notification, user};

const PEOPLE: u64 = 40;
/// Long enough for the process to be killed and started again in between.
const AHEAD: Duration = Duration::from_secs(8);

fn after(wait: Duration) -> Timestamp {
    let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap() + wait;
    Timestamp { seconds: at.as_secs() as i64, nanos: 0 }
}

async fn complete(client: &mut Client, erasure_id: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = GetErasureRequest { erasure_id: erasure_id.to_owned() };
        let erasure = client.users.get_erasure(request).await.unwrap().into_inner();
        if erasure.state == "complete" {
            assert!(erasure.completed_at.is_some() && erasure.log_gone_at.is_some());
            return;
        }
        assert!(Instant::now() < deadline, "the erasure does not complete: {erasure:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_erasure_survives_sigkill_and_stops_what_is_queued() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let process = setup.start().await;
    let mut client = process.client().await;
    client.set_up(PEOPLE).await;
    let (gone, star) = (user(1), user(0));
    let edges: Vec<Edge> = (1..PEOPLE).map(|number| Edge { follower: user(number), followee: star.clone() }).collect();
    let back = Edge { follower: star.clone(), followee: gone.clone() };
    client.users.follow(FollowRequest { edges: edges.into_iter().chain([back]).collect() }).await.unwrap();
    let sent = client.notify(vec![notification("before", vec![gone.clone(), user(2)])]).await.unwrap();
    let before = sent[0].request_id.clone().unwrap();
    client.settled(&before).await;
    let waiting = NotifyRequest { send_at: Some(after(AHEAD)), ..notification("waiting", vec![gone.clone(), user(2)]) };
    let waiting = client.notify(vec![waiting]).await.unwrap()[0].request_id.clone().unwrap();

    let erase = || DeleteUserRequest { user_id: gone.clone() };
    let erasure = client.users.delete_user(erase()).await.unwrap().into_inner().erasure_id;
    process.kill();
    let _process = setup.start().await;
    let again = client.users.delete_user(erase()).await.unwrap().into_inner().erasure_id;
    assert_eq!(again, erasure, "it runs already");
    complete(&mut client, &erasure).await;

    let profile = client.users.get_user(GetUserRequest { user_id: gone.clone() }).await;
    assert_eq!(profile.unwrap_err().code(), tonic::Code::NotFound);
    let all = ListUsersRequest { page_size: Some(1_000), page_token: None };
    let users = client.users.list_users(all).await.unwrap().into_inner().users;
    assert_eq!(users.len() as u64, PEOPLE - 1);
    assert!(client.inbox_of(&gone).await.is_empty() && !client.inbox_of(&user(2)).await.is_empty());

    let status = client.settled(&waiting).await.instances.unwrap();
    assert_eq!((status.delivered, status.suppressed.get("erased")), (2, Some(&2)), "{status:?}");
    let followed = NotifyRequest {
        audience: Some(herald_proto::v1::Audience { followers_of: Some(star), ..Default::default() }),
        ..notification("followers", Vec::new())
    };
    let followed = client.notify(vec![followed]).await.unwrap()[0].request_id.clone().unwrap();
    let status = client.settled(&followed).await;
    assert_eq!(status.recipients.unwrap().expanded as u64, PEOPLE - 2, "nobody follows in the name of the erased");

    let of_person = ListReceiptsRequest { user_id: Some(gone.clone()), ..Default::default() };
    assert!(client.notifications.list_receipts(of_person).await.unwrap().into_inner().receipts.is_empty());
    let of_request = ListReceiptsRequest { request_id: Some(before), ..Default::default() };
    let receipts = client.notifications.list_receipts(of_request).await.unwrap().into_inner().receipts;
    assert_eq!(receipts.len(), 4, "the books stay whole");
    assert!(receipts.iter().all(|receipt| receipt.user_id != gone), "{receipts:?}");
}
