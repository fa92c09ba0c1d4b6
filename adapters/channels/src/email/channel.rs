//! The `email` channel: rendered messages become mails and go to one SMTP server.

use std::sync::Arc;

use async_trait::async_trait;
use herald_core::{
    clock::Clock,
    ports::channel::{self, Channel, Content, Gate, Message, Sink, Unsubscribe},
    record::Channel as ChannelKind,
};

use super::{
    EmailClient, Outcome, OutgoingMail,
    address::Address,
    message::{Composer, Draft, NamedAddress},
};

/// Mail through one SMTP server.
pub struct EmailChannel {
    name: String,
    client: EmailClient,
    composer: Composer,
    /// The envelope's sender, where bounces go.
    return_path: Address,
    clock: Arc<dyn Clock>,
}

impl EmailChannel {
    /// A channel under a provider's name.
    pub fn new(
        name: &str,
        client: EmailClient,
        composer: Composer,
        return_path: Address,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { name: name.to_owned(), client, composer, return_path, clock }
    }

    fn compose(&self, index: usize, message: &Message) -> Result<OutgoingMail, channel::Outcome> {
        let Content::Email { subject, text, html } = &message.content else {
            return Err(channel::Outcome::Rejected { code: "smtp.not_a_mail".into() });
        };
        let address = Address::parse(&message.endpoint.address)
            .map_err(|_| channel::Outcome::AddressBad { code: "smtp.address_invalid".into() })?;
        let to = NamedAddress::bare(address.clone());
        // RFC 8058 asks for https; the link in the text works either way.
        let has_https_links = |unsubscribe: &&Unsubscribe| unsubscribe.links.leads_to("https://");
        let links = message.unsubscribe.as_deref().filter(has_https_links);
        let list_unsubscribe = links.and_then(|_| message.unsubscribe_url());
        let draft = Draft {
            instance_id: &message.instance.to_string(),
            to: &to,
            subject,
            text: text.as_deref(),
            html: html.as_deref(),
            list_unsubscribe: list_unsubscribe.as_deref(),
            date_unix_s: (self.clock.now_ms() / 1_000) as i64,
        };
        let data = self.composer.compose(&draft).map_err(|error| {
            tracing::warn!(%error, instance = %message.instance, "a mail cannot be composed");
            channel::Outcome::Rejected { code: "smtp.message_invalid".into() }
        })?;
        Ok(OutgoingMail { token: index as u64, mail_from: self.return_path.clone(), rcpt_to: address, data })
    }
}

#[async_trait]
impl Channel for EmailChannel {
    fn kind(&self) -> ChannelKind {
        ChannelKind::Email
    }

    fn provider(&self) -> &str {
        &self.name
    }

    async fn deliver(&self, batch: Vec<Message>, gate: Arc<dyn Gate>, sink: Arc<dyn Sink>) {
        let mut mails = Vec::with_capacity(batch.len());
        for (index, message) in batch.iter().enumerate() {
            match self.compose(index, message) {
                Ok(mail) => mails.push(mail),
                Err(outcome) => sink.report(index, outcome),
            }
        }
        let open = |token: u64| gate.open(token as usize);
        let report = |token: u64, outcome: Outcome| sink.report(token as usize, outcome_of(outcome));
        self.client.send(mails, Some(&open), &report).await;
    }
}

fn outcome_of(outcome: Outcome) -> channel::Outcome {
    if let Some(cause) = outcome.cause().filter(|cause| cause.alert) {
        tracing::error!(code = cause.code, text = cause.text, "the mail server's answer needs attention");
    }
    match outcome {
        Outcome::Accepted { provider_id } => {
            channel::Outcome::Accepted { provider_id: Some(provider_id).filter(|id| !id.is_empty()) }
        }
        Outcome::RetryAfter { after, cause } => channel::Outcome::RetryAfter { after, code: cause.code },
        Outcome::EndpointGone { cause } => channel::Outcome::EndpointGone { code: cause.code },
        Outcome::AddressBad { cause } => channel::Outcome::AddressBad { code: cause.code },
        Outcome::Rejected { cause } => channel::Outcome::Rejected { code: cause.code },
        Outcome::AccountFault { cause } => channel::Outcome::AccountFault { code: cause.code },
        Outcome::NotAttempted { cause } => channel::Outcome::NotAttempted { code: cause.code },
        Outcome::Unknown { cause } => channel::Outcome::Unknown { code: cause.code },
    }
}
