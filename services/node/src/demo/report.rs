//! What a demo found.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

/// The figures of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Users of the graph.
    pub users: u64,
    /// Directed edges of the graph.
    pub edges: u64,
    /// Notifications that were answered 202.
    pub notifications: u64,
    /// Recipients expanded.
    pub recipients: u64,
    /// Instances created.
    pub accepted: u64,
    /// Instances delivered, by channel.
    pub delivered: BTreeMap<&'static str, u64>,
    /// Instances suppressed, by reason.
    pub suppressed: BTreeMap<String, u64>,
    /// Instances refused for good.
    pub failed: u64,
    /// Instances dead.
    pub dead: u64,
    /// Items found in the inboxes.
    pub inbox_items: u64,
    /// Mails in the mailbox with different Message-IDs; `None` where mail went to another server.
    pub mails: Option<u64>,
    /// Mails that came more than once.
    pub duplicate_mails: Option<u64>,
    /// From acceptance to the end, by channel: 50th, 95th and 99th percentile, upper bounds in milliseconds.
    pub latency_ms: BTreeMap<&'static str, [u64; 3]>,
    /// From the first notification to the last end.
    pub seconds: f64,
    /// CPU time of the whole process in that time, client and mailbox included, per delivered instance.
    pub cpu_us_per_delivery: f64,
    /// Peak memory of the process.
    pub peak_memory_mib: u64,
    /// What contradicts the books.
    pub contradictions: Vec<String>,
}

impl Report {
    /// Whether the books are proven and what was counted outside of them agrees.
    pub fn proven(&self) -> bool {
        self.contradictions.is_empty()
    }

    /// Delivered instances on all channels.
    pub fn delivered_total(&self) -> u64 {
        self.delivered.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<34}{value:>14}");
        row("users", self.users.to_string())?;
        row("directed edges", self.edges.to_string())?;
        row("notifications accepted", self.notifications.to_string())?;
        row("recipients expanded", self.recipients.to_string())?;
        row("instances accepted", self.accepted.to_string())?;
        for (channel, count) in &self.delivered {
            row(&format!("  delivered, {channel}"), count.to_string())?;
        }
        for (reason, count) in &self.suppressed {
            row(&format!("  suppressed, {reason}"), count.to_string())?;
        }
        row("  failed", self.failed.to_string())?;
        row("  dead", self.dead.to_string())?;
        row("items in the inboxes", self.inbox_items.to_string())?;
        if let (Some(mails), Some(duplicates)) = (self.mails, self.duplicate_mails) {
            row("mails in the mailbox", mails.to_string())?;
            row("  came more than once", duplicates.to_string())?;
        }
        for (channel, [p50, p95, p99]) in &self.latency_ms {
            row(&format!("latency {channel}, p50/p95/p99 ms"), format!("<{p50}/<{p95}/<{p99}"))?;
        }
        row("seconds", format!("{:.1}", self.seconds))?;
        row("CPU us per delivery, everything", format!("{:.1}", self.cpu_us_per_delivery))?;
        row("peak memory, MiB", self.peak_memory_mib.to_string())?;
        match self.contradictions.as_slice() {
            [] => write!(f, "The books are proven: everything accepted has ended, exactly once."),
            found => {
                writeln!(f, "THE BOOKS ARE NOT PROVEN:")?;
                found.iter().try_for_each(|line| writeln!(f, "  {line}"))
            }
        }
    }
}
