//! A port that nobody else is given before, while and after a program listens there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// Bound and never listening, which hinders nobody who asks for this very port, as long as they are bound with
/// `SO_REUSEADDR` like most servers. Connections are refused where nobody listens.
pub struct Port {
    address: SocketAddr,
    _held: Socket,
}

impl Port {
    /// One of 127.0.0.1.
    pub fn v4() -> Self {
        Self::of(Ipv4Addr::LOCALHOST.into())
    }

    /// One of `::1`.
    pub fn v6() -> Self {
        Self::of(Ipv6Addr::LOCALHOST.into())
    }

    fn of(host: IpAddr) -> Self {
        let any = SocketAddr::new(host, 0);
        let held = Socket::new(Domain::for_address(any), Type::STREAM, None).expect("a socket");
        held.set_reuse_address(true).expect("a socket");
        held.bind(&any.into()).expect("a free port");
        let bound = held.local_addr().expect("a bound socket");
        Self {
            address: bound.as_socket().expect("an address of IP"),
            _held: held,
        }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
