//! `client-config CLIENT`: complete set-up of a client for the configuration.

use std::fs;
use std::io::Write;

use super::Failure;
use super::clients::{self, Client, ClientHost};
use super::settings::Settings;
use crate::config::{Config, Files, Strings, Tls};

#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "The output is a shell script: read it, then paste it on each client host.\n\nExample:\n  ecr-proxy client-config docker --config /etc/ecr-proxy/config.toml"
)]
pub(super) struct Args {
    /// The client to set up
    client: Client,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let config = args.settings.load(environment, Files::Ignored)?;
    if config.server.listen.iter().any(|l| l.address.port() == 0) {
        return Err(Failure::Failed(
            "server.listen has port 0, so the port that clients use is known only while it runs"
                .to_owned(),
        ));
    }
    let ca = clients::local_ca(&config);
    // Not being able to read the CA is no failure: it is made at the first start of `serve`, and
    // kept from other users.
    let pem = ca.and_then(|path| fs::read_to_string(path).ok());
    out.write_all(script(args.client, &config, pem.as_deref()).as_bytes())?;
    Ok(())
}

/// The set-up as a shell script.
fn script(client: Client, config: &Config, ca_pem: Option<&str>) -> String {
    let hosts = clients::hosts(config, &config.server.listen);
    let mut script = format!("# {} and this proxy\n", client.name());
    for host in &hosts {
        if host.tls {
            script.push_str(&trust(client, config, host, ca_pem));
        } else {
            script.push_str(&plain(client, host));
        }
    }
    if let Some(host) = hosts.first() {
        script.push_str(&login(client, config, host));
        script.push_str(&pull(client, host));
    }
    script
}

fn trust(client: Client, config: &Config, host: &ClientHost, ca_pem: Option<&str>) -> String {
    let folder = client.folder(host);
    let mut lines = format!("\n# Trust it as {host}.\n");
    match (&config.tls, ca_pem) {
        (Tls::LocalCa, Some(pem)) => {
            lines.push_str(&format!("sudo mkdir -p '{folder}'\n"));
            lines.push_str(&clients::here_document(&format!("{folder}/ca.crt"), pem));
        }
        (Tls::LocalCa, None) => {
            lines.push_str(&format!(
                "# ca.crt is what `ecr-proxy ca print` prints on the proxy's host, as its user.\n\
                 sudo mkdir -p '{folder}'\nsudo cp ca.crt '{folder}/ca.crt'\n"
            ));
        }
        (Tls::Files(pairs), _) => {
            let certs = pairs.iter().map(|pair| pair.cert.display().to_string());
            let certs: Vec<String> = certs.collect();
            lines.push_str(&format!(
                "# The certificate is your own, {}. If its CA is not one that this host trusts\n\
                 # already, put the CA's certificate here:\n\
                 #   sudo mkdir -p '{folder}' && sudo cp ca.crt '{folder}/ca.crt'\n",
                certs.join(", ")
            ));
        }
        (Tls::Acme { options, .. }, _) => {
            lines.push_str(&format!(
                "# The certificate comes from {}. If its CA is not one that this\n\
                 # host trusts already, put the CA's certificate here:\n\
                 #   sudo mkdir -p '{folder}' && sudo cp ca.crt '{folder}/ca.crt'\n",
                options.directory
            ));
        }
        (Tls::Off, _) => {}
    }
    if client == Client::Containerd {
        lines.push_str(&format!("sudo mkdir -p '{folder}'\n"));
        let own = matches!(config.tls, Tls::LocalCa);
        lines.push_str(&clients::hosts_toml(host, own.then_some(folder.as_str())));
        lines.push_str(CONTAINERD_CONFIG_PATH);
    }
    lines
}

const CONTAINERD_CONFIG_PATH: &str = "\
# containerd reads that folder where /etc/containerd/config.toml has this (then restart it once):
#   version = 3:  [plugins.'io.containerd.cri.v1.images'.registry]
#                   config_path = '/etc/containerd/certs.d'
#   version = 2:  [plugins.\"io.containerd.grpc.v1.cri\".registry]
#                   config_path = \"/etc/containerd/certs.d\"
";

fn plain(client: Client, host: &ClientHost) -> String {
    match client {
        Client::Docker => format!(
            "\n# {host} is plain HTTP. For 127.0.0.0/8 and localhost docker needs nothing; any other\n\
             # name goes into /etc/docker/daemon.json (then restart docker), unless something in\n\
             # front of the proxy speaks TLS:\n\
             #   {{ \"insecure-registries\": [\"{host}\"] }}\n"
        ),
        Client::Containerd => {
            let folder = client.folder(host);
            let toml = clients::hosts_toml(host, None);
            format!(
                "\n# {host} is plain HTTP.\nsudo mkdir -p '{folder}'\n{toml}{CONTAINERD_CONFIG_PATH}"
            )
        }
        Client::Podman => {
            let conf = format!(
                "[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\ninsecure = true\n"
            );
            let path = "/etc/containers/registries.conf.d/ecr-proxy.conf";
            let document = clients::here_document(path, &conf);
            format!("\n# {host} is plain HTTP.\n{document}")
        }
    }
}

fn login(client: Client, config: &Config, host: &ClientHost) -> String {
    let name = config
        .server
        .domains
        .iter()
        .find(|name| **name == host.name);
    let name = name.map(String::as_str);
    if let Some(rule) = config.access.rules.admit_anonymous(name) {
        let networks: Vec<String> = rule.networks.iter().map(ToString::to_string).collect();
        return match &networks[..] {
            [] => "\n# No login is needed.\n".to_owned(),
            networks => format!("\n# No login is needed from: {}.\n", networks.join(", ")),
        };
    }
    let tokens = match (config.access.aws_tokens, client) {
        (false, _) => String::new(),
        (true, Client::Docker | Client::Podman | Client::Containerd) => {
            let command = match client {
                Client::Docker => "docker",
                Client::Podman => "podman",
                Client::Containerd => "nerdctl",
            };
            format!(
                "\n# Log in with an ECR token of your own, which lives for 12 hours:\n\
                 aws ecr get-login-password | {command} login -u AWS --password-stdin {host}\n"
            )
        }
    };
    if config.access.users_file.is_none() && !tokens.is_empty() {
        return tokens;
    }
    tokens + &login_as_user(client, host)
}

fn login_as_user(client: Client, host: &ClientHost) -> String {
    let once = "\n# Log in once; the password does not expire.\n";
    match client {
        Client::Docker => format!("{once}docker login {host}\n"),
        Client::Podman => format!("{once}podman login {host}\n"),
        Client::Containerd => format!(
            "\n# Log in: nerdctl keeps the login, ctr takes it at each pull (--user NAME), and\n\
             # Kubernetes takes a pull secret, which does not expire:\n\
             nerdctl login {host}\n\
             #   kubectl create secret docker-registry ecr-proxy --docker-server={host} \\\n\
             #     --docker-username=NAME --docker-password=PASSWORD\n"
        ),
    }
}

fn pull(client: Client, host: &ClientHost) -> String {
    let command = match client {
        Client::Docker => format!("docker pull {host}/REPOSITORY:TAG"),
        Client::Podman => format!("podman pull {host}/REPOSITORY:TAG"),
        Client::Containerd => {
            format!("ctr images pull --hosts-dir /etc/containerd/certs.d {host}/REPOSITORY:TAG")
        }
    };
    format!(
        "\n# Pull by the proxy's own name, with the repository as the registry has it:\n#   {command}\n"
    )
}
