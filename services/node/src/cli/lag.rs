//! `herald lag`: what waits, and where.

use clap::Args;
use serde_json::Value;

use super::{
    client::Connect,
    exit::Failure,
    output::{Table, cell, print},
};

/// Shows what waits: by topic and group, and by tenant (operators).
#[derive(Debug, Args)]
pub struct Lag {
    /// Shows each partition.
    #[arg(long)]
    partitions: bool,
    #[command(flatten)]
    connect: Connect,
}

impl Lag {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let query = if self.partitions { "?partitions=true" } else { "" };
        let lag = self.connect.operator()?.get(&format!("/v1/admin/lag{query}")).await?;
        print(self.connect.json, &lag, lag_text)
    }
}

fn lag_text(lag: &Value) -> String {
    let list = |name: &str| lag[name].as_array().map_or(&[][..], Vec::as_slice);
    let mut columns = vec![("topic", "topic"), ("group", "group")];
    if list("topics").iter().any(|entry| !entry["partition"].is_null()) {
        columns.push(("partition", "partition"));
    }
    columns.extend([("records behind", "records"), ("oldest ms", "oldest_age_ms")]);
    let behind: Vec<Value> = list("topics").iter().filter(|entry| entry["records"] != 0).cloned().collect();
    if behind.is_empty() {
        return "Nothing waits.".into();
    }
    let topics = Table::of(&behind, &columns).text();
    let columns = [("tenant", "tenant_id"), ("messages waiting", "instances"), ("requests waiting", "requests")];
    let tenants = Table::of(list("tenants"), &columns).text();
    let short = if lag["sampled"] == true {
        format!("\nOnly the first {} records of what waits were looked at for the tenants.", cell(&lag["scanned"]))
    } else {
        String::new()
    };
    format!("{topics}\n{tenants}{short}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_waits_is_shown() {
        let topic = |topic: &str, records: u32| json!({"topic": topic, "group": "herald.worker", "partition": null, "records": records, "oldest_age_ms": 7});
        let lag = json!({
            "topics": [topic("inbox", 0), topic("deliveries.bulk", 3)],
            "tenants": [{"tenant_id": "acme", "instances": 40, "requests": 0}],
            "scanned": 3, "sampled": true
        });
        let text = lag_text(&lag);
        assert!(text.contains("deliveries.bulk") && text.contains("acme") && !text.contains("inbox"), "{text}");
        assert!(text.contains("first 3 records"), "{text}");
        assert_eq!(lag_text(&json!({"topics": [topic("inbox", 0)]})), "Nothing waits.");
    }
}
