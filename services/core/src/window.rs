//! What a consumer has polled from one partition and not finished, and the position that follows from it. Pure.
//!
//! A record holds units, which are finished in any order: the instances of deliveries, or the one request.

use std::collections::VecDeque;

use crate::{
    done_map::DoneMap,
    ports::log::{CAREFUL_AFTER_STARTS, Position},
};

/// How many units from its position on a careful consumer takes singly: more than a window and a poll can hold, since
/// that is where the unit is that killed it.
const CAREFUL_SPAN: u64 = 65_536;

/// The units of one record.
struct Tracked {
    offset: u64,
    done: Flags,
    left: usize,
}

/// A flag for each unit of a record. Every commit looks for the runs in all that a window holds, so they are bits.
struct Flags {
    words: Vec<u64>,
    len: usize,
}

impl Flags {
    fn of(flags: &[bool]) -> Self {
        let word = |flags: &[bool]| flags.iter().rev().fold(0, |word, flag| word << 1 | u64::from(*flag));
        Self { words: flags.chunks(64).map(word).collect(), len: flags.len() }
    }

    /// Sets a flag; returns what it was.
    fn set(&mut self, at: usize) -> bool {
        debug_assert!(at < self.len);
        let (word, bit) = (&mut self.words[at / 64], 1 << (at % 64));
        let was = *word & bit != 0;
        *word |= bit;
        was
    }

    fn get(&self, at: usize) -> bool {
        self.words[at / 64] >> (at % 64) & 1 == 1
    }

    /// Where the run ends that `at` is in and that has this flag.
    fn end_of_run(&self, flag: bool, at: usize) -> usize {
        let others = |word: u64| if flag { !word } else { word };
        let mut word = at / 64;
        let mut found = others(self.words[word]) & (!0 << (at % 64));
        while found == 0 && word + 1 < self.words.len() {
            word += 1;
            found = others(self.words[word]);
        }
        (word * 64 + found.trailing_zeros() as usize).min(self.len)
    }

    /// Runs of equal flags.
    fn runs(&self) -> impl Iterator<Item = (bool, u32)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (begin, flag) = (at, (at < self.len).then(|| self.get(at))?);
            at = self.end_of_run(flag, begin);
            Some((flag, (at - begin) as u32))
        })
    }
}

/// The unfinished records of one partition.
///
/// Units are counted from where this consumer began. A consumer that began at a position which was started several
/// times without progress is careful: it takes units singly and [notes](Track::note) each first, so that the one which
/// kills it is known when it starts again.
pub struct Track {
    position: Position,
    records: VecDeque<Tracked>,
    /// Flags of the position that it began at, consumed as its records are polled again.
    replay: std::vec::IntoIter<bool>,
    /// Units added so far.
    added: u64,
    /// Units in front of the position.
    passed: u64,
    /// Units before this one are taken singly.
    careful_until: u64,
    /// The unit that was being tried when the consumer before this one stopped.
    suspect: Option<u64>,
    /// Whether the same unit was being tried when the one before that stopped.
    convicted: bool,
    /// The unit that is tried next.
    noting: Option<u64>,
    start_counted: bool,
    /// Whether a unit was finished that was not before.
    progressed: bool,
    dirty: bool,
    unfinished: u64,
}

impl Track {
    /// Begins at a group's position.
    pub fn new(position: Position) -> Self {
        let done = &position.done;
        let replay: Vec<bool> = done.flags().take(done.span()).collect();
        Self {
            careful_until: if position.start_count() >= CAREFUL_AFTER_STARTS { CAREFUL_SPAN } else { 0 },
            suspect: position.noted_unit().map(u64::from),
            convicted: position.noted_again(),
            replay: replay.into_iter(),
            position,
            records: VecDeque::new(),
            added: 0,
            passed: 0,
            noting: None,
            start_counted: false,
            progressed: false,
            dirty: false,
            unfinished: 0,
        }
    }

    /// Adds a polled record of `count` units. Returns the number of its first unit and which were finished before.
    pub fn add(&mut self, offset: u64, count: usize) -> (u64, Vec<bool>) {
        let first = self.added;
        self.added += count as u64;
        let mut done: Vec<bool> = self.replay.by_ref().take(count).collect();
        done.resize(count, false);
        let left = done.iter().filter(|done| !**done).count();
        self.unfinished += left as u64;
        self.dirty |= left == 0;
        self.records.push_back(Tracked { offset, done: Flags::of(&done), left });
        (first, done)
    }

    /// Marks units of a record, by their index in it, as finished.
    pub fn finish(&mut self, offset: u64, indexes: impl IntoIterator<Item = u32>) {
        let Ok(at) = self.records.binary_search_by_key(&offset, |record| record.offset) else { return };
        let record = &mut self.records[at];
        for index in indexes {
            let was_done = record.done.set(index as usize);
            debug_assert!(!was_done, "unit {index} of record {offset} was finished twice");
            if !was_done {
                record.left -= 1;
                self.unfinished -= 1;
            }
        }
        self.dirty = true;
        self.progressed = true;
    }

    /// How many units are not finished.
    pub fn unfinished(&self) -> u64 {
        self.unfinished
    }

    /// Whether a unit is to be noted before it is tried.
    pub fn is_careful(&self, unit: u64) -> bool {
        unit < self.careful_until
    }

    /// Whether a unit killed the last two consumers. One may have died of something else: roles share processes.
    pub fn is_poison(&self, unit: u64) -> bool {
        self.convicted && self.is_careful(unit) && self.suspect == Some(unit)
    }

    /// Lets the next position say that this unit is tried. It must be committed before the unit is.
    pub fn note(&mut self, unit: u64) {
        self.noting = Some(unit);
        self.dirty = true;
    }

    /// The position with one more start, once per start and before the first work.
    pub fn count_start(&mut self) -> Option<Position> {
        if self.start_counted || self.records.is_empty() {
            return None;
        }
        self.start_counted = true;
        self.position = self.position.started();
        Some(self.position.clone())
    }

    /// The new position, if it moved.
    pub fn take_position(&mut self) -> Option<Position> {
        if !self.dirty {
            return None;
        }
        self.advance();
        // What was finished before and is only passed again is no progress: the unit that kills may be the next.
        if self.progressed && (self.passed >= self.careful_until || self.records.is_empty()) {
            self.careful_until = 0;
        }
        let noting = self.noting.take();
        let noted = noting.and_then(|unit| u32::try_from(unit.checked_sub(self.passed)?).ok());
        // Progress forgets the starts, but not while the unit that killed this consumer may still be ahead.
        match self.careful_until {
            0 if self.progressed => self.position.starts = 0,
            _ => self.position = self.position.trying(noted, noted.is_some() && noting == self.suspect),
        }
        // A note holds for one commit: what was tried and lived is no suspect.
        self.dirty = noted.is_some();
        Some(self.position.clone())
    }

    /// The length of the done-map as it is now, encoded.
    pub fn done_map_chars(&self) -> usize {
        self.done_map().encoded_chars()
    }

    fn done_map(&self) -> DoneMap {
        let unseen = self.replay.as_slice();
        if unseen.is_empty() && self.records.iter().all(|record| record.left == record.done.len) {
            return DoneMap::default();
        }
        // What was finished before this start and was not polled again yet stays finished.
        let unseen = unseen.iter().map(|flag| (*flag, 1));
        DoneMap::from_runs(self.records.iter().flat_map(|record| record.done.runs()).chain(unseen))
    }

    fn advance(&mut self) {
        while self.records.front().is_some_and(|record| record.left == 0) {
            if let Some(record) = self.records.pop_front() {
                self.passed += record.done.len as u64;
                self.position.offset = record.offset + 1;
            }
        }
        self.position.done = self.done_map();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever was finished before a crash is passed over afterwards, and nothing else, even if the consumer in
        /// between polled only some of it again.
        #[test]
        fn a_replay_skips_exactly_what_was_finished(
            sizes in proptest::collection::vec(1..6usize, 1..12),
            finished in proptest::collection::vec(any::<bool>(), 72),
            polled_again in 0..12usize,
            finish_one in any::<bool>(),
        ) {
            let mut track = Track::new(Position::default());
            let mut flat = Vec::new();
            for (offset, size) in sizes.iter().enumerate() {
                track.add(offset as u64 * 3, *size);
                flat.extend((0..*size).map(|index| (offset as u64 * 3, index as u32)));
            }
            let mut finished = finished[..flat.len()].to_vec();
            for (i, (offset, index)) in flat.iter().enumerate() {
                if finished[i] {
                    track.finish(*offset, [*index]);
                }
            }
            let mut position = track.take_position().unwrap_or_default();

            let mut between = Track::new(position.clone());
            for (offset, size) in sizes.iter().enumerate().take(polled_again) {
                if offset as u64 * 3 >= position.offset {
                    between.add(offset as u64 * 3, *size);
                }
            }
            let seen = |offset: u64| offset >= position.offset && offset < polled_again as u64 * 3;
            if let Some(i) = (0..flat.len()).find(|i| finish_one && !finished[*i] && seen(flat[*i].0)) {
                between.finish(flat[i].0, [flat[i].1]);
                finished[i] = true;
            }
            position = between.take_position().unwrap_or(position);

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

    fn started(mut position: Position, times: u32) -> Position {
        for start in 1..=times {
            let mut track = Track::new(position);
            track.add(0, 2);
            position = track.count_start().unwrap();
            assert_eq!((position.start_count(), track.count_start()), (start, None));
        }
        position
    }

    #[test]
    fn starts_without_progress_are_counted_and_forgotten_on_progress() {
        let mut track = Track::new(started(Position::default(), 2));
        track.add(0, 2);
        assert!(!track.is_careful(0));
        track.finish(0, [0]);
        assert_eq!(track.take_position().unwrap().starts, 0);
    }

    /// A consumer may commit what it passes again before it tries anything.
    #[test]
    fn what_was_finished_before_is_no_progress() {
        let mut track = Track::new(Position::default());
        track.add(0, 2);
        track.add(1, 1);
        track.finish(0, [0, 1]);
        let mut position = Position { offset: 0, ..track.take_position().unwrap() };
        position.done = DoneMap::from_flags([true, true]);
        for start in 1..=CAREFUL_AFTER_STARTS {
            let mut track = Track::new(position.clone());
            track.add(0, 2);
            let started = track.count_start().unwrap();
            let passed = track.take_position().unwrap();
            assert_eq!((started.start_count(), passed.start_count(), passed.offset), (start, start, 1));
            position.starts = passed.starts;
        }
        let mut careful = Track::new(position);
        careful.add(0, 2);
        careful.take_position().unwrap();
        let (unit, _) = careful.add(1, 1);
        assert!(careful.is_careful(unit), "the unit that kills was not polled yet");
    }

    #[test]
    fn the_unit_that_kills_is_found_behind_others_that_do_not() {
        let mut track = Track::new(started(Position::default(), 3));
        track.add(0, 2);
        assert_eq!(track.add(1, 4).0, 2);
        for (unit, offset, indexes) in [(0, 0, 0..1), (1, 0, 1..2), (2, 1, 0..3)] {
            assert!(track.is_careful(unit) && !track.is_poison(unit));
            track.note(unit);
            assert!(track.take_position().unwrap().noted_unit().is_some());
            track.finish(offset, indexes);
        }
        track.note(5);
        let position = track.take_position().unwrap();
        // The first record is gone, so the last unit is the fourth from the position on.
        assert_eq!((position.offset, position.noted_unit()), (1, Some(3)));
        let mut again = Track::new(position);
        assert_eq!(again.add(1, 4), (0, vec![true, true, true, false]));
        assert!(!again.is_poison(3), "it may have been a bystander");
        again.note(3);
        let mut again = Track::new(again.take_position().unwrap());
        again.add(1, 4);
        assert!(again.is_poison(3) && !again.is_poison(2));
        again.finish(1, [3]);
        assert_eq!(again.take_position().unwrap().starts, 0, "all is finished, so nothing is suspect");
    }

    #[test]
    fn what_was_tried_and_lived_is_no_suspect() {
        let mut track = Track::new(started(Position::default(), 3));
        track.add(0, 2);
        track.note(0);
        assert_eq!(track.take_position().unwrap().noted_unit(), Some(0));
        assert_eq!(track.take_position().unwrap().noted_unit(), None);
        assert!(track.take_position().is_none());
    }
}
