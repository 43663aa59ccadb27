//! What "all addresses" comes to on a host without IPv6.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use rustix::io::Errno;

/// Where to listen instead, if `error` says of `address` that the host has no IPv6: `[::]` is for all addresses
/// that there are, and is the default.
pub(super) fn without_ipv6(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let is_for_all = address.is_ipv6() && address.ip().is_unspecified();
    let has_none = Errno::from_io_error(error) == Some(Errno::AFNOSUPPORT);
    (is_for_all && has_none).then(|| (Ipv4Addr::UNSPECIFIED, address.port()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_of_a_host_without_ipv6_are_those_of_ipv4() {
        let instead = |address: &str, error: Errno| {
            let address = address.parse().expect("an address");
            without_ipv6(address, &error.into()).map(|address| address.to_string())
        };
        let all = instead("[::]:443", Errno::AFNOSUPPORT);
        assert_eq!(all.as_deref(), Some("0.0.0.0:443"));
        for (address, error) in [
            ("[::]:443", Errno::ADDRINUSE),
            ("[::1]:443", Errno::AFNOSUPPORT),
            ("0.0.0.0:443", Errno::AFNOSUPPORT),
        ] {
            assert_eq!(instead(address, error), None, "{address}: {error}");
        }
    }
}
