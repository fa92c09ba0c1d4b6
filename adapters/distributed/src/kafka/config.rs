//! What an operator may set, and the settings of librdkafka that follow from it.

use std::{path::PathBuf, time::Duration};

use rdkafka::ClientConfig;

use crate::credentials;

/// The cluster and how it is used. [`KafkaConfig::at`] reads the address from a URL and leaves the rest as it is.
#[derive(Debug, Clone, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaConfig {
    /// `host:port` of some brokers, separated by commas.
    pub brokers: String,
    /// What the names of topics, groups and transactional ids begin with.
    pub prefix: String,
    /// Copies of each partition.
    pub replication_factor: u32,
    /// Copies that must hold a record before it is acknowledged.
    pub min_insync_replicas: u32,
    /// Whether connections are encrypted, and whether a user logs in: `plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`.
    pub security_protocol: SecurityProtocol,
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`, where the protocol is one of SASL.
    pub sasl_mechanism: String,
    /// The user of SASL.
    pub sasl_username: String,
    /// A file that holds the user's password.
    pub sasl_password_file: Option<PathBuf>,
    /// A PEM file with the authorities that sign the brokers' certificates; `None` takes the system's. The certificates
    /// must name the brokers' hosts.
    pub ssl_ca_file: Option<PathBuf>,
    /// A certificate for this client.
    pub ssl_certificate_file: Option<PathBuf>,
    /// The certificate's key.
    pub ssl_key_file: Option<PathBuf>,
    /// How batches are compressed: `none`, `lz4` or `zstd`.
    pub compression: String,
    /// A member that is silent for this long loses its partitions.
    pub session_timeout_ms: u32,
    /// A transaction that is open for this long is aborted. It also holds up who takes over from its owner.
    pub transaction_timeout_ms: u32,
    /// How long a start waits for brokers that are away.
    pub connect_timeout_ms: u32,
    /// How long an append may take.
    pub append_timeout_ms: u32,
    /// How long a commit is tried while brokers are away.
    pub commit_timeout_ms: u32,
    /// How long a member may go on committing what it has when its partitions are wanted elsewhere.
    pub let_go_timeout_ms: u32,
    /// Records read ahead from each partition.
    pub read_ahead_kib: u32,
    /// The largest record.
    pub max_record_kib: u32,
    /// How often records that every group has passed are deleted.
    pub trim_interval_ms: u64,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".to_owned(),
            prefix: "herald".to_owned(),
            replication_factor: 3,
            min_insync_replicas: 2,
            security_protocol: SecurityProtocol::Plaintext,
            sasl_mechanism: "PLAIN".to_owned(),
            sasl_username: String::new(),
            sasl_password_file: None,
            ssl_ca_file: None,
            ssl_certificate_file: None,
            ssl_key_file: None,
            compression: "lz4".to_owned(),
            session_timeout_ms: 6_000,
            transaction_timeout_ms: 4_000,
            connect_timeout_ms: 30_000,
            append_timeout_ms: 10_000,
            commit_timeout_ms: 30_000,
            let_go_timeout_ms: 5_000,
            read_ahead_kib: 1_024,
            max_record_kib: 8_192,
            trim_interval_ms: 30_000,
        }
    }
}

/// How connections to brokers are protected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityProtocol {
    /// Not at all.
    #[default]
    Plaintext,
    /// By TLS.
    Ssl,
    /// By a login. Its password can be read on the way if the mechanism is `PLAIN`.
    SaslPlaintext,
    /// By a login over TLS.
    SaslSsl,
}

impl SecurityProtocol {
    /// What librdkafka calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Ssl => "ssl",
            Self::SaslPlaintext => "sasl_plaintext",
            Self::SaslSsl => "sasl_ssl",
        }
    }

    fn tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }

    fn login(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

/// A URL or a setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadKafkaConfig(pub String);

impl KafkaConfig {
    /// The same settings for the cluster and prefix of a URL: `kafka://host:port,host:port/prefix`.
    ///
    /// # Errors
    /// A URL of another form.
    pub fn at(self, url: &str) -> Result<Self, BadKafkaConfig> {
        let bad = |what: &str| {
            let url = credentials::shown(url);
            BadKafkaConfig(format!("{url}: {what}; expected kafka://host:port,host:port/prefix"))
        };
        let rest = url.strip_prefix("kafka://").ok_or_else(|| bad("not a Kafka URL"))?;
        let (brokers, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        for broker in brokers.split(',') {
            let (host, port) = broker.rsplit_once(':').ok_or_else(|| bad("a broker has no port"))?;
            if host.is_empty() || port.parse::<u16>().is_err() {
                return Err(bad("a broker is not host:port"));
            }
            if host.contains('@') {
                return Err(bad("kafka.sasl_username and kafka.sasl_password_file say who logs in"));
            }
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        // A topic's name has at most 249 characters, of which the longest suffix takes 32.
        if !prefix.chars().all(allowed) || prefix.len() > 200 {
            return Err(bad("the prefix has characters other than letters, digits, '.', '_' and '-', or is too long"));
        }
        let prefix = if prefix.is_empty() { self.prefix } else { prefix.to_owned() };
        Ok(Self { brokers: brokers.to_owned(), prefix, ..self })
    }

    /// Settings of every client.
    pub(super) fn client(&self) -> Result<ClientConfig, BadKafkaConfig> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "herald")
            .set("security.protocol", self.security_protocol.name())
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000");
        self.log_in(&mut config)?;
        self.encrypt(&mut config)?;
        Ok(config)
    }

    /// Sets the user. A password that nobody would ask for is refused: whoever set it takes the connection for protected.
    fn log_in(&self, config: &mut ClientConfig) -> Result<(), BadKafkaConfig> {
        let protocol = self.security_protocol.name();
        let password = match (&self.sasl_password_file, self.security_protocol.login()) {
            (None, false) => return Ok(()),
            (Some(path), true) => credentials::password("kafka.sasl_password_file", path),
            (Some(_), false) => {
                return Err(BadKafkaConfig(format!(
                    "kafka.sasl_password_file is set, and kafka.security_protocol is {protocol}: set it to sasl_ssl"
                )));
            }
            (None, true) => {
                return Err(BadKafkaConfig(format!(
                    "with kafka.security_protocol {protocol} the user logs in: set kafka.sasl_password_file"
                )));
            }
        };
        config
            .set("sasl.mechanism", &self.sasl_mechanism)
            .set("sasl.username", &self.sasl_username)
            .set("sasl.password", password.map_err(|e| BadKafkaConfig(e.to_string()))?);
        Ok(())
    }

    /// Sets what TLS trusts and shows. Certificates that would not be used are refused, as passwords are.
    fn encrypt(&self, config: &mut ClientConfig) -> Result<(), BadKafkaConfig> {
        let files = [
            ("kafka.ssl_ca_file", "ssl.ca.location", &self.ssl_ca_file),
            ("kafka.ssl_certificate_file", "ssl.certificate.location", &self.ssl_certificate_file),
            ("kafka.ssl_key_file", "ssl.key.location", &self.ssl_key_file),
        ];
        if self.security_protocol.tls() {
            // The OpenSSL that is built along does not know where this system has its authorities; librdkafka looks.
            config.set("ssl.ca.location", "probe");
        }
        for (setting, key, path) in files {
            let Some(path) = path else { continue };
            if !self.security_protocol.tls() {
                let protocol = self.security_protocol.name();
                return Err(BadKafkaConfig(format!(
                    "{setting} is set, and kafka.security_protocol is {protocol}: set it to ssl or sasl_ssl"
                )));
            }
            credentials::read(setting, path).map_err(|e| BadKafkaConfig(e.to_string()))?;
            config.set(key, path.to_string_lossy());
        }
        Ok(())
    }

    /// Settings of consumers without a group.
    pub(super) fn reader(&self) -> Result<ClientConfig, BadKafkaConfig> {
        let mut config = self.client()?;
        config
            // Never joined; librdkafka assigns nothing without a name.
            .set("group.id", format!("{}.reader", self.prefix))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("fetch.error.backoff.ms", "50")
            // An end is told by an empty answer, which the broker holds back for this long.
            .set("fetch.wait.max.ms", "1")
            .set("queued.max.messages.kbytes", self.read_ahead_kib.to_string())
            .set("fetch.message.max.bytes", "1048576");
        Ok(config)
    }

    /// Settings of a group's member.
    pub(super) fn member(&self, group: &str, instance: &str) -> Result<ClientConfig, BadKafkaConfig> {
        let mut config = self.reader()?;
        config
            .set("group.id", group)
            .set("group.instance.id", instance)
            .set("group.protocol", "classic")
            .set("partition.assignment.strategy", "range")
            .set("session.timeout.ms", self.session_timeout_ms.to_string())
            .set("heartbeat.interval.ms", (self.session_timeout_ms / 6).min(1_000).to_string())
            // How long the others wait for a member that does not let go.
            .set("max.poll.interval.ms", self.max_poll_interval_ms().to_string())
            .set("enable.partition.eof", "false")
            .set("fetch.wait.max.ms", "50")
            .set("fetch.queue.backoff.ms", "5")
            .set("queued.min.messages", "1000");
        Ok(config)
    }

    /// Settings of the producer that appends.
    pub(super) fn appender(&self) -> Result<ClientConfig, BadKafkaConfig> {
        let mut config = self.producer()?;
        config.set("message.timeout.ms", self.append_timeout_ms.to_string());
        Ok(config)
    }

    /// Settings of a member's producer.
    pub(super) fn transactional(&self, id: &str) -> Result<ClientConfig, BadKafkaConfig> {
        let mut config = self.producer()?;
        config
            .set("transactional.id", id)
            .set("transaction.timeout.ms", self.transaction_timeout_ms.to_string())
            .set("message.timeout.ms", self.transaction_timeout_ms.to_string());
        Ok(config)
    }

    fn producer(&self) -> Result<ClientConfig, BadKafkaConfig> {
        let mut config = self.client()?;
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "1")
            .set("compression.type", &self.compression)
            // At the default of 5 an idempotent producer spins when a broker stalls.
            .set("max.in.flight.requests.per.connection", "3")
            // At the default of 100 each transaction waits that long for the end of the one before.
            .set("retry.backoff.ms", "10")
            .set("retry.backoff.max.ms", "200")
            .set("message.max.bytes", self.max_record_bytes().to_string())
            .set("queue.buffering.max.messages", "100000")
            .set("queue.buffering.max.kbytes", "65536");
        Ok(config)
    }

    fn max_poll_interval_ms(&self) -> u32 {
        (2 * self.commit_timeout_ms).max(self.session_timeout_ms)
    }

    /// What a rebalance takes at most: until a member that does not let go has lost its partitions, and another has been
    /// silent for too long, with a margin for the answers.
    pub(super) fn longest_rebalance(&self) -> Duration {
        Duration::from_millis(u64::from(self.max_poll_interval_ms()) + u64::from(self.session_timeout_ms) + 10_000)
    }

    /// The largest record, in bytes.
    pub(super) fn max_record_bytes(&self) -> u32 {
        self.max_record_kib.saturating_mul(1_024).clamp(1_024, 1_000_000_000)
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms.into())
    }

    pub(super) fn commit_timeout(&self) -> Duration {
        Duration::from_millis(self.commit_timeout_ms.into())
    }

    pub(super) fn let_go_timeout(&self) -> Duration {
        Duration::from_millis(self.let_go_timeout_ms.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_brokers_and_prefix() {
        let config = KafkaConfig::default().at("kafka://a:9092,[::1]:9093/eu").unwrap();
        assert_eq!((config.brokers.as_str(), config.prefix.as_str()), ("a:9092,[::1]:9093", "eu"));
        assert_eq!(KafkaConfig::default().at("kafka://a:1").unwrap().prefix, "herald");
        for bad in ["redis://a:1", "kafka://a", "kafka://a:1,b", "kafka://:1/x", "kafka://a:1/x/y", "kafka://a:99999"] {
            let error = KafkaConfig::default().at(bad).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("expected kafka://"), "{error}");
        }
        let error = KafkaConfig::default().at("kafka://me:secret@a:1").unwrap_err().to_string();
        assert!(error.contains("kafka.sasl_password_file") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn protection_is_whole_or_refused() {
        let told = |config: KafkaConfig| config.client().unwrap_err().to_string();
        let (usual, file) = (KafkaConfig::default(), Some(PathBuf::from("/nowhere")));
        let login = KafkaConfig { security_protocol: SecurityProtocol::SaslSsl, ..usual.clone() };
        assert!(told(login.clone()).contains("set kafka.sasl_password_file"));
        let told_of_file = told(KafkaConfig { sasl_password_file: file.clone(), ..login.clone() });
        assert!(told_of_file.contains("/nowhere cannot be read") && told_of_file.contains("kafka.sasl_password_file"));
        assert!(told(KafkaConfig { sasl_password_file: file.clone(), ..usual.clone() }).contains("set it to sasl_ssl"));
        let tls = KafkaConfig { security_protocol: SecurityProtocol::Ssl, ..usual.clone() };
        assert_eq!(tls.client().unwrap().get("ssl.ca.location"), Some("probe"));
        assert!(told(KafkaConfig { ssl_ca_file: file.clone(), ..tls }).contains("kafka.ssl_ca_file"));
        assert!(told(KafkaConfig { ssl_ca_file: file, ..usual }).contains("set it to ssl or sasl_ssl"));
    }
}
