//! Reads messages of the kind that Herald builds: headers, encoded words, multipart, quoted-printable and base64.
//! Strange input gives strange text, and never an error or a panic.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Multiparts inside multiparts are followed this deep, and this many parts are looked at.
const MAX_DEPTH: usize = 4;
const MAX_PARTS: usize = 64;
const MAX_HEADERS: usize = 256;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The readable parts of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Every header in its order, unfolded, encoded words decoded.
    pub headers: Vec<(String, String)>,
    /// The first `text/plain` part, with line feeds.
    pub text: Option<String>,
    /// The first `text/html` part, with line feeds. Show it in a sandbox: it is what somebody sent.
    pub html: Option<String>,
}

/// Decodes a message.
pub fn decode(raw: &[u8]) -> Decoded {
    let headers = Headers::parse(raw);
    let mut decoded = Decoded::default();
    let mut parts = 0;
    read_part(raw, 0, &mut parts, &mut decoded);
    decoded.headers = headers.0.into_iter().map(|(name, value)| (name, encoded_words(&value))).collect();
    decoded
}

/// Headers in their order, unfolded.
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    pub fn parse(raw: &[u8]) -> Self {
        let mut headers: Vec<(String, String)> = Vec::new();
        for line in raw[..header_end(raw).0].split(|b| *b == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let text = String::from_utf8_lossy(line);
            if let Some(last) = headers.last_mut().filter(|_| text.starts_with([' ', '\t'])) {
                last.1.push_str(&text);
            } else if let Some((name, value)) = text.split_once(':').filter(|_| headers.len() < MAX_HEADERS) {
                headers.push((name.trim_end().to_owned(), value.trim_start().to_owned()));
            }
        }
        for (_, value) in &mut headers {
            value.truncate(value.trim_end().len());
        }
        Self(headers)
    }

    /// The first header of this name.
    pub fn get(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
    }
}

/// Where the header ends and the body begins.
fn header_end(raw: &[u8]) -> (usize, usize) {
    if raw.starts_with(b"\r\n") {
        return (0, 2);
    }
    memchr::memmem::find(raw, b"\r\n\r\n").map_or((raw.len(), raw.len()), |end| (end, end + 4))
}

fn read_part(raw: &[u8], depth: usize, parts: &mut usize, decoded: &mut Decoded) {
    *parts += 1;
    if *parts > MAX_PARTS || depth > MAX_DEPTH {
        return;
    }
    let headers = Headers::parse(raw);
    let body = &raw[header_end(raw).1..];
    let content_type = headers.get("content-type").unwrap_or_else(|| "text/plain".to_owned());
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind.starts_with("multipart/") {
        if let Some(boundary) = parameter(&content_type, "boundary") {
            for part in split_multipart(body, &boundary) {
                read_part(part, depth + 1, parts, decoded);
            }
        }
        return;
    }
    let slot = match kind.as_str() {
        "text/plain" => &mut decoded.text,
        "text/html" => &mut decoded.html,
        _ => return,
    };
    if slot.is_none() {
        let encoding = headers.get("content-transfer-encoding").unwrap_or_default().to_ascii_lowercase();
        let bytes = match encoding.trim() {
            "quoted-printable" => quoted_printable(body),
            "base64" => base64_lenient(body),
            _ => body.to_vec(),
        };
        *slot = Some(String::from_utf8_lossy(&bytes).replace("\r\n", "\n"));
    }
}

fn parameter(value: &str, name: &str) -> Option<String> {
    value.split(';').skip(1).find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"').to_owned())
    })
}

fn split_multipart<'a>(body: &'a [u8], boundary: &str) -> Vec<&'a [u8]> {
    let delimiter = format!("--{boundary}");
    let mut starts = Vec::new();
    for at in memchr::memmem::find_iter(body, delimiter.as_bytes()) {
        if (at == 0 || body[at - 1] == b'\n') && starts.len() <= MAX_PARTS {
            starts.push(at);
        }
    }
    let part = |pair: &[usize]| {
        let from = memchr::memchr(b'\n', &body[pair[0]..pair[1]]).map_or(pair[1], |newline| pair[0] + newline + 1);
        let part = &body[from..pair[1]];
        part.strip_suffix(b"\r\n").unwrap_or(part)
    };
    starts.windows(2).map(part).collect()
}

/// Decodes quoted-printable (RFC 2045, section 6.7); what is no valid escape stays as it is.
pub(crate) fn quoted_printable(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut rest = data;
    while let Some(at) = memchr::memchr(b'=', rest) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
        match rest {
            [b'\r', b'\n', tail @ ..] | [b'\n', tail @ ..] => rest = tail,
            [high, low, tail @ ..] if hex(*high).is_some() && hex(*low).is_some() => {
                out.push(hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0));
                rest = tail;
            }
            _ => out.push(b'='),
        }
    }
    out.extend_from_slice(rest);
    out
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

fn base64_lenient(data: &[u8]) -> Vec<u8> {
    let clean: Vec<u8> = data.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
    BASE64.decode(clean).unwrap_or_default()
}

/// Decodes RFC 2047 encoded words; space between two of them vanishes.
pub(crate) fn encoded_words(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut bytes: Vec<u8> = Vec::new();
    let mut rest = value;
    while let Some(at) = rest.find("=?") {
        let before = &rest[..at];
        match encoded_word(&rest[at..]) {
            Some((decoded, used)) => {
                if bytes.is_empty() || !before.trim().is_empty() {
                    out.push_str(&String::from_utf8_lossy(&std::mem::take(&mut bytes)));
                    out.push_str(before);
                }
                bytes.extend(decoded);
                rest = &rest[at + used..];
            }
            None => {
                out.push_str(&String::from_utf8_lossy(&std::mem::take(&mut bytes)));
                out.push_str(&rest[..at + 2]);
                rest = &rest[at + 2..];
            }
        }
    }
    out.push_str(&String::from_utf8_lossy(&bytes));
    out.push_str(rest);
    out
}

/// One encoded word at the start of `text` in UTF-8 or ASCII, and its length.
fn encoded_word(text: &str) -> Option<(Vec<u8>, usize)> {
    let mut fields = text.strip_prefix("=?")?.splitn(3, '?');
    let (charset, encoding, tail) = (fields.next()?, fields.next()?, fields.next()?);
    if !charset.eq_ignore_ascii_case("utf-8") && !charset.eq_ignore_ascii_case("us-ascii") {
        return None;
    }
    let content = &tail[..tail.find("?=")?];
    let decoded = match encoding {
        "q" | "Q" => quoted_printable(content.replace('_', " ").as_bytes()),
        "b" | "B" => BASE64.decode(content).ok()?,
        _ => return None,
    };
    Some((decoded, 2 + charset.len() + 1 + encoding.len() + 1 + content.len() + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_and_decoded() {
        let raw = b"Subject: =?UTF-8?B?w7w=?= =?utf-8?q?b_er?= all\r\nContent-Type: multipart/alternative;\r\n \
            boundary=\"b-1\"\r\n\r\npreamble\r\n--b-1\r\nContent-Type: text/plain; charset=utf-8\r\n\
            Content-Transfer-Encoding: quoted-printable\r\n\r\nsoft=\r\n line caf=C3=A9=3D\r\n2\r\n--b-1\r\n\
            Content-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\nPGI+\r\naGk8L2I+\r\n--b-1--\r\n";
        let decoded = decode(raw);
        assert_eq!(decoded.text.as_deref(), Some("soft line café=\n2"));
        assert_eq!(decoded.html.as_deref(), Some("<b>hi</b>"));
        assert_eq!(decoded.headers[0], ("Subject".into(), "üb er all".into()));
        assert_eq!(decode(b"\r\nbare\r\n").text.as_deref(), Some("bare\n"));
    }

    #[test]
    fn nesting_is_bounded_and_nonsense_survives() {
        let mut raw = Vec::new();
        for n in 0..100 {
            raw.extend(format!("Content-Type: multipart/mixed; boundary=b{n}\r\n\r\n--b{n}\r\n").bytes());
        }
        assert_eq!(decode(&raw).text, None);
        for raw in [&b"=?"[..], b"=?utf-8?q?", b":", b"Content-Type: multipart/x; boundary\r\n\r\n--", b"\xff\xfe=4"] {
            decode(raw);
            encoded_words(&String::from_utf8_lossy(raw));
        }
        assert_eq!(quoted_printable(b"a=zz=4"), b"a=zz=4");
    }
}
