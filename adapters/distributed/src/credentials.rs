//! Passwords and certificates. They are in files that settings name, and messages show neither.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A file that a setting names is of no use. What it holds is not told.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be read, which the setting {setting} names: {why}", path = path.display())]
pub struct BadFile {
    setting: &'static str,
    path: PathBuf,
    why: String,
}

impl BadFile {
    fn new(setting: &'static str, path: &Path, why: impl ToString) -> Self {
        Self { setting, path: path.to_owned(), why: why.to_string() }
    }
}

/// The content of the file that a setting names.
pub(crate) fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, BadFile> {
    fs::read(path).map_err(|error| BadFile::new(setting, path, error))
}

/// The password in the file that a setting names. Line ends behind it are not part of it.
pub(crate) fn password(setting: &'static str, path: &Path) -> Result<String, BadFile> {
    let text = String::from_utf8(read(setting, path)?);
    match text.as_deref().map(|text| text.trim_end_matches(['\r', '\n'])) {
        Ok("") => Err(BadFile::new(setting, path, "it is empty")),
        Ok(password) => Ok(password.to_owned()),
        Err(_) => Err(BadFile::new(setting, path, "it is not text")),
    }
}

/// A URL as messages show it: somebody may have put a password before the `@`.
pub fn shown(url: &str) -> String {
    match (url.rsplit_once('@'), url.split_once("://")) {
        (None, _) => url.to_owned(),
        (Some((_, hosts)), None) => hosts.to_owned(),
        (Some((_, hosts)), Some((scheme, _))) => format!("{scheme}://{hosts}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_a_line_or_the_file_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let written = |content: &[u8]| {
            fs::write(file.path(), content).unwrap();
            password("x.password_file", file.path()).map_err(|error| error.to_string())
        };
        assert_eq!(written(b" pass word\r\n").unwrap(), " pass word");
        for (content, why) in [(&b"\n"[..], "it is empty"), (b"secret\xff", "it is not text")] {
            let error = written(content).unwrap_err();
            assert!(error.contains("x.password_file") && error.contains(why) && !error.contains("secret"), "{error}");
        }
        let error = password("x.password_file", Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere cannot be read"), "{error}");
    }

    #[test]
    fn urls_are_shown_without_users() {
        for (url, seen) in
            [("a://u:p@b:1/c", "a://b:1/c"), ("a://u:p@b@c", "a://c"), ("a://b", "a://b"), ("u:p@b", "b")]
        {
            assert_eq!(shown(url), seen);
        }
    }
}
