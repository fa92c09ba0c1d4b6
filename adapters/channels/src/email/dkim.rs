//! DKIM signatures (RFC 6376), relaxed/relaxed, with rsa-sha256 or ed25519-sha256 (RFC 8463).

use aws_lc_rs::digest::{Context, SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;

use super::address::Address;

/// The headers that are signed where they are present. Each is named once more than it is present, so that nobody can
/// add another of its kind (RFC 6376, section 8.15).
const SIGNED: [&str; 12] = [
    "from",
    "reply-to",
    "to",
    "subject",
    "date",
    "message-id",
    "mime-version",
    "auto-submitted",
    "content-type",
    "content-transfer-encoding",
    "list-unsubscribe",
    "list-unsubscribe-post",
];

/// Signs messages for one domain and selector.
pub struct Signer {
    domain: String,
    selector: String,
    key: Key,
}

enum Key {
    Rsa(Box<RsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
}

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignerError {
    /// The domain or selector is no domain name.
    #[error("{0} is not a valid domain name")]
    Name(&'static str),
    /// Not PEM, or not a private key.
    #[error("the key is not a private key in PEM")]
    Pem,
    /// Neither RSA (PKCS #8 or PKCS #1) of at least 2,048 bits nor Ed25519 (PKCS #8).
    #[error("the key must be RSA of 2048 bits or more, or Ed25519")]
    Key,
}

/// The cryptographic library failed to sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("signing failed")]
pub struct SigningError;

impl Signer {
    /// Reads a private key in PEM: RSA in PKCS #8 or PKCS #1, or Ed25519 in PKCS #8. Its public half must be published
    /// at `<selector>._domainkey.<domain>`; see [`Signer::dns_record`].
    ///
    /// # Errors
    /// [`SignerError`].
    pub fn from_pem(domain: &str, selector: &str, pem: &[u8]) -> Result<Self, SignerError> {
        let name = |text: &str, what| {
            let address = Address::parse(&format!("x@{text}")).map_err(|_| SignerError::Name(what))?;
            Ok(address.domain().to_owned())
        };
        let key = match PrivateKeyDer::from_pem_slice(pem).map_err(|_| SignerError::Pem)? {
            PrivateKeyDer::Pkcs1(der) => {
                Key::Rsa(Box::new(RsaKeyPair::from_der(der.secret_pkcs1_der()).map_err(|_| SignerError::Key)?))
            }
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                match Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
                    Ok(key) => Key::Ed25519(Box::new(key)),
                    Err(_) => Key::Rsa(Box::new(RsaKeyPair::from_pkcs8(der).map_err(|_| SignerError::Key)?)),
                }
            }
            _ => return Err(SignerError::Key),
        };
        if let Key::Rsa(rsa) = &key
            && rsa.public_modulus_len() < 256
        {
            return Err(SignerError::Key);
        }
        Ok(Self { domain: name(domain, "the domain")?, selector: name(selector, "the selector")?, key })
    }

    /// Where the public key is published, and the TXT record's text.
    pub fn dns_record(&self) -> (String, String) {
        let (kind, public) = match &self.key {
            Key::Rsa(key) => ("rsa", BASE64_STANDARD.encode(rsa_public_info(key.public_key().as_ref()))),
            Key::Ed25519(key) => ("ed25519", BASE64_STANDARD.encode(key.public_key().as_ref())),
        };
        (format!("{}._domainkey.{}", self.selector, self.domain), format!("v=DKIM1; k={kind}; p={public}"))
    }

    /// The signature's header up to and including `b=`, which is what is signed besides the message.
    fn unsigned_header(&self, names: &str, body_hash: &str, signed_at_unix_s: i64) -> String {
        let Self { domain, selector, .. } = self;
        let algorithm = match self.key {
            Key::Rsa(_) => "rsa-sha256",
            Key::Ed25519(_) => "ed25519-sha256",
        };
        format!(
            "DKIM-Signature: v=1; a={algorithm}; c=relaxed/relaxed;\r\n d={domain};\r\n s={selector}; \
             t={signed_at_unix_s};\r\n h={names};\r\n bh={body_hash};\r\n b="
        )
    }

    fn sign(&self, data: &[u8]) -> Result<String, SigningError> {
        match &self.key {
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), data, &mut signature).map_err(|_| SigningError)?;
                Ok(BASE64_STANDARD.encode(signature))
            }
            // RFC 8463, section 3: Ed25519 signs the SHA-256 hash of the data.
            Key::Ed25519(key) => Ok(BASE64_STANDARD.encode(key.sign(digest(&SHA256, data).as_ref()))),
        }
    }
}

/// Appends one `DKIM-Signature` header for each signer. `head` is the message's header with CRLF line ends and without
/// the empty line, `body` what follows that line.
pub(crate) fn sign_into(
    signers: &[Signer],
    head: &[u8],
    body: &[u8],
    signed_at_unix_s: i64,
    out: &mut Vec<u8>,
) -> Result<(), SigningError> {
    if signers.is_empty() {
        return Ok(());
    }
    let body_hash = BASE64_STANDARD.encode(body_hash(body));
    let (names, headers) = signed_headers(head);
    for signer in signers {
        let unsigned = signer.unsigned_header(&names, &body_hash, signed_at_unix_s);
        let mut data = headers.clone();
        relaxed_header(unsigned.as_bytes(), &mut data);
        // The signature's own header is signed without its CRLF (RFC 6376, section 3.7).
        data.truncate(data.len() - 2);
        out.extend_from_slice(unsigned.as_bytes());
        for (index, line) in signer.sign(&data)?.as_bytes().chunks(70).enumerate() {
            out.extend_from_slice(if index == 0 { b"" } else { b"\r\n " });
            out.extend_from_slice(line);
        }
        out.extend_from_slice(b"\r\n");
    }
    Ok(())
}

/// The value of `h=`, folded, and the canonical form of the headers that it names.
fn signed_headers(head: &[u8]) -> (String, Vec<u8>) {
    let fields = split_fields(head);
    let mut names = String::new();
    let mut canonical = Vec::with_capacity(head.len());
    for name in SIGNED {
        let mut found = false;
        // Of several headers of a name the last one is signed first (RFC 6376, section 5.4.2).
        for field in fields.iter().rev().filter(|field| field_name(field).eq_ignore_ascii_case(name.as_bytes())) {
            push_name(&mut names, name);
            relaxed_header(field, &mut canonical);
            found = true;
        }
        if found {
            push_name(&mut names, name);
        }
    }
    (names, canonical)
}

fn push_name(names: &mut String, name: &str) {
    if !names.is_empty() {
        names.push(':');
        let line = names.rfind('\n').map_or(names.len(), |at| names.len() - at);
        if line + name.len() > 70 {
            names.push_str("\r\n ");
        }
    }
    names.push_str(name);
}

fn split_fields(head: &[u8]) -> Vec<&[u8]> {
    let mut fields = Vec::new();
    let mut start = 0;
    for newline in memchr::memchr_iter(b'\n', head) {
        let next = head.get(newline + 1);
        if !matches!(next, Some(b' ' | b'\t')) {
            fields.push(&head[start..newline + 1]);
            start = newline + 1;
        }
    }
    if start < head.len() {
        fields.push(&head[start..]);
    }
    fields
}

fn field_name(field: &[u8]) -> &[u8] {
    let end = memchr::memchr(b':', field).unwrap_or(field.len());
    field[..end].trim_ascii_end()
}

/// Appends the relaxed form of one header field (RFC 6376, section 3.4.2), with its CRLF.
fn relaxed_header(field: &[u8], out: &mut Vec<u8>) {
    out.extend(field_name(field).iter().map(u8::to_ascii_lowercase));
    out.push(b':');
    let value = memchr::memchr(b':', field).map_or(&[][..], |colon| &field[colon + 1..]);
    let mut words = value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    if let Some(first) = words.next() {
        out.extend_from_slice(first);
    }
    for word in words {
        out.push(b' ');
        out.extend_from_slice(word);
    }
    out.extend_from_slice(b"\r\n");
}

/// The SHA-256 hash of the relaxed form of a body (RFC 6376, section 3.4.4).
fn body_hash(body: &[u8]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    let mut empty_lines = 0;
    let mut canonical = Vec::with_capacity(1_024);
    for line in body.split_inclusive(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        canonical.clear();
        let mut space = false;
        for &octet in line {
            if matches!(octet, b' ' | b'\t') {
                space = true;
                continue;
            }
            if std::mem::take(&mut space) {
                canonical.push(b' ');
            }
            canonical.push(octet);
        }
        if canonical.is_empty() {
            empty_lines += 1;
            continue;
        }
        for _ in 0..std::mem::take(&mut empty_lines) {
            context.update(b"\r\n");
        }
        canonical.extend_from_slice(b"\r\n");
        context.update(&canonical);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// An RSA public key as DKIM publishes it: SubjectPublicKeyInfo around the PKCS #1 form.
fn rsa_public_info(pkcs1: &[u8]) -> Vec<u8> {
    // AlgorithmIdentifier rsaEncryption (1.2.840.113549.1.1.1) with NULL parameters.
    const ALGORITHM: [u8; 15] = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 1, 5, 0];
    let bits = [der_header(0x03, pkcs1.len() + 1), vec![0], pkcs1.to_vec()].concat();
    [der_header(0x30, ALGORITHM.len() + bits.len()), ALGORITHM.to_vec(), bits].concat()
}

fn der_header(tag: u8, length: usize) -> Vec<u8> {
    match u8::try_from(length) {
        Ok(short @ 0..=127) => vec![tag, short],
        Ok(one) => vec![tag, 0x81, one],
        Err(_) => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8463, appendix A.
    const RFC_HEAD: &str = "From: Joe SixPack <joe@football.example.com>\r\nTo: Suzie Q <suzie@shopping.example.net>\r\n\
        Subject: Is dinner ready?\r\nDate: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n\
        Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n";
    const RFC_BODY: &str = "Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n";
    const RFC_SIGNATURE: &str = "DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n d=football.example.com; \
        i=@football.example.com;\r\n q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n subject : date : message-id : \
        from : subject : date;\r\n bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n b=";
    const RFC_SEED: &str = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";

    #[test]
    fn the_vector_of_rfc_8463_comes_out() {
        assert_eq!(
            BASE64_STANDARD.encode(body_hash(RFC_BODY.as_bytes())),
            "2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8="
        );
        let mut data = Vec::new();
        for field in split_fields(RFC_HEAD.as_bytes()) {
            relaxed_header(field, &mut data);
        }
        relaxed_header(RFC_SIGNATURE.as_bytes(), &mut data);
        data.truncate(data.len() - 2);
        let seed = BASE64_STANDARD.decode(RFC_SEED).unwrap();
        let key = Key::Ed25519(Box::new(Ed25519KeyPair::from_seed_unchecked(&seed).unwrap()));
        let signer = Signer { domain: "football.example.com".into(), selector: "brisbane".into(), key };
        assert_eq!(
            signer.sign(&data).unwrap(),
            "/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11BusFa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw=="
        );
        assert_eq!(signer.dns_record().1, "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=");
    }

    #[test]
    fn relaxed_forms_are_those_of_rfc_6376() {
        // Section 3.4.5, example 1.
        let mut out = Vec::new();
        for field in split_fields(b"A: X\r\nB : Y\t\r\n\tZ  \r\n") {
            relaxed_header(field, &mut out);
        }
        assert_eq!(out, b"a:X\r\nb:Y Z\r\n");
        assert_eq!(body_hash(b" C \r\nD \t E\r\n\r\n\r\n"), body_hash(b" C\r\nD E\r\n"));
        assert_ne!(body_hash(b"C\r\n"), body_hash(b" C\r\n"));
        assert_eq!(body_hash(b"\r\n\r\n"), body_hash(b""));
        assert_eq!(body_hash(b"x"), body_hash(b"x\r\n"));
    }

    #[test]
    fn keys_that_cannot_sign_are_refused() {
        let refused = |domain, pem: &str| Signer::from_pem(domain, "s", pem.as_bytes()).err();
        assert_eq!(refused("x.example", "hello"), Some(SignerError::Pem));
        let junk = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert_eq!(refused("x.example", junk), Some(SignerError::Key));
    }
}
