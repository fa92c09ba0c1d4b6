//! What `/metrics` shows, in the OpenMetrics text format. Labels are bounded: never a user, a token or an id.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use herald_core::{
    ids::channel_name,
    latency::{LATENCY_BOUNDS_MS, LatencySnapshot},
    record::State,
};
use herald_gateway::stats::BOUNDS_SECONDS;
use herald_ledger::stats::{CHANNELS, STATES};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};

use crate::{gauges::Gauges, roles::Counters};

/// Reads the roles' counters at each scrape.
struct RoleMetrics(Counters);

impl std::fmt::Debug for RoleMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RoleMetrics")
    }
}

/// A registry with the metrics of the roles and what is looked up for each scrape.
pub fn registry(counters: &Counters, gauges: &Gauges) -> Registry {
    let mut registry = Registry::with_prefix("herald");
    registry.register_collector(Box::new(RoleMetrics(counters.clone())));
    registry.register_collector(Box::new(gauges.clone()));
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    registry.register("build", "The version that runs", Info::new(version));
    registry
}

impl Collector for RoleMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Counters { gateway, orchestrator, worker, ledger, rejoins, lost_spans } = &self.0;
        let counters: [(&str, &str, &AtomicU64); 31] = [
            ("expansion_pages", "Pages of audiences expanded", &orchestrator.pages),
            ("expansion_instances", "Instances created by expansion", &orchestrator.instances),
            (
                "expansion_second_admissions",
                "Second admissions of an idempotency key dropped",
                &orchestrator.second_admissions,
            ),
            ("expansion_store_delays", "Requests put off because a store was away", &orchestrator.store_delays),
            ("expansion_paced", "Requests and continuations put off because a limit was used up", &orchestrator.paced),
            ("expansion_held", "Continuations put off because a switch holds them", &orchestrator.held),
            ("expansion_stopped", "Chains of pages that a switch or a cancel ended", &orchestrator.stopped),
            ("expansion_dead", "Requests that could not be processed", &orchestrator.dead),
            ("worker_attempts", "Messages handed to providers", &worker.attempts),
            ("worker_retries", "Messages put off for another attempt", &worker.retries),
            ("worker_held", "Instances put off because a switch holds them", &worker.held),
            ("worker_unanswered", "Messages unanswered at their deadline, which may arrive twice", &worker.unanswered),
            (
                "worker_paced",
                "Messages that waited for a limit, or for a provider that is down or asked for less",
                &worker.paced,
            ),
            ("worker_quiet", "Messages that waited for the end of quiet hours", &worker.quiet),
            ("worker_not_attempted", "Messages that were not put on the wire and come again", &worker.not_attempted),
            ("worker_account_faults", "Faults of our accounts at providers", &worker.account_faults),
            ("worker_people_filled", "People read from the directory", &worker.people_filled),
            ("worker_commits", "Commits of the workers", &worker.commits),
            ("worker_undecodable", "Records that could not be read", &worker.undecodable),
            ("worker_ended", "Instances that ended", &worker.ended),
            ("ledger_manifests", "Manifests booked", &ledger.manifests),
            ("ledger_created", "Instances that manifests created", &ledger.created),
            ("ledger_admitted", "Requests noted", &ledger.admitted),
            ("ledger_flushes", "Writes of totals and receipts", &ledger.flushes),
            ("ledger_retries", "Failed attempts of the ledger to read the log, or at the store", &ledger.retries),
            (
                "ledger_contradictions",
                "Receipts that contradict books which a cancel has closed",
                &ledger.contradictions,
            ),
            ("ledger_unreadable", "Parts of records that the ledger could not read", &ledger.unreadable),
            ("audit_lost", "Calls of operators that the audit log will never have", &gateway.audit.lost),
            ("member_rejoins", "Times that a member of a role lost its place and joined its group anew", rejoins),
            ("spans_dropped", "Spans for which there was no room", &lost_spans.dropped),
            ("spans_failed", "Spans that the collector did not take", &lost_spans.failed),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value.load(Relaxed));
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let check = ledger.check();
        let gauges = [
            (
                "worker_in_doubt",
                "Instances handed to providers without a durable outcome",
                worker.in_doubt.load(Relaxed),
            ),
            (
                "audit_waiting",
                "Calls of operators that wait for the audit log to take them",
                gateway.audit.waiting.load(Relaxed),
            ),
            ("worker_window_instances", "Unfinished instances in memory", worker.window_instances.load(Relaxed)),
            ("ledger_unsettled", "Notifications in memory whose books are open", check.unsettled),
            ("books_overbooked", "Channels of notifications whose books contradict themselves", check.overbooked),
            ("books_stalled", "Channels of notifications that wait for nothing known and do not move", check.stalled),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let help = "For how long nothing happened to the instance that is stalled longest; 0 for none";
        let idle = encoder.encode_descriptor("in_flight_idle", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        ConstGauge::new(check.longest_idle_ms as f64 / 1_000.0).encode(idle)?;
        self.encode_ended(&mut encoder)?;
        self.encode_providers(&mut encoder)?;
        self.encode_latency(&mut encoder)?;
        self.encode_sends(&mut encoder)?;
        self.encode_dead_letters(&mut encoder)?;
        self.encode_requests(&mut encoder)
    }
}

impl RoleMetrics {
    fn encode_ended(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let help = "Instances that ended, by channel and state";
        let mut family = encoder.encode_descriptor("instances_ended", help, None, MetricType::Counter)?;
        for channel in CHANNELS {
            for state in STATES {
                let labels = [("channel", channel_name(channel)), ("state", state_name(state))];
                ConstCounter::new(self.0.ledger.ended(channel, state)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_providers(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let help = "Instances that a provider, or without one a rule, ended";
        let mut family = encoder.encode_descriptor("provider_instances", help, None, MetricType::Counter)?;
        for (channel, provider, state, count) in self.0.ledger.by_provider() {
            let labels =
                [("channel", channel_name(channel)), ("provider", provider.as_str()), ("state", state_name(state))];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_requests(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let help = "Calls by route and status, from their head to the head of their answer";
        let mut family = encoder.encode_descriptor("requests", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for ((route, status), times) in self.0.gateway.snapshot() {
            let bounds = BOUNDS_SECONDS.into_iter().chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = bounds.zip(times.buckets).collect();
            let (count, status) = (times.buckets.iter().sum(), status.to_string());
            let labels = [("route", route.as_str()), ("status", status.as_str())];
            let mut histogram = family.encode_family(&labels)?;
            histogram.encode_histogram::<NoLabelSet>(times.sum_seconds, count, &buckets, None)?;
        }
        Ok(())
    }

    fn encode_latency(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let (help, unit) = ("From acceptance to the end of an instance", Unit::Seconds);
        let mut family = encoder.encode_descriptor("instance_latency", help, Some(&unit), MetricType::Histogram)?;
        for channel in CHANNELS {
            let labels = [("channel", channel_name(channel))];
            encode_latency(&self.0.ledger.latency(channel), family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_sends(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let (help, unit) = ("From the start of a send to its provider's answer", Unit::Seconds);
        let mut family = encoder.encode_descriptor("send", help, Some(&unit), MetricType::Histogram)?;
        for (channel, provider, latency) in self.0.worker.sends() {
            let labels = [("channel", channel_name(channel)), ("provider", &*provider)];
            encode_latency(&latency, family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_dead_letters(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Counters { orchestrator, worker, ledger, .. } = &self.0;
        let help = "Dead letters written, by the stage that gave up";
        let mut family = encoder.encode_descriptor("dead_letters", help, None, MetricType::Counter)?;
        for (stage, letters) in [
            ("orchestrator", &orchestrator.dead),
            ("worker", &worker.dead_letters),
            ("router", &worker.router_dead_letters),
            ("ledger", &ledger.dead_letters),
        ] {
            ConstCounter::new(letters.load(Relaxed)).encode(family.encode_family(&[("stage", stage)])?)?;
        }
        Ok(())
    }
}

fn encode_latency(latency: &LatencySnapshot, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
    let bounds = LATENCY_BOUNDS_MS.iter().map(|ms| *ms as f64 / 1_000.0).chain([f64::MAX]);
    let buckets: Vec<(f64, u64)> = bounds.zip(latency.buckets).collect();
    let count = latency.buckets.iter().sum();
    encoder.encode_histogram::<NoLabelSet>(latency.sum_seconds, count, &buckets, None)
}

/// A state's name in the API.
pub fn state_name(state: State) -> &'static str {
    match state {
        State::Delivered => "delivered",
        State::Suppressed => "suppressed",
        State::Failed => "failed",
        State::Dead | State::Unspecified => "dead",
    }
}
