//! The real process: killed, and with the power cut.

mod kill;
mod power_cut;
mod support;
