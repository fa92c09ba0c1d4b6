//! What an SMTP answer means: one table, from (stage, basic code, enhanced code) to exactly one action.

use std::time::Duration;

use super::smtp::reply::{Enhanced, Reply};

/// What sending one message to one recipient came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The server took responsibility for the message.
    Accepted {
        /// What the server said on acceptance, usually with its queue id; at most 200 characters.
        provider_id: String,
    },
    /// The same message may be accepted later.
    RetryAfter {
        /// How long the server asked to wait; SMTP servers do not say, so `None` here.
        after: Option<Duration>,
        /// Why.
        cause: Cause,
    },
    /// The endpoint no longer exists. SMTP has no such answer; other channels do.
    EndpointGone {
        /// Why.
        cause: Cause,
    },
    /// The address does not exist: suppress it.
    AddressBad {
        /// Why.
        cause: Cause,
    },
    /// This message will not be accepted for this recipient; the address may be fine.
    Rejected {
        /// Why.
        cause: Cause,
    },
    /// Our account or set-up is refused. Nothing fails for it: messages wait until somebody repairs it.
    AccountFault {
        /// Why.
        cause: Cause,
    },
    /// The message was certainly not handed over; it is safe to send it again.
    NotAttempted {
        /// Why.
        cause: Cause,
    },
    /// The message was handed over and no answer came. Send it again only under the same `Message-ID`.
    Unknown {
        /// Why.
        cause: Cause,
    },
}

impl Outcome {
    /// The cause, unless the message was accepted.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Accepted { .. } => None,
            Self::RetryAfter { cause, .. }
            | Self::EndpointGone { cause }
            | Self::AddressBad { cause }
            | Self::Rejected { cause }
            | Self::AccountFault { cause }
            | Self::NotAttempted { cause }
            | Self::Unknown { cause } => Some(cause),
        }
    }
}

/// Why a message was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// A stable code: `smtp.550.5.1.1`, `smtp.550` without an enhanced code, or `smtp.<word>` for what no server said
    /// (`smtp.lost`, `smtp.timeout.rcpt`, `smtp.gate`, `smtp.size`, ...).
    pub code: String,
    /// A short text for people, without addresses.
    pub text: String,
    /// Whether somebody should look at it: an answer that the table does not know, or a fault on our side.
    pub alert: bool,
}

impl Cause {
    /// A cause that no server named; `word` becomes `smtp.<word>`.
    pub(crate) fn own(word: &str, text: impl Into<String>) -> Self {
        Self { code: format!("smtp.{word}"), text: text.into(), alert: false }
    }

    /// The same cause, for somebody to look at.
    pub(crate) fn alerting(mut self) -> Self {
        self.alert = true;
        self
    }
}

/// What a reply answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The greeting, EHLO or STARTTLS.
    Connect,
    /// AUTH.
    Auth,
    /// RSET or MAIL FROM: about the sender.
    Mail,
    /// RCPT TO: about the recipient.
    Rcpt,
    /// The DATA command.
    Data,
    /// The final dot, or BDAT LAST.
    Body,
}

impl Stage {
    /// The stage's name in error codes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Auth => "auth",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
            Self::Body => "body",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    RetryAfter,
    AddressBad,
    Rejected,
    RejectedAlert,
    AccountFault,
    NotAttempted,
}

use Action::{AccountFault, AddressBad, NotAttempted, Rejected, RejectedAlert, RetryAfter};
use Stage::{Auth, Body, Connect, Data, Mail, Rcpt};

const ANY: &[Stage] = &[];
/// The stages whose answer is about the recipient. 5.1.1 in answer to MAIL is about the sender.
const RECIPIENT: &[Stage] = &[Rcpt, Data, Body];

/// The first row that fits decides. In codes `*` stands for anything; `-` as the enhanced code means that there is none.
const TABLE: &[(&[Stage], &str, &str, Action)] = &[
    // Before a message is begun nothing is known about it.
    (&[Connect], "4**", "*", NotAttempted),
    (&[Connect], "5**", "*", AccountFault),
    (&[Auth], "4**", "*", NotAttempted),
    (&[Auth], "5**", "*", AccountFault),
    // Credentials asked for, refused, or not accepted without TLS.
    (ANY, "530", "*", AccountFault),
    (ANY, "534", "*", AccountFault),
    (ANY, "535", "*", AccountFault),
    (ANY, "538", "*", AccountFault),
    // Mailbox full: soft, whatever the class.
    (RECIPIENT, "*", "*.2.2", RetryAfter),
    (&[Rcpt], "552", "-", RetryAfter),
    // Everything else that is transient.
    (ANY, "421", "*", RetryAfter),
    (ANY, "4**", "*", RetryAfter),
    // No such mailbox, host or, with RFC 7505, a domain that takes no mail.
    (RECIPIENT, "5**", "5.1.1", AddressBad),
    (RECIPIENT, "5**", "5.1.2", AddressBad),
    (RECIPIENT, "5**", "5.1.10", AddressBad),
    // The message is too big, for the system (RFC 1870 says 552) or for this mailbox.
    (ANY, "5**", "5.3.4", Rejected),
    (ANY, "5**", "5.2.3", Rejected),
    (&[Mail, Data, Body], "552", "-", Rejected),
    // Policy never suppresses an address.
    (ANY, "5**", "5.7.*", Rejected),
    // Known to be about the recipient, yet not that the address does not exist.
    (RECIPIENT, "5**", "5.1.3", Rejected),
    (RECIPIENT, "5**", "5.1.6", Rejected),
    (RECIPIENT, "5**", "5.2.1", Rejected),
    (RECIPIENT, "5**", "5.4.*", Rejected),
    (RECIPIENT, "5**", "5.6.*", Rejected),
    // Without an enhanced code 550 may be policy as well as an unknown mailbox (RFC 5321, section 4.2.3).
    (RECIPIENT, "550", "-", Rejected),
    (&[Rcpt], "551", "-", Rejected),
    (&[Rcpt], "553", "-", Rejected),
    (&[Rcpt, Data, Body], "554", "-", Rejected),
    // Whatever else: not tried again, and somebody should look.
    (ANY, "*", "*", RejectedAlert),
];

/// The outcome of a message whose `stage` was answered by the failing `reply`. Total: every answer has one action.
pub(crate) fn classify(stage: Stage, reply: &Reply<'_>) -> Outcome {
    let cause = cause(reply);
    match action(stage, reply.code, reply.enhanced()) {
        RetryAfter => Outcome::RetryAfter { after: None, cause },
        AddressBad => Outcome::AddressBad { cause },
        Rejected => Outcome::Rejected { cause },
        RejectedAlert => Outcome::Rejected { cause: cause.alerting() },
        AccountFault => Outcome::AccountFault { cause: cause.alerting() },
        NotAttempted => Outcome::NotAttempted { cause },
    }
}

/// A reply's code and text.
pub(crate) fn cause(reply: &Reply<'_>) -> Cause {
    let code = match reply.enhanced() {
        Some(enhanced) => format!("smtp.{}.{enhanced}", reply.code),
        None => format!("smtp.{}", reply.code),
    };
    Cause { code, text: reply.text(), alert: false }
}

fn action(stage: Stage, basic: u16, enhanced: Option<Enhanced>) -> Action {
    let basic = basic.to_string();
    let enhanced = enhanced.map(|e| e.to_string());
    let fits = |(stages, basic_row, enhanced_row, _): &&(&[Stage], &str, &str, Action)| {
        (stages.is_empty() || stages.contains(&stage))
            && basic_fits(basic_row, &basic)
            && enhanced_fits(enhanced_row, enhanced.as_deref())
    };
    TABLE.iter().find(fits).map_or(RejectedAlert, |row| row.3)
}

fn basic_fits(row: &str, code: &str) -> bool {
    row == "*" || row.bytes().zip(code.bytes()).all(|(r, c)| r == b'*' || r == c)
}

fn enhanced_fits(row: &str, code: Option<&str>) -> bool {
    match (row, code) {
        ("*", _) => true,
        (row, None) => row == "-",
        (row, Some(code)) => {
            row.split('.').count() == 3 && row.split('.').zip(code.split('.')).all(|(r, c)| r == "*" || r == c)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::email::smtp::reply;

    const EVERY: [Stage; 6] = [Connect, Auth, Mail, Rcpt, Data, Body];

    /// For each row of the table, in its order: an answer that only this row decides, and the action.
    const ROWS: &[(Stage, &str, Action)] = &[
        (Connect, "421 4.3.2 too busy", NotAttempted),
        (Connect, "554 no mail from you", AccountFault),
        (Auth, "454 4.7.0 temporary failure", NotAttempted),
        (Auth, "535 5.7.8 bad credentials", AccountFault),
        (Mail, "530 5.7.0 authentication required", AccountFault),
        (Rcpt, "534 5.7.9 mechanism too weak", AccountFault),
        (Mail, "535 5.7.8 bad credentials", AccountFault),
        (Mail, "538 5.7.11 encryption required", AccountFault),
        (Rcpt, "552 5.2.2 mailbox full", RetryAfter),
        (Rcpt, "552 over quota", RetryAfter),
        (Body, "421 4.3.2 shutting down", RetryAfter),
        (Rcpt, "450 4.7.1 greylisted", RetryAfter),
        (Rcpt, "550 5.1.1 no such user", AddressBad),
        (Rcpt, "550 5.1.2 no such host", AddressBad),
        (Rcpt, "556 5.1.10 null MX", AddressBad),
        (Mail, "552 5.3.4 too big", Rejected),
        (Body, "552 5.2.3 too big for the mailbox", Rejected),
        (Body, "552 too big", Rejected),
        (Rcpt, "550 5.7.1 blocked by policy", Rejected),
        (Rcpt, "501 5.1.3 bad address syntax", Rejected),
        (Rcpt, "551 5.1.6 has moved", Rejected),
        (Rcpt, "550 5.2.1 mailbox disabled", Rejected),
        (Rcpt, "550 5.4.1 no answer from host", Rejected),
        (Body, "554 5.6.0 message refused", Rejected),
        (Rcpt, "550 mailbox unavailable", Rejected),
        (Rcpt, "551 user not local", Rejected),
        (Rcpt, "553 mailbox name not allowed", Rejected),
        (Body, "554 transaction failed", Rejected),
        (Mail, "550 5.1.1 about the sender", RejectedAlert),
    ];

    fn decided(stage: Stage, line: &str) -> (Action, usize) {
        let bytes = format!("{line}\r\n");
        let (reply, _) = reply::parse(bytes.as_bytes()).unwrap().unwrap();
        let (basic, enhanced) = (reply.code.to_string(), reply.enhanced().map(|e| e.to_string()));
        let row = TABLE.iter().position(|(stages, b, e, _)| {
            (stages.is_empty() || stages.contains(&stage))
                && basic_fits(b, &basic)
                && enhanced_fits(e, enhanced.as_deref())
        });
        (action(stage, reply.code, reply.enhanced()), row.unwrap())
    }

    #[test]
    fn every_row_decides_its_own_case() {
        assert_eq!(ROWS.len(), TABLE.len(), "a row without a test");
        for (index, (stage, line, expected)) in ROWS.iter().enumerate() {
            assert_eq!(decided(*stage, line), (*expected, index), "{stage:?} {line}");
        }
    }

    #[test]
    fn an_address_is_suppressed_only_for_what_is_about_it() {
        for stage in EVERY {
            for basic in 400..600 {
                for subject in 0..8 {
                    for detail in 0..31 {
                        let enhanced = Some(Enhanced { class: basic / 100, subject, detail });
                        let bad = action(stage, basic, enhanced) == AddressBad;
                        let about_it = subject == 1 && [1, 2, 10].contains(&detail);
                        let credentials = [530, 534, 535, 538].contains(&basic);
                        let allowed = RECIPIENT.contains(&stage) && basic >= 500 && about_it && !credentials;
                        assert_eq!(bad, allowed, "{stage:?} {basic} {enhanced:?}");
                    }
                }
                assert_ne!(action(stage, basic, None), AddressBad, "{stage:?} {basic}");
            }
        }
    }

    #[test]
    fn outcomes_carry_code_text_and_alert() {
        let (reply, _) = reply::parse(b"599 5.9.9 <ann@example.com> strange\r\n").unwrap().unwrap();
        let cause = Cause { code: "smtp.599.5.9.9".into(), text: "<address> strange".into(), alert: true };
        assert_eq!(classify(Rcpt, &reply), Outcome::Rejected { cause });
        let (reply, _) = reply::parse(b"451 try later\r\n").unwrap().unwrap();
        let cause = Cause { code: "smtp.451".into(), text: "try later".into(), alert: false };
        assert_eq!(classify(Body, &reply), Outcome::RetryAfter { after: None, cause });
    }
}
