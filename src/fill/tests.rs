//! What a panic in the middle of the work leaves behind: nothing, and nobody waiting. And what becomes of
//! bytes that come in another order than readers want them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::download::Again;
use super::filling::{Filling, Landing, Sink};
use super::flow::Flow;
use super::front::{Front, Phase};
use super::proof::KnownSize;
use super::verifying::Verdict;
use super::{FillError, FillOptions, Fills, Running};
use crate::buffers::BufferPool;
use crate::cache::{CacheMetrics, Limit, Store, StoreOptions};
use crate::clock::Clock;
use crate::oci::{Digest, Hasher, RepoKey};
use crate::telemetry::FillMetrics;
use crate::upstream::{Auth, Registry, Upstream, UpstreamMetrics, UpstreamOptions};

/// A waiter that has not learnt of a lost task by now never will, however busy the machine is.
pub(super) const SOON: Duration = Duration::from_secs(60);

pub(super) fn store(dir: &TempDir) -> Store {
    let options = StoreOptions {
        max_size: Limit::Bytes(1 << 20),
        min_free: Limit::Bytes(0),
        ..StoreOptions::new(dir.path())
    };
    Store::open(options, CacheMetrics::default()).unwrap()
}

pub(super) fn fills(dir: &TempDir) -> Fills {
    let registry = Registry::parse("registry.upstream.test").unwrap();
    let upstream = UpstreamOptions::new("test", registry, Auth::Anonymous);
    Fills::new(
        store(dir),
        Upstream::new(upstream, &UpstreamMetrics::default())
            .unwrap()
            .into(),
        BufferPool::new(1024, 1),
        Clock::system(),
        FillOptions::default(),
        FillMetrics::default(),
    )
}

fn repo() -> RepoKey {
    RepoKey {
        upstream: "test".into(),
        repository: "team/app".parse().unwrap(),
    }
}

/// Runs a task that panics while it holds `guard`; how those who wait on `flow` learn of it.
async fn phase_after_panic(guard: impl Send + 'static, flow: &Flow) -> Phase {
    let mut waiting = flow.subscribe();
    let task = tokio::spawn(async move {
        let _guard = guard;
        panic!("on purpose");
    });
    let told = waiting.wait_for(|front| matches!(front.phase, Phase::Failed(_)));
    let phase = tokio::time::timeout(SOON, told)
        .await
        .expect("a waiter was left hanging")
        .unwrap()
        .phase
        .clone();
    assert!(task.await.unwrap_err().is_panic());
    phase
}

#[tokio::test]
async fn c06_a_fill_that_panics_is_off_the_map_and_its_readers_are_told() {
    let dir = TempDir::new().unwrap();
    let shared = fills(&dir).shared;
    let digest = Digest::of(b"");
    let flow = Flow::new(digest, Front::connecting(), None);
    let running = Running {
        asked: shared.asked(&repo()).unwrap(),
        flow: Arc::clone(&flow),
        turns: tokio::sync::mpsc::channel(1).0,
    };
    shared.running().insert(digest, vec![running]);
    shared.metrics.active.inc();
    let landing = Landing {
        shared: Arc::clone(&shared),
        flow: Arc::clone(&flow),
        outcome: Err(FillError::Lost),
    };
    let phase = phase_after_panic(landing, &flow).await;
    assert!(matches!(phase, Phase::Failed(FillError::Lost)), "{phase:?}");
    assert!(shared.running().is_empty(), "the next asker would join it");
    assert_eq!(shared.metrics.active.get(), 0);
}

#[tokio::test]
async fn c06_a_verification_that_panics_is_off_the_map_and_its_readers_are_told() {
    let dir = TempDir::new().unwrap();
    let shared = fills(&dir).shared;
    let digest = Digest::of(b"");
    let flow = Flow::new(digest, Front::unverified(9), None);
    let verifying = || shared.verifying.lock().unwrap();
    verifying().insert(digest, Arc::clone(&flow));
    let verdict = Verdict {
        shared: Arc::clone(&shared),
        flow: Arc::clone(&flow),
        phase: None,
    };
    let phase = phase_after_panic(verdict, &flow).await;
    assert!(matches!(phase, Phase::Failed(FillError::Lost)), "{phase:?}");
    assert!(verifying().is_empty(), "the next asker would wait for it");
}

#[tokio::test]
async fn d05_without_a_disk_nothing_is_passed_on_but_what_comes_next() {
    let dir = TempDir::new().unwrap();
    let shared = fills(&dir).shared;
    let digest = Digest::of(b"0123456789");
    let flow = Flow::new(digest, Front::connecting(), None);
    let _reader = flow.attend();
    let filling = Filling {
        origin: shared.origin(&shared.asked(&repo()).unwrap()),
        flow: Arc::clone(&flow),
        size: KnownSize {
            described: None,
            told: None,
        },
        store: shared.store.clone(),
        buffers: shared.buffers.clone(),
        patience: Duration::ZERO,
        spare: Arc::clone(&shared.spare_lanes),
        metrics: shared.metrics.clone(),
    };
    let metrics = shared.metrics.clone();
    let again = Again::new(filling.origin.clone(), digest, 10, Duration::ZERO, metrics);
    flow.restart(again.clone(), 0);
    let after = async |pieces: &[(u64, &'static str)]| {
        let (sender, arrivals) = mpsc::channel(4);
        for (offset, piece) in pieces {
            let piece = Bytes::from_static(piece.as_bytes());
            sender.send(Ok((*offset, piece))).await.unwrap();
        }
        drop(sender);
        flow.leave_disk(0, Hasher::new());
        let memory = Sink::Memory {
            hash: Hasher::new(),
            written: 0,
        };
        let memory = filling.remember_arrivals(memory, arrivals, &again).await;
        memory.unwrap().written()
    };
    assert_eq!(after(&[(0, "01"), (2, "234"), (5, "56789")]).await, 10);
    assert_eq!(after(&[(0, "01"), (5, "56789"), (2, "234")]).await, 2);
    assert_eq!(after(&[(0, "01"), (0, "01"), (2, "234")]).await, 2);
    assert_eq!(after(&[(0, "01")]).await, 2, "the rest lay on the disk");
}
