//! `herald.v1.Users`.

use herald_api::request_id::RequestId;
use herald_proto::v1::{self, users_server::Users};
use tonic::{Request, Response, Status};

use super::answer;
use crate::service::Gateway;

#[tonic::async_trait]
impl Users for Gateway {
    async fn put_user(&self, request: Request<v1::PutUserRequest>) -> Result<Response<v1::User>, Status> {
        let call = self.call(request)?;
        answer(self.put_user(&call.who, call.message).await, &call.extensions)
    }

    async fn patch_user(&self, request: Request<v1::PutUserRequest>) -> Result<Response<v1::User>, Status> {
        let call = self.call(request)?;
        answer(self.patch_user(&call.who, call.message).await, &call.extensions)
    }

    async fn get_user(&self, request: Request<v1::GetUserRequest>) -> Result<Response<v1::User>, Status> {
        let call = self.call(request)?;
        answer(self.get_user(&call.who, &call.message.user_id).await, &call.extensions)
    }

    async fn list_users(
        &self,
        request: Request<v1::ListUsersRequest>,
    ) -> Result<Response<v1::ListUsersResponse>, Status> {
        let call = self.call(request)?;
        answer(self.list_users(&call.who, call.message).await, &call.extensions)
    }

    async fn put_users(&self, request: Request<v1::PutUsersRequest>) -> Result<Response<v1::PutUsersResponse>, Status> {
        let call = self.call(request)?;
        let (id, users) = (RequestId::text(&call.extensions), call.message.users.into_iter().map(Ok).collect());
        answer(self.put_users(&call.who, users, id).await, &call.extensions)
    }

    async fn delete_user(
        &self,
        request: Request<v1::DeleteUserRequest>,
    ) -> Result<Response<v1::DeleteUserResponse>, Status> {
        let call = self.call(request)?;
        answer(self.delete_user(&call.who, &call.message.user_id).await, &call.extensions)
    }

    async fn get_erasure(&self, request: Request<v1::GetErasureRequest>) -> Result<Response<v1::Erasure>, Status> {
        let call = self.call(request)?;
        answer(self.erasure(&call.who, &call.message.erasure_id).await, &call.extensions)
    }

    async fn put_preferences(
        &self,
        request: Request<v1::PutPreferencesRequest>,
    ) -> Result<Response<v1::Preferences>, Status> {
        let call = self.call(request)?;
        answer(self.put_preferences(&call.who, call.message).await, &call.extensions)
    }

    async fn get_preferences(
        &self,
        request: Request<v1::GetPreferencesRequest>,
    ) -> Result<Response<v1::Preferences>, Status> {
        let call = self.call(request)?;
        answer(self.get_preferences(&call.who, &call.message.user_id).await, &call.extensions)
    }

    async fn create_user_token(
        &self,
        request: Request<v1::CreateUserTokenRequest>,
    ) -> Result<Response<v1::CreateUserTokenResponse>, Status> {
        let call = self.call(request)?;
        answer(self.create_user_token(&call.who, call.message).await, &call.extensions)
    }

    async fn follow(&self, request: Request<v1::FollowRequest>) -> Result<Response<v1::MembershipResponse>, Status> {
        let call = self.call(request)?;
        answer(self.set_follows(&call.who, call.message.edges, true).await, &call.extensions)
    }

    async fn unfollow(&self, request: Request<v1::FollowRequest>) -> Result<Response<v1::MembershipResponse>, Status> {
        let call = self.call(request)?;
        answer(self.set_follows(&call.who, call.message.edges, false).await, &call.extensions)
    }

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<v1::MembershipResponse>, Status> {
        let call = self.call(request)?;
        answer(self.set_subscribers(&call.who, call.message, true).await, &call.extensions)
    }

    async fn unsubscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<v1::MembershipResponse>, Status> {
        let call = self.call(request)?;
        answer(self.set_subscribers(&call.who, call.message, false).await, &call.extensions)
    }
}
