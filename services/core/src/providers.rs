//! Who delivers: the providers of each channel, and which of them a message goes to. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{record::Channel, secrets::Sealed};

/// The most providers that operators may set.
pub const MAX_PROVIDERS: usize = 100;

/// The heaviest that a provider can be.
pub const MAX_WEIGHT: u32 = 1_000;

/// A provider that operators set, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderRow {
    /// Its name, in receipts, limits and switches.
    pub name: String,
    /// Which channel it serves, by name.
    pub channel: String,
    /// What speaks to it, such as `smtp`.
    pub kind: String,
    /// Where it is, without credentials.
    pub url: String,
    /// What opens it, as JSON; `None` where it asks for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Sealed>,
    /// Its share among the providers that could take a message; 0 for none.
    pub weight: u32,
    /// Whose messages it takes; empty for everybody's.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tenants: BTreeSet<String>,
    /// Counts how often it was set, from 1.
    pub revision: u32,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
    /// Milliseconds since the epoch.
    pub updated_ms: u64,
}

impl ProviderRow {
    /// Where its credentials belong: to this revision of this provider and to no other.
    pub fn secret_context(&self) -> String {
        format!("provider/{}/{}", self.name, self.revision)
    }
}

/// A provider as messages are routed to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its name.
    pub name: Arc<str>,
    /// Which channel it serves.
    pub channel: Channel,
    /// What operators set; `None` for one of the configuration.
    pub row: Option<Arc<ProviderRow>>,
}

impl Provider {
    fn weight(&self) -> u32 {
        self.row.as_ref().map_or(1, |row| row.weight)
    }

    /// How near it is to a tenant: its own are nearer than everybody's, and these nearer than what the configuration
    /// names. `None` if it takes nothing of the tenant.
    fn nearness(&self, tenant: &str) -> Option<u8> {
        match &self.row {
            None => Some(0),
            Some(row) if row.tenants.is_empty() => Some(1),
            Some(row) => row.tenants.contains(tenant).then_some(2),
        }
    }
}

/// Every provider. In-app needs none.
#[derive(Debug, Clone, Default)]
pub struct Providers {
    by_name: BTreeMap<Arc<str>, Arc<Provider>>,
}

impl Providers {
    /// Those that the configuration names.
    pub fn configured(providers: impl IntoIterator<Item = (Channel, String)>) -> Self {
        let provider = |(channel, name): (Channel, String)| {
            let name: Arc<str> = name.into();
            (name.clone(), Arc::new(Provider { name, channel, row: None }))
        };
        Self { by_name: providers.into_iter().map(provider).collect() }
    }

    /// Sets a provider. One that the configuration names stays as it is.
    pub fn set(&mut self, channel: Channel, row: ProviderRow) {
        let name: Arc<str> = row.name.as_str().into();
        if !self.is_configured(&name) {
            let provider = Provider { name: name.clone(), channel, row: Some(Arc::new(row)) };
            self.by_name.insert(name, Arc::new(provider));
        }
    }

    /// Removes a provider that was set.
    pub fn remove(&mut self, name: &str) {
        if !self.is_configured(name) {
            self.by_name.remove(name);
        }
    }

    /// A provider by its name.
    pub fn get(&self, name: &str) -> Option<&Arc<Provider>> {
        self.by_name.get(name)
    }

    /// Whether the configuration names it.
    pub fn is_configured(&self, name: &str) -> bool {
        self.get(name).is_some_and(|provider| provider.row.is_none())
    }

    /// Every provider, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.by_name.values()
    }

    /// Whether anybody takes a tenant's messages on a channel.
    pub fn serve(&self, channel: Channel, tenant: &str) -> bool {
        let takes = |provider: &Arc<Provider>| provider.weight() > 0 && provider.nearness(tenant).is_some();
        self.iter().any(|provider| provider.channel == channel && takes(provider))
    }

    /// Those that share a tenant's messages on a channel: the nearest to the tenant that have any weight.
    pub fn serving(&self, channel: Channel, tenant: &str) -> Vec<&Arc<Provider>> {
        let able = || self.iter().filter(|provider| provider.channel == channel && provider.weight() > 0);
        let nearest = able().filter_map(|provider| provider.nearness(tenant)).max();
        able().filter(|provider| nearest.is_some() && provider.nearness(tenant) == nearest).collect()
    }
}

/// The one of some providers that a hash falls on, by their weights.
pub fn chosen<'a>(serving: &[&'a Arc<Provider>], hash: u64) -> Option<&'a Arc<Provider>> {
    let total: u64 = serving.iter().map(|provider| u64::from(provider.weight())).sum();
    let mut left = hash.checked_rem(total)?;
    serving.iter().copied().find(|provider| {
        let is_it = left < u64::from(provider.weight());
        left = left.saturating_sub(provider.weight().into());
        is_it
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, weight: u32, tenants: &[&str]) -> ProviderRow {
        ProviderRow {
            name: name.into(),
            channel: "email".into(),
            kind: "smtp".into(),
            url: String::new(),
            credentials: None,
            weight,
            tenants: tenants.iter().map(|tenant| (*tenant).to_owned()).collect(),
            revision: 1,
            created_ms: 0,
            updated_ms: 0,
        }
    }

    fn names(providers: &Providers, tenant: &str) -> Vec<String> {
        providers.serving(Channel::Email, tenant).iter().map(|provider| provider.name.to_string()).collect()
    }

    #[test]
    fn a_tenants_own_providers_come_first_then_everybodys_then_the_configured() {
        let mut providers = Providers::configured([(Channel::Email, "smtp".to_owned())]);
        assert_eq!(names(&providers, "acme"), ["smtp"]);
        providers.set(Channel::Email, row("shared", 1, &[]));
        providers.set(Channel::Email, row("drained", 0, &[]));
        assert_eq!(names(&providers, "acme"), ["shared"]);
        providers.set(Channel::Email, row("own", 1, &["acme"]));
        assert_eq!(
            (names(&providers, "acme"), names(&providers, "other")),
            (vec!["own".into()], vec!["shared".into()])
        );
        providers.set(Channel::Email, row("own", 0, &["acme"]));
        assert_eq!(names(&providers, "acme"), ["shared"], "one without weight takes nothing");
        providers.remove("shared");
        assert_eq!(names(&providers, "acme"), ["smtp"]);
        assert!(providers.serving(Channel::Push, "acme").is_empty());
    }

    #[test]
    fn a_configured_provider_is_neither_replaced_nor_removed() {
        let mut providers = Providers::configured([(Channel::Email, "smtp".to_owned())]);
        providers.set(Channel::Email, row("smtp", 1, &["acme"]));
        providers.remove("smtp");
        assert!(providers.is_configured("smtp") && names(&providers, "other") == ["smtp"]);
    }

    #[test]
    fn shares_are_as_the_weights_and_a_hash_stays_where_it_falls() {
        let mut providers = Providers::default();
        providers.set(Channel::Email, row("a", 3, &[]));
        providers.set(Channel::Email, row("b", 1, &[]));
        let serving = providers.serving(Channel::Email, "acme");
        let mut counts = BTreeMap::new();
        for hash in 0..400 {
            let name = &chosen(&serving, hash).unwrap().name;
            assert_eq!(name, &chosen(&serving, hash).unwrap().name);
            *counts.entry(name.to_string()).or_insert(0) += 1;
        }
        assert_eq!(counts, BTreeMap::from([("a".to_owned(), 300), ("b".to_owned(), 100)]));
        assert!(chosen(&[], 7).is_none());
    }
}
