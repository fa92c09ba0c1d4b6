//! From a Handlebars source to a program: the handlebars crate parses, and here every name is resolved and checked.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use handlebars::TemplateErrorReason;
use handlebars::template::{BlockParam, DecoratorTemplate, HelperTemplate, Parameter, Subexpression};
use handlebars::template::{Template as Ast, TemplateElement, TemplateMapping};

use crate::Limits;
use crate::error::{CompileCode, CompileError};
use crate::paths::{Scope, ScopeKind, resolve};
use crate::program::{BLOCK_HELPERS, Deps, Escape, Expr, HELPERS, Helper, Node, NodeKind, Path};
use crate::scan::scan;

/// Errors reported of one template; more would help nobody.
const MAX_ERRORS: usize = 50;
/// Text that counts as one more element.
const ELEMENT_BYTES: usize = 64;

/// The errors and the partials of one template under compilation.
pub(crate) struct Compiler<'s> {
    pub limits: &'s Limits,
    pub errors: Vec<CompileError>,
    partials: BTreeMap<&'s str, Ast>,
    parse_work: usize,
    elements: usize,
}

impl<'s> Compiler<'s> {
    pub(crate) fn new(limits: &'s Limits) -> Self {
        Self { limits, errors: Vec::new(), partials: BTreeMap::new(), parse_work: 0, elements: 0 }
    }

    /// Parses all partials, also those that nothing includes.
    pub(crate) fn add_partials(&mut self, partials: &'s BTreeMap<String, String>) {
        for (name, source) in partials {
            if let Some(ast) = self.parse(&format!("partials.{name}"), source) {
                self.partials.insert(name, ast);
            }
        }
    }

    pub(crate) fn error(&mut self, field: &str, at: (usize, usize), code: CompileCode, message: impl Into<String>) {
        if self.errors.len() < MAX_ERRORS {
            let (line, column) = at;
            self.errors.push(CompileError { field: field.to_owned(), line, column, code, message: message.into() });
        }
    }

    /// Compiles the source of `field`. Errors are noted, and the nodes are of no use then.
    pub(crate) fn field(&mut self, field: &str, source: &str, escape: Escape) -> Vec<Node> {
        let Some(ast) = self.parse(field, source) else { return Vec::new() };
        let partials = std::mem::take(&mut self.partials);
        let mut lowering = Lowering {
            compiler: self,
            partials: &partials,
            field: field.to_owned(),
            escape,
            scopes: Vec::new(),
            including: Vec::new(),
            depth: 0,
        };
        let nodes = lowering.template(&ast);
        self.partials = partials;
        nodes
    }

    fn parse(&mut self, field: &str, source: &str) -> Option<Ast> {
        match scan(source, self.limits) {
            Ok(tags) => self.parse_work = self.parse_work.saturating_add(tags.saturating_mul(source.len())),
            Err(refusal) => {
                self.error(field, line_column(source, refusal.offset), refusal.code, refusal.message);
                return None;
            }
        }
        if self.parse_work > self.limits.parse_work {
            let message = "The template has too many tags in sources that large; split it or shorten them.";
            self.error(field, (1, 1), CompileCode::TooLarge, message);
            return None;
        }
        // The parser reports syntax errors as values; its few assertions must not take the process down.
        match catch_unwind(AssertUnwindSafe(|| Ast::compile(source))) {
            Ok(Ok(ast)) => Some(ast),
            Ok(Err(error)) => {
                let reason = match error.reason() {
                    TemplateErrorReason::InvalidSyntax(expected) => format!("This is no valid Handlebars: {expected}."),
                    other => format!("This is no valid Handlebars: {other}."),
                };
                let message = format!("{reason} Check the spelling of the tag and that it ends with `}}}}`.");
                self.error(field, error.pos().unwrap_or((1, 1)), CompileCode::Syntax, message);
                None
            }
            Err(_) => {
                let message = "The parser cannot read this; simplify the tags, above all `~` and literals.";
                self.error(field, (1, 1), CompileCode::Syntax, message);
                None
            }
        }
    }
}

/// Line and column, both from 1 and in characters, of the byte at `offset`.
pub(crate) fn line_column(source: &str, offset: usize) -> (usize, usize) {
    let before = &source[..offset];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The state of lowering one field.
struct Lowering<'c, 's> {
    compiler: &'c mut Compiler<'s>,
    partials: &'c BTreeMap<&'s str, Ast>,
    /// The field, or the partial within it, that errors name.
    field: String,
    escape: Escape,
    scopes: Vec<Scope>,
    including: Vec<&'c str>,
    depth: usize,
}

impl<'c> Lowering<'c, '_> {
    fn error(&mut self, at: (usize, usize), code: CompileCode, message: impl Into<String>) {
        let field = self.field.clone();
        self.compiler.error(&field, at, code, message);
    }

    fn template(&mut self, ast: &'c Ast) -> Vec<Node>
where {
        let mut nodes = Vec::with_capacity(ast.elements.len());
        let mut at = (1, 1);
        if !self.enter(at) {
            return nodes;
        }
        for (index, element) in ast.elements.iter().enumerate() {
            if let Some(TemplateMapping { 0: line, 1: column, .. }) = ast.mapping.get(index) {
                at = (*line, *column);
            }
            if !self.charge(0, at) {
                break;
            }
            self.element(element, at, &mut nodes);
        }
        self.depth -= 1;
        nodes
    }

    /// Counts an element and `bytes` of text in it; partials may multiply both.
    fn charge(&mut self, bytes: usize, at: (usize, usize)) -> bool {
        let max = self.compiler.limits.elements;
        let before = self.compiler.elements;
        self.compiler.elements = before.saturating_add(1 + bytes / ELEMENT_BYTES);
        let is_exceeded = self.compiler.elements > max;
        if is_exceeded && before <= max {
            let message = format!("With its partials the template has more than {max} elements; use fewer.");
            self.error(at, CompileCode::TooLarge, message);
        }
        !is_exceeded
    }

    fn enter(&mut self, at: (usize, usize)) -> bool {
        // Twice the blocks, since a partial in a block is a level of its own.
        if self.depth >= 2 * self.compiler.limits.nesting {
            self.error(at, CompileCode::TooDeep, "Blocks and partials are nested too deeply; flatten them.");
            return false;
        }
        self.depth += 1;
        true
    }

    fn element(&mut self, element: &'c TemplateElement, at: (usize, usize), nodes: &mut Vec<Node>) {
        let kind = match element {
            TemplateElement::Comment(_) => return,
            TemplateElement::RawString(text) => self.text(text, at),
            TemplateElement::Expression(tag) => self.value(tag, self.escape, at),
            TemplateElement::HtmlExpression(tag) => {
                // Only HTML has a raw form: headers and JSON stay what they are.
                let escape = if self.escape == Escape::Html { Escape::None } else { self.escape };
                self.value(tag, escape, at)
            }
            TemplateElement::HelperBlock(block) => self.block(block, at),
            TemplateElement::PartialExpression(partial) => return self.partial(partial, at, nodes),
            _ => {
                let message = "Decorators and partial blocks are not offered; define `partials` instead.";
                return self.error(at, CompileCode::Unsupported, message);
            }
        };
        if let Some(kind) = kind {
            let deps = deps_of(&kind);
            nodes.push(Node { kind, deps, at });
        }
    }

    fn text(&mut self, text: &str, at: (usize, usize)) -> Option<NodeKind> {
        if self.escape == Escape::Header && text.contains(['\r', '\n', '\0']) {
            let message = "A header is a single line; remove the line break, or join the lines with `{{~ ~}}`.";
            self.error(at, CompileCode::HeaderLineBreak, message);
        }
        self.charge(text.len(), at).then(|| NodeKind::Text(text.to_owned()))
    }

    fn value(&mut self, tag: &'c HelperTemplate, escape: Escape, at: (usize, usize)) -> Option<NodeKind> {
        let expr = self.call_or_path(&tag.name, &tag.params, !tag.hash.is_empty(), at)?;
        Some(NodeKind::Value { expr, escape })
    }

    /// `{{name}}`, `{{helper a b}}` or `{{(helper a b)}}`.
    fn call_or_path(
        &mut self,
        name: &'c Parameter,
        params: &'c [Parameter],
        has_hash: bool,
        at: (usize, usize),
    ) -> Option<Expr> {
        let word = match name {
            Parameter::Name(name) => name.as_str(),
            Parameter::Path(handlebars::Path::Relative((_, raw)) | handlebars::Path::Local((_, _, raw))) => raw,
            _ => return self.expr(name, at),
        };
        if let Some(helper) = Helper::from_name(word) {
            return self.call(helper, word, params, has_hash, at);
        }
        if BLOCK_HELPERS.contains(&word) {
            let message = format!("`{word}` is a block: write `{{{{#{word} ...}}}}...{{{{/{word}}}}}`.");
            self.error(at, CompileCode::BadArguments, message);
            return None;
        }
        if let Parameter::Name(_) = name {
            self.unknown_helper(word, at);
            return None;
        }
        self.expr(name, at)
    }

    fn unknown_helper(&mut self, name: &str, at: (usize, usize)) {
        let message = format!("There is no helper `{name}`; the helpers are {HELPERS}.");
        self.error(at, CompileCode::UnknownHelper, message);
    }

    fn call(
        &mut self,
        helper: Helper,
        name: &str,
        params: &'c [Parameter],
        has_hash: bool,
        at: (usize, usize),
    ) -> Option<Expr> {
        let (least, most, usage) = helper.arguments();
        if has_hash || params.len() < least || params.len() > most {
            let message = format!("`{name}` is used as `{{{{{usage}}}}}`.");
            self.error(at, CompileCode::BadArguments, message);
            return None;
        }
        let args = params.iter().map(|param| self.expr(param, at)).collect::<Option<Vec<_>>>()?;
        Some(Expr::Call { helper, args })
    }

    fn expr(&mut self, param: &'c Parameter, at: (usize, usize)) -> Option<Expr> {
        match param {
            Parameter::Literal(value) => self.charge(value.to_string().len(), at).then(|| Expr::Literal(value.clone())),
            Parameter::Path(path) if self.charge(0, at) => self.path(path, at).map(Expr::Path),
            Parameter::Path(_) => None,
            Parameter::Subexpression(sub) => {
                if !self.enter(at) {
                    return None;
                }
                let expr = self.subexpression(sub, at);
                self.depth -= 1;
                expr
            }
            Parameter::Name(name) => {
                self.unknown_helper(name, at);
                None
            }
            _ => {
                self.error(
                    at,
                    CompileCode::Unsupported,
                    "This kind of argument is not offered; use a path or a literal.",
                );
                None
            }
        }
    }

    fn subexpression(&mut self, sub: &'c Subexpression, at: (usize, usize)) -> Option<Expr> {
        match sub.as_element() {
            TemplateElement::Expression(tag) => self.call_or_path(&tag.name, &tag.params, !tag.hash.is_empty(), at),
            _ => None,
        }
    }

    fn path(&mut self, path: &handlebars::Path, at: (usize, usize)) -> Option<Path> {
        match resolve(path, &self.scopes) {
            Ok(path) => Some(path),
            Err(message) => {
                self.error(at, CompileCode::UnknownVariable, message);
                None
            }
        }
    }

    fn block(&mut self, block: &'c HelperTemplate, at: (usize, usize)) -> Option<NodeKind> {
        let Parameter::Name(name) = &block.name else {
            self.error(at, CompileCode::Unsupported, "A block starts with a helper, such as `{{#if ...}}`.");
            return None;
        };
        let include_zero = match (name.as_str(), block.hash.len(), block.hash.get("includeZero")) {
            (_, 0, _) => false,
            ("if" | "unless", 1, Some(Parameter::Literal(serde_json::Value::Bool(include)))) => *include,
            _ => {
                let message = format!("`{name}` takes no named arguments; only `if` takes `includeZero=true`.");
                self.error(at, CompileCode::BadArguments, message);
                return None;
            }
        };
        if let Some(helper) = Helper::from_name(name).filter(|helper| helper.is_condition()) {
            let condition = self.call(helper, name, &block.params, false, at);
            return self.branches(condition, block, false, false);
        }
        if !BLOCK_HELPERS.contains(&name.as_str()) {
            self.unknown_helper(name, at);
            return None;
        }
        let [param] = block.params.as_slice() else {
            let message = format!("`{name}` takes one value: `{{{{#{name} value}}}}`.");
            self.error(at, CompileCode::BadArguments, message);
            return None;
        };
        let value = self.expr(param, at);
        match name.as_str() {
            "each" => self.scope(ScopeKind::Each, value, block),
            "with" => self.scope(ScopeKind::With, value, block),
            name => self.branches(value, block, name == "unless", include_zero),
        }
    }

    /// `if`, `unless` and comparisons. The branches are visited in any case, to report their errors as well.
    fn branches(
        &mut self,
        condition: Option<Expr>,
        block: &'c HelperTemplate,
        negate: bool,
        include_zero: bool,
    ) -> Option<NodeKind> {
        let then = block.template.as_ref().map(|ast| self.template(ast)).unwrap_or_default();
        let otherwise = block.inverse.as_ref().map(|ast| self.template(ast)).unwrap_or_default();
        Some(NodeKind::If { condition: condition?, negate, include_zero, then, otherwise })
    }

    /// `each` and `with`.
    fn scope(&mut self, kind: ScopeKind, value: Option<Expr>, block: &'c HelperTemplate) -> Option<NodeKind> {
        let name = |param: &Parameter| match param {
            Parameter::Name(name) => Some(name.clone()),
            _ => None,
        };
        let (item_name, key_name) = match &block.block_param {
            Some(BlockParam::Single(item)) => (name(item), None),
            Some(BlockParam::Pair((item, key))) => (name(item), name(key)),
            _ => (None, None),
        };
        let of = value.as_ref().map_or("?", Expr::label);
        let label = if kind == ScopeKind::Each { format!("{of}[]") } else { of.to_owned() };
        self.scopes.push(Scope { kind, label, item_name, key_name });
        let body = block.template.as_ref().map(|ast| self.template(ast)).unwrap_or_default();
        self.scopes.pop();
        let otherwise = block.inverse.as_ref().map(|ast| self.template(ast));
        let value = value?;
        Some(match kind {
            ScopeKind::Each => NodeKind::Each { over: value, body, otherwise },
            ScopeKind::With => NodeKind::With { value, body, otherwise },
        })
    }

    /// Puts the partial's nodes in place, so that its names are resolved where it is included.
    fn partial(&mut self, tag: &'c DecoratorTemplate, at: (usize, usize), nodes: &mut Vec<Node>) {
        let name = match &tag.name {
            Parameter::Name(name) if tag.params.is_empty() && tag.hash.is_empty() => name.as_str(),
            _ => {
                let message = "A partial is included by name and without arguments, `{{> name}}`; \
                               use `{{#with value}}{{> name}}{{/with}}` to choose what it sees.";
                return self.error(at, CompileCode::Unsupported, message);
            }
        };
        let partials = self.partials;
        let Some((name, ast)) = partials.get_key_value(name) else {
            let message = format!("There is no partial `{name}`; define it under `partials` or remove this tag.");
            return self.error(at, CompileCode::UnknownPartial, message);
        };
        if self.including.contains(name) {
            let path = self.including.join("` includes `");
            let message = format!("Partials include one another: `{path}` includes `{name}`; break the circle.");
            return self.error(at, CompileCode::PartialCycle, message);
        }
        let field = std::mem::replace(&mut self.field, format!("partials.{name}"));
        self.including.push(name);
        nodes.extend(self.template(ast));
        self.including.pop();
        self.field = field;
    }
}

fn deps_of(kind: &NodeKind) -> Deps {
    let all = |nodes: &[Node]| nodes.iter().fold(0, |deps, node| deps | node.deps);
    match kind {
        NodeKind::Text(_) => 0,
        NodeKind::Value { expr, .. } => expr.deps(),
        NodeKind::If { condition, then, otherwise, .. } => condition.deps() | all(then) | all(otherwise),
        NodeKind::Each { over: value, body, otherwise } | NodeKind::With { value, body, otherwise } => {
            value.deps() | all(body) | otherwise.as_deref().map_or(0, all)
        }
    }
}
