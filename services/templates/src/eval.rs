//! Evaluating a program.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use crate::context::{PersonContext, TenantContext, Variables};
use crate::error::DataProblem;
use crate::output::{Fail, Outcome, Output};
use crate::program::{Base, Escape, Expr, Helper, Node, NodeKind, Path, PersonField, Segment};

/// A longer string is no number.
const MAX_NUMBER_BYTES: usize = 64;

/// A value on its way.
#[derive(Debug, Clone)]
pub(crate) enum Val<'a> {
    Missing,
    Null,
    Bool(bool),
    /// An index or a length.
    Count(u64),
    Str(Cow<'a, str>),
    /// A number, an array or an object.
    Json(&'a Value),
    Person(&'a PersonContext<'a>),
    Tenant(&'a TenantContext<'a>),
}

/// What an `each` or a `with` adds.
#[derive(Debug)]
pub(crate) struct Scope<'s, 'a> {
    value: Val<'a>,
    index: usize,
    key: Option<&'a str>,
    last: bool,
    parent: Option<&'s Scope<'s, 'a>>,
}

/// Renders `nodes` in turn.
pub(crate) fn render<'a>(
    nodes: &'a [Node],
    variables: &'a Variables<'a>,
    scope: Option<&Scope<'_, 'a>>,
    out: &mut Output<'_>,
) -> Outcome<()> {
    nodes.iter().try_for_each(|node| render_node(node, variables, scope, out))
}

/// Renders one node.
pub(crate) fn render_node<'a>(
    node: &'a Node,
    variables: &'a Variables<'a>,
    scope: Option<&Scope<'_, 'a>>,
    out: &mut Output<'_>,
) -> Outcome<()> {
    out.meter.step()?;
    match &node.kind {
        NodeKind::Text(text) => out.push(text),
        NodeKind::Value { expr, escape } => {
            let value = Eval { variables, scope, out }.eval(expr)?;
            print(&value, *escape, expr, out)
        }
        NodeKind::If { condition, negate, include_zero, then, otherwise } => {
            let value = Eval { variables, scope, out }.eval(condition)?;
            let branch = if value.is_truthy(*include_zero) != *negate { then } else { otherwise };
            render(branch, variables, scope, out)
        }
        NodeKind::With { value, body, otherwise } => {
            let inner = Eval { variables, scope, out }.eval(value)?;
            if inner.is_truthy(false) {
                let inner = Scope { value: inner, index: 0, key: None, last: false, parent: scope };
                return render(body, variables, Some(&inner), out);
            }
            or_else(otherwise.as_deref(), value, variables, scope, out)
        }
        NodeKind::Each { over, body, otherwise } => {
            let collection = Eval { variables, scope, out }.eval(over)?;
            let round = |value, index, len, key, out: &mut Output<'_>| {
                out.meter.iterate()?;
                let inner = Scope { value, index, key, last: index + 1 == len, parent: scope };
                render(body, variables, Some(&inner), out)
            };
            match collection {
                Val::Json(Value::Array(items)) if !items.is_empty() || otherwise.is_none() => items
                    .iter()
                    .enumerate()
                    .try_for_each(|(index, item)| round(Val::of(item), index, items.len(), None, out)),
                Val::Json(Value::Object(fields)) if !fields.is_empty() || otherwise.is_none() => {
                    fields.iter().enumerate().try_for_each(|(index, (key, item))| {
                        round(Val::of(item), index, fields.len(), Some(key.as_str()), out)
                    })
                }
                _ => or_else(otherwise.as_deref(), over, variables, scope, out),
            }
        }
    }
}

/// The `{{else}}` of a block that had nothing to go into; without one that is an error.
fn or_else<'a>(
    otherwise: Option<&'a [Node]>,
    expr: &Expr,
    variables: &'a Variables<'a>,
    scope: Option<&Scope<'_, 'a>>,
    out: &mut Output<'_>,
) -> Outcome<()> {
    match otherwise {
        Some(nodes) => render(nodes, variables, scope, out),
        None => Err(Box::new(Fail::Data(expr.label().to_owned(), DataProblem::Empty))),
    }
}

#[inline]
fn print(value: &Val<'_>, escape: Escape, expr: &Expr, out: &mut Output<'_>) -> Outcome<()> {
    match value {
        Val::Missing => Err(Fail::missing(expr.label())),
        Val::Null => out.value(&Value::Null, escape, ""),
        Val::Bool(flag) => out.push(if *flag { "true" } else { "false" }),
        Val::Count(count) => out.display(count),
        Val::Str(text) => out.string(text, escape, expr.label()),
        Val::Json(value) => out.value(value, escape, expr.label()),
        Val::Person(PersonContext { id, .. }) | Val::Tenant(TenantContext { id, .. }) => match escape {
            // Only the id: the rest of a person is not meant to leave with a payload by accident.
            Escape::JsonValue => out.string(id, escape, ""),
            _ => out.push("[object]"),
        },
    }
}

/// An evaluation within a scope.
struct Eval<'e, 's, 'o, 'a> {
    variables: &'a Variables<'a>,
    scope: Option<&'e Scope<'s, 'a>>,
    out: &'e mut Output<'o>,
}

impl<'a> Eval<'_, '_, '_, 'a> {
    fn eval(&mut self, expr: &'a Expr) -> Outcome<Val<'a>> {
        match expr {
            Expr::Path(path) => self.path(path),
            Expr::Literal(value) => Ok(Val::of(value)),
            Expr::Call { helper, args } => {
                self.out.meter.step()?;
                self.call(*helper, args)
            }
        }
    }

    /// The value, which must be there.
    fn need(&mut self, expr: &'a Expr) -> Outcome<Val<'a>> {
        match self.eval(expr)? {
            Val::Missing => Err(Fail::missing(expr.label())),
            value => Ok(value),
        }
    }

    #[inline]
    fn path(&mut self, path: &'a Path) -> Outcome<Val<'a>> {
        let mut value = match path.base {
            Base::Data => Val::of(self.variables.data),
            Base::User(field) => Val::person(self.variables.user.as_ref(), field),
            Base::Actor(field) => Val::person(self.variables.actor.as_ref(), field),
            Base::Tenant => Val::Tenant(&self.variables.tenant),
            Base::UnsubscribeUrl => Val::optional(self.variables.unsubscribe_url),
            Base::Scope(up) => self.scope(up).map_or(Val::Missing, |scope| scope.value.clone()),
            Base::Key(up) => Val::optional(self.scope(up).and_then(|scope| scope.key)),
            Base::KeyOrIndex(up) => self.scope(up).map_or(Val::Missing, |scope| match scope.key {
                Some(key) => Val::Str(Cow::Borrowed(key)),
                None => Val::Count(scope.index as u64),
            }),
            Base::Index(up) => self.scope(up).map_or(Val::Missing, |scope| Val::Count(scope.index as u64)),
            Base::First(up) => self.scope(up).map_or(Val::Missing, |scope| Val::Bool(scope.index == 0)),
            Base::Last(up) => self.scope(up).map_or(Val::Missing, |scope| Val::Bool(scope.last)),
        };
        self.out.meter.steps(path.segments.len())?;
        for segment in &path.segments {
            value = value.get(segment);
        }
        Ok(value)
    }

    fn scope(&self, up: usize) -> Option<&Scope<'_, 'a>> {
        (0..up).try_fold(self.scope?, |scope, _| scope.parent)
    }

    fn call(&mut self, helper: Helper, args: &'a [Expr]) -> Outcome<Val<'a>> {
        // The number of arguments was checked at upload.
        let [first, rest @ ..] = args else { return Ok(Val::Missing) };
        Ok(match (helper, rest) {
            (Helper::And | Helper::Or, _) => {
                let is_or = helper == Helper::Or;
                for arg in args {
                    if self.eval(arg)?.is_truthy(false) == is_or {
                        return Ok(Val::Bool(is_or));
                    }
                }
                Val::Bool(!is_or)
            }
            (Helper::Not, _) => Val::Bool(!self.eval(first)?.is_truthy(false)),
            (Helper::Default, _) => {
                for arg in args {
                    let value = self.eval(arg)?;
                    if !value.is_absent() {
                        return Ok(value);
                    }
                }
                Val::Missing
            }
            (Helper::Lookup, [key, ..]) => {
                let collection = self.eval(first)?;
                let key = self.need(key)?;
                // An object compares its keys some times.
                self.out.meter.look_at(key.weight().saturating_mul(16))?;
                collection.lookup(&key)
            }
            (Helper::Eq | Helper::Ne | Helper::Gt | Helper::Gte | Helper::Lt | Helper::Lte, [second, ..]) => {
                let (left, right) = (self.need(first)?, self.need(second)?);
                self.out.meter.look_at(left.weight().max(right.weight()))?;
                Val::Bool(left.satisfies(helper, &right))
            }
            (Helper::Len, _) => {
                let value = self.need(first)?;
                self.out.meter.look_at(value.weight())?;
                Val::Count(value.len() as u64)
            }
            (Helper::Upper | Helper::Lower, _) => match self.need(first)? {
                Val::Str(text) => {
                    // Changing case costs more a byte than looking at it.
                    self.out.meter.look_at(text.len().saturating_mul(8))?;
                    let changed = if helper == Helper::Upper { text.to_uppercase() } else { text.to_lowercase() };
                    Val::Str(Cow::Owned(changed))
                }
                other => other,
            },
            (Helper::Plural, [one, many, ..]) => {
                let is_one = self.need(first)?.as_f64() == Some(1.0);
                self.need(if is_one { one } else { many })?
            }
            _ => Val::Missing,
        })
    }
}

impl<'a> Val<'a> {
    #[inline]
    fn of(value: &'a Value) -> Self {
        match value {
            Value::String(text) => Self::Str(Cow::Borrowed(text)),
            Value::Null => Self::Null,
            Value::Bool(flag) => Self::Bool(*flag),
            other => Self::Json(other),
        }
    }

    fn optional(text: Option<&'a str>) -> Self {
        text.map_or(Self::Missing, |text| Self::Str(Cow::Borrowed(text)))
    }

    fn person(person: Option<&'a PersonContext<'a>>, field: PersonField) -> Self {
        match (person, field) {
            (None, PersonField::Whole) => Self::Null,
            (None, _) => Self::Missing,
            (Some(person), PersonField::Whole) => Self::Person(person),
            (Some(person), PersonField::Id) => Self::Str(Cow::Borrowed(person.id)),
            (Some(person), PersonField::Locale) => Self::optional(person.locale),
            (Some(person), PersonField::TimeZone) => Self::optional(person.time_zone),
            (Some(person), PersonField::Attributes) => Self::of(person.attributes),
        }
    }

    fn person_field(person: &'a PersonContext<'a>, name: &str) -> Self {
        PersonField::from_name(name).map_or(Self::Missing, |field| Self::person(Some(person), field))
    }

    #[inline]
    fn get(self, segment: &Segment) -> Self {
        match self {
            Self::Json(Value::Object(fields)) => fields.get(&segment.name).map_or(Self::Missing, Self::of),
            Self::Json(Value::Array(items)) => {
                segment.index.and_then(|index| items.get(index)).map_or(Self::Missing, Self::of)
            }
            Self::Person(person) => Self::person_field(person, &segment.name),
            Self::Tenant(tenant) => tenant_field(tenant, &segment.name),
            _ => Self::Missing,
        }
    }

    fn lookup(self, key: &Val<'_>) -> Self {
        match (self, key) {
            (Self::Json(Value::Object(fields)), Val::Str(key)) => {
                fields.get(key.as_ref()).map_or(Self::Missing, Self::of)
            }
            (Self::Json(Value::Array(items)), key) => {
                key.as_index().and_then(|index| items.get(index)).map_or(Self::Missing, Self::of)
            }
            (Self::Person(person), Val::Str(key)) => Self::person_field(person, key),
            (Self::Tenant(tenant), Val::Str(key)) => tenant_field(tenant, key),
            _ => Self::Missing,
        }
    }

    fn as_index(&self) -> Option<usize> {
        match self {
            Self::Count(count) => usize::try_from(*count).ok(),
            Self::Json(value) => value.as_u64().and_then(|index| usize::try_from(index).ok()),
            _ => None,
        }
    }

    fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Count(count) => Some(*count as f64),
            Self::Json(value) => value.as_f64(),
            Self::Str(text) if text.len() <= MAX_NUMBER_BYTES => text.parse().ok(),
            _ => None,
        }
    }

    /// Whether `default` takes its fallback: for what is missing, null or the empty string.
    fn is_absent(&self) -> bool {
        match self {
            Self::Missing | Self::Null => true,
            Self::Str(text) => text.is_empty(),
            _ => false,
        }
    }

    fn is_truthy(&self, include_zero: bool) -> bool {
        match self {
            Self::Missing | Self::Null => false,
            Self::Bool(flag) => *flag,
            Self::Count(count) => include_zero || *count != 0,
            Self::Str(text) => !text.is_empty(),
            Self::Json(Value::Array(items)) => !items.is_empty(),
            Self::Json(Value::Object(fields)) => !fields.is_empty(),
            Self::Json(number) => number.as_f64().is_some_and(|number| include_zero || number.is_normal()),
            Self::Person(_) | Self::Tenant(_) => true,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Json(Value::Array(items)) => items.len(),
            Self::Json(Value::Object(fields)) => fields.len(),
            Self::Str(text) => text.chars().count(),
            _ => 0,
        }
    }

    /// Whether the comparison that `helper` names holds.
    fn satisfies(&self, helper: Helper, other: &Self) -> bool {
        match helper {
            Helper::Eq => self.equals(other),
            Helper::Ne => !self.equals(other),
            Helper::Gt => self.compare(other).is_some_and(Ordering::is_gt),
            Helper::Gte => self.compare(other).is_some_and(Ordering::is_ge),
            Helper::Lt => self.compare(other).is_some_and(Ordering::is_lt),
            _ => self.compare(other).is_some_and(Ordering::is_le),
        }
    }

    /// About how many bytes a comparison looks at.
    fn weight(&self) -> usize {
        match self {
            Self::Str(text) => text.len(),
            _ => 0,
        }
    }

    /// Equality of scalars and of people. Arrays and objects equal nothing: comparing them has no bounded cost.
    fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(left), Self::Bool(right)) => left == right,
            (Self::Str(left), Self::Str(right)) => left == right,
            (Self::Person(left), Self::Person(right)) => left.id == right.id,
            (Self::Tenant(_), Self::Tenant(_)) => true,
            (Self::Json(Value::Number(_)) | Self::Count(_), Self::Json(Value::Number(_)) | Self::Count(_)) => {
                self.compare(other) == Some(Ordering::Equal)
            }
            _ => false,
        }
    }

    fn compare(&self, other: &Self) -> Option<Ordering> {
        if let (Self::Str(left), Self::Str(right)) = (self, other) {
            return Some(left.cmp(right));
        }
        if let (Self::Bool(left), Self::Bool(right)) = (self, other) {
            return Some(left.cmp(right));
        }
        match (self.as_integer(), other.as_integer()) {
            (Some(left), Some(right)) => Some(left.cmp(&right)),
            _ => self.as_f64()?.partial_cmp(&other.as_f64()?),
        }
    }

    fn as_integer(&self) -> Option<i128> {
        match self {
            Self::Count(count) => Some(i128::from(*count)),
            Self::Json(Value::Number(number)) => {
                number.as_u64().map(i128::from).or_else(|| number.as_i64().map(i128::from))
            }
            _ => None,
        }
    }
}

fn tenant_field<'a>(tenant: &TenantContext<'a>, name: &str) -> Val<'a> {
    match name {
        "id" => Val::Str(Cow::Borrowed(tenant.id)),
        "name" => Val::Str(Cow::Borrowed(tenant.name)),
        _ => Val::Missing,
    }
}
