//! Composing messages (RFC 5322, MIME): what a batch has in common is prepared once, the rest is written by hand into
//! one buffer.

mod encode;

use bytes::Bytes;
use jiff::Timestamp;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::encode::{Encoding, write_encoded_words, write_unstructured};
use super::address::Address;
use super::dkim::{Signer, SigningError, sign_into};

/// An address with the name that is shown for it.
#[derive(Clone, PartialEq, Eq)]
pub struct NamedAddress {
    /// The display name; may be empty.
    pub name: String,
    /// The address.
    pub address: Address,
}

impl NamedAddress {
    /// An address without a name.
    pub fn bare(address: Address) -> Self {
        Self { name: String::new(), address }
    }
}

/// What the messages of a batch have in common.
#[derive(Clone)]
pub struct Sender {
    /// `From`.
    pub from: NamedAddress,
    /// `Reply-To`.
    pub reply_to: Option<NamedAddress>,
    /// The right side of Message-IDs; `None` takes the domain of `from`.
    pub message_id_domain: Option<String>,
    /// Whether text may go as 8bit. Only for servers known to offer 8BITMIME; others refuse such messages.
    pub eight_bit: bool,
}

/// What is of one message alone.
#[derive(Clone, Copy)]
pub struct Draft<'a> {
    /// The instance's id: it becomes the left side of the Message-ID, so a message that is sent again keeps it. 1 to
    /// 128 letters, digits, `-`, `_` or `.`.
    pub instance_id: &'a str,
    /// `To`.
    pub to: &'a NamedAddress,
    /// `Subject`.
    pub subject: &'a str,
    /// The `text/plain` part.
    pub text: Option<&'a str>,
    /// The `text/html` part.
    pub html: Option<&'a str>,
    /// An https URL that unsubscribes by POST (RFC 8058); it brings both unsubscribe headers.
    pub list_unsubscribe: Option<&'a str>,
    /// `Date`, seconds since 1970 in UTC.
    pub date_unix_s: i64,
}

/// Why a message cannot be composed.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Neither text nor HTML.
    #[error("a message needs a text or an HTML part")]
    Empty,
    /// CR, LF or NUL in what becomes a header: an attempt to add headers, or a broken template.
    #[error("{0} must not hold a line break or NUL")]
    HeaderInjection(&'static str),
    /// A header of more than 4,000 octets.
    #[error("{0} is longer than 4,000 octets")]
    HeaderTooLong(&'static str),
    /// The instance id cannot stand in a Message-ID.
    #[error("the instance id must be 1 to 128 letters, digits, '-', '_' or '.'")]
    InstanceId,
    /// The Message-ID's domain is no domain.
    #[error("the Message-ID's domain is not a valid domain name")]
    MessageIdDomain,
    /// Not an https URL of at most 900 printable ASCII characters.
    #[error("List-Unsubscribe must be an https URL of at most 900 printable ASCII characters without '<', '>' or ','")]
    ListUnsubscribe,
    /// The date is outside of the years 1970 to 9999.
    #[error("the date must lie in the years 1970 to 9999")]
    Date,
    /// Signing failed.
    #[error(transparent)]
    Signing(#[from] SigningError),
}

/// Composes the messages of one sender.
pub struct Composer {
    /// The headers that every message shares.
    shared: Vec<u8>,
    domain: String,
    eight_bit: bool,
    signers: Vec<Signer>,
}

impl Composer {
    /// Prepares what the messages have in common. Each message gets one DKIM signature for each of `signers`.
    ///
    /// # Errors
    /// [`MessageError`] for names that would break a header and for a domain that is none.
    pub fn new(sender: &Sender, signers: Vec<Signer>) -> Result<Self, MessageError> {
        let mut shared = Vec::with_capacity(256);
        write_address(&mut shared, "From", &sender.from)?;
        if let Some(reply_to) = &sender.reply_to {
            write_address(&mut shared, "Reply-To", reply_to)?;
        }
        // RFC 3834 keeps out-of-office answers away.
        shared.extend_from_slice(b"MIME-Version: 1.0\r\nAuto-Submitted: auto-generated\r\n");
        let domain = match &sender.message_id_domain {
            Some(domain) => Address::parse(&format!("id@{domain}")).map_err(|_| MessageError::MessageIdDomain)?,
            None => sender.from.address.clone(),
        };
        let domain = domain.domain().to_owned();
        Ok(Self { shared, domain, eight_bit: sender.eight_bit, signers })
    }

    /// The Message-ID that an instance's message bears, with its angle brackets.
    pub fn message_id(&self, instance_id: &str) -> String {
        format!("<{instance_id}@{}>", self.domain)
    }

    /// Composes and signs one message: CRLF line ends, lines of at most 998 octets.
    ///
    /// # Errors
    /// [`MessageError`]; the message would be the same the next time.
    pub fn compose(&self, draft: &Draft<'_>) -> Result<Bytes, MessageError> {
        let id_ok = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if !(1..=128).contains(&draft.instance_id.len()) || !draft.instance_id.bytes().all(id_ok) {
            return Err(MessageError::InstanceId);
        }
        // White space at the end says nothing to a reader, and DKIM verifiers disagree about blank lines there.
        let (text, html) = (draft.text.map(str::trim_end), draft.html.map(str::trim_end));
        let bodies = draft.text.map_or(0, str::len) + draft.html.map_or(0, str::len);
        let mut head = Vec::with_capacity(512 + self.shared.len());
        head.extend_from_slice(&self.shared);
        write_address(&mut head, "To", draft.to)?;
        write_subject(&mut head, draft.subject)?;
        write_date(&mut head, draft.date_unix_s)?;
        let message_id = self.message_id(draft.instance_id);
        head.extend_from_slice(format!("Message-ID: {message_id}\r\n").as_bytes());
        if let Some(url) = draft.list_unsubscribe {
            write_list_unsubscribe(&mut head, url)?;
        }
        let mut body = Vec::with_capacity(bodies + bodies / 8 + 512);
        match (text, html) {
            (None, None) => return Err(MessageError::Empty),
            (Some(text), None) => self.write_part("plain", text, &mut head, &mut body),
            (None, Some(html)) => self.write_part("html", html, &mut head, &mut body),
            (Some(text), Some(html)) => self.write_alternative(text, html, &message_id, &mut head, &mut body),
        }
        let mut message = Vec::with_capacity(head.len() + body.len() + 2 + 1_024 * self.signers.len());
        sign_into(&self.signers, &head, &body, draft.date_unix_s, &mut message)?;
        message.extend_from_slice(&head);
        message.extend_from_slice(b"\r\n");
        message.extend_from_slice(&body);
        Ok(message.into())
    }

    fn write_part(&self, subtype: &str, text: &str, head: &mut Vec<u8>, body: &mut Vec<u8>) {
        let encoding = Encoding::choose(text, self.eight_bit);
        write_part_head(head, subtype, encoding);
        encoding.write(text, body);
    }

    fn write_alternative(&self, text: &str, html: &str, message_id: &str, head: &mut Vec<u8>, body: &mut Vec<u8>) {
        let boundary = boundary(message_id, text, html);
        let encodings = [Encoding::choose(text, self.eight_bit), Encoding::choose(html, self.eight_bit)];
        let whole = if encodings.contains(&Encoding::EightBit) { Encoding::EightBit } else { Encoding::SevenBit };
        let name = whole.name();
        head.extend_from_slice(
            format!(
                "Content-Type: multipart/alternative; boundary=\"{boundary}\"\r\nContent-Transfer-Encoding: {name}\r\n"
            )
            .as_bytes(),
        );
        for ((subtype, content), encoding) in [("plain", text), ("html", html)].into_iter().zip(encodings) {
            body.extend_from_slice(format!("--{boundary}\r\n").as_bytes());
            write_part_head(body, subtype, encoding);
            body.extend_from_slice(b"\r\n");
            encoding.write(content, body);
        }
        body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    }
}

fn write_part_head(out: &mut Vec<u8>, subtype: &str, encoding: Encoding) {
    let name = encoding.name();
    out.extend_from_slice(
        format!("Content-Type: text/{subtype}; charset=utf-8\r\nContent-Transfer-Encoding: {name}\r\n").as_bytes(),
    );
}

/// A boundary that depends on the message alone, so that a message that is sent again is the same, octet for octet,
/// and that occurs in neither part.
fn boundary(message_id: &str, text: &str, html: &str) -> String {
    let mut seed = 0;
    loop {
        let boundary = format!("=_{:016x}", xxh3_64_with_seed(message_id.as_bytes(), seed));
        let occurs = |part: &str| memchr::memmem::find(part.as_bytes(), boundary.as_bytes()).is_some();
        if !occurs(text) && !occurs(html) {
            return boundary;
        }
        seed += 1;
    }
}

fn check_header(header: &'static str, value: &str) -> Result<(), MessageError> {
    if memchr::memchr3(b'\r', b'\n', 0, value.as_bytes()).is_some() {
        return Err(MessageError::HeaderInjection(header));
    }
    if value.len() > 4_000 { Err(MessageError::HeaderTooLong(header)) } else { Ok(()) }
}

fn write_subject(out: &mut Vec<u8>, subject: &str) -> Result<(), MessageError> {
    check_header("Subject", subject)?;
    out.extend_from_slice(b"Subject: ");
    write_unstructured(subject, "Subject: ".len(), out);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn write_address(out: &mut Vec<u8>, header: &'static str, named: &NamedAddress) -> Result<(), MessageError> {
    check_header(header, &named.name)?;
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(b": ");
    let name = named.name.trim();
    let start = out.len();
    if !name.is_empty() {
        let atoms = name.bytes().all(|b| b.is_ascii_alphanumeric() || b" !#$%&'*+-/^_`{|}~".contains(&b));
        let printable = name.bytes().all(|b| (b' '..=b'~').contains(&b));
        if atoms && name.len() <= 60 {
            out.extend_from_slice(name.as_bytes());
        } else if printable && name.len() <= 60 && !name.contains("=?") {
            out.push(b'"');
            for octet in name.bytes() {
                if matches!(octet, b'"' | b'\\') {
                    out.push(b'\\');
                }
                out.push(octet);
            }
            out.push(b'"');
        } else {
            write_encoded_words(name, out);
        }
        let fits = out.len() - start + named.address.as_str().len() < 60;
        out.extend_from_slice(if fits { b" " } else { b"\r\n " });
    }
    out.push(b'<');
    out.extend_from_slice(named.address.as_str().as_bytes());
    out.extend_from_slice(b">\r\n");
    Ok(())
}

fn write_date(out: &mut Vec<u8>, date_unix_s: i64) -> Result<(), MessageError> {
    let moment = Timestamp::from_second(date_unix_s).map_err(|_| MessageError::Date)?;
    if date_unix_s < 0 {
        return Err(MessageError::Date);
    }
    let date = moment.strftime("Date: %a, %d %b %Y %H:%M:%S +0000\r\n").to_string();
    out.extend_from_slice(date.as_bytes());
    Ok(())
}

fn write_list_unsubscribe(out: &mut Vec<u8>, url: &str) -> Result<(), MessageError> {
    let plain = url.bytes().all(|b| (b'!'..=b'~').contains(&b) && !b"<>,".contains(&b));
    let has_host = url.strip_prefix("https://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
    if !plain || !has_host || url.len() > 900 {
        return Err(MessageError::ListUnsubscribe);
    }
    let headers = format!("List-Unsubscribe: <{url}>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n");
    out.extend_from_slice(headers.as_bytes());
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
