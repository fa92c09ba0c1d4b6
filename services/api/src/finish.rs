//! The outermost layer: every answer has its request id, and every refusal is a problem document.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::response::Response;
use herald_core::{clock::Entropy, problem::Problem};
use http::{HeaderMap, Request, header};
use tower::{Layer, Service};

use crate::{
    rejection::{of_status, render},
    request_id::{REQUEST_ID, RequestId},
};

/// Gives each answer its `Request-Id` and renders problems; gRPC answers keep their form.
#[derive(Clone)]
pub struct Finish {
    entropy: Arc<dyn Entropy>,
}

impl Finish {
    /// New ids are drawn from `entropy`.
    pub fn new(entropy: Arc<dyn Entropy>) -> Self {
        Self { entropy }
    }
}

impl<S> Layer<S> for Finish {
    type Service = Finishing<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Finishing { inner, entropy: self.entropy.clone() }
    }
}

/// The service of [`Finish`].
#[derive(Clone)]
pub struct Finishing<S> {
    inner: S,
    entropy: Arc<dyn Entropy>,
}

impl<S, B> Service<Request<B>> for Finishing<S>
where
    S: Service<Request<B>, Response = Response>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = FinishFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let id = RequestId::of(request.headers().get(REQUEST_ID), &*self.entropy);
        request.extensions_mut().insert(id.clone());
        FinishFuture { inner: Box::pin(self.inner.call(request)), id }
    }
}

/// The future of [`Finishing`].
pub struct FinishFuture<F> {
    inner: Pin<Box<F>>,
    id: RequestId,
}

impl<F, E> Future for FinishFuture<F>
where
    F: Future<Output = Result<Response, E>>,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.inner.as_mut().poll(context).map_ok(|mut response| {
            finish(&mut response, &self.id);
            response
        })
    }
}

fn finish(response: &mut Response, id: &RequestId) {
    if response.status().is_client_error() || response.status().is_server_error() {
        match response.extensions_mut().remove::<Problem>() {
            Some(problem) => render(&problem, id.as_str(), response),
            None if !has_document(response.headers()) => render(&of_status(response.status()), id.as_str(), response),
            None => {}
        }
    }
    response.headers_mut().insert(REQUEST_ID, id.header());
}

/// Whether an error's answer is JSON already, such as that of a readiness check.
fn has_document(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|media_type| {
        let media_type = media_type.as_bytes();
        !media_type.starts_with(b"text/plain") && !media_type.is_empty()
    })
}

/// Whether a request is one of gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|media_type| media_type.as_bytes().starts_with(b"application/grpc"))
}
