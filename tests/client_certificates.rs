//! A client certificate of `tls.client_ca` decides who is asking, for daemons that send no passwords; one
//! that is not trusted fails the handshake, and who shows none logs in as ever.

mod support;

use std::fs;
use std::io;
use std::path::PathBuf;

use ecr_proxy::simulator::Simulator;
use support::blobs::{metric, until};
use support::image::{REPOSITORY, TAG};
use support::pki::{Leaf, trusting_as};
use support::proxy::Builder;
use support::real::Dockerd;
use support::users::{login, user_line};
use support::{DOMAIN, Event, Pki, Proxy, Sandbox, image, within};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PASSWORD: &str = "correct horse battery staple";

/// The CA of the clients, which is not that of the server.
fn clients_pki() -> Pki {
    Pki::new(["unused.test"])
}

async fn before(clients: &Pki) -> (Simulator, Builder) {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    image::push(&simulator);
    simulator.push_image("other/app", TAG, image::spec());
    let builder = Proxy::builder()
        .simulator(&simulator)
        .users(&user_line("ci", PASSWORD))
        .client_ca(&clients.ca())
        .rule("users = ['node-7']\nrepositories = ['team/**']\nactions = ['pull']")
        .rule("users = ['ci']\nactions = ['pull']");
    (simulator, builder)
}

fn manifest(repository: &str) -> String {
    format!("/v2/{repository}/manifests/{TAG}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_decides_who_is_asking_and_a_password_beside_it_is_ignored() {
    let clients = clients_pki();
    let (_simulator, builder) = before(&clients).await;
    let proxy = builder.start();
    let node = proxy
        .tls_client()
        .showing(&clients.issue_client("node-7", &[]));
    let other = proxy
        .tls_client()
        .showing(&clients.issue_client("node-8", &[]));
    let reserved = proxy
        .tls_client()
        .showing(&clients.issue_client("AWS", &[]));
    let (own, foreign) = (manifest(REPOSITORY), manifest("other/app"));
    for (client, path, expected) in [
        (node.clone(), "/v2/", 200),
        (node.clone(), &own, 200),
        (node.clone(), &foreign, 403),
        (login(node.clone(), "ci", PASSWORD), &foreign, 403),
        (login(node.clone(), "ci", "wrong"), &own, 200),
        (other.clone(), "/v2/", 200),
        (other, &own, 403),
        (login(reserved.clone(), "ci", PASSWORD), "/v2/", 401),
        // Who shows none logs in as ever.
        (proxy.tls_client(), "/v2/", 401),
        (login(proxy.tls_client(), "ci", PASSWORD), &foreign, 200),
    ] {
        let answer = client.get(path).await;
        assert_eq!(answer.status, expected, "{path}: {}", answer.text());
    }
    assert_eq!(node.get_h2(&own).await.status, 200);
    let checked = proxy.run([
        "check",
        "--as",
        "node-7",
        &format!("{DOMAIN}/{REPOSITORY}"),
        "pull",
    ]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let checked = proxy.run(["check"]);
    assert!(
        checked.stdout.contains("ok    client certificates: of "),
        "{checked:?}"
    );
    // No password was looked at but that of the one without a certificate.
    assert_eq!(
        metric(&proxy, "ecr_proxy_password_checks_total", &[]).await,
        1.0
    );
    let told = proxy.log_until("the user of the certificate", |event| {
        event.line.contains("\"client.user\":\"node-7\"")
    });
    told.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_that_is_the_user_is_chosen() {
    let clients = clients_pki();
    let leaf = clients.issue_client("some CN", &["node-7", "spiffe://td/node-7"]);
    let bare = clients.issue_client("node-7", &[]);
    for (kind, user) in [
        ("cn", "some CN"),
        ("san-dns", "node-7"),
        ("san-uri", "spiffe://td/node-7"),
    ] {
        let (_simulator, builder) = before(&clients).await;
        let proxy = builder
            .set("tls.client_user", kind)
            .rule(&format!("users = ['{user}']\nactions = ['pull']"))
            .start();
        let client = proxy.tls_client().showing(&leaf);
        assert_eq!(
            client.get(&manifest(REPOSITORY)).await.status,
            200,
            "{kind}"
        );
        // A certificate without such a name is valid and nobody's.
        let bare = proxy.tls_client().showing(&bare);
        let expected = if kind == "cn" { 200 } else { 401 };
        assert_eq!(bare.get("/v2/").await.status, expected, "{kind}");
    }
}

/// What comes of a request over TLS by a client that shows `leaf`.
async fn try_with(proxy: &Proxy, leaf: &Leaf) -> io::Result<Vec<u8>> {
    let config = trusting_as(&proxy.pki().ca(), &[b"http/1.1"], Some(leaf));
    let name = DOMAIN.try_into().expect("a name");
    let stream = TcpStream::connect(proxy.https()).await?;
    let mut stream = TlsConnector::from(config).connect(name, stream).await?;
    // In TLS 1.3 a client learns of the refusal only when it reads.
    let request = format!("GET /v2/ HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await?;
    Ok(said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_trusted_fails_the_handshake() {
    let clients = clients_pki();
    let (_simulator, builder) = before(&clients).await;
    let proxy = builder.start();
    let failures = async || metric(&proxy, "ecr_proxy_handshake_failures_total", &[]).await;
    let good = clients.issue_client("node-7", &[]);
    let said = within("an answer", try_with(&proxy, &good))
        .await
        .expect("an answer");
    assert!(
        said.starts_with(b"HTTP/1.1 200 "),
        "{}",
        String::from_utf8_lossy(&said)
    );
    assert_eq!(failures().await, 0.0);

    let stranger = clients_pki().issue_client("node-7", &[]);
    // The server's own CA signs no clients, and a server's certificate is no client's.
    let of_the_server = proxy.pki().issue_client("node-7", &[]);
    let no_client = clients.issue([DOMAIN], None);
    let day = std::time::Duration::from_secs(24 * 60 * 60);
    let ended = clients.issue([DOMAIN], Some(std::time::SystemTime::now() - day));
    for (index, leaf) in [&stranger, &of_the_server, &no_client, &ended]
        .into_iter()
        .enumerate()
    {
        let said = within("the end", try_with(&proxy, leaf)).await;
        let error = said.expect_err("a refused handshake");
        assert!(error.to_string().contains("alert"), "{index}: {error}");
        assert_eq!(failures().await, index as f64 + 1.0);
        let told = |event: &&Event| {
            event.field("why").as_deref() == Some("the client's certificate is refused")
        };
        let count = || proxy.logs().iter().filter(told).count();
        until("the operator is told", async || count() == index + 1).await;
    }

    // Who goes on asking when it is refused already is told why as well.
    let config = trusting_as(&proxy.pki().ca(), &[b"http/1.1"], Some(&stranger));
    let stream = TcpStream::connect(proxy.https()).await.expect("open");
    let name = DOMAIN.try_into().expect("a name");
    let connecting = TlsConnector::from(config).connect(name, stream);
    let mut stream = connecting.await.expect("its own part of the handshake");
    until("it is refused", async || failures().await == 5.0).await;
    for _ in 0..3 {
        let asking = stream.write_all(b"GET /v2/ HTTP/1.1\r\n").await;
        asking.expect("somebody takes it");
        stream.flush().await.expect("somebody takes it");
    }
    let error = stream.read(&mut [0; 16]).await.expect_err("a refusal");
    assert!(error.to_string().contains("alert"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_everybody_is_anonymous_a_certificate_harms_nobody() {
    let clients = clients_pki();
    let simulator = Simulator::builder().start().await.expect("a simulator");
    image::push(&simulator);
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .client_ca(&clients.ca())
        .start();
    let node = proxy
        .tls_client()
        .showing(&clients.issue_client("node-7", &[]));
    assert_eq!(node.get(&manifest(REPOSITORY)).await.status, 200);
}

#[test]
fn a_bad_client_ca_is_told_at_start() {
    let folder = TempDir::new().expect("a folder");
    let config = folder.path().join("config.toml");
    let write = |tls: &str, listen: &str| {
        let text = format!(
            "[server]\nlisten = ['{listen}']\nadmin = 'off'\nadmin_socket = 'off'\nstate_dir = 'state'\n[cache]\ndir = 'cache'\n[tls]\n{tls}\n[[upstream]]\nregistry = 'docker.io'\n"
        );
        fs::write(&config, text).expect("a file");
    };
    fs::write(folder.path().join("clients.pem"), "nothing").expect("a file");
    let serve = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ecr-proxy"));
        command.args(["serve", "--config"]).arg(&config).env_clear();
        let output = command.output().expect("the program was built");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let tls = "https://127.0.0.1:0";
    for (text, listen, told) in [
        ("client_ca = 'clients.pem'", tls, "holds no certificate"),
        (
            "client_ca = 'absent.pem'",
            tls,
            "tls.client_ca: cannot read",
        ),
        (
            "client_user = 'cn'",
            tls,
            "tls.client_user: has no meaning without",
        ),
        (
            "client_ca = 'clients.pem'\nclient_user = 'CN'",
            tls,
            "is none of \"cn\"",
        ),
        (
            "client_ca = 'clients.pem'",
            "http://127.0.0.1:0",
            "no listener speaks TLS",
        ),
    ] {
        write(text, listen);
        let (ended, said) = serve();
        assert_eq!(ended, Some(2), "{text}: {said}");
        assert!(said.contains(told), "{told} in {said}");
    }
}

/// Puts a certificate where docker's daemon, podman and skopeo look for those of a registry.
fn install(sandbox: &Sandbox, folder: &str, leaf: &Leaf, ca: &std::path::Path) {
    let folder = PathBuf::from(folder);
    sandbox.write(&folder.join("client.cert"), &leaf.certificate);
    sandbox.write(&folder.join("client.key"), &leaf.key);
    sandbox.trust(ca, &folder.join("ca.crt"));
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_and_podman_style_clients_pull_with_a_certificate_and_no_password() {
    let clients = clients_pki();
    let (_simulator, builder) = before(&clients).await;
    let proxy = builder.listen(["https://[::1]:0"]).start();
    let sandbox = Sandbox::new();
    let host = format!("{DOMAIN}:{}", proxy.https().port());
    let folder = format!("/etc/containers/certs.d/{host}");
    let leaf = clients.issue_client("node-7", &[]);
    sandbox.trust(&proxy.pki().ca(), &PathBuf::from(&folder).join("ca.crt"));
    let from = format!("docker://{host}/{REPOSITORY}:{TAG}");
    sandbox.must_fail("authentication required", "skopeo", ["inspect", &from]);
    install(&sandbox, &folder, &leaf, &proxy.pki().ca());
    sandbox.must("skopeo", ["inspect", &from]);
    let foreign = format!("docker://{host}/other/app:{TAG}");
    sandbox.must_fail("denied", "skopeo", ["inspect", &foreign]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dockerd_pulls_with_a_certificate_and_no_password() {
    let clients = clients_pki();
    let (_simulator, builder) = before(&clients).await;
    let proxy = builder.listen(["https://[::1]:0"]).start();
    let sandbox = Sandbox::new();
    let host = format!("{DOMAIN}:{}", proxy.https().port());
    let reference = format!("{host}/{REPOSITORY}:{TAG}");
    let leaf = clients.issue_client("node-7", &[]);
    let dockerd = Dockerd::start(&sandbox);
    let folder = format!("/etc/docker/certs.d/{host}");
    install(&sandbox, &folder, &leaf, &proxy.pki().ca());
    dockerd.docker(&sandbox, &["pull", &reference]);
    let foreign = format!("{host}/other/app:{TAG}");
    let pull = ["--host", dockerd.host(), "pull", &foreign];
    sandbox.must_fail("denied", "docker", pull);
}
