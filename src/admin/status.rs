//! How things stand, as JSON and as a page: for people and for their scripts, read-only.
//!
//! Nothing here is a secret. What comes from elsewhere (names of repositories, words of an upstream) is
//! escaped before it stands in a page.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::readiness::State;
use crate::jobs::operations::{
    Event, ImageState, Input, Item, ListedImage, Operations, Request, Running, Stats, Time,
};

/// What was told is told again for this long: a page that many watch asks the disk once.
const FRESH: Duration = Duration::from_secs(2);

/// Most images that are told; `cache list` tells all.
const MAX_IMAGES: usize = 10_000;

/// Most images on the page.
const PAGE_IMAGES: usize = 200;

/// How an upstream is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UpstreamState {
    /// Its configured name.
    pub name: String,
    /// It answers, as far as is known.
    pub is_answering: bool,
    /// Since when it does not, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outage: Option<Trouble>,
    /// What stands in for it meanwhile, where something does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stand_in: Option<String>,
    /// Since when the storage that it redirects to does not answer, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_outage: Option<Trouble>,
    /// Until when the token in hand is valid; none without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_valid_until: Option<Time>,
    /// Since when no token can be had, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_failing: Option<Trouble>,
    /// What is left of the pulls that the registry allows, where it tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
}

/// How many pulls a registry allows, as it told last.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RateLimit {
    /// Pulls that are left.
    pub remaining: u64,
    /// Out of so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// In so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_seconds: Option<u64>,
    /// Whose they are: an address or an account's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// When it said so.
    pub told: Time,
}

/// Something that does not work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trouble {
    /// Since when.
    pub since: Time,
    /// Why; holds no secrets.
    pub reason: String,
}

/// Tells how things stand. Clone is cheap.
#[derive(Clone)]
pub struct Status {
    shared: Arc<Shared>,
}

struct Shared {
    ask: Box<dyn Fn(Request) -> Running + Send + Sync>,
    upstreams: Box<dyn Fn() -> Vec<UpstreamState> + Send + Sync>,
    started: Instant,
    seen: Mutex<Option<(Instant, Arc<Seen>)>>,
}

/// What is in the cache, as seen a moment ago.
struct Seen {
    stats: Stats,
    images: Vec<ListedImage>,
    is_cut: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    version: &'static str,
    uptime_seconds: u64,
    #[serde(flatten)]
    readiness: serde_json::Value,
    upstreams: Vec<UpstreamState>,
    cache: &'a Stats,
}

#[derive(Serialize)]
struct Images<'a> {
    images: &'a [ListedImage],
    /// There are more.
    is_cut: bool,
}

impl Status {
    /// `upstreams` is asked at each look and must not block. The process counts as begun now.
    pub fn new(
        operations: Operations,
        upstreams: impl Fn() -> Vec<UpstreamState> + Send + Sync + 'static,
    ) -> Self {
        Self::of(
            move |request| operations.start(request, Input::none()),
            upstreams,
        )
    }

    /// The same by what starts an operation.
    pub(super) fn of(
        ask: impl Fn(Request) -> Running + Send + Sync + 'static,
        upstreams: impl Fn() -> Vec<UpstreamState> + Send + Sync + 'static,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                ask: Box::new(ask),
                upstreams: Box::new(upstreams),
                started: Instant::now(),
                seen: Mutex::default(),
            }),
        }
    }

    /// What stands at one of the paths; `None` if the cache cannot be looked at.
    pub(super) async fn tell(&self, path: &str, state: &State) -> Option<String> {
        let seen = self.look().await?;
        Some(match path {
            "/api/v1/status" => self.status(&seen, state),
            "/api/v1/cache/stats" => json(&seen.stats),
            "/api/v1/cache/images" => json(&Images {
                images: &seen.images,
                is_cut: seen.is_cut,
            }),
            _ => self.page(&seen, state),
        })
    }

    /// One look at a time; who comes meanwhile sees the same.
    async fn look(&self) -> Option<Arc<Seen>> {
        let mut seen = self.shared.seen.lock().await;
        if let Some((when, seen)) = &*seen
            && when.elapsed() < FRESH
        {
            return Some(Arc::clone(seen));
        }
        let (mut stats, mut images, mut is_cut) = (None, Vec::new(), false);
        for request in [Request::Stats, Request::List { images: None }] {
            let mut running = (self.shared.ask)(request);
            while let Some(item) = running.next().await {
                match item {
                    Item::Event(Event::Stats(told)) => stats = Some(told),
                    Item::Event(Event::Image(image)) => images.push(image),
                    Item::Event(_) | Item::Data(_) => {}
                }
                if images.len() == MAX_IMAGES {
                    is_cut = true;
                    break;
                }
            }
        }
        let now = Arc::new(Seen {
            stats: stats?,
            images,
            is_cut,
        });
        *seen = Some((Instant::now(), Arc::clone(&now)));
        Some(now)
    }

    fn status(&self, seen: &Seen, state: &State) -> String {
        json(&Document {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.shared.started.elapsed().as_secs(),
            readiness: state.document(),
            upstreams: (self.shared.upstreams)(),
            cache: &seen.stats,
        })
    }

    fn page(&self, seen: &Seen, state: &State) -> String {
        let uptime = Duration::from_secs(self.shared.started.elapsed().as_secs());
        page(seen, state, &(self.shared.upstreams)(), uptime)
    }
}

fn json(value: &impl Serialize) -> String {
    // Everything told has text for keys, so it always has a form.
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    text
}

/// Text that is not markup.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for character in self.0.chars() {
            match character {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em;\
color:#222;background:#fff}h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse;\
width:100%}th,td{text-align:left;padding:.25em 1em .25em 0;border-bottom:1px solid #ddd;vertical-align:top}\
.n{text-align:right}.n,.t{white-space:nowrap}code{font-size:.9em}.ok{color:#17692d}.bad{color:#a3150f}\
meter{width:16em}@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}th,td{border-color:#444}\
.ok{color:#6c6}.bad{color:#f88}}";

fn page(seen: &Seen, state: &State, upstreams: &[UpstreamState], uptime: Duration) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><meta http-equiv=\"refresh\" content=\"30\"><title>ecr-proxy</title>\
         <style>{STYLE}</style></head><body>\n<h1>ecr-proxy {}</h1>\n",
        env!("CARGO_PKG_VERSION")
    );
    // Writing to a String does not fail.
    let _ = write_page(&mut out, seen, state, upstreams, uptime);
    out.push_str("</body></html>\n");
    out
}

fn write_page(
    out: &mut String,
    seen: &Seen,
    state: &State,
    upstreams: &[UpstreamState],
    uptime: Duration,
) -> std::fmt::Result {
    let (class, word) = match (state.ready(false), state.ready(true)) {
        (true, true) => ("ok", "all is well"),
        (true, false) => ("bad", "serving, degraded"),
        (false, _) => ("bad", "not ready"),
    };
    let uptime = humantime::format_duration(uptime);
    writeln!(
        out,
        "<p><strong class=\"{class}\">{word}</strong>, up for {uptime}</p>"
    )?;
    let troubles = state.troubles();
    if !troubles.is_empty() {
        writeln!(out, "<ul>")?;
        for (what, why) in troubles {
            writeln!(
                out,
                "<li class=\"bad\">{}: {}</li>",
                Escaped(what),
                Escaped(why)
            )?;
        }
        writeln!(out, "</ul>")?;
    }
    write_upstreams(out, upstreams)?;
    write_cache(out, &seen.stats)?;
    write_images(out, seen)?;
    writeln!(
        out,
        "<p><a href=\"/metrics\">metrics</a> · <a href=\"/readyz\">readiness</a> · \
         <a href=\"/api/v1/status\">status</a> · <a href=\"/api/v1/cache/images\">images</a> as JSON</p>"
    )
}

fn write_upstreams(out: &mut String, upstreams: &[UpstreamState]) -> std::fmt::Result {
    writeln!(
        out,
        "<h2>Upstream</h2>\n<table><tr><th>name</th><th>answers</th><th>storage</th><th>token</th><th>pulls left</th></tr>"
    )?;
    for upstream in upstreams {
        write!(out, "<tr><td>{}</td>", Escaped(&upstream.name))?;
        let stand_in = upstream.stand_in.as_deref().unwrap_or_default();
        for outage in [&upstream.outage, &upstream.storage_outage] {
            match outage {
                None => write!(out, "<td class=\"ok\">yes</td>")?,
                Some(Trouble { since, reason }) => {
                    let reason = Escaped(reason);
                    write!(out, "<td class=\"bad\">no, since {since}: {reason}")?;
                    if !stand_in.is_empty() {
                        write!(out, "; {} stands in", Escaped(stand_in))?;
                    }
                    write!(out, "</td>")?;
                }
            }
        }
        match (&upstream.token_failing, upstream.token_valid_until) {
            (Some(Trouble { since, reason }), _) => {
                writeln!(
                    out,
                    "<td class=\"bad\">none since {since}: {}</td>",
                    Escaped(reason)
                )?;
            }
            (None, Some(until)) => writeln!(out, "<td class=\"t\">until {until}</td>")?,
            (None, None) => writeln!(out, "<td>-</td>")?,
        }
        match &upstream.rate_limit {
            None => writeln!(out, "<td>-</td></tr>")?,
            Some(RateLimit {
                remaining,
                limit,
                told,
                ..
            }) => {
                let limit = limit.map_or(String::new(), |limit| format!(" of {limit}"));
                writeln!(out, "<td>{remaining}{limit} at {told}</td></tr>")?;
            }
        }
    }
    writeln!(out, "</table>")
}

fn write_cache(out: &mut String, stats: &Stats) -> std::fmt::Result {
    let (used, limit) = (stats.bytes.total, stats.limit_bytes);
    writeln!(
        out,
        "<h2>Cache</h2>\n<p><meter min=\"0\" max=\"{}\" value=\"{used}\"></meter> {} of {}; {} blobs, \
         {} manifests, {} tags in {} repositories; {} downloads wait to be continued</p>",
        limit.max(1),
        bytes(used),
        bytes(limit),
        stats.blobs,
        stats.manifests,
        stats.tags,
        stats.repositories,
        stats.interrupted_downloads
    )?;
    if let Some(answers) = &stats.answers {
        writeln!(
            out,
            "<p>Since the start: {} hits, {} misses, {} joined, {} stale, {} past the cache</p>",
            answers.hits, answers.misses, answers.joins, answers.stale, answers.bypasses
        )?;
    }
    Ok(())
}

fn write_images(out: &mut String, seen: &Seen) -> std::fmt::Result {
    writeln!(
        out,
        "<h2>Images</h2>\n<table><tr><th>image</th><th class=\"n\">size</th><th>here</th><th>confirmed</th><th>used</th></tr>"
    )?;
    for image in seen.images.iter().take(PAGE_IMAGES) {
        let name = match &image.tag {
            Some(tag) => format!("{}:{tag}", image.name()),
            None => format!("{}@{}", image.name(), image.digest),
        };
        let state = match image.state {
            ImageState::Complete => "all",
            ImageState::SomePlatforms => "some platforms",
            ImageState::Partial => "in part",
        };
        let pinned = if image.is_pinned { ", pinned" } else { "" };
        let used = image.last_use.map_or("-".to_owned(), |at| at.to_string());
        writeln!(
            out,
            "<tr><td><code>{}</code></td><td class=\"n\">{}</td><td>{state}{pinned}</td><td class=\"t\">{}</td><td class=\"t\">{used}</td></tr>",
            Escaped(&name),
            bytes(image.bytes),
            image.checked
        )?;
    }
    writeln!(out, "</table>")?;
    match seen.images.len().saturating_sub(PAGE_IMAGES) {
        0 => Ok(()),
        more => writeln!(
            out,
            "<p>and {more} more: <code>ecr-proxy cache list</code></p>"
        ),
    }
}

/// An amount of bytes for people.
fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut amount = count as f64;
    let mut unit = "bytes";
    for next in units {
        if amount < 1024.0 {
            break;
        }
        (amount, unit) = (amount / 1024.0, next);
    }
    match unit {
        "bytes" => format!("{count} bytes"),
        unit => format!("{amount:.1} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_elsewhere_is_no_markup() {
        let escaped = Escaped("<b a='1' c=\"2\">&amp;</b>").to_string();
        assert_eq!(
            escaped,
            "&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;amp;&lt;/b&gt;"
        );
        let trouble = |reason: &str| Trouble {
            since: Time::from_seconds(0),
            reason: reason.to_owned(),
        };
        let mut out = String::new();
        let upstream = UpstreamState {
            name: "<i>".to_owned(),
            is_answering: false,
            stand_in: Some("<script>".to_owned()),
            outage: Some(trouble("<script>")),
            storage_outage: Some(trouble("<script>")),
            token_valid_until: None,
            token_failing: Some(trouble("<script>")),
            rate_limit: Some(RateLimit {
                remaining: 20,
                limit: Some(100),
                window_seconds: Some(21_600),
                source: Some("<script>".to_owned()),
                told: Time::from_seconds(0),
            }),
        };
        write_upstreams(&mut out, &[upstream]).expect("a String takes all");
        assert!(!out.contains("<script") && !out.contains("<i>"), "{out}");
        assert!(out.contains("&lt;script&gt;"), "{out}");
        assert!(out.contains("20 of 100 at "), "{out}");
    }

    #[test]
    fn amounts_are_for_people() {
        for (count, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (3 << 30, "3.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
