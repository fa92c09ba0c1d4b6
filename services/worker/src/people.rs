//! The worker's view of its users: profiles and preferences in memory, bounded.

use std::sync::Arc;

use hashbrown::HashMap;
use herald_core::{
    ids::TenantId,
    people::{Endpoint, Person, Preferences, QuietHours},
};
use jiff::tz::TimeZone;
use serde_json::Value;

/// What is known of a person at the moment of sending.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Known {
    pub id: Arc<str>,
    pub registered: bool,
    pub locale: Option<String>,
    pub time_zone: Option<String>,
    /// An object.
    pub attributes: Value,
    pub endpoints: Vec<Arc<Endpoint>>,
    pub preferences: Preferences,
    /// As [`Person::erased_ms`].
    pub erased_ms: u64,
    /// The zone of their quiet hours, if they have any.
    pub quiet_zone: Option<TimeZone>,
}

impl Known {
    /// What is stored of a user.
    pub(crate) fn of(user_id: &str, person: Person) -> Self {
        let registered = person.user.is_some();
        let user = person.user.unwrap_or_default();
        let quiet_hours = person.preferences.quiet_hours.as_ref();
        Self {
            quiet_zone: quiet_hours.map(|quiet| zone_of(quiet, user.time_zone.as_deref())),
            id: user_id.into(),
            registered,
            locale: user.locale,
            time_zone: user.time_zone,
            attributes: Value::Object(user.attributes),
            endpoints: user.endpoints.into_iter().map(Arc::new).collect(),
            preferences: person.preferences,
            erased_ms: person.erased_ms,
        }
    }

    /// When they want to be left alone, and where.
    pub(crate) fn quiet_hours(&self) -> Option<(&QuietHours, &TimeZone)> {
        self.preferences.quiet_hours.as_ref().zip(self.quiet_zone.as_ref())
    }
}

/// The zone of a person's quiet hours: the one that they name, else the person's, else UTC. A name that this machine's
/// database does not know is passed over.
fn zone_of(quiet: &QuietHours, time_zone: Option<&str>) -> TimeZone {
    let mut names = quiet.time_zone.as_deref().into_iter().chain(time_zone);
    names.find_map(|name| TimeZone::get(name).ok()).unwrap_or(TimeZone::UTC)
}

type Generation = HashMap<TenantId, HashMap<Box<str>, (u64, Arc<Known>)>>;

/// A cache of two generations: what was not used while the younger one filled up is dropped.
pub(crate) struct People {
    young: Generation,
    old: Generation,
    young_len: usize,
    capacity: usize,
    max_age_ms: u64,
}

impl People {
    pub(crate) fn new(capacity: usize, max_age_ms: u64) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_len: 0, capacity: capacity.max(2), max_age_ms }
    }

    /// A person who was read at most `max_age_ms` ago.
    pub(crate) fn get(&mut self, tenant: &TenantId, user: &str, now_ms: u64) -> Option<Arc<Known>> {
        let fresh = |read_ms: u64| now_ms.saturating_sub(read_ms) <= self.max_age_ms;
        if let Some((read_ms, known)) = self.young.get(tenant).and_then(|users| users.get(user)) {
            return fresh(*read_ms).then(|| known.clone());
        }
        let (read_ms, known) = self.old.get_mut(tenant)?.remove(user)?;
        if !fresh(read_ms) {
            return None;
        }
        self.insert(tenant, user, read_ms, known.clone());
        Some(known)
    }

    /// Remembers a person as read at `read_ms`.
    pub(crate) fn insert(&mut self, tenant: &TenantId, user: &str, read_ms: u64, known: Arc<Known>) {
        if self.young_len >= self.capacity / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_len = 0;
        }
        let users = match self.young.get_mut(tenant) {
            Some(users) => users,
            None => self.young.entry(tenant.clone()).or_default(),
        };
        if users.insert(user.into(), (read_ms, known)).is_none() {
            self.young_len += 1;
        }
    }

    /// Forgets everybody.
    pub(crate) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
        self.young_len = 0;
    }

    /// Forgets a person who changed.
    pub(crate) fn forget(&mut self, tenant: &TenantId, user: &str) {
        if self.young.get_mut(tenant).and_then(|users| users.remove(user)).is_some() {
            self.young_len -= 1;
        }
        if let Some(users) = self.old.get_mut(tenant) {
            users.remove(user);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.values().chain(self.old.values()).map(HashMap::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(locale: &str) -> Arc<Known> {
        let user = herald_core::people::User { locale: Some(locale.into()), ..Default::default() };
        Arc::new(Known::of("u", Person { user: Some(user), ..Default::default() }))
    }

    #[test]
    fn the_cache_stays_within_its_bound_and_keeps_who_is_used() {
        let tenant = TenantId::trusted("t");
        let mut people = People::new(100, 1_000);
        people.insert(&tenant, "regular", 0, known("de"));
        for i in 0..1_000 {
            people.insert(&tenant, &format!("u{i}"), 0, known("en"));
            assert!(people.get(&tenant, "regular", 10).is_some(), "after {i}");
            assert!(people.len() <= 101);
        }
    }

    #[test]
    fn a_changed_person_is_forgotten_in_both_generations() {
        let (a, b) = (TenantId::trusted("a"), TenantId::trusted("b"));
        let mut people = People::new(2, 1_000);
        people.insert(&a, "u", 0, known("de"));
        people.insert(&b, "u", 0, known("fr"));
        people.forget(&a, "u");
        assert!(people.get(&a, "u", 0).is_none());
        assert_eq!(people.get(&b, "u", 0).unwrap().locale.as_deref(), Some("fr"));
        assert!(people.get(&b, "u", 1_001).is_none(), "read again after its age");
    }
}
