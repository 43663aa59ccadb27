//! Who logged in on a connection.
//!
//! Clients send the same credentials with each request. Hashing them for each, to find that they were
//! checked before, costs more than the rest of a decision.
//!
//! Invariant: a login holds for the very [`Access`](super::Access) that checked it. Where users or rules
//! have changed since there is another one, and credentials are checked again.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use http::HeaderValue;

use super::Inner;

/// The last password login of a connection. It keeps what the client sent for as long as the connection,
/// which nobody but that client can compare with.
#[derive(Default)]
pub struct Login(Mutex<Option<Checked>>);

struct Checked {
    authorization: Box<[u8]>,
    by: Weak<Inner>,
    user: Arc<str>,
}

impl Login {
    /// Whose login `authorization` was when `access` checked it on this connection.
    pub(super) fn of(&self, authorization: &HeaderValue, access: &Arc<Inner>) -> Option<Arc<str>> {
        let last = self.last();
        let last = last.as_ref()?;
        // What a `Weak` points to is not used again while there is one.
        let is_same = std::ptr::eq(last.by.as_ptr(), Arc::as_ptr(access))
            && is_equal(&last.authorization, authorization.as_bytes());
        is_same.then(|| Arc::clone(&last.user))
    }

    /// `access` found that `authorization` is `user`'s.
    pub(super) fn note(&self, authorization: &HeaderValue, access: &Arc<Inner>, user: &Arc<str>) {
        *self.last() = Some(Checked {
            // A copy: the value is a part of all that was read with it.
            authorization: authorization.as_bytes().into(),
            by: Arc::downgrade(access),
            user: Arc::clone(user),
        });
    }

    fn last(&self) -> MutexGuard<'_, Option<Checked>> {
        // Only replaced as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In a time that does not tell where two differ: a balancer may send the requests of several clients by one
/// connection.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let differing = |sum, (one, other): (&u8, &u8)| sum | (one ^ other);
    one.len() == other.len() && one.iter().zip(other).fold(0, differing) == 0
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.last().as_ref().map(|last| Arc::clone(&last.user));
        f.debug_struct("Login")
            .field("user", &user)
            .finish_non_exhaustive()
    }
}
