//! A push within the limits of both sides: upstream's throttling is waited out before anything flows, a slow line
//! takes as long as it takes, and what does not come on, or is framed so that it could be read in two ways, ends.

mod support;

use std::time::{Duration, Instant};

use ecr_proxy::simulator::{Entry, Fault, Gate, Listener, Pattern};
use support::blobs::{metric, until};
use support::h2::{DATA, END_HEADERS, END_STREAM, HEADERS, Raw, Verdict, field, frame, request};
use support::push::{APP, Rig, begin, bytes, push_image, put, send};
use support::store::digest;
use support::{Client, Clock, DOMAIN, within};

const THROTTLED: &str = "ecr_proxy_upstream_throttled_total";

/// A request that reached the registry, by its method and a part of its path.
fn is(method: &'static str, part: &'static str) -> Pattern {
    Pattern::matching(move |entry: &Entry| entry.method == method && entry.path.contains(part))
}

/// How much of a body of this method upstream has.
fn arrived(rig: &Rig, method: &str) -> u64 {
    let entries = rig.ecr.journal().snapshot();
    let bodies = entries.iter().filter(|entry| entry.method == method);
    bodies.map(|entry| entry.request_bytes).sum()
}

/// Bodies of this method that upstream has had whole, and has answered.
fn finished(rig: &Rig, method: &str) -> usize {
    let journal = rig.ecr.journal();
    journal.count(|entry| entry.method == method && entry.status.is_some())
}

/// How many bytes of uploads the proxy has sent upstream.
async fn sent(rig: &Rig) -> f64 {
    metric(&rig.proxy, "ecr_proxy_upstream_sent_bytes_total", &[]).await
}

async fn is_over(client: &Client, place: &str) {
    let answer = client.get(place).await;
    let told = (answer.status, answer.error_code());
    assert_eq!(told, (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn u12_throttling_is_absorbed_before_anything_flows() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let layer = bytes(300_000);
    let once = |method: &'static str, part: &'static str| {
        let rule = rig
            .ecr
            .faults()
            .on(Listener::Registry, method, is(method, part));
        rule.times(1).then(Fault::throttled(Some("1")))
    };
    // The begin of an upload, its end without a body, and a manifest: nothing of a client's is lost with them.
    let throttled = once("POST", "/blobs/uploads/");
    let place = begin(&ann, APP).await;
    assert_eq!(throttled.taken(), 1);
    // Others found the gate closed: what is to flow waits before it does.
    let _throttled = once("POST", "/blobs/uploads/");
    let open = Instant::now();
    let patch = async {
        until("the proxy was told", async || {
            metric(&rig.proxy, THROTTLED, &[]).await == 2.0
        })
        .await;
        let patched = send(&ann, "PATCH", &place, &[], &layer, true).await;
        (patched, open.elapsed())
    };
    let (_, (patched, waited)) = tokio::join!(begin(&ann, APP), patch);
    // From before it was closed: however late this learns of that, it is not less.
    assert!(waited > Duration::from_millis(900), "{waited:?}");
    assert_eq!(patched.status, 202, "{}", patched.text());
    let throttled = once("PUT", "/blobs/uploads/");
    let ended = put(
        &ann,
        &format!("{place}?digest={}", digest(&layer)),
        &[],
        b"",
    )
    .await;
    assert_eq!(
        (ended.status, throttled.taken()),
        (201, 1),
        "{}",
        ended.text()
    );
    let throttled = once("PUT", "/manifests/");
    let (pushed, _) = push_image(&ann, APP, "v1", &layer).await;
    assert_eq!(
        (pushed.status, throttled.taken()),
        (201, 1),
        "{}",
        pushed.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn u12_throttling_of_what_has_begun_to_flow_is_told_and_it_is_never_sent_twice() {
    let layer = bytes(300_000);
    // Whether the body has begun to flow when upstream says so decides.
    for (method, flows) in [
        ("PATCH", true),
        ("PUT", true),
        ("PATCH", false),
        ("PUT", false),
    ] {
        // A proxy of its own: what of an upload that was refused is still on its way would count as this one's.
        let rig = Rig::start().await;
        let ann = rig.user("ann");
        let place = begin(&ann, APP).await;
        let gate = Gate::new();
        let rule = rig
            .ecr
            .faults()
            .on(Listener::Registry, method, "/blobs/uploads/");
        let throttled = [Fault::Hold(gate.clone()), Fault::throttled(Some("1"))];
        let rule = rule.times(1).all(throttled);
        let target = format!("{place}?digest={}", digest(&layer));
        let length = layer.len().to_string();
        let mut connection = ann
            .start(method, &target, &[("content-length", &*length)])
            .await;
        within("upstream is asked", gate.arrived(1)).await;
        let (first, rest) = layer.split_at(if flows { 100_000 } else { 0 });
        connection.send(first).await.expect("send");
        if flows {
            until("it flows", async || sent(&rig).await > 0.0).await;
        }
        gate.open();
        if !flows {
            until("it is asked again", async || {
                rig.asked(method, "/blobs/uploads/") == 2
            })
            .await;
        }
        connection.send(rest).await.expect("it is taken");
        let answer = connection.answer(method).await.expect("an answer");
        if !flows {
            let good = if method == "PUT" { 201 } else { 202 };
            assert_eq!(answer.status, good, "{method}: {}", answer.text());
            continue;
        }
        let told = (answer.status, answer.error_code());
        assert_eq!(
            told,
            (503, "UNAVAILABLE".to_owned()),
            "{method}: {}",
            answer.text()
        );
        assert!(answer.header("retry-after").is_some());
        let asked = rig.asked(method, "/blobs/uploads/");
        assert_eq!((rule.taken(), asked), (1, 1), "{method} is sent once");
        is_over(&ann, &place).await;
        assert!(rig.ecr.blob(APP, &digest(&layer)).is_none());
        let (pushed, _) = push_image(&ann, APP, "v1", &layer).await;
        assert_eq!(pushed.status, 201, "{}", pushed.text());
    }
}

/// An upload of which a part flows, and no more comes for now.
async fn flowing<'a>(
    rig: &Rig,
    ann: &Client,
    place: &str,
    layer: &'a [u8],
) -> (support::Connection, &'a [u8]) {
    let before = sent(rig).await;
    let length = layer.len().to_string();
    let headers = [("content-length", &*length)];
    let mut connection = ann.start("PATCH", place, &headers).await;
    let (first, rest) = layer.split_at(layer.len() / 2);
    connection.send(first).await.expect("send");
    until("it flows", async || sent(rig).await > before).await;
    (connection, rest)
}

#[tokio::test(flavor = "multi_thread")]
async fn u12_an_upload_that_finds_out_whether_throttling_has_ended_holds_up_nobody() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let layer = bytes(300_000);
    let gate = Gate::new();
    let uploads = rig.ecr.faults();
    let uploads = uploads.on(Listener::Registry, "PATCH", "/blobs/uploads/");
    let throttled = uploads.times(1);
    let throttled = throttled.all([Fault::Hold(gate.clone()), Fault::throttled(Some("1"))]);
    let places = [begin(&ann, APP).await, begin(&ann, APP).await];
    let (mut first, rest) = flowing(&rig, &ann, &places[0], &layer).await;
    gate.open();
    first.send(rest).await.expect("it is taken");
    let told = first.answer("PATCH").await.expect("an answer");
    assert_eq!(
        (told.status, throttled.taken()),
        (503, 1),
        "{}",
        told.text()
    );
    // The next upload is the first to be let through, and takes its time.
    let (mut second, rest) = flowing(&rig, &ann, &places[1], &layer).await;
    let tag = format!("/v2/{APP}/manifests/none");
    let told = ann.get(&tag).await;
    assert_eq!(told.status, 404, "{}", told.text());
    second.send(rest).await.expect("send");
    let answer = second.answer("PATCH").await.expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn o10_an_upload_that_flows_goes_on_where_nothing_else_is_answered() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let layer = bytes(300_000);
    let place = begin(&ann, APP).await;
    let (mut upload, rest) = flowing(&rig, &ann, &place, &layer).await;
    let gate = Gate::new();
    let questions = |entry: &Entry| entry.method != "PATCH";
    let faults = rig.ecr.faults();
    let silent = faults.on(Listener::Registry, "*", Pattern::matching(questions));
    let _silent = silent.then(Fault::Hold(gate.clone()));
    let open = "ecr_proxy_upstream_breaker_open";
    until("upstream is given up", async || {
        let told = ann.get(&format!("/v2/{APP}/manifests/none")).await;
        assert_eq!(told.status, 503, "{}", told.text());
        metric(&rig.proxy, open, &[]).await == 1.0
    })
    .await;
    upload.send(rest).await.expect("send");
    let answer = upload.answer("PATCH").await.expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.text());
    gate.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_end_upstream_did_not_hear_of_can_be_ended_again() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let layer = bytes(300_000);
    let place = begin(&ann, APP).await;
    let sent = send(&ann, "PATCH", &place, &[], &layer, false).await;
    assert_eq!(sent.status, 202, "{}", sent.text());
    let faults = rig.ecr.faults();
    let ends = faults.on(Listener::Registry, "PUT", is("PUT", "/blobs/uploads/"));
    let failing = ends.times(3).then(Fault::status(503, "later"));
    let end = format!("{place}?digest={}", digest(&layer));
    let told = put(&ann, &end, &[], b"").await;
    assert_eq!(told.status, 503, "{}", told.text());
    assert!(told.header("retry-after").is_some() && failing.taken() > 0);
    until("it is ended", async || {
        put(&ann, &end, &[], b"").await.status == 201
    })
    .await;
    assert!(rig.ecr.blob(APP, &digest(&layer)).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn l05_a_body_that_trickles_ends_and_upstream_is_free_of_it() {
    let clock = Clock::right();
    let rig = Rig::with(|proxy| clock.govern_deadlines(proxy)).await;
    let ann = rig.user("ann");
    let mut waited = Duration::ZERO;
    for method in ["PATCH", "PUT"] {
        let place = begin(&ann, APP).await;
        let target = format!("{place}?digest={}", digest(b"never"));
        let headers = [("content-length", "1000000")];
        let mut connection = ann.start(method, &target, &headers).await;
        connection.send(bytes(10_000)).await.expect("send");
        connection.send(bytes(2_000)).await.expect("send");
        until("it flows", async || arrived(&rig, method) > 0).await;
        waited += Duration::from_secs(31);
        clock.ahead(waited);
        connection.send(b"x").await.expect("send");
        let answer = connection.answer(method).await.expect("an answer");
        assert_eq!(answer.status, 408, "{method}: {}", answer.text());
        assert_eq!(answer.error_code(), "BLOB_UPLOAD_INVALID");
        is_over(&ann, &place).await;
        assert_eq!(finished(&rig, method), 0, "no whole body");
        until("upstream is told", async || {
            rig.asked("DELETE", "/blobs/uploads/") == rig.asked("POST", "/blobs/uploads/")
        })
        .await;
    }
    let left = support::store::files_below(&rig.proxy.cache_dir().join("fills"));
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn l05_a_body_that_trickles_over_h2_ends_and_the_streams_beside_it_go_on() {
    let clock = Clock::right();
    let rig = Rig::with(|proxy| clock.govern_deadlines(proxy)).await;
    let ann = rig.user("ann");
    let authorization = support::users::basic("ann", support::push::PASSWORD);
    let head = |method: &str, path: &str| {
        let mut head = request(method, path);
        head.extend(field("authorization", authorization.as_bytes()));
        head
    };
    let mut waited = Duration::ZERO;
    let (slow, beside) = (1, 3);
    for method in ["PATCH", "PUT"] {
        // This client answers no PING: on an older connection, one could be missing when time passes.
        let mut raw = Raw::connect(&rig.proxy.tls_client(), &[]).await;
        let place = begin(&ann, APP).await;
        let target = format!("{place}?digest={}", digest(b"never"));
        let mut begun = frame(HEADERS, END_HEADERS, slow, &head(method, &target));
        begun.extend(frame(DATA, 0, slow, &bytes(10_000)));
        begun.extend(frame(DATA, 0, slow, &bytes(2_000)));
        raw.send(begun).await.expect("send");
        until("it flows", async || arrived(&rig, method) > 0).await;
        waited += Duration::from_secs(31);
        clock.ahead(waited);
        raw.send(frame(DATA, 0, slow, b"x")).await.expect("send");
        assert_eq!(raw.verdict(slow).await, Verdict::Answered(408), "{method}");
        let both = END_STREAM | END_HEADERS;
        let asked = frame(HEADERS, both, beside, &head("GET", "/v2/"));
        raw.send(asked).await.expect("send");
        assert_eq!(raw.verdict(beside).await, Verdict::Answered(200));
        is_over(&ann, &place).await;
        assert_eq!(finished(&rig, method), 0, "no whole body");
        until("upstream is told", async || {
            rig.asked("DELETE", "/blobs/uploads/") == rig.asked("POST", "/blobs/uploads/")
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn o10_l05_a_slow_line_takes_its_hours_and_a_token_that_ends_costs_one_clean_error_at_most() {
    let clock = Clock::right();
    let rig = Rig::with(|proxy| clock.govern_deadlines(proxy)).await;
    let ann = rig.user("ann");
    let piece = 20_000;
    let layer = bytes(400 * piece);
    let length = layer.len().to_string();
    let target = format!("{}?digest={}", begin(&ann, APP).await, digest(&layer));
    let mut connection = ann
        .start("PUT", &target, &[("content-length", &*length)])
        .await;
    let mut rest = layer.as_slice();
    for number in 1..=370_u64 {
        // What the proxy has read last it keeps back until it reads more. It is never behind by more than a
        // piece, and by the time of two; and before any of it arrives, it is a connection that takes time.
        let flows = async {
            let mut next = piece;
            loop {
                let (part, behind) = rest.split_at(next);
                connection.send(part).await.expect("send");
                rest = behind;
                let most_behind = (rest.len() + piece) as u64;
                let there = arrived(&rig, "PUT");
                if there > 0 && there + most_behind >= layer.len() as u64 {
                    return;
                }
                next = 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within("it flows", flows).await;
        clock.ahead(Duration::from_secs(10 * number));
    }
    connection.send(rest).await.expect("send");
    let answer = connection.answer("PUT").await.expect("an answer");
    assert_eq!(answer.status, 201, "after an hour: {}", answer.text());

    // Another, during which the token ends.
    let layer = bytes(200_000);
    let place = begin(&ann, APP).await;
    let target = format!("{place}?digest={}", digest(&layer));
    let mut connection = ann
        .start("PUT", &target, &[("content-length", "200000")])
        .await;
    let before = arrived(&rig, "PUT");
    connection.send(&layer[..100_000]).await.expect("send");
    until("it flows", async || arrived(&rig, "PUT") > before).await;
    rig.ecr.expire_tokens();
    connection.send(&layer[100_000..]).await.expect("send");
    let answer = connection.answer("PUT").await.expect("an answer");
    let told = (answer.status, answer.error_code());
    assert_eq!(told, (503, "UNAVAILABLE".to_owned()), "{}", answer.text());
    is_over(&ann, &place).await;
    let (again, _) = push_image(&ann, APP, "v1", &layer).await;
    assert_eq!(again.status, 201, "{}", again.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_nobody_goes_on_with_is_gone_after_an_hour_upstream_too() {
    let clock = Clock::right();
    let rig = Rig::with(|proxy| clock.govern_deadlines(proxy)).await;
    let ann = rig.user("ann");
    let place = begin(&ann, APP).await;
    let sent = send(&ann, "PATCH", &place, &[], &bytes(1000), true).await;
    assert_eq!(sent.status, 202);
    clock.ahead(Duration::from_secs(58 * 60));
    assert_eq!(ann.get(&place).await.status, 204);
    clock.ahead(Duration::from_secs((58 + 62) * 60));
    until("it is forgotten", async || {
        ann.get(&place).await.status == 404
    })
    .await;
    is_over(&ann, &place).await;
    until("and given up", async || {
        rig.asked("DELETE", "/blobs/uploads/") == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p01_p02_p03_p04_of_a_live_upload_nothing_is_taken_that_can_be_read_in_two_ways() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let authorization = support::users::basic("ann", support::push::PASSWORD);
    // Heads that are refused as they stand, and leave the upload as it was.
    let place = begin(&ann, APP).await;
    let hidden =
        format!("GET {place} HTTP/1.1\r\nHost: {DOMAIN}\r\nAuthorization: {authorization}\r\n\r\n");
    for (version, headers, body) in [
        (
            "1.1",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
        ),
        (
            "1.1",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "0\r\n\r\n",
        ),
        ("1.1", "Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        ("1.1", "Content-Length: 5, 5\r\n", "hello"),
        ("1.1", "Content-Length: +5\r\n", "hello"),
        (
            "1.0",
            "Transfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        ("1.1", "Transfer-Encoding: xchunked\r\n", "hello"),
        (
            "1.1",
            "Transfer-Encoding: chunked, identity\r\n",
            "0\r\n\r\n",
        ),
        ("1.1", "Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        (
            "1.1",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
        ),
        ("1.1", "Content-Length: 5\r\nX: a\rB: c\r\n", "hello"),
        ("1.1", "Content-Length: 5\r\nX: a\0b\r\n", "hello"),
        ("1.1", "Content-Length: 5\r\n folded: yes\r\n", "hello"),
        ("1.1", "Content-Length : 5\r\n", "hello"),
    ] {
        for method in ["PATCH", "PUT"] {
            let mut connection = ann.connect().await;
            let target = format!("{place}?digest={}", digest(b"hello"));
            let head = format!(
                "{method} {target} HTTP/{version}\r\nHost: {DOMAIN}\r\nAuthorization: {authorization}\r\n{headers}\r\n"
            );
            let text = format!("{head}{body}{hidden}");
            connection.send(text).await.expect("send");
            let refused = connection.answer(method).await.expect("an answer");
            assert!(
                matches!(refused.status, 400 | 501),
                "{headers:?}: {}",
                refused.status
            );
            let (rest, _) = connection.until_closed().await;
            assert_eq!(rest, b"", "{headers:?}: something followed the refusal");
        }
        assert_eq!(ann.get(&place).await.status, 204, "{headers:?}");
    }
    assert_eq!(
        arrived(&rig, "PATCH") + arrived(&rig, "PUT"),
        0,
        "nothing upstream"
    );

    // Chunks that are none: what began is broken off, and no end follows.
    for body in [
        "5;x=y\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\nz\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nbad trailer\r\n\r\n",
    ] {
        for method in ["PATCH", "PUT"] {
            let place = begin(&ann, APP).await;
            let target = format!("{place}?digest={}", digest(b"hello"));
            let chunked = [("transfer-encoding", "chunked")];
            let mut connection = ann.start(method, &target, &chunked).await;
            connection.send(body).await.expect("send");
            if let Ok(answer) = connection.answer(method).await {
                assert_eq!(answer.status, 400, "{body:?}: {}", answer.text());
                let (rest, _) = connection.until_closed().await;
                assert_eq!(rest, b"", "{body:?}");
            }
            until("the upload is over", async || {
                ann.get(&place).await.status == 404
            })
            .await;
        }
    }
    assert_eq!(finished(&rig, "PATCH") + finished(&rig, "PUT"), 0);
    assert!(rig.ecr.blob(APP, &digest(b"hello")).is_none());
    let answer = ann
        .get(&format!("/v2/{APP}/blobs/{}", digest(b"hello")))
        .await;
    assert_eq!(answer.status, 404);

    // An extension is nobody's, and is not passed on; trailers are no headers.
    let place = begin(&ann, APP).await;
    let target = format!("{place}?digest={}", digest(b"hello"));
    let mut connection = ann
        .start("PUT", &target, &[("transfer-encoding", "chunked")])
        .await;
    let body = "5;ext=\"evil\"\r\nhello\r\n0\r\nx-smuggled: yes\r\n\r\n";
    connection.send(body).await.expect("send");
    let answer = connection.answer("PUT").await.expect("an answer");
    assert_eq!(answer.status, 201, "{}", answer.text());
    let stored = rig.ecr.blob(APP, &digest(b"hello")).expect("in ECR");
    assert_eq!(&stored.read(0..5)[..], b"hello");
    let smuggled = |entry: &Entry| entry.headers.contains_key("x-smuggled");
    assert_eq!(rig.ecr.journal().count(smuggled), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn p01_p07_an_upload_is_framed_once_upstream_whatever_its_client_nominates() {
    let rig = Rig::start().await;
    let nominated = "authorization, content-length, transfer-encoding, host, content-type, x-any";
    let ann = rig.user("ann").with("connection", nominated);
    let ann = [
        ("x-any", "1"),
        ("te", "trailers"),
        ("trailer", "x-any"),
        ("keep-alive", "timeout=1"),
        ("proxy-connection", "close"),
        ("upgrade", "h2c"),
    ]
    .into_iter()
    .fold(ann, |ann, (name, value)| ann.with(name, value));
    for (number, is_chunked) in [(1, true), (2, false)] {
        let layer = bytes(100_000 + number);
        let (first, second) = layer.split_at(60_000);
        let place = begin(&ann, APP).await;
        let patched = send(&ann, "PATCH", &place, &[], first, is_chunked).await;
        assert_eq!(patched.status, 202, "{}", patched.text());
        let target = format!("{place}?digest={}", digest(&layer));
        let ended = send(&ann, "PUT", &target, &[], second, is_chunked).await;
        assert_eq!(ended.status, 201, "{}", ended.text());
        let (pushed, _) = push_image(&ann, APP, "v1", &layer).await;
        assert_eq!(pushed.status, 201, "{}", pushed.text());
    }
    let entries = rig.ecr.journal().snapshot();
    let registry = entries.iter().filter(|e| e.listener == Listener::Registry);
    for entry in registry {
        let what = format!("{} {}: {:?}", entry.method, entry.path, entry.headers);
        let framings = ["content-length", "transfer-encoding"];
        let framed = framings.map(|name| entry.headers.get_all(name).iter().count());
        let has_body = entry.request_bytes > 0;
        assert!(framed.iter().sum::<usize>() <= 1, "{what}");
        assert!(framed.iter().sum::<usize>() == 1 || !has_body, "{what}");
        assert_eq!(entry.header("host"), Some(&*rig.ecr.registry_host()));
        let credentials = entry.header("authorization").unwrap_or_default();
        assert!(credentials.starts_with("Basic QVdT"), "{what}"); // AWS:…
        for name in [
            "connection",
            "x-any",
            "te",
            "trailer",
            "keep-alive",
            "proxy-connection",
            "upgrade",
        ] {
            assert_eq!(entry.header(name), None, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p16_a_manifest_that_can_be_read_in_two_ways_is_not_pushed() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let good = support::push::manifest(b"layer");
    let inner = &good[1..];
    for (what, text) in [
        (
            "an index and an image",
            format!(r#"{{"manifests":[],{inner}"#),
        ),
        ("its layers twice", format!(r#"{{"layers":[],{inner}"#)),
        ("a byte order mark", format!("\u{feff}{good}")),
        ("more behind it", format!("{good}{good}")),
        (
            "depth without end",
            format!(r#"{{"annotations":{}"#, "[".repeat(100_000)),
        ),
    ] {
        let path = format!("/v2/{APP}/manifests/odd");
        let headers = [("content-type", support::push::MANIFEST)];
        let answer = put(&ann, &path, &headers, text.as_bytes()).await;
        let told = (answer.status, answer.error_code());
        assert_eq!(told, (400, "MANIFEST_INVALID".to_owned()), "{what}");
        assert_eq!(ann.get(&path).await.status, 404, "{what}");
    }
    assert_eq!(rig.asked("PUT", "/manifests/"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn l13_manifests_that_do_not_end_cost_bounded_memory_and_nobody_else_a_push() {
    let clock = Clock::right();
    let rig = Rig::with(|proxy| clock.govern_deadlines(proxy)).await;
    let ann = rig.user("ann");
    // What the first push takes for good is no matter of how many there are.
    let (pushed, _) = push_image(&ann, APP, "v1", &bytes(1000)).await;
    assert_eq!(pushed.status, 201, "{}", pushed.text());
    let before = rig.proxy.memory();
    let mut open = Vec::new();
    for number in 0..60 {
        let path = format!("/v2/{APP}/manifests/long{number}");
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let headers = [("content-type", kind), ("content-length", "4000000")];
        let mut connection = ann.start("PUT", &path, &headers).await;
        // What the proxy does not take yet waits in the system, as far as there is room.
        let piece = bytes(250_000);
        let mut sent = 0;
        while sent < 3_500_000 {
            let sending = tokio::time::timeout(Duration::from_millis(200), connection.send(&piece));
            if sending.await.is_err() {
                break;
            }
            sent += piece.len();
        }
        open.push(connection);
    }
    let grown = rig.proxy.memory().saturating_sub(before);
    assert!(grown < 96 << 20, "{} MiB for 60 manifests", grown >> 20);
    let (pushed, _) = push_image(&ann, APP, "v2", &bytes(2000)).await;
    assert_eq!(pushed.status, 201, "{}", pushed.text());
    // One that came too late is told so.
    clock.ahead(Duration::from_secs(21));
    assert_eq!(ann.get("/v2/").await.status, 200);
    let last = open.last_mut().expect("there are sixty");
    let answer = last.answer("PUT").await.expect("an answer");
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert_eq!(answer.error_code(), "TOOMANYREQUESTS");
}
