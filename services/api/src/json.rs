//! JSON bodies whose errors name the field.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    response::{IntoResponse, Response},
};
use herald_core::problem::{FieldError, Kind, Problem};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};

use crate::{present::Present, rejection::Rejection};

/// A JSON body, as an extractor; its size is limited by [`axum::extract::DefaultBodyLimit`]. As an answer it is 200.
#[derive(Debug, Clone)]
pub struct Json<T>(pub T);

/// A JSON body that may be left away.
#[derive(Debug, Clone)]
pub struct OptionalJson<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Rejection;

    async fn from_request(request: Request, state: &S) -> Result<Self, Rejection> {
        check_media_type(request.headers())?;
        let body = body(request, state).await?;
        Ok(Self(parse(&body)?))
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

/// Refuses bodies that say they are not JSON in UTF-8.
///
/// # Errors
/// 415.
pub fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
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
    let detail = "Send the body as `application/json` in UTF-8.";
    Err(Problem::new(Kind::UnsupportedMedia, "unsupported_media_type", detail))
}

/// Reads a JSON text. It is read again with a trace of the path only where it is wrong.
///
/// # Errors
/// 400, naming the path of the field and whether it is unknown, of a wrong type, or missing.
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(text).map_err(|error| explain::<T>(text, &error))
}

fn explain<T: DeserializeOwned>(text: &[u8], error: &serde_json::Error) -> Problem {
    if error.is_syntax() || error.is_eof() {
        let detail = match std::str::from_utf8(text) {
            Err(at) => format!("The body is not UTF-8 from byte {} on.", at.valid_up_to()),
            Ok(_) => format!("The body is not valid JSON: {error}."),
        };
        return Problem::new(Kind::Malformed, "malformed_json", detail);
    }
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let Err(traced) = serde_path_to_error::deserialize::<_, T>(&mut deserializer) else {
        return Problem::new(Kind::Malformed, "malformed_json", format!("The body is not valid JSON: {error}."));
    };
    let path = traced.path().to_string();
    let path = if path == "." { String::new() } else { path };
    Problem::malformed(vec![field_error(&path, &traced.inner().to_string())])
}

/// The messages are those of serde's own errors, which have had the same form since its first release.
fn field_error(path: &str, message: &str) -> FieldError {
    let message = message.split(" at line ").next().unwrap_or(message);
    let named = |prefix: &str| message.strip_prefix(prefix)?.split('`').next();
    let join = |name: &str| match path.rsplit('.').next() {
        Some(last) if last == name => path.to_owned(),
        _ if path.is_empty() => name.to_owned(),
        _ => format!("{path}.{name}"),
    };
    if let Some(name) = named("unknown field `") {
        return FieldError::new(join(name), "unknown_field", "There is no such field.");
    }
    if let Some(name) = named("missing field `") {
        return FieldError::new(join(name), "required", "This field is required.");
    }
    if let Some(name) = named("duplicate field `") {
        return FieldError::new(join(&snake_case(name)), "duplicate_field", "The field is there twice.");
    }
    // What was found may be personal data; only what was expected is repeated.
    let expected = message.rsplit_once("expected ").map(|(_, expected)| expected);
    let (code, detail) = match (message.starts_with("invalid type"), expected) {
        (true, Some(expected)) => ("invalid_type", format!("Expected {}.", readable(expected))),
        (false, Some(expected)) => ("invalid_value", format!("Expected {}.", readable(expected))),
        _ => ("invalid_value", "The value does not fit.".to_owned()),
    };
    FieldError::new(path, code, detail)
}

/// The generated code names a duplicate in camel case.
fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// `struct herald.v1.NotifyRequest` is an object to a reader of JSON.
fn readable(expected: &str) -> &str {
    match expected {
        _ if expected.starts_with("struct ") || expected == "a map" => "an object",
        "a sequence" => "a list",
        _ => expected,
    }
}

#[cfg(test)]
mod tests {
    use herald_proto::v1;

    use super::*;

    fn error(text: &str) -> (&'static str, String, &'static str) {
        let problem = parse::<v1::NotifyRequest>(text.as_bytes()).unwrap_err();
        assert_eq!(problem.kind(), Kind::Malformed, "{text}");
        let (field, code) = problem.errors().first().map_or((String::new(), ""), |e| (e.field.clone(), e.code));
        (problem.code(), field, code)
    }

    #[test]
    fn an_error_names_the_path_of_its_field() {
        for (text, field, code) in [
            (r#"{"nope": 1}"#, "nope", "unknown_field"),
            (r#"{"audience": {"user": ["a"]}}"#, "audience.user", "unknown_field"),
            (
                r#"{"audience": {"inline": [{"endpoints": [{"chanel": "x"}]}]}}"#,
                "audience.inline[0].endpoints[0].chanel",
                "unknown_field",
            ),
            (r#"{"template_id": 5}"#, "template_id", "invalid_type"),
            (r#"{"template_id": "a", "template_id": "b"}"#, "template_id", "duplicate_field"),
            (r#"{"audience": {"users": ["a", 5]}}"#, "audience.users[1]", "invalid_type"),
            (r#"{"template_version": -1}"#, "template_version", "invalid_value"),
            (r#"{"send_at": "tomorrow"}"#, "send_at", "invalid_value"),
            (r#"{"ttl": "abc"}"#, "ttl", "invalid_value"),
            (r#"{"ttl": 5}"#, "ttl", "invalid_type"),
            (r#"{"data": []}"#, "data", "invalid_type"),
            (r#"{"data": {"n": 18446744073709551615}}"#, "data.n", "invalid_value"),
            (r#"{"metadata": {"a": 1}}"#, "metadata.a", "invalid_type"),
            (r#"[]"#, "", "invalid_type"),
        ] {
            assert_eq!(error(text), ("invalid_argument", field.to_owned(), code), "{text}");
        }
    }

    #[test]
    fn what_is_no_json_is_said_to_be_none() {
        for text in ["", "{", "{\"template_id\": }", "{} {}", "nul", "{\"template_id\": \"\u{1}\"}"] {
            assert_eq!(error(text).0, "malformed_json", "{text}");
        }
        let problem = parse::<v1::NotifyRequest>(b"{\"template_id\": \"\xff\"}").unwrap_err();
        assert_eq!(problem.code(), "malformed_json");
        let deep = format!("{{\"data\": {}1{}}}", "{\"a\":".repeat(500), "}".repeat(500));
        assert_eq!(error(&deep).0, "malformed_json", "nesting is bounded");
    }

    #[test]
    fn numbers_are_answered_as_they_were_sent() {
        let sent = r#"{"a":[1,-2.5,9007199254740991,1e+300]}"#;
        let object: pbjson_types::Struct = parse(sent.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(to_text(&object).unwrap()).unwrap(), sent);
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
    }
}
