//! Secrets at rest: sealed with AES-256-GCM under keys that only the processes have.
//!
//! Of several keys the first seals, and all open: so a key is replaced by putting the new one before it. A sealed secret
//! belongs to one place, its context, and cannot be opened in another.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

/// The length of a key, in bytes.
pub const KEY_BYTES: usize = 32;

/// The most keys that are held at a time.
const MAX_KEYS: usize = 16;

/// Characters of a key's id.
const KEY_ID_CHARS: usize = 16;

/// A secret that only who has its key can read. Its debug output shows nothing of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Which key opens it.
    pub key_id: String,
    /// Nonce, ciphertext and tag, in base64.
    sealed: String,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// The keys of a process. Their debug output shows no more than how many they are.
pub struct SecretKeys(Vec<(String, RandomizedNonceKey)>);

impl fmt::Debug for SecretKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKeys({})", self.0.len())
    }
}

/// A file of keys that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    /// There is none.
    #[error("there is no key in it")]
    Empty,
    /// There are more than anybody needs.
    #[error("there are more than 16 keys in it")]
    TooMany,
    /// This line is none.
    #[error("line {0} is no key: a key is 32 random bytes in base64")]
    Line(usize),
}

/// A secret that cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotOpen {
    /// It was sealed with a key that is not among ours.
    #[error("it was sealed with the key {0}, which is not in the key file")]
    UnknownKey(String),
    /// It is damaged, or belongs somewhere else.
    #[error("it is damaged, or belongs to something else")]
    Damaged,
}

impl SecretKeys {
    /// Reads keys: each line is one, 32 random bytes in base64; empty lines and those that begin with `#` are none.
    ///
    /// # Errors
    /// [`BadKeys`], which repeats nothing of the text.
    pub fn parse(text: &str) -> Result<Self, BadKeys> {
        let lines = text.lines().map(str::trim).enumerate();
        let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).map(|(number, line)| {
            let bytes = STANDARD.decode(line).ok().filter(|bytes| bytes.len() == KEY_BYTES);
            let bytes = bytes.ok_or(BadKeys::Line(number + 1))?;
            let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| BadKeys::Line(number + 1))?;
            Ok((key_id(&bytes), key))
        });
        let keys = keys.collect::<Result<Vec<_>, BadKeys>>()?;
        match keys.len() {
            0 => Err(BadKeys::Empty),
            count if count > MAX_KEYS => Err(BadKeys::TooMany),
            _ => Ok(Self(keys)),
        }
    }

    /// The text of a file with one key, made of these random bytes.
    pub fn file_of(random: &[u8; KEY_BYTES]) -> String {
        format!("{}\n", STANDARD.encode(random))
    }

    /// Seals a secret for one place.
    ///
    /// # Errors
    /// [`CannotOpen::Damaged`] for more than AES-GCM can seal at once, which is gigabytes.
    pub fn seal(&self, context: &str, secret: &[u8]) -> Result<Sealed, CannotOpen> {
        // There is a first one: `parse` refuses an empty list.
        let (key_id, key) = self.0.first().ok_or(CannotOpen::Damaged)?;
        let mut sealed = secret.to_vec();
        let nonce = key.seal_in_place_append_tag(Aad::from(context), &mut sealed).map_err(|_| CannotOpen::Damaged)?;
        sealed.splice(..0, nonce.as_ref().iter().copied());
        Ok(Sealed { key_id: key_id.clone(), sealed: STANDARD.encode(sealed) })
    }

    /// Opens what was sealed for this place.
    ///
    /// # Errors
    /// [`CannotOpen`].
    pub fn open(&self, context: &str, sealed: &Sealed) -> Result<Vec<u8>, CannotOpen> {
        let key = self.0.iter().find(|(id, _)| *id == sealed.key_id);
        let (_, key) = key.ok_or_else(|| CannotOpen::UnknownKey(sealed.key_id.clone()))?;
        let bytes = STANDARD.decode(&sealed.sealed).map_err(|_| CannotOpen::Damaged)?;
        let (nonce, rest) = bytes.split_first_chunk::<12>().ok_or(CannotOpen::Damaged)?;
        let mut secret = rest.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key.open_in_place(nonce, Aad::from(context), &mut secret).map_err(|_| CannotOpen::Damaged)?;
        Ok(opened.to_vec())
    }
}

/// An id that tells keys apart and nothing of them.
fn key_id(key: &[u8]) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key);
    let hex = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
    hex.collect::<String>()[..KEY_ID_CHARS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> String {
        SecretKeys::file_of(&[byte; KEY_BYTES])
    }

    #[test]
    fn a_secret_is_opened_where_it_belongs_and_nowhere_else() {
        let keys = SecretKeys::parse(&key(1)).unwrap();
        let sealed = keys.seal("provider/a/1", b"swordfish").unwrap();
        assert_eq!(keys.open("provider/a/1", &sealed).unwrap(), b"swordfish");
        assert_eq!(keys.open("provider/a/2", &sealed), Err(CannotOpen::Damaged));
        let again = keys.seal("provider/a/1", b"swordfish").unwrap();
        assert_ne!(again, sealed, "equal secrets do not look alike");
        let shown = format!("{sealed:?} {keys:?} {}", serde_json::to_string(&sealed).unwrap());
        assert!(!shown.contains("swordfish") && !shown.contains(key(1).trim()), "{shown}");
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let old = SecretKeys::parse(&key(1)).unwrap();
        let both = SecretKeys::parse(&format!("# new\n{}\n{}", key(2), key(1))).unwrap();
        let new = SecretKeys::parse(&key(2)).unwrap();
        let before = old.seal("x", b"s").unwrap();
        let after = both.seal("x", b"s").unwrap();
        assert_eq!(both.open("x", &before).unwrap(), b"s");
        assert_eq!(new.open("x", &after).unwrap(), b"s");
        assert_eq!(new.open("x", &before), Err(CannotOpen::UnknownKey(before.key_id.clone())));
    }

    #[test]
    fn a_changed_octet_is_noticed() {
        let keys = SecretKeys::parse(&key(1)).unwrap();
        let sealed = keys.seal("x", b"swordfish").unwrap();
        let bytes = STANDARD.decode(&sealed.sealed).unwrap();
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            let changed = Sealed { sealed: STANDARD.encode(bytes), ..sealed.clone() };
            assert_eq!(keys.open("x", &changed), Err(CannotOpen::Damaged), "octet {at}");
        }
    }

    #[test]
    fn a_bad_file_is_refused_without_repeating_it() {
        let told = |text: &str| SecretKeys::parse(text).unwrap_err();
        assert_eq!(told("\n# nothing\n"), BadKeys::Empty);
        assert_eq!(told(&format!("{}c2hvcnQ=", key(1))), BadKeys::Line(2));
        assert_eq!(told("swordfish"), BadKeys::Line(1));
        assert_eq!(told(&key(1).repeat(17)), BadKeys::TooMany);
    }
}
