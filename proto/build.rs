//! Generates the protobuf code with compilers written in Rust, so that no `protoc` is needed.

use std::{env, path::PathBuf};

const PUBLIC: &str = "proto/herald/v1/herald.proto";
const RECORDS: &str = "proto/herald/record/v1/record.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let public = protox::compile([PUBLIC], ["proto"])?;
    let records = protox::compile([RECORDS], ["proto"])?;
    let descriptors = prost::Message::encode_to_vec(&public);
    std::fs::write(out.join("herald.bin"), &descriptors)?;

    let mut config = prost_build::Config::new();
    // Its credentials must not be shown; see lib.rs.
    config.skip_debug(["herald.v1.PutProviderRequest"]);
    config.bytes(["."]).btree_map(["."]).extern_path(".google.protobuf", "::pbjson_types").compile_well_known_types();
    tonic_prost_build::configure()
        .compile_well_known_types(true)
        .codec_path("crate::codec::Counting")
        .compile_fds_with_config(public, config)?;
    pbjson_build::Builder::new()
        .register_descriptors(&descriptors)?
        .preserve_proto_field_names()
        .emit_fields()
        .extern_path(".google.protobuf", "::pbjson_types")
        .btree_map(["."])
        .build(&[".herald.v1"])?;

    prost_build::Config::new().bytes(["."]).btree_map(["."]).compile_fds(records)?;
    Ok(())
}
