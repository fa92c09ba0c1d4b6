//! `herald tenants` and `herald keys`.

use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};

use super::{
    client::{Client, Connect, Query, segment},
    exit::Failure,
    output::{Table, cell, fields, print},
    terms,
};

/// How often a change is made anew because another operator was faster.
const MAX_ATTEMPTS: usize = 5;

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
    /// Creates a tenant, or changes what is given of it and nothing else.
    Put {
        /// The tenant.
        tenant_id: String,
        #[command(flatten)]
        change: Change,
    },
}

/// What is given of a tenant.
#[derive(Debug, Args)]
struct Change {
    /// For people; a new tenant's is its id unless given.
    #[arg(long)]
    name: Option<String>,
    /// Notifications a second that it may send in calls; more are refused with 429.
    #[arg(long, value_parser = terms::rate)]
    quota_per_second: Option<f64>,
    /// Notifications that it may send at once; a new quota's are those of a second unless given.
    #[arg(long)]
    quota_burst: Option<u64>,
    /// Takes the quota away: it may send as many as it likes.
    #[arg(long, conflicts_with_all = ["quota_per_second", "quota_burst"])]
    no_quota: bool,
}

impl Change {
    /// The body that leaves everything else of a stored tenant as it is; null where none is stored.
    fn of(&self, stored: &Value) -> Result<Value, Failure> {
        let name = self.name.as_deref().or(stored["name"].as_str()).unwrap_or_default();
        let mut quota = if self.no_quota { Value::Null } else { stored["quota"].clone() };
        if let Some(per_second) = self.quota_per_second {
            quota["per_second"] = per_second.into();
        }
        if let Some(burst) = self.quota_burst {
            if quota.is_null() {
                let detail = "the tenant has no quota: --quota-burst needs --quota-per-second too";
                return Err(Failure::Usage(detail.into()));
            }
            quota["burst"] = burst.into();
        }
        let version = stored["version"].as_u64().unwrap_or(0);
        Ok(json!({ "name": name, "quota": quota, "version": version }))
    }

    /// Reads the tenant and puts it with what changes, again where another operator changed it meanwhile.
    async fn put(&self, client: &Client, path: &str) -> Result<Value, Failure> {
        let mut attempt = 1;
        loop {
            let stored = match client.get(path).await {
                Err(Failure::Refused { status: 404, .. }) => Value::Null,
                read => read?,
            };
            match client.put(path, &self.of(&stored)?).await {
                Err(Failure::Refused { status: 409, .. }) if attempt < MAX_ATTEMPTS => attempt += 1,
                put => return put,
            }
        }
    }
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
                let columns = [
                    ("tenant", "tenant_id"),
                    ("name", "name"),
                    ("quota", "quota"),
                    ("created", "created_at"),
                    ("updated", "updated_at"),
                ];
                print(json, &json!({ "tenants": tenants }), |_| Table::of(&tenants, &columns).text())
            }
            TenantsAction::Show { tenant_id } => print(json, &client.get(&path(&tenant_id)).await?, fields),
            TenantsAction::Put { tenant_id, change } => {
                print(json, &change.put(&client, &path(&tenant_id)).await?, fields)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays() {
        let nothing = || Change { name: None, quota_per_second: None, quota_burst: None, no_quota: false };
        let of = |change: Change, stored: &Value| change.of(stored).map_err(|error| error.to_string());
        let stored = json!({"name": "Acme", "quota": {"per_second": 5.0, "burst": 9}, "version": 3});
        assert_eq!(of(nothing(), &stored), Ok(stored.clone()));
        let faster = Change { quota_per_second: Some(0.5), ..nothing() };
        let quota = json!({"per_second": 0.5, "burst": 9});
        assert_eq!(of(faster, &stored).unwrap()["quota"], quota);
        let renamed = Change { name: Some("A".into()), no_quota: true, ..nothing() };
        assert_eq!(of(renamed, &stored), Ok(json!({"name": "A", "quota": null, "version": 3})));
        // The server knows the defaults of what is new.
        let new = Change { quota_per_second: Some(7.0), ..nothing() };
        assert_eq!(of(new, &Value::Null), Ok(json!({"name": "", "quota": {"per_second": 7.0}, "version": 0})));
        let burst = || Change { quota_burst: Some(1), ..nothing() };
        assert!(of(burst(), &Value::Null).unwrap_err().contains("--quota-per-second"));
        assert_eq!(of(burst(), &stored).unwrap()["quota"]["burst"], 1);
    }
}
