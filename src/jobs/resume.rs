//! Going on with downloads that broke off: after a restart, and after an outage that outlasted the
//! fill's own patience.

use std::time::Duration;

use crate::cache::Interrupted;
use crate::fill::Fills;

/// Between two looks at what there is. A client that asks again goes on at once, so this only bounds
/// how long a download waits that nobody asks for.
const PAUSE: Duration = Duration::from_secs(15);

/// Goes on with what broke off, one at a time, for as long as it is not dropped. It begins with what there
/// is when it is called, and not with what breaks off for somebody who is about to ask again.
///
/// # Cancel safety
/// Safe: a fill that was begun is its own.
pub fn resume(fills: Fills) -> impl Future<Output = ()> + Send {
    let left = fills.interrupted();
    go_on(fills, left)
}

async fn go_on(fills: Fills, mut left: Vec<Interrupted>) {
    loop {
        for interrupted in left {
            if let Err(error) = fills.go_on(&interrupted).await {
                tracing::debug!(oci.digest = %interrupted.digest, %error, "a broken download waits on");
            }
        }
        // The end of an outage is what broken downloads wait for.
        let _ = tokio::time::timeout(PAUSE, fills.until_one_returns()).await;
        left = fills.interrupted();
    }
}
