//! `herald.v1.Inbox`.

use std::pin::Pin;

use futures::Stream;
use herald_api::request_id::RequestId;
use herald_proto::v1::{self, inbox_server::Inbox};
use tonic::{Request, Response, Status, metadata::AsciiMetadataValue};

use super::answer;
use crate::{live::HERALD_EVENT_ID, service::Gateway};

#[tonic::async_trait]
impl Inbox for Gateway {
    async fn list_inbox(
        &self,
        request: Request<v1::ListInboxRequest>,
    ) -> Result<Response<v1::ListInboxResponse>, Status> {
        let call = self.call(request)?;
        answer(self.list_inbox(&call.who, call.message).await, &call.extensions)
    }

    async fn mark_inbox(&self, request: Request<v1::MarkInboxRequest>) -> Result<Response<v1::InboxCounts>, Status> {
        let call = self.call(request)?;
        answer(self.mark_inbox(&call.who, call.message).await, &call.extensions)
    }

    type WatchInboxStream = Pin<Box<dyn Stream<Item = Result<v1::InboxItem, Status>> + Send>>;

    async fn watch_inbox(
        &self,
        request: Request<v1::WatchInboxRequest>,
    ) -> Result<Response<Self::WatchInboxStream>, Status> {
        let (metadata, extensions, asked) = request.into_parts();
        let watch = self.live.watch(metadata.as_ref(), asked, RequestId::text(&extensions)).await;
        let position = watch.as_ref().ok().and_then(|watch| AsciiMetadataValue::try_from(&watch.position).ok());
        let mut response = answer(watch.map(|watch| Box::pin(watch.items) as Self::WatchInboxStream), &extensions)?;
        if let Some(position) = position {
            response.metadata_mut().insert(HERALD_EVENT_ID, position);
        }
        Ok(response)
    }
}
