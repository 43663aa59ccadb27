//! The signals that end the process, and the one that makes it read its files again.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

/// How long after a signal another is the same wish: a supervisor may signal the process and then its
/// group, and a terminal the group as well.
const ECHO: Duration = Duration::from_millis(250);

/// Counts SIGTERM and SIGINT: the first asks to drain, the second to stop at once.
pub(super) struct Signals {
    count: watch::Receiver<u32>,
}

impl Signals {
    /// Begins to watch; from now on neither ends the process by itself.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub(super) fn watch() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (counter, count) = watch::channel(0);
        tokio::spawn(async move {
            while next(&mut terminate, &mut interrupt).await.is_some() {
                counter.send_modify(|count| *count += 1);
                let echoes =
                    async { while next(&mut terminate, &mut interrupt).await.is_some() {} };
                let _ = tokio::time::timeout(ECHO, echoes).await;
            }
        });
        Ok(Self { count })
    }

    /// Resolves at the first signal.
    pub(super) fn first(&self) -> impl Future<Output = ()> + use<> {
        reached(self.count.clone(), 1)
    }

    /// Resolves at the second signal.
    pub(super) fn second(&self) -> impl Future<Output = ()> + use<> {
        reached(self.count.clone(), 2)
    }
}

/// Every SIGHUP from now on; it no longer ends the process. Several before the first is taken are one.
///
/// # Errors
/// The operating system's refusal.
pub(super) fn hangups() -> io::Result<mpsc::Receiver<()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP: the configuration and its files are read again");
            if let Err(TrySendError::Closed(())) = sender.try_send(()) {
                tracing::info!("the proxy ends, so nothing is read again");
            }
        }
    });
    Ok(receiver)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> Option<()> {
    tokio::select! {
        signal = terminate.recv() => signal,
        signal = interrupt.recv() => signal,
    }
}

async fn reached(mut count: watch::Receiver<u32>, wanted: u32) {
    if count.wait_for(|count| *count >= wanted).await.is_err() {
        // Nobody watches any more, so no signal will come.
        std::future::pending::<()>().await;
    }
}
