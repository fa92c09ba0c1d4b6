//! `herald template`.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    client::{Connect, Query, segment},
    exit::Failure,
    notify::{parse_json, read_json},
    output::{Table, cell, print},
};

/// Message templates.
#[derive(Debug, Args)]
pub struct Template {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Stores a new version, and makes it live unless --draft.
    Put {
        /// The template.
        template_id: String,
        /// The template as JSON: a file, or - for standard input.
        file: String,
        /// Keeps the version as a draft.
        #[arg(long)]
        draft: bool,
    },
    /// Lists the templates.
    List {
        /// At most so many; 0 for all.
        #[arg(long, default_value_t = 0)]
        limit: usize,
    },
    /// Shows a version: the live one unless said.
    Show {
        /// The template.
        template_id: String,
        /// Another version.
        #[arg(long)]
        version: Option<u32>,
    },
    /// Renders a message without sending it.
    Preview {
        /// The template.
        template_id: String,
        /// The channel; the template's first unless given.
        #[arg(long)]
        channel: Option<String>,
        /// The data as a JSON object; @FILE reads it from a file.
        #[arg(long)]
        data: Option<String>,
        /// For this registered user; for a made-up one unless given.
        #[arg(long)]
        user: Option<String>,
        /// Instead of the user's locale.
        #[arg(long)]
        locale: Option<String>,
        /// Another version than the live one.
        #[arg(long)]
        version: Option<u32>,
    },
    /// Makes a version live: the newest unless said.
    Publish {
        /// The template.
        template_id: String,
        /// The version.
        #[arg(long)]
        version: Option<u32>,
    },
    /// Makes the version live again that was live before, or the one named.
    Rollback {
        /// The template.
        template_id: String,
        /// The version.
        #[arg(long)]
        version: Option<u32>,
    },
}

impl Template {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let json = self.connect.json;
        let client = self.connect.client()?;
        match self.action {
            Action::Put { template_id, file, draft } => {
                let query = if draft { "?publish=false" } else { "" };
                let body = read_json(&file)?;
                let stored = client.put(&format!("/v1/templates/{}{query}", segment(&template_id)), &body).await?;
                print(json, &stored, stored_text)
            }
            Action::List { limit } => {
                let templates = client.list("/v1/templates", &Query::default(), "templates", limit).await?;
                print(json, &json!({ "templates": templates }), |_| {
                    let mut table = Table::new(&["template", "live", "version", "channels", "category", "created"]);
                    for template in &templates {
                        let channels: Vec<&String> =
                            template["channels"].as_object().into_iter().flatten().map(|(name, _)| name).collect();
                        table.row(vec![
                            cell(&template["template_id"]),
                            cell(&template["live_version"]),
                            cell(&template["version"]),
                            channels.into_iter().cloned().collect::<Vec<_>>().join(","),
                            cell(&template["category"]),
                            cell(&template["created_at"]),
                        ]);
                    }
                    table.text()
                })
            }
            Action::Show { template_id, version } => {
                let query = Query::default().with_some("version", version.map(|v| v.to_string()).as_deref());
                let shown = client.get(&format!("/v1/templates/{}{}", segment(&template_id), query.text())).await?;
                // A template is JSON for people too: it is what `put` takes.
                print(true, &shown, |_| String::new())
            }
            Action::Preview { template_id, channel, data, user, locale, version } => {
                let data = match data.as_deref() {
                    Some(text) if text.starts_with('@') => Some(read_json(&text[1..])?),
                    Some(text) => Some(parse_json("--data", text)?),
                    None => None,
                };
                let fields = [
                    ("channel", channel.map(Value::from)),
                    ("data", data),
                    ("user_id", user.map(Value::from)),
                    ("locale", locale.map(Value::from)),
                    ("version", version.map(Value::from)),
                ];
                let body: Map<String, Value> =
                    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
                let path = format!("/v1/templates/{}:preview", segment(&template_id));
                print(json, &client.post(&path, &body.into()).await?, preview_text)
            }
            Action::Publish { template_id, version } => {
                let path = format!("/v1/templates/{}:publish", segment(&template_id));
                print(json, &client.post(&path, &version_body(version)).await?, stored_text)
            }
            Action::Rollback { template_id, version } => {
                let path = format!("/v1/templates/{}:rollback", segment(&template_id));
                print(json, &client.post(&path, &version_body(version)).await?, stored_text)
            }
        }
    }
}

fn version_body(version: Option<u32>) -> Value {
    version.map_or(json!({}), |version| json!({ "version": version }))
}

fn stored_text(stored: &Value) -> String {
    let (id, version) = (cell(&stored["template_id"]), cell(&stored["version"]));
    match stored["published"] == true {
        true => format!("Version {version} of {id} is live."),
        false => format!("Version {version} of {id} is a draft; herald template publish {id} makes it live."),
    }
}

/// The parts one after the other, as somebody would read them. They are shown as they are, but for control characters.
fn preview_text(preview: &Value) -> String {
    let mut text = format!("{}, version {}\n", cell(&preview["channel"]), cell(&preview["version"]));
    for (name, part) in preview["parts"].as_object().into_iter().flatten() {
        let part: String =
            part.as_str().unwrap_or_default().lines().map(|line| format!("  {}\n", cell(&line.into()))).collect();
        text.push_str(&format!("{name}:\n{part}"));
    }
    text
}
