//! TLS for SMTP: verified against the system's and the configured roots, or opportunistic.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;

use crate::email::config::{ConfigError, SmtpConfig, Tls};

/// A connector and the name that the server's certificate must bear, or `None` when TLS is off.
pub(crate) fn connector(config: &SmtpConfig) -> Result<Option<(TlsConnector, ServerName<'static>)>, ConfigError> {
    if config.tls == Tls::Off {
        return Ok(None);
    }
    let tls_error = |e: &dyn std::fmt::Display| ConfigError::Tls(e.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| tls_error(&e))?;
    let client = if config.tls == Tls::Opportunistic {
        let verifier = Arc::new(Unverified(provider));
        builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
    } else {
        builder.with_root_certificates(roots(config)?).with_no_client_auth()
    };
    let name = ServerName::try_from(config.host.clone()).map_err(|e| tls_error(&e))?;
    Ok(Some((TlsConnector::from(Arc::new(client)), name)))
}

fn roots(config: &SmtpConfig) -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "part of the system's certificate store cannot be read");
    }
    roots.add_parsable_certificates(system.certs);
    for root in &config.extra_roots {
        roots.add(root.clone()).map_err(|e| ConfigError::Tls(format!("an extra root: {e}")))?;
    }
    if roots.is_empty() {
        let hint = "no trusted certificates: install the system's CA bundle or configure a root";
        return Err(ConfigError::Tls(hint.to_owned()));
    }
    Ok(roots)
}

/// Takes any certificate, yet checks that the peer holds its key. Only for opportunistic TLS, where the alternative
/// is plain text (RFC 7435).
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
