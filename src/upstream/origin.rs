//! Where a request goes: scheme, host and port, compared as one value.
//!
//! A credential is bound to an [`Origin`], and redirects and realms are judged by theirs. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::Uri;
use http::uri::{Authority, Scheme};

/// Scheme, host and port of an HTTP server; the host in lower case, without brackets.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    tls: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of an absolute `http` or `https` address without user information.
    pub(super) fn of(uri: &Uri) -> Option<Self> {
        let tls = match uri.scheme()? {
            scheme if *scheme == Scheme::HTTPS => true,
            scheme if *scheme == Scheme::HTTP => false,
            _ => return None,
        };
        if uri.authority()?.as_str().contains('@') {
            return None;
        }
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return None;
        }
        let port = match (uri.authority()?.port(), uri.port_u16()) {
            (None, _) => default_port(tls),
            (Some(_), port) => port.filter(|port| *port != 0)?,
        };
        Some(Self {
            tls,
            host: host.to_ascii_lowercase(),
            port,
        })
    }

    /// The `https` origin of a registry's authority.
    pub(super) fn https(authority: &Authority) -> Option<Self> {
        Self::of(
            &Uri::builder()
                .scheme(Scheme::HTTPS)
                .authority(authority.clone())
                .path_and_query("/")
                .build()
                .ok()?,
        )
    }

    pub(super) fn is_tls(&self) -> bool {
        self.tls
    }

    /// The host, an IPv6 address without brackets.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// True if the port is the one that goes without saying for its scheme.
    pub(super) fn has_default_port(&self) -> bool {
        self.port == default_port(self.tls)
    }

    /// What the host alone tells about the network it is in; names are [`Reach::Public`] but for
    /// `localhost`, until they are resolved.
    pub(super) fn reach(&self) -> Reach {
        match self.host.parse() {
            Ok(address) => Reach::of(address),
            Err(_) if self.host == "localhost" => Reach::Loopback,
            Err(_) => Reach::Public,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

/// Which network an address is in, as far as a proxy that holds credentials has to care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// This host.
    Loopback,
    /// Link-local, where cloud metadata services live, and addresses that are no host's.
    LinkLocal,
    /// A private network (RFC 1918, RFC 6598, RFC 4193), or one that is nobody's in the internet.
    Private,
    /// The internet.
    Public,
}

impl Reach {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => Self::of_v6(v6),
        }
    }

    fn of_v4(v4: Ipv4Addr) -> Self {
        match v4.octets() {
            [127, ..] => Self::Loopback,
            // Carriers' own (RFC 6598), and what tests of networks use (RFC 2544): some resolvers answer with
            // the latter for whatever they send through a tunnel.
            [100, b, ..] if (b & 0xc0) == 64 => Self::Private,
            [198, 18 | 19, ..] => Self::Private,
            _ if v4.is_private() => Self::Private,
            [0, ..] | [192, 0, 0, _] | [240..=255, ..] => Self::LinkLocal,
            _ if v4.is_link_local() || v4.is_multicast() => Self::LinkLocal,
            _ => Self::Public,
        }
    }

    fn of_v6(v6: Ipv6Addr) -> Self {
        match v6.segments() {
            _ if v6.is_loopback() => Self::Loopback,
            // Translated (RFC 6052), or carried by 6to4 (RFC 3056): what counts is where it comes out.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
                let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
                match Self::of_v4(Ipv4Addr::new(a, b, c, d)) {
                    // Of another host.
                    Self::Loopback => Self::LinkLocal,
                    reach @ (Self::LinkLocal | Self::Private | Self::Public) => reach,
                }
            }
            // Translated too, by a network's own rule (RFC 8215).
            [0x64, 0xff9b, 1, ..] => Self::Private,
            // The metadata service's IPv6 address, in the middle of the private range.
            [0xfd00, 0xec2, ..] => Self::LinkLocal,
            // Site-local addresses are private ones of another time (RFC 3879).
            [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Self::Private,
            // None at all, and IPv4 written as nobody does any more (RFC 4291, 2.5.5.1).
            [0, 0, 0, 0, 0, 0, ..] => Self::LinkLocal,
            _ if v6.is_unicast_link_local() || v6.is_multicast() => Self::LinkLocal,
            _ => Self::Public,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Option<Origin> {
        Origin::of(&text.parse().ok()?)
    }

    #[test]
    fn origins_compare_scheme_host_and_port() {
        assert_eq!(
            origin("https://A.example/x"),
            origin("https://a.example:443/y?z")
        );
        assert_ne!(origin("https://a.example"), origin("http://a.example"));
        assert_ne!(
            origin("https://a.example"),
            origin("https://a.example:8443")
        );
        assert_eq!(
            origin("http://[::1]:5000/").unwrap().to_string(),
            "http://[::1]:5000"
        );
        for bad in [
            "/relative",
            "ftp://a/",
            "https://user@a/",
            "https://user:p@a/",
            "https://a:0/",
        ] {
            assert_eq!(origin(bad), None, "{bad}");
        }
    }

    #[test]
    fn networks_of_addresses() {
        for (address, reach) in [
            ("127.0.0.1", Reach::Loopback),
            ("127.9.9.9", Reach::Loopback),
            ("::1", Reach::Loopback),
            ("::ffff:127.0.0.1", Reach::Loopback),
            ("169.254.169.254", Reach::LinkLocal),
            ("::ffff:169.254.169.254", Reach::LinkLocal),
            ("fe80::1", Reach::LinkLocal),
            ("fd00:ec2::254", Reach::LinkLocal),
            ("0.0.0.0", Reach::LinkLocal),
            ("::", Reach::LinkLocal),
            ("255.255.255.255", Reach::LinkLocal),
            ("10.1.2.3", Reach::Private),
            ("172.16.0.1", Reach::Private),
            ("192.168.1.1", Reach::Private),
            ("100.64.0.1", Reach::Private),
            ("fd12::1", Reach::Private),
            ("fec0::1", Reach::Private),
            ("feff::1", Reach::Private),
            ("198.18.0.1", Reach::Private),
            ("198.19.255.255", Reach::Private),
            ("198.17.0.1", Reach::Public),
            ("198.20.0.1", Reach::Public),
            ("192.0.0.192", Reach::LinkLocal),
            ("192.0.1.1", Reach::Public),
            ("240.0.0.1", Reach::LinkLocal),
            ("224.0.0.1", Reach::LinkLocal),
            ("ff02::1", Reach::LinkLocal),
            ("::10.0.0.1", Reach::LinkLocal),
            ("::52.94.76.1", Reach::LinkLocal),
            // Translated: where it comes out.
            ("64:ff9b::10.0.0.1", Reach::Private),
            ("64:ff9b::169.254.169.254", Reach::LinkLocal),
            ("64:ff9b::127.0.0.1", Reach::LinkLocal),
            ("64:ff9b::52.94.76.1", Reach::Public),
            ("64:ff9b:1::52.94.76.1", Reach::Private),
            ("2002:a00:1::1", Reach::Private),
            ("2002:a9fe:a9fe::1", Reach::LinkLocal),
            ("2002:7f00:1::1", Reach::LinkLocal),
            ("2002:345e:4c01::1", Reach::Public),
            ("52.94.76.1", Reach::Public),
            ("100.128.0.1", Reach::Public),
            ("2600:1f00::1", Reach::Public),
        ] {
            assert_eq!(Reach::of(address.parse().unwrap()), reach, "{address}");
        }
    }
}
