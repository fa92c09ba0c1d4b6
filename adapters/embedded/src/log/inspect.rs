//! Reads a journal that nobody has open, without changing it: for verification.

use std::sync::Arc;

use herald_core::{
    ports::log::{Identity, Position, Record},
    topic::{Group, Retention, TopicPartition},
};

use super::{format, recovery, state::State};
use crate::disk::Disk;

/// A journal as opening it would find it.
pub struct JournalReader {
    disk: Arc<dyn Disk>,
    state: State,
}

/// What is in a journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JournalSize {
    /// Segments that are needed.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Records that are not gone.
    pub records: u64,
}

impl JournalReader {
    /// Reads a journal. `store_flush` is the last sync that the stores know. Everything that is wrong is told; where it
    /// cannot be opened, there is no reader.
    pub fn open(disk: Arc<dyn Disk>, identity: &Identity, store_flush: u64) -> (Option<Self>, Vec<String>) {
        let (state, mut faults) = recovery::inspect(&*disk, identity, store_flush);
        match state {
            Ok(state) => (Some(Self { disk, state }), faults),
            Err(error) => {
                faults.push(error.to_string());
                (None, faults)
            }
        }
    }

    /// How much there is.
    pub fn size(&self) -> JournalSize {
        JournalSize {
            segments: self.state.segments.len() as u64,
            bytes: self.state.segments.values().map(|segment| segment.length).sum(),
            records: self.state.partitions.iter().map(|partition| partition.entries.len() as u64).sum(),
        }
    }

    /// Every partition.
    pub fn partitions(&self) -> impl Iterator<Item = TopicPartition> + '_ {
        self.state.partitions.iter().map(|partition| partition.at)
    }

    /// How far a group came in a partition.
    pub fn position(&self, group: Group, at: TopicPartition) -> Position {
        let slot = self.state.slot(at).map(|slot| &self.state.partitions[slot]);
        let reader = at.topic.readers().iter().position(|reader| *reader == group);
        slot.zip(reader).and_then(|(partition, reader)| partition.readers[reader].position.clone()).unwrap_or_default()
    }

    /// The records of a partition that are not gone, in order; a fault in place of one that cannot be read.
    pub fn records(&self, at: TopicPartition) -> impl Iterator<Item = Result<Record, String>> + '_ {
        let slot = self.state.slot(at).map(|slot| &self.state.partitions[slot]);
        slot.into_iter().flat_map(move |partition| {
            partition.entries.iter().map(move |(offset, entry)| {
                let cannot = |why: &str| {
                    format!("{at}: the record at offset {offset} (journal position {}) {why}", entry.position)
                };
                let (start, _) = self
                    .state
                    .segments
                    .range(..=entry.position)
                    .next_back()
                    .ok_or_else(|| cannot("is in no segment"))?;
                let name = format::segment_name(*start);
                let file = self.disk.open(&name).map_err(|e| cannot(&format!("cannot be read from {name}: {e}")))?;
                let mut bytes = vec![0; entry.length as usize];
                file.read_at(entry.position - start, &mut bytes)
                    .map_err(|e| cannot(&format!("cannot be read from {name}: {e}")))?;
                format::decode_record(&bytes.into()).ok_or_else(|| cannot("is damaged"))
            })
        })
    }

    /// Contradictions between positions, offsets and records: a group that is beyond a partition's end, and records that
    /// somebody still has to read and that are not there.
    pub fn contradictions(&self) -> Vec<String> {
        let mut found = Vec::new();
        for partition in &self.state.partitions {
            let (at, next) = (partition.at, partition.next);
            let positions = at.topic.readers().iter().zip(&partition.readers);
            let positions: Vec<(Group, u64)> = positions
                .map(|(group, reader)| (*group, reader.position.as_ref().map_or(0, |position| position.offset)))
                .collect();
            for (group, offset) in positions.iter().filter(|(_, offset)| *offset > next) {
                found.push(format!("{at}: {} is at offset {offset}, beyond the end {next}", group.name()));
            }
            let Some((_, first)) = positions.iter().min_by_key(|(_, offset)| *offset) else { continue };
            let there = partition.entries.range(first..).count() as u64;
            let wanted = next.saturating_sub(*first);
            if at.topic.retention() == Retention::Consumed && there != wanted {
                let lost = wanted - there.min(wanted);
                found.push(format!("{at}: {lost} of the {wanted} records from offset {first} on are not there"));
            }
        }
        found
    }
}
