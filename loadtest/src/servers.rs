//! Kafka, Cassandra and Redis as `deploy/local/servers up` starts them: where they are, and what CPU time they take.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;

use crate::process::{Cpu, cpu_of};

/// What one Herald has of the servers: a log, a keyspace and keys of its own.
pub struct Servers {
    settings: Vec<String>,
    processes: Vec<(String, u32)>,
}

impl Servers {
    /// A new part of the servers that `target/servers/env` names. Redis is emptied: a claim takes some 200 bytes for a day,
    /// so a few runs would fill it.
    ///
    /// # Errors
    /// If they are not named or do not run.
    pub fn fresh() -> anyhow::Result<Self> {
        empty(&named("REDIS")?).context("Redis cannot be emptied")?;
        let name = format!("load{:x}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros());
        let settings = vec![
            format!("log=kafka://{}/{name}", named("KAFKA")?),
            format!("store=cql://{}/{name}", named("CQL")?),
            format!("cache=redis://{}", named("REDIS")?),
            format!("redis.prefix={name}"),
            "kafka.replication_factor=1".to_owned(),
            "kafka.min_insync_replicas=1".to_owned(),
            "cql.replication={'class': 'SimpleStrategy', 'replication_factor': 1}".to_owned(),
        ];
        let status = Command::new(named("SERVERS")?).arg("status").output().context("the servers' script")?;
        let processes = String::from_utf8(status.stdout)?.lines().filter_map(process_of).collect();
        Ok(Self { settings, processes })
    }

    /// Herald's settings for them.
    pub fn settings(&self) -> &[String] {
        &self.settings
    }

    /// CPU time of each since its start.
    pub fn cpu(&self) -> anyhow::Result<Vec<(String, Cpu)>> {
        self.processes.iter().map(|(name, pid)| Ok((name.clone(), cpu_of(*pid)?))).collect()
    }
}

/// See <https://redis.io/docs/latest/develop/reference/protocol-spec/#inline-commands>.
fn empty(redis: &str) -> anyhow::Result<()> {
    let mut connection = TcpStream::connect(redis)?;
    connection.write_all(b"FLUSHALL SYNC\r\n")?;
    let mut answer = [0; 5];
    connection.read_exact(&mut answer)?;
    anyhow::ensure!(&answer == b"+OK\r\n", "it answered {:?}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn named(server: &str) -> anyhow::Result<String> {
    let variable = format!("HERALD_TEST_{server}");
    std::env::var(&variable).with_context(|| {
        format!("{variable} is not set: run `deploy/local/servers up`, then `source target/servers/env`")
    })
}

/// Reads a line such as `kafka runs at 127.0.0.1:9092 as process 7`.
fn process_of(line: &str) -> Option<(String, u32)> {
    let (name, _) = line.split_once(" runs at ")?;
    let (_, pid) = line.rsplit_once(" as process ")?;
    Some((name.to_owned(), pid.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_read_from_the_status() {
        let line = "kafka3-1 runs at 127.0.0.1:9092 as process 7";
        assert_eq!(process_of(line), Some(("kafka3-1".to_owned(), 7)));
        assert_eq!(process_of("nothing runs"), None);
    }
}
