//! `journal.mark`: up to where the journal was synced, kept outside of it, so that lost or damaged bytes at the
//! journal's end cannot pass for a torn tail.
//!
//! Two slots, at bytes 0 and 4096, written in turn, so that one is whole whatever happens to the other:
//! `"HRLDMARK"`, sequence u64, position u64, crc32c u32 of these 24 bytes; little-endian. Each lies in one sector, which
//! a disk writes whole or not at all, so a power cut leaves both readable. A slot is written after each
//! sync of the journal without a sync of its own, and the file is synced once a second and at the end. So the mark is
//! never ahead of the journal, and may be behind it by a second after a power cut; the frames' own marks cover that.

use std::{io, sync::Arc};

use bytes::Buf;

use crate::disk::{Disk, DiskFile};

/// The file's name.
pub const NAME: &str = "journal.mark";
const TEMPORARY_NAME: &str = "journal.mark.new";
const MAGIC: &[u8; 8] = b"HRLDMARK";
const SLOT_BYTES: usize = 28;
const SLOT_PLACES: [u64; 2] = [0, 4_096];

/// The open mark file.
pub struct MarkFile {
    file: Arc<dyn DiskFile>,
    sequence: u64,
}

/// What the mark file says.
#[derive(Debug, Clone, Copy)]
pub struct Marked {
    /// Everything before this position was synced, and acknowledged.
    pub position: u64,
    /// Whether both slots can be read; if not, the later position may have been in the other one.
    pub is_whole: bool,
}

/// Makes the mark of a journal that was copied here and is durable up to a position.
pub(crate) fn create_mark(disk: &dyn Disk, position: u64) -> io::Result<()> {
    let mut mark = MarkFile::create(disk)?;
    mark.write(position)?;
    mark.write(position)?;
    mark.sync()
}

/// Why there is no mark.
pub enum NoMark {
    /// The file could not be read.
    Io(io::Error),
    /// No slot is whole.
    Damaged,
}

impl MarkFile {
    /// Makes the file of a new journal; it and its name are durable.
    pub fn create(disk: &dyn Disk) -> io::Result<Self> {
        if disk.list()?.iter().any(|name| name == TEMPORARY_NAME) {
            disk.delete(TEMPORARY_NAME)?;
        }
        let mut mark = Self { file: disk.create(TEMPORARY_NAME)?, sequence: 0 };
        mark.write(0)?;
        mark.write(0)?;
        mark.sync()?;
        disk.rename(TEMPORARY_NAME, NAME)?;
        Ok(mark)
    }

    /// Opens the file and reads the later of its whole slots.
    pub fn open(disk: &dyn Disk) -> Result<(Self, Marked), NoMark> {
        let file = disk.open(NAME).map_err(NoMark::Io)?;
        let length = file.length().map_err(NoMark::Io)?;
        let (mut latest, mut is_whole) = (None, true);
        for place in SLOT_PLACES {
            let mut slot = [0; SLOT_BYTES];
            if place + SLOT_BYTES as u64 <= length {
                file.read_at(place, &mut slot).map_err(NoMark::Io)?;
            }
            let noted = decode(&slot);
            is_whole &= noted.is_some();
            latest = latest.max(noted);
        }
        let (sequence, position) = latest.ok_or(NoMark::Damaged)?;
        Ok((Self { file, sequence }, Marked { position, is_whole }))
    }

    /// Notes a position.
    pub fn write(&mut self, position: u64) -> io::Result<()> {
        self.sequence += 1;
        let mut slot = [0; SLOT_BYTES];
        slot[..8].copy_from_slice(MAGIC);
        slot[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        slot[16..24].copy_from_slice(&position.to_le_bytes());
        let crc = crc32c::crc32c(&slot[..24]);
        slot[24..].copy_from_slice(&crc.to_le_bytes());
        self.file.write_at(SLOT_PLACES[(self.sequence % 2) as usize], &slot)
    }

    /// Makes what was noted durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

fn decode(slot: &[u8; SLOT_BYTES]) -> Option<(u64, u64)> {
    let (covered, mut crc) = slot.split_at(24);
    if &slot[..8] != MAGIC || crc32c::crc32c(covered) != crc.get_u32_le() {
        return None;
    }
    let mut numbers = &covered[8..];
    Some((numbers.get_u64_le(), numbers.get_u64_le()))
}
