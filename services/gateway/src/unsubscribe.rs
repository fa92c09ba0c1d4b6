//! One-click unsubscribe (RFC 8058): a POST opts out, without cookies or a key; a GET only asks.

use axum::{
    extract::{Path, State},
    response::{Html, IntoResponse, Response},
};
use herald_api::rejection::Rejection;
use herald_core::{ids::TenantId, policy::SIGNING_SECRET, problem::Problem, tokens::UnsubscribeToken};
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::service::Gateway;

/// `GET /v1/unsubscribe/{token}`: a page with a button. Scanners of mail follow links, so this changes nothing.
pub async fn page(State(gateway): State<Gateway>, Path(token): Path<String>) -> Result<Response, Rejection> {
    let (_, token) = match gateway.unsubscribe_token(&token) {
        Ok(found) => found,
        Err(answer) => return *answer,
    };
    let what = what(&token);
    let form = "<form method=\"post\"><button type=\"submit\">Unsubscribe</button></form>";
    Ok(html(StatusCode::OK, "Unsubscribe", &format!("<p>Stop receiving {what}?</p>{form}")))
}

/// `POST /v1/unsubscribe/{token}`: opts out at once, whatever the body says.
pub async fn act(State(gateway): State<Gateway>, Path(token): Path<String>) -> Result<Response, Rejection> {
    let (tenant, token) = match gateway.unsubscribe_token(&token) {
        Ok(found) => found,
        Err(answer) => return *answer,
    };
    gateway.opt_out(&tenant, &token).await?;
    let text = format!("<p>You will not receive {} any more.</p>", what(&token));
    Ok(html(StatusCode::OK, "You are unsubscribed", &text))
}

impl Gateway {
    fn unsubscribe_token(&self, text: &str) -> Result<(TenantId, UnsubscribeToken), Box<Result<Response, Rejection>>> {
        let policy = self.authenticator.policy();
        let Some(secret) = policy.secret(SIGNING_SECRET) else {
            let problem = Problem::unavailable("Links cannot be checked yet: the signing secret has not arrived.");
            return Err(Box::new(Err(problem.into())));
        };
        let token = UnsubscribeToken::verify(text, secret).ok();
        let found = token.and_then(|token| Some((policy.tenant_id(&token.tenant)?.clone(), token)));
        found.ok_or_else(|| {
            let text = "<p>The link is incomplete or not valid any more. Please copy it again from the message.</p>";
            Box::new(Ok(html(StatusCode::NOT_FOUND, "This link does not work", text)))
        })
    }

    async fn opt_out(&self, tenant: &TenantId, token: &UnsubscribeToken) -> Result<(), Problem> {
        let mut preferences = self.person(tenant, &token.user).await?.preferences;
        let channel = preferences.channels.entry(token.channel.clone()).or_default();
        if token.category.is_empty() {
            channel.enabled = Some(false);
        } else {
            channel.categories.insert(token.category.clone(), false);
        }
        self.store_preferences(tenant, &token.user, preferences, "unsubscribe").await?;
        Ok(())
    }
}

fn what(token: &UnsubscribeToken) -> String {
    let channel = match token.channel.as_str() {
        "email" => "mail",
        "push" => "push messages",
        _ => "messages",
    };
    if token.category.is_empty() {
        format!("this {channel}")
    } else {
        format!("{channel} about \u{201c}{}\u{201d}", escape(&token.category))
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn html(status: StatusCode, title: &str, body: &str) -> Response {
    let page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"robots\" content=\"noindex\"></head><body><main><h1>{title}</h1>{body}</main></body></html>\n"
    );
    let headers: [(HeaderName, HeaderValue); 3] = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; form-action 'self'; frame-ancestors 'none'"),
        ),
    ];
    (status, headers, Html(page)).into_response()
}
