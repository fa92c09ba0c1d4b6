//! The topics on the cluster: made at the first start, checked at every other, and what the log says of itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use herald_core::{
    ports::log::Identity,
    topic::{Layout, Retention, Topic},
};
use rdkafka::{
    Message, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    config::{FromClientConfig, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseRecord, Producer},
    topic_partition_list::Offset,
};

use super::{
    config::{BadKafkaConfig, KafkaConfig},
    context::Opening,
    names::Names,
};

/// The version of everything that is written: names, headers, positions.
const FORMAT_VERSION: u32 = 1;
const ANSWER: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(100);
/// How long the first question to the brokers waits; each further one twice as long.
const FIRST_ANSWER: Duration = Duration::from_secs(1);

/// Why a log on a cluster cannot be used. Nothing of it was changed, but for topics that were missing.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting cannot be.
    #[error(transparent)]
    Config(#[from] BadKafkaConfig),
    /// The cluster does not do what it is asked.
    #[error("could not {what}: {source}")]
    Cluster {
        /// What was tried.
        what: String,
        /// What the client said.
        source: KafkaError,
    },
    /// No broker could be asked.
    #[error("the brokers at {brokers} cannot be used: {trouble}; {mend}")]
    Unusable {
        /// Whom the configuration names.
        brokers: String,
        /// What went wrong last, in librdkafka's words.
        trouble: String,
        /// What to look at.
        mend: &'static str,
    },
    /// What is there is another log, or one of a later release, or was changed by somebody.
    #[error("{0}")]
    Refused(String),
}

/// What a log says of itself, on the topic `meta`. The first record holds for good; a later one may only raise the epoch.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Meta {
    format_version: u32,
    region: String,
    epoch: u32,
    shards: u32,
    requests: u32,
    receipts: u32,
}

impl Meta {
    fn new(region: &str, layout: Layout) -> Self {
        let Layout { shards, requests, receipts } = layout;
        Self { format_version: FORMAT_VERSION, region: region.to_owned(), epoch: 1, shards, requests, receipts }
    }

    fn layout(&self) -> Layout {
        Layout { shards: self.shards, requests: self.requests, receipts: self.receipts }
    }
}

/// Makes what is missing of a new log, or checks one that is there. `layout` is for a new log; `None` takes what is stored.
pub(super) fn open(
    config: &KafkaConfig,
    names: &Names,
    region: &str,
    layout: Option<Layout>,
) -> Result<Identity, OpenError> {
    let cluster = Cluster {
        config,
        names,
        admin: AdminClient::from_config(&config.client()?).map_err(|e| failed("make a client", e))?,
        reader: config
            .reader()?
            // Broken connections are told at this level.
            .set_log_level(RDKafkaLogLevel::Info)
            .create_with_context(Opening::default())
            .map_err(|e| failed("make a client", e))?,
    };
    let found = cluster.topics()?;
    let meta = match found.contains_key(&names.meta()) {
        true => cluster.read_meta()?,
        false => None,
    };
    let meta = match meta {
        Some(meta) => meta,
        None => {
            let layout = layout.unwrap_or(DEFAULT_LAYOUT);
            cluster.create(&found, layout)?;
            // Whoever wrote first is right; another process may start at the same time.
            cluster.write_meta(&Meta::new(region, layout))?;
            cluster.read_meta()?.ok_or_else(|| refused(format!("{} cannot be read back", names.meta())))?
        }
    };
    check_meta(&meta, names, region, layout)?;
    cluster.check(meta.layout())?;
    Ok(Identity { layout: meta.layout(), region: meta.region, epoch: meta.epoch })
}

/// For a new log of which nobody said how it should be divided.
const DEFAULT_LAYOUT: Layout = Layout { shards: 16, requests: 8, receipts: 4 };

fn check_meta(meta: &Meta, names: &Names, region: &str, layout: Option<Layout>) -> Result<(), OpenError> {
    let prefix = names.meta();
    if meta.format_version > FORMAT_VERSION {
        let version = meta.format_version;
        return Err(refused(format!("{prefix} was written by a later release (format {version}); use that release")));
    }
    if meta.region != region {
        let other = &meta.region;
        return Err(refused(format!("{prefix} is of region {other:?}, not {region:?}; use another prefix or region")));
    }
    match layout {
        Some(wanted) if wanted != meta.layout() => Err(refused(format!(
            "{prefix} has {:?}, and the configuration says {wanted:?}; partitions cannot be changed: mend the \
             configuration, or begin a new log under another prefix",
            meta.layout()
        ))),
        _ => Ok(()),
    }
}

struct Cluster<'a> {
    config: &'a KafkaConfig,
    names: &'a Names,
    admin: AdminClient<DefaultClientContext>,
    reader: BaseConsumer<Opening>,
}

impl Cluster<'_> {
    /// The topics that are there, with their numbers of partitions. Brokers that are away are waited for, those that
    /// refuse are not.
    fn topics(&self) -> Result<BTreeMap<String, usize>, OpenError> {
        let (deadline, mut patience) = (Instant::now() + self.config.connect_timeout(), FIRST_ANSWER);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match self.reader.fetch_metadata(None, patience.min(left)) {
                Ok(found) => {
                    let topics = found.topics().iter();
                    return Ok(topics.map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect());
                }
                Err(error) => error,
            };
            // What went wrong is told in polls, over and over.
            let told = Instant::now() + TICK;
            while Instant::now() < told && self.reader.poll(TICK).is_some() {}
            let trouble = self.reader.context().trouble();
            let mend = match trouble.as_ref().and_then(|trouble| trouble.kind) {
                Some(RDKafkaErrorCode::Authentication) => {
                    "check kafka.sasl_username, kafka.sasl_mechanism and what is in kafka.sasl_password_file"
                }
                Some(RDKafkaErrorCode::SSL) => {
                    "check kafka.security_protocol, and that kafka.ssl_ca_file holds the authority of the brokers' \
                     certificates and these name the brokers' hosts"
                }
                _ if Instant::now() >= deadline => {
                    "check that they run, and that kafka.security_protocol is the one of this port"
                }
                _ => {
                    patience *= 2;
                    continue;
                }
            };
            let trouble = trouble.map_or_else(|| error.to_string(), |trouble| trouble.said);
            return Err(OpenError::Unusable { brokers: self.config.brokers.clone(), trouble, mend });
        }
    }

    /// Makes the topics that are missing and waits until all are known.
    fn create(&self, found: &BTreeMap<String, usize>, layout: Layout) -> Result<(), OpenError> {
        let (replicas, in_sync) = (self.config.replication_factor as i32, self.config.min_insync_replicas.to_string());
        let (max_bytes, meta) = (self.config.max_record_bytes().to_string(), self.names.meta());
        let missing: Vec<Missing<'_>> = Topic::all()
            .map(|topic| Missing::new(self.names.topic(topic), layout.partitions(topic), topic.retention()))
            .chain([Missing::new(&meta, 1, Retention::Consumed)])
            .filter(|topic| !found.contains_key(topic.name))
            .collect();
        let new = |missing| {
            let Missing { name, partitions, kept }: &Missing<'_> = missing;
            let topic = NewTopic::new(name, *partitions as i32, TopicReplication::Fixed(replicas))
                .set("min.insync.replicas", &in_sync)
                .set("max.message.bytes", &max_bytes)
                .set("unclean.leader.election.enable", "false");
            kept.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
        };
        let topics: Vec<NewTopic<'_>> = missing.iter().map(new).collect();
        let options = AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(ANSWER));
        let created = futures::executor::block_on(self.admin.create_topics(&topics, &options));
        for result in created.map_err(|e| failed("make topics", e))? {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, RDKafkaErrorCode::InvalidReplicationFactor)) => {
                    return Err(refused(format!(
                        "{name} cannot have {replicas} copies: the cluster has fewer brokers; set replication_factor and \
                         min_insync_replicas"
                    )));
                }
                Err((name, code)) => return Err(failed(&format!("make the topic {name}"), KafkaError::AdminOp(code))),
            }
        }
        let deadline = Instant::now() + ANSWER;
        loop {
            let known: BTreeSet<String> = self.topics()?.into_keys().collect();
            match topics.iter().find(|topic| !known.contains(topic.name)) {
                None => return Ok(()),
                Some(topic) if Instant::now() >= deadline => {
                    return Err(refused(format!("{} was made and is still not there", topic.name)));
                }
                Some(_) => std::thread::sleep(TICK),
            }
        }
    }

    fn write_meta(&self, meta: &Meta) -> Result<(), OpenError> {
        let name = self.names.meta();
        let producer: rdkafka::producer::BaseProducer =
            self.config.appender()?.create().map_err(|e| failed("make a client", e))?;
        // Numbers and strings always have a JSON form.
        let text = serde_json::to_string(meta).unwrap_or_default();
        let record = BaseRecord::<str, str>::to(&name).partition(0).payload(&text);
        producer.send(record).map_err(|(e, _)| failed(&format!("write {name}"), e))?;
        producer.flush(ANSWER).map_err(|e| failed(&format!("write {name}"), e))
    }

    /// What the log says of itself; `None` if it says nothing yet.
    fn read_meta(&self) -> Result<Option<Meta>, OpenError> {
        let name = self.names.meta();
        let mut list = TopicPartitionList::new();
        let assigned = list.add_partition_offset(&name, 0, Offset::Beginning).and_then(|()| self.reader.assign(&list));
        assigned.map_err(|e| failed(&format!("read {name}"), e))?;
        let (mut meta, deadline) = (None::<Meta>, Instant::now() + ANSWER);
        loop {
            match self.reader.poll(TICK) {
                Some(Ok(message)) => {
                    let read = serde_json::from_slice(message.payload().unwrap_or_default());
                    let read: Meta = read.map_err(|e| refused(format!("{name}, offset {}: {e}", message.offset())))?;
                    match &mut meta {
                        Some(meta) => meta.epoch = meta.epoch.max(read.epoch),
                        None => meta = Some(read),
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error)) => tracing::debug!(%error, "the read of {name} goes on"),
                None => {}
            }
            if Instant::now() >= deadline {
                let late = KafkaError::MessageConsumption(RDKafkaErrorCode::RequestTimedOut);
                return Err(failed(&format!("read {name}"), late));
            }
        }
        self.reader.unassign().map_err(|e| failed(&format!("read {name}"), e))?;
        Ok(meta)
    }

    /// Refuses topics that are missing, divided otherwise, or lose what still waits.
    fn check(&self, layout: Layout) -> Result<(), OpenError> {
        let found = self.topics()?;
        for topic in Topic::all() {
            let (name, wanted) = (self.names.topic(topic), layout.partitions(topic) as usize);
            match found.get(name) {
                None => {
                    return Err(refused(format!(
                        "the topic {name} is missing although {} says that this log is in use: what was on it is lost; \
                         restore it, or begin a new log under another prefix",
                        self.names.meta()
                    )));
                }
                Some(partitions) if *partitions != wanted => {
                    return Err(refused(format!(
                        "the topic {name} has {partitions} partitions where {wanted} are right: somebody changed it, and \
                         records would be looked for in the wrong places; begin a new log under another prefix"
                    )));
                }
                Some(_) => {}
            }
        }
        self.check_retention()
    }

    fn check_retention(&self) -> Result<(), OpenError> {
        let topics: Vec<ResourceSpecifier<'_>> =
            Topic::all().map(|topic| ResourceSpecifier::Topic(self.names.topic(topic))).collect();
        let options = AdminOptions::new().request_timeout(Some(ANSWER));
        let described = futures::executor::block_on(self.admin.describe_configs(&topics, &options));
        let described = described.map_err(|e| failed("look at the topics' settings", e))?;
        for (topic, described) in Topic::all().zip(described) {
            let name = self.names.topic(topic);
            let described = described.map_err(|e| failed(&format!("look at {name}"), KafkaError::AdminOp(e)))?;
            for (key, wanted) in kept(topic.retention()) {
                let is = described.get(key).and_then(|entry| entry.value.as_deref()).unwrap_or_default();
                if is != wanted {
                    return Err(refused(format!(
                        "the topic {name} has {key}={is}, with which it loses records that are needed; set {key}={wanted}"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// A topic to be made.
struct Missing<'a> {
    name: &'a str,
    partitions: u32,
    kept: Vec<(&'static str, String)>,
}

impl<'a> Missing<'a> {
    fn new(name: &'a str, partitions: u32, retention: Retention) -> Self {
        Self { name, partitions, kept: kept(retention) }
    }
}

/// The settings that keep a topic's records for as long as they are needed. What is consumed is deleted by this crate.
fn kept(retention: Retention) -> Vec<(&'static str, String)> {
    let (policy, ms) = match retention {
        Retention::Compacted => return vec![("cleanup.policy", "compact".to_owned())],
        Retention::Consumed => ("delete", "-1".to_owned()),
        Retention::For(ms) => ("delete", ms.to_string()),
    };
    vec![("cleanup.policy", policy.to_owned()), ("retention.ms", ms), ("retention.bytes", "-1".to_owned())]
}

fn refused(what: String) -> OpenError {
    OpenError::Refused(what)
}

fn failed(what: &str, source: KafkaError) -> OpenError {
    OpenError::Cluster { what: what.to_owned(), source }
}
