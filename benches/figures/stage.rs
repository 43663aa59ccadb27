//! What is measured, and what it is measured beside: the three servers, their content, and the
//! simulated ECR behind them, all on loopback and in one temporary folder.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ecr_proxy::simulator::{FULL_ACCESS_KEY, ImageSpec, PULL_ONLY_ACCESS_KEY, Simulator};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;

use super::load::{PASSWORD, Protocol, Target, USER};
use super::pki::Pki;
use super::process::{MALLOC, Process, SERVER_CORE};

pub const DOMAIN: &str = "registry.mydomain.test";
/// The blob that is served warm, in bytes.
pub const WARM_BYTES: u64 = 256 << 20;
/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server, with one address for each way to talk to it.
pub struct Server {
    pub name: &'static str,
    pub process: Process,
    https: SocketAddr,
    http: Option<SocketAddr>,
    client: Arc<ClientConfig>,
    h2_client: Arc<ClientConfig>,
}

impl Server {
    pub fn tls(&self) -> Target {
        self.target(self.https, Protocol::Tls(Arc::clone(&self.client)))
    }

    pub fn h2(&self) -> Target {
        self.target(self.https, Protocol::H2(Arc::clone(&self.h2_client)))
    }

    pub fn plain(&self) -> Target {
        let address = self.http.expect("a plain listener");
        self.target(address, Protocol::Plain)
    }

    fn target(&self, address: SocketAddr, protocol: Protocol) -> Target {
        Target {
            address,
            host: DOMAIN.to_owned(),
            protocol,
        }
    }
}

/// An image of one layer.
pub struct Image {
    repository: &'static str,
    tag: String,
    /// The layer's.
    pub digest: String,
}

impl Image {
    fn push(simulator: &Simulator, repository: &'static str, tag: &str, spec: ImageSpec) -> Self {
        let image = simulator.push_image(repository, tag, spec);
        Self {
            repository,
            tag: tag.to_owned(),
            digest: image.manifests[0].layers[0].digest.clone(),
        }
    }

    /// The path of its manifest, by tag.
    pub fn manifest(&self) -> String {
        format!("/v2/{}/manifests/{}", self.repository, self.tag)
    }

    /// The path of its layer.
    pub fn layer(&self) -> String {
        format!("/v2/{}/blobs/{}", self.repository, self.digest)
    }
}

/// Everything that runs.
pub struct Stage {
    pub simulator: Simulator,
    /// The image that is served warm: one layer of [`WARM_BYTES`].
    pub warm: Image,
    pub proxy: Server,
    pub nginx: Server,
    /// nginx with `proxy_cache` in front of the simulated storage.
    pub nginx_cache: Target,
    pub registry: Server,
    /// hyper and rustls alone, with the warm image's manifest for an answer.
    pub floor: Server,
    /// What docker-registry fetches from: nginx, which notes the bytes that it sent.
    origin_log: std::path::PathBuf,
    www: std::path::PathBuf,
    _dir: TempDir,
}

impl Stage {
    pub async fn set() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let pki = Pki::new([DOMAIN]);
        let simulator = Simulator::builder().start().await.expect("a simulator");
        let warm = Image::push(
            &simulator,
            "app",
            "v1",
            ImageSpec::generated(1, [WARM_BYTES]),
        );
        let www = dir.path().join("www");
        let clients = [client(&pki.ca(), b"http/1.1"), client(&pki.ca(), b"h2")];

        let (nginx, nginx_cache, origin) = nginx(dir.path(), &www, &pki, &simulator, &clients);
        let (_, manifest) = simulator.manifest("app", "v1").expect("just pushed");
        let stage = Self {
            floor: floor(dir.path(), &pki, &manifest, &clients),
            registry: docker_registry(dir.path(), &pki, origin, &clients),
            proxy: proxy(dir.path(), &pki, &simulator, &clients),
            nginx,
            nginx_cache,
            origin_log: dir.path().join("origin.log"),
            www,
            warm,
            simulator,
            _dir: dir,
        };
        stage.publish(&stage.warm);
        stage.write(&stage.warm.manifest(), &manifest);
        stage
    }

    /// One more image that nobody has asked for.
    pub fn cold_image(&self, seed: u64, bytes: u64) -> Image {
        let spec = ImageSpec::generated(seed, [bytes]);
        Image::push(&self.simulator, "cold", &format!("r{seed}"), spec)
    }

    /// Puts an image's layer where nginx serves files from.
    pub fn publish(&self, image: &Image) {
        let source = self.simulator.blob(image.repository, &image.digest);
        let source = source.expect("a pushed layer");
        self.write(&image.layer(), &source.read(0..source.len()));
    }

    fn write(&self, path: &str, content: &[u8]) {
        let file = self.www.join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().expect("a folder")).expect("a writable folder");
        fs::write(file, content).expect("a writable folder");
    }

    /// The signed path at which the simulated storage has a layer.
    pub async fn signed_path(&self, image: &Image) -> String {
        let token = self.simulator.token(FULL_ACCESS_KEY).expect("a principal");
        let registry = Target {
            address: self
                .simulator
                .address(ecr_proxy::simulator::Listener::Registry),
            host: self.simulator.registry_host(),
            protocol: Protocol::Plain,
        };
        let authorization = format!("Basic {}", token.authorization_token);
        let mut connection = registry.connect().await;
        let answer = connection
            .try_get(&image.layer(), Some(&authorization))
            .await;
        let location = answer.headers[http::header::LOCATION]
            .to_str()
            .expect("a location");
        let (_, path) = location
            .trim_start_matches("http://")
            .split_once('/')
            .expect("a path");
        format!("/{path}")
    }

    /// The bytes that docker-registry has fetched so far.
    pub fn registry_upstream_bytes(&self) -> u64 {
        let log = fs::read_to_string(&self.origin_log).unwrap_or_default();
        log.lines()
            .filter_map(|line| line.parse::<u64>().ok())
            .sum()
    }
}

/// Trusts the CA and offers what Go's clients prefer: AES-128-GCM.
fn client(ca: &Path, alpn: &[u8]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(ca).expect("a certificate");
    roots.add(certificate).expect("a CA certificate");
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites =
        vec![rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3 has this suite")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

/// A port that is free at this moment.
fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound socket")
}

/// Starts a program on the servers' core, its output in `log`, and waits until it listens.
fn start(command: &mut Command, log: &Path, listens: SocketAddr) -> Process {
    let log = File::create(log).expect("a writable folder");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn();
    let process = Process(child.expect("a program that starts"));
    let started = Instant::now();
    while std::net::TcpStream::connect(listens).is_err() {
        assert!(started.elapsed() < PATIENCE, "{command:?} does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    process
}

fn pinned(program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command
        .args(["-c", SERVER_CORE])
        .arg(program)
        .env_remove(MALLOC);
    command
}

fn floor(dir: &Path, pki: &Pki, answer: &[u8], clients: &[Arc<ClientConfig>; 2]) -> Server {
    let https = free_port();
    let file = dir.join("answer");
    fs::write(&file, answer).expect("a writable folder");
    let program = std::env::current_exe().expect("a program has a path");
    let mut command = pinned(&program);
    let files = [pki.certificate(), pki.key(), file];
    super::floor::configure(&mut command, https, files);
    Server {
        name: "hyper and rustls alone",
        process: start(&mut command, &dir.join("floor.log"), https),
        https,
        http: None,
        client: Arc::clone(&clients[0]),
        h2_client: Arc::clone(&clients[1]),
    }
}

fn proxy(dir: &Path, pki: &Pki, simulator: &Simulator, clients: &[Arc<ClientConfig>; 2]) -> Server {
    let (https, http, admin) = (free_port(), free_port(), free_port());
    let file = dir.join("config.toml");
    let config = format!(
        r#"
[server]
listen = ["https://{https}", "http://{http}"]
domains = ["{DOMAIN}"]
admin = "{admin}"
admin_socket = "off"
state_dir = "state"
[tls]
cert = "{cert}"
key = "{key}"
[cache]
dir = "cache"
max_size = "20GiB"
min_free = "1MiB"
tag_ttl = "1h"
[access]
users = "users.htpasswd"
[[access.rule]]
users = ["ci"]
repositories = ["team/**"]
actions = ["pull", "push", "delete"]
[[access.rule]]
users = ["*"]
repositories = ["internal/*", "attic/**"]
networks = ["192.0.2.0/24"]
actions = ["pull"]
[[access.rule]]
users = ["*"]
actions = ["pull"]
[[upstream]]
name = "prod"
registry = "{registry}"
endpoint = "{endpoint}"
"#,
        cert = pki.certificate().display(),
        key = pki.key().display(),
        registry = simulator.registry_host(),
        endpoint = simulator.endpoint(),
    );
    fs::write(&file, config).expect("a writable folder");
    // What a password costs is paid once, and is no part of a hit.
    let hash = bcrypt::hash(PASSWORD, 4).expect("a password");
    let users = format!("{USER}:{hash}\n");
    fs::write(dir.join("users.htpasswd"), users).expect("a writable folder");
    let mut command = pinned(Path::new(env!("CARGO_BIN_EXE_ecr-proxy")));
    command
        .args(["serve", "--log-format", "json", "--config"])
        .arg(&file)
        .env("AWS_ACCESS_KEY_ID", PULL_ONLY_ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", "secret-of-the-simulator")
        .env("AWS_ENDPOINT_URL_ECR", simulator.api_endpoint())
        .env("AWS_EC2_METADATA_DISABLED", "true");
    Server {
        name: "ecr-proxy",
        process: start(&mut command, &dir.join("proxy.log"), https),
        https,
        http: Some(http),
        client: Arc::clone(&clients[0]),
        h2_client: Arc::clone(&clients[1]),
    }
}

/// nginx as good as it gets: the best of its buffer sizes in both protocols, sendfile where there is
/// no TLS, files kept open, and an access log with the fields of ours.
fn nginx(
    dir: &Path,
    www: &Path,
    pki: &Pki,
    simulator: &Simulator,
    clients: &[Arc<ClientConfig>; 2],
) -> (Server, Target, SocketAddr) {
    let (https, http, cache, origin) = (free_port(), free_port(), free_port(), free_port());
    let config = format!(
        r#"
worker_processes 1;
daemon off;
pid {dir}/nginx.pid;
error_log {dir}/nginx.log error;
user root;
events {{ worker_connections 8192; }}
http {{
    client_body_temp_path {dir}/nginx-body;
    proxy_temp_path {dir}/nginx-proxy;
    fastcgi_temp_path {dir}/nginx-fastcgi;
    uwsgi_temp_path {dir}/nginx-uwsgi;
    scgi_temp_path {dir}/nginx-scgi;
    log_format audit escape=json '{{"time":"$time_iso8601","request.id":"$request_id","client.addr":"$remote_addr:$remote_port","client.user":"$remote_user","client.agent":"$http_user_agent","http.method":"$request_method","http.status":"$status","uri":"$uri","cache.outcome":"$upstream_cache_status","body.bytes":"$body_bytes_sent","elapsed":"$request_time","end":"$request_completion"}}';
    log_format bytes '$body_bytes_sent';
    access_log {dir}/nginx-access.log audit;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    keepalive_timeout 600s;
    http2_max_requests 100000000;
    http2_chunk_size 16k;
    output_buffers 2 256k;
    open_file_cache max=1000 inactive=600s;
    open_file_cache_valid 600s;
    ssl_certificate {cert};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    ssl_buffer_size 16k;
    proxy_cache_path {dir}/nginx-cache levels=1:2 keys_zone=blobs:10m max_size=20g inactive=1d use_temp_path=off;
    default_type application/octet-stream;
    root {www};
    server {{
        listen {https} ssl http2;
        server_name {DOMAIN};
        location ~ /manifests/ {{ default_type application/vnd.oci.image.manifest.v1+json; }}
    }}
    server {{ listen {http}; }}
    server {{
        listen {origin};
        access_log {dir}/origin.log bytes;
        location = /v2/ {{ default_type application/json; return 200 '{{}}'; }}
    }}
    server {{
        listen {cache} ssl;
        location / {{
            proxy_pass http://{storage};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "";
            proxy_cache blobs;
            proxy_cache_key $uri;
            proxy_cache_valid 200 1d;
            proxy_cache_lock on;
            proxy_cache_lock_age 1h;
            proxy_cache_lock_timeout 1h;
            proxy_max_temp_file_size 0;
            proxy_buffer_size 64k;
            proxy_buffers 8 256k;
            proxy_busy_buffers_size 512k;
        }}
    }}
}}
"#,
        dir = dir.display(),
        www = www.display(),
        cert = pki.certificate().display(),
        key = pki.key().display(),
        storage = simulator.address(ecr_proxy::simulator::Listener::Storage),
    );
    let file = dir.join("nginx.conf");
    fs::create_dir_all(www).expect("a writable folder");
    fs::write(&file, config).expect("a writable folder");
    let mut command = pinned(Path::new("/usr/sbin/nginx"));
    command.arg("-c").arg(&file).arg("-p").arg(dir);
    let server = Server {
        name: "nginx",
        process: start(&mut command, &dir.join("nginx-start.log"), https),
        https,
        http: Some(http),
        client: Arc::clone(&clients[0]),
        h2_client: Arc::clone(&clients[1]),
    };
    let cache = server.target(cache, Protocol::Tls(Arc::clone(&clients[0])));
    (server, cache, origin)
}

/// docker-registry as a pull-through cache: what it has, it serves from its own files.
fn docker_registry(
    dir: &Path,
    pki: &Pki,
    origin: SocketAddr,
    clients: &[Arc<ClientConfig>; 2],
) -> Server {
    let https = free_port();
    let config = format!(
        r#"version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {dir}/registry}}}}
http: {{addr: "{https}", tls: {{certificate: {cert}, key: {key}}}}}
proxy: {{remoteurl: "http://{origin}"}}
"#,
        dir = dir.display(),
        cert = pki.certificate().display(),
        key = pki.key().display(),
    );
    let file = dir.join("registry.yml");
    fs::write(&file, config).expect("a writable folder");
    let mut command = pinned(Path::new("/usr/bin/docker-registry"));
    command.arg("serve").arg(&file);
    Server {
        name: "docker-registry",
        process: start(&mut command, &dir.join("registry.log"), https),
        https,
        http: None,
        client: Arc::clone(&clients[0]),
        h2_client: Arc::clone(&clients[1]),
    }
}
