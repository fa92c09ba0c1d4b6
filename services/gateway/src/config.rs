//! The gateway's configuration.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{live::LiveConfig, serve::ServeLimits};

/// Limits and waits. Every limit is refused with an error that names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where callers and mail readers reach the gateway; unsubscribe links begin with it.
    pub public_url: String,
    /// Bytes of a request's body, and of a message on gRPC.
    pub max_body_bytes: usize,
    /// Bytes of the body of a batch.
    pub max_batch_body_bytes: usize,
    /// Notifications of one batch.
    pub max_batch: usize,
    /// Calls that admit notifications and are worked on at once; beyond it they are answered 503.
    pub max_admissions_in_flight: usize,
    /// Connections; beyond it new ones wait to be accepted.
    pub max_connections: usize,
    /// Concurrent streams of one HTTP/2 connection.
    pub max_streams: u32,
    /// Limits of one notification.
    pub notification: NotificationLimits,
    /// Live connections.
    pub live: LiveConfig,
    /// How long a call on a request that is not known yet waits for the reader of the requests topics.
    pub status_wait_ms: u64,
    /// The time from which on a call under an idempotency key is taken for dead and is done again.
    pub idempotency_stale_ms: u64,
    /// How long the longest token for an end user is valid.
    pub max_user_token_ttl_s: u64,
    /// How long connections may take to end at shutdown.
    pub drain_ms: u64,
    /// Of a million calls without a trace of their caller's, how many are traced.
    pub traces_per_million: u32,
}

/// Limits of one notification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NotificationLimits {
    /// Listed users.
    pub max_users: usize,
    /// Inline recipients.
    pub max_inline: usize,
    /// Endpoints of one person.
    pub max_endpoints: usize,
    /// Bytes of `data` as JSON.
    pub max_data_bytes: usize,
    /// Bytes of a person's `attributes` as JSON.
    pub max_attributes_bytes: usize,
    /// Entries of `metadata`.
    pub max_metadata: usize,
    /// Bytes of one key or value of `metadata`.
    pub max_metadata_bytes: usize,
    /// The longest `ttl`, in seconds.
    pub max_ttl_s: u64,
    /// How far ahead `send_at` may be, in seconds.
    pub max_send_ahead_s: u64,
}

impl Config {
    pub(crate) fn serve_limits(&self) -> ServeLimits {
        let drain = Duration::from_millis(self.drain_ms);
        ServeLimits { connections: self.max_connections, streams: self.max_streams, drain }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            public_url: "http://127.0.0.1:8080".into(),
            max_body_bytes: 4 << 20,
            max_batch_body_bytes: 16 << 20,
            max_batch: 1_000,
            max_admissions_in_flight: 4_096,
            max_connections: 100_000,
            max_streams: 1_024,
            notification: NotificationLimits::default(),
            live: LiveConfig::default(),
            status_wait_ms: 2_000,
            idempotency_stale_ms: 10_000,
            max_user_token_ttl_s: 30 * 86_400,
            drain_ms: 10_000,
            traces_per_million: 1_000,
        }
    }
}

impl Default for NotificationLimits {
    fn default() -> Self {
        Self {
            max_users: 10_000,
            max_inline: 1_000,
            max_endpoints: 20,
            max_data_bytes: 64 << 10,
            max_attributes_bytes: 16 << 10,
            max_metadata: 50,
            max_metadata_bytes: 500,
            max_ttl_s: 30 * 86_400,
            max_send_ahead_s: 30 * 86_400,
        }
    }
}
