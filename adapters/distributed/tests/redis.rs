//! The ports on Redis, against servers of this test's own: each is a process on a free port, which can be stopped, emptied
//! and put back to what it once was. The program is named by HERALD_TEST_REDIS_SERVER.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use herald_core::{
    bucket::{Ask, Lease, Quota},
    conformance,
    ids::{NotificationId, TenantId},
    ports::{
        StoreError,
        budgets::Budgets,
        claims::{ClaimRequest, Claims},
        inbox::{EventId, Item},
        sessions::{Frame, Inlet, Sessions},
    },
};
use herald_distributed::redis::{
    Redis, RedisConfig, budgets::RedisBudgets, claims::RedisClaims, fleet::RedisFleet, sessions::RedisSessions,
};
use parking_lot::Mutex;
use tempfile::TempDir;

const NOW_MS: u64 = 1_700_000_000_000;

/// Long enough for a loaded machine; a test that waits so long fails.
const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    child: Child,
    port: u16,
    directory: TempDir,
    options: Vec<String>,
}

impl Server {
    fn start(options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let child = spawn(port, directory.path(), &options);
        let server = Self { child, port, directory, options };
        server.await_ready();
        server
    }

    fn await_ready(&self) {
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(started.elapsed() < PATIENCE, "redis-server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn config(&self) -> RedisConfig {
        RedisConfig { timeout_ms: 2_000, ..RedisConfig::default() }
    }

    async fn connect_with(&self, config: &RedisConfig) -> anyhow::Result<Redis> {
        Redis::connect(&format!("redis://127.0.0.1:{}", self.port), config).await
    }

    async fn connect(&self) -> Redis {
        self.connect_with(&self.config()).await.unwrap()
    }

    /// A command by another client than the one that is tried.
    async fn command(&self, words: &[&str]) {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async::<()>(&mut connection).await.unwrap();
    }

    fn snapshot(&self) -> PathBuf {
        self.directory.path().join("dump.rdb")
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.child = spawn(self.port, self.directory.path(), &self.options);
        self.await_ready();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(port: u16, directory: &Path, options: &[String]) -> Child {
    let program = std::env::var("HERALD_TEST_REDIS_SERVER").expect(
        "HERALD_TEST_REDIS_SERVER is not set: start the servers with `deploy/local/servers up redis`, then `source \
         target/servers/env`",
    );
    Command::new(program)
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no", "--dir"])
        .arg(directory)
        .args(options)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server cannot be started")
}

/// Waits until something is so.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "it never became so: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn take(key: u8, owner: u8) -> ClaimRequest {
    ClaimRequest::Take { key: [key; 16], owner: NotificationId([owner; 16]), expires_ms: NOW_MS + 60_000 }
}

fn owner(owner: u8) -> Option<Vec<NotificationId>> {
    Some(vec![NotificationId([owner; 16])])
}

#[tokio::test]
async fn claims_budgets_and_fleet_pass_their_suites() {
    let server = Server::start(&[]);
    let redis = server.connect().await;
    conformance::claims::all(Arc::new(RedisClaims::new(redis.clone())), 0).await;
    conformance::budgets::all(Arc::new(RedisBudgets::told_the_time(redis.clone())), "suite/").await;
    conformance::fleet::all(Arc::new(RedisFleet::new(redis)), "suite").await;
}

#[tokio::test]
async fn whatever_the_server_loses_shows_in_the_next_round_trip() {
    let mut server = Server::start(&[]);
    let claims = RedisClaims::new(server.connect().await);
    let first = claims.load(1, Vec::new(), NOW_MS).await.unwrap();
    assert_eq!(claims.apply(1, first, &[take(1, 1)], NOW_MS).await.unwrap(), owner(1));
    server.command(&["SAVE"]).await;
    let snapshot = std::fs::read(server.snapshot()).unwrap();
    assert_eq!(claims.apply(1, first + 1, &[take(2, 1)], NOW_MS).await.unwrap(), owner(1));

    server.command(&["FLUSHALL"]).await;
    assert_eq!(claims.apply(1, first + 2, &[take(1, 2)], NOW_MS).await.unwrap(), None, "everything was lost");
    assert_eq!(claims.sequence(1).await.unwrap(), 0);

    // An old snapshot: the second claim was made after it.
    server.kill();
    std::fs::write(server.snapshot(), snapshot).unwrap();
    server.start_again();
    until("it is connected again", async || claims.sequence(1).await.is_ok()).await;
    assert_eq!(claims.apply(1, first + 2, &[take(2, 2)], NOW_MS).await.unwrap(), None, "what is here is old");
    assert_eq!(claims.sequence(1).await.unwrap(), first + 1, "older than what was committed");
}

#[tokio::test]
async fn a_load_that_was_broken_off_is_not_taken_for_a_whole_one() {
    let server = Server::start(&[]);
    let claims = RedisClaims::new(server.connect().await);
    let before = claims.load(1, Vec::new(), NOW_MS).await.unwrap();
    let mut breaking = Box::pin(claims.load(1, many(20_000), NOW_MS));
    // Broken off at some round trip in the middle.
    until("the load has begun", async || {
        tokio::select! {
            biased;
            done = &mut breaking => panic!("the load was too fast to be broken off: {done:?}"),
            sequence = claims.sequence(1) => sequence.unwrap() == 0,
        }
    })
    .await;
    drop(breaking);
    assert_eq!(claims.sequence(1).await.unwrap(), 0);
    for sequence in [0, before, before + 1] {
        assert_eq!(claims.apply(1, sequence, &[take(1, 1)], NOW_MS).await.unwrap(), None, "{sequence}");
    }
}

#[tokio::test]
async fn of_two_loads_at_once_one_holds_and_is_whole() {
    let server = Server::start(&[]);
    let claims = RedisClaims::new(server.connect().await);
    let (one, two) = tokio::join!(claims.load(1, many(5_000), NOW_MS), claims.load(1, many(5_000), NOW_MS));
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    let sequence = one.or(two).unwrap();
    let takes: Vec<ClaimRequest> = (0..5_000)
        .map(|i| ClaimRequest::Take {
            key: u128::from(i as u32).to_be_bytes(),
            owner: NotificationId([9; 16]),
            expires_ms: NOW_MS + 1,
        })
        .collect();
    let holders = claims.apply(1, sequence, &takes, NOW_MS).await.unwrap().unwrap();
    assert!(holders.iter().all(|holder| holder.0 == [5; 16]));
}

fn many(count: u32) -> Vec<herald_core::record::Claim> {
    let claim = |i| herald_core::record::Claim {
        key: u128::from(i).to_be_bytes().to_vec().into(),
        owner: vec![5; 16].into(),
        expires_ms: NOW_MS + 60_000,
        released: false,
    };
    (0..count).map(claim).collect()
}

/// Any asks get of Redis what they get of memory.
#[tokio::test]
async fn budgets_are_those_of_memory() {
    let server = Server::start(&[]);
    let budgets = RedisBudgets::told_the_time(server.connect().await);
    let seed = std::env::var("HERALD_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand_seed);
    println!("HERALD_TEST_SEED={seed}");
    let mut random = seed;
    let mut below = |bound: u64| {
        // SplitMix64.
        random = u64::wrapping_add(random, 0x9E37_79B9_7F4A_7C15);
        let mut z = random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    };
    let mut memory = herald_core::bucket::Buckets::default();
    let mut now_ms = NOW_MS;
    for round in 0..1_500 {
        now_ms += match below(10) {
            0 => below(100_000_000_000),
            1..4 => 0,
            _ => below(5_000),
        };
        let groups: Vec<Vec<Ask>> = (0..below(4))
            .map(|_| {
                (0..=below(3))
                    .map(|_| {
                        let magnitude = 10f64.powi(below(19) as i32 - 6);
                        let per_second = if below(12) == 0 { 0.0 } else { (below(999) + 1) as f64 / 999.0 * magnitude };
                        let digits = below(13) as u32;
                        let burst = 1 + below(10u64.pow(digits));
                        // A third of the quotas are usual ones, whose buckets are often empty.
                        let quota = match below(3) {
                            0 => Quota::new(per_second.max(0.000_001), burst),
                            _ => Quota::new(0.1 * (1 + below(50)) as f64, 1 + below(40)),
                        };
                        let floor = if below(3) == 0 { below(20) } else { 0 };
                        let tokens = if below(20) == 0 { u64::MAX } else { below(60) };
                        Ask { bucket: format!("b{}", below(6)).into(), quota: quota.unwrap(), tokens, floor }
                    })
                    .collect()
            })
            .collect();
        let expected: Vec<Lease> = groups.iter().map(|group| memory.lease(group, now_ms)).collect();
        assert_eq!(budgets.lease(&groups, now_ms).await.unwrap(), expected, "round {round}: {groups:?}");
    }
}

fn rand_seed() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64
}

/// A process whose clock is set a day ahead fills nothing, however often it asks beside one whose clock is right.
#[tokio::test]
async fn the_clocks_of_callers_do_not_fill_a_bucket() {
    let server = Server::start(&[]);
    let budgets = RedisBudgets::new(server.connect().await);
    // Less than a token comes while this runs.
    let ask = Ask { bucket: "b".into(), quota: Quota::new(0.001, 10).unwrap(), tokens: 100, floor: 0 };
    let mut given = 0;
    for round in 0..100 {
        let now_ms = NOW_MS + round % 2 * 86_400_000;
        if let Lease::Granted(tokens) = &budgets.lease(&[vec![ask.clone()]], now_ms).await.unwrap()[0] {
            given += tokens[0];
        }
    }
    assert_eq!(given, 10, "a burst");
}

#[tokio::test]
async fn servers_whose_clocks_differ_do_not_fill_a_bucket_twice() {
    let server = Server::start(&[]);
    let budgets = RedisBudgets::told_the_time(server.connect().await);
    let ask = Ask { bucket: "b".into(), quota: Quota::new(10.0, 10).unwrap(), tokens: 100, floor: 0 };
    let mut given = 0;
    for round in 0..100 {
        for behind_ms in [0, 2_000] {
            let leases = budgets.lease(&[vec![ask.clone()]], NOW_MS + round * 100 - behind_ms).await.unwrap();
            if let Lease::Granted(tokens) = &leases[0] {
                given += tokens[0];
            }
        }
    }
    assert_eq!(given, 10 + 99, "a burst, and a token each 100 ms");
    // A clock that was an hour ahead does not stop the others for an hour.
    budgets.lease(&[vec![ask.clone()]], NOW_MS + 3_600_000).await.unwrap();
    budgets.lease(&[vec![ask.clone()]], NOW_MS + 10_000).await.unwrap();
    let leases = budgets.lease(&[vec![ask]], NOW_MS + 10_500).await.unwrap();
    assert_eq!(leases, [Lease::Granted(vec![5])]);
}

#[derive(Default)]
struct Seen {
    frames: Mutex<Vec<String>>,
    gaps: Mutex<usize>,
}

impl Inlet for Seen {
    fn frame(&self, item: &Item) {
        self.frames.lock().push(item.title.clone());
    }

    fn gap(&self) {
        *self.gaps.lock() += 1;
    }
}

fn frame(tenant: &str, user: &str, title: &str) -> Frame {
    let item = Item {
        event_id: EventId { epoch: 1, offset: 2, index: 3 },
        notification: NotificationId([1; 16]),
        title: title.into(),
        body: "body".into(),
        data: bytes::Bytes::from_static(b"{}"),
        created_ms: NOW_MS,
        seen_ms: 0,
        read_ms: 0,
        archived_ms: 0,
    };
    Frame { tenant: TenantId::trusted(tenant), user: user.into(), item }
}

#[tokio::test]
async fn frames_reach_the_gateway_that_holds_the_user() {
    let server = Server::start(&[]);
    let (a, b) = (RedisSessions::new(server.connect().await), RedisSessions::new(server.connect().await));
    let worker = RedisSessions::new(server.connect().await);
    let acme = TenantId::trusted("acme");
    let (ada, ben) = (Arc::new(Seen::default()), Arc::new(Seen::default()));
    let on_a = a.register(&acme, "ada", ada.clone()).await.unwrap();
    let _on_b = b.register(&acme, "ben", ben.clone()).await.unwrap();
    until("both channels are open", async || *ada.gaps.lock() > 0 && *ben.gaps.lock() > 0).await;
    until("both are known", async || {
        worker.connected(&acme, &["ada", "nobody", "ben"]).await.unwrap() == [true, false, true]
    })
    .await;
    assert_eq!(worker.connected(&TenantId::trusted("other"), &["ada"]).await.unwrap(), [false]);
    let frames = vec![
        frame("acme", "ada", "1"),
        frame("acme", "ben", "2"),
        frame("other", "ben", "3"),
        frame("acme", "ada", "4"),
    ];
    worker.hand_over(frames).await.unwrap();
    until("all have come", async || ada.frames.lock().len() == 2 && ben.frames.lock().len() == 1).await;
    assert_eq!(
        (ada.frames.lock().clone(), ben.frames.lock().clone()),
        (vec!["1".into(), "4".into()], vec!["2".to_owned()])
    );
    drop(on_a);
    until("the user is gone", async || !worker.connected(&acme, &["ada"]).await.unwrap()[0]).await;
}

#[tokio::test]
async fn a_server_that_comes_back_empty_is_told_again_and_connections_hear_of_the_gap() {
    let mut server = Server::start(&[]);
    let (gateway, worker) = (RedisSessions::new(server.connect().await), RedisSessions::new(server.connect().await));
    let acme = TenantId::trusted("acme");
    let ada = Arc::new(Seen::default());
    let _session = gateway.register(&acme, "ada", ada.clone()).await.unwrap();
    until("the channel is open", async || *ada.gaps.lock() == 1).await;
    server.kill();
    until("the server is missed", async || {
        matches!(worker.connected(&acme, &["ada"]).await, Err(StoreError::Unavailable(_)))
    })
    .await;
    server.start_again();
    until("the connection hears of the gap", async || *ada.gaps.lock() > 1).await;
    until("the user is known again", async || worker.connected(&acme, &["ada"]).await.is_ok_and(|known| known[0]))
        .await;
    worker.hand_over(vec![frame("acme", "ada", "1")]).await.unwrap();
    until("frames come again", async || ada.frames.lock().len() == 1).await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_left_alone_for_a_while() {
    let server = Server::start(&[]);
    let config = RedisConfig { timeout_ms: 200, ..server.config() };
    let claims = RedisClaims::new(server.connect_with(&config).await.unwrap());
    assert_eq!(claims.sequence(1).await.unwrap(), 0);
    signal(&server.child, "STOP");
    let error = claims.sequence(1).await.unwrap_err().to_string();
    assert!(!error.contains("just now"), "the first waits as long as is set: {error}");
    assert!(claims.sequence(1).await.unwrap_err().to_string().contains("did not answer just now"));
    signal(&server.child, "CONT");
    until("it is asked again", async || claims.sequence(1).await.is_ok()).await;
}

#[tokio::test]
async fn a_server_that_is_full_says_so_until_it_has_room() {
    let server = Server::start(&[]);
    let claims = RedisClaims::new(server.connect().await);
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    for _ in 0..2 {
        let error = claims.apply(1, 0, &[take(1, 1)], NOW_MS).await.unwrap_err().to_string();
        assert!(error.contains("raise its maxmemory"), "it does answer: {error}");
    }
    server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(claims.apply(1, 0, &[take(1, 1)], NOW_MS).await.unwrap(), owner(1));
}

fn signal(child: &Child, signal: &str) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[tokio::test]
async fn a_server_that_evicts_keys_is_refused() {
    let server = Server::start(&["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"]);
    let error = server.connect_with(&server.config()).await.err().expect("it is refused");
    assert!(format!("{error:#}").contains("set maxmemory-policy to noeviction"), "{error:#}");
}

#[tokio::test]
async fn a_password_is_read_from_its_file() {
    let server = Server::start(&["--requirepass", "secret"]);
    let error = server.connect_with(&server.config()).await.err().expect("it is refused");
    assert!(format!("{error:#}").contains("NOAUTH"), "{error:#}");
    let file = server.directory.path().join("password");
    std::fs::write(&file, "secret\n").unwrap();
    let config = RedisConfig { password_file: file.to_str().unwrap().into(), ..server.config() };
    conformance::fleet::all(Arc::new(RedisFleet::new(server.connect_with(&config).await.unwrap())), "password").await;
}
