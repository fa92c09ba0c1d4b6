//! Calls by whatever face a method has.

use bytes::{Buf, Bytes};
use herald_api::descriptors;
use prost::Message;
use prost_reflect::DynamicMessage;
use serde_json::{Value, json};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::tokio_stream,
    metadata::{Ascii, MetadataKey},
};

use super::{cases::Case, world::World};
use crate::http::{Answer, send};

/// One way to make a call.
#[derive(Clone)]
pub enum Way {
    Http {
        method: String,
        path: String,
        has_body: bool,
        /// The headers that carry fields, with the fields' names.
        headers: Vec<(String, String)>,
    },
    Grpc,
}

/// What came of a call, on either face.
#[derive(Debug)]
pub enum Came {
    Done(String),
    Unauthenticated,
    Forbidden,
    /// Not found, or refused by a rule since what it names is not there.
    Unknown,
    /// A page token of another list.
    Foreign,
    /// A live feed, which HTTP has on a WebSocket or as events.
    Feed,
    /// Refused for another reason, in words.
    Otherwise(String),
}

impl World {
    /// Makes the call of a case.
    pub async fn call(&self, way: &Way, case: &Case, headers: &[(&str, &str)]) -> Came {
        match way {
            Way::Http { method, path, has_body, headers: carry } => {
                let (path, mut rest) = fill(path, &case.1);
                let mut carried = Vec::new();
                for (field, header) in carry {
                    if let Some(value) = rest.as_object_mut().unwrap().remove(field) {
                        carried.push((header.as_str(), value.as_str().unwrap().to_owned()));
                    }
                }
                let carried = carried.iter().map(|(name, value)| (*name, value.as_str()));
                let headers: Vec<(&str, &str)> = headers.iter().copied().chain(carried).collect();
                let (path, body) = if *has_body { (path, Some(rest)) } else { (path + &query(&rest), None) };
                of_http(send(self.port, method, &path, &headers, body.as_ref()).await)
            }
            Way::Grpc => match self.rpc(case, headers).await {
                Ok(answer) => answer,
                Err(status) => of_grpc(&status),
            },
        }
    }

    /// Calls a method by its descriptor.
    async fn rpc(&self, Case(name, fields, _): &Case, headers: &[(&str, &str)]) -> Result<Came, Status> {
        let method = descriptors::method(name).unwrap();
        let message = DynamicMessage::deserialize(method.input(), fields).unwrap();
        let mut request = Request::new(tokio_stream::once(message));
        for (name, value) in headers {
            let name: MetadataKey<Ascii> = name.to_lowercase().parse().unwrap();
            request.metadata_mut().insert(name, value.parse().unwrap());
        }
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let mut grpc = Grpc::new(self.grpc.clone());
        grpc.ready().await.unwrap();
        let mut answers = grpc.streaming(request, path.parse().unwrap(), Raw).await?.into_inner();
        // A stream that is open says nothing until something happens.
        if method.is_server_streaming() && !method.is_client_streaming() {
            return Ok(Came::Feed);
        }
        let answer = answers.message().await?.unwrap_or_default();
        Ok(Came::Done(String::from_utf8_lossy(&answer).into_owned()))
    }
}

/// Puts fields into a path; returns it and the fields that are left.
fn fill(path: &str, fields: &Value) -> (String, Value) {
    let (mut path, mut rest) = (path.to_owned(), fields.clone());
    for (name, value) in fields.as_object().unwrap() {
        let place = format!("{{{name}}}");
        if path.contains(&place) {
            path = path.replace(&place, value.as_str().unwrap());
            rest.as_object_mut().unwrap().remove(name);
        }
    }
    assert!(!path.contains('{'), "the case does not fill {path}");
    (path, rest)
}

fn query(fields: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let pairs: Vec<String> = fields.as_object().unwrap().iter().map(|(k, v)| format!("{k}={}", text(v))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

fn of_http(answer: Answer) -> Came {
    match answer.status {
        200..300 => Came::Done(answer.body),
        401 => Came::Unauthenticated,
        403 => Came::Forbidden,
        404 => Came::Unknown,
        400 if answer.body.contains("page_token_invalid") => Came::Foreign,
        400 if answer.json()["code"] == "upgrade_required" => Came::Feed,
        422 if answer.json()["code"] == "unknown_template" => Came::Unknown,
        _ => Came::Otherwise(answer.body),
    }
}

fn of_grpc(status: &Status) -> Came {
    match status.code() {
        Code::Unauthenticated => Came::Unauthenticated,
        Code::PermissionDenied => Came::Forbidden,
        Code::NotFound => Came::Unknown,
        Code::FailedPrecondition if status.message().contains("template") => Came::Unknown,
        Code::InvalidArgument if String::from_utf8_lossy(status.details()).contains("page_token_invalid") => {
            Came::Foreign
        }
        _ => Came::Otherwise(status.to_string()),
    }
}

/// The routes of methods, which need a key, and those of pages, which need none, as the process describes them.
pub async fn routes(port: u16) -> (Vec<(String, Way)>, Vec<(String, String)>) {
    let document = send(port, "GET", "/openapi.json", &[], None).await.json();
    let (mut of_methods, mut of_pages) = (Vec::new(), Vec::new());
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let method = method.to_uppercase();
            if operation["security"] == json!([]) {
                of_pages.push((method, path.clone()));
                continue;
            }
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let name = format!("{}.{}", text(&operation["tags"][0]), text(&operation["operationId"]));
            let has_body = operation.get("requestBody").is_some();
            let parameters = operation["parameters"].as_array().unwrap().iter();
            let carry = parameters.filter(|parameter| parameter["in"] == "header").map(|parameter| {
                let header = text(&parameter["name"]);
                (header.to_lowercase().replace('-', "_"), header)
            });
            of_methods.push((name, Way::Http { method, path: path.clone(), has_body, headers: carry.collect() }));
        }
    }
    (of_methods, of_pages)
}

/// Sends any message and takes any answer as it is on the wire.
struct Raw;

impl Codec for Raw {
    type Encode = DynamicMessage;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(out).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, answer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(answer.copy_to_bytes(answer.remaining())))
    }
}
