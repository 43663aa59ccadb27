//! Turns at something of which there is only so much for all.
//!
//! Invariant: no client has more than half of the turns at once, however many it asks for; it waits for
//! its own, and nobody else waits for them.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::per_client::one_client;

/// So many turns. Clones share them.
#[derive(Clone)]
pub struct Turns(Arc<Shared>);

struct Shared {
    all: Arc<Semaphore>,
    /// How many one client may have.
    most: usize,
    clients: Mutex<Clients>,
    /// How many turns are had or waited for.
    wanted: AtomicUsize,
    /// Told when there are none.
    unwanted: Notify,
}

#[derive(Default)]
struct Clients {
    /// The turns of each client that has or wants one.
    turns: HashMap<IpAddr, Weak<Semaphore>>,
    /// At how many entries those of clients that left are looked for.
    sweep_at: usize,
}

/// One turn, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _of_all: Option<OwnedSemaphorePermit>,
    _of_client: Option<OwnedSemaphorePermit>,
    _wanted: Wanted,
}

impl Turns {
    /// `count` turns, at least one.
    pub fn new(count: usize) -> Self {
        let count = count.max(1);
        Self(Arc::new(Shared {
            all: Arc::new(Semaphore::new(count)),
            most: count.div_ceil(2),
            clients: Mutex::default(),
            wanted: AtomicUsize::new(0),
            unwanted: Notify::new(),
        }))
    }

    /// Waits for a turn, behind those of the same client that came before. `None` is nobody in
    /// particular, an address that stands for many: only the number in all counts.
    ///
    /// # Cancel safety
    /// Whoever leaves gives up the place in the queue, and nothing else.
    pub async fn take(&self, client: Option<IpAddr>) -> Turn {
        let wanted = Wanted::new(Arc::clone(&self.0));
        // The semaphores are never closed.
        let of_client = match client {
            Some(address) => self.of(address).acquire_owned().await.ok(),
            None => None,
        };
        let of_all = Arc::clone(&self.0.all).acquire_owned().await.ok();
        Turn {
            _of_all: of_all,
            _of_client: of_client,
            _wanted: wanted,
        }
    }

    /// Waits until nobody has a turn or waits for one.
    ///
    /// # Cancel safety
    /// Leaving changes nothing.
    pub async fn until_unwanted(&self) {
        loop {
            let mut unwanted = pin!(self.0.unwanted.notified());
            // From here on none is missed.
            unwanted.as_mut().enable();
            if self.0.wanted.load(Ordering::Acquire) == 0 {
                return;
            }
            unwanted.await;
        }
    }

    fn of(&self, address: IpAddr) -> Arc<Semaphore> {
        let address = one_client(address);
        // Nothing under the lock can panic half-way.
        let clients = self.0.clients.lock();
        let mut clients = clients.unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = clients.turns.get(&address).and_then(Weak::upgrade) {
            return turns;
        }
        if clients.turns.len() >= clients.sweep_at {
            clients.turns.retain(|_, turns| turns.strong_count() > 0);
            clients.sweep_at = 2 * clients.turns.len() + 16;
        }
        let turns = Arc::new(Semaphore::new(self.0.most));
        clients.turns.insert(address, Arc::downgrade(&turns));
        turns
    }
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns")
            .field("wanted", &self.0.wanted)
            .finish_non_exhaustive()
    }
}

/// Counts a turn that is had or waited for.
struct Wanted(Arc<Shared>);

impl Wanted {
    fn new(shared: Arc<Shared>) -> Self {
        shared.wanted.fetch_add(1, Ordering::AcqRel);
        Self(shared)
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        if self.0.wanted.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.unwanted.notify_waiters();
        }
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wanted")
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn at(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    #[tokio::test]
    async fn one_client_has_half_and_waits_for_itself_alone() {
        let turns = Turns::new(4);
        let mut first = vec![turns.take(at(1)).await, turns.take(at(1)).await];
        let mut third = Box::pin(turns.take(at(1)));
        assert!(third.as_mut().now_or_never().is_none(), "more than half");
        let _second = turns.take(at(2)).await;
        let _of_many = turns.take(None).await;
        assert!(turns.take(at(3)).now_or_never().is_none(), "more than all");
        first.pop();
        drop(third.now_or_never().expect("a turn that is free"));
    }

    #[tokio::test]
    async fn who_waits_is_wanted_too() {
        let turns = Turns::new(1);
        turns.until_unwanted().await;
        let turn = turns.take(at(1)).await;
        let mut waiting = Box::pin(turns.take(at(1)));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(turn);
        assert!(turns.until_unwanted().now_or_never().is_none());
        drop(waiting);
        turns.until_unwanted().await;
    }

    #[tokio::test]
    async fn those_who_left_are_forgotten() {
        let turns = Turns::new(4);
        for last in 0..=255 {
            drop(turns.take(at(last)).await);
        }
        let known = turns.0.clients.lock().expect("no panic").turns.len();
        assert!(known <= 16, "{known} are remembered");
    }
}
