//! `herald audit`.

use clap::Args;
use serde_json::json;

use super::{
    client::{Connect, Query},
    exit::Failure,
    output::{Table, print},
    terms,
};

/// Lists what operators did (operators).
#[derive(Debug, Args)]
pub struct Audit {
    /// actor= and tenant=, which must both hold.
    filter: Vec<String>,
    /// Since then: RFC 3339, or a span such as 2h.
    #[arg(long)]
    since: Option<String>,
    /// At most so many; 0 for all.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    connect: Connect,
}

impl Audit {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let filter = terms::object(&self.filter, &["actor", "tenant"])?;
        let query = Query::default()
            .with_some("since", self.since.as_deref().map(terms::moment).transpose()?.as_deref())
            .with_some("actor", filter.get("actor").and_then(|value| value.as_str()))
            .with_some("tenant", filter.get("tenant").and_then(|value| value.as_str()));
        let entries = self.connect.operator()?.list("/v1/admin/audit", &query, "entries", self.limit).await?;
        let columns = [
            ("at", "at"),
            ("actor", "actor"),
            ("action", "action"),
            ("tenant", "tenant"),
            ("result", "result"),
            ("what", "detail"),
            ("request", "request_id"),
        ];
        print(self.connect.json, &json!({ "entries": entries }), |_| Table::of(&entries, &columns).text())
    }
}
