//! A log that nobody reads, or that cannot be written, costs lines of the log and nothing else.

mod support;

use std::cell::Cell;
use std::time::Duration;

use support::blobs::{metric, simulator, until};
use support::image::{REPOSITORY, TAG};
use support::{DOMAIN, PATIENCE, Proxy, Stopwatch, image};

const DROPPED: &str = "ecr_proxy_log_dropped_total";

#[tokio::test(flavor = "multi_thread")]
async fn l18_whoever_stops_reading_the_log_holds_up_nobody_and_what_is_lost_is_counted() {
    const ROUNDS: usize = 100;
    let simulator = simulator().await;
    image::push(&simulator);
    let proxy = Proxy::before(&simulator);
    let manifest = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    assert_eq!(proxy.client().get(&manifest).await.status, 200);
    let before = proxy.memory();

    let unread = proxy.leave_log_unread();
    // Ten thousand errors, each a line of half a KiB and more.
    let agent = "long".repeat(64);
    let one = format!(
        "GET /v2/{}/manifests/v1?ns=nowhere.test HTTP/1.1\r\nHost: {DOMAIN}\r\nUser-Agent: {agent}\r\n\r\n",
        "a".repeat(200)
    );
    let began = Stopwatch::start();
    let mut connection = proxy.client().connect().await;
    for _ in 0..ROUNDS {
        connection.send(one.repeat(100)).await.expect("sent");
        for _ in 0..100 {
            let answer = connection.answer("GET").await.expect("an answer");
            assert_eq!(answer.status, 404, "{}", answer.text());
        }
    }
    assert_eq!(proxy.client().get(&manifest).await.status, 200);
    assert!(began.took() < 2 * PATIENCE, "{:?}", began.took());
    let dropped = metric(&proxy, DROPPED, &[]).await;
    assert!(dropped > 100.0, "{dropped} lines were dropped");
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes");

    // What was kept is whole, and once there is room what comes is told again.
    drop(unread);
    let asked = Cell::new(2 + 100 * ROUNDS);
    until("a request is told", async || {
        asked.set(asked.get() + 1);
        let answer = proxy.client().get(&manifest).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let id = answer.header("x-request-id").map(str::to_owned);
        let mut logs = proxy.logs().into_iter();
        logs.any(|event| event.field("request.id") == id)
    })
    .await;
    let logs = proxy.logs();
    assert!(logs.len() > 1000, "{} lines", logs.len());
    for event in &logs {
        assert!(!event.message().is_empty(), "no event: {}", event.line);
    }
    let told = logs.iter().filter(|event| event.message() == "request");
    let lost = asked.get() - told.count();
    assert_eq!(metric(&proxy, DROPPED, &[]).await, lost as f64);
}
