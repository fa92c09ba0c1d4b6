//! How many partitions a new log should have. They cannot be changed later, so they are for the load that is hoped for.
//!
//! A partition takes 10 to 20 MB/s, and a stage's commit costs brokers by the partitions that it touches, so there are as
//! few as will do:
//!
//! ```text
//! partitions of a topic = max(least, bytes a second / 10 MB), rounded up to a power of two
//!
//! requests              = requests/s x bytes of a request + pages/s x bytes of a continuation, each lane
//! deliveries, shards    = instances/s x bytes of an instance on its section; at least two a core of the workers, 8 to 64
//! receipts              = instances/s x bytes of a receipt, and as much again for manifests of small requests
//! ```

use herald_core::topic::Layout;

/// What a partition takes with room to spare, in bytes a second.
pub const PARTITION_BYTES_PER_SECOND: f64 = 10e6;

/// The fewest and the most shards of users.
const SHARDS: (u32, u32) = (8, 64);
/// A page of expansion has at most this many instances.
const PAGE_INSTANCES: f64 = 4_096.0;
/// Bytes of a continuation on the log, with its envelope.
const CONTINUATION_BYTES: f64 = 1_000.0;
/// Bytes of a user's id in a section.
const INSTANCE_BYTES: f64 = 24.0;
/// Bytes of an instance's receipt among others of its batch.
const RECEIPT_BYTES: f64 = 40.0;
/// Bytes of a manifest, or of a receipt that is alone in its batch.
const MANIFEST_BYTES: f64 = 120.0;
/// Bytes of an envelope, of headers and of the broker's framing.
const RECORD_BYTES: f64 = 150.0;

/// The load that a log is made for, at its peak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Requests a second.
    pub requests_per_second: f64,
    /// Bytes of a request with its data.
    pub request_bytes: f64,
    /// Instances of a request, on average.
    pub fan_out: f64,
    /// Cores of all workers together.
    pub worker_cores: u32,
}

/// A layout and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The numbers to be set.
    pub layout: Layout,
    /// Bytes a second on all partitions of a requests topic, of `deliveries`, and of `receipts`.
    pub requests_bytes_per_second: f64,
    /// See above.
    pub deliveries_bytes_per_second: f64,
    /// See above.
    pub receipts_bytes_per_second: f64,
    /// What is too much for one log of at most 64 shards; empty if nothing is.
    pub warnings: Vec<String>,
}

/// Plans a layout for a load.
pub fn plan(load: &Load) -> Plan {
    let Load { requests_per_second, request_bytes, fan_out, worker_cores } = *load;
    let instances = requests_per_second * fan_out;
    let sections = instances.min(requests_per_second * fan_out.min(f64::from(SHARDS.1)));
    let pages = (instances / PAGE_INSTANCES).max(0.0);
    let requests = requests_per_second * (request_bytes + RECORD_BYTES) + pages * CONTINUATION_BYTES;
    let deliveries = instances * INSTANCE_BYTES + sections * request_bytes;
    let receipts = instances * RECEIPT_BYTES + requests_per_second * MANIFEST_BYTES;
    let needed = |bytes: f64| (bytes / PARTITION_BYTES_PER_SECOND).ceil().clamp(1.0, 4_096.0) as u32;
    let shards = needed(deliveries).max(2 * worker_cores).next_power_of_two();
    let mut warnings = Vec::new();
    if shards > SHARDS.1 {
        warnings.push(format!(
            "{shards} shards would be right and {} are the most: plan a log for each part of the tenants",
            SHARDS.1
        ));
    }
    let layout = Layout {
        shards: shards.clamp(SHARDS.0, SHARDS.1),
        requests: needed(requests).next_power_of_two().clamp(2, 64),
        receipts: needed(receipts).next_power_of_two().clamp(2, 64),
    };
    Plan {
        layout,
        requests_bytes_per_second: requests,
        deliveries_bytes_per_second: deliveries,
        receipts_bytes_per_second: receipts,
        warnings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_load_has_few_partitions_and_a_large_one_enough() {
        let small = Load { requests_per_second: 10.0, request_bytes: 500.0, fan_out: 20.0, worker_cores: 2 };
        assert_eq!(plan(&small).layout, Layout { shards: 8, requests: 2, receipts: 2 });
        let large = Load { requests_per_second: 20_000.0, request_bytes: 1_000.0, fan_out: 20.0, worker_cores: 16 };
        let planned = plan(&large);
        let Layout { shards, requests, receipts } = planned.layout;
        assert!(planned.warnings.is_empty() && shards >= 32, "{planned:?}");
        for (bytes, partitions) in [
            (planned.requests_bytes_per_second, requests),
            (planned.deliveries_bytes_per_second, shards),
            (planned.receipts_bytes_per_second, receipts),
        ] {
            assert!(bytes / f64::from(partitions) <= PARTITION_BYTES_PER_SECOND, "{planned:?}");
        }
    }

    #[test]
    fn what_no_log_can_carry_is_said() {
        let huge = Load { requests_per_second: 1e6, request_bytes: 1_000.0, fan_out: 20.0, worker_cores: 400 };
        let planned = plan(&huge);
        assert_eq!(planned.layout.shards, 64);
        assert!(planned.warnings[0].contains("tenants"), "{planned:?}");
    }
}
