//! `herald tenants` and `herald keys`.

use clap::{ArgGroup, Args, Subcommand};
use serde_json::json;

use super::{
    client::{Connect, Query, segment},
    exit::Failure,
    output::{Table, cell, fields, print},
};

/// Tenants (operators).
#[derive(Debug, Args)]
pub struct Tenants {
    #[command(subcommand)]
    action: TenantsAction,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Subcommand)]
enum TenantsAction {
    /// Lists the tenants.
    List {
        /// At most so many; 0 for all.
        #[arg(long, default_value_t = 0)]
        limit: usize,
    },
    /// Shows a tenant.
    Show {
        /// The tenant.
        tenant_id: String,
    },
    /// Creates a tenant, or changes its name.
    Put {
        /// The tenant.
        tenant_id: String,
        /// For people; the id unless given.
        #[arg(long)]
        name: Option<String>,
    },
}

impl Tenants {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let json = self.connect.json;
        let client = self.connect.operator()?;
        let path = |tenant_id: &str| format!("/v1/admin/tenants/{}", segment(tenant_id));
        match self.action {
            TenantsAction::List { limit } => {
                let tenants = client.list("/v1/admin/tenants", &Query::default(), "tenants", limit).await?;
                let columns =
                    [("tenant", "tenant_id"), ("name", "name"), ("created", "created_at"), ("updated", "updated_at")];
                print(json, &json!({ "tenants": tenants }), |_| Table::of(&tenants, &columns).text())
            }
            TenantsAction::Show { tenant_id } => print(json, &client.get(&path(&tenant_id)).await?, fields),
            TenantsAction::Put { tenant_id, name } => {
                let body = json!({ "name": name.unwrap_or_default() });
                print(json, &client.put(&path(&tenant_id), &body).await?, fields)
            }
        }
    }
}

/// API keys (operators).
#[derive(Debug, Args)]
pub struct Keys {
    #[command(subcommand)]
    action: KeysAction,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Subcommand)]
enum KeysAction {
    /// Lists keys, without their secrets.
    List {
        /// Of this tenant only.
        of: Option<String>,
        /// At most so many; 0 for all.
        #[arg(long, default_value_t = 0)]
        limit: usize,
    },
    /// Creates a key and shows it, once.
    #[command(group(ArgGroup::new("whose").required(true).args(["of", "operator"])))]
    Create {
        /// The tenant whose key it is.
        of: Option<String>,
        /// An operator's key instead, which may do everything.
        #[arg(long, conflicts_with = "scope")]
        operator: bool,
        /// For people; keys of the same name are told apart by their ids.
        #[arg(long, default_value = "")]
        name: String,
        /// What it may do; may be repeated.
        #[arg(long)]
        scope: Vec<String>,
        /// When it expires (RFC 3339); never unless given.
        #[arg(long)]
        expires_at: Option<String>,
    },
    /// Deletes a key; it opens nothing from then on, nor do the tokens of end users that it made.
    Delete {
        /// The key's id, as the list has it: not the key, and not its name.
        key_id: String,
    },
}

impl Keys {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let json = self.connect.json;
        let client = self.connect.operator()?;
        match self.action {
            KeysAction::List { of, limit } => {
                let query = Query::default().with_some("tenant_id", of.as_deref());
                let keys = client.list("/v1/admin/keys", &query, "keys", limit).await?;
                let columns = [
                    ("key id", "key_id"),
                    ("tenant", "tenant_id"),
                    ("name", "name"),
                    ("scopes", "scopes"),
                    ("created", "created_at"),
                    ("expires", "expires_at"),
                ];
                print(json, &json!({ "keys": keys }), |_| Table::of(&keys, &columns).text())
            }
            KeysAction::Create { of, operator: _, name, scope, expires_at } => {
                let mut body = json!({ "name": name, "scopes": scope });
                for (field, value) in [("tenant_id", of), ("expires_at", expires_at)] {
                    if let Some(value) = value {
                        body[field] = value.into();
                    }
                }
                let created = client.post("/v1/admin/keys", &body).await?;
                print(json, &created, |created| {
                    format!(
                        "{}\nKeep it: it is shown this once. Its id is {}.",
                        cell(&created["key"]),
                        cell(&created["key_id"])
                    )
                })
            }
            KeysAction::Delete { key_id } => {
                client.delete(&format!("/v1/admin/keys/{}", segment(&key_id))).await?;
                print(json, &json!({}), |_| format!("The key {key_id} is deleted."))
            }
        }
    }
}
