//! What is printed for each client: trust, mirrors, login, a pull.

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

/// How a client comes to trust the proxy's certificate.
enum Trust {
    /// By the CA's certificate, which the script puts into the client's folder.
    Ours,
    /// Most likely by itself: the certificate is one that the operator brought.
    Theirs,
    /// There is no TLS.
    Plain,
}

/// A script in the making.
pub(super) struct Script<'a> {
    config: &'a Config,
    hosts: &'a [ClientHost],
    mirrors: &'a Mirrors<'a>,
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
        }
        text.push_str(&self.logins("docker login"));
        text + &self.pull("docker pull")
    }

    pub(super) fn docker_mirror(&self, hosts: &[ClientHost]) -> String {
        let mut text = "# dockerd, which gets images of docker.io from this proxy\n".to_owned();
        for host in hosts {
            text.push_str(&self.docker_trust(host));
            text.push_str(&self.no_login(host));
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
        "# containerd and this proxy\n".to_owned()
            + &self.containerd_hosts()
            + &self.logins("nerdctl login")
            + &self.pull("ctr images pull --hosts-dir /etc/containerd/certs.d")
    }

    pub(super) fn podman(&self) -> String {
        let mut text = "# podman, CRI-O, buildah, skopeo and this proxy\n".to_owned();
        let mut conf = String::new();
        for host in self.hosts {
            text.push_str(&self.trust(host, &Client::Podman.folder(host)));
            if !host.tls {
                conf += &format!(
                    "[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\ninsecure = true\n\n"
                );
            }
        }
        let mut missing = String::new();
        for mirror in self.mirrors.by_registry() {
            let registry = &mirror.registry;
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
        if !conf.is_empty() {
            text.push_str("\n# Images by their registries' names come from here, too.\n");
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
            toml += &mirror.remarks();
            toml += &format!(
                "[registry.\"{}\"]\n  mirrors = [\"{}\"]\n",
                mirror.registry, mirror.host
            );
        }
        for host in self.hosts {
            let folder = format!("/etc/buildkit/certs.d/{host}");
            text.push_str(&self.trust(host, &folder));
            toml += &format!("[registry.\"{host}\"]\n");
            toml += &match self.kind_of_trust(host) {
                Trust::Ours => format!("  ca = [\"{folder}/ca.crt\"]\n"),
                Trust::Theirs => format!("  # ca = [\"{folder}/ca.crt\"]\n"),
                Trust::Plain => "  http = true\n".to_owned(),
            };
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

    pub(super) fn kubernetes(&self) -> String {
        let mut text = "# Kubernetes and this proxy\n\
            \n# On each node, which runs containerd (of CRI-O: client-config podman; of k3s: client-config k3s).\n"
            .to_owned();
        text.push_str(&self.containerd_hosts());
        for host in self.hosts {
            if clients::admits_anonymous(self.config, host) {
                text.push_str(&self.no_login(host));
                continue;
            }
            text.push_str(self.short_lived_tokens());
            let secret = format!(
                "ecr-proxy-{}",
                host.to_string().replace([':', '[', ']'], "-")
            );
            let secret = secret.trim_end_matches('-');
            let server = quoted(&host.to_string());
            text.push_str(&format!(
                "\n# Once in each namespace, with the name and the password of a user: a pull secret, which does\n\
                 # not expire, and who pulls with it. Pods that have another service account name the secret in\n\
                 # imagePullSecrets.\n\
                 kubectl create secret docker-registry {secret} --docker-server={server} \\\n  \
                 --docker-username=NAME --docker-password=PASSWORD\n\
                 kubectl patch serviceaccount default \\\n  \
                 --patch '{{\"imagePullSecrets\": [{{\"name\": \"{secret}\"}}]}}'\n"
            ));
        }
        text + &self.used_by("image: ")
    }

    pub(super) fn k3s(&self) -> String {
        let mut text = "# k3s and this proxy, on each node\n".to_owned();
        let (mut endpoints, mut configs) = (String::new(), String::new());
        for mirror in self.mirrors.by_registry() {
            endpoints += &mirror.remarks();
            endpoints += &format!(
                "  \"{}\":\n    endpoint:\n      - \"{}\"\n",
                mirror.registry,
                mirror.host.url()
            );
        }
        let mut asks = false;
        for host in self.hosts {
            let folder = format!("/etc/rancher/k3s/certs.d/{host}");
            text.push_str(&self.trust(host, &folder));
            let mut config = match self.kind_of_trust(host) {
                Trust::Ours => format!("    tls:\n      ca_file: \"{folder}/ca.crt\"\n"),
                Trust::Theirs => format!("    # tls:\n    #   ca_file: \"{folder}/ca.crt\"\n"),
                Trust::Plain => {
                    endpoints +=
                        &format!("  \"{host}\":\n    endpoint:\n      - \"{}\"\n", host.url());
                    String::new()
                }
            };
            if clients::admits_anonymous(self.config, host) {
                text.push_str(&self.no_login(host));
            } else {
                asks = true;
                config += "    auth:\n      username: \"NAME\"\n      password: \"PASSWORD\"\n";
            }
            if config
                .lines()
                .any(|line| !line.trim_start().starts_with('#'))
            {
                configs += &format!("  \"{host}\":\n{config}");
            } else {
                configs += &format!("  # \"{host}\":\n{config}");
            }
        }
        let mut yaml = String::new();
        for (key, value) in [("mirrors", endpoints), ("configs", configs)] {
            let is_empty = value.lines().all(|line| line.trim_start().starts_with('#'));
            let key = if is_empty {
                format!("# {key}:")
            } else {
                format!("{key}:")
            };
            yaml += &match value.is_empty() {
                true => String::new(),
                false => format!("{key}\n{value}"),
            };
        }
        text.push_str(
            "\n# Where there is a registries.yaml already, this leaves it as it is: add the keys to it.\n\
             sudo mkdir -p /etc/rancher/k3s\n",
        );
        let path = "/etc/rancher/k3s/registries.yaml";
        text.push_str(&new_file(path, &yaml));
        if asks {
            text.push_str(self.short_lived_tokens());
            text.push_str(&format!(
                "# NAME and PASSWORD are those of a user; keep them from others:\n\
                 sudo chmod 600 {path}\nsudoedit {path}\n"
            ));
        }
        text.push_str(
            "# Then restart it:\n\
             #   sudo systemctl restart k3s          # k3s-agent on agents\n",
        );
        text + &self.used_by("image: ")
    }

    pub(super) fn helm(&self) -> String {
        let mut text = "# Helm and this proxy\n".to_owned();
        for host in self.hosts {
            let folder = format!("/usr/local/share/ecr-proxy/{host}");
            text.push_str(&self.trust(host, &folder));
            let option = match self.kind_of_trust(host) {
                Trust::Ours => format!(" --ca-file {}", quoted(&format!("{folder}/ca.crt"))),
                Trust::Theirs => String::new(),
                Trust::Plain => " --plain-http".to_owned(),
            };
            text.push_str(&self.login(host, &format!("helm registry login{option}")));
            text.push_str(&format!(
                "\n# Pull a chart by the proxy's own name, with its repository as the registry has it:\n\
                 #   helm pull oci://{host}/REPOSITORY --version VERSION{option}\n"
            ));
        }
        text
    }

    /// containerd's trust and mirrors: a `hosts.toml` for the proxy itself, and for each registry.
    fn containerd_hosts(&self) -> String {
        let mut text = String::new();
        for host in self.hosts {
            let folder = Client::Containerd.folder(host);
            text.push_str(&self.trust(host, &folder));
            text.push_str(&format!("sudo mkdir -p {}\n", quoted(&folder)));
            let more = self.containerd_trust(host);
            text.push_str(&hosts_toml(&folder, &host.url(), host, &more));
        }
        for mirror in self.mirrors.by_registry() {
            let Mirror { registry, host, .. } = &mirror;
            let folder = format!("/etc/containerd/certs.d/{registry}");
            let server = match registry.as_str() {
                "docker.io" => "https://registry-1.docker.io".to_owned(),
                other => format!("https://{other}"),
            };
            let mut more = self.containerd_trust(host);
            if !clients::admits_anonymous(self.config, host) {
                more += "  # containerd has no login for a mirror but what is written here:\n  \
                     # [host.\"HOST\".header]\n  \
                     #   authorization = [\"Basic BASE64_OF_NAME:PASSWORD\"]\n"
                    .replace("HOST", &host.url())
                    .as_str();
            }
            text.push_str(&format!(
                "\n# Images of {registry} by their own names; what is not had here is asked of it.\n{}\
                 sudo mkdir -p {}\n",
                mirror.remarks(),
                quoted(&folder)
            ));
            text.push_str(&hosts_toml(&folder, &server, host, &more));
        }
        text + CONTAINERD_CONFIG_PATH
    }

    fn containerd_trust(&self, host: &ClientHost) -> String {
        let folder = Client::Containerd.folder(host);
        match self.kind_of_trust(host) {
            Trust::Ours => format!("  ca = \"{folder}/ca.crt\"\n"),
            Trust::Theirs => format!("  # ca = \"{folder}/ca.crt\"\n"),
            Trust::Plain => String::new(),
        }
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

    fn kind_of_trust(&self, host: &ClientHost) -> Trust {
        match (&self.config.tls, host.tls) {
            (_, false) | (Tls::Off, _) => Trust::Plain,
            (Tls::LocalCa, true) => Trust::Ours,
            (Tls::Files(_) | Tls::Acme { .. }, true) => Trust::Theirs,
        }
    }

    /// The lines that put the CA's certificate into `folder`, or tell when it has to be there.
    fn trust(&self, host: &ClientHost, folder: &str) -> String {
        let quoted = quoted(folder);
        let from = match (&self.config.tls, host.tls) {
            (_, false) | (Tls::Off, _) => return format!("\n# {host} is plain HTTP.\n"),
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
        };
        format!(
            "\n# Trust it as {host}.\n# The certificate {from}. If its CA is not one that this host\n\
             # trusts already, put the CA's certificate here, and wherever a `ca` line is commented out below:\n\
             #   sudo mkdir -p {quoted} && sudo cp ca.crt {quoted}/ca.crt\n"
        )
    }

    fn logins(&self, command: &str) -> String {
        let each = self.hosts.iter().map(|host| self.login(host, command));
        each.collect()
    }

    fn login(&self, host: &ClientHost, command: &str) -> String {
        if clients::admits_anonymous(self.config, host) {
            return self.no_login(host);
        }
        let host = quoted(&host.to_string());
        let mut text = String::new();
        if self.config.access.aws_tokens {
            text += &format!(
                "\n# Log in with an ECR token of your own, which lives for 12 hours:\n\
                 aws ecr get-login-password | {command} -u AWS --password-stdin {host}\n"
            );
            if self.config.access.users_file.is_none() {
                return text;
            }
        }
        text + &format!("\n# Log in once; the password does not expire.\n{command} {host}\n")
    }

    fn no_login(&self, host: &ClientHost) -> String {
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
    fn short_lived_tokens(&self) -> &'static str {
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

    fn used_by(&self, word: &str) -> String {
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
    fn remarks(&self) -> String {
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
