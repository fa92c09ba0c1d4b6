//! `herald verify` of a backup: whether every file is what its manifest says.

use std::path::Path;

use herald_embedded::backup::{self, UnusableBackup};
use serde::Serialize;

use super::Fault;

/// What was found of a backup.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BackupReport {
    /// When it was taken, in milliseconds since the epoch; nothing is known of one that was broken off.
    pub taken_ms: Option<u64>,
    /// The version of Herald that took it.
    pub herald_version: String,
    /// Its files, beside the manifest.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Rows of the stores in it.
    pub rows: u64,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// How many faults there are.
    pub fault_count: u64,
}

/// Checks a backup.
///
/// # Errors
/// Where it cannot be looked into at all, or a newer Herald took it.
pub fn verify_backup(path: &Path) -> Result<BackupReport, UnusableBackup> {
    let (manifest, unusable) = match backup::verify(path) {
        Ok((manifest, damaged)) => (Some(manifest), damaged),
        Err(error @ (UnusableBackup::Damaged { .. } | UnusableBackup::Partial(_))) => (None, vec![error]),
        Err(error) => return Err(error),
    };
    let faults = unusable.iter().map(|error| Fault { part: "backup", what: error.to_string() }).collect();
    let report = BackupReport { faults, fault_count: unusable.len() as u64, ..BackupReport::default() };
    Ok(match manifest {
        Some(manifest) => BackupReport {
            taken_ms: Some(manifest.created_ms),
            files: manifest.files.len() as u64,
            bytes: manifest.bytes(),
            rows: manifest.rows,
            herald_version: manifest.herald_version,
            ..report
        },
        None => report,
    })
}
