//! What is printed for docker, containerd, podman and BuildKit: trust, mirrors, login, a pull.

use super::mirrors::{Mirror, Mirrors};
use crate::cli::clients::{
    self, Client, ClientHost, anonymous_networks, here_document, hosts_toml, new_file, quoted,
};
use crate::config::{Config, Tls};

const CONTAINERD_CONFIG_PATH: &str = "\
# containerd reads that folder where /etc/containerd/config.toml has this (then restart it once):
#   version = 3:  [plugins.'io.containerd.cri.v1.images'.registry]
#                   config_path = '/etc/containerd/certs.d'
#   version = 2:  [plugins.\"io.containerd.grpc.v1.cri\".registry]
#                   config_path = \"/etc/containerd/certs.d\"
";

/// What is said of a `[[route]]` with `ns = "*"` where a client has no mirror but for registries by name.
const NO_MIRROR_OF_ANY: &str = "\
# Images of other registries, which a [[route]] with ns = \"*\" leads as well, come from here where the registry is
# named by the ns of a [[route]] before that one.
";

/// What is said of it where a client has. It stands in comments: a registry's images would silently come from an
/// upstream that has others of the same name.
pub(super) const MIRROR_OF_ANY: &str = "\
# Images of all registries that are not named, localhost's and private ones among them, by the [[route]] with
# ns = \"*\": for where it leads to what has them all by their names. Then take the marks from these lines:
";

/// How a sentence about a client certificate begins.
pub(super) const INSTEAD_OF_LOGIN: &str = "Instead of a login";
/// The same where a line is commented out that names it.
pub(super) const OR_UNCOMMENTED: &str =
    "Instead of a login, where the lines about it below are uncommented,";

/// How a client comes to trust the proxy's certificate.
pub(super) enum Trust {
    /// By the CA's certificate, which the script puts into the client's folder.
    Ours,
    /// Most likely by itself: the certificate is one that the operator brought.
    Theirs,
    /// There is no TLS.
    Plain,
}

/// A script in the making.
pub(super) struct Script<'a> {
    pub(super) config: &'a Config,
    pub(super) hosts: &'a [ClientHost],
    pub(super) mirrors: &'a Mirrors<'a>,
    ca_pem: Option<&'a str>,
}

impl<'a> Script<'a> {
    pub(super) fn new(
        config: &'a Config,
        hosts: &'a [ClientHost],
        mirrors: &'a Mirrors<'a>,
        ca_pem: Option<&'a str>,
    ) -> Self {
        Self {
            config,
            hosts,
            mirrors,
            ca_pem,
        }
    }

    pub(super) fn docker(&self) -> String {
        let mut text = "# docker and this proxy\n".to_owned();
        for host in self.hosts {
            text.push_str(&self.docker_trust(host));
            text += &self.certificate(host, &Client::Docker.folder(host), INSTEAD_OF_LOGIN);
        }
        if self.hosts.iter().any(|host| host.tls) {
            text += "\n# dockerd reads these folders at each pull, its BuildKit when dockerd starts:\n\
                     #   sudo systemctl restart docker\n";
        }
        text.push_str(&self.logins("docker login"));
        let mirrors = self.hosts_files(Client::Docker);
        if !mirrors.is_empty() {
            text += "\n# docker 28 and later, with containerd's image store, reads a hosts.toml there, too, and so has any\n\
                     # registry's images from here; others pass it over. Of docker.io alone, and for any docker:\n\
                     # client-config docker-mirror.\n";
        }
        text + &mirrors + &self.pull("docker pull")
    }

    pub(super) fn docker_mirror(&self, hosts: &[ClientHost]) -> String {
        let mut text = "# dockerd, which gets images of docker.io from this proxy\n".to_owned();
        for host in hosts {
            text.push_str(&self.docker_trust(host));
            text.push_str(&self.no_login(host));
            let instead = "dockerd has no password for a mirror, but may have";
            text += &self.certificate(host, &Client::Docker.folder(host), instead);
        }
        let urls: Vec<String> = hosts
            .iter()
            .map(|host| format!("\"{}/\"", host.url()))
            .collect();
        let json = format!("{{\n  \"registry-mirrors\": [{}]\n}}\n", urls.join(", "));
        let file = new_file("/etc/docker/daemon.json", &json);
        text + "\n# Ask it first. Where there is a daemon.json already, this leaves it as it is: add the key to it.\n\
               sudo mkdir -p /etc/docker\n"
            + &file
            + "# Then restart docker. Names stay as they are:\n\
               #   sudo systemctl restart docker\n\
               #   docker pull alpine\n"
    }

    pub(super) fn containerd(&self) -> String {
        let first = self.hosts.first();
        // ctr takes no notice of nerdctl's login.
        let user = match first.is_some_and(|host| self.asks(host)) && self.has_passwords() {
            true => " --user NAME",
            false => "",
        };
        "# containerd and this proxy\n".to_owned()
            + &self.containerd_hosts()
            + &self.logins("nerdctl login")
            + &self.pull(&format!(
                "ctr images pull --hosts-dir /etc/containerd/certs.d{user}"
            ))
    }

    pub(super) fn podman(&self) -> String {
        let mut text = "# podman, CRI-O, buildah, skopeo and this proxy\n".to_owned();
        let mut conf = String::new();
        for host in self.hosts {
            let folder = Client::Podman.folder(host);
            text.push_str(&self.trust(host, &folder));
            text += &self.certificate(host, &folder, INSTEAD_OF_LOGIN);
            if !host.tls {
                conf += &format!(
                    "[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\ninsecure = true\n\n"
                );
            }
        }
        let mut missing = String::new();
        for mirror in self.mirrors.by_registry() {
            let registry = &mirror.registry;
            if mirror.is_of_any() {
                missing += "# Not of other registries, which a [[route]] with ns = \"*\" leads: podman tells no proxy which\n\
                            # registry an image is of.\n";
                continue;
            }
            let Some(location) = self.mirrors.by_name(&mirror) else {
                missing += &format!(
                    "# Not of {registry}: podman tells no proxy which registry an image is of, and no [[route]]\n\
                     # without ns leads there.\n"
                );
                continue;
            };
            let insecure = if mirror.host.tls {
                ""
            } else {
                "insecure = true\n"
            };
            conf += &format!(
                "[[registry]]\nprefix = \"{registry}\"\nlocation = \"{registry}\"\n\n\
                 [[registry.mirror]]\nlocation = \"{location}\"\n{insecure}\n"
            );
        }
        let is_hub_here = self.mirrors.by_registry().iter().any(Mirror::is_docker_hub);
        if !conf.is_empty() && is_hub_here {
            // Before the first table, where it is a key of none.
            conf = format!(
                "# Names without a registry, as in FROM alpine, are Docker Hub's where some file says so:\n\
                 # unqualified-search-registries = [\"docker.io\"]\n\n{conf}"
            );
        }
        if !conf.is_empty() {
            text.push_str(
                "\n# Images by their registries' names come from here, too. With mirror-by-digest-only = true in a\n\
                 # [[registry]], or pull-from-mirror = \"digest-only\" in its mirror, only what is named by digest does.\n",
            );
            text.push_str("sudo mkdir -p /etc/containers/registries.conf.d\n");
            let path = "/etc/containers/registries.conf.d/ecr-proxy.conf";
            text.push_str(&here_document(path, conf.trim_end()));
        }
        text + &missing + &self.logins("podman login") + &self.pull("podman pull")
    }

    pub(super) fn buildkit(&self) -> String {
        let mut text = "# BuildKit and this proxy\n".to_owned();
        let mut toml = String::new();
        for mirror in self.mirrors.by_registry() {
            if mirror.is_of_any() {
                toml += NO_MIRROR_OF_ANY;
                continue;
            }
            toml += &mirror.remarks();
            toml += &format!(
                "[registry.\"{}\"]\n  mirrors = [\"{}\"]\n",
                mirror.registry, mirror.host
            );
        }
        for host in self.hosts {
            let folder = format!("/etc/buildkit/certs.d/{host}");
            text.push_str(&self.trust(host, &folder));
            text += &self.certificate(host, &folder, OR_UNCOMMENTED);
            toml += &format!("[registry.\"{host}\"]\n");
            toml += &match self.kind_of_trust(host) {
                Trust::Ours => format!("  ca = [\"{folder}/ca.crt\"]\n"),
                Trust::Theirs => format!("  # ca = [\"{folder}/ca.crt\"]\n"),
                Trust::Plain => "  http = true\n".to_owned(),
            };
            if self.takes_certificate(host) {
                toml += &format!(
                    "  # [[registry.\"{host}\".keypair]]\n  #   cert = \"{folder}/client.cert\"\n  \
                     #   key = \"{folder}/client.key\"\n"
                );
            }
        }
        let path = "/etc/buildkit/buildkitd.toml";
        text.push_str(
            "\n# Where there is a buildkitd.toml already, this leaves it as it is: add the tables to it.\n\
             sudo mkdir -p /etc/buildkit\n",
        );
        text.push_str(&new_file(path, &toml));
        text.push_str(&format!(
            "# Then restart buildkitd; docker buildx takes the file, and the CA with it, into a builder of its own:\n\
             #   docker buildx create --use --buildkitd-config {path}\n"
        ));
        text + &self.logins("docker login") + &self.used_by("FROM ")
    }

    /// containerd's trust and mirrors: a `hosts.toml` for the proxy itself, and for each registry.
    pub(super) fn containerd_hosts(&self) -> String {
        let mut text = String::new();
        for host in self.hosts {
            let folder = Client::Containerd.folder(host);
            text.push_str(&self.trust(host, &folder));
            text += &self.certificate(host, &folder, OR_UNCOMMENTED);
            text.push_str(&format!("sudo mkdir -p {}\n", quoted(&folder)));
            let more = self.host_keys(host, &folder);
            text.push_str(&hosts_toml(&folder, Some(&host.url()), host, &more));
        }
        text + &self.hosts_files(Client::Containerd) + CONTAINERD_CONFIG_PATH
    }

    /// A `hosts.toml` for each registry, in `client`'s folder.
    fn hosts_files(&self, client: Client) -> String {
        let mut text = String::new();
        for mirror in self.mirrors.by_registry() {
            if mirror.is_of_any() {
                text += &match client {
                    Client::Containerd => self.default_hosts(&mirror),
                    // It would pass over insecure-registries and registry-mirrors then.
                    Client::Docker | Client::Podman => format!("\n{NO_MIRROR_OF_ANY}"),
                };
                continue;
            }
            let registry = &mirror.registry;
            text += &format!(
                "\n# Images of {registry} by their own names; what is not had here is asked of it.\n{}{}",
                mirror.remarks(),
                self.hosts_file(client, &mirror, registry)
            );
        }
        text
    }

    /// containerd's file for registries that have none of their own, as comments.
    fn default_hosts(&self, mirror: &Mirror) -> String {
        let lines = self.hosts_file(Client::Containerd, mirror, "_default");
        let lines = lines.lines().map(|line| format!("#   {line}\n"));
        let lines: String = lines.collect();
        format!("\n{MIRROR_OF_ANY}{}{lines}", mirror.remarks())
    }

    fn hosts_file(&self, client: Client, mirror: &Mirror, folder: &str) -> String {
        let host = &mirror.host;
        let folder = client.folder(&folder);
        let mut more = self.host_keys(host, &client.folder(host));
        if self.asks(host) && self.has_passwords() {
            more += "  # There is no login for a mirror but what is written here:\n  \
                 # [host.\"HOST\".header]\n  \
                 #   authorization = [\"Basic BASE64_OF_NAME:PASSWORD\"]\n"
                .replace("HOST", &host.url())
                .as_str();
        }
        let file = hosts_toml(&folder, mirror.server().as_deref(), host, &more);
        format!("sudo mkdir -p {}\n{file}", quoted(&folder))
    }

    /// What a `hosts.toml` says of the host besides where it is: whom to trust, and who one is.
    fn host_keys(&self, host: &ClientHost, folder: &str) -> String {
        let mut keys = match self.kind_of_trust(host) {
            Trust::Ours => format!("  ca = \"{folder}/ca.crt\"\n"),
            Trust::Theirs => format!("  # ca = \"{folder}/ca.crt\"\n"),
            Trust::Plain => String::new(),
        };
        if self.takes_certificate(host) {
            keys +=
                &format!("  # client = [[\"{folder}/client.cert\", \"{folder}/client.key\"]]\n");
        }
        keys
    }

    fn docker_trust(&self, host: &ClientHost) -> String {
        if host.tls {
            return self.trust(host, &Client::Docker.folder(host));
        }
        format!(
            "\n# {host} is plain HTTP. For 127.0.0.0/8 and localhost docker needs nothing; any other\n\
             # name goes into /etc/docker/daemon.json (then restart docker), unless something in\n\
             # front of the proxy speaks TLS:\n\
             #   {{ \"insecure-registries\": [\"{host}\"] }}\n"
        )
    }

    pub(super) fn kind_of_trust(&self, host: &ClientHost) -> Trust {
        match (&self.config.tls, host.tls) {
            (_, false) => Trust::Plain,
            (Tls::LocalCa, true) => Trust::Ours,
            // Without any, it is that of something before us.
            (Tls::Files(_) | Tls::Acme { .. } | Tls::Off, true) => Trust::Theirs,
        }
    }

    /// The lines that put the CA's certificate into `folder`, or tell when it has to be there.
    pub(super) fn trust(&self, host: &ClientHost, folder: &str) -> String {
        let quoted = quoted(folder);
        let from = match (&self.config.tls, host.tls) {
            (_, false) => return format!("\n# {host} is plain HTTP.\n"),
            (Tls::LocalCa, true) => {
                let put = match self.ca_pem {
                    Some(pem) => here_document(&format!("{folder}/ca.crt"), pem),
                    None => format!(
                        "# ca.crt is what `ecr-proxy ca print` prints on the proxy's host, as its user.\n\
                         sudo cp ca.crt {quoted}/ca.crt\n"
                    ),
                };
                return format!("\n# Trust it as {host}.\nsudo mkdir -p {quoted}\n{put}");
            }
            (Tls::Files(pairs), true) => {
                let certs = pairs.iter().map(|pair| pair.cert.display().to_string());
                let certs: Vec<String> = certs.collect();
                format!("is your own, {}", certs.join(", "))
            }
            (Tls::Acme { options, .. }, true) => format!("comes from {}", options.directory),
            (Tls::Off, true) => "is that of what speaks TLS before the proxy".to_owned(),
        };
        format!(
            "\n# Trust it as {host}.\n# The certificate {from}. If its CA is not one that this host\n\
             # trusts already, put the CA's certificate here, and wherever a `ca` line is commented out below:\n\
             #   sudo mkdir -p {quoted} && sudo cp ca.crt {quoted}/ca.crt\n"
        )
    }

    /// Whether clients have to say who they are at `host`.
    pub(super) fn asks(&self, host: &ClientHost) -> bool {
        !clients::admits_anonymous(self.config, host)
    }

    /// Whether anybody logs in by a password, or will: where there is no other way to be known yet.
    pub(super) fn has_passwords(&self) -> bool {
        let access = &self.config.access;
        let certificates = &self.config.client_certificates;
        access.aws_tokens || access.users_file.is_some() || certificates.is_none()
    }

    /// Whether a client certificate stands for a login at `host`.
    pub(super) fn takes_certificate(&self, host: &ClientHost) -> bool {
        self.config.client_certificates.is_some() && host.tls && self.asks(host)
    }

    /// Where in `folder` the client's certificate goes, if it may have one. `way` begins the sentence.
    pub(super) fn certificate(&self, host: &ClientHost, folder: &str, way: &str) -> String {
        let Some(clients) = &self.config.client_certificates else {
            return String::new();
        };
        if !self.takes_certificate(host) {
            return String::new();
        }
        let (ca, user) = (clients.ca.display(), clients.user);
        let folder = quoted(folder);
        format!(
            "\n# {way}\n# a certificate with the name of a user as its {user}, signed by a CA of {ca}:\n\
             #   sudo mkdir -p {folder} && sudo cp client.cert client.key {folder}/\n"
        )
    }

    fn logins(&self, command: &str) -> String {
        let each = self.hosts.iter().map(|host| self.login(host, command));
        each.collect()
    }

    /// How to log in, as comments: what asks for a password would be answered by the next lines of what is pasted.
    pub(super) fn login(&self, host: &ClientHost, command: &str) -> String {
        if clients::admits_anonymous(self.config, host) {
            return self.no_login(host);
        }
        if !self.has_passwords() {
            return String::new();
        }
        let host = quoted(&host.to_string());
        let mut text = String::new();
        if self.config.access.aws_tokens {
            text += &format!(
                "\n# Then log in with an ECR token of your own, which lives for 12 hours:\n\
                 #   aws ecr get-login-password | {command} -u AWS --password-stdin {host}\n"
            );
            if self.config.access.users_file.is_none() {
                return text;
            }
        }
        text + &format!(
            "\n# Then log in once; the password does not expire:\n#   {command} {host}\n"
        )
    }

    pub(super) fn no_login(&self, host: &ClientHost) -> String {
        match anonymous_networks(self.config, host).as_deref() {
            None => String::new(),
            Some([]) => format!("\n# No login is needed at {host}.\n"),
            Some(networks) => {
                format!(
                    "\n# No login is needed at {host} from: {}.\n",
                    networks.join(", ")
                )
            }
        }
    }

    /// What to say where nothing renews a login.
    pub(super) fn short_lived_tokens(&self) -> &'static str {
        match self.config.access.aws_tokens && self.config.access.users_file.is_none() {
            true => {
                "\n# The only logins here are ECR tokens, which live for 12 hours; users of access.users have\n\
                 # passwords that stay.\n"
            }
            false => "",
        }
    }

    fn pull(&self, command: &str) -> String {
        self.used_by(&format!("{command} "))
    }

    pub(super) fn used_by(&self, word: &str) -> String {
        let Some(host) = self.hosts.first() else {
            return String::new();
        };
        format!(
            "\n# Pull by the proxy's own name, with the repository as the proxy's routes have it:\n\
             #   {word}{host}/REPOSITORY:TAG\n"
        )
    }
}

impl Mirror {
    /// What of the registry is not to be had so, as comments.
    pub(super) fn remarks(&self) -> String {
        let only = self
            .only
            .iter()
            .map(|route| format!("# Only by [[route]] {route}.\n"));
        let elsewhere = self.elsewhere.iter();
        let elsewhere = elsewhere.map(|route| {
            format!("# But what [[route]] {route} is about comes from there, whatever registry it is of.\n")
        });
        only.chain(elsewhere).collect()
    }
}
