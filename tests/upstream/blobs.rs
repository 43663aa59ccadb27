//! A blob's bytes are those of the part asked for, all of them, or an error.

use bytes::Bytes;
use ecr_proxy::simulator::{Fault, Listener, PULL_ONLY_ACCESS_KEY, Pattern};
use ecr_proxy::upstream::{Absent, Deadline, Rate, Span, UpstreamError, Validator, Wrong};
use std::time::{Duration, Instant};

use super::support::{Rig, app, content, options, read, read_until_error, rig, rig_with, upstream};

const SIZE: u64 = 3_000_000;

fn from(offset: u64) -> Span {
    Span {
        from: offset,
        to: None,
    }
}

#[tokio::test]
async fn a_blob_comes_whole_and_in_parts() {
    let rig = rig().await;
    let blob = content(SIZE);
    let digest = rig.put(&blob);
    assert_eq!(rig.whole(&digest).await.unwrap(), blob);
    for (start, end) in [(0, 1), (0, 1000), (1000, 2000), (SIZE - 1, SIZE)] {
        let span = Span {
            from: start,
            to: Some(end),
        };
        let mut body = rig
            .upstream
            .blob(&app(), &digest, span, None)
            .await
            .unwrap();
        assert_eq!((body.offset(), body.total()), (start, Some(SIZE)));
        let expected = blob.slice(usize::try_from(start).unwrap()..usize::try_from(end).unwrap());
        assert_eq!(read(&mut body).await.unwrap(), expected);
        assert_eq!(body.offset(), end);
    }
}

#[tokio::test]
async fn s12_s13_storage_sees_no_credentials_and_nothing_but_what_it_needs() {
    let rig = rig().await;
    let digest = rig.put(&content(10));
    rig.whole(&digest).await.unwrap();
    let entries = rig.sim.journal().snapshot();
    let names = |listener| {
        let entry = entries
            .iter()
            .find(|entry| entry.listener == listener)
            .unwrap();
        let mut names: Vec<_> = entry.headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    };
    assert_eq!(
        names(Listener::Storage),
        ["accept-encoding", "host", "user-agent"]
    );
    assert_eq!(
        names(Listener::Registry),
        ["accept-encoding", "authorization", "host", "user-agent"]
    );
    let registry = entries
        .iter()
        .find(|entry| entry.listener == Listener::Registry)
        .unwrap();
    assert_eq!(
        registry.header("host"),
        Some(rig.sim.registry_host().as_str())
    );
}

#[tokio::test]
async fn whether_a_blob_is_there_is_asked_with_the_right_to_pull_alone() {
    let rig = rig().await;
    let digest = rig.put(&content(1234));
    let pull_only = upstream(options(&rig.sim, PULL_ONLY_ACCESS_KEY));
    assert_eq!(pull_only.probe_blob(&app(), &digest).await, Ok(None));
    assert_eq!(pull_only.blob_size(&app(), &digest).await, Ok(1234));
    assert_eq!(rig.upstream.blob_size(&app(), &digest).await, Ok(1234));
    assert_eq!(
        rig.sim
            .journal()
            .body_bytes(|entry| entry.listener == Listener::Storage),
        1,
        "a size costs one byte at most"
    );
    let absent = Err(UpstreamError::Absent(Absent::Blob));
    let other = ecr_proxy::oci::Digest::of(b"other");
    assert_eq!(pull_only.probe_blob(&app(), &other).await, absent);
    let nowhere = "nowhere".parse().unwrap();
    let absent = Err(UpstreamError::Absent(Absent::Repository));
    assert_eq!(rig.upstream.probe_blob(&nowhere, &digest).await, absent);
}

#[tokio::test]
async fn u01_u02_u08_a_short_body_is_an_error_and_is_continued_where_it_broke() {
    let rig = rig().await;
    let blob = content(SIZE);
    let digest = rig.put(&blob);
    for fault in [
        Fault::TruncateAfter(0),
        Fault::TruncateAfter(SIZE / 2),
        Fault::TruncateAfter(SIZE - 1),
        Fault::TruncateChunked(SIZE / 2),
        Fault::ResetAfter(SIZE / 2),
    ] {
        let label = format!("{fault:?}");
        rig.sim
            .faults()
            .on(Listener::Storage, "GET", Pattern::any())
            .times(1)
            .then(fault);
        let mut body = rig
            .upstream
            .blob(&app(), &digest, Span::WHOLE, None)
            .await
            .unwrap();
        let (got, error) = read_until_error(&mut body).await;
        assert_eq!(error, UpstreamError::Truncated, "{label}");
        assert_eq!(got, blob.slice(..got.len()), "{label}");
        // What is left is had from where it broke.
        let validator = body.validator().clone();
        let mut rest = rig
            .upstream
            .blob(&app(), &digest, from(got.len() as u64), Some(&validator))
            .await
            .unwrap();
        let rest = read(&mut rest).await.unwrap();
        assert_eq!(rest, blob.slice(got.len()..), "{label}");
    }
}

#[tokio::test]
async fn u02_without_a_length_the_end_is_the_digests_to_judge() {
    let rig = rig().await;
    let blob = content(10_000);
    let digest = rig.put(&blob);
    let faults = rig
        .sim
        .faults()
        .on(Listener::Storage, "GET", Pattern::any());
    faults.then(Fault::CloseDelimited(Some(5000)));
    let mut body = rig
        .upstream
        .blob(&app(), &digest, Span::WHOLE, None)
        .await
        .unwrap();
    assert_eq!(body.total(), None);
    assert_eq!(read(&mut body).await.unwrap(), blob.slice(..5000));
}

#[tokio::test]
async fn u05_an_answer_that_is_not_http_is_wrong() {
    let rig = rig().await;
    let digest = rig.put(&content(100));
    for raw in [
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "rubbish\r\n\r\n",
    ] {
        let rule = rig
            .sim
            .faults()
            .on(Listener::Storage, "GET", Pattern::any());
        let rule = rule.then(Fault::Raw(Bytes::copy_from_slice(raw.as_bytes())));
        let error = rig.whole(&digest).await.unwrap_err();
        assert_eq!(error, UpstreamError::Wrong(Wrong::Malformed), "{raw}");
        rule.remove();
    }
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(20_000));
    let large = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1024 * 1024));
    for raw in [many, large] {
        let rule = rig
            .sim
            .faults()
            .on(Listener::Storage, "GET", Pattern::any());
        let rule = rule.then(Fault::Raw(raw.into()));
        let error = rig.whole(&digest).await.unwrap_err();
        assert_eq!(error, UpstreamError::Wrong(Wrong::Malformed));
        rule.remove();
    }
    rig.whole(&digest).await.unwrap();
}

#[tokio::test]
async fn u06_a_second_answer_on_a_connection_is_nobodys() {
    let rig = rig().await;
    let first = content(1000);
    let digest = rig.put(&first);
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    for listener in [Listener::Storage, Listener::Registry] {
        let rule = rig
            .sim
            .faults()
            .on(listener, "GET", Pattern::any())
            .times(1);
        rule.then(Fault::Extra(poison.into()));
        assert_eq!(rig.whole(&digest).await.unwrap(), first);
        for _ in 0..3 {
            assert_eq!(rig.whole(&digest).await.unwrap(), first);
        }
    }
}

#[tokio::test]
async fn u07_stalls_end_by_their_deadlines() {
    let rig = rig_with(|options| {
        options.limits.first_byte = Duration::from_secs(1);
        options.limits.progress = Duration::from_secs(1);
    })
    .await;
    let blob = content(SIZE);
    let digest = rig.put(&blob);
    let rule = rig
        .sim
        .faults()
        .on(Listener::Storage, "GET", Pattern::any())
        .times(1);
    rule.then(Fault::Delay(Duration::from_secs(600)));
    let error = rig.whole(&digest).await.unwrap_err();
    assert_eq!(error, UpstreamError::TooSlow(Deadline::FirstByte));

    let rule = rig
        .sim
        .faults()
        .on(Listener::Storage, "GET", Pattern::any())
        .times(1);
    rule.then(Fault::StallAfter(1000));
    let mut body = rig
        .upstream
        .blob(&app(), &digest, Span::WHOLE, None)
        .await
        .unwrap();
    let (got, error) = read_until_error(&mut body).await;
    assert_eq!(error, UpstreamError::TooSlow(Deadline::Progress));
    assert_eq!(got, blob.slice(..1000));

    let rule = rig
        .sim
        .faults()
        .on(Listener::Storage, "GET", Pattern::any())
        .times(1);
    rule.then(Fault::Rate(500));
    let mut body = rig
        .upstream
        .blob(&app(), &digest, Span::WHOLE, None)
        .await
        .unwrap();
    let (_, error) = read_until_error(&mut body).await;
    assert_eq!(
        error,
        UpstreamError::TooSlow(Deadline::Progress),
        "a trickle"
    );

    assert_eq!(rig.whole(&digest).await.unwrap(), blob);
}

#[tokio::test]
async fn u09_lying_resume_is_never_spliced() {
    let rig = rig().await;
    let blob = content(SIZE);
    let digest = rig.put(&blob);
    let body = rig
        .upstream
        .blob(&app(), &digest, Span::WHOLE, None)
        .await
        .unwrap();
    let validator = body.validator().clone();
    assert_eq!(validator.total(), Some(SIZE));
    assert!(validator.etag().is_some());
    drop(body);
    let malformed = UpstreamError::Wrong(Wrong::Malformed);
    for (fault, expected) in [
        (Fault::IgnoreRange, UpstreamError::IgnoredRange),
        (Fault::ShiftRange(10), malformed.clone()),
        (
            Fault::SetHeader("etag", "\"other\"".into()),
            UpstreamError::ContentChanged,
        ),
        (
            Fault::SetHeader(
                "content-range",
                format!("bytes 1000-{}/{}", SIZE - 1, SIZE + 1),
            ),
            malformed.clone(),
        ),
        (
            Fault::SetHeader("content-range", format!("bytes 999-{}/{SIZE}", SIZE - 2)),
            malformed.clone(),
        ),
        (Fault::RemoveHeader("content-range"), malformed.clone()),
        (Fault::status(416, "no"), UpstreamError::ContentChanged),
        (Fault::Gzip, UpstreamError::Wrong(Wrong::Encoded)),
    ] {
        let label = format!("{fault:?}");
        let rule = rig
            .sim
            .faults()
            .on(Listener::Storage, "GET", Pattern::any())
            .then(fault);
        let rest = rig
            .upstream
            .blob(&app(), &digest, from(1000), Some(&validator))
            .await;
        assert_eq!(rest.map(drop).unwrap_err(), expected, "{label}");
        rule.remove();
    }
    // Another blob's size under the same name.
    let other = Validator::new(None, Some(SIZE + 1));
    let rest = rig
        .upstream
        .blob(&app(), &digest, from(1000), Some(&other))
        .await;
    assert_eq!(rest.map(drop).unwrap_err(), UpstreamError::ContentChanged);
}

#[tokio::test]
async fn u10_expired_storage_addresses_are_renewed_twice_at_most() {
    let rig = rig().await;
    let blob = content(1000);
    let digest = rig.put(&blob);
    for (expiries, redirects) in [(1, 2), (2, 3)] {
        rig.sim.journal().clear();
        let rule = rig
            .sim
            .faults()
            .on(Listener::Storage, "GET", Pattern::any())
            .times(expiries);
        rule.then(Fault::Expired);
        let mut body = rig
            .upstream
            .blob(&app(), &digest, from(500), None)
            .await
            .unwrap();
        assert_eq!(read(&mut body).await.unwrap(), blob.slice(500..));
        assert_eq!(rig.asked(Listener::Registry), redirects);
    }
    rig.sim.journal().clear();
    rig.sim
        .faults()
        .on(Listener::Storage, "GET", Pattern::any())
        .then(Fault::Expired);
    let error = rig.whole(&digest).await.unwrap_err();
    assert!(
        matches!(error, UpstreamError::Wrong(Wrong::Redirect(_))),
        "{error}"
    );
    assert_eq!(rig.asked(Listener::Storage), 3);
}

#[tokio::test]
async fn u12_u13_failures_of_storage_are_retried_within_bounds() {
    let rig = rig().await;
    let blob = content(1000);
    let digest = rig.put(&blob);
    for status in [500, 502, 503, 504, 429] {
        let rule = rig
            .sim
            .faults()
            .on(Listener::Storage, "GET", Pattern::any())
            .times(2);
        rule.then(Fault::status(status, "failing"));
        assert_eq!(rig.whole(&digest).await.unwrap(), blob, "{status}");
    }
    rig.sim.journal().clear();
    rig.sim
        .faults()
        .on(Listener::Storage, "GET", Pattern::any())
        .then(Fault::status(503, "down"));
    let error = rig.whole(&digest).await.unwrap_err();
    assert_eq!(error, UpstreamError::Failing { status: 503 });
    assert_eq!(rig.asked(Listener::Storage), 3);
}

#[tokio::test]
async fn u14_connections_that_went_stale_are_not_the_callers_affair() {
    let rig = rig().await;
    let blob = content(1000);
    let digest = rig.put(&blob);
    // Each second request on a connection is reset as if it had been idle too long.
    for listener in [Listener::Registry, Listener::Storage] {
        for _ in 0..20 {
            assert_eq!(rig.whole(&digest).await.unwrap(), blob);
            rig.sim
                .faults()
                .on(listener, "GET", Pattern::any())
                .times(1)
                .then(Fault::Reset);
            assert_eq!(rig.whole(&digest).await.unwrap(), blob);
        }
    }
}

#[tokio::test]
async fn u22_edges_of_size() {
    let rig: Rig = rig().await;
    for size in [1, 65_535, 65_536, 65_537] {
        let blob = content(size);
        let digest = rig.put(&blob);
        assert_eq!(rig.whole(&digest).await.unwrap(), blob);
        assert_eq!(rig.upstream.blob_size(&app(), &digest).await, Ok(size));
    }
    let empty = rig.put(&Bytes::new());
    assert_eq!(rig.whole(&empty).await.unwrap(), Bytes::new());
    let pull_only = upstream(options(&rig.sim, PULL_ONLY_ACCESS_KEY));
    assert_eq!(pull_only.blob_size(&app(), &empty).await, Ok(0));
}

#[tokio::test]
async fn waiting_for_our_own_limit_is_no_stall_of_the_upstream() {
    let rig = rig_with(|options| {
        options.max_bandwidth = Rate::new(32 * 1024);
        options.limits.progress = Duration::from_millis(300);
    })
    .await;
    let bytes = content(64 * 1024);
    let digest = rig.put(&bytes);
    let began = Instant::now();
    assert!(rig.whole(&digest).await.unwrap() == bytes);
    assert!(began.elapsed() > Duration::from_millis(1500));
}
