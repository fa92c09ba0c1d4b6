//! What a server offers in its answer to EHLO (RFC 5321, section 4.1.1.1).

use super::reply::Reply;

/// The extensions that matter to Herald.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    /// SIZE (RFC 1870): offered, and the largest message in octets if the server names one.
    pub size: Option<Option<u64>>,
    /// 8BITMIME (RFC 6152).
    pub eight_bit: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// CHUNKING (RFC 3030).
    pub chunking: bool,
    /// STARTTLS (RFC 3207).
    pub starttls: bool,
    /// ENHANCEDSTATUSCODES (RFC 2034).
    pub enhanced_status_codes: bool,
    /// AUTH PLAIN (RFC 4616).
    pub auth_plain: bool,
    /// AUTH LOGIN.
    pub auth_login: bool,
}

impl Extensions {
    /// Reads the lines of an EHLO answer; the first one is a greeting.
    pub fn parse(reply: &Reply<'_>) -> Self {
        let mut found = Self::default();
        for line in reply.lines().skip(1) {
            let line = String::from_utf8_lossy(line).to_ascii_uppercase();
            let mut words = line.split_ascii_whitespace();
            match words.next().unwrap_or_default() {
                // SIZE 0 means that no limit is declared.
                "SIZE" => found.size = Some(words.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0)),
                "8BITMIME" => found.eight_bit = true,
                "SMTPUTF8" => found.smtputf8 = true,
                "PIPELINING" => found.pipelining = true,
                "CHUNKING" => found.chunking = true,
                "STARTTLS" => found.starttls = true,
                "ENHANCEDSTATUSCODES" => found.enhanced_status_codes = true,
                "AUTH" => {
                    for mechanism in words {
                        found.auth_plain |= mechanism == "PLAIN";
                        found.auth_login |= mechanism == "LOGIN";
                    }
                }
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::email::smtp::reply;

    #[test]
    fn extensions_are_read_whatever_their_case_and_order() {
        let answer = b"250-mx.example PIPELINING STARTTLS\r\n250-size 1000\r\n250-8BITMIME\r\n250-AUTH LOGIN plain\r\n\
            250-X-UNKNOWN 7\r\n250-SmtpUtf8\r\n250 ENHANCEDSTATUSCODES\r\n";
        let (reply, _) = reply::parse(answer).unwrap().unwrap();
        let expected = Extensions {
            size: Some(Some(1000)),
            eight_bit: true,
            smtputf8: true,
            enhanced_status_codes: true,
            auth_plain: true,
            auth_login: true,
            ..Extensions::default()
        };
        assert_eq!(Extensions::parse(&reply), expected);
        let (reply, _) = reply::parse(b"250-x\r\n250 SIZE 0\r\n").unwrap().unwrap();
        assert_eq!(Extensions::parse(&reply).size, Some(None));
    }
}
