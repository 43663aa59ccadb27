//! Repositories that are being made, noted on disk: whoever makes one may die before it is as it should be.
//!
//! Each has a file of its own, of which the name is a hash and the content is what the repository is called:
//! nothing is written anew, so whoever else notes at the same time takes nothing away.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::oci::{Digest, RepositoryName};

/// Notes at once: beyond, what is made is not noted, and whoever pushes fills no disk with them.
const MOST: usize = 1_000;

/// The notes of one registry.
#[derive(Debug)]
pub(super) struct Unfinished {
    /// Where they are kept; without, they end with the program.
    directory: Option<PathBuf>,
    /// From when on somebody may go on with it.
    due: Mutex<HashMap<RepositoryName, Instant>>,
}

impl Unfinished {
    /// Those kept in `directory`, which need not be there. What cannot be read is told, and left.
    pub(super) fn open(directory: Option<PathBuf>) -> Self {
        let found = directory.as_deref().map_or(Ok(Vec::new()), read);
        let found = found.unwrap_or_else(|error| {
            tracing::warn!(path = ?directory, %error, "cannot read which repositories were being made");
            Vec::new()
        });
        let now = Instant::now();
        let due = found.into_iter().map(|repository| (repository, now));
        Self {
            directory,
            due: Mutex::new(due.collect()),
        }
    }

    pub(super) fn contains(&self, repository: &RepositoryName) -> bool {
        self.due().contains_key(repository)
    }

    /// Notes a repository, durably, and as one that nobody else need go on with for `turn`. Where that fails
    /// it is told: what is to be made matters more.
    pub(super) async fn note(self: &Arc<Self>, repository: &RepositoryName, turn: Duration) {
        let is_new = {
            let mut due = self.due();
            if due.len() >= MOST && !due.contains_key(repository) {
                return;
            }
            due.insert(repository.clone(), Instant::now() + turn)
                .is_none()
        };
        if is_new {
            self.on_disk(repository, write).await;
        }
    }

    /// It is as it should be, or is not there.
    pub(super) async fn forget(self: &Arc<Self>, repository: &RepositoryName) {
        if self.due().remove(repository).is_some() {
            self.on_disk(repository, remove).await;
        }
    }

    /// Takes a turn at going on with a repository that was noted: false if there is nothing to do, or another
    /// has the turn.
    pub(super) fn take(&self, repository: &RepositoryName, turn: Duration) -> bool {
        let now = Instant::now();
        match self.due().get_mut(repository) {
            Some(due) if *due <= now => {
                *due = now + turn;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Nobody need go on with it for so long.
    pub(super) fn put_off(&self, repository: &RepositoryName, pause: Duration) {
        if let Some(due) = self.due().get_mut(repository) {
            *due = Instant::now() + pause;
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

    fn due(&self) -> MutexGuard<'_, HashMap<RepositoryName, Instant>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
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

fn read(directory: &Path) -> io::Result<Vec<RepositoryName>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // What was being written when the program died names nothing, and nothing was made by it.
        let named = fs::read_to_string(&path)?.parse::<RepositoryName>();
        found.extend(named.ok().filter(|it| file(directory, it.as_str()) == path));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_noted_is_there_after_a_restart_and_what_was_forgotten_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("creating").join("prod");
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
