//! Tokens are obtained once for all who wait, renewed when they are refused, and never sent elsewhere.

use std::time::Duration;

use ecr_proxy::oci::{Digest, Reference};
use ecr_proxy::simulator::{ExpiredForm, Fault, ImageSpec, Listener, Outage, Pattern, TokenReply};
use ecr_proxy::upstream::{OddToken, TokenError, Unreachable, UpstreamError};

use super::stopwatch::Stopwatch;
use super::support::{Rig, app, rig, rig_with};

async fn with_image() -> Rig {
    let rig = rig().await;
    rig.sim
        .push_image("app", "v1", ImageSpec::generated(1, [10]));
    rig
}

async fn pull(rig: &Rig) -> Result<Digest, UpstreamError> {
    let v1: Reference = "v1".parse().unwrap();
    Ok(rig.upstream.manifest(&app(), &v1).await?.digest)
}

#[tokio::test]
async fn u11_an_expired_token_is_renewed_once_for_all_and_callers_do_not_notice() {
    for form in [ExpiredForm::Json, ExpiredForm::Text] {
        let rig = with_image().await;
        rig.sim.set_expired_form(form);
        pull(&rig).await.unwrap();
        assert_eq!(rig.asked(Listener::Api), 1);
        rig.sim.expire_tokens();
        let pulls = (0..20).map(|_| pull(&rig));
        for pulled in futures_util::future::join_all(pulls).await {
            pulled.unwrap();
        }
        assert_eq!(rig.asked(Listener::Api), 2, "{form:?}");
        // The answer to a HEAD has no text to tell expiry by.
        rig.sim.expire_tokens();
        let v1: Reference = "v1".parse().unwrap();
        rig.upstream.head_manifest(&app(), &v1).await.unwrap();
        assert_eq!(rig.asked(Listener::Api), 3, "{form:?}");
    }
}

#[tokio::test]
async fn u11_401_and_400_are_renewed_and_a_token_refused_twice_is_final() {
    let rig = with_image().await;
    for status in [401, 400] {
        let rule = rig
            .sim
            .faults()
            .on(Listener::Registry, "GET", Pattern::any())
            .times(1);
        rule.then(Fault::status(status, "Not Authorized"));
        pull(&rig).await.unwrap();
    }
    assert_eq!(rig.asked(Listener::Api), 3);
    rig.sim.journal().clear();
    rig.sim
        .faults()
        .on(Listener::Registry, "GET", Pattern::any())
        .then(Fault::status(401, ""));
    assert_eq!(pull(&rig).await.unwrap_err(), UpstreamError::BadCredentials);
    assert_eq!(rig.asked(Listener::Registry), 2);
}

#[tokio::test]
async fn u11_a_denial_is_final_and_costs_no_token() {
    let rig = with_image().await;
    pull(&rig).await.unwrap();
    rig.sim.journal().clear();
    let denial = r#"{"errors":[{"code":"DENIED","message":"User: arn:aws:iam::000042290000:user/x is not authorized to perform: ecr:BatchGetImage"}]}"#;
    rig.sim
        .faults()
        .on(Listener::Registry, "GET", Pattern::any())
        .then(Fault::status(403, denial));
    assert_eq!(pull(&rig).await.unwrap_err(), UpstreamError::Refused);
    assert_eq!(
        (rig.asked(Listener::Registry), rig.asked(Listener::Api)),
        (1, 0)
    );
}

#[tokio::test]
async fn u27_odd_token_replies_are_typed_errors_and_nothing_is_sent() {
    let odd = |(reply, expected)| async move {
        let rig = with_image().await;
        rig.sim.set_token_reply(reply);
        let error = pull(&rig).await.unwrap_err();
        assert_eq!(error, UpstreamError::NoToken(expected), "{reply:?}");
        assert_eq!(rig.asked(Listener::Registry), 0);
        assert!(rig.upstream.token_status().failing.is_some());
    };
    let replies = [
        (TokenReply::EmptyList, TokenError::Odd(OddToken::Missing)),
        (TokenReply::NotBase64, TokenError::Odd(OddToken::Malformed)),
        (TokenReply::NoColon, TokenError::Odd(OddToken::Malformed)),
        (TokenReply::PastExpiry, TokenError::Odd(OddToken::Expired)),
        (TokenReply::NoExpiry, TokenError::Odd(OddToken::Malformed)),
        (TokenReply::Denied, TokenError::Denied),
        (TokenReply::ServerError, TokenError::Failing),
        (TokenReply::Throttled, TokenError::Throttled),
    ];
    futures_util::future::join_all(replies.map(odd)).await;
}

#[tokio::test]
async fn u27_k10_a_token_service_that_hangs_is_waited_for_in_bounds() {
    let rig = rig_with(|options| {
        options.limits.connect = Duration::from_millis(500);
        options.limits.token = Duration::from_secs(1);
    })
    .await;
    rig.sim.set_token_reply(TokenReply::Hang);
    let began = Stopwatch::start();
    let error = pull(&rig).await.unwrap_err();
    assert_eq!(error, UpstreamError::NoToken(TokenError::Pending));
    assert!(error.cannot_answer());
    let checked = rig.upstream.check_token().await.unwrap_err();
    assert_eq!(checked, UpstreamError::NoToken(TokenError::TooSlow));
    assert!(began.took() < Duration::from_secs(5));
}

#[tokio::test]
async fn k05_pulls_go_on_while_the_token_is_valid_and_recover_after() {
    let rig = with_image().await;
    pull(&rig).await.unwrap();
    rig.sim.outage_of(Listener::Api, Outage::Refused).await;
    pull(&rig).await.unwrap();
    rig.sim.expire_tokens();
    let error = pull(&rig).await.unwrap_err();
    assert_eq!(error, UpstreamError::NoToken(TokenError::Unreachable));
    rig.sim.outage_of(Listener::Api, Outage::None).await;
    let keeper = rig.upstream.clone();
    let keeper = tokio::spawn(async move { keeper.keep_token_fresh().await });
    let recovered = tokio::time::timeout(Duration::from_secs(30), async {
        while pull(&rig).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    recovered.await.unwrap();
    keeper.abort();
}

#[tokio::test]
async fn k07_a_short_life_is_obeyed() {
    let rig = with_image().await;
    rig.sim.set_token_life(Duration::from_secs(600));
    let status = rig.upstream.check_token().await.unwrap();
    let life = status
        .valid_until
        .unwrap()
        .duration_since(std::time::SystemTime::now())
        .unwrap();
    assert!((590..=600).contains(&life.as_secs()), "{life:?}");
    assert_eq!(status.failing, None);
}

#[tokio::test]
async fn a_registry_that_cannot_be_reached_is_unreachable_and_soon_not_asked() {
    for (outage, reason) in [
        (Outage::Refused, Unreachable::Connect),
        (Outage::Reset, Unreachable::Broken),
    ] {
        let rig = with_image().await;
        pull(&rig).await.unwrap();
        rig.sim.outage_of(Listener::Registry, outage).await;
        let first = pull(&rig).await.unwrap_err();
        assert_eq!(first, UpstreamError::Unreachable(reason));
        let error = pull(&rig).await.unwrap_err();
        assert_eq!(error, UpstreamError::Away(Box::new(first)));
        assert!(error.cannot_answer() && error.retryable());
        rig.sim.outage_of(Listener::Registry, Outage::None).await;
        let returned = tokio::time::timeout(Duration::from_secs(5), rig.upstream.answers());
        assert!(returned.await.unwrap());
        pull(&rig).await.unwrap();
    }
}

#[tokio::test]
async fn a_ping_tells_clock_and_time() {
    let rig = rig().await;
    let ping = rig.upstream.ping().await.unwrap();
    assert!(ping.took < Duration::from_secs(5));
    let clock = ping.clock.expect("the registry sends its date");
    assert!(clock.size() < Duration::from_secs(5));
}
