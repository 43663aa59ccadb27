//! The flags that set configuration keys, shared by the commands that read a configuration.

use std::path::PathBuf;

use crate::config::{Config, Faults, Files, Flags, Sources, Strings};

/// Where the configuration comes from. Flags win over `ECR_PROXY_…` variables, which win over
/// the file.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Settings {
    /// Configuration file [default: /etc/ecr-proxy/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Registry behind the proxy
    #[arg(long, value_name = "HOST")]
    upstream: Option<String>,
    /// Connect here instead of the registry's own host
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Trust this CA, too, for the upstream (PEM)
    #[arg(long, value_name = "FILE")]
    upstream_ca: Option<String>,
    /// Name that clients use for the proxy; may be repeated
    #[arg(long = "domain", value_name = "NAME")]
    domains: Vec<String>,
    /// Where to serve, such as `https://[::]:443`; may be repeated
    #[arg(long, value_name = "URL")]
    listen: Vec<String>,
    /// Where blobs and records are kept
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<String>,
    /// Where the local CA, the ACME account and pins are kept
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Most that the cache may occupy, such as 200GiB or 70%
    #[arg(long, value_name = "SIZE")]
    max_size: Option<String>,
    /// Let anybody pull from loopback and private networks
    #[arg(long)]
    anonymous_pull: bool,
    /// File of users who may pull (htpasswd, bcrypt)
    #[arg(long, value_name = "FILE")]
    users: Option<String>,
    /// Certificate chain (PEM)
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// Private key of the certificate (PEM)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// Address of metrics and health, or off
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// Socket through which the cache is tended while the proxy runs, or off
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<String>,
}

impl Settings {
    /// The configuration file that is named.
    pub(super) fn file(&self) -> Option<&PathBuf> {
        self.config.as_ref()
    }

    pub(super) fn load(self, environment: &dyn Strings, files: Files) -> Result<Config, Faults> {
        let file = self.config.clone();
        Config::load(Sources {
            file: file.as_deref(),
            environment,
            flags: self.flags(),
            files,
        })
    }

    fn flags(self) -> Flags {
        let mut flags = Flags::default();
        let single = [
            ("upstream.registry", "--upstream", self.upstream),
            ("upstream.endpoint", "--endpoint", self.endpoint),
            ("upstream.ca", "--upstream-ca", self.upstream_ca),
            ("cache.dir", "--cache-dir", self.cache_dir),
            ("server.state_dir", "--state-dir", self.state_dir),
            ("cache.max_size", "--max-size", self.max_size),
            ("access.users", "--users", self.users),
            ("tls.cert", "--tls-cert", self.tls_cert),
            ("tls.key", "--tls-key", self.tls_key),
            ("server.admin", "--admin", self.admin),
            ("server.admin_socket", "--admin-socket", self.admin_socket),
        ];
        for (key, flag, value) in single {
            if let Some(value) = value {
                flags.set(key, flag, [value]);
            }
        }
        for (key, flag, values) in [
            ("server.domains", "--domain", self.domains),
            ("server.listen", "--listen", self.listen),
        ] {
            if !values.is_empty() {
                flags.set(key, flag, values);
            }
        }
        if self.anonymous_pull {
            flags.set("access.anonymous", "--anonymous-pull", ["pull".to_owned()]);
        }
        flags
    }
}
