//! Steering: one notification goes to everyone by mail, and in the middle of it an operator holds, switches off or cancels
//! it. What that does is told from the mail server's point of view, once for one that answers at once and once for a slow one,
//! which has a full window of unanswered mails when the call comes. In the end the books are proven against what the server
//! has.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use herald_proto::v1::{
    Applied, Audience, CancelRequest, EmailTemplate, GetStatusRequest, NotifyRequest, PutSwitchRequest,
    PutTemplateRequest, RequestStatus, SwitchScope, TemplateChannels,
};
use tokio::time::sleep;

use crate::{
    Common,
    api::{ADMIN_KEY, Api, DEV_KEY, connect},
    memory::register,
    process::Herald,
    report::Report,
    sink::{Mood, Sink},
    watch::{Mails, Watch},
};

/// The call comes when a tenth of the mails has come, or after this time.
const LATEST_CALL: Duration = Duration::from_secs(3);

/// No mail for so long means that the sending has stopped.
const QUIET: Duration = Duration::from_secs(2);

/// How long a notification may take to begin and to stop.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long neither a mail may come nor the books move before the run fails.
const STANDSTILL: Duration = Duration::from_secs(60);

/// How often the mail server is asked what it has.
const LOOK: Duration = Duration::from_millis(2);

/// How often the status is asked for.
const POLL: Duration = Duration::from_millis(200);

/// What is sent.
#[derive(Args, Clone)]
pub struct Load {
    /// Registered users, who are all notified.
    #[arg(long, default_value_t = 1_000_000)]
    recipients: u64,
}

/// What the operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Hold,
    Off,
    Cancel,
}

impl Stop {
    const ALL: [Self; 3] = [Self::Hold, Self::Off, Self::Cancel];

    fn name(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Off => "off",
            Self::Cancel => "cancel",
        }
    }

    /// What the books call those who got nothing, and the state in which the notification ends.
    fn ending(self) -> (Option<&'static str>, &'static str) {
        match self {
            Self::Hold => (None, "complete"),
            Self::Off => (Some("killed"), "complete"),
            Self::Cancel => (Some("cancelled"), "cancelled"),
        }
    }
}

/// Registers people, and measures each kind of stop with each kind of mail server in one process.
pub async fn run(common: &Common, load: &Load, report: &mut Report) -> anyhow::Result<()> {
    let watch = Arc::new(Watch::default());
    let sink = Sink::start_watched(watch.clone()).await?;
    let email = format!("email.url=smtp://{}?tls=off", sink.address);
    let herald = Herald::start(&common.binary, &[&email]).await?;
    let channel = connect(herald.address).await?;
    let (tenant, operator) = (Api::new(channel.clone(), DEV_KEY)?, Api::new(channel, ADMIN_KEY)?);
    put_template(&tenant).await?;
    register(&tenant, load.recipients).await?;
    let run = Run { tenant, operator, sink, watch, recipients: load.recipients };
    for (server, mood) in [("fast", Mood::Takes), ("slow", Mood::Slow)] {
        for stop in Stop::ALL {
            eprintln!("pid {}: {} with a {server} mail server", herald.pid(), stop.name());
            run.once(stop, mood, &format!("{server}, {}", stop.name()), report).await?;
        }
    }
    herald.stop().await
}

async fn put_template(api: &Api) -> anyhow::Result<()> {
    let email = EmailTemplate { subject: Some("News".into()), text: Some("For {{user.id}}.".into()), html: None };
    let channels = TemplateChannels { email: Some(email), ..Default::default() };
    let template = PutTemplateRequest { template_id: "news".into(), channels: Some(channels), ..Default::default() };
    api.templates().put_template(template).await?;
    Ok(())
}

/// What the runs share.
struct Run {
    tenant: Api,
    operator: Api,
    sink: Sink,
    watch: Arc<Watch>,
    recipients: u64,
}

impl Run {
    /// Sends, stops it in the middle, lets go what was held, and proves the books.
    async fn once(&self, stop: Stop, mood: Mood, name: &str, report: &mut Report) -> anyhow::Result<()> {
        self.sink.is_now(mood);
        self.watch.restart();
        let request_id = self.notify().await?;
        self.wait_for_the_middle().await?;

        let (called, at_call) = (Instant::now(), self.watch.mails());
        let applied = match stop {
            Stop::Hold | Stop::Off => Some(self.switch(stop.name()).await?),
            Stop::Cancel => {
                self.cancel(&request_id).await?;
                None
            }
        };
        let (answer, at_answer) = (called.elapsed(), self.watch.mails());
        let stopped = self.wait_for_quiet(called).await?;
        let after_call =
            |at: Option<Instant>| millis(at.map_or(Duration::ZERO, |at| at.saturating_duration_since(called)));
        report.add(format!("{name}: call to last mail"), "ms", after_call(stopped.last));
        if mood == Mood::Slow {
            report.add(format!("{name}: call to last answer of the server"), "ms", after_call(stopped.last_answer));
            let unanswered = at_call.came - at_call.answered;
            report.add(format!("{name}: mails unanswered at the call"), "mails", unanswered as f64);
        }
        report.add(format!("{name}: call to its answer"), "ms", millis(answer));
        report.add(format!("{name}: mails after its answer"), "mails", (stopped.came - at_answer.came) as f64);
        if let Some(Applied { after_ms, missing, .. }) = applied {
            report.add(format!("{name}: applied, by its answer"), "ms", f64::from(after_ms));
            report.add(format!("{name}: processes missing in it"), "", missing.len() as f64);
        }
        if stop == Stop::Hold {
            report.add(format!("{name}: lifted to first mail"), "ms", millis(self.lift().await?));
            // What was held would take a slow server long; how soon it begins is known.
            self.sink.is_now(Mood::Takes);
        }
        self.prove(stop, &request_id).await?;
        if stop == Stop::Off {
            self.switch("on").await?;
        }
        Ok(())
    }

    async fn notify(&self) -> anyhow::Result<String> {
        let request = NotifyRequest {
            template_id: "news".into(),
            audience: Some(Audience { everyone: Some(true), ..Default::default() }),
            ..Default::default()
        };
        Ok(self.tenant.notifications().notify(request).await?.into_inner().request_id)
    }

    /// As an operator would who sees that mails go wrong: for all mail.
    async fn switch(&self, state: &str) -> anyhow::Result<Applied> {
        let request = PutSwitchRequest {
            scope: Some(SwitchScope { channel: Some("email".into()), ..Default::default() }),
            state: state.into(),
            reason: "a measurement".into(),
            expires_at: None,
        };
        Ok(self.operator.admin().put_switch(request).await?.into_inner().applied.unwrap_or_default())
    }

    async fn cancel(&self, request_id: &str) -> anyhow::Result<()> {
        let request = CancelRequest { request_id: Some(request_id.into()), ..Default::default() };
        self.tenant.notifications().cancel(request).await?;
        Ok(())
    }

    async fn wait_for_the_middle(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let mails = self.watch.mails();
            let sending = mails.first.map_or(Duration::ZERO, |first| first.elapsed());
            if mails.came >= self.recipients / 10 || sending >= LATEST_CALL {
                return Ok(());
            }
            anyhow::ensure!(began.elapsed() < PATIENCE, "no mail comes");
            sleep(LOOK).await;
        }
    }

    /// Returns once nothing has come or was answered for a while.
    async fn wait_for_quiet(&self, called: Instant) -> anyhow::Result<Mails> {
        loop {
            let mails = self.watch.mails();
            let moved = mails.last.max(mails.last_answer).max(Some(called));
            if moved.is_none_or(|moved| moved.elapsed() >= QUIET) {
                return Ok(mails);
            }
            anyhow::ensure!(called.elapsed() < PATIENCE, "mails came on and on: {mails:?}");
            sleep(LOOK).await;
        }
    }

    /// Lets go what is held; returns the time from the call to the first mail.
    async fn lift(&self) -> anyhow::Result<Duration> {
        self.watch.expect();
        let called = Instant::now();
        self.switch("on").await?;
        loop {
            if let Some(first) = self.watch.mails().first {
                return Ok(first.saturating_duration_since(called));
            }
            anyhow::ensure!(called.elapsed() < PATIENCE, "nothing comes after the hold was lifted");
            sleep(LOOK).await;
        }
    }

    /// Reads the status until it proves what the mail server has.
    async fn prove(&self, stop: Stop, request_id: &str) -> anyhow::Result<()> {
        let (mut moved, mut before) = (Instant::now(), None);
        loop {
            let request = GetStatusRequest { request_id: request_id.into() };
            let status = self.tenant.notifications().get_status(request).await?.into_inner();
            let mails = self.watch.mails();
            let Err(lack) = proven(stop, self.recipients, &status, mails) else { return Ok(()) };
            let now = Some((status.instances.clone(), mails));
            if now != before {
                (moved, before) = (Instant::now(), now);
            }
            anyhow::ensure!(moved.elapsed() < STANDSTILL, "the books are not proven: {lack}; {status:?}, {mails:?}");
            sleep(POLL).await;
        }
    }
}

/// Whether a status and a mail server prove together that everybody is accounted for; otherwise what is lacking.
fn proven(stop: Stop, recipients: u64, status: &RequestStatus, mails: Mails) -> Result<(), String> {
    let (cause, state) = stop.ending();
    let books = status.instances.clone().unwrap_or_default();
    let [accepted, delivered] = [books.accepted, books.delivered].map(u64::from);
    let kept_back = cause.and_then(|cause| books.suppressed.get(cause)).copied().map_or(0, u64::from);
    let all_have = stop != Stop::Hold || delivered == recipients;
    let lack = [
        (status.state == state && status.books_balanced, "it has not ended"),
        (accepted == delivered + kept_back, "there are other ends than these"),
        (accepted <= recipients && all_have, "it went to more or to fewer people"),
        (
            cause.is_none() || kept_back > 0 || accepted < recipients,
            "nothing was left to be stopped; take more --recipients",
        ),
        (mails.came == mails.people, "somebody got it twice"),
        (mails.came == delivered && mails.answered == delivered, "the mail server has others than the books"),
    ];
    lack.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, lack)| Err(lack.to_owned()))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

#[cfg(test)]
mod tests {
    use herald_proto::v1::Instances;

    use super::*;

    fn ended(state: &str, delivered: u32, suppressed: &[(&str, u32)]) -> RequestStatus {
        let suppressed: std::collections::HashMap<String, u32> =
            suppressed.iter().map(|(cause, count)| ((*cause).to_owned(), *count)).collect();
        let accepted = delivered + suppressed.values().sum::<u32>();
        let instances =
            Instances { accepted, delivered, suppressed: suppressed.into_iter().collect(), ..Default::default() };
        RequestStatus { state: state.into(), books_balanced: true, instances: Some(instances), ..Default::default() }
    }

    fn mails(came: u64, people: u64) -> Mails {
        Mails { came, answered: came, people, ..Mails::default() }
    }

    #[test]
    fn what_was_held_must_reach_everybody_once() {
        let check = |status: &RequestStatus, mails| proven(Stop::Hold, 10, status, mails);
        assert_eq!(check(&ended("complete", 10, &[]), mails(10, 10)), Ok(()));
        assert!(check(&ended("complete", 9, &[]), mails(9, 9)).is_err(), "one is lost");
        assert!(check(&ended("complete", 10, &[]), mails(11, 10)).is_err(), "one came twice");
        assert!(check(&ended("complete", 9, &[("killed", 1)]), mails(9, 9)).is_err(), "hold ends nothing");
        assert!(check(&ended("held", 10, &[]), mails(10, 10)).is_err());
    }

    #[test]
    fn what_was_stopped_must_add_up_with_what_came() {
        let check = |status: &RequestStatus, mails| proven(Stop::Cancel, 10, status, mails);
        assert_eq!(check(&ended("cancelled", 4, &[("cancelled", 3)]), mails(4, 4)), Ok(()));
        assert!(check(&ended("cancelled", 4, &[("cancelled", 3)]), mails(5, 5)).is_err(), "one more than was booked");
        assert!(check(&ended("cancelled", 4, &[("killed", 3)]), mails(4, 4)).is_err(), "another end");
        assert!(check(&ended("cancelled", 10, &[]), mails(10, 10)).is_err(), "too late");
        let unanswered = Mails { answered: 3, ..mails(4, 4) };
        assert!(check(&ended("cancelled", 4, &[("cancelled", 3)]), unanswered).is_err());
    }
}
