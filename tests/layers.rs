//! Imports point one way: from what a caller sees down to the vocabulary, and never back.
//!
//! The sources are read as tokens (comments and literals do not count), every `crate::…`, `super::…`
//! and `self::…` path is resolved to the top-level module it names, and each edge between two
//! modules is judged by the rules below. The tests at the end show that the judge can say no.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

use source::{paths, tokens};

#[path = "layers/source.rs"]
mod source;

/// From the top down. An import may skip layers; it neither climbs nor stays in its own layer.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli", "fuzzing"],
    &["config"],
    &["server", "tls", "admin"],
    &["jobs"],
    &["proxy"],
    &["fill"],
    &["cache", "upstream", "access"],
    &["telemetry", "clock", "buffers", "files"],
    &["oci"],
];

/// Imports between peers that are allowed all the same: from, to, why.
/// One that nobody uses any more is a finding too.
const PEERS: &[(&str, &str, &str)] = &[];

/// What imports nothing of the rest, and who may import it.
const APART: &[(&str, &[&str])] = &[("simulator", &["main", "cli"])];

/// Crates that may be named in these modules only.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("rustls", &["tls", "upstream", "server", "simulator"]),
    ("tokio_rustls", &["tls", "upstream", "server", "simulator"]),
    ("hyper_rustls", &["upstream"]),
];

/// Crates that may be named in one place only, a file or a folder, so that replacing them touches that.
const ONE_PLACE: &[&str] = &["aws_sdk_ecr", "aws_sdk_ecrpublic", "aws_config"];

/// Crates that a module must not name.
const NEVER_IN: &[(&str, &[&str])] = &[(
    "oci",
    &["tokio", "tokio_util", "hyper", "hyper_util", "tokio_rustls"],
)];

/// Who may hold a blob that was opened in the cache: whoever else could, could serve it without the
/// proof that the repository holds it.
const OPENS_BLOBS: &[&str] = &["cache", "fill"];

#[test]
fn imports_point_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources = Sources::read(&root);
    assert!(
        sources.files.len() > 10,
        "the sources were not found under {}",
        root.display()
    );
    let findings = sources.judge(PEERS);
    assert!(
        findings.is_empty(),
        "{} imports break the order:\n{}",
        findings.len(),
        findings
            .iter()
            .map(|f| format!("  {f}\n"))
            .collect::<String>()
    );
}

/// Every file of `src/`, by its path below it, with `/` between the parts.
struct Sources {
    files: BTreeMap<String, String>,
}

/// One broken rule, told to whoever broke it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file, self.line, self.what)
    }
}

impl Sources {
    fn read(root: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("src is readable") {
                let path = entry.expect("src is readable").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    let below = path.strip_prefix(root).expect("found below it");
                    let name = below.to_string_lossy().into_owned();
                    files.insert(name, fs::read_to_string(&path).expect("sources are UTF-8"));
                }
            }
        }
        Self { files }
    }

    fn judge(&self, peers: &[(&str, &str, &str)]) -> Vec<Finding> {
        let mut findings = BTreeSet::new();
        let mut peers_used = BTreeSet::new();
        let mut namers: BTreeMap<&str, BTreeMap<String, &str>> = BTreeMap::new();
        for (file, text) in &self.files {
            if file == "lib.rs" {
                continue; // declares the modules, imports nothing
            }
            let tokens = tokens(text);
            let module = module_path(file);
            let from = module.first().map_or("main", String::as_str);
            let mut say = |line: usize, what: String| {
                findings.insert(Finding {
                    file: file.clone(),
                    line,
                    what,
                });
            };
            if rank(from).is_none() && !APART.iter().any(|(m, _)| *m == from) {
                say(1, format!("the module `{from}` has no place in the order"));
            }
            let paths = paths(&tokens, &module);
            let mut names_cache = false;
            for path in &paths {
                let (line, head) = (path.line, path.segments[0].as_str());
                if !path.ours {
                    for (krate, modules) in ONLY_IN {
                        if head == *krate && !modules.contains(&from) {
                            say(
                                line,
                                format!("`{krate}` is named in {} only", modules.join(", ")),
                            );
                        }
                    }
                    for (module, crates) in NEVER_IN {
                        if from == *module && crates.contains(&head) {
                            say(line, format!("`{module}` does not know `{head}`"));
                        }
                    }
                    if let Some(krate) = ONE_PLACE.iter().find(|k| **k == head) {
                        let place = module.iter().take(2).map(String::as_str);
                        let place: Vec<&str> = place.collect();
                        namers
                            .entry(krate)
                            .or_default()
                            .insert(place.join("::"), file);
                    }
                    continue;
                }
                names_cache |= head == "cache";
                if head == from {
                    continue;
                }
                if let Some((peer, ..)) = peers
                    .iter()
                    .enumerate()
                    .find(|(_, p)| (p.0, p.1) == (from, head))
                {
                    peers_used.insert(peer);
                } else if let Err(why) = edge(from, head) {
                    say(line, why);
                }
                if head == "cache"
                    && !OPENS_BLOBS.contains(&from)
                    && path.segments.iter().any(|s| s == "Blob")
                {
                    say(
                        line,
                        format!(
                            "only {} may hold a `cache::Blob`",
                            OPENS_BLOBS.join(" and ")
                        ),
                    );
                }
            }
            if names_cache && !OPENS_BLOBS.contains(&from) {
                for three in tokens.windows(3) {
                    if three[0].is(".") && three[1].is("blob") && three[2].is("(") {
                        say(
                            three[1].line,
                            format!("only {} may open a blob", OPENS_BLOBS.join(" and ")),
                        );
                    }
                }
            }
        }
        let mut findings: Vec<_> = findings.into_iter().collect();
        for (krate, places) in namers {
            let mut files = places.into_values();
            let first = files.next().unwrap_or_default();
            for file in files {
                let what =
                    format!("`{krate}` is already named in src/{first}, and one place is enough");
                findings.push(Finding {
                    file: file.to_owned(),
                    line: 1,
                    what,
                });
            }
        }
        for (n, (from, to, why)) in peers.iter().enumerate() {
            if !peers_used.contains(&n) {
                let what = format!("the exception `{from}` -> `{to}` ({why}) is not used any more");
                findings.push(Finding {
                    file: "lib.rs".to_owned(),
                    line: 1,
                    what,
                });
            }
        }
        findings
    }
}

/// Whether `from` may import `to`, two different modules; `Err` says why not.
fn edge(from: &str, to: &str) -> Result<(), String> {
    if let Some((_, users)) = APART.iter().find(|(m, _)| *m == to) {
        return if users.contains(&from) {
            Ok(())
        } else {
            Err(format!(
                "`{from}` imports `{to}`, which is for {} only",
                users.join(" and ")
            ))
        };
    }
    if APART.iter().any(|(m, _)| *m == from) {
        return Err(format!(
            "`{from}` imports `{to}`, but it stands apart and imports nothing"
        ));
    }
    match (rank(from), rank(to)) {
        (_, None) => Err(format!(
            "`{from}` imports `crate::{to}`, which is no module of the order"
        )),
        (Some(above), Some(below)) if above < below => Ok(()),
        (Some(a), Some(b)) if a == b => Err(format!("`{from}` imports its peer `{to}`")),
        _ => Err(format!("`{from}` imports `{to}`, which is above it")),
    }
}

fn rank(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The module that a file of `src/` is: `cache/index.rs` is `cache::index`, `main.rs` the root.
fn module_path(file: &str) -> Vec<String> {
    let mut path: Vec<String> = file
        .trim_end_matches(".rs")
        .split('/')
        .map(str::to_owned)
        .collect();
    if path
        .last()
        .is_some_and(|last| last == "mod" || last == "main" || last == "lib")
    {
        path.pop();
    }
    path
}

fn judged(files: &[(&str, &str)]) -> Vec<String> {
    let files = files
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect();
    Sources { files }
        .judge(&[])
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn an_arrow_may_skip_layers() {
    assert_eq!(
        judged(&[
            ("cli/serve.rs", "use crate::oci::Digest;"),
            ("main.rs", "ecr_proxy::cli::run()")
        ]),
        [""; 0]
    );
}

#[test]
fn an_arrow_does_not_turn_back() {
    assert_eq!(
        judged(&[("oci/digest.rs", "\nuse crate::cache::Store;")]),
        ["src/oci/digest.rs:2: `oci` imports `cache`, which is above it"]
    );
    assert_eq!(
        judged(&[("cache/mod.rs", "fn f(_: &crate::fill::Fills) {}")]).len(),
        1
    );
}

#[test]
fn peers_do_not_import_each_other_unless_listed() {
    let text = "use crate::upstream::Client;";
    assert_eq!(
        judged(&[("cache/mod.rs", text)]),
        ["src/cache/mod.rs:1: `cache` imports its peer `upstream`"]
    );
    let files = BTreeMap::from([("cache/mod.rs".to_owned(), text.to_owned())]);
    assert_eq!(
        Sources { files }.judge(&[("cache", "upstream", "a reason")]),
        []
    );
}

#[test]
fn an_exception_nobody_uses_is_told() {
    let files = BTreeMap::from([("cache/mod.rs".to_owned(), String::new())]);
    assert_eq!(
        Sources { files }
            .judge(&[("cache", "upstream", "a reason")])
            .len(),
        1
    );
}

#[test]
fn groups_super_and_inline_modules_are_followed() {
    assert_eq!(
        judged(&[(
            "cache/index.rs",
            "use crate::{oci::Digest, fill::{self, Reader}};"
        )])
        .len(),
        1
    );
    assert_eq!(
        judged(&[("cache/index.rs", "use super::super::proxy::Proxy;")]).len(),
        1
    );
    assert_eq!(
        judged(&[(
            "cache/index.rs",
            "use super::Store;\nmod tests { use super::*; use super::super::Store; }"
        )]),
        [""; 0]
    );
    assert_eq!(
        judged(&[("clock.rs", "mod tests { use super::super::admin::Page; }")]).len(),
        1
    );
    assert_eq!(
        judged(&[("clock.rs", "mod a { } use super::oci::Digest;")]),
        [""; 0]
    );
}

#[test]
fn comments_and_literals_are_not_imports() {
    let text = r##"
        //! [`crate::cli`]
        /* crate::cli::x /* nested */ crate::cli */
        const A: &str = "crate::cli \" crate::cli";
        const B: &str = r#"crate::cli "quoted" crate::cli"#;
        const C: (char, char, u8) = ('"', '\'', b'"');
        fn f<'a>(x: &'a str) -> &'a str { x }
    "##;
    assert_eq!(judged(&[("oci/mod.rs", text)]), [""; 0]);
    assert_eq!(
        judged(&[("oci/mod.rs", &format!("{text} use crate::cli::Cli;"))]).len(),
        1
    );
}

#[test]
fn the_simulator_stands_apart() {
    assert_eq!(
        judged(&[("simulator/mod.rs", "use crate::oci::Digest;")]).len(),
        1
    );
    assert_eq!(
        judged(&[("proxy/mod.rs", "use crate::simulator::Simulator;")]).len(),
        1
    );
    assert_eq!(
        judged(&[("cli/demo.rs", "use crate::simulator::Simulator;")]),
        [""; 0]
    );
}

#[test]
fn only_fill_holds_blobs() {
    assert_eq!(
        judged(&[("proxy/pull.rs", "use crate::cache::{Blob, Store};")]).len(),
        1
    );
    assert_eq!(
        judged(&[(
            "proxy/pull.rs",
            "use crate::cache::Store; fn f(s: &Store) { s.blob(d) }"
        )])
        .len(),
        1
    );
    assert_eq!(
        judged(&[(
            "fill/mod.rs",
            "use crate::cache::{Blob, Store}; fn f(s: &Store) { s.blob(d) }"
        )]),
        [""; 0]
    );
}

#[test]
fn heavy_crates_stay_where_they_belong() {
    assert_eq!(
        judged(&[("oci/mod.rs", "use tokio::sync::Notify;")]),
        ["src/oci/mod.rs:1: `oci` does not know `tokio`"]
    );
    assert_eq!(
        judged(&[("proxy/mod.rs", "fn f(_: rustls::ServerConfig) {}")]).len(),
        1
    );
    assert_eq!(
        judged(&[("tls/mod.rs", "use rustls::ServerConfig;")]),
        [""; 0]
    );
    let one = ("upstream/ecr/mod.rs", "use aws_sdk_ecr::Client;");
    assert_eq!(judged(&[one]), [""; 0]);
    let below = ("upstream/ecr/token.rs", "use aws_sdk_ecr::Client;");
    assert_eq!(judged(&[one, below]), [""; 0]);
    assert_eq!(
        judged(&[one, ("upstream/mod.rs", "aws_sdk_ecr::Client::new()")]).len(),
        1
    );
}

#[test]
fn a_new_module_needs_a_place() {
    assert_eq!(
        judged(&[("helpers.rs", "")]),
        ["src/helpers.rs:1: the module `helpers` has no place in the order"]
    );
    assert_eq!(
        judged(&[("cli/mod.rs", "use crate::helpers::Thing;")]).len(),
        1
    );
}
