//! Dead letters as operators see them, and their orders to bring them back. The redriver carries these out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use herald_api::{
    page::{List, foreign_token, page_size},
    time::{millis, some_timestamp},
};
use herald_core::{
    clock::World,
    dead_letters::{CAUSES, RedriveIndex, STAGES, letters, read_letter, redrives, takes},
    ids::{InstanceId, NotificationId, channel_name},
    outputs::Outputs,
    packed,
    ports::log::{Log, Record},
    problem::{FieldError, Problem},
    record::{self, DeadLetter, DeadLetterFilter, DeliveryBatch, Envelope, InboxBatch, LedgerBatch, Request, Schema},
    topic::Topic,
};
use herald_proto::v1;
use prost::Message;
use tokio::sync::Mutex;

/// Letters that one call of a filtered list looks at.
const MAX_SCANNED: usize = 1_000;

/// Records of one read; a letter may have a megabyte.
const RECORDS_A_READ: usize = 64;

/// Letters that one order names.
const MAX_IDS: usize = 1_000;

/// How long an order, or a dry run, counts what it takes.
const COUNTS_WITHIN: Duration = Duration::from_secs(2);

/// Instances that are named of a section.
const MAX_INSTANCE_IDS: usize = 100;

/// Reads dead letters and orders redrives.
pub struct DeadLetters {
    log: Arc<dyn Log>,
    world: World,
    index: Mutex<RedriveIndex>,
}

impl DeadLetters {
    /// Dead letters on this log.
    pub fn new(log: Arc<dyn Log>, world: World) -> Self {
        Self { log, world, index: Mutex::default() }
    }

    /// The log that they are on.
    pub(crate) fn log(&self) -> &dyn Log {
        &*self.log
    }

    /// Milliseconds since the epoch.
    pub(crate) fn now_ms(&self) -> u64 {
        self.world.now_ms()
    }

    /// Letters that a filter takes, oldest first. A bounded number is looked at: a page may be short while there is a
    /// token.
    ///
    /// # Errors
    /// 400 for a filter that cannot be, or a token of another list.
    pub async fn list(&self, asked: v1::ListDeadLettersRequest) -> Result<v1::ListDeadLettersResponse, Problem> {
        let filter = filter(asked.tenant_id, asked.stage, asked.cause, asked.since, asked.until)?;
        let list = List::new("dead_letters", &[&filter.tenant, &filter.stage, &filter.cause, &times(&filter)]);
        let mut from = match list.position(asked.page_token.as_deref())? {
            Some(position) => u64::from_be_bytes(position.try_into().map_err(|_| foreign_token())?),
            None => 0,
        };
        let limit = page_size(asked.page_size);
        let index = self.index().await?;
        let (mut dead_letters, mut scanned, mut more) = (Vec::new(), 0, true);
        while more && scanned < MAX_SCANNED && dead_letters.len() < limit {
            let (records, next) = self.log.read(letters(), from, RECORDS_A_READ).await?;
            more = next != from;
            for record in &records {
                if dead_letters.len() == limit {
                    break;
                }
                scanned += 1;
                from = record.offset + 1;
                let letter = read_letter(record).filter(|letter| takes(&filter, record, letter));
                dead_letters.extend(letter.map(|letter| message(record, &letter, &index)));
            }
            if dead_letters.len() < limit {
                from = next;
            }
        }
        let next_page_token = list.token(more.then(|| from.to_be_bytes()).as_ref().map(<[u8; 8]>::as_slice));
        Ok(v1::ListDeadLettersResponse { dead_letters, next_page_token })
    }

    /// A letter and what its record holds.
    ///
    /// # Errors
    /// 404 for one that is not there, or is there no more.
    pub async fn get(&self, id: &str) -> Result<v1::DeadLetter, Problem> {
        let offset = id.parse().map_err(|_| Problem::not_found("dead letter"))?;
        let (record, letter) = self.letter(offset).await?.ok_or_else(gone)?;
        let index = self.index().await?;
        Ok(v1::DeadLetter { record: Some(contents(&letter)), ..message(&record, &letter, &index) })
    }

    /// Orders a redrive, or says what one would do.
    ///
    /// # Errors
    /// 400 for an order of nothing in particular; 422 `dead_letter_gone`, naming the letters that are not there any more.
    pub async fn redrive(&self, asked: v1::RedriveDeadLettersRequest) -> Result<v1::Redrive, Problem> {
        let mut order = self.order(&asked)?;
        let index = self.index().await?;
        let counted = self.count(&order, &index).await?;
        if asked.dry_run() {
            let Counted { matched, instances, skipped, .. } = counted;
            let state = "dry_run".to_owned();
            let matched = counted.whole.then_some(matched);
            return Ok(v1::Redrive { state, matched, instances, skipped, ..Default::default() });
        }
        // A UUIDv7, as requests have it.
        order.id = Bytes::copy_from_slice(&self.world.notification_id().0);
        let identity = self.log.identity();
        let mut outputs = Outputs::new(identity.layout, &identity.region, order.ordered_ms);
        outputs.record(redrives(), outputs.envelope(Schema::Redrive, ""), order.encode_to_vec().into());
        self.log.append(outputs.finish()).await?;
        tracing::info!(redrive = request_id(&order.id), "dead letters are to be brought back");
        Ok(v1::Redrive { matched: counted.whole.then_some(counted.matched), ..progress(&order) })
    }

    /// How far a redrive is.
    ///
    /// # Errors
    /// 404 for one that is not known.
    pub async fn progress(&self, id: &str) -> Result<v1::Redrive, Problem> {
        let unknown = || Problem::not_found("redrive");
        let id: NotificationId = id.parse().map_err(|_| unknown())?;
        self.index().await?.order(&id.0).map(progress).ok_or_else(unknown)
    }

    /// What the log says of redrives as of now.
    async fn index(&self) -> Result<tokio::sync::MutexGuard<'_, RedriveIndex>, Problem> {
        let mut index = self.index.lock().await;
        loop {
            let (records, next) = self.log.read(redrives(), index.next(), MAX_SCANNED).await?;
            if !index.read(&records, next) {
                return Ok(index);
            }
        }
    }

    async fn letter(&self, offset: u64) -> Result<Option<(Record, DeadLetter)>, Problem> {
        let (records, _) = self.log.read(letters(), offset, 1).await?;
        let found = records.into_iter().next().filter(|record| record.offset == offset);
        Ok(found.and_then(|record| read_letter(&record).map(|letter| (record, letter))))
    }

    fn order(&self, asked: &v1::RedriveDeadLettersRequest) -> Result<record::Redrive, Problem> {
        let filter =
            filter(asked.tenant_id.clone(), asked.stage.clone(), asked.cause.clone(), asked.since, asked.until)?;
        let is_filtered = filter != DeadLetterFilter::default();
        if usize::from(is_filtered) + usize::from(!asked.ids.is_empty()) + usize::from(asked.all()) != 1 {
            let detail = "Give `ids`, or a filter (tenant_id, stage, cause, since, until), or `all`: one of the three.";
            return Err(Problem::field("ids", "required", detail));
        }
        if asked.ids.len() > MAX_IDS {
            return Err(Problem::field("ids", "too_many", format!("At most {MAX_IDS} are allowed.")));
        }
        if asked.per_second == Some(0) {
            let detail = "It is at least 1; leave it away for no limit.";
            return Err(Problem::field("per_second", "out_of_range", detail));
        }
        let mut letters = Vec::with_capacity(asked.ids.len());
        for (i, id) in asked.ids.iter().enumerate() {
            let wrong = || Problem::field(format!("ids[{i}]"), "invalid_value", "Expected an id as the list has it.");
            letters.push(id.parse().map_err(|_| wrong())?);
        }
        letters.sort_unstable();
        letters.dedup();
        let ordered_ms = self.now_ms();
        // Letters that come later, such as those of this redrive itself, are left alone.
        let until_ms = if filter.until_ms == 0 { ordered_ms + 1 } else { filter.until_ms.min(ordered_ms + 1) };
        Ok(record::Redrive {
            letters,
            filter: Some(DeadLetterFilter { until_ms, ..filter }),
            per_second: asked.per_second(),
            again: asked.again(),
            ordered_ms,
            ..Default::default()
        })
    }

    /// Counts what an order takes, as far as that goes within the time.
    async fn count(&self, order: &record::Redrive, index: &RedriveIndex) -> Result<Counted, Problem> {
        let mut counted = Counted { whole: true, ..Counted::default() };
        if !order.letters.is_empty() {
            let mut missing = Vec::new();
            for (i, offset) in order.letters.iter().enumerate() {
                match self.letter(*offset).await? {
                    Some((_, letter)) => counted.add(*offset, &letter, order, index),
                    None => missing.push(FieldError::new(format!("ids[{i}]"), "not_found", gone_detail(*offset))),
                }
            }
            if !missing.is_empty() {
                let detail = format!("{} of the letters are not there. Nothing was done.", missing.len());
                return Err(Problem::refused("dead_letter_gone", detail).with_errors(missing));
            }
            return Ok(counted);
        }
        let filter = order.filter.clone().unwrap_or_default();
        let (begun, mut from) = (Instant::now(), 0);
        loop {
            let (records, next) = self.log.read(letters(), from, RECORDS_A_READ).await?;
            for record in &records {
                if let Some(letter) = read_letter(record).filter(|letter| takes(&filter, record, letter)) {
                    counted.add(record.offset, &letter, order, index);
                }
            }
            if next == from {
                return Ok(counted);
            }
            if begun.elapsed() >= COUNTS_WITHIN {
                return Ok(Counted { whole: false, ..counted });
            }
            from = next;
        }
    }
}

/// What an order takes.
#[derive(Default)]
struct Counted {
    matched: u32,
    instances: u32,
    skipped: u32,
    /// Whether everything was looked at.
    whole: bool,
}

impl Counted {
    fn add(&mut self, offset: u64, letter: &DeadLetter, order: &record::Redrive, index: &RedriveIndex) {
        if index.is_redriven(offset) && !order.again {
            self.skipped += 1;
        } else {
            self.matched += 1;
            self.instances = self.instances.saturating_add(instances_of(letter));
        }
    }
}

fn gone() -> Problem {
    Problem::not_found("dead letter; letters are kept for 30 days")
}

fn gone_detail(offset: u64) -> String {
    format!("There is no dead letter {offset}; letters are kept for 30 days.")
}

fn filter(
    tenant_id: Option<String>,
    stage: Option<String>,
    cause: Option<String>,
    since: Option<pbjson_types::Timestamp>,
    until: Option<pbjson_types::Timestamp>,
) -> Result<DeadLetterFilter, Problem> {
    let time = |field: &str, at: Option<pbjson_types::Timestamp>| {
        let out_of_range = || Problem::field(field, "out_of_range", "The time is before 1970 or after 9999.");
        at.map(|at| millis(&at).ok_or_else(out_of_range)).transpose()
    };
    let known = |field: &str, asked: Option<String>, known: &[&str]| match asked {
        Some(asked) if !known.contains(&&*asked) => {
            let detail = format!("No dead letter has it. The {field}s are {}.", known.join(", "));
            Err(Problem::field(field, "invalid_value", detail))
        }
        asked => Ok(asked.unwrap_or_default()),
    };
    Ok(DeadLetterFilter {
        tenant: tenant_id.unwrap_or_default(),
        stage: known("stage", stage, &STAGES)?,
        cause: known("cause", cause, &CAUSES)?,
        since_ms: time("since", since)?.unwrap_or(0),
        until_ms: time("until", until)?.unwrap_or(0),
    })
}

fn times(filter: &DeadLetterFilter) -> String {
    format!("{} {}", filter.since_ms, filter.until_ms)
}

fn progress(redrive: &record::Redrive) -> v1::Redrive {
    let small = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    v1::Redrive {
        redrive_id: request_id(&redrive.id),
        state: if redrive.complete { "complete" } else { "running" }.to_owned(),
        matched: None,
        redriven: small(redrive.redriven),
        instances: small(redrive.instances),
        skipped: small(redrive.skipped),
        created_at: some_timestamp(redrive.ordered_ms),
    }
}

fn envelope_of(letter: &DeadLetter) -> Envelope {
    Envelope::decode(letter.envelope.clone()).unwrap_or_default()
}

/// A request that is dead counts as one.
fn instances_of(letter: &DeadLetter) -> u32 {
    envelope_of(letter).sections.iter().map(|section| section.count.max(1)).sum()
}

/// A letter without its record.
fn message(record: &Record, letter: &DeadLetter, index: &RedriveIndex) -> v1::DeadLetter {
    let place = letter.place.unwrap_or_default();
    let topic = u8::try_from(place.topic).ok().and_then(Topic::of_code);
    v1::DeadLetter {
        id: record.offset.to_string(),
        tenant_id: record.envelope.tenant.clone(),
        stage: letter.stage.clone(),
        cause: letter.cause.clone(),
        detail: letter.detail.clone(),
        attempts: letter.attempts,
        dead_at: some_timestamp(letter.dead_ms),
        topic: topic.map(|topic| topic.to_string()).unwrap_or_default(),
        instances: instances_of(letter),
        redriven: index.is_redriven(record.offset),
        record: None,
    }
}

/// What a letter's record holds, as far as it can be read: ids and counts, and nothing of what was to be said to whom.
fn contents(letter: &DeadLetter) -> v1::DeadRecord {
    let envelope = envelope_of(letter);
    let read = sections_in(envelope.schema(), &letter.body);
    let readable = read.is_some();
    let of_envelope = || envelope.sections.iter().map(of_summary).collect();
    let kind = match envelope.schema() {
        Schema::Request => "request",
        Schema::Continuation => "continuation",
        Schema::DeliveryBatch => "deliveries",
        Schema::InboxBatch => "inbox",
        Schema::LedgerBatch => "ledger",
        _ => "unknown",
    };
    v1::DeadRecord {
        kind: kind.to_owned(),
        bytes: letter.body.len() as u32,
        readable,
        sections: read.filter(|sections| !sections.is_empty()).unwrap_or_else(of_envelope),
    }
}

fn of_summary(summary: &record::SectionSummary) -> v1::DeadSection {
    v1::DeadSection {
        request_id: request_id(&summary.notification_id),
        tenant_id: summary.tenant.clone(),
        template_id: String::new(),
        channel: channel_name(summary.channel()).to_owned(),
        instances: summary.count,
        instance_ids: Vec::new(),
    }
}

fn request_id(id: &[u8]) -> String {
    NotificationId::from_slice(id).map(|id| id.to_string()).unwrap_or_default()
}

/// The sections of a record; `None` if it cannot be read.
fn sections_in(schema: Schema, body: &Bytes) -> Option<Vec<v1::DeadSection>> {
    match schema {
        Schema::DeliveryBatch => {
            let batch = DeliveryBatch::decode(body.clone()).ok()?;
            batch.sections.iter().map(of_section).collect()
        }
        Schema::Request | Schema::Continuation => {
            let request = Request::decode(body.clone()).ok()?;
            let notification = record::Notification::decode(request.notification).ok()?;
            Some(vec![v1::DeadSection {
                request_id: request_id(&notification.id),
                tenant_id: notification.tenant,
                template_id: notification.template_id,
                ..Default::default()
            }])
        }
        Schema::InboxBatch => InboxBatch::decode(body.clone()).ok().map(|_| Vec::new()),
        Schema::LedgerBatch => LedgerBatch::decode(body.clone()).ok().map(|_| Vec::new()),
        _ => None,
    }
}

fn of_section(section: &record::Section) -> Option<v1::DeadSection> {
    let notification = record::Notification::decode(section.notification.clone()).ok()?;
    let id = NotificationId::from_slice(&notification.id)?;
    let users = packed::unpack(&section.users).map_while(Result::ok).take(MAX_INSTANCE_IDS);
    Some(v1::DeadSection {
        request_id: id.to_string(),
        tenant_id: notification.tenant,
        template_id: notification.template_id,
        channel: channel_name(section.channel()).to_owned(),
        instances: section.count,
        instance_ids: users.map(|user| InstanceId::of(&id, user, section.channel()).to_string()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use herald_core::record::{Endpoint, InlineRecipient, Notification, Section, SectionSummary};

    use super::*;

    #[test]
    fn a_stage_or_a_cause_that_no_letter_has_is_refused_with_those_that_are() {
        let asked = |stage: Option<&str>, cause: Option<&str>| {
            filter(None, stage.map(str::to_owned), cause.map(str::to_owned), None, None)
        };
        for (stage, cause, field, one_of_them) in
            [(Some("wroker"), None, "stage", "worker"), (None, Some("exhausted"), "cause", "attempts_exhausted")]
        {
            let problem = asked(stage, cause).unwrap_err();
            let error = &problem.errors()[0];
            assert_eq!((problem.kind().status(), &*error.field, error.code), (400, field, "invalid_value"));
            assert!(error.detail.contains(one_of_them), "{}", error.detail);
        }
        for stage in STAGES {
            for cause in CAUSES {
                assert_eq!(asked(Some(stage), Some(cause)).unwrap().cause, cause);
            }
        }
    }

    #[test]
    fn a_shown_letter_has_ids_and_counts_and_nothing_personal() {
        let notification = Notification {
            id: vec![4; 16].into(),
            tenant: "acme".into(),
            template_id: "hello".into(),
            data: Bytes::from_static(br#"{"text": "canary-data"}"#),
            ..Default::default()
        };
        let address = Endpoint { address: "canary@example.org".into(), ..Default::default() };
        let inline = InlineRecipient { user_id: "canary-user".into(), endpoints: vec![address], ..Default::default() };
        let section = Section {
            notification: notification.encode_to_vec().into(),
            channel: 2,
            users: packed::pack(["canary-user"]),
            count: 1,
            inline: vec![inline],
            actor: Bytes::from_static(b"canary-actor"),
            attempts: 3,
        };
        let summary = SectionSummary { tenant: "acme".into(), count: 1, ..Default::default() };
        let envelope = Envelope { schema: Schema::DeliveryBatch as i32, sections: vec![summary], ..Default::default() };
        let letter = DeadLetter {
            envelope: envelope.encode_to_vec().into(),
            body: DeliveryBatch { sections: vec![section] }.encode_to_vec().into(),
            ..Default::default()
        };
        let shown = contents(&letter);
        assert!(shown.readable);
        assert_eq!((shown.sections[0].template_id.as_str(), shown.sections[0].instance_ids.len()), ("hello", 1));
        assert!(!format!("{shown:?}").contains("canary"), "{shown:?}");
        let broken = contents(&DeadLetter { body: Bytes::from_static(b"\xff"), ..letter });
        assert_eq!((broken.readable, broken.sections[0].instances), (false, 1));
    }
}
