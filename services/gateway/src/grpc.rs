//! The gRPC face.

pub mod notifications;

use herald_api::{auth::Authenticated, request_id::RequestId, status::status};
use herald_core::problem::Problem;
use herald_proto::v1::notifications_server::NotificationsServer;
use http::Extensions;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use crate::service::Gateway;

/// The routes of every service that the gateway serves.
pub fn routes(gateway: &Gateway) -> axum::Router {
    let max = gateway.config.max_batch_body_bytes;
    let notifications = NotificationsServer::new(gateway.clone()).max_decoding_message_size(max);
    axum::Router::new().route_service("/herald.v1.Notifications/{rpc}", notifications)
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
    fn call<T>(&self, request: Request<T>) -> Result<Call<T>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        match self.authenticator.authenticate(metadata.as_ref()) {
            Ok(who) => Ok(Call { who, metadata, extensions, message }),
            Err(problem) => Err(status(&problem, RequestId::text(&extensions))),
        }
    }
}

fn answer<T>(result: Result<T, Problem>, extensions: &Extensions) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|problem| status(&problem, RequestId::text(extensions)))
}
