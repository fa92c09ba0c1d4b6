//! Settings of the email engine.

use std::time::Duration;

use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;

/// Everything an [`EmailClient`](super::EmailClient) needs to know. [`SmtpConfig::parse`] reads the server from a URL and
/// sets the rest to defaults for a relay; the fields are public to be changed.
#[derive(Clone)]
pub struct SmtpConfig {
    /// Host name or IP address (without brackets).
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// How the connection is protected.
    pub tls: Tls,
    /// User name and password for AUTH.
    pub credentials: Option<Credentials>,
    /// Certificates trusted besides the system's, for a private authority.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// The name said in EHLO: our host's name.
    pub ehlo_name: String,
    /// Connections at most, idle ones included.
    pub connections: usize,
    /// Messages unanswered at most on one connection, where the server's extensions allow more than one (PIPELINING
    /// with CHUNKING). With `connections` it bounds what is in doubt when everything is lost at once.
    pub messages_in_flight: usize,
    /// Whether BDAT (RFC 3030) is used where it is offered; without it, a connection carries one message per round
    /// trip.
    pub chunking: bool,
    /// Octets queued for writing at most on one connection; one message may exceed it.
    pub write_buffer_octets: usize,
    /// A message whose text the server asks for later than this after the gate let it pass is asked about once more.
    pub gate_holds: Duration,
    /// An idle connection is closed after this time.
    pub idle_timeout: Duration,
    /// How long each answer may take.
    pub timeouts: Timeouts,
}

/// How a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Plain text, even if the server offers STARTTLS.
    Off,
    /// STARTTLS if offered, without looking at the certificate: it keeps passive listeners out and no more.
    Opportunistic,
    /// STARTTLS with a verified certificate, or nothing is sent.
    Required,
    /// TLS from the first octet (RFC 8314) with a verified certificate.
    Implicit,
}

/// A user name and a password. Its debug output shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The authentication identity.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// How long each answer may take. The defaults are those of RFC 5321, section 4.5.3.2, but for connecting, where the
/// RFC names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP and TLS handshake: 30 s.
    pub connect: Duration,
    /// The greeting, and answers to EHLO, STARTTLS and AUTH: 5 min.
    pub greeting: Duration,
    /// MAIL and RSET: 5 min.
    pub mail: Duration,
    /// RCPT: 5 min.
    pub rcpt: Duration,
    /// DATA: 2 min.
    pub data: Duration,
    /// The final dot or BDAT LAST: 10 min, counted from when the server last took or said something.
    pub body: Duration,
    /// QUIT: 5 s; what has been accepted does not depend on it.
    pub quit: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        Self {
            connect: Duration::from_secs(30),
            greeting: minutes(5),
            mail: minutes(5),
            rcpt: minutes(5),
            data: minutes(2),
            body: minutes(10),
            quit: Duration::from_secs(5),
        }
    }
}

impl Timeouts {
    /// The same limit for everything.
    pub fn all(limit: Duration) -> Self {
        Self { connect: limit, greeting: limit, mail: limit, rcpt: limit, data: limit, body: limit, quit: limit }
    }
}

/// Why a URL or setting is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No URL at all.
    #[error("not a URL: {0}")]
    Url(#[from] url::ParseError),
    /// Neither `smtp` nor `smtps`.
    #[error("the scheme must be smtp or smtps, not {0:?}")]
    Scheme(String),
    /// No host.
    #[error("the URL names no host")]
    Host,
    /// A path or a fragment.
    #[error("an SMTP URL has no path and no fragment")]
    Path,
    /// A query parameter that is not known, or a value that it does not take.
    #[error(
        "{name}={value} is not understood: use tls=off, tls=opportunistic or tls=required (smtp only), chunking=on or chunking=off"
    )]
    Parameter {
        /// The parameter's name.
        name: String,
        /// Its value.
        value: String,
    },
    /// Credentials in a URL whose credentials are kept apart.
    #[error("credentials do not belong in the URL: give them apart from it")]
    CredentialsInUrl,
    /// A user without a password, the other way round, or octets that are not UTF-8.
    #[error("credentials are user:password, percent-encoded UTF-8 without NUL")]
    Credentials,
    /// Opportunistic TLS does not protect a password.
    #[error("tls=opportunistic would show the password to whoever is in between: use tls=required, smtps, or tls=off")]
    CredentialsUnprotected,
    /// `ehlo_name` would break the command.
    #[error("the EHLO name must be a host name or an address literal")]
    EhloName,
    /// A bound of zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// The roots or the host name cannot be used for TLS.
    #[error("TLS: {0}")]
    Tls(String),
}

impl SmtpConfig {
    /// Reads `smtp://[user:password@]host[:port][?tls=off|opportunistic|required][&chunking=off]` or
    /// `smtps://[user:password@]host[:port]`. Ports default to 25 (smtp), 587 (smtp with credentials) and 465 (smtps).
    /// With credentials TLS is required unless `tls=off` says otherwise.
    ///
    /// # Errors
    /// [`ConfigError`]; its messages do not repeat credentials.
    pub fn parse(url: &str) -> Result<Self, ConfigError> {
        let url = url::Url::parse(url)?;
        let credentials = credentials(&url)?;
        Self::read(&url, credentials)
    }

    /// As [`SmtpConfig::parse`], with credentials that are kept apart from the URL.
    ///
    /// # Errors
    /// [`ConfigError`]; [`ConfigError::CredentialsInUrl`] if it holds any.
    pub fn parse_apart(url: &str, credentials: Option<Credentials>) -> Result<Self, ConfigError> {
        let url = url::Url::parse(url)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(ConfigError::CredentialsInUrl);
        }
        let usable = |c: &Credentials| !c.user.is_empty() && !c.user.contains('\0') && !c.password.contains('\0');
        if credentials.as_ref().is_some_and(|given| !usable(given)) {
            return Err(ConfigError::Credentials);
        }
        Self::read(&url, credentials)
    }

    fn read(url: &url::Url, credentials: Option<Credentials>) -> Result<Self, ConfigError> {
        let implicit = match url.scheme() {
            "smtp" => false,
            "smtps" => true,
            other => return Err(ConfigError::Scheme(other.to_owned())),
        };
        if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
            return Err(ConfigError::Path);
        }
        let host = url.host_str().filter(|h| !h.is_empty()).ok_or(ConfigError::Host)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let (mut tls, mut chunking) = (None, true);
        for (name, value) in url.query_pairs() {
            match (name.as_ref(), value.as_ref()) {
                ("tls", "off") if !implicit => tls = Some(Tls::Off),
                ("tls", "opportunistic") if !implicit => tls = Some(Tls::Opportunistic),
                ("tls", "required") if !implicit => tls = Some(Tls::Required),
                ("chunking", "on") => chunking = true,
                ("chunking", "off") => chunking = false,
                _ => return Err(ConfigError::Parameter { name: name.into_owned(), value: value.into_owned() }),
            }
        }
        let tls = match (implicit, tls, &credentials) {
            (true, ..) => Tls::Implicit,
            (false, Some(Tls::Opportunistic), Some(_)) => return Err(ConfigError::CredentialsUnprotected),
            (false, Some(tls), _) => tls,
            (false, None, Some(_)) => Tls::Required,
            (false, None, None) => Tls::Opportunistic,
        };
        let default_port = match (implicit, &credentials) {
            (true, _) => 465,
            (false, Some(_)) => 587,
            (false, None) => 25,
        };
        Ok(Self { tls, credentials, chunking, ..Self::plain(host, url.port().unwrap_or(default_port)) })
    }

    fn plain(host: String, port: u16) -> Self {
        Self {
            host,
            port,
            tls: Tls::Off,
            credentials: None,
            extra_roots: Vec::new(),
            ehlo_name: "localhost".to_owned(),
            connections: 4,
            messages_in_flight: 32,
            chunking: true,
            write_buffer_octets: 256 * 1_024,
            gate_holds: Duration::from_millis(250),
            idle_timeout: Duration::from_secs(30),
            timeouts: Timeouts::default(),
        }
    }

    /// Checks what the fields' types cannot.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let name_ok = |b: u8| b.is_ascii_alphanumeric() || b"-.[]:".contains(&b);
        if self.ehlo_name.is_empty() || self.ehlo_name.len() > 255 || !self.ehlo_name.bytes().all(name_ok) {
            return Err(ConfigError::EhloName);
        }
        if self.connections == 0 {
            return Err(ConfigError::Zero("connections"));
        }
        if self.messages_in_flight == 0 {
            return Err(ConfigError::Zero("messages_in_flight"));
        }
        if self.credentials.is_some() && self.tls == Tls::Opportunistic {
            return Err(ConfigError::CredentialsUnprotected);
        }
        Ok(())
    }
}

fn credentials(url: &url::Url) -> Result<Option<Credentials>, ConfigError> {
    let decode = |text: &str| {
        let text = percent_decode_str(text).decode_utf8().map_err(|_| ConfigError::Credentials)?;
        if text.contains('\0') { Err(ConfigError::Credentials) } else { Ok(text.into_owned()) }
    };
    match (url.username(), url.password()) {
        ("", None) => Ok(None),
        ("", Some(_)) | (_, None) => Err(ConfigError::Credentials),
        (user, Some(password)) => Ok(Some(Credentials { user: decode(user)?, password: decode(password)? })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> (String, u16, Tls, bool) {
        let config = SmtpConfig::parse(url).unwrap();
        (config.host, config.port, config.tls, config.credentials.is_some())
    }

    #[test]
    fn urls_name_host_port_and_protection() {
        assert_eq!(read("smtp://127.0.0.1:2525"), ("127.0.0.1".into(), 2525, Tls::Opportunistic, false));
        assert_eq!(read("smtp://relay.example"), ("relay.example".into(), 25, Tls::Opportunistic, false));
        assert_eq!(read("smtp://[::1]:2525?tls=off"), ("::1".into(), 2525, Tls::Off, false));
        assert_eq!(read("smtp://u:p@relay.example"), ("relay.example".into(), 587, Tls::Required, true));
        assert_eq!(read("smtps://u:p@relay.example/"), ("relay.example".into(), 465, Tls::Implicit, true));
        let config = SmtpConfig::parse("smtp://a%40b:p%3Aq@h?tls=off&chunking=off").unwrap();
        assert_eq!(config.credentials, Some(Credentials { user: "a@b".into(), password: "p:q".into() }));
        assert!(!config.chunking);
    }

    #[test]
    fn credentials_may_be_kept_apart() {
        let credentials =
            |user: &str, password: &str| Some(Credentials { user: user.into(), password: password.into() });
        let config = SmtpConfig::parse_apart("smtp://h", credentials("u@h", "p:/?#")).unwrap();
        assert_eq!((config.port, config.tls, &config.credentials), (587, Tls::Required, &credentials("u@h", "p:/?#")));
        assert_eq!(SmtpConfig::parse_apart("smtp://h", None).unwrap().tls, Tls::Opportunistic);
        let refused = |url: &str, credentials| SmtpConfig::parse_apart(url, credentials).err().unwrap();
        assert_eq!(refused("smtp://u:secret@h", None), ConfigError::CredentialsInUrl);
        assert_eq!(refused("smtp://h", credentials("", "p")), ConfigError::Credentials);
        assert_eq!(refused("smtp://h", credentials("u", "\0")), ConfigError::Credentials);
        let unprotected = refused("smtp://h?tls=opportunistic", credentials("u", "secret"));
        assert_eq!(unprotected, ConfigError::CredentialsUnprotected);
    }

    #[test]
    fn a_password_is_never_sent_by_accident_or_shown() {
        let refused = SmtpConfig::parse("smtp://u:secret@h?tls=opportunistic").err().unwrap();
        assert_eq!(refused, ConfigError::CredentialsUnprotected);
        assert!(!refused.to_string().contains("secret"));
        let mut config = SmtpConfig::parse("smtp://u:secret@h").unwrap();
        assert!(!format!("{:?}", config.credentials).contains("secret"));
        config.tls = Tls::Opportunistic;
        assert_eq!(config.check(), Err(ConfigError::CredentialsUnprotected));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for url in [
            "http://h",
            "smtp://",
            "smtp://h/path",
            "smtp://h?tls=maybe",
            "smtps://h?tls=off",
            "smtp://u@h",
            "smtp://h?x=1",
            "h:25",
        ] {
            assert!(SmtpConfig::parse(url).is_err(), "{url}");
        }
        let mut config = SmtpConfig::parse("smtp://h").unwrap();
        config.ehlo_name = "a\r\nMAIL".into();
        assert_eq!(config.check(), Err(ConfigError::EhloName));
    }
}
