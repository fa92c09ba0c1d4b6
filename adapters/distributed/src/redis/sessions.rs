//! Which gateway holds a user's live connections.
//!
//! Each process that holds connections has a set of their users and a channel for their frames. It says every few seconds
//! that it lives; the set of one that does not expires. A channel loses messages only together with its connection, so the
//! process that reads it tells its connections of a gap whenever it has subscribed, and they read their inboxes. Whether
//! a quiet channel is alive shows in the process's own sign of life, which it must hear.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{StreamExt, future::try_join_all};
use herald_core::{
    ids::TenantId,
    outage::Outage,
    ports::{
        StoreError,
        sessions::{Frame, Inlet, SessionGuard, Sessions},
    },
};
use parking_lot::Mutex;
use prost::Message;
use redis::cmd;
use tokio::{
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use uuid::Uuid;

use super::{
    Redis,
    frames::{FrameRecord, FramesRecord, WEIGHT_AT_ONCE},
};

/// How often a process says that it lives.
const BEAT: Duration = Duration::from_secs(3);

/// A process that was silent for so long is dead, and a channel in which nothing was heard for so long too.
const SILENCE: Duration = Duration::from_secs(10);

/// How long it is remembered which processes hold connections.
const HOLDERS_AGE: Duration = Duration::from_secs(1);

/// How long a channel that could not be opened is left alone.
const RETRY: Duration = Duration::from_millis(500);

/// Users that one command adds.
const ADDED_AT_ONCE: usize = 1_000;

/// A member of every set, so that one that was lost differs from one of nobody.
const SIGN: &[u8] = b"";

/// Live sessions of all processes.
pub struct RedisSessions {
    shared: Arc<Shared>,
    /// The holders' names, and when they were read.
    holders: Mutex<Option<(Instant, Arc<[String]>)>>,
    /// Started by the first connection: a process without any is no holder.
    tasks: OnceLock<[JoinHandle<()>; 2]>,
}

struct Shared {
    redis: Redis,
    /// This process's name among the holders.
    name: String,
    local: Mutex<Local>,
    changed: Notify,
    started: Instant,
    /// What is said while others cannot be told of this process's connections, and while it gets no frames.
    telling: Outage,
    hearing: Outage,
}

/// This process's connections, by tenant and user.
#[derive(Default)]
struct Local {
    users: HashMap<Vec<u8>, Vec<Session>>,
    next: u64,
    /// Users whose place in the set is not written yet, with those who wait for it.
    changed: HashMap<Vec<u8>, Vec<oneshot::Sender<Result<(), StoreError>>>>,
}

struct Session {
    number: u64,
    inlet: Arc<dyn Inlet>,
}

impl RedisSessions {
    /// Sessions behind a connection.
    pub fn new(redis: Redis) -> Self {
        let to_do = "see that the cache answers and has room";
        let shared = Shared {
            redis,
            name: Uuid::now_v7().to_string(),
            local: Mutex::default(),
            changed: Notify::new(),
            started: Instant::now(),
            telling: Outage::new("other processes do not hear of this one's live connections", to_do),
            hearing: Outage::new("live connections get no frames; they read their inboxes now and then", to_do),
        };
        Self { shared: Arc::new(shared), holders: Mutex::default(), tasks: OnceLock::new() }
    }

    /// The processes that hold connections, as of a second ago at most.
    async fn holders(&self) -> Result<Arc<[String]>, StoreError> {
        let known = self.holders.lock().clone();
        if let Some((read, holders)) = known
            && read.elapsed() < HOLDERS_AGE
        {
            return Ok(holders);
        }
        let redis = &self.shared.redis;
        let named: Vec<String> = redis.query(cmd("SMEMBERS").arg(redis.key("holders"))).await?;
        let alive = try_join_all(
            named.iter().map(async |name| redis.query::<bool>(cmd("EXISTS").arg(users_key(redis, name))).await),
        )
        .await?;
        let (living, dead): (Vec<_>, Vec<_>) = named.into_iter().zip(alive).partition(|(_, alive)| *alive);
        if !dead.is_empty() {
            let dead: Vec<String> = dead.into_iter().map(|(name, _)| name).collect();
            redis.query::<()>(cmd("SREM").arg(redis.key("holders")).arg(dead)).await?;
        }
        let holders: Arc<[String]> = living.into_iter().map(|(name, _)| name).collect();
        *self.holders.lock() = Some((Instant::now(), holders.clone()));
        Ok(holders)
    }

    /// For each holder, which of these users it has.
    async fn held(&self, users: &[Vec<u8>]) -> Result<Vec<(String, Vec<bool>)>, StoreError> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let redis = &self.shared.redis;
        let holders = self.holders().await?;
        let asked = holders.iter().map(async |name| {
            let held = redis.query(cmd("SMISMEMBER").arg(users_key(redis, name)).arg(users)).await?;
            Ok((name.clone(), held))
        });
        try_join_all(asked).await
    }
}

impl Drop for RedisSessions {
    fn drop(&mut self) {
        self.tasks.get().into_iter().flatten().for_each(JoinHandle::abort);
    }
}

#[async_trait]
impl Sessions for RedisSessions {
    async fn connected(&self, tenant: &TenantId, users: &[&str]) -> Result<Vec<bool>, StoreError> {
        let members: Vec<Vec<u8>> = users.iter().map(|user| member(tenant, user)).collect();
        let mut connected = vec![false; users.len()];
        for (_, held) in self.held(&members).await? {
            connected.iter_mut().zip(held).for_each(|(connected, held)| *connected |= held);
        }
        Ok(connected)
    }

    async fn hand_over(&self, frames: Vec<Frame>) -> Result<(), StoreError> {
        let members: Vec<Vec<u8>> = frames.iter().map(|frame| member(&frame.tenant, &frame.user)).collect();
        let records: Vec<FrameRecord> = frames.into_iter().map(FrameRecord::from).collect();
        let redis = &self.shared.redis;
        for (name, held) in self.held(&members).await? {
            let mut batch = FramesRecord::default();
            let mut weight = 0;
            for (record, _) in records.iter().zip(held).filter(|(_, held)| *held) {
                weight += record.encoded_len();
                batch.frames.push(record.clone());
                if weight >= WEIGHT_AT_ONCE {
                    redis.query::<()>(&publish(redis, &name, &std::mem::take(&mut batch))).await?;
                    weight = 0;
                }
            }
            if !batch.frames.is_empty() {
                redis.query::<()>(&publish(redis, &name, &batch)).await?;
            }
        }
        Ok(())
    }

    async fn register(
        &self,
        tenant: &TenantId,
        user: &str,
        inlet: Arc<dyn Inlet>,
    ) -> Result<Box<dyn SessionGuard>, StoreError> {
        self.tasks.get_or_init(|| {
            let (writer, reader) = (self.shared.clone(), self.shared.clone());
            [tokio::spawn(async move { writer.write().await }), tokio::spawn(async move { reader.read().await })]
        });
        let (tell, told) = oneshot::channel();
        let member = member(tenant, user);
        let number = {
            let mut local = self.shared.local.lock();
            let number = local.next;
            local.next += 1;
            local.users.entry(member.clone()).or_default().push(Session { number, inlet });
            local.changed.entry(member.clone()).or_default().push(tell);
            number
        };
        self.shared.changed.notify_one();
        let guard = Guard { shared: self.shared.clone(), member, number };
        told.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the process stops".into())))?;
        Ok(Box::new(guard))
    }
}

impl Shared {
    /// Keeps this process's set as its connections are.
    async fn write(&self) {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let beats = tokio::select! {
                _ = beat.tick() => true,
                () = self.changed.notified() => false,
            };
            let changed = std::mem::take(&mut self.local.lock().changed);
            let mut result = self.put(changed.keys()).await;
            if beats {
                match self.live_on().await {
                    Ok(()) => self.telling.answered(self.running_ms()),
                    Err(error) => {
                        self.telling.failed(&error, 0, self.running_ms());
                        result = result.and(Err(error));
                    }
                }
            }
            let mut local = self.local.lock();
            for (member, waiting) in changed {
                waiting.into_iter().for_each(|tell| drop(tell.send(result.clone())));
                if result.is_err() {
                    // With the next beat.
                    local.changed.entry(member).or_default();
                }
            }
        }
    }

    /// Adds and removes users as they are connected now.
    async fn put(&self, users: impl Iterator<Item = &Vec<u8>>) -> Result<(), StoreError> {
        let (here, gone): (Vec<&Vec<u8>>, Vec<&Vec<u8>>) = {
            let local = self.local.lock();
            users.partition(|user| local.users.contains_key(*user))
        };
        let key = users_key(&self.redis, &self.name);
        let mut pipeline = redis::pipe();
        for (command, users) in [("SADD", &here), ("SREM", &gone)] {
            for users in users.chunks(ADDED_AT_ONCE) {
                pipeline.cmd(command).arg(&key).arg(users).ignore();
            }
        }
        if here.is_empty() && gone.is_empty() {
            return Ok(());
        }
        self.redis.pipeline(&pipeline).await
    }

    /// Says that this process lives, and all of its users if they were lost.
    async fn live_on(&self) -> Result<(), StoreError> {
        let key = users_key(&self.redis, &self.name);
        if !self.redis.query::<bool>(cmd("SISMEMBER").arg(&key).arg(SIGN)).await? {
            let users: Vec<Vec<u8>> = self.local.lock().users.keys().cloned().collect();
            self.put(users.iter()).await?;
            self.redis.query::<()>(cmd("SADD").arg(&key).arg(SIGN)).await?;
        }
        self.redis.query::<()>(cmd("PEXPIRE").arg(&key).arg(SILENCE.as_millis() as u64)).await?;
        self.redis.query::<()>(cmd("SADD").arg(self.redis.key("holders")).arg(&self.name)).await?;
        self.redis.query(&publish(&self.redis, &self.name, &FramesRecord::default())).await
    }

    /// Takes frames to their connections.
    async fn read(&self) {
        let mut attempt = 0;
        loop {
            match self.redis.subscribe(&channel(&self.redis, &self.name), attempt).await {
                Ok(subscribed) => {
                    self.hearing.answered(self.running_ms());
                    self.each_inlet(|inlet| inlet.gap());
                    let mut messages = subscribed.into_on_message();
                    while let Ok(Some(message)) = timeout(SILENCE, messages.next()).await {
                        self.take(message.get_payload_bytes());
                    }
                    self.hearing.failed(&"the channel of live frames is gone", 0, self.running_ms());
                }
                Err(error) => self.hearing.failed(&error, 0, self.running_ms()),
            }
            attempt += 1;
            sleep(RETRY).await;
        }
    }

    fn running_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn take(&self, message: &[u8]) {
        let frames = match FramesRecord::decode(message) {
            Ok(batch) => batch.frames,
            Err(error) => {
                tracing::error!(%error, "live frames cannot be read; connections read their inboxes");
                return self.each_inlet(|inlet| inlet.gap());
            }
        };
        for frame in frames {
            let member = member(&TenantId::trusted(&frame.tenant), &frame.user);
            // An inlet may end its own session, so none is called under the lock.
            let inlets: Vec<Arc<dyn Inlet>> = {
                let local = self.local.lock();
                local.users.get(&member).into_iter().flatten().map(|session| session.inlet.clone()).collect()
            };
            if let Some(item) = frame.item() {
                inlets.iter().for_each(|inlet| inlet.frame(&item));
            }
        }
    }

    fn each_inlet(&self, act: impl Fn(&dyn Inlet)) {
        let inlets: Vec<Arc<dyn Inlet>> =
            self.local.lock().users.values().flatten().map(|session| session.inlet.clone()).collect();
        inlets.iter().for_each(|inlet| act(inlet.as_ref()));
    }
}

fn users_key(redis: &Redis, name: &str) -> String {
    redis.key(&format!("sessions:{name}"))
}

fn channel(redis: &Redis, name: &str) -> String {
    redis.key(&format!("frames:{name}"))
}

fn publish(redis: &Redis, name: &str, frames: &FramesRecord) -> redis::Cmd {
    let mut publish = cmd("PUBLISH");
    publish.arg(channel(redis, name)).arg(frames.encode_to_vec());
    publish
}

/// Tenants' names have no zero byte.
fn member(tenant: &TenantId, user: &str) -> Vec<u8> {
    [tenant.as_str().as_bytes(), b"\0", user.as_bytes()].concat()
}

struct Guard {
    shared: Arc<Shared>,
    member: Vec<u8>,
    number: u64,
}

impl SessionGuard for Guard {}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut ended = None;
        {
            let mut local = self.shared.local.lock();
            let Some(sessions) = local.users.get_mut(&self.member) else { return };
            if let Some(at) = sessions.iter().position(|session| session.number == self.number) {
                ended = Some(sessions.swap_remove(at));
            }
            if sessions.is_empty() {
                local.users.remove(&self.member);
                local.changed.entry(std::mem::take(&mut self.member)).or_default();
                self.shared.changed.notify_one();
            }
        }
        // The inlet's own drop runs without the lock.
        drop(ended);
    }
}
