//! The pages that need no key: what they tell, and that an unsubscribe link reaches one tenant's user alone.

use serde_json::{Value, json};

use super::{
    calls::routes,
    world::{CANARY, Owned, World, text},
};
use crate::{http::send, support::Setup};

/// What a page is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// The process or the API: nothing of any tenant.
    Nobody,
    /// Whom its link is for.
    WhoeverIsInTheLink,
}

/// A case for each route that needs no key.
const PAGES: [(&str, &str, About); 8] = [
    ("GET", "/v1/unsubscribe/{token}", About::WhoeverIsInTheLink),
    ("POST", "/v1/unsubscribe/{token}", About::WhoeverIsInTheLink),
    ("GET", "/problems/{code}", About::Nobody),
    ("GET", "/openapi.json", About::Nobody),
    ("GET", "/docs", About::Nobody),
    ("GET", "/healthz", About::Nobody),
    ("GET", "/readyz", About::Nobody),
    ("GET", "/metrics", About::Nobody),
];

#[tokio::test]
async fn no_page_tells_of_a_tenant_and_a_link_is_for_one_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&directory.path().join("data"));
    let _process = setup.start().await;
    let mut world = World::of_two(&setup).await;
    let owned = world.fill().await;
    let (_, pages) = routes(setup.port).await;
    for (method, path) in &pages {
        assert!(
            PAGES.iter().any(|case| (case.0, case.1) == (method.as_str(), path.as_str())),
            "{method} {path} has no case"
        );
    }
    for (method, path, about) in PAGES {
        assert!(pages.iter().any(|page| (page.0.as_str(), page.1.as_str()) == (method, path)), "no {method} {path}");
        if about == About::Nobody {
            tells_nothing(&world, &owned, method, &path.replace("{code}", "not_found")).await;
        }
    }

    let demos = link(&world, "hk_dev_demo", CANARY).await;
    let others = link(&world, &world.other, "news").await;
    let preferences = async |key: &str| world.by(key, "GET", "/v1/users/theirs/preferences", None).await;
    let (of_demo, of_other) = (preferences("hk_dev_demo").await, preferences(&world.other).await);

    // Neither is what somebody made of both, with or without a key of the tenant that it would reach.
    let ((demos_payload, demos_mac), (others_payload, others_mac)) = (parts(&demos), parts(&others));
    let made = [format!("{demos_payload}.{others_mac}"), format!("{others_payload}.{demos_mac}")];
    for token in &made {
        for method in ["GET", "POST"] {
            let answer = visit(&world, method, token, &[("Authorization", "Bearer hk_dev_demo")]).await;
            assert_eq!(answer.0, 404, "{method} {token}: {}", answer.1);
            assert!(!owned.is_told_in(&answer.1), "{}", answer.1);
        }
    }
    let (status, asks) = visit(&world, "GET", &others, &[]).await;
    assert!(status == 200 && asks.contains("news") && !owned.is_told_in(&asks), "{asks}");
    assert_eq!([&of_demo, &of_other], [&preferences("hk_dev_demo").await, &preferences(&world.other).await]);

    // A link says itself whose it is, whatever else the call says.
    let headers = [("Authorization", "Bearer hk_dev_demo"), ("Herald-Tenant", "demo")];
    let (status, told) = visit(&world, "POST", &others, &headers).await;
    assert!(status == 200 && !owned.is_told_in(&told), "{told}");
    assert_eq!(preferences("hk_dev_demo").await, of_demo, "another tenant's user was opted out");
    let opted_out = preferences(&world.other).await;
    assert_eq!(opted_out["channels"]["in_app"]["categories"], json!({"news": false}), "{opted_out}");

    let bearer = format!("Bearer {}", world.other);
    let (status, _) = visit(&world, "POST", &demos, &[("Authorization", &bearer)]).await;
    assert_eq!(status, 200);
    assert_eq!(preferences(&world.other).await, opted_out, "another tenant's user was opted out");
    assert_eq!(preferences("hk_dev_demo").await["channels"]["in_app"]["categories"], json!({CANARY: false}));
}

async fn tells_nothing(world: &World, owned: &Owned, method: &str, path: &str) {
    let answer = send(world.port, method, path, &[], None).await;
    assert_eq!(answer.status, 200, "{method} {path}");
    assert!(!owned.is_told_in(&answer.body), "{method} {path} tells of a tenant: {}", answer.body);
}

/// Calls an unsubscribe link; returns the status and the page.
async fn visit(world: &World, method: &str, token: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let answer = send(world.port, method, &format!("/v1/unsubscribe/{token}"), headers, None).await;
    (answer.status, answer.body)
}

/// The token of the unsubscribe link that a tenant's user `theirs` gets with an item of a category.
async fn link(world: &World, key: &str, category: &str) -> String {
    let template =
        json!({"category": category, "channels": {"in_app": {"title": "link", "body": "{{unsubscribe_url}}"}}});
    world.by(key, "PUT", "/v1/templates/link", Some(template)).await;
    world.by(key, "PATCH", "/v1/users/theirs", Some(json!({"locale": "en"}))).await;
    let notify = json!({"template_id": "link", "audience": {"users": ["theirs"]}});
    world.by(key, "POST", "/v1/notify", Some(notify)).await;
    let newest_is_it = |inbox: &Value| inbox["items"][0]["title"] == "link";
    let inbox = world.until(key, "/v1/users/theirs/inbox", newest_is_it).await;
    let url = text(&inbox["items"][0]["body"]);
    url.rsplit_once("/v1/unsubscribe/").unwrap().1.to_owned()
}

/// The payload of a token with its purpose, and its mac.
fn parts(token: &str) -> (&str, &str) {
    token.split_once('.').unwrap()
}
