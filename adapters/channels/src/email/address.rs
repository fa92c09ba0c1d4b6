//! Mail addresses, validated once and then known to be safe on the wire.

use std::fmt;
use std::sync::Arc;

/// An address of the form `local@domain` (RFC 5321, section 4.1.2) that holds no control character, space or angle
/// bracket, so that it can be written into a command or header as it is.
///
/// The domain is kept in its ASCII form (IDNA A-labels), in lower case. Only a non-ASCII local part therefore needs
/// SMTPUTF8. Quoted local parts and address literals are refused: nobody receives notifications there, and they have
/// been a source of injection. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address {
    text: Arc<str>,
    at: u16,
}

/// Why a string is not an [`Address`]. The messages never repeat the address, which is personal data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no `@`.
    #[error("an address needs an @ between its local part and its domain")]
    MissingAt,
    /// Nothing, or more than 64 octets, before the `@`.
    #[error("the part before the @ must have 1 to 64 octets")]
    LocalLength,
    /// A character that a dot-atom does not allow.
    #[error("the part before the @ holds a character that is not allowed there")]
    LocalCharacter,
    /// A leading, trailing or doubled dot.
    #[error("the part before the @ has a misplaced dot")]
    LocalDot,
    /// The domain is no host name, even after IDNA processing.
    #[error("the part after the @ is not a valid domain name")]
    Domain,
    /// More than 254 octets in all.
    #[error("an address has at most 254 octets")]
    TooLong,
}

impl Address {
    /// Parses and normalises an address.
    ///
    /// # Errors
    /// [`AddressError`] names the first rule that is broken.
    pub fn parse(input: &str) -> Result<Self, AddressError> {
        let (local, domain) = input.rsplit_once('@').ok_or(AddressError::MissingAt)?;
        check_local(local)?;
        let domain = ascii_domain(domain)?;
        let text = format!("{local}@{domain}");
        if text.len() > 254 {
            return Err(AddressError::TooLong);
        }
        Ok(Self { at: local.len() as u16, text: text.into() })
    }

    /// The whole address, its domain in ASCII.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What stands before the `@`.
    pub fn local(&self) -> &str {
        &self.text[..usize::from(self.at)]
    }

    /// What stands after the `@`: A-labels in lower case.
    pub fn domain(&self) -> &str {
        &self.text[usize::from(self.at) + 1..]
    }

    /// Whether only a server with SMTPUTF8 (RFC 6531) can take this address.
    pub fn needs_smtputf8(&self) -> bool {
        !self.local().is_ascii()
    }

    /// The variable envelope return path (VERP) for a recipient: `local+tag=recipient_local=recipient_domain@domain`
    /// with this address as the base, so that a bounce names who bounced. `tag` is usually the instance id.
    ///
    /// # Errors
    /// [`AddressError`] when the result is too long or `tag` holds a character that an address does not allow; send
    /// with the plain return path then.
    pub fn verp(&self, tag: &str, recipient: &Address) -> Result<Self, AddressError> {
        let local = format!("{}+{tag}={}={}", self.local(), recipient.local(), recipient.domain());
        check_local(&local)?;
        let text = format!("{local}@{}", self.domain());
        if text.len() > 254 {
            return Err(AddressError::TooLong);
        }
        Ok(Self { at: local.len() as u16, text: text.into() })
    }
}

/// Addresses are personal data: only the domain is shown.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address(…@{})", self.domain())
    }
}

fn check_local(local: &str) -> Result<(), AddressError> {
    if local.is_empty() || local.len() > 64 {
        return Err(AddressError::LocalLength);
    }
    if local.starts_with('.') || local.ends_with('.') || local.contains("..") {
        return Err(AddressError::LocalDot);
    }
    let allowed = |c: char| match c {
        '.' => true,
        c if c.is_ascii() => c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c),
        c => !c.is_control() && !c.is_whitespace(),
    };
    if local.chars().all(allowed) { Ok(()) } else { Err(AddressError::LocalCharacter) }
}

fn ascii_domain(domain: &str) -> Result<String, AddressError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    // A domain in plain ASCII is by far the most frequent one and needs no IDNA tables, unless it claims to hold
    // A-labels, which are checked.
    let ascii = if domain.bytes().all(plain) && !domain.contains("xn--") {
        domain.to_owned()
    } else {
        idna::domain_to_ascii(domain).map_err(|_| AddressError::Domain)?
    };
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if ascii.len() <= 253 && ascii.split('.').all(label_ok) { Ok(ascii) } else { Err(AddressError::Domain) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_addresses_pass_and_domains_are_lowered() {
        let address = Address::parse("Ann.Lee+x@Example.COM").unwrap();
        assert_eq!(address.as_str(), "Ann.Lee+x@example.com");
        assert_eq!((address.local(), address.domain()), ("Ann.Lee+x", "example.com"));
        assert!(!address.needs_smtputf8());
    }

    #[test]
    fn only_a_non_ascii_local_part_needs_smtputf8() {
        let idn = Address::parse("post@bücher.example").unwrap();
        assert_eq!(idn.as_str(), "post@xn--bcher-kva.example");
        assert!(!idn.needs_smtputf8());
        assert!(Address::parse("jürgen@example.com").unwrap().needs_smtputf8());
    }

    #[test]
    fn what_could_break_a_command_is_refused() {
        for (input, error) in [
            ("nobody", AddressError::MissingAt),
            ("@example.com", AddressError::LocalLength),
            ("a b@example.com", AddressError::LocalCharacter),
            ("a>b@example.com", AddressError::LocalCharacter),
            ("a\r\nRCPT TO:<x@y>@example.com", AddressError::LocalCharacter),
            ("a\0@example.com", AddressError::LocalCharacter),
            ("\"a b\"@example.com", AddressError::LocalCharacter),
            (".a@example.com", AddressError::LocalDot),
            ("a..b@example.com", AddressError::LocalDot),
            ("a@", AddressError::Domain),
            ("a@-x.example", AddressError::Domain),
            ("a@x..example", AddressError::Domain),
            ("a@ex ample.com", AddressError::Domain),
            ("a@[127.0.0.1]", AddressError::Domain),
            ("a@x.com\r\n", AddressError::Domain),
            ("a@xn--0.example", AddressError::Domain),
        ] {
            assert_eq!(Address::parse(input), Err(error), "{input:?}");
        }
        assert_eq!(Address::parse(&format!("{}@example.com", "a".repeat(65))), Err(AddressError::LocalLength));
    }

    #[test]
    fn a_bounce_names_who_bounced() {
        let base = Address::parse("bounce@mail.example").unwrap();
        let recipient = Address::parse("ann@example.com").unwrap();
        assert_eq!(base.verp("7f", &recipient).unwrap().as_str(), "bounce+7f=ann=example.com@mail.example");
        assert!(base.verp("a b", &recipient).is_err());
        let long = Address::parse(&format!("{}@example.com", "a".repeat(60))).unwrap();
        assert_eq!(base.verp("7f", &long), Err(AddressError::LocalLength));
    }

    #[test]
    fn debug_output_hides_the_person() {
        assert_eq!(format!("{:?}", Address::parse("ann@example.com").unwrap()), "Address(…@example.com)");
    }
}
