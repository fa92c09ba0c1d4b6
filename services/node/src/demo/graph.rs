//! Social graphs: read from a file of edges, or generated.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use anyhow::Context;
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Who follows whom, both ways.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    /// The followers of each user.
    pub followers: BTreeMap<u32, BTreeSet<u32>>,
}

impl Graph {
    /// Reads undirected edges, `A B` a line; lines that begin with `#` and empty ones are passed over.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let mut graph = Self::default();
        for (number, line) in BufReader::new(File::open(path)?).lines().enumerate() {
            let line = line.with_context(|| format!("line {} is not text (is the file compressed?)", number + 1))?;
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let mut ids = line.split_whitespace().map(str::parse);
            match (ids.next(), ids.next(), ids.next()) {
                (Some(Ok(a)), Some(Ok(b)), None) => graph.connect(a, b),
                _ => anyhow::bail!("line {} is not a pair of numbers: {line:?}", number + 1),
            }
        }
        Ok(graph)
    }

    /// A graph of `users` in which degrees are spread as in real ones: log-normal, 20 in the median, 300 at the 95th
    /// percentile, as far as the number of users allows.
    pub fn generate(users: u32, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let users = users.max(2);
        let mut graph = Self { followers: (0..users).map(|user| (user, BTreeSet::new())).collect() };
        for user in 0..users {
            // Half of a user's edges are begun by the other side.
            let normal: f64 = (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0;
            let degree = (10.0 * (1.646 * normal).exp()).clamp(1.0, f64::from(users - 1) / 4.0);
            for _ in 0..degree as u32 {
                // Squaring favours the first users, who become the hubs.
                let skewed: f64 = random.random::<f64>().powi(2);
                graph.connect(user, (skewed * f64::from(users)) as u32);
            }
        }
        graph
    }

    fn connect(&mut self, a: u32, b: u32) {
        if a != b {
            self.followers.entry(a).or_default().insert(b);
            self.followers.entry(b).or_default().insert(a);
        }
    }

    /// Directed edges: a comment of every user notifies this many recipients.
    pub fn edges(&self) -> u64 {
        self.followers.values().map(|followers| followers.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_read_both_ways_and_garbage_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("edges");
        std::fs::write(&path, "# a comment\n1 2\n2 3\n\n2 1\n").unwrap();
        let graph = Graph::read(&path).unwrap();
        assert_eq!((graph.followers.len(), graph.edges()), (3, 4));
        std::fs::write(&path, "1 2\n2 x\n").unwrap();
        assert!(Graph::read(&path).unwrap_err().to_string().contains("line 2"));
    }

    #[test]
    fn a_generated_graph_follows_from_its_seed() {
        let graph = Graph::generate(500, 1);
        assert_eq!(graph, Graph::generate(500, 1));
        assert_ne!(graph, Graph::generate(500, 2));
        assert!(graph.edges() > 5_000 && graph.followers.len() == 500);
    }
}
