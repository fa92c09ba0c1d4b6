//! Limits: how much of what may be sent, and which of them apply to a message. Pure.

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    bucket::Quota,
    ids::{TenantId, channel_name, hash128},
    leases::Budget,
    record::Channel,
};

/// What a limit is about. Fields that are set must all fit; one without any is about everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitScope {
    /// The tenant's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The template's id, of whichever tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The channel's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// The provider's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
}

impl LimitScope {
    /// The id of the limit with this scope: there is one limit a scope.
    pub fn id(&self) -> String {
        let mut parts: Vec<&[u8]> = vec![b"limit"];
        for field in [&self.tenant, &self.template, &self.channel, &self.provider] {
            parts.push(if field.is_some() { b"+" } else { b"-" });
            parts.push(field.as_deref().unwrap_or_default().as_bytes());
        }
        format!("limit_{:016x}", u128::from_be_bytes(hash128(&parts)) >> 64)
    }

    /// Whether the scope says nothing of how a message travels, so that its limit can pace expansion too.
    pub fn paces_expansion(&self) -> bool {
        self.channel.is_none() && self.provider.is_none()
    }

    fn fits(&self, tenant: &str, template: &str) -> bool {
        let same = |field: &Option<String>, value: &str| field.as_deref().is_none_or(|field| field == value);
        same(&self.tenant, tenant) && same(&self.template, template)
    }

    fn fits_way(&self, channel: Channel, provider: &str) -> bool {
        self.channel.as_deref().is_none_or(|name| name == channel_name(channel))
            && self.provider.as_deref().is_none_or(|name| name == provider)
    }
}

/// A limit as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LimitRow {
    /// [`LimitScope::id`].
    pub id: String,
    /// What it is about.
    pub scope: LimitScope,
    /// Messages a second.
    pub per_second: f64,
    /// Messages at once.
    pub burst: u64,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
    /// Milliseconds since the epoch.
    pub updated_ms: u64,
}

/// A limit and its two buckets: one for sending, and one for what is expanded.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// The stored row.
    pub row: LimitRow,
    quota: Quota,
    sending: Arc<str>,
    expansion: Arc<str>,
}

impl Limit {
    /// The limit of a row; `None` where its numbers are no quota.
    pub fn of(row: LimitRow) -> Option<Self> {
        let quota = Quota::new(row.per_second, row.burst)?;
        let (sending, expansion) = (format!("send/{}", row.id).into(), format!("expand/{}", row.id).into());
        Some(Self { row, quota, sending, expansion })
    }
}

/// The limits in force.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    by_id: HashMap<String, Arc<Limit>>,
    of_all_tenants: Vec<Arc<Limit>>,
    by_tenant: HashMap<TenantId, Vec<Arc<Limit>>>,
}

impl Limits {
    /// Adds or replaces a limit.
    pub fn insert(&mut self, limit: Limit) {
        self.remove(&limit.row.id);
        let limit = Arc::new(limit);
        match &limit.row.scope.tenant {
            Some(tenant) => self.by_tenant.entry(TenantId::trusted(tenant)).or_default().push(limit.clone()),
            None => self.of_all_tenants.push(limit.clone()),
        }
        self.by_id.insert(limit.row.id.clone(), limit);
    }

    /// Removes a limit.
    pub fn remove(&mut self, id: &str) {
        let Some(limit) = self.by_id.remove(id) else { return };
        let Some(tenant) = &limit.row.scope.tenant else {
            return self.of_all_tenants.retain(|other| other.row.id != id);
        };
        if let Some(limits) = self.by_tenant.get_mut(tenant.as_str()) {
            limits.retain(|other| other.row.id != id);
            if limits.is_empty() {
                self.by_tenant.remove(tenant.as_str());
            }
        }
    }

    /// Whether a limit was lifted since `before`: it is gone, or lets more through.
    pub fn loosened_since(&self, before: &Self) -> bool {
        let lifted =
            |(id, was): (&String, &Arc<Limit>)| self.by_id.get(id).is_none_or(|now| now.quota.exceeds(was.quota));
        before.by_id.iter().any(lifted)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The budgets that a message is taken of when it is sent.
    pub fn for_sending(&self, tenant: &TenantId, template: &str, channel: Channel, provider: &str) -> Vec<Budget> {
        self.about(tenant, template)
            .filter(|limit| limit.row.scope.fits_way(channel, provider))
            .map(|limit| (limit.sending.clone(), limit.quota))
            .collect()
    }

    /// The budgets that pace how fast an audience is expanded.
    pub fn for_expansion(&self, tenant: &TenantId, template: &str) -> Vec<Budget> {
        self.about(tenant, template)
            .filter(|limit| limit.row.scope.paces_expansion())
            .map(|limit| (limit.expansion.clone(), limit.quota))
            .collect()
    }

    fn about<'a>(&'a self, tenant: &'a TenantId, template: &'a str) -> impl Iterator<Item = &'a Arc<Limit>> {
        let of_tenant = self.by_tenant.get(tenant).into_iter().flatten();
        let fits = move |limit: &&Arc<Limit>| limit.row.scope.fits(tenant.as_str(), template);
        self.of_all_tenants.iter().chain(of_tenant).filter(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(fields: [&str; 4]) -> LimitScope {
        let [tenant, template, channel, provider] =
            fields.map(|field| Some(field.to_owned()).filter(|field| !field.is_empty()));
        LimitScope { tenant, template, channel, provider }
    }

    fn limit(fields: [&str; 4], per_second: f64) -> Limit {
        let scope = scope(fields);
        let row = LimitRow { id: scope.id(), scope, per_second, burst: 1, created_ms: 0, updated_ms: 0 };
        Limit::of(row).unwrap()
    }

    /// The rates of the limits that apply, which tell them apart.
    fn rates(budgets: Vec<Budget>) -> Vec<u64> {
        let mut rates: Vec<u64> = budgets.iter().map(|(_, quota)| quota.tokens_in(1_000)).collect();
        rates.sort_unstable();
        rates
    }

    #[test]
    fn the_fields_of_a_scope_are_anded() {
        let mut limits = Limits::default();
        for (rate, fields) in [
            ["", "", "", ""],
            ["acme", "", "", ""],
            ["", "welcome", "", ""],
            ["acme", "welcome", "", ""],
            ["", "", "email", ""],
            ["", "", "", "ses"],
            ["acme", "welcome", "email", "ses"],
            ["other", "welcome", "", ""],
        ]
        .into_iter()
        .enumerate()
        {
            limits.insert(limit(fields, rate as f64 + 1.0));
        }
        let acme = TenantId::trusted("acme");
        let sending = |template, channel, provider| rates(limits.for_sending(&acme, template, channel, provider));
        assert_eq!(sending("welcome", Channel::Email, "ses"), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(sending("welcome", Channel::Email, "own"), [1, 2, 3, 4, 5]);
        assert_eq!(sending("bill", Channel::InApp, ""), [1, 2]);
        assert_eq!(rates(limits.for_expansion(&acme, "welcome")), [1, 2, 3, 4]);
        assert_eq!(rates(limits.for_expansion(&TenantId::trusted("third"), "bill")), [1]);
    }

    #[test]
    fn a_limit_is_replaced_by_the_next_of_its_scope_and_can_be_removed() {
        let mut limits = Limits::default();
        let acme = TenantId::trusted("acme");
        limits.insert(limit(["acme", "", "", ""], 1.0));
        limits.insert(limit(["acme", "", "", ""], 9.0));
        assert_eq!(rates(limits.for_sending(&acme, "t", Channel::Email, "")), [9]);
        limits.remove(&scope(["acme", "", "", ""]).id());
        limits.remove("unknown");
        assert!(limits.is_empty() && limits.for_sending(&acme, "t", Channel::Email, "").is_empty());
    }

    #[test]
    fn a_limit_that_is_raised_or_gone_was_lifted() {
        let with = |limits: &[&Limit]| {
            let mut all = Limits::default();
            limits.iter().for_each(|limit| all.insert((*limit).clone()));
            all
        };
        let (small, large) = (limit(["acme", "", "", ""], 1.0), limit(["acme", "", "", ""], 2.0));
        let other = limit(["other", "", "", ""], 1.0);
        let before = with(&[&small, &other]);
        assert!(with(&[&large, &other]).loosened_since(&before) && with(&[&other]).loosened_since(&before));
        assert!(!before.loosened_since(&before) && !before.loosened_since(&with(&[&large, &other])));
        assert!(!before.loosened_since(&with(&[&other])), "one that is new lifts nothing");
        assert!(!with(&[&small]).loosened_since(&Limits::default()));
    }

    #[test]
    fn every_scope_has_an_id_of_its_own() {
        let scopes = [["a", "", "", ""], ["", "a", "", ""], ["", "", "a", ""], ["", "", "", "a"], ["", "", "", ""]];
        let ids: std::collections::BTreeSet<String> = scopes.iter().map(|fields| scope(*fields).id()).collect();
        assert_eq!(ids.len(), scopes.len());
    }

    #[test]
    fn sending_and_expansion_have_a_bucket_each() {
        let limit = limit(["acme", "", "", ""], 1.0);
        assert_ne!(limit.sending, limit.expansion);
    }
}
