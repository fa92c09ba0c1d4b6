//! The stores: tables of rows in one key-value database.
//!
//! These formats are for good. A table is the first byte of a key; in keys, a text or a blob that is not last is
//! prefixed with its length (2 bytes), and numbers are big-endian, so that a table is sorted by its parts. A value
//! begins with a format byte (1 everywhere), then protobuf unless the table says otherwise ([`rows`]).
//!
//! | table | key | value |
//! |---|---|---|
//! | 0x01 person | tenant, hash of the user, user | profile and preferences, either may be absent |
//! | 0x02 audience | tenant, kind, owner, first (hash, user) | packed ids in the order of (hash, user); see [`chunks`] |
//! | 0x03 erasure | tenant, id | how far it is; see [`erasures`] |
//! | 0x04 erasure by due time | when, tenant, id | nothing |
//! | 0x10 admission | tenant, key | the admission |
//! | 0x11 admission by age | hour of first use, tenant, key | nothing |
//! | 0x20 totals | notification | the books |
//! | 0x21 admitted | notification | the admitted row |
//! | 0x22 tenant's requests | tenant, accepted, notification | nothing |
//! | 0x23 receipts | notification, partition, offset, index in the record | a `Receipts` record without its id |
//! | 0x24 users' log | hour ended, bucket of the user's hash, partition, first offset | by hand; see [`herald_core::user_log`] |
//! | 0x25 notifications by age | day of a change, notification | nothing |
//! | 0x26 requests by dedupe key | tenant, dedupe key, accepted, notification | nothing |
//! | 0x27 export | | the export of expiring receipts that is under way; see [`expiry`] |
//! | 0x30 inbox item | tenant, user, epoch, offset, index | by hand; see [`items`] |
//! | 0x31 inbox section | epoch, shard, offset, section | what the section's items share |
//! | 0x32 inbox section's gone | as 0x31 | how many of its items are gone |
//! | 0x33 feed | tenant, user | counts up to an event; see [`feeds`] |
//! | 0x34 inbox applied | shard | (epoch, offset) of the last record written |
//! | 0x40 policy | kind, key | version, value |
//! | 0x41 unpublished policy | kind, key | nothing |
//! | 0x50 audit | answered, hash of operator, action and call | the operator's call |
//!
//! Tables 0x20 to 0x3F are the history, all others the state; a database on disk keeps them apart ([`crate::kv::fjall`]).
//!
//! Everything that reads before it writes does so under a lock of a stripe ([`locks`]), so there is one process to a
//! database. Calls run to their end without waiting, but for [`crate::kv::ready`] before a write.

pub mod admissions;
pub mod audit;
pub mod check;
pub mod chunks;
pub mod directory;
pub mod erasures;
pub mod expiry;
pub mod feeds;
pub mod inbox;
pub mod items;
pub mod keys;
pub mod ledger;
pub mod locks;
pub mod registry;
pub mod rows;
pub mod totals;
mod user_receipts;

use std::sync::Arc;

use herald_core::ports::StoreError;

use self::{
    admissions::AdmissionStore, audit::AuditStore, directory::DirectoryStore, erasures::ErasureStore,
    inbox::InboxStore, ledger::LedgerStore, registry::RegistryStore,
};
use crate::kv::Kv;

/// All stores of one database.
#[derive(Clone)]
pub struct Stores {
    /// Idempotency keys.
    pub admissions: Arc<AdmissionStore>,
    /// Users and audiences.
    pub directory: Arc<DirectoryStore>,
    /// Erasures of persons.
    pub erasures: Arc<ErasureStore>,
    /// Books and receipts.
    pub ledger: Arc<LedgerStore>,
    /// Feeds.
    pub inbox: Arc<InboxStore>,
    /// Policies.
    pub registry: Arc<RegistryStore>,
    /// Calls of operators.
    pub audit: Arc<AuditStore>,
}

impl Stores {
    /// The stores of a database. There must be one such set a database, since the locks are in it.
    pub fn open(kv: Arc<dyn Kv>) -> Self {
        let directory = Arc::new(DirectoryStore::new(kv.clone()));
        let ledger = Arc::new(LedgerStore::new(kv.clone()));
        let inbox = Arc::new(InboxStore::new(kv.clone()));
        Self {
            admissions: Arc::new(AdmissionStore::new(kv.clone())),
            erasures: Arc::new(ErasureStore::new(kv.clone(), directory.clone(), inbox.clone(), ledger.clone())),
            directory,
            ledger,
            inbox,
            registry: Arc::new(RegistryStore::new(kv.clone())),
            audit: Arc::new(AuditStore::new(kv)),
        }
    }

    /// Deletes a bounded number of rows that are too old. Returns whether there may be more: then call it again soon,
    /// else in a minute. What is kept for `retention_ms` is the ledger; admissions are kept for two days, and
    /// operators' calls for ninety.
    pub fn expire(&self, now_ms: u64, retention_ms: u64) -> Result<bool, StoreError> {
        Ok(self.ledger.expire(now_ms, retention_ms)? || self.expire_others(now_ms)?)
    }

    /// As [`Stores::expire`], for all but the ledger.
    pub fn expire_others(&self, now_ms: u64) -> Result<bool, StoreError> {
        let (admissions, audit) = (self.admissions.expire(now_ms)?, self.audit.expire(now_ms)?);
        Ok(admissions || audit)
    }
}
