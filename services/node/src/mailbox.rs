//! The pages of the development mailbox: what the built-in SMTP server has received.

use std::{sync::Arc, time::SystemTime};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{Html, IntoResponse, Response},
    routing::get,
};
use herald_channels::email::mailbox::{MailStore, StoredMail, decode};
use serde::Deserialize;
use serde_json::json;

const PAGE: usize = 100;

/// `/mailbox` for people, `/mailbox.json` for scripts.
pub fn router(store: Arc<MailStore>) -> Router {
    Router::new()
        .route("/mailbox", get(list_page))
        .route("/mailbox/{id}", get(mail_page))
        .route("/mailbox.json", get(list_json))
        .with_state(store)
}

#[derive(Deserialize)]
struct Before {
    before: Option<u64>,
}

async fn list_page(State(store): State<Arc<MailStore>>, Query(query): Query<Before>) -> Html<String> {
    let (page, counts) = (store.list(query.before, PAGE), store.counts());
    let rows: String = page
        .mails
        .iter()
        .map(|mail| {
            let (id, to, subject) = (mail.id, escape(&mail.rcpt_to.join(", ")), escape(&mail.subject));
            format!("<tr><td>{}</td><td>{to}</td><td><a href=\"/mailbox/{id}\">{subject}</a></td></tr>", age(mail))
        })
        .collect();
    let older =
        page.next_before.map_or(String::new(), |before| format!("<p><a href=\"?before={before}\">older</a></p>"));
    let summary = format!(
        "{} received, {} distinct, {} duplicates by Message-ID; the newest {} are kept.",
        counts.received, counts.distinct, counts.duplicates, counts.kept
    );
    Html(document(
        "Mailbox",
        &format!("<p>{summary}</p><table><tr><th>Age</th><th>To</th><th>Subject</th></tr>{rows}</table>{older}"),
    ))
}

async fn mail_page(State(store): State<Arc<MailStore>>, Path(id): Path<u64>) -> Response {
    let Some(mail) = store.get(id) else {
        return (StatusCode::NOT_FOUND, Html(document("Mailbox", "<p>This mail is gone.</p>"))).into_response();
    };
    let decoded = decode(&mail.raw);
    let headers: String = decoded
        .headers
        .iter()
        .map(|(name, value)| format!("<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value)))
        .collect();
    let text = decoded.text.map_or(String::new(), |text| format!("<h2>Text</h2><pre>{}</pre>", escape(&text)));
    // The sandbox runs no scripts and has no origin of its own.
    let html = decoded
        .html
        .map_or(String::new(), |html| format!("<h2>HTML</h2><iframe sandbox srcdoc=\"{}\"></iframe>", escape(&html)));
    let body = format!("<p><a href=\"/mailbox\">all mails</a></p><table>{headers}</table>{text}{html}");
    Html(document(&mail.subject, &body)).into_response()
}

async fn list_json(State(store): State<Arc<MailStore>>, Query(query): Query<Before>) -> Response {
    let (page, counts) = (store.list(query.before, PAGE), store.counts());
    let mails: Vec<_> = page
        .mails
        .iter()
        .map(|mail| {
            json!({
                "id": mail.id, "from": mail.mail_from, "to": mail.rcpt_to, "subject": mail.subject,
                "message_id": mail.message_id, "list_unsubscribe": mail.list_unsubscribe,
            })
        })
        .collect();
    Json(json!({
        "counts": {
            "received": counts.received, "distinct": counts.distinct, "duplicates": counts.duplicates,
            "kept": counts.kept,
        },
        "mails": mails,
        "next_before": page.next_before,
    }))
    .into_response()
}

fn age(mail: &StoredMail) -> String {
    let seconds = SystemTime::now().duration_since(mail.received_at).map_or(0, |age| age.as_secs());
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3_600),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn document(title: &str, body: &str) -> String {
    let style = "body{font:15px system-ui;margin:2em;max-width:60em}table{border-collapse:collapse}\
                 td,th{text-align:left;padding:.2em 1em .2em 0;vertical-align:top}iframe{width:100%;height:30em}";
    let title = escape(title);
    format!("<!doctype html><meta charset=utf-8><title>{title}</title><style>{style}</style><h1>{title}</h1>{body}")
}
