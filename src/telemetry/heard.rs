//! What others said of us, heard where it would be logged.
//!
//! AWS and registries name identities and policies in their refusals, so no error carries their words: they
//! go to the log. A command that explains a refusal to the operator listens to them there.

use std::fmt::{self, Write as _};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

use super::StartLogError;

/// The fields that hold words of others.
const WORDS: [&str; 4] = ["aws.code", "aws.message", "upstream.said", "realm.host"];

/// Most that is kept of one event, in characters: a refusal takes some hundreds.
const MAX_CHARS: usize = 600;

/// Listens in place of the log of this process. Clones hear the same.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    /// Begins to listen, to warnings and what is graver.
    ///
    /// # Errors
    /// This process has a log already.
    pub fn start() -> Result<Self, StartLogError> {
        let heard = Self::default();
        tracing::subscriber::set_global_default(heard.subscriber())
            .map_err(|_| StartLogError::Twice)?;
        Ok(heard)
    }

    /// What was heard since the last time, each once.
    pub fn take(&self) -> Vec<String> {
        mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn subscriber(&self) -> impl Subscriber + Send + Sync + use<> {
        let listener = Listener(self.clone()).with_filter(LevelFilter::from_level(Level::WARN));
        tracing_subscriber::registry().with(listener)
    }
}

struct Listener(Heard);

impl<S: Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut words = Words::default();
        event.record(&mut words);
        if words.said.is_empty() {
            return;
        }
        let text = format!("{}:{}", words.message, words.said);
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        let text = text.chars().take(MAX_CHARS).map(printable).collect();
        let mut all = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains(&text) {
            all.push(text);
        }
    }
}

#[derive(Default)]
struct Words {
    message: String,
    said: String,
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        if field.name() == "message" {
            self.message = value;
        } else if WORDS.contains(&field.name()) && !value.is_empty() {
            let _ = write!(self.said, " {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_are_heard_once_and_nothing_else_is() {
        let heard = Heard::default();
        tracing::subscriber::with_default(heard.subscriber(), || {
            for _ in 0..2 {
                tracing::warn!(aws.code = "Denied", aws.message = "you\nmay not", "refused");
            }
            tracing::warn!(realm.host = %"auth.test", error = "mine", "another host");
            tracing::warn!(error = "mine", upstream.said = "", "of ours");
            tracing::info!(aws.message = "low", "of no interest");
        });
        assert_eq!(
            heard.take(),
            ["refused: Denied you may not", "another host: auth.test"]
        );
        assert!(heard.take().is_empty());
    }
}
