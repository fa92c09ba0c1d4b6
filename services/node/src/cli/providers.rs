//! `herald providers`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    client::{Connect, Query, segment},
    exit::Failure,
    notify::read_json,
    output::{Table, cell, fields, print},
};

/// Who delivers: providers that are set while everything runs (operators).
#[derive(Debug, Args)]
pub struct Providers {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lists the providers that were set; those of the configuration are not among them.
    List {
        /// At most so many; 0 for all.
        #[arg(long, default_value_t = 0)]
        limit: usize,
    },
    /// Shows a provider, without its credentials.
    Show {
        /// The provider.
        name: String,
    },
    /// Sets a provider, once it was tried.
    Put(Put),
    /// Deletes a provider: what it has is finished, and what comes goes to others.
    Delete {
        /// The provider.
        name: String,
    },
}

#[derive(Debug, Args)]
struct Put {
    /// The provider.
    name: String,
    /// Where it is, such as smtp://mail.example.org:587, without credentials.
    at: String,
    /// What speaks to it.
    #[arg(long, default_value = "smtp")]
    kind: String,
    /// Which channel it serves.
    #[arg(long, default_value = "email")]
    channel: String,
    /// {"username": ..., "password": ...} as JSON: a file, or - for standard input. Those given before hold on without it.
    #[arg(long, value_name = "FILE")]
    credentials: Option<String>,
    /// Its share among the providers that could take a message; 0 for none.
    #[arg(long, default_value_t = 1)]
    weight: u32,
    /// Whose messages it takes, instead of everybody's; may be repeated.
    #[arg(long = "for", value_name = "TENANT")]
    tenants: Vec<String>,
    /// Sets it without trying it.
    #[arg(long)]
    unchecked: bool,
}

impl Providers {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let json = self.connect.json;
        let client = self.connect.operator()?;
        let path = |name: &str| format!("/v1/admin/providers/{}", segment(name));
        match self.action {
            Action::List { limit } => {
                let providers = client.list("/v1/admin/providers", &Query::default(), "providers", limit).await?;
                let columns = [
                    ("name", "name"),
                    ("channel", "channel"),
                    ("kind", "kind"),
                    ("at", "url"),
                    ("credentials", "credentials_set"),
                    ("weight", "weight"),
                    ("tenants", "tenants"),
                ];
                print(json, &json!({ "providers": providers }), |_| Table::of(&providers, &columns).text())
            }
            Action::Show { name } => print(json, &client.get(&path(&name)).await?, fields),
            Action::Put(put) => {
                let answer = client.put(&path(&put.name), &put.body()?).await?;
                print(json, &answer, |answer| format!("Provider {} is set{}.", put.name, applied_text(answer)))
            }
            Action::Delete { name } => {
                let answer = client.delete(&path(&name)).await?;
                print(json, &answer, |answer| format!("Provider {name} is deleted{}.", applied_text(answer)))
            }
        }
    }
}

impl Put {
    fn body(&self) -> Result<Value, Failure> {
        let Self { at, kind, channel, weight, tenants, unchecked, .. } = self;
        let mut body = json!({
            "channel": channel, "kind": kind, "url": at, "weight": weight, "tenants": tenants, "check": !unchecked,
        });
        if let Some(source) = &self.credentials {
            body["credentials"] = read_json(source)?;
        }
        Ok(body)
    }
}

fn applied_text(answer: &Value) -> String {
    let applied = &answer["applied"];
    format!(": {} of {} processes run it", cell(&applied["processes"]), cell(&applied["of"]))
}
