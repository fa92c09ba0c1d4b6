//! Makes what is pending durable: the stores first, then the journal, then the mark.

use std::{sync::Arc, thread::JoinHandle, time::Duration};

use herald_core::ports::log::LogError;
use tokio::time::Instant;

use super::{
    EmbeddedLog, Shared,
    clean::Cleaning,
    format::{self, Chunk},
    mark::MarkFile,
    state::{Move, State},
};
use crate::disk::DiskFile;

/// How often the mark file is synced, and what only time lets go is looked for.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);

/// How many buffers are kept for later flushes.
const SPARE_CHUNKS: usize = 2;

/// What only the flusher touches.
pub struct Writer {
    pub(super) mark: MarkFile,
    /// The segment that was written last.
    pub(super) file: Option<(u64, Arc<dyn DiskFile>)>,
    pub(super) mark_synced: Option<Instant>,
    pub(super) mark_is_dirty: bool,
    pub(super) last_expiry_ms: u64,
    pub(super) cleaning: Option<Cleaning>,
}

/// What one flush writes.
struct Batch {
    chunks: Vec<Chunk>,
    /// Where in the last chunk the frame is that tells the stores' sync.
    closing_frame: usize,
    end: u64,
    moves: Vec<Move>,
    /// Segments that can go once this batch is durable.
    dropped: Vec<u64>,
}

/// The thread that flushes a log. It ends when the log is closed or has failed.
pub struct FlusherThread {
    thread: JoinHandle<()>,
}

impl FlusherThread {
    /// Waits for the end.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the flusher thread panicked");
        }
    }
}

impl EmbeddedLog {
    /// Flushes from a thread of its own until the log is closed: for production.
    pub fn spawn_flusher_thread(&self) -> std::io::Result<FlusherThread> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("log-flusher".to_owned()).spawn(move || {
            // A panic must not leave callers waiting for ever.
            let flushing = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shared.flush_on_thread()));
            if flushing.is_err() {
                shared.fail("the flusher panicked");
            }
        })?;
        Ok(FlusherThread { thread })
    }

    /// Flushes within this future until the log is closed: for simulations, where time is paused.
    pub async fn flush_task(&self) {
        let shared = &self.shared;
        let interval = Duration::from_millis(shared.options.flush_interval_ms);
        loop {
            let mark_is_dirty = shared.writer.lock().mark_is_dirty;
            let work = shared.work_task.notified();
            if !shared.state.lock().has_work() {
                if mark_is_dirty {
                    let _idle = tokio::time::timeout(HOUSEKEEPING_INTERVAL, work).await;
                } else {
                    work.await;
                }
            }
            let began = Instant::now();
            if shared.flush_once().is_err() || shared.state.lock().is_finished() {
                return;
            }
            tokio::time::sleep_until(began + interval).await;
        }
    }

    /// Makes everything that is pending durable now.
    pub fn flush_once(&self) -> Result<(), LogError> {
        self.shared.flush_once()
    }

    /// Refuses what comes, makes what is there durable, and ends the flusher.
    pub fn close(&self) -> Result<(), LogError> {
        self.shared.state.lock().closing = true;
        let flushed = self.shared.flush_once();
        self.shared.wake_flusher();
        self.shared.wake_readers();
        flushed
    }
}

impl State {
    fn has_work(&self) -> bool {
        !self.pending.is_empty() || self.closing || self.failed.is_some()
    }

    fn is_finished(&self) -> bool {
        self.failed.is_some() || (self.closing && self.pending.is_empty())
    }

    /// Takes what a flush has to write; `None` if there is nothing.
    fn take_batch(&mut self) -> Option<Batch> {
        // What is not needed as of now is not needed once all until now is durable; so the note that a segment goes
        // may be part of the same flush.
        let written = self.segments.last_key_value().map_or(0, |(start, _)| *start);
        let sealed = self.segments.range(..written);
        let unneeded = sealed.filter(|(_, segment)| segment.live == 0 && segment.arriving == 0);
        let dropped: Vec<u64> = unneeded.map(|(start, _)| *start).collect();
        if !dropped.is_empty() {
            self.put_dropped(&dropped);
            for start in &dropped {
                self.segments.remove(start);
            }
        }
        if self.pending.is_empty() {
            return None;
        }
        let (chunks, closing_frame) = self.take_pending();
        Some(Batch { chunks, closing_frame, end: self.end, moves: std::mem::take(&mut self.moves), dropped })
    }
}

impl Shared {
    fn flush_on_thread(&self) {
        let interval = Duration::from_millis(self.options.flush_interval_ms);
        loop {
            let mark_is_dirty = self.writer.lock().mark_is_dirty;
            {
                let mut state = self.state.lock();
                if !state.has_work() && mark_is_dirty {
                    self.work.wait_for(&mut state, HOUSEKEEPING_INTERVAL);
                }
                while !state.has_work() && !mark_is_dirty {
                    self.work.wait(&mut state);
                }
            }
            let began = Instant::now();
            if self.flush_once().is_err() || self.state.lock().is_finished() {
                return;
            }
            std::thread::sleep(interval.saturating_sub(began.elapsed()));
        }
    }

    /// One flush. An error is the end of the log.
    pub(super) fn flush_once(&self) -> Result<(), LogError> {
        let mut writer = self.writer.lock();
        if let Some(cause) = &self.state.lock().failed {
            return Err(super::unavailable(cause));
        }
        self.flush(&mut writer).map_err(|cause| {
            self.fail(&cause);
            super::unavailable(&cause)
        })
    }

    fn flush(&self, writer: &mut Writer) -> Result<(), String> {
        let batch = {
            let mut state = self.state.lock();
            let now_ms = self.clock.now_ms();
            if now_ms.abs_diff(writer.last_expiry_ms) >= HOUSEKEEPING_INTERVAL.as_millis() as u64 {
                writer.last_expiry_ms = now_ms;
                state.expire_all(now_ms);
            }
            state.take_batch()
        };
        if let Some(batch) = batch {
            self.write(writer, batch)?;
            if !self.state.lock().closing {
                self.clean(writer)?;
            }
        }
        let due = writer.mark_synced.is_none_or(|at| at.elapsed() >= HOUSEKEEPING_INTERVAL);
        if writer.mark_is_dirty && (due || self.state.lock().closing) {
            if self.options.sync {
                writer.mark.sync().map_err(|e| format!("the mark could not be synced: {e}"))?;
            }
            writer.mark_synced = Some(Instant::now());
            writer.mark_is_dirty = false;
        }
        Ok(())
    }

    fn write(&self, writer: &mut Writer, mut batch: Batch) -> Result<(), String> {
        let store_flush = self.stores.sync().map_err(|e| format!("the stores could not be synced: {e}"))?;
        if let Some(last) = batch.chunks.last_mut() {
            last.set_store_flush(batch.closing_frame, store_flush);
        }
        let (mut files, mut created) = (Vec::new(), false);
        for chunk in &mut batch.chunks {
            chunk.seal();
            created |= chunk.creates;
            let file = self.file_for(writer, chunk)?;
            file.write_at(chunk.at, &chunk.bytes).map_err(|e| cannot("be written", chunk.segment, &e))?;
            files.push((chunk.segment, file));
        }
        if let Some((segment, file)) = files.last().filter(|_| self.options.sync) {
            file.sync().map_err(|e| cannot("be synced", *segment, &e))?;
        }
        if created && self.options.sync {
            self.disk.sync_directory().map_err(|e| format!("the journal's directory could not be synced: {e}"))?;
        }
        writer.mark.write(batch.end).map_err(|e| format!("the mark could not be written: {e}"))?;
        writer.mark_is_dirty = true;
        self.publish(&mut batch, files, store_flush);
        self.let_go(batch.dropped);
        Ok(())
    }

    /// The file of the chunk's segment. Before a segment is begun the one before it is synced: a segment's existence
    /// proves that everything before it is durable.
    fn file_for(&self, writer: &mut Writer, chunk: &Chunk) -> Result<Arc<dyn DiskFile>, String> {
        if chunk.creates {
            if let Some((segment, file)) = writer.file.take().filter(|_| self.options.sync) {
                file.sync().map_err(|e| cannot("be synced", segment, &e))?;
            }
            let name = format::segment_name(chunk.segment);
            let file = self.disk.create(&name).map_err(|e| cannot("be created", chunk.segment, &e))?;
            writer.file = Some((chunk.segment, file));
        }
        match &writer.file {
            Some((segment, file)) if *segment == chunk.segment => Ok(file.clone()),
            _ => Err(format!("{} is not open", format::segment_name(chunk.segment))),
        }
    }

    fn publish(&self, batch: &mut Batch, files: Vec<(u64, Arc<dyn DiskFile>)>, store_flush: u64) {
        {
            let mut state = self.state.lock();
            state.durable = batch.end;
            state.store_flush = store_flush;
            for (segment, file) in files {
                if let Some(segment) = state.segments.get_mut(&segment) {
                    segment.file = Some(file);
                }
            }
            state.apply_moves(&batch.moves);
            state.shrink_cache();
            state.spare.append(&mut batch.chunks);
            // The largest is the last, which is taken first.
            state.spare.sort_by_key(|chunk| chunk.bytes.capacity());
            let excess = state.spare.len().saturating_sub(SPARE_CHUNKS);
            state.spare.drain(..excess);
        }
        self.set_durability(|durability| durability.position = batch.end);
    }
}

fn cannot(what: &str, segment: u64, error: &std::io::Error) -> String {
    format!("{} could not {what}: {error}", format::segment_name(segment))
}
