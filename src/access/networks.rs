//! Where clients are, as rules name it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// Bits before an IPv4 address that is mapped into IPv6 (RFC 4291, 2.5.5.2).
const MAPPED: u8 = 96;

/// A set of addresses, by keyword or as a CIDR block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// `loopback`: 127.0.0.0/8 and ::1.
    Loopback,
    /// `private`: RFC 1918, unique local (fc00::/7), link-local of both families, and the
    /// shared address space of RFC 6598.
    Private,
    /// A block, or a single address.
    Block(IpNet),
}

impl Network {
    /// Whether `address` is inside. An IPv4 address mapped into IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        match self {
            Self::Loopback => address.is_loopback(),
            Self::Private => match address {
                IpAddr::V4(v4) => {
                    let [first, second, ..] = v4.octets();
                    v4.is_private() || v4.is_link_local() || (first == 100 && (second & 0xc0) == 64)
                }
                IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
            },
            Self::Block(block) => block.contains(&address),
        }
    }
}

/// Neither a keyword nor a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is neither \"loopback\", \"private\", an address nor a block such as \"10.0.0.0/8\""
)]
pub struct ParseNetworkError(String);

impl FromStr for Network {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "loopback" => Ok(Self::Loopback),
            "private" => Ok(Self::Private),
            _ => text
                .parse::<IpNet>()
                .map(|block| block.trunc())
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
                .map(|block| Self::Block(canonical(block)))
                .map_err(|_| ParseNetworkError(text.to_owned())),
        }
    }
}

/// A block of IPv4 addresses as such, where it is written as one of IPv6.
fn canonical(block: IpNet) -> IpNet {
    let IpAddr::V4(address) = block.addr().to_canonical() else {
        return block;
    };
    let length = match block {
        IpNet::V4(_) => Some(block.prefix_len()),
        IpNet::V6(_) => block.prefix_len().checked_sub(MAPPED),
    };
    let v4 = length.and_then(|length| IpNet::new(address.into(), length).ok());
    v4.unwrap_or(block)
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("loopback"),
            Self::Private => f.write_str("private"),
            Self::Block(block) => block.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_is_ipv4_however_it_is_written() {
        for network in ["::ffff:192.0.2.7", "::ffff:192.0.2.0/120"] {
            for address in ["192.0.2.7", "::ffff:192.0.2.7"] {
                assert!(contains(network, address), "{network} {address}");
            }
            assert!(!contains(network, "192.0.3.7"), "{network}");
        }
        assert!(contains("::/0", "2001:db8::1"));
        assert!(!contains("::/0", "192.0.2.7"));
    }

    fn contains(network: &str, address: &str) -> bool {
        let network: Network = network.parse().expect("network");
        network.contains(address.parse().expect("address"))
    }

    #[test]
    fn keywords_cover_their_addresses() {
        for (network, inside, outside) in [
            ("loopback", "127.8.9.10", "10.0.0.1"),
            ("loopback", "::1", "::2"),
            ("loopback", "::ffff:127.0.0.1", "::ffff:128.0.0.1"),
            ("private", "192.168.3.4", "192.169.0.1"),
            ("private", "172.31.255.255", "172.32.0.0"),
            ("private", "100.64.0.1", "100.128.0.1"),
            ("private", "fd00::1", "2001:db8::1"),
            ("private", "fe80::1", "::1"),
            ("private", "169.254.1.1", "127.0.0.1"),
        ] {
            assert!(contains(network, inside), "{network} {inside}");
            assert!(!contains(network, outside), "{network} {outside}");
        }
    }

    #[test]
    fn blocks_and_single_addresses_are_networks() {
        assert!(contains("203.0.113.0/24", "203.0.113.255"));
        assert!(!contains("203.0.113.0/24", "203.0.114.0"));
        assert!(contains("203.0.113.7", "203.0.113.7"));
        assert!(!contains("203.0.113.7", "203.0.113.8"));
        assert!(contains("203.0.113.77/24", "203.0.113.1"));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "lan", "10.0.0.0/33", "10.0.0", "Loopback", "::1/129"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
