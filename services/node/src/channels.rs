//! The providers: those that the configuration names, and those that operators set.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use async_trait::async_trait;
use herald_channels::{
    email::{
        EmailChannel, EmailClient, Outcome, SmtpConfig,
        address::Address,
        config::{ConfigError, Credentials, Timeouts},
        dkim::Signer,
        message::{Composer, NamedAddress, Sender},
    },
    null::NullChannel,
};
use herald_core::{
    clock::World,
    ports::channel::{Channel, Opener, ProviderFault},
    providers::ProviderRow,
    record,
    secrets::SecretKeys,
};
use serde::Deserialize;

use crate::config::{Config, Email};

/// How long it may take to find out whether a provider lets us in.
const CHECK_WITHIN: Duration = Duration::from_secs(10);

/// The providers that the configuration names; an empty URL gives none.
pub fn configured(config: &Config, world: &World) -> anyhow::Result<Vec<Arc<dyn Channel>>> {
    let mut channels: Vec<Arc<dyn Channel>> = Vec::new();
    match config.email.url.as_str() {
        "" => {}
        "null:" => channels.push(Arc::new(NullChannel::new(record::Channel::Email))),
        url => {
            let smtp = SmtpConfig::parse(url).context("email.url is not valid")?;
            channels.push(Arc::new(email("smtp", smtp, config, world)?));
        }
    }
    Ok(channels)
}

/// A channel through an SMTP server. What mails look like and how they are signed is the configuration's to say.
fn email(name: &str, mut smtp: SmtpConfig, config: &Config, world: &World) -> anyhow::Result<EmailChannel> {
    let Email { from, return_path, connections, dkim_key_file, dkim_domain, dkim_selector, .. } = &config.email;
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
    Ok(EmailChannel::new(name, client, composer, return_path, world.clock.clone()))
}

/// Opens the providers that operators set, with the clients that are built in.
pub struct Adapters {
    config: Config,
    keys: Option<Arc<SecretKeys>>,
    world: World,
}

/// What opens an SMTP server.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SmtpCredentials {
    username: String,
    password: String,
}

impl Adapters {
    /// Opens with these settings, and credentials with these keys.
    pub fn new(config: &Config, keys: Option<Arc<SecretKeys>>, world: &World) -> Self {
        Self { config: config.clone(), keys, world: world.clone() }
    }

    fn smtp(&self, provider: &ProviderRow) -> Result<SmtpConfig, ProviderFault> {
        let of = |field| move |detail: String| ProviderFault::Setting { field, detail };
        if provider.channel != "email" {
            return Err(of("channel")("A provider of the kind smtp serves the channel email.".into()));
        }
        let credentials = self.credentials(provider)?.map(|json| {
            // What serde says could repeat a secret.
            let wrong =
                |_| of("credentials")("Those of an SMTP server are {\"username\": ..., \"password\": ...}.".into());
            serde_json::from_slice::<SmtpCredentials>(&json).map_err(wrong)
        });
        let credentials =
            credentials.transpose()?.map(|SmtpCredentials { username: user, password }| Credentials { user, password });
        SmtpConfig::parse_apart(&provider.url, credentials).map_err(|error| match error {
            ConfigError::Credentials => of("credentials")(error.to_string()),
            error => of("url")(error.to_string()),
        })
    }

    /// A provider's credentials, opened.
    fn credentials(&self, provider: &ProviderRow) -> Result<Option<Vec<u8>>, ProviderFault> {
        let Some(sealed) = &provider.credentials else { return Ok(None) };
        let keys = self.keys.as_ref().ok_or(ProviderFault::NoKeys)?;
        Ok(Some(keys.open(&provider.secret_context(), sealed)?))
    }
}

#[async_trait]
impl Opener for Adapters {
    fn open(&self, provider: &ProviderRow) -> Result<Arc<dyn Channel>, ProviderFault> {
        if provider.kind != "smtp" {
            return Err(ProviderFault::NotBuilt(provider.kind.clone()));
        }
        let channel = email(&provider.name, self.smtp(provider)?, &self.config, &self.world);
        // The sender and the signature are of the configuration, which was good at the start; so it is the server's.
        let wrong = |error| ProviderFault::Setting { field: "url", detail: format!("{error:#}") };
        Ok(Arc::new(channel.map_err(wrong)?))
    }

    async fn check(&self, provider: &ProviderRow) -> Result<(), ProviderFault> {
        let mut smtp = self.smtp(provider)?;
        smtp.timeouts = Timeouts::all(CHECK_WITHIN / 2);
        let client = EmailClient::new(smtp)
            .map_err(|error| ProviderFault::Setting { field: "url", detail: error.to_string() })?;
        match tokio::time::timeout(CHECK_WITHIN, client.check()).await {
            Ok(checked) => checked.map_err(|outcome| fault_of(&outcome)),
            Err(_) => Err(ProviderFault::Unreachable("it does not answer in time".into())),
        }
    }
}

/// What an outcome of connecting says. Texts of the server are left out where they could repeat credentials.
fn fault_of(outcome: &Outcome) -> ProviderFault {
    let Some(cause) = outcome.cause() else { return ProviderFault::Refused(String::new()) };
    let word = cause.code.trim_start_matches("smtp.");
    match outcome {
        _ if word.starts_with("tls") || word == "timeout.tls" => ProviderFault::Tls(cause.text.clone()),
        Outcome::AccountFault { .. } if word.starts_with("53") || word.starts_with("auth") => {
            ProviderFault::SignIn(cause.code.clone())
        }
        Outcome::AccountFault { .. } => ProviderFault::Refused(cause.code.clone()),
        _ => ProviderFault::Unreachable(format!("{} ({})", cause.text, cause.code)),
    }
}

/// `Name <address>`, or the address alone.
fn named_address(text: &str) -> anyhow::Result<NamedAddress> {
    let Some((name, rest)) = text.rsplit_once('<') else { return Ok(NamedAddress::bare(Address::parse(text.trim())?)) };
    let address = Address::parse(rest.trim_end().trim_end_matches('>'))?;
    Ok(NamedAddress { name: name.trim().trim_matches('"').to_owned(), address })
}
