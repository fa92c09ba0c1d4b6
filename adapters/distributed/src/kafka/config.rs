//! What an operator may set, and the settings of librdkafka that follow from it.

use std::{fs, path::PathBuf, time::Duration};

use rdkafka::ClientConfig;

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
    /// `plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`. TLS and SCRAM need a build with the feature `kafka-tls`.
    pub security_protocol: String,
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`, where the protocol is one of SASL.
    pub sasl_mechanism: String,
    /// The user of SASL.
    pub sasl_username: String,
    /// A file with the password of SASL.
    pub sasl_password_file: Option<PathBuf>,
    /// The authorities that are trusted; `None` takes the system's.
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
            security_protocol: "plaintext".to_owned(),
            sasl_mechanism: "PLAIN".to_owned(),
            sasl_username: String::new(),
            sasl_password_file: None,
            ssl_ca_file: None,
            ssl_certificate_file: None,
            ssl_key_file: None,
            compression: "lz4".to_owned(),
            session_timeout_ms: 6_000,
            transaction_timeout_ms: 4_000,
            append_timeout_ms: 10_000,
            commit_timeout_ms: 30_000,
            let_go_timeout_ms: 5_000,
            read_ahead_kib: 1_024,
            max_record_kib: 8_192,
            trim_interval_ms: 30_000,
        }
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
        let bad = |what: &str| BadKafkaConfig(format!("{url}: {what}; expected kafka://host:port,host:port/prefix"));
        let rest = url.strip_prefix("kafka://").ok_or_else(|| bad("not a Kafka URL"))?;
        let (brokers, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        for broker in brokers.split(',') {
            let (host, port) = broker.rsplit_once(':').ok_or_else(|| bad("a broker has no port"))?;
            if host.is_empty() || port.parse::<u16>().is_err() {
                return Err(bad("a broker is not host:port"));
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
            .set("security.protocol", &self.security_protocol)
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000");
        if self.security_protocol.starts_with("sasl") {
            let path = self.sasl_password_file.as_ref();
            let path = path.ok_or_else(|| BadKafkaConfig("SASL needs sasl_password_file".to_owned()))?;
            let password = fs::read_to_string(path)
                .map_err(|e| BadKafkaConfig(format!("sasl_password_file {}: {e}", path.display())))?;
            config
                .set("sasl.mechanism", &self.sasl_mechanism)
                .set("sasl.username", &self.sasl_username)
                .set("sasl.password", password.trim_end_matches(['\r', '\n']));
        }
        let files = [
            ("ssl.ca.location", &self.ssl_ca_file),
            ("ssl.certificate.location", &self.ssl_certificate_file),
            ("ssl.key.location", &self.ssl_key_file),
        ];
        for (key, path) in files {
            if let Some(path) = path {
                config.set(key, path.to_string_lossy());
            }
        }
        Ok(config)
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

    /// The largest record, in bytes.
    pub(super) fn max_record_bytes(&self) -> u32 {
        self.max_record_kib.saturating_mul(1_024).clamp(1_024, 1_000_000_000)
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
    }

    #[test]
    fn a_missing_password_is_said() {
        let config = KafkaConfig { security_protocol: "sasl_plaintext".into(), ..KafkaConfig::default() };
        assert!(config.client().unwrap_err().to_string().contains("sasl_password_file"));
    }
}
