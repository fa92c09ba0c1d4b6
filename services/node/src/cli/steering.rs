//! `herald switch` and `herald limits`: what operators steer with.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    client::{Client, Connect, Query, segment},
    exit::Failure,
    output::{Table, cell, print},
    terms,
};

const SWITCH_SCOPE: [&str; 5] = ["tenant", "template", "channel", "provider", "region"];
const LIMIT_SCOPE: [&str; 4] = ["tenant", "template", "channel", "provider"];

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
                print(json, &json!({ "switches": switches }), |_| switches_text(&switches))
            }
            SwitchAction::Delete { id } => {
                let answer = client.delete(&format!("/v1/admin/switches/{}", segment(&id))).await?;
                print(json, &answer, |_| format!("The switch {id} is deleted."))
            }
        }
    }
}

fn switches_text(switches: &[Value]) -> String {
    let mut table = Table::new(&["id", "scope", "state", "queued", "expires", "set", "set by", "reason"]);
    for switch in switches {
        let state = cell(&switch["state"]);
        table.row(vec![
            cell(&switch["id"]),
            terms::scope_text(&switch["scope"]),
            if switch["expired"] == true { format!("{state}, expired") } else { state },
            queued_text(&switch["queued"]).unwrap_or_default(),
            cell(&switch["expires_at"]),
            cell(&switch["set_at"]),
            cell(&switch["set_by"]),
            cell(&switch["reason"]),
        ]);
    }
    table.text()
}

/// How many messages a switch keeps from being sent; `None` where it keeps none.
fn queued_text(queued: &Value) -> Option<String> {
    let instances = queued["instances"].as_u64()?;
    Some(if queued["at_least"] == true { format!("at least {instances}") } else { instances.to_string() })
}

/// Sets a switch; says how much is queued behind it, how many processes run it, and how soon they did.
async fn set(client: &Client, state: &str, args: &SwitchArgs, json: bool) -> Result<(), Failure> {
    let scope = terms::scope(&args.scope, &SWITCH_SCOPE)?;
    let mut body = json!({ "scope": scope, "state": state });
    if let Some(reason) = &args.reason {
        body["reason"] = reason.as_str().into();
    }
    if let Some(expires) = &args.expires {
        body["expires_at"] = from_now(expires)?.into();
    }
    let answer = client.put("/v1/admin/switches", &body).await?;
    print(json, &answer, |answer| switched_text(state, answer))
}

fn switched_text(state: &str, answer: &Value) -> String {
    let applied = &answer["applied"];
    let queued = queued_text(&answer["queued"]).map(|queued| format!("Queued behind it: {queued} messages.\n"));
    let queued = queued.unwrap_or_default();
    let (running, of) = (cell(&applied["processes"]), cell(&applied["of"]));
    let missing = match applied["missing"].as_array().map_or(&[][..], Vec::as_slice) {
        [] => String::new(),
        missing => format!("\nThese do not run it yet: {}", missing.iter().map(cell).collect::<Vec<_>>().join(", ")),
    };
    let id = cell(&answer["id"]);
    let after_ms = cell(&applied["after_ms"]);
    format!("{queued}Switch {id} is {state}: {running} of {of} processes run it, after {after_ms} ms.{missing}")
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
        #[arg(long, value_parser = terms::rate)]
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
                print(json, &json!({ "limits": limits }), |_| {
                    let mut table = Table::new(&["id", "scope", "per second", "burst"]);
                    for limit in &limits {
                        let scope = terms::scope_text(&limit["scope"]);
                        table.row(vec![cell(&limit["id"]), scope, cell(&limit["per_second"]), cell(&limit["burst"])]);
                    }
                    table.text()
                })
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
