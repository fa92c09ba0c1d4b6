//! Versions of the schema.
//!
//! A version is a file of statements that can be repeated (`IF NOT EXISTS`). Whoever migrates holds a lock, which is a
//! row that expires, and raises the version only from the one it read; so two that migrate at once, one that was killed
//! and one that runs again do no harm.

use std::time::Duration;

use anyhow::{Context, bail};
use uuid::Uuid;

use super::{
    config::{CqlConfig, CqlUrl},
    session::{Db, connect},
};

/// The statements of each version, from the first on.
const VERSIONS: &[&str] = &[include_str!("schema/0001_first.cql")];
/// How long a lock lasts whose holder does not come back, in seconds. A version must take less.
const LOCK_S: i32 = 120;
const LOCK_POLL: Duration = Duration::from_millis(500);
const LOCK_POLLS: u32 = 600;

/// What a migration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// The version that was there; 0 for none.
    pub from: u32,
    /// The version that is there now.
    pub to: u32,
}

/// Makes the keyspace and its tables, or brings them to this binary's version.
///
/// # Errors
/// Where the servers cannot be reached or refuse a statement, and where the schema is newer than this binary. It can
/// be repeated whatever happened.
pub async fn migrate(url: &CqlUrl, config: &CqlConfig) -> anyhow::Result<Migrated> {
    let keyspace = &url.keyspace;
    let session = connect(url, config, false).await?;
    let db = Db::new(session, config);
    let make = format!("CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {}", config.replication);
    db.alter(&make).await.context("the keyspace cannot be made; is `replication` right?")?;
    db.enter(keyspace).await?;
    let table = "CREATE TABLE IF NOT EXISTS schema_version (name text PRIMARY KEY, version int, owner uuid)";
    db.alter(table).await?;
    let lock = Lock::take(&db).await?;
    let migrated = raise(&db, &lock).await;
    // A lock that is not let go expires by itself.
    lock.release(&db).await?;
    migrated
}

/// Refuses a schema that is not this binary's.
pub(super) async fn check(db: &Db) -> anyhow::Result<()> {
    match stored(db).await {
        Ok(version) if version == newest() => Ok(()),
        Ok(version) if version > newest() => refuse_newer(version),
        Ok(version) => {
            bail!("the schema has version {version}, and this binary needs {}: run `herald migrate`", newest())
        }
        Err(error) => Err(error.context("the schema's version cannot be read: has `herald migrate` been run?")),
    }
}

fn newest() -> u32 {
    VERSIONS.len() as u32
}

fn refuse_newer<T>(version: u32) -> anyhow::Result<T> {
    bail!("the schema has version {version}, and this binary knows up to {}: run a newer binary", newest())
}

async fn stored(db: &Db) -> anyhow::Result<u32> {
    let read = db.plain("SELECT version FROM schema_version WHERE name = 'schema'").await?;
    let row: Option<(Option<i32>,)> = db.row(&read, ()).await?;
    Ok(row.and_then(|(version,)| version).unwrap_or(0).try_into()?)
}

async fn raise(db: &Db, lock: &Lock) -> anyhow::Result<Migrated> {
    let from = stored(db).await?;
    if from > newest() {
        return refuse_newer(from);
    }
    let raised = db.conditional("UPDATE schema_version SET version = ? WHERE name = 'schema' IF version = ?").await?;
    for (index, statements) in VERSIONS.iter().enumerate().skip(from as usize) {
        lock.renew(db).await?;
        for statement in split(statements) {
            db.alter(&statement).await?;
        }
        let before = (index > 0).then_some(index as i32);
        if !db.write_if(&raised, (index as i32 + 1, before)).await? {
            bail!("somebody else changed the schema's version meanwhile: run `herald migrate` again");
        }
    }
    Ok(Migrated { from, to: newest() })
}

/// The statements of a file, without comments.
fn split(file: &str) -> Vec<String> {
    let lines = file.lines().filter(|line| !line.trim_start().starts_with("--"));
    let text = lines.collect::<Vec<_>>().join("\n");
    text.split(";\n")
        .map(|statement| statement.trim().trim_end_matches(';').to_owned())
        .filter(|s| !s.is_empty())
        .collect()
}

/// The right to migrate.
struct Lock(Uuid);

impl Lock {
    async fn take(db: &Db) -> anyhow::Result<Self> {
        let take =
            db.conditional("INSERT INTO schema_version (name, owner) VALUES ('lock', ?) IF NOT EXISTS USING TTL ?");
        let (take, owner) = (take.await?, Uuid::new_v4());
        for _ in 0..LOCK_POLLS {
            if db.write_if(&take, (owner, LOCK_S)).await? {
                return Ok(Self(owner));
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
        bail!("somebody else has been migrating for five minutes")
    }

    async fn renew(&self, db: &Db) -> anyhow::Result<()> {
        let renew = "UPDATE schema_version USING TTL ? SET owner = ? WHERE name = 'lock' IF owner = ?";
        let renewed = db.write_if(&db.conditional(renew).await?, (LOCK_S, self.0, self.0)).await?;
        anyhow::ensure!(renewed, "the right to migrate was lost to somebody else: run `herald migrate` again");
        Ok(())
    }

    async fn release(&self, db: &Db) -> anyhow::Result<()> {
        let release = db.conditional("DELETE FROM schema_version WHERE name = 'lock' IF owner = ?").await?;
        db.write_if(&release, (self.0,)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_its_statements() {
        let file = "-- one; two\nCREATE TABLE a (\n  b int\n);\n\n-- c\nCREATE TABLE d (e int);\n";
        assert_eq!(split(file), ["CREATE TABLE a (\n  b int\n)", "CREATE TABLE d (e int)"]);
        for version in VERSIONS {
            for statement in split(version) {
                assert!(statement.contains(" IF NOT EXISTS "), "this cannot be repeated: {statement}");
            }
        }
    }
}
