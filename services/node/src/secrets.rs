//! The keys that secrets are sealed with, from a file.

use std::{
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use anyhow::Context;
use herald_core::{
    clock::World,
    secrets::{KEY_BYTES, SecretKeys},
};

use crate::config::Config;

/// The file that a development node makes in its data directory.
const DEV_FILE: &str = "secrets.key";

/// The keys of `secrets.key_file`; `None` where none is set.
pub fn configured(config: &Config) -> anyhow::Result<Option<SecretKeys>> {
    let path = config.secrets.key_file.as_str();
    if path.is_empty() { Ok(None) } else { read(Path::new(path)).map(Some) }
}

/// The keys of a development node, which makes its own.
pub fn development(directory: &Path, world: &World) -> anyhow::Result<SecretKeys> {
    let path = directory.join(DEV_FILE);
    make(&path, world).with_context(|| format!("{} cannot be made", path.display()))?;
    read(&path)
}

/// The keys that lie in a data directory; `None` where there are none, as where they are configured.
pub(crate) fn in_directory(directory: &Path) -> anyhow::Result<Option<SecretKeys>> {
    let path = directory.join(DEV_FILE);
    if path.exists() { read(&path).map(Some) } else { Ok(None) }
}

fn read(path: &Path) -> anyhow::Result<SecretKeys> {
    let named = || format!("the key file {} cannot be used", path.display());
    let text = std::fs::read_to_string(path).with_context(named)?;
    let mode = std::fs::metadata(path).with_context(named)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others than its owner may read the keys; chmod 600 it");
    }
    SecretKeys::parse(&text).with_context(named)
}

/// Makes a file with one key, whole or not at all; one that is there stays.
fn make(path: &Path, world: &World) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let mut key = [0; KEY_BYTES];
    key.chunks_mut(8).for_each(|part| part.copy_from_slice(&world.entropy.next_u64().to_ne_bytes()));
    let new = path.with_extension("key.new");
    let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(SecretKeys::file_of(&key).as_bytes())?;
    file.sync_all()?;
    std::fs::rename(new, path)?;
    // What is sealed with a key must not outlive it.
    std::fs::File::open(path.parent().unwrap_or(path))?.sync_all()
}
