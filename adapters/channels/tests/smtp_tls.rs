//! Protection of the connection: a TLS front before the mailbox, and servers that offer less than they should.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use herald_channels::email::config::Tls;
use herald_channels::email::{EmailClient, SmtpConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use support::Do::{Read, Say, Stall};
use support::{briefs, mailbox, mails, scripted, send};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A certificate for 127.0.0.1 and the authority that issued it.
struct Pki {
    authority: CertificateDer<'static>,
    acceptor: TlsAcceptor,
}

fn pki() -> Pki {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_cert = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    Pki { authority: authority_cert.der().clone(), acceptor: TlsAcceptor::from(Arc::new(server)) }
}

/// A server that speaks STARTTLS, or TLS from the start, and hands everything after that to `mailbox`.
async fn front(acceptor: TlsAcceptor, implicit: bool, mailbox: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, acceptor.clone(), implicit, mailbox));
        }
    });
    addr
}

async fn serve(socket: TcpStream, acceptor: TlsAcceptor, implicit: bool, mailbox: SocketAddr) {
    let mut client = BufReader::new(socket);
    let mut upstream = BufReader::new(TcpStream::connect(mailbox).await.unwrap());
    if !implicit {
        let mut line = String::new();
        upstream.read_line(&mut line).await.unwrap();
        client.write_all(line.as_bytes()).await.unwrap();
        for (command, answer) in [("EHLO", "250-front\r\n250 STARTTLS\r\n"), ("STARTTLS", "220 go ahead\r\n")] {
            line.clear();
            client.read_line(&mut line).await.unwrap();
            assert!(line.starts_with(command), "{line:?}");
            client.write_all(answer.as_bytes()).await.unwrap();
        }
    }
    // A client that does not trust the certificate leaves here.
    if let Ok(mut encrypted) = acceptor.accept(client.into_inner()).await {
        let _ = copy_bidirectional(&mut encrypted, &mut upstream).await;
    }
}

async fn outcome(addr: SocketAddr, tls: Tls, root: Option<&CertificateDer<'static>>) -> String {
    let mut config = SmtpConfig::parse(&format!("smtp://{addr}")).unwrap();
    config.tls = tls;
    // Some other authority keeps the list from being empty where the system has none.
    config.extra_roots = vec![root.cloned().unwrap_or_else(|| pki().authority)];
    let client = EmailClient::new(config).unwrap();
    let outcomes = briefs(&send(&client, mails(40)).await);
    client.close().await;
    assert!(outcomes.iter().all(|o| *o == outcomes[0]), "{outcomes:?}");
    outcomes[0].clone()
}

#[tokio::test]
async fn starttls_and_implicit_tls_verify_the_server() {
    let (pki, server) = (pki(), mailbox().await);
    let start = front(pki.acceptor.clone(), false, server.addr).await;
    let implicit = front(pki.acceptor.clone(), true, server.addr).await;
    let trusted = Some(&pki.authority);
    assert_eq!(outcome(start, Tls::Required, trusted).await, "accepted");
    assert_eq!(outcome(implicit, Tls::Implicit, trusted).await, "accepted");
    assert_eq!(server.store.counts().received, 80);
    assert_eq!(outcome(start, Tls::Required, None).await, "account smtp.tls");
    assert_eq!(outcome(implicit, Tls::Implicit, None).await, "account smtp.tls");
    assert_eq!(server.store.counts().received, 80);
    // Opportunistic: better than plain text, whoever is there.
    assert_eq!(outcome(start, Tls::Opportunistic, None).await, "accepted");
    assert_eq!(outcome(server.addr, Tls::Opportunistic, None).await, "accepted");
}

#[tokio::test]
async fn required_tls_never_falls_back_to_plain_text() {
    let without = scripted(vec![vec![Say("220 hi"), Read("EHLO"), Say("250 hi"), Stall]]).await;
    assert_eq!(outcome(without.0, Tls::Required, None).await, "account smtp.tls");
    let refusing =
        vec![Say("220 hi"), Read("EHLO"), Say("250-hi\r\n250 STARTTLS"), Read("STARTTLS"), Say("454 no"), Stall];
    assert_eq!(outcome(scripted(vec![refusing]).await.0, Tls::Required, None).await, "not-attempted smtp.454");
    // Answers put in before the handshake must not be taken for answers after it.
    let injecting = vec![
        Say("220 hi"),
        Read("EHLO"),
        Say("250-hi\r\n250 STARTTLS"),
        Read("STARTTLS"),
        Say("220 go\r\n250 evil"),
        Stall,
    ];
    assert_eq!(outcome(scripted(vec![injecting]).await.0, Tls::Required, None).await, "account smtp.tls");
}
