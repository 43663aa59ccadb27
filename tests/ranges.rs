//! A Range is answered with exactly the bytes it names, whether the blob is cached, on its way or
//! not here at all, and costs the upstream link no more than it must.

mod support;

use ecr_proxy::simulator::{BlobSource, Fault, Gate};
use support::Answer;
use support::stage::{REPOSITORY, Stage, TestBlob, assert_whole};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What a Range header must bring.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// 206 with the bytes from one offset to before another.
    Part(u64, u64),
    /// 416.
    None,
    /// 200: the header means nothing.
    Whole,
    /// Any answer that is true; what it is differs by reading of the RFC.
    True,
}
use Expected::{None as NoByte, Part, True, Whole};

/// Single ranges of a blob of `size` bytes.
fn matrix(size: u64) -> Vec<(String, Expected)> {
    let table = [
        ("bytes=0-0".to_owned(), Part(0, 1)),
        ("bytes=0-".to_owned(), Part(0, size)),
        ("bytes=5-".to_owned(), Part(5, size)),
        ("bytes=5-5".to_owned(), Part(5, 6)),
        ("bytes=-5".to_owned(), Part(size - 5, size)),
        ("bytes=-0".to_owned(), NoByte),
        (format!("bytes=-{}", size + 1), Part(0, size)),
        (format!("bytes={size}-"), NoByte),
        (format!("bytes={}-", size - 1), Part(size - 1, size)),
        (
            format!("bytes={}-{}", size - 2, size + 9),
            Part(size - 2, size),
        ),
        (format!("bytes=0-{}", u64::MAX), Part(0, size)),
        (format!("bytes=-{}", u64::MAX), Part(0, size)),
        (format!("bytes={}-", i64::MAX), NoByte),
        (format!("bytes={}-", u64::MAX), NoByte),
        (format!("bytes={}-{}", u64::MAX, u64::MAX), NoByte),
        ("bytes=18446744073709551616-".to_owned(), True),
        ("bytes=0-18446744073709551616".to_owned(), True),
        ("bytes=-18446744073709551617".to_owned(), True),
        ("bytes=9-5".to_owned(), NoByte),
        ("bytes=".to_owned(), Whole),
        ("bytes=a-b".to_owned(), Whole),
        ("bytes=-1-2".to_owned(), Whole),
        ("lines=0-5".to_owned(), Whole),
    ];
    table.into()
}

/// Fails unless every byte of `answer` is the blob's, at the place it says, and the status is right.
fn assert_answers(answer: &Answer, blob: &TestBlob, range: &str, expected: Expected) {
    let size = blob.size;
    assert!(answer.clean_end, "{range}: cut");
    let content_range = answer.header("content-range");
    match answer.status {
        200 => {
            assert!(matches!(expected, Whole | True), "{range}: 200");
            assert_eq!(content_range, None, "{range}");
            assert_whole(answer, blob);
        }
        206 => {
            let told = content_range.unwrap_or_else(|| panic!("{range}: no Content-Range"));
            let (from, to) = parse(told, size);
            assert_eq!(answer.head.content_length(), Some(to - from), "{range}");
            assert!(answer.body == blob.part(from, to), "{range}: wrong bytes");
            match expected {
                Part(first, end) => assert_eq!((from, to), (first, end), "{range}"),
                True => {}
                NoByte | Whole => panic!("{range}: 206 {told}"),
            }
        }
        416 => {
            assert!(matches!(expected, NoByte | True), "{range}: 416");
            assert_eq!(content_range, Some(&*format!("bytes */{size}")), "{range}");
        }
        other => panic!("{range}: {other} {}", answer.text()),
    }
}

/// First offset and the one after the last.
fn parse(content_range: &str, size: u64) -> (u64, u64) {
    let rest = content_range.strip_prefix("bytes ").expect("bytes");
    let (range, total) = rest.split_once('/').expect("a total");
    assert_eq!(total, size.to_string());
    let (first, last) = range.split_once('-').expect("first and last");
    let last: u64 = last.parse().expect("a number");
    assert!(last < size, "{content_range}");
    (first.parse().expect("a number"), last + 1)
}

async fn get_range(stage: &Stage, blob: &TestBlob, range: &str) -> Answer {
    let client = stage.proxy.client();
    client.get_with(&blob.path, &[("range", range)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_ranges_of_a_cached_blob_are_exact() {
    let stage = Stage::new().await;
    let blob = stage.blob(300 * KIB + 7);
    stage.assert_pulls(&blob).await;
    assert!(stage.keeps(&blob).await);
    for (range, expected) in matrix(blob.size) {
        for client in [stage.proxy.client(), stage.proxy.tls_client()] {
            let answer = client.get_with(&blob.path, &[("range", &range)]).await;
            assert_answers(&answer, &blob, &range, expected);
        }
    }
    assert_eq!(stage.bytes_sent(&blob), blob.size, "a range went upstream");
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_ranges_of_a_cold_blob_are_exact() {
    let stage = Stage::new().await;
    for number in 0..matrix(100).len() {
        let blob = stage.blob(300 * KIB + number as u64);
        let (range, expected) = matrix(blob.size).swap_remove(number);
        let answer = get_range(&stage, &blob, &range).await;
        assert_answers(&answer, &blob, &range, expected);
    }
    stage.until_idle().await;
    stage.proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_ranges_of_a_blob_on_its_way_are_exact() {
    let stage = Stage::new().await;
    for number in 0..matrix(100).len() {
        let blob = stage.blob(300 * KIB + number as u64);
        let (range, expected) = matrix(blob.size).swap_remove(number);
        let gate = Gate::new();
        stage.spoil(&blob, [Fault::HoldAfter(100 * KIB, gate.clone())]);
        let _first = stage.begin(&blob).await;
        gate.arrived(1).await;
        let client = stage.proxy.client();
        let mut second = client.start("GET", &blob.path, &[("range", &range)]).await;
        let head = second.head().await.expect("a head");
        if head.status < 300 {
            assert_eq!(head.header("x-cache"), Some("joined"), "{range}");
        }
        gate.open();
        let (body, clean_end) = second.body("GET", &head).await;
        let answer = Answer {
            status: head.status,
            head,
            body,
            clean_end,
        };
        assert_answers(&answer, &blob, &range, expected);
        assert_eq!(
            stage.bodies(&blob).len(),
            1,
            "{range} went upstream by itself"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_if_range_decides_whether_a_range_counts() {
    let stage = Stage::new().await;
    let blob = stage.blob(200 * KIB);
    let right = format!("\"{}\"", blob.digest);
    let weak = format!("W/{right}");
    let other = format!("\"sha256:{}\"", "0".repeat(64));
    let date = "Wed, 21 Oct 2015 07:28:00 GMT";
    for outcome in ["miss", "hit"] {
        let client = stage.proxy.client();
        for (validator, expected) in [
            (&*weak, Whole),
            (&*other, Whole),
            (date, Whole),
            (&*right, Part(5, 10)),
        ] {
            let headers = [("range", "bytes=5-9"), ("if-range", validator)];
            let answer = client.get_with(&blob.path, &headers).await;
            assert_answers(&answer, &blob, &format!("{outcome} {validator}"), expected);
        }
        assert!(stage.keeps(&blob).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p12_ranges_into_a_growing_blob_wait_for_their_bytes() {
    let stage = Stage::new().await;
    let blob = stage.blob(6 * MIB);
    let front = 2 * MIB;
    let gate = Gate::new();
    stage.spoil(&blob, [Fault::HoldAfter(front, gate.clone())]);
    let _first = stage.begin(&blob).await;
    gate.arrived(1).await;

    let behind = get_range(&stage, &blob, &format!("bytes={MIB}-{}", front - 1)).await;
    assert_answers(&behind, &blob, "behind", Part(MIB, front));

    let client = stage.proxy.client();
    let mut waiting = Vec::new();
    for (range, from, to) in [
        (
            format!("bytes={}-{}", front - 10, front + 10),
            front - 10,
            front + 11,
        ),
        (
            format!("bytes={front}-{}", front + 999),
            front,
            front + 1000,
        ),
        (
            format!("bytes={}-{}", 4 * MIB, 5 * MIB - 1),
            4 * MIB,
            5 * MIB,
        ),
        (format!("bytes={}-", 5 * MIB), 5 * MIB, 6 * MIB),
        ("bytes=-1000".to_owned(), 6 * MIB - 1000, 6 * MIB),
        (format!("bytes={}-", 6 * MIB - 1), 6 * MIB - 1, 6 * MIB),
    ] {
        let mut connection = client.start("GET", &blob.path, &[("range", &range)]).await;
        let head = connection.head().await.expect("a head");
        assert_eq!(
            (head.status, head.header("x-cache")),
            (206, Some("joined")),
            "{range}"
        );
        waiting.push((connection, head, range, Part(from, to)));
    }
    gate.open();
    for (mut connection, head, range, expected) in waiting {
        let (body, clean_end) = connection.body("GET", &head).await;
        let answer = Answer {
            status: head.status,
            head,
            body,
            clean_end,
        };
        assert_answers(&answer, &blob, &range, expected);
    }
    assert_eq!(stage.bodies(&blob).len(), 1);
    assert_eq!(stage.bytes_sent(&blob), blob.size);
}

#[tokio::test(flavor = "multi_thread")]
async fn p12_a_range_far_ahead_of_the_front_goes_past_the_cache() {
    let stage = Stage::new().await;
    let blob = stage.blob(12 * MIB);
    let gate = Gate::new();
    stage.spoil_times(&blob, 1, Fault::HoldAfter(MIB, gate.clone()));
    let (mut first, head) = stage.begin(&blob).await;
    first.read_exactly(MIB).await.expect("what has come");
    let from = 9 * MIB + 1;
    let far = get_range(&stage, &blob, &format!("bytes={from}-{}", from + 99)).await;
    assert_answers(&far, &blob, "far ahead", Part(from, from + 100));
    assert_eq!(far.header("x-cache"), Some("bypass"));

    let near = format!("bytes={}-", 9 * MIB);
    let client = stage.proxy.client();
    let mut near = client.start("GET", &blob.path, &[("range", &near)]).await;
    let near_head = near.head().await.expect("a head");
    assert_eq!(near_head.header("x-cache"), Some("joined"));
    gate.open();
    let (body, clean_end) = near.body("GET", &near_head).await;
    assert!(clean_end && body == blob.part(9 * MIB, 12 * MIB));
    assert_eq!(head.content_length(), Some(12 * MIB));
    assert_eq!(stage.bodies(&blob).len(), 2);
}

/// The outcome of one range of a cold blob, whose bytes are checked.
async fn outcome(stage: &Stage, blob: &TestBlob, from: u64, to: u64) -> String {
    let range = format!("bytes={from}-{}", to - 1);
    let answer = get_range(stage, blob, &range).await;
    assert_answers(&answer, blob, &range, Part(from, to));
    answer.header("x-cache").expect("X-Cache").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_range_of_a_cold_blob_is_fetched_alone_and_not_kept() {
    let stage = Stage::new().await;
    let blob = stage.blob(4 * MIB);
    stage.introduce(&blob).await;
    assert_eq!(outcome(&stage, &blob, 1000, 2000).await, "bypass");
    assert_eq!(outcome(&stage, &blob, 0, 1000).await, "bypass");
    assert_eq!(
        stage.bytes_sent(&blob),
        2000,
        "{}",
        stage.simulator.journal()
    );
    assert!(!stage.keeps(&blob).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn u09_a_range_that_upstream_ignores_is_served_from_a_fill() {
    let stage = Stage::new().await;
    for (size, from) in [(4 * MIB, 1000), (40 * MIB, 20 * MIB)] {
        let blob = stage.blob(size);
        stage.introduce(&blob).await;
        stage.spoil(&blob, [Fault::IgnoreRange]);
        assert_eq!(outcome(&stage, &blob, from, from + 1000).await, "miss");
        assert!(stage.keeps(&blob).await);
        assert_eq!(outcome(&stage, &blob, from, from + 1000).await, "hit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u09_an_upstream_that_ignores_ranges_is_asked_for_one_once_while_a_fill_runs() {
    let stage = Stage::new().await;
    let blob = stage.blob(40 * MIB);
    let gate = Gate::new();
    stage.spoil_times(&blob, 1, Fault::HoldAfter(MIB, gate.clone()));
    let (mut first, _) = stage.begin(&blob).await;
    first.read_exactly(MIB).await.expect("what has come");
    stage.spoil(&blob, [Fault::IgnoreRange]);
    let client = stage.proxy.client();
    let mut readers = Vec::new();
    for from in [20 * MIB, 30 * MIB, 39 * MIB] {
        let range = format!("bytes={from}-");
        let mut reader = client.start("GET", &blob.path, &[("range", &range)]).await;
        let head = reader.head().await.expect("a head");
        assert_eq!(head.header("x-cache"), Some("joined"));
        readers.push((from, reader, head));
    }
    assert_eq!(
        stage.bodies(&blob).len(),
        2,
        "{}",
        stage.simulator.journal()
    );
    gate.open();
    for (from, mut reader, head) in readers {
        let (body, clean_end) = reader.body("GET", &head).await;
        assert!(clean_end && body == blob.part(from, 40 * MIB));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u22_ranges_beyond_4_gib_are_counted_in_all_their_digits() {
    let stage = Stage::new().await;
    let client = stage.proxy.client();
    for (digit, size) in [
        ("1", (4 << 30) - 1),
        ("2", 4 << 30),
        ("3", (4 << 30) + 1),
        ("4", 5_u64 << 30),
    ] {
        // What is asked of it is not enough for its digest to be found.
        let digest = format!("sha256:{}", digit.repeat(64));
        let source = BlobSource::generated(size, size);
        stage
            .simulator
            .put_blob_as(REPOSITORY, &digest, source.clone());
        let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
        let head = client.head(&path).await;
        assert_eq!(head.head.content_length(), Some(size));
        let ends = [(size - 20, size), ((4 << 30) - 10, (4 << 30) + 10)];
        for (from, to) in ends.into_iter().filter(|(_, to)| *to <= size) {
            let range = format!("bytes={from}-{}", to - 1);
            let part = client.get_with(&path, &[("range", &range)]).await;
            assert_eq!(part.status, 206, "{size}, {range}: {}", part.text());
            let told = format!("bytes {from}-{}/{size}", to - 1);
            assert_eq!(part.header("content-range"), Some(&*told));
            assert!(part.body == source.read(from..to), "{size}, {range}");
        }
        let beyond = format!("bytes={size}-");
        let none = client.get_with(&path, &[("range", &beyond)]).await;
        let told = format!("bytes */{size}");
        assert_eq!(
            (none.status, none.header("content-range")),
            (416, Some(&*told))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_from_the_start_that_is_open_ended_begins_a_fill() {
    let stage = Stage::new().await;
    let blob = stage.blob(4 * MIB);
    stage.introduce(&blob).await;
    let answer = get_range(&stage, &blob, "bytes=0-").await;
    assert_answers(&answer, &blob, "0-", Part(0, blob.size));
    assert_eq!(answer.header("x-cache"), Some("miss"));
    assert!(stage.keeps(&blob).await);
    assert_eq!(stage.bytes_sent(&blob), blob.size);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_from_the_start_over_8_mib_begins_a_fill() {
    let stage = Stage::new().await;
    let exactly = stage.blob(40 * MIB);
    stage.introduce(&exactly).await;
    assert_eq!(outcome(&stage, &exactly, 0, 8 * MIB).await, "bypass");
    assert!(!stage.keeps(&exactly).await);

    let over = stage.blob(40 * MIB + 1);
    stage.introduce(&over).await;
    assert_eq!(outcome(&stage, &over, 0, 8 * MIB + 1).await, "miss");
    assert!(stage.keeps(&over).await, "the fill ended with its reader");
    assert_eq!(stage.bytes_sent(&over), over.size);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_cover_a_quarter_begin_a_fill() {
    let stage = Stage::new().await;
    let blob = stage.blob(4 * MIB);
    stage.introduce(&blob).await;
    for number in 0..3 {
        let from = MIB + number * 256 * KIB;
        let to = from + 256 * KIB;
        assert_eq!(outcome(&stage, &blob, from, to).await, "bypass");
    }
    assert!(!stage.keeps(&blob).await);
    assert_eq!(
        outcome(&stage, &blob, 2 * MIB, 2 * MIB + 256 * KIB).await,
        "miss"
    );
    assert!(stage.keeps(&blob).await);
    assert_eq!(outcome(&stage, &blob, 3 * MIB, 4 * MIB).await, "hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_are_refused_until_the_blob_is_cached() {
    let stage = Stage::new().await;
    let blob = stage.blob(MIB);
    let asked = "bytes=0-9,100-199,-5";
    let cold = get_range(&stage, &blob, asked).await;
    assert_eq!(cold.status, 400, "{}", cold.text());
    assert!(!cold.error_code().is_empty());

    let gate = Gate::new();
    stage.spoil(&blob, [Fault::HoldAfter(100 * KIB, gate.clone())]);
    let (mut first, head) = stage.begin(&blob).await;
    let filling = get_range(&stage, &blob, asked).await;
    assert_eq!(filling.status, 400, "{}", filling.text());
    gate.open();
    assert!(first.body("GET", &head).await.1);
    assert!(stage.keeps(&blob).await);

    for client in [stage.proxy.client(), stage.proxy.tls_client()] {
        let cached = client.get_with(&blob.path, &[("range", asked)]).await;
        assert_eq!((cached.status, cached.clean_end), (206, true));
        assert_eq!(cached.head.content_length(), Some(cached.body.len() as u64));
        let parts = [(0, 10), (100, 200), (MIB - 5, MIB)];
        assert_multipart(&cached, &blob, &parts);
    }
    assert_eq!(stage.bodies(&blob).len(), 1);
}

fn assert_multipart(answer: &Answer, blob: &TestBlob, parts: &[(u64, u64)]) {
    let media_type = answer.header("content-type").expect("Content-Type");
    let boundary = media_type
        .strip_prefix("multipart/byteranges; boundary=")
        .expect("a boundary");
    let mut left = &answer.body[..];
    for (from, to) in parts {
        let (_, after) = split(left, format!("--{boundary}\r\n").as_bytes());
        let (head, body) = split(after, b"\r\n\r\n");
        let head = String::from_utf8_lossy(head).to_lowercase();
        let told = format!("content-range: bytes {from}-{}/{}", to - 1, blob.size);
        assert!(head.contains(&told), "{head}");
        let length = usize::try_from(to - from).expect("a small part");
        assert!(body[..length] == blob.part(*from, *to), "{told}");
        left = &body[length..];
    }
    let end = format!("\r\n--{boundary}--");
    assert!(left.starts_with(end.as_bytes()), "more than was asked");
}

fn split<'a>(bytes: &'a [u8], by: &[u8]) -> (&'a [u8], &'a [u8]) {
    let at = bytes.windows(by.len()).position(|window| window == by);
    let at = at.unwrap_or_else(|| panic!("no {:?}", String::from_utf8_lossy(by)));
    (&bytes[..at], &bytes[at + by.len()..])
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_hostile_lists_of_ranges_bring_no_byte_that_is_not_the_blobs() {
    let stage = Stage::new().await;
    let blob = stage.blob(100 * KIB);
    stage.assert_pulls(&blob).await;
    assert!(stage.keeps(&blob).await);
    let thousand: Vec<String> = (0..1000).map(|at| format!("{at}-{at}")).collect();
    for asked in [
        format!("bytes={}", thousand.join(",")),
        format!("bytes={}", vec!["0-"; 1000].join(",")),
        // The payload of CVE-2017-7529: the sum of the suffixes overflows.
        format!(
            "bytes=-{},-9223372036854{}",
            blob.size + 623,
            775_808 - blob.size
        ),
        "bytes=0-,0-,0-,0-".to_owned(),
    ] {
        let answer = get_range(&stage, &blob, &asked).await;
        let told = &asked[..asked.len().min(60)];
        assert!(answer.clean_end, "{told}");
        assert!(
            answer.body.len() as u64 <= 2 * blob.size + 256 * KIB,
            "{told}: {} bytes",
            answer.body.len()
        );
        match answer.status {
            200 => assert_whole(&answer, &blob),
            416 => {}
            206 if answer.header("content-range").is_some() => {
                assert_answers(&answer, &blob, told, True);
            }
            206 => {
                let parts = parts_of(&answer, blob.size);
                assert_multipart(&answer, &blob, &parts);
            }
            other => panic!("{told}: {other} {}", answer.text()),
        }
    }
}

/// The parts that a multipart answer says it holds.
fn parts_of(answer: &Answer, size: u64) -> Vec<(u64, u64)> {
    let text = answer.text();
    let heads = text
        .lines()
        .filter_map(|line| line.strip_prefix("Content-Range: "));
    heads.map(|told| parse(told.trim(), size)).collect()
}

/// The fields in which HEAD and GET must agree.
fn told(answer: &Answer) -> (u16, Vec<Option<String>>) {
    let fields = [
        "content-length",
        "content-type",
        "docker-content-digest",
        "etag",
        "accept-ranges",
    ];
    let values = fields
        .iter()
        .map(|name| answer.header(name).map(str::to_owned));
    (answer.status, values.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_head_says_what_get_says() {
    let stage = Stage::new().await;
    let client = stage.proxy.client();
    let cold = stage.blob(200 * KIB);
    let cold_head = client.head(&cold.path).await;
    assert!(stage.bytes_sent(&cold) <= 1, "HEAD fetched content");
    let cold_get = stage.assert_pulls(&cold).await;
    assert_eq!(told(&cold_head), told(&cold_get), "cold");
    assert!(stage.keeps(&cold).await);
    let hit = client.head(&cold.path).await;
    assert_eq!(told(&hit), told(&cold_get), "hit");
    assert_eq!(hit.header("x-cache"), Some("hit"));

    let filling = stage.blob(300 * KIB);
    let gate = Gate::new();
    stage.spoil(&filling, [Fault::HoldAfter(100 * KIB, gate.clone())]);
    let (mut first, head) = stage.begin(&filling).await;
    let filling_head = client.head(&filling.path).await;
    gate.open();
    let (body, clean_end) = first.body("GET", &head).await;
    let filling_get = Answer {
        status: head.status,
        head,
        body,
        clean_end,
    };
    assert_eq!(told(&filling_head), told(&filling_get), "filling");

    let absent = format!("/v2/{REPOSITORY}/blobs/sha256:{}", "1".repeat(64));
    let (head, get) = (client.head(&absent).await, client.get(&absent).await);
    assert_eq!((head.status, get.status), (404, 404));
    assert_eq!(head.header("content-type"), get.header("content-type"));

    let manifest = format!(
        "/v2/{REPOSITORY}/manifests/{}",
        stage.manifest_of("v1", &cold)
    );
    for path in [&manifest, &format!("/v2/{REPOSITORY}/manifests/v1")] {
        for round in ["cold", "warm"] {
            let (head, get) = (client.head(path).await, client.get(path).await);
            assert_eq!(get.status, 200);
            assert_eq!(told(&head), told(&get), "{round} {path}");
            assert!(head.body.is_empty());
        }
    }
}
