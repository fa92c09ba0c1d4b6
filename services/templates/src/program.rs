//! What a field is compiled to: text and the places to fill, with every name resolved.

use serde_json::Value;

/// What a node's output depends on, as a set of bits.
pub(crate) type Deps = u8;
/// `data`, `actor` and `tenant`: the same for every user of a section.
pub(crate) const SHARED: Deps = 1;
/// `user`.
pub(crate) const USER: Deps = 2;
/// `unsubscribe_url`.
pub(crate) const UNSUBSCRIBE_URL: Deps = 4;

/// One compiled part of a message.
#[derive(Debug)]
pub(crate) struct Field {
    /// The part, such as `email.subject`.
    pub name: &'static str,
    pub nodes: Vec<Node>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub kind: NodeKind,
    pub deps: Deps,
    /// Line and column in the source.
    pub at: (usize, usize),
}

#[derive(Debug)]
pub(crate) enum NodeKind {
    Text(String),
    Value {
        expr: Expr,
        escape: Escape,
    },
    If {
        condition: Expr,
        negate: bool,
        include_zero: bool,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    /// `otherwise` is `None` without an `{{else}}`: nothing to show is an error then.
    Each {
        over: Expr,
        body: Vec<Node>,
        otherwise: Option<Vec<Node>>,
    },
    With {
        value: Expr,
        body: Vec<Node>,
        otherwise: Option<Vec<Node>>,
    },
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Escape {
    /// As it is.
    None,
    /// For HTML text and quoted attributes, exactly as the handlebars crate escapes.
    Html,
    /// As it is, but CR, LF and NUL are refused.
    Header,
    /// For the inside of a JSON string.
    JsonString,
    /// As a JSON value.
    JsonValue,
}

#[derive(Debug)]
pub(crate) enum Expr {
    Path(Path),
    Literal(Value),
    Call { helper: Helper, args: Vec<Expr> },
}

#[derive(Debug)]
pub(crate) struct Path {
    pub base: Base,
    pub segments: Vec<Segment>,
    /// The path from the root, for messages.
    pub label: String,
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub name: String,
    /// The same as an index into an array.
    pub index: Option<usize>,
}

/// Where a path starts. Scopes are counted outwards from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    Data,
    User(PersonField),
    Actor(PersonField),
    Tenant,
    UnsubscribeUrl,
    Scope(usize),
    /// The second block parameter of `each`: an object's key, or else the index.
    KeyOrIndex(usize),
    Key(usize),
    Index(usize),
    First(usize),
    Last(usize),
}

/// What of a person a path starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PersonField {
    Whole,
    Id,
    Locale,
    TimeZone,
    Attributes,
}

impl PersonField {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "id" => Self::Id,
            "locale" => Self::Locale,
            "time_zone" => Self::TimeZone,
            "attributes" => Self::Attributes,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Helper {
    Lookup,
    Eq,
    Ne,
    Gt,
    Gte,
    Lt,
    Lte,
    And,
    Or,
    Not,
    Len,
    Default,
    Upper,
    Lower,
    Plural,
}

/// The helpers that are not on [`Helper`]'s list because they are blocks.
pub(crate) const BLOCK_HELPERS: [&str; 4] = ["if", "unless", "each", "with"];
/// Every helper, for messages.
pub(crate) const HELPERS: &str = "if, unless, each, with, lookup, eq, ne, gt, gte, lt, lte, and, or, not, len, \
                                  default, upper, lower, plural";

impl Helper {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "lookup" => Self::Lookup,
            "eq" => Self::Eq,
            "ne" => Self::Ne,
            "gt" => Self::Gt,
            "gte" => Self::Gte,
            "lt" => Self::Lt,
            "lte" => Self::Lte,
            "and" => Self::And,
            "or" => Self::Or,
            "not" => Self::Not,
            "len" => Self::Len,
            "default" => Self::Default,
            "upper" => Self::Upper,
            "lower" => Self::Lower,
            "plural" => Self::Plural,
            _ => return None,
        })
    }

    /// The smallest and the largest number of arguments, and how a call looks.
    pub(crate) fn arguments(self) -> (usize, usize, &'static str) {
        match self {
            Self::Lookup => (2, 2, "lookup collection key"),
            Self::Eq => (2, 2, "eq a b"),
            Self::Ne => (2, 2, "ne a b"),
            Self::Gt => (2, 2, "gt a b"),
            Self::Gte => (2, 2, "gte a b"),
            Self::Lt => (2, 2, "lt a b"),
            Self::Lte => (2, 2, "lte a b"),
            Self::And => (1, 16, "and a b ..."),
            Self::Or => (1, 16, "or a b ..."),
            Self::Not => (1, 1, "not a"),
            Self::Len => (1, 1, "len value"),
            Self::Default => (2, 16, "default value fallback"),
            Self::Upper => (1, 1, "upper value"),
            Self::Lower => (1, 1, "lower value"),
            Self::Plural => (3, 3, "plural count \"comment\" \"comments\""),
        }
    }

    /// Whether `{{#helper ...}}` chooses between its branches.
    pub(crate) fn is_condition(self) -> bool {
        use Helper::*;
        matches!(self, Eq | Ne | Gt | Gte | Lt | Lte | And | Or | Not)
    }
}

impl Expr {
    /// What the expression depends on, not counting what its scope depends on.
    pub(crate) fn deps(&self) -> Deps {
        match self {
            Self::Literal(_) => 0,
            Self::Call { args, .. } => args.iter().fold(0, |deps, arg| deps | arg.deps()),
            Self::Path(path) => match path.base {
                Base::Data | Base::Actor(_) | Base::Tenant => SHARED,
                Base::User(_) => USER,
                Base::UnsubscribeUrl => UNSUBSCRIBE_URL,
                _ => 0,
            },
        }
    }

    /// The name that an error shows.
    pub(crate) fn label(&self) -> &str {
        match self {
            Self::Path(path) => &path.label,
            Self::Literal(_) => "a literal",
            Self::Call { args, .. } => args.first().map_or("a helper", Expr::label),
        }
    }
}
