//! What is read again while the proxy runs: when its files change, and when the operator asks for it.
//!
//! Each [`Reload::watch`] names files and a way to take over what they hold. They are looked at every second
//! by what `stat` tells of what their paths lead to, so a file that is rewritten, renamed over, or swapped
//! by a symbolic link anywhere in its path is seen alike. What cannot be taken over changes nothing, is
//! told once, and is tried again until it can be: a renewal that is half written mends by itself. What
//! [`Reload::when_asked`] names is read only then, and first.
//!
//! Knows nothing of what the files hold.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

/// Between two looks. A look is a few calls of `stat`; a renewal is in use well within 5 s.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A file written so recently may be written again without its times telling, so it is read once more.
const UNSETTLED: Duration = Duration::from_secs(2);

/// Certificate and key are two files, and whoever writes them is between the two for a moment: only what
/// fails at two looks is told.
const TELL_AFTER: u32 = 2;

/// What reading again came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reread {
    /// What is in use already.
    Same,
    /// Something else, which is in use from now on.
    Changed,
    /// The same, in these parts, for the log.
    ChangedIn(String),
}

impl From<bool> for Reread {
    fn from(has_changed: bool) -> Self {
        match has_changed {
            true => Self::Changed,
            false => Self::Same,
        }
    }
}

/// What is read again. Built at start, then run.
pub struct Reload {
    sources: Vec<Source>,
    refused: Refused,
    metrics: ReloadMetrics,
}

struct Source {
    what: &'static str,
    /// Where to look for a change; `None` for what is read only when asked for.
    files: Option<Box<dyn Fn() -> Vec<PathBuf> + Send>>,
    reread: Box<dyn FnMut() -> Result<Reread, String> + Send>,
    /// How the files were when they were last read; `None` if they have to be read anew.
    seen: Option<Vec<(Option<Stamp>, PathBuf)>>,
    failures: u32,
    /// What was last told of it, while it fails.
    told: Option<String>,
}

/// What changes when the content of a path does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let data = fs::metadata(path).ok()?;
        Some(Self {
            device: data.dev(),
            inode: data.ino(),
            size: data.size(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let seconds = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH);
            since.map_or(0, |since| {
                i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
            })
        };
        let recent = seconds(now).saturating_sub(UNSETTLED.as_secs().cast_signed());
        self.changed.0 < recent || self.changed.0 > seconds(now)
    }
}

impl Reload {
    /// Nothing to read yet.
    pub fn new(metrics: ReloadMetrics) -> Self {
        Self {
            sources: Vec::new(),
            refused: Refused::default(),
            metrics,
        }
    }

    /// Reads `files` again by `reread` when one of them changes, or when they are others. `what` is a word for
    /// the log, the label of metrics and the readiness page, such as `certificates`.
    ///
    /// `reread` may block on the disk. It takes over what it can and answers why it could not take over
    /// the rest, without secrets; it is called again until it can.
    pub fn watch(
        &mut self,
        what: &'static str,
        files: impl Fn() -> Vec<PathBuf> + Send + 'static,
        reread: impl FnMut() -> Result<Reread, String> + Send + 'static,
    ) {
        let source = self.source(what, reread);
        self.sources.push(Source {
            files: Some(Box::new(files)),
            ..source
        });
    }

    /// Reads something again by `reread` only when asked, and before anything that is watched. What cannot be
    /// taken over then is not tried again by itself: its operator may be in the midst of writing it.
    pub fn when_asked(
        &mut self,
        what: &'static str,
        reread: impl FnMut() -> Result<Reread, String> + Send + 'static,
    ) {
        let source = self.source(what, reread);
        self.sources.insert(0, source);
    }

    fn source(
        &self,
        what: &'static str,
        reread: impl FnMut() -> Result<Reread, String> + Send + 'static,
    ) -> Source {
        self.metrics.refused(what).set(0);
        Source {
            what,
            files: None,
            reread: Box::new(reread),
            seen: None,
            failures: 0,
            told: None,
        }
    }

    /// What could not be taken over, as it is told while this runs.
    pub fn refused(&self) -> Refused {
        self.refused.clone()
    }

    /// Looks at the files for as long as it is not dropped, and reads all of them when `asked`.
    ///
    /// # Cancel safety
    /// Safe: a look that has begun comes to its end.
    pub async fn run(self, mut asked: mpsc::Receiver<()>) {
        let reload = Arc::new(Mutex::new(self));
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let forced = tokio::select! {
                _ = look.tick() => false,
                Some(()) = asked.recv() => true,
            };
            let reload = Arc::clone(&reload);
            let looked = tokio::task::spawn_blocking(move || {
                let mut reload = reload.lock().unwrap_or_else(PoisonError::into_inner);
                reload.look(forced, SystemTime::now());
            });
            // A panic was told when it happened, and what it kept from being read is read when it changes, or
            // when somebody asks again.
            let _told = looked.await;
        }
    }

    fn look(&mut self, forced: bool, now: SystemTime) {
        for source in &mut self.sources {
            source.look(forced, now, &self.refused, &self.metrics);
        }
    }
}

impl Source {
    fn look(&mut self, forced: bool, now: SystemTime, refused: &Refused, metrics: &ReloadMetrics) {
        match &self.files {
            None if !forced => return,
            None => {}
            Some(files) => {
                // Before they are read: what changes meanwhile is then seen at the next look.
                let stamps: Vec<_> = files()
                    .into_iter()
                    .map(|file| (Stamp::of(&file), file))
                    .collect();
                if !forced && self.failures == 0 && self.seen.as_ref() == Some(&stamps) {
                    return;
                }
                let mut present = stamps.iter().filter_map(|(stamp, _)| stamp.as_ref());
                let settled = present.all(|stamp| stamp.is_settled(now));
                self.seen = settled.then_some(stamps);
            }
        }
        let what = self.what;
        match (self.reread)() {
            Ok(reread) => {
                let mended = self.told.take().is_some();
                self.failures = 0;
                if mended {
                    refused.clear(what);
                    metrics.refused(what).set(0);
                }
                if reread != Reread::Same {
                    metrics.count(what, "ok");
                }
                if let Reread::ChangedIn(keys) = &reread {
                    tracing::info!(reload.what = what, reload.changed = keys, "reloaded");
                } else if mended || reread == Reread::Changed {
                    tracing::info!(reload.what = what, "reloaded");
                } else if forced {
                    tracing::info!(reload.what = what, "read again, nothing has changed");
                }
            }
            Err(reason) => {
                self.failures = self.failures.saturating_add(1);
                let is_news = self.told.as_ref() != Some(&reason);
                // Who asks is answered each time.
                if self.files.is_none() || (is_news && (forced || self.failures >= TELL_AFTER)) {
                    tracing::error!(
                        reload.what = what,
                        error = reason,
                        "cannot be reloaded; what was in use stays in use"
                    );
                    metrics.count(what, "refused");
                    metrics.refused(what).set(1);
                    refused.set(what, now, &reason);
                    self.told = Some(reason);
                }
            }
        }
    }
}

/// What could not be taken over, and what is in use stays in use. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Refused(Arc<Mutex<BTreeMap<&'static str, (SystemTime, String)>>>);

impl Refused {
    /// Each with since when and why.
    pub fn list(&self) -> Vec<(&'static str, SystemTime, String)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let each = all.iter();
        each.map(|(what, (since, why))| (*what, *since, why.clone()))
            .collect()
    }

    fn set(&self, what: &'static str, now: SystemTime, why: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = all.get(what).map_or(now, |(since, _)| *since);
        all.insert(what, (since, why.to_owned()));
    }

    fn clear(&self, what: &'static str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(what);
    }
}

/// Handles of what reloading counts. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct ReloadMetrics {
    reloads: Family<ResultLabels, Counter>,
    refused: Family<WhatLabel, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    what: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhatLabel {
    what: &'static str,
}

impl ReloadMetrics {
    /// Registers all handles under their names, without the program's prefix.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "reloads",
            "Files that were read again while the proxy ran, by what they hold and the result",
            self.reloads.clone(),
        );
        registry.register(
            "reload_refused",
            "1 while changed files cannot be used and what was in use stays, by what they hold",
            self.refused.clone(),
        );
    }

    fn count(&self, what: &'static str, result: &'static str) {
        self.reloads
            .get_or_create(&ResultLabels { what, result })
            .inc();
    }

    fn refused(&self, what: &'static str) -> Gauge {
        self.refused.get_or_create_owned(&WhatLabel { what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files;

    /// A source whose file holds what it is to answer: `bad…`, or what is in use from then on.
    struct Scene {
        folder: tempfile::TempDir,
        reload: Reload,
        reads: Arc<Mutex<Vec<String>>>,
    }

    impl Scene {
        fn holding(text: &str) -> Self {
            let folder = tempfile::tempdir().expect("folder");
            let file = folder.path().join("file");
            fs::write(&file, text).expect("file");
            let reads: Arc<Mutex<Vec<String>>> = Arc::default();
            let mut reload = Reload::new(ReloadMetrics::default());
            let mut in_use = text.to_owned();
            let (read, path) = (Arc::clone(&reads), file.clone());
            let files = vec![file];
            reload.watch(
                "words",
                move || files.clone(),
                move || {
                    let text = files::read_text(&path).map_err(|error| error.to_string())?;
                    read.lock().expect("no panic").push(text.clone());
                    if text.starts_with("bad") {
                        return Err(text);
                    }
                    let same = std::mem::replace(&mut in_use, text.clone()) == text;
                    Ok(if same { Reread::Same } else { Reread::Changed })
                },
            );
            Self {
                folder,
                reload,
                reads,
            }
        }

        /// Looks once, as long after the last change as `later`; answers how often the file was read.
        fn look(&mut self, later: Duration) -> usize {
            let before = self.reads.lock().expect("no panic").len();
            self.reload.look(false, SystemTime::now() + later);
            self.reads.lock().expect("no panic").len() - before
        }

        fn write(&self, text: &str) {
            fs::write(self.folder.path().join("file"), text).expect("file");
        }

        fn count(&self, result: &'static str) -> u64 {
            let labels = ResultLabels {
                what: "words",
                result,
            };
            self.reload.metrics.reloads.get_or_create(&labels).get()
        }

        fn refused(&self) -> Option<String> {
            let all = self.reload.refused().list();
            all.into_iter().map(|(_, _, why)| why).next()
        }
    }

    const LATER: Duration = Duration::from_secs(60);

    #[test]
    fn a_pipe_in_place_of_a_file_is_told_and_not_waited_for() {
        let mut scene = Scene::holding("a");
        scene.look(LATER);
        let file = scene.folder.path().join("file");
        fs::remove_file(&file).expect("a file");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, mode, 0)
            .expect("a pipe");
        assert_eq!((scene.look(LATER), scene.look(LATER)), (0, 0));
        let told = scene.refused().expect("it is told");
        assert!(told.ends_with("no regular file"), "{told}");
        fs::remove_file(&file).expect("a pipe");
        scene.write("b");
        scene.look(LATER);
        assert_eq!(scene.refused(), None);
        assert_eq!(
            scene
                .reads
                .lock()
                .expect("no panic")
                .last()
                .map(String::as_str),
            Some("b")
        );
    }

    #[tokio::test]
    async fn a_panic_ends_one_look_and_none_of_those_to_come() {
        let mut reload = Reload::new(ReloadMetrics::default());
        let (told, mut called) = mpsc::unbounded_channel();
        let mut is_first = true;
        reload.when_asked("configuration", move || {
            told.send(()).expect("the test waits");
            assert!(!std::mem::take(&mut is_first), "a fault of ours");
            Ok(Reread::Same)
        });
        let (ask, asked) = mpsc::channel(1);
        let run = tokio::spawn(reload.run(asked));
        for _ in 0..2 {
            ask.send(()).await.expect("it listens");
            called.recv().await.expect("it reads");
        }
        run.abort();
    }

    #[test]
    fn a_file_that_rests_is_read_once_more_and_then_no_more() {
        let mut scene = Scene::holding("a");
        assert_eq!(scene.look(LATER), 1);
        assert_eq!(scene.look(LATER), 0);
        scene.reload.look(true, SystemTime::now() + LATER);
        assert_eq!(scene.reads.lock().expect("no panic").len(), 2);
        assert_eq!(scene.count("ok"), 0);
    }

    #[test]
    fn what_was_just_written_is_read_again_in_case_it_is_written_once_more() {
        let mut scene = Scene::holding("a");
        assert_eq!(scene.look(Duration::ZERO), 1);
        assert_eq!(scene.look(Duration::ZERO), 1);
    }

    #[test]
    fn every_way_to_change_what_a_path_leads_to_is_seen() {
        let mut scene = Scene::holding("a");
        scene.look(LATER);
        let folder = scene.folder.path().to_owned();
        scene.write("b");
        assert_eq!(scene.look(LATER), 1, "rewritten");
        fs::write(folder.join("new"), "c").expect("file");
        fs::rename(folder.join("new"), folder.join("file")).expect("rename");
        assert_eq!(scene.look(LATER), 1, "renamed over");
        for (index, text) in ["d", "e"].into_iter().enumerate() {
            let target = folder.join(format!("data-{index}"));
            fs::create_dir(&target).expect("folder");
            fs::write(target.join("file"), text).expect("file");
            std::os::unix::fs::symlink(&target, folder.join("next")).expect("link");
            fs::rename(folder.join("next"), folder.join("..data")).expect("rename");
            if index == 0 {
                fs::remove_file(folder.join("file")).expect("remove");
                let link = Path::new("..data/file");
                std::os::unix::fs::symlink(link, folder.join("file")).expect("link");
            }
            assert_eq!(scene.look(LATER), 1, "link {index}");
        }
        assert_eq!(scene.count("ok"), 4);
        let read = scene.reads.lock().expect("no panic").clone();
        assert_eq!(read, ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn what_fails_twice_is_told_once_and_mends_by_itself() {
        let mut scene = Scene::holding("a");
        scene.write("bad 1");
        scene.look(LATER);
        assert_eq!((scene.count("refused"), scene.refused()), (0, None));
        for _ in 0..3 {
            assert_eq!(scene.look(LATER), 1, "it is tried again");
            assert_eq!(scene.count("refused"), 1);
            assert_eq!(scene.refused().as_deref(), Some("bad 1"));
        }
        scene.write("bad 2");
        scene.look(LATER);
        assert_eq!(scene.refused().as_deref(), Some("bad 2"));
        scene.write("b");
        scene.look(LATER);
        assert_eq!((scene.count("ok"), scene.count("refused")), (1, 2));
        assert_eq!(scene.refused(), None);
    }

    #[test]
    fn a_file_that_comes_back_as_it_was_ends_the_complaint() {
        let mut scene = Scene::holding("a");
        fs::remove_file(scene.folder.path().join("file")).expect("remove");
        scene.look(LATER);
        scene.look(LATER);
        assert!(scene.refused().is_some());
        scene.write("a");
        scene.look(LATER);
        assert_eq!((scene.refused(), scene.count("ok")), (None, 0));
    }

    #[test]
    fn asked_for_it_is_told_at_once() {
        let mut scene = Scene::holding("a");
        scene.write("bad");
        scene.reload.look(true, SystemTime::now() + LATER);
        assert_eq!(scene.refused().as_deref(), Some("bad"));
    }

    #[test]
    fn what_is_read_when_asked_is_read_first_and_told_each_time() {
        let mut scene = Scene::holding("a");
        let order: Arc<Mutex<Vec<bool>>> = Arc::default();
        let (reads, asked) = (Arc::clone(&scene.reads), Arc::clone(&order));
        scene.reload.when_asked("settings", move || {
            let words_were_read = !reads.lock().expect("no panic").is_empty();
            let mut asked = asked.lock().expect("no panic");
            asked.push(words_were_read);
            match asked.len() {
                1 | 2 => Err("bad".to_owned()),
                _ => Ok(Reread::ChangedIn("a, b".to_owned())),
            }
        });
        let mut ask = || scene.reload.look(true, SystemTime::now() + LATER);
        ask();
        ask();
        let refused = |scene: &Scene| {
            let list = scene.reload.refused().list();
            list.into_iter().any(|(what, _, _)| what == "settings")
        };
        let count = |scene: &Scene, result| {
            let what = "settings";
            let labels = ResultLabels { what, result };
            scene.reload.metrics.reloads.get_or_create(&labels).get()
        };
        assert!(refused(&scene));
        assert_eq!(count(&scene, "refused"), 2);
        scene.look(LATER);
        assert_eq!(*order.lock().expect("no panic"), [false, true]);
        scene.reload.look(true, SystemTime::now() + LATER);
        assert!(!refused(&scene));
        assert_eq!(count(&scene, "ok"), 1);
    }
}
