//! A mail server that keeps nothing: it counts mails and notes when each of them came. It takes everything, unless it is in
//! another mood.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::sleep_until,
};

use crate::{report::times_us, watch::Watch};

const READ_BYTES: usize = 256 << 10;
const HELLO: &str = "250-sink\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n";

/// How the server behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mood {
    /// It takes everything.
    Takes,
    /// It takes no mail and answers none; a connection that has had one stays silent.
    Hangs,
    /// It closes every connection.
    Refuses,
    /// It asks to come back later with three mails of ten.
    Throttles,
    /// It takes everything, and answers each mail [`ANSWERS_AFTER`] it came.
    Slow,
}

/// How long a slow server lets its answers wait; it reads on meanwhile.
const ANSWERS_AFTER: Duration = Duration::from_millis(200);

impl Mood {
    const ALL: [Self; 5] = [Self::Takes, Self::Hangs, Self::Refuses, Self::Throttles, Self::Slow];
}

/// A running sink; it ends with the process.
pub struct Sink {
    /// Where it listens.
    pub address: SocketAddr,
    counts: Arc<Counts>,
}

struct Counts {
    mood: AtomicU8,
    attempts: AtomicU64,
    mails: AtomicU64,
    latencies: Latencies,
    watch: Option<Arc<Watch>>,
}

/// Times from when notifications were due, as [`due_text`] says, to now.
pub struct Latencies {
    began: Instant,
    /// By group.
    by_group_us: std::sync::Mutex<BTreeMap<usize, Histogram<u64>>>,
}

impl Latencies {
    /// None yet. Times in texts count from `began`.
    pub fn new(began: Instant) -> Self {
        Self { began, by_group_us: std::sync::Mutex::default() }
    }

    /// The times of a group, in microseconds.
    pub fn of(&self, group: usize) -> anyhow::Result<Histogram<u64>> {
        // The lock is held for counting only, so it cannot be poisoned by a panic.
        let groups = self.by_group_us.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        groups.get(&group).cloned().map_or_else(times_us, Ok)
    }

    /// Notes that a text has come, if it says when it was due.
    pub fn note(&self, text: &str, now: Instant) {
        let Some((group, due_us)) = group_and_due_us(text) else { return };
        let latency = (now.duration_since(self.began).as_micros() as u64).saturating_sub(due_us);
        let mut groups = self.by_group_us.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let std::collections::btree_map::Entry::Vacant(new) = groups.entry(group)
            && let Ok(times) = times_us()
        {
            new.insert(times);
        }
        groups.entry(group).and_modify(|times| times.saturating_record(latency));
    }
}

impl Sink {
    /// Listens on loopback. Times in subjects count from `began`.
    pub async fn start(began: Instant) -> anyhow::Result<Self> {
        Self::listen(began, None).await
    }

    /// Listens on loopback and notes for whom each mail is, which costs the sink more.
    pub async fn start_watched(watch: Arc<Watch>) -> anyhow::Result<Self> {
        Self::listen(Instant::now(), Some(watch)).await
    }

    async fn listen(began: Instant, watch: Option<Arc<Watch>>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let counts = Arc::new(Counts {
            mood: AtomicU8::new(Mood::Takes as u8),
            attempts: AtomicU64::new(0),
            mails: AtomicU64::new(0),
            latencies: Latencies::new(began),
            watch,
        });
        let shared = counts.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, shared.clone()));
            }
        });
        Ok(Self { address, counts })
    }

    /// Mails received.
    pub fn mails(&self) -> u64 {
        self.counts.mails.load(Relaxed)
    }

    /// Mails received, taken or not.
    pub fn attempts(&self) -> u64 {
        self.counts.attempts.load(Relaxed)
    }

    /// Behaves so from now on.
    pub fn is_now(&self, mood: Mood) {
        self.counts.mood.store(mood as u8, Relaxed);
    }

    /// The times from what [`due_text`] noted for a group to the receipt of its mails, in microseconds.
    pub fn latency_us(&self, group: usize) -> anyhow::Result<Histogram<u64>> {
        self.counts.latencies.of(group)
    }
}

/// A subject from which the sink knows whose the notification is and when it was due, in microseconds since it began.
pub fn due_text(group: usize, due_us: u64) -> String {
    format!("News of {group} due at {due_us}")
}

fn group_and_due_us(text: &str) -> Option<(usize, u64)> {
    let (_, said) = text.split_once("News of ")?;
    let (group, due_us) = said.split_once(" due at ")?;
    let digits = due_us.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(due_us.len());
    Some((group.parse().ok()?, due_us[..digits].parse().ok()?))
}

impl Counts {
    fn mood(&self) -> Mood {
        Mood::ALL[usize::from(self.mood.load(Relaxed)) % Mood::ALL.len()]
    }

    /// Takes one mail, or not. Returns what else is answered than that it was taken.
    fn take(&self, mail: &[u8], now: Instant) -> Option<&'static str> {
        let attempt = self.attempts.fetch_add(1, Relaxed);
        match self.mood() {
            Mood::Hangs => return Some(""),
            Mood::Throttles if attempt % 10 < 3 => return Some("451 4.7.1 slow down\r\n"),
            _ => {}
        }
        self.mails.fetch_add(1, Relaxed);
        let text = String::from_utf8_lossy(&mail[..mail.len().min(4_096)]);
        self.latencies.note(&text, now);
        if let Some(watch) = &self.watch {
            watch.came(&text, now);
        }
        None
    }

    /// Notes that mails were answered.
    fn answered(&self, mails: u64) {
        if let (Some(watch), 1..) = (&self.watch, mails) {
            watch.answered(mails, Instant::now());
        }
    }
}

/// Answers that are written later, and to how many mails.
struct Late {
    due: Instant,
    answers: Vec<u8>,
    mails: u64,
}

async fn serve(mut socket: TcpStream, counts: Arc<Counts>) -> std::io::Result<()> {
    if counts.mood() == Mood::Refuses {
        return Ok(());
    }
    socket.set_nodelay(true)?;
    socket.write_all(b"220 sink\r\n").await?;
    let (mut input, mut output) = (Vec::with_capacity(READ_BYTES), Vec::new());
    let (mut in_data, mut silent) = (false, false);
    let mut late: VecDeque<Late> = VecDeque::new();
    loop {
        let due = late.front().map(|late| late.due);
        tokio::select! {
            read = socket.read_buf(&mut input) => if read? == 0 {
                return Ok(());
            },
            () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                if let Some(Late { answers, mails, .. }) = late.pop_front() {
                    socket.write_all(&answers).await?;
                    counts.answered(mails);
                }
                continue;
            }
        }
        let (now, mut used, mut mails) = (Instant::now(), 0, 0);
        while let Some(step) = step(&input[used..], in_data) {
            mails += u64::from(step.mail.is_some());
            let refused = step.mail.and_then(|mail| counts.take(mail, now));
            silent |= refused == Some("");
            output.extend_from_slice(refused.unwrap_or(step.answer).as_bytes());
            used += step.used;
            in_data = step.in_data;
        }
        input.drain(..used);
        let mood = counts.mood();
        if mood == Mood::Refuses {
            return Ok(());
        }
        let is_slow = mood == Mood::Slow && mails > 0;
        if silent {
            output.clear();
        } else if is_slow || !late.is_empty() {
            let due = if is_slow { now + ANSWERS_AFTER } else { now };
            late.push_back(Late { due, answers: std::mem::take(&mut output), mails });
        } else {
            socket.write_all(&output).await?;
            counts.answered(mails);
            output.clear();
        }
    }
}

/// What one command, or the text of one mail, leads to.
#[derive(Debug, PartialEq, Eq)]
struct Step<'a> {
    used: usize,
    answer: &'static str,
    mail: Option<&'a [u8]>,
    in_data: bool,
}

/// Takes one command or mail off the input; `None` when more input is needed.
fn step(input: &[u8], in_data: bool) -> Option<Step<'_>> {
    const KEPT: &str = "250 2.0.0 ok\r\n";
    if in_data {
        let end = input.windows(5).position(|bytes| bytes == b"\r\n.\r\n")?;
        return Some(Step { used: end + 5, answer: KEPT, mail: Some(&input[..end]), in_data: false });
    }
    let end = input.iter().position(|byte| *byte == b'\n')? + 1;
    let line = String::from_utf8_lossy(&input[..end]).trim_end().to_ascii_uppercase();
    let (answer, in_data) = match line.split(' ').next() {
        Some("EHLO") => (HELLO, false),
        Some("DATA") => ("354 go on\r\n", true),
        Some("QUIT") => ("221 2.0.0 bye\r\n", false),
        _ => (KEPT, false),
    };
    let Some(chunk) = line.strip_prefix("BDAT ") else { return Some(Step { used: end, answer, mail: None, in_data }) };
    // A chunk that is not the last would be counted as a mail; Herald sends whole mails.
    let size: usize = chunk.split(' ').next()?.parse().ok()?;
    let mail = input.get(end..end + size)?;
    Some(Step { used: end + size, answer: KEPT, mail: Some(mail), in_data: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mails_of(input: &[u8]) -> (Vec<Vec<u8>>, usize) {
        let (mut used, mut in_data, mut mails) = (0, false, Vec::new());
        while let Some(step) = step(&input[used..], in_data) {
            used += step.used;
            in_data = step.in_data;
            mails.extend(step.mail.map(<[u8]>::to_vec));
        }
        (mails, used)
    }

    #[test]
    fn chunks_and_dots_end_mails() {
        let input = b"MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nBDAT 5 LAST\r\na\r\nb\nDATA\r\nHi\r\n.\r\nRSET\r\nBDAT 9 LAST\r\nhalf";
        let (mails, used) = mails_of(input);
        assert_eq!(mails, [b"a\r\nb\n".to_vec(), b"Hi".to_vec()]);
        assert!(input[used..].starts_with(b"BDAT 9"), "an unfinished chunk waits for the rest");
    }

    #[test]
    fn the_subject_says_when_a_mail_was_due() {
        let mail = format!("From: a@x\r\nSubject: {}\r\n\r\nText", due_text(7, 1_234));
        assert_eq!(group_and_due_us(&mail), Some((7, 1_234)));
        assert_eq!(group_and_due_us(&format!("{{\"title\":\"{}\"}}", due_text(1, 9))), Some((1, 9)));
        assert_eq!(group_and_due_us("Subject: News\r\n\r\n"), None);
    }
}
