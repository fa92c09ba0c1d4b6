//! User ids packed into one column: each as a varint length and UTF-8 bytes, so that a record of hundreds of users is
//! read without an allocation a user.

use bytes::Bytes;

/// What a column has room for at first: the ids of a few users, as most sections and receipts of a shard have.
const FIRST_BYTES: usize = 64;

/// Builds a packed column.
#[derive(Debug, Default, Clone)]
pub struct PackedWriter {
    bytes: Vec<u8>,
    count: u32,
}

impl PackedWriter {
    /// Appends one id.
    pub fn push(&mut self, id: &str) {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(FIRST_BYTES);
        }
        let mut length = id.len() as u32;
        while length >= 0x80 {
            self.bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        self.bytes.push(length as u8);
        self.bytes.extend_from_slice(id.as_bytes());
        self.count += 1;
    }

    /// Appends the ids of another column.
    pub fn append(&mut self, other: Self) {
        match self.count {
            0 => *self = other,
            _ => {
                self.bytes.extend_from_slice(&other.bytes);
                self.count += other.count;
            }
        }
    }

    /// How many ids were appended.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The column.
    pub fn finish(self) -> Bytes {
        self.bytes.into()
    }
}

/// Packs ids into a column.
pub fn pack<'a>(ids: impl IntoIterator<Item = &'a str>) -> Bytes {
    let mut writer = PackedWriter::default();
    ids.into_iter().for_each(|id| writer.push(id));
    writer.finish()
}

/// A packed column that breaks off or holds invalid UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a packed column of ids is damaged at byte {0}")]
pub struct DamagedColumn(pub usize);

/// Reads a packed column, id by id. After an error it ends.
pub fn unpack(column: &[u8]) -> Unpack<'_> {
    Unpack { column, at: 0 }
}

/// The iterator of [`unpack`].
#[derive(Debug, Clone)]
pub struct Unpack<'a> {
    column: &'a [u8],
    at: usize,
}

impl<'a> Unpack<'a> {
    /// What is not unpacked yet.
    pub fn rest(&self) -> &'a [u8] {
        self.column.get(self.at..).unwrap_or_default()
    }

    fn next_id(&mut self) -> Option<&'a str> {
        let (mut length, mut shift) = (0usize, 0);
        loop {
            let byte = *self.column.get(self.at)?;
            self.at += 1;
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 21 {
                return None;
            }
        }
        let id = self.column.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        std::str::from_utf8(id).ok()
    }
}

impl<'a> Iterator for Unpack<'a> {
    type Item = Result<&'a str, DamagedColumn>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.column.len() {
            return None;
        }
        let begin = self.at;
        match self.next_id() {
            Some(id) => Some(Ok(id)),
            None => {
                self.at = self.column.len();
                Some(Err(DamagedColumn(begin)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ids_come_back_as_they_went_in(ids in proptest::collection::vec("\\PC{0,200}", 0..50)) {
            let column = pack(ids.iter().map(String::as_str));
            let back: Result<Vec<&str>, _> = unpack(&column).collect();
            prop_assert_eq!(back.unwrap(), ids);
        }

        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(unpack(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn a_column_that_breaks_off_is_an_error() {
        let column = pack(["alice", "bob"]);
        let read: Vec<_> = unpack(&column[..column.len() - 1]).collect();
        assert_eq!(read, [Ok("alice"), Err(DamagedColumn(6))]);
    }
}
