//! The ports of Herald on shared servers: the log on Apache Kafka, the stores on a CQL database (ScyllaDB or Apache
//! Cassandra), and claims, budgets, sessions and the fleet on Redis.

mod credentials;

pub mod cql;
pub mod kafka;
pub mod redis;

pub use credentials::{BadFile, shown};
