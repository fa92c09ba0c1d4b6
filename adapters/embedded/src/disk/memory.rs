//! A disk in memory that knows what a power cut would take.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::{Disk, DiskFile};

/// What a disk writes wholly or not at all.
const SECTOR_BYTES: usize = 512;

/// Files in memory, each with the content that a power cut would leave. Clones are the same disk.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    names: Mutex<Names>,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Names {
    now: BTreeMap<String, Arc<MemoryFile>>,
    synced: BTreeMap<String, Arc<MemoryFile>>,
}

#[derive(Default)]
struct Faults {
    writes_fail: AtomicBool,
    syncs_fail: AtomicBool,
    capacity_set: AtomicBool,
    capacity: AtomicU64,
    used: AtomicU64,
    syncs: AtomicU64,
    writes: AtomicU64,
}

struct MemoryFile {
    content: Mutex<Content>,
    faults: Arc<Faults>,
}

#[derive(Default, Clone)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// What was written since the last sync lies within.
    dirty: Range<usize>,
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk as it is found after a power cut now. What was synced is there; of what was not, each sector, name
    /// and length is kept or lost as `random` says. The old disk stays as it was, for whoever still holds it.
    pub fn crash(&self, mut random: impl FnMut() -> u64) -> Self {
        let names = self.shared.names.lock();
        let after = Self::default();
        let mut used = 0;
        let mut survivors = BTreeMap::new();
        let all: std::collections::BTreeSet<&String> = names.now.keys().chain(names.synced.keys()).collect();
        for name in all {
            let file = match (names.now.get(name), names.synced.get(name)) {
                (Some(now), Some(synced)) if Arc::ptr_eq(now, synced) => Some(now),
                (now, synced) => {
                    if random().is_multiple_of(2) {
                        synced
                    } else {
                        now
                    }
                }
            };
            let Some(file) = file else { continue };
            let left = file.content.lock().after_crash(&mut random);
            used += left.len() as u64;
            let content = Content { now: left.clone(), synced: left, dirty: 0..0 };
            let file = MemoryFile { content: Mutex::new(content), faults: after.shared.faults.clone() };
            survivors.insert(name.clone(), Arc::new(file));
        }
        after.shared.faults.used.store(used, Ordering::Relaxed);
        *after.shared.names.lock() = Names { now: survivors.clone(), synced: survivors };
        after
    }

    /// Makes every later write fail, or work again.
    pub fn fail_writes(&self, fail: bool) {
        self.shared.faults.writes_fail.store(fail, Ordering::Relaxed);
    }

    /// Makes every later sync fail, or work again.
    pub fn fail_syncs(&self, fail: bool) {
        self.shared.faults.syncs_fail.store(fail, Ordering::Relaxed);
    }

    /// Gives the disk an end.
    pub fn set_capacity_bytes(&self, capacity: u64) {
        self.shared.faults.capacity.store(capacity, Ordering::Relaxed);
        self.shared.faults.capacity_set.store(true, Ordering::Relaxed);
    }

    /// How many bytes all files have together.
    pub fn used_bytes(&self) -> u64 {
        self.shared.names.lock().now.values().map(|f| f.content.lock().now.len() as u64).sum()
    }

    /// How often a file was synced.
    pub fn syncs(&self) -> u64 {
        self.shared.faults.syncs.load(Ordering::Relaxed)
    }

    /// How often something was written.
    pub fn writes(&self) -> u64 {
        self.shared.faults.writes.load(Ordering::Relaxed)
    }

    /// A file's content.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        self.shared.names.lock().now.get(name).map(|f| f.content.lock().now.clone())
    }

    /// Replaces a file's content, or removes it, as an accident would; it counts as synced.
    pub fn set_content(&self, name: &str, content: Option<Vec<u8>>) {
        let mut names = self.shared.names.lock();
        match content {
            None => {
                names.now.remove(name);
                names.synced.remove(name);
            }
            Some(bytes) => {
                let content = Content { now: bytes.clone(), synced: bytes, dirty: 0..0 };
                let file = MemoryFile { content: Mutex::new(content), faults: self.shared.faults.clone() };
                let file = Arc::new(file);
                names.now.insert(name.to_owned(), file.clone());
                names.synced.insert(name.to_owned(), file);
            }
        }
    }
}

impl Content {
    fn after_crash(&self, random: &mut impl FnMut() -> u64) -> Vec<u8> {
        let mut left = self.synced.clone();
        if self.dirty.is_empty() && self.now.len() == self.synced.len() {
            return left;
        }
        // A third each: all of it is lost, all of it is kept, or it is torn.
        match random() % 3 {
            0 => left,
            1 => self.now.clone(),
            _ => {
                let (short, long) = (self.now.len().min(self.synced.len()), self.now.len().max(self.synced.len()));
                left.resize(short + (random() % (long - short + 1) as u64) as usize, 0);
                let end = self.dirty.end.min(left.len()).min(self.now.len());
                let mut at = self.dirty.start;
                while at < end {
                    let next = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
                    if !random().is_multiple_of(4) {
                        left[at..next].copy_from_slice(&self.now[at..next]);
                    }
                    at = next;
                }
                left
            }
        }
    }
}

impl Faults {
    fn grow(&self, bytes: u64) -> io::Result<()> {
        let used = self.used.load(Ordering::Relaxed);
        if self.capacity_set.load(Ordering::Relaxed) && used + bytes > self.capacity.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.used.store(used + bytes, Ordering::Relaxed);
        Ok(())
    }

    fn shrink(&self, bytes: u64) {
        let used = self.used.load(Ordering::Relaxed);
        self.used.store(used.saturating_sub(bytes), Ordering::Relaxed);
    }
}

impl Disk for MemoryDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut names = self.shared.names.lock();
        if names.now.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = MemoryFile { content: Mutex::default(), faults: self.shared.faults.clone() };
        let file = Arc::new(file);
        names.now.insert(name.to_owned(), file.clone());
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        match self.shared.names.lock().now.get(name) {
            Some(file) => Ok(file.clone()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.shared.names.lock().now.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut names = self.shared.names.lock();
        let file = names.now.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.now.insert(to.to_owned(), file);
        names.synced = names.now.clone();
        Ok(())
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        let file = self.shared.names.lock().now.remove(name).ok_or(io::ErrorKind::NotFound)?;
        self.shared.faults.shrink(file.content.lock().now.len() as u64);
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        if self.shared.faults.syncs_fail.load(Ordering::Relaxed) {
            return Err(io::Error::other("the disk does not sync"));
        }
        let mut names = self.shared.names.lock();
        names.synced = names.now.clone();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let faults = &self.shared.faults;
        if !faults.capacity_set.load(Ordering::Relaxed) {
            return Ok(u64::MAX);
        }
        Ok(faults.capacity.load(Ordering::Relaxed).saturating_sub(faults.used.load(Ordering::Relaxed)))
    }

    fn reads_block(&self) -> bool {
        false
    }
}

impl DiskFile for MemoryFile {
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if self.faults.writes_fail.load(Ordering::Relaxed) {
            return Err(io::Error::other("the disk does not write"));
        }
        self.faults.writes.fetch_add(1, Ordering::Relaxed);
        let mut content = self.content.lock();
        let (start, end) = (at as usize, at as usize + bytes.len());
        if end > content.now.len() {
            self.faults.grow((end - content.now.len()) as u64)?;
            content.now.resize(end, 0);
        }
        content.now[start..end].copy_from_slice(bytes);
        content.dirty = match content.dirty.is_empty() {
            true => start..end,
            false => content.dirty.start.min(start)..content.dirty.end.max(end),
        };
        Ok(())
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let content = self.content.lock();
        let start = at as usize;
        let part = content.now.get(start..start + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(part);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.content.lock().now.len() as u64)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let mut content = self.content.lock();
        let before = content.now.len() as u64;
        self.faults.shrink(before.saturating_sub(length));
        content.now.resize(length as usize, 0);
        let end = content.dirty.end.min(length as usize);
        content.dirty = content.dirty.start.min(end)..end;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if self.faults.syncs_fail.load(Ordering::Relaxed) {
            return Err(io::Error::other("the disk does not sync"));
        }
        self.faults.syncs.fetch_add(1, Ordering::Relaxed);
        let mut content = self.content.lock();
        let Content { now, synced, dirty } = &mut *content;
        synced.resize(now.len(), 0);
        synced[dirty.clone()].copy_from_slice(&now[dirty.clone()]);
        *dirty = 0..0;
        Ok(())
    }
}
