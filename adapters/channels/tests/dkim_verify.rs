//! Signatures, checked by an independent verifier (the crate `mail-auth`) with keys given to it in place of DNS.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use herald_channels::email::address::Address;
use herald_channels::email::dkim::Signer;
use herald_channels::email::message::{Composer, Draft, NamedAddress, Sender};
use mail_auth::common::parse::TxtRecordParser;
use mail_auth::common::verify::DomainKey;
use mail_auth::{AuthenticatedMessage, DkimResult, MessageAuthenticator, Parameters, ResolverCache, Txt};

struct Keys(HashMap<Box<str>, Txt>);

impl ResolverCache<Box<str>, Txt> for Keys {
    fn get<Q>(&self, name: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.get(name).cloned()
    }

    fn remove<Q>(&self, _: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        None
    }

    fn insert(&self, _: Box<str>, _: Txt, _: Instant) {}
}

fn pem(algorithm: &'static rcgen::SignatureAlgorithm) -> String {
    rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem()
}

fn signers() -> (Vec<Signer>, Keys) {
    let signers = vec![
        Signer::from_pem("herald.example", "rsa1", pem(&rcgen::PKCS_RSA_SHA256).as_bytes()).unwrap(),
        Signer::from_pem("herald.example", "ed1", pem(&rcgen::PKCS_ED25519).as_bytes()).unwrap(),
    ];
    let record = |signer: &Signer| {
        let (name, text) = signer.dns_record();
        let key = DomainKey::parse(text.as_bytes()).unwrap();
        (format!("{name}.").into_boxed_str(), Txt::DomainKey(Arc::new(key)))
    };
    let keys = Keys(signers.iter().map(record).collect());
    (signers, keys)
}

async fn verdicts(message: &[u8], keys: &Keys) -> Vec<bool> {
    let parsed = AuthenticatedMessage::parse(message).unwrap();
    let verifier = MessageAuthenticator::new_google().unwrap();
    let parameters = Parameters::new(&parsed).with_txt_cache(keys);
    verifier.verify_dkim(parameters).await.iter().map(|o| o.result() == &DkimResult::Pass).collect()
}

fn compose(signers: Vec<Signer>, subject: &str, text: Option<&str>, html: Option<&str>) -> String {
    let named = |name: &str, a| NamedAddress { name: name.to_owned(), address: Address::parse(a).unwrap() };
    let sender = Sender {
        from: named("Héräld  Inc", "news@herald.example"),
        reply_to: Some(named("", "help@herald.example")),
        message_id_domain: None,
        eight_bit: true,
    };
    let to = named("Ann", "ann@example.com");
    let list_unsubscribe = Some("https://herald.example/u?t=abc");
    let draft = Draft { instance_id: "n1", to: &to, subject, text, html, list_unsubscribe, date_unix_s: 1_751_364_000 };
    let message = Composer::new(&sender, signers).unwrap().compose(&draft).unwrap();
    String::from_utf8(message.to_vec()).unwrap()
}

#[tokio::test]
async fn both_algorithms_verify_whatever_the_message() {
    let long = "many words in one subject ".repeat(12);
    let cases = [
        ("Hello", Some("hi"), Some("<p>hi</p>")),
        ("Grüße  ", Some("tabs\t and  spaces \n\n\n"), None),
        (long.as_str(), None, Some("<p>日本語</p>\n   \n\n")),
        ("", Some(""), None),
        ("blank", Some(" \n\n \nblank lines\n \n\t\nbetween"), None),
    ];
    for (subject, text, html) in cases {
        let (signers, keys) = signers();
        let message = compose(signers, subject, text, html);
        assert_eq!(verdicts(message.as_bytes(), &keys).await, [true, true], "{message}");
        assert!(message.split("\r\n").take_while(|l| !l.is_empty()).all(|l| l.len() <= 78), "{message}");
    }
}

#[tokio::test]
async fn no_signed_part_can_be_changed_or_added() {
    let (signers, keys) = signers();
    let message = compose(signers, "Hello", Some("hi"), Some("<p>hi</p>"));
    let changes = [
        ("Subject: Hello", "Subject: Hallo"),
        ("news@herald.example", "evil@herald.example"),
        ("To: Ann", "To: Bob"),
        ("Date: Tue", "Date: Wed"),
        ("Message-ID: <n1@", "Message-ID: <n2@"),
        ("MIME-Version: 1.0", "MIME-Version: 1.1"),
        ("multipart/alternative", "multipart/mixed"),
        ("List-Unsubscribe: <https://herald", "List-Unsubscribe: <https://evil"),
        ("List-Unsubscribe=One-Click", "List-Unsubscribe=Two-Click"),
        ("<p>hi</p>", "<p>ho</p>"),
        ("From: ", "From: <boss@herald.example>\r\nFrom: "),
        ("Subject: ", "Subject: Money\r\nSubject: "),
        ("List-Unsubscribe: ", "List-Unsubscribe: <https://evil.example>\r\nList-Unsubscribe: "),
    ];
    assert_eq!(verdicts(message.as_bytes(), &keys).await, [true, true]);
    for (from, to) in changes {
        let changed = message.replacen(from, to, 1);
        assert_ne!(changed, message, "{from}");
        assert_eq!(verdicts(changed.as_bytes(), &keys).await, [false, false], "{from} -> {to}");
    }
}
