//! The pages behind the types of problems.

const PAGES: &str = include_str!("../../../docs/problems.md");

/// What a problem's code means and what to do about it, in Markdown.
pub fn page(code: &str) -> Option<&'static str> {
    let plain = |b: u8| b.is_ascii_lowercase() || b == b'_';
    if code.is_empty() || !code.bytes().all(plain) {
        return None;
    }
    let start = PAGES.find(&format!("\n## `{code}`\n"))? + 1;
    let page = &PAGES[start..];
    let end = page[1..].find("\n## ").map_or(page.len(), |end| end + 2);
    Some(page[..end].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rejection::of_status;

    #[test]
    fn a_page_is_its_section_and_no_more() {
        let page = page("not_found").unwrap();
        assert!(page.starts_with("## `not_found`") && page.contains("NOT_FOUND"));
        assert_eq!(page.matches("## ").count(), 1);
        assert!(super::page("log_full").unwrap().ends_with("made room."));
        assert_eq!((super::page(""), super::page("nope"), super::page("*")), (None, None, None));
    }

    #[test]
    fn what_libraries_answer_is_documented() {
        for status in [400, 404, 405, 413, 415, 429, 500, 503] {
            let problem = of_status(http::StatusCode::from_u16(status).unwrap());
            assert_eq!(problem.kind().status(), status);
            assert!(page(problem.code()).is_some(), "{problem:?}");
        }
    }
}
