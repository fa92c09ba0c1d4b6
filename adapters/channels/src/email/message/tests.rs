use super::*;
use crate::email::mailbox::decode;

fn named(name: &str, address: &str) -> NamedAddress {
    NamedAddress { name: name.to_owned(), address: Address::parse(address).unwrap() }
}

fn composer(eight_bit: bool) -> Composer {
    let from = named("Herald", "news@herald.example");
    let reply_to = Some(named("", "help@herald.example"));
    let sender = Sender { from, reply_to, message_id_domain: Some("ids.example".into()), eight_bit };
    Composer::new(&sender, Vec::new()).unwrap()
}

fn draft<'a>(to: &'a NamedAddress, text: Option<&'a str>, html: Option<&'a str>) -> Draft<'a> {
    Draft {
        instance_id: "01J-abc",
        to,
        subject: "Hello",
        text,
        html,
        list_unsubscribe: Some("https://herald.example/u/7?x=1"),
        date_unix_s: 1_751_364_000,
    }
}

#[test]
fn a_whole_message_looks_as_it_should() {
    let to = named("Ann", "ann@example.com");
    let message = composer(false).compose(&draft(&to, Some("hi\n"), Some("<p>hi</p>"))).unwrap();
    let expected = "From: Herald <news@herald.example>\r\nReply-To: <help@herald.example>\r\nMIME-Version: 1.0\r\n\
        Auto-Submitted: auto-generated\r\nTo: Ann <ann@example.com>\r\nSubject: Hello\r\n\
        Date: Tue, 01 Jul 2025 10:00:00 +0000\r\nMessage-ID: <01J-abc@ids.example>\r\n\
        List-Unsubscribe: <https://herald.example/u/7?x=1>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n\
        Content-Type: multipart/alternative; boundary=\"=_B\"\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\
        --=_B\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\nhi\r\n\
        --=_B\r\nContent-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\n<p>hi</p>\r\n\
        --=_B--\r\n";
    let boundary = boundary("<01J-abc@ids.example>", "", "");
    assert_eq!(String::from_utf8(message.to_vec()).unwrap(), expected.replace("=_B", &boundary));
}

#[test]
fn either_part_may_stand_alone_and_one_must() {
    let to = named("", "ann@example.com");
    for (text, html) in [(Some("täglich\n"), None), (None, Some("<p>täglich</p>\n")), (Some("a\n"), Some("ü\n"))] {
        for eight_bit in [false, true] {
            let message = composer(eight_bit).compose(&draft(&to, text, html)).unwrap();
            let decoded = decode(&message);
            // The line break before a delimiter belongs to the delimiter.
            let same = |part: Option<String>, sent: Option<&str>| {
                assert_eq!(part.as_deref().map(str::trim_end), sent.map(str::trim_end));
            };
            same(decoded.text, text);
            same(decoded.html, html);
            assert_eq!(message.is_ascii(), !eight_bit);
        }
    }
    assert!(matches!(composer(false).compose(&draft(&to, None, None)), Err(MessageError::Empty)));
}

#[test]
fn nothing_that_is_rendered_can_add_a_header() {
    let to = named("", "ann@example.com");
    let base = draft(&to, Some("x"), None);
    for evil in ["a\r\nBcc: all@x", "a\nb", "a\rb", "a\0b"] {
        let composed = composer(false).compose(&Draft { subject: evil, ..base });
        assert!(matches!(composed, Err(MessageError::HeaderInjection("Subject"))), "{evil:?}");
        let evil_to = named(evil, "ann@example.com");
        let composed = composer(false).compose(&Draft { to: &evil_to, ..base });
        assert!(matches!(composed, Err(MessageError::HeaderInjection("To"))), "{evil:?}");
        let composed = composer(false).compose(&Draft { instance_id: evil, ..base });
        assert!(matches!(composed, Err(MessageError::InstanceId)), "{evil:?}");
        let url = format!("https://x/{evil}");
        let composed = composer(false).compose(&Draft { list_unsubscribe: Some(&url), ..base });
        assert!(matches!(composed, Err(MessageError::ListUnsubscribe)), "{evil:?}");
    }
    for url in ["http://x/u", "https://", "https:///x", "https://x/<y>", "mailto:x@y", "https://x/,b"] {
        let composed = composer(false).compose(&Draft { list_unsubscribe: Some(url), ..base });
        assert!(matches!(composed, Err(MessageError::ListUnsubscribe)), "{url}");
    }
    let long = "x".repeat(4_001);
    let composed = composer(false).compose(&Draft { subject: &long, ..base });
    assert!(matches!(composed, Err(MessageError::HeaderTooLong("Subject"))));
}

#[test]
fn names_are_quoted_or_encoded_as_they_need() {
    let header = |name: &str| {
        let mut out = Vec::new();
        write_address(&mut out, "To", &named(name, "a@example.com")).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert_eq!(header("Ann Lee"), "To: Ann Lee <a@example.com>\r\n");
    assert_eq!(header("Lee, \"Ann\" \\ <x@y>"), "To: \"Lee, \\\"Ann\\\" \\\\ <x@y>\" <a@example.com>\r\n");
    assert_eq!(header("Jürgen"), "To: =?utf-8?Q?J=C3=BCrgen?= <a@example.com>\r\n");
    let long = header(&"日本".repeat(40));
    assert!(long.split("\r\n").all(|line| line.len() <= 76), "{long}");
    assert!(long.ends_with("\r\n <a@example.com>\r\n"));
}

#[test]
fn a_boundary_never_occurs_in_a_part_and_stays_the_same() {
    let first = boundary("<a@b>", "", "");
    assert_eq!(first, boundary("<a@b>", "", "x"));
    let other = boundary("<a@b>", &format!("--{first}--"), "");
    assert_ne!(first, other);
}

#[test]
fn what_is_composed_passes_the_clients_own_checks() {
    let to = named("Ann", "ann@example.com");
    for text in ["x".repeat(5_000), "ü".repeat(5_000), "a\rb\nc\r\n\r\n.".to_owned(), "\0".to_owned(), String::new()] {
        let message = composer(false).compose(&draft(&to, Some(&text), Some(&text))).unwrap();
        assert!(message.is_ascii() && message.ends_with(b"\r\n"));
        for line in message.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            assert!(line.ends_with(b"\r") && line.len() <= 999 && !line[..line.len() - 1].contains(&b'\r'));
        }
    }
}

proptest::proptest! {
    #[test]
    fn whatever_is_written_is_read_again(
        subject in "[ -~é日=?_]{0,200}",
        name in "[ -~é日]{0,100}",
        text in "([ -~]{0,100}[ \t=.\r\né日\u{0}]{0,3}|From |\n){0,20}",
        html in "[ -~\né]{0,2000}",
        eight_bit: bool,
    ) {
        let to = named(&name, "ann@example.com");
        let message = composer(eight_bit).compose(&Draft { subject: &subject, ..draft(&to, Some(&text), Some(&html)) });
        let message = message.unwrap();
        let decoded = decode(&message);
        let lines = |text: &str| text.replace("\r\n", "\n").replace('\r', "\n").trim_end().to_owned();
        proptest::prop_assert_eq!(lines(&decoded.text.unwrap()), lines(&text));
        proptest::prop_assert_eq!(lines(&decoded.html.unwrap()), lines(&html));
        let header = decoded.headers.iter().find(|(name, _)| name == "Subject").unwrap();
        proptest::prop_assert_eq!(&header.1, &subject);
        let header_end = memchr::memmem::find(&message, b"\r\n\r\n").unwrap();
        for (at, line) in message.split(|b| *b == b'\n').enumerate() {
            proptest::prop_assert!(line.len() <= 999, "line {} has {} octets", at, line.len());
        }
        for line in message[..header_end].split(|b| *b == b'\n') {
            proptest::prop_assert!(line.len() <= 80 && !line.trim_ascii().is_empty(), "{:?}", line);
        }
    }
}
