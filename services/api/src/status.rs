//! Problems on gRPC: `google.rpc.Status` with `ErrorInfo`, `BadRequest` and `RetryInfo`.

use herald_core::problem::{Kind, Problem};
use prost::Message;
use tonic::{Code, Status};

/// The domain of Herald's `ErrorInfo`s.
pub const ERROR_DOMAIN: &str = "herald";

/// A problem as a gRPC status. `ErrorInfo.reason` is the problem's code.
pub fn status(problem: &Problem, request_id: &str) -> Status {
    let info = ErrorInfo {
        reason: problem.code().to_owned(),
        domain: ERROR_DOMAIN.to_owned(),
        metadata: [
            ("request_id".to_owned(), request_id.to_owned()),
            ("status".to_owned(), problem.kind().status().to_string()),
            ("type".to_owned(), problem.type_uri()),
        ]
        .into(),
    };
    let mut details = vec![Any::pack("google.rpc.ErrorInfo", &info)];
    if !problem.errors().is_empty() {
        let field_violations = problem
            .errors()
            .iter()
            .map(|error| FieldViolation {
                field: error.field.clone(),
                description: error.detail.clone(),
                reason: error.code.to_owned(),
            })
            .collect();
        details.push(Any::pack("google.rpc.BadRequest", &BadRequest { field_violations }));
    }
    if let Some(seconds) = problem.retry_after_s() {
        let retry_delay = Some(pbjson_types::Duration { seconds: seconds.into(), nanos: 0 });
        details.push(Any::pack("google.rpc.RetryInfo", &RetryInfo { retry_delay }));
    }
    let code = code(problem.kind());
    let rich = RpcStatus { code: code as i32, message: problem.detail().to_owned(), details };
    Status::with_details(code, problem.detail(), rich.encode_to_vec().into())
}

/// The HTTP status and the code of the problem that a gRPC status was made from; those of an internal error for a status
/// of somebody else's.
pub fn problem_of(status: &Status) -> (u16, String) {
    let info = || {
        let rich = RpcStatus::decode(status.details()).ok()?;
        let info = rich.details.iter().find(|detail| detail.type_url.ends_with("/google.rpc.ErrorInfo"))?;
        let info = ErrorInfo::decode(&*info.value).ok()?;
        Some((info.metadata.get("status")?.parse().ok()?, info.reason))
    };
    info().unwrap_or_else(|| (Kind::Internal.status(), format!("grpc_{}", status.code() as i32)))
}

/// The gRPC code of a kind of problem.
pub fn code(kind: Kind) -> Code {
    match kind {
        Kind::Malformed | Kind::UnsupportedMedia | Kind::TooLarge => Code::InvalidArgument,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::Forbidden => Code::PermissionDenied,
        Kind::NotFound => Code::NotFound,
        Kind::MethodNotAllowed => Code::Unimplemented,
        Kind::Conflict => Code::Aborted,
        Kind::Refused => Code::FailedPrecondition,
        Kind::TooMany => Code::ResourceExhausted,
        Kind::Internal => Code::Internal,
        Kind::Unavailable => Code::Unavailable,
    }
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub struct RpcStatus {
    /// A gRPC code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For developers.
    #[prost(string, tag = "2")]
    pub message: String,
    /// The messages below.
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub struct Any {
    /// `type.googleapis.com/` and the message's full name.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

impl Any {
    fn pack(name: &str, message: &impl Message) -> Self {
        Self { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
    }
}

/// `google.rpc.ErrorInfo`.
#[derive(Clone, PartialEq, Message)]
pub struct ErrorInfo {
    /// The problem's code.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// [`ERROR_DOMAIN`].
    #[prost(string, tag = "2")]
    pub domain: String,
    /// `request_id`, `status` and `type`.
    #[prost(btree_map = "string, string", tag = "3")]
    pub metadata: std::collections::BTreeMap<String, String>,
}

/// `google.rpc.BadRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct BadRequest {
    /// The fields that are wrong.
    #[prost(message, repeated, tag = "1")]
    pub field_violations: Vec<FieldViolation>,
}

/// `google.rpc.BadRequest.FieldViolation`.
#[derive(Clone, PartialEq, Message)]
pub struct FieldViolation {
    /// The field's path.
    #[prost(string, tag = "1")]
    pub field: String,
    /// What is wrong.
    #[prost(string, tag = "2")]
    pub description: String,
    /// A stable code.
    #[prost(string, tag = "3")]
    pub reason: String,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
pub struct RetryInfo {
    /// When to come back.
    #[prost(message, optional, tag = "1")]
    pub retry_delay: Option<pbjson_types::Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_carries_code_fields_and_when_to_retry() {
        let problem = Problem::field("ttl", "out_of_range", "Too long.").with_retry_after(3);
        let status = status(&problem, "r1");
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "ttl: Too long."));
        let rich = RpcStatus::decode(status.details()).unwrap();
        let info = ErrorInfo::decode(&*rich.details[0].value).unwrap();
        assert_eq!((info.reason.as_str(), info.metadata["request_id"].as_str()), ("invalid_argument", "r1"));
        assert_eq!(problem_of(&status), (400, "invalid_argument".to_owned()));
        let fields = BadRequest::decode(&*rich.details[1].value).unwrap().field_violations;
        assert_eq!((fields[0].field.as_str(), fields[0].reason.as_str()), ("ttl", "out_of_range"));
        let retry = RetryInfo::decode(&*rich.details[2].value).unwrap();
        assert_eq!(retry.retry_delay.unwrap().seconds, 3);
        assert_eq!(rich.details[2].type_url, "type.googleapis.com/google.rpc.RetryInfo");
    }
}
