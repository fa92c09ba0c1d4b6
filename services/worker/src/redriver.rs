//! The redriver: brings dead letters back as an operator ordered it, a page a commit.
//!
//! An order is a record, and so is what is left of it after a page: the log remembers how far it is. What a commit
//! brought back is told in the same commit, so each letter goes once, whatever is killed when.

use std::{sync::Arc, time::Duration};

use herald_core::{
    clock::World,
    dead_letters::{RedriveIndex, letters, read_letter, redrives, takes},
    outage::Outage,
    outputs::{Outputs, Wait},
    ports::log::{Commit, Committed, Log, LogError, Member, Position, Record, Subscription},
    record::{DeadLetter, Redrive, Schema},
};
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use crate::{
    outages::{of_log, wait_out},
    revive::{Books, revive},
};

/// Letters of one commit.
const MAX_LETTERS: usize = 32;

/// Instances of one commit, about.
const MAX_INSTANCES: u64 = 8_192;

/// Letters that one commit looks at.
const MAX_SCANNED: usize = 1_000;

/// Orders polled at once.
const POLL_RECORDS: usize = 16;

const IDLE_WAIT: Duration = Duration::from_millis(500);

struct Redriver {
    log: Arc<dyn Log>,
    world: World,
    subscription: Box<dyn Subscription>,
    index: RedriveIndex,
    outage: Outage,
    shutdown: CancellationToken,
}

/// A letter with the offset that is its id.
struct Found {
    offset: u64,
    letter: DeadLetter,
    books: Books,
}

/// What one commit brings back of an order.
#[derive(Default)]
struct Page {
    letters: Vec<Found>,
    skipped: u64,
    /// Where the next page begins.
    next: u64,
    complete: bool,
}

/// Runs one member of the role until `shutdown`.
pub async fn run(log: Arc<dyn Log>, world: World, member: Member, shutdown: CancellationToken) -> anyhow::Result<()> {
    let subscription = log.subscribe(herald_core::topic::Group::Redriver, member).await?;
    let (index, outage) = (RedriveIndex::default(), of_log("dead letters cannot be read; orders to redrive wait"));
    let mut redriver = Redriver { log, world, subscription, index, outage, shutdown };
    while !redriver.shutdown.is_cancelled() {
        let polled = tokio::select! {
            biased;
            () = redriver.shutdown.cancelled() => break,
            polled = redriver.subscription.poll(POLL_RECORDS, IDLE_WAIT) => polled,
        };
        match polled {
            Ok(polled) => {
                redriver.outage.answered(redriver.world.now_ms());
                for record in polled.or_halt()?.records {
                    redriver.take(record).await?;
                }
            }
            Err(error) => wait_out(&redriver.outage, error, &redriver.world).await?,
        }
    }
    Ok(())
}

impl Redriver {
    /// Takes a page of an order and commits it; passes over what only tells how far one is.
    async fn take(&mut self, record: Record) -> anyhow::Result<()> {
        let now_ms = self.world.now_ms();
        let mut outputs = {
            let identity = self.log.identity();
            Outputs::new(identity.layout, &identity.region, now_ms)
        };
        let mut told = None;
        if record.envelope.schema() == Schema::Redrive {
            match Redrive::decode(record.body.clone()) {
                Ok(order) => {
                    let Some(page) = self.page(&order).await? else { return Ok(()) };
                    told = put_out(order, page, now_ms, &mut outputs);
                }
                Err(error) => tracing::error!(offset = record.offset, %error, "an order to redrive cannot be read"),
            }
        }
        let position = Position { offset: record.offset + 1, ..Position::default() };
        let commit = Commit { positions: vec![(record.at, position)], outputs: outputs.finish() };
        Committed::or_halt(self.subscription.commit(commit).await)?;
        if let Some(told) = told {
            self.index.note(told);
        }
        Ok(())
    }

    /// The letters of the next page; `None` when the process stops.
    async fn page(&mut self, order: &Redrive) -> anyhow::Result<Option<Page>> {
        while !self.shutdown.is_cancelled() {
            let found = match self.catch_up().await {
                Ok(()) if order.letters.is_empty() => self.page_of_filter(order).await,
                Ok(()) => self.page_of_list(order).await,
                Err(error) => Err(error),
            };
            match found {
                Ok(page) => {
                    self.outage.answered(self.world.now_ms());
                    return Ok(Some(page));
                }
                Err(error) => wait_out(&self.outage, error, &self.world).await?,
            }
        }
        Ok(None)
    }

    /// Reads which letters were brought back, by whoever was here before too.
    async fn catch_up(&mut self) -> Result<(), LogError> {
        loop {
            let (records, next) = self.log.read(redrives(), self.index.next(), MAX_SCANNED).await?;
            if !self.index.read(&records, next) {
                return Ok(());
            }
        }
    }

    fn found(&self, offset: u64, letter: DeadLetter) -> Found {
        let books = if self.index.is_redriven(offset) { Books::CreateAnew } else { Books::TakeBack };
        Found { offset, letter, books }
    }

    async fn page_of_filter(&self, order: &Redrive) -> Result<Page, LogError> {
        let filter = order.filter.clone().unwrap_or_default();
        let mut page = Page { next: order.next, ..Page::default() };
        let (mut scanned, mut instances) = (0, 0);
        while scanned < MAX_SCANNED {
            let (records, next) = self.log.read(letters(), page.next, MAX_LETTERS).await?;
            if next == page.next {
                page.complete = true;
                break;
            }
            for record in &records {
                if page.letters.len() == MAX_LETTERS || instances >= room(order) {
                    return Ok(page);
                }
                scanned += 1;
                page.next = record.offset + 1;
                let Some(letter) = read_letter(record).filter(|letter| takes(&filter, record, letter)) else {
                    continue;
                };
                if self.index.is_redriven(record.offset) && !order.again {
                    page.skipped += 1;
                    continue;
                }
                instances += instances_of(&letter);
                page.letters.push(self.found(record.offset, letter));
            }
            page.next = next;
        }
        Ok(page)
    }

    async fn page_of_list(&self, order: &Redrive) -> Result<Page, LogError> {
        let mut page = Page { next: order.next, ..Page::default() };
        let mut instances = 0;
        for offset in order.letters.iter().skip(order.next as usize) {
            if page.letters.len() == MAX_LETTERS || instances >= room(order) {
                return Ok(page);
            }
            page.next += 1;
            let (records, _) = self.log.read(letters(), *offset, 1).await?;
            let letter = records.first().filter(|record| record.offset == *offset).and_then(read_letter);
            match letter.filter(|_| order.again || !self.index.is_redriven(*offset)) {
                Some(letter) => {
                    instances += instances_of(&letter);
                    page.letters.push(self.found(*offset, letter));
                }
                None => page.skipped += 1,
            }
        }
        page.complete = true;
        Ok(page)
    }
}

/// How many instances a page may have: what may go in a second, if that is limited.
fn room(order: &Redrive) -> u64 {
    match order.per_second {
        0 => MAX_INSTANCES,
        limited => u64::from(limited).min(MAX_INSTANCES),
    }
}

fn instances_of(letter: &DeadLetter) -> u64 {
    let envelope = herald_core::record::Envelope::decode(letter.envelope.clone()).unwrap_or_default();
    envelope.sections.iter().map(|section| u64::from(section.count).max(1)).sum()
}

/// Puts a page out: the letters' records, what was done, and what is left of the order. Returns what was done.
fn put_out(order: Redrive, page: Page, now_ms: u64, outputs: &mut Outputs) -> Option<Redrive> {
    let mut told = Redrive { next: page.next, complete: page.complete, ..order };
    told.skipped += page.skipped;
    let mut paced = 0;
    for Found { offset, letter, books } in page.letters {
        match revive(&letter, books, now_ms, outputs) {
            Some(instances) => {
                told.done.push(offset);
                told.redriven += 1;
                told.instances += instances;
                paced += instances;
            }
            None => told.skipped += 1,
        }
    }
    let body = |redrive: &Redrive| redrive.encode_to_vec().into();
    if !told.complete {
        let rest = Redrive { done: Vec::new(), ..told.clone() };
        let envelope = outputs.envelope(Schema::Redrive, "");
        match u64::from(told.per_second) {
            0 => outputs.record(redrives(), envelope, body(&rest)),
            limited => {
                let due_ms = now_ms + (paced * 1_000).div_ceil(limited);
                outputs.delayed(redrives(), Wait::until(due_ms), envelope, body(&rest));
            }
        }
    }
    // The list of letters is in the order, and need not be told with each page.
    told.letters.clear();
    outputs.record(redrives(), outputs.envelope(Schema::Redriven, ""), body(&told));
    Some(told)
}
