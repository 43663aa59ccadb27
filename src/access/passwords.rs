//! Checking passwords without being exhausted by it.
//!
//! Invariant: at most a bounded number of bcrypt runs at once and a bounded number of callers
//! waits for one; an unknown user costs as much as a known one. Verdicts are remembered for a
//! minute under a keyed hash, so a pull of fifty layers costs one bcrypt and a core dump holds no
//! password.

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::basic::Credentials;
use super::decide::Denied;
use super::users::Users;

/// How long a verdict is believed: long enough for a pull, short enough that a changed user file
/// is felt soon.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Verdicts remembered at once; a few hundred KiB. Beyond it the oldest cost another bcrypt.
const MAX_VERDICTS: u64 = 4096;

/// Callers that may wait for a check. At 60 ms each on two cores the last waits about 8 s, which
/// clients bear; beyond it they are told to come back.
const MAX_WAITING: usize = 256;

pub(super) struct Passwords {
    shared: Arc<Shared>,
    running: Arc<Semaphore>,
    waiting: Semaphore,
}

struct Shared {
    users: Users,
    key: [u8; 32],
    verdicts: Cache<[u8; 32], bool>,
}

impl Passwords {
    pub(super) fn new(users: Users) -> std::io::Result<Self> {
        let mut key = [0; 32];
        // A request of at most 256 bytes is never cut short once the pool is initialised.
        let filled = getrandom(&mut key, GetRandomFlags::empty())?;
        if filled != key.len() {
            return Err(std::io::Error::other("the random source gave too little"));
        }
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Ok(Self {
            shared: Arc::new(Shared {
                users,
                key,
                verdicts: Cache::builder()
                    .max_capacity(MAX_VERDICTS)
                    .time_to_live(REMEMBERED)
                    .build(),
            }),
            // Half of the cores, so that a flood of logins leaves room for pulls.
            running: Arc::new(Semaphore::new(cores.div_ceil(2))),
            waiting: Semaphore::new(MAX_WAITING),
        })
    }

    pub(super) fn nobody(&self) -> bool {
        self.shared.users.is_empty()
    }

    /// Whether the password is the user's. Cancel safe.
    pub(super) async fn check(&self, credentials: Credentials) -> Result<bool, Denied> {
        if self.nobody() {
            return Ok(false);
        }
        let key = self.shared.key_of(&credentials);
        if let Some(verdict) = self.shared.verdicts.get(&key) {
            return Ok(verdict);
        }
        let _place = self.waiting.try_acquire().map_err(|_| Denied::Busy)?;
        let turn = Arc::clone(&self.running).acquire_owned();
        let turn = turn.await.map_err(|_| Denied::Busy)?;
        let shared = Arc::clone(&self.shared);
        // `get_with` joins concurrent checks of the same pair and those that waited for a turn.
        tokio::task::spawn_blocking(move || {
            // Kept until the check ends: a caller that leaves does not free its core.
            let _turn = turn;
            shared
                .verdicts
                .get_with(key, || shared.verify(&credentials))
        })
        .await
        .map_err(|_| Denied::Busy)
    }
}

impl Shared {
    /// SHA-256 over a secret key, then both parts, the first with its length. The result never
    /// leaves the process, so the plain construction suffices.
    fn key_of(&self, credentials: &Credentials) -> [u8; 32] {
        let user = credentials.user.as_bytes();
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update(u64::try_from(user.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(user);
        hash.update(credentials.password.as_bytes());
        hash.finalize().into()
    }

    fn verify(&self, credentials: &Credentials) -> bool {
        let (hash, known) = match self.users.hash(&credentials.user) {
            Some(hash) => (Some(hash), true),
            // Another user's hash costs what a real check costs, whatever costs the file has.
            // Which one depends on the name and the secret key alone, so it cannot be averaged out.
            None => (self.users.any_hash(self.pick(&credentials.user)), false),
        };
        let equal =
            hash.is_some_and(|hash| bcrypt::verify(&credentials.password, hash).unwrap_or(false));
        known && equal
    }

    fn pick(&self, user: &str) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update(b"pick");
        hash.update(user.as_bytes());
        let digest: [u8; 32] = hash.finalize().into();
        digest
            .iter()
            .take(8)
            .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(user: &str, password: &str) -> Credentials {
        Credentials {
            user: user.into(),
            password: password.to_owned(),
        }
    }

    fn passwords() -> Passwords {
        let line = format!("ci:{}", bcrypt::hash("secret", 4).expect("hash"));
        Passwords::new(Users::parse(&line).expect("users")).expect("passwords")
    }

    #[tokio::test]
    async fn a_verdict_is_remembered_and_costs_one_bcrypt() {
        let passwords = passwords();
        for _ in 0..50 {
            assert_eq!(passwords.check(credentials("ci", "secret")).await, Ok(true));
            assert_eq!(passwords.check(credentials("ci", "wrong")).await, Ok(false));
        }
        passwords.shared.verdicts.run_pending_tasks();
        assert_eq!(passwords.shared.verdicts.entry_count(), 2);
    }

    #[tokio::test]
    async fn an_unknown_user_with_anothers_password_is_refused() {
        let passwords = passwords();
        assert_eq!(
            passwords.check(credentials("no", "secret")).await,
            Ok(false)
        );
    }

    #[tokio::test]
    async fn a_full_queue_is_told_at_once() {
        let passwords = passwords();
        let all = u32::try_from(MAX_WAITING).expect("small");
        let _held = passwords.waiting.try_acquire_many(all).expect("free");
        assert_eq!(
            passwords.check(credentials("ci", "secret")).await,
            Err(Denied::Busy)
        );
    }

    #[test]
    fn user_and_password_do_not_run_together() {
        let passwords = passwords();
        let one = passwords.shared.key_of(&credentials("ab", "c"));
        let other = passwords.shared.key_of(&credentials("a", "bc"));
        assert_ne!(one, other);
    }
}
