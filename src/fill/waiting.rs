//! Reads that may have to wait for the disk.
//!
//! The threads for such calls are the process's, and opening a file that is in memory, reading a record
//! or asking for a name needs one as well. So a disk that answers slowly holds up those who read from it,
//! [`READS`] of them at once, and never all threads.

use tokio::sync::Semaphore;

use super::error::FillError;

/// A quarter of the threads there are, and more than any disk can do at a time.
static READS: Semaphore = Semaphore::const_new(128);

/// Runs a read on a thread that may wait for the disk, in its turn.
///
/// # Cancel safety
/// A read that has begun ends where it is, and holds its turn until then.
pub(super) async fn read<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FillError> {
    let turn = READS.acquire().await.map_err(|_| FillError::Lost)?;
    let read = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    read.await.map_err(|_| FillError::Lost)
}
