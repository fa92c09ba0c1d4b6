//! What the control plane answers when it does not do what was asked.

use herald_core::ports::{StoreError, log::LogError};

/// One field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldProblem {
    /// The JSON path of the field.
    pub field: String,
    /// A stable code.
    pub code: &'static str,
    /// What is wrong and how to mend it.
    pub detail: String,
}

impl FieldProblem {
    /// A field that is wrong.
    pub fn new(field: impl Into<String>, code: &'static str, detail: impl Into<String>) -> Self {
        Self { field: field.into(), code, detail: detail.into() }
    }
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such thing, or it is another tenant's.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The call is malformed.
    #[error("malformed: {0:?}")]
    Malformed(Vec<FieldProblem>),
    /// A rule refuses it.
    #[error("{code}: {detail}")]
    Rule {
        /// A stable code.
        code: &'static str,
        /// For people.
        detail: String,
        /// The fields, where there are any.
        fields: Vec<FieldProblem>,
    },
    /// Our fault, and it may work later: the outcome is open.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

impl Refusal {
    /// One malformed field.
    pub fn malformed(field: &str, code: &'static str, detail: impl Into<String>) -> Self {
        Self::Malformed(vec![FieldProblem::new(field, code, detail)])
    }

    /// A rule without fields.
    pub fn rule(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Rule { code, detail: detail.into(), fields: Vec::new() }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<LogError> for Refusal {
    fn from(error: LogError) -> Self {
        Self::Unavailable(error.to_string())
    }
}
