//! One piece of work for everybody who asks for the same thing at the same time.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// The task that was to answer ended without doing so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost;

/// Work in progress by key. Clone is cheap and shares the work.
pub(super) struct Flights<K, V> {
    running: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
}

impl<K, V> Clone for Flights<K, V> {
    fn clone(&self) -> Self {
        Self {
            running: Arc::clone(&self.running),
        }
    }
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self {
            running: Arc::default(),
        }
    }
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The answer of the work on `key`, begun now if nobody has.
    ///
    /// # Cancel safety
    /// The work runs in a task of its own: a caller that leaves changes nothing for the others.
    pub(super) async fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<V, Lost>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut answer = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            match running.get(&key) {
                Some(answer) => answer.clone(),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    running.insert(key.clone(), receiver.clone());
                    let landing = Landing {
                        flights: self.clone(),
                        key,
                        answer: receiver.clone(),
                    };
                    let work = work();
                    tokio::spawn(async move {
                        let value = work.await;
                        // Off the map before the answer is told: who asks from now on asks anew.
                        drop(landing);
                        sender.send_replace(Some(value));
                    });
                    receiver
                }
            }
        };
        let told = answer.wait_for(Option::is_some).await.map_err(|_| Lost)?;
        told.clone().ok_or(Lost)
    }

    /// Whoever asks from now on asks anew; work in progress goes on for those who wait for it.
    pub(super) fn abandon(&self) {
        self.abandon_those(|_| true);
    }

    /// The same of the keys that `are_meant`.
    pub(super) fn abandon_those(&self, are_meant: impl Fn(&K) -> bool) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|key, _| !are_meant(key));
    }
}

/// Takes a flight off the map however its task ends, by panic as well.
struct Landing<K: Eq + Hash, V> {
    flights: Flights<K, V>,
    key: K,
    answer: watch::Receiver<Option<V>>,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        let running = self.flights.running.lock();
        let mut running = running.unwrap_or_else(PoisonError::into_inner);
        let is_this = |answer: &watch::Receiver<_>| answer.same_channel(&self.answer);
        // After it was abandoned another may be under way.
        if running.get(&self.key).is_some_and(is_this) {
            running.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Context, Waker};

    use tokio::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn many_askers_share_one_piece_of_work_and_the_first_may_leave() {
        let flights = Flights::<u8, u32>::default();
        let runs = Arc::new(AtomicU32::new(0));
        let gate = Arc::new(Barrier::new(2));
        let ask = || {
            let (flights, runs, gate) = (flights.clone(), Arc::clone(&runs), Arc::clone(&gate));
            async move {
                flights
                    .run(1, move || async move {
                        gate.wait().await;
                        runs.fetch_add(1, Ordering::SeqCst) + 7
                    })
                    .await
            }
        };
        let mut first = Box::pin(ask());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(first.as_mut().poll(&mut cx).is_pending());
        drop(first);
        let mut second = Box::pin(ask());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        gate.wait().await;
        assert_eq!(second.await, Ok(7));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn what_is_abandoned_goes_on_for_those_who_wait_and_is_joined_by_nobody() {
        let flights = Flights::<u8, u32>::default();
        let gate = Arc::new(Barrier::new(2));
        let held = |value| {
            let gate = Arc::clone(&gate);
            flights.run(1, move || async move {
                gate.wait().await;
                value
            })
        };
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = Box::pin(held(1));
        assert!(first.as_mut().poll(&mut cx).is_pending());
        flights.abandon();
        let mut second = Box::pin(held(2));
        assert!(second.as_mut().poll(&mut cx).is_pending());
        // Both have come to the gate, so it opens for both.
        assert_eq!((first.await, second.await), (Ok(1), Ok(2)));
        assert_eq!(flights.run(1, || async { 3 }).await, Ok(3));
    }

    #[tokio::test]
    async fn c06_a_panic_reaches_every_waiter_as_an_error_and_leaves_nothing_behind() {
        let flights = Flights::<u8, u32>::default();
        let lost = flights.run(1, || async { panic!("on purpose") }).await;
        assert_eq!(lost, Err(Lost));
        assert_eq!(flights.run(1, || async { 3 }).await, Ok(3));
    }
}
