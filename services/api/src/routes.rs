//! Routes that say which call of the API they serve. The router, the OpenAPI document and the tests that go through
//! every route are made of this one table, so none of them can leave a route out.

use axum::{
    Router,
    extract::DefaultBodyLimit,
    handler::Handler,
    routing::{MethodFilter, on},
};
use http::Method;

/// What a route serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serves {
    /// A method of the protobuf API, such as `Users.PutUser`.
    Rpc(&'static str),
    /// A call to the one process that answers it, such as a backup of its disk. It has no gRPC face.
    Process(ProcessCall),
    /// Something beside the protobuf API.
    Page {
        /// What it is, in a few words.
        summary: &'static str,
        /// Of what it answers.
        media_type: &'static str,
    },
}

/// A call to one process; see [`Serves::Process`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessCall {
    /// Its name, as a method's: `Admin.CreateBackup`.
    pub name: &'static str,
    /// What it does, in a sentence or two.
    pub text: &'static str,
    /// The JSON Schema of its body, if it has one.
    pub takes: Option<&'static str>,
    /// The JSON Schema of its answer.
    pub answers: &'static str,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, with `{field}` for fields of the request message.
    pub path: &'static str,
    /// What it serves.
    pub serves: Serves,
    /// The status of its answer where all is well.
    pub status: u16,
    /// Fields of the request message that come in the query although there is a body; without a body all do.
    pub query: &'static [&'static str],
    /// Fields of the request message that come in a header, with the header's name.
    pub headers: &'static [(&'static str, &'static str)],
    /// Where the body is limited otherwise than elsewhere, in bytes.
    pub max_body_bytes: Option<usize>,
}

impl Route {
    /// A route of a method of the API.
    pub const fn rpc(method: Method, path: &'static str, rpc: &'static str) -> Self {
        let serves = Serves::Rpc(rpc);
        Self { method, path, serves, status: 200, query: &[], headers: &[], max_body_bytes: None }
    }

    /// A route of a call to one process.
    pub const fn process(method: Method, path: &'static str, call: ProcessCall) -> Self {
        let serves = Serves::Process(call);
        Self { method, path, serves, status: 200, query: &[], headers: &[], max_body_bytes: None }
    }

    /// A route beside the API, which needs no key.
    pub const fn page(method: Method, path: &'static str, media_type: &'static str, summary: &'static str) -> Self {
        let serves = Serves::Page { summary, media_type };
        Self { method, path, serves, status: 200, query: &[], headers: &[], max_body_bytes: None }
    }

    /// `GET`.
    pub const fn get(path: &'static str, rpc: &'static str) -> Self {
        Self::rpc(Method::GET, path, rpc)
    }

    /// `PUT`.
    pub const fn put(path: &'static str, rpc: &'static str) -> Self {
        Self::rpc(Method::PUT, path, rpc)
    }

    /// `POST`.
    pub const fn post(path: &'static str, rpc: &'static str) -> Self {
        Self::rpc(Method::POST, path, rpc)
    }

    /// `PATCH`.
    pub const fn patch(path: &'static str, rpc: &'static str) -> Self {
        Self::rpc(Method::PATCH, path, rpc)
    }

    /// `DELETE`.
    pub const fn delete(path: &'static str, rpc: &'static str) -> Self {
        Self::rpc(Method::DELETE, path, rpc)
    }

    /// Answers with this status.
    pub const fn answers(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Takes these fields in the query.
    pub const fn in_query(mut self, fields: &'static [&'static str]) -> Self {
        self.query = fields;
        self
    }

    /// Takes these fields in headers.
    pub const fn in_headers(mut self, headers: &'static [(&'static str, &'static str)]) -> Self {
        self.headers = headers;
        self
    }

    /// Takes bodies of this size.
    pub const fn max_body(mut self, bytes: usize) -> Self {
        self.max_body_bytes = Some(bytes);
        self
    }

    /// Whether requests have a body.
    pub fn has_body(&self) -> bool {
        matches!(self.method, Method::PUT | Method::POST | Method::PATCH)
    }

    /// The fields in the path.
    pub fn path_fields(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('{').skip(1).filter_map(|rest| rest.split('}').next())
    }
}

/// A router and what its routes serve.
pub struct Routes<S = ()> {
    router: Router<S>,
    table: Vec<Route>,
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// No routes.
    pub fn new() -> Self {
        Self { router: Router::new(), table: Vec::new() }
    }

    /// Has a handler serve a route.
    ///
    /// # Panics
    /// At start, for a method that no router knows, or a route that is there twice.
    #[must_use]
    pub fn on<H: Handler<T, S>, T: 'static>(mut self, route: Route, handler: H) -> Self {
        let filter = MethodFilter::try_from(route.method.clone()).unwrap_or(MethodFilter::GET);
        let mut methods = on(filter, handler);
        if let Some(bytes) = route.max_body_bytes {
            methods = methods.layer(DefaultBodyLimit::max(bytes));
        }
        self.router = self.router.route(route.path, methods);
        self.table.push(route);
        self
    }

    /// Notes a route whose handler is there, under a path that the router cannot tell apart, or in a router that came
    /// as a whole.
    #[must_use]
    pub fn note(mut self, route: Route) -> Self {
        self.table.push(route);
        self
    }

    /// Both.
    #[must_use]
    pub fn merge(mut self, other: impl Into<Self>) -> Self {
        let other = other.into();
        self.router = self.router.merge(other.router);
        self.table.extend(other.table);
        self
    }

    /// Changes the router.
    #[must_use]
    pub fn map(mut self, change: impl FnOnce(Router<S>) -> Router<S>) -> Self {
        self.router = change(self.router);
        self
    }

    /// Gives the handlers their state.
    pub fn with_state(self, state: S) -> Routes {
        Routes { router: self.router.with_state(state), table: self.table }
    }

    /// What the routes serve.
    pub fn table(&self) -> &[Route] {
        &self.table
    }

    /// The router.
    pub fn into_router(self) -> Router<S> {
        self.router
    }
}

impl<S: Clone + Send + Sync + 'static> Default for Routes<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> From<Router<S>> for Routes<S> {
    fn from(router: Router<S>) -> Self {
        Self { router, table: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_knows_its_fields() {
        let route = Route::post("/v1/users/{user_id}/things/{thing_id}:mark", "Things.Mark");
        assert_eq!(route.path_fields().collect::<Vec<_>>(), ["user_id", "thing_id"]);
        assert!(route.has_body());
    }
}
