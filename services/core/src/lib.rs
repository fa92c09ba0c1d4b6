//! The domain of Herald: identifiers, records, books, policies, and the ports that its services are written against.
//!
//! Nothing in here does IO, knows a vendor, spawns a task or reads a clock. Services depend on this crate and never on
//! each other; adapters implement the [`ports`].

pub mod auth;
pub mod books;
pub mod bucket;
pub mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod control;
pub mod dead_letters;
pub mod done_map;
pub mod fair;
pub mod ids;
pub mod latency;
pub mod leases;
pub mod levels;
pub mod limits;
pub mod outage;
pub mod outputs;
pub mod packed;
pub mod people;
pub mod policy;
pub mod ports;
pub mod problem;
pub mod providers;
pub mod quiet_hours;
pub mod secrets;
pub mod switches;
pub mod tokens;
pub mod topic;
pub mod trace;
pub mod under_way;
pub mod user_log;
pub mod waiting;
pub mod window;

pub use herald_proto::record;
pub use herald_templates as templates;
