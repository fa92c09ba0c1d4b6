//! What a caller is told when a call is refused: one value that every face of the API maps to its own form (RFC 9457
//! on HTTP, `google.rpc.Status` on gRPC).

use std::fmt;

use crate::ports::{StoreError, log::LogError};

/// What kind of refusal it is; each has one HTTP status and one gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 400: the call is malformed.
    Malformed,
    /// 401: there is no valid key or token.
    Unauthenticated,
    /// 403: the key or token may not do this.
    Forbidden,
    /// 404: there is no such thing, or it is another tenant's.
    NotFound,
    /// 405: the path exists, but not with this method.
    MethodNotAllowed,
    /// 409: something else is going on with the same thing.
    Conflict,
    /// 413: the body is too large.
    TooLarge,
    /// 415: the body is of another media type.
    UnsupportedMedia,
    /// 422: well-formed, and refused by a rule.
    Refused,
    /// 429: too many calls.
    TooMany,
    /// 500: our fault; trying again will not help.
    Internal,
    /// 503: our fault; it may work later.
    Unavailable,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Malformed,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::TooLarge,
        Self::UnsupportedMedia,
        Self::Refused,
        Self::TooMany,
        Self::Internal,
        Self::Unavailable,
    ];

    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::UnsupportedMedia => 415,
            Self::Refused => 422,
            Self::TooMany => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }
}

/// One field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The field's path, such as `audience.users[3]`.
    pub field: String,
    /// A stable code.
    pub code: &'static str,
    /// What is wrong and how to mend it. It never repeats personal data.
    pub detail: String,
}

impl FieldError {
    /// A field that is wrong.
    pub fn new(field: impl Into<String>, code: &'static str, detail: impl Into<String>) -> Self {
        Self { field: field.into(), code, detail: detail.into() }
    }
}

/// Why a call was refused. Boxed inside, so that a `Result` of it is small.
#[derive(Clone, PartialEq, Eq)]
pub struct Problem(Box<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    kind: Kind,
    code: &'static str,
    detail: String,
    errors: Vec<FieldError>,
    retry_after_s: Option<u32>,
}

impl Problem {
    /// A refusal with a stable code and a text for people.
    pub fn new(kind: Kind, code: &'static str, detail: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, code, detail: detail.into(), errors: Vec::new(), retry_after_s: None }))
    }

    /// 400, naming the fields.
    pub fn malformed(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [one] if one.field.is_empty() => one.detail.clone(),
            [one] => format!("{}: {}", one.field, one.detail),
            many => format!("{} fields are wrong.", many.len()),
        };
        Self::new(Kind::Malformed, "invalid_argument", detail).with_errors(errors)
    }

    /// 400 for one field.
    pub fn field(field: impl Into<String>, code: &'static str, detail: impl Into<String>) -> Self {
        Self::malformed(vec![FieldError::new(field, code, detail)])
    }

    /// 404.
    pub fn not_found(what: &str) -> Self {
        Self::new(Kind::NotFound, "not_found", format!("There is no such {what}."))
    }

    /// 422.
    pub fn refused(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(Kind::Refused, code, detail)
    }

    /// 403.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(Kind::Forbidden, "forbidden", detail)
    }

    /// 503; the outcome is open, and the same call may be repeated after a second.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, "unavailable", detail).with_retry_after(1)
    }

    /// Adds the fields that are wrong.
    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.0.errors = errors;
        self
    }

    /// Says when to come back, in seconds.
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.0.retry_after_s = Some(seconds);
        self
    }

    /// What kind of refusal it is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// What is wrong, for people.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The fields that are wrong.
    pub fn errors(&self) -> &[FieldError] {
        &self.0.errors
    }

    /// When to come back, in seconds.
    pub fn retry_after_s(&self) -> Option<u32> {
        self.0.retry_after_s
    }

    /// The code as a title: `unknown_template` is "Unknown template".
    pub fn title(&self) -> String {
        let mut title = self.0.code.replace('_', " ");
        if let Some(first) = title.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        title
    }

    /// The problem's type: a stable URI, relative to the service, where its code is explained.
    pub fn type_uri(&self) -> String {
        format!("/problems/{}", self.0.code)
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, code, detail, errors, .. } = &*self.0;
        write!(f, "{} {code}: {detail} {errors:?}", kind.status())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code, self.0.detail)
    }
}

impl std::error::Error for Problem {}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::unavailable("A store is unavailable. Repeat the call."),
            StoreError::Damaged(_) => Self::new(Kind::Internal, "internal", "Stored data cannot be read."),
        }
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Full(_) => {
                Self::new(Kind::Unavailable, "log_full", "The log takes no more records now. Nothing was accepted.")
                    .with_retry_after(5)
            }
            LogError::Unavailable(_) => Self::unavailable("The log is unavailable. Repeat the call."),
            LogError::Damaged(_) => Self::new(Kind::Internal, "internal", "The log cannot be read."),
            // Another process may be of the newer version.
            LogError::TooNew(_) => Self::unavailable("This process is of an older version and stops. Repeat the call."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_its_fields_and_its_page() {
        let problem = Problem::field("audience.users[2]", "empty", "A user id must not be empty.");
        assert_eq!((problem.kind().status(), problem.title().as_str()), (400, "Invalid argument"));
        assert_eq!(problem.detail(), "audience.users[2]: A user id must not be empty.");
        assert_eq!(problem.type_uri(), "/problems/invalid_argument");
    }

    #[test]
    fn what_may_work_later_says_when() {
        assert_eq!(Problem::from(LogError::Full("disk".into())).retry_after_s(), Some(5));
        assert_eq!(Problem::from(StoreError::Unavailable("x".into())).retry_after_s(), Some(1));
        assert_eq!(Problem::from(StoreError::Damaged("x".into())).kind(), Kind::Internal);
    }
}
