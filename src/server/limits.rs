//! How many connections there may be, in all and from one address, and who makes room when all are taken.
//!
//! Invariant: a [`Place`] is counted from its making until it is dropped or told to leave. Only an idle connection
//! is told to leave, and only one of a client that has at least two more than the one it makes room for: nobody
//! takes turns with anybody. It leaves by itself, at once unless it was asked for something meanwhile, which it
//! answers first, so no request that has begun is ever cut for another, and no answer short. While too many do
//! that nobody else has to leave.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::progress::Pulse;
use crate::access::one_client;

/// Counts connections against both caps.
#[derive(Clone, Debug)]
pub(super) struct Places {
    taken: Arc<Mutex<Taken>>,
    max: usize,
    max_per_address: usize,
    /// How many may be on their way out, beyond `max`.
    max_leaving: usize,
}

#[derive(Debug, Default)]
struct Taken {
    seats: HashMap<u64, Seat>,
    /// How many seats each client has that has any.
    counts: HashMap<IpAddr, usize>,
    /// Those that were told to leave, and have not.
    leaving: HashSet<u64>,
    next: u64,
}

/// What is known of one connection.
#[derive(Debug)]
struct Seat {
    client: IpAddr,
    is_shared: bool,
    pulse: Arc<Pulse>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The client has as many as one may have.
    Client,
    /// All are taken, and nobody has to make room.
    All,
}

impl Places {
    pub(super) fn new(max: usize, max_per_address: usize) -> Self {
        Self {
            taken: Arc::default(),
            max,
            max_per_address,
            max_leaving: (max / 16).max(4),
        }
    }

    /// A place for a connection from `peer`, whose pulse this is, and whether another one has to leave for it. A
    /// peer that is shared, such as a balancer, stands for many clients: it has no cap of its own, and makes no
    /// room.
    ///
    /// # Errors
    /// A cap is reached.
    pub(super) fn take(
        &self,
        peer: IpAddr,
        is_shared: bool,
        pulse: &Arc<Pulse>,
    ) -> Result<(Place, bool), Full> {
        let client = one_client(peer);
        let mut taken = self.taken();
        let has = taken.counts.get(&client).copied().unwrap_or_default();
        if has >= self.max_per_address && !is_shared {
            return Err(Full::Client);
        }
        let is_full = taken.seats.len() >= self.max;
        if is_full {
            if taken.leaving.len() >= self.max_leaving {
                return Err(Full::All);
            }
            taken.make_room(has)?;
        }
        let number = taken.next;
        taken.next += 1;
        let seat = Seat {
            client,
            is_shared,
            pulse: Arc::clone(pulse),
        };
        taken.seats.insert(number, seat);
        *taken.counts.entry(client).or_default() += 1;
        drop(taken);
        let place = Place {
            of: self.clone(),
            number,
        };
        Ok((place, is_full))
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Only counted under the lock, and nothing in there can panic.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Tells one connection to leave for a client that has `has`: of those who have the most one that is idle,
    /// and of these the one that has been for longest.
    fn make_room(&mut self, has: usize) -> Result<(), Full> {
        // Looking at all of them is for those who may find one.
        if self.counts.values().all(|count| *count < has + 2) {
            return Err(Full::All);
        }
        let idle = self.seats.iter().filter_map(|(number, seat)| {
            let count = self.counts.get(&seat.client).copied().unwrap_or_default();
            let since = seat.pulse.idle_since()?;
            let may_leave = count >= has + 2 && !seat.is_shared;
            may_leave.then_some((count, Reverse((since, *number))))
        });
        let (_, Reverse((_, number))) = idle.max().ok_or(Full::All)?;
        if let Some(seat) = self.remove(number) {
            self.leaving.insert(number);
            seat.pulse.leave();
        }
        Ok(())
    }

    /// `None` if it has left already.
    fn remove(&mut self, number: u64) -> Option<Seat> {
        let seat = self.seats.remove(&number)?;
        if let Entry::Occupied(mut count) = self.counts.entry(seat.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        Some(seat)
    }
}

/// One counted connection.
#[derive(Debug)]
pub(super) struct Place {
    of: Places,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        taken.leaving.remove(&self.number);
        taken.remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::{JoinHandle, yield_now};
    use tokio::time::{Instant, advance};

    use super::*;

    const ONE: &str = "192.0.2.1";
    const TWO: &str = "192.0.2.2";
    const THREE: &str = "192.0.2.3";

    fn take(places: &Places, address: &str) -> Result<Place, Full> {
        take_with(places, address, &Pulse::new(Instant::now()))
    }

    fn take_with(places: &Places, address: &str, pulse: &Arc<Pulse>) -> Result<Place, Full> {
        let address = address.parse().expect("an address");
        places.take(address, false, pulse).map(|(place, _)| place)
    }

    /// A connection that does nothing until it is told to leave, in a place of its own.
    fn open(places: &Places, address: &str, pulse: &Arc<Pulse>) -> JoinHandle<()> {
        let place = take_with(places, address, pulse).expect("room");
        let pulse = Arc::clone(pulse);
        tokio::spawn(async move {
            let _place = place;
            pulse.told_to_leave().await;
        })
    }

    #[test]
    fn both_caps_hold_and_a_dropped_place_is_free_again() {
        let places = Places::new(3, 2);
        let first = take(&places, ONE).expect("below both caps");
        let _second = take(&places, ONE).expect("below both caps");
        assert_eq!(take(&places, ONE).err(), Some(Full::Client));
        let _third = take(&places, TWO).expect("below both caps");
        assert_eq!(take(&places, TWO).err(), Some(Full::All));
        drop(first);
        assert!(take(&places, ONE).is_ok());
    }

    #[test]
    fn l12_who_is_told_to_leave_and_stays_makes_room_a_few_times_only() {
        let places = Places::new(100, 100);
        let pulse = Pulse::new(Instant::now());
        let mut kept: Vec<Place> = Vec::new();
        kept.extend((0..100).map(|_| take_with(&places, ONE, &pulse).expect("room")));
        let mut newcomers = Vec::new();
        let refused = loop {
            match take_with(&places, TWO, &pulse) {
                Ok(place) => newcomers.push(place),
                Err(full) => break full,
            }
        };
        assert_eq!((refused, newcomers.len()), (Full::All, places.max_leaving));
        // The one that has been idle for longest was the first to be told.
        kept.remove(0);
        assert!(take_with(&places, TWO, &pulse).is_ok(), "it has left");
    }

    #[test]
    fn a_balancer_is_not_one_client_and_makes_no_room() {
        let places = Places::new(3, 1);
        let pulse = Pulse::new(Instant::now());
        let balancer = ONE.parse().expect("an address");
        let taken = [(); 3].map(|()| {
            let taken = places.take(balancer, true, &pulse);
            taken.expect("below the cap").0
        });
        assert!(places.take(balancer, true, &pulse).is_err(), "total cap");
        assert_eq!(take(&places, TWO).err(), Some(Full::All));
        drop(taken);
    }

    #[test]
    fn nothing_is_remembered_of_addresses_that_left() {
        let places = Places::new(10, 10);
        drop(take(&places, ONE));
        let taken = places.taken();
        assert!(taken.seats.is_empty() && taken.counts.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_the_most_makes_room_by_what_has_been_idle_for_longest() {
        let places = Places::new(5, 5);
        let pulse = Pulse::new(Instant::now());
        let _request = pulse.begin_request();
        let busy = open(&places, ONE, &pulse);
        let mut idle = Vec::new();
        for address in [ONE, ONE, TWO, TWO] {
            advance(Duration::from_secs(1)).await;
            idle.push(open(&places, address, &Pulse::new(Instant::now())));
        }
        let third = take(&places, THREE).expect("somebody makes room");
        let is_ended = |task: &JoinHandle<()>| task.is_finished();
        yield_now().await;
        assert!(!is_ended(&busy));
        let ended: Vec<bool> = idle.iter().map(is_ended).collect();
        assert_eq!(ended, [true, false, false, false]);
        assert_eq!(places.taken().seats.len(), 5, "it is counted once");
        // Nobody has two more than the others have by now.
        assert_eq!(take(&places, THREE).err(), Some(Full::All));
        drop(third);
    }

    #[tokio::test]
    async fn what_is_busy_makes_no_room() {
        let places = Places::new(3, 3);
        let pulse = Pulse::new(Instant::now());
        let _busy = [(); 3].map(|()| open(&places, ONE, &pulse));
        let (_, request) = pulse.begin_request();
        assert_eq!(take(&places, TWO).err(), Some(Full::All));
        // What was answered is not all gone yet.
        let unsent = pulse.hold_unsent();
        drop(request);
        assert_eq!(take(&places, TWO).err(), Some(Full::All));
        drop(unsent);
        assert!(take(&places, TWO).is_ok());
    }
}
