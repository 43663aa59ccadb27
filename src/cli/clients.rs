//! How clients reach the proxy and come to trust its local CA, in their own words.
//!
//! Paths and formats are those of dockerd's `certs.d`, containerd's `hosts.toml` and
//! containers-certs.d(5).

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use crate::config::{Config, ListenAddress, Tls};

/// A tool that pulls images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Client {
    /// dockerd and the docker command
    Docker,
    /// containerd, and Kubernetes through it
    Containerd,
    /// podman, CRI-O, buildah and skopeo
    Podman,
}

impl Client {
    pub(super) const ALL: [Self; 3] = [Self::Docker, Self::Containerd, Self::Podman];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Podman => "podman",
        }
    }

    /// Where the client looks for the CA of a host, and for what else there is to say of it.
    pub(super) fn folder(self, host: &impl fmt::Display) -> String {
        match self {
            Self::Docker => format!("/etc/docker/certs.d/{host}"),
            Self::Containerd => format!("/etc/containerd/certs.d/{host}"),
            Self::Podman => format!("/etc/containers/certs.d/{host}"),
        }
    }
}

/// The host part of image names, with its port unless that is the scheme's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClientHost {
    pub(super) name: String,
    port: Option<u16>,
    /// Whether TLS is spoken there.
    pub(super) tls: bool,
}

impl ClientHost {
    /// Where it is asked.
    pub(super) fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{self}")
    }
}

impl fmt::Display for ClientHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.parse::<Ipv6Addr>().is_ok() {
            write!(f, "[{}]", self.name)?;
        } else {
            f.write_str(&self.name)?;
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// What clients call us: every domain, at the port of a listener that is not for this host alone, if there is one,
/// and speaks TLS, if one does; of several at the first's. Where only something before us speaks TLS, at its
/// usual port. `listen` are the configured or the bound addresses.
pub(super) fn hosts(config: &Config, listen: &[ListenAddress]) -> Vec<ClientHost> {
    let worse = |listen: &&ListenAddress| (listen.address.ip().is_loopback(), !listen.tls);
    let Some(listen) = listen.iter().min_by_key(worse) else {
        return Vec::new();
    };
    let server = &config.server;
    let is_behind = !listen.tls && !server.trusted_proxies.is_empty() && !server.domains.is_empty();
    let at = |name: &str| {
        let port = listen.address.port();
        let own = if listen.tls { 443 } else { 80 };
        ClientHost {
            name: name.to_owned(),
            port: (port != own && !is_behind).then_some(port),
            tls: listen.tls || is_behind,
        }
    };
    if config.server.domains.is_empty() {
        return vec![at("localhost")];
    }
    config.server.domains.iter().map(|name| at(name)).collect()
}

/// Whether clients need no password at `host`, at least from some networks.
pub(super) fn admits_anonymous(config: &Config, host: &ClientHost) -> bool {
    anonymous_networks(config, host).is_some()
}

/// The networks from which clients need no password at `host`, if from any; all if empty.
pub(super) fn anonymous_networks(config: &Config, host: &ClientHost) -> Option<Vec<String>> {
    let mut domains = config.server.domains.iter();
    let domain = domains.find(|name| **name == host.name).map(String::as_str);
    let mut rules = config.access.rules.admitting_anonymous(domain).peekable();
    rules.peek()?;
    let mut named: Vec<String> = Vec::new();
    for rule in rules {
        if rule.networks.is_empty() {
            return Some(Vec::new());
        }
        for network in rule.networks.iter().map(ToString::to_string) {
            if !named.contains(&network) {
                named.push(network);
            }
        }
    }
    Some(named)
}

/// Where the local CA's certificate is, once there is one.
pub(super) fn local_ca_path(state_dir: &Path) -> PathBuf {
    state_dir.join("tls").join("ca.pem")
}

/// Where the local CA's certificate is, if one is used.
pub(super) fn local_ca(config: &Config) -> Option<PathBuf> {
    matches!(config.tls, Tls::LocalCa).then(|| local_ca_path(&config.server.state_dir))
}

/// The lines by which `client`, on the proxy's own host, trusts the CA at `ca` for `host`.
pub(super) fn trust_lines(client: Client, host: &ClientHost, ca: &Path) -> String {
    let folder = client.folder(host);
    let ca = quoted(&ca.display().to_string());
    let quoted_folder = quoted(&folder);
    let mut lines = format!("sudo mkdir -p {quoted_folder}\nsudo cp {ca} {quoted_folder}/ca.crt\n");
    if client == Client::Containerd {
        let ca = format!("  ca = \"{folder}/ca.crt\"\n");
        lines.push_str(&hosts_toml(&folder, Some(&host.url()), host, &ca));
    }
    lines
}

/// The lines that write containerd's `hosts.toml` to `folder`: what is not had from `host` is asked of
/// `server`, or of each image's own registry. What is pushed goes to the host where it is the server itself, as
/// by its own name; what is had from a mirror is pushed to where it is from. `more` is what else there is to say
/// of the host, lines of TOML. Referrers are offered in a comment: a containerd that does not know the word refuses
/// the whole file for it, 1.6 and 1.7 among them.
pub(super) fn hosts_toml(
    folder: &str,
    server: Option<&str>,
    host: &ClientHost,
    more: &str,
) -> String {
    let url = host.url();
    let push = match server == Some(&url) {
        true => ", \"push\"",
        false => "",
    };
    let server = server.map_or_else(String::new, |server| format!("server = \"{server}\"\n\n"));
    let capabilities = format!("capabilities = [\"pull\", \"resolve\"{push}");
    let toml = format!(
        "{server}[host.\"{url}\"]\n  {capabilities}]\n  # for a containerd that knows \"referrers\", \
         as older ones refuse the file for it:\n  # {capabilities}, \"referrers\"]\n{more}"
    );
    here_document(&format!("{folder}/hosts.toml"), &toml)
}

/// The lines that write `text` to `path` as root.
pub(super) fn here_document(path: &str, text: &str) -> String {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    format!(
        "sudo tee {} > /dev/null <<'END'\n{text}{end}END\n",
        quoted(path)
    )
}

/// The lines that write `text` to `path` as root, unless there is a file: that one is left as it is.
pub(super) fn new_file(path: &str, text: &str) -> String {
    let path = quoted(path);
    format!("sudo sh -C -c 'cat > \"$0\"' {path} <<'END'\n{text}END\n")
}

/// As one word for a shell.
pub(super) fn quoted(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-:".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, port: Option<u16>) -> ClientHost {
        ClientHost {
            name: name.to_owned(),
            port,
            tls: true,
        }
    }

    #[test]
    fn each_client_has_its_own_folder_with_the_port_in_it() {
        let host = host("registry.mydomain.com", Some(8443));
        let ca = Path::new("/var/lib/ecr-proxy/tls/ca.pem");
        let lines = trust_lines(Client::Docker, &host, ca);
        assert_eq!(
            lines,
            "sudo mkdir -p /etc/docker/certs.d/registry.mydomain.com:8443\n\
             sudo cp /var/lib/ecr-proxy/tls/ca.pem \
             /etc/docker/certs.d/registry.mydomain.com:8443/ca.crt\n"
        );
        let lines = trust_lines(Client::Podman, &host, ca);
        assert!(lines.contains("/etc/containers/certs.d/registry.mydomain.com:8443/ca.crt"));
    }

    #[test]
    fn containerd_is_told_by_a_hosts_toml_that_is_toml() {
        let lines = trust_lines(
            Client::Containerd,
            &host("a.test", None),
            Path::new("/ca.pem"),
        );
        let (_, document) = lines.split_once("<<'END'\n").expect("a here-document");
        let toml: toml::Table = document.trim_end_matches("END\n").parse().expect("TOML");
        let server = toml["server"].as_str().expect("server");
        assert_eq!(server, "https://a.test");
        let host = &toml["host"][server];
        assert_eq!(
            host["ca"].as_str(),
            Some("/etc/containerd/certs.d/a.test/ca.crt")
        );
    }

    #[test]
    fn containerd_is_offered_referrers_only_as_a_comment_since_older_ones_refuse_the_word() {
        let host = host("a.test", None);
        for (server, plain, newer) in [
            (
                Some("https://a.test"),
                &["pull", "resolve", "push"][..],
                &["pull", "resolve", "push", "referrers"][..],
            ),
            (
                None,
                &["pull", "resolve"],
                &["pull", "resolve", "referrers"],
            ),
        ] {
            let lines = hosts_toml("/f", server, &host, "");
            let (_, document) = lines.split_once("<<'END'\n").expect("a here-document");
            let document = document.trim_end_matches("END\n");
            let capabilities = |document: &str| {
                let toml: toml::Table = document.parse().expect("TOML");
                toml["host"]["https://a.test"]["capabilities"].clone()
            };
            assert_eq!(capabilities(document), toml::Value::from(plain.to_vec()));
            let without = document
                .lines()
                .filter(|line| !line.starts_with("  capabilities"));
            let document: Vec<_> = without.map(|line| line.replace("# cap", "cap")).collect();
            let document = document.join("\n");
            assert_eq!(capabilities(&document), toml::Value::from(newer.to_vec()));
        }
    }

    #[test]
    fn addresses_are_written_as_image_names_have_them() {
        assert_eq!(host("::1", Some(443)).to_string(), "[::1]:443");
        assert_eq!(host("a.test", None).to_string(), "a.test");
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quoted("/a/b-c_d.e:1"), "/a/b-c_d.e:1");
        assert_eq!(quoted("/a b"), "'/a b'");
        assert_eq!(quoted("/it's"), "'/it'\\''s'");
        assert_eq!(quoted("[::1]"), "'[::1]'");
    }
}
