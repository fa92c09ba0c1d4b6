//! Switches and cancels of a simulation, and what must be true of them.

use std::collections::BTreeMap;

use herald_core::{
    books::Totals,
    control::control_record,
    ids::{NotificationId, TenantId},
    policy::{CancelRow, kind},
    ports::log::LogError,
    record::{Channel, Control},
    switches::{SwitchRow, SwitchScope, SwitchState},
};
use herald_node::backends::Backends;

use crate::{
    check::{DECIDED_MS, Ends},
    provider::Begun,
    scenario::{DAY_MS, Sent},
    world::WallClock,
};

/// After this time nothing may be sent that was switched off, held or cancelled.
const GRACE_MS: u64 = 1_000;

/// A switch of a tenant that was set, or may have been.
#[derive(Debug, Clone)]
pub struct Switched {
    pub tenant: TenantId,
    /// Whether of its mail alone.
    pub mail: bool,
    pub state: SwitchState,
    /// From then on it says nothing, by the wall clock.
    pub expires_wall_ms: Option<u64>,
    /// When the call began.
    pub from_ms: u64,
    /// When it was answered; `None` if it was not, when nobody knows whether the switch is set.
    pub answered_ms: Option<u64>,
}

impl Switched {
    fn scope(&self) -> SwitchScope {
        SwitchScope {
            tenant: Some(self.tenant.to_string()),
            channel: self.mail.then(|| "email".to_owned()),
            ..SwitchScope::default()
        }
    }
}

/// A cancel that was made, or may have been.
#[derive(Debug, Clone, Default)]
pub struct Cancelled {
    /// When it was answered; `None` if it was not.
    pub answered_ms: Option<u64>,
    /// The books when they were first seen closed.
    pub closed: Option<Totals>,
}

/// Everything that operators and callers did to what was under way.
#[derive(Debug, Default)]
pub struct Steered {
    pub switched: Vec<Switched>,
    pub cancelled: BTreeMap<NotificationId, Cancelled>,
}

impl Steered {
    pub async fn switch(
        &mut self,
        tenant: &TenantId,
        mail: bool,
        (state, expires_ms): (SwitchState, Option<u64>),
        backends: &Backends,
        now_ms: impl Fn() -> u64,
    ) -> Result<(), LogError> {
        let (tenant, from_ms) = (tenant.clone(), now_ms());
        let switched = Switched { tenant, mail, state, expires_wall_ms: expires_ms, from_ms, answered_ms: None };
        let scope = switched.scope();
        self.switched.push(switched);
        let key = scope.switch_id();
        let row = SwitchRow { scope, state, reason: String::new(), expires_ms, set_ms: now_ms(), set_by: "op".into() };
        write(kind::SWITCH, key, &row, backends, now_ms()).await?;
        if let Some(last) = self.switched.last_mut() {
            last.answered_ms = Some(now_ms());
        }
        Ok(())
    }

    /// Lifts every switch.
    pub async fn lift_all(&mut self, backends: &Backends, now_ms: impl Fn() -> u64) -> Result<(), LogError> {
        let mut scopes: Vec<(TenantId, bool)> = self.switched.iter().map(|s| (s.tenant.clone(), s.mail)).collect();
        scopes.sort();
        scopes.dedup();
        for (tenant, mail) in scopes {
            self.switch(&tenant, mail, (SwitchState::On, None), backends, &now_ms).await?;
        }
        Ok(())
    }

    pub async fn cancel(&mut self, one: &Sent, backends: &Backends, now_ms: impl Fn() -> u64) -> Result<(), LogError> {
        self.cancelled.entry(one.id).or_default();
        let tenant_id = one.planned.tenant.to_string();
        let row = CancelRow { tenant_id, cancelled_ms: now_ms(), until_ms: now_ms() + 10 * DAY_MS };
        write(kind::CANCEL, one.id.to_string(), &row, backends, now_ms()).await?;
        if let Some(cancelled) = self.cancelled.get_mut(&one.id) {
            cancelled.answered_ms.get_or_insert(now_ms());
        }
        Ok(())
    }

    /// Looks for books that a cancel has closed. Returns whether every answered cancel's are, and are confirmed.
    pub async fn look_for_closed(&mut self, backends: &Backends) -> anyhow::Result<bool> {
        let ids: Vec<NotificationId> = self.cancelled.keys().copied().collect();
        let mut all = true;
        for ((_, cancelled), totals) in self.cancelled.iter_mut().zip(backends.ledger.totals(&ids).await?) {
            let closed = totals.filter(Totals::is_cancelled);
            all &= closed.as_ref().map_or(cancelled.answered_ms.is_none(), Totals::is_confirmed);
            if let (None, Some(totals)) = (&cancelled.closed, closed) {
                cancelled.closed = Some(totals);
            }
        }
        Ok(all)
    }

    /// Whether a switch may have suppressed messages of a tenant.
    pub fn may_have_killed(&self, tenant: &TenantId, channel: Option<Channel>) -> bool {
        let about = |s: &&Switched| s.tenant == *tenant && (!s.mail || channel == Some(Channel::Email));
        self.switched.iter().filter(about).any(|s| s.state == SwitchState::Off)
    }

    /// Spans in which nothing of a tenant's mail may be begun: from a second after a switch was answered until the next
    /// one of its scope was asked for, unless it has expired.
    fn forbidden(&self) -> Vec<(&Switched, u64, u64)> {
        let mut spans = Vec::new();
        for (i, switched) in self.switched.iter().enumerate().filter(|(_, switched)| !switched.state.sends()) {
            let same = |next: &&Switched| (&next.tenant, next.mail) == (&switched.tenant, switched.mail);
            let until_ms = self.switched[i + 1..].iter().find(same).map_or(u64::MAX, |next| next.from_ms);
            let from_ms = switched.answered_ms.map(|at_ms| at_ms + GRACE_MS);
            spans.extend(from_ms.map(|from_ms| (switched, from_ms, until_ms)));
        }
        spans
    }

    pub fn check_starts(&self, begun: &[Begun], wall: &WallClock, found: &mut Vec<String>) {
        let forbidden = self.forbidden();
        for begun in begun {
            // Nor had it when the send was decided on, if the clock was set back since.
            let may_have_expired = |switched: &Switched| {
                let shown_ms = || wall.latest(begun.at_ms - DECIDED_MS, begun.at_ms);
                switched.expires_wall_ms.is_some_and(|expires_ms| shown_ms() >= expires_ms)
            };
            let within = |(switched, from_ms, until_ms): &(&Switched, u64, u64)| {
                switched.tenant.as_str() == begun.tenant
                    && (*from_ms + 1..*until_ms).contains(&begun.at_ms)
                    && !may_have_expired(switched)
            };
            if forbidden.iter().any(within) {
                found.push(format!("{begun:?} was begun although it was switched off or held"));
            }
            let cancelled_ms = self.cancelled.get(&begun.notification).and_then(|cancelled| cancelled.answered_ms);
            if cancelled_ms.is_some_and(|at_ms| begun.at_ms > at_ms + GRACE_MS) {
                found.push(format!("{begun:?} was begun more than a second after its cancel"));
            }
        }
    }

    /// What was told once the books were closed is final, and is what happened.
    pub async fn check_books(&self, ends: &Ends, backends: &Backends, found: &mut Vec<String>) -> anyhow::Result<()> {
        for (id, cancelled) in &self.cancelled {
            let totals = backends.ledger.totals(&[*id]).await?.into_iter().flatten().next();
            let Some(totals) = totals.filter(Totals::is_cancelled) else {
                if cancelled.answered_ms.is_some() {
                    found.push(format!("{id} was cancelled and did not become so"));
                }
                continue;
            };
            if !totals.is_confirmed() {
                found.push(format!("{id}: not what was booked as cancelled has come up: {totals:?}"));
            }
            for (channel, counts) in totals.by_channel() {
                let of_channel = || ends.iter().filter(|((of, _, c), _)| of == id && *c == channel as i32);
                let ended = |state, reason: &str| {
                    let alike = |(_, row): &(_, &herald_core::ports::ledger::ReceiptRow)| {
                        row.shared.state() == state && (reason.is_empty() || row.shared.reason == reason)
                    };
                    of_channel().filter(alike).count() as u64
                };
                use herald_core::record::State;
                let booked = counts.suppressed.get("cancelled").copied().unwrap_or(0);
                let came_up = ended(State::Suppressed, "cancelled");
                if ended(State::Delivered, "") != counts.delivered || came_up < booked {
                    found.push(format!("{id} {channel:?}: {counts:?}, and {came_up} came up as cancelled"));
                }
            }
            if let Some(closed) = &cancelled.closed {
                let told = |totals: &Totals| {
                    let counts = |t: &herald_core::books::ChannelTotals| {
                        (t.created, t.delivered, t.suppressed.clone(), t.failed, t.dead)
                    };
                    totals.channels.iter().map(|(c, t)| (*c, counts(t))).collect::<BTreeMap<_, _>>()
                };
                let mut now = told(&totals);
                now.retain(|_, (created, ..)| created.count > 0);
                let mut then = told(closed);
                then.retain(|_, (created, ..)| created.count > 0);
                if now != then {
                    found.push(format!("{id}: the counts changed after they were final: {then:?}, {now:?}"));
                }
            }
        }
        Ok(())
    }
}

async fn write(
    kind: &str,
    key: String,
    row: &impl serde::Serialize,
    backends: &Backends,
    now_ms: u64,
) -> Result<(), LogError> {
    let value = serde_json::to_vec(row).map_err(|error| LogError::Damaged(error.to_string()))?;
    let control = Control { kind: kind.into(), key, version: now_ms, value: value.into(), deleted: false };
    backends.log.append(vec![control_record(backends.log.identity(), &control, now_ms)]).await.map(|_| ())
}
