//! Nobody reaches another tenant: every route of the OpenAPI document and every method of the descriptors, with another
//! tenant's ids. Both lists come from the process, and so does what names something in a call: one without a case fails
//! the test.

mod calls;
mod cases;
mod live;
mod pages;
mod world;

use herald_api::descriptors;
use serde_json::{Value, json};

use self::{
    calls::{Came, Way, routes},
    cases::{Leads, cases, left_out},
    world::{Owned, World, text},
};
use crate::support::Setup;

#[tokio::test]
async fn no_route_and_no_method_reaches_another_tenant() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let _process = setup.start().await;
    let mut world = World::of_two(&setup).await;
    let owned = world.fill().await;
    let cases = cases(&owned);
    let methods = descriptors::methods();
    let mut ways: Vec<(String, Way)> = methods.iter().map(|m| (descriptors::short_name(m), Way::Grpc)).collect();
    ways.extend(routes(setup.port).await.0);
    for (name, _) in &ways {
        assert!(cases.iter().any(|case| case.0 == name), "{name} has no case: say what it must come to");
    }
    for case in &cases {
        assert!(ways.iter().any(|(name, _)| name == case.0), "{} is no method any more", case.0);
    }
    let left_out = left_out(&cases);
    assert!(
        left_out.is_empty(),
        "no case calls by these, or it is not said whether they name something: {left_out:#?}"
    );
    let before = world.everything(&owned).await;

    let bearer = |key: &str| format!("Bearer {key}");
    let (other, token) = (bearer(&world.other), bearer(&world.token));
    let (namesake, orphan) = (bearer(&world.namesake), bearer(&world.orphan));
    for case in &cases {
        for (_, way) in ways.iter().filter(|(name, _)| name == case.0) {
            let told = |came: &Came| format!("{case:?}: {came:?}");
            let came = world.call(way, case, &[]).await;
            assert!(matches!(came, Came::Unauthenticated), "without a key {}", told(&came));
            let came = world.call(way, case, &[("Authorization", &other), ("Herald-Tenant", "demo")]).await;
            assert!(matches!(came, Came::Forbidden), "another tenant named {}", told(&came));
            let came = world.call(way, case, &[("Authorization", &token)]).await;
            assert!(matches!(came, Came::Forbidden), "another user's token {}", told(&came));
            let came = world.call(way, case, &[("Authorization", &namesake), ("Herald-Tenant", "demo")]).await;
            assert!(matches!(came, Came::Forbidden), "another tenant's token that names this one {}", told(&came));
            let came = world.call(way, case, &[("Authorization", &namesake)]).await;
            let as_it_must = matches!(came, Came::Forbidden) || is_kept_apart(case.2, &came, &owned);
            assert!(as_it_must, "another tenant's token {}", told(&came));
            let came = world.call(way, case, &[("Authorization", &orphan)]).await;
            assert!(matches!(came, Came::Unauthenticated), "a token of a deleted key {}", told(&came));
        }
    }
    for case in &cases {
        for (_, way) in ways.iter().filter(|(name, _)| name == case.0) {
            let came = world.call(way, case, &[("Authorization", &other)]).await;
            if let Came::Otherwise(problem) = &came {
                panic!("{case:?}: {problem}");
            }
            let as_it_must = match (case.2, &came) {
                (Leads::Nowhere, Came::Unknown) | (Leads::Refused, Came::Forbidden) => true,
                (leads, came) => is_kept_apart(leads, came, &owned),
            };
            assert!(as_it_must, "{case:?}: {came:?}");
        }
    }
    all_of_the_other_is_over(&world).await;
    assert_eq!(world.everything(&owned).await, before, "something of another tenant has changed");
    for user in ["theirs", "ben"] {
        let edges = json!({"edges": [{"follower": user, "followee": "star"}]});
        assert_eq!(world.demo("POST", "/v1/follows:remove", Some(edges)).await["changed"], 1);
    }
    let users = json!({"user_ids": ["theirs", "ben"]});
    assert_eq!(world.demo("POST", "/v1/topics/theirs/subscribers:remove", Some(users)).await["changed"], 2);
}

/// Whether a call came to something of the caller's own, or to nothing since its page is another's.
fn is_kept_apart(leads: Leads, came: &Came, owned: &Owned) -> bool {
    match (leads, came) {
        (Leads::Foreign, Came::Foreign) | (Leads::HomeFeed, Came::Feed) => true,
        (Leads::Home, Came::Done(answer)) => !owned.is_told_in(answer),
        _ => false,
    }
}

/// Waits for all that the other tenant's calls have set going; it has reached nobody but its own.
async fn all_of_the_other_is_over(world: &World) {
    let other = world.other.as_str();
    let erasure = text(&world.by(other, "DELETE", "/v1/users/theirs", None).await["erasure_id"]);
    world.until(other, &format!("/v1/erasures/{erasure}"), |erasure| erasure["state"] == "complete").await;
    let are_complete = |list: &Value| {
        let requests = list["requests"].as_array().unwrap();
        // Each by both faces, but the one under an idempotency key, which is one and the same in all calls.
        requests.len() == 1 + 4 * 5 && requests.iter().all(|request| request["state"] == "complete")
    };
    world.until(other, "/v1/requests?page_size=1000", are_complete).await;
    // Whom it does not have it has not sent to: `ben` follows, is subscribed and is there for `demo` alone.
    let of_ben = world.by(other, "GET", "/v1/receipts?user_id=ben", None).await;
    assert_eq!(of_ben["receipts"], json!([]));
    assert_eq!(world.by(other, "GET", "/v1/users/ben/inbox", None).await["items"], json!([]));
}
