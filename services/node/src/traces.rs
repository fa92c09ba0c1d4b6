//! Finished spans on their way to an OpenTelemetry collector, over OTLP on gRPC.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, UNIX_EPOCH},
};

use anyhow::Context;
use herald_core::trace::{Span, SpanKind, Spans, TraceParent, Value};
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{self as otel, Link, SpanContext, SpanId, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _, SpanLinks},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Spans that wait to be exported; more are dropped and counted.
const MOST_WAITING: usize = 8_192;
/// Spans of one export.
const BATCH: usize = 512;
/// How long a span waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Where traces go, and how many there are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The collector; empty for none.
    pub otlp_endpoint: String,
    /// Of a million calls without a trace of their caller's, how many are traced.
    pub traces_per_million: u32,
}

/// Spans that nobody will see.
#[derive(Debug, Default)]
pub struct Lost {
    /// There was no room for them.
    pub dropped: AtomicU64,
    /// The collector did not take them.
    pub failed: AtomicU64,
}

struct Exported {
    waiting: mpsc::Sender<Span>,
    lost: Arc<Lost>,
}

impl Spans for Exported {
    fn wanted(&self) -> bool {
        true
    }

    fn record(&self, span: Span) {
        if self.waiting.try_send(span).is_err() {
            self.lost.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// The task that exports.
pub struct Exporter {
    task: JoinHandle<()>,
    stopped: CancellationToken,
}

impl Exporter {
    /// Sends what waits, unless the collector takes too long.
    pub async fn stop(self) {
        self.stopped.cancel();
        if tokio::time::timeout(ANSWER, self.task).await.is_err() {
            tracing::warn!("the collector did not take the last spans in time");
        }
    }
}

/// Exports spans under this process's name.
///
/// # Errors
/// If the endpoint is no URL.
pub fn export(endpoint: &str, process: &str, lost: &Arc<Lost>) -> anyhow::Result<(Arc<dyn Spans>, Exporter)> {
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(ANSWER).build();
    let mut exporter = exporter.with_context(|| format!("tracing.otlp_endpoint {endpoint:?} cannot be used"))?;
    let resource = Resource::builder_empty().with_service_name("herald").with_attributes([
        KeyValue::new("service.instance.id", process.to_owned()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ]);
    exporter.set_resource(&resource.build());
    let (waiting, spans) = mpsc::channel(MOST_WAITING);
    let stopped = CancellationToken::new();
    let task = tokio::spawn(run(exporter, spans, lost.clone(), stopped.clone()));
    Ok((Arc::new(Exported { waiting, lost: lost.clone() }), Exporter { task, stopped }))
}

async fn run(exporter: SpanExporter, mut spans: mpsc::Receiver<Span>, lost: Arc<Lost>, stopped: CancellationToken) {
    let mut failing = false;
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            taken = spans.recv_many(&mut batch, BATCH) => {
                if taken == 0 {
                    return;
                }
            }
            () = stopped.cancelled(), if !spans.is_closed() => {
                spans.close();
                continue;
            }
        }
        let full_by = tokio::time::Instant::now() + GATHER;
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            match tokio::time::timeout_at(full_by, spans.recv_many(&mut batch, room)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        let count = batch.len() as u64;
        let exported = exporter.export(batch.drain(..).map(data_of).collect()).await;
        if let Err(error) = &exported {
            lost.failed.fetch_add(count, Relaxed);
            // Said once until it works again: the collector's outage is not ours.
            if !failing {
                tracing::warn!(%error, "the collector takes no spans; they are dropped");
            }
        }
        failing = exported.is_err();
    }
}

fn data_of(span: Span) -> SpanData {
    let time = |ms| UNIX_EPOCH + Duration::from_millis(ms);
    let mut links = SpanLinks::default();
    links.links = span.links.iter().map(|link| Link::new(context_of(link, true), Vec::new(), 0)).collect();
    let attribute = |(name, value): (&'static str, Value)| match value {
        Value::Text(text) => KeyValue::new(name, text),
        Value::Number(number) => KeyValue::new(name, i64::try_from(number).unwrap_or(i64::MAX)),
    };
    let error = span.error.map(|code| KeyValue::new(herald_core::trace::names::ERROR, code));
    let status = error.as_ref().map_or(Status::Unset, |error| Status::error(error.value.to_string()));
    SpanData {
        span_context: context_of(&span.context, false),
        parent_span_id: span.parent.map_or(SpanId::INVALID, |parent| SpanId::from(parent.span_id)),
        parent_span_is_remote: span.parent.is_some(),
        span_kind: match span.kind {
            SpanKind::Server => otel::SpanKind::Server,
            SpanKind::Consumer => otel::SpanKind::Consumer,
            SpanKind::Client => otel::SpanKind::Client,
        },
        name: span.name.into(),
        start_time: time(span.start_ms),
        end_time: time(span.end_ms),
        attributes: span.attributes.into_iter().map(attribute).chain(error).collect(),
        dropped_attributes_count: 0,
        events: Default::default(),
        links,
        status,
        instrumentation_scope: InstrumentationScope::builder("herald").build(),
    }
}

fn context_of(context: &TraceParent, remote: bool) -> SpanContext {
    let flags = if context.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let (trace, span) = (TraceId::from(context.trace_id), SpanId::from(context.span_id));
    SpanContext::new(trace, span, flags, remote, TraceState::NONE)
}
