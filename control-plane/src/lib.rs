//! The control plane: versioned tenants, keys and templates, and how they reach every role.
//!
//! Roles decide with a [`herald_core::policy::Policy`] that [`feed`] builds from the `control` topic. Changes go to the
//! registry first and are then published by [`publisher`].

pub mod bootstrap;
pub mod feed;
pub mod keys;
pub mod publisher;
pub mod refusal;
pub mod templates;
pub mod tenants;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
