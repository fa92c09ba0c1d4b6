//! A session, and how statements are run on it: prepared, bounded in number, and with errors that the ports know.
//!
//! There are three kinds of statements. Reads and writes may be repeated, so the driver repeats them on another server
//! where it helps. Conditional ones (lightweight transactions) are not: an unanswered one may have been applied.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use herald_core::ports::StoreError;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use scylla::{
    client::{execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder},
    deserialize::row::DeserializeRow,
    errors::{
        ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, MetadataError, NewSessionError,
    },
    response::query_result::QueryResult,
    serialize::row::SerializeRow,
    statement::{
        Consistency as Answers, SerialConsistency,
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
    value::{CqlValue, Row},
};
use tokio::sync::Semaphore;

use super::config::{Consistency, CqlConfig, CqlUrl};
use crate::credentials;

const SCHEMA_POLL: Duration = Duration::from_millis(50);
/// Statements of one call that run at once.
const AT_ONCE: usize = 64;
/// How often a compare and set is tried again after somebody else was faster.
pub(super) const RACES: usize = 32;

/// Connects to the servers. `keyspace` is used unless it is `None`.
pub(super) async fn connect(url: &CqlUrl, config: &CqlConfig, keyspace: bool) -> anyhow::Result<Session> {
    let (answers, serial) = match config.consistency {
        Consistency::LocalQuorum => (Answers::LocalQuorum, SerialConsistency::LocalSerial),
        Consistency::Quorum => (Answers::Quorum, SerialConsistency::Serial),
    };
    let profile = ExecutionProfile::builder()
        .consistency(answers)
        .serial_consistency(Some(serial))
        .request_timeout(Some(Duration::from_millis(config.request_timeout_ms)))
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(&url.nodes)
        .connection_timeout(Duration::from_millis(config.connect_timeout_ms))
        .default_execution_profile_handle(profile.into_handle())
        // A change of the schema is waited for, and its statements are prepared by a session of their own.
        .schema_agreement_interval(SCHEMA_POLL)
        .refresh_metadata_on_auto_schema_agreement(false);
    if !config.datacenter.is_empty() {
        builder = builder.prefer_datacenter(config.datacenter.clone());
    }
    if let Some(password) = password(config)? {
        builder = builder.user(&config.user, password);
    }
    if let Some(tls) = tls(config)? {
        builder = builder.tls_context(Some(tls));
    }
    if keyspace {
        builder = builder.use_keyspace(&url.keyspace, false);
    }
    builder.build().await.map_err(|error| {
        let (trouble, mend) = trouble(&error);
        anyhow::anyhow!("{url} cannot be used: {trouble}; {mend}")
    })
}

/// Why there is no session, and what to look at. The driver's errors say everything once more at each level.
fn trouble(error: &NewSessionError) -> (String, &'static str) {
    let NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
        last_connection_error: last,
    })) = error
    else {
        return (error.to_string(), "check the addresses and what the servers say");
    };
    let kind = match last {
        ConnectionError::ConnectionSetupRequestError(request) => Some(&request.error),
        _ => None,
    };
    let mend = match (last, kind) {
        (ConnectionError::IoError(error), _) if error.get_ref().is_some_and(|error| error.is::<rustls::Error>()) => {
            "check that the servers speak TLS (cql.tls), and that cql.tls_ca_file holds the authority of their \
             certificates and these name the servers' addresses"
        }
        (_, Some(ConnectionSetupRequestErrorKind::MissingAuthentication)) => {
            return ("the servers want a login".to_owned(), "set cql.user and cql.password_file");
        }
        (_, Some(ConnectionSetupRequestErrorKind::DbError(DbError::AuthenticationError, _))) => {
            "check cql.user and what is in cql.password_file"
        }
        _ => "check that the servers run, and set cql.tls if they want TLS",
    };
    (last.to_string(), mend)
}

/// The user's password, if there is a user.
fn password(config: &CqlConfig) -> anyhow::Result<Option<String>> {
    match (&config.password_file, config.user.is_empty()) {
        (None, true) => Ok(None),
        (Some(file), false) => Ok(Some(credentials::password("cql.password_file", file)?)),
        (Some(_), true) => anyhow::bail!("cql.password_file is set, and nobody logs in: set cql.user"),
        (None, false) => anyhow::bail!("the user {:?} logs in with a password: set cql.password_file", config.user),
    }
}

/// What TLS trusts, if there is TLS. Whoever names authorities takes the connection for encrypted.
fn tls(config: &CqlConfig) -> anyhow::Result<Option<Arc<rustls::ClientConfig>>> {
    let file = match (&config.tls_ca_file, config.tls) {
        (None, false) => return Ok(None),
        (Some(file), true) => file,
        (Some(_), false) => anyhow::bail!("cql.tls_ca_file is set, and connections are not encrypted: set cql.tls"),
        (None, true) => anyhow::bail!(
            "with cql.tls the servers' certificates are checked: set cql.tls_ca_file to those that sign them"
        ),
    };
    let pem = credentials::read("cql.tls_ca_file", file)?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.with_context(|| format!("{} is not PEM", file.display()))?;
        roots.add(certificate).with_context(|| format!("{} holds a certificate of no use", file.display()))?;
    }
    anyhow::ensure!(!roots.is_empty(), "{} holds no certificate", file.display());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Some(Arc::new(client.with_root_certificates(roots).with_no_client_auth())))
}

/// A session and the number of statements that may run on it at once.
#[derive(Clone)]
pub(super) struct Db {
    session: Arc<Session>,
    in_flight: Arc<Semaphore>,
}

/// A statement that may be repeated.
pub(super) struct Plain(PreparedStatement);

/// A statement with a condition.
pub(super) struct Conditional(PreparedStatement);

impl Db {
    pub(super) fn new(session: Session, config: &CqlConfig) -> Self {
        Self { session: Arc::new(session), in_flight: Arc::new(Semaphore::new(config.max_in_flight.max(1))) }
    }

    /// Prepares a read or a write.
    pub(super) async fn plain(&self, cql: &str) -> anyhow::Result<Plain> {
        let mut statement = self.session.prepare(cql).await.with_context(|| format!("{cql:?} cannot be prepared"))?;
        statement.set_is_idempotent(true);
        Ok(Plain(statement))
    }

    /// Prepares a conditional write.
    pub(super) async fn conditional(&self, cql: &str) -> anyhow::Result<Conditional> {
        let statement = self.session.prepare(cql).await.with_context(|| format!("{cql:?} cannot be prepared"))?;
        Ok(Conditional(statement))
    }

    /// Uses a keyspace.
    pub(super) async fn enter(&self, keyspace: &str) -> anyhow::Result<()> {
        Ok(self.session.use_keyspace(keyspace, false).await?)
    }

    /// Changes the schema, and waits until all servers have the change.
    pub(super) async fn alter(&self, statement: &str) -> anyhow::Result<()> {
        self.session.query_unpaged(statement, ()).await.with_context(|| format!("refused: {statement}"))?;
        Ok(())
    }

    async fn execute(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<QueryResult, StoreError> {
        let _permit = self.in_flight.acquire().await.map_err(unavailable)?;
        self.session.execute_unpaged(statement, values).await.map_err(unavailable)
    }

    /// Writes.
    pub(super) async fn write(&self, statement: &Plain, values: impl SerializeRow) -> Result<(), StoreError> {
        self.execute(&statement.0, values).await.map(drop)
    }

    /// Reads rows. The statement must bound their number.
    pub(super) async fn rows<R>(&self, statement: &Plain, values: impl SerializeRow) -> Result<Vec<R>, StoreError>
    where
        R: for<'f> DeserializeRow<'f, 'f>,
    {
        let result = self.execute(&statement.0, values).await?.into_rows_result().map_err(damaged)?;
        let rows = result.rows::<R>().map_err(damaged)?;
        rows.map(|row| row.map_err(damaged)).collect()
    }

    /// Reads the first row.
    pub(super) async fn row<R>(&self, statement: &Plain, values: impl SerializeRow) -> Result<Option<R>, StoreError>
    where
        R: for<'f> DeserializeRow<'f, 'f>,
    {
        Ok(self.rows(statement, values).await?.into_iter().next())
    }

    /// Writes rows of one partition in one step.
    pub(super) async fn write_all(&self, statement: &Plain, values: Vec<impl SerializeRow>) -> Result<(), StoreError> {
        let mut batch = Batch::new(BatchType::Unlogged);
        values.iter().for_each(|_| batch.append_statement(statement.0.clone()));
        batch.set_is_idempotent(true);
        let _permit = self.in_flight.acquire().await.map_err(unavailable)?;
        self.session.batch(&batch, values).await.map(drop).map_err(unavailable)
    }

    /// Writes if the condition holds; returns whether it did. An error leaves open whether it was written.
    pub(super) async fn write_if(
        &self,
        statement: &Conditional,
        values: impl SerializeRow,
    ) -> Result<bool, StoreError> {
        applied(self.execute(&statement.0, values).await?)
    }

    /// Writes rows of one partition in one step if the condition of the first statement holds.
    pub(super) async fn write_all_if(
        &self,
        condition: (&Conditional, impl SerializeRow + Send + Sync),
        others: Vec<(&Plain, Box<dyn SerializeRow + Send + Sync>)>,
    ) -> Result<bool, StoreError> {
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.append_statement(condition.0.0.clone());
        let mut values: Vec<Box<dyn SerializeRow + Send + Sync + '_>> = vec![Box::new(condition.1)];
        for (statement, row) in others {
            batch.append_statement(statement.0.clone());
            values.push(row);
        }
        let _permit = self.in_flight.acquire().await.map_err(unavailable)?;
        applied(self.session.batch(&batch, values).await.map_err(unavailable)?)
    }
}

/// Whether a conditional statement was applied: the first column of its first row says so. The other columns vary from
/// server to server.
fn applied(result: QueryResult) -> Result<bool, StoreError> {
    let rows = result.into_rows_result().map_err(damaged)?;
    let row: Row = rows.first_row().map_err(damaged)?;
    match row.columns.first() {
        Some(Some(CqlValue::Boolean(applied))) => Ok(*applied),
        other => Err(damaged(format!("a conditional write was answered with {other:?}"))),
    }
}

/// Runs a bounded number of a call's statements at once; the results are in order.
pub(super) async fn in_parallel<T>(
    statements: Vec<impl Future<Output = Result<T, StoreError>>>,
) -> Result<Vec<T>, StoreError> {
    stream::iter(statements).buffered(AT_ONCE).try_collect().await
}

pub(super) fn unavailable(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

pub(super) fn damaged(error: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged(error.to_string())
}

/// Too many changed the same at once.
pub(super) fn contended(what: &str) -> StoreError {
    StoreError::Unavailable(format!("{what} is changed by too many at once"))
}
