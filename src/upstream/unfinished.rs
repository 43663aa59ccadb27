//! Repositories that are being made, noted on disk: whoever makes one may die before it is as it should be.
//!
//! Each has a file of its own, of which the name is a hash and the content is what the repository is called:
//! nothing is written anew, so whoever else notes at the same time takes nothing away. A note counts for an
//! hour.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::oci::{Digest, RepositoryName};

/// Notes at once: beyond, what is made is not noted, and whoever pushes fills no disk with them.
const MOST: usize = 1_000;
/// For how long a note counts: after that nobody can tell whether the repository that is there is still the
/// one that was begun, or what an operator made of it.
const COUNTS_FOR: Duration = Duration::from_secs(60 * 60);
/// For how long another program may be writing a note; what is older was left by one that died.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);

/// The notes of one registry.
#[derive(Debug)]
pub(super) struct Unfinished {
    /// Where they are kept; without, they end with the program.
    directory: Option<PathBuf>,
    notes: Mutex<HashMap<RepositoryName, Note>>,
}

#[derive(Debug)]
struct Note {
    /// When it was begun, as the file's time of modification says.
    since: SystemTime,
    /// From when on somebody may go on with it.
    due: Instant,
}

impl Note {
    fn is_too_old(&self) -> bool {
        !is_within(self.since, COUNTS_FOR)
    }
}

/// Since when something is noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// For the first time, or what was noted does not count any more.
    Now,
    /// It was, and that counts.
    Before,
}

impl Unfinished {
    /// Those kept in `directory`, which need not be there. What cannot be read is told, and left; what does
    /// not count any more, and what a killed writer left, is removed.
    pub(super) fn open(directory: Option<PathBuf>) -> Self {
        let found = directory.as_deref().map_or_else(Found::default, read);
        if let Some(error) = found.unread {
            tracing::warn!(path = ?directory, %error, "cannot read which repositories were being made");
        }
        let due = Instant::now();
        let notes = found.notes.into_iter();
        let notes = notes.map(|(repository, since)| (repository, Note { since, due }));
        Self {
            directory,
            notes: Mutex::new(notes.collect()),
        }
    }

    #[cfg(test)]
    fn contains(&self, repository: &RepositoryName) -> bool {
        self.notes().contains_key(repository)
    }

    /// Notes a repository, durably, and as one that nobody else need go on with for `turn`. Where that fails
    /// it is told: what is to be made matters more. What was noted before is so since then.
    pub(super) async fn note(
        self: &Arc<Self>,
        repository: &RepositoryName,
        turn: Duration,
    ) -> Noted {
        let due = Instant::now() + turn;
        self.forget_old().await;
        {
            let mut notes = self.notes();
            if let Some(note) = notes.get_mut(repository) {
                note.due = due;
                return Noted::Before;
            }
            if notes.len() >= MOST {
                return Noted::Now;
            }
            let since = SystemTime::now();
            notes.insert(repository.clone(), Note { since, due });
        }
        self.on_disk(repository, write).await;
        Noted::Now
    }

    /// What is noted is so as of now.
    pub(super) async fn renew(self: &Arc<Self>, repository: &RepositoryName) {
        let noted = self.notes().get_mut(repository).map(|note| {
            note.since = SystemTime::now();
        });
        if noted.is_some() {
            self.on_disk(repository, write).await;
        }
    }

    /// What is noted does not count any more.
    pub(super) fn is_too_old(&self, repository: &RepositoryName) -> bool {
        let notes = self.notes();
        notes.get(repository).is_some_and(Note::is_too_old)
    }

    async fn forget_old(self: &Arc<Self>) {
        let old: Vec<RepositoryName> = {
            let notes = self.notes();
            let old = notes.iter().filter(|(_, note)| note.is_too_old());
            old.map(|(repository, _)| repository.clone()).collect()
        };
        for repository in old {
            self.forget(&repository).await;
        }
    }

    /// It is as it should be, or is not there.
    pub(super) async fn forget(self: &Arc<Self>, repository: &RepositoryName) {
        if self.notes().remove(repository).is_some() {
            self.on_disk(repository, remove).await;
        }
    }

    /// Takes a turn at going on with a repository that was noted: false if there is nothing to do, or another
    /// has the turn.
    pub(super) fn take(&self, repository: &RepositoryName, turn: Duration) -> bool {
        let now = Instant::now();
        match self.notes().get_mut(repository) {
            Some(note) if note.due <= now => {
                note.due = now + turn;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Nobody need go on with it for so long.
    pub(super) fn put_off(&self, repository: &RepositoryName, pause: Duration) {
        if let Some(note) = self.notes().get_mut(repository) {
            note.due = Instant::now() + pause;
        }
    }

    async fn on_disk(
        self: &Arc<Self>,
        repository: &RepositoryName,
        change: fn(&Path, &str) -> io::Result<()>,
    ) {
        let (this, name) = (Arc::clone(self), repository.as_str().to_owned());
        let changing = tokio::task::spawn_blocking(move || {
            let Some(directory) = &this.directory else {
                return;
            };
            if let Err(error) = change(directory, &name) {
                let path = directory.display();
                tracing::warn!(%path, oci.repository = name, %error, "cannot note that a repository is being made");
            }
        });
        // It fails where the program ends.
        let _ = changing.await;
    }

    fn notes(&self) -> MutexGuard<'_, HashMap<RepositoryName, Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn file(directory: &Path, repository: &str) -> PathBuf {
    directory.join(Digest::of(repository.as_bytes()).hex())
}

fn write(directory: &Path, repository: &str) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let mut note = tempfile::NamedTempFile::new_in(directory)?;
    note.write_all(repository.as_bytes())?;
    note.as_file().sync_all()?;
    note.persist(file(directory, repository))?;
    File::open(directory)?.sync_all()
}

fn remove(directory: &Path, repository: &str) -> io::Result<()> {
    match fs::remove_file(file(directory, repository)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What is in a folder of notes.
#[derive(Default)]
struct Found {
    /// Since when each is noted.
    notes: Vec<(RepositoryName, SystemTime)>,
    /// Why some of it, or all, was not read.
    unread: Option<io::Error>,
}

fn read(directory: &Path) -> Found {
    let mut found = Found::default();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return found,
        Err(error) => {
            found.unread = Some(error);
            return found;
        }
        Ok(entries) => entries,
    };
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                found.unread = Some(error);
                continue;
            }
        };
        match read_note(directory, &path) {
            Ok(note) => found.notes.extend(note),
            // Another has ended with it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let reason = format!("{}: {error}", path.display());
                found.unread = Some(io::Error::new(error.kind(), reason));
            }
        }
    }
    found
}

/// A note that counts, and since when; what is none is removed.
fn read_note(directory: &Path, path: &Path) -> io::Result<Option<(RepositoryName, SystemTime)>> {
    let about = fs::symlink_metadata(path)?;
    if !about.is_file() {
        return Err(io::Error::other("no file"));
    }
    let named = fs::read_to_string(path)?.parse::<RepositoryName>().ok();
    let named = named.filter(|named| file(directory, named.as_str()) == path);
    let since = about.modified()?;
    let counts_for = match named {
        Some(_) => COUNTS_FOR,
        // What was being written when a program died names nothing, and nothing was made by it.
        None => WRITTEN_WITHIN,
    };
    if !is_within(since, counts_for) {
        fs::remove_file(path)?;
        return Ok(None);
    }
    Ok(named.map(|named| (named, since)))
}

/// Whether a time is no further from now than this: also in the future, as clocks are set.
fn is_within(at: SystemTime, limit: Duration) -> bool {
    let distance = SystemTime::now()
        .duration_since(at)
        .unwrap_or_else(|ahead| ahead.duration());
    distance < limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_noted_is_there_after_a_restart_and_what_was_forgotten_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("creating").join("prod@registry.test");
        let open = || Arc::new(Unfinished::open(Some(directory.clone())));
        let [first, second] = ["team/a", "team/b"].map(|name| name.parse().unwrap());
        let notes = open();
        for repository in [&first, &second] {
            notes.note(repository, Duration::from_secs(60)).await;
            assert!(!notes.take(repository, Duration::ZERO), "it is being made");
        }
        // Another's that was not whole.
        fs::write(directory.join(".tmpX"), "team/").unwrap();
        notes.forget(&second).await;
        assert!(!notes.contains(&second));
        let again = open();
        assert!(again.contains(&first) && !again.contains(&second));
        let turn = Duration::from_secs(5);
        assert!(again.take(&first, turn) && !again.take(&first, turn));
        tokio::time::advance(turn).await;
        assert!(again.take(&first, turn));
        assert!(!again.take(&second, turn));
    }

    #[tokio::test]
    async fn what_was_noted_an_hour_ago_does_not_count_and_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let notes = Arc::new(Unfinished::open(Some(folder.path().to_owned())));
        let [old, other] = ["team/a", "team/b"].map(|name| name.parse().unwrap());
        let turn = Duration::ZERO;
        assert_eq!(notes.note(&old, turn).await, Noted::Now);
        assert_eq!(notes.note(&old, turn).await, Noted::Before);
        let made_old = || {
            let ago = SystemTime::now() - COUNTS_FOR;
            notes.notes().get_mut(&old).unwrap().since = ago;
        };
        made_old();
        assert!(notes.is_too_old(&old));
        notes.renew(&old).await;
        assert!(!notes.is_too_old(&old));
        made_old();
        assert_eq!(notes.note(&old, turn).await, Noted::Now);
        assert!(!notes.is_too_old(&old) && file(folder.path(), "team/a").exists());
        made_old();
        notes.note(&other, turn).await;
        assert!(!notes.contains(&old) && !file(folder.path(), "team/a").exists());
    }

    #[tokio::test]
    async fn there_are_no_more_notes_than_there_may_be() {
        let notes = Arc::new(Unfinished::open(None));
        let name = |number: usize| format!("team/{number}").parse::<RepositoryName>().unwrap();
        for number in 0..=MOST {
            notes.note(&name(number), Duration::ZERO).await;
        }
        assert!(notes.contains(&name(MOST - 1)) && !notes.contains(&name(MOST)));
        // One that is ended makes room.
        notes.forget(&name(0)).await;
        notes.note(&name(MOST), Duration::ZERO).await;
        assert!(notes.contains(&name(MOST)));
    }
}
