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
    /// With --servers: runs the gateway with the control plane, the orchestrator, the worker and the ledger as four processes.
    #[arg(long, global = true, requires = "servers")]
    pub processes: bool,
    /// Sets a value of Herald's configuration, such as --set worker.commit_interval_ms=10.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// CPU time of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    /// In user space and in the kernel.
    pub total: Duration,
    /// In the kernel.
    pub kernel: Duration,
}

impl std::iter::Sum for Cpu {
    fn sum<I: Iterator<Item = Self>>(each: I) -> Self {
        each.fold(Self::default(), |sum, cpu| Self { total: sum.total + cpu.total, kernel: sum.kernel + cpu.kernel })
    }
}

/// A running Herald: `herald dev`, or a process of each role; killed when dropped.
pub struct Herald {
    /// Where HTTP and gRPC are served.
    pub address: SocketAddr,
    servers: Option<Servers>,
    processes: Vec<Process>,
    _data: TempDir,
}

/// One process.
struct Process {
    name: &'static str,
    address: SocketAddr,
    child: Child,
    log: PathBuf,
}

/// What of Herald a process is, and how it is started.
const WHOLE: [(&str, &[&str]); 1] = [("herald", &["dev"])];
const PARTS: [(&str, &[&str]); 4] = [
    ("gateway", &["dev", "--set", "roles=[\"gateway\", \"control-plane\"]"]),
    ("orchestrator", &["run", "--no-config", "--roles", "orchestrator", "--instance", "orchestrator-0"]),
    ("worker", &["run", "--no-config", "--roles", "worker", "--instance", "worker-0"]),
    ("ledger", &["run", "--no-config", "--roles", "ledger", "--instance", "ledger-0"]),
];

impl Herald {
    /// Starts the binary on a fresh data directory, or a fresh part of the servers, and waits until it is ready.
    pub async fn start(binary: &Binary, settings: &[&str]) -> anyhow::Result<Self> {
        let parent = binary.data.clone().unwrap_or_else(std::env::temp_dir);
        let data = tempfile::Builder::new().prefix("herald-loadtest-").tempdir_in(parent)?;
        let servers = binary.servers.then(Servers::fresh).transpose()?;
        let shared = servers.as_ref().map_or(&[][..], Servers::settings);
        let set: Vec<&str> =
            shared.iter().chain(&binary.set).map(String::as_str).chain(settings.iter().copied()).collect();
        if servers.is_some() {
            migrate(&binary.herald, &set)?;
        }
        let parts = if binary.processes { &PARTS[..] } else { &WHOLE };
        let mut processes = Vec::new();
        for (name, arguments) in parts {
            processes.push(Process::start(name, arguments, &binary.herald, data.path(), &set).await?);
        }
        for process in &mut processes {
            process.wait_until_ready().await?;
        }
        Ok(Self { address: processes[0].address, servers, processes, _data: data })
    }

    /// The id of the process, or of the gateway's.
    pub fn pid(&self) -> u32 {
        self.processes[0].child.id()
    }

    /// CPU time since the start, of all threads of all processes.
    pub fn cpu(&self) -> anyhow::Result<Cpu> {
        let each = self.processes.iter().map(|process| cpu_of(process.child.id()));
        each.sum()
    }

    /// CPU time of each of its processes, if there are several, and of each server that it runs on.
    pub fn cpu_of_parts(&self) -> anyhow::Result<Vec<(String, Cpu)>> {
        let parts = self.processes.iter().filter(|_| self.processes.len() > 1);
        let parts = parts.map(|process| Ok((process.name.to_owned(), cpu_of(process.child.id())?)));
        let mut parts = parts.collect::<anyhow::Result<Vec<_>>>()?;
        if let Some(servers) = &self.servers {
            parts.extend(servers.cpu()?);
        }
        Ok(parts)
    }

    /// The sum of a counter over all its labels and all processes; 0 if there is none.
    pub async fn count(&self, counter: &str) -> anyhow::Result<u64> {
        let mut sum = 0;
        for process in &self.processes {
            sum += sum_of(&process.get("/metrics").await?, counter);
        }
        Ok(sum)
    }

    /// Stops it in order.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        for process in &mut self.processes {
            process.stop().await?;
        }
        Ok(())
    }
}

impl Process {
    async fn start(
        name: &'static str,
        arguments: &[&str],
        herald: &Path,
        data: &Path,
        set: &[&str],
    ) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let path = data.join(format!("{name}.log"));
        let log = File::create(&path)?;
        let mut command = Command::new(herald);
        command.args(arguments).arg("--listen").arg(address.to_string());
        if arguments[0] == "dev" {
            command.arg("--data").arg(data.join("data"));
        }
        command.args(set.iter().flat_map(|setting| ["--set", setting]));
        command.stdout(Stdio::from(log.try_clone()?)).stderr(Stdio::from(log));
        let child = command.spawn().with_context(|| format!("{} cannot be started", herald.display()))?;
        eprintln!("{name} runs as process {}", child.id());
        Ok(Self { name, address, child, log: path })
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.get("/readyz").await.is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                anyhow::bail!("{} did not become ready ({ended:?}):\n{log}", self.name);
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
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

    async fn stop(&mut self) -> anyhow::Result<()> {
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            anyhow::ensure!(Instant::now() < deadline, "the {} did not stop", self.name);
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where the process has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes the schema and the topics.
fn migrate(herald: &Path, settings: &[&str]) -> anyhow::Result<()> {
    let settings = settings.iter().flat_map(|setting| ["--set", *setting]);
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

/// The sum of a counter over all its labels, on a page of metrics in the OpenMetrics text format.
fn sum_of(page: &str, counter: &str) -> u64 {
    let samples = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(counter)?;
        let is_this = rest.starts_with(' ') || rest.starts_with('{');
        is_this.then(|| rest.rsplit(' ').next()?.parse::<u64>().ok()).flatten()
    });
    samples.sum()
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
        let page = "# TYPE a counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3\na_total_b 9\nb 1\n";
        assert_eq!((sum_of(page, "a_total"), sum_of(page, "b"), sum_of(page, "c")), (5, 1, 0));
    }
}
