//! How many requests a second ECR takes of an account, by action, kept to before ECR has to refuse one.
//!
//! Who is over its quota is answered 429, and docker gives up on that. So requests beyond a quota wait for
//! their turn here, in the order in which they came; [`super::gate`] is for what others of the account use up.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use tokio::time::{Instant, sleep_until};

use super::question::Kind;

/// As much of a quota may be used at once.
const BURST: Duration = Duration::from_secs(1);

/// An action of the ECR API that has a quota of its own, by its name in AWS's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaAction {
    /// Manifests.
    BatchGetImage,
    /// Where a blob is.
    GetDownloadUrlForLayer,
    /// Whether a blob is there.
    BatchCheckLayerAvailability,
    /// The beginning of an upload.
    InitiateLayerUpload,
    /// A piece of an upload.
    UploadLayerPart,
    /// The end of an upload.
    CompleteLayerUpload,
    /// A manifest that is pushed.
    PutImage,
}

impl QuotaAction {
    const ALL: [Self; 7] = [
        Self::BatchGetImage,
        Self::GetDownloadUrlForLayer,
        Self::BatchCheckLayerAvailability,
        Self::InitiateLayerUpload,
        Self::UploadLayerPart,
        Self::CompleteLayerUpload,
        Self::PutImage,
    ];

    /// What AWS gives every account for private registries, per region and second (Amazon ECR User Guide, "Service quotas", April
    /// 2026). All of them are raised on request.
    fn of_aws(self) -> u32 {
        match self {
            Self::BatchGetImage => 2000,
            Self::GetDownloadUrlForLayer => 3000,
            Self::BatchCheckLayerAvailability => 1000,
            Self::InitiateLayerUpload | Self::CompleteLayerUpload => 100,
            Self::UploadLayerPart => 500,
            Self::PutImage => 10,
        }
    }

    /// What a request counts as; `None` where AWS names no quota.
    fn of(kind: Kind, method: &Method) -> Option<Self> {
        match kind {
            Kind::ManifestHead | Kind::Manifest => Some(Self::BatchGetImage),
            Kind::BlobProbe if *method == Method::HEAD => Some(Self::BatchCheckLayerAvailability),
            Kind::Blob | Kind::BlobProbe => Some(Self::GetDownloadUrlForLayer),
            Kind::Upload if *method == Method::POST => Some(Self::InitiateLayerUpload),
            Kind::Upload | Kind::UploadBody if *method == Method::PUT => {
                Some(Self::CompleteLayerUpload)
            }
            Kind::UploadBody => Some(Self::UploadLayerPart),
            Kind::ManifestPut => Some(Self::PutImage),
            Kind::Upload
            | Kind::Delete
            | Kind::Tags
            | Kind::Catalog
            | Kind::Referrers
            | Kind::Token
            | Kind::Ping
            | Kind::Storage => None,
        }
    }
}

/// Requests a second, by action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quotas([Option<NonZeroU32>; QuotaAction::ALL.len()]);

impl Quotas {
    /// No action is held back.
    pub fn unlimited() -> Self {
        Self([None; QuotaAction::ALL.len()])
    }

    /// What AWS gives an account that has asked for nothing else, for its private registries.
    pub fn of_aws() -> Self {
        Self(QuotaAction::ALL.map(|action| NonZeroU32::new(action.of_aws())))
    }

    /// The same with another quota for one action.
    #[must_use]
    pub fn with(mut self, quota: Quota) -> Self {
        self.0[quota.action as usize] = quota.per_second;
        self
    }
}

/// The quota of one action: `PutImage=20`, `BatchGetImage=unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// What it is about.
    pub action: QuotaAction,
    /// `None` for as many as there are.
    pub per_second: Option<NonZeroU32>,
}

/// Why a text is no quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseQuotaError {
    /// Another action, or none.
    #[error(
        "a quota is ACTION=N, with one of BatchGetImage, GetDownloadUrlForLayer, \
         BatchCheckLayerAvailability, InitiateLayerUpload, UploadLayerPart, CompleteLayerUpload, PutImage"
    )]
    Action,
    /// Not a number of requests.
    #[error("behind the action comes a number of requests a second, at least 1, or \"unlimited\"")]
    Number,
}

impl FromStr for Quota {
    type Err = ParseQuotaError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, number) = text.split_once('=').ok_or(ParseQuotaError::Action)?;
        let mut known = QuotaAction::ALL.into_iter();
        let action = known.find(|action| action.to_string() == name);
        let per_second = match number {
            "unlimited" => None,
            number => Some(number.parse().map_err(|_| ParseQuotaError::Number)?),
        };
        Ok(Self {
            action: action.ok_or(ParseQuotaError::Action)?,
            per_second,
        })
    }
}

impl fmt::Display for QuotaAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Gives requests their turn.
pub(super) struct Pace([Option<Turns>; QuotaAction::ALL.len()]);

/// The turns of one action, evenly spaced, with as many of them taken at once as [`BURST`] holds.
struct Turns {
    apart: Duration,
    /// When the turn after all that were given would be due, had none been taken ahead of time.
    due: Mutex<Option<Instant>>,
}

impl Turns {
    /// When the next turn is, which is then given.
    ///
    /// # Errors
    /// How long it is until then, if that is beyond `deadline`; nothing is given.
    fn give(&self, now: Instant, deadline: Instant) -> Result<Instant, Duration> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let own = due.map_or(now, |due| due.max(now));
        let ahead = BURST.saturating_sub(self.apart);
        let at = own.checked_sub(ahead).map_or(now, |at| at.max(now));
        if at > deadline {
            return Err(at - now);
        }
        *due = Some(own + self.apart);
        Ok(at)
    }
}

impl Pace {
    pub(super) fn new(quotas: &Quotas) -> Self {
        Self(quotas.0.map(|quota| {
            quota.map(|per_second| Turns {
                apart: BURST / per_second.get(),
                due: Mutex::new(None),
            })
        }))
    }

    /// Waits for the turn of a request; true if it had to wait.
    ///
    /// # Errors
    /// How long that would take, if it is beyond `deadline`.
    ///
    /// # Cancel safety
    /// Who leaves gives up a turn that was theirs; it passes unused.
    pub(super) async fn turn(
        &self,
        kind: Kind,
        method: &Method,
        deadline: Instant,
    ) -> Result<bool, Duration> {
        let turns =
            QuotaAction::of(kind, method).and_then(|action| self.0[action as usize].as_ref());
        let Some(turns) = turns else {
            return Ok(false);
        };
        let now = Instant::now();
        let at = turns.give(now, deadline)?;
        if at > now {
            sleep_until(at).await;
        }
        Ok(at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_quota_is_an_action_and_a_number() {
        let quota: Quota = "PutImage=20".parse().expect("a quota");
        assert_eq!(quota.action, QuotaAction::PutImage);
        assert_eq!(quota.per_second, NonZeroU32::new(20));
        let quota: Quota = "BatchGetImage=unlimited".parse().expect("a quota");
        assert_eq!(quota.per_second, None);
        for (text, error) in [
            ("PutImage", ParseQuotaError::Action),
            ("putimage=1", ParseQuotaError::Action),
            ("DeleteEverything=1", ParseQuotaError::Action),
            ("PutImage=", ParseQuotaError::Number),
            ("PutImage=0", ParseQuotaError::Number),
            ("PutImage=-1", ParseQuotaError::Number),
            ("PutImage=1.5", ParseQuotaError::Number),
            ("PutImage=5000000000", ParseQuotaError::Number),
        ] {
            assert_eq!(text.parse::<Quota>(), Err(error), "{text}");
        }
    }

    fn pace(quota: &str) -> Pace {
        Pace::new(&Quotas::unlimited().with(quota.parse().expect("a quota")))
    }

    #[tokio::test(start_paused = true)]
    async fn no_second_has_more_than_twice_the_quota_and_no_longer_time_more_than_a_bursts_worth() {
        let pace = pace("BatchGetImage=10");
        let began = Instant::now();
        let mut at = Vec::new();
        for _ in 0..50 {
            let asked = pace.turn(Kind::Manifest, &Method::GET, began + 60 * SECOND);
            asked.await.expect("a turn");
            at.push(began.elapsed());
        }
        assert_eq!(at.iter().filter(|at| at.is_zero()).count(), 10);
        for (earlier, at) in at.iter().zip(at.iter().skip(20)) {
            assert!(*at - *earlier >= SECOND, "{earlier:?} {at:?}");
        }
        assert_eq!(at.last(), Some(&(4 * SECOND)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_would_wait_beyond_its_deadline_is_told_how_long_and_takes_no_turn() {
        let pace = pace("GetDownloadUrlForLayer=1");
        let soon = Instant::now() + SECOND;
        let turn = || pace.turn(Kind::Blob, &Method::GET, soon);
        assert_eq!(turn().await, Ok(false));
        assert_eq!(turn().await, Ok(true));
        assert_eq!(turn().await, Err(SECOND));
        assert_eq!(turn().await, Err(SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn each_action_has_its_own() {
        let pace = pace("BatchCheckLayerAvailability=1");
        let soon = Instant::now();
        assert_eq!(
            pace.turn(Kind::BlobProbe, &Method::HEAD, soon).await,
            Ok(false)
        );
        assert!(
            pace.turn(Kind::BlobProbe, &Method::HEAD, soon)
                .await
                .is_err()
        );
        for _ in 0..10 {
            assert_eq!(
                pace.turn(Kind::BlobProbe, &Method::GET, soon).await,
                Ok(false)
            );
            assert_eq!(pace.turn(Kind::Tags, &Method::GET, soon).await, Ok(false));
        }
    }
}
