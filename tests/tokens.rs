//! Clients never notice tokens: one is obtained for all, renewed ahead of its end and when it is
//! refused, and its service may be away as long as hits are asked for.

mod support;

use std::time::Duration;

use ecr_proxy::simulator::{
    ExpiredForm, Fault, Listener, Outage, PULL_ONLY_ACCESS_KEY, Pattern, Simulator, TokenReply,
};
use support::blobs::{assert_whole, blob, metric, pull, simulator, until};
use support::image::REPOSITORY;
use support::{Client, Proxy, Stopwatch};

fn tokens_asked(simulator: &Simulator) -> usize {
    let journal = simulator.journal();
    journal.count(|e| e.operation == "GetAuthorizationToken")
}

/// Pulls blobs that nobody asked for before, all at once.
async fn herd(proxy: &Proxy, simulator: &Simulator, seeds: std::ops::Range<u64>) {
    let client = proxy.client();
    let blobs: Vec<_> = seeds.map(|seed| blob(simulator, seed, 1000)).collect();
    let answers = blobs.iter().map(|(_, target)| client.get(target));
    let answers = futures_util::future::join_all(answers).await;
    for (answer, (digest, _)) in answers.iter().zip(&blobs) {
        assert_whole(answer, digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_shares_one_token() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    herd(&proxy, &simulator, 0..40).await;
    assert_eq!(tokens_asked(&simulator), 1);
    proxy.assert_no_secrets(&simulator.secrets()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_ahead_of_its_end_without_anybody_asking() {
    let simulator = simulator().await;
    simulator.set_token_life(Duration::from_secs(4));
    let proxy = Proxy::before(&simulator);
    let journal = simulator.journal();
    let asked = |entries: &[ecr_proxy::simulator::Entry]| {
        let tokens = entries
            .iter()
            .filter(|e| e.operation == "GetAuthorizationToken");
        tokens.count() >= 3
    };
    journal.until(asked).await.expect("renewals");
    // Two lives later the one in hand is good.
    herd(&proxy, &simulator, 0..1).await;
    let refused = journal.count(|e| e.listener == Listener::Registry && e.status == Some(403));
    assert_eq!(refused, 0);
    assert!(metric(&proxy, "ecr_proxy_token_refresh_total", &[r#"result="ok""#]).await >= 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn u11_a_token_refused_mid_pull_costs_one_shared_refresh_and_one_retry_each() {
    const HERD: usize = 20;
    for form in [ExpiredForm::Json, ExpiredForm::Text] {
        let simulator = simulator().await;
        simulator.set_expired_form(form);
        let proxy = Proxy::before(&simulator);
        herd(&proxy, &simulator, 0..1).await;
        simulator.expire_tokens();
        simulator.journal().clear();
        herd(&proxy, &simulator, 1..1 + HERD as u64).await;
        assert_eq!(tokens_asked(&simulator), 1, "{form:?}");
        let refused = simulator
            .journal()
            .count(|e| e.listener == Listener::Registry && e.status == Some(403));
        assert!(refused <= 2 * HERD, "{form:?}: {refused} refusals");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u11_a_plain_refusal_is_final_and_costs_no_token() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    herd(&proxy, &simulator, 0..1).await;
    simulator.journal().clear();
    let denial = r#"{"errors":[{"code":"DENIED","message":"User: arn:aws:iam::000042290000:user/x is not authorized to perform: ecr:BatchGetImage on resource: arn:aws:ecr:us-west-2:000042290000:repository/team/app"}]}"#;
    let faults = simulator.faults();
    let all = faults.on(Listener::Registry, "*", Pattern::any());
    all.then(Fault::status(403, denial));
    let answer = proxy
        .client()
        .get(&format!("/v2/{REPOSITORY}/manifests/v1"))
        .await;
    assert_eq!(
        (answer.status, answer.error_code().as_str()),
        (403, "DENIED")
    );
    for secret in ["arn:", "000042290000", "amazonaws"] {
        assert!(!answer.text().contains(secret), "{}", answer.text());
    }
    let asked = simulator
        .journal()
        .count(|e| e.listener == Listener::Registry);
    assert_eq!((asked, tokens_asked(&simulator)), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn k05_without_a_token_service_hits_go_on_misses_are_told_in_time_and_both_recover() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let kept = blob(&simulator, 1, 200_000);
    assert_eq!(pull(&proxy, &kept).await, "miss");
    simulator.outage_of(Listener::Api, Outage::Silent).await;
    simulator.expire_tokens();
    proxy.terminate();
    assert!(proxy.wait().success());
    proxy.restart();
    simulator.journal().clear();
    let cold = blob(&simulator, 2, 200_000);
    for _ in 0..2 {
        let began = Stopwatch::start();
        let answer = proxy.client().get(&cold.1).await;
        let took = began.took();
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some());
        assert!(took < Duration::from_secs(6), "{took:?}");
        assert_eq!(pull(&proxy, &kept).await, "hit");
    }
    // Whether it is there at all is asked without one.
    let registry = simulator
        .journal()
        .count(|e| e.listener == Listener::Registry && e.path != "/v2/");
    assert_eq!(registry, 0, "asked without a token");
    until("/readyz tells", async || {
        let ready = Client::operator(proxy.admin()).get("/readyz").await;
        assert_eq!(ready.status, 200, "{}", ready.text());
        ready.text().contains("no credentials since")
    })
    .await;
    simulator.outage_of(Listener::Api, Outage::None).await;
    until("misses are served again", async || {
        proxy.client().get(&cold.1).await.status == 200
    })
    .await;
    until("/readyz is whole", async || {
        let ready = Client::operator(proxy.admin()).get("/readyz?strict").await;
        ready.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u27_k08_odd_token_replies_are_503_and_nothing_is_sent_upstream() {
    let answered = [
        TokenReply::EmptyList,
        TokenReply::NotBase64,
        TokenReply::NoColon,
        TokenReply::PastExpiry,
        TokenReply::NoExpiry,
        TokenReply::OtherEndpoint,
        TokenReply::ServerError,
    ];
    futures_util::future::join_all(answered.map(async |reply| {
        let simulator = simulator().await;
        simulator.set_token_reply(reply);
        let proxy = Proxy::before(&simulator);
        let (digest, target) = blob(&simulator, 1, 1000);
        let answer = proxy.client().get(&target).await;
        assert_eq!(answer.status, 503, "{reply:?}: {}", answer.text());
        assert!(answer.header("retry-after").is_some(), "{reply:?}");
        let asked = simulator
            .journal()
            .count(|e| e.listener == Listener::Registry);
        assert_eq!(asked, 0, "{reply:?}");
        simulator.set_token_reply(TokenReply::Normal);
        until("a right reply mends it", async || {
            let answer = proxy.client().get(&target).await;
            answer.status == 200 && answer.digest() == digest
        })
        .await;
        proxy.assert_no_secrets(&simulator.secrets()).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u27_who_may_not_have_a_token_is_told_without_the_reason_of_aws() {
    let simulator = simulator().await;
    simulator.set_token_reply(TokenReply::Denied);
    let proxy = Proxy::before(&simulator);
    let (_, target) = blob(&simulator, 1, 1000);
    let answer = proxy.client().get(&target).await;
    assert!([403, 503].contains(&answer.status), "{}", answer.text());
    for secret in ["arn:", "AccessDenied", "amazonaws", PULL_ONLY_ACCESS_KEY] {
        assert!(!answer.text().contains(secret), "{}", answer.text());
    }
}
