//! Erasures of a simulation, and what must be true of them.

use std::{collections::BTreeMap, time::Duration};

use herald_core::{
    clock::World,
    ids::{NotificationId, TenantId},
    ports::{directory::AudienceKey, erasures::Erasure, log::LogError},
    record::{Channel, audience::Kind},
};
use herald_node::backends::Backends;

use crate::{
    check::Ends,
    provider::Begun,
    scenario::{DAY_MS, Scenario, Sent, register, tell_change},
};

/// After this time nothing may be sent to somebody who was erased.
const GRACE_MS: u64 = 1_000;

/// The names on receipts of those who were erased begin so.
const NOBODY: &str = "erased";

/// An erasure that was begun, or may have been.
#[derive(Debug, Clone)]
pub struct Erased {
    id: String,
    /// Whether the person may have been registered again.
    has_returned: bool,
    /// What the wall clock showed when it was asked for.
    pub begun_wall_ms: u64,
    /// When it was asked for.
    pub asked_ms: u64,
    /// When it was answered; `None` if it was not, when nobody knows whether it was begun.
    pub answered_ms: Option<u64>,
}

/// By tenant and user.
#[derive(Debug, Default)]
pub struct Erasures(pub BTreeMap<(String, String), Erased>);

impl Erasures {
    /// Begins an erasure and tells the workers, as a gateway does before it answers. A person is erased once at most.
    pub async fn erase(
        &mut self,
        tenant: &TenantId,
        user: &str,
        backends: &Backends,
        world: &World,
        true_ms: impl Fn() -> u64,
    ) -> Result<(), LogError> {
        let key = (tenant.to_string(), user.to_owned());
        if self.0.contains_key(&key) {
            return Ok(());
        }
        let (now_ms, id) = (world.now_ms(), world.notification_id().to_string());
        let erased = Erased {
            id: id.clone(),
            has_returned: false,
            begun_wall_ms: now_ms,
            asked_ms: true_ms(),
            answered_ms: None,
        };
        self.0.insert(key.clone(), erased);
        let erasure = Erasure {
            id,
            tenant: tenant.clone(),
            user_id: user.to_owned(),
            begun_ms: now_ms,
            completed_ms: 0,
            log_gone_ms: now_ms + 40 * DAY_MS,
            due_ms: now_ms,
        };
        let begun = backends.erasures.begin(erasure).await;
        begun.map_err(|error| LogError::Unavailable(error.to_string()))?;
        tell_change(tenant, user, true, backends, now_ms).await?;
        self.0.entry(key).and_modify(|erased| erased.answered_ms = Some(true_ms()));
        Ok(())
    }

    /// Registers somebody again who was erased and has not come back yet, if there is anybody.
    pub async fn bring_back(&mut self, backends: &Backends, now_ms: u64) -> Result<(), LogError> {
        let gone =
            |(_, erased): &(&(String, String), &mut Erased)| erased.answered_ms.is_some() && !erased.has_returned;
        let Some(((tenant, user), erased)) = self.0.iter_mut().find(gone) else { return Ok(()) };
        erased.has_returned = true;
        register(&TenantId::trusted(tenant), user, backends, now_ms).await
    }

    /// Whether somebody was erased, or may have been.
    pub fn may_have(&self, tenant: &TenantId, user: &str) -> bool {
        self.0.contains_key(&(tenant.to_string(), user.to_owned()))
    }

    /// Whether somebody was erased, or may have been, before a send to them started: with a person their wishes are erased.
    pub fn may_have_come_before(&self, begun: &Begun) -> bool {
        let erased = self.0.get(&(begun.tenant.clone(), begun.user.clone()));
        erased.is_some_and(|erased| erased.asked_ms <= begun.at_ms)
    }

    /// Whether an audience may have lost those who belonged to it by somebody who was erased.
    pub fn may_have_cut(&self, one: &Sent) -> bool {
        matches!(&one.planned.kind, Kind::FollowersOf(user) if self.may_have(&one.planned.tenant, user))
    }

    /// Those of a tenant that were erased, or may have been.
    pub fn of<'a>(&'a self, tenant: &'a TenantId) -> impl Iterator<Item = &'a str> {
        self.0.keys().filter(|(of, _)| of == tenant.as_str()).map(|(_, user)| user.as_str())
    }

    /// No send to somebody who was erased starts more than a second later, whoever comes back.
    pub fn check_starts(&self, sent: &[Sent], begun: &[Begun], found: &mut Vec<String>) {
        let sent: BTreeMap<NotificationId, &Sent> = sent.iter().map(|one| (one.id, one)).collect();
        for begun in begun {
            let Some(erased) = self.0.get(&(begun.tenant.clone(), begun.user.clone())) else { continue };
            let late = erased.answered_ms.is_some_and(|at_ms| begun.at_ms > at_ms + GRACE_MS);
            // Who came inline later need not be registered.
            let forbidden = |one: &&Sent| {
                one.accepted_wall_ms <= erased.begun_wall_ms
                    || !(erased.has_returned || matches!(one.planned.kind, Kind::Inline(_)))
            };
            if late && sent.get(&begun.notification).is_some_and(forbidden) {
                found.push(format!("{begun:?} was begun more than a second after the erasure"));
            }
        }
    }

    /// When every pass but the last is through, the erasure is complete, and the person is in no audience and, unless they came
    /// back, not registered.
    pub async fn check_rows(
        &self,
        scenario: &Scenario,
        backends: &Backends,
        found: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        for ((tenant, user), erased) in self.0.iter().filter(|(_, erased)| erased.answered_ms.is_some()) {
            let tenant = TenantId::trusted(tenant);
            let row = backends.erasures.get(&tenant, &erased.id).await?;
            if !row.is_some_and(|erasure| erasure.is_complete()) {
                found.push(format!("{tenant} {user}: the erasure is not complete"));
            }
            let people = backends.directory.people(&tenant, std::slice::from_ref(user)).await?;
            if people.iter().any(|person| person.user.is_some()) && !erased.has_returned {
                found.push(format!("{tenant} {user} was erased and is registered"));
            }
            for followee in scenario.followers.keys() {
                let audience = AudienceKey::FollowersOf(followee.clone());
                let page = backends.directory.audience(&tenant, &audience, None, usize::from(u16::MAX)).await?;
                let names = page.users.contains(user) || (followee == user && !page.users.is_empty());
                if names || page.next.is_some() {
                    found.push(format!("{tenant} {user} was erased, and {followee} has {:?}", page.users));
                }
            }
        }
        Ok(())
    }

    /// When every pass is through, nothing that was accepted before names anybody who was erased.
    pub fn check_names(&self, sent: &[&Sent], ends: &Ends, found: &mut Vec<String>) {
        for ((id, user, channel), row) in ends {
            let Some(one) = sent.iter().find(|one| one.id == *id) else { continue };
            let erased = self.0.get(&(one.planned.tenant.to_string(), user.clone()));
            let gone = |erased: &&Erased| erased.answered_ms.is_some() && one.accepted_wall_ms <= erased.begun_wall_ms;
            if erased.filter(gone).is_some() {
                let channel = Channel::try_from(*channel);
                found.push(format!("{id} {channel:?} names {user}, who was erased: {:?}", row.shared.reason));
            }
        }
    }
}

/// Whether a receipt names nobody any more.
pub fn names_nobody(user: &str) -> bool {
    user.starts_with(NOBODY)
}

/// Takes what is due, as a gateway does, for as long as the node lives.
pub async fn keep_erasing(backends: Backends, world: World) {
    loop {
        let _waits_for_a_store = erase_due(&backends, world.now_ms()).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Takes every step that is due by then.
pub async fn erase_due(backends: &Backends, now_ms: u64) -> anyhow::Result<()> {
    loop {
        let due = backends.erasures.due(now_ms, 16).await?;
        if due.is_empty() {
            return Ok(());
        }
        for erasure in due {
            backends.erasures.step(&erasure.tenant, &erasure.id, now_ms).await?;
        }
    }
}
