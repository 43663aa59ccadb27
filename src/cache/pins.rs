//! Pins: what the operator wants kept whatever happens.
//!
//! A pin names tags or a digest of repositories. What matches it, now or later, with every manifest and
//! blob that it leads to by stored manifests, is never evicted and survives its deletion upstream.
//!
//! Pins come from the configuration and from the file `pins` of the state directory. The invariant:
//! **a pin is never lost silently.** The file is replaced whole, durably, and kept twice; a damaged one is
//! told, and what can be read of either counts until the next change writes both anew.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags};

use crate::oci::{Digest, Pattern, Reference, RepositoryName, Tag};

use super::layout;
use super::lock;

const FILE: &str = "pins";
const COPY: &str = "pins.copy";

const HEAD: &str =
    "# Pins of ecr-proxy: use `ecr-proxy cache pin` and `unpin`. The last line guards the rest.\n";

/// Longest pin file that is read, in bytes: some ten thousand pins.
const MAX_FILE: u64 = 4 << 20;

/// What an operator wants kept: `team/app:v1`, `team/app@sha256:…`, or patterns for repository and tag
/// as in `team/**:release-*`. Repositories are called as the upstream calls them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pin {
    repository: Pattern,
    what: Pinned,
}

/// What of a repository a pin keeps.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Pinned {
    Tags(Pattern),
    Digest(Digest),
}

impl Pinned {
    pub(super) fn is_tag(&self, tag: &Tag) -> bool {
        matches!(self, Self::Tags(pattern) if pattern.matches(tag.as_str()))
    }
}

/// Why a text is not a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a pin is repository:tag or repository@digest, the repository without capitals, where * stands for part \
     of a name and ** for whole components, such as team/app:v1 or team/**:release-*"
)]
pub struct ParsePinError;

impl FromStr for Pin {
    type Err = ParsePinError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let pattern = |text: &str| Pattern::of_repositories(text).map_err(|_| ParsePinError);
        if let Some((repository, digest)) = text.split_once('@') {
            return Ok(Self {
                repository: pattern(repository)?,
                what: Pinned::Digest(digest.parse().map_err(|_| ParsePinError)?),
            });
        }
        let (repository, tags) = text.rsplit_once(':').ok_or(ParsePinError)?;
        if tags.contains('/') {
            return Err(ParsePinError);
        }
        Ok(Self {
            repository: pattern(repository)?,
            what: Pinned::Tags(tags.parse().map_err(|_| ParsePinError)?),
        })
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            Pinned::Tags(tags) => write!(f, "{}:{tags}", self.repository),
            Pinned::Digest(digest) => write!(f, "{}@{digest}", self.repository),
        }
    }
}

/// Where a pin was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinSource {
    /// `cache.pins` of the configuration.
    Configuration,
    /// `ecr-proxy cache pin`.
    Operator,
}

/// Why a pin was not made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The file could not be written; nothing has changed.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no place for pins.
    #[error("there is no state directory to keep pins in")]
    NoPlace,
    /// The pin is in the configuration, which is not ours to change.
    #[error("{0} is pinned by cache.pins in the configuration")]
    Configured(Pin),
}

/// The pins in force. Clones are handles of the same; every change is seen by all at once.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Where the file is.
    directory: Option<PathBuf>,
    state: Mutex<State>,
    /// One writer of the file at a time; outside `state`.
    saving: Mutex<()>,
    /// Grows with each change.
    version: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    configured: BTreeSet<Pin>,
    made: BTreeSet<Pin>,
    damage: Option<&'static str>,
}

impl Pins {
    /// The pins of the configuration and those kept in `state_dir`. What is wrong with the file is
    /// logged and told by [`Self::damage`].
    pub fn open(state_dir: &Path, configured: impl IntoIterator<Item = Pin>) -> Self {
        let (made, damage) = read(state_dir);
        if let Some(damage) = damage {
            tracing::error!(
                path = %state_dir.join(FILE).display(),
                pins = made.len(),
                "{damage}"
            );
        }
        Self {
            inner: Arc::new(Inner {
                directory: Some(state_dir.to_owned()),
                state: Mutex::new(State {
                    configured: configured.into_iter().collect(),
                    made,
                    damage,
                }),
                ..Inner::default()
            }),
        }
    }

    /// Adds a pin, durably; false if it was there.
    ///
    /// # Errors
    /// When it cannot be kept; then nothing has changed.
    pub fn pin(&self, pin: Pin) -> Result<bool, PinError> {
        self.change(|made| made.insert(pin))
    }

    /// Takes a pin away, durably; false if it was not there. What it kept is evictable again.
    ///
    /// # Errors
    /// When that cannot be kept, or the configuration has the pin; then nothing has changed.
    pub fn unpin(&self, pin: &Pin) -> Result<bool, PinError> {
        if lock(&self.inner.state).configured.contains(pin) {
            return Err(PinError::Configured(pin.clone()));
        }
        self.change(|made| made.remove(pin))
    }

    /// Has these in the place of those of the configuration. What those kept is evictable again.
    pub fn set_configured(&self, configured: impl IntoIterator<Item = Pin>) {
        let configured = configured.into_iter().collect();
        let mut state = lock(&self.inner.state);
        if state.configured != configured {
            state.configured = configured;
            drop(state);
            self.inner.version.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// All pins, those of the configuration first.
    pub fn list(&self) -> Vec<(Pin, PinSource)> {
        let state = lock(&self.inner.state);
        let configured = state.configured.iter();
        let made = state.made.difference(&state.configured);
        configured
            .map(|pin| (pin.clone(), PinSource::Configuration))
            .chain(made.map(|pin| (pin.clone(), PinSource::Operator)))
            .collect()
    }

    /// Whether a pin names this tag or manifest itself, whatever is stored of it.
    pub fn names(&self, repository: &RepositoryName, reference: &Reference) -> bool {
        let matching = self.of(repository);
        matching.iter().any(|pinned| match (pinned, reference) {
            (Pinned::Tags(_), Reference::Tag(tag)) => pinned.is_tag(tag),
            (Pinned::Digest(pinned), Reference::Digest(digest)) => pinned == digest,
            _ => false,
        })
    }

    /// What is wrong with the file of pins, if anything is.
    pub fn damage(&self) -> Option<&'static str> {
        lock(&self.inner.state).damage
    }

    /// What is pinned of `repository`.
    pub(super) fn of(&self, repository: &RepositoryName) -> Vec<Pinned> {
        let state = lock(&self.inner.state);
        let pins = state.configured.union(&state.made);
        pins.filter(|pin| pin.repository.matches(repository.as_str()))
            .map(|pin| pin.what.clone())
            .collect()
    }

    pub(super) fn version(&self) -> u64 {
        self.inner.version.load(Ordering::Acquire)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<Pin>) -> bool) -> Result<bool, PinError> {
        let inner = &self.inner;
        let _saving = lock(&inner.saving);
        let (mut made, is_whole) = {
            let state = lock(&inner.state);
            (state.made.clone(), state.damage.is_none())
        };
        if !change(&mut made) && is_whole {
            return Ok(false);
        }
        let directory = inner.directory.as_deref().ok_or(PinError::NoPlace)?;
        write(directory, &made).map_err(|source| PinError::Write {
            path: directory.join(FILE),
            source,
        })?;
        let mut state = lock(&inner.state);
        let changed = state.made != made;
        state.made = made;
        state.damage = None;
        drop(state);
        inner.version.fetch_add(1, Ordering::AcqRel);
        Ok(changed)
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn write(directory: &Path, pins: &BTreeSet<Pin>) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;

    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let directory = open_directory(directory)?;
    let text = text_of(pins);
    // The copy first: while the file is whole it is the one that counts, so a change is made when both
    // are written, or not at all.
    layout::replace_file(&directory, COPY, text.as_bytes())?;
    layout::replace_file(&directory, FILE, text.as_bytes())
}

fn text_of(pins: &BTreeSet<Pin>) -> String {
    let mut text = HEAD.to_owned();
    for pin in pins {
        text.push_str(&format!("{pin}\n"));
    }
    let digest = Digest::of(text.as_bytes());
    text.push_str(&format!("# {digest}\n"));
    text
}

/// What one of the two files says.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Missing,
    Whole(BTreeSet<Pin>),
    /// What can still be read of it.
    Damaged(BTreeSet<Pin>),
}

impl Found {
    fn into_pins(self) -> BTreeSet<Pin> {
        match self {
            Self::Missing => BTreeSet::new(),
            Self::Whole(pins) | Self::Damaged(pins) => pins,
        }
    }
}

fn read(state_dir: &Path) -> (BTreeSet<Pin>, Option<&'static str>) {
    let directory = match open_directory(state_dir) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Default::default(),
        Err(_) => return (BTreeSet::new(), Some("the pins cannot be read")),
    };
    let (file, copy) = match (read_file(&directory, FILE), read_file(&directory, COPY)) {
        (Ok(file), Ok(copy)) => (file, copy),
        (file, copy) => {
            let found = [file, copy].into_iter().filter_map(Result::ok);
            let pins = found.flat_map(Found::into_pins).collect();
            return (pins, Some("the pins cannot be read"));
        }
    };
    match (file, copy) {
        (Found::Missing, Found::Missing) => (BTreeSet::new(), None),
        // The copy is written a moment before: it may be one change ahead, which was never made.
        (Found::Whole(pins), _) => (pins, None),
        (file, copy) => {
            let damage = match copy {
                Found::Whole(_) => {
                    "the file of pins is missing or damaged; its copy is used, and what can be read of it"
                }
                _ => "the file of pins and its copy are damaged; what can be read of them is used",
            };
            let mut pins = file.into_pins();
            pins.extend(copy.into_pins());
            (pins, Some(damage))
        }
    }
}

fn read_file(directory: &OwnedFd, name: &str) -> io::Result<Found> {
    use std::io::Read;

    let mut bytes = Vec::new();
    match layout::open_file(directory, name) {
        Ok(file) => file.take(MAX_FILE).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
        Err(error) => return Err(error),
    };
    Ok(parse(&bytes))
}

fn parse(bytes: &[u8]) -> Found {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pins: BTreeSet<Pin> = lines.filter_map(|line| line.parse().ok()).collect();
    if text_of(&pins).as_bytes() == bytes {
        Found::Whole(pins)
    } else {
        Found::Damaged(pins)
    }
}

/// Any bytes as the file of pins.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_pins(data: &[u8]) {
    let pins = match parse(data) {
        Found::Whole(pins) | Found::Damaged(pins) => pins,
        Found::Missing => return,
    };
    let written = text_of(&pins);
    assert!(matches!(parse(written.as_bytes()), Found::Whole(again) if again == pins));
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn pin(text: &str) -> Pin {
        text.parse().expect(text)
    }

    fn names(pins: &Pins, repository: &str, reference: &str) -> bool {
        pins.names(&repository.parse().unwrap(), &reference.parse().unwrap())
    }

    fn listed(pins: &Pins) -> Vec<String> {
        pins.list().iter().map(|(pin, _)| pin.to_string()).collect()
    }

    #[test]
    fn a_pin_is_a_repository_with_tags_or_a_digest() {
        let digest = Digest::of(b"x").to_string();
        for text in [
            "app:v1",
            "team/app:*",
            "team/**:release-*",
            &format!("app@{digest}"),
            &format!("**@{digest}"),
        ] {
            assert_eq!(pin(text).to_string(), text);
        }
        for text in [
            "app",
            "",
            ":v1",
            "app:",
            "app@v1",
            "app@",
            "host:5000/app",
            "a b:c",
            "app:v1\n",
        ] {
            assert_eq!(text.parse::<Pin>(), Err(ParsePinError), "{text}");
        }
    }

    #[test]
    fn a_pin_names_what_it_describes() {
        let digest = Digest::of(b"x");
        let pins = [pin("team/*:v1.*"), pin(&format!("app@{digest}"))];
        let pins = Pins::open(Path::new("/nowhere"), pins);
        assert!(names(&pins, "team/app", "v1.2"));
        assert!(!names(&pins, "team/app", "v2.2"));
        assert!(!names(&pins, "other/app", "v1.2"));
        assert!(names(&pins, "app", &digest.to_string()));
        assert!(!names(&pins, "team/app", &digest.to_string()));
    }

    #[test]
    fn a_change_that_cannot_be_kept_is_none_after_a_restart_either() {
        for blocked in [FILE, COPY] {
            let dir = tempfile::tempdir().unwrap();
            let pins = Pins::open(dir.path(), []);
            pins.pin(pin("a:1")).unwrap();
            let aside = dir.path().join("aside");
            let path = dir.path().join(blocked);
            std::fs::rename(&path, &aside).unwrap();
            std::fs::create_dir(&path).unwrap();
            pins.pin(pin("b:1")).unwrap_err();
            assert_eq!(listed(&pins), ["a:1"], "{blocked}");
            std::fs::remove_dir(&path).unwrap();
            std::fs::rename(&aside, &path).unwrap();
            let again = Pins::open(dir.path(), []);
            assert_eq!(listed(&again), ["a:1"], "{blocked}");
        }
    }

    #[test]
    fn pins_survive_and_those_of_the_configuration_stay_there() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let pins = Pins::open(&state, [pin("a:1")]);
        assert!(pins.pin(pin("b:2")).unwrap());
        assert!(!pins.pin(pin("b:2")).unwrap());
        assert!(pins.pin(pin("c:3")).unwrap());
        assert!(pins.unpin(&pin("b:2")).unwrap());
        assert!(!pins.unpin(&pin("b:2")).unwrap());
        assert!(matches!(
            pins.unpin(&pin("a:1")),
            Err(PinError::Configured(_))
        ));
        assert_eq!(pins.list()[0], (pin("a:1"), PinSource::Configuration));
        let again = Pins::open(&state, []);
        assert_eq!(again.list(), [(pin("c:3"), PinSource::Operator)]);
        assert_eq!(again.damage(), None);
    }

    #[test]
    fn a_pin_that_cannot_be_kept_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a file");
        std::fs::write(&state, "").unwrap();
        let pins = Pins::open(&state, []);
        assert!(matches!(pins.pin(pin("a:1")), Err(PinError::Write { .. })));
        assert_eq!(pins.list(), []);
        assert!(matches!(
            Pins::default().pin(pin("a:1")),
            Err(PinError::NoPlace)
        ));
    }

    #[test]
    fn c05_a_damaged_file_of_pins_loses_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let pins = Pins::open(dir.path(), []);
        for text in ["a:1", "b:2", "c:3"] {
            pins.pin(pin(text)).unwrap();
        }
        let whole = std::fs::read(&file).unwrap();
        for damaged in [&whole[..whole.len() / 2], b"", b"\0\0\0\0", b"#\n"] {
            std::fs::write(&file, damaged).unwrap();
            let pins = Pins::open(dir.path(), []);
            assert_eq!(listed(&pins), ["a:1", "b:2", "c:3"]);
            assert!(pins.damage().is_some());
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(Pins::open(dir.path(), []).list().len(), 3);

        // Both are damaged: what can be read counts, and the next change mends them.
        for name in [FILE, COPY] {
            let torn = &whole[..whole.len() - 40];
            std::fs::write(dir.path().join(name), torn).unwrap();
        }
        let pins = Pins::open(dir.path(), []);
        assert_eq!(listed(&pins), ["a:1", "b:2", "c:3"]);
        assert!(pins.damage().is_some());
        assert!(!pins.pin(pin("a:1")).unwrap());
        assert_eq!(pins.damage(), None);
        assert_eq!(std::fs::read(&file).unwrap(), whole);
    }

    proptest! {
        #[test]
        fn c05_no_bytes_are_taken_for_a_whole_file_of_pins(bytes: Vec<u8>, cut in 0usize..200) {
            prop_assert!(matches!(parse(&bytes), Found::Damaged(_)));
            let text = text_of(&[pin("a:1"), pin("b:2")].into());
            let cut = cut.min(text.len() - 1);
            prop_assert!(matches!(parse(&text.as_bytes()[..cut]), Found::Damaged(_)));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            if let Ok(pin) = text.parse::<Pin>() {
                prop_assert_eq!(pin.to_string(), text);
            }
        }
    }
}
