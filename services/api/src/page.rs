//! Pages of lists (AIP-158).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use herald_core::problem::Problem;
use xxhash_rust::xxh3::xxh3_64;

/// The size of a page unless another is asked for.
pub const DEFAULT_PAGE_SIZE: usize = 50;
/// The largest page; who asks for more gets this.
pub const MAX_PAGE_SIZE: usize = 1_000;

const VERSION: u8 = 1;
const MAX_TOKEN_BYTES: usize = 4_096;

/// What a list lists. A token of one list, tenant or filter is refused by every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List(u64);

impl List {
    /// A list by its name and everything that narrows it, the tenant first.
    pub fn new(name: &str, narrowed_by: &[&str]) -> Self {
        let mut text = name.to_owned();
        for part in narrowed_by {
            text.push('\0');
            text.push_str(part);
        }
        Self(xxh3_64(text.as_bytes()))
    }

    /// The token for what follows a position; empty at the end.
    pub fn token(self, position: Option<&[u8]>) -> String {
        let Some(position) = position else { return String::new() };
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.0.to_be_bytes());
        bytes.extend_from_slice(position);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The position in a token; `None` for the first page.
    ///
    /// # Errors
    /// 400 `page_token_invalid` for a token of another list.
    pub fn position(self, token: Option<&str>) -> Result<Option<Vec<u8>>, Problem> {
        let Some(token) = token.filter(|token| !token.is_empty()) else { return Ok(None) };
        let open = || {
            let bytes = URL_SAFE_NO_PAD.decode(Some(token).filter(|token| token.len() <= MAX_TOKEN_BYTES)?).ok()?;
            let rest = bytes.strip_prefix(&[VERSION])?;
            Some(rest.strip_prefix(&self.0.to_be_bytes())?.to_vec())
        };
        open().map(Some).ok_or_else(foreign_token)
    }
}

/// 400 for a token that is not one of this list's.
pub fn foreign_token() -> Problem {
    let detail = "This is not a token of this list with these filters. Begin again without one.";
    Problem::field("page_token", "page_token_invalid", detail)
}

/// The number of entries of a page.
pub fn page_size(asked: Option<u32>) -> usize {
    match asked {
        None | Some(0) => DEFAULT_PAGE_SIZE,
        Some(size) => (size as usize).min(MAX_PAGE_SIZE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_by_its_own_list_only() {
        let list = List::new("requests", &["acme", "running"]);
        let token = list.token(Some(b"position"));
        assert_eq!(list.position(Some(&token)).unwrap().as_deref(), Some(&b"position"[..]));
        assert_eq!(list.position(None).unwrap(), None);
        assert_eq!(list.position(Some("")).unwrap(), None);
        assert_eq!(list.token(None), "");
        for other in [
            List::new("requests", &["acme", ""]),
            List::new("requests", &["other", "running"]),
            List::new("users", &["acme", "running"]),
        ] {
            assert_eq!(other.position(Some(&token)).unwrap_err().errors()[0].code, "page_token_invalid");
        }
        assert!(list.position(Some("%%%")).is_err() && list.position(Some("AAAA")).is_err());
    }

    #[test]
    fn pages_are_bounded() {
        assert_eq!([None, Some(0), Some(7), Some(9_999)].map(page_size), [50, 50, 7, 1_000]);
    }
}
