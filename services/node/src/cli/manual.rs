//! `herald completions` and `herald man`, and the page about the command line in `docs/`.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::Context;
use clap::{ArgAction, Args, Command};
use clap_complete::Shell;

use super::{
    client, command_line,
    exit::{Exit, Failure},
};

/// Prints completions for a shell.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    /// Prints.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn run(&self) -> Result<(), Failure> {
        // The generator takes no error from its output, so it writes to memory.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command_line(), "herald", &mut script);
        super::output::say(&String::from_utf8_lossy(&script))
    }
}

/// Prints the manual page, or writes a page for each command to a directory.
#[derive(Debug, Args)]
pub struct Man {
    /// The directory; it is made if it is not there.
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Man {
    /// Prints or writes.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn run(&self) -> Result<(), Failure> {
        let Some(dir) = &self.dir else {
            let mut page = Vec::new();
            clap_mangen::Man::new(command_line()).render(&mut page)?;
            return super::output::say(&String::from_utf8_lossy(&page));
        };
        let unwritable = || format!("{} cannot be written", dir.display());
        std::fs::create_dir_all(dir).with_context(unwritable)?;
        Ok(clap_mangen::generate_to(command_line(), dir).with_context(unwritable)?)
    }
}

/// The page `docs/cli.md`: every command with its arguments, as the program itself describes them.
pub fn page() -> String {
    let root = command_line();
    let mut page = format!(
        "# The command line\n\n\
         One program, `herald`, is the server and its client. This page is made from the program's own descriptions; a \
         test keeps it\ntrue. `herald help COMMAND` says the same, `herald man --dir DIR` writes manual pages, and \
         `herald completions SHELL` prints\ncompletions.\n\n\
         Clients find the server in `HERALD_URL`, their key in `HERALD_KEY` and, for an operator who acts for a tenant, \
         the tenant in\n`HERALD_TENANT`; flags come before the environment. With `--json` they print JSON on standard \
         output, and a failure as a\nproblem document on standard error. Progress bars are for terminals only.\n\n\
         ```\n{}```\n",
        Exit::table()
    );
    let of_connection = |argument: &&clap::Arg| argument.get_help_heading() == Some(client::HEADING);
    page.push_str(
        "\n## Connection and output\n\nEvery command that calls a server takes these, before its name or behind it.\n",
    );
    table(&mut page, root.get_arguments().filter(of_connection));
    for command in root.get_subcommands().filter(|command| command.get_name() != "help") {
        section(&mut page, "herald", command);
    }
    page
}

fn section(page: &mut String, above: &str, command: &Command) {
    let name = format!("{above} {}", command.get_name());
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default();
    let subcommands: Vec<&Command> = command.get_subcommands().filter(|command| command.get_name() != "help").collect();
    // Writing to a text cannot fail.
    let _written = write!(page, "\n## `{name}`\n\n{about}\n");
    let own = |argument: &&clap::Arg| {
        let inherited = argument.get_help_heading() == Some(client::HEADING);
        let help = matches!(argument.get_action(), ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong);
        !inherited && !argument.is_hide_set() && !help
    };
    table(page, command.get_arguments().filter(own));
    for command in subcommands {
        section(page, &name, command);
    }
}

/// A table of arguments; none for none.
fn table<'a>(page: &mut String, arguments: impl Iterator<Item = &'a clap::Arg>) {
    let mut arguments = arguments.peekable();
    if arguments.peek().is_some() {
        page.push_str("\n| argument | meaning |\n|---|---|\n");
    }
    for argument in arguments {
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let default: Vec<String> =
            argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
        let default = match default.as_slice() {
            [value] if argument.get_action().takes_values() && !value.is_empty() => format!(" Default: `{value}`."),
            _ => String::new(),
        };
        let environment = argument.get_env().map(|name| format!(" Environment: `{}`.", name.to_string_lossy()));
        let more = default + &environment.unwrap_or_default();
        let stop = if more.is_empty() { "" } else { "." };
        // Writing to a text cannot fail.
        let _written = writeln!(page, "| `{}` | {}{stop}{more} |", usage(argument), help.replace('|', "\\|"));
    }
}

/// An argument as it is typed.
fn usage(argument: &clap::Arg) -> String {
    let value = argument.get_value_names().and_then(|names| names.first().map(ToString::to_string));
    let value = value.unwrap_or_else(|| argument.get_id().as_str().to_uppercase());
    match argument.get_long() {
        Some(long) if argument.get_action().takes_values() => format!("--{long} {value}"),
        Some(long) => format!("--{long}"),
        None if argument.is_required_set() => value,
        None => format!("[{value}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `HERALD_TEST_WRITE_DOCS=1` writes the page instead.
    #[test]
    fn the_page_about_the_command_line_is_true() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
        if std::env::var_os("HERALD_TEST_WRITE_DOCS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap();
        assert!(written == page(), "docs/cli.md is not what the program says; HERALD_TEST_WRITE_DOCS=1 writes it");
    }

    #[test]
    fn the_command_line_holds_together_and_explains_everything() {
        command_line().debug_assert();
        let mut open = vec![command_line()];
        while let Some(command) = open.pop() {
            assert!(command.get_about().is_some(), "{} is not explained", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {} is not explained", command.get_name(), argument.get_id());
            }
            open.extend(command.get_subcommands().cloned());
        }
    }

    #[test]
    fn each_exit_code_is_in_the_help() {
        let help = command_line().render_help().to_string();
        assert!(Exit::ALL.iter().all(|exit| help.contains(exit.meaning())), "{help}");
    }
}
