//! Clients of the live feed.

use std::{fmt::Write, net::SocketAddr};

use futures::StreamExt;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

pub enum Client {
    Events(Events),
    Socket(Box<WebSocketStream<TcpStream>>),
}

impl Client {
    /// The next item; `None` where the connection ended.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            match self {
                Self::Events(events) => {
                    let event = events.event().await?;
                    if let Some(data) = event.data {
                        let item: Value = serde_json::from_str(&data).unwrap();
                        assert_eq!(item["event_id"].as_str(), event.id.as_deref());
                        return Some(item);
                    }
                }
                Self::Socket(socket) => match socket.next().await?.ok()? {
                    Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                    Message::Close(_) => return None,
                    _ => {}
                },
            }
        }
    }
}

/// Opens a WebSocket, or returns the status of the refusal.
pub async fn web_socket(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<WebSocketStream<TcpStream>, u16> {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    match client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(answer)) => Err(answer.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// Opens a WebSocket from which nothing is read.
pub async fn silent_web_socket(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> TcpStream {
    let upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let (status, _, stream) = request(address, path, &[headers, &upgrade].concat()).await;
    assert_eq!(status, 101);
    stream.into_inner()
}

/// The answer to a call.
pub struct Answer {
    pub status: u16,
    /// Empty where it has no fixed length.
    pub body: String,
    headers: Vec<(String, String)>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }
}

/// Calls, and reads a body of a fixed length.
pub async fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Answer {
    let (status, headers, mut stream) = request(address, path, headers).await;
    let mut body = vec![0; find(&headers, "content-length").map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    Answer { status, headers, body: String::from_utf8(body).unwrap() }
}

/// An event of a stream.
pub struct Event {
    pub id: Option<String>,
    pub data: Option<String>,
}

/// An event stream in chunks.
pub struct Events {
    stream: BufReader<TcpStream>,
    text: String,
}

impl Events {
    /// Opens a stream, or returns the status of the refusal.
    pub async fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self, u16> {
        let headers = [headers, &[("Accept", "text/event-stream")]].concat();
        let (status, headers, stream) = request(address, path, &headers).await;
        if status != 200 {
            return Err(status);
        }
        assert_eq!(find(&headers, "content-type"), Some("text/event-stream"));
        assert_eq!(find(&headers, "transfer-encoding"), Some("chunked"));
        Ok(Self { stream, text: String::new() })
    }

    /// The next event; `None` at the end of the stream.
    pub async fn event(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                let field = |name: &str| {
                    block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
                };
                return Some(Event { id: field("id"), data: field("data") });
            }
            let mut size = String::new();
            self.stream.read_line(&mut size).await.ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            self.stream.read_exact(&mut chunk).await.ok()?;
            if size == 0 {
                return None;
            }
            self.text.push_str(std::str::from_utf8(&chunk[..size]).unwrap());
        }
    }
}

type Head = (u16, Vec<(String, String)>, BufReader<TcpStream>);

async fn request(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Head {
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    let mut head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n");
    headers.iter().for_each(|(name, value)| write!(head, "{name}: {value}\r\n").unwrap());
    stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines[1..].iter().filter_map(|line| line.split_once(": "));
    (status, headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect(), stream)
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
}
