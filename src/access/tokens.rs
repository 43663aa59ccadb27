//! ECR's own tokens as logins: whoever logs in as `AWS` may do what ECR says of the token.
//!
//! Invariants: a token gives nothing by itself. That it is good, and each kind of reading in each
//! repository, is ECR's own answer to that very token; no answer is believed for longer than
//! [`BELIEVED`], counted from the moment it was asked for, and none is made up: where ECR does not answer,
//! nobody is told yes or no. Who brings rubbish makes us ask little: equal questions are asked once, a no
//! is remembered like a yes, few are asked at once, and a client to whom ECR keeps saying no has to wait. A token is never printed; the memory holds keyed hashes.
//!
//! What ECR is asked is handed in as [`Verdicts`]: nothing is known here of upstreams.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use moka::sync::Cache;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;

use super::decide::{Action, Content, Denied, Wanted};
use super::per_client::{PerClient, one_client};
use super::users::RESERVED_NAME;
use crate::oci::{Digest, Reference, RepoKey};

/// For how long an answer of ECR is believed: as long as a right that was taken away there may still
/// count here, and long enough for a pull.
const BELIEVED: Duration = Duration::from_secs(60);

/// Answers remembered at once; a few MiB. Beyond it the least used are asked for again.
const MAX_ANSWERS: u64 = 16 * 1024;

/// Questions asked at once. Each takes some tens of milliseconds.
const MAX_ASKED: usize = 16;

/// Questions that may wait for their turn, of everybody and of one client.
const MAX_WAITING: usize = 512;
const MAX_WAITING_FROM_ONE: usize = 64;

/// How long a caller waits for an answer, its turn included.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many tokens of one client ECR may refuse within [`BELIEVED`] before further ones that are not
/// known yet are turned away unasked. Above the machines that stand behind one address with old logins.
const MAX_BAD_TOKENS: u32 = 30;

/// How many repositories of ours it may refuse to the bearers at one client before they are turned away at
/// others unasked: every AWS account has tokens that are good, and is a stranger all the same.
const MAX_FORBIDDEN: u32 = 120;

/// Clients of which refusals are counted at once.
const MAX_CLIENTS: u64 = 16 * 1024;

/// The password of a login as `AWS`: what `aws ecr get-login-password` prints. Prints as redacted.
#[derive(Clone)]
pub struct ClientToken {
    password: Arc<str>,
    hash: [u8; 32],
}

impl ClientToken {
    /// A token of this password that nobody was asked about.
    #[cfg(test)]
    pub(crate) fn of_test(password: &str) -> Self {
        Self {
            password: password.into(),
            hash: Sha256::digest(password).into(),
        }
    }

    /// The value of `Authorization` that ECR takes, made anew from the password.
    pub fn authorization(&self) -> HeaderValue {
        let pair = format!("{RESERVED_NAME}:{}", self.password);
        let value = format!("Basic {}", STANDARD.encode(pair));
        // The alphabet of base64 is that of header values.
        let mut value = HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("Basic"));
        value.set_sensitive(true);
        value
    }
}

impl PartialEq for ClientToken {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for ClientToken {}

impl Hash for ClientToken {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

impl fmt::Debug for ClientToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientToken(redacted)")
    }
}

/// What ECR is asked about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// Whether it is good at all.
    Login,
    /// Whether its bearer may read manifests of the repository, this one to begin with.
    Manifest(&'a RepoKey, &'a Reference),
    /// Whether its bearer may read blobs of the repository, this one to begin with. ECR has a right of
    /// its own for them.
    Blob(&'a RepoKey, Digest),
    /// Whether its bearer may ask if blobs are in the repository, this one to begin with. In ECR who pushes
    /// has a right to that and none to read them.
    BlobHead(&'a RepoKey, Digest),
}

/// What ECR says of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Its bearer may. Whether what was asked for is there is another matter: ECR says that something is
    /// absent only to those who may ask.
    Allowed,
    /// Its bearer may not.
    Forbidden,
    /// It is no token, has expired, or was revoked.
    Invalid,
    /// Nothing: it cannot be asked now.
    Unknown,
}

impl EncodeLabelValue for Verdict {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        fmt::Write::write_str(
            encoder,
            match self {
                Self::Allowed => "allowed",
                Self::Forbidden => "forbidden",
                Self::Invalid => "invalid",
                Self::Unknown => "unknown",
            },
        )
    }
}

/// Asks ECR what the bearer of a token may do.
pub trait Verdicts: Send + Sync {
    /// Whether the upstream of this name is one that takes such tokens.
    fn takes_tokens(&self, upstream: &str) -> bool;

    /// Asks once. Whoever calls bounds how long it takes.
    fn ask<'a>(&'a self, token: &'a ClientToken, question: Question<'a>) -> BoxFuture<'a, Verdict>;
}

/// A label of what ECR said.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct VerdictLabel {
    result: Verdict,
}

/// Questions asked, by what ECR said.
pub(super) type Questions = Family<VerdictLabel, Counter>;

pub(super) struct Tokens {
    verdicts: Arc<dyn Verdicts>,
    key: [u8; 32],
    answers: Cache<[u8; 32], Arc<Remembered>>,
    /// How many tokens, and how many other questions, of each client were refused of late.
    refused: Cache<(IpAddr, bool), Arc<AtomicU32>>,
    running: Semaphore,
    waiting: Semaphore,
    from_one: PerClient,
    asked: Questions,
}

/// An answer, or those who wait for it.
struct Remembered {
    verdict: OnceCell<Verdict>,
    until: Instant,
}

impl Remembered {
    fn is_over(&self, now: Instant) -> bool {
        self.until <= now || self.verdict.get() == Some(&Verdict::Unknown)
    }
}

impl Tokens {
    pub(super) fn new(verdicts: Arc<dyn Verdicts>, key: [u8; 32], asked: Questions) -> Self {
        Self {
            verdicts,
            key,
            answers: Cache::builder()
                .max_capacity(MAX_ANSWERS)
                .time_to_live(BELIEVED)
                .build(),
            refused: Cache::builder()
                .max_capacity(MAX_CLIENTS)
                .time_to_live(BELIEVED)
                .build(),
            running: Semaphore::new(MAX_ASKED),
            waiting: Semaphore::new(MAX_WAITING),
            from_one: PerClient::default(),
            asked,
        }
    }

    /// The token that a password is, if ECR takes it.
    ///
    /// # Errors
    /// [`Denied::Unauthenticated`] if it does not, [`Denied::Undecided`] if it cannot be asked,
    /// [`Denied::Busy`] for a client that brought too many bad ones, or asks too much at once.
    pub(super) async fn identify(
        &self,
        password: String,
        address: IpAddr,
    ) -> Result<ClientToken, Denied> {
        let token = ClientToken {
            hash: self.hash(&[b"token", password.as_bytes()]),
            password: password.into(),
        };
        match self.verdict(&token, Question::Login, address).await? {
            Verdict::Allowed => Ok(token),
            Verdict::Forbidden | Verdict::Invalid => Err(Denied::Unauthenticated),
            Verdict::Unknown => Err(Denied::Undecided),
        }
    }

    /// Whether the token's bearer may do what is wanted.
    ///
    /// What reads what others may have fetched is asked for here. Everything else goes upstream with the
    /// token itself, where it is decided.
    ///
    /// # Errors
    /// [`Denied`] says why not.
    pub(super) async fn decide(
        &self,
        token: &ClientToken,
        wanted: &Wanted<'_>,
        address: IpAddr,
    ) -> Result<(), Denied> {
        let repo = wanted.repo.ok_or(Denied::Forbidden)?;
        if !self.verdicts.takes_tokens(&repo.upstream) {
            return Err(Denied::Forbidden);
        }
        let subject;
        let question = match (wanted.action, wanted.content) {
            (Action::Pull, Content::Manifest(reference)) => Question::Manifest(repo, reference),
            (Action::Pull, Content::Referrers(digest)) => {
                subject = Reference::Digest(digest);
                Question::Manifest(repo, &subject)
            }
            (Action::Pull, Content::Blob(digest)) => Question::Blob(repo, digest),
            (Action::Pull, Content::BlobHead(digest)) => {
                // Who may read it may ask for it, whatever ECR says to a HEAD.
                let may_read = Question::Blob(repo, digest);
                match self.verdict(token, may_read, address).await? {
                    Verdict::Forbidden => Question::BlobHead(repo, digest),
                    _ => may_read,
                }
            }
            (Action::Pull, Content::Uncached) | (Action::Push | Action::Delete, _) => return Ok(()),
        };
        match self.verdict(token, question, address).await? {
            Verdict::Allowed => Ok(()),
            Verdict::Forbidden => Err(Denied::Forbidden),
            Verdict::Invalid => Err(Denied::Unauthenticated),
            Verdict::Unknown => Err(Denied::Undecided),
        }
    }

    /// What ECR says, or said within [`BELIEVED`].
    ///
    /// Cancel safe: whoever else waits for the same answer asks on.
    async fn verdict(
        &self,
        token: &ClientToken,
        question: Question<'_>,
        address: IpAddr,
    ) -> Result<Verdict, Denied> {
        let now = Instant::now();
        let key = self.key_of(token, question);
        let known = self.answers.get(&key).filter(|known| !known.is_over(now));
        let known = known.unwrap_or_else(|| {
            let fresh = || {
                Arc::new(Remembered {
                    verdict: OnceCell::new(),
                    until: now + BELIEVED,
                })
            };
            let entry = self.answers.entry(key);
            entry
                .or_insert_with_if(fresh, |known| known.is_over(now))
                .into_value()
        });
        let verdict = known.verdict.get_or_try_init(|| async {
            let is_login = question == Question::Login;
            let most = if is_login {
                MAX_BAD_TOKENS
            } else {
                MAX_FORBIDDEN
            };
            let of_client = (one_client(address), is_login);
            let refused = self.refused.get(&of_client);
            if refused.is_some_and(|refused| refused.load(Ordering::Relaxed) >= most) {
                return Err(Denied::Busy);
            }
            let _place = self.waiting.try_acquire().map_err(|_| Denied::Busy)?;
            let from_one = self.from_one.take(address, MAX_WAITING_FROM_ONE);
            let _from_one = from_one.ok_or(Denied::Busy)?;
            let asking = async {
                let _turn = self.running.acquire().await.map_err(|_| Denied::Busy)?;
                Ok(self.verdicts.ask(token, question).await)
            };
            let answer = tokio::time::timeout(PATIENCE, asking).await;
            let verdict = answer.unwrap_or(Ok(Verdict::Unknown))?;
            self.asked
                .get_or_create(&VerdictLabel { result: verdict })
                .inc();
            if matches!(verdict, Verdict::Invalid | Verdict::Forbidden) {
                let refused = self.refused.get_with(of_client, Arc::default);
                refused.fetch_add(1, Ordering::Relaxed);
            }
            Ok(verdict)
        });
        verdict.await.copied()
    }

    fn key_of(&self, token: &ClientToken, question: Question<'_>) -> [u8; 32] {
        let of = |kind: &[u8], repo: &RepoKey| {
            let (upstream, repository) = (&repo.upstream, repo.repository.as_str());
            self.hash(&[
                &token.hash,
                kind,
                upstream.as_bytes(),
                repository.as_bytes(),
            ])
        };
        match question {
            Question::Login => token.hash,
            Question::Manifest(repo, _) => of(b"manifests", repo),
            Question::Blob(repo, _) => of(b"blobs", repo),
            Question::BlobHead(repo, _) => of(b"blob heads", repo),
        }
    }

    /// SHA-256 over a secret key, then the parts, each with its length. The result never leaves the
    /// process, so the plain construction suffices.
    fn hash(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut sum = Sha256::new();
        sum.update(self.key);
        for part in parts {
            sum.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            sum.update(part);
        }
        sum.finalize().into()
    }
}

#[cfg(test)]
mod tests;
