//! `herald dlq`: dead letters.

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    client::{Client, Connect, Query, segment},
    exit::Failure,
    output::{self, Table, cell, fields, print},
    terms,
};

const FILTER: [&str; 3] = ["tenant", "stage", "cause"];

/// Dead letters: what could not be processed or delivered, kept for 30 days (operators).
#[derive(Debug, Args)]
pub struct Dlq {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lists dead letters, oldest first.
    List {
        /// tenant=, stage= and cause=, which must all hold.
        filter: Vec<String>,
        /// Since then: RFC 3339, or a span such as 2h.
        #[arg(long)]
        since: Option<String>,
        /// At most so many; 0 for all.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Shows a dead letter and what its record holds, without addresses and texts.
    Show {
        /// The letter.
        id: String,
    },
    /// Sends dead letters on their way again, each once, with their whole ttl before them.
    Redrive(Redrive),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).multiple(true).args(["what", "all", "since"])))]
struct Redrive {
    /// Letters by id, or tenant=, stage= and cause=, which must all hold.
    what: Vec<String>,
    /// Every letter there is.
    #[arg(long, conflicts_with = "what")]
    all: bool,
    /// Only letters since then: RFC 3339, or a span such as 2h.
    #[arg(long)]
    since: Option<String>,
    /// Says what would be redriven, and does nothing.
    #[arg(long)]
    dry_run: bool,
    /// At most so many messages a second.
    #[arg(long)]
    per_second: Option<u32>,
    /// Also letters that were redriven before: their messages are sent once more, and counted as new ones.
    #[arg(long)]
    again: bool,
    /// Does not wait until it is done.
    #[arg(long)]
    no_wait: bool,
}

impl Dlq {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let json = self.connect.json;
        let client = self.connect.operator()?;
        match self.action {
            Action::List { filter, since, limit } => {
                let filter = terms::object(&filter, &FILTER)?;
                let text = |name: &str| filter.get(name).and_then(Value::as_str);
                let query = Query::default()
                    .with_some("tenant_id", text("tenant"))
                    .with_some("stage", text("stage"))
                    .with_some("cause", text("cause"))
                    .with_some("since", since.as_deref().map(terms::moment).transpose()?.as_deref());
                let letters = client.list("/v1/admin/dead-letters", &query, "dead_letters", limit).await?;
                print(json, &json!({ "dead_letters": letters }), |_| {
                    let columns = [
                        ("id", "id"),
                        ("dead at", "dead_at"),
                        ("tenant", "tenant_id"),
                        ("stage", "stage"),
                        ("cause", "cause"),
                        ("detail", "detail"),
                        ("attempts", "attempts"),
                        ("messages", "instances"),
                        ("redriven", "redriven"),
                    ];
                    Table::of(&letters, &columns).text()
                })
            }
            Action::Show { id } => {
                let letter = client.get(&format!("/v1/admin/dead-letters/{}", segment(&id))).await?;
                print(json, &letter, letter_text)
            }
            Action::Redrive(args) => redrive(&client, &args, json).await,
        }
    }
}

async fn redrive(client: &Client, args: &Redrive, json: bool) -> Result<(), Failure> {
    let (terms, ids): (Vec<String>, Vec<String>) = args.what.iter().cloned().partition(|word| word.contains('='));
    if !terms.is_empty() && !ids.is_empty() {
        return Err(Failure::Usage("name letters by id or by a filter, not both".into()));
    }
    let mut body: Map<String, Value> = Map::new();
    for (name, value) in terms::object(&terms, &FILTER)? {
        body.insert(if name == "tenant" { "tenant_id".into() } else { name }, value);
    }
    if !ids.is_empty() {
        body.insert("ids".into(), json!(ids));
    }
    for (name, set) in [("all", args.all), ("dry_run", args.dry_run), ("again", args.again)] {
        if set {
            body.insert(name.into(), true.into());
        }
    }
    if let Some(since) = args.since.as_deref() {
        body.insert("since".into(), terms::moment(since)?.into());
    }
    if let Some(per_second) = args.per_second {
        body.insert("per_second".into(), per_second.into());
    }
    let mut redrive = client.post("/v1/admin/dead-letters:redrive", &body.into()).await?;
    if !args.no_wait && redrive["state"] == "running" {
        redrive = wait(client, redrive, json).await?;
    }
    print(json, &redrive, redrive_text)
}

/// Waits until a redrive is done. It goes on without this command too.
async fn wait(client: &Client, mut redrive: Value, json: bool) -> Result<Value, Failure> {
    let path = format!("/v1/admin/redrives/{}", segment(redrive["redrive_id"].as_str().unwrap_or_default()));
    let bar = output::progress(redrive["matched"].as_u64().unwrap_or(0), json, "letters");
    while redrive["state"] == "running" {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let matched = redrive["matched"].take();
        redrive = client.get(&path).await?;
        redrive["matched"] = matched;
        bar.set_position(redrive["redriven"].as_u64().unwrap_or(0) + redrive["skipped"].as_u64().unwrap_or(0));
    }
    bar.finish_and_clear();
    Ok(redrive)
}

fn redrive_text(redrive: &Value) -> String {
    let count = |name: &str| cell(&redrive[name]);
    match redrive["state"].as_str() {
        Some("dry_run") => {
            format!(
                "Would redrive {} letters with {} messages; nothing was done.",
                count("matched"),
                count("instances")
            )
        }
        Some("complete") => format!(
            "Redriven: {} letters with {} messages. Left alone: {} (redriven before, gone, or cancelled).",
            count("redriven"),
            count("instances"),
            count("skipped")
        ),
        _ => format!("Redrive {} of {} letters is under way.", count("redrive_id"), count("matched")),
    }
}

fn letter_text(letter: &Value) -> String {
    let mut head = letter.clone();
    let record = head.as_object_mut().and_then(|head| head.remove("record")).unwrap_or(Value::Null);
    let sections = record["sections"].as_array().map_or(&[][..], Vec::as_slice);
    let columns = [
        ("request", "request_id"),
        ("tenant", "tenant_id"),
        ("template", "template_id"),
        ("channel", "channel"),
        ("messages", "instances"),
        ("instances", "instance_ids"),
    ];
    format!("{}\n{}", fields(&head), Table::of(sections, &columns).text())
}
