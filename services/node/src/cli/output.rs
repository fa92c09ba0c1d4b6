//! What commands print: JSON for programs, tables for people.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::exit::Failure;

/// Prints a document: as JSON, or as people read it.
///
/// # Errors
/// If the output cannot be written.
pub fn print(json: bool, document: &Value, human: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
    match json {
        true => say(&serde_json::to_string_pretty(document).map_err(anyhow::Error::from)?),
        false => say(&human(document)),
    }
}

/// Prints a line or several.
///
/// # Errors
/// If the output cannot be written.
pub fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    Ok(out.flush()?)
}

/// A table; numbers stand right.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| heading.to_uppercase()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table of a list: each heading with the field it shows.
    pub fn of(entries: &[Value], columns: &[(&str, &str)]) -> Self {
        let mut table = Self::new(&columns.iter().map(|(heading, _)| *heading).collect::<Vec<_>>());
        for entry in entries {
            table.row(columns.iter().map(|(_, field)| cell(&entry[*field])).collect());
        }
        table
    }

    /// The table as text; says so where it has no rows.
    pub fn text(&self) -> String {
        if self.rows.len() < 2 {
            return "(none)".into();
        }
        let columns = self.rows[0].len();
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let is_number = |column: usize| {
            let number = |text: &String| text.is_empty() || text.parse::<f64>().is_ok();
            self.rows[1..].iter().all(|row| number(&row[column]))
        };
        let layout: Vec<(usize, bool)> = (0..columns).map(|column| (width(column), is_number(column))).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&layout).map(|(cell, (width, right))| match right {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            });
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// A value as a cell: texts as they are, lists with commas, objects as `name=value`, nothing for
/// null.
pub fn cell(value: &Value) -> String {
    // Control characters of data must not reach the terminal.
    let plain = |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    match value {
        Value::Null => String::new(),
        Value::String(text) => plain(text),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(fields) => {
            let set = fields.iter().filter(|(_, value)| !value.is_null());
            set.map(|(name, value)| format!("{}={}", plain(name), cell(value))).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

/// One `name value` line a field, for a single thing.
pub fn fields(document: &Value) -> String {
    let Some(fields) = document.as_object() else { return cell(document) };
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    let line =
        |(name, value): (&String, &Value)| format!("{name:<width$}  {}", cell(value)).trim_end().to_owned() + "\n";
    fields.iter().map(line).collect()
}

/// A progress bar, on a terminal only.
pub fn progress(total: u64, json: bool, unit: &str) -> ProgressBar {
    let hidden = json || !std::io::stderr().is_terminal();
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let template = format!("{{bar:30}} {{human_pos}}/{{human_len}} {unit} {{msg}} {{eta}}");
    // The template is ours; one that does not parse would show the default bar.
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(total), target).with_style(style)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_line_up_and_numbers_stand_right() {
        let entries = [json!({"id": "a", "n": 5, "when": null}), json!({"id": "long", "n": 120, "when": "x"})];
        let table = Table::of(&entries, &[("id", "id"), ("count", "n"), ("when", "when")]);
        assert_eq!(table.text(), "ID    COUNT  WHEN\na         5\nlong    120  x\n");
        assert_eq!(Table::of(&[], &[("id", "id")]).text(), "(none)");
    }

    #[test]
    fn what_a_terminal_would_obey_does_not_reach_it() {
        assert_eq!(cell(&json!("a\u{1b}[2Jb\n")), "a [2Jb ");
        assert_eq!(cell(&json!({"email": [1, 2], "push": null})), "email=1,2");
    }
}
