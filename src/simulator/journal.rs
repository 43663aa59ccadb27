//! What was asked of the simulator: every request on every listener, from its head to its end.
//!
//! An entry appears when the request head has been read and is completed when the answer ends, so
//! requests in flight are visible. Headers are kept as they came, credentials included: they are
//! credentials of the simulator only, and tests look for them where they must not be.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::watch;

/// How long [`Journal::until`] waits.
const PATIENCE: Duration = Duration::from_secs(120);

/// One of the simulator's three front doors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Listener {
    /// The AWS JSON API of ECR.
    Api,
    /// The registry, `/v2/`.
    Registry,
    /// The S3 bucket that blobs are redirected to.
    Storage,
}

impl Listener {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Api, Self::Registry, Self::Storage];

    pub(super) fn index(self) -> usize {
        match self {
            Self::Api => 0,
            Self::Registry => 1,
            Self::Storage => 2,
        }
    }
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Not yet.
    InFlight,
    /// Every promised byte was handed to the connection.
    Complete,
    /// By a fault, by a peer that left, or by shutdown.
    Early,
}

/// One request and its answer.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Counts requests of the whole simulator from 0.
    pub id: usize,
    /// Where it arrived.
    pub listener: Listener,
    /// Which connection it came on; counts connections of the whole simulator from 1.
    pub connection: u64,
    /// The method as sent.
    pub method: String,
    /// The path as sent, without the query.
    pub path: String,
    /// The query as sent, empty where there was none.
    pub query: String,
    /// The `x-amz-target` operation on the API, e.g. `GetAuthorizationToken`; empty elsewhere.
    pub operation: String,
    /// The request's headers.
    pub headers: HeaderMap,
    /// The repository asked about, where the simulator can tell.
    pub repository: Option<String>,
    /// The digest asked about, where the simulator can tell; on storage too, whose paths name none.
    pub digest: Option<String>,
    /// Bytes of the request body that were read.
    pub request_bytes: u64,
    /// The answer's status, once there is one.
    pub status: Option<u16>,
    /// Bytes of the answer's body handed to the connection so far. At an early end up to some
    /// 64 KiB of them may not have reached the peer.
    pub body_bytes: u64,
    /// How it ended.
    pub end: End,
}

impl Entry {
    /// The value of the request header `name`, where it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The condition given to [`Journal::until`] did not come true in time.
#[derive(Debug, thiserror::Error)]
#[error("the journal did not reach the expected state within {waited:?}; it holds:\n{summary}")]
pub struct TimedOut {
    waited: Duration,
    summary: String,
}

/// A handle on the record of all requests.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    book: Mutex<Book>,
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Book {
    entries: Vec<Entry>,
    next_id: usize,
    connections: [u64; 3],
}

impl Journal {
    pub(super) fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                book: Mutex::default(),
                changes: watch::Sender::new(()),
            }),
        }
    }

    /// A copy of every entry, in order of arrival.
    pub fn snapshot(&self) -> Vec<Entry> {
        self.book().entries.clone()
    }

    /// How many entries `matches` accepts.
    pub fn count(&self, matches: impl Fn(&Entry) -> bool) -> usize {
        self.book().entries.iter().filter(|e| matches(e)).count()
    }

    /// The sum of the answers' body bytes over the entries `matches` accepts.
    pub fn body_bytes(&self, matches: impl Fn(&Entry) -> bool) -> u64 {
        let book = self.book();
        let matching = book.entries.iter().filter(|e| matches(e));
        matching.map(|e| e.body_bytes).sum()
    }

    /// How many connections `listener` has accepted, with or without a request.
    pub fn connections(&self, listener: Listener) -> u64 {
        self.book().connections[listener.index()]
    }

    /// Waits until `condition` holds for the entries, two minutes at most.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`TimedOut`], which lists the entries.
    pub async fn until(&self, condition: impl Fn(&[Entry]) -> bool) -> Result<(), TimedOut> {
        self.until_within(PATIENCE, condition).await
    }

    /// As [`Journal::until`] with a deadline of the caller's.
    ///
    /// # Errors
    /// [`TimedOut`], which lists the entries.
    pub async fn until_within(
        &self,
        deadline: Duration,
        condition: impl Fn(&[Entry]) -> bool,
    ) -> Result<(), TimedOut> {
        let mut changes = self.shared.changes.subscribe();
        // The sender lives in `self`, so the wait ends only by the condition.
        let wait = changes.wait_for(|()| condition(&self.book().entries));
        match tokio::time::timeout(deadline, wait).await {
            Ok(_) => Ok(()),
            Err(_) => Err(TimedOut {
                waited: deadline,
                summary: self.to_string(),
            }),
        }
    }

    /// Forgets every request that has arrived, those in flight too: a peer may have all of an answer before its
    /// entry ends. Ids go on counting; connections stay counted.
    pub fn clear(&self) {
        self.book().entries.clear();
        self.changed();
    }

    pub(super) fn connected(&self, listener: Listener) -> u64 {
        let mut book = self.book();
        book.connections[listener.index()] += 1;
        book.connections.iter().sum()
    }

    /// Records `entry` under the next id.
    pub(super) fn begin(&self, mut entry: Entry) -> Ticket {
        let id = {
            let mut book = self.book();
            entry.id = book.next_id;
            book.next_id += 1;
            let id = entry.id;
            book.entries.push(entry);
            id
        };
        self.changed();
        Ticket {
            journal: self.clone(),
            id,
            promised: None,
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.shared
            .book
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.shared.changes.send_replace(());
    }
}

impl std::fmt::Display for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for e in &self.book().entries {
            writeln!(
                f,
                "{:?} {} {} {}-> {} {} bytes, {:?}",
                e.listener,
                e.method,
                e.path,
                e.header("range")
                    .map(|r| format!("[{r}] "))
                    .unwrap_or_default(),
                e.status.map_or_else(|| "-".into(), |s| s.to_string()),
                e.body_bytes,
                e.end,
            )?;
        }
        Ok(())
    }
}

/// The right to complete one entry; dropping it ends the entry.
#[derive(Debug)]
pub(super) struct Ticket {
    journal: Journal,
    id: usize,
    promised: Option<u64>,
}

impl Ticket {
    pub(super) fn head(&mut self, status: u16, promised: u64) {
        self.promised = Some(promised);
        self.edit(|entry| entry.status = Some(status));
    }

    pub(super) fn received(&self, bytes: u64) {
        self.edit(|entry| entry.request_bytes += bytes);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.edit(|entry| entry.body_bytes += bytes);
    }

    fn edit(&self, change: impl FnOnce(&mut Entry)) {
        // The lock is gone before waiters look.
        if let Some(entry) = self
            .journal
            .book()
            .entries
            .iter_mut()
            .rfind(|e| e.id == self.id)
        {
            change(entry);
        }
        self.journal.changed();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let promised = self.promised;
        self.edit(|entry| {
            entry.end = match promised {
                Some(promised) if entry.body_bytes >= promised => End::Complete,
                _ => End::Early,
            };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            id: 0,
            listener: Listener::Storage,
            connection: 1,
            method: "GET".into(),
            path: "/x".into(),
            query: String::new(),
            operation: String::new(),
            headers: HeaderMap::new(),
            repository: None,
            digest: None,
            request_bytes: 0,
            status: None,
            body_bytes: 0,
            end: End::InFlight,
        }
    }

    #[test]
    fn an_entry_is_visible_in_flight_and_ends_by_what_was_sent() {
        let journal = Journal::new();
        let mut whole = journal.begin(entry());
        let mut cut = journal.begin(entry());
        let unanswered = journal.begin(entry());
        assert_eq!(journal.count(|e| e.end == End::InFlight), 3);
        whole.head(200, 10);
        whole.sent(10);
        cut.head(200, 10);
        cut.sent(9);
        drop((whole, cut, unanswered));
        let ends: Vec<End> = journal.snapshot().iter().map(|e| e.end).collect();
        assert_eq!(ends, [End::Complete, End::Early, End::Early]);
        assert_eq!(journal.body_bytes(|_| true), 19);
    }

    #[test]
    fn what_ends_after_the_journal_was_cleared_stays_forgotten() {
        let journal = Journal::new();
        let mut sent = journal.begin(entry());
        sent.head(200, 10);
        sent.sent(10);
        journal.clear();
        let later = journal.begin(entry());
        drop(sent);
        let left: Vec<_> = journal.snapshot().iter().map(|e| (e.id, e.end)).collect();
        assert_eq!(left, [(later.id, End::InFlight)]);
        assert_eq!(journal.body_bytes(|_| true), 0);
    }

    #[tokio::test]
    async fn until_wakes_when_the_condition_comes_true() {
        let journal = Journal::new();
        let waiter = tokio::spawn({
            let journal = journal.clone();
            async move { journal.until(|entries| entries.len() == 2).await }
        });
        let _first = journal.begin(entry());
        let _second = journal.begin(entry());
        waiter.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn until_gives_up_and_tells_what_it_saw() {
        let journal = Journal::new();
        let _ticket = journal.begin(entry());
        let error = journal
            .until_within(Duration::from_millis(1), |_| false)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("Storage GET /x"), "{error}");
    }
}
