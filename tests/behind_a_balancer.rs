//! Whose request it is tells `X-Forwarded-For`, where a balancer that the operator named wrote it, and nobody
//! else.

mod support;

use ecr_proxy::simulator::Simulator;
use support::proxy::Builder;
use support::{Proxy, image};

/// Anybody of one network may pull, and those who connect are not in it.
async fn proxy(configure: impl FnOnce(Builder) -> Builder) -> (Simulator, Proxy) {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    simulator.push_image("team/app", image::TAG, image::spec());
    let builder = Proxy::builder().simulator(&simulator);
    let builder = builder.set("access.anonymous_networks", vec!["192.0.2.0/24"]);
    (simulator, configure(builder).start())
}

fn manifest() -> String {
    format!("/v2/team/app/manifests/{}", image::TAG)
}

async fn status(proxy: &Proxy, forwarded: &str) -> u16 {
    let client = proxy.client().with("x-forwarded-for", forwarded);
    client.get(&manifest()).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn s24_a_named_balancer_tells_who_is_asking() {
    let (_simulator, proxy) =
        proxy(|builder| builder.set("server.trusted_proxies", vec!["127.0.0.0/8"])).await;
    assert_eq!(status(&proxy, "192.0.2.7").await, 200);
    assert_eq!(
        status(&proxy, "192.0.2.7, 203.0.113.1").await,
        401,
        "forged by the client"
    );
    assert_eq!(status(&proxy, "203.0.113.1, 192.0.2.7").await, 200);
    assert_eq!(
        proxy.client().get(&manifest()).await.status,
        401,
        "the balancer itself"
    );

    let odd = proxy.client().with("x-forwarded-for", "unknown");
    let answer = odd.get(&manifest()).await;
    assert_eq!(answer.status, 400);
    assert!(
        answer.text().contains("X-Forwarded-For"),
        "{}",
        answer.text()
    );

    let is_told =
        |event: &support::Event| event.field("client.addr").as_deref() == Some("192.0.2.7");
    let told = proxy.log_until("the client", is_told).await;
    let via = told.field("client.via").expect("the balancer");
    assert!(via.starts_with("127.0.0.1:"), "{via}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s24_what_strangers_write_is_ignored() {
    let (_simulator, proxy) = proxy(|builder| builder).await;
    assert_eq!(status(&proxy, "192.0.2.7").await, 401);
    assert_eq!(status(&proxy, "unknown").await, 401);
    let forwarded = proxy.client().with("forwarded", "for=192.0.2.7");
    assert_eq!(forwarded.get(&manifest()).await.status, 401);
    // What other proxies say before the first request is none, in words or in bytes.
    for said in [
        &b"PROXY TCP4 192.0.2.7 192.0.2.1 56324 443\r\n"[..],
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x01\xdc\x04\x01\xbb",
    ] {
        let mut connection = proxy.client().connect().await;
        let asked = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\n\r\n",
            manifest(),
            support::DOMAIN
        );
        let sent = connection.send([said, asked.as_bytes()].concat()).await;
        sent.expect("sent");
        let answer = connection.answer("GET").await.expect("an answer");
        assert_eq!(answer.status, 400);
        assert_eq!(connection.until_closed().await.0, b"");
    }
    let told = proxy
        .log_until("a request", |event| event.message() == "request")
        .await;
    let address = told.field("client.addr").expect("an address");
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    assert_eq!(told.field("client.via"), None);
}
