//! TLS and logins, on the ports of the real servers that have both: what works, and what is said where it does not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tempfile::NamedTempFile;
use uuid::Uuid;

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `deploy/local/servers up`, then `source target/servers/env`")
    })
}

/// One of the files that `deploy/local/servers` makes with its servers.
fn file(name: &str) -> PathBuf {
    Path::new(&variable("HERALD_TEST_SECURE")).join(name)
}

/// A file with a password that nobody has.
fn wrong_password() -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    writeln!(file, "{WRONG}").unwrap();
    file
}

const WRONG: &str = "open-sesame";

/// What is said must tell what is wrong and what to mend, and no password.
fn assert_told(case: &str, said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{case}: {part:?} is not in: {said}");
    }
    for secret in [WRONG, std::fs::read_to_string(file("password")).unwrap().trim()] {
        assert!(!said.contains(secret), "{case} gives a password away: {said}");
    }
}

mod kafka {
    use bytes::Bytes;
    use herald_core::{
        conformance::log::{ALONE, record},
        ports::log::{Commit, Committed, Log, Position, partition},
        topic::{Group, Lane, Layout, Topic},
    };
    use herald_distributed::kafka::{KafkaConfig, KafkaLog, SecurityProtocol};
    use rdkafka::{
        ClientConfig,
        admin::{AdminClient, AdminOptions},
        client::DefaultClientContext,
    };

    use super::*;

    const LAYOUT: Layout = Layout { shards: 1, requests: 1, receipts: 1 };

    fn at(config: KafkaConfig, variable_name: &str) -> KafkaConfig {
        let url = format!("kafka://{}/test-{}", variable(variable_name), Uuid::now_v7().simple());
        config.at(&url).unwrap()
    }

    fn config() -> KafkaConfig {
        let config = KafkaConfig {
            replication_factor: 1,
            min_insync_replicas: 1,
            security_protocol: SecurityProtocol::SaslSsl,
            sasl_mechanism: "SCRAM-SHA-512".into(),
            sasl_username: "herald".into(),
            sasl_password_file: Some(file("password")),
            ssl_ca_file: Some(file("ca.pem")),
            ..KafkaConfig::default()
        };
        at(config, "HERALD_TEST_KAFKA_SECURE")
    }

    async fn refusal(config: KafkaConfig) -> String {
        KafkaLog::open(config, "r", Some(LAYOUT)).await.err().expect("it is refused").to_string()
    }

    /// Appends, polls and commits on the log of a configuration, and reads back what was committed.
    async fn go_round(config: &KafkaConfig) {
        let log = KafkaLog::open(config.clone(), "r", Some(LAYOUT)).await.unwrap();
        let (requests, deliveries) =
            (partition(Topic::Requests(Lane::Bulk), 0), partition(Topic::Deliveries(Lane::Bulk), 0));
        let offset = log.append(vec![record(requests, "asked")]).await.unwrap()[0];
        let mut member = log.subscribe(Group::Orchestrator, ALONE).await.unwrap();
        let asked = loop {
            let polled = member.poll(1, Duration::from_millis(100)).await.unwrap();
            if let Some(record) = polled.records.into_iter().next() {
                break record;
            }
        };
        assert_eq!((asked.at, asked.offset, asked.body), (requests, offset, Bytes::from_static(b"asked")));
        let commit = Commit {
            positions: [(requests, Position { offset: offset + 1, ..Position::default() })].into(),
            outputs: vec![record(deliveries, "answered")],
        };
        assert!(matches!(member.commit(commit).await.unwrap(), Committed::Done(_)));
        log.reached(deliveries, 0).await.unwrap();
        assert_eq!(log.read(deliveries, 0, 10).await.unwrap().0[0].body, Bytes::from_static(b"answered"));
    }

    /// Deletes the topics by the port that asks for nothing.
    async fn clean_up(config: &KafkaConfig) {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", variable("HERALD_TEST_KAFKA"));
        let admin: AdminClient<DefaultClientContext> = client.create().unwrap();
        let found = admin.inner().fetch_metadata(None, Duration::from_secs(30)).unwrap();
        let names = found.topics().iter().map(|topic| topic.name());
        let topics: Vec<&str> = names.filter(|name| name.starts_with(&format!("{}.", config.prefix))).collect();
        assert!(!topics.is_empty());
        admin.delete_topics(&topics, &AdminOptions::new()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_log_works_over_tls_with_scram_and_with_plain() {
        for mechanism in ["SCRAM-SHA-512", "PLAIN"] {
            let config = KafkaConfig { sasl_mechanism: mechanism.into(), ..config() };
            go_round(&config).await;
            clean_up(&config).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_is_refused_is_told_what_to_mend() {
        let wrong = wrong_password();
        let login = "check kafka.sasl_username, kafka.sasl_mechanism and what is in kafka.sasl_password_file";
        let certificate = "that kafka.ssl_ca_file holds the authority of the brokers' certificates";
        let wrong_password = KafkaConfig { sasl_password_file: Some(wrong.path().to_owned()), ..config() };
        let wrong_plain = KafkaConfig { sasl_mechanism: "PLAIN".into(), ..wrong_password.clone() };
        let cases = [
            ("a wrong password", wrong_password, ["Authentication failed", login]),
            ("a wrong password, PLAIN", wrong_plain, ["Authentication failed", login]),
            (
                "no password",
                KafkaConfig { sasl_password_file: None, ..config() },
                ["kafka.security_protocol sasl_ssl", "set kafka.sasl_password_file"],
            ),
            (
                "a missing file",
                KafkaConfig { sasl_password_file: Some("/nowhere".into()), ..config() },
                ["/nowhere cannot be read", "kafka.sasl_password_file"],
            ),
            (
                "the system's authorities",
                KafkaConfig { ssl_ca_file: None, ..config() },
                ["certificate verify failed", certificate],
            ),
            (
                "another authority",
                KafkaConfig { ssl_ca_file: Some(file("stranger.pem")), ..config() },
                ["certificate verify failed", certificate],
            ),
            (
                "a port without TLS",
                at(KafkaConfig { connect_timeout_ms: 5_000, ..config() }, "HERALD_TEST_KAFKA"),
                ["SSL connection closed by peer", "that kafka.security_protocol is the one of this port"],
            ),
            (
                "no TLS",
                KafkaConfig {
                    security_protocol: SecurityProtocol::SaslPlaintext,
                    ssl_ca_file: None,
                    connect_timeout_ms: 5_000,
                    ..config()
                },
                ["Disconnected", "that kafka.security_protocol is the one of this port"],
            ),
        ];
        let cases = cases.map(|(case, config, parts)| async move { (case, refusal(config).await, parts) });
        for (case, said, parts) in futures::future::join_all(cases).await {
            println!("{case}: {said}");
            assert_told(case, &said, &parts);
        }
    }
}

mod cql {
    use std::process::Command;

    use herald_core::conformance;
    use herald_distributed::cql::{CqlConfig, CqlStores, CqlUrl, migrate};

    use super::*;

    /// The Cassandra that wants TLS and logins. It takes as much memory as all other servers together, so it runs for this
    /// test alone.
    struct Server;

    impl Server {
        fn start() -> Self {
            Self::servers("up");
            Self
        }

        fn servers(command: &str) {
            let done = Command::new(variable("HERALD_TEST_SERVERS")).args([command, "cassandra-secure"]).status();
            assert!(done.unwrap().success(), "servers {command} cassandra-secure failed");
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            Self::servers("down");
        }
    }

    fn config() -> CqlConfig {
        CqlConfig {
            user: "cassandra".into(),
            password_file: Some(file("cassandra.password")),
            tls: true,
            tls_ca_file: Some(file("ca.pem")),
            replication: "{'class': 'SimpleStrategy', 'replication_factor': 1}".into(),
            request_timeout_ms: 30_000,
            ..CqlConfig::default()
        }
    }

    async fn refusal(url: &CqlUrl, config: CqlConfig) -> String {
        format!("{:#}", migrate(url, &config).await.expect_err("it is refused"))
    }

    #[tokio::test]
    async fn stores_work_over_tls_with_a_login_and_whoever_is_refused_is_told_what_to_mend() {
        let _server = Server::start();
        let keyspace = format!("t{}", Uuid::now_v7().simple());
        let url: CqlUrl = format!("cql://{}/{keyspace}", variable("HERALD_TEST_CQL_SECURE")).parse().unwrap();
        migrate(&url, &config()).await.unwrap();
        let stores = CqlStores::open(&url, &config()).await.unwrap();
        conformance::admissions::all(stores.admissions, "acme").await;

        let wrong = wrong_password();
        let cases = [
            (
                "a wrong password",
                CqlConfig { password_file: Some(wrong.path().to_owned()), ..config() },
                ["incorrect", "cql.password_file"],
            ),
            (
                "no login",
                CqlConfig { user: String::new(), password_file: None, ..config() },
                ["want a login", "set cql.user and cql.password_file"],
            ),
            ("no password", CqlConfig { password_file: None, ..config() }, ["\"cassandra\"", "set cql.password_file"]),
            (
                "a missing file",
                CqlConfig { password_file: Some("/nowhere".into()), ..config() },
                ["/nowhere cannot be read", "cql.password_file"],
            ),
            ("no authority", CqlConfig { tls_ca_file: None, ..config() }, ["with cql.tls", "set cql.tls_ca_file"]),
            (
                "another authority",
                CqlConfig { tls_ca_file: Some(file("stranger.pem")), ..config() },
                ["invalid peer certificate", "cql.tls_ca_file"],
            ),
            ("no TLS", CqlConfig { tls: false, tls_ca_file: None, ..config() }, ["cannot be used", "cql.tls"]),
        ];
        for (case, config, parts) in cases {
            let said = refusal(&url, config).await;
            println!("{case}: {said}");
            assert_told(case, &said, &parts);
        }
        let plain = format!("cql://{}/{keyspace}", variable("HERALD_TEST_CQL")).parse().unwrap();
        let said = refusal(&plain, config()).await;
        println!("a server without TLS: {said}");
        assert_told("a server without TLS", &said, &["cannot be used", "cql.tls"]);
    }
}

mod redis {
    use herald_core::{
        conformance,
        ids::TenantId,
        ports::{
            inbox::Item,
            sessions::{Inlet, Sessions},
        },
    };
    use herald_distributed::redis::{Redis, RedisConfig, claims::RedisClaims, sessions::RedisSessions};
    use tokio::sync::Notify;

    use super::*;

    fn config() -> RedisConfig {
        RedisConfig {
            prefix: format!("test-{}", Uuid::now_v7().simple()),
            password_file: file("password").to_str().unwrap().into(),
            ca_file: file("ca.pem").to_str().unwrap().into(),
            timeout_ms: 5_000,
        }
    }

    fn url(scheme: &str) -> String {
        format!("{scheme}://herald@{}", variable("HERALD_TEST_REDIS_SECURE"))
    }

    async fn refusal(url: &str, config: &RedisConfig) -> String {
        format!("{:#}", Redis::connect(url, config).await.err().expect("it is refused"))
    }

    /// Hears that its channel is read.
    #[derive(Default)]
    struct Subscribed(Notify);

    impl Inlet for Subscribed {
        fn frame(&self, _: &Item) {}

        fn gap(&self) {
            self.0.notify_one();
        }
    }

    #[tokio::test]
    async fn claims_and_sessions_work_over_tls_with_a_login() {
        let redis = Redis::connect(&url("rediss"), &config()).await.unwrap();
        conformance::claims::all(Arc::new(RedisClaims::new(redis.clone())), 0).await;
        let (sessions, subscribed) = (RedisSessions::new(redis), Arc::new(Subscribed::default()));
        let _here = sessions.register(&TenantId::trusted("acme"), "ada", subscribed.clone()).await.unwrap();
        tokio::time::timeout(Duration::from_secs(30), subscribed.0.notified()).await.expect("its channel is read");
    }

    #[tokio::test]
    async fn whoever_is_refused_is_told_what_to_mend() {
        let wrong = wrong_password();
        let wrong = RedisConfig { password_file: wrong.path().to_str().unwrap().into(), ..config() };
        let missing = RedisConfig { password_file: "/nowhere".into(), ..config() };
        let plain = format!("rediss://herald@{}", variable("HERALD_TEST_REDIS"));
        let cases = [
            ("a wrong password", url("rediss"), wrong, ["authentication failed", "redis.password_file"]),
            (
                "no password",
                url("rediss"),
                RedisConfig { password_file: String::new(), ..config() },
                ["logs in with a password", "set redis.password_file"],
            ),
            ("a missing file", url("rediss"), missing, ["/nowhere cannot be read", "redis.password_file"]),
            (
                "the system's authorities",
                url("rediss"),
                RedisConfig { ca_file: String::new(), ..config() },
                ["invalid peer certificate", "redis.ca_file"],
            ),
            (
                "another authority",
                url("rediss"),
                RedisConfig { ca_file: file("stranger.pem").to_str().unwrap().into(), ..config() },
                ["invalid peer certificate", "redis.ca_file"],
            ),
            ("authorities without TLS", url("redis"), config(), ["redis.ca_file is set", "use rediss://"]),
            (
                "no TLS",
                url("redis"),
                RedisConfig { ca_file: String::new(), ..config() },
                ["cannot be used", "rediss://"],
            ),
            ("a port without TLS", plain, config(), ["cannot be used", "rediss://"]),
        ];
        for (case, url, config, parts) in cases {
            let said = refusal(&url, &config).await;
            println!("{case}: {said}");
            assert_told(case, &said, &parts);
        }
    }
}
