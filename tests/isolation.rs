//! Alone for a long time, with a clock that nobody set: it starts, serves what it has, and believes
//! nothing for longer because of it (O09, C11, K06; promise 6).

mod support;

use std::time::{Duration, Instant, SystemTime};

use ecr_proxy::simulator::{ImageSpec, Listener, Outage, Simulator};
use support::blobs::{MIB, assert_whole, blob, idle, metric, outcome, pull, simulator, until};
use support::image::REPOSITORY;
use support::{Client, Clock, Connection, DOMAIN, Proxy, Stopwatch};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const TAG: &str = "/v2/team/app/manifests/v1";

/// Puts another image under the tag; answers what the tag then names, and one of its layers.
fn push(simulator: &Simulator, seed: u64) -> (String, (String, String)) {
    let image = simulator.push_image(REPOSITORY, "v1", ImageSpec::generated(seed, [MIB]));
    let layer = image.manifests[0].layers[0].digest.clone();
    let target = format!("/v2/{REPOSITORY}/blobs/{layer}");
    (image.top.digest, (layer, target))
}

async fn readyz(proxy: &Proxy, query: &str) -> (u16, String) {
    let answer = Client::operator(proxy.admin())
        .get(&format!("/readyz{query}"))
        .await;
    (answer.status, answer.text())
}

fn tokens_asked(simulator: &Simulator) -> usize {
    let journal = simulator.journal();
    journal.count(|entry| entry.operation == "GetAuthorizationToken")
}

/// Times at which nobody's clock stands by right.
fn wrong_times() -> [SystemTime; 2] {
    [SystemTime::UNIX_EPOCH + DAY, SystemTime::now() + 10 * YEAR]
}

#[tokio::test(flavor = "multi_thread")]
async fn c11_a_clock_that_is_wrong_at_boot_and_corrected_later_makes_nothing_believed_for_years() {
    for wrong in wrong_times() {
        let simulator = simulator().await;
        let clock = Clock::right();
        let builder = Proxy::builder().simulator(&simulator);
        // So long that only the clock can end it.
        let mut proxy = clock.govern(builder).set("cache.tag_ttl", "1h").start();
        let (first, layer) = push(&simulator, 1);
        assert_whole(&proxy.client().get(TAG).await, &first);
        assert_eq!(pull(&proxy, &layer).await, "miss");
        proxy.terminate();
        assert!(proxy.wait().success());

        clock.set(wrong);
        proxy.restart();
        assert_eq!(pull(&proxy, &layer).await, "hit");
        let (second, second_layer) = push(&simulator, 2);
        assert_whole(&proxy.client().get(TAG).await, &second);
        assert_eq!(pull(&proxy, &second_layer).await, "miss");

        clock.correct();
        let (third, third_layer) = push(&simulator, 3);
        assert_whole(&proxy.client().get(TAG).await, &third);
        assert_eq!(pull(&proxy, &third_layer).await, "miss");
        for kept in [&layer, &second_layer] {
            assert_eq!(pull(&proxy, kept).await, "hit");
        }
        // From here on it is believed as it should be.
        push(&simulator, 4);
        assert_whole(&proxy.client().get(TAG).await, &third);
        let refused = |entry: &ecr_proxy::simulator::Entry| {
            entry.listener == Listener::Registry && entry.status == Some(403)
        };
        assert_eq!(simulator.journal().count(refused), 0);
        assert!(tokens_asked(&simulator) <= 3, "{}", simulator.journal());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c11_tokens_live_as_long_as_they_live_whatever_the_clock_shows() {
    let simulator = simulator().await;
    simulator.set_token_life(Duration::from_secs(4));
    let clock = Clock::right();
    clock.set(wrong_times()[0]);
    let builder = Proxy::builder().simulator(&simulator);
    let proxy = clock.govern(builder).start();
    let began = Instant::now();
    for (round, time) in [wrong_times()[1], SystemTime::now(), wrong_times()[0]]
        .into_iter()
        .enumerate()
    {
        let before = tokens_asked(&simulator);
        until("another token is asked for", async || {
            tokens_asked(&simulator) > before
        })
        .await;
        let cold = blob(&simulator, round as u64, 1000);
        assert_eq!(pull(&proxy, &cold).await, "miss");
        clock.set(time);
        let cold = blob(&simulator, 10 + round as u64, 1000);
        assert_eq!(pull(&proxy, &cold).await, "miss");
    }
    let refused = |entry: &ecr_proxy::simulator::Entry| {
        entry.listener == Listener::Registry && entry.status == Some(403)
    };
    assert_eq!(simulator.journal().count(refused), 0, "sent when expired");
    let asked = tokens_asked(&simulator) as u64;
    assert!(asked <= 2 + began.elapsed().as_secs(), "{asked} tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn k06_a_clock_that_jumps_while_it_runs_asks_for_no_storm_of_tokens_and_evicts_nothing() {
    let simulator = simulator().await;
    let clock = Clock::right();
    let builder = Proxy::builder().simulator(&simulator);
    let proxy = clock.govern(builder).start();
    let kept: Vec<_> = (0..4).map(|seed| blob(&simulator, seed, MIB)).collect();
    for blob in &kept {
        assert_eq!(pull(&proxy, blob).await, "miss");
    }
    assert_eq!(tokens_asked(&simulator), 1);
    let hours = |count: u64| Duration::from_secs(count * 60 * 60);
    let now = SystemTime::now();
    let jumps = [now + hours(13), now - hours(13), now + YEAR, now];
    for (round, time) in (10..).zip(jumps) {
        clock.set(time);
        for blob in &kept {
            assert_eq!(pull(&proxy, blob).await, "hit", "jump {round}");
        }
        // The token that there is goes on being good, or another is asked for once.
        let cold: Vec<_> = (0..8)
            .map(|n| blob(&simulator, round * 100 + n, 1000))
            .collect();
        let client = proxy.client();
        let answers = cold.iter().map(|(_, target)| client.get(target));
        for answer in futures_util::future::join_all(answers).await {
            assert_eq!(answer.status, 200, "jump {round}: {}", answer.text());
        }
        let (status, ready) = readyz(&proxy, "").await;
        assert_eq!(status, 200, "{ready}");
    }
    let asked = tokens_asked(&simulator);
    assert!(asked <= 1 + jumps.len(), "{asked} tokens");
    let refused = |entry: &ecr_proxy::simulator::Entry| {
        entry.listener == Listener::Registry && entry.status == Some(403)
    };
    assert_eq!(simulator.journal().count(refused), 0, "sent when expired");
    assert_eq!(
        metric(&proxy, "ecr_proxy_cache_evictions_total", &[]).await,
        0.0
    );
    idle(&proxy).await;
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn c11_a_local_ca_made_by_a_wrong_clock_is_trusted_once_the_clock_is_right() {
    for wrong in wrong_times() {
        let simulator = simulator().await;
        let clock = Clock::right();
        clock.set(wrong);
        let builder = Proxy::builder().simulator(&simulator).local_ca();
        let proxy = clock.govern(builder).start();
        let ca = proxy.state_dir().join("tls/ca.pem");
        let connect = async || Connection::tls(proxy.https(), DOMAIN, &ca).await;
        // Our clock is right, so we refuse what is not of our time.
        let refused = connect().await.err().expect("another time's certificate");
        assert!(refused.to_string().contains("certificate"), "{refused}");
        clock.correct();
        until("the certificate is of our time", async || {
            connect().await.is_ok()
        })
        .await;
        let ends = metric(&proxy, "ecr_proxy_certificate_expiry_seconds", &[]).await;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let left = ends - now.expect("after 1970").as_secs_f64();
        assert!((0.9..1.1).contains(&(left / YEAR.as_secs_f64())), "{left}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn o09_after_weeks_alone_and_with_its_certificate_ended_it_serves_and_says_so() {
    let simulator = simulator().await;
    let clock = Clock::right();
    let builder = Proxy::builder()
        .simulator(&simulator)
        // Neither ended nor about to after 20 days.
        .certificate_until(SystemTime::now() + 36 * DAY);
    let mut proxy = clock.govern(builder).start();
    let (digest, layer) = push(&simulator, 1);
    let by_digest = format!("/v2/{REPOSITORY}/manifests/{digest}");
    let manifest = proxy.client().get(TAG).await;
    assert_whole(&manifest, &digest);
    assert_eq!(pull(&proxy, &layer).await, "miss");
    idle(&proxy).await;
    simulator.outage(Outage::Refused).await;

    // As it runs, and then started anew, once in the wrong direction.
    for (age, restart, complaint) in [
        (20 * DAY, false, None),
        (40 * DAY, false, Some("ended")),
        (400 * DAY, true, Some("ended")),
    ] {
        clock.ahead(age);
        if restart {
            proxy.kill9();
            proxy.restart();
        }
        for client in [proxy.client(), proxy.tls_client()] {
            let tag = client.get(TAG).await;
            assert_whole(&tag, &digest);
            assert_eq!(outcome(&tag), Some("stale"));
            let told: u64 = tag.header("age").expect("Age").parse().expect("seconds");
            assert!(told >= age.as_secs(), "{told} s");
            assert_whole(&client.get(&by_digest).await, &digest);
            let blob = client.get(&layer.1).await;
            assert_whole(&blob, &layer.0);
            assert_eq!(outcome(&blob), Some("hit"));
        }
        let began = Stopwatch::start();
        let (_, cold) = blob(&simulator, 9, 1000);
        let miss = proxy.client().get(&cold).await;
        assert_eq!(miss.status, 503, "{}", miss.text());
        assert!(miss.header("retry-after").is_some());
        assert!(began.took() < Duration::from_secs(6));

        let (status, text) = readyz(&proxy, "").await;
        assert_eq!(status, 200, "{text}");
        let told = text.contains("\"certificate\"");
        assert_eq!(told, complaint.is_some(), "{text}");
        if let Some(complaint) = complaint {
            assert_eq!(readyz(&proxy, "?strict").await.0, 503);
            assert!(text.contains(complaint), "{text}");
            let event = |event: &support::Event| {
                event.level() == "ERROR"
                    && event.message().contains("refuse the certificate")
                    && event
                        .field("certificate")
                        .is_some_and(|is| is.contains(complaint))
            };
            proxy.log_until("the end of the certificate", event).await;
        }
    }

    clock.set(SystemTime::UNIX_EPOCH + DAY);
    proxy.restart();
    for client in [proxy.client(), proxy.tls_client()] {
        assert_whole(&client.get(TAG).await, &digest);
        assert_eq!(outcome(&client.get(&layer.1).await), Some("hit"));
    }
    let (status, text) = readyz(&proxy, "").await;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("is valid only from"), "{text}");
    proxy.assert_blobs_are_sound();
}
