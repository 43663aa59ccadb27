//! How fast a body goes out and where it waits: [`Flow`] yields the pieces of one answer's body
//! with the faults that concern bytes and time applied, and keeps its journal entry up to date.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::content::{BlobSource, PIECE_BYTES};
use super::fault::Gate;
use super::journal::Ticket;

/// How much time lost to coarse timers a rate may make up for.
const SLACK: Duration = Duration::from_millis(20);

/// A rate shared by everything that holds a clone.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    bytes_per_second: u64,
    free_at: Arc<Mutex<Option<Instant>>>,
}

impl Bucket {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            free_at: Arc::default(),
        }
    }

    /// A twentieth of a second's worth, so that slow bodies trickle rather than jump.
    fn piece_bytes(&self) -> u64 {
        (self.bytes_per_second / 20).clamp(1, PIECE_BYTES)
    }

    /// Waits for the turn of `bytes`.
    async fn take(&self, bytes: u64) {
        let turn = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let oldest = now.checked_sub(SLACK).unwrap_or(now);
            let start = free_at.map_or(now, |at| at.max(oldest));
            let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            let turn = start + cost;
            *free_at = Some(turn);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
}

/// What is to happen on the way through a body.
#[derive(Debug, Default)]
pub(super) struct Course {
    pub(super) rates: Vec<Bucket>,
    pub(super) holds: Vec<(u64, Gate)>,
    pub(super) stall_after: Option<u64>,
    pub(super) corrupt: Vec<u64>,
    /// Ends the flow here, short of its content.
    pub(super) cut_after: Option<u64>,
}

/// The body of one answer under way.
#[derive(Debug)]
pub(super) struct Flow {
    content: BlobSource,
    first: u64,
    len: u64,
    sent: u64,
    course: Course,
    ticket: Ticket,
}

impl Flow {
    /// `len` bytes of `content` from offset `first`.
    pub(super) fn new(
        content: BlobSource,
        first: u64,
        len: u64,
        course: Course,
        ticket: Ticket,
    ) -> Self {
        Self {
            content,
            first,
            len,
            sent: 0,
            course,
            ticket,
        }
    }

    /// The next piece, counted as sent; `None` at the end or at the cut.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        let here = self.sent;
        if self.course.stall_after.is_some_and(|at| here >= at) {
            std::future::pending::<()>().await;
        }
        while let Some(place) = self.course.holds.iter().position(|(at, _)| here >= *at) {
            let (_, gate) = self.course.holds.swap_remove(place);
            gate.pass().await;
        }
        let end = self.course.cut_after.unwrap_or(u64::MAX).min(self.len);
        let mut stop = end;
        stop = stop.min(self.course.stall_after.unwrap_or(u64::MAX));
        for (at, _) in &self.course.holds {
            stop = stop.min(*at);
        }
        for rate in &self.course.rates {
            stop = stop.min(here + rate.piece_bytes());
        }
        if here >= end {
            return None;
        }
        let piece = self.content.piece(self.first + here..self.first + stop);
        let bytes = piece.len() as u64;
        for rate in &self.course.rates {
            rate.take(bytes).await;
        }
        let piece = self.corrupted(piece);
        self.sent += bytes;
        self.ticket.sent(bytes);
        Some(piece)
    }

    fn corrupted(&self, piece: Bytes) -> Bytes {
        let within = |at: &&u64| (self.sent..self.sent + piece.len() as u64).contains(*at);
        let mut places = self.course.corrupt.iter().filter(within).peekable();
        if places.peek().is_none() {
            return piece;
        }
        let mut changed = piece.to_vec();
        for at in places {
            changed[(at - self.sent) as usize] ^= 0xff;
        }
        changed.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::journal::{End, Entry, Journal, Listener};

    fn flow(journal: &Journal, course: Course) -> Flow {
        let mut ticket = journal.begin(Entry {
            id: 0,
            listener: Listener::Storage,
            connection: 1,
            method: "GET".into(),
            path: "/".into(),
            query: String::new(),
            operation: String::new(),
            headers: http::HeaderMap::new(),
            repository: None,
            digest: None,
            request_bytes: 0,
            status: None,
            body_bytes: 0,
            end: End::InFlight,
        });
        ticket.head(200, 10);
        Flow::new("0123456789".into(), 0, 10, course, ticket)
    }

    #[tokio::test]
    async fn a_cut_ends_the_flow_and_the_entry_early() {
        let journal = Journal::new();
        let course = Course {
            cut_after: Some(4),
            corrupt: vec![1],
            ..Course::default()
        };
        let mut flow = flow(&journal, course);
        assert_eq!(flow.next().await.unwrap(), &[b'0', !b'1', b'2', b'3'][..]);
        assert_eq!(flow.next().await, None);
        drop(flow);
        assert_eq!(journal.snapshot()[0].end, End::Early);
    }

    #[tokio::test]
    async fn a_hold_waits_at_its_offset_for_the_gate() {
        let journal = Journal::new();
        let gate = Gate::new();
        let course = Course {
            holds: vec![(3, gate.clone())],
            ..Course::default()
        };
        let mut flow = flow(&journal, course);
        assert_eq!(flow.next().await.unwrap(), "012");
        let rest = tokio::spawn(async move { flow.next().await });
        gate.arrived(1).await;
        assert_eq!(journal.body_bytes(|_| true), 3);
        gate.open();
        assert_eq!(rest.await.unwrap().unwrap(), "3456789");
    }

    #[tokio::test]
    async fn a_rate_spreads_the_body_over_time() {
        let journal = Journal::new();
        let course = Course {
            rates: vec![Bucket::new(100)],
            ..Course::default()
        };
        let mut flow = flow(&journal, course);
        let began = Instant::now();
        while flow.next().await.is_some() {}
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(95), "{took:?}");
    }
}
