//! What a shard has polled from one topic and not finished, and the position that follows from it. Pure.

use std::collections::VecDeque;

use herald_core::{
    done_map::DoneMap,
    ports::log::{CAREFUL_AFTER_STARTS, Position},
};

/// The instances of one record.
struct Tracked {
    offset: u64,
    done: Vec<bool>,
    left: usize,
}

/// The unfinished records of one topic and shard.
pub(crate) struct Track {
    position: Position,
    records: VecDeque<Tracked>,
    /// Flags of the last position, consumed as its records are polled again.
    replay: Box<dyn Iterator<Item = bool> + Send>,
    careful: bool,
    noted: Option<u32>,
    start_counted: bool,
    dirty: bool,
    unfinished: u64,
}

impl Track {
    /// Begins at a group's position.
    pub(crate) fn new(position: Position) -> Self {
        let done = position.done.clone();
        let finished: Vec<bool> = done.flags().take(done.span()).collect();
        Self {
            careful: position.start_count() >= CAREFUL_AFTER_STARTS,
            noted: position.noted_unit(),
            replay: Box::new(finished.into_iter()),
            position,
            records: VecDeque::new(),
            start_counted: false,
            dirty: false,
            unfinished: 0,
        }
    }

    /// Adds a polled record of `count` instances. Returns the index of its first instance, counted from the position,
    /// and the flags of those that were finished before.
    pub(crate) fn add(&mut self, offset: u64, count: usize) -> (u32, Vec<bool>) {
        let first = self.records.iter().map(|record| record.done.len()).sum::<usize>() as u32;
        let mut done: Vec<bool> = self.replay.by_ref().take(count).collect();
        done.resize(count, false);
        let left = done.iter().filter(|done| !**done).count();
        self.unfinished += left as u64;
        self.dirty |= left == 0;
        self.records.push_back(Tracked { offset, done: done.clone(), left });
        (first, done)
    }

    /// Marks instances of a record as finished.
    pub(crate) fn finish(&mut self, offset: u64, indexes: impl IntoIterator<Item = u32>) {
        let Ok(at) = self.records.binary_search_by_key(&offset, |record| record.offset) else { return };
        let record = &mut self.records[at];
        for index in indexes {
            let done = &mut record.done[index as usize];
            debug_assert!(!*done, "instance {index} of record {offset} was finished twice");
            if !std::mem::replace(done, true) {
                record.left -= 1;
                self.unfinished -= 1;
            }
        }
        self.dirty = true;
    }

    /// How many instances are not finished.
    pub(crate) fn unfinished(&self) -> u64 {
        self.unfinished
    }

    /// Whether records are to be taken singly, because this position killed its stage several times.
    pub(crate) fn careful(&self) -> bool {
        self.careful
    }

    /// Whether the section that begins at this index was being tried when the stage died.
    pub(crate) fn is_poison(&self, first: u32) -> bool {
        self.careful && self.noted == Some(first)
    }

    /// The position with one more start, once per start and before the first work.
    pub(crate) fn count_start(&mut self) -> Option<Position> {
        if self.start_counted || self.records.is_empty() {
            return None;
        }
        self.start_counted = true;
        self.position = self.position.started(self.noted);
        Some(self.position.clone())
    }

    /// The position with a note that the section which begins at this index is tried next.
    pub(crate) fn note(&mut self, first: u32) -> Position {
        let starts = self.position.starts;
        self.advance();
        // The index is counted from the offset; records that were finished in front of it are gone from the window.
        self.position = Position { starts, ..self.position.clone() }.started(Some(first));
        self.position.clone()
    }

    /// The new position, if it moved.
    pub(crate) fn take_position(&mut self) -> Option<Position> {
        if !self.dirty {
            return None;
        }
        self.dirty = false;
        self.advance();
        self.position.starts = 0;
        self.careful = false;
        self.noted = None;
        Some(self.position.clone())
    }

    fn advance(&mut self) {
        while self.records.front().is_some_and(|record| record.left == 0) {
            if let Some(record) = self.records.pop_front() {
                self.position.offset = record.offset + 1;
            }
        }
        self.position.done = if self.records.iter().all(|record| record.left == record.done.len()) {
            DoneMap::default()
        } else {
            DoneMap::from_flags(self.records.iter().flat_map(|record| record.done.iter().copied()))
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever was finished before a crash is passed over afterwards, and nothing else.
        #[test]
        fn a_replay_skips_exactly_what_was_finished(
            sizes in proptest::collection::vec(1..6usize, 1..12),
            finished in proptest::collection::vec(any::<bool>(), 72),
        ) {
            let mut track = Track::new(Position::default());
            let mut flat = Vec::new();
            for (offset, size) in sizes.iter().enumerate() {
                track.add(offset as u64 * 3, *size);
                flat.extend((0..*size).map(|index| (offset as u64 * 3, index as u32)));
            }
            for (i, (offset, index)) in flat.iter().enumerate() {
                if finished[i] {
                    track.finish(*offset, [*index]);
                }
            }
            let position = track.take_position().unwrap_or_default();
            let mut replay = Track::new(position.clone());
            for (offset, size) in sizes.iter().enumerate() {
                let offset = offset as u64 * 3;
                let expected: Vec<bool> =
                    flat.iter().zip(&finished).filter(|((o, _), _)| *o == offset).map(|(_, f)| *f).collect();
                if offset < position.offset {
                    prop_assert!(expected.iter().all(|f| *f));
                } else {
                    prop_assert_eq!(replay.add(offset, *size).1, expected);
                }
            }
        }
    }

    #[test]
    fn starts_without_progress_are_counted_and_forgotten_on_progress() {
        let mut position = Position::default();
        for start in 1..=3 {
            let mut track = Track::new(position);
            track.add(0, 2);
            position = track.count_start().unwrap();
            assert_eq!((position.start_count(), track.count_start()), (start, None));
        }
        let mut track = Track::new(position);
        track.add(0, 2);
        assert!(track.careful());
        let noted = track.note(1);
        assert!(Track::new(noted).is_poison(1));
        track.finish(0, [0]);
        assert_eq!(track.take_position().unwrap().start_count(), 0);
    }
}
