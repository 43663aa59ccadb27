//! Redirects and challenges lead only where they may, and no secret is told in refusing them.

use ecr_proxy::oci::Digest;
use ecr_proxy::simulator::{FULL_ACCESS_KEY, Fault, ImageSpec, Listener, Pattern, path_contains};
use ecr_proxy::upstream::{Auth, RefusedRealm, RefusedRedirect, Secret, UpstreamError, Wrong};
use tokio::net::TcpListener;

use super::support::{app, content, plain, rig, rig_with, upstream};

#[tokio::test]
async fn s11_redirects_lead_to_listed_hosts_only() {
    let rig = rig().await;
    let digest = rig.put(&content(100));
    let trap = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let trap_address = trap.local_addr().unwrap();
    for (location, reason) in [
        (format!("http://{trap_address}/x"), RefusedRedirect::Host),
        (format!("https://{trap_address}/x"), RefusedRedirect::Host),
        (
            "http://169.254.169.254/latest/meta-data/".into(),
            RefusedRedirect::NotHttps,
        ),
        (
            "https://169.254.169.254/latest/meta-data/".into(),
            RefusedRedirect::Host,
        ),
        ("https://evil.example/x".into(), RefusedRedirect::Host),
        (
            "http://prod-us-west-2-starport-layer-bucket.s3.us-west-2.amazonaws.com/x".into(),
            RefusedRedirect::NotHttps,
        ),
        (
            format!(
                "http://canary:canary@{}/x",
                rig.sim.address(Listener::Storage)
            ),
            RefusedRedirect::UserInfo,
        ),
        ("ftp://127.0.0.1/x".into(), RefusedRedirect::NoLocation),
        (String::new(), RefusedRedirect::TooMany),
        ("/v2/app/blobs/loop".into(), RefusedRedirect::TooMany),
    ] {
        rig.sim.faults().clear();
        rig.sim
            .faults()
            .on(Listener::Registry, "GET", path_contains("blobs"))
            .then(Fault::redirect(&location));
        let error = rig.whole(&digest).await.unwrap_err();
        assert_eq!(
            error,
            UpstreamError::Wrong(Wrong::Redirect(reason)),
            "{location}"
        );
        assert!(!error.to_string().contains("canary"));
    }
    rig.sim.faults().clear();
    rig.sim
        .faults()
        .on(Listener::Registry, "GET", path_contains("blobs"))
        .then(Fault::RemoveHeader("location"));
    let error = rig.whole(&digest).await.unwrap_err();
    assert_eq!(
        error,
        UpstreamError::Wrong(Wrong::Redirect(RefusedRedirect::NoLocation))
    );
    let nobody_came = tokio::time::timeout(std::time::Duration::ZERO, trap.accept()).await;
    assert!(nobody_came.is_err());
}

#[tokio::test]
async fn s11_hosts_that_the_operator_lists_are_followed() {
    let rig = rig_with(|options| options.redirect_hosts = vec!["localhost".parse().unwrap()]).await;
    let blob = content(100);
    let digest = rig.put(&blob);
    let port = rig.sim.address(Listener::Storage).port();
    let path = rig.sim.storage_path("app", &digest.to_string());
    let rule = rig
        .sim
        .faults()
        .on(Listener::Registry, "GET", path_contains("blobs"));
    rule.then(Fault::redirect(&format!("http://localhost:{port}{path}")));
    // Unsigned, so storage refuses; but it was asked.
    let error = rig.whole(&digest).await.unwrap_err();
    assert_eq!(error, UpstreamError::Wrong(Wrong::Status(403)));
    assert_eq!(rig.asked(Listener::Storage), 1);
}

#[tokio::test]
async fn s10_realms_of_others_are_not_asked() {
    let rig = rig().await;
    let trap = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let trap_address = trap.local_addr().unwrap();
    let mut options = plain("registry.example", &rig.sim.endpoint());
    options.auth = Auth::Basic {
        username: "user".into(),
        password: Secret::new("canary"),
    };
    let basic = upstream(options);
    for (realm, reason) in [
        (format!("http://{trap_address}/token"), RefusedRealm::Host),
        (format!("https://{trap_address}/token"), RefusedRealm::Host),
        ("https://evil.example/token".into(), RefusedRealm::Host),
        (
            "http://169.254.169.254/token".into(),
            RefusedRealm::NotHttps,
        ),
        (
            "https://user:pass@registry.example/token".into(),
            RefusedRealm::NotAnAddress,
        ),
    ] {
        rig.sim.faults().clear();
        let challenge =
            format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"repository:app:pull\"");
        let rule = rig
            .sim
            .faults()
            .on(Listener::Registry, "GET", path_contains("blobs"));
        rule.all([
            Fault::status(401, ""),
            Fault::SetHeader("www-authenticate", challenge),
        ]);
        let digest = Digest::of(b"x");
        let error = basic
            .blob(&app(), &digest, ecr_proxy::upstream::Span::WHOLE, None)
            .await
            .map(drop)
            .unwrap_err();
        assert_eq!(error, UpstreamError::Wrong(Wrong::Realm(reason)), "{realm}");
    }
    let nobody_came = tokio::time::timeout(std::time::Duration::ZERO, trap.accept()).await;
    assert!(nobody_came.is_err());
    let told = rig
        .sim
        .journal()
        .count(|entry| entry.headers.contains_key("authorization"));
    assert_eq!(told, 0);
}

#[tokio::test]
async fn questions_that_are_the_first_together_all_log_in_by_a_password() {
    let rig = rig().await;
    rig.sim
        .push_image("app", "v1", ImageSpec::generated(1, [100]));
    let password = rig.sim.token(FULL_ACCESS_KEY).unwrap().password;
    let mut options = plain("registry.example", &rig.sim.endpoint());
    options.auth = Auth::Basic {
        username: "AWS".into(),
        password: Secret::new(&password),
    };
    let basic = upstream(options);
    let app = app();
    let asking = (0..10).map(|_| basic.tags(&app, None, None));
    for page in futures_util::future::join_all(asking).await {
        assert_eq!(page.unwrap().names, ["v1"]);
    }
}

#[tokio::test]
async fn a_bearer_token_of_the_registrys_own_realm_is_fetched_once_and_renewed() {
    let rig = rig().await;
    let realm = format!("{}/token?a=b", rig.sim.endpoint());
    let faults = rig.sim.faults();
    let token = r#"{"token":"canary","expires_in":300}"#;
    faults
        .on(Listener::Registry, "GET", path_contains("/token"))
        .then(Fault::status(200, token));
    let challenge = format!("Bearer realm=\"{realm}\",service=\"registry.example\"");
    let rule = faults.on(
        Listener::Registry,
        "GET",
        Pattern::matching(|entry| {
            entry.path.contains("tags") && entry.header("authorization") != Some("Bearer canary")
        }),
    );
    rule.all([
        Fault::status(401, ""),
        Fault::SetHeader("www-authenticate", challenge),
    ]);
    let rule = faults.on(
        Listener::Registry,
        "GET",
        Pattern::matching(|entry| {
            entry.path.contains("tags") && entry.header("authorization") == Some("Bearer canary")
        }),
    );
    rule.then(Fault::status(200, r#"{"name":"app","tags":["v1"]}"#));
    let anonymous = upstream(plain("registry.example", &rig.sim.endpoint()));
    let app = app();
    for _ in 0..2 {
        let asking = (0..10).map(|_| anonymous.tags(&app, None, None));
        for page in futures_util::future::join_all(asking).await {
            assert_eq!(page.unwrap().names, ["v1"]);
        }
    }
    let fetched = rig.sim.journal().snapshot();
    let fetched: Vec<_> = fetched
        .iter()
        .filter(|entry| entry.path == "/token")
        .collect();
    assert_eq!(fetched.len(), 1);
    assert_eq!(
        fetched[0].query,
        "a=b&service=registry.example&scope=repository%3Aapp%3Apull"
    );
    assert_eq!(fetched[0].header("authorization"), None);
}
