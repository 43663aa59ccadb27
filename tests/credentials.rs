//! Outside AWS there is no role to be had from the machine: the proxy takes its identity from static keys in a
//! file, from a program (`credential_process`) or from another provider's token (web identity), as the README's
//! recipes write them, or from a role that it assumes with any of these, and none of it is told to anybody.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ecr_proxy::simulator::{
    Entry, FULL_ACCESS_KEY, Fault, Gate, Listener, PULL_ONLY_ACCESS_KEY, Pattern, Simulator,
};
use support::blobs::{assert_whole, blob, pull, simulator, until};
use support::image::REPOSITORY;
use support::proxy::Builder;
use support::{Client, Proxy, Stopwatch, within};
use tempfile::TempDir;
use tokio::net::TcpListener;

const SECRET: &str = "canary-of-the-secret-access-key";

/// Within which a client is told that there is nothing to be had, and a busy machine's addition.
const TOLD: Duration = Duration::from_millis(5750);

/// A proxy without keys in its environment.
fn outside_aws(simulator: &Simulator) -> Builder {
    Proxy::builder()
        .upstream_key("registry", simulator.registry_host())
        .upstream_key("endpoint", simulator.endpoint())
        .env("AWS_ENDPOINT_URL_ECR", &simulator.api_endpoint())
        .env("RUST_LOG", "trace")
}

/// Writes `text` where only its owner may read it, as a recipe says.
fn private(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).expect("a writable folder");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("one's own file");
    path
}

/// A file of credentials that holds these keys, in place of what it held.
fn static_keys(folder: &TempDir, id: &str) -> PathBuf {
    let text = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {SECRET}\n");
    private(folder, "credentials", &text)
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

async fn assert_pulls(proxy: &Proxy, simulator: &Simulator, seed: u64) {
    let (digest, target) = blob(simulator, seed, 1000);
    assert_whole(&proxy.client().get(&target).await, &digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn static_keys_in_a_file_and_a_changed_file_takes_effect_without_a_restart() {
    let simulator = simulator().await;
    let folder = TempDir::new().expect("a folder");
    let keys = |id: &str| static_keys(&folder, id);
    let file = keys("AKIAREVOKED000000001");
    let proxy = outside_aws(&simulator)
        .env("AWS_SHARED_CREDENTIALS_FILE", path(&file))
        .start();
    let (_, target) = blob(&simulator, 1, 1000);
    let refused = proxy.client().get(&target).await;
    assert_eq!(refused.status, 503, "{}", refused.text());

    keys(PULL_ONLY_ACCESS_KEY);
    support::blobs::until("the new keys are used", async || {
        proxy.client().get(&target).await.status == 200
    })
    .await;
    proxy.assert_no_secrets(&[SECRET.to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn k04_keys_that_end_while_it_runs_are_read_anew_by_one_for_all_and_no_pull_notices() {
    let simulator = simulator().await;
    let folder = TempDir::new().expect("a folder");
    let keys = |id: &str| static_keys(&folder, id);
    let file = keys(PULL_ONLY_ACCESS_KEY);
    let proxy = outside_aws(&simulator)
        .env("AWS_SHARED_CREDENTIALS_FILE", path(&file))
        .start();
    assert_pulls(&proxy, &simulator, 1).await;
    let (digest, target) = blob(&simulator, 2, 2_000_000);
    let gate = Gate::new();
    let faults = simulator.faults();
    let slow = faults.on(Listener::Storage, "GET", Pattern::digest(&digest));
    slow.then(Fault::HoldAfter(1_000_000, gate.clone()));
    let mut running = proxy.client().start("GET", &target, &[]).await;
    within("it runs", gate.arrived(1)).await;

    // What the file holds by now is good, and what was read of it before is not.
    keys(FULL_ACCESS_KEY);
    let ended = Pattern::matching(|entry: &Entry| {
        let signed = entry.header("authorization").unwrap_or_default();
        signed.contains(PULL_ONLY_ACCESS_KEY)
    });
    let ended = faults.on(Listener::Api, "*", ended);
    ended.then(Fault::refused_by_aws(
        "ExpiredTokenException",
        "The security token included in the request is expired",
    ));
    simulator.expire_tokens();
    let asked = || {
        simulator
            .journal()
            .count(|entry| entry.listener == Listener::Api)
    };
    let before = asked();
    let others: Vec<_> = (10..30).map(|seed| blob(&simulator, seed, 1000)).collect();
    let pulls = others.iter().map(async |(digest, target)| {
        assert_whole(&proxy.client().get(target).await, digest);
    });
    futures_util::future::join_all(pulls).await;
    let asked = asked() - before;
    assert_eq!(asked, 1, "calls for twenty pulls");
    gate.open();
    assert_whole(&running.answer("GET").await.expect("an answer"), &digest);
    proxy.assert_no_secrets(&[SECRET.to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_prints_credentials() {
    let simulator = simulator().await;
    let folder = TempDir::new().expect("a folder");
    let answer = format!(
        r#"{{"Version": 1, "AccessKeyId": "{PULL_ONLY_ACCESS_KEY}", "SecretAccessKey": "{SECRET}"}}"#
    );
    let answer = private(&folder, "answer.json", &answer);
    let profile = format!(
        "[profile edge]\ncredential_process = /bin/cat {}\n",
        path(&answer)
    );
    let config = private(&folder, "config", &profile);
    let proxy = outside_aws(&simulator)
        .upstream_key("profile", "edge")
        .env("AWS_CONFIG_FILE", path(&config))
        .start();
    assert_pulls(&proxy, &simulator, 1).await;
    proxy.assert_no_secrets(&[SECRET.to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn k08_a_profile_comes_before_keys_of_the_environment() {
    let simulator = simulator().await;
    let folder = TempDir::new().expect("a folder");
    let profile = format!(
        "[profile edge]\naws_access_key_id = {PULL_ONLY_ACCESS_KEY}\naws_secret_access_key = {SECRET}\n"
    );
    let config = private(&folder, "config", &profile);
    let proxy = outside_aws(&simulator)
        .upstream_key("profile", "edge")
        .env("AWS_CONFIG_FILE", path(&config))
        .env("AWS_ACCESS_KEY_ID", "AKIAOFANOTHERUPSTREAM")
        .env("AWS_SECRET_ACCESS_KEY", "another")
        .start();
    assert_pulls(&proxy, &simulator, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_fails_is_told_without_what_it_said() {
    let simulator = simulator().await;
    let folder = TempDir::new().expect("a folder");
    let script = format!("#!/bin/sh\necho {SECRET} >&2\nexit 7\n");
    let script = private(&folder, "helper", &script);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("one's own file");
    let profile = format!("[default]\ncredential_process = {}\n", path(&script));
    let config = private(&folder, "config", &profile);
    let proxy = outside_aws(&simulator)
        .env("AWS_CONFIG_FILE", path(&config))
        .start();
    let (_, target) = blob(&simulator, 1, 1000);
    assert_eq!(proxy.client().get(&target).await.status, 503);
    let ready = Client::operator(proxy.admin()).get("/readyz").await;
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains("no credentials"), "{}", ready.text());
    assert!(!ready.text().contains(SECRET), "{}", ready.text());
    proxy.assert_no_secrets(&[SECRET.to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_identity_provider() {
    const WEB_IDENTITY: &str = "canary-of-the-web-identity-token";
    let simulator = simulator().await;
    simulator.trust_web_identity(WEB_IDENTITY);
    let folder = TempDir::new().expect("a folder");
    let token = private(&folder, "token", WEB_IDENTITY);
    let proxy = outside_aws(&simulator)
        .env("AWS_ENDPOINT_URL_STS", &simulator.api_endpoint())
        .env("AWS_REGION", "us-west-2")
        .env("AWS_ROLE_ARN", "arn:aws:iam::000042290000:role/pull-only")
        .env("AWS_ROLE_SESSION_NAME", "edge-1")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", path(&token))
        .start();
    assert_pulls(&proxy, &simulator, 1).await;
    // With the role's rights, not with anybody's: it may not list.
    let listed = proxy
        .client()
        .get(&format!("/v2/{REPOSITORY}/tags/list"))
        .await;
    assert_eq!(listed.status, 403, "{}", listed.text());
    let mut secrets = simulator.secrets();
    secrets.push(WEB_IDENTITY.to_owned());
    proxy.assert_no_secrets(&secrets).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_wants_an_external_id() {
    const EXTERNAL_ID: &str = "customer-42";
    let simulator = simulator().await;
    simulator.trust_role("pull-only", PULL_ONLY_ACCESS_KEY, Some(EXTERNAL_ID));
    let with_id = |id: &str| {
        outside_aws(&simulator)
            .upstream_key("role_arn", "arn:aws:iam::000042290000:role/pull-only")
            .upstream_key("external_id", id)
            .upstream_key("role_session_name", "edge-1")
            .env("AWS_ENDPOINT_URL_STS", &simulator.api_endpoint())
            .env("AWS_ACCESS_KEY_ID", PULL_ONLY_ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .start()
    };
    let proxy = with_id(EXTERNAL_ID);
    assert_pulls(&proxy, &simulator, 1).await;
    let mut secrets = simulator.secrets();
    secrets.push(SECRET.to_owned());
    proxy.assert_no_secrets(&secrets).await;

    let proxy = with_id("another");
    let (_, target) = blob(&simulator, 2, 1000);
    let refused = proxy.client().get(&target).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    let ready = Client::operator(proxy.admin()).get("/readyz").await;
    assert!(ready.text().contains("no credentials"), "{}", ready.text());
}

/// The proxy, started anew with a source of credentials that hangs, serves what it has and ends in time.
async fn assert_serves_what_it_has(simulator: &Simulator, mut proxy: Proxy, hang: impl FnOnce()) {
    let kept = blob(simulator, 1, 1000);
    assert_eq!(pull(&proxy, &kept).await, "miss");
    support::blobs::idle(&proxy).await;
    proxy.terminate();
    assert!(proxy.wait().success());
    hang();
    let began = Stopwatch::start();
    proxy.restart();
    assert!(began.took() < TOLD, "listened after {:?}", began.took());
    assert_eq!(pull(&proxy, &kept).await, "hit");
    let (_, missing) = blob(simulator, 2, 1000);
    let began = Stopwatch::start();
    let miss = proxy.client().get(&missing).await;
    assert!(began.took() < TOLD, "told after {:?}", began.took());
    assert_eq!(miss.status, 503, "{}", miss.text());
    assert!(miss.header("retry-after").is_some());
    until("/readyz tells", async || {
        let ready = Client::operator(proxy.admin()).get("/readyz").await;
        assert_eq!(ready.status, 200, "{}", ready.text());
        let told = "serving from cache: no credentials since";
        ready.text().contains(told)
    })
    .await;
    assert_eq!(pull(&proxy, &kept).await, "hit");
    let began = Stopwatch::start();
    proxy.terminate();
    assert!(proxy.wait().success());
    assert!(began.took() < TOLD, "ended after {:?}", began.took());
}

#[tokio::test(flavor = "multi_thread")]
async fn k10_a_metadata_service_that_hangs_holds_up_nothing_that_is_cached() {
    let simulator = simulator().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let metadata = format!("http://{}", silent.local_addr().expect("bound"));
    let (asked, mut was_asked) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((connection, _)) = silent.accept().await {
            open.push(connection);
            asked.send_replace(true);
        }
    });
    let folder = TempDir::new().expect("a folder");
    let keys = format!(
        "[default]\naws_access_key_id = {PULL_ONLY_ACCESS_KEY}\naws_secret_access_key = {SECRET}\n"
    );
    let keys = private(&folder, "credentials", &keys);
    let proxy = outside_aws(&simulator)
        .env("AWS_SHARED_CREDENTIALS_FILE", path(&keys))
        .env("AWS_EC2_METADATA_DISABLED", "false")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata)
        .start();
    let hang = || fs::remove_file(&keys).expect("one's own file");
    assert_serves_what_it_has(&simulator, proxy, hang).await;
    let asked = was_asked.wait_for(|asked| *asked).await;
    assert!(asked.is_ok(), "it was asked");
}

/// The processes of this file of ids that are still there.
fn alive(ids: &Path) -> Vec<String> {
    let ids = fs::read_to_string(ids).unwrap_or_default();
    let ids = ids.lines().map(str::to_owned);
    // One that has ended and was not waited for has no command line any more.
    let runs = |id: &String| {
        let line = fs::read(format!("/proc/{id}/cmdline"));
        line.is_ok_and(|line| !line.is_empty())
    };
    ids.filter(runs).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn k10_a_program_that_hangs_holds_up_nothing_that_is_cached_and_is_not_left_behind() {
    let simulator = simulator().await;
    let folder = TempDir::new().expect("a folder");
    let answer = format!(
        r#"{{"Version": 1, "AccessKeyId": "{PULL_ONLY_ACCESS_KEY}", "SecretAccessKey": "{SECRET}"}}"#
    );
    let answer = private(&folder, "answer.json", &answer);
    let script = |text: &str| {
        let script = private(&folder, "helper", &format!("#!/bin/sh\n{text}\n"));
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("one's own file");
        script
    };
    let helper = script(&format!("cat {}", path(&answer)));
    let profile = format!("[default]\ncredential_process = {}\n", path(&helper));
    let config = private(&folder, "config", &profile);
    let proxy = outside_aws(&simulator)
        .env("AWS_CONFIG_FILE", path(&config))
        .env("PATH", "/usr/bin:/bin")
        .start();
    let ids = folder.path().join("ids");
    let hang = || {
        script(&format!(
            "sleep 1000 &\necho $$ >> {ids}\necho $! >> {ids}\nwait",
            ids = path(&ids)
        ));
    };
    assert_serves_what_it_has(&simulator, proxy, hang).await;
    let begun = fs::read_to_string(&ids).expect("it was run");
    assert!(begun.lines().count() >= 2, "{begun}");
    until("none is left", async || alive(&ids).is_empty()).await;
}
