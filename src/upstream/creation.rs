//! Repositories that appear when they are pushed to.
//!
//! Invariants: nothing is created but for a push that is permitted, in the proxy's own name, where the
//! operator wants it, and after the registry has said that there is no such repository; however many push
//! at once, it is asked for once, and what was begun is ended, whoever leaves. What the program does not live
//! to end, or AWS does not let it, is ended with a push to that repository within the hour, unless an operator
//! was first. While AWS throttles, one call at a time tries whether it still does, however many repositories
//! are wanted. What AWS certainly did not make is nothing of ours to end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::oci::{Pattern, RepositoryName};

use super::Upstream;
use super::ecr::{EcrApi, Making};
use super::error::UpstreamError;
use super::exchange::is_broken_off;
use super::gate::backoff;
use super::meter::Meter;
use super::unfinished::{Noted, Unfinished};

/// For how long a refusal stands: it lasts until an operator does something, and each push would ask again.
const REFUSED_FOR: Duration = Duration::from_secs(60);
/// For how long a repository that was made is not made again, for those whom the registry told before
/// that there is none.
const MADE_FOR: Duration = Duration::from_secs(10);
/// For how long the registry may still deny a repository that it has just made.
const UNTIL_KNOWN: Duration = Duration::from_secs(5);
/// How long one has to make a repository what it should be, before another may go on.
const TURN: Duration = Duration::from_secs(60);
/// For how long a push waits for the lifecycle policy's turn while AWS throttles: it can be given later.
const PUSH_WAITS: Duration = Duration::from_secs(2);
/// When to go on with what AWS did not let us end.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Repositories that are remembered at once; each is forgotten once nothing about it is of use.
const REMEMBERED: u64 = 10_000;

/// Which repositories are made when they are pushed to, and what like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Creation {
    /// By what the registry calls them.
    pub repositories: Vec<Pattern>,
    /// What they are like.
    pub template: Template,
}

/// What a new repository is like. What is not said is left to the registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// Which images it gives up again: a lifecycle policy of ECR, JSON.
    pub lifecycle_policy: Option<String>,
    /// Whether tags may move.
    pub tags_move: Option<TagsMove>,
    /// Whether images are scanned when they are pushed.
    pub scan_on_push: Option<bool>,
    /// How it is encrypted, for as long as it lives.
    pub encryption: Option<Encryption>,
    /// Tags of the repository itself, key and value.
    pub tags: Vec<(String, String)>,
}

/// Whether tags may move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagsMove {
    /// True if they may.
    pub may: bool,
    /// Tags for which it is the other way round; `*` stands for any characters.
    pub except: Vec<String>,
}

/// How a repository is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// With keys of S3's own.
    Aes256,
    /// With a key of KMS.
    Kms {
        /// Twice, as some rules demand.
        is_double: bool,
        /// Id, alias or ARN; without, the account's key for ECR.
        key: Option<String>,
    },
}

/// What became of asking for a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Created {
    /// It was made.
    New,
    /// It was there.
    Existed,
}

/// Why a repository was not made, as far as anybody knows.
pub(super) struct NotMade {
    pub(super) error: UpstreamError,
    /// It may have been made all the same: something was sent of which nobody said that it was refused.
    pub(super) is_unclear: bool,
}

/// Makes repositories of one registry.
pub(super) struct Creator {
    api: Arc<EcrApi>,
    creation: Creation,
    recent: Cache<RepositoryName, Arc<Mutex<Option<Known>>>>,
    /// Those that are to get a lifecycle policy, and may not have it yet.
    unfinished: Arc<Unfinished>,
    making: Making,
    meter: Meter,
}

/// The last word about a repository.
#[derive(Clone)]
struct Known {
    word: Result<Created, UpstreamError>,
    spoken: Instant,
    until: Instant,
}

impl Creator {
    pub(super) fn new(
        api: Arc<EcrApi>,
        creation: Creation,
        notes: Option<PathBuf>,
        absorb_throttle: Duration,
        meter: Meter,
    ) -> Arc<Self> {
        Arc::new(Self {
            making: Making::new(absorb_throttle, meter.clone()),
            unfinished: Arc::new(Unfinished::open(notes)),
            api,
            creation,
            recent: Cache::builder()
                .max_capacity(REMEMBERED)
                .time_to_idle(REFUSED_FOR)
                .build(),
            meter,
        })
    }

    fn makes(&self, repository: &RepositoryName) -> bool {
        let mut patterns = self.creation.repositories.iter();
        patterns.any(|pattern| pattern.matches(repository.as_str()))
    }

    /// Makes a repository, or takes the word of whoever does or did just now. `is_absent` where the registry
    /// has said so much.
    ///
    /// # Cancel safety
    /// Leaving changes nothing: what was begun is ended.
    async fn create(
        self: &Arc<Self>,
        repository: &RepositoryName,
        is_absent: bool,
    ) -> Result<Created, UpstreamError> {
        let (creator, repository) = (Arc::clone(self), repository.clone());
        let making = tokio::spawn(async move { creator.turn(&repository, is_absent).await });
        making
            .await
            .unwrap_or(Err(UpstreamError::Failing { status: 500 }))
    }

    async fn turn(
        &self,
        repository: &RepositoryName,
        is_absent: bool,
    ) -> Result<Created, UpstreamError> {
        let asked = Instant::now();
        let slot = self.recent.get_with_by_ref(repository, Arc::default);
        let mut known = slot.lock().await;
        // Whoever waited for it takes it, however soon it is out of date: what failed for one is not tried by
        // each in turn.
        if let Some(known) = &*known
            && (asked <= known.spoken || Instant::now() < known.until)
        {
            return known.word.clone();
        }
        let word = self.make(repository, is_absent).await;
        let stands = match &word {
            Ok(_) => MADE_FOR,
            Err(UpstreamError::Refused | UpstreamError::Told(_)) => REFUSED_FOR,
            Err(_) => Duration::ZERO,
        };
        let spoken = Instant::now();
        *known = Some(Known {
            word: word.clone(),
            spoken,
            until: spoken + stands,
        });
        word
    }

    async fn make(
        &self,
        repository: &RepositoryName,
        is_absent: bool,
    ) -> Result<Created, UpstreamError> {
        let template = &self.creation.template;
        let was_noted = template.lifecycle_policy.is_some()
            && self.unfinished.note(repository, TURN).await == Noted::Before;
        let (api, making) = (&self.api, &self.making);
        let made = api.create_repository(repository, template, making).await;
        let is_unclear = matches!(&made, Err(not_made) if not_made.is_unclear);
        let word = made.map_err(|not_made| not_made.error);
        self.meter.created(match &word {
            Ok(Created::New) => "created",
            Ok(Created::Existed) => "existed",
            Err(UpstreamError::Refused | UpstreamError::Told(_)) => "refused",
            Err(_) => "failed",
        });
        if was_noted && (is_unclear || word == Ok(Created::New)) {
            self.unfinished.renew(repository).await;
        }
        // What was noted before may be ours, of an attempt that was not heard of. Of that a throttle or a
        // connection that was never made says nothing; a refusal does where the registry has none, either.
        let may_be_ours = is_unclear
            || was_noted
                && match &word {
                    Err(UpstreamError::Refused | UpstreamError::Told(_)) => !is_absent,
                    Ok(_) | Err(_) => true,
                };
        match &word {
            Ok(Created::New) => {}
            Ok(Created::Existed) | Err(_) if may_be_ours => {
                self.unfinished.put_off(repository, Duration::ZERO);
                return word;
            }
            // Another made it, or nobody did: who makes it from now on has it as he likes.
            Ok(Created::Existed) | Err(_) => {
                self.unfinished.forget(repository).await;
                return word;
            }
        }
        let upstream = self.meter.upstream();
        tracing::info!(upstream.name = %upstream, oci.repository = %repository, "repository created");
        if let Some(policy) = &template.lifecycle_policy {
            // The images are what matters: without it they are pushed all the same.
            let deadline = Instant::now() + PUSH_WAITS;
            self.give_policy(repository, policy, deadline).await;
        }
        word
    }

    /// Waits until `deadline` for its turn while AWS throttles.
    async fn give_policy(&self, repository: &RepositoryName, policy: &str, deadline: Instant) {
        let (api, making) = (&self.api, &self.making);
        let put = api.put_lifecycle_policy(repository, policy, making, deadline);
        let put = put.await;
        self.meter.lifecycle_policy(match put {
            Ok(()) => "ok",
            Err(UpstreamError::Refused) => "refused",
            Err(_) => "failed",
        });
        match put {
            Ok(()) => self.unfinished.forget(repository).await,
            Err(UpstreamError::Refused | UpstreamError::Told(_)) => {
                self.unfinished.put_off(repository, REFUSED_FOR);
            }
            Err(_) => self.unfinished.put_off(repository, AGAIN_AFTER),
        }
    }

    /// Ends what was begun and not ended, if there is anything of this repository that was pushed to. Nobody
    /// waits for it.
    fn finish(self: &Arc<Self>, repository: &RepositoryName) {
        if !self.unfinished.take(repository, TURN) {
            return;
        }
        let (creator, repository) = (Arc::clone(self), repository.clone());
        tokio::spawn(async move {
            let policy = creator.creation.template.lifecycle_policy.as_ref();
            let is_too_old = creator.unfinished.is_too_old(&repository);
            let Some(policy) = policy.filter(|_| !is_too_old) else {
                return creator.unfinished.forget(&repository).await;
            };
            let (api, making) = (&creator.api, &creator.making);
            let deadline = making.absorbed_by();
            let has = api.has_lifecycle_policy(&repository, making, deadline);
            match has.await {
                Ok(false) => creator.give_policy(&repository, policy, deadline).await,
                // Another is not replaced: who gave it knew better.
                Ok(true) => creator.unfinished.forget(&repository).await,
                Err(UpstreamError::Refused) => creator.unfinished.put_off(&repository, REFUSED_FOR),
                Err(_) => creator.unfinished.put_off(&repository, AGAIN_AFTER),
            }
        });
    }
}

impl Upstream {
    /// Does what `push` does, and where the registry has no such repository, which `says_absent` tells by its
    /// error, makes it and does it again.
    ///
    /// # Errors
    /// Those of `push`; [`UpstreamError::Refused`] and [`UpstreamError::Told`] where the repository cannot
    /// be made.
    ///
    /// # Cancel safety
    /// As that of `push`; a repository may have been made.
    pub(super) async fn making_repository<T, F>(
        &self,
        repository: &RepositoryName,
        says_absent: fn(&UpstreamError) -> bool,
        push: impl Fn() -> F,
    ) -> Result<T, UpstreamError>
    where
        F: Future<Output = Result<T, UpstreamError>>,
    {
        let first = push().await;
        let Some(creator) = self.creator(repository) else {
            return first;
        };
        let Err(error) = &first else {
            creator.finish(repository);
            return first;
        };
        if !says_absent(error) {
            return first;
        }
        let created = creator.create(repository, is_told_absent(error)).await?;
        if is_broken_off(error) && created == Created::Existed {
            // So it meant what it means elsewhere.
            self.shared.breaker.failed(error);
        }
        let known_by = Instant::now() + UNTIL_KNOWN;
        let mut attempt = 1;
        loop {
            match push().await {
                Err(error) if is_told_absent(&error) && Instant::now() < known_by => {
                    tokio::time::sleep(backoff(attempt)).await;
                    attempt += 1;
                }
                last => return last,
            }
        }
    }

    /// What makes a repository that is missing: only for pushes of our own identity. Whoever asks with a
    /// token of their own creates repositories by their own rights, at AWS.
    pub(super) fn creator(&self, repository: &RepositoryName) -> Option<&Arc<Creator>> {
        let creator = self.shared.creator.as_ref()?;
        (self.caller.is_none() && creator.makes(repository)).then_some(creator)
    }
}

/// The registry says that there is no such repository.
pub(super) fn is_told_absent(error: &UpstreamError) -> bool {
    matches!(error, UpstreamError::Told(told) if told.absent() == Some("NAME_UNKNOWN"))
}

/// The same, or what ECR does now and then to say so. Of what carries a body it says nothing: that may have
/// arrived.
pub(super) fn may_be_absent(error: &UpstreamError) -> bool {
    is_told_absent(error) || is_broken_off(error)
}
