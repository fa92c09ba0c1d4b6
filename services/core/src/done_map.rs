//! Which instances past a position's offset are finished.
//!
//! A consumer finishes instances out of order: one slow answer must not hold back the rest. Its position names the
//! first record that is not finished, and this map marks the finished instances from there on, counted through the
//! records in order. It is run-length coded in ASCII, so that Kafka's offset metadata (at most 4,096 characters) can
//! carry it.

/// The most characters an encoded map may have.
pub const MAX_ENCODED_CHARS: usize = 4_096;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Finished instances as alternating run lengths, beginning with unfinished ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DoneMap {
    runs: Vec<u32>,
}

/// An encoded map that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a done-map is damaged at character {0}")]
pub struct DamagedDoneMap(pub usize);

impl DoneMap {
    /// The map of a sequence of flags; trailing unfinished instances are left away.
    pub fn from_flags(flags: impl IntoIterator<Item = bool>) -> Self {
        Self::from_runs(flags.into_iter().map(|flag| (flag, 1)))
    }

    /// The map of a sequence of runs, neighbours of which may be alike.
    pub fn from_runs(lengths: impl IntoIterator<Item = (bool, u32)>) -> Self {
        let mut runs: Vec<u32> = Vec::new();
        let (mut current, mut length) = (false, 0u32);
        for (flag, more) in lengths {
            if more == 0 || flag == current {
                length += more;
            } else {
                runs.push(length);
                (current, length) = (flag, more);
            }
        }
        if current {
            runs.push(length);
        }
        Self { runs }
    }

    /// Whether no instance is marked.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many instances are marked.
    pub fn finished(&self) -> u64 {
        self.runs.iter().skip(1).step_by(2).map(|run| u64::from(*run)).sum()
    }

    /// How many instances the map speaks of; those behind are unfinished.
    pub fn span(&self) -> usize {
        self.runs.iter().map(|run| *run as usize).sum()
    }

    /// The flags, then `false` for ever.
    pub fn flags(&self) -> impl Iterator<Item = bool> + '_ {
        self.runs
            .iter()
            .enumerate()
            .flat_map(|(i, run)| std::iter::repeat_n(i % 2 == 1, *run as usize))
            .chain(std::iter::repeat(false))
    }

    /// How many characters [`DoneMap::encode`] writes.
    pub fn encoded_chars(&self) -> usize {
        self.runs.iter().map(|run| (32 - run.leading_zeros()).div_ceil(5).max(1) as usize).sum()
    }

    /// Each run as digits of base 32 in the URL-safe base64 alphabet; the upper half of the alphabet continues a run.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        for run in &self.runs {
            let mut rest = *run;
            while rest >= 32 {
                text.push(ALPHABET[(32 + rest % 32) as usize] as char);
                rest /= 32;
            }
            text.push(ALPHABET[rest as usize] as char);
        }
        text
    }

    /// Reads what [`DoneMap::encode`] wrote.
    pub fn decode(text: &str) -> Result<Self, DamagedDoneMap> {
        let (mut runs, mut value, mut shift) = (Vec::new(), 0u64, 0);
        for (at, byte) in text.bytes().enumerate() {
            let digit = ALPHABET.iter().position(|b| *b == byte).ok_or(DamagedDoneMap(at))? as u64;
            value |= (digit % 32) << shift;
            if digit >= 32 {
                shift += 5;
                if shift > 30 {
                    return Err(DamagedDoneMap(at));
                }
            } else {
                runs.push(u32::try_from(value).map_err(|_| DamagedDoneMap(at))?);
                (value, shift) = (0, 0);
            }
        }
        if shift != 0 {
            return Err(DamagedDoneMap(text.len()));
        }
        Ok(Self { runs })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn flags_come_back(flags in proptest::collection::vec(any::<bool>(), 0..3_000)) {
            let map = DoneMap::from_flags(flags.iter().copied());
            let encoded = map.encode();
            prop_assert_eq!(encoded.len(), map.encoded_chars());
            let back = DoneMap::decode(&encoded).unwrap();
            prop_assert_eq!(&back, &map);
            prop_assert_eq!(back.flags().take(flags.len()).collect::<Vec<_>>(), flags.clone());
            prop_assert_eq!(map.finished(), flags.iter().filter(|f| **f).count() as u64);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[A-Za-z0-9_-]{0,60}") {
            let _ = DoneMap::decode(&text);
        }
    }

    #[test]
    fn a_long_run_takes_few_characters() {
        let map = DoneMap::from_flags((0..16_384).map(|i| i != 0));
        assert_eq!(map.encode().len(), 4);
        assert!(DoneMap::decode("A!").is_err());
    }
}
