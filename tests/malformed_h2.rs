//! What HTTP/2 forbids ends the stream or the connection, or is answered with 400; it is never taken for a
//! request, and the next connection is served. By section of RFC 9113 (HTTP/2) and RFC 7541 (HPACK).

mod support;

use ecr_proxy::simulator::{Listener, Simulator};
use support::h2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PREFACE, PRIORITY,
    PUSH_PROMISE, RST_STREAM, Raw, SETTINGS, Verdict, WINDOW_UPDATE, WITH_PRIORITY, field, fields,
    frame, get, ping, request, settings,
};
use support::image::{REPOSITORY, TAG};
use support::{DOMAIN, Proxy, image};

/// A head, and no body.
const WHOLE: u8 = END_STREAM | END_HEADERS;

struct Rig {
    simulator: Simulator,
    proxy: Proxy,
    /// What would be pulled, were it asked for well.
    path: String,
}

impl Rig {
    async fn start() -> Self {
        let simulator = Simulator::builder().start().await.expect("a simulator");
        image::push(&simulator);
        let proxy = Proxy::before(&simulator);
        Self {
            simulator,
            proxy,
            path: format!("/v2/{REPOSITORY}/manifests/{TAG}"),
        }
    }

    /// What becomes of these bytes after a greeting. A `PING` behind them ends the wait for nothing.
    async fn verdict(&self, bytes: &[u8], stream: u32) -> Verdict {
        let mut raw = Raw::connect(&self.proxy.tls_client(), &[]).await;
        // The proxy may have ended the connection before it has read all of it.
        let _gone = raw.send(bytes).await;
        let _gone = raw.send(ping()).await;
        match raw.verdict(stream).await {
            // The frames were; a request that waits for the rest of its body is not decided yet.
            Verdict::Taken if stream != 0 => raw.verdict(stream).await,
            verdict => verdict,
        }
    }

    fn asked(&self) -> usize {
        let journal = self.simulator.journal();
        journal.count(|entry| entry.listener != Listener::Api)
    }

    async fn is_unharmed(&self) {
        assert_eq!(self.asked(), 0, "something went upstream");
        let answer = self.proxy.tls_client().get_h2(&self.path).await;
        assert_eq!(answer.status, 200);
    }
}

/// A request of these fields in place of, or beside, those of a good one.
fn changed(path: &str, change: &[(&str, Option<&str>)], more: &[(&str, &str)]) -> Vec<u8> {
    let good = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", DOMAIN),
        (":path", path),
    ];
    let mut block = Vec::new();
    for (name, value) in good {
        let value = match change.iter().find(|(changed, _)| *changed == name) {
            Some((_, value)) => *value,
            None => Some(value),
        };
        if let Some(value) = value {
            block.extend(field(name, value.as_bytes()));
        }
    }
    block.extend(fields(more));
    frame(HEADERS, WHOLE, 1, &block)
}

/// A head in two frames.
fn in_pieces(block: &[u8]) -> Vec<u8> {
    let (first, second) = block.split_at(10);
    let first = frame(HEADERS, END_STREAM, 1, first);
    [first, frame(CONTINUATION, END_HEADERS, 1, second)].concat()
}

/// What is answered in another way, and with which status: by the registry, which knows no such path, or by
/// what the head says, before the trailers are there.
const EXCEPTIONS: &[(&str, u16)] = &[
    ("an asterisk to GET", 404),
    ("a fragment alone", 404),
    ("a pseudo-header field in trailers", 401),
];

#[tokio::test(flavor = "multi_thread")]
async fn p20_a_malformed_request_is_no_request() {
    let rig = Rig::start().await;
    let path = rig.path.as_str();
    let with = |more: &[(&str, &str)]| changed(path, &[], more);
    let without = |name: &str| changed(path, &[(name, None)], &[]);
    let other = |name: &str, value: &str| changed(path, &[(name, Some(value))], &[]);
    let twice = |name: &str, value: &str| changed(path, &[], &[(name, value)]);
    let body = |length: &str, data: &[&[u8]]| {
        let mut block = request("POST", path);
        block.extend(field("content-length", length.as_bytes()));
        let mut all = frame(HEADERS, END_HEADERS, 1, &block);
        for (number, part) in data.iter().enumerate() {
            let flags = u8::from(number + 1 == data.len());
            all.extend(frame(DATA, flags, 1, part));
        }
        all
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        // 8.2: fields.
        ("a name in upper case", with(&[("X-Upper", "1")])),
        ("a name with a space", with(&[("x y", "1")])),
        ("a name with a colon", with(&[("x:y", "1")])),
        ("a name with CR LF", with(&[("x\r\ny", "1")])),
        ("a name with NUL", with(&[("x\0y", "1")])),
        ("an empty name", with(&[("", "1")])),
        ("a value with CR LF", with(&[("x", "1\r\nhost: evil.test")])),
        ("a value with LF", with(&[("x", "1\ny")])),
        ("a value with CR", with(&[("x", "1\ry")])),
        ("a value with NUL", with(&[("x", "1\0")])),
        // 8.2.2: fields of one connection.
        ("connection", with(&[("connection", "close")])),
        (
            "transfer-encoding",
            with(&[("transfer-encoding", "chunked")]),
        ),
        ("keep-alive", with(&[("keep-alive", "timeout=5")])),
        ("proxy-connection", with(&[("proxy-connection", "close")])),
        ("upgrade", with(&[("upgrade", "websocket")])),
        ("te other than trailers", with(&[("te", "gzip")])),
        // 8.3: pseudo-header fields.
        ("an unknown one", with(&[(":x", "1")])),
        ("one of answers", with(&[(":status", "200")])),
        ("no method", without(":method")),
        ("no scheme", without(":scheme")),
        ("no path", without(":path")),
        ("no authority and no host", without(":authority")),
        ("an empty method", other(":method", "")),
        ("an empty path", other(":path", "")),
        ("a method with a space", other(":method", "GET /x")),
        ("two methods, after one another", twice(":method", "GET")),
        ("two paths", twice(":path", "/v2/")),
        ("two schemes", twice(":scheme", "https")),
        ("two authorities", twice(":authority", DOMAIN)),
        ("a path with CR LF", other(":path", "/v2/ HTTP/1.1\r\nx: y")),
        ("a path with a space", other(":path", "/v2/ x")),
        ("a path with NUL", other(":path", "/v2/\0")),
        ("a path that is a name", other(":path", "v2/")),
        (
            "a path that is an address",
            other(":path", "https://evil.test/v2/"),
        ),
        ("an asterisk to GET", other(":path", "*")),
        ("a fragment alone", other(":path", "#x")),
        (
            "an authority with a user",
            other(":authority", "user@registry.mydomain.test"),
        ),
        ("an authority with a path", other(":authority", "a/b")),
        ("an authority with CR LF", other(":authority", "a\r\nx: y")),
        ("an empty authority", other(":authority", "")),
        ("a host that is another", with(&[("host", "evil.test")])),
        (
            "two hosts",
            with(&[("host", DOMAIN), ("host", "evil.test")]),
        ),
        ("CONNECT with a path", other(":method", "CONNECT")),
        (
            "CONNECT for another protocol",
            changed(
                path,
                &[(":method", Some("CONNECT"))],
                &[(":protocol", "websocket")],
            ),
        ),
        (
            "a pseudo-header field after others",
            frame(
                HEADERS,
                WHOLE,
                1,
                &[
                    field(":method", b"GET"),
                    field("x", b"1"),
                    field(":scheme", b"https"),
                    field(":authority", DOMAIN.as_bytes()),
                    field(":path", path.as_bytes()),
                ]
                .concat(),
            ),
        ),
        // 8.1.1: lengths.
        ("a length, and no body", with(&[("content-length", "5")])),
        ("a length that is none", with(&[("content-length", "x")])),
        ("a length with a sign", with(&[("content-length", "+0")])),
        (
            "two lengths",
            with(&[("content-length", "0"), ("content-length", "5")]),
        ),
        ("less than its length", body("5", &[b"abc"])),
        ("more than its length", body("5", &[b"abc", b"defg"])),
        (
            "GET with a body",
            [
                frame(HEADERS, END_HEADERS, 1, &request("GET", path)),
                frame(DATA, END_STREAM, 1, b"body"),
            ]
            .concat(),
        ),
        // 8.1: trailers.
        (
            "trailers that do not end the stream",
            [
                frame(HEADERS, END_HEADERS, 1, &request("POST", path)),
                frame(DATA, 0, 1, b"body"),
                frame(HEADERS, END_HEADERS, 1, &field("x", b"1")),
            ]
            .concat(),
        ),
        (
            "a pseudo-header field in trailers",
            [
                frame(HEADERS, END_HEADERS, 1, &request("POST", path)),
                frame(DATA, 0, 1, b"body"),
                frame(HEADERS, WHOLE, 1, &field(":method", b"DELETE")),
            ]
            .concat(),
        ),
    ];
    for (what, bytes) in &cases {
        let verdict = rig.verdict(bytes, 1).await;
        let told = match EXCEPTIONS.iter().find(|(exception, _)| exception == what) {
            Some((_, status)) => verdict == Verdict::Answered(*status),
            None => verdict.is_error() || verdict == Verdict::Answered(400),
        };
        assert!(told, "{what}: {verdict:?}");
    }
    rig.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p20_a_malformed_frame_ends_what_it_is_part_of() {
    let rig = Rig::start().await;
    let path = rig.path.as_str();
    let unfinished = |block: &[u8]| frame(HEADERS, END_STREAM, 1, block);
    let open = frame(HEADERS, END_HEADERS, 1, &request("POST", path));
    let too_far = 0x7fff_ffff_u32.to_be_bytes();
    let block = |bytes: &[u8]| frame(HEADERS, WHOLE, 1, &[&request("GET", path), bytes].concat());
    let cases: Vec<(&str, Vec<u8>)> = vec![
        // 4.2, 4.3.
        ("a frame beyond 16 KiB", frame(PING, 0, 0, &[0; 16_385])),
        (
            "a frame of data beyond 16 KiB",
            [open.clone(), frame(DATA, 0, 1, &[0; 16_385])].concat(),
        ),
        // 5.1: states of streams.
        ("data of a stream that is idle", frame(DATA, 0, 1, b"x")),
        (
            "a reset of a stream that is idle",
            frame(RST_STREAM, 0, 1, &[0; 4]),
        ),
        (
            "an update of a stream that is idle",
            frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
        ),
        ("a stream of an even number", get(2, path)),
        (
            "a stream that was passed over",
            [get(5, "/v2/"), get(3, path)].concat(),
        ),
        // 6.1 to 6.3.
        ("data of stream 0", frame(DATA, 0, 0, b"x")),
        (
            "more padding than data",
            [open.clone(), frame(DATA, PADDED, 1, &[200, 1])].concat(),
        ),
        ("a head on stream 0", get(0, path)),
        (
            "more padding than head",
            frame(HEADERS, WHOLE | PADDED, 1, &[200, 1]),
        ),
        (
            "a head too short for its priority",
            frame(HEADERS, WHOLE | WITH_PRIORITY, 1, &[0]),
        ),
        ("a priority of stream 0", frame(PRIORITY, 0, 0, &[0; 5])),
        ("a priority of four bytes", frame(PRIORITY, 0, 1, &[0; 4])),
        // 6.4 to 6.6.
        ("a reset of stream 0", frame(RST_STREAM, 0, 0, &[0; 4])),
        (
            "a reset of three bytes",
            [open.clone(), frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
        ),
        ("settings of a stream", frame(SETTINGS, 0, 1, &[])),
        ("settings of five bytes", frame(SETTINGS, 0, 0, &[0; 5])),
        (
            "an acknowledgement that says more",
            frame(SETTINGS, 1, 0, &[0; 6]),
        ),
        ("a push that is neither on nor off", settings(&[(2, 2)])),
        ("a window beyond 2^31", settings(&[(4, 0x8000_0000)])),
        ("frames below 16 KiB", settings(&[(5, 100)])),
        ("frames beyond 2^24", settings(&[(5, 1 << 24)])),
        (
            "a push from a client",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
        ),
        // 6.7 to 6.10.
        ("a ping of a stream", frame(PING, 0, 1, &[0; 8])),
        ("a ping of six bytes", frame(PING, 0, 0, &[0; 6])),
        ("a goodbye of a stream", frame(GOAWAY, 0, 1, &[0; 8])),
        ("an update by nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        (
            "an update by too much",
            frame(WINDOW_UPDATE, 0, 0, &too_far),
        ),
        (
            "an update of three bytes",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
        ),
        (
            "a continuation of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &[]),
        ),
        (
            "a continuation of stream 0",
            [
                unfinished(&request("GET", path)),
                frame(CONTINUATION, END_HEADERS, 0, &[]),
            ]
            .concat(),
        ),
        (
            "a continuation of another stream",
            [
                unfinished(&request("GET", path)),
                frame(CONTINUATION, END_HEADERS, 3, &[]),
            ]
            .concat(),
        ),
        (
            "another frame within a head",
            [
                unfinished(&request("GET", path)),
                frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]),
                frame(CONTINUATION, END_HEADERS, 1, &[]),
            ]
            .concat(),
        ),
        (
            "another head within a head",
            [unfinished(&request("GET", path)), get(3, path)].concat(),
        ),
        // RFC 7541.
        ("an entry of number 0", block(&[0x80])),
        ("an entry that is not there", block(&[0xff, 0x50])),
        (
            "a number without end",
            block(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ),
        ("a text that is cut", block(&[0, 5, b'x'])),
        (
            "a text with a code that is none",
            block(&[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]),
        ),
        (
            "a text with too much padding",
            block(&[0, 1, b'x', 0x82, 0x07, 0xff]),
        ),
        (
            "a table beyond the limit",
            frame(
                HEADERS,
                WHOLE,
                1,
                &[&[0x3f, 0xe2, 0x1f], &request("GET", path)[..]].concat(),
            ),
        ),
        ("a size of the table after fields", block(&[0x20])),
    ];
    for (what, bytes) in &cases {
        let verdict = rig.verdict(bytes, 0).await;
        assert!(verdict.is_error(), "{what}: {verdict:?}");
    }
    // 3.4: what is not the preface.
    for preface in [
        &b"GET / HTTP/1.1\r\n\r\n-------------"[..],
        b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut raw = Raw::silent(&rig.proxy.tls_client()).await;
        let _gone = raw.send(preface).await;
        let verdict = raw.verdict(0).await;
        assert!(verdict.is_error(), "{verdict:?}");
    }
    rig.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p20_what_is_only_odd_is_served() {
    let rig = Rig::start().await;
    let padded = |flags: u8, before: &[u8]| {
        let block = [before, &request("GET", "/v2/")[..], &[0; 3]].concat();
        frame(HEADERS, WHOLE | flags, 1, &block)
    };
    for (what, before) in [
        (
            "a frame of an unknown type (4.1)",
            frame(0x42, 0xff, 0, b"?"),
        ),
        (
            "a setting of an unknown name (6.5.2)",
            settings(&[(0x4242, 1)]),
        ),
        (
            "a priority of an idle stream (6.3)",
            frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 9]),
        ),
        (
            "a ping with unknown flags (6.7)",
            frame(PING, 0xfe, 0, &[1; 8]),
        ),
        (
            "a window that grows (6.9)",
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0x40, 0]),
        ),
        ("settings twice (6.5)", settings(&[])),
    ] {
        let bytes = [before, get(1, "/v2/")].concat();
        assert_eq!(
            rig.verdict(&bytes, 1).await,
            Verdict::Answered(200),
            "{what}"
        );
    }
    for (what, bytes) in [
        ("padding (6.2)", padded(PADDED, &[3])),
        (
            "padding and a priority (6.2)",
            padded(PADDED | WITH_PRIORITY, &[3, 0, 0, 0, 0, 9]),
        ),
        (
            "a head in pieces (6.10)",
            in_pieces(&request("GET", "/v2/")),
        ),
        ("a reserved bit (4.1)", get(1 | 1 << 31, "/v2/")),
    ] {
        assert_eq!(
            rig.verdict(&bytes, 1).await,
            Verdict::Answered(200),
            "{what}"
        );
    }
    // Not to be had by the letter, and harmless: a client that is served without having sent settings (3.4).
    let mut raw = Raw::silent(&rig.proxy.tls_client()).await;
    let greeting = [PREFACE, &get(1, "/v2/")].concat();
    raw.send(greeting).await.expect("a request");
    assert_eq!(raw.verdict(1).await, Verdict::Answered(200));
    rig.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l12_beyond_what_the_proxy_says_it_takes_it_takes_nothing() {
    const STREAMS: u32 = 128;
    /// `REFUSED_STREAM` (RFC 9113, 7).
    const REFUSED: u32 = 7;
    let rig = Rig::start().await;
    // Nothing of an answer's body is taken, so the streams stay.
    let mut raw = Raw::connect(&rig.proxy.tls_client(), &[(4, 0)]).await;
    let said = loop {
        let frame = raw.frame().await.expect("settings");
        if frame.kind == SETTINGS && !frame.payload.is_empty() {
            break frame.payload;
        }
    };
    // Streams at once, a stream's window, and the size of a head (6.5.2).
    for (name, value) in [(3, STREAMS), (4, 1 << 20), (6, 32 << 10)] {
        let setting = [&u16::to_be_bytes(name)[..], &value.to_be_bytes()].concat();
        assert!(
            said.chunks(6).any(|each| each == setting),
            "{name}: {said:?}"
        );
    }
    for number in 0..=STREAMS {
        raw.send(get(2 * number + 1, &rig.path))
            .await
            .expect("sent");
    }
    let last = 2 * STREAMS + 1;
    assert_eq!(raw.verdict(last).await, Verdict::Reset(REFUSED));

    // A head of 40 KB.
    let mut large = frame(HEADERS, END_STREAM, 1, &request("GET", &rig.path));
    for part in 0..4 {
        let flags = if part == 3 { END_HEADERS } else { 0 };
        let fields = field("x", &[b'y'; 100]).repeat(97);
        large.extend(frame(CONTINUATION, flags, 1, &fields));
    }
    let verdict = rig.verdict(&large, 1).await;
    assert!(
        verdict.is_error() || verdict == Verdict::Answered(431),
        "{verdict:?}"
    );
}
