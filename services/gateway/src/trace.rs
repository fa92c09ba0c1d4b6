//! W3C trace context.

use herald_core::clock::Entropy;

/// The caller's `traceparent` if it is a valid one of version 00, else the root of a new trace.
pub fn trace_parent(given: Option<&str>, entropy: &dyn Entropy) -> String {
    if let Some(given) = given.filter(|given| is_valid(given)) {
        return given.to_owned();
    }
    // All zeros is invalid, so one bit is always set.
    let (high, low, span) = (entropy.next_u64() | 1, entropy.next_u64(), entropy.next_u64() | 1);
    format!("00-{high:016x}{low:016x}-{span:016x}-01")
}

fn is_valid(text: &str) -> bool {
    let bytes = text.as_bytes();
    let hex =
        |range: std::ops::Range<usize>| bytes[range].iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    let some = |range: std::ops::Range<usize>| bytes[range].iter().any(|b| *b != b'0');
    bytes.len() == 55
        && text.starts_with("00-")
        && bytes[35] == b'-'
        && bytes[52] == b'-'
        && hex(3..35)
        && hex(36..52)
        && hex(53..55)
        && some(3..35)
        && some(36..52)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Zero;

    impl Entropy for Zero {
        fn next_u64(&self) -> u64 {
            0
        }
    }

    #[test]
    fn a_valid_parent_is_kept_and_anything_else_replaced() {
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(trace_parent(Some(valid), &Zero), valid);
        let made = trace_parent(None, &Zero);
        assert!(is_valid(&made), "{made}");
        for bad in ["", "00-xyz", &valid.to_uppercase(), &valid.replace("00-4", "01-4"), &format!("{valid}0")] {
            assert_eq!(trace_parent(Some(bad), &Zero), made);
        }
    }
}
