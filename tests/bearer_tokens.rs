//! Registries that log in by Bearer tokens are pulled from and pushed to with a token for each thing: one that
//! was obtained to read is never what an upload goes on with, and one that ends is renewed before it is sent.
//! The registry is Debian's, which checks what a token service of the tests signs.

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use support::blobs::{metric, until};
use support::challenger::{Manner, challenge_like};
use support::proxy::Builder;
use support::push::{APP, OTHER};
use support::push::{MANIFEST, begin, bytes, location, manifest, push_image, put, send, users};
use support::real::DockerRegistry;
use support::store::digest;
use support::token_service::{ACCOUNT, Form};
use support::users::login;
use support::{Answer, Client, Event, Proxy, TokenService};

const PULL: &[&str] = &["repository:team/app:pull"];
const PUSH: &[&str] = &["repository:team/app:pull,push"];
const DELETE: &[&str] = &["repository:team/app:delete"];

/// A registry, the service whose tokens it takes, and the proxy in front of it.
struct Rig {
    tokens: TokenService,
    registry: DockerRegistry,
    proxy: Proxy,
}

impl Rig {
    async fn start() -> Self {
        Self::with(|tokens, proxy| proxy.account(tokens)).await
    }

    /// The registry does not say why it refuses a token.
    async fn telling_like(manner: Manner) -> Self {
        let tokens = TokenService::start().await;
        let registry = DockerRegistry::start_behind(&tokens);
        let front = challenge_like(manner, registry.address()).await;
        Self::of(tokens, registry, front, |tokens, proxy| {
            proxy.account(tokens)
        })
    }

    async fn with(set: impl FnOnce(&TokenService, Builder) -> Builder) -> Self {
        let tokens = TokenService::start().await;
        let registry = DockerRegistry::start_behind(&tokens);
        let address = registry.address();
        Self::of(tokens, registry, address, set)
    }

    fn of(
        tokens: TokenService,
        registry: DockerRegistry,
        reached_at: SocketAddr,
        set: impl FnOnce(&TokenService, Builder) -> Builder,
    ) -> Self {
        let proxy = Proxy::builder()
            .registry("registry.upstream.test", &format!("http://{reached_at}"))
            .set("cache.tag_ttl", "0s");
        let proxy = set(&tokens, users(proxy)).start();
        Self {
            tokens,
            registry,
            proxy,
        }
    }

    /// Somebody who may do everything.
    fn ann(&self) -> Client {
        login(self.proxy.client(), "ann", support::push::PASSWORD)
    }

    /// All that the service was asked for.
    fn scopes(&self) -> BTreeSet<Vec<String>> {
        self.tokens
            .asked()
            .into_iter()
            .map(|asked| asked.scopes)
            .collect()
    }
}

fn set_of(scopes: &[&[&str]]) -> BTreeSet<Vec<String>> {
    let owned = |scopes: &&[&str]| scopes.iter().map(|&scope| scope.to_owned()).collect();
    scopes.iter().map(owned).collect()
}

/// Sends the next bytes of an upload; where it goes on.
async fn patch(client: &Client, place: &str, part: &[u8]) -> String {
    let answer = send(client, "PATCH", place, &[], part, true).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    location(&answer)
}

async fn end(client: &Client, place: &str, whole: &[u8], last: &[u8]) -> Answer {
    let target = format!("{place}?digest={}", digest(whole));
    put(client, &target, &[], last).await
}

fn tag(name: &str) -> String {
    format!("/v2/{APP}/manifests/{name}")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_thing_has_a_token_of_its_own() {
    let rig = Rig::start().await;
    let ann = rig.ann();
    let layer = bytes(200_000);
    let (pushed, named) = push_image(&ann, APP, "v1", &layer).await;
    assert_eq!(pushed.status, 201, "{}", pushed.text());
    assert_eq!(rig.scopes(), set_of(&[PUSH]));
    assert_eq!(rig.tokens.asked_for(PUSH), 1, "for five requests and more");
    let pulled = ann.get(&tag("v1")).await;
    assert_eq!((pulled.status, pulled.digest()), (200, named.clone()));
    assert_eq!(rig.scopes(), set_of(&[PUSH, PULL]));
    let tags = ann.get(&format!("/v2/{APP}/tags/list")).await;
    assert_eq!(tags.json()["tags"][0], "v1", "{}", tags.text());
    let listed = ann.get("/v2/_catalog").await;
    assert_eq!(listed.json()["repositories"][0], APP, "{}", listed.text());
    let catalog: &[&str] = &["registry:catalog:*"];
    assert_eq!(rig.tokens.asked_for(catalog), 1);
    let gone = ann.ask("DELETE", &tag(&named), &[]).await;
    assert_eq!(gone.status, 202, "{}", gone.text());
    assert_eq!(ann.get(&tag("v1")).await.status, 404);
    assert_eq!(rig.scopes(), set_of(&[PUSH, PULL, catalog, DELETE]));
    for asked in rig.tokens.asked() {
        assert_eq!(asked.account.as_deref(), Some(ACCOUNT));
        let others = [("tenant", "a b"), ("service", "registry.upstream.test")];
        let others = others.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(asked.others, others);
    }
    let secret = support::token_service::SECRET.to_owned();
    rig.proxy.assert_no_secrets(&[secret]).await;
}

/// Pulls the tag until the token to pull with was renewed: every token that there is now has ended.
async fn outlive_tokens(rig: &Rig, ann: &Client) {
    assert_eq!(ann.get(&tag("v1")).await.status, 200);
    let before = rig.tokens.asked_for(PULL);
    until("the token to pull with is renewed", async || {
        let pulled = ann.get(&tag("v1")).await;
        assert_eq!(pulled.status, 200, "{}", pulled.text());
        assert_eq!(pulled.header("x-cache"), Some("hit"), "as upstream says");
        rig.tokens.asked_for(PULL) > before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn o10_first_pulls_take_nothing_from_uploads_that_begin_with_them() {
    let rig = Rig::start().await;
    let uploads = (0..12).map(|number| {
        let ann = rig.ann();
        async move {
            let repository = format!("team/cold-{number}");
            let missing = format!("/v2/{repository}/manifests/missing");
            let pulls = (0..4).map(|_| ann.get(&missing));
            let (pulled, place) = tokio::join!(
                futures_util::future::join_all(pulls),
                begin(&ann, &repository)
            );
            assert!(pulled.iter().all(|answer| answer.status == 404));
            let content = bytes(10_000 + number);
            let place = patch(&ann, &place, &content).await;
            let ended = end(&ann, &place, &content, b"").await;
            assert_eq!(ended.status, 201, "{}", ended.text());
        }
    });
    futures_util::future::join_all(uploads).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn o10_an_upload_goes_on_over_the_end_of_its_token_whatever_is_pulled_meanwhile() {
    let life = long_enough_to_push().await;
    let rig = Rig::start().await;
    let ann = rig.ann();
    rig.tokens.set_life(life);
    push_image(&ann, APP, "v1", &bytes(1000)).await;
    let content = bytes(90_000);
    let mut place = begin(&ann, APP).await;
    for part in content.chunks(30_000) {
        outlive_tokens(&rig, &ann).await;
        place = patch(&ann, &place, part).await;
    }
    outlive_tokens(&rig, &ann).await;
    let ended = end(&ann, &place, &content, b"").await;
    assert_eq!(ended.status, 201, "{}", ended.text());

    // All of it at once, and a manifest.
    let other = bytes(91_000);
    outlive_tokens(&rig, &ann).await;
    let target = format!("/v2/{APP}/blobs/uploads/?digest={}", digest(&other));
    let posted = send(&ann, "POST", &target, &[], &other, false).await;
    assert_eq!(posted.status, 201, "{}", posted.text());
    outlive_tokens(&rig, &ann).await;
    let kind = [("content-type", MANIFEST)];
    let manifest = manifest(&other);
    let put = put(&ann, &tag("v2"), &kind, manifest.as_bytes()).await;
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!(rig.scopes(), set_of(&[PULL, PUSH]));
    let sent = rig.proxy.metrics().await;
    let sent = sent.sum("ecr_proxy_upstream_sent_bytes_total", &[]);
    let once = 2.0 + 1000.0 + 90_000.0 + 91_000.0;
    assert_eq!(sent, once, "no byte was sent twice");
}

/// Two seconds, and more where the machine is slow.
async fn long_enough_to_push() -> Duration {
    let rig = Rig::start().await;
    let began = Instant::now();
    push_image(&rig.ann(), APP, "v1", &bytes(1000)).await;
    Duration::from_secs(2) + 5 * began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn u11_a_token_that_ends_before_its_time_costs_one_upload_and_no_more() {
    let life = long_enough_to_push().await;
    let rig = Rig::start().await;
    let ann = rig.ann();
    rig.tokens.set_lives(life, Duration::from_secs(300));
    push_image(&ann, APP, "v1", &bytes(1000)).await;
    let content = bytes(60_000);
    let (first, last) = content.split_at(30_000);
    let place = begin(&ann, APP).await;
    let place = patch(&ann, &place, first).await;
    outlive_tokens(&rig, &ann).await;
    // What began to flow is not sent again.
    let refused = send(&ann, "PATCH", &place, &[], last, false).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.error_code(), "UNAVAILABLE");
    assert!(refused.header("retry-after").is_some());

    let place = begin(&ann, APP).await;
    let place = patch(&ann, &place, &content).await;
    let ended = end(&ann, &place, &content, b"").await;
    assert_eq!(ended.status, 201, "{}", ended.text());
    // What has no body to lose is asked again by itself.
    outlive_tokens(&rig, &ann).await;
    let place = begin(&ann, APP).await;
    assert!(!place.is_empty());
    assert_eq!(rig.scopes(), set_of(&[PULL, PUSH, DELETE]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_may_only_pull_is_told_so_and_goes_on_pulling() {
    for form in [Form::Distribution, Form::AllOrNothing] {
        let rig = Rig::start().await;
        let ann = rig.ann();
        push_image(&ann, APP, "v1", &bytes(1000)).await;
        rig.tokens.set_form(form);
        rig.tokens.deny("push");
        let into = |repository: &str| format!("/v2/{repository}/blobs/uploads/");
        for _ in 0..5 {
            let refused = ann.ask("POST", &into("team/denied"), &[]).await;
            assert_eq!(refused.status, 403, "{}", refused.text());
            assert_eq!(refused.error_code(), "DENIED");
            let missing = ann.get("/v2/team/denied/manifests/v1").await;
            assert_eq!(missing.status, 404, "{}", missing.text());
        }
        let push: &[&str] = &["repository:team/denied:pull,push"];
        assert!(rig.tokens.asked_for(push) <= 3, "{:?}", rig.tokens.asked());
        assert_eq!(ann.get(&tag("v1")).await.status, 200);
        rig.tokens.deny_nothing();
        until("the right is noticed", async || {
            ann.ask("POST", &into("team/denied"), &[]).await.status == 202
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u11_a_registry_that_does_not_say_why_it_refuses_a_token_says_no_all_the_same() {
    let life = long_enough_to_push().await;
    for manner in [Manner::Quay, Manner::Harbor] {
        let rig = Rig::telling_like(manner).await;
        let ann = rig.ann();
        rig.tokens.set_life(life);
        push_image(&ann, APP, "v1", &bytes(1000)).await;
        rig.tokens.deny("repository:team/denied");
        for _ in 0..3 {
            for (method, target) in [
                ("GET", "/v2/team/denied/manifests/v1"),
                ("POST", "/v2/team/denied/blobs/uploads/"),
            ] {
                let refused = ann.ask(method, target, &[]).await;
                let told = (refused.status, &*refused.error_code());
                assert_eq!(told, (403, "DENIED"), "{manner:?} {method} {target}");
            }
        }
        // Tokens that ended are told from those that grant nothing.
        outlive_tokens(&rig, &ann).await;
        assert_eq!(ann.get(&tag("v1")).await.header("x-cache"), Some("hit"));
        rig.tokens.deny("repository:team/app");
        until("the right has ended", async || {
            let pulled = ann.get(&tag("v1")).await;
            assert_ne!(pulled.header("x-cache"), Some("stale"), "{manner:?}");
            assert!([200, 403].contains(&pulled.status), "{}", pulled.text());
            pulled.status == 403
        })
        .await;
        rig.tokens.deny_nothing();
        until("the right is back", async || {
            ann.get(&tag("v1")).await.status == 200
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_grants_nothing_says_no_for_the_registry() {
    let rig = Rig::start().await;
    rig.tokens.set_form(Form::AllOrNothing);
    rig.tokens.deny("repository:team/app");
    let ann = rig.ann();
    let refused = ann.get(&tag("v1")).await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert_eq!(refused.error_code(), "DENIED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_takes_the_right_to_push_here_and_to_pull_there() {
    let rig = Rig::start().await;
    let ann = rig.ann();
    let layer = bytes(50_000);
    push_image(&ann, OTHER, "v1", &layer).await;
    let from_other = |into: &str| {
        let digest = digest(&layer);
        format!("/v2/{into}/blobs/uploads/?mount={digest}&from={OTHER}")
    };
    let mounted = ann.ask("POST", &from_other(APP), &[]).await;
    assert_eq!(mounted.status, 201, "{}", mounted.text());
    let both: &[&str] = &[
        "repository:team/app:pull,push",
        "repository:team/other:pull",
    ];
    assert_eq!(rig.tokens.asked_for(both), 1, "{:?}", rig.tokens.asked());
    let pulled = ann
        .get(&format!("/v2/{APP}/blobs/{}", digest(&layer)))
        .await;
    assert_eq!(pulled.digest(), digest(&layer));

    // Where the account may not read the other one, an ordinary session follows.
    rig.tokens.deny("repository:team/other");
    let begun = ann.ask("POST", &from_other("team/second"), &[]).await;
    assert_eq!(begun.status, 202, "{}", begun.text());
    let ended = end(&ann, &location(&begun), &layer, &layer).await;
    assert_eq!(ended.status, 201, "{}", ended.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_mount_is_declined_its_session_goes_on_with_a_token_to_push() {
    let rig = Rig::start().await;
    let ann = rig.ann();
    let layer = bytes(50_000);
    push_image(&ann, OTHER, "v1", &layer).await;
    let hex = digest(&layer).replace("sha256:", "");
    let link = format!("repositories/{OTHER}/_layers/sha256/{hex}");
    std::fs::remove_dir_all(rig.registry.root().join(link)).expect("the registry has it");
    let target = format!(
        "/v2/{APP}/blobs/uploads/?mount={}&from={OTHER}",
        digest(&layer)
    );
    let begun = ann.ask("POST", &target, &[]).await;
    assert_eq!(begun.status, 202, "{}", begun.text());
    assert_eq!(rig.tokens.asked_for(PUSH), 0);
    let place = patch(&ann, &location(&begun), &layer).await;
    let ended = end(&ann, &place, &layer, b"").await;
    assert_eq!(ended.status, 201, "{}", ended.text());
    assert_eq!(rig.tokens.asked_for(PUSH), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_taken_in_every_form_they_come_in() {
    for form in [Form::AccessToken, Form::Timeless] {
        let rig = Rig::start().await;
        rig.tokens.set_form(form);
        let (pushed, named) = push_image(&rig.ann(), APP, "v1", &bytes(1000)).await;
        assert_eq!(pushed.status, 201, "{form:?}: {}", pushed.text());
        assert_eq!(rig.ann().get(&tag("v1")).await.digest(), named);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_account_what_anybody_may_pull_is_pulled_and_nothing_is_pushed() {
    let rig = Rig::with(|_, proxy| proxy).await;
    let ann = rig.ann();
    let missing = ann.get(&tag("v1")).await;
    assert_eq!(
        (missing.status, &*missing.error_code()),
        (404, "MANIFEST_UNKNOWN")
    );
    let refused = ann
        .ask("POST", &format!("/v2/{APP}/blobs/uploads/"), &[])
        .await;
    assert_eq!((refused.status, &*refused.error_code()), (403, "DENIED"));
    let asked = rig.tokens.asked();
    assert!(
        asked.iter().all(|asked| asked.account.is_none()),
        "{asked:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn k05_while_the_service_fails_what_is_cached_is_served_and_no_push_begins() {
    let life = long_enough_to_push().await;
    let rig = Rig::start().await;
    let ann = rig.ann();
    rig.tokens.set_life(life);
    let (_, named) = push_image(&ann, APP, "v1", &bytes(1000)).await;
    outlive_tokens(&rig, &ann).await;
    rig.tokens.set_form(Form::Failing);
    until("there is no token any more", async || {
        let pulled = ann.get(&tag("v1")).await;
        assert_eq!((pulled.status, pulled.digest()), (200, named.clone()));
        pulled.header("x-cache") == Some("stale")
    })
    .await;
    let refused = ann
        .ask("POST", &format!("/v2/{APP}/blobs/uploads/"), &[])
        .await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    rig.tokens.set_form(Form::Distribution);
    until("tokens are obtained again", async || {
        let pulled = ann.get(&tag("v1")).await;
        pulled.header("x-cache") == Some("hit")
    })
    .await;
    let place = until_begun(&ann).await;
    let content = bytes(2000);
    let place = patch(&ann, &place, &content).await;
    assert_eq!(end(&ann, &place, &content, b"").await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn k05_while_the_service_fails_a_registry_that_asks_for_a_password_is_given_none() {
    // Older than what was made just now when it ends.
    let life = long_enough_to_push().await.max(Duration::from_secs(6));
    let rig = Rig::telling_like(Manner::Harbor).await;
    let ann = rig.ann();
    rig.tokens.set_lives(life, Duration::from_secs(300));
    push_image(&ann, APP, "v1", &bytes(1000)).await;
    assert_eq!(ann.get(&tag("v1")).await.status, 200);
    rig.tokens.set_form(Form::Failing);
    until("the token has ended", async || {
        let pulled = ann.get(&tag("v1")).await;
        assert_eq!(pulled.status, 200, "{}", pulled.text());
        pulled.header("x-cache") == Some("stale")
    })
    .await;
    rig.tokens.set_form(Form::Distribution);
    until("tokens are obtained again", async || {
        ann.get(&tag("v1")).await.header("x-cache") == Some("hit")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u12_a_service_that_throttles_is_left_alone_by_all_and_nobody_is_told() {
    let rig = Rig::start().await;
    let ann = rig.ann();
    let (_, named) = push_image(&ann, APP, "v1", &bytes(1000)).await;
    rig.tokens.throttle_once();
    let missing: Vec<_> = (0..20)
        .map(|number| format!("/v2/team/missing{number}/manifests/v1"))
        .collect();
    let (first, others) = tokio::join!(ann.get(&missing[0]), async {
        until("the service throttles", async || rig.tokens.has_throttled()).await;
        let asking = missing[1..].iter().map(|path| ann.get(path));
        futures_util::future::join_all(asking).await
    });
    for answer in others.into_iter().chain([first]) {
        assert_eq!(answer.status, 404, "{}", answer.text());
    }
    assert_eq!(rig.tokens.early(), 0);
    assert_eq!(ann.get(&tag("v1")).await.digest(), named);
}

/// Begins an upload, as often as it takes.
async fn until_begun(ann: &Client) -> String {
    let target = format!("/v2/{APP}/blobs/uploads/");
    let place = OnceLock::new();
    until("an upload is begun", async || {
        let begun = ann.ask("POST", &target, &[]).await;
        begun.status == 202 && place.set(location(&begun)).is_ok()
    })
    .await;
    place.into_inner().expect("begun")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_given_up_where_that_is_granted_and_nobody_is_told_where_it_is_not() {
    let rig = Rig::start().await;
    let ann = rig.ann();
    // The registry leaves the folder of an upload that was given up, without its bytes.
    let uploads = || {
        let folder = format!("repositories/{APP}/_uploads");
        let found = std::fs::read_dir(rig.registry.root().join(folder)).expect("uploads");
        let folders = found.map(|folder| folder.expect("a folder").path());
        folders
            .filter(|folder| folder.join("data").exists())
            .count()
    };
    let place = begin(&ann, APP).await;
    let place = patch(&ann, &place, b"begun").await;
    assert_eq!(uploads(), 1);
    assert_eq!(ann.ask("DELETE", &place, &[]).await.status, 204);
    until("the registry is told", async || uploads() == 0).await;

    let rig = Rig::start().await;
    rig.tokens.deny("delete");
    let place = begin(&rig.ann(), APP).await;
    assert_eq!(rig.ann().ask("DELETE", &place, &[]).await.status, 204);
    // For a token to begin, for one to give up, and once more with that.
    until("the registry has refused", async || {
        let asked = "ecr_proxy_upstream_requests_total";
        metric(&rig.proxy, asked, &["kind=\"upload\"", "status=\"4xx\""]).await >= 3.0
    })
    .await;
    let gone = rig.ann().get(&tag("missing")).await;
    assert_eq!(gone.status, 404, "{}", gone.text());
    let told = rig.proxy.logs();
    let told = told.iter().filter(|event| event.level() == "WARN");
    assert_eq!(told.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_logs_in_as_the_account() {
    let rig = Rig::start().await;
    let told = rig.proxy.run(["check"]).fine().stdout;
    assert!(told.contains("registry.upstream.test answers in"), "{told}");
    let asked = rig.tokens.asked();
    assert!(
        asked.iter().any(|asked| asked.scopes.is_empty()),
        "{asked:?}"
    );
    std::fs::write(rig.tokens.password_file(), "wrong").expect("a file");
    let told = rig.proxy.run(["check"]).stdout;
    assert!(told.contains("not obtain a token"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s10_a_service_on_another_host_is_asked_where_it_is_listed_and_named_where_not() {
    let tokens = TokenService::start_as("localhost").await;
    let registry = DockerRegistry::start_behind(&tokens);
    let proxy = || {
        let proxy = Proxy::builder().registry("registry.upstream.test", &registry.endpoint());
        users(proxy.account(&tokens))
    };
    let ann = |proxy: &Proxy| login(proxy.client(), "ann", support::push::PASSWORD);
    let unlisted = proxy().start();
    for _ in 0..2 {
        let refused = ann(&unlisted).get(&tag("v1")).await;
        assert_eq!(refused.status, 502, "{}", refused.text());
    }
    assert_eq!(tokens.asked(), []);
    let is_named = |event: &Event| event.field("realm.host").is_some();
    let named = unlisted.log_until("the host", is_named).await;
    let host = format!("http://{}", tokens.authority());
    assert_eq!(named.field("realm.host"), Some(host));
    let is_ping = |event: &Event| event.field("http.status").as_deref() == Some("200");
    assert_eq!(ann(&unlisted).get("/v2/").await.status, 200);
    unlisted.log_until("what came after", is_ping).await;
    let told = unlisted.logs();
    assert_eq!(told.iter().filter(|event| is_named(event)).count(), 1);

    let listed = proxy().upstream_key("token_hosts", vec![tokens.authority()]);
    let missing = ann(&listed.start()).get(&tag("v1")).await;
    assert_eq!(missing.status, 404, "{}", missing.text());
    assert_eq!(tokens.asked_for(PULL), 1);
}
