//! The files of a backup: written with an eye on the room that is left, and checked before they are used.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use serde::Deserialize;

use super::{BackupError, BackupFile, FORMAT_VERSION, MANIFEST_NAME, Manifest, PARTIAL_NAME, UnusableBackup};
use crate::disk::{Disk, DiskFile};

/// How much is copied at a time, and how often the room is looked up.
pub(super) const STEP_BYTES: usize = 1 << 20;

/// Where a backup is written.
pub(super) struct Target<'a> {
    pub disk: &'a dyn Disk,
    /// What must stay free.
    pub reserve_bytes: u64,
}

impl<'a> Target<'a> {
    pub(super) fn create(&'a self, name: String) -> Result<NewFile<'a>, BackupError> {
        let file = self.disk.create(&name).map_err(|e| BackupError::io(format!("create {name}"), e))?;
        Ok(NewFile { target: self, file, name, bytes: 0, crc32c: 0 })
    }

    fn check_room(&self, wanted: u64) -> Result<(), BackupError> {
        let free_bytes = self.disk.free_bytes().map_err(|e| BackupError::io("look up the free space", e))?;
        match free_bytes < self.reserve_bytes.saturating_add(wanted) {
            true => Err(BackupError::NoRoom { free_bytes, reserve_bytes: self.reserve_bytes }),
            false => Ok(()),
        }
    }
}

/// A file that is being written.
pub(super) struct NewFile<'a> {
    target: &'a Target<'a>,
    file: Arc<dyn DiskFile>,
    name: String,
    pub bytes: u64,
    crc32c: u32,
}

impl NewFile<'_> {
    /// Adds at most about [`STEP_BYTES`].
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        self.target.check_room(bytes.len() as u64)?;
        let writing = |e| BackupError::io(format!("write {}", self.name), e);
        self.file.write_at(self.bytes, bytes).map_err(writing)?;
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Makes the content durable.
    pub(super) fn finish(self) -> Result<BackupFile, BackupError> {
        self.file.sync().map_err(|e| BackupError::io(format!("sync {}", self.name), e))?;
        Ok(BackupFile { name: self.name, bytes: self.bytes, crc32c: self.crc32c })
    }
}

/// Reads what a backup in a directory is, and checks every file of it. Returns each that is not what it should be.
///
/// # Errors
/// Where not even the manifest can be used.
pub fn verify(directory: &Path) -> Result<(Manifest, Vec<UnusableBackup>), UnusableBackup> {
    let manifest = manifest(directory)?;
    let faults = manifest.files.iter().filter_map(|file| check(&directory.join(&file.name), file).err()).collect();
    Ok((manifest, faults))
}

/// Reads what a backup in a directory is, and checks every file of it up to the first that is not what it should be.
pub(super) fn checked_manifest(directory: &Path) -> Result<Manifest, UnusableBackup> {
    let manifest = manifest(directory)?;
    for file in &manifest.files {
        check(&directory.join(&file.name), file)?;
    }
    Ok(manifest)
}

/// A manifest with the checksum of its text as its first field, so that damage to what only the manifest knows is seen too.
pub(super) fn sealed(text: &str) -> String {
    format!("{{\n  \"crc32c\": {},{}", crc32c::crc32c(text.as_bytes()), text.strip_prefix('{').unwrap_or(text))
}

/// Whether a manifest is as it was sealed. The first backups of Herald 0.1.0 say no checksum of it.
fn is_as_sealed(text: &[u8], crc32c: Option<u32>) -> bool {
    let Some(crc32c) = crc32c else { return true };
    let field = format!("\n  \"crc32c\": {crc32c},");
    std::str::from_utf8(text).is_ok_and(|text| crc32c::crc32c(text.replacen(&field, "", 1).as_bytes()) == crc32c)
}

fn manifest(directory: &Path) -> Result<Manifest, UnusableBackup> {
    let file = directory.join(MANIFEST_NAME);
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(match directory.join(PARTIAL_NAME).exists() {
                true => UnusableBackup::Partial(directory.to_owned()),
                false => UnusableBackup::Absent(directory.to_owned()),
            });
        }
        Err(source) => return Err(UnusableBackup::Io { file, source }),
    };
    let damaged = |why: String| UnusableBackup::Damaged { file: file.clone(), why };
    let unreadable = |error: serde_json::Error| damaged(error.to_string());
    // A newer format may have other fields, so its version is looked at first.
    #[derive(Deserialize)]
    struct Seal {
        format_version: u32,
        crc32c: Option<u32>,
    }
    let Seal { format_version: found, crc32c } = serde_json::from_slice(&text).map_err(unreadable)?;
    if found > FORMAT_VERSION {
        return Err(UnusableBackup::NewerFormat { path: directory.to_owned(), found });
    }
    if !is_as_sealed(&text, crc32c) {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    let manifest: Manifest = serde_json::from_slice(&text).map_err(unreadable)?;
    // Names lead nowhere else.
    if let Some(bad) = manifest.files.iter().find(|file| file.name.contains('/')) {
        return Err(damaged(format!("it names {:?}", bad.name)));
    }
    Ok(manifest)
}

fn check(path: &Path, wanted: &BackupFile) -> Result<(), UnusableBackup> {
    let reading = |source| UnusableBackup::Io { file: path.to_owned(), source };
    let damaged = |why: String| Err(UnusableBackup::Damaged { file: path.to_owned(), why });
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return damaged("it is missing".to_owned()),
        Err(error) => return Err(reading(error)),
    };
    let (mut buffer, mut bytes, mut crc32c) = (vec![0; STEP_BYTES], 0, 0);
    loop {
        let read = file.read(&mut buffer).map_err(reading)?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        crc32c = crc32c::crc32c_append(crc32c, &buffer[..read]);
    }
    if bytes != wanted.bytes {
        return damaged(format!("it has {bytes} bytes instead of {}", wanted.bytes));
    }
    if crc32c != wanted.crc32c {
        return damaged("its checksum is wrong".to_owned());
    }
    Ok(())
}
