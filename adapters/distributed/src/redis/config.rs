//! How a Redis is reached.

use std::{path::Path, time::Duration};

use anyhow::Context;
use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates,
    cluster::{ClusterClient, ClusterClientBuilder},
    io::tcp::TcpSettings,
};
use serde::{Deserialize, Serialize};

use crate::credentials;

/// How a server is used. Where it is says a URL: `redis://[user@]host:port[/database]`, with TLS `rediss://...`; for Redis
/// Cluster `redis+cluster://host:port,...` or `rediss+cluster://...`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisConfig {
    /// What all keys begin with, so that installations can share a server.
    pub prefix: String,
    /// A file that holds the password; empty for none.
    pub password_file: String,
    /// A PEM file with the authorities that the server's certificate is checked against; empty for the system's.
    pub ca_file: String,
    /// How long one round trip may take, the connection included.
    pub timeout_ms: u64,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self { prefix: "herald".into(), password_file: String::new(), ca_file: String::new(), timeout_ms: 500 }
    }
}

/// Clients that have not connected yet.
pub(super) struct Clients {
    /// One for each address that was named.
    pub(super) nodes: Vec<Client>,
    /// For a cluster.
    pub(super) cluster: Option<ClusterClient>,
}

impl RedisConfig {
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.max(1))
    }

    pub(super) fn clients(&self, url: &str) -> anyhow::Result<Clients> {
        let (scheme, rest) = url
            .split_once("://")
            .with_context(|| format!("{:?} is not the URL of a Redis", credentials::shown(url)))?;
        let (tls, cluster) = match scheme {
            "redis" => (false, false),
            "rediss" => (true, false),
            "redis+cluster" => (false, true),
            "rediss+cluster" => (true, true),
            other => anyhow::bail!(
                "{other}:// is not known; a Redis is redis://, rediss://, redis+cluster:// or rediss+cluster://"
            ),
        };
        // All nodes of a cluster have the user of the first.
        let (user, hosts) = rest.rsplit_once('@').map_or((None, rest), |(user, hosts)| (Some(user), hosts));
        let password = self.password()?;
        anyhow::ensure!(
            !user.is_some_and(|user| user.contains(':')),
            "the URL of the Redis at {hosts} has a password in it: put it into a file and set redis.password_file"
        );
        // The server would take a client that does not log in for its default user.
        anyhow::ensure!(
            user.is_none_or(str::is_empty) || password.is_some(),
            "the user of the Redis at {hosts} logs in with a password: set redis.password_file"
        );
        let certificates = TlsCertificates { client_tls: None, root_cert: self.authorities(hosts, tls)? };
        let mut infos: Vec<ConnectionInfo> = Vec::new();
        let hosts: Vec<&str> = if cluster { hosts.split(',').collect() } else { vec![hosts] };
        for host in hosts {
            let user = user.map_or(String::new(), |user| format!("{user}@"));
            let url = format!("{}://{user}{host}", if tls { "rediss" } else { "redis" });
            let info = url.into_connection_info().with_context(|| format!("{host:?} is not the address of a Redis"))?;
            let settings = match &password {
                Some(password) => info.redis_settings().clone().set_password(password),
                None => info.redis_settings().clone(),
            };
            // A peer that is gone without a word is given up.
            let tcp = TcpSettings::default().set_user_timeout(self.timeout() * 4);
            infos.push(info.set_redis_settings(settings).set_tcp_settings(tcp));
        }
        let client = |info: &ConnectionInfo| match info.addr() {
            ConnectionAddr::TcpTls { .. } => Client::build_with_tls(info.clone(), certificates.clone()),
            _ => Client::open(info.clone()),
        };
        let nodes = infos.iter().map(client).collect::<Result<_, _>>().context("a client of Redis cannot be made")?;
        let cluster = match cluster {
            false => None,
            true => {
                let builder = ClusterClientBuilder::new(infos)
                    .connection_timeout(self.timeout())
                    .response_timeout(self.timeout())
                    .retries(2);
                let builder = if tls { builder.certs(certificates) } else { builder };
                Some(builder.build().context("a client of the Redis Cluster cannot be made")?)
            }
        };
        Ok(Clients { nodes, cluster })
    }

    fn password(&self) -> anyhow::Result<Option<String>> {
        match self.password_file.as_str() {
            "" => Ok(None),
            file => Ok(Some(credentials::password("redis.password_file", Path::new(file))?)),
        }
    }

    fn authorities(&self, hosts: &str, tls: bool) -> anyhow::Result<Option<Vec<u8>>> {
        if self.ca_file.is_empty() {
            return Ok(None);
        }
        anyhow::ensure!(tls, "redis.ca_file is set, and the Redis at {hosts} is not asked for TLS: use rediss://");
        Ok(Some(credentials::read("redis.ca_file", Path::new(&self.ca_file))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(url: &str, config: &RedisConfig) -> String {
        match config.clients(url) {
            Ok(_) => panic!("{url} is taken"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        let usual = RedisConfig::default();
        assert!(told("localhost", &usual).contains("is not the URL of a Redis"));
        assert!(told("http://localhost", &usual).contains("redis://, rediss://"));
        let config = RedisConfig { ca_file: "/nowhere.pem".into(), ..usual.clone() };
        assert!(told("redis://localhost", &config).contains("use rediss://"));
        let config = RedisConfig { password_file: "/nowhere".into(), ..usual.clone() };
        let missing = told("redis://localhost", &config);
        assert!(missing.contains("/nowhere cannot be read") && missing.contains("redis.password_file"), "{missing}");
        assert!(told("rediss://herald@localhost", &usual).contains("set redis.password_file"));
        let in_url = told("rediss://herald:secret@localhost", &usual);
        assert!(in_url.contains("redis.password_file") && !in_url.contains("secret"), "{in_url}");
    }

    #[test]
    fn a_cluster_has_several_nodes_and_one_user() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        std::fs::write(&file, "secret\n").unwrap();
        let config = RedisConfig { password_file: file.to_str().unwrap().into(), ..RedisConfig::default() };
        let clients = config.clients("redis+cluster://herald@a:7000,b:7001").unwrap();
        assert!(clients.cluster.is_some());
        let settings: Vec<_> = clients.nodes.iter().map(|node| node.get_connection_info().clone()).collect();
        assert_eq!(settings.iter().map(|info| info.addr().to_string()).collect::<Vec<_>>(), ["a:7000", "b:7001"]);
        for info in settings {
            assert_eq!(info.redis_settings().username(), Some("herald"));
            assert_eq!(info.redis_settings().password(), Some("secret"));
        }
    }
}
