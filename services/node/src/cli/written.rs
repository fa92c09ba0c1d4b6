//! The commands that are written in pages, alerts and units can be typed as they are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::FromArgMatches;

use super::{Cli, Command, Failure, command_line, refuse_useless};

/// A command as it is written somewhere, without `herald`.
#[derive(Debug, PartialEq)]
struct Written {
    line: usize,
    words: Vec<String>,
}

/// The commands of a page in Markdown: those in its code spans and fenced blocks.
fn of_markdown(page: &str) -> Vec<Written> {
    let mut found = Vec::new();
    let (mut fenced, mut prose) = (false, (1, String::new()));
    let mut block: Vec<(usize, &str)> = Vec::new();
    for (line, text) in (1..).zip(page.lines()) {
        let fence = text.trim_start().starts_with("```");
        match fenced {
            false if fence || text.trim().is_empty() => {
                of_spans(&prose.1, prose.0, &mut found);
                prose = (line + 1, String::new());
            }
            false => prose.1 = prose.1 + text + "\n",
            true if fence => found.extend(of_lines(std::mem::take(&mut block))),
            true => block.push((line, text)),
        }
        fenced ^= fence;
    }
    of_spans(&prose.1, prose.0, &mut found);
    found
}

/// The commands of anything else: a span, in a comment, or a line of its own.
fn of_text(text: &str) -> Vec<Written> {
    let mut found = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        of_spans(text, line, &mut found);
    }
    let bare = |text| str::trim_start(text).trim_start_matches('#').trim_start();
    found.extend(of_lines((1..).zip(text.lines().map(bare)).collect()));
    found
}

fn of_spans(text: &str, first_line: usize, found: &mut Vec<Written>) {
    let mut line = first_line;
    for (number, part) in text.split('`').enumerate() {
        if number % 2 == 1 {
            found.extend(of_shell(&part.replace('\n', " ")).into_iter().map(|words| Written { line, words }));
        }
        line += part.matches('\n').count();
    }
}

/// Lines of a shell, of which one that ends with a backslash goes on.
fn of_lines(lines: Vec<(usize, &str)>) -> Vec<Written> {
    let mut found = Vec::new();
    let mut begun: Option<(usize, String)> = None;
    for (line, text) in lines {
        let (first, whole) = match begun.take() {
            Some((first, begun)) => (first, begun + text),
            None => (line, as_shell(text)),
        };
        match whole.strip_suffix('\\') {
            Some(whole) => begun = Some((first, whole.to_owned())),
            None => found.extend(of_shell(&whole).into_iter().map(|words| Written { line: first, words })),
        }
    }
    found
}

/// What units of systemd and pods of Kubernetes run, as a shell has it.
fn as_shell(line: &str) -> String {
    let unit = line.trim_start().trim_start_matches("ExecStartPost=").trim_start_matches("ExecStart=");
    match unit.strip_prefix("args: [").and_then(|list| list.strip_suffix(']')) {
        Some(list) => format!("herald {}", list.replace("{{ $role }}", "worker").replace(',', " ")),
        None => unit.to_owned(),
    }
}

/// The commands of `herald` in a line of a shell, with what stands for something replaced by 1.
fn of_shell(line: &str) -> Vec<Vec<String>> {
    simple_commands(line).into_iter().flat_map(|words| of_words(&words)).collect()
}

fn of_words(words: &[String]) -> Vec<Vec<String>> {
    let is_before = |word: &&String| matches!(word.as_str(), "sudo" | "exec") || is_assignment(word);
    let before = words.iter().take_while(is_before).count();
    let mut words = &words[before..];
    if let [flag, _user, rest @ ..] = words
        && flag == "-u"
    {
        words = rest;
    }
    let behind = |words: &[String]| words.iter().position(|word| word == "--").map(|at| words[at + 1..].to_vec());
    match words {
        // A word alone is a name, of the program or of a directory.
        [] | [_] => Vec::new(),
        [shell, flag, script] if shell.ends_with("sh") && flag == "-c" => of_shell(script),
        [herald, rest @ ..] if herald == "herald" || herald.ends_with("/herald") => {
            vec![rest.iter().map(|word| filled_in(word)).collect()]
        }
        [cargo, ..] if cargo == "cargo" && words.iter().any(|word| word == "herald") => {
            behind(words).into_iter().collect()
        }
        [_, ..] => behind(words).map(|words| of_words(&words)).unwrap_or_default(),
    }
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
}

/// A word that stands for something, as `REQUEST_ID` and `<id>` do, is taken for a number, which a text can be too.
fn filled_in(word: &str) -> String {
    let capitals = word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let brackets = word.starts_with('<') && word.ends_with('>');
    if capitals || brackets { "1".to_owned() } else { word.to_owned() }
}

/// The simple commands of a line, as words without their quotes. What is behind a redirection is left away.
fn simple_commands(line: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\'' | '"' => {
                let quoted: String = rest.by_ref().take_while(|&next| next != c).collect();
                word.get_or_insert_default().push_str(&quoted);
            }
            '<' if rest.peek().is_some_and(char::is_ascii_lowercase) => {
                let name: String = rest.by_ref().take_while(|&next| next != '>').collect();
                word.get_or_insert_default().push_str(&format!("<{name}>"));
            }
            '#' if word.is_none() => break,
            '|' | ';' | '&' | '(' | ')' | '<' | '>' => {
                words.extend(word.take());
                commands.push(std::mem::take(&mut words));
            }
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    commands.push(words);
    commands
}

/// Why a command cannot be typed.
fn fault(words: &[String]) -> Option<String> {
    let matches = match command_line().try_get_matches_from([&["herald".to_owned()][..], words].concat()) {
        Ok(matches) => matches,
        // The help or the version was asked for.
        Err(wrong) => return wrong.use_stderr().then(|| wrong.to_string()),
    };
    let refused = match Cli::from_arg_matches(&matches).map(|cli| cli.command) {
        Ok(Command::Run(run)) => run.refuse_without_settings(),
        Ok(_) => Ok(()),
        Err(wrong) => Err(Failure::Usage(wrong.to_string())),
    };
    refused.and_then(|()| refuse_useless(&matches)).err().map(|failure| failure.to_string())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn each_command_that_is_written_somewhere_can_be_typed() {
    let root = root().canonicalize().unwrap();
    let mut pages = vec![root.join("README.md"), root.join("Dockerfile")];
    pages.extend(["docs", "deploy"].iter().flat_map(|directory| files(&root.join(directory))));
    // Made from the command line itself.
    pages.retain(|page| !page.ends_with("docs/cli.md"));
    let (mut count, mut faults) = (0, Vec::new());
    for page in pages {
        let name = page.strip_prefix(&root).unwrap().display().to_string();
        // What local servers leave there is no text.
        let Ok(text) = fs::read_to_string(&page) else { continue };
        let commands = if name.ends_with(".md") { of_markdown(&text) } else { of_text(&text) };
        count += commands.len();
        for Written { line, words } in commands {
            let why = fault(&words).map(|why| format!("{name}:{line}: herald {}\n{why}", words.join(" ")));
            faults.extend(why);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(count > 50, "only {count} commands were found");
}

#[test]
fn commands_are_found_wherever_they_are_written() {
    let page = "Call `herald lag`, or `herald receipts --state\nfailed`; `systemctl status herald`, `herald_x`.\n\n\
                ```bash\nkey=$(sudo cat key) # herald nothing\nsudo -u herald herald verify --data \"$data\" | head\n\
                A=b herald notify t \\\n  --user USER --data '{\"a b\": 1}' >out\n```\n\nand `cargo run --bin herald -- demo`";
    let found = of_markdown(page);
    let told: Vec<(usize, String)> = found.iter().map(|found| (found.line, found.words.join("|"))).collect();
    let expected = [
        (1, "lag"),
        (1, "receipts|--state|failed"),
        (6, "verify|--data|$data"),
        (7, "notify|t|--user|1|--data|{\"a b\": 1}"),
        (11, "demo"),
    ];
    assert_eq!(told, expected.map(|(line, words)| (line, words.to_owned())));

    let unit = "# `herald dev` is another\nExecStart=/bin/sh -c 'exec /usr/bin/herald backup --to <place>'\n  args: [run, --x]\n\
                kubectl exec pod -- herald lag";
    let told: Vec<String> = of_text(unit).iter().map(|found| found.words.join(" ")).collect();
    assert_eq!(told, ["dev", "backup --to 1", "run --x", "lag"]);
}

#[test]
fn what_cannot_be_typed_is_told() {
    let fault = |command: &str| fault(&of_shell(command).remove(0));
    for wrong in
        ["dlq redrive", "receipts --state dead", "run", "status --nothing", "verify --data d --key k", "launch"]
    {
        assert!(fault(&format!("herald {wrong}")).is_some(), "{wrong}");
    }
    for right in ["dlq redrive --all", "receipts REQUEST_ID --state dead", "run --no-config", "--version", "help lag"] {
        assert_eq!(fault(&format!("herald {right}")), None);
    }
}
