//! Uploads under way: what a client goes on with by an id of ours, and the registry by a place of its own.
//!
//! A session belongs to whoever began it and to its repository; anybody else's is as unknown as one that
//! never was. Sessions are bounded in number and in idle time, and a restart forgets them: clients begin
//! again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::access::{ClientToken, Who, unguessable};
use crate::fill::Received;
use crate::oci::RepoKey;
use crate::upstream::{UploadPlace, Upstream};

/// Sessions of all together. One costs about a kilobyte.
const MOST: usize = 4096;
/// How long nobody may go on with a session before it is forgotten. Builds pause between layers, but not
/// for so long.
const IDLE: Duration = Duration::from_secs(60 * 60);
/// From then on a session may make room for another.
const RESTING: Duration = Duration::from_secs(60);
/// How often idle sessions are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// What an upload is.
pub(super) struct Session {
    /// Where it was begun: that name may be another upstream's by now.
    pub(super) upstream: Upstream,
    /// Where it goes on upstream.
    pub(super) place: UploadPlace,
    /// What upstream took of it.
    pub(super) received: Received,
}

/// Whose a session is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) who: Who,
    /// Bearers of tokens are told apart by these.
    pub(super) credential: Option<ClientToken>,
    pub(super) repo: RepoKey,
}

/// Why there is no session to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSession {
    /// There is none, or it is somebody else's.
    Unknown,
    /// Another request goes on with it.
    Busy,
}

/// No further session can be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// The sessions. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Uploads {
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    sessions: HashMap<String, Entry>,
    is_swept: bool,
}

struct Entry {
    owner: Owner,
    used: Instant,
    /// Taken out while a request goes on with it.
    session: Option<Session>,
}

impl Uploads {
    /// Begins a session; returns its id, which cannot be guessed.
    ///
    /// # Errors
    /// [`Full`], also where the operating system has no random number to give.
    pub(super) fn begin(&self, owner: Owner, session: Session) -> Result<String, Full> {
        let id: [u8; 16] = unguessable().map_err(|_| Full)?;
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut open = self.open();
        if open.sessions.len() >= MOST {
            open.make_room()?;
        }
        let entry = Entry {
            owner,
            used: Instant::now(),
            session: Some(session),
        };
        open.sessions.insert(id.clone(), entry);
        if !std::mem::replace(&mut open.is_swept, true) {
            let uploads = self.clone();
            tokio::spawn(async move { uploads.sweep().await });
        }
        Ok(id)
    }

    /// Takes a session to go on with. Unless it is given back, it ends.
    ///
    /// # Errors
    /// See [`NoSession`].
    pub(super) fn take(&self, id: &str, owner: &Owner) -> Result<Taken, NoSession> {
        let mut open = self.open();
        let entry = open.sessions.get_mut(id);
        let entry = entry.filter(|entry| entry.owner == *owner);
        let entry = entry.ok_or(NoSession::Unknown)?;
        let session = entry.session.take().ok_or(NoSession::Busy)?;
        Ok(Taken {
            uploads: self.clone(),
            id: id.to_owned(),
            session: Some(session),
        })
    }

    /// Forgets idle sessions for as long as there are any.
    async fn sweep(&self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let mut open = self.open();
            let sessions = &mut open.sessions;
            sessions.retain(|_, entry| entry.session.is_none() || entry.used.elapsed() < IDLE);
            if sessions.is_empty() {
                open.is_swept = false;
                return;
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Forgets the session that has rested for longest.
    fn make_room(&mut self) -> Result<(), Full> {
        let resting = self
            .sessions
            .iter()
            .filter(|(_, entry)| entry.session.is_some() && entry.used.elapsed() >= RESTING);
        let longest = resting.min_by_key(|(_, entry)| entry.used);
        let id = longest.map(|(id, _)| id.clone()).ok_or(Full)?;
        self.sessions.remove(&id);
        Ok(())
    }
}

/// A session that one request goes on with.
pub(super) struct Taken {
    uploads: Uploads,
    id: String,
    /// `None` once it was given back.
    session: Option<Session>,
}

impl Taken {
    /// What is known of it.
    pub(super) fn session(&mut self) -> Option<&mut Session> {
        self.session.as_mut()
    }

    /// Whoever owns it may go on with it.
    pub(super) fn give_back(mut self) {
        let mut open = self.uploads.open();
        if let Some(entry) = open.sessions.get_mut(&self.id) {
            entry.used = Instant::now();
            entry.session = self.session.take();
        }
    }

    /// Nobody goes on with it.
    pub(super) fn end(mut self) -> Option<Session> {
        self.session.take()
        // Dropped, which forgets it.
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut open = self.uploads.open();
        if open
            .sessions
            .get(&self.id)
            .is_some_and(|entry| entry.session.is_none())
        {
            open.sessions.remove(&self.id);
        }
    }
}
