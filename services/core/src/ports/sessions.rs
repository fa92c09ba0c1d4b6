//! Which gateway holds a user's live connections.

use async_trait::async_trait;

use super::{StoreError, inbox::Item};
use crate::ids::TenantId;

/// An item for a user's live connections.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// Whose user.
    pub tenant: TenantId,
    /// Who.
    pub user: String,
    /// What.
    pub item: Item,
}

/// Live sessions.
#[async_trait]
pub trait Sessions: Send + Sync + 'static {
    /// Which of these users have a live connection anywhere, in order. May err on the side of `true`.
    async fn connected(&self, tenant: &TenantId, users: &[&str]) -> Result<Vec<bool>, StoreError>;

    /// Hands frames to the gateways that hold their users' connections. Never waits for a socket; a frame that finds
    /// no room makes its connection read the inbox instead.
    async fn hand_over(&self, frames: Vec<Frame>) -> Result<(), StoreError>;

    /// Registers a connection. Frames arrive on `inlet` until the returned guard is dropped.
    async fn register(
        &self,
        tenant: &TenantId,
        user: &str,
        inlet: std::sync::Arc<dyn Inlet>,
    ) -> Result<Box<dyn SessionGuard>, StoreError>;
}

/// Where a connection takes its frames.
pub trait Inlet: Send + Sync {
    /// Takes a frame, or drops it and remembers that there is a gap.
    fn frame(&self, item: &Item);

    /// Frames may have been lost on their way: what is missing is in the inbox.
    fn gap(&self);
}

/// Ends a registration when dropped.
pub trait SessionGuard: Send + Sync {}
