//! What must not be sent now: quiet hours, limits and providers in trouble. It waits in a delay tier and counts as no
//! attempt.

use std::collections::BTreeMap;

use herald_core::{outputs::Wait, policy::Policy};

use crate::{
    moving::{deliveries_home, part_of},
    sending::{Fate, Job},
    settling::DUE_GRAIN_MS,
    stage::Worker,
};

impl Worker {
    /// Takes what is to be sent of every limit that applies. Those that a limit, a slowing switch or their provider denies
    /// wait.
    pub(crate) async fn pace(&mut self, jobs: &mut [Job], policy: &Policy) {
        self.pacing.take_up(policy.limits());
        self.pacing.slowing.take_up(policy);
        let (now_ms, steady_ms) = (self.deps.world.now_ms(), self.deps.world.steady_ms());
        for job in jobs {
            let head = &job.queued.chunk.head;
            let provider = job.provider.as_ref();
            let name = provider.map(|name| &**name);
            let mut slowed_by = Vec::new();
            for (id, row) in self.steering.slowing(policy, head, name, now_ms) {
                let slow = (id, head.channel);
                self.pacing.slowing.slow(&slow, |kind| self.steering.is_about(&row, kind), steady_ms);
                slowed_by.push(slow);
            }
            job.slowed = !slowed_by.is_empty();
            if !job.slowed && self.pacing.is_free(name, head.section.attempts) {
                continue;
            }
            let wanted = job.sending();
            if wanted == 0 {
                continue;
            }
            let lane = job.queued.lane();
            let pass = self.pacing.admit(head, lane, provider, &slowed_by, wanted, &self.deps.world).await;
            self.deps.stats.add(|s| &s.paced, wanted - pass.count);
            let sending = job.fates.iter_mut().filter(|fate| matches!(fate, Fate::Send));
            sending.skip(pass.count as usize).for_each(|fate| *fate = Fate::Wait(pass.rest));
            job.pass = Some(pass);
        }
    }

    /// Moves what waits to its delay tier. Jobs of which nothing is left are over.
    pub(crate) fn hold_back(&mut self, mut jobs: Vec<Job>) -> Vec<Job> {
        jobs.retain_mut(|job| {
            let held = self.hold_back_of(job);
            self.in_doubt.drop(job.queued.chunk.head.channel, held);
            if job.fates.is_empty() {
                self.done_with(job.shard, job.queued.chunk.head.channel, job.order, 0);
            }
            !job.fates.is_empty()
        });
        jobs
    }

    /// Takes what waits out of a job; returns how many instances.
    fn hold_back_of(&mut self, job: &mut Job) -> u64 {
        if !job.fates.iter().any(|fate| matches!(fate, Fate::Wait(_))) {
            return 0;
        }
        let Some(shard) = self.shards.get_mut(&job.shard) else { return 0 };
        let now_ms = self.deps.world.now_ms();
        let chunk = &mut job.queued.chunk;
        let mut waiting: BTreeMap<Wait, Vec<u32>> = BTreeMap::new();
        for (fate, in_section) in job.fates.iter().zip(&chunk.users) {
            if let Fate::Wait(wait) = fate {
                let wait_ms = wait.due_ms.saturating_sub(now_ms).div_ceil(DUE_GRAIN_MS) * DUE_GRAIN_MS;
                let wait = Wait { due_ms: now_ms + wait_ms, ..*wait };
                waiting.entry(wait).or_default().push(*in_section);
            }
        }
        let mut held = 0;
        for (wait, users) in waiting {
            held += users.len() as u64;
            let (section, summary) = part_of(&chunk.head, &users, chunk.head.section.attempts);
            let home = deliveries_home(job.queued.topic, shard.number);
            shard.outputs.section(home, Some(wait), section, summary);
            shard.finish(job.queued.topic, job.queued.offset, users.iter().map(|user| chunk.first + user));
        }
        let stays: Vec<bool> = job.fates.iter().map(|fate| !matches!(fate, Fate::Wait(_))).collect();
        let mut kept = stays.iter();
        chunk.users.retain(|_| kept.next().is_some_and(|stays| *stays));
        let mut kept = stays.iter();
        job.people.retain(|_| kept.next().is_some_and(|stays| *stays));
        job.fates.retain(|fate| !matches!(fate, Fate::Wait(_)));
        held
    }

    /// Gives back what was taken for messages that turned out not to be sent.
    pub(crate) fn put_back_unsent(&mut self, job: &Job) {
        if let Some(pass) = &job.pass {
            self.pacing.put_back(pass, pass.count.saturating_sub(job.sending()));
        }
    }
}
