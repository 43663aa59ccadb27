//! Faults, gates and outages do what they say, and the journal tells of it.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ecr_proxy::simulator::{
    BlobSource, End, Entry, FULL_ACCESS_KEY, Fault, Gate, Listener, Outage, Pattern, Simulator,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::client::{Client, start, start_with_blob, storage};

#[tokio::test]
async fn faults_of_the_body_end_it_as_told_and_the_journal_knows() {
    let (simulator, client, digest) = start_with_blob("0123456789").await;
    let spoiled = async |fault: Fault| {
        let pattern = Pattern::digest(&*digest);
        let rule = simulator.faults().on(Listener::Storage, "GET", pattern);
        let handle = rule.times(1).then(fault);
        let url = client.signed("app", &digest).await;
        let answer = storage(&simulator, "GET", &url, "").await;
        assert_eq!(handle.taken(), 1);
        simulator
            .journal()
            .until(|entries| entries.iter().all(|e| e.end != End::InFlight))
            .await
            .unwrap();
        (answer, simulator.journal().snapshot().pop().unwrap())
    };
    let (reset, entry) = spoiled(Fault::ResetAfter(4)).await;
    assert_eq!(
        reset.end.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
    assert_eq!((entry.body_bytes, entry.end), (4, End::Early));
    let (cut, entry) = spoiled(Fault::TruncateAfter(4)).await;
    assert_eq!(cut.header("content-length"), Some("10"));
    assert_eq!(cut.text(), "0123");
    cut.end.unwrap();
    assert_eq!(entry.end, End::Early);
    let (unframed, _) = spoiled(Fault::CloseDelimited(Some(7))).await;
    assert_eq!(unframed.header("content-length"), None);
    assert_eq!(unframed.header("transfer-encoding"), None);
    assert_eq!(unframed.text(), "0123456");
    let (chunked, _) = spoiled(Fault::TruncateChunked(3)).await;
    assert_eq!(chunked.text(), "3\r\n012\r\n");
    let (flipped, entry) = spoiled(Fault::Corrupt(9)).await;
    assert_eq!(flipped.body, b"012345678\xc6");
    assert_eq!((entry.body_bytes, entry.end), (10, End::Complete));
    let (other, _) = spoiled(Fault::OtherContent(1)).await;
    assert_eq!(other.body.len(), 10);
    assert_ne!(other.body, b"0123456789");
    let (gone, entry) = spoiled(Fault::Reset).await;
    assert!(gone.end.is_err() && gone.head.is_empty());
    assert_eq!((entry.status, entry.end), (None, End::Early));
    let (raw, _) = spoiled(Fault::Raw("HTTP/1.1 200 OK\r\nA: b\r\n\r\n".into())).await;
    assert_eq!(raw.header("a"), Some("b"));
}

#[tokio::test]
async fn an_unsolicited_answer_follows_on_the_open_connection() {
    let (simulator, client, digest) = start_with_blob("0123456789").await;
    let second = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let rule = simulator.faults().on(Listener::Storage, "GET", "/");
    rule.then(Fault::Extra(second.into()));
    let url = client.signed("app", &digest).await;
    let mut stream = TcpStream::connect(simulator.address(Listener::Storage))
        .await
        .unwrap();
    let request = format!("GET {url} HTTP/1.1\r\nHost: s3\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(b"poison") {
        assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
    }
    let text = String::from_utf8(read).unwrap();
    assert!(text.contains("0123456789HTTP/1.1 200 OK"), "{text}");
}

#[tokio::test]
async fn lies_about_a_range_are_told_as_scripted() {
    let (simulator, client, digest) = start_with_blob("0123456789").await;
    let url = client.signed("app", &digest).await;
    let ranged = async |fault: Fault| {
        let rule = simulator.faults().on(Listener::Storage, "GET", "/");
        rule.times(1).then(fault);
        storage(&simulator, "GET", &url, "Range: bytes=4-\r\n").await
    };
    let whole = ranged(Fault::IgnoreRange).await;
    assert_eq!((whole.status, &*whole.text()), (200, "0123456789"));
    let shifted = ranged(Fault::ShiftRange(2)).await;
    assert_eq!(shifted.header("content-range"), Some("bytes 6-9/10"));
    let total = Fault::SetHeader("content-range", "bytes 4-9/11".into());
    let total = ranged(total).await;
    assert_eq!(total.header("content-range"), Some("bytes 4-9/11"));
    assert_eq!(total.text(), "456789");
    let expired = ranged(Fault::Expired).await;
    assert_eq!(expired.status, 403);
    let throttled = ranged(Fault::throttled(Some("7"))).await;
    assert_eq!(
        (throttled.status, throttled.header("retry-after")),
        (429, Some("7"))
    );
}

#[tokio::test]
async fn a_gate_holds_answers_that_the_journal_shows_in_flight() {
    let (simulator, client, digest) = start_with_blob("0123456789").await;
    let gate = Gate::new();
    simulator
        .faults()
        .on(Listener::Storage, "GET", "/")
        .then(Fault::HoldAfter(4, gate.clone()));
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let url = client.signed("app", &digest).await;
        let simulator = simulator.clone();
        let get = async move { storage(&simulator, "GET", &url, "").await };
        waiting.push(tokio::spawn(get));
    }
    gate.arrived(3).await;
    let on_storage = |e: &Entry| e.listener == Listener::Storage;
    let journal = simulator.journal();
    assert_eq!(journal.body_bytes(on_storage), 12);
    assert_eq!(
        journal.count(|e| on_storage(e) && e.end == End::InFlight),
        3
    );
    gate.open();
    for get in waiting {
        assert_eq!(get.await.unwrap().text(), "0123456789");
    }
    assert_eq!(journal.body_bytes(on_storage), 30);
}

#[tokio::test]
async fn a_stalled_body_ends_in_the_journal_when_the_client_leaves() {
    let (simulator, client, digest) = start_with_blob("0123456789").await;
    simulator
        .faults()
        .on(Listener::Storage, "GET", "/")
        .then(Fault::StallAfter(5));
    let url = client.signed("app", &digest).await;
    let mut stream = TcpStream::connect(simulator.address(Listener::Storage))
        .await
        .unwrap();
    let request = format!("GET {url} HTTP/1.1\r\nHost: s3\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let journal = simulator.journal();
    journal
        .until(|entries| entries.iter().any(|e| e.body_bytes == 5))
        .await
        .unwrap();
    drop(stream);
    journal
        .until(|entries| entries.iter().any(|e| e.end == End::Early))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_outage_takes_the_port_away_and_gives_it_back() {
    let (simulator, client, _) = start_with_blob("x").await;
    let address = simulator.address(Listener::Registry);
    simulator.outage(Outage::Refused).await;
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    simulator.outage(Outage::Reset).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert!(stream.read_u8().await.is_err());
    simulator.outage(Outage::None).await;
    assert_eq!(client.get("/v2/").await.status, 200);
    simulator.shutdown().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn bodies_larger_than_memory_should_hold_are_computed_as_they_go() {
    let simulator = start().await;
    let len = 5 << 30;
    simulator.put_blob_as("app", "sha256:00", BlobSource::generated(1, len));
    let client = Client::new(&simulator, FULL_ACCESS_KEY);
    let url = client.signed("app", "sha256:00").await;
    let range = format!("Range: bytes={}-\r\n", len - 10);
    let part = storage(&simulator, "GET", &url, &range).await;
    let total = format!("bytes {}-{}/{len}", len - 10, len - 1);
    assert_eq!(part.header("content-range"), Some(&*total));
    let expected = BlobSource::generated(1, len).read(len - 10..len);
    assert_eq!(part.body, expected);
}

#[tokio::test]
async fn a_listener_limited_in_all_shares_its_rate_among_connections() {
    let simulator = start().await;
    let len = 20_000;
    let digest = simulator.put_blob("app", BlobSource::generated(1, len));
    let client = Client::new(&simulator, FULL_ACCESS_KEY);
    let url = client.signed("app", &digest).await;
    let rate = 200_000;
    simulator.faults().total_rate(Listener::Storage, Some(rate));
    let began = Instant::now();
    let (one, two) = tokio::join!(
        storage(&simulator, "GET", &url, ""),
        storage(&simulator, "GET", &url, ""),
    );
    assert_eq!((one.body.len() as u64, two.body.len() as u64), (len, len));
    let least = Duration::from_secs_f64(2.0 * len as f64 / rate as f64);
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
}

#[tokio::test]
async fn headers_are_added_changed_and_left_out_as_told() {
    let (simulator, client, digest) = start_with_blob("0123456789").await;
    simulator
        .faults()
        .on(Listener::Registry, "HEAD", Pattern::digest(&*digest))
        .all([
            Fault::SetHeader("docker-content-digest", "sha256:00".into()),
            Fault::SetHeader("content-length", "11".into()),
            Fault::AddHeader("docker-content-digest", "sha256:11".into()),
            Fault::RemoveHeader("content-type"),
        ]);
    let head = client.head(&format!("/v2/app/blobs/{digest}")).await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-length"), Some("11"));
    assert_eq!(head.header("docker-content-digest"), Some("sha256:00"));
    assert!(head.head.contains("sha256:11"));
    assert_eq!(head.header("content-type"), None);
}

#[tokio::test]
async fn a_gzipped_answer_says_so_and_has_the_length_of_what_is_sent() {
    let (simulator, client, digest) = start_with_blob("0123456789").await;
    simulator
        .faults()
        .on(Listener::Storage, "GET", Pattern::digest(&*digest))
        .then(Fault::Gzip);
    let url = client.signed("app", &digest).await;
    let answer = storage(&simulator, "GET", &url, "").await;
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert_eq!(
        answer.header("content-length"),
        Some(&*answer.body.len().to_string())
    );
    assert!(answer.body.starts_with(&[0x1f, 0x8b]));
}

#[tokio::test]
async fn secrets_are_listed_and_handles_print_without_them() {
    let (simulator, client, digest) = start_with_blob("x").await;
    let url = client.signed("app", &digest).await;
    let secrets = simulator.secrets();
    assert_eq!(secrets.len(), 3, "a password, its token, a signature");
    assert!(secrets.iter().any(|secret| url.ends_with(secret.as_str())));
    let printed = format!(
        "{simulator:?} {:?} {:?}",
        simulator.token(FULL_ACCESS_KEY),
        simulator.journal().snapshot()
    );
    for secret in simulator.secrets() {
        assert!(!printed.contains(&secret));
    }
}

#[tokio::test]
async fn it_comes_back_at_the_same_addresses() {
    // A loopback address of its own, so that no test beside it is given the ports in between.
    let free = SocketAddr::from(([127, 99, 0, 1], 0));
    let builder = Simulator::builder().bind(free, free, free);
    let simulator = builder.start().await.unwrap();
    let [api, registry, bucket] = Listener::ALL.map(|listener| simulator.address(listener));
    simulator.shutdown().await;
    let builder = Simulator::builder().bind(registry, bucket, api);
    let simulator = builder.start().await.unwrap();
    assert_eq!(simulator.address(Listener::Registry), registry);
    let client = Client::new(&simulator, FULL_ACCESS_KEY);
    assert_eq!(client.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn a_port_that_refuses_is_given_to_nobody_else() {
    let simulator = start().await;
    let address = simulator.address(Listener::Registry);
    for outage in [Outage::None, Outage::Refused] {
        simulator.outage(outage).await;
        let other = TcpSocket::new_v4().unwrap();
        let taken = other.bind(address).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse, "{outage:?}");
    }
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    simulator.outage(Outage::None).await;
    TcpStream::connect(address).await.unwrap();
}
