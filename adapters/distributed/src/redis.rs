//! Claims, budgets, sessions and the fleet, on Redis 7 or what speaks like it.
//!
//! Nothing that is kept here is the only copy: claims come from the log, budgets start full, sessions and processes say
//! again what they are. So a Redis that loses everything costs time, and no promise. One that forgets some keys and keeps
//! others would cost the promise of [`claims`]: a server that evicts keys is refused.

pub mod budgets;
pub mod claims;
pub mod config;
pub mod connection;
pub mod fleet;
mod frames;
pub mod sessions;

pub use config::RedisConfig;
pub use connection::Redis;
