//! How many connections there may be, in all and from one address.
//!
//! Invariant: a [`Place`] is counted from its making to its drop.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::access::Network;

/// Counts connections against both caps.
#[derive(Clone, Debug)]
pub(super) struct Places {
    max_connections: usize,
    max_per_address: usize,
    /// Addresses of balancers: each stands for many clients.
    shared: Arc<[Network]>,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Places {
    pub(super) fn new(
        max_connections: usize,
        max_per_address: usize,
        shared: Vec<Network>,
    ) -> Self {
        Self {
            max_connections,
            max_per_address,
            shared: shared.into(),
            taken: Arc::default(),
        }
    }

    /// A place for a connection from `peer`, or `None` where a cap is reached.
    pub(super) fn take(&self, peer: IpAddr) -> Option<Place> {
        let address = origin(peer);
        let mut taken = self.taken();
        let here = taken.by_address.get(&address).copied().unwrap_or(0);
        let is_shared = || self.shared.iter().any(|network| network.contains(peer));
        if taken.total >= self.max_connections || (here >= self.max_per_address && !is_shared()) {
            return None;
        }
        taken.total += 1;
        taken.by_address.insert(address, here + 1);
        drop(taken);
        Some(Place {
            places: self.clone(),
            address,
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Only counted under the lock, and nothing in there can panic.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts as one address: an IPv4 address, or an IPv6 /64, which is what one client is given.
fn origin(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) if address.is_loopback() => IpAddr::V6(address),
        IpAddr::V6(address) => {
            let network = u128::from(address) & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from(network))
        }
    }
}

/// One counted connection.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.total -= 1;
        if let Some(here) = taken.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn both_caps_hold_and_a_dropped_place_is_free_again() {
        let places = Places::new(3, 2, Vec::new());
        let first = places.take(address("192.0.2.1")).expect("below both caps");
        let _second = places.take(address("192.0.2.1")).expect("below both caps");
        assert!(places.take(address("192.0.2.1")).is_none(), "address cap");
        let _third = places.take(address("192.0.2.2")).expect("below both caps");
        assert!(places.take(address("192.0.2.3")).is_none(), "total cap");
        drop(first);
        assert!(places.take(address("192.0.2.1")).is_some());
    }

    #[test]
    fn one_ipv6_network_and_one_mapped_address_are_one_origin() {
        assert_eq!(
            origin(address("2001:db8::1")),
            origin(address("2001:db8::2"))
        );
        assert_ne!(
            origin(address("2001:db8::1")),
            origin(address("2001:db8:0:1::1"))
        );
        assert_eq!(origin(address("::ffff:192.0.2.1")), address("192.0.2.1"));
    }

    #[test]
    fn a_balancer_is_not_one_client() {
        let balancer = "192.0.2.0/30".parse().expect("a network");
        let places = Places::new(3, 1, vec![balancer]);
        let _taken = [(); 3].map(|()| places.take(address("192.0.2.1")).expect("below the cap"));
        assert!(places.take(address("192.0.2.1")).is_none(), "total cap");
    }

    #[test]
    fn nothing_is_remembered_of_addresses_that_left() {
        let places = Places::new(10, 10, Vec::new());
        drop(places.take(address("192.0.2.1")));
        assert!(places.taken().by_address.is_empty());
    }
}
