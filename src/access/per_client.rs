//! How much each client has of something at once.
//!
//! Invariant: a [`Held`] is counted from its making to its drop.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts by client. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct PerClient(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl PerClient {
    /// One more for the client at `address`; `None` if it has `most` already.
    pub fn take(&self, address: IpAddr, most: usize) -> Option<Held> {
        let client = client(address);
        let mut counts = self.counts();
        let count = counts.get(&client).copied().unwrap_or(0);
        if count >= most {
            return None;
        }
        counts.insert(client, count + 1);
        drop(counts);
        Some(Held {
            of: self.clone(),
            client,
        })
    }

    /// Whether nobody has any.
    pub fn is_empty(&self) -> bool {
        self.counts().is_empty()
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Only counted under the lock, and nothing in there can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts as one client: an IPv4 address, or an IPv6 /64, which is what one client is given.
pub(super) fn client(address: IpAddr) -> IpAddr {
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
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
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
            client(address("2001:db8::1")),
            client(address("2001:db8::2"))
        );
        assert_ne!(
            client(address("2001:db8::1")),
            client(address("2001:db8:0:1::1"))
        );
        assert_eq!(client(address("::ffff:192.0.2.1")), address("192.0.2.1"));
    }

    #[test]
    fn nothing_is_remembered_of_clients_that_left() {
        let counted = PerClient::default();
        let held = counted.take(address("192.0.2.1"), 1).expect("a first");
        assert!(counted.take(address("192.0.2.1"), 1).is_none());
        drop(held);
        assert!(counted.is_empty());
    }
}
