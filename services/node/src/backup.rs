//! Backups of a running process: an operator asks for one with `POST /v1/admin/backups`.
//!
//! The files are written by the process that has the data open, on its own machine. So this is a call to one process,
//! and no part of the API of the roles; it has no gRPC face.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::{
    extract::{FromRef, State},
    http::{Method, StatusCode},
    response::Response,
};
use herald_api::{
    auth::{Authenticated, Authenticator},
    json::{Json, answer},
    rejection::Rejection,
    routes::{ProcessCall, Route, Routes},
};
use herald_core::{
    clock::World,
    problem::{Kind, Problem},
};
use herald_embedded::{
    backup::{self, BackupError, Manifest},
    data_dir::Description,
    disk::RealDisk,
    kv::FjallKv,
    log::EmbeddedLog,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// How long a caller waits for the end of a backup.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A data directory that this process has open.
#[derive(Clone)]
pub struct Backups {
    pub(crate) log: EmbeddedLog,
    pub(crate) stores: Arc<FjallKv>,
    pub(crate) data: Description,
    /// Where it is.
    pub(crate) directory: PathBuf,
    /// What must stay free on the disk of a backup.
    pub(crate) reserve_bytes: u64,
    pub(crate) world: World,
}

impl Backups {
    /// Takes a backup into a directory, which is made if there is none. Blocks for as long as the copy takes.
    ///
    /// # Errors
    /// Where the directory is not empty or cannot be used, or the disk does not take it.
    pub fn take(&self, to: &Path) -> Result<Manifest, BackupError> {
        if is_within(to, &self.directory) {
            return Err(BackupError::WithinData { data: self.directory.clone() });
        }
        let disk = RealDisk::open(to).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem => BackupError::Directory { directory: to.to_owned(), source },
            _ => BackupError::io(format!("make the directory {}", to.display()), source),
        })?;
        let source = backup::Source { log: &self.log, stores: &self.stores, data: &self.data };
        backup::take(&source, &disk, self.reserve_bytes, self.world.now_ms())
    }
}

/// Whether a directory, which may still have to be made, is another one or lies within it.
fn is_within(path: &Path, directory: &Path) -> bool {
    let existing = path.ancestors().find_map(|ancestor| ancestor.canonicalize().ok());
    matches!((existing, directory.canonicalize()), (Some(path), Ok(directory)) if path.starts_with(&directory))
}

const PATH: &str = "/v1/admin/backups";

const CREATE: ProcessCall = ProcessCall {
    name: "Admin.CreateBackup",
    text: "Copies the data of the process that answers, as of one instant, into a directory on its machine. It is \
        answered with 202 where it takes longer than 20 seconds, and goes on.",
    takes: Some(
        r#"{"type": "object", "required": ["directory"], "additionalProperties": false, "properties": {
            "directory": {"type": "string", "description": "A new or an empty directory, as an absolute path."}}}"#,
    ),
    answers: BACKUP,
};

const GET: ProcessCall = ProcessCall {
    name: "Admin.GetBackup",
    text: "How far the backup is that was begun last.",
    takes: None,
    answers: BACKUP,
};

/// The schema of a [`BackupView`].
const BACKUP: &str = r#"{"type": "object",
    "required": ["directory", "state", "bytes", "rows", "duration_ms", "error"], "properties": {
        "directory": {"type": "string", "description": "Where it is."},
        "state": {"type": "string", "enum": ["running", "complete", "failed"]},
        "bytes": {"type": "integer", "description": "Its size, once it is complete."},
        "rows": {"type": "integer", "description": "Rows of the stores in it, once it is complete."},
        "duration_ms": {"type": "integer", "description": "How long it took, once it has ended."},
        "error": {"type": ["string", "null"], "description": "Why it failed, if it did."}}}"#;

/// The routes of operators.
///
/// `last_backup_ms` is set to the time of each one that is complete.
pub fn routes(backups: Backups, authenticator: Authenticator, last_backup_ms: Arc<AtomicU64>) -> Routes {
    let last_begun = Arc::new(watch::Sender::new(None));
    Routes::new()
        .on(Route::process(Method::POST, PATH, CREATE), create)
        .on(Route::process(Method::GET, PATH, GET), last)
        .with_state(Deps { backups, authenticator, last: last_begun, last_backup_ms })
}

#[derive(Clone)]
struct Deps {
    backups: Backups,
    authenticator: Authenticator,
    /// The backup that was begun last.
    last: Arc<watch::Sender<Option<Begun>>>,
    last_backup_ms: Arc<AtomicU64>,
}

#[derive(Clone)]
struct Begun {
    view: BackupView,
    refusal: Option<Problem>,
}

impl FromRef<Deps> for Authenticator {
    fn from_ref(deps: &Deps) -> Self {
        deps.authenticator.clone()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BackupBody {
    directory: String,
}

/// How far a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupState {
    /// It is being written.
    Running,
    /// It can be restored.
    Complete,
    /// It was not completed.
    Failed,
}

/// A backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupView {
    /// Where it is.
    pub directory: String,
    /// How far it is.
    pub state: BackupState,
    /// Its size in bytes, once it is complete.
    pub bytes: u64,
    /// Rows of the stores in it, once it is complete.
    pub rows: u64,
    /// How long it took, once it has ended.
    pub duration_ms: u64,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// Begins a backup and waits for its end, but not for long: 202 says that it goes on.
async fn create(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
    Json(BackupBody { directory }): Json<BackupBody>,
) -> Result<Response, Rejection> {
    let operator = caller.require_operator()?.to_owned();
    if !Path::new(&directory).is_absolute() {
        let detail = "It is a path on the machine of the process, and must begin with a slash.";
        return Err(Problem::field("directory", "invalid_value", detail).into());
    }
    let mut is_running = false;
    deps.last.send_modify(|last| {
        is_running = last.as_ref().is_some_and(|last| last.view.state == BackupState::Running);
        if !is_running {
            *last = Some(Begun { view: running(&directory), refusal: None });
        }
    });
    if is_running {
        let running = Problem::new(Kind::Conflict, "backup_running", "Another backup is running.");
        return Err(running.with_retry_after(10).into());
    }
    tracing::info!(operator, directory, "a backup begins");
    let mut ended = deps.last.subscribe();
    let Deps { backups, last, last_backup_ms, .. } = deps;
    // On a thread of its own: it goes on although the caller may be gone before its end.
    std::mem::drop(tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        let taken = backups.take(Path::new(&directory));
        if let Ok(manifest) = &taken {
            last_backup_ms.store(manifest.created_ms, Relaxed);
        }
        last.send_replace(Some(end(&directory, taken, begun.elapsed())));
    }));
    let is_over = |last: &Option<Begun>| last.as_ref().is_some_and(|last| last.view.state != BackupState::Running);
    // Whether it has ended or goes on is in its state.
    let _waited = tokio::time::timeout(ANSWER_WITHIN, ended.wait_for(is_over)).await.map(drop);
    let last = ended.borrow().clone();
    match last {
        Some(Begun { refusal: Some(problem), .. }) => Err(problem.into()),
        Some(Begun { view, .. }) => {
            let is_running = view.state == BackupState::Running;
            Ok(answer(if is_running { StatusCode::ACCEPTED } else { StatusCode::OK }, &view))
        }
        None => Err(Problem::new(Kind::Internal, "internal", "The backup is not known.").into()),
    }
}

/// The backup that was begun last.
async fn last(
    State(deps): State<Deps>,
    Authenticated { caller, .. }: Authenticated,
) -> Result<Json<BackupView>, Rejection> {
    caller.require_operator()?;
    let last = deps.last.borrow().clone();
    Ok(Json(last.ok_or_else(|| Problem::not_found("backup since the process started"))?.view))
}

fn running(directory: &str) -> BackupView {
    let directory = directory.to_owned();
    BackupView { directory, state: BackupState::Running, bytes: 0, rows: 0, duration_ms: 0, error: None }
}

fn end(directory: &str, taken: Result<Manifest, BackupError>, took: Duration) -> Begun {
    let view = BackupView { duration_ms: took.as_millis() as u64, ..running(directory) };
    match taken {
        Ok(manifest) => {
            let (bytes, rows) = (manifest.bytes(), manifest.rows);
            tracing::info!(directory, bytes, rows, duration_ms = view.duration_ms, "a backup is complete");
            Begun { view: BackupView { state: BackupState::Complete, bytes, rows, ..view }, refusal: None }
        }
        Err(error) => {
            tracing::warn!(directory, %error, "a backup failed");
            let error_text = Some(error.to_string());
            let view = BackupView { state: BackupState::Failed, error: error_text, ..view };
            Begun { view, refusal: Some(problem(&error)) }
        }
    }
}

/// The operator chose the directory, so what the system says about it is for the operator.
fn problem(error: &BackupError) -> Problem {
    match error {
        BackupError::Complete
        | BackupError::NotEmpty { .. }
        | BackupError::Directory { .. }
        | BackupError::WithinData { .. } => {
            Problem::refused("backup_refused", format!("The backup was not begun: {error}."))
        }
        // Trying again would not help: somebody must make room.
        BackupError::NoRoom { .. } | BackupError::Full { .. } => {
            Problem::refused("backup_no_room", format!("The backup was not completed: {error}."))
        }
        BackupError::Io { .. } => {
            Problem::new(Kind::Unavailable, "backup_failed", format!("The backup was not completed: {error}."))
        }
        BackupError::Log(error) => error.clone().into(),
        BackupError::Store(error) => error.clone().into(),
    }
}

/// Takes a backup of a data directory that no process has open.
///
/// # Errors
/// Where it is in use, cannot be opened, or the backup fails.
pub fn take_offline(data: &Path, to: &Path, world: &World) -> anyhow::Result<Manifest> {
    let embedded = crate::backends::Embedded::open_existing(data, world)?;
    let taken = embedded.backups(0, world).take(to).with_context(|| format!("no backup into {}", to.display()));
    let closed = embedded.close();
    taken.and_then(|manifest| closed.map(|()| manifest))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_schemas_are_those_of_what_is_taken_and_answered() {
        let keys = |object: &Value| object.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let schema: Value = serde_json::from_str(BACKUP).unwrap();
        assert_eq!(keys(&schema["properties"]), keys(&serde_json::to_value(running("/x")).unwrap()));
        let taken: Value = serde_json::from_str(CREATE.takes.unwrap()).unwrap();
        let body: BackupBody = serde_json::from_str(r#"{"directory": "/x"}"#).unwrap();
        assert_eq!((keys(&taken["properties"]), body.directory.as_str()), (vec!["directory".to_owned()], "/x"));
    }
}
