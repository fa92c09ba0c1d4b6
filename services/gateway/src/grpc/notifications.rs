//! `herald.v1.Notifications`.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use herald_api::{rejection, request_id::RequestId};
use herald_core::{auth::Scope, problem::Problem};
use herald_proto::v1::{self, notifications_server::Notifications};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue};

use super::{Call, answer};
use crate::{notify::Accepted, service::Gateway};

/// Notifications of a stream that share an append, at most: those that are there already.
const STREAM_CHUNK: usize = 256;
/// Appends of one stream that are under way at once.
const STREAM_APPENDS: usize = 4;

#[tonic::async_trait]
impl Notifications for Gateway {
    async fn notify(&self, request: Request<v1::NotifyRequest>) -> Result<Response<v1::NotifyResponse>, Status> {
        let call = self.call(request)?;
        let trace = call.metadata.get("traceparent").and_then(|value| value.to_str().ok());
        let accepted = self.notify(&call.who, call.message, trace).await;
        let replayed = accepted.as_ref().is_ok_and(|accepted| accepted.deduplicated);
        let mut response = self.with_quota(&call.who, answer(accepted.map(response), &call.extensions))?;
        if replayed {
            response.metadata_mut().insert("idempotent-replayed", MetadataValue::from_static("true"));
        }
        Ok(response)
    }

    async fn notify_batch(
        &self,
        request: Request<v1::NotifyBatchRequest>,
    ) -> Result<Response<v1::NotifyBatchResponse>, Status> {
        let call = self.call(request)?;
        let trace = call.metadata.get("traceparent").and_then(|value| value.to_str().ok());
        let answers =
            self.notify_batch(&call.who, call.message.notifications.into_iter().map(Ok).collect(), trace).await;
        let id = RequestId::text(&call.extensions);
        self.with_quota(&call.who, answer(answers.map(|answers| batch_response(answers, id)), &call.extensions))
    }

    type NotifyStreamStream = Pin<Box<dyn Stream<Item = Result<v1::NotifyResult, Status>> + Send>>;

    async fn notify_stream(
        &self,
        request: Request<Streaming<v1::NotifyRequest>>,
    ) -> Result<Response<Self::NotifyStreamStream>, Status> {
        let call = self.call(request)?;
        // Whoever may not send at all is told so once.
        if let Err(problem) = call.who.caller.require(Scope::Notify) {
            return answer(Err(problem), &call.extensions);
        }
        let trace = call.trace_parent().map(str::to_owned);
        let Call { metadata, extensions, message: stream, .. } = call;
        let gateway = self.clone();
        let ended = self.shutdown.clone().cancelled_owned();
        let chunk = STREAM_CHUNK.min(self.config.max_batch).max(1);
        let results = stream
            .take_until(ended)
            .ready_chunks(chunk)
            .map(move |chunk| {
                let (gateway, trace) = (gateway.clone(), trace.clone());
                // Keys may be deleted and policies change while a stream is open.
                let who = gateway.authenticator.authenticate(metadata.as_ref());
                let id = RequestId::text(&extensions).to_owned();
                async move {
                    let mut requests = Vec::with_capacity(chunk.len());
                    let mut broken = None;
                    for message in chunk {
                        match message {
                            Ok(request) => requests.push(Ok(request)),
                            Err(status) => broken = Some(status),
                        }
                    }
                    let mut results = Vec::new();
                    match who {
                        Ok(who) => results = stream_results(&gateway, &who, requests, trace.as_deref(), &id).await,
                        Err(problem) => broken = Some(herald_api::status::status(&problem, &id)),
                    }
                    results.into_iter().map(Ok).chain(broken.map(Err)).collect::<Vec<_>>()
                }
            })
            .buffered(STREAM_APPENDS)
            .flat_map(futures::stream::iter);
        Ok(Response::new(Box::pin(results)))
    }

    async fn get_status(&self, request: Request<v1::GetStatusRequest>) -> Result<Response<v1::RequestStatus>, Status> {
        let call = self.call(request)?;
        answer(self.status(&call.who, &call.message.request_id).await, &call.extensions)
    }

    async fn list_requests(
        &self,
        request: Request<v1::ListRequestsRequest>,
    ) -> Result<Response<v1::ListRequestsResponse>, Status> {
        let call = self.call(request)?;
        answer(self.requests(&call.who, call.message).await, &call.extensions)
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        let call = self.call(request)?;
        answer(self.cancel(&call.who, call.message).await, &call.extensions)
    }

    async fn list_receipts(
        &self,
        request: Request<v1::ListReceiptsRequest>,
    ) -> Result<Response<v1::ListReceiptsResponse>, Status> {
        let call = self.call(request)?;
        answer(self.receipts(&call.who, call.message).await, &call.extensions)
    }
}

async fn stream_results(
    gateway: &Gateway,
    who: &herald_api::auth::Authenticated,
    requests: Vec<Result<v1::NotifyRequest, Problem>>,
    trace: Option<&str>,
    request_id: &str,
) -> Vec<v1::NotifyResult> {
    if requests.is_empty() {
        return Vec::new();
    }
    let count = requests.len();
    match gateway.notify_batch(who, requests, trace).await {
        Ok(answers) => answers.into_iter().map(|answer| result(answer, request_id)).collect(),
        Err(problem) => (0..count).map(|_| result(Err(problem.clone()), request_id)).collect(),
    }
}

/// The answer to one accepted notification.
pub fn response(accepted: Accepted) -> v1::NotifyResponse {
    v1::NotifyResponse { request_id: accepted.id.to_string(), deduplicated: accepted.deduplicated }
}

/// The answer to a batch.
pub fn batch_response(answers: crate::notify::Answers, request_id: &str) -> v1::NotifyBatchResponse {
    v1::NotifyBatchResponse { results: answers.into_iter().map(|answer| result(answer, request_id)).collect() }
}

fn result(answer: Result<Accepted, Problem>, request_id: &str) -> v1::NotifyResult {
    match answer {
        Ok(accepted) => v1::NotifyResult {
            request_id: Some(accepted.id.to_string()),
            deduplicated: Some(accepted.deduplicated),
            error: None,
        },
        Err(problem) => {
            v1::NotifyResult { error: Some(rejection::message(&problem, request_id)), ..Default::default() }
        }
    }
}
