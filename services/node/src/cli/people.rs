//! `herald users` and `herald inbox`.

use clap::{ArgGroup, Args, Subcommand};
use serde_json::json;

use super::{
    client::{Connect, Query, segment},
    exit::Failure,
    notify::read_json,
    output::{Table, cell, fields, print},
};

/// People: profiles and preferences.
#[derive(Debug, Args)]
pub struct Users {
    #[command(subcommand)]
    action: UsersAction,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Subcommand)]
enum UsersAction {
    /// Lists registered users.
    List {
        /// At most so many; 0 for all.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Shows a profile.
    Show {
        /// The user.
        user_id: String,
    },
    /// Stores a profile in place of the one before.
    Put {
        /// The user.
        user_id: String,
        /// The profile as JSON: a file, or - for standard input.
        file: String,
    },
    /// Erases a person everywhere.
    Erase {
        /// The user.
        user_id: String,
    },
    /// Shows preferences, or replaces them.
    Preferences {
        /// The user.
        user_id: String,
        /// New preferences as JSON: a file, or - for standard input.
        file: Option<String>,
    },
}

impl Users {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let json = self.connect.json;
        let client = self.connect.client()?;
        let path = |user_id: &str| format!("/v1/users/{}", segment(user_id));
        match self.action {
            UsersAction::List { limit } => {
                let users = client.list("/v1/users", &Query::default(), "users", limit).await?;
                print(json, &json!({ "users": users }), |_| {
                    let mut table = Table::new(&["user", "locale", "time zone", "channels", "version", "updated"]);
                    for user in &users {
                        let endpoints = user["endpoints"].as_array().into_iter().flatten();
                        let channels: Vec<String> = endpoints.map(|endpoint| cell(&endpoint["channel"])).collect();
                        table.row(vec![
                            cell(&user["user_id"]),
                            cell(&user["locale"]),
                            cell(&user["time_zone"]),
                            channels.join(","),
                            cell(&user["version"]),
                            cell(&user["updated_at"]),
                        ]);
                    }
                    table.text()
                })
            }
            UsersAction::Show { user_id } => print(json, &client.get(&path(&user_id)).await?, fields),
            UsersAction::Put { user_id, file } => {
                print(json, &client.put(&path(&user_id), &read_json(&file)?).await?, fields)
            }
            UsersAction::Erase { user_id } => print(json, &client.delete(&path(&user_id)).await?, fields),
            UsersAction::Preferences { user_id, file } => {
                let path = format!("{}/preferences", path(&user_id));
                let preferences = match file {
                    Some(file) => client.put(&path, &read_json(&file)?).await?,
                    None => client.get(&path).await?,
                };
                print(json, &preferences, fields)
            }
        }
    }
}

/// A user's in-app feed.
#[derive(Debug, Args)]
pub struct Inbox {
    #[command(subcommand)]
    action: InboxAction,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Subcommand)]
enum InboxAction {
    /// Lists items, newest first.
    List {
        /// The user.
        user_id: String,
        /// Only unseen, unread or archived ones.
        #[arg(long)]
        state: Option<String>,
        /// At most so many; 0 for all.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Marks items.
    #[command(group(ArgGroup::new("which").required(true).args(["instance", "all"])))]
    Mark {
        /// The user.
        user_id: String,
        /// seen, read or archived.
        #[arg(long = "as", value_name = "STATE")]
        state: String,
        /// An item; may be repeated.
        #[arg(long)]
        instance: Vec<String>,
        /// All of them.
        #[arg(long)]
        all: bool,
    },
}

impl Inbox {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let json = self.connect.json;
        let client = self.connect.client()?;
        match self.action {
            InboxAction::List { user_id, state, limit } => {
                let path = format!("/v1/users/{}/inbox", segment(&user_id));
                let query = Query::default().with_some("state", state.as_deref());
                let items = client.list(&path, &query, "items", limit).await?;
                print(json, &json!({ "items": items }), |_| {
                    let columns = [
                        ("created", "created_at"),
                        ("title", "title"),
                        ("body", "body"),
                        ("seen", "seen_at"),
                        ("read", "read_at"),
                        ("instance", "instance_id"),
                    ];
                    Table::of(&items, &columns).text()
                })
            }
            InboxAction::Mark { user_id, state, instance, all } => {
                let body = if all {
                    json!({"all": true, "as": state})
                } else {
                    json!({"instance_ids": instance, "as": state})
                };
                let path = format!("/v1/users/{}/inbox:mark", segment(&user_id));
                print(json, &client.post(&path, &body).await?, fields)
            }
        }
    }
}
