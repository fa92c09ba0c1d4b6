//! A `herald dev` process of its own, and a client for it.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use herald_proto::v1::{
    Audience, EmailTemplate, Endpoint, GetStatusRequest, InAppTemplate, ListInboxRequest, NotifyBatchRequest,
    NotifyRequest, NotifyResult, PutTemplateRequest, PutUserRequest, PutUsersRequest, RequestStatus, TemplateChannels,
    inbox_client::InboxClient, notifications_client::NotificationsClient, templates_client::TemplatesClient,
    users_client::UsersClient,
};
use pbjson_types::{Struct, Value, value::Kind};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint as Address},
};

/// How long a process may take to be ready, and everything to settle.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A seed for the choices of a test, printed so that it can be repeated with `HERALD_TEST_SEED`.
pub fn seed() -> u64 {
    let given = std::env::var("HERALD_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| std::process::id().into());
    println!("HERALD_TEST_SEED={seed}");
    seed
}

/// The splitmix64 generator.
pub struct Chance(AtomicU64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    pub fn below(&self, bound: u64) -> u64 {
        let state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}

/// Ports that are free now; nobody else on this machine is given them while the listeners were just closed.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// Builds a library that is preloaded into a process, from a source beside this file.
pub fn preloaded(source: &str, directory: &Path) -> PathBuf {
    let library = directory.join(source).with_extension("so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/process").join(source);
    let status =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    assert!(status.is_ok_and(|status| status.success()), "a C compiler named cc is needed for this test");
    library
}

/// How a process is started.
#[derive(Clone)]
pub struct Setup {
    pub data: PathBuf,
    pub port: u16,
    pub smtp: Option<String>,
    pub settings: Vec<String>,
    pub environment: Vec<(String, String)>,
}

impl Setup {
    pub fn new(data: &Path) -> Self {
        let [port] = free_ports();
        Self { data: data.to_owned(), port, smtp: None, settings: Vec::new(), environment: Vec::new() }
    }

    /// Starts the process and waits until it is ready.
    pub async fn start(&self) -> Process {
        let log = self.data.with_extension("log");
        self.try_start().await.unwrap_or_else(|| panic!("herald ended; its log is:\n{}", tail(&log)))
    }

    /// A client for the process, running or not.
    pub async fn client(&self) -> Client {
        client_of(self.port)
    }

    /// Starts the process and waits until it is ready; `None` if it refuses to start.
    pub async fn try_start(&self) -> Option<Process> {
        let log = self.data.with_extension("log");
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
        command.arg("dev").arg("--data").arg(&self.data).args(["--listen", &format!("127.0.0.1:{}", self.port)]);
        self.smtp.iter().for_each(|url| {
            command.args(["--smtp", url]);
        });
        self.settings.iter().for_each(|setting| {
            command.args(["--set", setting]);
        });
        command.envs(self.environment.iter().cloned());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut process = Process { child, port: self.port };
        process.is_ready().await.then_some(process)
    }
}

/// A running `herald dev`; killed when dropped.
pub struct Process {
    child: Child,
    port: u16,
}

impl Process {
    /// Waits until the process answers; `false` if it ended.
    async fn is_ready(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
                let mut client = self.client().await;
                let status = GetStatusRequest { request_id: "00000000-0000-0000-0000-000000000000".into() };
                if let Err(status) = client.notifications.get_status(status).await
                    && status.code() == tonic::Code::NotFound
                {
                    return true;
                }
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(Instant::now() < deadline, "herald is not ready after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn client(&self) -> Client {
        client_of(self.port)
    }

    /// Waits until it has ended by itself.
    pub async fn ends(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "herald does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        let told = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status().unwrap();
        assert!(told.success(), "the process is not there");
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}

pub fn client_of(port: u16) -> Client {
    client_with(port, "hk_dev_demo")
}

/// A client with a key.
pub fn client_with(port: u16, key: &str) -> Client {
    let address = Address::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    let channel = address.timeout(Duration::from_secs(20)).connect_lazy();
    let api = InterceptedService::new(channel, Bearer(format!("Bearer {key}").parse().unwrap()));
    Client {
        notifications: NotificationsClient::new(api.clone()),
        users: UsersClient::new(api.clone()),
        templates: TemplatesClient::new(api.clone()),
        inbox: InboxClient::new(api),
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Api = InterceptedService<Channel, Bearer>;

/// The API by gRPC.
#[derive(Clone)]
pub struct Client {
    pub notifications: NotificationsClient<Api>,
    pub users: UsersClient<Api>,
    pub templates: TemplatesClient<Api>,
    pub inbox: InboxClient<Api>,
}

pub fn user(number: u64) -> String {
    format!("user-{number}")
}

pub fn text(name: &str, text: &str) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(text.to_owned())) };
    Struct { fields: [(name.to_owned(), value)].into() }
}

/// A notification to listed users under an idempotency key.
pub fn notification(key: &str, users: Vec<String>) -> NotifyRequest {
    NotifyRequest {
        template_id: "note".into(),
        audience: Some(Audience { users, ..Default::default() }),
        data: Some(text("text", key)),
        idempotency_key: Some(key.to_owned()),
        ..Default::default()
    }
}

impl Client {
    /// A template on two channels, and people who can be reached on both.
    pub async fn set_up(&mut self, people: u64) {
        let channels = TemplateChannels {
            in_app: Some(InAppTemplate { title: Some("{{data.text}}".into()), body: Some("for {{user.id}}".into()) }),
            email: Some(EmailTemplate {
                subject: Some("{{data.text}}".into()),
                text: Some("Hello {{user.id}}".into()),
                html: None,
            }),
            ..Default::default()
        };
        let template =
            PutTemplateRequest { template_id: "note".into(), channels: Some(channels), ..Default::default() };
        self.templates.put_template(template).await.unwrap();
        let users = (0..people)
            .map(|number| PutUserRequest {
                user_id: user(number),
                endpoints: vec![Endpoint {
                    channel: "email".into(),
                    address: format!("{}@example.org", user(number)),
                    ..Default::default()
                }],
                ..Default::default()
            })
            .collect();
        let results = self.users.put_users(PutUsersRequest { users }).await.unwrap().into_inner().results;
        assert!(results.iter().all(|result| result.error.is_none()), "{results:?}");
    }

    pub async fn notify(&mut self, notifications: Vec<NotifyRequest>) -> Result<Vec<NotifyResult>, Status> {
        let answer = self.notifications.notify_batch(NotifyBatchRequest { notifications }).await?;
        Ok(answer.into_inner().results)
    }

    pub async fn status(&mut self, request_id: &str) -> Result<RequestStatus, Status> {
        let request = GetStatusRequest { request_id: request_id.to_owned() };
        Ok(self.notifications.get_status(request).await?.into_inner())
    }

    /// The request ids of everything in a user's inbox.
    pub async fn inbox_of(&mut self, user_id: &str) -> Vec<String> {
        let mut ids = Vec::new();
        let mut page_token = None;
        loop {
            let request = ListInboxRequest {
                user_id: user_id.to_owned(),
                page_size: Some(1_000),
                page_token,
                ..Default::default()
            };
            let page = self.inbox.list_inbox(request).await.unwrap().into_inner();
            ids.extend(page.items.into_iter().map(|item| item.request_id));
            if page.next_page_token.is_empty() {
                return ids;
            }
            page_token = Some(page.next_page_token);
        }
    }

    /// Waits until a request's item is in a user's inbox.
    pub async fn receives(&mut self, user_id: &str, request_id: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.inbox_of(user_id).await.iter().any(|id| id == request_id) {
            assert!(Instant::now() < deadline, "{user_id} does not receive {request_id}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a request is complete and its books are balanced.
    pub async fn settled(&mut self, request_id: &str) -> RequestStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(request_id).await.unwrap();
            if status.state == "complete" && status.books_balanced {
                return status;
            }
            assert!(Instant::now() < deadline, "{request_id} does not settle: {status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
