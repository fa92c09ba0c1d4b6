//! Who got a mail, how often, and when the first and the last came: what a switch does, seen from a mail server.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// What a mail server has seen of one notification.
#[derive(Default)]
pub struct Watch(Mutex<Seen>);

/// Mails and when they came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mails {
    /// That came.
    pub came: u64,
    /// Of these, that were answered.
    pub answered: u64,
    /// The people whom they were for.
    pub people: u64,
    /// When the first one came after [`Watch::expect`].
    pub first: Option<Instant>,
    /// When the last one came.
    pub last: Option<Instant>,
    /// When the last answer was written.
    pub last_answer: Option<Instant>,
}

#[derive(Default)]
struct Seen {
    mails: Mails,
    people: HashSet<u64>,
}

impl Watch {
    /// What was seen since [`Watch::restart`].
    pub fn mails(&self) -> Mails {
        let seen = self.seen();
        Mails { people: seen.people.len() as u64, ..seen.mails }
    }

    /// Forgets everything: another notification comes.
    pub fn restart(&self) {
        *self.seen() = Seen::default();
    }

    /// The next mail is the first.
    pub fn expect(&self) {
        self.seen().mails.first = None;
    }

    /// Notes a mail by the beginning of its text.
    pub fn came(&self, text: &str, now: Instant) {
        let person = person_of(text);
        let mut seen = self.seen();
        seen.mails.came += 1;
        seen.mails.first.get_or_insert(now);
        // Connections may be some microseconds out of order.
        seen.mails.last = seen.mails.last.max(Some(now));
        seen.people.extend(person);
    }

    /// Notes answers.
    pub fn answered(&self, mails: u64, now: Instant) {
        let mut seen = self.seen();
        seen.mails.answered += mails;
        seen.mails.last_answer = seen.mails.last_answer.max(Some(now));
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // The lock is held for counting only, so it cannot be poisoned by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of whom a mail is for, from its header.
fn person_of(text: &str) -> Option<u64> {
    let (_, to) = text.split_once("\r\nTo: ")?;
    let (to, _) = to.split_once("\r\n")?;
    let (_, number) = to.split_once("user-")?;
    number.split_once('@')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mails_and_people_are_counted_apart_and_the_first_is_the_next() {
        let (watch, now) = (Watch::default(), Instant::now());
        let mail = |number: u64| format!("From: a@x\r\nTo: <user-{number}@example.org>\r\nSubject: News\r\n\r\nText");
        watch.came(&mail(1), now);
        watch.came(&mail(2), now);
        watch.expect();
        let later = now + std::time::Duration::from_secs(1);
        watch.came(&mail(2), later);
        watch.answered(2, later);
        let seen =
            Mails { came: 3, answered: 2, people: 2, first: Some(later), last: Some(later), last_answer: Some(later) };
        assert_eq!(watch.mails(), seen);
        watch.restart();
        assert_eq!(watch.mails(), Mails::default());
    }
}
