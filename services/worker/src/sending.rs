//! From a section to messages in a provider's hands: decide, claim, render, hand over.

use std::{sync::Arc, time::Duration};

use herald_core::{
    ids::{InstanceId, channel_name},
    people::Endpoint,
    policy::{Policy, SIGNING_SECRET},
    ports::channel::{Channel, Message},
    record::State,
    tokens::UnsubscribeLinks,
};
use herald_templates::Rendered;

use crate::{
    decide::{Question, Verdict, may_send},
    delivery::{Batch, Dispatch, Item},
    in_app::InAppItems,
    moving::deliveries_home,
    order::order_key,
    people::Known,
    prepare::{Chunk, Head, NoRenderer, Renderer, content_of, inline_known},
    receipts::{End, Ended},
    shard::Queued,
    stage::Worker,
};

/// How long a section waits that cannot be decided now.
const UNDECIDED_DELAY_MS: u64 = 1_000;

/// Instances decided before the loop looks at events again.
const INSTANCES_PER_TURN: u64 = 4_096;

/// What is to become of one instance.
struct Planned {
    in_section: u32,
    fate: Fate,
}

enum Fate {
    /// Send.
    Send,
    /// It ends here; with an error code.
    End(State, &'static str, String),
}

impl Worker {
    /// Takes sections in turn, one a shard, while there is room in the in-doubt window.
    pub(crate) async fn serve(&mut self) -> anyhow::Result<()> {
        let numbers: Vec<u32> = self.shards.keys().copied().collect();
        let (mut served, mut idle) = (0, 0);
        while served < INSTANCES_PER_TURN && idle < numbers.len() {
            self.next_shard = (self.next_shard + 1) % numbers.len();
            let number = numbers[self.next_shard];
            match self.shards.get_mut(&number).and_then(|shard| shard.next(&self.in_doubt)) {
                Some((queued, waited)) => {
                    idle = 0;
                    served += queued.cost();
                    self.process(number, queued, waited).await?;
                }
                None => idle += 1,
            }
        }
        self.deps.stats.set(|s| &s.window_instances, self.shards.values().map(|shard| shard.unfinished()).sum());
        self.deps.stats.set(|s| &s.in_doubt, self.in_doubt.total());
        Ok(())
    }

    async fn process(&mut self, number: u32, queued: Queued, waited: bool) -> anyhow::Result<()> {
        let Some(shard) = self.shards.get_mut(&number) else { return Ok(()) };
        let order = order_key(&queued.chunk.head);
        let queued = match order {
            Some(key) if !waited => match shard.order.admit(key, queued) {
                Some(queued) => queued,
                None => return Ok(()),
            },
            _ => queued,
        };
        if let Some(track) = shard.tracks.get_mut(&queued.topic).filter(|track| track.is_careful(queued.unit)) {
            track.note(queued.unit);
            // With all that was finished before, whose outputs must not be parted from its position.
            self.commit().await?;
        }
        self.touch();
        let head = queued.chunk.head.clone();
        let now_ms = self.deps.world.now_ms();
        if now_ms >= head.notification.expires_ms {
            self.end_all(number, &queued, &head.expiry());
            return Ok(());
        }
        let policy: Arc<Policy> = self.deps.policy.borrow().clone();
        let mut renderer = match self.renderers.take(&head, &policy) {
            Ok(renderer) => renderer,
            Err(NoRenderer::Unknown) => {
                let template = &head.notification.template_id;
                tracing::warn!(template, "a template is not known yet; its messages wait");
                self.put_off(number, &queued);
                return Ok(());
            }
            Err(NoRenderer::Refused(cause)) => {
                tracing::error!(template = head.notification.template_id, %cause, "messages cannot be rendered");
                let end = End::by_rule(State::Failed, "template_refused", head.section.attempts);
                self.end_all(number, &queued, &end);
                return Ok(());
            }
        };
        if let Some(people) = self.people_of(&head).await {
            let generation = self.freshness.generation();
            let plan = self.decide(&queued.chunk, &people, renderer.category());
            match self.claim(number, &head, plan, renderer.dedupe_window_ms()).await {
                Some(plan) => {
                    if let Some((items, messages)) = self.render(number, &queued, &people, plan, &mut renderer, &policy)
                    {
                        self.dispatch(number, &queued, order, items, messages, generation);
                    }
                }
                None => self.put_off(number, &queued),
            }
        } else {
            self.put_off(number, &queued);
        }
        self.renderers.put(&head, renderer);
        Ok(())
    }

    /// A section that cannot be decided now comes again in a second; nothing of it was attempted.
    fn put_off(&mut self, number: u32, queued: &Queued) {
        let due_ms = self.deps.world.now_ms() + UNDECIDED_DELAY_MS;
        if let Some(shard) = self.shards.get_mut(&number) {
            shard.send_on(queued, deliveries_home(queued.topic, number), Some(due_ms));
        }
    }

    fn end_all(&mut self, number: u32, queued: &Queued, end: &End) {
        let now_ms = self.deps.world.now_ms();
        if let Some(shard) = self.shards.get_mut(&number) {
            let count = shard.end_all(queued, end, now_ms);
            self.deps.stats.add(|s| &s.ended, count);
        }
    }

    /// What is known of a section's users; `None` if the directory did not answer, which is not absence.
    async fn people_of(&mut self, head: &Head) -> Option<Vec<Arc<Known>>> {
        let now_ms = self.deps.world.now_ms();
        let users: Vec<&str> = head.users().collect();
        let mut people: Vec<Option<Arc<Known>>> =
            users.iter().map(|user| self.people.get(&head.tenant, user, now_ms)).collect();
        let missing: Vec<usize> = (0..users.len()).filter(|i| people[*i].is_none()).collect();
        if !missing.is_empty() {
            let ids: Vec<String> = missing.iter().map(|i| users[*i].to_owned()).collect();
            match self.deps.directory.people(&head.tenant, &ids).await {
                Ok(found) => {
                    self.deps.stats.add(|s| &s.people_filled, ids.len() as u64);
                    for (i, person) in missing.into_iter().zip(found) {
                        let known = Arc::new(Known::from(person));
                        self.people.insert(&head.tenant, users[i], now_ms, known.clone());
                        people[i] = Some(known);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "profiles cannot be read; the section waits");
                    return None;
                }
            }
        }
        let people: Option<Vec<Arc<Known>>> = people.into_iter().collect();
        if head.section.inline.is_empty() {
            return people;
        }
        people.map(|people| {
            let inline = |(i, known): (usize, Arc<Known>)| {
                head.inline(i).map_or(known.clone(), |inline| Arc::new(inline_known(inline, &known)))
            };
            people.into_iter().enumerate().map(inline).collect()
        })
    }

    fn decide(&self, chunk: &Chunk, people: &[Arc<Known>], category: &str) -> Vec<Planned> {
        let head = &chunk.head;
        let question = Question {
            notification: &head.notification,
            channel: head.channel,
            category,
            attempts: head.section.attempts,
            inline: !head.section.inline.is_empty(),
            now_ms: self.deps.world.now_ms(),
        };
        let fate = |in_section: u32| match may_send(&question, &people[in_section as usize]) {
            Verdict::Send(_) => Fate::Send,
            Verdict::Suppress(reason) => Fate::End(State::Suppressed, reason, String::new()),
            Verdict::Dead(reason) => Fate::End(State::Dead, reason, String::new()),
        };
        chunk.users.iter().map(|in_section| Planned { in_section: *in_section, fate: fate(*in_section) }).collect()
    }

    /// Takes claims for what may be sent; `None` if they cannot be taken now.
    async fn claim(
        &mut self,
        number: u32,
        head: &Head,
        mut plan: Vec<Planned>,
        window_ms: u64,
    ) -> Option<Vec<Planned>> {
        let notification = &head.notification;
        if notification.dedupe_key.is_empty() {
            return Some(plan);
        }
        let users: Vec<&str> = head.users().collect();
        let sending: Vec<usize> = (0..plan.len()).filter(|i| matches!(plan[*i].fate, Fate::Send)).collect();
        let keys: Vec<[u8; 16]> =
            sending.iter().filter_map(|i| head.claim_of(users[plan[*i].in_section as usize])).collect();
        let now_ms = self.deps.world.now_ms();
        let log = self.deps.log.clone();
        let claims = &mut self.shards.get_mut(&number)?.claims;
        match claims.take(&keys, head.id, now_ms + window_ms, log.as_ref(), now_ms).await {
            Ok(holders) => {
                for (i, holder) in sending.into_iter().zip(holders) {
                    if holder != head.id {
                        plan[i].fate = Fate::End(State::Suppressed, "duplicate", format!("winner:{holder}"));
                    }
                }
                Some(plan)
            }
            Err(error) => {
                tracing::warn!(%error, shard = number, "claims cannot be taken; the section waits");
                None
            }
        }
    }

    /// What makes unsubscribe links with the policy's secret.
    fn unsubscribe_links(&mut self, policy: &Policy) -> Option<Arc<UnsubscribeLinks>> {
        let secret = policy.secret(SIGNING_SECRET)?;
        if self.links.as_ref().is_none_or(|(signed_with, _)| signed_with != secret) {
            let links = UnsubscribeLinks::new(&self.config.public_url, secret);
            self.links = Some((secret.to_owned(), Arc::new(links)));
        }
        self.links.as_ref().map(|(_, links)| links.clone())
    }

    /// Renders what is to be sent. In-app items are put out at once; messages for a provider are returned.
    fn render(
        &mut self,
        number: u32,
        queued: &Queued,
        people: &[Arc<Known>],
        plan: Vec<Planned>,
        renderer: &mut Renderer,
        policy: &Policy,
    ) -> Option<(Vec<Item>, Vec<Message>)> {
        let chunk = &queued.chunk;
        let head = &chunk.head;
        let users: Vec<&str> = head.users().collect();
        let now_ms = self.deps.world.now_ms();
        let links = self.unsubscribe_links(policy);
        let shard = self.shards.get_mut(&number)?;
        let has_provider = self.deps.channels.iter().any(|channel| channel.kind() == head.channel);
        let category = renderer.category().to_owned();
        let mut ended = Ended::new(head.id, head.channel);
        let mut finished: Vec<u32> = Vec::with_capacity(plan.len());
        let mut in_app = InAppItems::new(head);
        let (mut items, mut messages) = (Vec::new(), Vec::new());
        let mut rendered = Rendered::new();
        for Planned { in_section, fate } in plan {
            let (user, known) = (users[in_section as usize], &people[in_section as usize]);
            let index = chunk.first + in_section;
            if let Fate::End(state, reason, error_code) = fate {
                if reason != "duplicate" {
                    shard.release(head, user);
                }
                ended.add(user, &End { error_code, ..End::by_rule(state, reason, head.section.attempts) });
                finished.push(index);
                continue;
            }
            let locale = known.locale.as_deref();
            if in_app.add_shared(user, locale) {
                finished.push(index);
                continue;
            }
            let url = || {
                let (tenant, channel) = (head.tenant.as_str(), channel_name(head.channel));
                links.as_ref().map(|links| links.url(tenant, user, channel, &category))
            };
            let fault = match renderer.render(user, known, url, &mut rendered) {
                Ok(url) => match (content_of(&rendered), endpoint_of(known, head), has_provider) {
                    (None, ..) => {
                        in_app.add(user, locale, renderer.is_constant(locale), &rendered);
                        finished.push(index);
                        continue;
                    }
                    (Some(content), Some(endpoint), true) => {
                        let user: Arc<str> = user.into();
                        let instance = InstanceId::of(&head.id, &user, head.channel);
                        messages.push(Message {
                            instance,
                            notification: head.id,
                            tenant: head.tenant.clone(),
                            user: user.clone(),
                            endpoint,
                            content,
                            unsubscribe_url: url,
                            expires_ms: head.notification.expires_ms,
                        });
                        let book_hash = instance.book_hash();
                        items.push(Item { index, in_section, user, book_hash, answered: false });
                        continue;
                    }
                    _ => End::by_rule(State::Suppressed, "channel_not_configured", head.section.attempts),
                },
                Err(error) => {
                    let error_code = error.code().to_owned();
                    End { error_code, ..End::by_rule(State::Failed, "template_data", head.section.attempts) }
                }
            };
            shard.release(head, user);
            ended.add(user, &fault);
            finished.push(index);
        }
        in_app.put_out(number, &mut shard.outputs);
        let count = ended.put_out(&head.notification, now_ms, &mut shard.outputs);
        self.deps.stats.add(|s| &s.ended, count);
        shard.finish(queued.topic, queued.offset, finished);
        (!messages.is_empty()).then_some((items, messages))
    }

    fn dispatch(
        &mut self,
        number: u32,
        queued: &Queued,
        order: Option<u64>,
        items: Vec<Item>,
        messages: Vec<Message>,
        generation: u64,
    ) {
        let head = queued.chunk.head.clone();
        let Some(channel) = self.deps.channels.iter().find(|c| c.kind() == head.channel).cloned() else { return };
        let Some(shard) = self.shards.get_mut(&number) else { return };
        if let Some(key) = order {
            shard.order.handed_over(key, head.id);
        }
        let batch = self.next_batch;
        self.next_batch += 1;
        self.in_doubt.hand_over(head.channel, items.len() as u64);
        self.deps.stats.add(|s| &s.attempts, items.len() as u64);
        let users = items.iter().map(|item| item.user.clone()).collect();
        let dispatch = Dispatch {
            batch,
            log: self.deps.log.clone(),
            freshness: self.freshness.clone(),
            shard_is_ours: shard.is_ours.clone(),
            events: self.events.clone(),
            decided_at: generation,
            rests_on: queued.mark,
            deadline: Duration::from_millis(self.config.send_deadline_ms),
            channel: channel.clone(),
        };
        let provider = Channel::provider(channel.as_ref()).into();
        dispatch.spawn(head.tenant.clone(), users, messages);
        let (topic, offset) = (queued.topic, queued.offset);
        self.batches.insert(batch, Batch { shard: number, topic, offset, head, provider, items, order });
    }
}

fn endpoint_of(known: &Known, head: &Head) -> Option<Endpoint> {
    let channel = channel_name(head.channel);
    known.endpoints.iter().find(|endpoint| endpoint.channel == channel).cloned()
}
