//! The real program, `ecr-proxy serve`, in directories and an environment of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use ecr_proxy::simulator::{PULL_ONLY_ACCESS_KEY, Simulator};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use toml::{Table, Value as Toml};

use super::client::Heard;
use super::secrets::Search;
use super::token_service::{ACCOUNT, TokenService};
use super::{Client, DOMAIN, PATIENCE, Pki, program, store, within};

/// What the certificate of a proxy is for.
const NAMES: [&str; 4] = [DOMAIN, "localhost", "127.0.0.1", "::1"];

/// What operators are told, each to be read at the admin listener.
const PAGES: [&str; 7] = [
    "/",
    "/healthz",
    "/readyz",
    "/metrics",
    "/api/v1/status",
    "/api/v1/cache/stats",
    "/api/v1/cache/images",
];

/// The name of the user file.
const USERS: &str = "users.htpasswd";

/// Makes a read-only mount of the current folder over itself.
const READ_ONLY: &str = r#"mount --bind . . && mount -o remount,ro,bind "$PWD""#;

/// A running proxy; killed when dropped.
pub struct Proxy {
    dir: TempDir,
    pki: Arc<Pki>,
    config: Table,
    env: BTreeMap<String, String>,
    /// What is mounted for the program alone, as a shell script.
    mount: Option<String>,
    run: Run,
    earlier: Vec<Event>,
    /// What its clients were answered.
    heard: Heard,
}

/// One start of the program.
struct Run {
    child: Child,
    events: watch::Receiver<Vec<Event>>,
    /// Held by who wants the log not to be read.
    reading: Arc<Mutex<()>>,
    https: Vec<SocketAddr>,
    http: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
}

/// How a proxy is to be; anything left out has the defaults of [`Proxy::builder`].
#[must_use = "nothing runs until `start`"]
pub struct Builder {
    pki: Arc<Pki>,
    config: Table,
    upstream: Table,
    more_upstreams: Vec<Table>,
    env: BTreeMap<String, String>,
    mount: Option<String>,
}

/// For as long as this is there, nobody reads a program's log. Only its reader waits, on a thread of its own.
pub struct Unread<'a>(#[expect(dead_code, reason = "held, not read")] MutexGuard<'a, ()>);

impl Proxy {
    /// A proxy for [`DOMAIN`] with a certificate of a test CA, that listens with and without TLS on
    /// 127.0.0.1 and lets anybody pull. It wants an upstream.
    pub fn builder() -> Builder {
        Builder {
            pki: Arc::new(Pki::new(NAMES)),
            config: Table::new(),
            upstream: Table::new(),
            more_upstreams: Vec::new(),
            env: BTreeMap::new(),
            mount: None,
        }
        .listen(["https://127.0.0.1:0", "http://127.0.0.1:0"])
        .set("server.domains", vec![DOMAIN])
        .set("server.admin", "127.0.0.1:0")
        .set("server.admin_socket", "admin.sock")
        .set("cache.max_size", "10GiB")
        .set("cache.min_free", "1MiB")
        .set("access.anonymous", "pull")
        .upstream_key("name", "prod")
    }

    /// The proxy in front of `simulator`, otherwise as [`Proxy::builder`] has it.
    pub fn before(simulator: &Simulator) -> Self {
        Self::builder().simulator(simulator).start()
    }

    /// The first TLS listener.
    pub fn https(&self) -> SocketAddr {
        *self.run.https.first().expect("a listener with https://")
    }

    /// The first plain listener.
    pub fn http(&self) -> SocketAddr {
        *self.run.http.first().expect("a listener with http://")
    }

    /// The admin listener.
    pub fn admin(&self) -> SocketAddr {
        self.run.admin.expect("an admin listener")
    }

    /// A client of the first plain listener.
    pub fn client(&self) -> Client {
        Client::plain(self.http()).heard_by(&self.heard)
    }

    /// A client of the first TLS listener that trusts its CA.
    pub fn tls_client(&self) -> Client {
        Client::tls(self.https(), &self.pki.ca()).heard_by(&self.heard)
    }

    /// The CA that signed the proxy's certificate, unless it made one of its own.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The folder of the configuration, which everything of this proxy lies below.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The folder of the cache, as the running proxy sees it.
    pub fn cache_dir(&self) -> PathBuf {
        let cache = self.dir.path().join("cache");
        if self.mount.is_none() {
            return cache;
        }
        let root = PathBuf::from(format!("/proc/{}/root", self.pid()));
        root.join(cache.strip_prefix("/").expect("an absolute path"))
    }

    /// The user file of [`Builder::users`].
    pub fn users_file(&self) -> PathBuf {
        self.pki.ca().with_file_name(USERS)
    }

    /// The folder of the local CA.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The socket through which its cache is tended.
    pub fn admin_socket(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    /// The program with another command, such as `cache stats`, with this proxy's configuration and
    /// environment, whether the proxy runs or not.
    pub fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-proxy"));
        command
            .args(arguments)
            .arg("--config")
            .arg(self.dir.path().join("config.toml"))
            .current_dir("/")
            .stdin(Stdio::null());
        Run::environment(&mut command, self.dir.path(), &self.env);
        command
    }

    /// Runs it to its end.
    pub fn run<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Ended {
        let output = self.command(arguments).output();
        Ended::from(output.expect("the program was built"))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.run.child.id()
    }

    /// Nobody reads its log until what is returned is dropped.
    pub fn leave_log_unread(&self) -> Unread<'_> {
        Unread(self.run.reading.lock().expect("no panic"))
    }

    /// How long it has had a processor, in all.
    pub fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        let stat = stat.expect("a running process");
        let (_, fields) = stat.rsplit_once(") ").expect("the name of the program");
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks: u64 = ticks
            .map(|ticks| ticks.parse::<u64>().expect("ticks"))
            .sum();
        // A hundred a second, whatever the kernel's own are (proc(5)).
        Duration::from_millis(10 * ticks)
    }

    /// Its anonymous memory, in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("a running process");
        let mut lines = status.lines();
        let kib = lines.find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
        let kib = kib.and_then(|kib| kib.trim().parse::<u64>().ok());
        kib.expect("RssAnon in KiB") * 1024
    }

    /// Asks it to end, as a service manager does.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Any signal.
    pub fn signal(&self, signal: Signal) {
        // Not yet waited for, so the id is still this process's.
        let pid = Pid::from_child(&self.run.child);
        let process = pidfd_open(pid, PidfdFlags::empty()).expect("a child not yet waited for");
        pidfd_send_signal(process, signal).expect("signal one's own child");
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.run.child, PATIENCE).expect("the proxy did not end in time")
    }

    /// Ends it at once, with no chance to write anything.
    pub fn kill9(&mut self) {
        self.run.child.kill().expect("a child may be killed");
        self.run
            .child
            .wait()
            .expect("a killed child can be waited for");
    }

    /// Kills it if it still runs and starts it again in the same directories, on new ports.
    pub fn restart(&mut self) {
        let _already_ended = self.run.child.kill();
        self.run
            .child
            .wait()
            .expect("a killed child can be waited for");
        self.earlier
            .extend(self.run.events.borrow().iter().cloned());
        self.run = Run::start(
            self.dir.path(),
            &self.config,
            &self.env,
            self.mount.as_deref(),
        );
    }

    /// Changes the configuration for the next [`Proxy::restart`] or [`Proxy::reload`].
    pub fn set(&mut self, key: &str, value: impl Into<Toml>) {
        set(&mut self.config, key, value.into());
        write_config(self.dir.path(), &self.config);
    }

    /// Removes `section.key` in the same way.
    pub fn unset(&mut self, key: &str) {
        unset(&mut self.config, key);
        write_config(self.dir.path(), &self.config);
    }

    /// The same as [`Proxy::set`] for all `[[access.rule]]` at once, each some lines of TOML.
    pub fn set_rules<'a>(&mut self, rules: impl IntoIterator<Item = &'a str>) {
        let tables = rules.into_iter().map(|lines| {
            let rule: Table = lines.parse().expect("lines of TOML");
            Toml::Table(rule)
        });
        self.set("access.rule", tables.collect::<Vec<_>>());
    }

    /// Changes the tables of a repeated section in the same way.
    pub fn edit(&mut self, section: &str, change: impl FnOnce(&mut Vec<Table>)) {
        let written = self.config.remove(section);
        let written = written.map_or_else(Vec::new, |value| value.try_into().expect("tables"));
        let mut tables: Vec<Table> = written;
        change(&mut tables);
        if !tables.is_empty() {
            self.config.insert(section.to_owned(), tables.into());
        }
        write_config(self.dir.path(), &self.config);
    }

    /// Has it read its configuration again; what it says of that.
    pub async fn reload(&self) -> Event {
        let is_answer =
            |event: &&Event| event.field("reload.what").as_deref() == Some("configuration");
        let before = self.run.events.borrow().iter().filter(is_answer).count();
        self.signal(Signal::HUP);
        let mut events = self.run.events.clone();
        let answered = events.wait_for(|all| all.iter().filter(is_answer).count() > before);
        let all = within("an answer to SIGHUP", answered).await;
        let all = all.expect("the proxy runs");
        all.iter().rfind(is_answer).expect("just found").clone()
    }

    /// The next [`Proxy::restart`] finds the folder of the cache read-only.
    pub fn make_cache_read_only(&mut self) {
        self.mount = Some(READ_ONLY.to_owned());
    }

    /// The next [`Proxy::restart`] finds what this script mounts; see [`Builder::mount`].
    pub fn mount(&mut self, script: &str) {
        self.mount = Some(script.to_owned());
    }

    /// From now on the running proxy finds the folder of the cache read-only. It was built with
    /// [`Builder::tmpfs`], so it alone is concerned.
    pub fn remount_read_only(&self) {
        let folder = self.dir.path().join("cache");
        let done = Command::new(program("nsenter"))
            .args(["--target", &self.pid().to_string(), "--mount"])
            .args(["/bin/sh", "-ec"])
            .arg(format!(r#"cd "$0"; {READ_ONLY}"#))
            .arg(folder)
            .status();
        assert!(done.expect("start nsenter").success());
    }

    /// Everything it said so far, earlier starts included.
    pub fn logs(&self) -> Vec<Event> {
        let now = self.run.events.borrow();
        self.earlier.iter().chain(now.iter()).cloned().collect()
    }

    /// Waits for an event of this start for which `condition` holds, and returns it.
    pub async fn log_until(&self, what: &str, condition: impl Fn(&Event) -> bool) -> Event {
        let mut events = self.run.events.clone();
        let found = events.wait_for(|all| all.iter().any(&condition));
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(Ok(all)) => all
                .iter()
                .find(|e| condition(e))
                .expect("just found")
                .clone(),
            _ => panic!("{what} was not logged:\n{}", told(&self.logs())),
        }
    }

    /// Every sample of `/metrics`, by name and labels as they are printed.
    pub async fn metrics(&self) -> Metrics {
        let answer = Client::operator(self.admin()).get("/metrics").await;
        assert_eq!(answer.status, 200, "/metrics: {}", answer.text());
        Metrics::parse(&answer.text())
    }

    /// Fails unless every blob on disk hashes to its name (invariant I2); returns their digests.
    pub fn assert_blobs_are_sound(&self) -> Vec<String> {
        store::assert_blobs_are_sound(&self.cache_dir())
    }

    /// Fails if one of `secrets` stands in anything the proxy said or wrote (invariant I4): its log, its
    /// answers, what it tells operators, its arguments, its directories.
    pub async fn assert_no_secrets(&self, secrets: &[String]) {
        let search = Search::new(secrets);
        self.assert_said_none_of(&search);
        // It may have ended.
        let arguments = fs::read(format!("/proc/{}/cmdline", self.pid()));
        search.assert_absent("its arguments", &arguments.unwrap_or_default());
        if let Some(admin) = self.run.admin {
            for page in PAGES {
                let told = Client::operator(admin).get(page).await;
                let told = format!("{:?}\n{}", told.head.headers, told.text());
                search.assert_absent(page, told.as_bytes());
            }
        }
        search.assert_absent_below(&self.cache_dir());
        search.assert_absent_below(&self.state_dir());
    }

    /// The log, and what [`Proxy::client`] and its like were answered.
    fn assert_said_none_of(&self, search: &Search) {
        search.assert_absent("the log", told(&self.logs()).as_bytes());
        search.assert_absent("an answer", &self.heard.all());
    }

    /// The secrets that its environment holds, in nearly every test.
    fn planted(&self) -> Vec<String> {
        let names = ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
        let values = names.into_iter().filter_map(|name| self.env.get(name));
        values.filter(|value| value.len() >= 8).cloned().collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _already_ended = self.run.child.kill();
        let _already_waited = self.run.child.wait();
        if std::thread::panicking() {
            eprintln!("the proxy said:\n{}", told(&self.logs()));
            return;
        }
        let planted = self.planted();
        if !planted.is_empty() {
            self.assert_said_none_of(&Search::new(&planted));
        }
    }
}

impl Builder {
    /// The CA, and the certificate that the proxy will have unless a key of `tls` says otherwise.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// Where to listen, each `http://` or `https://` with port 0.
    pub fn listen<'a>(self, listeners: impl IntoIterator<Item = &'a str>) -> Self {
        let listeners: Vec<Toml> = listeners.into_iter().map(Toml::from).collect();
        self.set("server.listen", listeners)
    }

    /// Sets `section.key` of the configuration.
    pub fn set(mut self, key: &str, value: impl Into<Toml>) -> Self {
        set(&mut self.config, key, value.into());
        self
    }

    /// Adds a table to the repeated section `[[section]]`.
    pub fn push(mut self, section: &str, table: Table) -> Self {
        let tables = self.config.entry(section);
        let tables = tables.or_insert_with(|| Toml::Array(Vec::new()));
        let tables = tables.as_array_mut().expect("a repeated section");
        tables.push(Toml::Table(table));
        self
    }

    /// Removes `section.key`, a default of this builder, from the configuration.
    pub fn unset(mut self, key: &str) -> Self {
        unset(&mut self.config, key);
        self
    }

    /// Sets a key of the upstream.
    pub fn upstream_key(mut self, key: &str, value: impl Into<Toml>) -> Self {
        self.upstream.insert(key.to_owned(), value.into());
        self
    }

    /// Adds an `[[upstream]]` after the first.
    pub fn another_upstream(mut self, upstream: Table) -> Self {
        self.more_upstreams.push(upstream);
        self
    }

    /// Adds a `[[route]]` of these keys.
    pub fn route<V: Into<Toml>>(
        mut self,
        keys: impl IntoIterator<Item = (&'static str, V)>,
    ) -> Self {
        let keys = keys.into_iter();
        let table = keys.map(|(key, value)| (key.to_owned(), value.into()));
        let routes = self.config.entry("route");
        if let Toml::Array(routes) = routes.or_insert_with(|| Toml::Array(Vec::new())) {
            routes.push(Toml::Table(table.collect()));
        }
        self
    }

    /// `simulator` is the upstream, and the proxy has its pull-only role.
    pub fn simulator(self, simulator: &Simulator) -> Self {
        self.upstream_key("registry", simulator.registry_host())
            .upstream_key("endpoint", simulator.endpoint())
            .env("AWS_ACCESS_KEY_ID", PULL_ONLY_ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", "secret-of-the-simulator")
            .env("AWS_ENDPOINT_URL_ECR", &simulator.api_endpoint())
            .env("AWS_ENDPOINT_URL_ECR_PUBLIC", &simulator.api_endpoint())
    }

    /// A registry that is not ECR is the upstream, without credentials.
    pub fn registry(self, host: &str, endpoint: &str) -> Self {
        self.upstream_key("registry", host)
            .upstream_key("endpoint", endpoint)
            .upstream_key("auth", "anonymous")
    }

    /// The registry is asked as the account that this service knows.
    pub fn account(self, tokens: &TokenService) -> Self {
        let file = tokens.password_file();
        self.upstream_key("auth", "basic")
            .upstream_key("username", ACCOUNT)
            .upstream_key("password_file", file.to_str().expect("a UTF-8 path"))
    }

    /// Only these users are let in: bcrypt lines of a user file.
    pub fn users(self, lines: &str) -> Self {
        let file = self.pki.ca().with_file_name(USERS);
        fs::write(&file, lines).expect("the directory is writable");
        self.unset("access.anonymous")
            .set("access.users", file.to_str().expect("a UTF-8 path"))
    }

    /// Adds an `[[access.rule]]` of these lines of TOML; what the builder allows by itself is gone.
    pub fn rule(mut self, lines: &str) -> Self {
        let rule: Table = lines.parse().expect("lines of TOML");
        self = self.unset("access.anonymous");
        let access = self.config.entry("access");
        let access = access.or_insert_with(|| Toml::Table(Table::new()));
        let rules = access.as_table_mut().expect("a section").entry("rule");
        let rules = rules.or_insert_with(|| Toml::Array(Vec::new()));
        let rules = rules.as_array_mut().expect("a repeated section");
        rules.push(Toml::Table(rule));
        self
    }

    fn own_certificate(self) -> Self {
        let path = |path: PathBuf| path.to_str().expect("a UTF-8 path").to_owned();
        let (certificate, key) = (path(self.pki.certificate()), path(self.pki.key()));
        self.set("tls.cert", certificate).set("tls.key", key)
    }

    /// Certificates of clients are taken that this CA has signed.
    pub fn client_ca(self, ca: &Path) -> Self {
        let ca = ca.to_str().expect("a UTF-8 path").to_owned();
        self.own_certificate().set("tls.client_ca", ca)
    }

    /// No certificate is configured: the proxy makes a local CA.
    pub fn local_ca(mut self) -> Self {
        self.config
            .insert("tls".to_owned(), Toml::Table(Table::new()));
        self
    }

    /// The configured certificate ends then; see [`Pki::ending`].
    pub fn certificate_until(mut self, end: SystemTime) -> Self {
        self.pki = Arc::new(Pki::ending(NAMES, end));
        self
    }

    /// A variable of its environment, which holds no other than the builder's.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The cache is on a tmpfs of its own, made anew with each start, with these mount options.
    pub fn tmpfs(self, options: &str) -> Self {
        self.mount(&format!("mount -t tmpfs -o mode=0700,{options} tmpfs ."))
    }

    /// A shell script mounts something over the cache, its current folder, for the proxy alone.
    pub fn mount(mut self, script: &str) -> Self {
        self.mount = Some(script.to_owned());
        self
    }

    /// Starts it and waits until it listens.
    pub fn start(mut self) -> Proxy {
        let dir = TempDir::new().expect("a temporary directory");
        if !self.config.contains_key("tls") {
            self = self.own_certificate();
        }
        // Relative, so that configurations of the tests show they count from the file.
        self = self
            .set("server.state_dir", "state")
            .set("cache.dir", "cache");
        let mut upstreams = vec![Toml::Table(self.upstream)];
        upstreams.extend(self.more_upstreams.into_iter().map(Toml::Table));
        self.config
            .insert("upstream".to_owned(), Toml::Array(upstreams));
        write_config(dir.path(), &self.config);
        let run = Run::start(dir.path(), &self.config, &self.env, self.mount.as_deref());
        Proxy {
            dir,
            pki: self.pki,
            config: self.config,
            env: self.env,
            mount: self.mount,
            run,
            earlier: Vec::new(),
            heard: Heard::default(),
        }
    }
}

impl Run {
    fn start(
        dir: &Path,
        config: &Table,
        env: &BTreeMap<String, String>,
        mount: Option<&str>,
    ) -> Self {
        let executable = env!("CARGO_BIN_EXE_ecr-proxy");
        let mut command = match mount {
            None => Command::new(executable),
            Some(script) => with_mount(&dir.join("cache"), script, executable),
        };
        command
            .args(["serve", "--log-format", "json", "--config"])
            .arg(dir.join("config.toml"))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Self::environment(&mut command, dir, env);
        let mut child = command.spawn().expect("the program was built");
        let stderr = BufReader::new(child.stderr.take().expect("asked for a pipe"));
        let (sender, events) = watch::channel(Vec::new());
        let reading = Arc::<Mutex<()>>::default();
        let may_read = Arc::clone(&reading);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                drop(may_read.lock().expect("no panic"));
                sender.send_modify(|all: &mut Vec<Event>| all.push(Event::parse(&line)));
            }
        });
        let mut run = Self {
            child,
            events,
            reading,
            https: Vec::new(),
            http: Vec::new(),
            admin: None,
        };
        run.learn_addresses(expected_listeners(config));
        run
    }

    /// Nothing of the test's own environment reaches the program.
    fn environment(command: &mut Command, dir: &Path, env: &BTreeMap<String, String>) {
        command
            .env_clear()
            .env("HOME", dir)
            .env("TMPDIR", dir)
            .env("AWS_CONFIG_FILE", dir.join("no-aws-config"))
            .env(
                "AWS_SHARED_CREDENTIALS_FILE",
                dir.join("no-aws-credentials"),
            )
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(env);
    }

    /// Reads where it listens from its start-up events, of which there are to be `expected`.
    fn learn_addresses(&mut self, expected: usize) {
        let started = Instant::now();
        loop {
            (self.https, self.http, self.admin) = (Vec::new(), Vec::new(), None);
            for event in self.events.borrow().iter() {
                let Some(at) = event.field("listen.addr") else {
                    continue;
                };
                let (scheme, address) = at.split_once("://").unwrap_or(("http", &at));
                let address = address.parse().expect("a socket address in listen.addr");
                match (event.message().as_str(), scheme) {
                    ("listening", "https") => self.https.push(address),
                    ("listening", _) => self.http.push(address),
                    ("admin listening", _) => self.admin = Some(address),
                    _ => {}
                }
            }
            if self.https.len() + self.http.len() + usize::from(self.admin.is_some()) == expected {
                return;
            }
            let left = PATIENCE.saturating_sub(started.elapsed());
            if let Some(status) = wait(&mut self.child, Duration::from_millis(5).min(left)) {
                panic!(
                    "the proxy ended at start, {status}:\n{}",
                    told(&self.events.borrow())
                );
            }
            if left.is_zero() {
                let _already_ended = self.child.kill();
                let _already_waited = self.child.wait();
                panic!(
                    "the proxy does not listen:\n{}",
                    told(&self.events.borrow())
                );
            }
        }
    }
}

/// The program in a mount namespace where `script` has mounted something, for which `folder` is the
/// current one; `exec` keeps the process id.
fn with_mount(folder: &Path, script: &str, executable: &str) -> Command {
    fs::create_dir_all(folder).expect("the directory is writable");
    let mut command = Command::new(program("unshare"));
    command
        .args(["--mount", "--propagation", "private", "/bin/sh", "-ec"])
        .arg(format!(
            r#"PATH=/usr/sbin:/usr/bin:/sbin:/bin; cd "$0"; {script}; cd /; exec "$@""#
        ))
        .arg(folder)
        .arg(executable);
    command
}

/// How many listeners a configuration asks for, the admin listener included.
fn expected_listeners(config: &Table) -> usize {
    let server = &config["server"];
    let public = server["listen"].as_array().map_or(0, Vec::len);
    public + usize::from(server["admin"].as_str() != Some("off"))
}

/// Waits for `child` to end, `patience` at most.
fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())
        .expect("a child not yet waited for");
    let timeout = Timespec::try_from(patience).expect("a short time");
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    let ready = poll(&mut fds, Some(&timeout)).expect("poll a process");
    (ready > 0).then(|| child.wait().expect("an ended child can be waited for"))
}

fn set(config: &mut Table, key: &str, value: Toml) {
    let (section, key) = key.split_once('.').expect("section.key");
    let section = config
        .entry(section)
        .or_insert_with(|| Toml::Table(Table::new()));
    let Toml::Table(section) = section else {
        panic!("{key}: not a section")
    };
    section.insert(key.to_owned(), value);
}

fn unset(config: &mut Table, key: &str) {
    let (section, key) = key.split_once('.').expect("section.key");
    if let Some(Toml::Table(section)) = config.get_mut(section) {
        section.remove(key);
    }
}

fn write_config(dir: &Path, config: &Table) {
    fs::write(dir.join("config.toml"), config.to_string()).expect("the directory is writable");
}

/// What a command came to.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ended {
    /// What a command that was started comes to, of which what was piped is known.
    pub fn of(mut child: Child) -> Self {
        wait(&mut child, PATIENCE).expect("the command did not end in time");
        Self::from(child.wait_with_output().expect("it has ended"))
    }

    /// Fails the test unless it ended with 0.
    pub fn fine(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Every line of its output as JSON.
    pub fn json_lines(&self) -> Vec<Value> {
        let lines = self.stdout.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}: {self:?}")))
            .collect()
    }
}

impl From<std::process::Output> for Ended {
    fn from(output: std::process::Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn told(events: &[Event]) -> String {
    events
        .iter()
        .map(|event| format!("  {}\n", event.line))
        .collect()
}

/// One line of the log.
#[derive(Debug, Clone)]
pub struct Event {
    /// As it was written.
    pub line: String,
    value: Value,
}

impl Event {
    fn parse(line: &str) -> Self {
        Self {
            line: line.to_owned(),
            value: serde_json::from_str(line).unwrap_or_default(),
        }
    }

    /// The constant text of the event; a line that is no JSON has none.
    pub fn message(&self) -> String {
        self.field("message").unwrap_or_default()
    }

    /// `INFO`, `WARN`, …
    pub fn level(&self) -> String {
        self.field("level").unwrap_or_default()
    }

    /// A field by its dotted name, at the top or under `fields`; text without its quotes.
    pub fn field(&self, name: &str) -> Option<String> {
        let value = self
            .value
            .get(name)
            .or_else(|| self.value.get("fields")?.get(name))?;
        Some(
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned),
        )
    }
}

/// The samples of a metrics page.
#[derive(Debug, Clone)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    fn parse(page: &str) -> Self {
        let samples = page.lines().filter(|line| !line.starts_with('#'));
        Self(
            samples
                .filter_map(|line| {
                    let (name, value) = line.rsplit_once(' ')?;
                    Some((name.to_owned(), value.parse().ok()?))
                })
                .collect(),
        )
    }

    /// The sum of all samples of `name` whose labels contain every one of `labels`, each as
    /// `key="value"`; 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.0
            .iter()
            .filter(|(sample, _)| {
                let (sample_name, rest) = sample.split_once('{').unwrap_or((sample, ""));
                sample_name == name && labels.iter().all(|label| rest.contains(label))
            })
            .map(|(_, value)| value)
            .sum()
    }

    /// Whether there is a sample of `name`.
    pub fn has(&self, name: &str) -> bool {
        self.0
            .keys()
            .any(|sample| sample.split('{').next() == Some(name))
    }
}
