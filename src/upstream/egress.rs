//! The way out: a proxy of the operator's that makes tunnels (RFC 9110, 9.3.6), where there is one.
//!
//! Invariants: what goes through it is TLS, which it cannot read; this host is never reached through it;
//! its password is never printed.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::task::{Context, Poll};

use http::{HeaderValue, Uri};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::connect::ConnectError;
use super::origin::Origin;
use super::secret::Secret;

/// Never asked through a proxy: it could only lead to the proxy's own host.
const THIS_HOST: &str = "localhost,127.0.0.0/8,::1";

/// A proxy on the way out, and what is reached without it.
#[derive(Clone)]
pub struct Egress {
    /// `http://host:port`.
    address: Uri,
    /// The same, with user and password where there are any.
    with_login: Secret,
    /// As in `NO_PROXY`.
    except: String,
}

/// The text names no proxy. It does not repeat the text, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a proxy: expected http://host:port, or http://user:password@host:port")]
pub struct ParseEgressError;

impl FromStr for Egress {
    type Err = ParseEgressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.strip_suffix('/').unwrap_or(text);
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(_) => return Err(ParseEgressError),
            None => text,
        };
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        let is_host = !host.contains(['/', '?', '#']) && !host.ends_with(':');
        let address: Option<Uri> = format!("http://{host}/").parse().ok();
        let address = address.filter(|address| is_host && Origin::of(address).is_some());
        let egress = Self {
            address: address.ok_or(ParseEgressError)?,
            with_login: Secret::new(&format!("http://{rest}")),
            except: THIS_HOST.to_owned(),
        };
        let is_understood = egress.with_login.reveal().parse::<Uri>().is_ok();
        is_understood.then_some(egress).ok_or(ParseEgressError)
    }
}

impl Egress {
    /// The same but for these hosts, domains and networks, separated by commas: what `NO_PROXY` says.
    #[must_use]
    pub fn except(mut self, hosts: &str) -> Self {
        self.except = format!("{THIS_HOST},{hosts}");
        self
    }

    /// A tunnel to this host on a connection of its own; none for what is reached without it.
    ///
    /// # Errors
    /// The proxy is not to be had, or refuses.
    pub async fn tunnel(&self, host: &Uri) -> io::Result<Option<TcpStream>> {
        let way = self.way();
        let Some(proxy) = way.to(host) else {
            return Ok(None);
        };
        let proxy = TcpStream::connect((proxy.host(), proxy.port())).await;
        let proxy = proxy.map_err(|_| io::Error::other(ConnectError::Proxy))?;
        let tunnel = way.tunnel(host, proxy).await;
        tunnel.map(Some).map_err(io::Error::other)
    }

    /// The proxy with its login, and what it is not for, for a client of somebody else's making.
    pub(super) fn for_others(&self) -> (&str, &str) {
        (self.with_login.reveal(), &self.except)
    }

    /// What is asked for each connection.
    pub(super) fn way(&self) -> Way {
        let matcher = Matcher::builder()
            .https(self.with_login.reveal())
            .no(self.except.as_str());
        Way {
            address: self.address.clone(),
            matcher: matcher.build(),
        }
    }
}

impl PartialEq for Egress {
    fn eq(&self, other: &Self) -> bool {
        self.with_login == other.with_login && self.except == other.except
    }
}

impl Eq for Egress {}

impl fmt::Display for Egress {
    /// Without its login.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.address.to_string().trim_end_matches('/'))
    }
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which connections are made through the proxy, and how.
pub(super) struct Way {
    address: Uri,
    matcher: Matcher,
}

impl Way {
    /// Where the proxy is, for a host that is reached through it.
    pub(super) fn to(&self, host: &Uri) -> Option<Origin> {
        self.matcher.intercept(host)?;
        Origin::of(&self.address)
    }

    /// A tunnel to a host through a connection to the proxy.
    ///
    /// # Errors
    /// [`ConnectError::ProxyLogin`] and [`ConnectError::Proxy`].
    pub(super) async fn tunnel(
        &self,
        host: &Uri,
        proxy: TcpStream,
    ) -> Result<TcpStream, ConnectError> {
        let connected = Connected(Some(TokioIo::new(proxy)));
        let mut tunnel = Tunnel::new(self.address.clone(), connected);
        let intercepted = self.matcher.intercept(host);
        let login: Option<HeaderValue> =
            intercepted.and_then(|intercepted| intercepted.basic_auth().cloned());
        if let Some(login) = login {
            tunnel = tunnel.with_auth(login);
        }
        match tunnel.call(host.clone()).await {
            Ok(stream) => Ok(stream.into_inner()),
            // Its type is not to be named; its words are.
            Err(error) if error.to_string().contains("authorization required") => {
                Err(ConnectError::ProxyLogin)
            }
            Err(_) => Err(ConnectError::Proxy),
        }
    }
}

/// A connection that is made already, as what makes one.
struct Connected(Option<TokioIo<TcpStream>>);

impl Service<Uri> for Connected {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = std::future::Ready<Result<Self::Response, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        std::future::ready(self.0.take().ok_or(ConnectError::Proxy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_host_and_prints_no_password() {
        for (text, address) in [
            ("http://proxy.example:3128", "http://proxy.example:3128"),
            ("http://proxy.example:3128/", "http://proxy.example:3128"),
            ("proxy.example:3128", "http://proxy.example:3128"),
            (
                "http://u:canary%40@proxy.example:3128",
                "http://proxy.example:3128",
            ),
            ("http://[::1]:3128", "http://[::1]:3128"),
            ("http://10.0.0.1", "http://10.0.0.1"),
        ] {
            let egress: Egress = text.parse().expect(text);
            assert_eq!(egress.to_string(), address);
            assert!(!format!("{egress:?}").contains("canary"));
        }
        for text in [
            "",
            "https://proxy.example:3128",
            "socks5://proxy.example:1080",
            "http://",
            "http:",
            "http://proxy.example:0",
            "http://proxy.example/path",
            "http://a b:3128",
        ] {
            assert_eq!(text.parse::<Egress>(), Err(ParseEgressError), "{text}");
        }
    }

    #[test]
    fn exceptions_are_those_of_no_proxy_and_this_host() {
        let egress: Egress = "http://proxy.example:3128".parse().unwrap();
        let way = egress.except("internal.example, 10.0.0.0/8").way();
        for (uri, is_proxied) in [
            ("https://registry.example/", true),
            ("https://10.example/", true),
            ("https://internal.example/", false),
            ("https://a.internal.example:8443/", false),
            ("https://10.1.2.3/", false),
            ("https://localhost:5000/", false),
            ("https://127.0.0.2:5000/", false),
            ("https://[::1]:5000/", false),
            // What has no TLS of its own is this host's.
            ("http://registry.example/", false),
        ] {
            assert_eq!(way.to(&uri.parse().unwrap()).is_some(), is_proxied, "{uri}");
        }
    }
}
