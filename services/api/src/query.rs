//! Query parameters whose errors name the parameter.

use std::str::FromStr;

use axum::extract::FromRequestParts;
use herald_core::problem::{FieldError, Problem};
use http::request::Parts;

use crate::{explain::MAX_REPEATED_CHARS, rejection::Rejection, time};

/// What a parameter can be besides a text and a time.
pub trait Parameter: FromStr {
    /// What it is in words, with an example.
    const EXPECTED: &'static str;
}

impl Parameter for bool {
    const EXPECTED: &'static str = "true or false";
}

impl Parameter for u32 {
    const EXPECTED: &'static str = "a whole number, such as 50";
}

/// The parameters of a request. Take each that the route knows, then call [`Query::finish`]: what is left is unknown.
#[derive(Debug, Clone, Default)]
pub struct Query {
    left: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl Query {
    /// Reads the query of a URL.
    pub fn parse(query: &str) -> Self {
        let mut parsed = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if parsed.left.iter().any(|(other, _)| *other == name) {
                parsed.errors.push(FieldError::new(name, "duplicate_field", "The parameter is there twice."));
            } else {
                parsed.left.push((name.into_owned(), value.into_owned()));
            }
        }
        parsed
    }

    /// A text.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let at = self.left.iter().position(|(other, _)| other == name)?;
        Some(self.left.swap_remove(at).1)
    }

    /// A number, `true` or `false`.
    pub fn value<T: Parameter>(&mut self, name: &str) -> Option<T> {
        self.read(name, T::EXPECTED, |text| text.parse().ok())
    }

    /// A time in RFC 3339.
    pub fn timestamp(&mut self, name: &str) -> Option<pbjson_types::Timestamp> {
        // A plus sign that was not escaped has become a space.
        let expected = "a time as RFC 3339 has it, such as 2026-01-31T08:00:00Z";
        self.read(name, expected, |text| time::parse(&text.replace(' ', "+")))
    }

    fn read<T>(&mut self, name: &str, expected: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.text(name)?;
        let value = read(&text);
        if value.is_none() {
            let found: String = text.chars().take(MAX_REPEATED_CHARS).collect();
            self.errors.push(FieldError::new(name, "invalid_value", format!("Found {found:?}; expected {expected}.")));
        }
        value
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// 400, naming every parameter that is wrong or unknown.
    pub fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in self.left {
            self.errors.push(FieldError::new(name, "unknown_field", "There is no such parameter."));
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::malformed(self.errors)) }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_or_unknown_is_named() {
        let mut query = Query::parse("page_size=x&state=running&since=2023-11-14T23:13:20+01:00&nope=1&a=1&a=2");
        assert_eq!(query.value::<u32>("page_size"), None);
        assert_eq!(query.text("state").as_deref(), Some("running"));
        assert_eq!(query.timestamp("since").unwrap().seconds, 1_700_000_000);
        assert_eq!(query.text("a").as_deref(), Some("1"));
        let problem = query.finish().unwrap_err();
        let errors: Vec<_> = problem.errors().iter().map(|e| (e.field.as_str(), e.code)).collect();
        assert_eq!(problem.errors()[1].detail, "Found \"x\"; expected a whole number, such as 50.");
        assert_eq!(errors, [("a", "duplicate_field"), ("page_size", "invalid_value"), ("nope", "unknown_field")]);
    }
}
