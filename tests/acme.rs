//! The proxy obtains its certificate from an ACME directory and renews it by itself: by a handshake or over
//! HTTP, past failures of the directory, and with account and key readable by nobody else.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use support::blobs::{metric, simulator, until};
use support::connect_proxy::ConnectProxy;
use support::image::{REPOSITORY, TAG};
use support::pebble::{FAR, Plan, free_port};
use support::proxy::Builder;
use support::{Client, Connection, DOMAIN, Pki, Proxy, image};

const ORDERS: &str = "ecr_proxy_acme_orders_total";
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn acme(builder: Builder, plan: &Plan, further: &[(&str, &str)]) -> Builder {
    builder.set("tls.acme", plan.keys(further))
}

async fn is_served(proxy: &Proxy, root: &Path) -> bool {
    Connection::tls(proxy.https(), DOMAIN, root).await.is_ok()
}

async fn readyz(proxy: &Proxy) -> String {
    let answer = Client::operator(proxy.admin()).get("/readyz").await;
    assert_eq!(answer.status, 200, "hits are served: {}", answer.text());
    answer.text()
}

/// The one folder of a directory below the state directory.
fn stored(proxy: &Proxy) -> std::path::PathBuf {
    let acme = fs::read_dir(proxy.state_dir().join("acme")).expect("a folder");
    let mut folders = acme.map(|entry| entry.expect("an entry").path());
    let folder = folders.next().expect("the folder of the directory");
    assert_eq!(folders.next(), None);
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn by_a_handshake_it_gets_a_certificate_as_soon_as_the_directory_answers_and_keeps_it() {
    let simulator = simulator().await;
    image::push(&simulator);
    let plan = Plan::new();
    let mut proxy = acme(Proxy::builder().simulator(&simulator), &plan, &[]).start();
    until("the directory that is away is told", async || {
        readyz(&proxy).await.contains("no new certificate since")
    })
    .await;
    assert!(!is_served(&proxy, &plan.ca()).await);
    let manifest = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    assert_eq!(
        proxy.client().get(&manifest).await.status,
        200,
        "all else works"
    );

    let pebble = plan.start(proxy.https().port(), 1, YEAR);
    let root = plan.root().await;
    until("there is a certificate", async || {
        is_served(&proxy, &root).await
    })
    .await;
    let client = Client::tls(proxy.https(), &root);
    assert_eq!(client.get(&manifest).await.status, 200);
    assert!(!readyz(&proxy).await.contains("certificate"));
    let label = format!("name=\"{DOMAIN}\"");
    until("its end is shown", async || {
        metric(&proxy, "ecr_proxy_certificate_expiry_seconds", &[&label]).await > 0.0
    })
    .await;
    let orders = async |result: &str| metric(&proxy, ORDERS, &[result]).await;
    assert!(orders("result=\"failed\"").await >= 1.0);
    assert_eq!(orders("result=\"ok\"").await, 1.0);

    // The proof is gone with its order: nobody else gets such a handshake.
    let config = support::pki::trusting(&root, &[b"acme-tls/1"]);
    let stream = tokio::net::TcpStream::connect(proxy.https()).await;
    let name = DOMAIN.try_into().expect("a name");
    let connecting = tokio_rustls::TlsConnector::from(config).connect(name, stream.expect("open"));
    assert!(connecting.await.is_err());

    let folder = stored(&proxy);
    for (path, expected) in [
        (proxy.state_dir().join("acme"), 0o700),
        (folder.clone(), 0o700),
        (folder.join("account.json"), 0o600),
        (folder.join("certificate.pem"), 0o600),
    ] {
        let mode = fs::metadata(&path)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, expected, "{}", path.display());
    }
    let key = fs::read_to_string(folder.join("certificate.pem")).expect("readable");
    let account = fs::read_to_string(folder.join("account.json")).expect("readable");
    let account: serde_json::Value = serde_json::from_str(&account).expect("JSON");
    let secrets = [
        key.lines().nth(1).expect("a line of the key").to_owned(),
        account["key_pkcs8"].as_str().expect("the key").to_owned(),
    ];
    let logs: String = proxy
        .logs()
        .iter()
        .map(|event| event.line.clone())
        .collect();
    support::secrets::assert_absent("the log", logs.as_bytes(), &secrets);

    // Started anew it has what it had, and asks nobody.
    drop(pebble);
    proxy.restart();
    assert!(is_served(&proxy, &root).await);
    assert!(!readyz(&proxy).await.contains("certificate"));
    assert_eq!(
        fs::read_to_string(folder.join("certificate.pem")).expect("readable"),
        key
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_it_renews_ahead_of_the_end_by_one_account_and_cuts_nobody() {
    let simulator = simulator().await;
    let plan = Plan::new();
    let port = free_port();
    // A third of which is left when it is renewed.
    let _pebble = plan.start(1, port, Duration::from_secs(24));
    let listen = format!("http://127.0.0.1:{port}");
    let http = [("challenge", "http-01"), ("http_listen", listen.as_str())];
    let proxy = acme(Proxy::builder().simulator(&simulator), &plan, &http).start();
    let root = plan.root().await;
    until("there is a certificate", async || {
        is_served(&proxy, &root).await
    })
    .await;
    let mut open = Client::tls(proxy.https(), &root).connect().await;
    // A connection that asks for nothing is soon closed.
    open.request("GET", "/v2/", &[]).await.expect("open");
    assert_eq!(open.answer("GET").await.expect("an answer").status, 200);
    let account = fs::read(stored(&proxy).join("account.json")).expect("readable");

    let file = stored(&proxy).join("certificate.pem");
    let mut last = fs::read(&file).expect("readable");
    for _ in 0..2 {
        until("it is renewed, and never refused meanwhile", async || {
            assert!(is_served(&proxy, &root).await);
            fs::read(&file).expect("readable") != last
        })
        .await;
        last = fs::read(&file).expect("readable");
    }
    open.request("GET", "/v2/", &[]).await.expect("still open");
    assert_eq!(open.answer("GET").await.expect("an answer").status, 200);
    assert_eq!(
        fs::read(stored(&proxy).join("account.json")).expect("readable"),
        account
    );

    // The listener of the proofs is for nothing else.
    let other = Client::plain(([127, 0, 0, 1], port).into());
    for path in ["/v2/", "/", "/metrics", "/.well-known/acme-challenge/none"] {
        assert_eq!(other.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_reached_through_the_proxy_on_the_way_out_unless_it_is_excepted() {
    let simulator = simulator().await;
    let plan = Plan::new();
    let egress = ConnectProxy::start([(FAR, plan.address())], None).await;
    let start = |except: &str| {
        let builder = Proxy::builder().simulator(&simulator);
        let builder = builder.env("HTTPS_PROXY", &format!("http://{}", egress.address()));
        let builder = builder.env("NO_PROXY", except);
        acme(builder, &plan, &[("directory", &plan.far_directory())]).start()
    };
    let excepted = start("upstream.test");
    until("it is not found", async || {
        let text = readyz(&excepted).await;
        text.contains("no new certificate since") && text.contains("lookup")
    })
    .await;
    assert_eq!(egress.asked(), Vec::<String>::new());

    let proxy = start("");
    let _pebble = plan.start(proxy.https().port(), 1, YEAR);
    let root = plan.root().await;
    until("there is a certificate", async || {
        is_served(&proxy, &root).await
    })
    .await;
    assert!(egress.asked_for(FAR) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_not_convinced_is_quoted() {
    let simulator = simulator().await;
    let plan = Plan::new();
    let nobody = free_port();
    let _pebble = plan.start(nobody, nobody, YEAR);
    let proxy = acme(Proxy::builder().simulator(&simulator), &plan, &[]).start();
    until("the refusal is told", async || {
        readyz(&proxy)
            .await
            .contains("did not find the names to be ours")
    })
    .await;
    let page = readyz(&proxy).await;
    assert!(
        page.contains(DOMAIN) && page.contains("Failed to connect"),
        "{page}"
    );
    let told = |event: &support::Event| {
        event.message() == "no new certificate" && event.line.contains(DOMAIN)
    };
    proxy.log_until("the refusal", told).await;
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_limits_rates_is_left_alone_for_as_long_as_it_asks() {
    let simulator = simulator().await;
    let plan = Plan::new();
    let asked = plan.limit_rates("7200").await;
    let proxy = acme(Proxy::builder().simulator(&simulator), &plan, &[]).start();
    let told = proxy.log_until("the failure", |event| {
        event.message() == "no new certificate"
    });
    let told = told.await;
    assert_eq!(
        told.field("retry.after").as_deref(),
        Some("2h"),
        "{}",
        told.line
    );
    let page = readyz(&proxy).await;
    assert!(page.contains("too many new orders"), "{page}");
    assert_eq!(metric(&proxy, ORDERS, &["result=\"failed\""]).await, 1.0);
    assert_eq!(asked.load(Ordering::SeqCst), 1, "one question and no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_wants_to_know_whose_account_it_is_is_told_and_a_wrong_key_is_said_to_be_one()
 {
    const KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    const WRONG: &str = "AAAAZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let simulator = simulator().await;
    let mut plan = Plan::new();
    plan.known = vec![("kid-1", KEY)];
    let port = free_port();
    let _pebble = plan.start(port, 1, YEAR);
    let root = plan.root().await;
    let stranger = acme(Proxy::builder().simulator(&simulator), &plan, &[]).start();
    until("it is told that an account is wanted", async || {
        readyz(&stranger).await.contains("eab_kid and eab_key_file")
    })
    .await;

    let builder = Proxy::builder().simulator(&simulator);
    let builder = builder.listen([format!("https://127.0.0.1:{port}").as_str()]);
    let file = builder.pki().dir().join("eab.key");
    fs::write(&file, WRONG).expect("writable");
    let path = file.to_str().expect("a UTF-8 path");
    let keys = [("eab_kid", "kid-1"), ("eab_key_file", path)];
    let proxy = acme(builder, &plan, &keys).env("RUST_LOG", "trace").start();
    until("the key is told to be wrong", async || {
        let page = readyz(&proxy).await;
        page.contains("does not take eab_kid") && page.contains("with the key of eab_key_file")
    })
    .await;
    // The right one is used without a restart.
    fs::write(&file, KEY).expect("writable");
    until("there is a certificate", async || {
        is_served(&proxy, &root).await
    })
    .await;
    let secrets = [KEY.to_owned(), WRONG.to_owned()];
    proxy.assert_no_secrets(&secrets).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_down_is_used_and_kept_when_it_can_be() {
    let simulator = simulator().await;
    let plan = Plan::new();
    let port = free_port();
    let _pebble = plan.start(port, 1, YEAR);
    let root = plan.root().await;
    let right = fs::read(plan.ca()).expect("readable");
    fs::copy(Pki::new(["other.test"]).ca(), plan.ca()).expect("writable");
    let builder = Proxy::builder().simulator(&simulator);
    let builder = builder.listen([format!("https://127.0.0.1:{port}").as_str()]);
    let proxy = acme(builder, &plan, &[]).start();
    until("the directory is not trusted", async || {
        readyz(&proxy).await.contains("no new certificate since")
    })
    .await;

    let file = stored(&proxy).join("certificate.pem");
    fs::create_dir(&file).expect("a folder in its place");
    // The roots are read for each order.
    fs::write(plan.ca(), right).expect("writable");
    until("it is served all the same", async || {
        is_served(&proxy, &root).await
    })
    .await;
    let page = readyz(&proxy).await;
    assert!(page.contains("certificate.pem"), "{page}");
    assert_eq!(metric(&proxy, ORDERS, &["result=\"ok\""]).await, 1.0);
    fs::remove_dir(&file).expect("an empty folder");
    until("it is kept", async || {
        file.is_file() && !readyz(&proxy).await.contains("certificate")
    })
    .await;
    assert_eq!(metric(&proxy, ORDERS, &["result=\"ok\""]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_told_what_changes_about_the_account() {
    const KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let simulator = simulator().await;
    let mut plan = Plan::new();
    plan.known = vec![("kid-1", KEY), ("kid-2", KEY)];
    let port = free_port();
    let _pebble = plan.start(port, 1, YEAR);
    let root = plan.root().await;
    let builder = Proxy::builder().simulator(&simulator);
    let builder = builder.listen([format!("https://127.0.0.1:{port}").as_str()]);
    let file = builder.pki().dir().join("eab.key");
    fs::write(&file, KEY).expect("writable");
    let path = file.to_str().expect("a UTF-8 path").to_owned();
    let keys = [("eab_kid", "kid-1"), ("eab_key_file", path.as_str())];
    let mut proxy = acme(builder, &plan, &keys).start();
    until("there is a certificate", async || {
        is_served(&proxy, &root).await
    })
    .await;
    let read = |proxy: &Proxy| {
        let text = fs::read(stored(proxy).join("account.json")).expect("readable");
        let account: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        account
    };
    let account = |proxy: &Proxy| read(proxy)["key_pkcs8"].clone();
    let told = |proxy: &Proxy| read(proxy)["told"].to_string();
    let first = account(&proxy);
    assert!(told(&proxy).contains("ops@mydomain.test"));

    let [kid, key] = keys;
    proxy.set(
        "tls.acme",
        plan.keys(&[kid, key, ("email", "new@mydomain.test")]),
    );
    proxy.reload().await;
    until("the address is told", async || {
        told(&proxy).contains("new@mydomain.test")
    })
    .await;
    let known = |event: &support::Event| event.message().contains("knows the account's address");
    proxy.log_until("that is said", known).await;
    assert_eq!(account(&proxy), first, "the account is the same");

    proxy.set("tls.acme", plan.keys(&[("eab_kid", "kid-2"), key]));
    proxy.reload().await;
    until("there is another account", async || {
        account(&proxy) != first
    })
    .await;
    assert!(
        told(&proxy).contains("kid-2"),
        "and it is known at once whose"
    );
    assert!(is_served(&proxy, &root).await);
    assert_eq!(metric(&proxy, ORDERS, &["result=\"ok\""]).await, 1.0);
    assert!(!readyz(&proxy).await.contains("certificate"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_began_anew_gets_a_new_account_and_issues_as_before() {
    let simulator = simulator().await;
    let plan = Plan::new();
    let port = free_port();
    let before = plan.start(port, 1, YEAR);
    let root = plan.root().await;
    let builder = Proxy::builder().simulator(&simulator);
    let builder = builder.listen([format!("https://127.0.0.1:{port}").as_str()]);
    let mut proxy = acme(builder, &plan, &[]).start();
    until("there is a certificate", async || {
        is_served(&proxy, &root).await
    })
    .await;
    let account = fs::read(stored(&proxy).join("account.json")).expect("readable");

    // It has all in memory.
    drop(before);
    let _anew = plan.start(port, 1, YEAR);
    let root = plan.root().await;
    proxy.set("server.domains", vec![DOMAIN, "later.mydomain.test"]);
    proxy.reload().await;
    until("it issues again", async || is_served(&proxy, &root).await).await;
    assert_eq!(metric(&proxy, ORDERS, &["result=\"failed\""]).await, 0.0);
    let kept = fs::read(stored(&proxy).join("account.json.old")).expect("readable");
    assert_eq!(kept, account, "for a directory that is restored later");
}
