//! A collector of traces, as an operator has one.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use crate::support::PATIENCE;

/// The stages that a notification by mail and in the app goes through.
pub const STAGES: [&str; 5] = ["notify", "process requests.bulk", "send email", "send in_app", "settle receipts"];

/// A span, and which process sent it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub instance: String,
    pub span: Span,
}

/// Keeps what it gets.
#[derive(Clone, Default)]
pub struct Collector(Arc<Mutex<Vec<Seen>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_process in request.into_inner().resource_spans {
            let resource = of_process.resource.unwrap_or_default();
            let instance = text_of(&resource.attributes, "service.instance.id");
            let spans = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let seen = spans.map(|span| Seen { instance: instance.to_owned(), span });
            self.0.lock().unwrap().extend(seen);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves on a free port; returns the setting that sends spans there, and only those that a caller asks for.
    pub fn start(&self) -> [String; 2] {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", incoming.local_addr().unwrap());
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        [format!("tracing.otlp_endpoint=\"{url}\""), "tracing.traces_per_million=0".into()]
    }

    /// Everything that came.
    pub fn all(&self) -> Vec<Seen> {
        self.0.lock().unwrap().clone()
    }

    /// Waits until a trace has all [`STAGES`] and no other; its spans, and those that link to it.
    pub async fn follow(&self, trace_id: &[u8]) -> Vec<Seen> {
        let is_of = |span: &Span| span.trace_id == trace_id || span.links.iter().any(|link| link.trace_id == trace_id);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut seen = self.all();
            seen.retain(|seen| is_of(&seen.span));
            if seen.iter().map(|seen| seen.span.name.as_str()).collect::<BTreeSet<_>>() == STAGES.into() {
                return seen;
            }
            assert!(Instant::now() < deadline, "only these spans came: {seen:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The value of an attribute.
pub fn text_of<'a>(attributes: &'a [KeyValue], name: &str) -> &'a str {
    let value = attributes.iter().find(|attribute| attribute.key == name).and_then(|a| a.value.as_ref());
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{name} is {other:?} in {attributes:?}"),
    }
}

/// A caller's context, which asks for the trace or says that it does not want it; with it the ids of trace and span.
pub fn of_caller(wanted: bool) -> (String, [u8; 16], [u8; 8]) {
    let header = format!("00-{}-{}-0{}", "4b".repeat(16), "07".repeat(8), u8::from(wanted));
    (header, [0x4b; 16], [7; 8])
}
