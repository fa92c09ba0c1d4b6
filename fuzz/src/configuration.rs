//! The configuration: a file and an environment are refused with a reason, or give settings that come back as they are
//! when they are printed and read again.
//!
//! An input is the file and lines `NAME=value` of the environment.

use herald_node::config::{Config, DEFAULTS};
use toml::Table;

use crate::{SEPARATOR, parts};

/// Loads it.
pub fn run(input: &[u8]) {
    let parts = parts(input);
    let [file, rest @ ..] = &parts[..] else { return };
    let Ok(Ok(file)) = std::str::from_utf8(file).map(str::parse::<Table>) else { return };
    let environment = String::from_utf8_lossy(rest.first().copied().unwrap_or_default());
    let environment = environment.lines().filter_map(|line| line.split_once('='));
    let environment: Vec<(String, String)> = environment.map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    match Config::of_layers(file, environment, Table::new()) {
        Err(error) => assert!(error.to_string().starts_with("the configuration is not valid"), "{error:#}"),
        Ok(config) => {
            let printed = toml::to_string(&config).unwrap();
            let again = Config::of_layers(printed.parse().unwrap(), [], Table::new()).unwrap();
            assert_eq!(toml::to_string(&again).unwrap(), printed);
        }
    }
}

/// The defaults, and files that set a little.
pub fn seeds() -> Vec<Vec<u8>> {
    let file = "region = \"eu\"\nlisten = \"[::1]:0\"\n[worker]\nmax_attempts = 3\n[tls]\ncertificate_file = \"c\"\n";
    vec![
        DEFAULTS.as_bytes().to_vec(),
        [file.as_bytes(), SEPARATOR, b"HERALD_WORKER__MAX_ATTEMPTS=9\nHERALD_REGION=us\nHERALD_A__B__C=true\n"]
            .concat(),
        b"[layout]\nshards = 64\nrequests_partitions = 0\n[gateway.live]\nqueue = 1\n".to_vec(),
    ]
}
