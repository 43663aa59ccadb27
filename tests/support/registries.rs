//! Several registries behind one proxy, for real clients: a Docker Hub and another registry, each a
//! docker-registry of Debian, and an ECR. All three are nowhere for the clients; the proxy has two names,
//! one of them Docker Hub's for anybody.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_proxy::simulator::{Listener, Outage, Simulator};
use toml::Table;

use super::image::{credentials, spec_saying};
use super::pki::Leaf;
use super::real::DockerRegistry;
use super::users::user_line;
use super::{DOMAIN, Pki, Proxy, Sandbox};

/// The proxy's name that is Docker Hub's.
pub const HUB: &str = "hub.mydomain.test";
/// The registry that is neither ECR nor Docker Hub.
pub const OTHER: &str = "registry.upstream.test";
/// The tag of every image.
pub const TAG: &str = "v1";
/// A user who may pull and push everything at [`DOMAIN`].
pub const USER: &str = "ci";
/// His password.
pub const PASSWORD: &str = "open-sesame";
/// Who has a client certificate of this name may pull there.
pub const NODE: &str = "node-7";

/// See the module.
pub struct Registries {
    hub: DockerRegistry,
    other: DockerRegistry,
    ecr: Simulator,
    clients: Pki,
    /// The proxy before all three.
    pub proxy: Proxy,
    /// Where the clients live.
    pub sandbox: Sandbox,
}

impl Registries {
    /// `busybox` and `team/app` on Docker Hub, `team/app` on the other two, each saying where it is from.
    pub async fn start() -> Self {
        let sandbox = Sandbox::new();
        let ecr = Simulator::builder().start().await.expect("a simulator");
        ecr.create_repository("team/app");
        ecr.push_image("team/app", TAG, spec_saying("from ECR"));
        let (hub, other) = (DockerRegistry::start(), DockerRegistry::start());
        let maker = Simulator::builder().start().await.expect("a simulator");
        for (registry, repository, says) in [
            (&hub, "library/busybox", "busybox from Docker Hub"),
            (&hub, "team/app", "from Docker Hub"),
            (&other, "team/app", "from the other"),
        ] {
            maker.push_image(repository, TAG, spec_saying(says));
            copy(&sandbox, &maker, registry, repository);
        }
        maker.shutdown().await;
        let nowhere = format!(
            "127.0.0.1 localhost\n::1 localhost {DOMAIN} {HUB} docker.io registry-1.docker.io \
             index.docker.io auth.docker.io {OTHER} {}\n",
            ecr.registry_host()
        );
        sandbox.write("/etc/hosts".as_ref(), nowhere);
        let clients = Pki::new(["unused.test"]);
        let another = |name: &str, registry: &str, at: &DockerRegistry| {
            let endpoint = at.endpoint();
            let keys = [
                ("name", name),
                ("registry", registry),
                ("endpoint", &endpoint),
                ("auth", "anonymous"),
            ];
            let keys = keys.map(|(key, value)| (key.to_owned(), value.into()));
            keys.into_iter().collect::<Table>()
        };
        let below = |prefix: &'static str, upstream: &'static str| {
            let pattern = match prefix {
                "hub" => "hub/**",
                _ => "other/**",
            };
            [
                ("repository", pattern),
                ("upstream", upstream),
                ("strip_prefix", prefix),
            ]
        };
        let proxy = Proxy::builder()
            .simulator(&ecr)
            .another_upstream(another("hub", "docker.io", &hub))
            .another_upstream(another("other", OTHER, &other))
            .set("server.domains", vec![DOMAIN, HUB])
            .listen(["https://[::1]:0"])
            .users(&user_line(USER, PASSWORD))
            .local_ca()
            .set(
                "tls.client_ca",
                clients.ca().to_str().expect("a UTF-8 path"),
            )
            .rule(&format!(
                "users = ['@anonymous']\ndomains = ['{HUB}']\nupstreams = ['hub']\nactions = ['pull']"
            ))
            .rule(&format!(
                "users = ['{USER}']\ndomains = ['{DOMAIN}']\nactions = ['pull', 'push']"
            ))
            .rule(&format!(
                "users = ['{NODE}']\ndomains = ['{DOMAIN}']\nactions = ['pull']"
            ))
            .route([("domain", HUB), ("upstream", "hub")])
            .route(below("hub", "hub"))
            .route(below("other", "other"))
            .route([("upstream", "prod")])
            .start();
        Self {
            hub,
            other,
            ecr,
            clients,
            proxy,
            sandbox,
        }
    }

    /// Does something with all of them there, and once more with none: what is cached serves it then, and is sound.
    pub async fn with_and_without(&mut self, pull: impl Fn(&Self)) {
        pull(self);
        self.stop().await;
        pull(self);
        self.proxy.assert_blobs_are_sound();
    }

    /// The ECR's name.
    pub fn ecr(&self) -> String {
        self.ecr.registry_host()
    }

    /// One of the proxy's names, as clients write it.
    pub fn host(&self, name: &str) -> String {
        format!("{name}:{}", self.proxy.https().port())
    }

    /// The certificate of [`NODE`].
    pub fn node(&self) -> Leaf {
        self.clients.issue_client(NODE, &[])
    }

    /// The user and his password, as HTTP has them.
    pub fn basic(&self) -> String {
        STANDARD.encode(format!("{USER}:{PASSWORD}"))
    }

    /// What `client-config` prints for the client.
    pub fn printed(&self, client: &str) -> String {
        let listen = format!("https://{}", self.proxy.https());
        let words = ["client-config", client, "--listen", &listen];
        self.proxy.run(words).fine().stdout
    }

    /// Runs it as root of the sandbox, after these lines of shell, and what it says of logging in.
    pub fn set_up(&self, client: &str, before: &str) {
        let mut script = format!("set -eu\nsudo() {{ \"$@\"; }}\n{before}\n");
        for line in self.printed(client).lines() {
            let command = line.strip_prefix("#   ");
            let login = command.filter(|command| command.contains(" login "));
            script += &format!("{}\n", login.unwrap_or(line));
        }
        self.sandbox.must("sh", ["-c", &script]);
    }

    /// From now on none of the three can be reached.
    pub async fn stop(&mut self) {
        self.hub.stop();
        self.other.stop();
        self.ecr.outage(Outage::Refused).await;
    }
}

/// Puts an image of the simulator's into the registry, all of it.
pub fn copy(sandbox: &Sandbox, from: &Simulator, to: &DockerRegistry, repository: &str) {
    copy_as(sandbox, from, to, repository, &["--dest-no-creds"]);
}

/// The same, as who `login` says.
pub fn copy_as(
    sandbox: &Sandbox,
    from: &Simulator,
    to: &DockerRegistry,
    repository: &str,
    login: &[&str],
) {
    let image = |at: std::net::SocketAddr| format!("docker://{at}/{repository}:{TAG}");
    let words = [
        "copy",
        "--all",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        "--src-creds",
        &credentials(from),
        &image(from.address(Listener::Registry)),
        &image(to.address()),
    ];
    let words = words.iter().chain(login).copied();
    sandbox.must("skopeo", words);
}
