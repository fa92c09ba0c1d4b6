//! What only gRPC has: health, reflection, and statuses.

use std::sync::Arc;

use herald_core::{policy::kind, record::Control};
use herald_gateway::{Config, live::LiveConfig};
use herald_proto::v1::{
    self, inbox_client::InboxClient, notifications_client::NotificationsClient, users_client::UsersClient,
};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::world::{TestWorld, world, world_with};

async fn connect(world: &TestWorld) -> Channel {
    let address = world.listen().await;
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn health_says_no_before_the_drain() {
    let world = world();
    let channel = connect(&world).await;
    let mut health = HealthClient::new(channel);
    let ask = |service: &str| HealthCheckRequest { service: service.into() };
    let answer = health.check(ask("herald.v1.Notifications")).await.unwrap().into_inner();
    assert_eq!(answer.status, 1);
    let mut watch = health.watch(ask("herald.v1.Users")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
    world.shutdown.cancel();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 2);
}

#[tokio::test]
async fn the_api_describes_itself() {
    let world = world();
    let mut client = ServerReflectionClient::new(connect(&world).await);
    let ask = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut answers = client.server_reflection_info(futures::stream::iter([ask])).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!()
    };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"herald.v1.Notifications") && names.contains(&"herald.v1.Users"), "{names:?}");
}

#[tokio::test]
async fn people_have_the_same_face_on_grpc() {
    let world = world();
    let mut users = UsersClient::new(connect(&world).await);
    let call = |key: &str, message: v1::PutUserRequest| {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        request
    };
    let user = v1::PutUserRequest { user_id: "u".into(), locale: Some("de".into()), ..Default::default() };
    assert_eq!(users.put_user(call("hk_acme", user.clone())).await.unwrap().into_inner().version, 1);
    assert_eq!(world.get("/v1/users/u").await.body["locale"], "de");
    let code = |result: Result<tonic::Response<v1::User>, tonic::Status>| result.unwrap_err().code();
    assert_eq!(code(users.put_user(call("hk_plain", user.clone())).await), Code::PermissionDenied);
    assert_eq!(code(users.put_user(call("hk_x", user.clone())).await), Code::Unauthenticated);
    let stale = v1::PutUserRequest { version: Some(7), ..user.clone() };
    assert_eq!(code(users.put_user(call("hk_acme", stale)).await), Code::Aborted);
    let get = |key: &str| {
        let mut request = tonic::Request::new(v1::GetUserRequest { user_id: "u".into() });
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        request
    };
    assert_eq!(code(users.get_user(get("hk_other")).await), Code::NotFound);
    let mut raw = tonic::client::Grpc::new(connect(&world).await);
    raw.ready().await.unwrap();
    let codec: tonic_prost::ProstCodec<v1::GetUserRequest, v1::User> = tonic_prost::ProstCodec::default();
    let path = http::uri::PathAndQuery::from_static("/herald.v1.Nothing/Call");
    let answer = raw.unary(get("hk_acme"), path, codec).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_live_stream_ends_with_its_key_and_with_the_gateway() {
    let live = LiveConfig { check_interval_ms: 20, ..LiveConfig::default() };
    let world = world_with(Config { live, ..Config::default() });
    let mut inbox = InboxClient::new(connect(&world).await);
    let watch = |key: &str| {
        let mut request = tonic::Request::new(v1::WatchInboxRequest { user_id: "u".into(), last_event_id: None });
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        request
    };
    let mut revoked = inbox.watch_inbox(watch("hk_acme")).await.unwrap();
    assert!(revoked.metadata().get("herald-event-id").is_some(), "a client can resume before the first item");
    let mut kept = inbox.watch_inbox(watch("hk_other")).await.unwrap().into_inner();
    let control =
        Control { kind: kind::KEY.into(), key: "acme".into(), version: 2, deleted: true, ..Default::default() };
    world.policy.send_modify(|policy| Arc::make_mut(policy).apply(&control).unwrap());
    assert_eq!(revoked.get_mut().message().await.unwrap_err().code(), Code::Unauthenticated);
    world.shutdown.cancel();
    assert_eq!(kept.message().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn who_is_not_known_is_refused_before_the_message_is_read() {
    let world = world();
    let channel = connect(&world).await;
    let notify = async |key: &str| {
        let mut raw = tonic::client::Grpc::new(channel.clone());
        raw.ready().await.unwrap();
        // On the wire this is a batch of one notification that breaks off.
        let mut request = tonic::Request::new(bytes::Bytes::from_static(b"\x0a\xff"));
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        let codec: tonic_prost::ProstCodec<bytes::Bytes, v1::NotifyBatchResponse> = tonic_prost::ProstCodec::default();
        let path = http::uri::PathAndQuery::from_static("/herald.v1.Notifications/NotifyBatch");
        raw.unary(request, path, codec).await.unwrap_err()
    };
    assert_eq!(notify("hk_acme").await.code(), Code::Internal, "the message is read, and is none");
    let refused = notify("hk_nobody").await;
    assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "There is no such key."));
}

#[tokio::test]
async fn a_batch_of_very_many_is_refused_before_it_is_decoded() {
    let world = world();
    let mut client = NotificationsClient::new(connect(&world).await);
    for (items, said) in [(1 << 16, "at most 1000"), ((1 << 16) + 1, "more than 65536 fields")] {
        let batch = v1::NotifyBatchRequest { notifications: vec![v1::NotifyRequest::default(); items] };
        let mut request = tonic::Request::new(batch);
        request.metadata_mut().insert("authorization", "Bearer hk_acme".parse().unwrap());
        let refused = client.notify_batch(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(format!("{refused:?}").contains(said), "{items}: {refused:?}");
    }
}
