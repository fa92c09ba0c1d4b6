//! When what makes messages wait is lifted: a switch that slowed or held them says something else or has expired, a limit
//! is gone or raised, or the providers are others.

use std::{collections::BTreeMap, sync::Arc};

use herald_core::{
    limits::Limits,
    policy::Policy,
    providers::Providers,
    record::WaitCause,
    switches::{SwitchState, Switches},
};

/// After this time no process decides with what held before something was lifted: no send starts with older policies.
const TAKEN_UP_MS: u64 = 1_000;

/// What made messages wait at the last look.
#[derive(Default)]
pub(crate) struct Lifting {
    before: Option<InForce>,
    /// When what others held meanwhile, with older policies, is let go too.
    again_ms: BTreeMap<WaitCause, u64>,
}

struct InForce {
    switches: BTreeMap<String, SwitchState>,
    limits: Arc<Limits>,
    providers: Arc<Providers>,
}

impl Lifting {
    /// What was lifted since the last look; everything at the first one.
    pub(crate) fn lifted(&mut self, policy: &Policy, now_ms: u64) -> Vec<WaitCause> {
        let switches = makes_wait(policy.switches(), now_ms);
        let now = InForce { switches, limits: policy.limits().clone(), providers: policy.providers().clone() };
        let Some(before) = self.before.replace(now) else {
            return vec![WaitCause::Switch, WaitCause::Limit, WaitCause::Provider];
        };
        let says = |id: &String| policy.switches().get(id).map_or(SwitchState::On, |row| row.state_at(now_ms));
        let is_switched = before.switches.iter().any(|(id, state)| says(id) != *state);
        let mut lifted = Vec::new();
        if self.now_or_again(WaitCause::Switch, is_switched, now_ms) {
            lifted.push(WaitCause::Switch);
        }
        if self.now_or_again(WaitCause::Provider, !Arc::ptr_eq(policy.providers(), &before.providers), now_ms) {
            lifted.push(WaitCause::Provider);
        }
        let is_loosened =
            !Arc::ptr_eq(policy.limits(), &before.limits) && policy.limits().loosened_since(&before.limits);
        if self.now_or_again(WaitCause::Limit, is_loosened, now_ms) {
            lifted.push(WaitCause::Limit);
        }
        lifted
    }

    /// Whether a cause is lifted now, or was a while ago and is to be looked at again.
    fn now_or_again(&mut self, cause: WaitCause, is_lifted: bool, now_ms: u64) -> bool {
        if is_lifted {
            self.again_ms.insert(cause, now_ms + TAKEN_UP_MS);
            return true;
        }
        let is_due = self.again_ms.get(&cause).is_some_and(|at_ms| *at_ms <= now_ms);
        is_due && self.again_ms.remove(&cause).is_some()
    }
}

fn makes_wait(switches: &Switches, now_ms: u64) -> BTreeMap<String, SwitchState> {
    let states = switches.iter().map(|(id, row)| (id, row.state_at(now_ms)));
    states.filter(|(_, state)| state.makes_wait()).map(|(id, state)| (id.to_owned(), state)).collect()
}

#[cfg(test)]
mod tests {
    use herald_core::{
        limits::{LimitRow, LimitScope},
        policy::kind,
        providers::ProviderRow,
        record::Control,
        switches::{SwitchRow, SwitchScope},
    };
    use serde::Serialize;

    use super::*;

    const SWITCH: &[WaitCause] = &[WaitCause::Switch];
    const LIMIT: &[WaitCause] = &[WaitCause::Limit];
    const PROVIDER: &[WaitCause] = &[WaitCause::Provider];

    fn put(policy: &mut Policy, kind: &str, key: String, version: u64, value: Option<&impl Serialize>) {
        let deleted = value.is_none();
        let value = value.map_or_else(Vec::new, |value| serde_json::to_vec(value).unwrap()).into();
        policy.apply(&Control { kind: kind.into(), key, version, value, deleted }).unwrap();
    }

    fn switch(policy: &mut Policy, tenant: &str, state: SwitchState, expires_ms: Option<u64>) {
        let scope = SwitchScope { tenant: Some(tenant.into()), ..SwitchScope::default() };
        let key = scope.switch_id();
        let row = SwitchRow { scope, state, reason: String::new(), expires_ms, set_ms: 0, set_by: String::new() };
        put(policy, kind::SWITCH, key, 0, Some(&row));
    }

    fn limit(policy: &mut Policy, version: u64, per_second: Option<f64>) {
        let scope = LimitScope::default();
        let row = |per_second| LimitRow {
            id: scope.id(),
            scope: scope.clone(),
            per_second,
            burst: 1,
            created_ms: 0,
            updated_ms: 0,
        };
        put(policy, kind::LIMIT, scope.id(), version, per_second.map(row).as_ref());
    }

    #[test]
    fn a_switch_is_lifted_when_it_says_something_else_or_expires_and_again_a_second_later() {
        let (mut lifting, mut policy) = (Lifting::default(), Policy::default());
        assert_eq!(lifting.lifted(&policy, 0), [WaitCause::Switch, WaitCause::Limit, WaitCause::Provider], "who knows");
        switch(&mut policy, "a", SwitchState::Hold, None);
        switch(&mut policy, "b", SwitchState::Slow, Some(5_000));
        assert_eq!(lifting.lifted(&policy, 1_000), []);
        switch(&mut policy, "a", SwitchState::Off, None);
        assert_eq!(lifting.lifted(&policy, 1_000), SWITCH);
        assert_eq!((lifting.lifted(&policy, 1_999), lifting.lifted(&policy, 2_000).as_slice()), (vec![], SWITCH));
        assert_eq!((lifting.lifted(&policy, 4_999), lifting.lifted(&policy, 5_000).as_slice()), (vec![], SWITCH));
        assert_eq!((lifting.lifted(&policy, 6_000).as_slice(), lifting.lifted(&policy, 60_000)), (SWITCH, vec![]));
        switch(&mut policy, "a", SwitchState::On, None);
        assert_eq!(lifting.lifted(&policy, 61_000), [], "nothing waits for one that is off");
    }

    #[test]
    fn a_limit_is_lifted_when_it_is_gone_or_raised_and_again_a_second_later() {
        let (mut lifting, mut policy) = (Lifting::default(), Policy::default());
        lifting.lifted(&policy, 0);
        for (version, per_second, expected) in
            [(1, Some(5.0), &[][..]), (2, Some(6.0), LIMIT), (3, Some(2.0), &[]), (4, None, LIMIT), (5, Some(9.0), &[])]
        {
            limit(&mut policy, version, per_second);
            assert_eq!(lifting.lifted(&policy, version * 10_000), expected, "{per_second:?}");
            assert_eq!(
                lifting.lifted(&policy, version * 10_000 + 1_000),
                expected,
                "a worker may have held with the older one"
            );
            assert_eq!(lifting.lifted(&policy, version * 10_000 + 2_000), []);
        }
    }

    #[test]
    fn whoever_waits_for_a_provider_asks_again_when_one_is_set_or_gone_and_a_second_later() {
        let (mut lifting, mut policy) = (Lifting::default(), Policy::default());
        lifting.lifted(&policy, 0);
        let row = |revision: u32| ProviderRow {
            name: "relay".into(),
            channel: "email".into(),
            kind: "smtp".into(),
            url: "smtp://example.org".into(),
            credentials: None,
            weight: 1,
            tenants: Default::default(),
            revision,
            created_ms: 0,
            updated_ms: 0,
        };
        for (version, row) in [(1, Some(row(1))), (2, Some(row(2))), (3, None)] {
            put(&mut policy, kind::PROVIDER, "relay".into(), version, row.as_ref());
            let at_ms = version * 10_000;
            assert_eq!(lifting.lifted(&policy, at_ms), PROVIDER);
            assert_eq!(lifting.lifted(&policy, at_ms + 999), []);
            assert_eq!(lifting.lifted(&policy, at_ms + 1_000), PROVIDER, "a worker may have held with the older one");
        }
        limit(&mut policy, 4, Some(5.0));
        assert_eq!(lifting.lifted(&policy, 90_000), []);
    }
}
