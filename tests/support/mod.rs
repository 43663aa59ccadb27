//! What the black-box tests stand on: the real program in directories of its own, clients that show
//! what polite ones hide, and Debian's registries and container tools, each in a namespace of its
//! own. Everything listens on loopback, on ports the system chose, and ends with its test.
//!
//! Starting a program waits on the calling thread; a test that runs a simulator beside it uses
//! `#[tokio::test(flavor = "multi_thread")]`.

#![allow(
    dead_code,
    unused_imports,
    reason = "every test binary compiles all of this and uses its part"
)]

pub mod blobs;
pub mod bundle;
pub mod challenger;
pub mod client;
pub mod clock;
pub mod connect_proxy;
pub mod disk;
pub mod h2;
pub mod image;
pub mod large;
pub mod names;
pub mod network;
pub mod pebble;
pub mod pki;
pub mod port;
pub mod proxy;
pub mod push;
pub mod pushed;
pub mod python;
pub mod real;
pub mod registries;
pub mod sandbox;
pub mod scene;
pub mod secrets;
pub mod stage;
pub mod stopwatch;
pub mod store;
pub mod token_service;
pub mod two;
pub mod users;

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use ecr_proxy::simulator::{Builder as SimulatorBuilder, Listener, Simulator};

pub use self::client::{Answer, Client, Connection};
pub use self::clock::Clock;
pub use self::pki::Pki;
pub use self::proxy::{Ended, Event, Proxy};
pub use self::sandbox::Sandbox;
pub use self::scene::Scene;
pub use self::stopwatch::Stopwatch;
pub use self::token_service::TokenService;

/// The name under which every proxy of the tests answers.
pub const DOMAIN: &str = "registry.mydomain.test";

/// How long anything that has to happen may take on a busy machine before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Awaits `future`, or fails the test after [`PATIENCE`] naming `what` did not happen.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing after {PATIENCE:?}"),
    }
}

/// A simulator where another was that has ended.
pub async fn in_place_of(ended: &Simulator, builder: impl Fn() -> SimulatorBuilder) -> Simulator {
    let addresses = [Listener::Registry, Listener::Storage, Listener::Api];
    let [registry, storage, api] = addresses.map(|listener| ended.address(listener));
    within("its addresses are free again", async {
        loop {
            match builder().bind(registry, storage, api).start().await {
                Ok(simulator) => return simulator,
                // Somebody may have been given a port in between.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await
}

/// The program `name` of the system, which `tests/run` installs. The system's own folders come
/// first: what someone put in front of them may be another version.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .into_iter()
        .chain(path.split(':'))
        .map(|folder| PathBuf::from(folder).join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed; tests/run installs it"))
}
