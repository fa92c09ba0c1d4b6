//! The stores, on ScyllaDB or Apache Cassandra. [`schema/0001_first.cql`](../src/cql/schema/0001_first.cql) says what is
//! in the tables.
//!
//! Nobody holds a lock here, and any number of processes use one keyspace. So every write is one of three kinds:
//!
//! - **Facts of the log** (totals, receipts, the users' log, items, places). They are functions of a prefix of the log,
//!   and whoever reads the same records writes the same rows. They carry a timestamp that the log gives them, never a
//!   clock's: so a row written again, or late by somebody who lost the partition, changes nothing.
//! - **Compare and set** (idempotency keys, people, policies, erasures, marks and counts of a feed, erased names): by
//!   lightweight transactions, and never by anything else, since the two do not order each other.
//! - **Sets** (members of audiences, entries of lists): a row is there or not, whatever was there before. The servers'
//!   clocks order an addition and a removal of the same member that follow each other within their difference.

mod admissions;
mod audit;
mod config;
mod directory;
mod erasures;
mod feeds;
mod inbox;
mod ledger;
mod members;
mod migrate;
mod people;
mod receipts;
mod registry;
mod request_list;
mod requests;
mod session;
mod spans;

use std::sync::Arc;

use self::session::Db;
pub use self::{
    admissions::AdmissionStore,
    audit::AuditStore,
    config::{Consistency, CqlConfig, CqlUrl, InvalidUrl},
    directory::DirectoryStore,
    erasures::ErasureStore,
    inbox::InboxStore,
    ledger::LedgerStore,
    migrate::{Migrated, migrate},
    registry::RegistryStore,
};

/// All stores of one keyspace.
#[derive(Clone)]
pub struct CqlStores {
    /// Idempotency keys.
    pub admissions: Arc<AdmissionStore>,
    /// Users and audiences.
    pub directory: Arc<DirectoryStore>,
    /// Books and receipts.
    pub ledger: Arc<LedgerStore>,
    /// Feeds.
    pub inbox: Arc<InboxStore>,
    /// Erasures of persons.
    pub erasures: Arc<ErasureStore>,
    /// Policies.
    pub registry: Arc<RegistryStore>,
    /// Calls of operators.
    pub audit: Arc<AuditStore>,
}

impl CqlStores {
    /// Connects to the servers and prepares all statements.
    ///
    /// # Errors
    /// Where the servers cannot be reached, and where the keyspace does not have this binary's schema.
    pub async fn open(url: &CqlUrl, config: &CqlConfig) -> anyhow::Result<Self> {
        let db = Db::new(session::connect(url, config, true).await?, config);
        migrate::check(&db).await?;
        let directory = Arc::new(DirectoryStore::new(&db, config.members_a_slice).await?);
        let inbox = Arc::new(InboxStore::new(&db).await?);
        let ledger = Arc::new(LedgerStore::new(&db, config.receipts_retention_days).await?);
        let erasures = ErasureStore::new(&db, directory.clone(), inbox.clone(), ledger.clone()).await?;
        Ok(Self {
            admissions: Arc::new(AdmissionStore::new(&db).await?),
            directory,
            erasures: Arc::new(erasures),
            ledger,
            inbox,
            registry: Arc::new(RegistryStore::new(&db).await?),
            audit: Arc::new(AuditStore::new(&db).await?),
        })
    }
}
