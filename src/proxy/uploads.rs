//! Uploads under way: what a client goes on with by an id of ours, and the registry by a place of its own.
//!
//! A session belongs to whoever began it and to its repository; anybody else's is as unknown as one that
//! never was. Sessions are bounded in number, in all and for one caller, and in idle time, and a restart
//! forgets them: clients begin again. One that ends by itself is given up upstream, too.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::access::{ClientToken, Who, one_client, unguessable};
use crate::fill::Received;
use crate::oci::RepoKey;
use crate::upstream::{UploadPlace, Upstream};

/// Sessions of all together. One costs about a kilobyte.
const MOST: usize = 4096;
/// Sessions of one caller: a farm of builders that push with one password, and not all there are. Bearers of
/// tokens from one address are one caller, as who has one token gets another for the asking.
const MOST_OF_ONE: usize = 1024;
/// How long nobody may go on with a session before it is forgotten. Builds pause between layers, but not
/// for so long.
const IDLE: Duration = Duration::from_secs(60 * 60);
/// From then on a session may make room for another.
const RESTING: Duration = Duration::from_secs(60);
/// How often idle sessions are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// What an upload is. Dropping it gives it up upstream, unless it has [`ended`](Session::ended).
pub(super) struct Session {
    /// Where it goes on upstream.
    pub(super) at: At,
    /// What upstream took of it.
    pub(super) received: Received,
}

/// Where an upload goes on upstream.
pub(super) struct At {
    /// That of its name may be another by now.
    pub(super) upstream: Upstream,
    repo: RepoKey,
    pub(super) place: UploadPlace,
    is_over: bool,
}

impl Session {
    /// A session that upstream has begun, asked as whoever goes on with it.
    pub(super) fn new(
        upstream: Upstream,
        repo: RepoKey,
        place: UploadPlace,
        received: Received,
    ) -> Self {
        let at = At {
            upstream,
            repo,
            place,
            is_over: false,
        };
        Self { at, received }
    }

    /// Upstream has all of it.
    pub(super) fn ended(mut self) -> Received {
        self.at.is_over = true;
        self.received
    }
}

impl Drop for At {
    /// Tells upstream that nothing more comes, where it wants to be told. Nobody waits for it.
    fn drop(&mut self) {
        // Without a runtime the program ends, and nobody is left to tell.
        let Some(runtime) = Handle::try_current().ok().filter(|_| !self.is_over) else {
            return;
        };
        let (upstream, repo, place) =
            (self.upstream.clone(), self.repo.clone(), self.place.clone());
        runtime.spawn(async move {
            if let Err(error) = upstream.give_up_upload(&repo.repository, &place).await {
                tracing::debug!(oci.repository = %repo, %error, "an upload was not given up upstream");
            }
        });
    }
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

/// The sessions, `S` being what one is. Clones are the same.
pub(super) struct Uploads<S = Session> {
    open: Arc<Mutex<Open<S>>>,
}

impl<S> Clone for Uploads<S> {
    fn clone(&self) -> Self {
        Self {
            open: Arc::clone(&self.open),
        }
    }
}

impl<S> Default for Uploads<S> {
    fn default() -> Self {
        let open = Open {
            sessions: HashMap::new(),
            is_swept: false,
        };
        Self {
            open: Arc::new(Mutex::new(open)),
        }
    }
}

struct Open<S> {
    sessions: HashMap<String, Entry<S>>,
    is_swept: bool,
}

struct Entry<S> {
    owner: Owner,
    /// From where it was begun.
    client: IpAddr,
    used: Instant,
    /// Taken out while a request goes on with it.
    session: Option<S>,
}

impl<S: Send + 'static> Uploads<S> {
    /// Makes room for a session, which the caller begins from `address`; its id cannot be guessed.
    ///
    /// # Errors
    /// [`Full`], also where the operating system has no random number to give.
    pub(super) fn begin(&self, owner: Owner, address: IpAddr) -> Result<Taken<S>, Full> {
        let id: [u8; 16] = unguessable().map_err(|_| Full)?;
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut open = self.open();
        let client = one_client(address);
        let _made_room = open.make_room(&owner, client)?;
        let entry = Entry {
            owner,
            client,
            used: Instant::now(),
            session: None,
        };
        open.sessions.insert(id.clone(), entry);
        if !std::mem::replace(&mut open.is_swept, true) {
            let uploads = self.clone();
            tokio::spawn(async move { uploads.sweep().await });
        }
        drop(open);
        Ok(Taken {
            uploads: self.clone(),
            id,
            session: None,
        })
    }

    /// Takes a session to go on with. Unless it is given back, it ends.
    ///
    /// # Errors
    /// See [`NoSession`].
    pub(super) fn take(&self, id: &str, owner: &Owner) -> Result<Taken<S>, NoSession> {
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
            let (_idle, is_done) = self.open().without_idle();
            if is_done {
                return;
            }
        }
    }
}

impl<S> Uploads<S> {
    fn open(&self) -> MutexGuard<'_, Open<S>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Entry<S> {
    /// Whether it counts as this caller's, whatever the repository.
    fn is_of(&self, owner: &Owner, client: IpAddr) -> bool {
        let credentials = (&self.owner.credential, &owner.credential);
        let is_one_place = self.client == client && matches!(credentials, (Some(_), Some(_)));
        self.owner.who == owner.who && (is_one_place || credentials.0 == credentials.1)
    }
}

impl<S> Open<S> {
    /// Takes out what was idle for too long; and whether nothing is left to look for.
    fn without_idle(&mut self) -> (Vec<Entry<S>>, bool) {
        let is_idle = |_: &String, entry: &mut Entry<S>| {
            entry.session.is_some() && entry.used.elapsed() >= IDLE
        };
        let idle = self.sessions.extract_if(is_idle);
        let idle = idle.map(|(_, entry)| entry).collect();
        self.is_swept = !self.sessions.is_empty();
        (idle, !self.is_swept)
    }

    /// Makes room for one more of this owner's, if need be by the session that has rested for longest: of
    /// the owner's own, or of all where there are too many of all.
    fn make_room(&mut self, owner: &Owner, client: IpAddr) -> Result<Option<Entry<S>>, Full> {
        let is_own = |entry: &Entry<S>| entry.is_of(owner, client);
        let own = self.sessions.values().filter(|entry| is_own(entry)).count();
        let is_too_many_of_one = own >= MOST_OF_ONE;
        if !is_too_many_of_one && self.sessions.len() < MOST {
            return Ok(None);
        }
        let resting = self.sessions.iter().filter(|(_, entry)| {
            entry.session.is_some()
                && entry.used.elapsed() >= RESTING
                && (!is_too_many_of_one || is_own(entry))
        });
        let longest = resting.min_by_key(|(_, entry)| entry.used);
        let id = longest.map(|(id, _)| id.clone()).ok_or(Full)?;
        Ok(self.sessions.remove(&id))
    }
}

/// A session that one request goes on with.
pub(super) struct Taken<S = Session> {
    uploads: Uploads<S>,
    id: String,
    /// `None` before it is begun, and once it was given back.
    session: Option<S>,
}

impl<S> Taken<S> {
    /// By what its owner goes on with it.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// It is begun.
    pub(super) fn hold(&mut self, session: S) {
        self.session = Some(session);
    }

    /// What is known of it.
    pub(super) fn session(&mut self) -> Option<&mut S> {
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
    pub(super) fn end(mut self) -> Option<S> {
        self.session.take()
        // Dropped, which forgets it.
    }
}

impl<S> Drop for Taken<S> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(user: &str, repository: &str) -> Owner {
        Owner {
            who: Who::User(user.into()),
            credential: None,
            repo: RepoKey {
                upstream: "prod".into(),
                repository: repository.parse().unwrap(),
            },
        }
    }

    /// Begins a session; its id, and what is there no more once it was dropped.
    fn begin(uploads: &Uploads<Arc<()>>, owner: &Owner) -> Result<(String, Arc<()>), Full> {
        begin_from(uploads, owner, "192.0.2.1")
    }

    fn begin_from(
        uploads: &Uploads<Arc<()>>,
        owner: &Owner,
        address: &str,
    ) -> Result<(String, Arc<()>), Full> {
        let session = Arc::new(());
        let mut taken = uploads.begin(owner.clone(), address.parse().unwrap())?;
        taken.hold(Arc::clone(&session));
        let id = taken.id().to_owned();
        taken.give_back();
        Ok((id, session))
    }

    fn is_dropped(session: &Arc<()>) -> bool {
        Arc::strong_count(session) == 1
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_nobody_goes_on_with_ends_and_one_that_is_used_does_not() {
        let (uploads, ann) = (Uploads::default(), owner("ann", "app"));
        let (used, session) = begin(&uploads, &ann).unwrap();
        let (idle, idle_session) = begin(&uploads, &ann).unwrap();
        let busy = begin(&uploads, &ann).unwrap();
        let going_on = uploads.take(&busy.0, &ann);
        let began = Instant::now();
        while began.elapsed() < IDLE - SWEEP {
            tokio::time::sleep(SWEEP).await;
            uploads.take(&used, &ann).ok().unwrap().give_back();
            assert!(!is_dropped(&idle_session));
        }
        tokio::time::sleep(2 * SWEEP).await;
        assert!(is_dropped(&idle_session), "given up");
        assert_eq!(uploads.take(&idle, &ann).err(), Some(NoSession::Unknown));
        assert!(!is_dropped(&session) && !is_dropped(&busy.1));
        drop(going_on);
        assert!(is_dropped(&busy.1), "not given back");
        tokio::time::sleep(IDLE + SWEEP).await;
        assert!(is_dropped(&session));
        assert!(!uploads.open().is_swept, "nothing is left to look for");
        begin(&uploads, &ann).unwrap();
        assert!(uploads.open().is_swept);
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_has_so_many_and_leaves_room_for_others() {
        let (uploads, ann) = (Uploads::default(), owner("ann", "app"));
        let (first, session) = begin(&uploads, &ann).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        for _ in 1..MOST_OF_ONE {
            begin(&uploads, &ann).unwrap();
        }
        for repository in ["app", "other"] {
            let more = begin(&uploads, &owner("ann", repository));
            assert_eq!(more.err(), Some(Full), "{repository}");
        }
        begin(&uploads, &owner("bob", "app")).unwrap();
        assert!(!is_dropped(&session));
        // What rests makes room, the longest first, and only its owner's.
        tokio::time::sleep(RESTING).await;
        begin(&uploads, &ann).unwrap();
        assert!(is_dropped(&session), "given up");
        assert_eq!(uploads.take(&first, &ann).err(), Some(NoSession::Unknown));
        assert_eq!(uploads.open().sessions.len(), MOST_OF_ONE + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn another_token_brings_no_more_room_to_whoever_has_it() {
        let uploads = Uploads::default();
        let bearer = |token: usize| Owner {
            who: Who::TokenBearer,
            credential: Some(ClientToken::of_test(&token.to_string())),
            ..owner("ann", "app")
        };
        for n in 0..MOST_OF_ONE {
            begin(&uploads, &bearer(n)).unwrap();
        }
        assert_eq!(begin(&uploads, &bearer(MOST_OF_ONE)).err(), Some(Full));
        // Elsewhere there are others.
        begin_from(&uploads, &bearer(MOST_OF_ONE), "192.0.2.2").unwrap();
        begin(&uploads, &owner("ann", "app")).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn all_together_have_so_many() {
        let uploads = Uploads::default();
        let users: Vec<_> = (0..=MOST / MOST_OF_ONE)
            .map(|n| owner(&format!("user-{n}"), "app"))
            .collect();
        let (last, others) = users.split_last().unwrap();
        for user in others {
            for _ in 0..MOST_OF_ONE {
                begin(&uploads, user).unwrap();
            }
        }
        assert_eq!(begin(&uploads, last).err(), Some(Full));
        tokio::time::sleep(RESTING).await;
        begin(&uploads, last).unwrap();
        assert_eq!(uploads.open().sessions.len(), MOST);
    }
}
