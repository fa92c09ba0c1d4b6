//! Clients of the public API.

use std::net::SocketAddr;

use anyhow::Context;
use herald_proto::v1::{
    admin_client::AdminClient, notifications_client::NotificationsClient, templates_client::TemplatesClient,
    users_client::UsersClient,
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

/// The tenant's key of `herald dev`.
pub const DEV_KEY: &str = "hk_dev_demo";

/// The operator's key of `herald dev`.
pub const ADMIN_KEY: &str = "hk_dev_admin";

/// The largest answer taken, in bytes: a page of 1,000 requests.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Adds a key to each call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A connection that acts with one key.
#[derive(Clone)]
pub struct Api {
    /// The key itself, for the protocols beside gRPC.
    pub key: String,
    service: InterceptedService<Channel, Bearer>,
}

impl Api {
    /// Acts with `key` on a connection that may be shared.
    pub fn new(channel: Channel, key: &str) -> anyhow::Result<Self> {
        let bearer = Bearer(format!("Bearer {key}").parse().context("the key is no header")?);
        Ok(Self { key: key.to_owned(), service: InterceptedService::new(channel, bearer) })
    }

    /// What operators do.
    pub fn admin(&self) -> AdminClient<InterceptedService<Channel, Bearer>> {
        AdminClient::new(self.service.clone())
    }

    /// People.
    pub fn users(&self) -> UsersClient<InterceptedService<Channel, Bearer>> {
        UsersClient::new(self.service.clone())
    }

    /// Templates.
    pub fn templates(&self) -> TemplatesClient<InterceptedService<Channel, Bearer>> {
        TemplatesClient::new(self.service.clone())
    }

    /// Sending and following.
    pub fn notifications(&self) -> NotificationsClient<InterceptedService<Channel, Bearer>> {
        NotificationsClient::new(self.service.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }
}

/// Opens an HTTP/2 connection.
pub async fn connect(address: SocketAddr) -> anyhow::Result<Channel> {
    Ok(Channel::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?)
}
