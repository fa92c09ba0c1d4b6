//! How many connections there are.

use std::{collections::HashMap, sync::Arc};

use herald_core::{
    ids::TenantId,
    problem::{Kind, Problem},
};
use parking_lot::Mutex;

/// When a user who has too many connections may try again.
const RETRY_AFTER_S: u32 = 10;

/// Counts connections, of each user and in all.
pub(super) struct Slots {
    max: usize,
    max_per_user: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    taken: usize,
    by_user: HashMap<(TenantId, String), usize>,
}

/// A connection's place; free again when dropped.
pub(super) struct Slot {
    slots: Arc<Slots>,
    user: (TenantId, String),
}

impl Slots {
    pub(super) fn new(max: usize, max_per_user: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_user, state: Mutex::default() })
    }

    /// Takes a place.
    ///
    /// # Errors
    /// 429 where the user has as many connections as one may have; 503 where the process has.
    pub(super) fn take(self: &Arc<Self>, tenant: &TenantId, user: &str) -> Result<Slot, Problem> {
        let mut state = self.state.lock();
        if state.taken >= self.max {
            return Err(Problem::unavailable("This gateway has no room for more live connections. Connect again."));
        }
        let user = (tenant.clone(), user.to_owned());
        let of_user = state.by_user.get(&user).copied().unwrap_or_default();
        if of_user >= self.max_per_user {
            let detail = format!("The user has {of_user} live connections; no more are allowed.");
            return Err(Problem::new(Kind::TooMany, "too_many_connections", detail).with_retry_after(RETRY_AFTER_S));
        }
        state.by_user.insert(user.clone(), of_user + 1);
        state.taken += 1;
        Ok(Slot { slots: self.clone(), user })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.slots.state.lock();
        state.taken -= 1;
        if let Some(of_user) = state.by_user.get_mut(&self.user) {
            *of_user -= 1;
            if *of_user == 0 {
                state.by_user.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let slots = Slots::new(3, 2);
        let (a, b) = (TenantId::trusted("a"), TenantId::trusted("b"));
        let status = |refused: Result<Slot, Problem>| refused.map(|_| ()).unwrap_err().kind().status();
        let first = slots.take(&a, "u").unwrap();
        let _second = slots.take(&a, "u").unwrap();
        assert_eq!(status(slots.take(&a, "u")), 429);
        let third = slots.take(&b, "u").unwrap();
        assert_eq!(status(slots.take(&b, "v")), 503);
        drop((first, third));
        let _again = slots.take(&a, "u").unwrap();
        assert_eq!(slots.state.lock().by_user.len(), 1, "nothing is left of users without connections");
    }
}
