//! The policy snapshot that every role decides with, built from the `control` topic.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
};

use herald_templates::{Limits as TemplateLimits, Template, TemplateSource};
use serde::{Deserialize, Serialize};

use crate::{
    ids::{NotificationId, TenantId, channel_of_name},
    levels::{FIRST_LEVEL, LevelRow},
    limits::{Limit, LimitRow, Limits},
    providers::{ProviderRow, Providers},
    record::Control,
    switches::{SwitchRow, SwitchState, Switches, Traffic},
};

/// Kinds of policies in the registry and on `control`.
pub mod kind {
    /// [`super::TenantRow`] by tenant id.
    pub const TENANT: &str = "tenant";
    /// [`super::KeyRow`] by key id.
    pub const KEY: &str = "key";
    /// [`super::TemplateRow`] by [`super::template_row_key`].
    pub const TEMPLATE: &str = "template";
    /// [`super::TemplateHead`] by [`super::template_head_key`].
    pub const TEMPLATE_HEAD: &str = "template_head";
    /// [`super::SecretRow`] by name.
    pub const SECRET: &str = "secret";
    /// [`crate::switches::SwitchRow`] by switch id.
    pub const SWITCH: &str = "switch";
    /// [`super::CancelRow`] by notification id.
    pub const CANCEL: &str = "cancel";
    /// [`crate::limits::LimitRow`] by its id.
    pub const LIMIT: &str = "limit";

    /// [`crate::levels::LevelRow`] by the level.
    pub const FEATURE_LEVEL: &str = "feature_level";

    /// [`crate::providers::ProviderRow`] by its name.
    pub const PROVIDER: &str = "provider";

    /// Whether policies of a kind are written to `control` and nowhere else. Of such a policy the last record holds,
    /// whatever its version.
    pub fn is_log_first(kind: &str) -> bool {
        matches!(kind, SWITCH | CANCEL | FEATURE_LEVEL)
    }
}

/// How many notifications a tenant may hand over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuotaRow {
    /// Notifications a second.
    pub per_second: f64,
    /// Notifications at once.
    pub burst: u64,
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TenantRow {
    /// The tenant's id.
    pub tenant_id: String,
    /// Its name, for people and templates.
    pub name: String,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
    /// Milliseconds since the epoch.
    pub updated_ms: u64,
    /// `None` is as many as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuotaRow>,
}

/// An API key. The key itself is never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRow {
    /// Public part of the key.
    pub key_id: String,
    /// SHA-256 of the whole key, in hex.
    pub sha256: String,
    /// `None` for an operator's key.
    pub tenant_id: Option<String>,
    /// For people.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
    /// Milliseconds since the epoch; `None` never expires.
    pub expires_ms: Option<u64>,
}

impl KeyRow {
    /// Whether its time is over.
    pub fn has_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms)
    }
}

/// One version of a template.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TemplateRow {
    /// Whose it is.
    pub tenant_id: String,
    /// Its id.
    pub template_id: String,
    /// From 1.
    pub version: u32,
    /// As it was uploaded.
    pub source: TemplateSource,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
}

/// Which version of a template is live.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateHead {
    /// `None` while there are only drafts.
    pub live: Option<u32>,
    /// The newest version.
    pub latest: u32,
    /// Versions that were live before, the last one last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<u32>,
}

/// A random secret that all processes share, such as the one that signs end-user tokens.
#[derive(Clone, Serialize, Deserialize)]
pub struct SecretRow {
    /// In hex.
    pub value: String,
}

/// The name of the secret that signs end-user tokens and unsubscribe links.
pub const SIGNING_SECRET: &str = "signing";

/// A cancelled notification. Nothing of it is sent from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRow {
    /// Whose it is; a cancel by anybody else has no effect.
    pub tenant_id: String,
    /// When it was cancelled, in milliseconds since the epoch.
    pub cancelled_ms: u64,
    /// Until when it must be remembered, since something of the notification may still come up; in milliseconds since
    /// the epoch.
    pub until_ms: u64,
}

/// The most cancels that are remembered at a time.
pub const MAX_CANCELS: usize = 100_000;

/// The registry key of a version of a template. Template ids have no control characters, so the separator is safe.
pub fn template_row_key(tenant: &TenantId, template_id: &str, version: u32) -> String {
    format!("{tenant}\u{1}{template_id}\u{1}{version:010}")
}

/// The registry key of a template's head.
pub fn template_head_key(tenant: &TenantId, template_id: &str) -> String {
    format!("{tenant}\u{1}{template_id}")
}

/// The key of a policy's records on `control`: `kind/key`.
pub fn policy_key(kind: &str, key: &str) -> String {
    format!("{kind}/{key}")
}

/// A version of a template, compiled when it is first used.
pub struct TemplateVersion {
    /// The stored row.
    pub row: TemplateRow,
    compiled: OnceLock<Result<Arc<Template>, String>>,
}

impl TemplateVersion {
    fn new(row: TemplateRow) -> Self {
        Self { row, compiled: OnceLock::new() }
    }

    /// The compiled template; the reason where this binary refuses what an earlier one took.
    pub fn compiled(&self) -> Result<&Arc<Template>, &str> {
        self.compiled
            .get_or_init(|| {
                Template::compile(&self.row.source, &TemplateLimits::default())
                    .map(Arc::new)
                    .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
            })
            .as_ref()
            .map_err(String::as_str)
    }
}

/// Everything that roles decide with. Cheap to share behind an [`Arc`], and copied on each change.
#[derive(Default, Clone)]
pub struct Policy {
    /// Counts the applied changes; the offset after the last applied record of `control`.
    pub version: u64,
    tenants: Arc<HashMap<TenantId, Arc<TenantRow>>>,
    keys: Arc<HashMap<String, Arc<KeyRow>>>,
    /// The same keys by [`KeyRow::sha256`].
    keys_by_sha256: Arc<HashMap<String, Arc<KeyRow>>>,
    templates: Arc<HashMap<TenantId, HashMap<String, TemplateVersions>>>,
    secrets: Arc<HashMap<String, String>>,
    limits: Arc<Limits>,
    providers: Arc<Providers>,
    switches: Arc<Switches>,
    cancels: Arc<BTreeMap<NotificationId, CancelRow>>,
    /// Counts the changes of switches and cancels.
    steered: u64,
    /// The highest that was reached; 0 before any.
    feature_level: u32,
    /// The version that was applied, by `kind/key`.
    applied: Arc<HashMap<String, u64>>,
}

#[derive(Default, Clone)]
struct TemplateVersions {
    head: TemplateHead,
    versions: HashMap<u32, Arc<TemplateVersion>>,
}

/// A record of `control` that cannot be read. It is reported and passed over: an older binary must go on.
#[derive(Debug, thiserror::Error)]
#[error("policy {kind}/{key} cannot be read: {cause}")]
pub struct UnreadablePolicy {
    /// Its kind.
    pub kind: String,
    /// Its key.
    pub key: String,
    /// What is wrong.
    pub cause: String,
}

impl Policy {
    /// Applies one record. Kinds that this binary does not know are passed over, and so are versions older than what
    /// was applied: two processes that publish the same policy may append in either order.
    pub fn apply(&mut self, control: &Control) -> Result<(), UnreadablePolicy> {
        if kind::is_log_first(&control.kind) {
            return self.apply_newer(control);
        }
        let policy_key = policy_key(&control.kind, &control.key);
        if self.applied.get(&policy_key).is_some_and(|applied| *applied > control.version) {
            return Ok(());
        }
        self.apply_newer(control)?;
        Arc::make_mut(&mut self.applied).insert(policy_key, control.version);
        Ok(())
    }

    fn apply_newer(&mut self, control: &Control) -> Result<(), UnreadablePolicy> {
        let unreadable = |e: serde_json::Error| UnreadablePolicy {
            kind: control.kind.clone(),
            key: control.key.clone(),
            cause: e.to_string(),
        };
        match (control.kind.as_str(), control.deleted) {
            (kind::TENANT, false) => {
                let row: TenantRow = serde_json::from_slice(&control.value).map_err(unreadable)?;
                Arc::make_mut(&mut self.tenants).insert(TenantId::trusted(&row.tenant_id), Arc::new(row));
            }
            (kind::TENANT, true) => {
                Arc::make_mut(&mut self.tenants).remove(&TenantId::trusted(&control.key));
            }
            (kind::KEY, false) => {
                let row: KeyRow = serde_json::from_slice(&control.value).map_err(unreadable)?;
                let row = Arc::new(row);
                self.forget_key(&control.key);
                Arc::make_mut(&mut self.keys_by_sha256).insert(row.sha256.clone(), row.clone());
                Arc::make_mut(&mut self.keys).insert(control.key.clone(), row);
            }
            (kind::KEY, true) => self.forget_key(&control.key),
            (kind::TEMPLATE, false) => {
                let row: TemplateRow = serde_json::from_slice(&control.value).map_err(unreadable)?;
                let template = self.template_entry(TenantId::trusted(&row.tenant_id), row.template_id.clone());
                template.versions.insert(row.version, Arc::new(TemplateVersion::new(row)));
            }
            (kind::TEMPLATE_HEAD, false) => {
                let head: TemplateHead = serde_json::from_slice(&control.value).map_err(unreadable)?;
                if let Some((tenant, template)) = control.key.split_once('\u{1}') {
                    self.template_entry(TenantId::trusted(tenant), template.to_owned()).head = head;
                }
            }
            (kind::SECRET, false) => {
                let row: SecretRow = serde_json::from_slice(&control.value).map_err(unreadable)?;
                Arc::make_mut(&mut self.secrets).insert(control.key.clone(), row.value);
            }
            (kind::LIMIT, false) => {
                let row: LimitRow = serde_json::from_slice(&control.value).map_err(unreadable)?;
                let no_quota = || UnreadablePolicy {
                    kind: control.kind.clone(),
                    key: control.key.clone(),
                    cause: "its rate or its burst is out of range".into(),
                };
                Arc::make_mut(&mut self.limits).insert(Limit::of(row).ok_or_else(no_quota)?);
            }
            (kind::LIMIT, true) => Arc::make_mut(&mut self.limits).remove(&control.key),
            (kind::PROVIDER, false) => {
                let row: ProviderRow = serde_json::from_slice(&control.value).map_err(unreadable)?;
                let no_channel = || UnreadablePolicy {
                    kind: control.kind.clone(),
                    key: control.key.clone(),
                    cause: format!("there is no channel {:?}", row.channel),
                };
                let channel = channel_of_name(&row.channel).ok_or_else(no_channel)?;
                Arc::make_mut(&mut self.providers).set(channel, row);
            }
            (kind::PROVIDER, true) => Arc::make_mut(&mut self.providers).remove(&control.key),
            (kind::SWITCH, false) => {
                let row: SwitchRow = serde_json::from_slice(&control.value).map_err(unreadable)?;
                Arc::make_mut(&mut self.switches).set(&control.key, row);
                self.steered += 1;
            }
            (kind::SWITCH, true) => {
                Arc::make_mut(&mut self.switches).remove(&control.key);
                self.steered += 1;
            }
            (kind::CANCEL, deleted) => {
                let Ok(id) = control.key.parse() else { return Ok(()) };
                if deleted {
                    Arc::make_mut(&mut self.cancels).remove(&id);
                } else {
                    let row: CancelRow = serde_json::from_slice(&control.value).map_err(unreadable)?;
                    Arc::make_mut(&mut self.cancels).insert(id, row);
                }
                self.steered += 1;
            }
            // One that was reached is never left, whoever deletes what.
            (kind::FEATURE_LEVEL, false) => {
                let row: LevelRow = serde_json::from_slice(&control.value).map_err(unreadable)?;
                self.feature_level = self.feature_level.max(row.level);
            }
            _ => {}
        }
        Ok(())
    }

    fn forget_key(&mut self, key_id: &str) {
        if let Some(row) = Arc::make_mut(&mut self.keys).remove(key_id) {
            Arc::make_mut(&mut self.keys_by_sha256).remove(&row.sha256);
        }
    }

    fn template_entry(&mut self, tenant: TenantId, id: String) -> &mut TemplateVersions {
        Arc::make_mut(&mut self.templates).entry(tenant).or_default().entry(id).or_default()
    }

    /// A tenant.
    pub fn tenant(&self, id: &TenantId) -> Option<&Arc<TenantRow>> {
        self.tenants.get(id)
    }

    /// A tenant's id in the shared form, if the tenant exists.
    pub fn tenant_id(&self, id: &str) -> Option<&TenantId> {
        self.tenants.get_key_value(id).map(|(id, _)| id)
    }

    /// The ids of all tenants, in no order.
    pub fn tenant_ids(&self) -> impl Iterator<Item = &TenantId> {
        self.tenants.keys()
    }

    /// An API key by its public part.
    pub fn key(&self, key_id: &str) -> Option<&Arc<KeyRow>> {
        self.keys.get(key_id)
    }

    /// An API key by the SHA-256 of the whole key, in hex.
    pub fn key_by_sha256(&self, sha256: &str) -> Option<&Arc<KeyRow>> {
        self.keys_by_sha256.get(sha256)
    }

    /// A shared secret, in hex.
    pub fn secret(&self, name: &str) -> Option<&str> {
        self.secrets.get(name).map(String::as_str)
    }

    /// The limits in force.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// Who delivers. The same snapshot as before is at the same place.
    pub fn providers(&self) -> &Arc<Providers> {
        &self.providers
    }

    /// The same policies where these providers are configured; to be called before any are applied.
    pub fn with_configured(self, providers: Providers) -> Self {
        Self { providers: Arc::new(providers), ..self }
    }

    /// Every switch.
    pub fn switches(&self) -> &Switches {
        &self.switches
    }

    /// What the switches say of this traffic now.
    pub fn switch_state(&self, traffic: &Traffic<'_>, now_ms: u64) -> SwitchState {
        self.switches.state(traffic, now_ms)
    }

    /// The cancel of a tenant's notification, if it was cancelled.
    pub fn cancel(&self, tenant: &str, id: &NotificationId) -> Option<&CancelRow> {
        self.cancels.get(id).filter(|row| row.tenant_id == tenant)
    }

    /// Every cancel that is remembered, in the order of ids.
    pub fn cancels(&self) -> &BTreeMap<NotificationId, CancelRow> {
        &self.cancels
    }

    /// Counts the changes of switches and cancels: between two snapshots with the same number nothing was switched and
    /// nothing cancelled.
    pub fn steered(&self) -> u64 {
        self.steered
    }

    /// The feature level that the installation has reached.
    pub fn feature_level(&self) -> u32 {
        self.feature_level.max(FIRST_LEVEL)
    }

    /// A version of a template; the live one unless a version is named.
    pub fn template(&self, tenant: &TenantId, id: &str, version: Option<u32>) -> Option<&Arc<TemplateVersion>> {
        let template = self.templates.get(tenant)?.get(id)?;
        template.versions.get(&version.or(template.head.live)?)
    }

    /// Which version of a template is live.
    pub fn template_head(&self, tenant: &TenantId, id: &str) -> Option<&TemplateHead> {
        self.templates.get(tenant)?.get(id).map(|t| &t.head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(version: u64, name: &str) -> Control {
        let row = TenantRow { tenant_id: "t".into(), name: name.into(), created_ms: 0, updated_ms: 0, quota: None };
        let value = serde_json::to_vec(&row).unwrap().into();
        Control { kind: kind::TENANT.into(), key: "t".into(), version, value, deleted: false }
    }

    #[test]
    fn an_older_version_that_was_appended_late_changes_nothing() {
        let mut policy = Policy::default();
        policy.apply(&tenant(2, "new")).unwrap();
        policy.apply(&tenant(1, "old")).unwrap();
        assert_eq!(policy.tenant(&TenantId::trusted("t")).unwrap().name, "new");
        policy.apply(&Control { deleted: true, value: Default::default(), ..tenant(3, "") }).unwrap();
        policy.apply(&tenant(2, "new")).unwrap();
        assert!(policy.tenant(&TenantId::trusted("t")).is_none());
    }

    #[test]
    fn a_key_is_found_by_its_hash_until_it_is_deleted_or_replaced() {
        let key = |version: u64, sha256: &str| {
            let row = KeyRow {
                key_id: "k".into(),
                sha256: sha256.into(),
                tenant_id: None,
                name: String::new(),
                scopes: Vec::new(),
                created_ms: 0,
                expires_ms: None,
            };
            let value = serde_json::to_vec(&row).unwrap().into();
            Control { kind: kind::KEY.into(), key: "k".into(), version, value, deleted: false }
        };
        let mut policy = Policy::default();
        policy.apply(&key(1, "aa")).unwrap();
        assert_eq!(policy.key_by_sha256("aa").unwrap().key_id, "k");
        policy.apply(&key(2, "bb")).unwrap();
        assert!(policy.key_by_sha256("aa").is_none() && policy.key_by_sha256("bb").is_some());
        policy.apply(&Control { deleted: true, ..key(3, "") }).unwrap();
        assert!(policy.key_by_sha256("bb").is_none() && policy.key("k").is_none());
    }

    #[test]
    fn of_what_is_written_log_first_the_last_record_holds() {
        let switch = |version: u64, state| {
            let scope = crate::switches::SwitchScope::default();
            let row =
                SwitchRow { scope, state, reason: String::new(), expires_ms: None, set_ms: 0, set_by: "op".into() };
            let value = serde_json::to_vec(&row).unwrap().into();
            Control { kind: kind::SWITCH.into(), key: "sw".into(), version, value, deleted: false }
        };
        let mut policy = Policy::default();
        let traffic = Traffic { tenant: "t", template: "x", channel: None, provider: None, region: "" };
        let mut state_after = |control: Control| {
            policy.apply(&control).unwrap();
            policy.switch_state(&traffic, 0)
        };
        assert_eq!(state_after(switch(9, SwitchState::Off)), SwitchState::Off);
        assert_eq!(state_after(switch(0, SwitchState::Hold)), SwitchState::Hold);
        assert_eq!(state_after(Control { deleted: true, ..switch(0, SwitchState::On) }), SwitchState::On);
        assert_eq!(policy.steered(), 3);
    }

    #[test]
    fn a_feature_level_never_falls() {
        let mut policy = Policy::default();
        assert_eq!(policy.feature_level(), 1);
        let reached = |level: u32| {
            let value = serde_json::to_vec(&LevelRow { level, reached_ms: 5 }).unwrap().into();
            Control { kind: kind::FEATURE_LEVEL.into(), key: level.to_string(), version: 5, value, deleted: false }
        };
        for (record, level) in [(reached(3), 3), (reached(2), 3), (Control { deleted: true, ..reached(3) }, 3)] {
            policy.apply(&record).unwrap();
            assert_eq!(policy.feature_level(), level);
        }
    }

    #[test]
    fn only_its_tenant_cancels_a_notification() {
        let id = NotificationId([3; 16]);
        let row = CancelRow { tenant_id: "t".into(), cancelled_ms: 1, until_ms: 9 };
        let value = serde_json::to_vec(&row).unwrap().into();
        let control = Control { kind: kind::CANCEL.into(), key: id.to_string(), version: 0, value, deleted: false };
        let mut policy = Policy::default();
        policy.apply(&control).unwrap();
        assert!(policy.cancel("t", &id).is_some() && policy.cancel("other", &id).is_none());
        policy.apply(&Control { deleted: true, ..control }).unwrap();
        assert!(policy.cancels().is_empty());
    }

    #[test]
    fn an_unreadable_policy_is_reported_and_leaves_the_rest() {
        let mut policy = Policy::default();
        policy.apply(&tenant(1, "kept")).unwrap();
        assert!(policy.apply(&Control { value: "{".into(), ..tenant(2, "") }).is_err());
        assert_eq!(policy.tenant(&TenantId::trusted("t")).unwrap().name, "kept");
    }
}
