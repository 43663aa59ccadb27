//! SIGHUP has the whole configuration read again: all of it that can be is taken over at once, or, where
//! anything is wrong with it, nothing; and the next request is judged by it, also on a connection that is open.

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ecr_proxy::simulator::{Fault, Gate, Listener, Simulator};
use rustix::process::Signal;
use support::blobs::{MIB, blob, metric, until};
use support::image::{REPOSITORY, TAG};
use support::proxy::Builder;
use support::users::{basic, login, user_line};
use support::{Client, Connection, DOMAIN, Event, Pki, Proxy, Stopwatch, image, within};
use tokio::task::JoinSet;

const PASSWORD: &str = "correct horse battery staple";
const PULL_TEAM: &str = "users = ['ci']\nrepositories = ['team/**']\nactions = ['pull']";
const PULL_OTHER: &str = "users = ['ci']\nrepositories = ['other/**']\nactions = ['pull']";

async fn before() -> (Simulator, Builder) {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    image::push(&simulator);
    for repository in ["other/app", "team/new"] {
        simulator.push_image(repository, TAG, image::spec());
    }
    let users = user_line("ci", PASSWORD) + &user_line("dev", PASSWORD);
    let builder = Proxy::builder().simulator(&simulator).users(&users);
    (simulator, builder)
}

fn manifest(repository: &str) -> String {
    format!("/v2/{repository}/manifests/{TAG}")
}

async fn ask(open: &mut Connection, path: &str) -> u16 {
    let authorization = basic("ci", PASSWORD);
    let headers = [("authorization", authorization.as_str())];
    open.request("GET", path, &headers)
        .await
        .expect("the connection is open");
    open.answer("GET").await.expect("an answer").status
}

fn changed(event: &Event) -> Vec<String> {
    assert_eq!(event.message(), "reloaded", "{}", event.line);
    let keys = event.field("reload.changed").expect("the keys");
    keys.split(", ").map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_k11_a_rule_that_is_gone_refuses_the_next_request_of_an_open_connection() {
    let (_simulator, builder) = before().await;
    let mut proxy = builder.rule(PULL_TEAM).start();
    let mut open = Connection::plain(proxy.http()).await;
    let (hit, miss, other) = (
        manifest(REPOSITORY),
        manifest("team/new"),
        manifest("other/app"),
    );
    assert_eq!(ask(&mut open, &hit).await, 200);
    assert_eq!(ask(&mut open, &other).await, 403);

    proxy.set_rules([PULL_OTHER]);
    assert_eq!(ask(&mut open, &hit).await, 200, "nobody asked for it yet");
    assert_eq!(changed(&proxy.reload().await), ["access.rule.repositories"]);
    assert_eq!(ask(&mut open, &hit).await, 403, "content that is cached");
    assert_eq!(ask(&mut open, &miss).await, 403, "content that is not");
    assert_eq!(ask(&mut open, &other).await, 200);
    assert_eq!(
        metric(
            &proxy,
            "ecr_proxy_reloads_total",
            &["what=\"configuration\"", "result=\"ok\""]
        )
        .await,
        1.0
    );
    let again = proxy.reload().await;
    assert_eq!(again.message(), "read again, nothing has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_what_is_being_sent_when_a_right_ends_is_the_last() {
    let (simulator, builder) = before().await;
    let digest = simulator.put_blob(REPOSITORY, vec![7; 2_000_000]);
    let gate = Gate::new();
    let slow = simulator.faults().on(Listener::Storage, "GET", "/");
    slow.then(Fault::HoldAfter(1_000_000, gate.clone()));
    let mut proxy = builder.rule(PULL_TEAM).start();
    let ci = login(proxy.client(), "ci", PASSWORD);
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let mut running = ci.start("GET", &path, &[]).await;
    within("it is being sent", gate.arrived(1)).await;
    let head = running.head().await.expect("a head");

    proxy.set_rules([PULL_OTHER]);
    changed(&proxy.reload().await);
    for range in ["bytes=0-9", "bytes=1999990-"] {
        let joined = ci.get_with(&path, &[("range", range)]).await;
        assert_eq!(joined.status, 403, "{}", joined.text());
    }
    assert_eq!(ci.get(&path).await.status, 403, "what is on its way");
    gate.open();
    let (body, is_whole) = running.body("GET", &head).await;
    assert!(is_whole && support::store::digest(&body) == digest);
    assert_eq!(
        ask(&mut running, &path).await,
        403,
        "on the same connection"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_a_configuration_with_faults_changes_nothing_and_is_told_with_its_keys() {
    let (_simulator, builder) = before().await;
    let mut proxy = builder.rule(PULL_TEAM).start();
    let ci = login(proxy.client(), "ci", PASSWORD);
    let good = fs::read_to_string(proxy.dir().join("config.toml")).expect("readable");
    assert_eq!(ci.get(&manifest(REPOSITORY)).await.status, 200);

    // The rule is as good as the others are bad.
    proxy.set_rules([PULL_OTHER]);
    proxy.set("cache.tag_ttl", "soon");
    proxy.set("access.anonymus", "pull");
    for _ in 0..2 {
        let told = proxy.reload().await;
        assert_eq!(told.level(), "ERROR", "{}", told.line);
        let error = told.field("error").expect("the faults");
        for key in ["cache.tag_ttl: ", "access.anonymus: unknown key"] {
            assert!(error.contains(key), "{key} in {error}");
        }
        let page = Client::operator(proxy.admin()).get("/readyz").await;
        assert_eq!(page.status, 200);
        assert!(page.text().contains("cache.tag_ttl: "), "{}", page.text());
        let label = ["what=\"configuration\""];
        assert_eq!(
            metric(&proxy, "ecr_proxy_reload_refused", &label).await,
            1.0
        );
        assert_eq!(ci.get(&manifest(REPOSITORY)).await.status, 200);
        assert_eq!(ci.get(&manifest("other/app")).await.status, 403);
    }

    // What a file that it names holds counts as well, and so does what is no TOML.
    let users = fs::read_to_string(proxy.users_file()).expect("readable");
    let other = good.replace("team/**", "other/**");
    for (config, users, key) in [
        (other.as_str(), "ci:plain\n", "access.users: "),
        ("[server\n", users.as_str(), "not TOML"),
        ("", users.as_str(), "upstream.registry: "),
    ] {
        fs::write(proxy.dir().join("config.toml"), config).expect("writable");
        fs::write(proxy.users_file(), users).expect("writable");
        let told = proxy.reload().await;
        let error = told.field("error").expect("the faults");
        assert!(error.contains(key), "{key} in {error}");
        assert_eq!(ci.get(&manifest(REPOSITORY)).await.status, 200, "{key}");
    }

    // It is not tried again by itself, and mends when asked.
    fs::write(proxy.dir().join("config.toml"), &good).expect("writable");
    assert_eq!(ci.get(&manifest(REPOSITORY)).await.status, 200);
    let mended = proxy.reload().await;
    assert_eq!(mended.message(), "reloaded", "{}", mended.line);
    let label = ["what=\"configuration\""];
    assert_eq!(
        metric(&proxy, "ecr_proxy_reload_refused", &label).await,
        0.0
    );
    let page = Client::operator(proxy.admin()).get("/readyz").await.text();
    assert!(!page.contains("configuration"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_what_changes_under_load_fails_no_request() {
    let (_simulator, builder) = before().await;
    let mut proxy = builder.rule(PULL_TEAM).start();
    let ci = login(proxy.tls_client(), "ci", PASSWORD);
    assert_eq!(ci.get(&manifest(REPOSITORY)).await.status, 200);
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut load = JoinSet::new();
    for kept in [true, true, true, false] {
        let (ci, stop, answered) = (ci.clone(), Arc::clone(&stop), Arc::clone(&answered));
        load.spawn(async move {
            let mut open = ci.connect().await;
            while !stop.load(Ordering::Relaxed) {
                let path = manifest(REPOSITORY);
                let status = match kept {
                    true => ask(&mut open, &path).await,
                    false => ci.get(&path).await.status,
                };
                assert_eq!(status, 200);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let folder = proxy.pki().dir().to_owned();
    let clients = Pki::new(["unused.test"]);
    for round in 0..12_u32 {
        let last = answered.load(Ordering::Relaxed);
        let more = [PULL_TEAM, PULL_OTHER];
        proxy.set_rules(more.into_iter().take(1 + (round % 2) as usize));
        proxy.set("server.drain_timeout", format!("{}s", 20 + round));
        proxy.set(
            "server.domains",
            vec![DOMAIN.to_owned(), format!("n{round}.test")],
        );
        // A pair of another name each time, and another CA of the clients.
        let leaf = proxy.pki().issue([DOMAIN, "127.0.0.1"], None);
        let pair = ["crt", "key"].map(|kind| folder.join(format!("{round}.{kind}")));
        fs::write(&pair[0], &leaf.certificate).expect("writable");
        fs::write(&pair[1], &leaf.key).expect("writable");
        for (key, path) in ["tls.cert", "tls.key"].into_iter().zip(&pair) {
            proxy.set(key, path.to_str().expect("a UTF-8 path"));
        }
        let ca = if round % 2 == 0 {
            clients.ca()
        } else {
            proxy.pki().ca()
        };
        proxy.set("tls.client_ca", ca.to_str().expect("a UTF-8 path"));
        let keys = changed(&proxy.reload().await);
        for key in ["server.domains", "tls.cert", "tls.client_ca"] {
            assert!(
                keys.iter().any(|changed| changed == key),
                "{key} in {keys:?}"
            );
        }
        until("requests go on", async || {
            answered.load(Ordering::Relaxed) > last + 20
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.expect("every request was answered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_listeners_and_directories_are_named_and_wait_for_the_next_start() {
    let (_simulator, builder) = before().await;
    let mut proxy = builder.rule(PULL_TEAM).start();
    let ci = login(proxy.client(), "ci", PASSWORD);
    let listen = vec!["http://127.0.0.1:0", "https://127.0.0.1:0"];
    proxy.set("server.listen", listen);
    proxy.set("cache.dir", "elsewhere");
    proxy.set_rules([PULL_OTHER]);
    for round in 0..2 {
        let told = proxy.reload().await;
        match round {
            0 => assert_eq!(changed(&told), ["access.rule.repositories"]),
            _ => assert_eq!(told.message(), "read again, nothing has changed"),
        }
        // As long as they wait, each reload says so.
        until("it is told what waits", async || {
            let waiting = proxy.logs().into_iter();
            let waiting = waiting.filter_map(|event| event.field("reload.waiting"));
            let waiting: Vec<String> = waiting.collect();
            assert!(
                waiting
                    .iter()
                    .all(|keys| keys == "cache.dir, server.listen")
            );
            waiting.len() == round + 1
        })
        .await;
    }
    assert_eq!(ci.get(&manifest("other/app")).await.status, 200);
    assert!(!proxy.dir().join("elsewhere").exists());
    proxy.restart();
    let ci = login(proxy.client(), "ci", PASSWORD);
    assert_eq!(ci.get(&manifest("other/app")).await.status, 200);
    assert!(proxy.dir().join("elsewhere").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_who_has_a_certificate_of_a_ca_that_is_gone_is_refused_at_the_next_request() {
    let (_simulator, builder) = before().await;
    let (old, new) = (Pki::new(["unused.test"]), Pki::new(["unused.test"]));
    let file: PathBuf = builder.pki().dir().join("clients.pem");
    fs::copy(old.ca(), &file).expect("writable");
    let mut proxy = builder
        .client_ca(&file)
        .rule("users = ['node-7']\nactions = ['pull']")
        .start();
    let [of_old, of_new] = [&old, &new].map(|pki| {
        let leaf = pki.issue_client("node-7", &["spiffe://td/node-7"]);
        proxy.tls_client().showing(&leaf)
    });
    let path = manifest(REPOSITORY);
    let ask = async |open: &mut Connection| {
        open.request("GET", &path, &[]).await.expect("open");
        open.answer("GET").await.expect("an answer").status
    };
    let mut open = of_old.connect().await;
    assert_eq!(ask(&mut open).await, 200);

    // Both are trusted for a while. The file is watched: nobody has to ask.
    let (first, second) = (fs::read_to_string(old.ca()), fs::read_to_string(new.ca()));
    let (first, second) = (first.expect("PEM"), second.expect("PEM"));
    fs::write(&file, first + &second).expect("writable");
    let taken = |event: &Event| {
        event.message() == "reloaded" && event.field("reload.what").as_deref() == Some("client_ca")
    };
    proxy.log_until("the second CA", taken).await;
    assert_eq!(of_new.get(&path).await.status, 200);
    assert_eq!(ask(&mut open).await, 200, "it is trusted as before");

    // Then the first is not any more, on whichever connection.
    fs::write(&file, &second).expect("writable");
    proxy.set_rules([
        "users = ['node-7']\nactions = ['pull']",
        "users = ['ci']\nactions = ['pull']",
    ]);
    let keys = changed(&proxy.reload().await);
    assert!(keys.contains(&"access.rule.users".to_owned()), "{keys:?}");
    assert_eq!(ask(&mut open).await, 401);
    assert_eq!(of_new.get(&path).await.status, 200);
    let mut refused = of_old.connect().await;
    let sent = refused.request("GET", &path, &[]).await;
    assert!(sent.is_err() || refused.answer("GET").await.is_err());

    // What is no CA is refused, and what is in use stays.
    fs::write(&file, "no PEM").expect("writable");
    let told = proxy.log_until("the fault", |event| {
        let error = event.field("error").unwrap_or_default();
        error.contains("tls.client_ca: ")
    });
    assert_eq!(told.await.level(), "ERROR");
    assert_eq!(of_new.get(&path).await.status, 200);

    // Another name of the certificate is the user, also on a connection that is open.
    fs::write(&file, &second).expect("writable");
    let mut open = of_new.connect().await;
    assert_eq!(ask(&mut open).await, 200);
    proxy.set("tls.client_user", "san-uri");
    assert_eq!(changed(&proxy.reload().await), ["tls.client_user"]);
    assert_eq!(ask(&mut open).await, 403);
    proxy.set_rules(["users = ['spiffe://td/node-7']\nactions = ['pull']"]);
    proxy.reload().await;
    assert_eq!(ask(&mut open).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_domains_and_balancers_are_those_of_the_new_configuration() {
    const LATER: &str = "later.mydomain.test";
    let (_simulator, builder) = before().await;
    let mut proxy = builder.local_ca().start();
    let ci = login(proxy.client(), "ci", PASSWORD);
    assert_eq!(ci.get("/v2/").await.status, 200);
    let root = proxy.state_dir().join("tls/ca.pem");
    assert!(Connection::tls(proxy.https(), DOMAIN, &root).await.is_ok());
    assert!(Connection::tls(proxy.https(), LATER, &root).await.is_err());

    let file = proxy.users_file().with_file_name("others.htpasswd");
    fs::write(&file, user_line("eve", PASSWORD)).expect("writable");
    proxy.set("access.users", file.to_str().expect("a UTF-8 path"));
    proxy.set("server.domains", vec![DOMAIN, LATER]);
    proxy.set("server.trusted_proxies", vec!["loopback"]);
    let keys = changed(&proxy.reload().await);
    assert_eq!(
        keys,
        ["access.users", "server.domains", "server.trusted_proxies"]
    );
    assert_eq!(ci.get("/v2/").await.status, 401);
    let eve = login(proxy.client(), "eve", PASSWORD);
    let headers = [("x-forwarded-for", "203.0.113.9")];
    assert_eq!(eve.get_with("/v2/", &headers).await.status, 200);
    let told = |event: &Event| event.line.contains("203.0.113.9");
    proxy
        .log_until("the client behind the balancer", told)
        .await;
    assert!(Connection::tls(proxy.https(), LATER, &root).await.is_ok());

    // The other file is the one that is watched from now on.
    fs::write(&file, user_line("bob", PASSWORD)).expect("writable");
    until("bob is known", async || {
        login(proxy.client(), "bob", PASSWORD)
            .get("/v2/")
            .await
            .status
            == 200
    })
    .await;
    assert_eq!(eve.get("/v2/").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drain_takes_as_long_as_the_configuration_in_use_says() {
    let (simulator, builder) = before().await;
    let mut proxy = builder.set("server.drain_timeout", "10m").start();
    let (_, path) = blob(&simulator, 1, 64 * MIB);
    let ci = login(proxy.client(), "ci", PASSWORD);
    // A client that takes nothing holds up the drain.
    let _held = ci.start("GET", &path, &[]).await;
    proxy.set("server.drain_timeout", "100ms");
    assert_eq!(changed(&proxy.reload().await), ["server.drain_timeout"]);
    let began = Stopwatch::start();
    proxy.signal(Signal::TERM);
    proxy.wait();
    assert!(began.took() < Duration::from_secs(60));
}
