//! The id of a call, by which its traces are found.

use std::sync::Arc;

use herald_core::clock::Entropy;
use http::{Extensions, HeaderName, HeaderValue};

/// The header that carries it, both ways.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

const MAX_BYTES: usize = 128;

/// A call's id, in the extensions of its request.
#[derive(Debug, Clone)]
pub struct RequestId(Arc<HeaderValue>);

impl RequestId {
    /// The caller's id if it is short and plain, else a new one.
    pub fn of(given: Option<&HeaderValue>, entropy: &dyn Entropy) -> Self {
        let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':');
        let sane = |value: &&HeaderValue| {
            let bytes = value.as_bytes();
            !bytes.is_empty() && bytes.len() <= MAX_BYTES && bytes.iter().all(plain)
        };
        let value = given.filter(sane).cloned().unwrap_or_else(|| {
            let id = u128::from(entropy.next_u64()) << 64 | u128::from(entropy.next_u64());
            // Hexadecimal digits are a valid header.
            HeaderValue::try_from(format!("{id:032x}")).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
        });
        Self(Arc::new(value))
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        // Both ways of making one give ASCII.
        self.0.to_str().unwrap_or_default()
    }

    /// The id as a header.
    pub fn header(&self) -> HeaderValue {
        (*self.0).clone()
    }

    /// The id of the request with these extensions; empty outside of [`crate::finish::Finish`].
    pub fn text(extensions: &Extensions) -> &str {
        extensions.get::<Self>().map_or("", Self::as_str)
    }
}
