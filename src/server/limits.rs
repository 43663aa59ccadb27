//! How many connections there may be, in all and from one address.
//!
//! Invariant: a [`Place`] is counted from its making to its drop.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::{Held, PerClient};

/// Counts connections against both caps.
#[derive(Clone, Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    by_address: PerClient,
    max_per_address: usize,
}

impl Places {
    pub(super) fn new(max_connections: usize, max_per_address: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(max_connections)),
            by_address: PerClient::default(),
            max_per_address,
        }
    }

    /// A place for a connection from `peer`, or `None` where a cap is reached. One that is
    /// shared, such as a balancer's, stands for many clients.
    pub(super) fn take(&self, peer: IpAddr, is_shared: bool) -> Option<Place> {
        let most = match is_shared {
            true => usize::MAX,
            false => self.max_per_address,
        };
        Some(Place {
            _of_all: Arc::clone(&self.all).try_acquire_owned().ok()?,
            _of_address: self.by_address.take(peer, most)?,
        })
    }
}

/// One counted connection.
#[derive(Debug)]
pub(super) struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_address: Held,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn both_caps_hold_and_a_dropped_place_is_free_again() {
        let places = Places::new(3, 2);
        let first = places
            .take(address("192.0.2.1"), false)
            .expect("below both caps");
        let _second = places
            .take(address("192.0.2.1"), false)
            .expect("below both caps");
        assert!(
            places.take(address("192.0.2.1"), false).is_none(),
            "address cap"
        );
        let _third = places
            .take(address("192.0.2.2"), false)
            .expect("below both caps");
        assert!(
            places.take(address("192.0.2.3"), false).is_none(),
            "total cap"
        );
        drop(first);
        assert!(places.take(address("192.0.2.1"), false).is_some());
    }

    #[test]
    fn a_balancer_is_not_one_client() {
        let places = Places::new(3, 1);
        let _taken = [(); 3].map(|()| {
            places
                .take(address("192.0.2.1"), true)
                .expect("below the cap")
        });
        assert!(
            places.take(address("192.0.2.1"), true).is_none(),
            "total cap"
        );
    }

    #[test]
    fn nothing_is_remembered_of_addresses_that_left() {
        let places = Places::new(10, 10);
        drop(places.take(address("192.0.2.1"), false));
        assert!(places.by_address.is_empty());
    }
}
