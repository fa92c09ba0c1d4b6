//! Rows as files of a backup.
//!
//! All numbers are little-endian. The file `rows-<number, 8 digits>.rows` begins with `"HRLDROWS"` and the format version
//! (u32, 1); then come blocks of about 1 MiB: length of the rows (u32), their crc32c (u32), and the rows, each as length
//! of the key (u32), length of the value (u32), key, value. Keys grow through all files.

use std::{fs::File, io::Read, path::Path};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use herald_core::ports::StoreError;

use super::{
    BackupError, BackupFile, UnusableBackup,
    files::{NewFile, STEP_BYTES, Target},
};
use crate::kv::Row;

const MAGIC: &[u8; 8] = b"HRLDROWS";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 12;
/// A file is ended when it has grown beyond this.
const FILE_BYTES: u64 = 256 << 20;

/// The name of the file of a number.
pub(super) fn file_name(number: usize) -> String {
    format!("rows-{number:08}.rows")
}

/// Whether a name is one of a file of rows.
pub(super) fn is_file_name(name: &str) -> bool {
    name.strip_prefix("rows-").is_some_and(|rest| rest.ends_with(".rows"))
}

/// Writes rows into files; returns the files and the number of rows.
pub(super) fn write(
    rows: impl Iterator<Item = Result<Row, StoreError>>,
    target: &Target<'_>,
) -> Result<(Vec<BackupFile>, u64), BackupError> {
    let (mut files, mut open, mut count) = (Vec::new(), None, 0);
    let mut block = BytesMut::with_capacity(STEP_BYTES + STEP_BYTES / 4);
    for row in rows {
        let (key, value) = row?;
        block.put_u32_le(key.len() as u32);
        block.put_u32_le(value.len() as u32);
        block.put_slice(&key);
        block.put_slice(&value);
        count += 1;
        if block.len() >= STEP_BYTES {
            let file = write_block(&mut block, open.take(), files.len(), target)?;
            match file.bytes >= FILE_BYTES {
                true => files.push(file.finish()?),
                false => open = Some(file),
            }
        }
    }
    if !block.is_empty() {
        open = Some(write_block(&mut block, open.take(), files.len(), target)?);
    }
    if let Some(file) = open {
        files.push(file.finish()?);
    }
    Ok((files, count))
}

fn write_block<'a>(
    block: &mut BytesMut,
    open: Option<NewFile<'a>>,
    number: usize,
    target: &'a Target<'a>,
) -> Result<NewFile<'a>, BackupError> {
    let mut head = BytesMut::with_capacity(HEAD_BYTES);
    let mut file = match open {
        Some(file) => file,
        None => {
            let mut file = target.create(file_name(number))?;
            head.put_slice(MAGIC);
            head.put_u32_le(VERSION);
            file.write(&head)?;
            head.clear();
            file
        }
    };
    head.put_u32_le(block.len() as u32);
    head.put_u32_le(crc32c::crc32c(block));
    file.write(&head)?;
    file.write(block)?;
    block.clear();
    Ok(file)
}

/// Hands the rows of a file to `take`, block by block.
pub(super) fn read<E: From<UnusableBackup>>(
    path: &Path,
    mut take: impl FnMut(Vec<Row>) -> Result<(), E>,
) -> Result<(), E> {
    let reading = |source| UnusableBackup::Io { file: path.to_owned(), source };
    let damaged = |why: &str| UnusableBackup::Damaged { file: path.to_owned(), why: why.to_owned() };
    let mut file = File::open(path).map_err(reading)?;
    let mut left = file.metadata().map_err(reading)?.len();
    let mut head = [0; HEAD_BYTES];
    file.read_exact(&mut head).map_err(reading)?;
    left = left.saturating_sub(HEAD_BYTES as u64);
    if head[..8] != MAGIC[..] || (&head[8..]).get_u32_le() != VERSION {
        return Err(damaged("it is no file of rows, or of a version that is not known").into());
    }
    while left > 0 {
        let mut head = [0; 8];
        file.read_exact(&mut head).map_err(reading)?;
        let (length, crc32c) = ((&head[..4]).get_u32_le(), (&head[4..]).get_u32_le());
        left = left.checked_sub(8 + u64::from(length)).ok_or_else(|| damaged("a block is longer than the file"))?;
        let mut block = vec![0; length as usize];
        file.read_exact(&mut block).map_err(reading)?;
        if crc32c::crc32c(&block) != crc32c {
            return Err(damaged("a block's checksum is wrong").into());
        }
        take(decode(block.into()).ok_or_else(|| damaged("a block breaks off within a row"))?)?;
    }
    Ok(())
}

fn decode(mut block: Bytes) -> Option<Vec<Row>> {
    let mut rows = Vec::new();
    while !block.is_empty() {
        let (key, value) = (block.try_get_u32_le().ok()? as usize, block.try_get_u32_le().ok()? as usize);
        if block.len() < key.checked_add(value)? {
            return None;
        }
        rows.push((block.split_to(key), block.split_to(value)));
    }
    Some(rows)
}
