//! `herald notify`, `status`, `receipts` and `cancel`.

use std::{io::Read, path::Path, time::Duration};

use anyhow::Context;
use clap::{ArgGroup, Args};
use http::Method;
use serde_json::{Map, Value, json};

use super::{
    client::{Client, Connect, Query, segment},
    exit::Failure,
    output::{self, Table, cell, print, say},
    terms,
};

/// Calls under one idempotency key before no answer is taken for an answer.
const NOTIFY_ATTEMPTS: u32 = 5;

/// Sends a notification.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("audience").required(true).args(
    ["user", "followers_of", "topic", "segment", "everyone", "body"]
)))]
pub struct Notify {
    /// The template.
    #[arg(required_unless_present = "body")]
    template: Option<String>,
    /// A recipient; may be repeated.
    #[arg(long)]
    user: Vec<String>,
    /// The followers of this user.
    #[arg(long)]
    followers_of: Option<String>,
    /// The subscribers of this topic.
    #[arg(long)]
    topic: Option<String>,
    /// The users of a segment, such as 'plan = "pro"'.
    #[arg(long)]
    segment: Option<String>,
    /// Every registered user of the tenant.
    #[arg(long)]
    everyone: bool,
    /// The whole body of the call as JSON instead: a file, or - for standard input.
    #[arg(long, conflicts_with_all = [
        "template", "data", "channel", "actor", "dedupe_key", "priority", "ttl", "send_at", "template_version",
    ])]
    body: Option<String>,
    /// The data as a JSON object; @FILE reads it from a file.
    #[arg(long)]
    data: Option<String>,
    /// Only these of the template's channels; may be repeated.
    #[arg(long)]
    channel: Vec<String>,
    /// Who caused it.
    #[arg(long)]
    actor: Option<String>,
    /// One message a person and key within the template's window.
    #[arg(long)]
    dedupe_key: Option<String>,
    /// transactional or bulk.
    #[arg(long)]
    priority: Option<String>,
    /// How long it is worth sending, such as 3600s.
    #[arg(long)]
    ttl: Option<String>,
    /// Not before this time (RFC 3339).
    #[arg(long)]
    send_at: Option<String>,
    /// A version other than the live one.
    #[arg(long)]
    template_version: Option<u32>,
    /// The call's key; drawn unless given, so that a lost answer is asked for again without sending twice.
    #[arg(long)]
    idempotency_key: Option<String>,
    /// Follows the request until it is complete.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    connect: Connect,
}

impl Notify {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let body = self.request()?;
        let client = self.connect.client()?;
        let key = self.idempotency_key.clone().unwrap_or_else(|| format!("cli-{}", uuid::Uuid::now_v7()));
        let accepted = send(&client, &body, &key).await?;
        let id = accepted["request_id"].as_str().unwrap_or_default().to_owned();
        if self.watch {
            return watch(&client, &id, self.connect.json).await;
        }
        print(self.connect.json, &accepted, |accepted| {
            let before = if accepted["deduplicated"] == true { " (before: this key was used)" } else { "" };
            format!("Accepted{before}: {id}\nFollow it with: herald status {id} --watch")
        })
    }

    fn request(&self) -> Result<Value, Failure> {
        if let Some(source) = &self.body {
            return read_json(source);
        }
        let audience = match self {
            _ if !self.user.is_empty() => json!({ "users": self.user }),
            Self { followers_of: Some(user), .. } => json!({ "followers_of": user }),
            Self { topic: Some(topic), .. } => json!({ "topic": topic }),
            Self { segment: Some(segment), .. } => json!({ "segment": segment }),
            _ => json!({ "everyone": true }),
        };
        let data = match self.data.as_deref() {
            Some(text) if text.starts_with('@') => Some(read_json(&text[1..])?),
            Some(text) => Some(parse_json("--data", text)?),
            None => None,
        };
        let texts = [
            ("template_id", &self.template),
            ("actor_id", &self.actor),
            ("dedupe_key", &self.dedupe_key),
            ("priority", &self.priority),
            ("ttl", &self.ttl),
            ("send_at", &self.send_at),
        ];
        let mut body: Map<String, Value> =
            texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text.clone()?.into()))).collect();
        body.insert("audience".into(), audience);
        body.extend(data.map(|data| ("data".to_owned(), data)));
        body.extend(self.template_version.map(|version| ("template_version".to_owned(), version.into())));
        if !self.channel.is_empty() {
            body.insert("channels".into(), json!(self.channel));
        }
        Ok(body.into())
    }
}

/// Sends under a key; what got no answer is repeated, since the key makes that safe.
async fn send(client: &Client, body: &Value, key: &str) -> Result<Value, Failure> {
    let mut attempt = 1;
    loop {
        let failure = match client.call(Method::POST, "/v1/notify", Some(body), Some(key)).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        let open = match &failure {
            // Refused connections carried nothing, so nobody need wait.
            Failure::Unreachable { cause, .. } => !cause.contains("refused"),
            Failure::Refused { status, problem } => *status == 503 || problem["code"] == "idempotency_key_in_flight",
            _ => false,
        };
        if !open || attempt == NOTIFY_ATTEMPTS {
            return Err(failure);
        }
        tokio::time::sleep(Duration::from_millis(250 << attempt)).await;
        attempt += 1;
    }
}

/// Shows what became of a request, or lists the newest ones.
#[derive(Debug, Args)]
pub struct Status {
    /// The request; without it the tenant's newest requests are listed.
    request_id: Option<String>,
    /// Follows the request until it is complete or cancelled.
    #[arg(long, requires = "request_id")]
    watch: bool,
    /// Lists only requests in this state.
    #[arg(long, conflicts_with = "request_id")]
    state: Option<String>,
    /// Lists only requests of this template.
    #[arg(long, conflicts_with = "request_id")]
    template: Option<String>,
    /// Lists only requests since then: RFC 3339, or a span such as 2h.
    #[arg(long, conflicts_with = "request_id")]
    since: Option<String>,
    /// Lists at most so many; 0 for all.
    #[arg(long, default_value_t = 20, conflicts_with = "request_id")]
    limit: usize,
    #[command(flatten)]
    connect: Connect,
}

impl Status {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.connect.client()?;
        let Some(id) = &self.request_id else { return self.list(&client).await };
        if self.watch {
            return watch(&client, id, self.connect.json).await;
        }
        let status = client.get(&format!("/v1/status/{}", segment(id))).await?;
        print(self.connect.json, &status, status_text)
    }

    async fn list(&self, client: &Client) -> Result<(), Failure> {
        let query = Query::default()
            .with_some("state", self.state.as_deref())
            .with_some("template_id", self.template.as_deref())
            .with_some("since", self.since.as_deref().map(terms::moment).transpose()?.as_deref());
        let requests = client.list("/v1/requests", &query, "requests", self.limit).await?;
        print(self.connect.json, &json!({ "requests": requests }), |_| {
            let mut table =
                Table::new(&["request", "state", "template", "created", "accepted", "delivered", "in flight"]);
            for request in &requests {
                let instances = &request["instances"];
                let cells =
                    [&request["request_id"], &request["state"], &request["template_id"], &request["created_at"]];
                let counts = ["accepted", "delivered", "in_flight"].map(|name| &instances[name]);
                table.row(cells.into_iter().chain(counts).map(cell).collect());
            }
            table.text()
        })
    }
}

/// Follows a request until nothing more will happen to it; prints what changes, or one bar on a terminal.
async fn watch(client: &Client, id: &str, json: bool) -> Result<(), Failure> {
    let path = format!("/v1/status/{}", segment(id));
    let bar = output::progress(0, json, "instances");
    let mut last = Value::Null;
    let mut wait = Duration::from_millis(100);
    loop {
        let status = client.get(&path).await?;
        let count = |name: &str| status["instances"][name].as_u64().unwrap_or(0);
        let state = status["state"].as_str().unwrap_or_default().to_owned();
        bar.set_length(count("accepted"));
        bar.set_position(count("accepted") - count("in_flight").min(count("accepted")));
        bar.set_message(state.clone());
        let over = matches!(state.as_str(), "complete" | "cancelled");
        if over {
            bar.finish_and_clear();
        }
        if json && status != last {
            say(&status.to_string())?;
        } else if over {
            say(&status_text(&status))?;
        } else if status["state"] != last["state"] && bar.is_hidden() {
            say(&format!("{state}: {} accepted, {} in flight", count("accepted"), count("in_flight")))?;
        }
        if over {
            return Ok(());
        }
        last = status;
        tokio::time::sleep(wait).await;
        wait = (wait * 3 / 2).min(Duration::from_secs(1));
    }
}

/// The books of a request, a row a channel.
fn status_text(status: &Value) -> String {
    let mut table = Table::new(&["channel", "accepted", "delivered", "suppressed", "failed", "dead", "in flight"]);
    let mut reasons = String::new();
    let mut row = |name: &str, counts: &Value| {
        let suppressed = counts["suppressed"].as_object();
        let sum: u64 = suppressed.into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
        let number = |name: &str| counts[name].as_u64().unwrap_or(0).to_string();
        table.row(vec![
            name.to_owned(),
            number("accepted"),
            number("delivered"),
            sum.to_string(),
            number("failed"),
            number("dead"),
            number("in_flight"),
        ]);
    };
    for (channel, counts) in status["by_channel"].as_object().into_iter().flatten() {
        row(channel, counts);
    }
    row("total", &status["instances"]);
    for (reason, count) in status["instances"]["suppressed"].as_object().into_iter().flatten() {
        reasons.push_str(&format!("suppressed, {reason}: {count}\n"));
    }
    let recipients = &status["recipients"];
    let more = if recipients["complete"] == true { "" } else { " so far" };
    let books = match (status["state"].as_str(), status["books_balanced"].as_bool()) {
        (Some("complete"), Some(true)) => "\nThe books balance: everything accepted has ended, exactly once.",
        _ => "",
    };
    format!(
        "{} is {}; {} recipients{more}\n\n{}{reasons}{books}",
        cell(&status["request_id"]),
        cell(&status["state"]),
        cell(&recipients["expanded"]),
        table.text()
    )
}

/// Lists what became of each message.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("of").required(true).args(["request", "user"])))]
pub struct Receipts {
    /// Of this request.
    #[arg(value_name = "REQUEST_ID")]
    request: Option<String>,
    /// Of this user, within 24 hours, newest first.
    #[arg(long)]
    user: Option<String>,
    /// Since then: RFC 3339, or a span such as 2h.
    #[arg(long)]
    since: Option<String>,
    /// Before then (RFC 3339).
    #[arg(long)]
    until: Option<String>,
    /// Only on this channel.
    #[arg(long)]
    channel: Option<String>,
    /// Only delivered, suppressed, failed or dead ones.
    #[arg(long)]
    state: Option<String>,
    /// At most so many; 0 for all.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    connect: Connect,
}

/// Whether a moment is more than a day ago: a minute more, so that `24h`, which was counted back just now, is not.
fn is_over_a_day_ago(moment: &str) -> bool {
    let day = jiff::SignedDuration::from_mins(24 * 60 + 1);
    moment.parse().is_ok_and(|at: jiff::Timestamp| jiff::Timestamp::now().duration_since(at) > day)
}

impl Receipts {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let since = self.since.as_deref().map(terms::moment).transpose()?;
        if self.user.is_some() && self.until.is_none() && since.as_deref().is_some_and(is_over_a_day_ago) {
            let wanted = "receipts of a user are shown for 24 hours: name the end too, with --until";
            return Err(Failure::Usage(format!("--since is further back than that, and {wanted}")));
        }
        let query = Query::default()
            .with_some("request_id", self.request.as_deref())
            .with_some("user_id", self.user.as_deref())
            .with_some("since", since.as_deref())
            .with_some("until", self.until.as_deref())
            .with_some("channel", self.channel.as_deref())
            .with_some("state", self.state.as_deref());
        let client = self.connect.client()?;
        let receipts = client.list("/v1/receipts", &query, "receipts", self.limit).await?;
        print(self.connect.json, &json!({ "receipts": receipts }), |_| {
            let columns = [
                ("ended", "updated_at"),
                ("user", "user_id"),
                ("channel", "channel"),
                ("state", "state"),
                ("reason", "reason"),
                ("attempts", "attempts"),
                ("provider", "provider"),
                ("error", "error_code"),
                ("ms", "latency_ms"),
                ("request", "request_id"),
            ];
            Table::of(&receipts, &columns).text()
        })
    }
}

/// Cancels a request, or all that were admitted under a dedupe key. The counts are right at once; the receipts of what waited
/// appear when it would have been sent.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["request", "dedupe_key"])))]
pub struct Cancel {
    /// The request.
    #[arg(value_name = "REQUEST_ID")]
    request: Option<String>,
    /// All requests with this dedupe key.
    #[arg(long)]
    dedupe_key: Option<String>,
    /// Of this template only.
    #[arg(long, requires = "dedupe_key")]
    template: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

impl Cancel {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let texts = [("request_id", &self.request), ("dedupe_key", &self.dedupe_key), ("template_id", &self.template)];
        let body: Map<String, Value> =
            texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text.clone()?.into()))).collect();
        let answer = self.connect.client()?.post("/v1/cancel", &body.into()).await?;
        print(self.connect.json, &answer, |answer| {
            let requests = answer["requests"].as_array().map_or(&[][..], Vec::as_slice);
            let table = Table::of(requests, &[("request", "request_id"), ("state", "state")]).text();
            format!("{table}\nThe counts are exact once the state is cancelled: herald status REQUEST_ID --watch")
        })
    }
}

/// JSON from a file, or from standard input for `-`.
///
/// # Errors
/// If it cannot be read or is not JSON, with line and column.
pub fn read_json(source: &str) -> Result<Value, Failure> {
    let text = match source {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("standard input cannot be read")?;
            text
        }
        path => std::fs::read_to_string(Path::new(path)).with_context(|| format!("{path} cannot be read"))?,
    };
    parse_json(if source == "-" { "standard input" } else { source }, &text)
}

/// JSON from a text.
///
/// # Errors
/// If it is not JSON, with line and column.
pub fn parse_json(what: &str, text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::Usage(format!("{what} is not JSON: {error}")))
}
