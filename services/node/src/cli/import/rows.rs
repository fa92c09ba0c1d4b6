//! What a line says: a user or an edge, from CSV or JSON lines.

use serde_json::{Map, Value, json};

use crate::cli::exit::Failure;

/// What is imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Profiles.
    Users,
    /// Who follows whom.
    Edges,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A header, then a row a line; a field cannot span lines.
    Csv,
    /// A JSON object a line.
    Jsonl,
}

impl What {
    /// The fields of its CSV header.
    fn columns(self) -> &'static str {
        match self {
            Self::Users => "user_id, locale, time_zone, email, attributes.NAME, attributes and endpoints (JSON)",
            Self::Edges => "follower, followee",
        }
    }

    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Users => &["user_id"],
            Self::Edges => &["follower", "followee"],
        }
    }

    fn knows(self, column: &str) -> bool {
        match self {
            Self::Users => {
                matches!(column, "user_id" | "locale" | "time_zone" | "email" | "attributes" | "endpoints")
                    || column.strip_prefix("attributes.").is_some_and(|name| !name.is_empty())
            }
            Self::Edges => matches!(column, "follower" | "followee"),
        }
    }
}

/// Reads lines of one file.
pub enum Reader {
    /// With the header's columns.
    Csv(What, Vec<String>),
    /// An object a line.
    Jsonl(What),
}

impl Reader {
    /// A reader of CSV with this header.
    ///
    /// # Errors
    /// For a header that lacks a column or has one that is unknown.
    pub fn csv(what: What, header: &[u8]) -> Result<Self, Failure> {
        let wrong = |cause: String| {
            Failure::Usage(format!("the first line is no header: {cause}. The columns are {}", what.columns()))
        };
        let columns: Vec<String> = fields(header).map_err(wrong)?.iter().map(|name| name.trim().to_owned()).collect();
        if let Some(missing) = what.required().iter().find(|name| !columns.iter().any(|column| column == *name)) {
            return Err(wrong(format!("there is no column {missing}")));
        }
        if let Some((at, column)) = columns.iter().enumerate().find(|(_, column)| !what.knows(column)) {
            return Err(wrong(format!("column {} is {column:?}", at + 1)));
        }
        if let Some((_, twice)) = columns.iter().enumerate().find(|(at, column)| columns[..*at].contains(column)) {
            return Err(wrong(format!("{twice} is there twice")));
        }
        Ok(Self::Csv(what, columns))
    }

    /// What a line says; its refusal says why, without repeating the line.
    ///
    /// # Errors
    /// For a line that is no row.
    pub fn read(&self, line: &[u8]) -> Result<Value, String> {
        match self {
            Self::Csv(what, columns) => {
                let fields = fields(line)?;
                if fields.len() != columns.len() {
                    return Err(format!("it has {} fields, the header {}", fields.len(), columns.len()));
                }
                let row: Vec<(&str, String)> = columns.iter().map(String::as_str).zip(fields).collect();
                match what {
                    What::Users => user(row),
                    What::Edges => Ok(row.into_iter().map(|(name, id)| (name.to_owned(), Value::from(id))).collect()),
                }
            }
            Self::Jsonl(what) => {
                let text = std::str::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned())?;
                let value: Value = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
                let Some(object) = value.as_object() else { return Err("it is no JSON object".into()) };
                match what.required().iter().find(|name| !object.get(**name).is_some_and(Value::is_string)) {
                    Some(missing) => Err(format!("{missing} is missing or no text")),
                    None => Ok(value),
                }
            }
        }
    }
}

/// The fields of a line of CSV.
fn fields(line: &[u8]) -> Result<Vec<String>, String> {
    // A quote that is left open would take the following lines with it.
    if line.iter().filter(|byte| **byte == b'"').count() % 2 == 1 {
        return Err("a quote is not closed (a field cannot span lines)".into());
    }
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(line.len().max(16))
        .from_reader(line);
    let mut record = csv::ByteRecord::new();
    reader.read_byte_record(&mut record).map_err(|error| error.to_string())?;
    record
        .iter()
        .map(|field| std::str::from_utf8(field).map(str::to_owned).map_err(|_| "it is not UTF-8".to_owned()))
        .collect()
}

/// A user as `PUT` takes it. Empty fields are not set.
fn user(row: Vec<(&str, String)>) -> Result<Value, String> {
    let (mut user, mut attributes, mut endpoints) = (Map::new(), Map::new(), Vec::new());
    let parsed = |name: &str, text: &str| {
        serde_json::from_str::<Value>(text).map_err(|error| format!("{name} is not JSON: {error}"))
    };
    for (column, text) in row.into_iter().filter(|(_, text)| !text.is_empty()) {
        match column {
            "email" => endpoints.push(json!({"channel": "email", "address": text})),
            "endpoints" => match parsed(column, &text)? {
                Value::Array(given) => endpoints.extend(given),
                _ => return Err("endpoints is no JSON list".into()),
            },
            "attributes" => match parsed(column, &text)? {
                Value::Object(given) => attributes.extend(given),
                _ => return Err("attributes is no JSON object".into()),
            },
            column => match column.strip_prefix("attributes.") {
                Some(name) => drop(attributes.insert(name.to_owned(), text.into())),
                None => drop(user.insert(column.to_owned(), text.into())),
            },
        }
    }
    if !user.contains_key("user_id") {
        return Err("user_id is empty".into());
    }
    user.insert("attributes".into(), attributes.into());
    user.insert("endpoints".into(), endpoints.into());
    Ok(user.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_becomes_a_user() {
        let reader = Reader::csv(What::Users, b"user_id,email,attributes.plan,attributes,locale").unwrap();
        let user = reader.read(br#"u1,"a,b@example.org",pro,"{""n"": 3}","#).unwrap();
        let wanted = json!({
            "user_id": "u1", "attributes": {"plan": "pro", "n": 3},
            "endpoints": [{"channel": "email", "address": "a,b@example.org"}]
        });
        assert_eq!(user, wanted);
    }

    #[test]
    fn garbage_is_told_from_rows() {
        let csv = Reader::csv(What::Edges, b"follower,followee").unwrap();
        let said = |line: &[u8]| csv.read(line).unwrap_err();
        assert!(said(b"a").contains("1 fields") && said(b"a,b,c").contains("3 fields"));
        assert!(said(b"\"a,b").contains("quote") && said(b"\xff,b").contains("UTF-8"));
        let jsonl = Reader::Jsonl(What::Users);
        let said = |line: &[u8]| jsonl.read(line).unwrap_err();
        assert!(said(b"{\"user_id\": ").contains("not JSON") && said(b"[1]").contains("no JSON object"));
        assert!(said(b"{\"user_id\": 5}").contains("user_id") && said(b"\xff").contains("UTF-8"));
    }

    #[test]
    fn a_header_is_checked() {
        let said = |header: &str| match Reader::csv(What::Users, header.as_bytes()) {
            Err(failure) => failure.to_string(),
            Ok(_) => panic!("{header:?} was taken"),
        };
        assert!(said("id,email").contains("no column user_id"));
        assert!(said("user_id,emial").contains("emial"));
        assert!(said("user_id,user_id").contains("twice"));
    }
}
