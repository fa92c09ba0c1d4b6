//! Traces: W3C trace context, and the spans that the stages record of it.
//!
//! A notification carries the context of the call that made it (OpenTelemetry's creation context). Every stage records
//! its span as a child of that; what is done for many notifications at once links to them instead. Nothing is recorded
//! of what is not sampled.

use std::fmt;

use crate::clock::Entropy;

/// Attribute names of OpenTelemetry's semantic conventions 1.45, and Herald's own. All of them are here.
pub mod names {
    /// `kafka`, or `herald` for the embedded log.
    pub const SYSTEM: &str = "messaging.system.name";
    /// The name of the operation.
    pub const OPERATION_NAME: &str = "messaging.operation.name";
    /// `send`, `process` or `settle`.
    pub const OPERATION_TYPE: &str = "messaging.operation.type";
    /// The topic.
    pub const DESTINATION: &str = "messaging.destination.name";
    /// The partition.
    pub const PARTITION: &str = "messaging.destination.partition.id";
    /// The group that reads.
    pub const GROUP: &str = "messaging.consumer.group.name";
    /// How many there are of what the span is about.
    pub const BATCH_COUNT: &str = "messaging.batch.message_count";
    /// The record's offset.
    pub const OFFSET: &str = "kafka.offset";
    /// What went wrong, as a code.
    pub const ERROR: &str = "error.type";
    /// The notification's id.
    pub const NOTIFICATION: &str = "herald.notification.id";
    /// Whose it is.
    pub const TENANT: &str = "herald.tenant";
    /// Which channel.
    pub const CHANNEL: &str = "herald.channel";
    /// Which provider.
    pub const PROVIDER: &str = "herald.provider";
    /// Instances created or ended.
    pub const INSTANCES: &str = "herald.instances";
}

/// A span's identity as it travels, in the form of W3C `traceparent`, version 00.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// Of the whole trace; never 0.
    pub trace_id: u128,
    /// Of the span; never 0.
    pub span_id: u64,
    /// Whether spans of it are recorded.
    pub sampled: bool,
}

impl TraceParent {
    /// Reads the header. Anything that is not a valid one of version 00 is `None`.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let framed = bytes.len() == 55 && text.starts_with("00-") && bytes[35] == b'-' && bytes[52] == b'-';
        let hex = |part: &[u8]| part.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
        if !framed || ![3..35, 36..52, 53..55].into_iter().all(|part| hex(&bytes[part])) {
            return None;
        }
        let trace_id = u128::from_str_radix(&text[3..35], 16).ok()?;
        let span_id = u64::from_str_radix(&text[36..52], 16).ok()?;
        let flags = u8::from_str_radix(&text[53..55], 16).ok()?;
        (trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }

    /// Reads it only if it is sampled: what a stage asks of each record.
    pub fn sampled(text: &str) -> Option<Self> {
        // The flags are the last of its characters, and most traces are told apart by them alone.
        let odd = text.as_bytes().last().is_some_and(|last| !last.is_ascii_digit() || (last - b'0') % 2 == 1);
        if odd { Self::parse(text).filter(|context| context.sampled) } else { None }
    }

    /// The first span of a new trace.
    pub fn root(entropy: &dyn Entropy, sampled: bool) -> Self {
        // All zeros is invalid, so one bit is always set.
        let (high, low) = (entropy.next_u64() | 1, entropy.next_u64());
        Self { trace_id: u128::from(high) << 64 | u128::from(low), span_id: entropy.next_u64() | 1, sampled }
    }

    /// Another span of the same trace.
    #[must_use]
    pub fn child(&self, entropy: &dyn Entropy) -> Self {
        Self { span_id: entropy.next_u64() | 1, ..*self }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

/// A span's place in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Takes a call.
    Server,
    /// Works on what another stage left.
    Consumer,
    /// Calls somebody outside.
    Client,
}

/// An attribute's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Number(u64),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

/// A finished span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its own identity.
    pub context: TraceParent,
    /// The span that it is a part of.
    pub parent: Option<TraceParent>,
    /// What else it was done for.
    pub links: Vec<TraceParent>,
    /// `operation destination`.
    pub name: String,
    /// Its place in a conversation.
    pub kind: SpanKind,
    /// Milliseconds since the epoch.
    pub start_ms: u64,
    /// Milliseconds since the epoch.
    pub end_ms: u64,
    /// By names of [`names`].
    pub attributes: Vec<(&'static str, Value)>,
    /// What went wrong, as a code.
    pub error: Option<String>,
}

impl Span {
    /// A span with neither links, attributes nor an error.
    pub fn new(
        context: TraceParent,
        parent: Option<TraceParent>,
        name: String,
        kind: SpanKind,
        start_ms: u64,
        end_ms: u64,
    ) -> Self {
        // A clock that was set back makes no span end before it began.
        let end_ms = end_ms.max(start_ms);
        Self { context, parent, links: Vec::new(), name, kind, start_ms, end_ms, attributes: Vec::new(), error: None }
    }

    /// With an attribute.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }
}

/// Where finished spans go.
pub trait Spans: Send + Sync + 'static {
    /// Whether anybody wants them.
    fn wanted(&self) -> bool;

    /// Takes a span. Never waits; what there is no room for is dropped and counted.
    fn record(&self, span: Span);
}

/// Wants no spans.
pub struct NoSpans;

impl Spans for NoSpans {
    fn wanted(&self) -> bool {
        false
    }

    fn record(&self, _span: Span) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Zero;

    impl Entropy for Zero {
        fn next_u64(&self) -> u64 {
            0
        }
    }

    #[test]
    fn a_valid_context_comes_back_and_anything_else_is_none() {
        for valid in [
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        ] {
            assert_eq!(TraceParent::parse(valid).map(|context| context.to_string()).as_deref(), Some(valid));
            for bad in [&valid.to_uppercase(), &valid.replace("00-4", "01-4"), &format!("{valid}0"), &valid[1..]] {
                assert_eq!(TraceParent::parse(bad), None, "{bad}");
            }
        }
        let zeros = format!("00-{:032x}-{:016x}-01", 0, 1);
        assert_eq!((TraceParent::parse(""), TraceParent::parse(&zeros)), (None, None));
    }

    #[test]
    fn only_what_is_sampled_is_read_as_sampled() {
        let with_flags = |flags: &str| format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
        for (flags, sampled) in [("01", true), ("00", false), ("03", true), ("02", false), ("0b", true), ("0a", false)]
        {
            assert_eq!(TraceParent::sampled(&with_flags(flags)).is_some(), sampled, "{flags}");
        }
    }

    #[test]
    fn roots_and_children_are_valid_even_without_chance() {
        let root = TraceParent::root(&Zero, true);
        assert_eq!(TraceParent::parse(&root.to_string()), Some(root));
        let child = root.child(&Zero);
        assert_eq!((child.trace_id, child.sampled), (root.trace_id, true));
    }
}
