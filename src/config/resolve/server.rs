//! `[server]`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Resolver;
use crate::access::Network;
use crate::config::values::{self, ListenAddress};
use crate::config::{AdminSocket, Server};

/// Below the 30 s that orchestrators give a process between SIGTERM and SIGKILL.
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(25);
const DEFAULT_ADMIN_SOCKET: &str = "/run/ecr-proxy/admin.sock";
/// unix(7): 108 with the zero at the end; some are left for the name it has until it listens.
const MAX_SOCKET_PATH_BYTES: usize = 100;

impl Resolver {
    pub(super) fn state_dir(&mut self) -> Option<PathBuf> {
        self.directory("server.state_dir", "/var/lib/ecr-proxy")
    }

    pub(super) fn server(&mut self) -> Option<Server> {
        let listen = self.many("server.listen", values::listen);
        let named = self.many("server.domains", values::domain);
        let state_dir = self.state_dir();
        let admin = self.one("server.admin", values::admin);
        let admin_socket = self.admin_socket();
        let trusted_proxies = self.many("server.trusted_proxies", |text| {
            text.parse::<Network>().map_err(|error| error.to_string())
        });
        let drain_timeout = self.one("server.drain_timeout", values::duration);
        let listen = listen?.unwrap_or_else(|| {
            vec![ListenAddress {
                tls: true,
                address: (IpAddr::from([0_u16; 8]), 443).into(),
            }]
        });
        if listen.is_empty() {
            self.fault("server.listen", "is empty: nothing would be served");
        }
        for (index, address) in listen.iter().enumerate() {
            let port = address.address.port();
            let taken = |other: &&ListenAddress| other.address == address.address;
            if port != 0 && listen.iter().take(index).any(|other| taken(&other)) {
                self.fault("server.listen", &format!("{address} is there twice"));
            }
        }
        let mut domains: Vec<String> = Vec::new();
        for domain in named?.unwrap_or_default() {
            if !domains.contains(&domain) {
                domains.push(domain);
            }
        }
        if domains.is_empty() && !listen.iter().all(|l| l.address.ip().is_loopback()) {
            self.fault(
                "server.domains",
                "is missing: name what clients call this proxy, such as --domain \
                 registry.mydomain.com (only loopback listeners do without)",
            );
        }
        let default_admin = (IpAddr::from([127, 0, 0, 1]), 9090).into();
        Some(Server {
            listen,
            domains,
            state_dir: state_dir?,
            admin: admin?.unwrap_or(Some(default_admin)),
            admin_socket: admin_socket?,
            trusted_proxies: trusted_proxies?.unwrap_or_default(),
            drain_timeout: drain_timeout?.unwrap_or(DEFAULT_DRAIN_TIMEOUT),
        })
    }

    /// `None` if it is faulty, `Some(None)` for off.
    fn admin_socket(&mut self) -> Option<Option<AdminSocket>> {
        const KEY: &str = "server.admin_socket";
        let Some(path) = self.path(KEY) else {
            return Some(Some(AdminSocket {
                path: DEFAULT_ADMIN_SOCKET.into(),
                is_required: false,
            }));
        };
        let is_off = self
            .settings
            .get(KEY)
            .is_some_and(|setting| setting.values == ["off"]);
        if is_off {
            return Some(None);
        }
        if path.as_os_str().is_empty() || path.file_name().is_none() {
            self.fault(KEY, "is not the path of a socket; \"off\" to do without");
            return None;
        }
        if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            let reason = format!(
                "{} is longer than the {MAX_SOCKET_PATH_BYTES} bytes that the path of a socket may have",
                path.display()
            );
            self.fault(KEY, &reason);
            return None;
        }
        Some(Some(AdminSocket {
            path,
            is_required: true,
        }))
    }
}
