//! SIGHUP takes over where certificates come from as it does all else: names that are added, another ACME
//! directory, and another kind of certificate. What is in use serves until there is another one.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ecr_proxy::simulator::Simulator;
use support::blobs::{metric, simulator, until};
use support::pebble::{Pebble, Plan, free_port};
use support::{Client, Connection, DOMAIN, Event, Pki, Proxy, within};
use tokio::io::AsyncReadExt as _;

const LATER: &str = "later.mydomain.test";
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

async fn is_served(proxy: &Proxy, name: &str, root: &Path) -> bool {
    Connection::tls(proxy.https(), name, root).await.is_ok()
}

/// Until `name` is served with a certificate of `root`, and by then it always was with one of `before`.
async fn until_served(proxy: &Proxy, name: &str, root: &Path, before: &Path) {
    until("there is a certificate", async || {
        let old = is_served(proxy, DOMAIN, before).await;
        let new = is_served(proxy, name, root).await;
        assert!(old || new, "nobody is without a certificate");
        new
    })
    .await;
}

async fn readyz(proxy: &Proxy) -> String {
    let answer = Client::operator(proxy.admin()).get("/readyz").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

async fn orders(proxy: &Proxy) -> f64 {
    let orders = "ecr_proxy_acme_orders_total";
    metric(proxy, orders, &["result=\"ok\""]).await
}

fn changed(event: &Event) -> String {
    assert_eq!(event.message(), "reloaded", "{}", event.line);
    event.field("reload.changed").expect("the keys")
}

fn refused(event: &Event) -> String {
    assert_eq!(event.level(), "ERROR", "{}", event.line);
    event.field("error").expect("the faults")
}

/// The accounts of all directories, each with its file.
fn accounts(proxy: &Proxy) -> Vec<(PathBuf, Vec<u8>)> {
    let folders = fs::read_dir(proxy.state_dir().join("acme")).expect("a folder");
    let files = folders.map(|entry| entry.expect("an entry").path().join("account.json"));
    let written = files.filter(|file| file.exists());
    let mut all: Vec<_> = written
        .map(|file| (file.clone(), fs::read(&file).expect("readable")))
        .collect();
    all.sort();
    all
}

fn use_pair(proxy: &mut Proxy, pki: &Pki) {
    proxy.unset("tls.acme");
    for (key, file) in [("tls.cert", pki.certificate()), ("tls.key", pki.key())] {
        proxy.set(key, file.to_str().expect("a UTF-8 path"));
    }
}

fn use_acme(proxy: &mut Proxy, plan: &Plan, further: &[(&str, &str)]) {
    proxy.unset("tls.cert");
    proxy.unset("tls.key");
    proxy.set("tls.acme", plan.keys(further));
}

/// A directory, its root, and a proxy that has a certificate of it.
async fn certified(simulator: &Simulator, plan: &Plan) -> (Pebble, PathBuf, Proxy) {
    let port = free_port();
    let pebble = plan.start(port, 1, YEAR);
    let root = plan.root().await;
    let builder = Proxy::builder().simulator(simulator);
    let builder = builder.listen([format!("https://127.0.0.1:{port}").as_str()]);
    let proxy = builder.set("tls.acme", plan.keys(&[])).start();
    until("there is a certificate", async || {
        is_served(&proxy, DOMAIN, &root).await
    })
    .await;
    (pebble, root, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_added_are_ordered_at_once_and_the_certificate_in_use_serves_meanwhile() {
    let simulator = simulator().await;
    let plan = Plan::new();
    let (pebble, root, mut proxy) = certified(&simulator, &plan).await;
    let account = accounts(&proxy);

    pebble.pause();
    proxy.set("server.domains", vec![DOMAIN, LATER]);
    assert_eq!(changed(&proxy.reload().await), "server.domains");
    let page = readyz(&proxy).await;
    assert!(
        page.contains("none for these names yet"),
        "what is waited for is told: {page}"
    );
    assert!(is_served(&proxy, DOMAIN, &root).await);
    assert!(!is_served(&proxy, LATER, &root).await);
    pebble.go_on();
    until_served(&proxy, LATER, &root, &root).await;
    assert!(is_served(&proxy, DOMAIN, &root).await);
    until("it is told no more", async || {
        !readyz(&proxy).await.contains("certificate")
    })
    .await;
    assert_eq!(orders(&proxy).await, 2.0);

    // It is for what is left as well, so a name that is removed costs no order.
    pebble.pause();
    proxy.set("server.domains", vec![LATER]);
    assert_eq!(changed(&proxy.reload().await), "server.domains");
    assert!(is_served(&proxy, LATER, &root).await);
    assert!(!readyz(&proxy).await.contains("certificate"));
    assert_eq!(accounts(&proxy), account);
}

#[tokio::test(flavor = "multi_thread")]
async fn started_anew_with_names_that_were_added_it_serves_those_it_has_a_certificate_for() {
    let simulator = simulator().await;
    let plan = Plan::new();
    let (pebble, root, mut proxy) = certified(&simulator, &plan).await;
    pebble.pause();
    proxy.set("server.domains", vec![DOMAIN, LATER]);
    proxy.restart();
    assert!(is_served(&proxy, DOMAIN, &root).await);
    assert!(!is_served(&proxy, LATER, &root).await);
    assert!(readyz(&proxy).await.contains("none for these names yet"));
    let check = proxy.run(["check"]).stdout;
    let told = |line: &str| line.starts_with("warn") && line.contains(LATER);
    assert!(check.lines().any(told), "{check}");

    pebble.go_on();
    until_served(&proxy, LATER, &root, &root).await;
    assert!(is_served(&proxy, DOMAIN, &root).await);
    assert_eq!(orders(&proxy).await, 1.0);
    let check = proxy.run(["check"]).stdout;
    assert!(!check.lines().any(told), "{check}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_challenge_is_used_for_the_next_order_as_far_as_its_listener_is_there() {
    const LAST: &str = "last.mydomain.test";
    let simulator = simulator().await;
    let plan = Plan::new();
    let (port, http) = (free_port(), free_port());
    let _pebble = plan.start(port, http, YEAR);
    let root = plan.root().await;
    let listen = format!("http://127.0.0.1:{http}");
    let by_http = [("challenge", "http-01"), ("http_listen", listen.as_str())];
    let builder = Proxy::builder().simulator(&simulator);
    let builder = builder.listen([format!("https://127.0.0.1:{port}").as_str()]);
    let mut proxy = builder.set("tls.acme", plan.keys(&by_http)).start();
    until("there is a certificate", async || {
        is_served(&proxy, DOMAIN, &root).await
    })
    .await;

    use_acme(&mut proxy, &plan, &[("challenge", "tls-alpn-01")]);
    proxy.set("server.domains", vec![DOMAIN, LATER]);
    let keys = changed(&proxy.reload().await);
    assert_eq!(keys, "server.domains, tls.acme.challenge");
    let waits =
        |event: &Event| event.field("reload.waiting").as_deref() == Some("tls.acme.http_listen");
    proxy.log_until("its listener stays", waits).await;
    until_served(&proxy, LATER, &root, &root).await;

    use_acme(&mut proxy, &plan, &by_http);
    proxy.set("server.domains", vec![DOMAIN, LATER, LAST]);
    assert_eq!(changed(&proxy.reload().await), keys);
    until_served(&proxy, LAST, &root, &root).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_directory_takes_the_place_of_the_one_before_and_each_keeps_its_account() {
    let simulator = simulator().await;
    let (first, second, silent) = (Plan::new(), Plan::new(), Plan::new());
    let port = free_port();
    let _first = first.start(port, 1, YEAR);
    let root = first.root().await;
    let builder = Proxy::builder().simulator(&simulator);
    let builder = builder.listen([format!("https://127.0.0.1:{port}").as_str()]);
    let mut proxy = builder.set("tls.acme", first.keys(&[])).start();
    until("there is a certificate", async || {
        is_served(&proxy, DOMAIN, &root).await
    })
    .await;
    let of_first = accounts(&proxy);
    assert_eq!(of_first.len(), 1);

    // One that does not answer is asked, and dropped for the next one.
    let listener = silent.hang().await;
    use_acme(&mut proxy, &silent, &[]);
    assert_eq!(
        changed(&proxy.reload().await),
        "tls.acme.ca, tls.acme.directory"
    );
    let (mut asked, _) = within("it is asked", listener.accept())
        .await
        .expect("open");
    assert!(is_served(&proxy, DOMAIN, &root).await);
    let _second = second.start(port, 1, YEAR);
    let other_root = second.root().await;
    use_acme(&mut proxy, &second, &[]);
    proxy.reload().await;
    let mut said = Vec::new();
    within("its order is dropped", asked.read_to_end(&mut said))
        .await
        .expect("closed");
    until_served(&proxy, DOMAIN, &other_root, &root).await;
    assert!(!is_served(&proxy, DOMAIN, &root).await);
    assert!(!readyz(&proxy).await.contains("certificate"));
    assert_eq!(accounts(&proxy).len(), 2);

    // What the first one issued is still there, and so is its account.
    use_acme(&mut proxy, &first, &[]);
    proxy.reload().await;
    assert!(is_served(&proxy, DOMAIN, &root).await);
    assert_eq!(orders(&proxy).await, 2.0);
    assert!(accounts(&proxy).contains(&of_first[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_ones_own_acme_and_the_local_ca_take_each_others_place() {
    let simulator = simulator().await;
    let plan = Plan::new();
    let own = Pki::new([DOMAIN]);
    let mut proxy = Proxy::builder().simulator(&simulator).local_ca().start();
    let local = proxy.state_dir().join("tls/ca.pem");
    assert!(is_served(&proxy, DOMAIN, &local).await);

    use_pair(&mut proxy, &own);
    assert_eq!(changed(&proxy.reload().await), "tls.cert, tls.key");
    assert!(is_served(&proxy, DOMAIN, &own.ca()).await);
    // Its files are watched from now on.
    let leaf = own.issue([DOMAIN, LATER], None);
    fs::write(own.certificate(), &leaf.certificate).expect("writable");
    fs::write(own.key(), &leaf.key).expect("writable");
    until("the renewal is in use", async || {
        is_served(&proxy, LATER, &own.ca()).await
    })
    .await;

    // The directory is away at first: the pair serves until there is a certificate.
    use_acme(&mut proxy, &plan, &[]);
    proxy.reload().await;
    until("the directory that is away is told", async || {
        readyz(&proxy).await.contains("no new certificate since")
    })
    .await;
    assert!(is_served(&proxy, DOMAIN, &own.ca()).await);
    let _pebble = plan.start(proxy.https().port(), 1, YEAR);
    let root = plan.root().await;
    until_served(&proxy, DOMAIN, &root, &own.ca()).await;

    proxy.unset("tls.acme");
    proxy.reload().await;
    assert!(is_served(&proxy, DOMAIN, &local).await);
    assert!(!readyz(&proxy).await.contains("certificate"));
    use_acme(&mut proxy, &plan, &[]);
    proxy.reload().await;
    assert!(is_served(&proxy, DOMAIN, &root).await, "as it was issued");
    use_pair(&mut proxy, &own);
    proxy.reload().await;
    assert!(is_served(&proxy, DOMAIN, &own.ca()).await);
    assert_eq!(orders(&proxy).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_a_certificate_that_cannot_be_had_changes_nothing_and_is_told() {
    let simulator = simulator().await;
    let plan = Plan::new();
    let yesterday = SystemTime::now() - Duration::from_secs(24 * 60 * 60);
    let (ended, broken) = (Pki::ending([DOMAIN], yesterday), Pki::new([DOMAIN]));
    let mut proxy = Proxy::builder().simulator(&simulator).local_ca().start();
    let local = proxy.state_dir().join("tls/ca.pem");
    let told = async |proxy: &Proxy, fault: &str| {
        let error = refused(&proxy.reload().await);
        assert!(error.contains(fault), "{fault} in {error}");
        assert!(is_served(proxy, DOMAIN, &local).await, "{fault}");
        assert!(readyz(proxy).await.contains(fault));
    };

    let listen = format!("http://127.0.0.1:{}", free_port());
    let http = [("challenge", "http-01"), ("http_listen", listen.as_str())];
    use_acme(&mut proxy, &plan, &http);
    told(&proxy, "tls.acme.challenge: http-01 wants a listener").await;

    fs::write(plan.ca(), "no PEM").expect("writable");
    use_acme(&mut proxy, &plan, &[]);
    told(&proxy, "tls.acme: ca: ").await;

    use_pair(&mut proxy, &ended);
    told(&proxy, "tls.crt ended ").await;
    fs::write(broken.key(), "no PEM").expect("writable");
    use_pair(&mut proxy, &broken);
    told(&proxy, &broken.key().display().to_string()).await;

    proxy.unset("tls.cert");
    proxy.unset("tls.key");
    assert_eq!(proxy.reload().await.message(), "reloaded");
    assert!(is_served(&proxy, DOMAIN, &local).await);
    assert!(!readyz(&proxy).await.contains("configuration"));
}
