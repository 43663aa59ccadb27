//! A push that does not come to its end, whoever ends it: the client is told, upstream takes no part for the
//! whole, and nothing is left of it.

mod support;

use ecr_proxy::simulator::{Fault, Listener, path_contains};
use support::push::{APP, OTHER, Rig, begin, bytes};
use support::store::digest;

#[tokio::test(flavor = "multi_thread")]
async fn u24_an_early_refusal_reaches_a_client_that_still_sends() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    for (status, code) in [(400, "TAG_INVALID"), (403, "DENIED"), (413, "SIZE_INVALID")] {
        let place = begin(&ann, APP).await;
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"no"}}]}}"#);
        let refusal = rig
            .ecr
            .faults()
            .on(
                Listener::Registry,
                "PATCH",
                path_contains("/blobs/uploads/"),
            )
            .times(1)
            .then(Fault::status(status, &body));
        let headers = [("content-length", "1073741824")];
        let mut connection = ann.start("PATCH", &place, &headers).await;
        for _ in 0..16 {
            connection
                .send(bytes(64 * 1024))
                .await
                .expect("it is taken");
        }
        let answer = connection
            .answer("PATCH")
            .await
            .expect("an answer, no reset");
        assert_eq!((answer.status, answer.error_code()), (status, code.into()));
        drop(refusal);
        assert_eq!(ann.get(&place).await.status, 404, "the session is over");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u24_nobody_is_told_to_go_on_before_the_right_is_checked() {
    let rig = Rig::start().await;
    let (ann, push) = (rig.user("ann"), rig.user("push"));
    let expecting = [("expect", "100-continue"), ("content-length", "5")];
    let refused = format!("/v2/{OTHER}/blobs/uploads/?digest={}", digest(b"hello"));
    let mut connection = push.start("POST", &refused, &expecting).await;
    assert_eq!(connection.head().await.expect("a head").status, 403);
    let place = format!("{}?digest={}", begin(&ann, APP).await, digest(b"hello"));
    let mut connection = ann.start("PUT", &place, &expecting).await;
    assert_eq!(connection.head().await.expect("a head").status, 100);
    connection.send("hello").await.expect("send");
    assert_eq!(connection.head().await.expect("a head").status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn u26_p04_what_breaks_off_is_never_ended_upstream() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let blob = bytes(200_000);
    for body in [
        // Ends too early, is no chunk, overflows, has trailers and no end.
        b"ffff\r\nshort".as_slice(),
        b"5\r\nhello\r\nzz\r\n",
        b"5\r\nhello\r\nfffffffffffffffff\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
    ] {
        for method in ["PATCH", "PUT"] {
            let place = begin(&ann, APP).await;
            let target = format!("{place}?digest={}", digest(b"hello"));
            let headers = [("transfer-encoding", "chunked")];
            // A connection may end before its request was looked at; then nothing was done to the session.
            let gone = async {
                loop {
                    let mut connection = ann.start(method, &target, &headers).await;
                    connection.send(body).await.expect("send");
                    drop(connection);
                    for _ in 0..50 {
                        if ann.get(&place).await.status == 404 {
                            return;
                        }
                        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    }
                }
            };
            support::within("the end of the session", gone).await;
        }
    }
    let finished = rig
        .ecr
        .journal()
        .count(|entry| matches!(&*entry.method, "PATCH" | "PUT") && entry.status.is_some());
    assert_eq!(finished, 0, "ECR never saw a whole body");
    assert!(rig.ecr.blob(APP, &digest(b"hello")).is_none());
    let left = std::fs::read_dir(rig.proxy.cache_dir().join("fills")).map_or(0, |dir| dir.count());
    assert_eq!(left, 0, "no remains");
    // The one behind it is none the worse, and trailers are no headers.
    let place = begin(&ann, APP).await;
    let target = format!("{place}?digest={}", digest(&blob));
    let mut connection = ann
        .start("PUT", &target, &[("transfer-encoding", "chunked")])
        .await;
    let mut text = format!("{:x}\r\n", blob.len()).into_bytes();
    text.extend_from_slice(&blob);
    text.extend_from_slice(b"\r\n0\r\nx-smuggled: yes\r\n\r\n");
    connection.send(text).await.expect("send");
    assert_eq!(
        connection.answer("PUT").await.expect("an answer").status,
        201
    );
    let smuggled = |entry: &ecr_proxy::simulator::Entry| entry.headers.contains_key("x-smuggled");
    assert_eq!(rig.ecr.journal().count(smuggled), 0);
}
