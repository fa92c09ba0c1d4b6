//! Lets old segments go that a few live records hold: these are copied to the journal's end.
//!
//! A segment is cleaned when less than a quarter of it is live, or, while the journal is more than twice the size of
//! what is live, the one of which least is live. The newest segments are left alone: consumers are about to free them.
//! Each flush cleans a bounded part. What is not worth being copied is let go: a record which says that its key is gone, and
//! which nobody needs any more.

use std::sync::Arc;

use super::{
    Shared,
    flush::Writer,
    format::{self, Entry, FRAME_BYTES, Frame, HEADER_BYTES, RecordEntry},
    state::Segments,
};
use crate::disk::DiskFile;

/// Newest sealed segments that are never cleaned.
const SPARED_SEGMENTS: usize = 2;
/// Segments' worth of dead bytes that are always tolerated.
const TOLERATED_DEAD_SEGMENTS: u64 = 4;
/// What one flush reads for cleaning.
const STEP_BYTES: u64 = 1 << 20;

/// A segment that is being cleaned.
pub struct Cleaning {
    segment: u64,
    length: u64,
    /// Where in its file the next frame begins.
    at: u64,
    file: Arc<dyn DiskFile>,
}

/// The segment that is worth cleaning most, if any is. What is not wholly on the disk yet cannot be read.
fn choose(segments: &Segments, durable: u64, segment_bytes: u64) -> Option<u64> {
    let sealed = || segments.iter().rev().skip(1 + SPARED_SEGMENTS);
    let (all, live) = sealed().fold((0, 0), |(all, live), (_, s)| (all + s.length, live + s.live_bytes));
    let loose = all > 2 * live + TOLERATED_DEAD_SEGMENTS * segment_bytes;
    sealed()
        .filter(|(start, s)| s.live > 0 && *start + s.length <= durable)
        .map(|(start, s)| (s.live_bytes * 1_000 / s.length.max(1), *start))
        .min()
        .filter(|(live_permille, _)| *live_permille < 250 || (loose && *live_permille < 750))
        .map(|(_, start)| start)
}

impl Shared {
    /// One step of cleaning, after a flush.
    pub(super) fn clean(&self, writer: &mut Writer) -> Result<(), String> {
        if writer.cleaning.is_none() {
            let state = self.state.lock();
            let Some(segment) = choose(&state.segments, state.durable, self.options.segment_bytes) else {
                return Ok(());
            };
            let length = state.segments.get(&segment).map_or(0, |s| s.length);
            drop(state);
            let file = self.disk.open(&format::segment_name(segment)).map_err(|e| cannot(segment, &e.to_string()))?;
            writer.cleaning = Some(Cleaning { segment, length, at: HEADER_BYTES as u64, file });
        }
        let Some(cleaning) = &mut writer.cleaning else { return Ok(()) };
        let is_there = self.state.lock().segments.contains_key(&cleaning.segment);
        if !is_there || self.clean_part(cleaning)? {
            writer.cleaning = None;
        }
        Ok(())
    }

    /// Copies the live records of the next part; returns whether it was the last.
    fn clean_part(&self, cleaning: &mut Cleaning) -> Result<bool, String> {
        let Cleaning { segment, length, at, file } = cleaning;
        let bytes = read(&**file, *at, (*length - *at).min(STEP_BYTES)).map_err(|e| cannot(*segment, &e))?;
        let claimed = Frame::length(&bytes).ok_or_else(|| cannot(*segment, "a frame is damaged"))?;
        let bytes = match claimed > bytes.len() {
            true => read(&**file, *at, claimed as u64).map_err(|e| cannot(*segment, &e))?,
            false => bytes,
        };
        let mut rest = &bytes[..];
        let mut records: Vec<RecordEntry<'_>> = Vec::new();
        while rest.len() >= FRAME_BYTES && Frame::length(rest).is_some_and(|length| length <= rest.len()) {
            let frame = Frame::decode(rest, *segment + *at).ok_or_else(|| cannot(*segment, "a frame is damaged"))?;
            for entry in frame.entries() {
                if let Entry::Record(record) = entry.map_err(|e| cannot(*segment, &e.to_string()))? {
                    records.push(record);
                }
            }
            *at += frame.bytes.len() as u64;
            rest = &rest[frame.bytes.len()..];
        }
        let mut state = self.state.lock();
        state.forget_gone(*segment, &records, self.clock.now_ms());
        state.put_moved(&records);
        drop(state);
        Ok(*at >= *length)
    }
}

fn read(file: &dyn DiskFile, at: u64, length: u64) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; length as usize];
    file.read_at(at, &mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

fn cannot(segment: u64, why: &str) -> String {
    format!("{} could not be cleaned: {why}", format::segment_name(segment))
}
