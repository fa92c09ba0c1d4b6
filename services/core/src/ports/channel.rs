//! Channels: the way out.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    ids::{InstanceId, NotificationId, TenantId, channel_name},
    people::Endpoint,
    providers::ProviderRow,
    record::Channel as ChannelKind,
    secrets::CannotOpen,
    tokens::UnsubscribeLinks,
};

/// A rendered message to one endpoint of one user.
#[derive(Debug, Clone)]
pub struct Message {
    /// The instance.
    pub instance: InstanceId,
    /// Its notification.
    pub notification: NotificationId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Who gets it.
    pub user: Arc<str>,
    /// Where to.
    pub endpoint: Arc<Endpoint>,
    /// What.
    pub content: Content,
    /// What makes the one-click unsubscribe link (RFC 8058); `None` without a secret to sign it with.
    pub unsubscribe: Option<Arc<Unsubscribe>>,
    /// Milliseconds since the epoch; a provider need not try after it.
    pub expires_ms: u64,
}

/// What makes a message's unsubscribe link. The messages of a section share one.
pub struct Unsubscribe {
    /// Signs links.
    pub links: Arc<UnsubscribeLinks>,
    /// The channel that is opted out of.
    pub channel: ChannelKind,
    /// The category that is opted out of; empty for the whole channel.
    pub category: Arc<str>,
}

impl Message {
    /// The one-click unsubscribe link. It is made when it is asked for: signing costs more than rendering.
    pub fn unsubscribe_url(&self) -> Option<String> {
        self.unsubscribe.as_ref().map(|unsubscribe| unsubscribe.url(self.tenant.as_str(), &self.user))
    }
}

impl Unsubscribe {
    /// The link of a tenant's user.
    pub fn url(&self, tenant: &str, user: &str) -> String {
        self.links.url(tenant, user, channel_name(self.channel), &self.category)
    }
}

impl std::fmt::Debug for Unsubscribe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unsubscribe").field("category", &self.category).finish_non_exhaustive()
    }
}

/// Rendered parts.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A mail.
    Email {
        /// Subject line.
        subject: String,
        /// Plain text.
        text: Option<String>,
        /// HTML.
        html: Option<String>,
    },
    /// A push message.
    Push {
        /// Title.
        title: Option<String>,
        /// Body.
        body: Option<String>,
        /// JSON.
        data: Option<String>,
    },
    /// The body of a webhook.
    Webhook {
        /// JSON.
        body: String,
    },
}

/// What sending said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The provider took it.
    Accepted {
        /// The provider's id of the message, if it gave one.
        provider_id: Option<String>,
    },
    /// Not now.
    RetryAfter {
        /// When the provider asks to come back.
        after: Option<Duration>,
        /// Why, such as `smtp.421`.
        code: String,
    },
    /// The endpoint is gone for good.
    EndpointGone {
        /// Why.
        code: String,
    },
    /// The address is bad for good.
    AddressBad {
        /// Why.
        code: String,
    },
    /// Refused for good.
    Rejected {
        /// Why.
        code: String,
    },
    /// Ours: credentials or configuration. The message waits, an alert is raised, and nothing fails for it.
    AccountFault {
        /// Why.
        code: String,
    },
    /// It was not put on the wire; sending it again cannot send it twice.
    NotAttempted {
        /// Why.
        code: String,
    },
    /// It was put on the wire and no answer came.
    Unknown {
        /// Why.
        code: String,
    },
}

impl Outcome {
    /// Why it was not taken.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Accepted { .. } => None,
            Self::RetryAfter { code, .. }
            | Self::EndpointGone { code }
            | Self::AddressBad { code }
            | Self::Rejected { code }
            | Self::AccountFault { code }
            | Self::NotAttempted { code }
            | Self::Unknown { code } => Some(code),
        }
    }
}

/// Asked before each single send. A closed gate makes the outcome [`Outcome::NotAttempted`].
pub trait Gate: Send + Sync {
    /// Whether the message of this index may be sent now.
    fn open(&self, index: usize) -> bool;
}

/// Where outcomes go, each as soon as it is in.
pub trait Sink: Send + Sync {
    /// Reports the outcome of the message of this index, exactly once.
    fn report(&self, index: usize, outcome: Outcome);
}

/// A provider of a channel.
#[async_trait]
pub trait Channel: Send + Sync + 'static {
    /// Which channel.
    fn kind(&self) -> ChannelKind;

    /// The provider's name, for receipts and limits.
    fn provider(&self) -> &str;

    /// Sends a batch in which no user occurs twice, and returns when every outcome was reported. Messages whose
    /// outcome is not in when the future is dropped may or may not have been sent.
    async fn deliver(&self, batch: Vec<Message>, gate: Arc<dyn Gate>, sink: Arc<dyn Sink>);
}

/// Opens the providers that operators set.
#[async_trait]
pub trait Opener: Send + Sync + 'static {
    /// The channel through a provider. Connects to nothing yet.
    fn open(&self, provider: &ProviderRow) -> Result<Arc<dyn Channel>, ProviderFault>;

    /// Reaches a provider and signs in as a send would, and sends nothing; within some seconds.
    async fn check(&self, provider: &ProviderRow) -> Result<(), ProviderFault>;
}

/// Why a provider cannot be used. Nothing of its credentials is in the texts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderFault {
    /// A setting cannot be.
    #[error("{field}: {detail}")]
    Setting {
        /// Which one.
        field: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// Nothing here speaks to providers of its kind.
    #[error("providers of the kind {0} are not built yet")]
    NotBuilt(String),
    /// Nobody answers there.
    #[error("nobody answers there: {0}")]
    Unreachable(String),
    /// The connection cannot be protected as it must be.
    #[error("TLS: {0}")]
    Tls(String),
    /// It does not let us in.
    #[error("it does not take the credentials ({0})")]
    SignIn(String),
    /// It answers, and refuses.
    #[error("it refuses us ({0})")]
    Refused(String),
    /// This process has no key to open credentials with.
    #[error("this process has no keys for secrets: secrets.key_file is not set")]
    NoKeys,
    /// Its credentials cannot be opened.
    #[error("its credentials cannot be opened: {0}")]
    Sealed(#[from] CannotOpen),
}
