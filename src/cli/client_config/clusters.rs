//! What is printed for Kubernetes, k3s and Helm.

use super::script::{MIRROR_OF_ANY, OR_UNCOMMENTED, Script, Trust};
use crate::cli::clients::{new_file, quoted};

impl Script<'_> {
    pub(super) fn kubernetes(&self) -> String {
        let mut text = "# Kubernetes and this proxy\n\
            \n# On each node, which runs containerd (of CRI-O: client-config podman; of k3s: client-config k3s).\n"
            .to_owned();
        text.push_str(&self.containerd_hosts());
        for host in self.hosts {
            if !self.asks(host) {
                text.push_str(&self.no_login(host));
                continue;
            }
            if !self.has_passwords() {
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
                 #   kubectl create secret docker-registry {secret} --docker-server={server} \\\n\
                 #     --docker-username=NAME --docker-password=PASSWORD\n\
                 #   kubectl patch serviceaccount default \\\n\
                 #     --patch '{{\"imagePullSecrets\": [{{\"name\": \"{secret}\"}}]}}'\n\
                 # Or for all namespaces, without a secret in any: the kubelet of each node takes the same login from\n\
                 # /var/lib/kubelet/config.json, which is what this prints:\n\
                 #   kubectl get secret {secret} --output 'jsonpath={{.data.\\.dockerconfigjson}}' | base64 -d\n"
            ));
        }
        text += "\n# A credential provider of the kubelet's, such as ecr-credential-provider, is asked for the images that\n\
                 # its matchImages has. It knows AWS's names only, and none is needed for the proxy's.\n";
        if self.config.access.aws_tokens {
            text += "# What it has for AWS's names is taken here, where images of theirs are mirrored.\n";
        }
        text + &self.used_by("image: ")
    }

    pub(super) fn k3s(&self) -> String {
        let mut text = "# k3s and this proxy, on each node\n".to_owned();
        let (mut endpoints, mut configs) = (String::new(), String::new());
        for mirror in self.mirrors.by_registry() {
            let entry = format!(
                "  \"{}\":\n    endpoint:\n      - \"{}\"\n",
                mirror.registry,
                mirror.host.url()
            );
            if mirror.is_of_any() {
                endpoints += MIRROR_OF_ANY;
                endpoints += &mirror.remarks();
                endpoints.extend(entry.lines().map(|line| format!("# {line}\n")));
            } else {
                endpoints += &mirror.remarks();
                endpoints += &entry;
            }
        }
        let mut asks = false;
        for host in self.hosts {
            let folder = format!("/etc/rancher/k3s/certs.d/{host}");
            text.push_str(&self.trust(host, &folder));
            text += &self.certificate(host, &folder, OR_UNCOMMENTED);
            let own = match self.takes_certificate(host) {
                false => String::new(),
                true => format!(
                    "    #   cert_file: \"{folder}/client.cert\"\n    #   key_file: \"{folder}/client.key\"\n"
                ),
            };
            let mut config = match self.kind_of_trust(host) {
                Trust::Ours => format!("    tls:\n      ca_file: \"{folder}/ca.crt\"\n{own}"),
                Trust::Theirs => {
                    format!("    # tls:\n    #   ca_file: \"{folder}/ca.crt\"\n{own}")
                }
                Trust::Plain => {
                    endpoints +=
                        &format!("  \"{host}\":\n    endpoint:\n      - \"{}\"\n", host.url());
                    String::new()
                }
            };
            if !self.asks(host) {
                text.push_str(&self.no_login(host));
            } else if self.has_passwords() {
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
                "# NAME and PASSWORD are those of a user, to be written there and kept from others:\n\
                 sudo chmod 600 {path}\n#   sudoedit {path}\n"
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
            let own = format!(
                "Instead of a login, by --cert-file {folder}/client.cert --key-file {folder}/client.key,"
            );
            text += &self.certificate(host, &folder, &own);
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
}
