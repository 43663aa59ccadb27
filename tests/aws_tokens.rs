//! `docker login -u AWS` with a token of one's own: such a caller may exactly what ECR says of the token,
//! on hits as on misses, and of what ECR said nothing is believed for longer than a minute.

mod support;

use std::time::Duration;

use ecr_proxy::simulator::{
    Action, DENIED_ACCESS_KEY, Entry, FULL_ACCESS_KEY, Fault, ImageSpec, IssuedToken, Listener,
    Outage, Pattern, Principal, PushedImage, Simulator,
};
use support::blobs::{idle, metric, outcome};
use support::image::{REPOSITORY, TAG};
use support::proxy::Builder;
use support::users::{basic, login, user_line};
use support::{Answer, Client, Clock, Proxy};

/// May read [`REPOSITORY`] and nothing else.
const READER: &str = "AKIASIMULATEDREADER1";
/// May read `other/app` and nothing else.
const STRANGER: &str = "AKIASIMULATEDOTHER01";
const OTHER: &str = "other/app";
const QUESTIONS: &str = "ecr_proxy_client_token_questions_total";

fn reader_of(repository: &str, key: &str) -> Principal {
    Principal::pull_only(key).only_in(&[repository])
}

async fn simulator() -> (Simulator, PushedImage) {
    let simulator = Simulator::builder()
        .principal(reader_of(REPOSITORY, READER))
        .principal(reader_of(OTHER, STRANGER))
        .start();
    let simulator = simulator.await.expect("a simulator");
    simulator.create_repository(REPOSITORY);
    simulator.create_repository(OTHER);
    let image = simulator.push_image(REPOSITORY, TAG, ImageSpec::generated(3, [70_000; 4]));
    (simulator, image)
}

fn with_tokens(simulator: &Simulator) -> Builder {
    Proxy::builder()
        .simulator(simulator)
        .unset("access.anonymous")
        .set("access.aws_tokens", true)
}

fn token(simulator: &Simulator, key: &str) -> IssuedToken {
    simulator.token(key).expect("a principal")
}

/// A client that logged in as `aws ecr get-login-password | docker login -u AWS --password-stdin` does.
fn bearer(proxy: &Proxy, token: &IssuedToken) -> Client {
    login(proxy.client(), "AWS", &token.password)
}

fn manifest() -> String {
    format!("/v2/{REPOSITORY}/manifests/{TAG}")
}

fn blobs(image: &PushedImage) -> Vec<String> {
    let manifest = &image.manifests[0];
    let all = std::iter::once(&manifest.config).chain(&manifest.layers);
    all.map(|blob| format!("/v2/{REPOSITORY}/blobs/{}", blob.digest))
        .collect()
}

/// What the registry was asked with this token.
fn asked_with(simulator: &Simulator, token: &IssuedToken) -> Vec<String> {
    let authorization = basic("AWS", &token.password);
    let entries = simulator.journal().snapshot();
    let own = entries.iter().filter(|entry| {
        entry.listener == Listener::Registry
            && entry.header("authorization") == Some(&authorization)
    });
    own.map(|entry: &Entry| format!("{} {}", entry.method, entry.path))
        .collect()
}

fn assert_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(
        (answer.status, answer.error_code().as_str()),
        (status, code)
    );
    for header in ["etag", "docker-content-digest", "x-cache", "content-range"] {
        assert_eq!(answer.header(header), None, "{header}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_pull_in_ecr_pulls_here_and_nobody_else_hits_and_misses_alike() {
    let (simulator, image) = simulator().await;
    let proxy = with_tokens(&simulator).start();
    let (reader, stranger) = (token(&simulator, READER), token(&simulator, STRANGER));
    let paths: Vec<String> = [manifest()].into_iter().chain(blobs(&image)).collect();
    for turn in ["cold", "cached"] {
        let (mine, theirs) = (bearer(&proxy, &reader), bearer(&proxy, &stranger));
        assert_eq!(mine.get("/v2/").await.status, 200, "{turn}");
        assert_eq!(theirs.get("/v2/").await.status, 200, "{turn}: a good token");
        for path in &paths {
            let absent = format!("/v2/{REPOSITORY}/manifests/absent");
            for forbidden in [path, &absent, &"/v2/no/such/manifests/v1".to_owned()] {
                assert_refused(&theirs.get(forbidden).await, 403, "DENIED");
                assert_eq!(theirs.head(forbidden).await.status, 403, "{turn}");
            }
            let part = [("range", "bytes=0-9"), ("if-none-match", "*")];
            assert_refused(&theirs.get_with(path, &part).await, 403, "DENIED");
            let answer = mine.get(path).await;
            assert_eq!(answer.status, 200, "{turn} {path}: {}", answer.text());
            let expected = if turn == "cold" { "miss" } else { "hit" };
            assert_eq!(outcome(&answer), Some(expected), "{path}");
            assert!(answer.clean_end);
        }
        let absent = mine
            .get(&format!("/v2/{REPOSITORY}/manifests/absent"))
            .await;
        assert_refused(&absent, 404, "MANIFEST_UNKNOWN");
        idle(&proxy).await;
    }
    // What the cache was filled from was asked for with our own identity.
    let bodies = simulator.journal().count(|entry| {
        entry.listener == Listener::Registry
            && entry.header("authorization") == Some(&basic("AWS", &reader.password))
            && entry.method == "GET"
            && !entry.path.contains("/blobs/")
            && entry.path != "/v2/"
    });
    assert_eq!(bodies, 0, "{:?}", asked_with(&simulator, &reader));
    proxy.assert_no_secrets(&simulator.secrets()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_and_blobs_and_lists_are_rights_of_their_own_as_in_ecr() {
    let (simulator, image) = simulator().await;
    let manifests_only = [Action::GetAuthorizationToken, Action::BatchGetImage];
    simulator.set_principal(Principal::with_actions(STRANGER, "user/x", &manifests_only));
    let proxy = with_tokens(&simulator).start();
    let full = bearer(&proxy, &token(&simulator, FULL_ACCESS_KEY));
    let some = bearer(&proxy, &token(&simulator, STRANGER));
    let tags = format!("/v2/{REPOSITORY}/tags/list");
    let referrers = format!("/v2/{REPOSITORY}/referrers/{}", image.top.digest);
    for path in blobs(&image) {
        assert_eq!(full.get(&path).await.status, 200);
        assert_refused(&some.get(&path).await, 403, "DENIED");
    }
    assert_eq!(some.get(&manifest()).await.status, 200);
    assert_eq!(some.get(&referrers).await.status, 200);
    // The proxy's own identity may not list either, and is not asked.
    assert_eq!(full.get(&tags).await.json()["tags"][0], TAG);
    assert_refused(&some.get(&tags).await, 403, "DENIED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_of_fifty_layers_costs_three_questions() {
    let (simulator, _) = simulator().await;
    let image = simulator.push_image(REPOSITORY, "fifty", ImageSpec::generated(9, [1000; 50]));
    let proxy = with_tokens(&simulator).start();
    let reader = token(&simulator, READER);
    let client = bearer(&proxy, &reader);
    // All at once, and each on a connection of its own.
    let paths = blobs(&image);
    for _ in 0..2 {
        let tagged = manifest();
        let manifests = (0..50).map(|_| client.get(&tagged));
        let layers = futures_util::future::join_all(paths.iter().map(|path| client.get(path)));
        let (manifests, layers) = tokio::join!(futures_util::future::join_all(manifests), layers);
        assert!(manifests.iter().chain(&layers).all(|a| a.status == 200));
    }
    let asked = asked_with(&simulator, &reader);
    assert_eq!(asked.len(), 3, "{asked:?}");
    let counted = metric(&proxy, QUESTIONS, &["result=\"allowed\""]).await;
    assert_eq!(counted, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_is_401_and_ecr_is_asked_little_about_it() {
    let (simulator, _) = simulator().await;
    let users = user_line("ci", "secret");
    let proxy = with_tokens(&simulator).users(&users).start();
    let (known, fresh) = (token(&simulator, READER), token(&simulator, READER));
    let known = bearer(&proxy, &known);
    assert_eq!(known.get(&manifest()).await.status, 200);
    simulator.journal().clear();

    let rubbish = login(proxy.client(), "AWS", "rubbish");
    let all = futures_util::future::join_all((0..100).map(|_| rubbish.get("/v2/"))).await;
    for answer in all {
        assert_refused(&answer, 401, "UNAUTHORIZED");
        assert_eq!(
            answer.header("www-authenticate"),
            Some("Basic realm=\"ecr-proxy\"")
        );
    }
    let questions = || {
        simulator
            .journal()
            .count(|e| e.listener == Listener::Registry)
    };
    assert_eq!(questions(), 1, "equal questions are asked once");

    let mut statuses = Vec::new();
    for guess in 0..100 {
        let guess = login(proxy.client(), "AWS", &format!("guess {guess}"));
        statuses.push(guess.get(&manifest()).await.status);
    }
    assert_eq!(statuses[..29], [401; 29]);
    assert_eq!(statuses[29..], [429; 71]);
    assert_eq!(questions(), 30);
    // Who is known goes on, and so do users; a token that is not known yet has to wait.
    assert_eq!(known.get(&manifest()).await.status, 200);
    let ci = login(proxy.client(), "ci", "secret");
    assert_eq!(ci.get(&manifest()).await.status, 200);
    assert_eq!(bearer(&proxy, &fresh).get("/v2/").await.status, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_401() {
    let (simulator, _) = simulator().await;
    let proxy = with_tokens(&simulator).start();
    simulator.set_token_life(Duration::ZERO);
    let expired = token(&simulator, READER);
    simulator.set_token_life(Duration::from_secs(3600));
    let client = bearer(&proxy, &expired);
    assert_refused(&client.get("/v2/").await, 401, "UNAUTHORIZED");
    assert_refused(&client.get(&manifest()).await, 401, "UNAUTHORIZED");
    assert_eq!(asked_with(&simulator, &expired), ["GET /v2/"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn aws_is_nobody_where_tokens_are_not_taken() {
    let (simulator, _) = simulator().await;
    let proxy = Proxy::builder().simulator(&simulator);
    let proxy = proxy.users(&user_line("ci", "secret")).start();
    let reader = token(&simulator, READER);
    let client = bearer(&proxy, &reader);
    assert_refused(&client.get("/v2/").await, 401, "UNAUTHORIZED");
    assert_refused(&client.get(&manifest()).await, 401, "UNAUTHORIZED");
    assert_eq!(asked_with(&simulator, &reader), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_ecr_is_away_nobody_is_told_what_it_said_a_minute_ago() {
    let (simulator, _) = simulator().await;
    let clock = Clock::right();
    let users = user_line("ci", "secret");
    let builder = clock
        .govern_deadlines(with_tokens(&simulator))
        .users(&users);
    let proxy = builder.set("cache.tag_ttl", "1h").start();
    let client = bearer(&proxy, &token(&simulator, READER));
    assert_eq!(client.get(&manifest()).await.status, 200);
    simulator.outage(Outage::Refused).await;
    clock.ahead(Duration::from_secs(50));
    let hit = client.get(&manifest()).await;
    assert_eq!((hit.status, outcome(&hit)), (200, Some("hit")));
    clock.ahead(Duration::from_secs(61));
    for path in [manifest(), "/v2/".to_owned()] {
        let answer = client.get(&path).await;
        assert_refused(&answer, 503, "UNAVAILABLE");
        assert!(answer.header("retry-after").is_some());
    }
    let ci = login(proxy.client(), "ci", "secret");
    let hit = ci.get(&manifest()).await;
    assert_eq!((hit.status, outcome(&hit)), (200, Some("hit")));
    assert!(metric(&proxy, "ecr_proxy_denied_total", &["reason=\"undecided\""]).await >= 2.0);

    simulator.outage(Outage::None).await;
    support::blobs::until("it is asked again", async || {
        client.get(&manifest()).await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_a_right_taken_away_in_aws_is_gone_within_a_minute() {
    let (simulator, image) = simulator().await;
    let clock = Clock::right();
    let proxy = clock.govern_deadlines(with_tokens(&simulator)).start();
    let reader = token(&simulator, READER);
    let client = bearer(&proxy, &reader);
    let blob = &blobs(&image)[1];
    assert_eq!(client.get(&manifest()).await.status, 200);
    assert_eq!(client.get(blob).await.status, 200);
    simulator.set_principal(reader_of(OTHER, READER));
    clock.ahead(Duration::from_secs(61));
    assert_refused(&client.get(&manifest()).await, 403, "DENIED");
    assert_refused(&client.get(blob).await, 403, "DENIED");
    assert_eq!(client.get("/v2/").await.status, 200);
    simulator.expire_tokens();
    clock.ahead(Duration::from_secs(122));
    assert_refused(&client.get(&manifest()).await, 401, "UNAUTHORIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ecr_stumbles_over_for_a_caller_holds_up_nobody_else() {
    let (simulator, image) = simulator().await;
    let users = user_line("ci", "secret");
    let proxy = with_tokens(&simulator).users(&users).start();
    let bad = [
        Fault::status(500, ""),
        Fault::throttled(Some("60")),
        Fault::status(503, ""),
    ];
    for (number, fault) in bad.into_iter().enumerate() {
        let caller = login(proxy.client(), "AWS", &format!("stumble {number}"));
        let authorization = basic("AWS", &format!("stumble {number}"));
        let of_caller = Pattern::matching(move |entry| {
            entry.header("authorization") == Some(authorization.as_str())
        });
        let rule = simulator.faults().on(Listener::Registry, "*", of_caller);
        let rule = rule.then(fault);
        for _ in 0..10 {
            assert_refused(&caller.get("/v2/").await, 503, "UNAVAILABLE");
        }
        assert_eq!(rule.taken(), 10, "nothing is made up of no answer");
        let ci = login(proxy.client(), "ci", "secret");
        let cold = ci.get(&blobs(&image)[number]).await;
        assert_eq!((cold.status, outcome(&cold)), (200, Some("miss")));
    }
    let open = metric(&proxy, "ecr_proxy_upstream_breaker_openings_total", &[]).await;
    assert_eq!(open, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_token_is_told_nowhere() {
    let (simulator, image) = simulator().await;
    let proxy = with_tokens(&simulator).env("RUST_LOG", "trace").start();
    let client = bearer(&proxy, &token(&simulator, READER));
    let other = bearer(&proxy, &token(&simulator, DENIED_ACCESS_KEY));
    let rubbish = login(proxy.client(), "AWS", "canary-rubbish");
    for path in [manifest(), "/v2/".to_owned()].iter().chain(&blobs(&image)) {
        assert_eq!(client.get(path).await.status, 200);
        other.get(path).await;
        rubbish.get(path).await;
    }
    simulator.outage(Outage::Refused).await;
    login(proxy.client(), "AWS", "canary-away")
        .get("/v2/")
        .await;
    let mut secrets = simulator.secrets();
    secrets.extend(["canary-rubbish", "canary-away"].map(str::to_owned));
    secrets.push(basic("AWS", "canary-rubbish").replace("Basic ", ""));
    proxy.assert_no_secrets(&secrets).await;
    let event = proxy.log_until("who it was", |event| {
        event.field("client.user").as_deref() == Some("AWS")
    });
    event.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_tell_of_tokens() {
    let (simulator, _) = simulator().await;
    let proxy = with_tokens(&simulator).start();
    let checked = proxy
        .run(["check", "--as", "AWS", REPOSITORY, "pull"])
        .fine();
    assert!(
        checked.stdout.contains("what ECR says of the token"),
        "{checked:?}"
    );
    let without = Proxy::builder().simulator(&simulator);
    let without = without.users(&user_line("ci", "secret")).start();
    let checked = without.run(["check", "--as", "AWS", REPOSITORY, "pull"]);
    assert_eq!(checked.code, Some(1));
    assert!(
        checked.stdout.contains("which are not taken"),
        "{checked:?}"
    );
}

/// What AWS documents as the rights to push: no right to read blobs is among them.
const PUSH: [Action; 7] = [
    Action::GetAuthorizationToken,
    Action::BatchCheckLayerAvailability,
    Action::InitiateLayerUpload,
    Action::UploadLayerPart,
    Action::CompleteLayerUpload,
    Action::PutImage,
    Action::BatchGetImage,
];

#[tokio::test(flavor = "multi_thread")]
async fn pushes_go_upstream_with_the_callers_token_and_ecr_decides() {
    let (simulator, _) = simulator().await;
    let pusher = Principal::with_actions(STRANGER, "user/x", &PUSH).only_in(&[OTHER]);
    simulator.set_principal(pusher);
    let proxy = with_tokens(&simulator).start();
    let (pusher, reader) = (token(&simulator, STRANGER), token(&simulator, READER));
    let blob = b"pushed with a token of one's own".as_slice();
    let digest = format!("sha256:{}", sha256(blob));
    let upload = async |token: &IssuedToken, repository: &str| {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let client = bearer(&proxy, token);
        let length = [("content-length", blob.len().to_string())];
        let length = length
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        let mut connection = client.start("POST", &path, &length).await;
        connection.send(blob).await.expect("send");
        connection.answer("POST").await.expect("an answer")
    };
    let path = format!("/v2/{OTHER}/blobs/{digest}");
    let client = bearer(&proxy, &pusher);
    assert_eq!(client.head(&path).await.status, 404, "nothing is there yet");
    let pushed = upload(&pusher, OTHER).await;
    assert_eq!(pushed.status, 201, "{}", pushed.text());
    let sent = simulator.journal().snapshot();
    let sent: Vec<_> = sent
        .iter()
        .filter(|e| e.path.contains("/uploads/"))
        .collect();
    let theirs = basic("AWS", &pusher.password);
    assert!(!sent.is_empty());
    assert!(
        sent.iter()
            .all(|e| e.header("authorization") == Some(&theirs))
    );
    // As in ECR it can be asked for, and not read.
    assert_eq!(client.head(&path).await.status, 200);
    assert_refused(&client.get(&path).await, 403, "DENIED");
    // Nor pushed elsewhere, nor by who may only read.
    for (token, repository) in [
        (&pusher, REPOSITORY),
        (&reader, REPOSITORY),
        (&reader, OTHER),
    ] {
        let refused = upload(token, repository).await;
        assert_eq!(refused.status, 403, "{repository}: {}", refused.text());
        assert!(!refused.text().contains("arn:"), "{}", refused.text());
    }
    let deleted = client
        .ask("DELETE", &format!("/v2/{OTHER}/manifests/v1"), &[])
        .await;
    assert_eq!(deleted.status, 403, "{}", deleted.text());
    proxy.assert_no_secrets(&simulator.secrets()).await;
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    let sum = sha2::Sha256::digest(bytes);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_to_no_registry_but_ecr() {
    let (simulator, _) = simulator().await;
    let elsewhere = Simulator::builder().start().await.expect("a simulator");
    let another = format!(
        "name = 'hub'\nregistry = 'registry.upstream.test'\nauth = 'anonymous'\nendpoint = '{}'",
        elsewhere.endpoint()
    );
    let proxy = with_tokens(&simulator)
        .another_upstream(another.parse().expect("a table"))
        .route([("repository", "hub/**"), ("upstream", "hub")])
        .route([("repository", "**"), ("upstream", "prod")])
        .start();
    let client = bearer(&proxy, &token(&simulator, FULL_ACCESS_KEY));
    assert_eq!(client.get(&manifest()).await.status, 200);
    for path in ["manifests/v1", "tags/list", "blobs/uploads/"] {
        let path = format!("/v2/hub/app/{path}");
        assert_refused(&client.get(&path).await, 403, "DENIED");
        assert_eq!(client.ask("POST", &path, &[]).await.status, 403, "{path}");
    }
    let asked = elsewhere.journal().snapshot();
    assert!(asked.is_empty(), "{asked:?}");
}
