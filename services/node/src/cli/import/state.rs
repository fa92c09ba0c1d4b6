//! How far an import is, and what it refused: two files beside each other, so that it goes on after a kill.

use std::{
    fs::{self, File},
    io::{BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// How far an import is. Everything in front of it is stored by the server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is imported, from which file as it was, and to where; another import does not go on from here.
    pub of: String,
    /// The last line that is done.
    pub line: u64,
    /// Where the next one begins, in bytes.
    pub offset: u64,
    /// Lines that were taken.
    pub imported: u64,
    /// Lines that were refused.
    pub refused: u64,
    /// The length of the report that belongs to it.
    pub report_bytes: u64,
}

/// The two files.
pub struct State {
    path: PathBuf,
    report_path: PathBuf,
    report: Option<BufWriter<File>>,
    /// How far the import is.
    pub progress: Progress,
}

impl State {
    /// Opens the state of an import of `file`; begins anew where it is another import's.
    pub fn open(file: &Path, report: &Path, of: String) -> anyhow::Result<Self> {
        let path = with_suffix(file, ".import-state");
        let stored = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Progress>(&bytes).ok());
        let progress = stored.filter(|stored| stored.of == of).unwrap_or(Progress { of, ..Progress::default() });
        let mut state = Self { path, report_path: report.to_owned(), report: None, progress };
        if state.progress.report_bytes > 0 {
            // What was reported behind the state is reported again.
            let report = File::options().write(true).open(report);
            let mut report = report.with_context(|| format!("{} cannot be written", state.report_path.display()))?;
            report.set_len(state.progress.report_bytes)?;
            report.seek(SeekFrom::End(0))?;
            state.report = Some(BufWriter::new(report));
        }
        Ok(state)
    }

    /// Begins anew.
    pub fn reset(&mut self) {
        self.progress = Progress { of: std::mem::take(&mut self.progress.of), ..Progress::default() };
        self.report = None;
    }

    /// Reports a refused line. The line itself is not repeated: it may hold personal data.
    pub fn refuse(&mut self, line: u64, reason: &str) -> anyhow::Result<()> {
        let report = match &mut self.report {
            Some(report) => report,
            none => {
                let created = File::create(&self.report_path);
                none.insert(BufWriter::new(
                    created.with_context(|| format!("{} cannot be written", self.report_path.display()))?,
                ))
            }
        };
        let text = json!({ "line": line, "reason": reason }).to_string();
        writeln!(report, "{text}")?;
        self.progress.report_bytes += text.len() as u64 + 1;
        self.progress.refused += 1;
        Ok(())
    }

    /// Stores how far the import is, whole or not at all.
    pub fn save(&mut self) -> anyhow::Result<()> {
        if let Some(report) = &mut self.report {
            report.flush()?;
        }
        let next = with_suffix(&self.path, ".new");
        let stored = fs::write(&next, serde_json::to_vec(&self.progress)?).and_then(|()| fs::rename(&next, &self.path));
        stored.with_context(|| format!("{} cannot be written", self.path.display()))
    }

    /// The import is over; it has no place to go on from.
    pub fn finish(mut self) -> anyhow::Result<Progress> {
        if let Some(report) = &mut self.report {
            report.flush()?;
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{} cannot be removed", self.path.display()))
            }
            _ => Ok(self.progress),
        }
    }
}

/// A path with something behind its whole name.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_reported_behind_the_state_is_reported_once() {
        let directory = tempfile::tempdir().unwrap();
        let (file, report) = (directory.path().join("users.csv"), directory.path().join("refused.jsonl"));
        let mut state = State::open(&file, &report, "users".into()).unwrap();
        state.refuse(3, "no").unwrap();
        (state.progress.line, state.progress.offset) = (5, 50);
        state.save().unwrap();
        let saved = state.progress.clone();
        state.refuse(7, "lost").unwrap();
        drop(state);
        let mut again = State::open(&file, &report, "users".into()).unwrap();
        assert_eq!(again.progress, saved);
        again.refuse(8, "yes").unwrap();
        again.finish().unwrap();
        let lines = fs::read_to_string(&report).unwrap();
        assert_eq!(lines, "{\"line\":3,\"reason\":\"no\"}\n{\"line\":8,\"reason\":\"yes\"}\n");
        let other = State::open(&file, &report, "edges".into()).unwrap();
        assert_eq!(other.progress.line, 0);
    }
}
