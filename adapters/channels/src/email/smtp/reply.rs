//! SMTP replies (RFC 5321, section 4.2) and enhanced status codes (RFC 3463, RFC 2034).

use std::fmt;

/// A server that sends a longer line, or more in one reply, breaks the protocol.
const MAX_LINE_OCTETS: usize = 2_048;
const MAX_REPLY_OCTETS: usize = 32 * 1_024;

/// One reply, borrowed from the read buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reply<'a> {
    /// The basic code, 200 to 599.
    pub code: u16,
    raw: &'a [u8],
}

/// An enhanced status code such as 5.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Enhanced {
    pub class: u16,
    pub subject: u16,
    pub detail: u16,
}

/// Bytes that are no SMTP reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server's answer is not an SMTP reply")]
pub(crate) struct Malformed;

/// Takes the first complete reply off `buffer`: the reply and its length in octets, or `None` while it is incomplete.
pub(crate) fn parse(buffer: &[u8]) -> Result<Option<(Reply<'_>, usize)>, Malformed> {
    let mut start = 0;
    let mut code = None;
    while let Some(newline) = memchr::memchr(b'\n', &buffer[start..]) {
        let line = &buffer[start..start + newline];
        if line.len() > MAX_LINE_OCTETS {
            return Err(Malformed);
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line_code = parse_code(line).ok_or(Malformed)?;
        if *code.get_or_insert(line_code) != line_code {
            return Err(Malformed);
        }
        start += newline + 1;
        match line.get(3) {
            None | Some(b' ') => {
                return Ok(Some((Reply { code: line_code, raw: &buffer[..start] }, start)));
            }
            Some(b'-') => {}
            Some(_) => return Err(Malformed),
        }
    }
    if buffer.len() - start > MAX_LINE_OCTETS || buffer.len() > MAX_REPLY_OCTETS {
        return Err(Malformed);
    }
    Ok(None)
}

fn parse_code(line: &[u8]) -> Option<u16> {
    match line {
        [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', ..] => {
            Some(u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0'))
        }
        _ => None,
    }
}

impl<'a> Reply<'a> {
    /// 2yz.
    pub fn is_positive(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// The text of each line, without the code.
    pub fn lines(&self) -> impl Iterator<Item = &'a [u8]> {
        let raw = self.raw.strip_suffix(b"\n").unwrap_or(self.raw);
        raw.split(|b| *b == b'\n').map(|line| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            line.get(4..).unwrap_or_default()
        })
    }

    /// The enhanced status code at the start of the text, if there is one of the same class as the basic code. A code
    /// of another class is not allowed (RFC 2034, section 4) and so not believed.
    pub fn enhanced(&self) -> Option<Enhanced> {
        let first = self.lines().next()?;
        let word = first.split(|b| *b == b' ').next()?;
        let mut parts = std::str::from_utf8(word).ok()?.split('.').map(|part| {
            let short = (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
            part.parse::<u16>().ok().filter(|_| short)
        });
        let code = Enhanced { class: parts.next()??, subject: parts.next()??, detail: parts.next()?? };
        (parts.next().is_none() && code.class == self.code / 100).then_some(code)
    }

    /// The first line's text after the enhanced code, as far as it is text, at most 200 characters. Words that hold an
    /// `@` are left out, since they name people.
    pub fn text(&self) -> String {
        let first = self.lines().next().unwrap_or_default();
        let text = String::from_utf8_lossy(first);
        let text = match self.enhanced() {
            Some(_) => text.split_once(' ').map_or("", |(_, rest)| rest),
            None => &text,
        };
        let mut out = String::with_capacity(text.len().min(200));
        for word in text.split_whitespace() {
            if out.len() + word.len() > 200 {
                break;
            }
            if !out.is_empty() {
                out.push(' ');
            }
            if word.contains('@') {
                out.push_str("<address>")
            } else {
                out.extend(word.chars().filter(|c| !c.is_control()))
            }
        }
        out
    }
}

impl fmt::Display for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(bytes: &[u8]) -> Reply<'_> {
        let (reply, used) = parse(bytes).unwrap().unwrap();
        assert_eq!(used, bytes.len());
        reply
    }

    #[test]
    fn every_prefix_of_a_reply_is_incomplete() {
        let reply = b"250-mx.example greets you\r\n250-SIZE 1000\r\n250 HELP\r\n";
        for end in 0..reply.len() {
            assert_eq!(parse(&reply[..end]), Ok(None), "{end}");
        }
        let lines: Vec<_> = one(reply).lines().map(|l| String::from_utf8_lossy(l).into_owned()).collect();
        assert_eq!(lines, ["mx.example greets you", "SIZE 1000", "HELP"]);
    }

    #[test]
    fn only_the_first_of_several_replies_is_taken() {
        let (reply, used) = parse(b"250 ok\r\n550 5.1.1 no\r\n").unwrap().unwrap();
        assert_eq!((reply.code, used), (250, 8));
    }

    #[test]
    fn enhanced_codes_are_believed_only_in_their_class() {
        assert_eq!(one(b"550 5.1.1 gone\r\n").enhanced(), Some(Enhanced { class: 5, subject: 1, detail: 1 }));
        assert_eq!(one(b"450 5.1.1 odd\r\n").enhanced(), None);
        assert_eq!(one(b"550 no such user\r\n").enhanced(), None);
        assert_eq!(one(b"550 5.1.1.1 odd\r\n").enhanced(), None);
        assert_eq!(one(b"550\r\n").enhanced(), None);
    }

    #[test]
    fn text_leaves_people_out() {
        assert_eq!(one(b"550 5.1.1 <ann@example.com>: no such user\r\n").text(), "<address> no such user");
        assert_eq!(one(b"250 2.0.0 Ok: queued as 4F3\r\n").text(), "Ok: queued as 4F3");
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [&b"hello\r\n"[..], b"25\r\n", b"250-a\r\n550 b\r\n", b"650 x\r\n", b"250x\r\n"] {
            assert_eq!(parse(bytes), Err(Malformed), "{bytes:?}");
        }
        assert_eq!(parse(&vec![b'2'; MAX_LINE_OCTETS + 1]), Err(Malformed));
        assert_eq!(parse(&b"250-x\r\n".repeat(MAX_REPLY_OCTETS / 7 + 1)), Err(Malformed));
    }
}
