//! Pushes over HTTP/2, which clients that offer nothing else speak: each step as it is over HTTP/1.1.

mod support;

use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use ecr_proxy::simulator::{Fault, Listener, path_contains};
use futures_util::{StreamExt as _, stream};
use http_body::{Body, Frame};
use http_body_util::{Empty, Full, StreamBody};
use support::blobs::{outcome, until};
use support::push::{APP, MANIFEST, OTHER, PASSWORD, Rig, bytes, location, manifest};
use support::store::{digest, files_below};
use support::users::login;
use support::{Answer, Client};
use tokio::sync::oneshot;

/// A client of this user over TLS.
fn user(rig: &Rig, name: &str) -> Client {
    login(rig.proxy.tls_client(), name, PASSWORD)
}

/// A body whose length its head does not tell.
fn streamed(body: &[u8]) -> impl Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static {
    let pieces: Vec<_> = body.chunks(10_000).map(Bytes::copy_from_slice).collect();
    StreamBody::new(stream::iter(pieces).map(|piece| Ok(Frame::data(piece))))
}

/// A body that begins with these bytes and comes to nothing when it is told to.
fn broken_off(
    body: Vec<u8>,
    told: oneshot::Receiver<()>,
) -> impl Body<Data = Bytes, Error = io::Error> + Send + Unpin + 'static {
    let begin = stream::iter([Ok(Frame::data(Bytes::from(body)))]);
    let end = stream::once(async {
        let _told = told.await;
        Err(io::Error::other("broken off"))
    });
    StreamBody::new(Box::pin(begin.chain(end)))
}

/// A body of no end.
fn endless() -> impl Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static {
    StreamBody::new(stream::repeat_with(|| {
        Ok(Frame::data(Bytes::from(vec![7; 16 * 1024])))
    }))
}

async fn begin(client: &Client) -> String {
    let target = format!("/v2/{APP}/blobs/uploads/");
    let begun = client.ask_h2("POST", &target, &[], Empty::new()).await;
    let begun = begun.expect("an answer");
    assert_eq!(begun.status, 202, "{}", begun.text());
    location(&begun)
}

async fn ask<B>(client: &Client, method: &str, target: &str, body: B) -> Answer
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let answer = client.ask_h2(method, target, &[], body).await;
    answer.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_in_every_way_there_is_to_send_a_blob() {
    let rig = Rig::start().await;
    let ann = user(&rig, "ann");
    // In parts, of which one tells its length and the others do not; and whole.
    let layer = bytes(500_000);
    let place = begin(&ann).await;
    let first = ask(&ann, "PATCH", &place, streamed(&layer[..200_000])).await;
    let told = (first.status, first.header("range"));
    assert_eq!(told, (202, Some("0-199999")), "{}", first.text());
    let second = Full::new(Bytes::copy_from_slice(&layer[200_000..300_000]));
    let range = [("content-range", "200000-299999")];
    let second = ann.ask_h2("PATCH", &place, &range, second).await;
    let second = second.expect("an answer");
    let told = (second.status, second.header("range"));
    assert_eq!(told, (202, Some("0-299999")), "{}", second.text());
    let target = format!("{place}?digest={}", digest(&layer));
    let last = ask(&ann, "PUT", &target, streamed(&layer[300_000..])).await;
    assert_eq!(last.status, 201, "{}", last.text());
    let target = format!("{}?digest={}", begin(&ann).await, digest(b"{}"));
    let whole = ask(&ann, "PUT", &target, Full::new(Bytes::from_static(b"{}"))).await;
    assert_eq!(whole.status, 201, "{}", whole.text());
    let manifest = manifest(&layer);
    let target = format!("/v2/{APP}/manifests/v1");
    let typed = [("content-type", MANIFEST)];
    let pushed = ann
        .ask_h2("PUT", &target, &typed, streamed(manifest.as_bytes()))
        .await;
    let pushed = pushed.expect("an answer");
    assert_eq!(pushed.status, 201, "{}", pushed.text());
    let pulled = ann.get_h2(&target).await;
    assert_eq!(pulled.digest(), digest(manifest.as_bytes()));
    let pulled = ann
        .get_h2(&format!("/v2/{APP}/blobs/{}", digest(&layer)))
        .await;
    let told = (outcome(&pulled), pulled.digest());
    assert_eq!(told, (Some("hit"), digest(&layer)));
}

#[tokio::test(flavor = "multi_thread")]
async fn u24_an_early_refusal_reaches_a_client_that_still_sends() {
    let rig = Rig::start().await;
    let (ann, push) = (user(&rig, "ann"), user(&rig, "push"));
    for (status, code) in [(400, "TAG_INVALID"), (403, "DENIED"), (413, "SIZE_INVALID")] {
        let place = begin(&ann).await;
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"no"}}]}}"#);
        let uploads = path_contains("/blobs/uploads/");
        let rule = rig.ecr.faults().on(Listener::Registry, "PATCH", uploads);
        rule.times(1).then(Fault::status(status, &body));
        let answer = ask(&ann, "PATCH", &place, endless()).await;
        let told = (answer.status, answer.error_code());
        assert_eq!(told, (status, code.into()), "{}", answer.text());
    }
    // Who has no right is told so before anything of it is read.
    let target = format!("/v2/{OTHER}/blobs/uploads/?digest={}", digest(b"x"));
    let answer = ask(&push, "POST", &target, endless()).await;
    let told = (answer.status, answer.error_code());
    assert_eq!(told, (403, "DENIED".into()), "{}", answer.text());
    assert_eq!(rig.asked("POST", OTHER), 0);
}

/// Bytes of bodies that upstream has had so far.
fn arrived(rig: &Rig) -> u64 {
    let entries = rig.ecr.journal().snapshot();
    entries.iter().map(|entry| entry.request_bytes).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn u26_what_breaks_off_is_never_ended_upstream() {
    let rig = Rig::start().await;
    let ann = user(&rig, "ann");
    let body = bytes(300_000);
    for method in ["PATCH", "PUT"] {
        // The stream is reset in the middle; or it ends before the length that its head tells.
        for promised in [None, Some("600000")] {
            let place = begin(&ann).await;
            let target = format!("{place}?digest={}", digest(&body));
            let headers: Vec<_> = promised
                .map(|it| ("content-length", it))
                .into_iter()
                .collect();
            let sent = match promised {
                None => {
                    let (tell, told) = oneshot::channel();
                    let before = arrived(&rig);
                    let in_the_middle = async {
                        until("it flows", async || arrived(&rig) > before).await;
                        let _over = tell.send(());
                    };
                    let body = broken_off(body.clone(), told);
                    let sending = ann.ask_h2(method, &target, &headers, body);
                    tokio::join!(sending, in_the_middle).0
                }
                Some(_) => ann.ask_h2(method, &target, &headers, streamed(&body)).await,
            };
            if let Ok(answer) = sent {
                assert_eq!(answer.status, 400, "{method}: {}", answer.text());
            }
            until("the session is over", async || {
                ann.get(&place).await.status == 404
            })
            .await;
        }
    }
    let ended = rig
        .ecr
        .journal()
        .count(|entry| matches!(&*entry.method, "PATCH" | "PUT") && entry.status.is_some());
    assert_eq!(ended, 0, "ECR never saw a whole body");
    until("nothing is left of it", async || {
        files_below(&rig.proxy.cache_dir().join("fills")).is_empty()
    })
    .await;
}
