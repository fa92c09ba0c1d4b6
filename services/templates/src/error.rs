//! What goes wrong at upload, when data is checked, and at a render.

use std::fmt;

use thiserror::Error;

/// Why a template was refused, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}:{line}:{column}: {message}")]
pub struct CompileError {
    /// The JSON path of the field, such as `channels.email.subject`.
    pub field: String,
    /// The line within the field, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// A stable code.
    pub code: CompileCode,
    /// What is wrong and how to mend it.
    pub message: String,
}

/// The kinds of [`CompileError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompileCode {
    /// The Handlebars source does not parse.
    Syntax,
    /// A source, a schema or a list is larger than allowed.
    TooLarge,
    /// Blocks or expressions are nested too deeply.
    TooDeep,
    /// A helper that is not on the list.
    UnknownHelper,
    /// A helper with wrong arguments.
    BadArguments,
    /// A variable that no template sees.
    UnknownVariable,
    /// A partial that is not defined.
    UnknownPartial,
    /// Partials that include one another.
    PartialCycle,
    /// Handlebars that Herald does not offer.
    Unsupported,
    /// A header with CR, LF or NUL.
    HeaderLineBreak,
    /// A payload that is no JSON.
    InvalidJson,
    /// A part or a channel is missing.
    Missing,
    /// A setting with an invalid value.
    InvalidValue,
    /// The data schema is invalid.
    InvalidSchema,
}

impl CompileCode {
    /// The code as the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::TooLarge => "too_large",
            Self::TooDeep => "too_deep",
            Self::UnknownHelper => "unknown_helper",
            Self::BadArguments => "bad_arguments",
            Self::UnknownVariable => "unknown_variable",
            Self::UnknownPartial => "unknown_partial",
            Self::PartialCycle => "partial_cycle",
            Self::Unsupported => "unsupported",
            Self::HeaderLineBreak => "header_line_break",
            Self::InvalidJson => "invalid_json",
            Self::Missing => "missing",
            Self::InvalidValue => "invalid_value",
            Self::InvalidSchema => "invalid_schema",
        }
    }
}

impl fmt::Display for CompileCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A place where `data` does not fit the schema.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{pointer}: {detail}")]
pub struct DataError {
    /// JSON pointer (RFC 6901) into `data`; empty for `data` itself.
    pub pointer: String,
    /// What the schema asks for. It never repeats the data.
    pub detail: String,
}

/// Why a message could not be rendered. It fails for good: the same template and data fail again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RenderError {
    /// The data does not suit the template.
    #[error("{field}: `{path}` {problem}")]
    Data {
        /// The part, such as `email.subject`.
        field: &'static str,
        /// The path of the value, such as `data.comment.author`; `[]` stands for any element.
        path: String,
        /// What is wrong with it.
        problem: DataProblem,
    },
    /// The message costs more than allowed.
    #[error("{field}: more than {max} {limit}")]
    Limit {
        /// The part, such as `email.html`.
        field: &'static str,
        /// The limit.
        limit: LimitKind,
        /// Its value.
        max: u64,
    },
    /// The template says nothing on this channel.
    #[error("the template has no {channel} channel")]
    NoChannel {
        /// The channel asked for.
        channel: crate::Channel,
    },
}

impl RenderError {
    /// The reason as receipts and the API spell it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Data { .. } => "template_data",
            Self::Limit { .. } => "template_limit",
            Self::NoChannel { .. } => "template_channel",
        }
    }
}

/// What is wrong with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataProblem {
    /// It is not there, and the template names no default.
    Missing,
    /// `each` or `with` had nothing to go into, and the template has no `{{else}}`.
    Empty,
    /// It holds CR, LF or NUL, which a header refuses.
    LineBreak,
}

impl fmt::Display for DataProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "is missing and has no default",
            Self::Empty => "has nothing to show and the block has no {{else}}",
            Self::LineBreak => "holds a line break or NUL, which a header refuses",
        })
    }
}

/// A limit on rendering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// Bytes written.
    OutputBytes,
    /// Rounds of `each`.
    Iterations,
    /// Work done, which stands for time.
    WorkUnits,
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutputBytes => "bytes of output",
            Self::Iterations => "iterations",
            Self::WorkUnits => "units of work",
        })
    }
}
