//! What `serve` tells the person who started it.

use std::net::SocketAddr;
use std::path::Path;

use super::clients::{self, Client};
use crate::config::{Anonymous, Config, ListenAddress};

/// What the proxy is bound to.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    /// The registry API.
    pub listen: &'a [ListenAddress],
    /// Metrics and health.
    pub admin: Option<SocketAddr>,
    /// The local CA's certificate and fingerprint, if one is used.
    pub local_ca: Option<(&'a Path, &'a str)>,
}

/// What a person at the terminal wants to know, once everything is bound.
pub fn start_text(config: &Config, bound: &Bound<'_>) -> String {
    let hosts = clients::hosts(config, bound.listen);
    let names: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let registries = config.upstreams.iter();
    let registries: Vec<String> = registries.map(|it| it.registry.to_string()).collect();
    let mut text = format!(
        "ecr-proxy {} serves {} as {}\n",
        env!("CARGO_PKG_VERSION"),
        registries.join(", "),
        names.join(", ")
    );
    for listen in bound.listen {
        text.push_str(&format!("  listening on {listen}\n"));
    }
    if let Some(admin) = bound.admin {
        text.push_str(&format!(
            "  metrics and health at http://{admin}/metrics, /readyz\n"
        ));
    }
    text.push_str(&let_in(config));
    if config.access.aws_tokens {
        text.push_str("Whoever logs in as AWS with an ECR token may do what ECR says of it.\n");
    }
    if let Some((ca, fingerprint)) = bound.local_ca {
        // The lines are pasted wherever the person's shell is.
        let ca = &std::path::absolute(ca).unwrap_or_else(|_| ca.to_owned());
        text.push_str(&format!(
            "The certificate comes from a local CA, SHA-256 {fingerprint}.\n\
             Clients on this host trust it by these lines (`ecr-proxy client-config` prints them \
             for others):\n"
        ));
        for client in Client::ALL {
            text.push_str(&format!("\n# {}\n", client.name()));
            for host in &hosts {
                text.push_str(&clients::trust_lines(client, host, ca));
            }
        }
    }
    text
}

/// One line on who is let in.
fn let_in(config: &Config) -> String {
    let access = &config.access;
    if config.client_certificates.is_some() && access.written_rules == 0 {
        let users = access.users.len();
        return format!(
            "Clients with a certificate of tls.client_ca may pull, and {users} users.\n"
        );
    }
    match (access.anonymous, access.users.len(), access.written_rules) {
        (Anonymous::Pull, _, 0) => {
            let networks: Vec<String> = access
                .anonymous_networks
                .iter()
                .map(ToString::to_string)
                .collect();
            format!("Anybody may pull from: {}.\n", networks.join(", "))
        }
        (Anonymous::None, 0, 0) if access.aws_tokens => String::new(),
        (Anonymous::None, 0, 0) => "NOBODY is let in, every request is answered 401. Name a user \
                                 file (--users FILE) or let anybody pull (--anonymous-pull).\n"
            .to_owned(),
        (Anonymous::None, 1, 0) => "1 user may pull.\n".to_owned(),
        (Anonymous::None, users, 0) => format!("{users} users may pull.\n"),
        (_, users, rules) => format!(
            "Access by {rules} [[access.rule]], {users} in the user file (`ecr-proxy check --as` \
             explains a right).\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Files, Flags, Sources};
    use std::collections::BTreeMap;

    fn config(extra: &[(&'static str, &str)]) -> Config {
        let mut flags = Flags::default();
        let given = [
            ("upstream.registry", "docker.io"),
            ("server.domains", "registry.mydomain.com"),
        ];
        for (key, value) in given.iter().chain(extra) {
            flags.set(key, "--flag", [(*value).to_owned()]);
        }
        Config::load(Sources {
            file: None,
            environment: &BTreeMap::new(),
            flags,
            files: Files::Required,
        })
        .expect("config")
    }

    fn text(config: &Config) -> String {
        let listen = [ListenAddress {
            tls: true,
            address: ([0, 0, 0, 0], 8443).into(),
        }];
        let bound = Bound {
            listen: &listen,
            admin: None,
            local_ca: Some((Path::new("/state/tls/ca.pem"), "AB:CD")),
        };
        start_text(config, &bound)
    }

    #[test]
    fn a_closed_proxy_says_that_nobody_is_let_in() {
        assert!(text(&config(&[])).contains("NOBODY is let in"));
        let open = text(&config(&[("access.anonymous", "pull")]));
        assert!(open.contains("Anybody may pull from: loopback, private."));
        let registry = "000042290000.dkr.ecr.us-west-2.amazonaws.com";
        let tokens = [
            ("upstream.registry", registry),
            ("access.aws_tokens", "true"),
        ];
        let tokens = text(&config(&tokens));
        assert!(tokens.contains("logs in as AWS") && !tokens.contains("NOBODY"));
    }

    #[test]
    fn trust_lines_have_the_bound_port() {
        let text = text(&config(&[]));
        for folder in ["/etc/docker", "/etc/containerd", "/etc/containers"] {
            let line = format!("{folder}/certs.d/registry.mydomain.com:8443/ca.crt");
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert!(text.contains("AB:CD"));
    }
}
