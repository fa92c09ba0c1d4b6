//! `herald.v1.Inbox`.

use herald_proto::v1::{self, inbox_server::Inbox};
use tonic::{Request, Response, Status};

use super::answer;
use crate::service::Gateway;

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
}
