//! `herald topics plan`: how a log should be divided before there is one.

use clap::{Args, Subcommand};
use herald_distributed::kafka::plan::{Load, PARTITION_BYTES_PER_SECOND, plan};
use serde_json::{Value, json};

use super::{
    exit::Failure,
    output::{Table, print},
};

/// What the topics of a log on Kafka should be.
#[derive(Debug, Args)]
pub struct Topics {
    #[command(subcommand)]
    action: TopicsAction,
}

#[derive(Debug, Subcommand)]
enum TopicsAction {
    /// Says how many partitions a load needs. They cannot be changed once there are records, so plan for the load that is
    /// hoped for, at its peak.
    Plan(PlanArgs),
}

#[derive(Debug, Args)]
struct PlanArgs {
    /// Requests a second.
    #[arg(long, value_parser = positive)]
    requests_per_second: f64,
    /// Instances of a request, on average.
    #[arg(long, value_parser = positive)]
    fan_out: f64,
    /// Bytes of a request with its data.
    #[arg(long, default_value_t = 1_000.0, value_parser = positive)]
    request_bytes: f64,
    /// Cores of all workers together.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    worker_cores: u32,
    /// Prints JSON for programs.
    #[arg(long)]
    json: bool,
}

/// A finite number above zero, up to 10^12.
fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| *number > 0.0 && *number <= 1e12);
    number.ok_or_else(|| "expected a number above 0 and at most 10^12".to_owned())
}

impl Topics {
    /// Runs the command.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn run(&self) -> Result<(), Failure> {
        let TopicsAction::Plan(args) = &self.action;
        let planned = plan(&Load {
            requests_per_second: args.requests_per_second,
            request_bytes: args.request_bytes,
            fan_out: args.fan_out,
            worker_cores: args.worker_cores,
        });
        let topic = |name: &str, setting: &str, partitions: u32, bytes: f64| {
            json!({
                "topic": name,
                "setting": format!("layout.{setting}"),
                "partitions": partitions,
                "mb_per_second": (bytes / 1e5).round() / 10.0,
                "most_mb_per_second": f64::from(partitions) * PARTITION_BYTES_PER_SECOND / 1e6,
            })
        };
        let layout = planned.layout;
        let document = json!({
            "topics": [
                topic("requests, each lane", "requests_partitions", layout.requests, planned.requests_bytes_per_second),
                topic("deliveries", "shards", layout.shards, planned.deliveries_bytes_per_second),
                topic("receipts", "receipts_partitions", layout.receipts, planned.receipts_bytes_per_second),
            ],
            "warnings": planned.warnings,
        });
        print(args.json, &document, text)
    }
}

fn text(document: &Value) -> String {
    let list = |name: &str| document[name].as_array().map_or(&[][..], Vec::as_slice);
    let columns = [
        ("topic", "topic"),
        ("setting", "setting"),
        ("partitions", "partitions"),
        ("MB/s at the peak", "mb_per_second"),
        ("MB/s they take", "most_mb_per_second"),
    ];
    let warnings: String =
        list("warnings").iter().filter_map(Value::as_str).map(|warning| format!("\nToo much: {warning}.")).collect();
    format!("{}{warnings}", Table::of(list("topics"), &columns).text())
}
