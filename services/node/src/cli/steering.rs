//! `herald switch` and `herald limits`: what operators steer with.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    client::{Client, Connect, Query, segment},
    exit::Failure,
    lag,
    output::{Table, cell, print, say},
    terms,
};

const SWITCH_SCOPE: [&str; 5] = ["tenant", "template", "channel", "provider", "region"];
const LIMIT_SCOPE: [&str; 4] = ["tenant", "template", "channel", "provider"];

/// How long the command waits for every process to run a switch.
const APPLIED_WITHIN: Duration = Duration::from_secs(10);

/// Turns sending off, holds it, slows it down, or lifts that (operators).
#[derive(Debug, Args)]
pub struct Switch {
    #[command(subcommand)]
    action: SwitchAction,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Subcommand)]
enum SwitchAction {
    /// Lifts whatever the scope's switch says.
    On(SwitchArgs),
    /// Suppresses as killed; nothing of the scope is sent.
    Off(SwitchArgs),
    /// Parks messages until they may go on or their ttl ends.
    Hold(SwitchArgs),
    /// Cuts rate and batch size to a tenth.
    Slow(SwitchArgs),
    /// Lists the switches.
    List {
        /// At most so many; 0 for all.
        #[arg(long, default_value_t = 0)]
        limit: usize,
    },
    /// Deletes a switch by its id, as on does by its scope.
    Delete {
        /// The switch.
        id: String,
    },
}

#[derive(Debug, Args)]
struct SwitchArgs {
    /// all, or tenant=, template=, channel=, provider= and region=, which must all hold.
    #[arg(required = true)]
    scope: Vec<String>,
    /// Why; the audit log keeps it.
    #[arg(long)]
    reason: Option<String>,
    /// When it ends by itself: RFC 3339, or a span from now such as 2h.
    #[arg(long)]
    expires: Option<String>,
}

impl Switch {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let json = self.connect.json;
        let client = self.connect.operator()?;
        match self.action {
            SwitchAction::On(args) => set(&client, "on", &args, json).await,
            SwitchAction::Off(args) => set(&client, "off", &args, json).await,
            SwitchAction::Hold(args) => set(&client, "hold", &args, json).await,
            SwitchAction::Slow(args) => set(&client, "slow", &args, json).await,
            SwitchAction::List { limit } => {
                let switches = client.list("/v1/admin/switches", &Query::default(), "switches", limit).await?;
                let columns = [
                    ("id", "id"),
                    ("scope", "scope"),
                    ("state", "state"),
                    ("reason", "reason"),
                    ("expires", "expires_at"),
                    ("version", "version"),
                ];
                print(json, &json!({ "switches": switches }), |_| Table::of(&switches, &columns).text())
            }
            SwitchAction::Delete { id } => {
                let answer = client.delete(&format!("/v1/admin/switches/{}", segment(&id))).await?;
                print(json, &answer, |_| format!("The switch {id} is deleted."))
            }
        }
    }
}

/// Sets a switch; says first how much is queued behind it, then how many processes run it and how soon they did.
async fn set(client: &Client, state: &str, args: &SwitchArgs, json: bool) -> Result<(), Failure> {
    let scope = terms::scope(&args.scope, &SWITCH_SCOPE)?;
    let tenant = scope.get("tenant").and_then(Value::as_str).map(str::to_owned);
    let mut body = json!({ "scope": scope, "state": state });
    if let Some(reason) = &args.reason {
        body["reason"] = reason.as_str().into();
    }
    if let Some(expires) = &args.expires {
        body["expires_at"] = from_now(expires)?.into();
    }
    // What is queued is told for orientation; a server that cannot say must not keep anybody from switching.
    let queued = lag::queued(client, tenant.as_deref()).await.ok();
    if !json && let Some(queued) = queued {
        let whose = tenant.map_or_else(String::new, |tenant| format!(" of {tenant}"));
        say(&format!("Queued{whose} on all channels: {queued} messages."))?;
    }
    let begun = Instant::now();
    let mut answer = client.put("/v1/admin/switches", &body).await?;
    let applied_ms = wait_until_applied(client, &mut answer, begun).await?;
    answer["applied_ms"] = applied_ms.map_or(Value::Null, Value::from);
    answer["queued"] = queued.map_or(Value::Null, Value::from);
    print(json, &answer, |answer| {
        let applied = &answer["applied"];
        let (running, of) = (cell(&applied["processes"]), cell(&applied["of"]));
        let soon = applied_ms.map_or_else(
            || format!("not all of them after {} s", APPLIED_WITHIN.as_secs()),
            |ms| format!("after {ms} ms"),
        );
        format!("Switch {} is {state}: {running} of {of} processes run it, {soon}.", cell(&answer["id"]))
    })
}

/// Milliseconds until every process ran the switch; `None` where some do not within the time.
async fn wait_until_applied(client: &Client, answer: &mut Value, begun: Instant) -> Result<Option<u64>, Failure> {
    loop {
        let applied = &answer["applied"];
        if applied["processes"].is_null() || applied["processes"] == applied["of"] {
            return Ok(Some(begun.elapsed().as_millis() as u64));
        }
        if begun.elapsed() >= APPLIED_WITHIN {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let switches = client.list("/v1/admin/switches", &Query::default(), "switches", 0).await?;
        match switches.into_iter().find(|switch| switch["id"] == answer["id"]) {
            Some(switch) if !switch["applied"].is_null() => answer["applied"] = switch["applied"].clone(),
            // A lifted switch is in no list, so nobody can be asked again.
            _ => return Ok(None),
        }
    }
}

/// A moment that lies ahead: RFC 3339, or a span from now.
fn from_now(text: &str) -> Result<String, Failure> {
    if text.parse::<jiff::Timestamp>().is_ok() {
        return Ok(text.to_owned());
    }
    let wrong = || Failure::Usage(format!("{text:?} is no time; write 2026-01-31T08:00:00Z, or 90s, 15m, 2h, 7d"));
    let span = jiff::SignedDuration::from_secs(terms::seconds(text).ok_or_else(wrong)?);
    jiff::Timestamp::now().checked_add(span).map(|at| at.to_string()).map_err(|_| wrong())
}

/// Rates that are never passed (operators).
#[derive(Debug, Args)]
pub struct Limits {
    #[command(subcommand)]
    action: LimitsAction,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Subcommand)]
enum LimitsAction {
    /// Lists the limits.
    List {
        /// At most so many; 0 for all.
        #[arg(long, default_value_t = 0)]
        limit: usize,
    },
    /// Sets a limit, in place of one with the same scope.
    Set {
        /// all, or tenant=, template=, channel= and provider=, which must all hold.
        #[arg(required = true)]
        scope: Vec<String>,
        /// Messages a second.
        #[arg(long)]
        per_second: f64,
        /// Messages that may go at once after a pause.
        #[arg(long)]
        burst: Option<u64>,
    },
    /// Deletes a limit.
    Delete {
        /// The limit.
        id: String,
    },
}

impl Limits {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let json = self.connect.json;
        let client = self.connect.operator()?;
        match self.action {
            LimitsAction::List { limit } => {
                let limits = client.list("/v1/admin/limits", &Query::default(), "limits", limit).await?;
                let columns = [("id", "id"), ("scope", "scope"), ("per second", "per_second"), ("burst", "burst")];
                print(json, &json!({ "limits": limits }), |_| Table::of(&limits, &columns).text())
            }
            LimitsAction::Set { scope, per_second, burst } => {
                let mut scope = terms::scope(&scope, &LIMIT_SCOPE)?;
                // A limit's scope has no word for everything: it is the one without fields.
                scope.remove("all");
                let mut body = json!({ "scope": scope, "per_second": number(per_second) });
                if let Some(burst) = burst {
                    body["burst"] = burst.into();
                }
                let answer = client.put("/v1/admin/limits", &body).await?;
                print(json, &answer, |answer| format!("Limit {} is set.", cell(&answer["id"])))
            }
            LimitsAction::Delete { id } => {
                let answer = client.delete(&format!("/v1/admin/limits/{}", segment(&id))).await?;
                print(json, &answer, |_| format!("The limit {id} is deleted."))
            }
        }
    }
}

/// A whole rate as a whole number, as people write it.
fn number(rate: f64) -> Value {
    match rate.fract() == 0.0 && rate.abs() < 9e15 {
        true => Value::from(rate as i64),
        false => Value::from(rate),
    }
}
