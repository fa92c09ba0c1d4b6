//! A notification is followed through the spans of all its stages, as a collector receives them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Instant,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use crate::support::{PATIENCE, Setup, notification, user};

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        self.0.lock().unwrap().extend(spans.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves on a free port; returns its URL.
    fn start(&self) -> String {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", incoming.local_addr().unwrap());
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        url
    }

    fn of_trace(&self, trace_id: &[u8]) -> Vec<Span> {
        let spans = self.0.lock().unwrap();
        let is_of = |span: &&Span| span.trace_id == trace_id || span.links.iter().any(|link| link.trace_id == trace_id);
        spans.iter().filter(is_of).cloned().collect()
    }
}

fn text_of<'a>(span: &'a Span, name: &str) -> &'a str {
    let value = span.attributes.iter().find(|attribute| attribute.key == name).and_then(|a| a.value.as_ref());
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{} has {other:?} as {name}", span.name),
    }
}

#[tokio::test]
async fn a_notification_is_followed_through_all_stages_and_nobody_is_named() {
    let collector = Collector::default();
    let directory = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(&directory.path().join("data"));
    setup.settings.push(format!("tracing.otlp_endpoint=\"{}\"", collector.start()));
    setup.settings.push("tracing.traces_per_million=0".into());
    let process = setup.start().await;
    let mut client = process.client().await;
    client.set_up(3).await;

    let (trace, of_caller) = ([0x4b_u8; 16], [7_u8; 8]);
    let header = |flags| format!("00-{}-{}-{flags}", "4b".repeat(16), "07".repeat(8));
    let mut send = async |key: &str, trace_parent: Option<String>| {
        let mut request = Request::new(notification(key, vec![user(0), user(1), user(2)]));
        if let Some(trace_parent) = trace_parent {
            request.metadata_mut().insert("traceparent", trace_parent.parse().unwrap());
        }
        let id = client.notifications.notify(request).await.unwrap().into_inner().request_id;
        client.settled(&id).await;
    };
    // Neither is traced: the caller wants it not, and of a million calls none is.
    send("unwanted", Some(header("00"))).await;
    send("untraced", None).await;
    send("traced", Some(header("01"))).await;

    let expected: BTreeSet<&str> =
        ["notify", "process requests.bulk", "send email", "send in_app", "settle receipts"].into();
    let deadline = Instant::now() + PATIENCE;
    let spans = loop {
        let spans = collector.of_trace(&trace);
        if spans.iter().map(|span| span.name.as_str()).collect::<BTreeSet<_>>() == expected {
            break spans;
        }
        assert!(Instant::now() < deadline, "only these spans came: {spans:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let call = spans.iter().find(|span| span.name == "notify").unwrap();
    assert_eq!(call.parent_span_id, of_caller);
    for span in &spans {
        assert!(
            span.end_time_unix_nano >= span.start_time_unix_nano && span.status.as_ref().is_none_or(|s| s.code == 0)
        );
        match span.name.as_str() {
            "notify" => {}
            "settle receipts" => assert!(span.links.iter().any(|link| link.span_id == call.span_id)),
            _ => assert_eq!(span.parent_span_id, call.span_id, "{}", span.name),
        }
    }
    let email = spans.iter().find(|span| span.name == "send email").unwrap();
    assert_eq!((text_of(email, "herald.provider"), text_of(email, "herald.tenant")), ("smtp", "demo"));
    let everything = format!("{:?}", collector.0.lock().unwrap());
    assert!(!everything.contains("user-") && !everything.contains("example.org"), "somebody is named: {everything}");
    let traces: BTreeSet<Vec<u8>> =
        collector.0.lock().unwrap().iter().filter(|span| span.links.is_empty()).map(|s| s.trace_id.clone()).collect();
    assert_eq!(traces, [trace.to_vec()].into(), "something is traced that nobody asked for");
}
