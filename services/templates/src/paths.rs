//! Resolving a path at upload: to a variable of the root, or to an enclosing block.

use handlebars::{Path as AstPath, PathSeg};

use crate::program::{Base, Path, PersonField, Segment};

/// An enclosing `each` or `with`, the innermost last.
#[derive(Debug)]
pub(crate) struct Scope {
    pub kind: ScopeKind,
    /// What `this` is there, from the root.
    pub label: String,
    /// `as |item|`
    pub item_name: Option<String>,
    /// `as |item key|`
    pub key_name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScopeKind {
    Each,
    With,
}

/// Bytes of one path. Every path within a block repeats the block's in its label.
const MAX_PATH_BYTES: usize = 256;
const ROOTS: &str = "data, user, actor, tenant and unsubscribe_url";

/// Resolves `path` within `scopes`, or says why it leads nowhere.
pub(crate) fn resolve(path: &AstPath, scopes: &[Scope]) -> Result<Path, String> {
    let (AstPath::Local((_, _, raw)) | AstPath::Relative((_, raw))) = path;
    if raw.len() > MAX_PATH_BYTES {
        return Err(format!("A path has at most {MAX_PATH_BYTES} bytes; use `with` to shorten it."));
    }
    let (segments, raw) = match path {
        AstPath::Local((level, name, raw)) => return local(*level, name, raw, scopes),
        AstPath::Relative((segments, raw)) => (segments, raw.as_str()),
    };
    let names: Vec<&str> = segments
        .iter()
        .filter_map(|segment| match segment {
            PathSeg::Named(name) => Some(name.as_str()),
            _ => None,
        })
        .collect();
    let unqualified = ["this.", "this/", "./"].iter().find_map(|prefix| raw.strip_prefix(prefix));
    let mut rest = unqualified.unwrap_or(raw);
    let from_root = rest.strip_prefix("@root").is_some_and(|rest| rest.starts_with(['.', '/']));
    if rest.starts_with('@') && !from_root {
        return Err(format!("`{raw}` is unknown; inside `each` there are @index, @key, @first and @last."));
    }
    let mut ups = 0;
    while let Some(outer) = rest.strip_prefix("../") {
        ups += 1;
        rest = outer;
    }
    if from_root {
        return root(&names, raw);
    }
    if ups == 0 && unqualified.is_none() {
        for (up, scope) in scopes.iter().rev().enumerate() {
            if names.first().is_some_and(|name| scope.item_name.as_deref() == Some(name)) {
                return Ok(inner(Base::Scope(up), &scope.label, &names[1..]));
            }
            if names.first().is_some_and(|name| scope.key_name.as_deref() == Some(name)) {
                return Ok(inner(Base::KeyOrIndex(up), raw, &names[1..]));
            }
        }
    }
    match scopes.len().checked_sub(ups) {
        None => Err(format!("`{raw}` goes above the root; remove a `../` (only `each` and `with` add a level).")),
        Some(0) => root(&names, raw),
        Some(level) => Ok(inner(Base::Scope(ups), &scopes[level - 1].label, &names)),
    }
}

fn inner(base: Base, label: &str, names: &[&str]) -> Path {
    let label = names.iter().fold(label.to_owned(), |label, name| label + "." + name);
    Path { base, segments: segments(names), label }
}

fn segments(names: &[&str]) -> Vec<Segment> {
    names.iter().map(|name| Segment { name: (*name).to_owned(), index: name.parse().ok() }).collect()
}

fn root(names: &[&str], raw: &str) -> Result<Path, String> {
    let Some((first, names)) = names.split_first() else {
        return Err(format!("`{raw}` means everything here; name one of {ROOTS}."));
    };
    let label = format!("{first}.{}", names.join("."));
    let label = label.trim_end_matches('.').to_owned();
    let (base, names) = match (*first, names) {
        ("data", names) => (Base::Data, names),
        ("user", names) => person(first, names).map(|(field, names)| (Base::User(field), names))?,
        ("actor", names) => person(first, names).map(|(field, names)| (Base::Actor(field), names))?,
        ("tenant", [] | ["id"] | ["name"]) => (Base::Tenant, names),
        ("tenant", _) => return Err(format!("`{raw}` is unknown; tenant has id and name.")),
        ("unsubscribe_url", []) => (Base::UnsubscribeUrl, names),
        ("unsubscribe_url", _) => return Err("`unsubscribe_url` is a string without fields.".to_owned()),
        (other, _) => {
            return Err(format!("`{other}` is unknown; a template sees {ROOTS}. Write `data.{other}`?"));
        }
    };
    Ok(Path { base, segments: segments(names), label })
}

/// The field of a person that `names` start with, and the rest.
fn person<'n, 's>(who: &str, names: &'n [&'s str]) -> Result<(PersonField, &'n [&'s str]), String> {
    let Some((name, rest)) = names.split_first() else { return Ok((PersonField::Whole, names)) };
    match PersonField::from_name(name) {
        Some(field) if field == PersonField::Attributes || rest.is_empty() => Ok((field, rest)),
        _ => {
            let path = names.join(".");
            Err(format!(
                "`{who}.{path}` is unknown; {who} has id, locale, time_zone and attributes. \
                 Write `{who}.attributes.{path}`?"
            ))
        }
    }
}

/// `@index` and its kin belong to the `each` that encloses the scope `level` levels out.
fn local(level: usize, name: &str, raw: &str, scopes: &[Scope]) -> Result<Path, String> {
    let each = scopes.iter().rev().enumerate().skip(level).find(|(_, scope)| scope.kind == ScopeKind::Each);
    let Some((up, _)) = each else {
        return Err(format!("`{raw}` is known only inside `each`."));
    };
    let base = match name {
        "index" => Base::Index(up),
        "key" => Base::Key(up),
        "first" => Base::First(up),
        "last" => Base::Last(up),
        _ => return Err(format!("`{raw}` is unknown; inside `each` there are @index, @key, @first and @last.")),
    };
    Ok(inner(base, raw, &[]))
}
