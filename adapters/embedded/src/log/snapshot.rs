//! The journal as of one instant, held on the disk while a backup copies it.
//!
//! Between two flushes everything up to the durable position is on the disk, and the stores hold at least what it rests
//! on. So a snapshot is taken while the flusher stands still: what it shows is what a power cut could leave. Afterwards
//! the journal only grows behind it; segments that are needed no longer stay until the last snapshot is gone.

use std::{io, sync::Arc};

use herald_core::ports::log::LogError;

use super::{EmbeddedLog, Shared, format};
use crate::disk::DiskFile;

/// What snapshots keep from being deleted.
#[derive(Default)]
pub(super) struct Held {
    snapshots: usize,
    /// Segments to delete when the last snapshot goes.
    dropped: Vec<u64>,
}

/// The segments of a journal and how much of each belongs to it. They stay on the disk as long as this lives.
pub struct JournalSnapshot {
    shared: Arc<Shared>,
    end: u64,
    store_flush: u64,
    /// Start and length of each, in order.
    segments: Vec<(u64, u64)>,
}

impl EmbeddedLog {
    /// The journal as of now, and what `stores` returns at the same instant. Nothing is flushed before it returns, so it
    /// must be quick.
    pub fn snapshot<T>(&self, stores: impl FnOnce() -> T) -> Result<(JournalSnapshot, T), LogError> {
        let shared = &self.shared;
        let flusher_stands_still = shared.writer.lock();
        let (end, store_flush, segments) = {
            let state = shared.state.lock();
            state.usable()?;
            let end = state.durable;
            let written = state.segments.range(..end);
            let segments = written.map(|(start, segment)| (*start, segment.length.min(end - start))).collect();
            (end, state.store_flush, segments)
        };
        let stores = stores();
        shared.held.lock().snapshots += 1;
        drop(flusher_stands_still);
        Ok((JournalSnapshot { shared: shared.clone(), end, store_flush, segments }, stores))
    }
}

impl JournalSnapshot {
    /// The position up to which the journal goes.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The number of the stores' sync that it rests on.
    pub fn store_flush(&self) -> u64 {
        self.store_flush
    }

    /// Name and length of each segment's file; what is behind that length does not belong to the snapshot.
    pub fn files(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        self.segments.iter().map(|(start, length)| (format::segment_name(*start), *length))
    }

    /// Opens a segment's file.
    pub fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.shared.disk.open(name)
    }
}

impl Drop for JournalSnapshot {
    fn drop(&mut self) {
        let dropped = {
            let mut held = self.shared.held.lock();
            held.snapshots -= 1;
            if held.snapshots > 0 {
                return;
            }
            std::mem::take(&mut held.dropped)
        };
        self.shared.delete(dropped);
    }
}

impl Shared {
    /// Deletes segments that are needed no longer, or leaves them to the last snapshot that holds them.
    pub(super) fn let_go(&self, segments: Vec<u64>) {
        {
            let mut held = self.held.lock();
            if held.snapshots > 0 {
                held.dropped.extend(segments);
                return;
            }
        }
        self.delete(segments);
    }

    fn delete(&self, segments: Vec<u64>) {
        for start in segments {
            let name = format::segment_name(start);
            // The journal says that it goes, so opening removes what is left behind here.
            if let Err(error) = self.disk.delete(&name) {
                tracing::warn!(%error, name, "a segment that is needed no longer could not be deleted");
            }
        }
    }
}
