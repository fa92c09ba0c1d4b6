//! JSON bodies whose errors name the field.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    response::{IntoResponse, Response},
};
use herald_core::problem::{Kind, Problem};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};

pub use crate::explain::LOSES_DIGITS;
use crate::{explain::explain, present::Present, rejection::Rejection};

/// A JSON body, as an extractor; its size is limited by [`axum::extract::DefaultBodyLimit`]. As an answer it is 200.
#[derive(Debug, Clone)]
pub struct Json<T>(pub T);

/// A JSON body that may be left away.
#[derive(Debug, Clone)]
pub struct OptionalJson<T>(pub T);

/// The text of a JSON body, as an extractor, for handlers that read it by themselves.
#[derive(Debug, Clone)]
pub struct JsonText(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for JsonText {
    type Rejection = Rejection;

    async fn from_request(request: Request, state: &S) -> Result<Self, Rejection> {
        check_media_type(request.headers())?;
        Ok(Self(body(request, state).await?))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Rejection;

    async fn from_request(request: Request, state: &S) -> Result<Self, Rejection> {
        let JsonText(text) = JsonText::from_request(request, state).await?;
        Ok(Self(parse(&text)?))
    }
}

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = Rejection;

    async fn from_request(request: Request, state: &S) -> Result<Self, Rejection> {
        let media_type = check_media_type(request.headers());
        let body = body(request, state).await?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        media_type?;
        Ok(Self(parse(&body)?))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        answer(StatusCode::OK, &self.0)
    }
}

/// An answer in JSON.
pub fn answer(status: StatusCode, body: &impl Serialize) -> Response {
    match to_text(body) {
        Ok(body) => {
            let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
            (status, headers, body).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            Rejection(Problem::new(Kind::Internal, "internal", "The answer cannot be written as JSON.")).into_response()
        }
    }
}

/// A value as a JSON text: every field of a message is there, and whole numbers are integers.
///
/// # Errors
/// For what JSON cannot say, such as times that no calendar has.
pub fn to_text(body: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(256);
    Present(body).serialize(&mut serde_json::Serializer::with_formatter(&mut text, WholeNumbers))?;
    Ok(text)
}

/// Protobuf's values know floats only; what is whole and exact prints as the integer that its author wrote.
struct WholeNumbers;

impl serde_json::ser::Formatter for WholeNumbers {
    fn write_f64<W: std::io::Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> std::io::Result<()> {
        const EXACT: f64 = 9_007_199_254_740_992.0;
        if value.fract() == 0.0 && value.abs() <= EXACT {
            self.write_i64(writer, value as i64)
        } else {
            serde_json::ser::CompactFormatter.write_f64(writer, value)
        }
    }
}

/// The whole body of a request.
///
/// # Errors
/// 413 where it is larger than the route's limit; 400 where it breaks off.
pub async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state).await.map_err(|rejection| match rejection.into_response().status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(Kind::TooLarge, "body_too_large", "The body is too large."),
        _ => Problem::new(Kind::Malformed, "incomplete_body", "The body breaks off."),
    })
}

/// Refuses bodies that say they are not JSON in UTF-8, or that they are compressed.
///
/// # Errors
/// 415.
pub fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |detail: &str| Err(Problem::new(Kind::UnsupportedMedia, "unsupported_media_type", detail));
    if headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return refused("Send the body as it is, uncompressed and without `Content-Encoding`.");
    }
    let Some(given) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let is_json = |given: &str| {
        let mut parts = given.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
        let json = media_type == "application/json"
            || (media_type.starts_with("application/") && media_type.ends_with("+json"));
        let utf8 = parts.filter_map(|part| part.split_once('=')).all(|(name, value)| {
            !name.eq_ignore_ascii_case("charset") || value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        });
        json && utf8
    };
    if given.to_str().is_ok_and(is_json) {
        return Ok(());
    }
    refused("Send the body as `application/json` in UTF-8.")
}

/// Reads a JSON text. It is read again with a trace of the path only where it is wrong.
///
/// # Errors
/// 400, naming the path of the field and whether it is unknown, of a wrong type, or missing.
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(text).map_err(|error| explain::<T>(text, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_answered_as_they_were_sent() {
        let sent = r#"{"a":[1,-2.5,9007199254740991,1e+300]}"#;
        let object: pbjson_types::Struct = parse(sent.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(to_text(&object).unwrap()).unwrap(), sent);
    }

    #[test]
    fn within_free_objects_the_last_value_of_a_name_holds() {
        let text = r#"{"data": {"a": {"b": 1, "b": 2}, "a": {"b": 3, "b": 4}}, "metadata": {"m": "1", "m": "2"}}"#;
        let request: herald_proto::v1::NotifyRequest = parse(text.as_bytes()).unwrap();
        assert_eq!(to_text(&request.data).unwrap(), br#"{"a":{"b":4}}"#);
        assert_eq!(request.metadata["m"], "2");
    }

    #[test]
    fn the_media_type_is_json_in_utf8() {
        let check = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            check_media_type(&headers).is_ok()
        };
        assert!(check("application/json") && check("Application/JSON; charset=UTF-8") && check("application/x+json"));
        assert!(!check("text/plain") && !check("application/json; charset=latin1") && !check(""));
        assert!(check_media_type(&HeaderMap::new()).is_ok());
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(check_media_type(&headers).unwrap_err().detail().contains("uncompressed"));
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("identity"));
        assert!(check_media_type(&headers).is_ok());
    }
}
