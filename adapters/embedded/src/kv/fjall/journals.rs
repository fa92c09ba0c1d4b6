//! The files of fjall's journal.
//!
//! fjall cuts a file at the first place that it cannot read, and goes on with the next one. The newest may have a torn end;
//! the others were synced whole before the next was begun, so one that got shorter by being read was damaged.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use herald_core::ports::StoreError;

use super::MEND;
use crate::disk::sync_directory;

/// The file that says what was lost. The journal does not tell it a second time.
const DAMAGED_NAME: &str = "damaged";

/// The journal's files, by their numbers.
pub fn files(directory: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "jnl")
            && let Some(number) = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok())
        {
            files.insert(number, path);
        }
    }
    Ok(files)
}

/// The files but the newest, each with the bytes that were written to it before fjall read it.
pub struct SealedJournals {
    directory: PathBuf,
    files: Vec<(PathBuf, File, u64)>,
}

impl SealedJournals {
    /// Looks at the files of a database that is about to be opened. Refused if some were found to be damaged.
    pub fn before_opening(directory: &Path) -> Result<Self, StoreError> {
        match std::fs::read_to_string(directory.join(DAMAGED_NAME)) {
            Ok(lost) => return Err(StoreError::Damaged(lost)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(cannot_look(error)),
        }
        let files = if directory.exists() { sealed(directory).map_err(cannot_look)? } else { Vec::new() };
        Ok(Self { directory: directory.into(), files })
    }

    /// Refuses the database if one of them is shorter now, and from then on.
    pub fn check(self) -> Result<(), StoreError> {
        for (path, file, written) in self.files {
            let left = file.metadata().map_err(cannot_look)?.len();
            if left < written {
                let lost = format!("{} cannot be read from byte {left} on, of {written}; {MEND}", path.display());
                let note = self.directory.join(DAMAGED_NAME);
                std::fs::write(&note, &lost).and_then(|()| sync_directory(&self.directory)).map_err(cannot_look)?;
                return Err(StoreError::Damaged(lost));
            }
        }
        Ok(())
    }
}

fn sealed(directory: &Path) -> io::Result<Vec<(PathBuf, File, u64)>> {
    let mut files = files(directory)?;
    files.pop_last();
    let looked_at = files.into_values().map(|path| {
        let file = File::open(&path)?;
        let written = written_bytes(&file)?;
        Ok((path, file, written))
    });
    looked_at.collect()
}

/// Where the last byte that is not 0 ends: a file is made with its full length and filled from its beginning.
fn written_bytes(file: &File) -> io::Result<u64> {
    let (mut buffer, mut end) = (vec![0; 64 << 10], file.metadata()?.len());
    while end > 0 {
        let begin = end.saturating_sub(buffer.len() as u64);
        let bytes = &mut buffer[..(end - begin) as usize];
        file.read_exact_at(bytes, begin)?;
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            return Ok(begin + last as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

/// An error of the directory's files, which may pass.
pub fn cannot_look(error: io::Error) -> StoreError {
    StoreError::Unavailable(format!("the database's directory: {error}"))
}
