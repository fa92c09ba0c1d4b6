//! Sends batches, and finds the lines that the server refuses.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::rows::What;
use crate::cli::{client::Client, exit::Failure};

/// How long a server may be away before the import stops.
const PATIENCE: Duration = Duration::from_secs(120);

/// Some lines of a file.
#[derive(Debug, Default)]
pub struct Batch {
    /// Rows with their line numbers.
    pub rows: Vec<(u64, Value)>,
    /// Lines that are no rows, with the reason.
    pub refused: Vec<(u64, String)>,
    /// The last line.
    pub line: u64,
    /// Where the next one begins, in bytes.
    pub offset: u64,
    /// Whether everything before must be stored first: a user of it is in a batch before.
    pub waits: bool,
}

/// A batch that the server has answered.
pub struct Sent {
    /// Rows that were taken.
    pub imported: u64,
    /// Lines that were refused, in order.
    pub refused: Vec<(u64, String)>,
    /// The last line.
    pub line: u64,
    /// Where the next one begins, in bytes.
    pub offset: u64,
}

/// Sends a batch. Rows that make the server refuse the whole are found by halving it.
///
/// # Errors
/// For what is wrong with all of them: the key, the scope, a server that is away.
pub async fn send(client: Client, what: What, batch: Batch) -> Result<Sent, Failure> {
    let Batch { rows, mut refused, line, offset, .. } = batch;
    let mut imported = 0;
    let mut open = vec![rows];
    while let Some(mut rows) = open.pop() {
        if rows.is_empty() {
            continue;
        }
        match call(&client, what, &rows).await {
            Ok(answer) => {
                let errors = answer["results"].as_array().map_or(&[][..], Vec::as_slice);
                let mut failed = 0;
                for ((line, _), result) in rows.iter().zip(errors).filter(|(_, result)| !result["error"].is_null()) {
                    refused.push((*line, reason(&result["error"])));
                    failed += 1;
                }
                imported += rows.len() as u64 - failed;
            }
            Err(Failure::Refused { status: 400 | 413 | 422, problem }) => match rows.as_slice() {
                [(line, _)] => refused.push((*line, reason(&problem))),
                _ => {
                    let rest = rows.split_off(rows.len() / 2);
                    open.push(rest);
                    open.push(rows);
                }
            },
            Err(failure) => return Err(failure),
        }
    }
    refused.sort_by_key(|(line, _)| *line);
    Ok(Sent { imported, refused, line, offset })
}

/// One call, repeated while the server is away: storing the same again changes nothing.
async fn call(client: &Client, what: What, rows: &[(u64, Value)]) -> Result<Value, Failure> {
    let list: Vec<&Value> = rows.iter().map(|(_, row)| row).collect();
    let (path, body) = match what {
        What::Users => ("/v1/users:batch", json!({ "users": list })),
        What::Edges => ("/v1/follows", json!({ "edges": list })),
    };
    let begun = Instant::now();
    let mut wait = Duration::from_millis(100);
    loop {
        match client.post(path, &body).await {
            Err(Failure::Unreachable { .. } | Failure::Refused { status: 429 | 503, .. })
                if begun.elapsed() < PATIENCE =>
            {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(5));
            }
            answered => return answered,
        }
    }
}

/// A problem as a reason: what is wrong with which field.
fn reason(problem: &Value) -> String {
    let errors = problem["errors"].as_array().map_or(&[][..], Vec::as_slice);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match errors {
        [] => text(&problem["detail"]),
        errors => {
            let told = errors.iter().map(|error| match text(&error["field"]) {
                field if field.is_empty() => text(&error["detail"]),
                field => format!("{field}: {}", text(&error["detail"])),
            });
            told.collect::<Vec<_>>().join("; ")
        }
    }
}
