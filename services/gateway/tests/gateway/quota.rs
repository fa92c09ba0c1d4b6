//! Tenants' quotas: what is refused is not accepted, and callers are told what is left.

use herald_proto::v1::{self, notifications_client::NotificationsClient};
use serde_json::{Value, json};
use tonic::{Code, transport::Channel};

use crate::world::{notification, world};

fn batch(count: usize) -> Value {
    json!({"notifications": vec![notification(); count]})
}

#[tokio::test]
async fn what_is_above_the_quota_is_refused_and_told_when_to_come_back() {
    let world = world();
    world.put_quota("acme", Some((0.5, 3)));
    let first = world.post("/v1/notify", notification()).await;
    assert_eq!(first.status, 202);
    assert_eq!(first.header("ratelimit-policy"), Some("\"notifications\";q=3;w=6"));
    assert_eq!(first.header("ratelimit"), Some("\"notifications\";r=2;t=2"));
    assert_eq!(world.post("/v1/notify:batch", batch(2)).await.header("ratelimit"), Some("\"notifications\";r=0;t=6"));

    let refused = world.post("/v1/notify", notification()).await;
    assert_eq!(refused.problem(), (429, "quota_exceeded", vec![]));
    assert_eq!(
        (refused.header("retry-after"), refused.header("ratelimit")),
        (Some("2"), Some("\"notifications\";r=0;t=6"))
    );
    let refused = world.post("/v1/notify:batch", batch(2)).await;
    assert_eq!((refused.problem().1, refused.header("retry-after")), ("quota_exceeded", Some("4")));
    assert_eq!(world.requests().await.len(), 3, "nothing of what was refused was accepted");

    let other = world.send("POST", "/v1/notify", "hk_other", &[], Some(notification())).await;
    assert_eq!((other.status.as_u16(), other.header("ratelimit")), (202, None), "it is one tenant's quota");
    world.advance(2_000);
    assert_eq!(world.post("/v1/notify", notification()).await.status, 202);
    assert_eq!(world.post("/v1/notify", notification()).await.status, 429);
    world.put_quota("acme", None);
    assert_eq!(world.post("/v1/notify", notification()).await.status, 202);
}

#[tokio::test]
async fn a_batch_that_never_fits_and_a_quota_of_nothing_are_refused_clearly() {
    let world = world();
    world.put_quota("acme", Some((1000.0, 3)));
    let refused = world.post("/v1/notify:batch", batch(4)).await;
    assert_eq!(refused.problem(), (422, "batch_above_quota", vec![]));
    assert_eq!(world.post("/v1/notify:batch", batch(3)).await.status, 200);
    world.put_quota("acme", Some((0.0, 3)));
    let refused = world.post("/v1/notify", notification()).await;
    assert_eq!((refused.problem().1, refused.header("retry-after")), ("quota_exceeded", Some("3600")));
    assert_eq!(world.requests().await.len(), 3);
}

#[tokio::test]
async fn grpc_refuses_and_tells_alike() {
    let world = world();
    world.put_quota("acme", Some((1.0, 1)));
    let address = world.listen().await;
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = NotificationsClient::with_interceptor(channel, |mut request: tonic::Request<()>| {
        request.metadata_mut().insert("authorization", "Bearer hk_acme".parse().unwrap());
        Ok(request)
    });
    let ask = || v1::NotifyRequest {
        template_id: "comment".into(),
        audience: Some(v1::Audience { users: vec!["u1".into()], ..Default::default() }),
        ..Default::default()
    };
    let accepted = client.notify(ask()).await.unwrap();
    assert_eq!(accepted.metadata().get("ratelimit").unwrap(), "\"notifications\";r=0;t=1");
    let refused = client.notify(ask()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.metadata().get("ratelimit").unwrap(), "\"notifications\";r=0;t=1");
    let mut results = client.notify_stream(futures::stream::iter([ask()])).await.unwrap().into_inner();
    assert_eq!(results.message().await.unwrap().unwrap().error.unwrap().code, "quota_exceeded");
    assert_eq!(world.requests().await.len(), 1);
}
