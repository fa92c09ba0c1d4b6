//! Where the database is, and how it is used.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::credentials;

/// The port of CQL servers.
const DEFAULT_PORT: u16 = 9042;

/// How the database is used. See [`CqlUrl`] for where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CqlConfig {
    /// The user; empty where the servers ask for none.
    pub user: String,
    /// A file that holds the user's password.
    pub password_file: Option<PathBuf>,
    /// Whether connections are encrypted. The servers' certificates must name their addresses.
    pub tls: bool,
    /// A file of PEM certificates that sign the servers' ones.
    pub tls_ca_file: Option<PathBuf>,
    /// The datacenter whose servers are used; empty for all.
    pub datacenter: String,
    /// How many replicas answer for a read or a write. Reads see what was written only if the two overlap, so nothing
    /// less than a quorum can be set.
    pub consistency: Consistency,
    /// The replication of the keyspace, as CQL writes it. It is used when `herald migrate` makes the keyspace.
    pub replication: String,
    /// How long one statement may take, in milliseconds. Longer than the servers' own timeouts, so that they can say
    /// what became of it.
    pub request_timeout_ms: u64,
    /// How long a connection may take to be made, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Statements that run at once; more wait.
    pub max_in_flight: usize,
    /// How long receipts, and requests after their end, are kept, in days.
    pub receipts_retention_days: u32,
    /// Members of an audience from which on a partition of them is cut.
    pub members_a_slice: u32,
}

impl Default for CqlConfig {
    fn default() -> Self {
        Self {
            user: String::new(),
            password_file: None,
            tls: false,
            tls_ca_file: None,
            datacenter: String::new(),
            consistency: Consistency::LocalQuorum,
            replication: "{'class': 'NetworkTopologyStrategy', 'replication_factor': 3}".to_owned(),
            request_timeout_ms: 5_000,
            connect_timeout_ms: 3_000,
            max_in_flight: 512,
            receipts_retention_days: 30,
            members_a_slice: 50_000,
        }
    }
}

/// How many replicas answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Most of those in the datacenter: for one that serves alone.
    #[default]
    LocalQuorum,
    /// Most of all.
    Quorum,
}

/// `cql://host:port,host:port/keyspace`; the port is 9042 where it is not said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CqlUrl {
    /// Servers to ask for the others, as `host:port`.
    pub nodes: Vec<String>,
    /// The keyspace.
    pub keyspace: String,
}

/// A URL that names no database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is not cql://host:port,host:port/keyspace: {why}")]
pub struct InvalidUrl {
    url: String,
    why: &'static str,
}

impl FromStr for CqlUrl {
    type Err = InvalidUrl;

    fn from_str(url: &str) -> Result<Self, InvalidUrl> {
        let invalid = |why| InvalidUrl { url: credentials::shown(url), why };
        let rest = url.strip_prefix("cql://").ok_or_else(|| invalid("it does not begin with cql://"))?;
        let (nodes, keyspace) = rest.split_once('/').ok_or_else(|| invalid("the keyspace is missing"))?;
        let starts_well = keyspace.starts_with(|c: char| c.is_ascii_lowercase());
        let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !starts_well || keyspace.len() > 48 || !keyspace.chars().all(named) {
            return Err(invalid("a keyspace is a letter and up to 47 of a-z, 0-9 and _"));
        }
        let node = |node: &str| {
            if node.contains('@') {
                return Err(invalid("cql.user and cql.password_file say who logs in"));
            }
            let (host, port) = match node.rsplit_once(':') {
                Some((host, port)) => (host, port.parse().map_err(|_| invalid("a port is not a number up to 65535"))?),
                None => (node, DEFAULT_PORT),
            };
            if host.is_empty() || host.contains(' ') {
                return Err(invalid("a host is missing, or is none"));
            }
            Ok(format!("{host}:{port}"))
        };
        Ok(Self { nodes: nodes.split(',').map(node).collect::<Result<_, _>>()?, keyspace: keyspace.to_owned() })
    }
}

impl fmt::Display for CqlUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cql://{}/{}", self.nodes.join(","), self.keyspace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_servers_and_a_keyspace() {
        let url: CqlUrl = "cql://a:1,b,[::1]:3/herald_1".parse().unwrap();
        assert_eq!(url.nodes, ["a:1", "b:9042", "[::1]:3"]);
        assert_eq!(url.keyspace, "herald_1");
        assert_eq!(url.to_string().parse(), Ok(url));
        for bad in
            ["cql://a", "a/k", "cql:///k", "cql://a/", "cql://a/K", "cql://a/k;drop", "cql://u@a/k", "cql://a:x/k"]
        {
            let error = bad.parse::<CqlUrl>().unwrap_err();
            assert!(error.to_string().contains("cql://host:port"), "{error}");
        }
        let error = "cql://me:secret@a/k".parse::<CqlUrl>().unwrap_err().to_string();
        assert!(error.contains("cql.password_file") && !error.contains("secret"), "{error}");
    }
}
