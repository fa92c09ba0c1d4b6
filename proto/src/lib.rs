//! The messages of Herald: its public API and the records on its log.
//!
//! The `.proto` files in this crate are the source of truth. gRPC and HTTP/JSON share the messages of [`v1`]; the
//! pipeline's stages share those of [`record`].

#![allow(missing_docs, clippy::all)]

pub mod codec;

/// The public API, `herald.v1`.
pub mod v1 {
    tonic::include_proto!("herald.v1");
    include!(concat!(env!("OUT_DIR"), "/herald.v1.serde.rs"));
}

/// Records on the log, `herald.record.v1`.
pub mod record {
    include!(concat!(env!("OUT_DIR"), "/herald.record.v1.rs"));
}

/// The descriptors of the public API, for gRPC reflection and OpenAPI.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/herald.bin"));

impl std::fmt::Debug for v1::PutProviderRequest {
    /// Without credentials, whoever logs it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PutProviderRequest").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}
