//! The gRPC face.

mod inbox;
pub mod notifications;
mod users;

use axum::{Router, middleware::from_fn_with_state};
use herald_api::{
    auth::{Authenticated, known_first},
    descriptors,
    request_id::RequestId,
    status::status,
};
use herald_core::problem::Problem;
use herald_proto::v1::{
    inbox_server::InboxServer, notifications_server::NotificationsServer, users_server::UsersServer,
};
use http::{Extensions, HeaderMap};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, metadata::MetadataMap};
use tonic_health::ServingStatus;

use crate::service::Gateway;

/// The routes of every service that the gateway serves.
pub fn routes(gateway: &Gateway) -> Router {
    let (max, max_batch) = (gateway.config.max_body_bytes, gateway.config.max_batch_body_bytes);
    let notifications = NotificationsServer::new(gateway.clone()).max_decoding_message_size(max_batch);
    let users = UsersServer::new(gateway.clone()).max_decoding_message_size(max_batch);
    let inbox = InboxServer::new(gateway.clone()).max_decoding_message_size(max);
    Router::new()
        .route_service("/herald.v1.Notifications/{rpc}", notifications)
        .route_service("/herald.v1.Users/{rpc}", users)
        .route_service("/herald.v1.Inbox/{rpc}", inbox)
        .route_layer(from_fn_with_state(gateway.authenticator.clone(), known_first))
}

/// The health service, and reflection of the whole API. Health says NOT_SERVING from shutdown on.
///
/// # Errors
/// Where the descriptors cannot be read, which is a fault of the build.
pub async fn infrastructure(shutdown: CancellationToken) -> anyhow::Result<Router> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let names: Vec<String> = descriptors::services().map(|service| service.full_name().to_owned()).collect();
    for name in &names {
        reporter.set_service_status(name, ServingStatus::Serving).await;
    }
    tokio::spawn(async move {
        shutdown.cancelled().await;
        for name in names.iter().map(String::as_str).chain([""]) {
            reporter.set_service_status(name, ServingStatus::NotServing).await;
        }
    });
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(herald_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Router::new()
        .route_service("/grpc.health.v1.Health/{rpc}", health)
        .route_service("/grpc.reflection.v1.ServerReflection/{rpc}", reflection().build_v1()?)
        .route_service("/grpc.reflection.v1alpha.ServerReflection/{rpc}", reflection().build_v1alpha()?))
}

/// A call: who makes it, and what it says.
struct Call<T> {
    who: Authenticated,
    metadata: MetadataMap,
    extensions: Extensions,
    message: T,
}

impl<T> Call<T> {
    fn trace_parent(&self) -> Option<&str> {
        self.metadata.get("traceparent").and_then(|value| value.to_str().ok())
    }
}

impl Gateway {
    /// An answer or a refusal that tells what is left of the tenant's quota.
    fn with_quota<T>(&self, who: &Authenticated, answer: Result<Response<T>, Status>) -> Result<Response<T>, Status> {
        let mut headers = HeaderMap::new();
        self.tell_quota(who, &mut headers);
        let told = MetadataMap::from_headers(headers);
        match answer {
            Ok(mut response) => {
                response.metadata_mut().as_mut().extend(told.into_headers());
                Ok(response)
            }
            Err(mut status) => {
                status.metadata_mut().as_mut().extend(told.into_headers());
                Err(status)
            }
        }
    }

    fn call<T>(&self, request: Request<T>) -> Result<Call<T>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        match self.authenticator.authenticate_call(metadata.as_ref(), &extensions) {
            Ok(who) => Ok(Call { who, metadata, extensions, message }),
            Err(problem) => Err(status(&problem, RequestId::text(&extensions))),
        }
    }
}

fn answer<T>(result: Result<T, Problem>, extensions: &Extensions) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|problem| status(&problem, RequestId::text(extensions)))
}
