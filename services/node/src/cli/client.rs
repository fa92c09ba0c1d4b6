//! A small client of the HTTP face.

use std::{fmt::Write as _, io, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::Value;

use super::exit::Failure;

/// The largest answer that is taken.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Any server takes this much, but for one that was told not to.
const LARGE_BODY_BYTES: usize = 2 << 20;

/// How long an answer may take; an acceptance waits for the disk only.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// The largest page that the server gives.
const MAX_PAGE: usize = 1_000;

/// The heading of the flags of a connection, which each command that calls a server has.
pub const HEADING: &str = "Connection and output";

/// Which server, as whom, and in which form the answer is printed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = HEADING)]
pub struct Connect {
    /// The server's address.
    #[arg(long, env = "HERALD_URL", default_value = "http://127.0.0.1:8080", global = true)]
    pub url: String,
    /// An API key; herald dev has hk_dev_demo and, for operators, hk_dev_admin.
    #[arg(long, env = "HERALD_KEY", hide_env_values = true, global = true)]
    pub key: Option<String>,
    /// The tenant that an operator's key acts for.
    #[arg(long, env = "HERALD_TENANT", global = true)]
    pub tenant: Option<String>,
    /// A PEM file with the authority that signed the server's certificate; the system's authorities unless given.
    #[arg(long, env = "HERALD_CA_FILE", global = true)]
    pub ca_file: Option<PathBuf>,
    /// Prints JSON for programs, also of a failure.
    #[arg(long, global = true)]
    pub json: bool,
}

/// A client. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: String,
    key: String,
    tenant: Option<String>,
}

impl Connect {
    /// A client that acts for the tenant of the key, or for the one that an operator names.
    ///
    /// # Errors
    /// For an address that is none, a key that is missing, and certificates that cannot be read.
    pub fn client(&self) -> Result<Client, Failure> {
        let url = url::Url::parse(&self.url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| {
                Failure::Usage(format!("--url {:?} is no address; write it as http://127.0.0.1:8080", self.url))
            })?;
        let key = self.key.clone().filter(|key| !key.is_empty()).ok_or_else(|| {
            Failure::Denied(
                "no key is given; use --key or HERALD_KEY (herald dev has hk_dev_demo and, for operators, hk_dev_admin)"
                    .into(),
            )
        })?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(10)));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(self.tls(url.scheme() == "https")?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Ok(Client {
            http: legacy::Client::builder(TokioExecutor::new()).build(connector),
            url: self.url.trim_end_matches('/').to_owned(),
            key,
            tenant: self.tenant.clone(),
        })
    }

    /// A client for calls that are about no tenant: an operator's environment may name one, which must not narrow them.
    ///
    /// # Errors
    /// As [`Connect::client`].
    pub fn operator(&self) -> Result<Client, Failure> {
        Ok(Client { tenant: None, ..self.client()? })
    }

    fn tls(&self, needed: bool) -> Result<ClientConfig, Failure> {
        let mut roots = RootCertStore::empty();
        match &self.ca_file {
            Some(path) => {
                let unreadable = || format!("--ca-file {} cannot be read", path.display());
                for certificate in CertificateDer::pem_file_iter(path).with_context(unreadable)? {
                    roots.add(certificate.with_context(unreadable)?).with_context(unreadable)?;
                }
            }
            None if needed => {
                let found = rustls_native_certs::load_native_certs();
                let (added, _) = roots.add_parsable_certificates(found.certs);
                if added == 0 {
                    let error = "this system has no certificate authorities; name one with --ca-file";
                    return Err(anyhow::anyhow!(error).into());
                }
            }
            None => {}
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        Ok(builder.context("TLS cannot be set up")?.with_root_certificates(roots).with_no_client_auth())
    }
}

impl Client {
    /// Reads.
    ///
    /// # Errors
    /// What the server refuses, or that there is no answer.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::GET, path, None, None).await
    }

    /// Acts.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::POST, path, Some(body), None).await
    }

    /// Stores.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::PUT, path, Some(body), None).await
    }

    /// Deletes.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::DELETE, path, None, None).await
    }

    /// Any call; null where the answer has no body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        idempotency_key: Option<&str>,
    ) -> Result<Value, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key))
            .header(header::ACCEPT, "application/json");
        if let Some(tenant) = &self.tenant {
            request = request.header("Herald-Tenant", tenant);
        }
        if let Some(key) = idempotency_key {
            request = request.header("Idempotency-Key", key);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                serde_json::to_vec(body).context("the body cannot be written as JSON")?
            }
            None => Vec::new(),
        };
        let length = bytes.len();
        let request = request.body(Full::from(bytes)).map_err(|_| {
            Failure::Usage("a key, tenant or address has characters that no header or URL can have".into())
        })?;
        let answered = tokio::time::timeout(ANSWER_WITHIN, self.answer(request, length)).await;
        answered.map_err(|_| self.unreachable("it took longer than 60 seconds"))?
    }

    async fn answer(&self, request: Request<Full<Bytes>>, length: usize) -> Result<Value, Failure> {
        let response = self.http.request(request).await.map_err(|error| {
            // The innermost cause names what happened, such as "Connection refused".
            let mut cause: &(dyn std::error::Error + 'static) = &error;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
                // A server that will not read all of a body answers 413 and closes, which may come before the answer.
                Some(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) if length > LARGE_BODY_BYTES => {
                    let why = "closed the connection before it had read all of the body, which is probably too large";
                    let size = format!("{length} bytes; it takes what gateway.max_body_bytes says, 4 MiB unless set");
                    Failure::Other(anyhow::anyhow!("{} {why} ({size})", self.url))
                }
                _ => self.unreachable(&cause.to_string()),
            }
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let bytes = body.map_err(|error| self.unreachable(&error.to_string()))?.to_bytes();
        let body: Option<Value> = serde_json::from_slice(&bytes).ok();
        match (status.is_success(), body) {
            (true, Some(body)) => Ok(body),
            (true, None) if bytes.is_empty() => Ok(Value::Null),
            (true, None) => {
                Err(anyhow::anyhow!("{} answers, but not as Herald does; is --url right?", self.url).into())
            }
            (false, body) => Err(Failure::Refused { status: status.as_u16(), problem: body.unwrap_or(Value::Null) }),
        }
    }

    fn unreachable(&self, cause: &str) -> Failure {
        let local = self.url.contains("127.0.0.1") || self.url.contains("localhost");
        let hint = match (cause.contains("refused"), local) {
            (true, true) => "Is herald dev running? Start it in another terminal, or name another server with --url.",
            (true, false) => "Is the server running, and is --url (or HERALD_URL) right?",
            _ => "Check --url (or HERALD_URL) and the network.",
        };
        Failure::Unreachable { url: self.url.clone(), cause: cause.to_owned(), hint: hint.to_owned() }
    }

    /// The entries of a list, page after page, at most `limit` (0 for all).
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn list(&self, path: &str, query: &Query, field: &str, limit: usize) -> Result<Vec<Value>, Failure> {
        let mut found = Vec::new();
        let mut token = String::new();
        loop {
            let left = if limit == 0 { MAX_PAGE } else { limit - found.len() };
            let page = query.clone().with("page_size", &left.min(MAX_PAGE).to_string()).with("page_token", &token);
            let mut answer = self.get(&format!("{path}{}", page.text())).await?;
            if let Some(Value::Array(entries)) = answer.get_mut(field).map(Value::take) {
                found.extend(entries);
            }
            token = answer["next_page_token"].as_str().unwrap_or_default().to_owned();
            if token.is_empty() || (limit > 0 && found.len() >= limit) {
                return Ok(found);
            }
        }
    }
}

/// The query of a call; what is empty is left away.
#[derive(Debug, Clone, Default)]
pub struct Query(String);

impl Query {
    /// Adds a parameter unless it is empty.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        if !value.is_empty() {
            let mark = if self.0.is_empty() { '?' } else { '&' };
            // Writing to a text cannot fail.
            let _written = write!(self.0, "{mark}{name}={}", segment(value));
        }
        self
    }

    /// Adds a parameter if there is one.
    pub fn with_some(self, name: &str, value: Option<&str>) -> Self {
        self.with(name, value.unwrap_or_default())
    }

    /// The query with its question mark; empty for none.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// What neither a segment of a path nor a value of a query has as it is: everything but RFC 3986's unreserved
/// characters, and the colons of times and actions.
const ESCAPED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');

/// A text as a segment of a path or a value of a query.
pub fn segment(text: &str) -> String {
    utf8_percent_encode(text, &ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_escapes_and_leaves_away_what_is_empty() {
        let query = Query::default().with("since", "2026-01-01T00:00:00+01:00").with("state", "").with("a", "x y&z");
        assert_eq!(query.text(), "?since=2026-01-01T00:00:00%2B01:00&a=x%20y%26z");
        assert_eq!(Query::default().with_some("a", None).text(), "");
        assert_eq!(segment("sw_1-a.b~c"), "sw_1-a.b~c", "the audit log shows paths as they are called");
        assert_eq!(segment("a/b?c#d%e f=ä"), "a%2Fb%3Fc%23d%25e%20f%3D%C3%A4");
    }
}
