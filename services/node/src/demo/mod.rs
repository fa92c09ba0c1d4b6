//! `herald demo`: the main job on a social graph, from start to end, through the API.
//!
//! Every user of the graph comments once; their followers are notified in-app and by mail, but for every tenth user, who
//! wants no mail. In the end the books are proven, and the inboxes and the mailbox are counted against them.

pub mod graph;
mod report;
mod story;

use std::path::PathBuf;

use anyhow::Context;

pub use report::Report;

use crate::{
    config::Config,
    node::{Mode, Node},
};
use graph::Graph;

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    /// A file of `A B` pairs, one undirected edge a line; a generated graph unless given.
    pub edges: Option<PathBuf>,
    /// Users of the generated graph.
    pub users: u32,
    /// Seed of the generated graph.
    pub seed: u64,
    /// URLs of other gateways of the same installation.
    pub gateways: Vec<String>,
    /// Print the report as JSON.
    pub json: bool,
}

/// Runs the demo on a node of its own and prints what happened. `false` if the books are not proven.
pub async fn run(config: Config, options: &Options) -> anyhow::Result<bool> {
    let graph = match &options.edges {
        Some(path) => Graph::read(path).with_context(|| format!("{} is not a list of edges", path.display()))?,
        None => Graph::generate(options.users, options.seed),
    };
    let node = Node::start(config, Mode::Dev).await?;
    // Ctrl-C ends it in order, so that its directory goes too.
    let story = tokio::select! {
        story = story::run(&node, &options.gateways, &graph) => story,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted: nothing was proven")),
    };
    let stopped = node.stop().await;
    let report = story?;
    stopped.context("the node did not stop in order")?;
    match options.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => println!("{report}"),
    }
    Ok(report.proven())
}
