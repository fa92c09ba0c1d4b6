//! Switches: set on both faces, refused where they would do nothing, and told when everybody runs them.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use herald_core::{
    ports::fleet::{Fleet, ProcessReport},
    switches::{SwitchState, Traffic},
};
use herald_proto::v1::{self, admin_server::Admin};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    bootstrap::{DEV_ADMIN_KEY, DEV_KEY},
    face_tests::{Face, face, grpc_request},
    grpc,
};

fn report(process: &str, version: u64) -> ProcessReport {
    let versions = [("worker".to_owned(), version), ("orchestrator".to_owned(), u64::MAX)].into();
    ProcessReport { process: process.into(), seen_ms: 0, versions, reads_level: 1 }
}

async fn with_template() -> Face {
    let face = face().await;
    let template = json!({"channels": {"in_app": {"body": "Hi"}}});
    assert_eq!(face.as_key(DEV_KEY, "PUT", "/v1/templates/hi", template).await.0, 200);
    face
}

impl Face {
    async fn put(&self, body: Value) -> (u16, Value) {
        let (status, answer) = self.as_key(DEV_ADMIN_KEY, "PUT", "/v1/admin/switches", body).await;
        (status.as_u16(), answer)
    }

    fn state(&self, tenant: &str, template: &str, channel: Option<&str>) -> SwitchState {
        let traffic = Traffic { tenant, template, channel, provider: None, region: "r" };
        self.process.publisher.policy().switch_state(&traffic, 1_000_000)
    }
}

#[tokio::test(start_paused = true)]
async fn a_switch_is_set_replaced_listed_and_removed() {
    let face = with_template().await;
    face.fleet.report(report("p1", u64::MAX)).await.unwrap();
    let scope = json!({"tenant": "demo", "template": "hi"});
    let (status, held) = face.put(json!({"scope": scope, "state": "hold", "reason": "too many"})).await;
    assert_eq!(status, 200, "{held}");
    assert_eq!(held["applied"], json!({"processes": 1, "of": 1, "after_ms": 0, "missing": []}));
    assert_eq!(held["queued"], json!({"instances": 8, "at_least": false}));
    face.process.until("it holds", |policy| policy.switches().len() == 1).await;
    assert_eq!(face.state("demo", "hi", None), SwitchState::Hold);
    assert_eq!((face.state("demo", "other", None), face.state("acme", "hi", None)), (SwitchState::On, SwitchState::On));

    let (_, off) = face.put(json!({"scope": scope, "state": "off"})).await;
    assert_eq!(off["id"], held["id"], "one scope has one switch");
    let (_, all) = face.put(json!({"scope": {"all": true, "template": null}, "state": "slow"})).await;
    assert_ne!(all["id"], held["id"]);
    face.process.until("both are there", |policy| policy.switches().len() == 2).await;
    assert_eq!((face.state("demo", "hi", None), face.state("x", "y", None)), (SwitchState::Off, SwitchState::Slow));

    let (_, listed) = face.as_key(DEV_ADMIN_KEY, "GET", "/v1/admin/switches?page_size=1", Value::Null).await;
    let next = format!("/v1/admin/switches?page_token={}", listed["next_page_token"].as_str().unwrap());
    let (_, rest) = face.as_key(DEV_ADMIN_KEY, "GET", &next, Value::Null).await;
    assert_eq!((listed["switches"].as_array().unwrap().len(), rest["switches"].as_array().unwrap().len()), (1, 1));
    let both = [&listed["switches"][0], &rest["switches"][0]];
    let hi = both.into_iter().find(|switch| switch["id"] == held["id"]).unwrap();
    assert_eq!(
        (&hi["state"], &hi["set_by"], &hi["scope"]["template"]),
        (&json!("off"), &json!("dev_admin"), &json!("hi"))
    );

    let path = format!("/v1/admin/switches/{}", held["id"].as_str().unwrap());
    assert_eq!(face.as_key(DEV_ADMIN_KEY, "DELETE", &path, Value::Null).await.0, 200);
    // Behind what says so is a record without a body, with which the topic forgets it.
    let published = face.log.published();
    let [.., says_so, gone] = published.as_slice() else { panic!("{published:?}") };
    assert!(says_so.deleted && says_so.version > 0 && says_so.key == gone.key, "{published:?}");
    assert!(gone.deleted && gone.version == 0, "{published:?}");
    face.process.until("it is gone", |policy| policy.switches().len() == 1).await;
    assert_eq!(face.state("demo", "hi", None), SwitchState::Slow);
    assert_eq!(face.as_key(DEV_ADMIN_KEY, "DELETE", &path, Value::Null).await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn what_would_do_nothing_is_refused_with_its_field() {
    let face = with_template().await;
    let off = |scope: Value| json!({"scope": scope, "state": "off"});
    for (body, status, field) in [
        (json!({"state": "off"}), 400, "scope"),
        (off(json!({})), 400, "scope"),
        (off(json!({"all": false})), 400, "scope"),
        (off(json!({"all": true, "tenant": "demo"})), 400, "scope.all"),
        (off(json!({"chanel": "email"})), 400, "scope.chanel"),
        (off(json!({"channel": "fax"})), 400, "scope.channel"),
        (json!({"scope": {"all": true}}), 400, "state"),
        (json!({"scope": {"all": true}, "state": "paused"}), 400, "state"),
        (json!({"scope": {"all": true}, "state": "off", "reason": "a\u{0}b"}), 400, "reason"),
        // The clock of these tests stands at 1970-01-01T00:16:40Z.
        (json!({"scope": {"all": true}, "state": "off", "expires_at": "1970-01-01T00:16:40Z"}), 400, "expires_at"),
        (off(json!({"tenant": "nobody"})), 422, "scope.tenant"),
        (off(json!({"template": "bye"})), 422, "scope.template"),
        (off(json!({"tenant": "demo", "template": "bye"})), 422, "scope.template"),
        (off(json!({"provider": "pigeon"})), 422, "scope.provider"),
        (off(json!({"region": "elsewhere"})), 422, "scope.region"),
    ] {
        let (answered, problem) = face.put(body.clone()).await;
        assert_eq!((answered, &problem["errors"][0]["field"]), (status, &json!(field)), "{body}: {problem}");
        if status == 422 {
            assert_eq!(problem["code"], "scope_matches_nothing");
        }
    }
    assert!(face.process.publisher.policy().switches().is_empty());
    face.fleet.report(report("p1", u64::MAX)).await.unwrap();
    for scope in
        [json!({"template": "hi"}), json!({"provider": "smtp"}), json!({"channel": "push"}), json!({"region": "r"})]
    {
        assert_eq!(face.put(off(scope.clone())).await.0, 200, "{scope}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_answer_names_who_does_not_run_it_yet() {
    let face = with_template().await;
    face.fleet.report(report("fast", u64::MAX)).await.unwrap();
    face.fleet.report(report("slow", 0)).await.unwrap();
    let began = tokio::time::Instant::now();
    let (status, answer) = face.put(json!({"scope": {"all": true}, "state": "off"})).await;
    assert_eq!((status, &answer["applied"]["processes"], &answer["applied"]["of"]), (200, &json!(1), &json!(2)));
    assert_eq!(answer["applied"]["missing"], json!(["slow (worker)"]));
    assert!(began.elapsed() < Duration::from_secs(3), "it does not wait for ever");

    let (deps, fleet) = (face.deps.clone(), face.fleet.clone());
    let admin = grpc::AdminService::new(deps);
    let scope = v1::SwitchScope { all: Some(true), ..Default::default() };
    let put = v1::PutSwitchRequest { scope: Some(scope), state: "hold".into(), ..Default::default() };
    let catches_up = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        fleet.report(report("slow", u64::MAX)).await.unwrap();
    };
    let (answer, ()) = tokio::join!(admin.put_switch(grpc_request(DEV_ADMIN_KEY, put)), catches_up);
    let applied = answer.unwrap().into_inner().applied.unwrap();
    assert_eq!((applied.processes, applied.of, applied.missing.len()), (2, 2, 0));
    assert!((300..400).contains(&applied.after_ms), "{applied:?}");
}

#[tokio::test(start_paused = true)]
async fn a_switch_works_with_every_store_down() {
    let face = with_template().await;
    face.fleet.report(report("p1", u64::MAX)).await.unwrap();
    face.ledger.away.store(true, SeqCst);
    let (status, answer) = face.put(json!({"scope": {"tenant": "demo"}, "state": "off"})).await;
    assert_eq!((status, &answer["queued"]), (200, &json!({"instances": 0, "at_least": true})));
    face.process.until("it is off", |policy| policy.switches().len() == 1).await;
    assert_eq!(face.log.published().last().unwrap().kind, "switch");
    let (_, listed) = face.as_key(DEV_ADMIN_KEY, "GET", "/v1/admin/switches", Value::Null).await;
    assert_eq!(listed["switches"][0]["state"], "off");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_long_for_a_store_that_does_not_answer() {
    let face = with_template().await;
    face.fleet.report(report("p1", u64::MAX)).await.unwrap();
    face.ledger.silent.store(true, SeqCst);
    for scope in [json!({"tenant": "demo"}), json!({"all": true})] {
        let began = Instant::now();
        let (status, answer) = face.put(json!({"scope": scope, "state": "off"})).await;
        assert_eq!((status, &answer["queued"]), (200, &json!({"instances": 0, "at_least": true})));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
    face.process.until("both are there", |policy| policy.switches().len() == 2).await;
    let began = Instant::now();
    let (_, listed) = face.as_key(DEV_ADMIN_KEY, "GET", "/v1/admin/switches", Value::Null).await;
    assert_eq!(listed["switches"].as_array().unwrap().len(), 2);
    assert!(began.elapsed() < Duration::from_secs(3), "once for all of them: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_expired_switch_has_no_effect_and_is_shown_as_such() {
    let face = with_template().await;
    // The clock stands, so the row is written as one that was set before.
    let row = json!({"scope": {"tenant": "demo"}, "state": "off", "expires_ms": 999_999, "set_ms": 1}).to_string();
    let publisher = &face.process.publisher;
    publisher.put_log_first("switch", vec![("sw_old".to_owned(), Some(row.into()))]).await.unwrap();
    face.process.until("it is there", |policy| policy.switches().len() == 1).await;
    assert_eq!(face.state("demo", "hi", None), SwitchState::On);
    let (_, listed) = face.as_key(DEV_ADMIN_KEY, "GET", "/v1/admin/switches", Value::Null).await;
    assert_eq!((&listed["switches"][0]["expired"], &listed["switches"][0]["queued"]), (&json!(true), &Value::Null));
}

#[tokio::test(start_paused = true)]
async fn a_cancel_is_forgotten_when_nothing_of_it_can_be_sent_any_more() {
    let face = with_template().await;
    let publisher = face.process.publisher.clone();
    let row = |until_ms: u64| json!({"tenant_id": "demo", "cancelled_ms": 1, "until_ms": until_ms}).to_string();
    let [over, remembered] = [1u8, 2].map(|n| herald_core::ids::NotificationId([n; 16]));
    // The clock stands at a million.
    let cancels = [(over, 1_000_000), (remembered, 1_000_001)];
    let cancels = cancels.map(|(id, until_ms)| (id.to_string(), Some(row(until_ms).into())));
    publisher.put_log_first("cancel", cancels.to_vec()).await.unwrap();
    face.process.until("both are there", |policy| policy.cancels().len() == 2).await;
    let sweeping = tokio::spawn(crate::publisher::sweep_until(publisher, Duration::from_secs(60), Default::default()));
    face.process.until("one is forgotten", |policy| policy.cancels().len() == 1).await;
    sweeping.abort();
    assert!(face.process.publisher.policy().cancel("demo", &remembered).is_some());
}
