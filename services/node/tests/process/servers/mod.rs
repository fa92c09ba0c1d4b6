//! Kafka, Cassandra and Redis: one process with all roles, and roles as processes of their own.

mod front;
mod installation;
mod kill;
mod lag;
mod levels;
mod outages;
mod roles;
mod takeover;
mod traces;

use tokio::sync::RwLock;

/// Tests use the servers together; a test that stops one has them alone.
static SERVERS: RwLock<()> = RwLock::const_new(());
