//! `herald verify`: whether a data directory is whole, from checksums up to the books.
//!
//! Nothing of the journal is changed. The stores are opened as a start would open them, which may write off the torn end
//! of their own journal.

mod backup;
mod in_flight;

use std::{path::Path, sync::Arc};

use herald_core::{ids::NotificationId, policy::kind, providers::ProviderRow};
use herald_embedded::{
    data_dir::{DataDir, DataDirError},
    kv::fjall::{FjallConfig, FjallKv},
    log::inspect::{JournalReader, JournalSize},
    store::{check::check_row, ledger::LedgerStore, registry::RegistryStore},
};
use serde::Serialize;

pub use self::backup::{BackupReport, verify_backup};
use self::in_flight::InFlight;
use crate::secrets;

/// Faults that are listed; more are counted.
const MAX_LISTED: usize = 1_000;
/// Books that are read at a time.
const BOOKS_A_READ: usize = 1_000;

/// What was found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Segments of the journal that are needed.
    pub segments: u64,
    /// Their bytes.
    pub journal_bytes: u64,
    /// Records that are not gone.
    pub records: u64,
    /// Rows of the stores.
    pub rows: u64,
    /// Notifications whose books were checked.
    pub notifications: u64,
    /// Instances on their way.
    pub in_flight: u64,
    /// What is wrong and where, up to a bound.
    pub faults: Vec<Fault>,
    /// How many faults there are, listed or not.
    pub fault_count: u64,
    /// What could not be checked because of them.
    pub not_checked: Vec<&'static str>,
}

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Where: `journal`, `stores`, `secrets`, `books` or `backup`.
    pub part: &'static str,
    /// What.
    pub what: String,
}

impl Report {
    /// Whether everything was checked and is as it must be.
    pub fn is_sound(&self) -> bool {
        self.fault_count == 0 && self.not_checked.is_empty()
    }

    fn fault(&mut self, part: &'static str, what: impl Into<String>) {
        self.fault_count += 1;
        if self.faults.len() < MAX_LISTED {
            self.faults.push(Fault { part, what: what.into() });
        }
    }
}

/// Checks a data directory that no process uses. An error where it cannot be looked into at all.
pub fn verify(path: &Path) -> Result<Report, DataDirError> {
    let directory = DataDir::open_existing(path)?;
    let mut report = Report::default();
    let stores = open_stores(&directory, &mut report);
    // Without the stores nothing tells what they know; the journal is checked for itself then.
    let store_flush = stores.as_ref().map_or(u64::MAX, |stores| stores.last_flush());
    let journal = open_journal(&directory, store_flush, &mut report);
    if let Some(stores) = &stores {
        check_secrets(&directory, stores.clone(), &mut report);
    }
    match (&journal, &stores) {
        (Some(journal), Some(stores)) => check_books(journal, stores.clone(), &mut report),
        _ => report.not_checked.push("books"),
    }
    Ok(report)
}

fn open_stores(directory: &DataDir, report: &mut Report) -> Option<Arc<FjallKv>> {
    let path = directory.store_path();
    let stores = match FjallKv::open(&path, FjallConfig::default()) {
        Ok(stores) => stores,
        Err(error) => {
            report.fault("stores", format!("{} cannot be opened: {error}", path.display()));
            report.not_checked.push("rows of the stores");
            return None;
        }
    };
    for row in stores.snapshot().rows() {
        report.rows += 1;
        if let Err(error) = row.as_ref().map_err(Clone::clone).and_then(check_row) {
            let key = row.as_ref().map(|(key, _)| hex(key)).unwrap_or_default();
            report.fault("stores", format!("row {} ({key}): {error}", report.rows));
            // What cannot be read ends the walk; what cannot be understood does not.
            if row.is_err() {
                report.not_checked.push("rows of the stores behind the one that cannot be read");
                break;
            }
        }
    }
    Some(Arc::new(stores))
}

fn open_journal(directory: &DataDir, store_flush: u64, report: &mut Report) -> Option<JournalReader> {
    let disk = match directory.journal_disk() {
        Ok(disk) => Arc::new(disk),
        Err(error) => {
            report.fault("journal", format!("{}: {error}", directory.journal_path().display()));
            report.not_checked.push("records of the journal");
            return None;
        }
    };
    let (journal, faults) = JournalReader::open(disk, directory.identity(), store_flush);
    faults.into_iter().for_each(|what| report.fault("journal", what));
    let Some(journal) = journal else {
        report.not_checked.push("records of the journal");
        return None;
    };
    let JournalSize { segments, bytes, records } = journal.size();
    (report.segments, report.journal_bytes, report.records) = (segments, bytes, records);
    journal.contradictions().into_iter().for_each(|what| report.fault("journal", what));
    for at in journal.partitions() {
        for record in journal.records(at) {
            if let Err(what) = record {
                report.fault("journal", what);
            }
        }
    }
    Some(journal)
}

/// Keys in the directory, such as `herald dev` makes, must open what providers' credentials were sealed with. Of keys that
/// lie elsewhere nothing here tells which they are.
fn check_secrets(directory: &DataDir, stores: Arc<FjallKv>, report: &mut Report) {
    const MEND: &str = "put the file back as it was, or set the provider again with its credentials";
    let keys = match secrets::in_directory(directory.path()) {
        Ok(Some(keys)) => keys,
        Ok(None) => return,
        Err(error) => return report.fault("secrets", format!("{error:#}; {MEND}")),
    };
    let providers = match RegistryStore::new(stores).read(kind::PROVIDER, "", None, usize::MAX) {
        Ok(providers) => providers,
        Err(error) => return report.fault("secrets", format!("the providers cannot be read: {error}")),
    };
    for stored in providers {
        let name = &stored.key;
        let row: ProviderRow = match serde_json::from_slice(stored.value.as_deref().unwrap_or_default()) {
            Ok(row) => row,
            Err(error) => {
                report.fault("stores", format!("provider {name} cannot be read: {error}"));
                continue;
            }
        };
        let opened = row.credentials.as_ref().map(|sealed| keys.open(&row.secret_context(), sealed));
        if let Some(Err(error)) = opened {
            let what = format!("secrets.key does not open the credentials of provider {name}: {error}; {MEND}");
            report.fault("secrets", what);
        }
    }
}

/// Manifests minus receipts must be what is on its way, for each notification and channel, in count and in hash sum.
fn check_books(journal: &JournalReader, stores: Arc<FjallKv>, report: &mut Report) {
    let mut in_flight = InFlight::read(journal);
    report.in_flight = in_flight.instances();
    let ledger = LedgerStore::new(stores);
    let mut after: Option<NotificationId> = None;
    loop {
        let books = match ledger.books(after, BOOKS_A_READ) {
            Ok(books) => books,
            Err(error) => {
                report.fault("books", format!("they cannot be read: {error}"));
                report.not_checked.push("books behind the ones that cannot be read");
                return;
            }
        };
        let Some((last, _)) = books.last() else { break };
        after = Some(*last);
        for (id, row) in books {
            report.notifications += 1;
            in_flight.settle(id, row).into_iter().for_each(|what| report.fault("books", what));
        }
    }
    let (notifications, faults) = in_flight.settle_rest();
    report.notifications += notifications;
    faults.into_iter().for_each(|what| report.fault("books", what));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
