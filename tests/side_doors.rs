//! Nothing but the registry API is behind the registry's door, nothing that strangers ask for grows, and what is
//! on disk is for its owner alone.

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ecr_proxy::simulator::Simulator;
use support::{Client, Proxy, image};

/// Paths of the operator's doors, and ways to write them.
const ELSEWHERE: &[&str] = &[
    "/metrics",
    "/healthz",
    "/readyz",
    "/",
    "/api/v1/status",
    "/api/v1/operations",
    "/v1/operations",
    "/Metrics",
    "/%6detrics",
    "/v2/../metrics",
    "/v2/%2e%2e/metrics",
    "//metrics",
    "/v2//../metrics",
    "/debug/pprof/",
    "/.well-known/acme-challenge/x",
    "/v3/",
    "/v1/search",
];

#[tokio::test(flavor = "multi_thread")]
async fn s22_the_operators_doors_are_not_the_registrys() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let proxy = Proxy::before(&simulator);
    for client in [proxy.client(), proxy.tls_client()] {
        for path in ELSEWHERE {
            for method in ["GET", "POST"] {
                let answer = client.ask(method, path, &[]).await;
                let status = answer.status;
                assert!(
                    [400, 404, 405].contains(&status),
                    "{method} {path}: {status}"
                );
                let text = answer.text();
                assert!(!text.contains("ecr_proxy_"), "{method} {path}: {text}");
                assert!(!text.contains("<html"), "{method} {path}: {text}");
            }
        }
    }
    // And the registry is not behind theirs.
    let admin = Client::operator(proxy.admin());
    for path in ["/v2/", "/v2/team/app/tags/list"] {
        assert_eq!(admin.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s22_a_page_on_the_web_cannot_have_a_browser_read_the_operators_pages() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let proxy = Proxy::before(&simulator);
    let ask = async |host: &str, path: &str| {
        let admin = Client::plain(proxy.admin());
        admin.get_with(path, &[("Host", host)]).await
    };
    for path in ["/", "/metrics", "/api/v1/status"] {
        let address = proxy.admin().to_string();
        for own in ["localhost", "localhost:9090", &address, "[::1]:9090"] {
            assert_eq!(ask(own, path).await.status, 200, "{own} {path}");
        }
        for other in ["evil.test", "evil.test:9090", "localhost.evil.test"] {
            let answer = ask(other, path).await;
            assert_eq!(answer.status, 421, "{other} {path}");
            assert!(!answer.text().contains("ecr_proxy"), "{}", answer.text());
        }
    }
}

/// Who runs the program ends it where a probe of its health gets no answer.
#[tokio::test(flavor = "multi_thread")]
async fn l12_nobody_alone_has_all_of_the_operators_door() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let proxy = Proxy::before(&simulator);
    let stranger = Client::operator(proxy.admin());
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(stranger.connect().await);
    }
    let probe = Client::operator(proxy.admin()).at("127.0.0.2");
    assert_eq!(probe.get("/healthz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn s22_no_number_of_names_makes_the_metrics_grow() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let proxy = Proxy::before(&simulator);
    let series = async || {
        let text = Client::operator(proxy.admin()).get("/metrics").await.text();
        text.lines().filter(|line| !line.starts_with('#')).count()
    };
    let ask = async |from: usize, to: usize| {
        for number in from..to {
            let method = format!("M{number}");
            proxy.client().ask(&method, "/v2/", &[]).await;
            let path = format!("/v2/team/r{number}/manifests/t{number}");
            proxy.client().get(&path).await;
            proxy.client().get(&format!("/x{number}")).await;
        }
    };
    ask(0, 20).await;
    let before = series().await;
    ask(20, 200).await;
    assert_eq!(series().await, before);
}

/// Everything below a folder.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            walk(&path, found);
        }
        found.push(path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s23_what_is_on_disk_is_for_its_owner_alone() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let pushed = simulator.push_image("team/app", image::TAG, image::spec());
    let proxy = Proxy::builder().simulator(&simulator).local_ca().start();
    let client = proxy.client();
    for path in [
        format!("/v2/team/app/manifests/{}", image::TAG),
        format!("/v2/team/app/blobs/{}", pushed.blobs()[0].digest),
    ] {
        assert_eq!(client.get(&path).await.status, 200);
    }
    proxy
        .run(["cache", "pin", &format!("team/app:{}", image::TAG)])
        .fine();
    let mut found = vec![proxy.cache_dir(), proxy.state_dir(), proxy.admin_socket()];
    for folder in [proxy.cache_dir(), proxy.state_dir()] {
        walk(&folder, &mut found);
    }
    assert!(found.len() > 10, "{found:?}");
    for path in found {
        let metadata = fs::symlink_metadata(&path).expect("what was found");
        let kind = metadata.file_type();
        let expected = if kind.is_dir() { 0o700 } else { 0o600 };
        let mode = metadata.permissions().mode() & 0o777;
        // Certificates are there to be handed out.
        let is_certificate =
            path.extension().is_some_and(|e| e == "crt" || e == "pem") && mode == 0o644;
        assert!(
            mode == expected || is_certificate,
            "{} ({}) has mode {mode:o}",
            path.display(),
            if kind.is_socket() { "socket" } else { "file" },
        );
    }
    let arguments = fs::read(format!("/proc/{}/cmdline", proxy.pid())).expect("a process");
    let arguments = String::from_utf8_lossy(&arguments);
    for secret in simulator.secrets() {
        assert!(!arguments.contains(&secret), "{arguments}");
    }
}
