//! Signed tokens: what an end user's browser holds, and what an unsubscribe link carries.
//!
//! A token is `<purpose>_<payload>.<mac>`, payload and mac in URL-safe base64; the mac is HMAC-SHA256 over everything
//! before the dot, so that a token of one purpose is never one of another. Nothing is stored: whoever has the secret
//! can check a token, and a new secret ends all of them.

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 4_096;

/// The prefix of tokens of end users.
pub const USER_TOKEN_PREFIX: &str = "hut_";

const UNSUBSCRIBE_PREFIX: &str = "hun_";

/// What an end user's token grants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserToken {
    /// Whose user.
    #[serde(rename = "t")]
    pub tenant: String,
    /// Who.
    #[serde(rename = "u")]
    pub user: String,
    /// What may be done, by name.
    #[serde(rename = "s")]
    pub scopes: Vec<String>,
    /// Milliseconds since the epoch.
    #[serde(rename = "e")]
    pub expires_ms: u64,
    /// The id of the key that made it, with which it ends. Empty in those that were made before keys were named: they end
    /// with their time only.
    #[serde(rename = "k", default, skip_serializing_if = "String::is_empty")]
    pub key_id: String,
}

/// What an unsubscribe link opts out of. It does not expire: old mail must stay unsubscribable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnsubscribeToken {
    /// Whose user.
    #[serde(rename = "t")]
    pub tenant: String,
    /// Who.
    #[serde(rename = "u")]
    pub user: String,
    /// The channel's name.
    #[serde(rename = "h")]
    pub channel: String,
    /// The category; empty opts out of the channel.
    #[serde(rename = "c", default, skip_serializing_if = "String::is_empty")]
    pub category: String,
}

/// A token that was not signed with this secret for this purpose, or has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// It is not one of ours.
    #[error("the token is not valid")]
    Forged,
    /// It was valid.
    #[error("the token has expired")]
    Expired,
}

impl UserToken {
    /// Signs the token with a secret in hex, as [`crate::policy::Policy::secret`] gives it.
    pub fn sign(&self, secret: &str) -> String {
        sign(USER_TOKEN_PREFIX, self, secret)
    }

    /// Reads a token that was signed with this secret and has not expired.
    pub fn verify(text: &str, secret: &str, now_ms: u64) -> Result<Self, InvalidToken> {
        let token: Self = verify(USER_TOKEN_PREFIX, text, secret)?;
        if token.expires_ms <= now_ms { Err(InvalidToken::Expired) } else { Ok(token) }
    }
}

impl UnsubscribeToken {
    /// Signs the token with a secret in hex, as [`crate::policy::Policy::secret`] gives it.
    pub fn sign(&self, secret: &str) -> String {
        sign(UNSUBSCRIBE_PREFIX, self, secret)
    }

    /// Reads a token that was signed with this secret.
    pub fn verify(text: &str, secret: &str) -> Result<Self, InvalidToken> {
        verify(UNSUBSCRIBE_PREFIX, text, secret)
    }

    /// The link for `List-Unsubscribe` (RFC 8058): a POST to it acts at once, a GET asks.
    pub fn url(&self, public_url: &str, secret: &str) -> String {
        UnsubscribeLinks::new(public_url, secret).url(&self.tenant, &self.user, &self.channel, &self.category)
    }
}

/// Makes the links of [`UnsubscribeToken::url`] for many mails: what they share is computed once.
pub struct UnsubscribeLinks {
    key: hmac::Key,
    /// Everything before the token.
    base: String,
}

/// An [`UnsubscribeToken`] that borrows.
#[derive(Serialize)]
struct UnsubscribePayload<'a> {
    t: &'a str,
    u: &'a str,
    h: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    c: &'a str,
}

impl UnsubscribeLinks {
    /// For links that lead to `public_url`, signed with a secret in hex.
    pub fn new(public_url: &str, secret: &str) -> Self {
        Self { key: key(secret), base: format!("{}/v1/unsubscribe/", public_url.trim_end_matches('/')) }
    }

    /// Whether links begin with this scheme, such as `https://`.
    pub fn leads_to(&self, scheme: &str) -> bool {
        self.base.starts_with(scheme)
    }

    /// The link of one user, channel and category.
    pub fn url(&self, tenant: &str, user: &str, channel: &str, category: &str) -> String {
        let payload = UnsubscribePayload { t: tenant, u: user, h: channel, c: category };
        let mut url = String::with_capacity(256);
        url.push_str(&self.base);
        append_signed(UNSUBSCRIBE_PREFIX, &payload, &self.key, &mut url);
        url
    }
}

fn key(secret: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes())
}

fn sign(prefix: &str, payload: &impl Serialize, secret: &str) -> String {
    let mut token = String::new();
    append_signed(prefix, payload, &key(secret), &mut token);
    token
}

/// Appends a token; what is before it is not signed.
fn append_signed(prefix: &str, payload: &impl Serialize, key: &hmac::Key, out: &mut String) {
    let begin = out.len();
    // Structs of strings and numbers always serialize.
    let payload = serde_json::to_vec(payload).unwrap_or_default();
    out.push_str(prefix);
    URL_SAFE_NO_PAD.encode_string(payload, out);
    let mac = hmac::sign(key, &out.as_bytes()[begin..]);
    out.push('.');
    URL_SAFE_NO_PAD.encode_string(mac, out);
}

fn verify<T: DeserializeOwned>(prefix: &str, text: &str, secret: &str) -> Result<T, InvalidToken> {
    let parse = || {
        if text.len() > MAX_TOKEN_BYTES || secret.is_empty() {
            return None;
        }
        let (signed, mac) = text.split_once('.')?;
        let payload = signed.strip_prefix(prefix)?;
        let mac = URL_SAFE_NO_PAD.decode(mac).ok()?;
        hmac::verify(&key(secret), signed.as_bytes(), &mac).ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    };
    parse().ok_or(InvalidToken::Forged)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "00112233";

    fn token() -> UserToken {
        let (tenant, user, key_id) = ("acme".into(), "ü 1".into(), "k".into());
        UserToken { tenant, user, scopes: vec!["inbox".into()], expires_ms: 1_000, key_id }
    }

    #[test]
    fn a_token_comes_back_until_it_expires() {
        let text = token().sign(SECRET);
        assert_eq!(UserToken::verify(&text, SECRET, 999), Ok(token()));
        assert_eq!(UserToken::verify(&text, SECRET, 1_000), Err(InvalidToken::Expired));
    }

    #[test]
    fn a_link_carries_the_same_token_that_is_signed_alone() {
        for category in ["", "social"] {
            let [tenant, user, channel] = ["acme", "ü \"1", "email"];
            let token = UnsubscribeToken {
                tenant: tenant.into(),
                user: user.into(),
                channel: channel.into(),
                category: category.into(),
            };
            let url = UnsubscribeLinks::new("https://h.example/", SECRET).url(tenant, user, channel, category);
            assert_eq!(url, format!("https://h.example/v1/unsubscribe/{}", token.sign(SECRET)));
            assert_eq!(UnsubscribeToken::verify(url.rsplit('/').next().unwrap(), SECRET), Ok(token));
        }
    }

    #[test]
    fn what_was_changed_signed_by_others_or_for_another_purpose_is_refused() {
        let text = token().sign(SECRET);
        assert_eq!(UserToken::verify(&text, "44", 0), Err(InvalidToken::Forged));
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            // The last character of a base64 text has bits that mean nothing; decoding is strict about them.
            assert_eq!(UserToken::verify(&changed, SECRET, 0), Err(InvalidToken::Forged), "{at}");
        }
        let link = UnsubscribeToken {
            tenant: "acme".into(),
            user: "u".into(),
            channel: "email".into(),
            category: "news".into(),
        };
        let link_text = link.sign(SECRET);
        assert_eq!(UnsubscribeToken::verify(&link_text, SECRET), Ok(link.clone()));
        assert!(UserToken::verify(&link_text, SECRET, 0).is_err());
        assert!(UnsubscribeToken::verify(&text, SECRET).is_err());
        assert!(UserToken::verify(&token().sign(""), "", 0).is_err(), "without a secret nothing is valid");
        assert_eq!(link.url("https://h/", SECRET), format!("https://h/v1/unsubscribe/{link_text}"));
    }
}
