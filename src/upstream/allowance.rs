//! How many pulls a registry still allows, as it tells with its answers (Docker Hub, "Usage and limits").

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::HeaderMap;

/// Longest name of what a registry counts by that is kept, in characters.
const LONGEST_SOURCE: usize = 64;

/// What a registry said last of the pulls that it allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Pulls that are left.
    pub remaining: u64,
    /// Out of so many, where it said so.
    pub limit: Option<u64>,
    /// For so long each, where it said so.
    pub window: Option<Duration>,
    /// Whose they are, where it said so: an address, or an account's id.
    pub source: Option<String>,
    /// When it said so.
    pub told: SystemTime,
}

impl Allowance {
    /// Reads the headers of an answer; `None` where they tell nothing, as for those without a limit.
    pub(super) fn read(headers: &HeaderMap, now: SystemTime) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let (remaining, window) = count(text("ratelimit-remaining")?)?;
        let limit = text("ratelimit-limit").and_then(count);
        let source = text("docker-ratelimit-source").map(str::trim);
        let is_name = |source: &&str| (1..=LONGEST_SOURCE).contains(&source.len());
        Some(Self {
            remaining,
            limit: limit.map(|(limit, _)| limit),
            window: window.or_else(|| limit.and_then(|(_, window)| window)),
            source: source.filter(is_name).map(str::to_owned),
            told: now,
        })
    }
}

/// `100;w=21600`: so many in so many seconds.
fn count(text: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = text.split(';').map(str::trim);
    let count = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok());
    Some((count, window.map(Duration::from_secs)))
}

/// The last word about it.
#[derive(Debug, Default)]
pub(super) struct LastAllowance(Mutex<Option<Allowance>>);

impl LastAllowance {
    pub(super) fn set(&self, allowance: Allowance) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(allowance);
    }

    pub(super) fn get(&self) -> Option<Allowance> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(headers: &[(&'static str, &str)]) -> Option<Allowance> {
        let headers = headers.iter().map(|(name, value)| {
            let name = http::HeaderName::from_static(name);
            (name, value.parse().expect("a value"))
        });
        Allowance::read(&headers.collect(), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn what_docker_hub_says_is_read() {
        let told = read(&[
            ("ratelimit-limit", "100;w=21600"),
            ("ratelimit-remaining", "20;w=21600"),
            ("docker-ratelimit-source", "192.0.2.1"),
        ]);
        let expected = Allowance {
            remaining: 20,
            limit: Some(100),
            window: Some(Duration::from_secs(21_600)),
            source: Some("192.0.2.1".to_owned()),
            told: SystemTime::UNIX_EPOCH,
        };
        assert_eq!(told, Some(expected));
        let bare = read(&[("ratelimit-remaining", "7")]).expect("a number");
        assert_eq!((bare.remaining, bare.limit, bare.window), (7, None, None));
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[("ratelimit-limit", "100;w=21600")]), None);
        assert_eq!(read(&[("ratelimit-remaining", "many")]), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[ -~]*") {
            let _ = count(&text);
        }
    }
}
