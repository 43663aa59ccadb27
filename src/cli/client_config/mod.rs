//! `client-config CLIENT`: complete set-up of a client for the configuration.
//!
//! | File | |
//! |---|---|
//! | `mirrors` | which registries can be had through the proxy, and how they are asked for |
//! | `script` | what is printed for one machine's clients: trust, mirrors, login, a pull |
//! | `clusters` | what is printed for Kubernetes, k3s and Helm |

mod clusters;
mod mirrors;
mod script;

#[cfg(test)]
mod tests;

use std::fs;
use std::io::Write;

use super::Failure;
use super::clients;
use super::settings::Settings;
use crate::config::{Config, Files, Strings};
use mirrors::{DockerMirror, Mirrors};
use script::Script;

#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "The output is a shell script: read it, then paste it on each client host. What asks for a\npassword, restarts something or is done once stands in it as a comment.\n\nExamples:\n  ecr-proxy client-config docker --config /etc/ecr-proxy/config.toml\n  ecr-proxy client-config containerd    # mirrors as well, so that image names need not change"
)]
pub(super) struct Args {
    /// The client to set up
    client: Kind,
    #[command(flatten)]
    settings: Settings,
}

/// What is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// dockerd and the docker command
    Docker,
    /// dockerd, so that docker.io images come from here
    DockerMirror,
    /// containerd
    Containerd,
    /// podman, CRI-O, buildah and skopeo
    Podman,
    /// BuildKit and docker buildx
    Buildkit,
    /// Kubernetes: pull secrets, and nodes with containerd
    Kubernetes,
    /// k3s
    K3s,
    /// Helm
    Helm,
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
    let text = text(args.client, &config, pem.as_deref())?;
    out.write_all(text.as_bytes())?;
    Ok(())
}

/// The set-up as a shell script.
fn text(kind: Kind, config: &Config, ca_pem: Option<&str>) -> Result<String, Failure> {
    let hosts = clients::hosts(config, &config.server.listen);
    let mirrors = Mirrors::new(config, &hosts);
    let script = Script::new(config, &hosts, &mirrors, ca_pem);
    Ok(match kind {
        Kind::Docker => script.docker(),
        Kind::DockerMirror => match mirrors.of_docker() {
            DockerMirror::Hosts(hosts) => script.docker_mirror(&hosts),
            DockerMirror::AsksForPassword(host) => {
                return Err(Failure::Failed(format!(
                    "{host} leads names of docker.io, but asks for a password, which dockerd never has for a \
                     mirror: let anybody pull there, by access.anonymous = \"pull\" or by an [[access.rule]] with \
                     users = [\"@anonymous\"], actions = [\"pull\"] and domains = [\"{}\"]",
                    host.name
                )));
            }
            DockerMirror::None => {
                return Err(Failure::Failed(
                    "no domain leads names of docker.io at its root, where dockerd asks a mirror for them: it takes \
                     an [[upstream]] with registry = \"docker.io\", and a [[route]] with that upstream and with domain = \
                     a name of its own in server.domains"
                        .to_owned(),
                ));
            }
        },
        Kind::Containerd => script.containerd(),
        Kind::Podman => script.podman(),
        Kind::Buildkit => script.buildkit(),
        Kind::Kubernetes => script.kubernetes(),
        Kind::K3s => script.k3s(),
        Kind::Helm => script.helm(),
    })
}
