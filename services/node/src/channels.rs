//! The providers that the configuration names.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use herald_channels::{
    email::{
        EmailChannel, EmailClient, SmtpConfig,
        address::Address,
        config::Timeouts,
        dkim::Signer,
        message::{Composer, NamedAddress, Sender},
    },
    null::NullChannel,
};
use herald_core::{clock::World, ports::channel::Channel, record};

use crate::config::{Config, Email};

/// Providers by channel; an empty URL gives none.
pub fn open(config: &Config, world: &World) -> anyhow::Result<Vec<Arc<dyn Channel>>> {
    let mut channels: Vec<Arc<dyn Channel>> = Vec::new();
    match config.email.url.as_str() {
        "" => {}
        "null:" => channels.push(Arc::new(NullChannel::new(record::Channel::Email))),
        _ => channels.push(Arc::new(email(config, world)?)),
    }
    Ok(channels)
}

fn email(config: &Config, world: &World) -> anyhow::Result<EmailChannel> {
    let Email { url, from, return_path, connections, dkim_key_file, dkim_domain, dkim_selector } = &config.email;
    let mut smtp = SmtpConfig::parse(url).context("email.url is not valid")?;
    smtp.connections = *connections;
    // An answer must be in before the worker takes the message for unanswered.
    smtp.timeouts = Timeouts::all(Duration::from_millis(config.worker.send_deadline_ms.saturating_sub(1_000).max(1)));
    let from = named_address(from).context("email.from is not valid")?;
    let return_path = match return_path.as_str() {
        "" => from.address.clone(),
        address => Address::parse(address).context("email.return_path is not valid")?,
    };
    let signers = match dkim_key_file.as_str() {
        "" => Vec::new(),
        path => {
            let pem = std::fs::read_to_string(path).with_context(|| format!("{path} cannot be read"))?;
            vec![
                Signer::from_pem(dkim_domain, dkim_selector, pem.as_bytes())
                    .context("email.dkim_key_file cannot be used")?,
            ]
        }
    };
    let sender = Sender { from, reply_to: None, message_id_domain: None, eight_bit: false };
    let composer = Composer::new(&sender, signers).context("email.from cannot be used")?;
    let client = EmailClient::new(smtp).context("email.url cannot be used")?;
    Ok(EmailChannel::new("smtp", client, composer, return_path, world.clock.clone()))
}

/// `Name <address>`, or the address alone.
fn named_address(text: &str) -> anyhow::Result<NamedAddress> {
    let Some((name, rest)) = text.rsplit_once('<') else { return Ok(NamedAddress::bare(Address::parse(text.trim())?)) };
    let address = Address::parse(rest.trim_end().trim_end_matches('>'))?;
    Ok(NamedAddress { name: name.trim().trim_matches('"').to_owned(), address })
}
