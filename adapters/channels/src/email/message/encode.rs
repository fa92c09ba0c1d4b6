//! How text becomes octets of a mail: transfer encodings (RFC 2045) and encoded words (RFC 2047).

use base64::prelude::{BASE64_STANDARD, Engine as _};

/// Longest line of a mail, without its CRLF (RFC 5322, section 2.1.1).
const MAX_LINE_OCTETS: usize = 998;
/// Encoded lines and folded headers are at most this long.
const LINE_OCTETS: usize = 76;
/// Payload of one encoded word: with its frame it is 64 characters, which fits a line beside any header's name.
const WORD_PAYLOAD: usize = 52;

/// A `Content-Transfer-Encoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    SevenBit,
    EightBit,
    QuotedPrintable,
    Base64,
}

impl Encoding {
    pub fn name(self) -> &'static str {
        match self {
            Self::SevenBit => "7bit",
            Self::EightBit => "8bit",
            Self::QuotedPrintable => "quoted-printable",
            Self::Base64 => "base64",
        }
    }

    /// The plainest encoding that carries `text` unharmed; where two do, the shorter.
    pub fn choose(text: &str, allow_eight_bit: bool) -> Self {
        // Plain comparisons, so that the compiler checks many octets at once.
        let control = |b: u8| (b < b' ') & !matches!(b, b'\t' | b'\n' | b'\r') | (b == 0x7f);
        let special: usize = text.bytes().map(|b| usize::from((b >= 0x80) | (b == b'=') | control(b))).sum();
        let mut plain = !text.bytes().fold(false, |found, b| found | control(b));
        for_each_line(text, |line| {
            // Some mail stores put > before a line that begins so, which breaks signatures.
            plain &= line.len() <= MAX_LINE_OCTETS && !line.starts_with("From ");
        });
        match (plain, text.is_ascii(), allow_eight_bit) {
            (true, true, _) => Self::SevenBit,
            (true, false, true) => Self::EightBit,
            _ if text.len() + 2 * special <= text.len() * 4 / 3 => Self::QuotedPrintable,
            _ if text.is_ascii() => Self::QuotedPrintable,
            _ => Self::Base64,
        }
    }

    /// Appends `text` in this encoding, with CRLF line ends, and ends the last line.
    pub fn write(self, text: &str, out: &mut Vec<u8>) {
        match self {
            Self::SevenBit | Self::EightBit => for_each_line(text, |line| {
                out.extend_from_slice(line.as_bytes());
                out.extend_from_slice(b"\r\n");
            }),
            Self::QuotedPrintable => for_each_line(text, |line| quoted_printable_line(line.as_bytes(), out)),
            Self::Base64 => {
                let mut canonical = Vec::with_capacity(text.len() + 64);
                Self::EightBit.write(text, &mut canonical);
                for line in BASE64_STANDARD.encode(canonical).as_bytes().chunks(LINE_OCTETS) {
                    out.extend_from_slice(line);
                    out.extend_from_slice(b"\r\n");
                }
            }
        }
    }
}

/// Calls `each` with every line of `text`, whose lines end with CRLF, LF or CR; a last line need not end.
fn for_each_line(text: &str, mut each: impl FnMut(&str)) {
    let mut rest = text;
    while let Some(at) = memchr::memchr2(b'\r', b'\n', rest.as_bytes()) {
        each(&rest[..at]);
        rest = &rest[at..];
        rest = rest.strip_prefix("\r\n").unwrap_or(&rest[1.min(rest.len())..]);
    }
    if !rest.is_empty() {
        each(rest);
    }
}

fn quoted_printable_line(line: &[u8], out: &mut Vec<u8>) {
    let (mut column, mut index) = (0, 0);
    while index < line.len() {
        let octet = line[index];
        let last = index + 1 == line.len();
        let plain = match octet {
            b' ' | b'\t' => !last,
            b'F' => !(index == 0 && line.starts_with(b"From ")),
            _ => is_plain(octet),
        };
        // The last column of a line that goes on is for the soft break.
        let width = if plain { 1 } else { 3 };
        if column + width > LINE_OCTETS - usize::from(!last) {
            out.extend_from_slice(b"=\r\n");
            column = 0;
        }
        if !plain {
            escape(octet, out);
            (column, index) = (column + 3, index + 1);
            continue;
        }
        // A run of plain octets goes as a whole; white space at its end is looked at by itself.
        let room = (LINE_OCTETS - 1 - column).max(1).min(line.len() - index);
        let run = &line[index..index + room];
        let run = &run[..run.iter().position(|b| !is_plain(*b) && *b != b' ').unwrap_or(room).max(1)];
        let run = if index + run.len() == line.len() { run.trim_ascii_end() } else { run };
        let count = run.len().max(1);
        out.extend_from_slice(&line[index..index + count]);
        (column, index) = (column + count, index + count);
    }
    out.extend_from_slice(b"\r\n");
}

fn is_plain(octet: u8) -> bool {
    (b'!'..=b'~').contains(&octet) & (octet != b'=')
}

fn escape(octet: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(&[b'=', HEX[usize::from(octet >> 4)], HEX[usize::from(octet & 15)]]);
}

/// Appends `value` as unstructured header text that starts in `column`, folded; as encoded words where it cannot stand
/// as it is. The caller has refused CR, LF and NUL.
pub(super) fn write_unstructured(value: &str, column: usize, out: &mut Vec<u8>) {
    let printable = value.bytes().all(|b| (b' '..=b'~').contains(&b));
    let edges = value.starts_with(' ') || value.ends_with(' ');
    let long_word = value.split(' ').any(|word| word.len() > LINE_OCTETS - 10);
    if !printable || edges || long_word || value.contains("=?") {
        return write_encoded_words(value, out);
    }
    let mut column = column;
    let mut rest = value;
    while !rest.is_empty() {
        // A word with the spaces before it; a line breaks before its last space, so that no line is blank.
        let spaces = rest.len() - rest.trim_start_matches(' ').len();
        let end = rest[spaces..].find(' ').map_or(rest.len(), |at| spaces + at);
        if spaces > 0 && column + end > LINE_OCTETS {
            out.extend_from_slice(&rest.as_bytes()[..spaces - 1]);
            out.extend_from_slice(b"\r\n ");
            out.extend_from_slice(&rest.as_bytes()[spaces..end]);
            column = 1 + end - spaces;
        } else {
            out.extend_from_slice(&rest.as_bytes()[..end]);
            column += end;
        }
        rest = &rest[end..];
    }
}

/// Appends `value` as encoded words, each on a line of its own, cut between characters.
pub(super) fn write_encoded_words(value: &str, out: &mut Vec<u8>) {
    let q_cost = |c: char| if c == ' ' || c.is_ascii_alphanumeric() { 1 } else { 3 * c.len_utf8() };
    // Mostly Latin text stays readable in its source; everything else is shorter in base64.
    let quoted = value.chars().map(q_cost).sum::<usize>() <= value.len() * 2;
    let mut rest = value;
    let mut first = true;
    while !rest.is_empty() {
        let mut cost = 0;
        let limit = if quoted { WORD_PAYLOAD } else { WORD_PAYLOAD / 4 * 3 };
        let end = rest.char_indices().find_map(|(at, c)| {
            cost += if quoted { q_cost(c) } else { c.len_utf8() };
            (cost > limit).then_some(at)
        });
        let (word, tail) = rest.split_at(end.unwrap_or(rest.len()));
        out.extend_from_slice(if first { b"=?utf-8?" } else { b"\r\n =?utf-8?" });
        if quoted {
            out.extend_from_slice(b"Q?");
            for octet in word.bytes() {
                match octet {
                    b' ' => out.push(b'_'),
                    octet if octet.is_ascii_alphanumeric() => out.push(octet),
                    octet => escape(octet, out),
                }
            }
        } else {
            out.extend_from_slice(b"B?");
            out.extend_from_slice(BASE64_STANDARD.encode(word).as_bytes());
        }
        out.extend_from_slice(b"?=");
        (rest, first) = (tail, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(encoding: Encoding, text: &str) -> String {
        let mut out = Vec::new();
        encoding.write(text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_plainest_encoding_that_does_no_harm_is_chosen() {
        let choose = |text: &str| (Encoding::choose(text, false), Encoding::choose(text, true));
        use Encoding::{Base64, EightBit, QuotedPrintable, SevenBit};
        assert_eq!(choose("hello\nworld=1\n"), (SevenBit, SevenBit));
        assert_eq!(choose("ein schöner Tag am Meer"), (QuotedPrintable, EightBit));
        assert_eq!(choose("良い一日を"), (Base64, EightBit));
        assert_eq!(choose(&"x".repeat(998)), (SevenBit, SevenBit));
        assert_eq!(choose(&"x".repeat(999)), (QuotedPrintable, QuotedPrintable));
        assert_eq!(choose("a\nFrom here"), (QuotedPrintable, QuotedPrintable));
        assert_eq!(choose("a\0b"), (QuotedPrintable, QuotedPrintable));
        assert_eq!(choose(&"良".repeat(400)), (Base64, Base64));
    }

    #[test]
    fn quoted_printable_keeps_its_line_rules() {
        let encode = |text: &str| encoded(Encoding::QuotedPrintable, text);
        assert_eq!(encode("a=b \r\nc\t\nd\re"), "a=3Db=20\r\nc=09\r\nd\r\ne\r\n");
        assert_eq!(encode("From x\n\0é"), "=46rom x\r\n=00=C3=A9\r\n");
        assert_eq!(encode(&"x".repeat(76)), format!("{}\r\n", "x".repeat(76)));
        assert_eq!(encode(&"x".repeat(77)), format!("{}=\r\nxx\r\n", "x".repeat(75)));
        let long = encode(&"é x".repeat(100));
        assert!(long.lines().all(|line| line.len() <= 76), "{long}");
    }

    #[test]
    fn base64_lines_are_short_and_canonical() {
        let text = encoded(Encoding::Base64, &"é\n".repeat(50));
        assert!(text.lines().all(|line| line.len() <= 76));
        let decoded = BASE64_STANDARD.decode(text.replace("\r\n", "")).unwrap();
        assert_eq!(decoded, "é\r\n".repeat(50).as_bytes());
    }

    #[test]
    fn headers_fold_at_spaces_and_encode_what_they_must() {
        let write = |value: &str| {
            let mut out = b"Subject: ".to_vec();
            write_unstructured(value, 9, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(write("hello  world"), "Subject: hello  world");
        let long = "several words ".repeat(20);
        let folded = write(long.trim_end());
        assert!(folded.split("\r\n").all(|line| line.len() <= 76), "{folded}");
        assert_eq!(folded.replace("\r\n", ""), format!("Subject: {}", long.trim_end()));
        assert_eq!(write("café"), "Subject: =?utf-8?Q?caf=C3=A9?=");
        assert_eq!(write("a =?x b"), "Subject: =?utf-8?Q?a_=3D=3Fx_b?=");
        for value in ["日本語の件名".repeat(20), "x".repeat(300), " edge".to_owned(), "tab\there".to_owned()] {
            let folded = write(&value);
            assert!(folded.split("\r\n").all(|line| line.len() <= 76), "{folded}");
            let unfolded = folded.replace("\r\n", "");
            let decoded = crate::email::mailbox::decode(format!("{unfolded}\r\n\r\n").as_bytes());
            assert_eq!(decoded.headers[0].1, value);
        }
    }
}
