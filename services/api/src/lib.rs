//! What every server of Herald's API shares: one mapping of problems to HTTP and gRPC, JSON bodies and query
//! parameters whose errors name the field, authentication, request ids, and page tokens.
//!
//! Handlers return [`Problem`](herald_core::problem::Problem)s as [`rejection::Rejection`]s; [`finish::Finish`], around
//! the whole router, gives each answer its request id and renders the problem documents.

pub mod audit;
pub mod auth;
pub mod descriptors;
pub mod docs;
mod explain;
pub mod finish;
pub mod items;
pub mod json;
pub mod openapi;
pub mod page;
mod present;
pub mod problems;
pub mod query;
pub mod rejection;
pub mod request_id;
pub mod routes;
pub mod status;
pub mod time;
