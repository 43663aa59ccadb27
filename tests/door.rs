//! Whoever connects, the proxy's memory is bounded and it ends in order when it is asked to: what is in
//! flight finishes, nothing new begins, and a second request to end means at once.

mod support;

use std::time::Duration;

use ecr_proxy::simulator::{BlobSource, Fault, Gate, Listener, Simulator};
use rustix::process::Signal;
use support::blobs::{metric, until};
use support::image::REPOSITORY;
use support::{Client, Proxy, Stopwatch, within};

const MIB: u64 = 1 << 20;

async fn simulator() -> Simulator {
    Simulator::builder().start().await.expect("a simulator")
}

/// A proxy with a blob that is being filled and cannot end before the gate opens, and the connection
/// that waits for it.
async fn filling(simulator: &Simulator) -> (Proxy, Gate, String, support::Connection) {
    let digest = simulator.put_blob(REPOSITORY, vec![3; 1_000_000]);
    let gate = Gate::new();
    let rule = simulator.faults().on(Listener::Storage, "GET", "/");
    rule.then(Fault::HoldAfter(500_000, gate.clone()));
    let proxy = Proxy::before(simulator);
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let connection = proxy.client().start("GET", &path, &[]).await;
    within("the fill", gate.arrived(1)).await;
    (proxy, gate, digest, connection)
}

#[tokio::test(flavor = "multi_thread")]
async fn c09_a_drain_lets_bodies_in_flight_finish_and_takes_nobody_new() {
    let simulator = simulator().await;
    let (mut proxy, gate, digest, mut connection) = filling(&simulator).await;
    let head = connection.head().await.expect("a head");
    assert_eq!(head.status, 200);
    let mut idle = proxy.client().connect().await;

    proxy.terminate();
    proxy
        .log_until("the drain", |event| event.message() == "draining")
        .await;
    let readiness = Client::operator(proxy.admin()).get("/readyz").await;
    assert_eq!(readiness.status, 503, "a balancer has to see the drain");
    for address in [proxy.http(), proxy.https()] {
        within("connections are refused", async {
            // The listener closes a moment after the drain is told.
            while tokio::net::TcpStream::connect(address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    let (rest, _) = idle.until_closed().await;
    assert_eq!(rest, b"", "an idle connection is closed without a word");

    gate.open();
    let (body, clean_end) = connection.body("GET", &head).await;
    assert!(clean_end, "cut after {} bytes", body.len());
    assert_eq!(support::store::digest(&body), digest);
    assert_eq!(proxy.wait().code(), Some(0));
    assert_eq!(
        proxy.assert_blobs_are_sound(),
        [digest],
        "the fill was not kept"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn c09_a_second_signal_ends_at_once() {
    let simulator = simulator().await;
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::TERM)] {
        simulator.faults().clear();
        let (mut proxy, _never, _, mut connection) = filling(&simulator).await;
        let head = connection.head().await.expect("a head");
        proxy.signal(first);
        proxy
            .log_until("the drain", |event| event.message() == "draining")
            .await;
        let began = Stopwatch::start();
        // Signals right behind one another are taken for one, so it is asked more than once.
        let asking = async {
            let mut again = tokio::time::interval(Duration::from_millis(50));
            loop {
                again.tick().await;
                proxy.signal(second);
            }
        };
        let (body, clean_end) = tokio::select! {
            ended = connection.body("GET", &head) => ended,
            () = asking => unreachable!("it asks for ever"),
        };
        assert!(!clean_end, "a body without its end of {} bytes", body.len());
        assert_eq!(
            proxy.wait().code(),
            Some(1),
            "it did not drain, and says so"
        );
        assert!(began.took() < Duration::from_secs(10), "{:?}", began.took());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c09_a_drain_ends_by_its_limit() {
    let simulator = simulator().await;
    let digest = simulator.put_blob(REPOSITORY, vec![3; 1_000_000]);
    let never = Gate::new();
    let rule = simulator.faults().on(Listener::Storage, "GET", "/");
    rule.then(Fault::HoldAfter(500_000, never.clone()));
    let mut proxy = Proxy::builder()
        .simulator(&simulator)
        .set("server.drain_timeout", "1s")
        .start();
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let mut connection = proxy.client().start("GET", &path, &[]).await;
    let head = connection.head().await.expect("a head");
    proxy.terminate();
    let (_, clean_end) = connection.body("GET", &head).await;
    assert!(!clean_end, "a body without its end looked whole");
    assert_eq!(proxy.wait().code(), Some(0));
    let drained = proxy
        .log_until("the end of the drain", |event| event.message() == "drained")
        .await;
    assert_eq!(drained.field("connections.cut").as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn l03_clients_that_take_nothing_cost_bounded_memory_and_nobody_elses_time() {
    let simulator = simulator().await;
    let size = 64 * MIB;
    let source = BlobSource::generated(5, size);
    let digest = simulator.put_blob(REPOSITORY, source);
    let proxy = Proxy::before(&simulator);
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let before = proxy.memory();

    let mut slow = Vec::new();
    for number in 0..100 {
        let client = match number % 4 {
            0 => proxy.tls_client(),
            _ => proxy.client(),
        };
        let mut connection = client.start("GET", &path, &[]).await;
        assert_eq!(connection.head().await.expect("a head").status, 200);
        let first = connection.read_exactly(1024).await.expect("a first piece");
        assert_eq!(first.len(), 1024);
        slow.push(connection);
    }
    // Past them all, one that reads: over TLS and without.
    for client in [proxy.tls_client(), proxy.client()] {
        let answer = client.get(&path).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.digest(), digest);
    }
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 64 * MIB, "100 slow clients cost {grown} bytes");
    let sent = simulator
        .journal()
        .body_bytes(|entry| entry.listener == Listener::Storage);
    assert!(sent <= size + size / 20, "{sent} bytes crossed the link");

    drop(slow);
    until("everybody left", async || {
        metric(&proxy, "ecr_proxy_requests_active", &[]).await == 0.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l04_those_who_open_and_say_nothing_do_not_keep_others_out_and_are_closed() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    let mut silent = Vec::new();
    for number in 0..60 {
        let address = match number % 2 {
            0 => proxy.http(),
            _ => proxy.https(),
        };
        let mut connection = support::Connection::plain(address).await;
        let opening: &[u8] = match number % 6 {
            0 | 1 => b"",
            2 => b"GET /v2/ HTTP/1.1\r\nHost: ",
            3 => b"\x16\x03\x01",
            4 => b"PRI * HTTP/2.0\r\n\r\nS",
            _ => b"\x16",
        };
        connection.send(opening).await.expect("send");
        silent.push(connection);
    }
    for client in [proxy.client(), proxy.tls_client()] {
        let began = Stopwatch::start();
        assert_eq!(client.get("/v2/").await.status, 200);
        assert!(began.took() < Duration::from_secs(5), "{:?}", began.took());
    }
    // The deadline is 10 s.
    let mut closing = tokio::task::JoinSet::new();
    for mut connection in silent {
        closing.spawn(async move { connection.until_closed().await.0 });
    }
    while let Some(said) = closing.join_next().await {
        let said = String::from_utf8_lossy(&said.expect("closed in time")).into_owned();
        assert!(!said.contains(" 200 "), "{said}");
    }
    until("the last connection", async || {
        metric(&proxy, "ecr_proxy_connections_open", &[]).await == 0.0
    })
    .await;
    assert_eq!(proxy.client().get("/v2/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn l07_out_of_descriptors_it_goes_on_with_what_it_has_and_recovers() {
    let simulator = simulator().await;
    let blobs: Vec<String> = (1..=5_u8)
        .map(|byte| simulator.put_blob(REPOSITORY, vec![byte; 1_000_000]))
        .collect();
    let late = simulator.put_blob(REPOSITORY, vec![6; 1_000_000]);
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .mount("ulimit -n 256")
        .start();
    let is_low = |event: &support::Event| event.message().contains("limit of open files is low");
    let told = proxy.log_until("the warning", is_low).await;
    assert_eq!(told.field("limit").as_deref(), Some("256"), "{}", told.line);
    let path = |digest: &str| format!("/v2/{REPOSITORY}/blobs/{digest}");

    // Fills under way, and then everybody comes.
    let gate = Gate::new();
    let rule = simulator.faults().on(Listener::Storage, "GET", "/");
    let rule = rule.then(Fault::HoldAfter(500_000, gate.clone()));
    let client = proxy.client();
    let mut filling = Vec::new();
    for digest in &blobs {
        filling.push(client.start("GET", &path(digest), &[]).await);
    }
    within("the fills", gate.arrived(5)).await;
    let mut crowd = Vec::new();
    for _ in 0..400 {
        crowd.push(client.dial().await);
    }
    let used = proxy.processor_time();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = proxy.processor_time() - used;
    assert!(
        used < Duration::from_secs(1),
        "{used:?} of a processor in 2 s"
    );

    gate.open();
    rule.remove();
    for (connection, digest) in filling.iter_mut().zip(&blobs) {
        let answer = connection.answer("GET").await.expect("an answer");
        assert!(answer.clean_end, "a fill was cut");
        assert_eq!(support::store::digest(&answer.body), *digest);
    }
    drop(crowd);
    let began = Stopwatch::start();
    until("it recovers", async || {
        let mut connection = client.start("GET", &path(&late), &[]).await;
        let answer = connection.answer("GET").await;
        answer.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    assert!(began.took() < Duration::from_secs(8), "{:?}", began.took());
    let ready = Client::operator(proxy.admin()).get("/readyz").await;
    assert!(!ready.text().contains("store"), "{}", ready.text());
    until("all are kept", async || {
        proxy.assert_blobs_are_sound().len() == blobs.len() + 1
    })
    .await;
}
