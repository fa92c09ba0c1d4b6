//! Live sessions of one process.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use herald_core::{
    ids::TenantId,
    ports::{
        StoreError,
        sessions::{Frame, Inlet, SessionGuard, Sessions},
    },
};
use parking_lot::RwLock;

/// Which connections this process holds.
#[derive(Default)]
pub struct LocalSessions {
    state: Arc<RwLock<State>>,
}

#[derive(Default)]
struct State {
    tenants: HashMap<TenantId, HashMap<String, Vec<Session>>>,
    next: u64,
}

struct Session {
    number: u64,
    inlet: Arc<dyn Inlet>,
}

impl LocalSessions {
    /// No connections.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many connections are registered.
    pub fn len(&self) -> usize {
        self.state.read().tenants.values().flat_map(HashMap::values).map(Vec::len).sum()
    }

    /// Whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.state.read().tenants.is_empty()
    }
}

#[async_trait]
impl Sessions for LocalSessions {
    async fn connected(&self, tenant: &TenantId, users: &[&str]) -> Result<Vec<bool>, StoreError> {
        let state = self.state.read();
        let tenant = state.tenants.get(tenant);
        Ok(users.iter().map(|user| tenant.is_some_and(|tenant| tenant.contains_key(*user))).collect())
    }

    async fn hand_over(&self, frames: Vec<Frame>) -> Result<(), StoreError> {
        for Frame { tenant, user, item } in &frames {
            // An inlet may end its own session, so none is called under the lock.
            let inlets: Vec<Arc<dyn Inlet>> = {
                let state = self.state.read();
                let sessions = state.tenants.get(tenant).and_then(|tenant| tenant.get(user));
                sessions.into_iter().flatten().map(|session| session.inlet.clone()).collect()
            };
            inlets.iter().for_each(|inlet| inlet.frame(item));
        }
        Ok(())
    }

    async fn register(
        &self,
        tenant: &TenantId,
        user: &str,
        inlet: Arc<dyn Inlet>,
    ) -> Result<Box<dyn SessionGuard>, StoreError> {
        let mut state = self.state.write();
        let number = state.next;
        state.next += 1;
        let users = state.tenants.entry(tenant.clone()).or_default();
        users.entry(user.into()).or_default().push(Session { number, inlet });
        Ok(Box::new(Guard { state: self.state.clone(), tenant: tenant.clone(), user: user.into(), number }))
    }
}

struct Guard {
    state: Arc<RwLock<State>>,
    tenant: TenantId,
    user: String,
    number: u64,
}

impl SessionGuard for Guard {}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut ended = None;
        let mut state = self.state.write();
        if let Some(users) = state.tenants.get_mut(&self.tenant) {
            if let Some(sessions) = users.get_mut(&self.user) {
                if let Some(at) = sessions.iter().position(|session| session.number == self.number) {
                    ended = Some(sessions.swap_remove(at));
                }
                if sessions.is_empty() {
                    users.remove(&self.user);
                }
            }
            if users.is_empty() {
                state.tenants.remove(&self.tenant);
            }
        }
        // The inlet's own drop runs without the lock.
        drop(state);
        drop(ended);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use herald_core::{
        ids::NotificationId,
        ports::inbox::{EventId, Item},
    };

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Inlet for Counter {
        fn frame(&self, _: &Item) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn gap(&self) {}
    }

    fn frame(tenant: &str, user: &str) -> Frame {
        let item = Item {
            event_id: EventId { epoch: 1, offset: 2, index: 3 },
            notification: NotificationId([1; 16]),
            title: String::new(),
            body: String::new(),
            data: bytes::Bytes::new(),
            created_ms: 0,
            seen_ms: 0,
            read_ms: 0,
            archived_ms: 0,
        };
        Frame { tenant: TenantId::trusted(tenant), user: user.into(), item }
    }

    #[tokio::test]
    async fn a_frame_reaches_every_connection_of_its_user_until_the_guard_is_dropped() {
        let sessions = LocalSessions::new();
        let tenant = TenantId::trusted("acme");
        let (first, second) = (Arc::new(Counter::default()), Arc::new(Counter::default()));
        let guard = sessions.register(&tenant, "u", first.clone()).await.unwrap();
        let _kept = sessions.register(&tenant, "u", second.clone()).await.unwrap();
        sessions.hand_over(vec![frame("acme", "u"), frame("other", "u"), frame("acme", "v")]).await.unwrap();
        drop(guard);
        assert_eq!(sessions.connected(&tenant, &["u", "v"]).await.unwrap(), [true, false]);
        sessions.hand_over(vec![frame("acme", "u")]).await.unwrap();
        assert_eq!(first.0.load(Ordering::Relaxed), 1);
        assert_eq!(second.0.load(Ordering::Relaxed), 2);
        drop(_kept);
        assert!(sessions.is_empty(), "nothing is left of ended sessions");
    }
}
