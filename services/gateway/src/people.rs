//! What callers say of people, checked.

use herald_core::{ids::channel_of_name, people::Endpoint, problem::FieldError, record::Channel};
use herald_proto::v1;

const MAX_ADDRESS_BYTES: usize = 4_096;
const MAX_MAIL_BYTES: usize = 320;
const MAX_FREE_TEXT_BYTES: usize = 128;
const PUSH_KINDS: [&str; 3] = ["apns", "fcm", "web_push"];

/// Checks endpoints; addresses are not repeated in errors.
pub fn check_endpoints(
    path: &str,
    given: Vec<v1::Endpoint>,
    max: usize,
    errors: &mut Vec<FieldError>,
) -> Vec<Endpoint> {
    let path = if path.is_empty() { "endpoints".to_owned() } else { format!("{path}.endpoints") };
    if given.len() > max {
        errors.push(FieldError::new(path, "too_many", format!("At most {max} endpoints are allowed.")));
        return Vec::new();
    }
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(given.len());
    for (i, endpoint) in given.into_iter().enumerate() {
        let endpoint = Endpoint {
            channel: endpoint.channel,
            address: endpoint.address,
            kind: endpoint.kind.unwrap_or_default(),
            platform: endpoint.platform.unwrap_or_default(),
            app_version: endpoint.app_version.unwrap_or_default(),
            registered_ms: 0,
        };
        if let Err((field, code, detail)) = check_endpoint(&endpoint) {
            errors.push(FieldError::new(format!("{path}[{i}].{field}"), code, detail));
        } else if endpoints.iter().any(|other| other.channel == endpoint.channel && other.address == endpoint.address) {
            errors.push(FieldError::new(format!("{path}[{i}]"), "duplicate", "The endpoint is there twice."));
        } else {
            endpoints.push(endpoint);
        }
    }
    endpoints
}

fn check_endpoint(endpoint: &Endpoint) -> Result<(), (&'static str, &'static str, &'static str)> {
    let channel = match channel_of_name(&endpoint.channel) {
        Some(Channel::InApp) => {
            return Err(("channel", "invalid_value", "In-app reaches every user without endpoint."));
        }
        Some(channel) => channel,
        None => return Err(("channel", "invalid_value", "Endpoints are on email, push or webhook.")),
    };
    let address = &endpoint.address;
    if address.is_empty() {
        return Err(("address", "required", "An address is required."));
    }
    if address.len() > MAX_ADDRESS_BYTES {
        return Err(("address", "too_long", "The address has more than 4,096 bytes."));
    }
    if address.chars().any(char::is_control) {
        return Err(("address", "invalid_value", "Control characters are not allowed."));
    }
    match channel {
        Channel::Email if !is_mail_address(address) => {
            return Err(("address", "invalid_value", "Expected one mail address, such as ada@example.org."));
        }
        Channel::Webhook if !address.starts_with("https://") && !address.starts_with("http://") => {
            return Err(("address", "invalid_value", "Expected an http or https URL."));
        }
        Channel::Push if !PUSH_KINDS.contains(&endpoint.kind.as_str()) => {
            return Err(("kind", "invalid_value", "Push endpoints are apns, fcm or web_push."));
        }
        _ => {}
    }
    if endpoint.kind.len() > MAX_FREE_TEXT_BYTES {
        return Err(("kind", "too_long", "At most 128 bytes are allowed."));
    }
    if endpoint.platform.len() > MAX_FREE_TEXT_BYTES {
        return Err(("platform", "too_long", "At most 128 bytes are allowed."));
    }
    if endpoint.app_version.len() > MAX_FREE_TEXT_BYTES {
        return Err(("app_version", "too_long", "At most 128 bytes are allowed."));
    }
    Ok(())
}

/// One address without a display name; what a server thinks of it is for sending to find out.
fn is_mail_address(address: &str) -> bool {
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let plain = |text: &str| !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || "<>,;:\\()[]".contains(c));
    address.len() <= MAX_MAIL_BYTES && plain(local) && plain(domain) && !local.contains('@')
}

/// Checks a language tag; empty is none.
pub fn check_locale(field: &str, locale: &str, errors: &mut Vec<FieldError>) {
    let subtag = |part: &str| (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric());
    if locale.is_empty() || (locale.len() <= 35 && locale.split(['-', '_']).all(subtag)) {
        return;
    }
    errors.push(FieldError::new(field, "invalid_value", "Expected a BCP 47 language tag, such as de or pt-BR."));
}
