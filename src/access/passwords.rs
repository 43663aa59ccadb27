//! Checking passwords without being exhausted by it.
//!
//! Invariant: at most a bounded number of bcrypt runs at once, a bounded number of callers waits for
//! one, and of these only a part comes from one address; an unknown user costs as much as a known
//! one. Verdicts are remembered for a minute under a keyed hash of the password and of what it was
//! compared with: a pull of fifty layers costs one bcrypt, a changed user file is felt by the next
//! request, and a core dump holds no password.

use std::net::IpAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OnceCell, Semaphore};

use super::basic::Credentials;
use super::decide::Denied;
use super::per_client::PerClient;
use super::tokens::Questions;
use super::users::Users;

/// How long a verdict is believed: long enough for a pull.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Verdicts remembered at once; a few hundred KiB. Beyond it the oldest cost another bcrypt.
const MAX_VERDICTS: u64 = 4096;

/// Pairs of name and password that may wait for a check. At 60 ms each on two cores the last waits
/// about 8 s, which clients bear; beyond it they are told to come back.
const MAX_WAITING: usize = 256;

/// How many of these may be from one IPv4 address or IPv6 /64, so that who tries passwords there
/// holds up the others for a second or two and locks nobody out.
const MAX_WAITING_FROM_ONE: usize = 32;

/// What bcrypt looks at; a longer password would be equal to any that begins like it.
const MAX_PASSWORD_BYTES: usize = 72;

/// What checking passwords counts. The silent form is `default()`, registered nowhere.
#[derive(Clone, Debug, Default)]
pub struct AccessMetrics {
    /// Passwords that were hashed to be compared.
    pub password_checks: Counter,
    /// What ECR said when it was asked about tokens of clients.
    pub(super) token_questions: Questions,
}

impl AccessMetrics {
    /// Makes the handles readable.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "password_checks",
            "Passwords hashed by bcrypt; a login that is remembered costs none",
            self.password_checks.clone(),
        );
        registry.register(
            "client_token_questions",
            "Questions to ECR what the bearer of a client's token may do, by its answer; what is \
             remembered costs none",
            self.token_questions.clone(),
        );
    }
}

/// The users, and the checking of their passwords. A clone, also one with other users, shares its bounds and
/// what it remembers.
#[derive(Clone)]
pub(super) struct Passwords {
    users: Arc<Users>,
    checks: Arc<Checks>,
}

struct Checks {
    key: [u8; 32],
    verdicts: Cache<[u8; 32], Arc<OnceCell<bool>>>,
    running: Arc<Semaphore>,
    waiting: Semaphore,
    from_one: PerClient,
    metrics: AccessMetrics,
}

impl Passwords {
    /// `key` makes what is remembered useless to whoever does not have it.
    pub(super) fn new(users: Users, key: [u8; 32], metrics: AccessMetrics) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let checks = Checks {
            key,
            verdicts: Cache::builder()
                .max_capacity(MAX_VERDICTS)
                .time_to_live(REMEMBERED)
                .build(),
            // Half of the cores, so that a flood of logins leaves room for pulls.
            running: Arc::new(Semaphore::new(cores.div_ceil(2))),
            waiting: Semaphore::new(MAX_WAITING),
            from_one: PerClient::default(),
            metrics,
        };
        Self {
            users: Arc::new(users),
            checks: Arc::new(checks),
        }
    }

    pub(super) fn users(&self) -> &Users {
        &self.users
    }

    /// The same with other users.
    pub(super) fn with_users(&self, users: Users) -> Self {
        Self {
            users: Arc::new(users),
            checks: Arc::clone(&self.checks),
        }
    }

    /// Whether the password is the user's.
    ///
    /// Cancel safe: a bcrypt that has begun ends on the blocking pool, and whoever else waits for the
    /// same pair has it checked.
    pub(super) async fn check(
        &self,
        credentials: Credentials,
        address: IpAddr,
    ) -> Result<bool, Denied> {
        let (users, checks) = (&self.users, &self.checks);
        let known = users.hash(&credentials.user);
        // Another user's hash costs what a real check costs, whatever costs the file has. Which one
        // depends on the name and the secret key alone, so it cannot be averaged out; and it is looked for
        // in either case, so that looking tells nothing.
        let other = users.any_hash(checks.pick(&credentials.user));
        let Some(hash) = known.or(other) else {
            return Ok(false);
        };
        let key = checks.key_of(&credentials, known.is_some(), hash);
        // Those who ask the same wait together.
        let cell = checks.verdicts.get_with(key, Arc::default);
        if let Some(verdict) = cell.get() {
            return Ok(*verdict);
        }
        let (is_known, hash) = (known.is_some(), hash.to_owned());
        let verdict = cell.get_or_try_init(|| async {
            let _place = checks.waiting.try_acquire().map_err(|_| Denied::Busy)?;
            let from_one = checks.from_one.take(address, MAX_WAITING_FROM_ONE);
            let _from_one = from_one.ok_or(Denied::Busy)?;
            let turn = Arc::clone(&checks.running).acquire_owned();
            let turn = turn.await.map_err(|_| Denied::Busy)?;
            checks.metrics.password_checks.inc();
            let checked = tokio::task::spawn_blocking(move || {
                // Kept until the check ends: a caller that leaves does not free its core.
                let _turn = turn;
                let password = &credentials.password;
                let is_equal = bcrypt::verify(password, &hash).unwrap_or(false);
                is_equal && is_known && password.len() <= MAX_PASSWORD_BYTES
            });
            checked.await.map_err(|_| Denied::Busy)
        });
        verdict.await.copied()
    }
}

impl Checks {
    /// SHA-256 over a secret key, then the parts, the first two with their length. The result never
    /// leaves the process, so the plain construction suffices.
    fn key_of(&self, credentials: &Credentials, is_known: bool, compared: &str) -> [u8; 32] {
        let mut sum = Sha256::new();
        sum.update(self.key);
        sum.update([u8::from(is_known)]);
        for part in [&credentials.user, compared] {
            sum.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            sum.update(part.as_bytes());
        }
        sum.update(credentials.password.as_bytes());
        sum.finalize().into()
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

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn credentials(user: &str, password: &str) -> Credentials {
        Credentials {
            user: user.into(),
            password: password.to_owned(),
        }
    }

    fn users(pairs: &[(&str, &str)]) -> Users {
        let hash = |password| bcrypt::hash(password, 4).expect("hash");
        let lines = pairs
            .iter()
            .map(|(name, p)| format!("{name}:{}\n", hash(p)));
        Users::parse(&lines.collect::<String>()).expect("users")
    }

    fn passwords_of(users: Users) -> Passwords {
        Passwords::new(users, [7; 32], AccessMetrics::default())
    }

    fn passwords() -> Passwords {
        passwords_of(users(&[("ci", "secret")]))
    }

    async fn ask(passwords: &Passwords, user: &str, password: &str) -> Result<bool, Denied> {
        passwords.check(credentials(user, password), HERE).await
    }

    #[tokio::test]
    async fn a_verdict_is_remembered_and_costs_one_bcrypt() {
        let passwords = passwords();
        for _ in 0..50 {
            assert_eq!(ask(&passwords, "ci", "secret").await, Ok(true));
            assert_eq!(ask(&passwords, "ci", "wrong").await, Ok(false));
        }
        assert_eq!(passwords.checks.metrics.password_checks.get(), 2);
    }

    #[tokio::test]
    async fn those_who_ask_the_same_at_once_cost_one_bcrypt_and_one_place() {
        let passwords = Arc::new(passwords());
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..2 * MAX_WAITING {
            let passwords = Arc::clone(&passwords);
            all.spawn(async move { ask(&passwords, "ci", "secret").await });
        }
        assert!(all.join_all().await.into_iter().all(|v| v == Ok(true)));
        assert_eq!(passwords.checks.metrics.password_checks.get(), 1);
    }

    #[tokio::test]
    async fn s19_an_unknown_user_costs_what_a_known_one_does_and_is_refused() {
        let passwords = passwords();
        for (index, (user, password)) in [("no", "secret"), ("ci", "wrong"), ("other", "x")]
            .into_iter()
            .enumerate()
        {
            assert_eq!(ask(&passwords, user, password).await, Ok(false));
            let checks = passwords.checks.metrics.password_checks.get();
            assert_eq!(checks, index as u64 + 1, "{user}");
        }
    }

    #[tokio::test]
    async fn s04_no_verdict_outlives_a_changed_user_file() {
        let first = passwords();
        assert_eq!(ask(&first, "ci", "secret").await, Ok(true));
        assert_eq!(ask(&first, "dev", "other").await, Ok(false));
        let second = first.with_users(users(&[("ci", "changed"), ("dev", "other")]));
        assert_eq!(ask(&second, "ci", "secret").await, Ok(false));
        assert_eq!(ask(&second, "ci", "changed").await, Ok(true));
        assert_eq!(ask(&second, "dev", "other").await, Ok(true));
        let third = second.with_users(users(&[("dev", "other")]));
        assert_eq!(ask(&third, "ci", "changed").await, Ok(false));
        let none = third.with_users(Users::default());
        assert_eq!(ask(&none, "dev", "other").await, Ok(false));
        // The bounds are those of all together.
        let checks = first.checks.metrics.password_checks.get();
        assert_eq!(none.checks.metrics.password_checks.get(), checks);
    }

    #[tokio::test]
    async fn s20_a_password_that_bcrypt_would_cut_is_nobodys() {
        let long = "x".repeat(72);
        let passwords = passwords_of(users(&[("ci", &long)]));
        assert_eq!(ask(&passwords, "ci", &long).await, Ok(true));
        assert_eq!(ask(&passwords, "ci", &(long + "y")).await, Ok(false));
    }

    #[tokio::test]
    async fn s20_a_full_queue_is_told_at_once() {
        let passwords = passwords();
        let all = u32::try_from(MAX_WAITING).expect("small");
        let held = passwords
            .checks
            .waiting
            .try_acquire_many(all)
            .expect("free");
        assert_eq!(ask(&passwords, "ci", "secret").await, Err(Denied::Busy));
        // Nothing of it is remembered.
        drop(held);
        assert_eq!(ask(&passwords, "ci", "secret").await, Ok(true));
    }

    #[tokio::test]
    async fn s20_one_address_has_a_part_of_the_queue() {
        let passwords = passwords();
        let attacker: IpAddr = "2001:db8::1".parse().expect("an address");
        let mut held: Vec<_> = (0..MAX_WAITING_FROM_ONE)
            .map(|_| {
                passwords
                    .checks
                    .from_one
                    .take(attacker, MAX_WAITING_FROM_ONE)
                    .expect("free")
            })
            .collect();
        let neighbour = "2001:db8::ffff:0:0:2".parse().expect("an address");
        let pair = || credentials("ci", "secret");
        assert_eq!(passwords.check(pair(), neighbour).await, Err(Denied::Busy));
        assert_eq!(passwords.check(pair(), HERE).await, Ok(true));
        held.clear();
        assert!(passwords.checks.from_one.is_empty());
    }

    #[test]
    fn user_hash_and_password_do_not_run_together() {
        let passwords = passwords();
        let key = |user, hash, password| {
            passwords
                .checks
                .key_of(&credentials(user, password), true, hash)
        };
        assert_ne!(key("ab", "h", "c"), key("a", "h", "bc"));
        assert_ne!(key("a", "bh", "c"), key("ab", "h", "c"));
    }
}
