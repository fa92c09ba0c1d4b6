//! The ways out: a channel through each provider, and which of them a message takes.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use herald_core::{
    ids::InstanceId,
    outputs::Wait,
    ports::channel::{Channel, Opener, ProviderFault},
    providers::{Provider, ProviderRow, Providers, chosen},
    record::WaitCause,
};
use parking_lot::Mutex;

use crate::{sending::Job, shard::Queued, stage::Worker, steering::HOLD_MS};

/// Channels through providers, by name.
pub(crate) type Ways = BTreeMap<Arc<str>, Arc<dyn Channel>>;

/// A provider as it was set, and the channel that was opened for it; `None` where it could not be.
type Opened = (Arc<ProviderRow>, Option<Arc<dyn Channel>>);

/// The channels of one process, which its workers share.
pub struct OpenProviders {
    configured: Ways,
    opener: Arc<dyn Opener>,
    /// Those that operators set, with what they were opened from.
    set: Mutex<BTreeMap<Arc<str>, Opened>>,
}

impl OpenProviders {
    /// Those that the configuration names are open; `opener` opens what operators set.
    pub fn new(configured: Vec<Arc<dyn Channel>>, opener: Arc<dyn Opener>) -> Self {
        let configured = configured.into_iter().map(|channel| (channel.provider().into(), channel)).collect();
        Self { configured, opener, set: Mutex::default() }
    }

    /// These and no others.
    pub fn fixed(channels: Vec<Arc<dyn Channel>>) -> Self {
        Self::new(channels, Arc::new(OpensNothing))
    }

    /// Those that the configuration names.
    pub fn configured(&self) -> Providers {
        Providers::configured(self.configured.iter().map(|(name, channel)| (channel.kind(), name.to_string())))
    }

    /// What opens those that operators set.
    pub fn opener(&self) -> &Arc<dyn Opener> {
        &self.opener
    }

    /// Opens what is new or was changed, and lets go of what is gone: what is in its hands is finished all the same.
    /// What cannot be opened is left out, and its messages wait.
    pub(crate) fn take_up(&self, providers: &Providers) -> Ways {
        let mut set = self.set.lock();
        set.retain(|name, _| providers.get(name).is_some_and(|provider| provider.row.is_some()));
        for provider in providers.iter() {
            let Some(row) = &provider.row else { continue };
            if set.get(&provider.name).is_none_or(|(opened, _)| opened != row) {
                let opened = self.opener.open(row).map_err(|fault| report(&provider.name, &fault)).ok();
                set.insert(provider.name.clone(), (row.clone(), opened));
            }
        }
        let opened = set.iter().filter_map(|(name, (_, channel))| Some((name.clone(), channel.clone()?)));
        self.configured.clone().into_iter().chain(opened).collect()
    }
}

/// Where operators can set no providers.
struct OpensNothing;

#[async_trait]
impl Opener for OpensNothing {
    fn open(&self, provider: &ProviderRow) -> Result<Arc<dyn Channel>, ProviderFault> {
        Err(ProviderFault::NotBuilt(provider.kind.clone()))
    }

    async fn check(&self, provider: &ProviderRow) -> Result<(), ProviderFault> {
        self.open(provider).map(|_| ())
    }
}

fn report(provider: &str, fault: &ProviderFault) {
    tracing::error!(provider, %fault, "a provider cannot be used; its messages wait");
}

impl Worker {
    /// Takes up who delivers, if that has changed.
    pub(crate) fn take_up_providers(&mut self, providers: &Arc<Providers>) {
        if Arc::ptr_eq(&self.providers, providers) {
            return;
        }
        let ways = self.deps.providers.take_up(providers);
        // Who was changed is somebody else: what was learnt of their health and pace is forgotten.
        let same = |name: &str| match (self.ways.get(name), ways.get(name)) {
            (Some(before), Some(after)) => Arc::ptr_eq(before, after),
            _ => false,
        };
        self.pacing.keep_providers(same);
        self.in_doubt.serve(kinds_of(&ways));
        (self.providers, self.ways) = (providers.clone(), ways);
    }

    /// Gives each job its provider; one whose messages several providers share becomes a job for each.
    pub(crate) fn with_providers(&mut self, jobs: Vec<Job>) -> Vec<Job> {
        let now_ms = self.deps.world.steady_ms();
        let mut routed = Vec::with_capacity(jobs.len());
        for mut job in jobs {
            let head = job.queued.chunk.head.clone();
            let mut serving = self.providers.serving(head.channel, head.tenant.as_str());
            let is_up = |provider: &&Arc<Provider>| self.pacing.is_up(&provider.name, now_ms);
            if serving.iter().any(is_up) {
                serving.retain(is_up);
            }
            let parts = match serving.as_slice() {
                [] => {
                    routed.push(job);
                    continue;
                }
                [only] => vec![(only.name.clone(), std::mem::take(&mut job.queued.chunk.users))],
                several => share_out(&job.queued, several),
            };
            for (part, (provider, users)) in parts.into_iter().enumerate() {
                if part > 0
                    && let Some(key) = job.order
                    && let Some(shard) = self.shards.get_mut(&job.shard)
                {
                    shard.order.handed_over(key, head.id);
                }
                routed.push(job.part(provider, users));
            }
        }
        routed
    }

    /// Those whose provider can be used; the others wait.
    pub(crate) fn with_ways(&mut self, jobs: Vec<Job>) -> Vec<Job> {
        let wait = Wait { due_ms: self.deps.world.now_ms() + HOLD_MS, cause: WaitCause::Provider };
        let is_open = |job: &Job| job.provider.as_ref().is_none_or(|provider| self.ways.contains_key(provider));
        let (open, shut): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(is_open);
        for job in shut {
            self.deps.stats.add(|s| &s.account_faults, job.queued.cost());
            self.put_off_until(&job, wait.at_most(job.queued.chunk.head.notification.expires_ms));
        }
        open
    }
}

/// How many channels there are.
pub(crate) fn kinds_of(ways: &Ways) -> usize {
    ways.values().map(|channel| channel.kind() as i32).collect::<std::collections::BTreeSet<_>>().len()
}

/// The users of a section by the provider that their instances fall to.
fn share_out(queued: &Queued, serving: &[&Arc<Provider>]) -> Vec<(Arc<str>, Vec<u32>)> {
    let chunk = &queued.chunk;
    let mut parts: BTreeMap<Arc<str>, Vec<u32>> = BTreeMap::new();
    for (in_section, user) in chunk.users.iter().zip(chunk.users()) {
        let instance = InstanceId::of(&chunk.head.id, user, chunk.head.channel);
        if let Some(provider) = chosen(serving, instance.book_hash()) {
            parts.entry(provider.name.clone()).or_default().push(*in_section);
        }
    }
    parts.into_iter().collect()
}
