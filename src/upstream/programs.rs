//! Calls of the AWS SDK, run so that no program which they start outlives them.
//!
//! The SDK runs a profile's `credential_process`, and leaves it running when it gives up on it: one more
//! with each attempt, for as long as it hangs. A call therefore has a thread to itself, as the kernel
//! lists the children of each thread apart; those that are left when the call ends are ended too.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Runs a call to its end; `None` if it panicked.
///
/// # Cancel safety
/// Leaving drops the call soon after, and ends what it has started.
pub(super) async fn contained<T: Send + 'static>(
    call: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let (stay, left) = oneshot::channel::<()>();
    let runtime = Handle::current();
    let work = tokio::task::spawn_blocking(move || {
        let _programs = Programs;
        runtime.block_on(async move {
            tokio::select! {
                done = call => Some(done),
                _ = left => None,
            }
        })
    });
    let done = work.await;
    drop(stay);
    done.ok().flatten()
}

/// What this thread has started and not waited for; ended when dropped.
struct Programs;

impl Drop for Programs {
    fn drop(&mut self) {
        for child in listed(Path::new("/proc/thread-self/children")) {
            end(child);
        }
    }
}

/// Ends a process and its descendants: a shell does not take along what it runs.
fn end(process: Pid) {
    // It must not start another while its children are looked at.
    let _ = kill_process(process, Signal::STOP);
    let threads = fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero()));
    for thread in threads.into_iter().flatten().flatten() {
        for child in listed(&thread.path().join("children")) {
            end(child);
        }
    }
    tracing::debug!(process.pid = %process.as_raw_nonzero(), "a program for credentials is ended");
    // Whoever has ended meanwhile is what was wanted. The runtime waits for those that were its own.
    let _ = kill_process(process, Signal::KILL);
}

/// The processes of such a list; none where the kernel keeps none.
fn listed(children: &Path) -> Vec<Pid> {
    let list = fs::read_to_string(children).unwrap_or_default();
    let ids = list.split_ascii_whitespace();
    ids.filter_map(|id| Pid::from_raw(id.parse().ok()?))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn k10_what_a_call_leaves_running_ends_with_it() {
        let (told, begun) = oneshot::channel();
        let call = contained(async move {
            let mut shell = tokio::process::Command::new("/bin/sh");
            let mut shell = shell
                .args(["-c", "sleep 1000; true"])
                .spawn()
                .expect("a shell");
            told.send(shell.id().expect("it runs")).expect("heard");
            shell.wait().await
        });
        let calling = tokio::spawn(call);
        let shell = begun.await.expect("told");
        let list = format!("/proc/{shell}/task/{shell}/children");
        let inner = loop {
            if let Some(inner) = listed(Path::new(&list)).first() {
                break inner.as_raw_nonzero().to_string();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        calling.abort();
        // One that was not waited for has no command line any more.
        let runs = |id: &str| {
            let line = fs::read(format!("/proc/{id}/cmdline"));
            line.is_ok_and(|line| !line.is_empty())
        };
        let gone = async {
            while runs(&inner) || runs(&shell.to_string()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), gone).await;
        assert!(waited.is_ok(), "{shell} and {inner} run on");
    }
}
