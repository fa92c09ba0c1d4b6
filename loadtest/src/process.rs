//! The measured process: start, readiness, CPU time, metrics, stop.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

use crate::servers::Servers;

/// How long the process may take to become ready or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// The kernel tells CPU times in hundredths of a second to every program (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// Which binary is measured, and where its data lies.
#[derive(Args, Clone)]
pub struct Binary {
    /// The binary, built with `cargo build --profile dist --bin herald`.
    #[arg(long, global = true, default_value = "target/dist/herald")]
    pub herald: PathBuf,
    /// Where data directories are made; on a real disk, or fsync costs nothing.
    #[arg(long, global = true)]
    pub data: Option<PathBuf>,
    /// Runs on the servers that `deploy/local/servers up` has started and `target/servers/env` names.
    #[arg(long, global = true)]
    pub servers: bool,
    /// Sets a value of Herald's configuration, such as --set worker.commit_interval_ms=10.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// CPU time of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// In user space and in the kernel.
    pub total: Duration,
    /// In the kernel.
    pub kernel: Duration,
}

/// A running `herald dev`; killed when dropped.
pub struct Herald {
    /// Where HTTP and gRPC are served.
    pub address: SocketAddr,
    /// The servers that it runs on, unless its storage is embedded.
    pub servers: Option<Servers>,
    child: Child,
    data: TempDir,
}

impl Herald {
    /// Starts the binary on a fresh data directory and waits until it is ready.
    pub async fn start(binary: &Binary, settings: &[&str]) -> anyhow::Result<Self> {
        let parent = binary.data.clone().unwrap_or_else(std::env::temp_dir);
        let data = tempfile::Builder::new().prefix("herald-loadtest-").tempdir_in(parent)?;
        let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let log = File::create(data.path().join("log"))?;
        let mut command = Command::new(&binary.herald);
        command.arg("dev").arg("--data").arg(data.path().join("data")).arg("--listen").arg(address.to_string());
        let servers = binary.servers.then(Servers::fresh).transpose()?;
        let shared = servers.as_ref().map_or(&[][..], Servers::settings);
        for setting in shared.iter().chain(&binary.set).map(String::as_str).chain(settings.iter().copied()) {
            command.arg("--set").arg(setting);
        }
        if !shared.is_empty() {
            migrate(&binary.herald, shared)?;
        }
        command.stdout(Stdio::from(log.try_clone()?)).stderr(Stdio::from(log));
        let child = command.spawn().with_context(|| format!("{} cannot be started", binary.herald.display()))?;
        let mut herald = Self { address, servers, child, data };
        herald.wait_until_ready().await?;
        Ok(herald)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.get("/readyz").await.is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.data.path().join("log")).unwrap_or_default();
                anyhow::bail!("herald did not become ready ({ended:?}):\n{log}");
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time since the start, of all threads.
    pub fn cpu(&self) -> anyhow::Result<Cpu> {
        cpu_of(self.child.id())
    }

    /// What `/metrics` shows.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        Ok(Metrics(self.get("/metrics").await?))
    }

    /// The body of a 200 answer.
    async fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut socket = TcpStream::connect(self.address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address);
        socket.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        anyhow::ensure!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        Ok(answer)
    }

    /// Stops it in order.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            anyhow::ensure!(Instant::now() < deadline, "herald did not stop");
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        // Both fail only where the process has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes the schema and the topics.
fn migrate(herald: &Path, settings: &[String]) -> anyhow::Result<()> {
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let migrated = Command::new(herald).arg("migrate").args(settings).output()?;
    anyhow::ensure!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    Ok(())
}

/// CPU time of a process since its start, of all threads.
pub fn cpu_of(pid: u32) -> anyhow::Result<Cpu> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
    cpu_of_stat(&stat).context("/proc/PID/stat is not as in proc(5)")
}

/// See proc(5): after the command in parentheses, utime is the twelfth field and stime the thirteenth.
fn cpu_of_stat(stat: &str) -> Option<Cpu> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    let (user, kernel) = (TICK * ticks()?, TICK * ticks()?);
    Some(Cpu { total: user + kernel, kernel })
}

/// A page of metrics in the OpenMetrics text format.
pub struct Metrics(String);

impl Metrics {
    /// The sum of a counter over all its labels; 0 if there is none.
    pub fn sum(&self, name: &str) -> u64 {
        let samples = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let is_this = rest.starts_with(' ') || rest.starts_with('{');
            is_this.then(|| rest.rsplit(' ').next()?.parse::<u64>().ok()).flatten()
        });
        samples.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_although_a_command_has_parentheses() {
        let cpu = cpu_of_stat("7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 1 2 3").unwrap();
        assert_eq!(cpu, Cpu { total: Duration::from_secs(3), kernel: Duration::from_millis(500) });
    }

    #[test]
    fn counters_are_summed_over_labels() {
        let metrics = Metrics("# TYPE a counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3\na_total_b 9\nb 1\n".into());
        assert_eq!((metrics.sum("a_total"), metrics.sum("b"), metrics.sum("c")), (5, 1, 0));
    }
}
