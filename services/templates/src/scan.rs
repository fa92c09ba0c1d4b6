//! A cheap look at a source before the Handlebars parser sees it.
//!
//! That parser recurses with every nested block, and its time is quadratic in nesting. So size, number of tags and
//! nesting are checked here, in one pass without recursion. What it cannot tell exactly it counts high, never low.

use crate::Limits;
use crate::error::CompileCode;

/// Why a source was refused, and the byte at which.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub offset: usize,
    pub code: CompileCode,
    pub message: String,
}

/// Brackets of one tag: subexpressions, literals and keys.
const MAX_BRACKETS: usize = 48;
/// Backslashes in a row, in which the parser's time is quadratic.
const MAX_BACKSLASHES: usize = 64;

/// Checks `source` against `limits` and returns the number of its tags, comments and escapes included.
pub(crate) fn scan(source: &str, limits: &Limits) -> Result<usize, Refusal> {
    if source.len() > limits.field_bytes {
        return refuse(
            0,
            CompileCode::TooLarge,
            format!("The source has {} bytes; shorten it to {}.", source.len(), limits.field_bytes),
        );
    }
    // Counted without regard to comments and strings, this bounds the parser even where the pass below is mistaken.
    let tags = source.matches("{{").count();
    if tags > limits.tags {
        return refuse(
            0,
            CompileCode::TooLarge,
            format!("There are more than {} tags; split the text or use fewer.", limits.tags),
        );
    }
    if let Some(offset) = source.find(&"\\".repeat(MAX_BACKSLASHES + 1)) {
        let message = format!("There are more than {MAX_BACKSLASHES} backslashes in a row; remove some.");
        return refuse(offset, CompileCode::TooLarge, message);
    }
    let mut blocks = Blocks::new(limits.nesting);
    let mut position = 0;
    while let Some(found) = source[position..].find("{{") {
        let start = position + found;
        let backslashes = source[position..start].bytes().rev().take_while(|&b| b == b'\\').count();
        let rest = &source[start..];
        position = if backslashes == 1 {
            start + if rest.starts_with("{{{{") { 4 } else { 2 }
        } else if rest.starts_with("{{{{") {
            let message = "Raw blocks are not offered; write `\\{{` to print braces.";
            return refuse(start, CompileCode::Unsupported, message.to_owned());
        } else if rest.starts_with("{{!") {
            comment_end(source, start)?
        } else {
            let end = tag_end(source, start)?;
            blocks.visit(source[start + 2..end - 2].trim_matches(['~', ' ', '\t', '\r', '\n']), start)?;
            end
        };
    }
    blocks.finish()?;
    Ok(tags)
}

fn refuse<T>(offset: usize, code: CompileCode, message: String) -> Result<T, Refusal> {
    Err(Refusal { offset, code, message })
}

/// The end of the comment at `start`. A comment that begins with `--` ends with `--}}` if there is one.
fn comment_end(source: &str, start: usize) -> Result<usize, Refusal> {
    let text = &source[start + 3..];
    if let Some(long) = text.trim_start().strip_prefix("--")
        && let Some(end) = long.find("--}}")
    {
        return Ok(source.len() - long.len() + end + 4);
    }
    match text.find("}}") {
        Some(end) => Ok(start + 3 + end + 2),
        None => refuse(start, CompileCode::Syntax, "This comment is never closed; add `}}`.".to_owned()),
    }
}

/// The end of the tag at `start`: the first `}}` outside of strings and of keys in square brackets.
fn tag_end(source: &str, start: usize) -> Result<usize, Refusal> {
    let bytes = source.as_bytes();
    let mut closer = None;
    let mut brackets = 0;
    let mut at = start + 2;
    while at < bytes.len() {
        let byte = bytes[at];
        if matches!(byte, b'(' | b'[' | b'{') {
            brackets += 1;
            if brackets > MAX_BRACKETS {
                let message = format!("This tag has more than {MAX_BRACKETS} brackets; simplify it.");
                return refuse(start, CompileCode::TooDeep, message);
            }
        }
        match closer {
            Some(quote) if byte == b'\\' && quote != b']' => at += 1,
            Some(quote) if byte == quote => closer = None,
            Some(_) => {}
            None if byte == b'"' || byte == b'\'' => closer = Some(byte),
            None if byte == b'[' => closer = Some(b']'),
            None if byte == b'}' && bytes.get(at + 1) == Some(&b'}') => {
                // Of `}}}` the last two close a tag that began with `{{{`.
                let triple = bytes.get(start + 2) == Some(&b'{') && bytes.get(at + 2) == Some(&b'}');
                return Ok(at + 2 + usize::from(triple));
            }
            None => {}
        }
        at += 1;
    }
    refuse(start, CompileCode::Syntax, "This tag is never closed; add `}}`.".to_owned())
}

/// The open blocks: name, offset and levels (one, and one more for each `{{else if}}`, which nests).
struct Blocks<'s> {
    open: Vec<(&'s str, usize, usize)>,
    depth: usize,
    max_depth: usize,
}

impl<'s> Blocks<'s> {
    fn new(max_depth: usize) -> Self {
        Self { open: Vec::new(), depth: 0, max_depth }
    }

    /// Takes the inside of a tag.
    fn visit(&mut self, inside: &'s str, offset: usize) -> Result<(), Refusal> {
        let first_word =
            |text: &'s str| text.trim_start().split([' ', '\t', '\r', '\n', '~', '(']).next().unwrap_or("");
        if let Some(block) = inside.strip_prefix('#') {
            let name = first_word(block);
            if name.starts_with(['*', '>']) {
                let message = "Inline partials and partial blocks are not offered; define `partials` instead.";
                return refuse(offset, CompileCode::Unsupported, message.to_owned());
            }
            self.deepen(offset)?;
            self.open.push((name, offset, 1));
        } else if let Some(close) = inside.strip_prefix('/') {
            let name = first_word(close);
            let Some((open, _, levels)) = self.open.pop() else {
                let message = format!("`{{{{/{name}}}}}` closes nothing; remove it or open the block before.");
                return refuse(offset, CompileCode::Syntax, message);
            };
            if open != name {
                let message =
                    format!("`{{{{#{open}}}}}` is open here, so write `{{{{/{open}}}}}` before `{{{{/{name}}}}}`.");
                return refuse(offset, CompileCode::Syntax, message);
            }
            self.depth -= levels;
        } else if let Some(chained) = inside.strip_prefix("else").or_else(|| inside.strip_prefix('^')) {
            if !chained.trim().is_empty()
                && let Some(block) = self.open.last_mut()
            {
                block.2 += 1;
                self.deepen(offset)?;
            }
        } else if inside.starts_with('*') {
            let message = "Decorators are not offered; remove this tag.";
            return refuse(offset, CompileCode::Unsupported, message.to_owned());
        }
        Ok(())
    }

    fn deepen(&mut self, offset: usize) -> Result<(), Refusal> {
        self.depth += 1;
        if self.depth > self.max_depth {
            let message = format!("Blocks are nested more than {} deep; flatten them.", self.max_depth);
            return refuse(offset, CompileCode::TooDeep, message);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), Refusal> {
        match self.open.pop() {
            None => Ok(()),
            Some((name, offset, _)) => {
                let message = format!("`{{{{#{name}}}}}` is never closed; add `{{{{/{name}}}}}`.");
                refuse(offset, CompileCode::Syntax, message)
            }
        }
    }
}
