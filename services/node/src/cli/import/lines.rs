//! Lines of a file, bounded, with their numbers and places.

use std::io::{self, BufRead, Read};

/// The longest line that is read; a profile is far shorter.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// A line, or that it is too long to be one.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// From 1.
    pub number: u64,
    /// Where the next line begins, in bytes.
    pub end: u64,
    /// Without its ending; `None` for one that is too long.
    pub bytes: Option<Vec<u8>>,
}

/// Reads lines one by one.
pub struct Lines<R> {
    reader: R,
    number: u64,
    offset: u64,
}

impl<R: BufRead> Lines<R> {
    /// Goes on behind a line that ended at `offset`; 0 and 0 at the beginning.
    pub fn after(reader: R, number: u64, offset: u64) -> Self {
        Self { reader, number, offset }
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn next_line(&mut self) -> io::Result<Option<Line>> {
        let mut bytes = Vec::new();
        let read = (&mut self.reader).take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut bytes)?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        self.offset += read as u64;
        let whole = bytes.last() == Some(&b'\n') || read <= MAX_LINE_BYTES;
        if !whole {
            self.offset += self.skip_line()?;
            return Ok(Some(Line { number: self.number, end: self.offset, bytes: None }));
        }
        while matches!(bytes.last(), Some(b'\n' | b'\r')) {
            bytes.pop();
        }
        if self.number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        Ok(Some(Line { number: self.number, end: self.offset, bytes: Some(bytes) }))
    }

    /// Passes over the rest of a line; returns how many bytes.
    fn skip_line(&mut self) -> io::Result<u64> {
        let mut skipped = 0;
        loop {
            let buffer = self.reader.fill_buf()?;
            let (length, ended) = match buffer.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.reader.consume(length);
            skipped += length as u64;
            if ended {
                return Ok(skipped);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_numbers_and_places_and_are_bounded() {
        let long = "x".repeat(MAX_LINE_BYTES + 5);
        let text = format!("\u{feff}a\r\n\n{long}\nlast");
        let mut lines = Lines::after(text.as_bytes(), 0, 0);
        let mut next = || lines.next_line().unwrap();
        assert_eq!(next(), Some(Line { number: 1, end: 6, bytes: Some(b"a".to_vec()) }));
        assert_eq!(next(), Some(Line { number: 2, end: 7, bytes: Some(vec![]) }));
        let end = 7 + long.len() as u64 + 1;
        assert_eq!(next(), Some(Line { number: 3, end, bytes: None }));
        assert_eq!(next(), Some(Line { number: 4, end: text.len() as u64, bytes: Some(b"last".to_vec()) }));
        assert_eq!(next(), None);
        let mut rest = Lines::after(&text.as_bytes()[7..], 2, 7);
        assert_eq!(rest.next_line().unwrap().unwrap().number, 3);
    }
}
