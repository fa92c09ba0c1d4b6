//! What a command comes to: the exit codes, and the failures that lead to them.

use std::{fmt::Write as _, io, process::ExitCode};

use serde_json::{Value, json};

/// What a command came to, as the shell sees it. Scripts rely on the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything was done.
    Done = 0,
    /// Something else went wrong: a file, the configuration, a fault of the server.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The server refused the call.
    Refused = 3,
    /// There is no such thing.
    NotFound = 4,
    /// The key is missing, wrong, or may not do this.
    Denied = 5,
    /// The server is away or overloaded; trying again may help.
    Unavailable = 6,
    /// Some of it was done and some was refused.
    Partly = 7,
    /// What was checked does not hold.
    NotProven = 8,
}

impl Exit {
    /// Every exit code.
    pub const ALL: [Self; 9] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::Refused,
        Self::NotFound,
        Self::Denied,
        Self::Unavailable,
        Self::Partly,
        Self::NotProven,
    ];

    /// The code's meaning, for the table.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed: a file, the configuration, or a fault of the server; the message says which",
            Self::Usage => "the command line is wrong",
            Self::Refused => "the server refused the call (400, 409, 413, 422)",
            Self::NotFound => "there is no such thing (404)",
            Self::Denied => "the key is missing, wrong, or may not do this (401, 403)",
            Self::Unavailable => "the server is away, overloaded or asks to wait (429, 503); try again",
            Self::Partly => "partly done: some items were refused; the report says which",
            Self::NotProven => "what was checked does not hold: demo, verify",
        }
    }

    /// What a server's status comes to.
    pub fn of_status(status: u16) -> Self {
        match status {
            401 | 403 => Self::Denied,
            404 => Self::NotFound,
            429 | 503 => Self::Unavailable,
            400..=499 => Self::Refused,
            _ => Self::Failed,
        }
    }

    /// The table of exit codes, as `--help` and the manual have it.
    pub fn table() -> String {
        let mut table = "Exit codes:\n".to_owned();
        for exit in Self::ALL {
            // Writing to a text cannot fail.
            let _written = writeln!(table, "  {}  {}", exit as u8, exit.meaning());
        }
        table
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line cannot be meant.
    #[error("{0}")]
    Usage(String),
    /// There is no key to call with.
    #[error("{0}")]
    Denied(String),
    /// The server answered with a problem (RFC 9457).
    #[error("{}", problem_text(*.status, .problem))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The problem document.
        problem: Value,
    },
    /// No answer came.
    #[error("{url} gives no answer: {cause}\n  {hint}")]
    Unreachable {
        /// Where the call went.
        url: String,
        /// What the connection said.
        cause: String,
        /// What to do.
        hint: String,
    },
    /// Some of it was done.
    #[error("{0}")]
    Partly(String),
    /// A check failed.
    #[error("{0}")]
    NotProven(String),
    /// Whoever read the output is gone.
    #[error("the output was closed")]
    Closed,
    /// Anything else.
    #[error("{}", chain_text(.0))]
    Other(#[from] anyhow::Error),
}

impl Failure {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Denied(_) => Exit::Denied,
            Self::Refused { status, .. } => Exit::of_status(*status),
            Self::Unreachable { .. } => Exit::Unavailable,
            Self::Partly(_) => Exit::Partly,
            Self::NotProven(_) => Exit::NotProven,
            // A reader such as `head` has what it wanted.
            Self::Closed => Exit::Done,
            Self::Other(_) => Exit::Failed,
        }
    }

    /// The failure for programs: the server's problem document, or one of ours with the same fields.
    pub fn json(&self) -> Value {
        match self {
            Self::Refused { problem, .. } => problem.clone(),
            other => json!({ "title": "Failed", "detail": other.to_string(), "exit_code": other.exit() as u8 }),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Other(error.into()),
        }
    }
}

/// An error and its causes, without those that the error in front of them tells already.
fn chain_text(error: &anyhow::Error) -> String {
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.ends_with(&cause) {
            said.push_str(&format!(": {cause}"));
        }
    }
    said
}

/// A problem document for people: what is wrong, where, and what to do about it.
fn problem_text(status: u16, problem: &Value) -> String {
    let text = |name: &str| problem[name].as_str().unwrap_or_default();
    let mut said = match text("detail") {
        "" => format!("the server answered {status}"),
        detail => format!("{detail} ({status} {})", text("code")),
    };
    let errors = problem["errors"].as_array().map_or(&[][..], Vec::as_slice);
    for error in errors {
        let (field, detail) =
            (error["field"].as_str().unwrap_or_default(), error["detail"].as_str().unwrap_or_default());
        // A single field is often in the detail already.
        if !text("detail").contains(detail) {
            said.push_str(&format!("\n  {field}: {detail}"));
        }
    }
    let hint = match (status, text("code")) {
        (401, _) => "Give a key with --key or HERALD_KEY; herald dev has hk_dev_demo and, for operators, hk_dev_admin.",
        (403, _) => "Use a key with that scope; herald keys create makes one.",
        (400, _) if errors.iter().any(|error| error["field"] == "Herald-Tenant") => {
            "Name the tenant with --tenant or HERALD_TENANT."
        }
        (500, _) => "This is a fault of the server; its log has more under that request id.",
        _ => "",
    };
    if !hint.is_empty() {
        said.push_str(&format!("\n  {hint}"));
    }
    if status >= 500 && !text("request_id").is_empty() {
        said.push_str(&format!("\n  request id {}", text("request_id")));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_exit_code() {
        let codes = [400, 401, 403, 404, 409, 413, 422, 429, 500, 503].map(|status| Exit::of_status(status) as u8);
        assert_eq!(codes, [3, 5, 5, 4, 3, 3, 3, 6, 1, 6]);
        let numbers: Vec<u8> = Exit::ALL.iter().map(|exit| *exit as u8).collect();
        assert_eq!(numbers, (0..9).collect::<Vec<u8>>());
    }

    #[test]
    fn a_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("could not open x: {0}")]
        struct Opening(#[source] io::Error);
        let opening = || anyhow::Error::new(Opening(io::Error::other("it is full")));
        assert_eq!(Failure::from(opening()).to_string(), "could not open x: it is full");
        let within = opening().context("no backup");
        assert_eq!(Failure::from(within).to_string(), "no backup: could not open x: it is full");
    }

    #[test]
    fn a_problem_says_where_and_what_to_do() {
        let errors = json!([{"field": "ttl", "detail": "Too long."}, {"field": "data", "detail": "Too large."}]);
        let said = problem_text(400, &json!({"code": "invalid_argument", "detail": "2 fields.", "errors": errors}));
        assert_eq!(said, "2 fields. (400 invalid_argument)\n  ttl: Too long.\n  data: Too large.");
        let errors = json!([{"field": "channels.in_app.body", "detail": "line 2, column 2: never closed."}]);
        let refused = json!({"code": "template_invalid", "detail": "It does not compile.", "errors": errors});
        assert!(problem_text(422, &refused).ends_with("\n  channels.in_app.body: line 2, column 2: never closed."));
        let told = json!({"code": "invalid_argument", "detail": "ttl: Too long.", "errors": [{"field": "ttl", "detail": "Too long."}]});
        assert_eq!(problem_text(400, &told), "ttl: Too long. (400 invalid_argument)");
        assert!(problem_text(401, &json!({"detail": "No key.", "code": "unauthenticated"})).contains("HERALD_KEY"));
        assert_eq!(problem_text(502, &Value::Null), "the server answered 502");
    }
}
