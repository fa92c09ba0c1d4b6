//! Writing values, bounded and escaped for their place.

use std::fmt::Write as _;

use serde_json::Value;

use crate::Limits;
use crate::error::{DataProblem, LimitKind};
use crate::program::Escape;

/// Why an evaluation ended early.
#[derive(Debug)]
pub(crate) enum Fail {
    Data(String, DataProblem),
    Limit(LimitKind),
}

impl Fail {
    pub(crate) fn missing(label: &str) -> Box<Self> {
        Box::new(Self::Data(label.to_owned(), DataProblem::Missing))
    }
}

/// Boxed, so that the good case stays small.
pub(crate) type Outcome<T> = Result<T, Box<Fail>>;

/// What one message may still cost.
#[derive(Debug)]
pub(crate) struct Meter {
    output_bytes: usize,
    iterations: u32,
    work_units: usize,
}

impl Meter {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { output_bytes: limits.output_bytes, iterations: limits.iterations, work_units: limits.work_units }
    }

    #[inline]
    pub(crate) fn step(&mut self) -> Outcome<()> {
        self.steps(1)
    }

    /// Pays for a look at `bytes`.
    pub(crate) fn look_at(&mut self, bytes: usize) -> Outcome<()> {
        self.steps(bytes / 16)
    }

    #[inline]
    pub(crate) fn steps(&mut self, count: usize) -> Outcome<()> {
        match self.work_units.checked_sub(count) {
            Some(left) => self.work_units = left,
            None => return Err(Box::new(Fail::Limit(LimitKind::WorkUnits))),
        }
        Ok(())
    }

    pub(crate) fn iterate(&mut self) -> Outcome<()> {
        match self.iterations.checked_sub(1) {
            Some(left) => self.iterations = left,
            None => return Err(Box::new(Fail::Limit(LimitKind::Iterations))),
        }
        Ok(())
    }

    #[inline]
    fn write(&mut self, bytes: usize) -> Outcome<()> {
        match self.output_bytes.checked_sub(bytes) {
            Some(left) => self.output_bytes = left,
            None => return Err(Box::new(Fail::Limit(LimitKind::OutputBytes))),
        }
        Ok(())
    }
}

/// A bounded writer that appends to a buffer.
pub(crate) struct Output<'o> {
    pub buffer: &'o mut String,
    pub meter: &'o mut Meter,
}

impl Output<'_> {
    /// Appends `text` as it is.
    #[inline]
    pub(crate) fn push(&mut self, text: &str) -> Outcome<()> {
        self.meter.write(text.len())?;
        self.buffer.push_str(text);
        Ok(())
    }

    /// Appends a string value, escaped. `label` names it in errors.
    #[inline]
    pub(crate) fn string(&mut self, text: &str, escape: Escape, label: &str) -> Outcome<()> {
        match escape {
            Escape::None => self.push(text),
            Escape::Html => self.escaped(text, html_entity),
            Escape::JsonString => self.escaped(text, json_escape),
            Escape::JsonValue => {
                self.push("\"")?;
                self.escaped(text, json_escape)?;
                self.push("\"")
            }
            Escape::Header if text.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) => {
                Err(Box::new(Fail::Data(label.to_owned(), DataProblem::LineBreak)))
            }
            Escape::Header => self.push(text),
        }
    }

    /// Appends a value as handlebars prints it, or as JSON where JSON is wanted.
    pub(crate) fn value(&mut self, value: &Value, escape: Escape, label: &str) -> Outcome<()> {
        match value {
            Value::String(text) => self.string(text, escape, label),
            Value::Bool(flag) => self.push(if *flag { "true" } else { "false" }),
            Value::Null if escape == Escape::JsonValue => self.push("null"),
            Value::Null => Ok(()),
            Value::Number(number) => self.display(number),
            Value::Array(items) => {
                self.push("[")?;
                let separator = if escape == Escape::JsonValue { "," } else { ", " };
                for (index, item) in items.iter().enumerate() {
                    self.meter.step()?;
                    self.push(if index == 0 { "" } else { separator })?;
                    self.value(item, escape, label)?;
                }
                self.push("]")
            }
            Value::Object(fields) if escape == Escape::JsonValue => {
                self.push("{")?;
                for (index, (name, item)) in fields.iter().enumerate() {
                    self.meter.step()?;
                    self.push(if index == 0 { "" } else { "," })?;
                    self.string(name, escape, label)?;
                    self.push(":")?;
                    self.value(item, escape, label)?;
                }
                self.push("}")
            }
            Value::Object(_) => self.push("[object]"),
        }
    }

    /// Appends a number.
    pub(crate) fn display(&mut self, number: &impl std::fmt::Display) -> Outcome<()> {
        let before = self.buffer.len();
        // Writing to a string cannot fail.
        let _ = write!(self.buffer, "{number}");
        self.meter.write(self.buffer.len() - before)
    }

    #[inline]
    fn escaped(&mut self, text: &str, entity: impl Fn(u8) -> Option<&'static str>) -> Outcome<()> {
        let mut written = 0;
        for (at, byte) in text.bytes().enumerate() {
            if let Some(entity) = entity(byte) {
                self.push(&text[written..at])?;
                self.push(entity)?;
                written = at + 1;
            }
        }
        self.push(&text[written..])
    }
}

/// The entities of the handlebars crate and of Handlebars.js.
#[inline]
fn html_entity(byte: u8) -> Option<&'static str> {
    Some(match byte {
        b'<' => "&lt;",
        b'>' => "&gt;",
        b'"' => "&quot;",
        b'&' => "&amp;",
        b'\'' => "&#x27;",
        b'`' => "&#x60;",
        b'=' => "&#x3D;",
        _ => return None,
    })
}

/// RFC 8259, section 7.
#[inline]
pub(crate) fn json_escape(byte: u8) -> Option<&'static str> {
    const CONTROL: [&str; 32] = [
        "\\u0000", "\\u0001", "\\u0002", "\\u0003", "\\u0004", "\\u0005", "\\u0006", "\\u0007", "\\b", "\\t", "\\n",
        "\\u000b", "\\f", "\\r", "\\u000e", "\\u000f", "\\u0010", "\\u0011", "\\u0012", "\\u0013", "\\u0014",
        "\\u0015", "\\u0016", "\\u0017", "\\u0018", "\\u0019", "\\u001a", "\\u001b", "\\u001c", "\\u001d", "\\u001e",
        "\\u001f",
    ];
    match byte {
        b'"' => Some("\\\""),
        b'\\' => Some("\\\\"),
        control => CONTROL.get(usize::from(control)).copied(),
    }
}
