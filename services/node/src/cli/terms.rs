//! `NAME=VALUE` on the command line: scopes and filters.

use serde_json::{Map, Value};

use super::{exit::Failure, output::cell};

/// Reads terms into an object; a name that is not among `known` is refused, with those that are.
///
/// # Errors
/// For a term without `=`, an unknown name, and a name that is there twice.
pub fn object(terms: &[String], known: &[&str]) -> Result<Map<String, Value>, Failure> {
    let mut object = Map::new();
    for term in terms {
        let wrong = |what: &str| Failure::Usage(format!("{term:?} {what}; write {}", names(known)));
        let (name, value) = term.split_once('=').ok_or_else(|| wrong("is no NAME=VALUE"))?;
        if !known.contains(&name) {
            return Err(wrong("has an unknown name"));
        }
        if value.is_empty() {
            return Err(wrong("has no value"));
        }
        if object.insert(name.to_owned(), Value::from(value)).is_some() {
            return Err(Failure::Usage(format!("{name} is there twice")));
        }
    }
    Ok(object)
}

/// The scope of a switch or a limit: `all`, or terms that must all hold.
///
/// # Errors
/// As [`object`]; for no term at all, since a scope is never everything by accident.
pub fn scope(terms: &[String], known: &[&str]) -> Result<Map<String, Value>, Failure> {
    match terms {
        [] => Err(Failure::Usage(format!("no scope is given; write all, or some of {}", names(known)))),
        [all] if all == "all" => Ok(Map::from_iter([("all".to_owned(), Value::Bool(true))])),
        terms => object(terms, known),
    }
}

/// A scope as it is typed: `all`, or its terms.
pub fn scope_text(scope: &Value) -> String {
    match cell(scope) {
        text if text.is_empty() || scope["all"] == true => "all".to_owned(),
        text => text,
    }
}

/// A moment: RFC 3339, or how long ago, such as `2h`, as RFC 3339.
///
/// # Errors
/// For anything else.
pub fn moment(text: &str) -> Result<String, Failure> {
    let wrong = || Failure::Usage(format!("{text:?} is no time; write 2026-01-31T08:00:00Z, or 90s, 15m, 2h, 7d ago"));
    if text.parse::<jiff::Timestamp>().is_ok() {
        return Ok(text.to_owned());
    }
    let seconds = seconds(text).ok_or_else(wrong)?;
    let ago = jiff::SignedDuration::from_secs(seconds);
    jiff::Timestamp::now().checked_sub(ago).map(|at| at.to_string()).map_err(|_| wrong())
}

/// How many messages a second: a number from 0, which stops them.
///
/// # Errors
/// For anything else.
pub fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate >= 0.0);
    rate.ok_or_else(|| "a rate is a number from 0, such as 0.5".to_owned())
}

/// The seconds of a span such as `90s`, `15m`, `2h` or `7d`.
pub fn seconds(text: &str) -> Option<i64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    digits.parse::<i64>().ok()?.checked_mul(unit)
}

fn names(known: &[&str]) -> String {
    known.iter().map(|name| format!("{name}=...")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_scope_is_never_everything_by_accident() {
        let known = ["tenant", "channel"];
        assert!(scope(&[], &known).is_err());
        assert_eq!(scope(&words(&["all"]), &known).unwrap()["all"], true);
        assert_eq!(scope(&words(&["tenant=a", "channel=email"]), &known).unwrap()["channel"], "email");
        for bad in [&["tenant"][..], &["tenant="], &["chanel=email"], &["tenant=a", "tenant=b"], &["all", "tenant=a"]] {
            assert!(scope(&words(bad), &known).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_rate_is_a_number_that_can_be_meant() {
        assert_eq!((rate("0"), rate("0.5"), rate("1e12")), (Ok(0.0), Ok(0.5), Ok(1e12)));
        for bad in ["-1", "NaN", "inf", "1e400", "ten", ""] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_moments_or_spans() {
        assert_eq!(moment("2026-01-31T08:00:00Z").unwrap(), "2026-01-31T08:00:00Z");
        assert!(moment("2h").unwrap().ends_with('Z'));
        assert!(moment("yesterday").is_err() && moment("5").is_err());
        assert_eq!((seconds("90s"), seconds("7d"), seconds("x"), seconds("1y")), (Some(90), Some(604_800), None, None));
    }
}
