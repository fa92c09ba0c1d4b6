//! From polled records to what they expand to: first admissions, limits, switches and cancels, then one page of the audience.

use bytes::Bytes;
use herald_core::{
    dead_letters,
    ids::{NotificationId, TenantId},
    outputs::Wait,
    packed,
    ports::{
        StoreError,
        admissions::PlaceNote,
        directory::{AudienceKey, AudiencePage},
        log::Record,
    },
    record::{self, Audience, Notification, Place, Request, Schema, audience::Kind},
};
use prost::Message;

use crate::{
    expand::{MAX_PAGE_USERS_PER_SHARD, Page, Recipients, continuation, expand},
    pacing::Allowance,
    stage::Stage,
    steering::Steer,
};

/// How long a request waits when a store is away.
const STORE_DELAY_MS: u64 = 1_000;

/// A record to be processed.
pub(crate) struct Unit {
    pub record: Record,
    /// As its track counts.
    pub number: u64,
    /// It killed this stage before.
    pub poison: bool,
}

/// What a unit's record says.
pub(crate) struct Said {
    request: Request,
    notification: Notification,
    id: NotificationId,
}

impl Unit {
    /// Reads the record; an error names why the request is dead.
    fn read(&self) -> Result<Said, &'static str> {
        if self.poison {
            return Err("poison");
        }
        let read = || {
            let request = Request::decode(self.record.body.clone()).ok()?;
            let notification = Notification::decode(request.notification.clone()).ok()?;
            let id = NotificationId::from_slice(&notification.id)?;
            Some(Said { request, notification, id })
        };
        read().ok_or("undecodable")
    }
}

/// What becomes of a unit.
pub(crate) enum Expanded {
    /// What is left of the audience goes on at once, or after a wait.
    Page {
        transactional: bool,
        page: Box<Page>,
        next: Option<Box<Request>>,
        next_wait: Option<Wait>,
    },
    Later(Wait),
    /// A switch or a cancel ends the chain here.
    Stopped {
        notification: Box<Notification>,
    },
    SecondAdmission,
    Dead {
        cause: &'static str,
        detail: String,
    },
}

impl Stage {
    /// What each unit may expand; nothing is said while no limits are set.
    async fn pace(&mut self, said: &[Result<Said, &'static str>], now_ms: u64) -> Vec<Allowance> {
        let limits = self.deps.policy.borrow().limits().clone();
        self.pacing.take_up(&limits);
        if limits.is_empty() {
            return Vec::new();
        }
        let page = self.page_recipients();
        let mut allowed = Vec::with_capacity(said.len());
        for said in said {
            allowed.push(match said {
                Ok(Said { request, notification, .. }) if notification.send_at_ms <= now_ms => {
                    self.pacing.allow(request, notification, page, &self.deps.world).await
                }
                _ => Allowance::Page,
            });
        }
        allowed
    }

    fn settle_allowances(&mut self, allowed: &[Allowance], expanded: &[Expanded]) {
        for (allowance, expanded) in allowed.iter().zip(expanded) {
            match (allowance, expanded) {
                (Allowance::Few(few), Expanded::Page { page, .. }) => self.pacing.put_back(few, page.instances),
                (Allowance::Few(few), _) => self.pacing.put_back(few, 0),
                (Allowance::Later(_), _) => self.count(&self.deps.stats.paced, 1),
                (Allowance::Page, _) => {}
            }
        }
    }

    /// The most recipients of a page.
    fn page_recipients(&self) -> usize {
        (MAX_PAGE_USERS_PER_SHARD * self.deps.log.identity().layout.shards) as usize
    }

    /// Expands each unit's page.
    pub(crate) async fn expand_all(&mut self, units: &[Unit], now_ms: u64) -> Vec<Expanded> {
        let said: Vec<Result<Said, &'static str>> = units.iter().map(Unit::read).collect();
        let allowed = self.pace(&said, now_ms).await;
        let this = &*self;
        let first = match this.first_places(units, &said).await {
            Ok(first) => first,
            Err(error) => {
                this.count(&this.deps.stats.store_delays, units.len() as u64);
                this.deps.outages.admissions.failed(&error, units.len() as u64, now_ms);
                return units.iter().map(|_| Expanded::Later(Wait::until(now_ms + STORE_DELAY_MS))).collect();
            }
        };
        let expanding = said.into_iter().zip(first).enumerate();
        let expanding = expanding
            .map(|(i, (said, first))| this.expand_one(said, first, allowed.get(i).unwrap_or(&Allowance::Page), now_ms));
        let expanded = futures::future::join_all(expanding).await;
        self.settle_allowances(&allowed, &expanded);
        expanded
    }

    /// Whether each unit is the first admission of its idempotency key.
    async fn first_places(&self, units: &[Unit], said: &[Result<Said, &'static str>]) -> Result<Vec<bool>, StoreError> {
        let mut notes = Vec::new();
        let mut indexes = Vec::new();
        for (index, (unit, said)) in units.iter().zip(said).enumerate() {
            let Ok(Said { request, notification, id }) = said else { continue };
            if unit.record.envelope.schema == Schema::Request as i32 && !request.idempotency_key.is_empty() {
                indexes.push(index);
                notes.push(PlaceNote {
                    tenant: TenantId::trusted(&notification.tenant),
                    key: request.idempotency_key.clone(),
                    id: *id,
                    place: self.first_place(&unit.record),
                });
            }
        }
        let mut first = vec![true; units.len()];
        if !notes.is_empty() {
            // A noted place whose record a power cut took would make the repeated call look like a second admission.
            let durable = self.deps.log.durable(self.polled_mark).await;
            durable.map_err(|error| StoreError::Unavailable(error.to_string()))?;
            let mine: Vec<Place> = notes.iter().map(|note| note.place).collect();
            let noted = self.deps.admissions.note_first_places(notes).await?;
            self.deps.outages.admissions.answered(self.deps.world.now_ms());
            for ((index, mine), noted) in indexes.into_iter().zip(mine).zip(noted) {
                first[index] = mine == noted;
            }
        }
        Ok(first)
    }

    pub(crate) fn first_place(&self, record: &Record) -> Place {
        record.envelope.first_place.unwrap_or_else(|| dead_letters::place_of(record, self.deps.log.identity()))
    }

    async fn expand_one(
        &self,
        said: Result<Said, &'static str>,
        first: bool,
        allowance: &Allowance,
        now_ms: u64,
    ) -> Expanded {
        let Said { request, notification, .. } = match said {
            Err(cause) => return dead(cause),
            Ok(_) if !first => return Expanded::SecondAdmission,
            Ok(said) => said,
        };
        let region = &self.deps.log.identity().region;
        let slow = match self.steering.decide(&request, &notification, region, now_ms) {
            Steer::Go { slow } => slow,
            Steer::Wait(wait) => {
                self.count(&self.deps.stats.held, u64::from(notification.send_at_ms <= now_ms));
                return Expanded::Later(wait);
            }
            Steer::Stop => return Expanded::Stopped { notification: Box::new(notification) },
        };
        let page = if slow { (self.page_recipients() / 10).max(1) } else { self.page_recipients() };
        let (most, next_wait) = match allowance {
            Allowance::Page => (page, None),
            Allowance::Few(few) => (few.recipients.min(page), few.rest),
            Allowance::Later(wait) if wait.due_ms > now_ms => return Expanded::Later(*wait),
            // Its time is over; the workers say so.
            Allowance::Later(_) => (page, None),
        };
        match self.expand_page(request, notification, most, next_wait).await {
            Ok(expanded) => {
                self.deps.outages.directory.answered(now_ms);
                expanded
            }
            Err(StoreError::Unavailable(error)) => {
                self.count(&self.deps.stats.store_delays, 1);
                self.deps.outages.directory.failed(&error, 1, now_ms);
                Expanded::Later(Wait::until(now_ms + STORE_DELAY_MS))
            }
            Err(StoreError::Damaged(error)) => Expanded::Dead { cause: "damaged", detail: error },
        }
    }

    /// Expands a page of at most so many recipients.
    async fn expand_page(
        &self,
        request: Request,
        notification: Notification,
        most: usize,
        next_wait: Option<Wait>,
    ) -> Result<Expanded, StoreError> {
        let tenant = TenantId::trusted(&notification.tenant);
        let actor = self.actor(&tenant, &notification.actor_id).await?;
        let shards = self.deps.log.identity().layout.shards;
        let kind = request.audience.as_ref().and_then(|a| a.kind.as_ref());
        let stored = match kind {
            Some(Kind::FollowersOf(user)) => Some(AudienceKey::FollowersOf(user.clone())),
            Some(Kind::Topic(topic)) => Some(AudienceKey::Topic(topic.clone())),
            Some(Kind::Everyone(_)) => Some(AudienceKey::Everyone),
            _ => None,
        };
        let (page, next) = if let Some(key) = stored {
            let found = self.deps.directory.audience(&tenant, &key, request.cursor.clone(), most).await?;
            let users: Vec<&str> = found.users.iter().map(String::as_str).collect();
            let recipients = Recipients::Users(users);
            let page = expand(&request, &notification, &recipients, &actor, found.next.is_some(), shards);
            let next = match page.manifests[0].last {
                true => None,
                false => Some(after_stored_page(&request, &found, page.taken)),
            };
            (page, next)
        } else if let Some(Kind::Inline(list)) = kind {
            let (first, more) = (&list.recipients[..most.min(list.recipients.len())], list.recipients.len() > most);
            let page = expand(&request, &notification, &Recipients::Inline(first), &actor, more, shards);
            let next = (!page.manifests[0].last).then(|| {
                let rest = record::InlineList { recipients: list.recipients[page.taken..].to_vec() };
                let rest = Audience { kind: Some(Kind::Inline(rest)) };
                continuation(&request, &list.recipients[page.taken - 1].user_id, Some(rest), page.taken)
            });
            (page, next)
        } else if let Some(Kind::Users(list)) = kind {
            let Ok(users) = packed::unpack(&list.packed).collect::<Result<Vec<&str>, _>>() else {
                return Ok(dead("undecodable"));
            };
            let recipients = Recipients::Users(users[..most.min(users.len())].to_vec());
            let page = expand(&request, &notification, &recipients, &actor, users.len() > most, shards);
            let next = (!page.manifests[0].last).then(|| {
                let rest = &users[page.taken..];
                let list = record::UserList { packed: packed::pack(rest.iter().copied()), count: rest.len() as u32 };
                let rest = Audience { kind: Some(Kind::Users(list)) };
                continuation(&request, users[page.taken - 1], Some(rest), page.taken)
            });
            (page, next)
        } else {
            return Ok(dead("unknown_audience"));
        };
        let transactional = notification.transactional;
        Ok(Expanded::Page { transactional, page: Box::new(page), next: next.map(Box::new), next_wait })
    }

    async fn actor(&self, tenant: &TenantId, actor_id: &str) -> Result<Bytes, StoreError> {
        if actor_id.is_empty() {
            return Ok(Bytes::new());
        }
        let people = self.deps.directory.people(tenant, &[actor_id.to_owned()]).await?;
        let user = people.into_iter().next().and_then(|person| person.user).unwrap_or_default();
        let attributes = serde_json::to_vec(&user.attributes).unwrap_or_default();
        let actor = record::Actor {
            id: actor_id.to_owned(),
            locale: user.locale.unwrap_or_default(),
            time_zone: user.time_zone.unwrap_or_default(),
            attributes: attributes.into(),
        };
        Ok(actor.encode_to_vec().into())
    }
}

fn dead(cause: &'static str) -> Expanded {
    Expanded::Dead { cause, detail: String::new() }
}

fn after_stored_page(request: &Request, found: &AudiencePage, taken: usize) -> Request {
    match taken.checked_sub(1).map(|last| &found.users[last]) {
        Some(last) => continuation(request, last, None, taken),
        // The page was empty, but the audience goes on behind the store's cursor.
        None => Request { cursor: found.next.clone(), ..request.clone() },
    }
}
