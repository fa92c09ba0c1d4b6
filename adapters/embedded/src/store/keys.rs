//! Keys: a table's byte and parts, encoded so that the order of bytes is the order of the parts.

use bytes::Bytes;
use herald_core::ports::StoreError;

/// The first byte of a key. See [`super`] for what is in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Table {
    Person = 0x01,
    Audience = 0x02,
    Erasure = 0x03,
    ErasureDue = 0x04,
    Admission = 0x10,
    AdmissionByAge = 0x11,
    Totals = 0x20,
    Admitted = 0x21,
    TenantRequests = 0x22,
    Receipts = 0x23,
    UserLog = 0x24,
    NotificationByAge = 0x25,
    RequestsByDedupeKey = 0x26,
    Export = 0x27,
    InboxItem = 0x30,
    InboxSection = 0x31,
    InboxSectionGone = 0x32,
    Feed = 0x33,
    InboxApplied = 0x34,
    Policy = 0x40,
    UnpublishedPolicy = 0x41,
    Audit = 0x50,
}

/// A key, or the beginning that the keys of a range share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(Vec<u8>);

impl Key {
    /// The table's first byte.
    pub fn of(table: Table) -> Self {
        let mut bytes = Vec::with_capacity(64);
        bytes.push(table as u8);
        Self(bytes)
    }

    /// A part of variable length that is not the last.
    pub fn part(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        // Ids are checked at the edge to be far shorter; one that is not must not pass for another.
        let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(part);
        self
    }

    /// A part of fixed length, or the last one.
    pub fn tail(mut self, tail: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(tail.as_ref());
        self
    }

    /// A byte.
    pub fn u8(mut self, number: u8) -> Self {
        self.0.push(number);
        self
    }

    /// Four bytes.
    pub fn u32(self, number: u32) -> Self {
        self.tail(number.to_be_bytes())
    }

    /// Eight bytes.
    pub fn u64(self, number: u64) -> Self {
        self.tail(number.to_be_bytes())
    }

    /// The least key that is larger than every key that begins with this one.
    pub fn end(&self) -> Self {
        let mut end = self.0.clone();
        while let Some(last) = end.last_mut() {
            if *last < u8::MAX {
                *last += 1;
                break;
            }
            end.pop();
        }
        Self(end)
    }

    /// The least key that is larger than this one.
    pub fn next(&self) -> Self {
        self.clone().u8(0)
    }

    /// The key's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Key> for Bytes {
    fn from(key: Key) -> Self {
        Bytes::from(key.0)
    }
}

impl From<&Key> for Bytes {
    fn from(key: &Key) -> Self {
        Bytes::copy_from_slice(&key.0)
    }
}

/// Reads the parts of a key after its table's byte.
pub struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    /// The parts of a key.
    pub fn of(key: &'a [u8]) -> Result<Self, StoreError> {
        key.get(1..).map(Self).ok_or_else(damaged)
    }

    /// The parts after a beginning of this length.
    pub fn after(key: &'a [u8], length: usize) -> Result<Self, StoreError> {
        key.get(length..).map(Self).ok_or_else(damaged)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], StoreError> {
        let (part, rest) = self.0.split_at_checked(length).ok_or_else(damaged)?;
        self.0 = rest;
        Ok(part)
    }

    /// A part of variable length.
    pub fn part(&mut self) -> Result<&'a [u8], StoreError> {
        let length = u16::from_be_bytes(self.array()?);
        self.take(length.into())
    }

    /// A part of variable length, of UTF-8.
    pub fn text(&mut self) -> Result<&'a str, StoreError> {
        std::str::from_utf8(self.part()?).map_err(|_| damaged())
    }

    /// A part of fixed length.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        self.take(N)?.try_into().map_err(|_| damaged())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, StoreError> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, StoreError> {
        self.array().map(u64::from_be_bytes)
    }

    /// What is left, as UTF-8.
    pub fn rest(self) -> Result<&'a str, StoreError> {
        std::str::from_utf8(self.0).map_err(|_| damaged())
    }
}

fn damaged() -> StoreError {
    StoreError::Damaged("a key does not have its table's form".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_behind_all_its_keys_and_before_the_next() {
        let prefix = Key::of(Table::Person).tail([7, 0xff, 0xff]);
        assert!(prefix.clone().tail([0xff; 9]).bytes() < prefix.end().bytes());
        assert!(prefix.end().bytes() <= Key::of(Table::Person).tail([8]).bytes());
    }

    #[test]
    fn neighbouring_parts_do_not_run_into_each_other() {
        let key = |a: &str, b: &str| Key::of(Table::Person).part(a).part(b);
        assert_ne!(key("ab", "c"), key("a", "bc"));
        let key = key("ab", "c").u64(5);
        let mut parts = Parts::of(key.bytes()).unwrap();
        assert_eq!((parts.text().unwrap(), parts.text().unwrap(), parts.u64().unwrap()), ("ab", "c", 5));
        assert!(parts.u32().is_err());
    }
}
