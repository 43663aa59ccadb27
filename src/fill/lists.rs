//! Lists of names that upstream keeps: a repository's tags, a registry's repositories.
//!
//! A registry's pages come in an order of its own and lead on by words of its own. So a list is fetched
//! whole and put in order, and is kept for a moment, for those who go on with it: a page of ours is what
//! comes after a name, whoever asks and whatever upstream calls its pages. One question is asked at a time
//! for each list, and only answers are kept. A question keeps the turn of whoever began it until it ends, so
//! that there are no more of them than turns, also where their askers do not stay.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use super::error::FillError;
use super::flight::{Flights, Lost};
use super::found::Found;
use crate::access::{ClientToken, Turn};
use crate::oci::RepoKey;
use crate::telemetry::Outcome;
use crate::upstream::{Deadline, NamePage, Upstream, UpstreamError, Upstreams, Wrong};

/// For how long those who go on with a list get the rest of that one. As long as a verdict on a caller's
/// token is believed: no list that was made with one lives longer.
pub(super) const PAGING: Duration = Duration::from_secs(60);

/// Names of a page that upstream is asked for: as many as ECR gives.
const PAGE: u32 = 1000;
/// Most pages of a list, and most bytes of its names with what each takes beside its own: empty ones are not for
/// nothing. ECR has 100,000 repositories in a registry at most, and as many images in a repository, unless AWS
/// raises it.
const MAX_PAGES: usize = 250;
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Within which all pages have to come. Clients wait for half a minute.
pub(super) const WALK: Duration = Duration::from_secs(20);

/// Bytes of lists that are kept at once, and what a name takes beside its own.
const KEPT: u64 = 32 * 1024 * 1024;
const PER_NAME: usize = 40;

/// What a list is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Tags(RepoKey),
    /// The repositories of the upstream of this name.
    Repositories(Arc<str>),
}

impl Subject {
    /// Who keeps the list.
    fn upstream(&self, upstreams: &Upstreams) -> Result<Upstream, UpstreamError> {
        match self {
            Self::Tags(repo) => upstreams.of(repo),
            Self::Repositories(name) => upstreams.named(name).ok_or(UpstreamError::Unconfigured),
        }
    }
}

/// A list, as whoever it was made for may see it: upstream tells its own to each caller's token.
type Key = (Subject, Option<ClientToken>);

/// Names in order, each once.
#[derive(Debug)]
pub(super) struct Names {
    names: Vec<String>,
    asked_at: Instant,
}

impl Names {
    fn new(mut names: Vec<String>, asked_at: Instant) -> Self {
        names.sort_unstable_by(|one, other| in_order(one, other));
        names.dedup();
        Self { names, asked_at }
    }

    /// The same of what the cache knows.
    pub(super) fn of_records(names: Vec<String>) -> Self {
        Self::new(names, Instant::now())
    }

    /// Those that are not before `first`.
    pub(super) fn from(&self, first: &str) -> &[String] {
        let is_before = |name: &String| in_order(name, first) == Ordering::Less;
        &self.names[self.names.partition_point(is_before)..]
    }

    /// Those after `last`, `limit` of them at most, and whether there are more.
    pub(super) fn page(&self, last: Option<&str>, limit: usize) -> (Vec<String>, bool) {
        let is_before =
            |name: &String| last.is_some_and(|last| in_order(name, last) != Ordering::Greater);
        let rest = &self.names[self.names.partition_point(is_before)..];
        let page = &rest[..limit.min(rest.len())];
        (page.to_vec(), page.len() < rest.len())
    }

    fn weight(&self) -> u32 {
        u32::try_from(size(&self.names)).unwrap_or(u32::MAX)
    }
}

/// What names take, in bytes.
fn size(names: &[String]) -> usize {
    names.iter().map(|name| name.len() + PER_NAME).sum()
}

/// Distribution-spec, "Listing Tags": the case of letters counts only where nothing else tells.
fn in_order(one: &str, other: &str) -> Ordering {
    fn folded(name: &str) -> impl Iterator<Item = u8> {
        name.bytes().map(|b| b.to_ascii_lowercase())
    }
    folded(one).cmp(folded(other)).then_with(|| one.cmp(other))
}

/// Fetches lists, and keeps them for those who page through one.
pub(super) struct Lists {
    upstreams: Upstreams,
    kept: moka::sync::Cache<Key, Arc<Names>>,
    /// Lists that upstream does not give, and said so a moment ago.
    refused: moka::sync::Cache<Key, FillError>,
    questions: Flights<Key, Result<Arc<Names>, FillError>>,
    /// When tags of a repository were last changed through this proxy.
    changed: moka::sync::Cache<RepoKey, Instant>,
}

impl Lists {
    pub(super) fn new(upstreams: Upstreams) -> Self {
        let names = |_: &Key, names: &Arc<Names>| names.weight();
        Self {
            upstreams,
            kept: moka::sync::Cache::builder()
                .max_capacity(KEPT)
                .weigher(names)
                .time_to_live(PAGING)
                .build(),
            refused: moka::sync::Cache::builder()
                .max_capacity(1000)
                .time_to_live(PAGING)
                .build(),
            questions: Flights::default(),
            changed: moka::sync::Cache::builder()
                .max_capacity(10_000)
                .time_to_live(2 * PAGING)
                .build(),
        }
    }

    /// The tags of a repository, asked for at most `age` ago.
    ///
    /// # Errors
    /// The upstream's, about `bearer` where it was asked with that token.
    pub(super) async fn tags(
        &self,
        repo: &RepoKey,
        bearer: Option<&ClientToken>,
        age: Duration,
        turn: &Arc<Turn>,
    ) -> Result<Found<Arc<Names>>, FillError> {
        let key = (Subject::Tags(repo.clone()), bearer.cloned());
        self.list(key, age, turn).await
    }

    /// The repositories of an upstream in the same way. That there is no such list is remembered.
    pub(super) async fn repositories(
        &self,
        upstream: &Arc<str>,
        bearer: Option<&ClientToken>,
        age: Duration,
        turn: &Arc<Turn>,
    ) -> Result<Found<Arc<Names>>, FillError> {
        let key = (Subject::Repositories(Arc::clone(upstream)), bearer.cloned());
        if let Some(refusal) = self.refused.get(&key) {
            return Err(refusal);
        }
        self.list(key, age, turn).await
    }

    /// See [`super::Fills::forget_answers`].
    pub(super) fn forget_answers(&self) {
        self.kept.invalidate_all();
        self.refused.invalidate_all();
        self.questions.abandon();
    }

    /// What was asked for before now does not tell the tags of this repository any more.
    pub(super) fn changed(&self, repo: &RepoKey) {
        self.changed.insert(repo.clone(), Instant::now());
    }

    async fn list(
        &self,
        key: Key,
        age: Duration,
        turn: &Arc<Turn>,
    ) -> Result<Found<Arc<Names>>, FillError> {
        let is_young = |kept: &Arc<Names>| kept.asked_at.elapsed() < age;
        if let Some(kept) = self.kept.get(&key).filter(is_young)
            && !self.is_overtaken(&key, &kept)
        {
            return Ok(Found::by(Outcome::Hit, kept));
        }
        let mut names = self.ask(&key, turn).await?;
        if self.is_overtaken(&key, &names) {
            // The question was somebody else's, from before a push.
            names = self.ask(&key, turn).await?;
        }
        Ok(Found::by(Outcome::Bypass, names))
    }

    async fn ask(&self, key: &Key, turn: &Arc<Turn>) -> Result<Arc<Names>, FillError> {
        let upstream = key.0.upstream(&self.upstreams)?;
        let question = || {
            let (key, kept, refused) = (key.clone(), self.kept.clone(), self.refused.clone());
            let upstreams = self.upstreams.clone();
            let turn = Arc::clone(turn);
            async move {
                // Given up when the question has ended, not before.
                let _turn = turn;
                let asked_at = Instant::now();
                let names = timeout(WALK, walk(&upstream, &key)).await;
                let slow = Err(UpstreamError::TooSlow(Deadline::Progress));
                let names = names.unwrap_or(slow).map_err(FillError::from);
                if let (Subject::Repositories(_), Err(error)) = (&key.0, &names)
                    && is_a_no(error)
                {
                    upstreams.note(&upstream, || refused.insert(key.clone(), error.clone()));
                }
                let names = names?;
                // A hundred thousand names take a while to be put in order.
                let ordering = spawn_blocking(move || Arc::new(Names::new(names, asked_at)));
                let names = ordering.await.map_err(|_| FillError::Lost)?;
                upstreams.note(&upstream, || kept.insert(key, Arc::clone(&names)));
                Ok(names)
            }
        };
        match self.questions.run(key.clone(), question).await {
            Ok(names) => names,
            Err(Lost) => Err(FillError::Lost),
        }
    }

    fn is_overtaken(&self, (subject, _): &Key, names: &Names) -> bool {
        match subject {
            Subject::Tags(repo) => {
                let changed = self.changed.get(repo);
                changed.is_some_and(|changed| changed >= names.asked_at)
            }
            Subject::Repositories(_) => false,
        }
    }
}

/// Whether upstream has no such list, or none for whoever asked.
pub(super) fn is_a_no(error: &FillError) -> bool {
    let FillError::Upstream(error) = error else {
        return false;
    };
    error.says_no() || *error == UpstreamError::Unsupported
}

/// All pages of a list.
async fn walk(upstream: &Upstream, (subject, bearer): &Key) -> Result<Vec<String>, UpstreamError> {
    let upstream = match bearer {
        Some(token) => &upstream.on_behalf_of(token.authorization())?,
        None => upstream,
    };
    let (mut names, mut bytes) = (Vec::new(), 0);
    let mut asked: Option<String> = None;
    for _ in 0..MAX_PAGES {
        let page = page(upstream, subject, asked.as_deref()).await?;
        bytes += size(&page.names);
        if bytes > MAX_BYTES {
            break;
        }
        names.extend(page.names);
        match page.next {
            None => return Ok(names),
            next if next == asked => return Err(UpstreamError::Wrong(Wrong::Malformed)),
            next => asked = next,
        }
    }
    Err(UpstreamError::Wrong(Wrong::TooLarge))
}

async fn page(
    upstream: &Upstream,
    subject: &Subject,
    page: Option<&str>,
) -> Result<NamePage, UpstreamError> {
    match subject {
        Subject::Tags(repo) => upstream.tags(&repo.repository, Some(PAGE), page).await,
        Subject::Repositories(_) => upstream.catalog(Some(PAGE), page).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(of: &[&str]) -> Names {
        Names::of_records(of.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn p10_a_page_begins_after_a_name_that_need_not_be_there_any_more() {
        let names = names(&["b", "a", "C", "d", "B", "a"]);
        assert_eq!(names.from(""), ["a", "B", "b", "C", "d"]);
        for (last, limit, page, more) in [
            (None, 2, &["a", "B"][..], true),
            (Some("B"), 2, &["b", "C"], true),
            (Some("bb"), 9, &["C", "d"], false),
            (Some("c"), 9, &["d"], false),
            (Some("d"), 9, &[], false),
            (Some(""), 9, &["a", "B", "b", "C", "d"], false),
            (None, 0, &[], true),
        ] {
            let (found, is_more) = names.page(last, limit);
            assert_eq!(
                (&found[..], is_more),
                (
                    &page.iter().map(|&n| n.to_owned()).collect::<Vec<_>>()[..],
                    more
                ),
                "{last:?}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn p10_following_the_pages_tells_every_name_once(
            all in proptest::collection::vec("[a-zA-Z0-9._-]{1,3}", 0..40),
            limit in 1..7usize,
        ) {
            let names = Names::of_records(all.clone());
            let mut found: Vec<String> = Vec::new();
            loop {
                let (page, more) = names.page(found.last().map(String::as_str), limit);
                found.extend(page);
                if !more {
                    break;
                }
            }
            proptest::prop_assert_eq!(&found[..], names.from(""));
            let distinct: std::collections::HashSet<_> = all.iter().collect();
            proptest::prop_assert_eq!(found.len(), distinct.len());
        }
    }
}
