//! Both faces over TLS, and certificates that are renewed while the listener serves.

use std::{net::SocketAddr, path::Path, sync::Arc};

use herald_gateway::{
    serve::Listener,
    tls::{Tls, TlsFiles},
};
use herald_proto::v1::{GetStatusRequest, notifications_client::NotificationsClient};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName},
    },
};

use crate::world::{TestWorld, world};

/// Writes a new certificate for 127.0.0.1 and its key; returns the certificate, which is its own root.
fn certificate(files: &TlsFiles) -> CertificateDer<'static> {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(&files.certificate, certificate.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    certificate.der().clone()
}

fn files(directory: &Path) -> TlsFiles {
    TlsFiles { certificate: directory.join("certificate.pem"), key: directory.join("key.pem") }
}

async fn serve(world: &TestWorld, tls: Tls) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (config, deps) = (world.gateway.config.clone(), world.gateway.deps.clone());
    let listener = Listener { socket, tls: Some(tls) };
    tokio::spawn(herald_gateway::run(listener, config, deps, axum::Router::new(), world.shutdown.clone()));
    address
}

/// Connects as a client that trusts one certificate and speaks one protocol.
async fn connect(
    address: SocketAddr,
    trusted: &CertificateDer<'static>,
    protocol: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let socket = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("127.0.0.1").unwrap(), socket).await
}

#[tokio::test]
async fn http_and_grpc_are_served_over_tls() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(directory.path());
    let trusted = certificate(&files);
    let world = world();
    let address = serve(&world, Tls::load(files).unwrap()).await;

    let mut http = connect(address, &trusted, b"http/1.1").await.unwrap();
    assert_eq!(http.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    http.write_all(b"GET /problems/not_found HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    http.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let trusted = trusted.clone();
        async move { connect(address, &trusted, b"h2").await.map(TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://herald");
    let mut client = NotificationsClient::new(endpoint.connect_with_connector(connector).await.unwrap());
    let request = GetStatusRequest { request_id: "00000000-0000-0000-0000-000000000000".into() };
    let refused = client.get_status(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused}");

    // Without TLS nothing is answered.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET /problems/not_found HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _reset_or_end = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_renewed_certificate_is_served_and_a_broken_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(directory.path());
    let first = certificate(&files);
    let world = world();
    let tls = Tls::load(files.clone()).unwrap();
    let address = serve(&world, tls.clone()).await;
    tokio::spawn(tls.clone().follow(world.shutdown.clone()));
    connect(address, &first, b"h2").await.unwrap();

    std::fs::write(&files.certificate, "no certificate").unwrap();
    assert!(tls.reload().is_err());
    connect(address, &first, b"h2").await.expect("the good one stays");

    let second = certificate(&files);
    // The files' times may be as coarse as a tick of the kernel's clock, so they are set.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    std::fs::File::options().append(true).open(&files.certificate).unwrap().set_modified(later).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(21)).await;
    connect(address, &second, b"h2").await.expect("the new one is served");
    assert!(connect(address, &first, b"h2").await.is_err());
}

#[test]
fn files_that_cannot_be_meant_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(directory.path());
    let said = || Tls::load(files.clone()).map(drop).unwrap_err().to_string();
    assert!(said().contains("certificate.pem cannot be read"), "{}", said());
    certificate(&files);
    let key = std::fs::read(&files.key).unwrap();
    std::fs::write(&files.key, std::fs::read(&files.certificate).unwrap()).unwrap();
    assert!(said().contains("no private key in") && said().contains("key.pem"), "{}", said());
    std::fs::write(&files.certificate, &key).unwrap();
    assert!(said().contains("no certificate in"), "{}", said());
    certificate(&files);
    std::fs::write(&files.key, &key).unwrap();
    assert!(said().contains("cannot be used together"), "{}", said());
}
