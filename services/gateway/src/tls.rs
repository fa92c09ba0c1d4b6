//! TLS on a listener: certificate and key come from PEM files, which are read again when they have changed, so that a
//! renewed certificate needs no restart.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{
            CertificateDer, PrivateKeyDer,
            pem::{self, PemObject},
        },
    },
};
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// What is offered to clients, the better one first (RFC 7301).
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Where certificate and key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate and those that lead to its root, in this order.
    pub certificate: PathBuf,
    /// The certificate's private key, in PKCS #8, PKCS #1 or SEC1.
    pub key: PathBuf,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is no PEM.
    #[error("{path} cannot be read as PEM: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// A file has no such thing.
    #[error("there is no {what} in {path}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// They are not a pair, or nothing that can be served with.
    #[error("the certificate in {certificate} and the key in {key} cannot be used together: {cause}")]
    Unfit {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        cause: rustls::Error,
    },
}

/// The newest certificate and key of a listener. Clones are the same.
#[derive(Clone)]
pub struct Tls {
    files: TlsFiles,
    newest: Arc<Mutex<Newest>>,
}

struct Newest {
    config: Arc<ServerConfig>,
    /// When the files were changed that were looked at last.
    changed: [Option<SystemTime>; 2],
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Where they are not what they must be.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let changed = changed(&files);
        let config = Arc::new(read(&files)?);
        Ok(Self { files, newest: Arc::new(Mutex::new(Newest { config, changed })) })
    }

    /// Accepts connections with the newest certificate.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.newest.lock().config.clone().into()
    }

    /// Reads the files again. After an error the certificate that was good stays.
    ///
    /// # Errors
    /// As [`Tls::load`].
    pub fn reload(&self) -> Result<(), TlsError> {
        let changed = changed(&self.files);
        let read = read(&self.files);
        let mut newest = self.newest.lock();
        newest.changed = changed;
        newest.config = Arc::new(read?);
        Ok(())
    }

    /// Reads the files again whenever they have changed, until shutdown.
    pub async fn follow(self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_INTERVAL)).await.is_some() {
            let looked_at = self.newest.lock().changed;
            if changed(&self.files) != looked_at {
                self.reload_and_tell();
            }
        }
    }

    /// As [`Tls::reload`]; the outcome goes to the log.
    pub fn reload_and_tell(&self) {
        let certificate = self.files.certificate.display();
        match self.reload() {
            Ok(()) => tracing::info!(%certificate, "the certificate was read again"),
            Err(error) => tracing::error!(%error, "the certificate cannot be read again; the one before stays in use"),
        }
    }
}

fn changed(files: &TlsFiles) -> [Option<SystemTime>; 2] {
    [&files.certificate, &files.key].map(|path| std::fs::metadata(path).and_then(|found| found.modified()).ok())
}

fn read(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let certificate = &files.certificate;
    let unreadable = |path: &Path, error: pem::Error| TlsError::Unreadable {
        path: path.to_owned(),
        cause: match error {
            pem::Error::Io(error) => error.to_string(),
            error => format!("{error:?}"),
        },
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(certificate, error))?;
    if chain.is_empty() {
        return Err(TlsError::Missing { path: certificate.clone(), what: "certificate" });
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::Missing { path: files.key.clone(), what: "private key" },
        error => unreadable(&files.key, error),
    })?;
    let unfit = |cause| TlsError::Unfit { certificate: certificate.clone(), key: files.key.clone(), cause };
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unfit)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unfit)?;
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}
