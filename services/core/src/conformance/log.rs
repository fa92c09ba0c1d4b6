//! What every [`Log`](crate::ports::log::Log) promises.
