//! Pooled read and write buffers under one global cap.
//!
//! Invariant: never more than `max_buffers` buffers exist in use at once, and those that wait for
//! their next use are no more than those in use or a small warm set, whichever is larger.
//! Knows nothing of who borrows: a pool is a size, a cap and a free list.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use memmap2::MmapMut;

/// Bytes of idle buffers that a quiet pool keeps. Less, and a single client faults fresh pages in
/// for each chunk, which doubles the cost of a hit; more, and a process at rest holds memory for
/// nobody.
const WARM_BYTES: usize = 2 * 1024 * 1024;

/// Read and write buffers of one size under one global cap. Cloning is cheap and shares the pool.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

struct Shared {
    buffer_bytes: usize,
    max_buffers: usize,
    warm_buffers: usize,
    in_use: AtomicUsize,
    idle: Mutex<Vec<MmapMut>>,
}

impl BufferPool {
    /// A pool that lends at most `max_buffers` buffers of `buffer_bytes` bytes each. Nothing is
    /// allocated until the first is taken.
    pub fn new(buffer_bytes: usize, max_buffers: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                buffer_bytes,
                max_buffers,
                warm_buffers: (WARM_BYTES / buffer_bytes.max(1)).max(1),
                in_use: AtomicUsize::new(0),
                idle: Mutex::new(Vec::new()),
            }),
        }
    }

    /// Size of every buffer of this pool, in bytes.
    pub fn buffer_bytes(&self) -> usize {
        self.shared.buffer_bytes
    }

    /// A buffer, or `None` when the cap is reached or the system has no memory left: the caller
    /// passes through or uses something small.
    ///
    /// What the buffer holds is unspecified: zeros, or what its last user left.
    pub fn try_take(&self) -> Option<Buffer> {
        let shared = &self.shared;
        shared
            .in_use
            .try_update(Ordering::AcqRel, Ordering::Relaxed, |in_use| {
                (in_use < shared.max_buffers).then_some(in_use + 1)
            })
            .ok()?;
        let warm = shared.idle().pop();
        // Anonymous mappings rather than the heap: freeing one returns its pages to the system at
        // once, whatever the allocator thinks of trimming.
        let map = match warm.map_or_else(|| MmapMut::map_anon(shared.buffer_bytes), Ok) {
            Ok(map) => map,
            Err(_) => {
                shared.in_use.fetch_sub(1, Ordering::AcqRel);
                return None;
            }
        };
        Some(Buffer {
            map: Some(map),
            shared: Arc::clone(shared),
        })
    }

    /// Whether more than half of the buffers are still to be had: who could do without one may take it.
    pub fn is_ample(&self) -> bool {
        self.in_use() < self.shared.max_buffers / 2
    }

    /// How many buffers are lent at this moment.
    pub fn in_use(&self) -> usize {
        self.shared.in_use.load(Ordering::Acquire)
    }

    /// How many buffers wait for their next use.
    pub fn idle(&self) -> usize {
        self.shared.idle().len()
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("buffer_bytes", &self.shared.buffer_bytes)
            .field("max_buffers", &self.shared.max_buffers)
            .field("in_use", &self.in_use())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn idle(&self) -> MutexGuard<'_, Vec<MmapMut>> {
        // The list is whole between any two of its operations, so a panic elsewhere spoils nothing.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, map: MmapMut) {
        let in_use = self.in_use.fetch_sub(1, Ordering::AcqRel) - 1;
        let mut surplus = Vec::new();
        {
            let mut idle = self.idle();
            if idle.len() < self.warm_buffers.max(in_use) {
                idle.push(map);
            } else {
                surplus.push(map);
            }
            if in_use == 0 && idle.len() > self.warm_buffers {
                surplus.extend(idle.drain(self.warm_buffers..));
                idle.shrink_to(self.warm_buffers);
            }
        }
        // Unmapping is a system call: outside the lock.
        drop(surplus);
    }
}

/// A buffer of fixed capacity, borrowed from a [`BufferPool`]; it returns there when dropped.
pub struct Buffer {
    /// `None` only while the buffer is being dropped.
    map: Option<MmapMut>,
    shared: Arc<Shared>,
}

impl Buffer {
    /// The first `len` bytes as shared, immutable bytes. The buffer returns to its pool when the
    /// last clone or slice of them is dropped. A `len` beyond the capacity means all of it.
    pub fn freeze(self, len: usize) -> Bytes {
        let len = len.min(self.as_ref().len());
        Bytes::from_owner(Frozen { buffer: self, len })
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self.map.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(map) = self.map.take() {
            self.shared.give_back(map);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("capacity", &self.as_ref().len())
            .finish_non_exhaustive()
    }
}

struct Frozen {
    buffer: Buffer,
    len: usize,
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.as_ref()[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_holds_and_a_dropped_buffer_frees_its_place() {
        let pool = BufferPool::new(4096, 2);
        let first = pool.try_take().expect("below the cap");
        let second = pool.try_take().expect("below the cap");
        assert!(pool.try_take().is_none());
        assert_eq!(pool.in_use(), 2);
        drop(first);
        assert_eq!(pool.in_use(), 1);
        assert!(pool.try_take().is_some());
        drop(second);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn frozen_bytes_hold_the_buffer_until_the_last_slice_is_gone() {
        let pool = BufferPool::new(4096, 1);
        let mut buffer = pool.try_take().expect("below the cap");
        assert!(buffer.as_ref().iter().all(|byte| *byte == 0));
        buffer.as_mut()[..5].copy_from_slice(b"hello");
        let bytes = buffer.freeze(5);
        let slice = bytes.slice(1..3);
        assert_eq!(bytes, "hello");
        drop(bytes);
        assert_eq!(slice, "el");
        assert!(pool.try_take().is_none());
        drop(slice);
        assert!(pool.try_take().is_some());
    }

    #[test]
    fn freezing_more_than_the_capacity_is_all_of_it() {
        let pool = BufferPool::new(4096, 1);
        let buffer = pool.try_take().expect("below the cap");
        assert_eq!(buffer.freeze(usize::MAX).len(), 4096);
    }

    #[test]
    fn a_quiet_pool_keeps_only_the_warm_set() {
        let buffer_bytes = WARM_BYTES / 4;
        let pool = BufferPool::new(buffer_bytes, 64);
        let taken: Vec<_> = (0..40).filter_map(|_| pool.try_take()).collect();
        assert_eq!(taken.len(), 40);
        drop(taken);
        assert_eq!(pool.in_use(), 0);
        assert_eq!(pool.idle(), 4);
    }

    #[test]
    fn under_load_returned_buffers_are_kept_for_the_next_taker() {
        let pool = BufferPool::new(WARM_BYTES, 64);
        let mut taken: Vec<_> = (0..20).filter_map(|_| pool.try_take()).collect();
        let half = taken.split_off(10);
        drop(half);
        assert_eq!((pool.in_use(), pool.idle()), (10, 10));
    }
}
