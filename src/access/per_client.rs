//! How much each client has of something at once.
//!
//! Invariant: a [`Held`] is counted from its making to its drop.

use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts by client. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct PerClient(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    in_all: usize,
    /// Of each client that has any.
    clients: foldhash::HashMap<IpAddr, usize>,
}

impl PerClient {
    /// One more for the client at `address`; `None` if it has `most` already.
    pub fn take(&self, address: IpAddr, most: usize) -> Option<Held> {
        self.take_of(usize::MAX, address, most)
    }

    /// Like [`Self::take`], and `None` too if all clients together have `most_in_all` already.
    pub fn take_of(&self, most_in_all: usize, address: IpAddr, most: usize) -> Option<Held> {
        let client = one_client(address);
        let mut counts = self.counts();
        if counts.in_all >= most_in_all {
            return None;
        }
        match counts.clients.get_mut(&client) {
            Some(count) if *count >= most => return None,
            Some(count) => *count += 1,
            None if most == 0 => return None,
            None => drop(counts.clients.insert(client, 1)),
        }
        counts.in_all += 1;
        drop(counts);
        Some(Held {
            of: self.clone(),
            client,
        })
    }

    /// Whether nobody has any.
    pub fn is_empty(&self) -> bool {
        self.counts().in_all == 0
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Only counted under the lock, and nothing in there can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts as one client: an IPv4 address, or an IPv6 /64, which is what one client is given.
pub fn one_client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) if address.is_loopback() => IpAddr::V6(address),
        IpAddr::V6(address) => {
            let network = u128::from(address) & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from(network))
        }
    }
}

/// One that is counted.
#[derive(Debug)]
pub struct Held {
    of: PerClient,
    client: IpAddr,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counts = self.of.counts();
        counts.in_all -= 1;
        if let Entry::Occupied(mut count) = counts.clients.entry(self.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
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
    fn one_ipv6_network_and_one_mapped_address_are_one_client() {
        assert_eq!(
            one_client(address("2001:db8::1")),
            one_client(address("2001:db8::2"))
        );
        assert_ne!(
            one_client(address("2001:db8::1")),
            one_client(address("2001:db8:0:1::1"))
        );
        assert_eq!(
            one_client(address("::ffff:192.0.2.1")),
            address("192.0.2.1")
        );
    }

    #[test]
    fn nothing_is_remembered_of_clients_that_left() {
        let counted = PerClient::default();
        let held = counted.take(address("192.0.2.1"), 1).expect("a first");
        assert!(counted.take(address("192.0.2.1"), 1).is_none());
        drop(held);
        assert!(counted.is_empty());
    }

    #[test]
    fn all_together_have_so_many() {
        let counted = PerClient::default();
        let first = counted.take_of(2, address("192.0.2.1"), 1);
        assert!(counted.take_of(2, address("192.0.2.1"), 1).is_none());
        let second = counted.take_of(2, address("192.0.2.2"), 1);
        assert!(first.is_some() && second.is_some());
        assert!(counted.take_of(2, address("192.0.2.3"), 1).is_none());
        drop(first);
        assert!(counted.take_of(2, address("192.0.2.3"), 1).is_some());
    }
}
