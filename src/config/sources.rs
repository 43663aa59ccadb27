//! The three places settings come from, made alike: a file, the environment, flags.
//!
//! Invariant: a [`Settings`] map holds known keys only, each with its text and its origin.
//! Knows what keys look like, not what they mean.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::faults::{Fault, Origin};
use super::keys::{self, Key, Shape, VARIABLE_PREFIX};

/// Something that has named strings: the process environment, or a map in tests.
pub trait Strings {
    /// The value called `name`, if it is set.
    fn get(&self, name: &str) -> Option<String>;
    /// All names that are set.
    fn names(&self) -> Vec<String>;
}

/// The environment of this process. What is not Unicode is read with replacement characters, so
/// that it fails as a value instead of being passed over.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnvironment;

impl Strings for ProcessEnvironment {
    fn get(&self, name: &str) -> Option<String> {
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }

    fn names(&self) -> Vec<String> {
        std::env::vars_os()
            .map(|(name, _)| name.to_string_lossy().into_owned())
            .collect()
    }
}

impl Strings for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        BTreeMap::get(self, name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
}

/// Settings given on the command line.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    set: Vec<(&'static str, &'static str, Vec<String>)>,
}

impl Flags {
    /// Notes that `flag` (such as `--cache-dir`) set `key` (such as `cache.dir`).
    pub fn set(
        &mut self,
        key: &'static str,
        flag: &'static str,
        values: impl IntoIterator<Item = String>,
    ) {
        self.set.push((key, flag, values.into_iter().collect()));
    }
}

/// A value nobody has parsed yet: one text, or several where the key is a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) values: Vec<String>,
    pub(super) origin: Origin,
    /// It is not of the key's shape, which was told: it is neither a value nor missing.
    pub(super) is_misshapen: bool,
}

impl Setting {
    fn new(values: Vec<String>, origin: Origin) -> Self {
        Self {
            values,
            origin,
            is_misshapen: false,
        }
    }
}

/// One of the tables of a section that is there several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) settings: Settings,
    /// Where it begins.
    pub(super) origin: Origin,
}

pub(super) type Settings = BTreeMap<&'static str, Setting>;

/// The tables of sections that are there several times, by section, in the order of the file.
pub(super) type Tables = BTreeMap<&'static str, Vec<Table>>;

/// Puts the settings of a file into `settings` and `tables`, and what is wrong with its form into `faults`.
pub(super) fn add_file(
    text: &str,
    settings: &mut Settings,
    tables: &mut Tables,
    faults: &mut Vec<Fault>,
) {
    let mut reader = FileReader {
        text,
        settings,
        tables,
        faults,
    };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let offset = error.span().map_or(0, |span| span.start);
        reader.fault(offset, "", format!("not TOML: {}", error.message()));
    }
    for (name, value) in document.get_ref() {
        let offset = name.span().start;
        let name = name.get_ref().as_ref();
        match keys::section(name) {
            Some((section, written)) => reader.section(section, written, offset, value.get_ref()),
            None => {
                let nearest = keys::nearest_section(name);
                let reason = format!("unknown section; the nearest known one is {nearest}");
                reader.fault(offset, name, reason);
            }
        }
    }
}

/// One file being read: what it said so far.
struct FileReader<'a> {
    text: &'a str,
    settings: &'a mut Settings,
    tables: &'a mut Tables,
    faults: &'a mut Vec<Fault>,
}

impl FileReader<'_> {
    fn fault(&mut self, offset: usize, key: &str, reason: String) {
        let line = self.line_of(offset);
        self.faults.push(Fault {
            origin: Origin::File { line },
            key: key.to_owned(),
            reason,
        });
    }

    fn line_of(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset);
        before.filter(|byte| **byte == b'\n').count() + 1
    }

    /// A known section, written as it is.
    fn section(
        &mut self,
        section: &'static str,
        written: &str,
        offset: usize,
        value: &DeValue<'_>,
    ) {
        match value {
            DeValue::Table(table) if !keys::is_array(section) => {
                let found = self.table(section, table);
                self.settings.extend(found);
            }
            DeValue::Array(items) if keys::is_array(section) => {
                for item in items {
                    let DeValue::Table(table) = item.get_ref() else {
                        return self.fault(offset, section, format!("is written as {written}"));
                    };
                    let found = self.table(section, table);
                    let line = self.line_of(item.span().start);
                    let table = Table {
                        settings: found,
                        origin: Origin::File { line },
                    };
                    self.tables.entry(section).or_default().push(table);
                }
            }
            _ => self.fault(offset, section, format!("is written as {written}")),
        }
    }

    /// The settings of one table; the sections inside it are read on the way.
    fn table(&mut self, section: &'static str, table: &DeTable<'_>) -> Settings {
        let mut settings = Settings::new();
        for (name, value) in table {
            let offset = name.span().start;
            let name = name.get_ref().as_ref();
            let path = format!("{section}.{name}");
            if let Some((inner, written)) = keys::section(&path) {
                match value.get_ref() {
                    // A part of this table, which may be one of several.
                    DeValue::Table(table) if !keys::is_array(inner) => {
                        settings.extend(self.table(inner, table));
                    }
                    value => self.section(inner, written, offset, value),
                }
                continue;
            }
            let Some(key) = keys::find(section, name) else {
                let nearest = keys::nearest_key(section, name);
                let reason = format!("unknown key; the nearest known one is {nearest}");
                self.fault(offset, &path, reason);
                continue;
            };
            let line = self.line_of(offset);
            let mut setting = Setting::new(Vec::new(), Origin::File { line });
            match texts(key.shape, value.get_ref()) {
                Ok(values) => setting.values = values,
                Err(reason) => {
                    setting.is_misshapen = true;
                    self.fault(offset, key.path, reason);
                }
            }
            settings.insert(key.path, setting);
        }
        settings
    }
}

/// The texts of a TOML value of the right shape.
fn texts(shape: Shape, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let expected = match (shape, value) {
        (Shape::Text | Shape::TextOrNumber, DeValue::String(text)) => {
            return Ok(vec![text.clone().into_owned()]);
        }
        (Shape::TextOrNumber, DeValue::Integer(number)) if number.radix() == 10 => {
            return Ok(vec![number.as_str().replace('_', "")]);
        }
        (Shape::Bool | Shape::BoolOrList, DeValue::Boolean(value)) => {
            return Ok(vec![value.to_string()]);
        }
        (Shape::List | Shape::BoolOrList, DeValue::Array(items)) => {
            let items = items.iter().map(|item| match item.get_ref() {
                DeValue::String(text) => Ok(text.clone().into_owned()),
                other => Err(format!(
                    "expected a list of strings, found {} in it",
                    other.type_str()
                )),
            });
            return items.collect();
        }
        (Shape::Pairs, DeValue::Table(table)) => {
            let pairs = table.iter().map(|(name, value)| match value.get_ref() {
                DeValue::String(_) if name.get_ref().contains('=') => {
                    Err(format!("{:?} has an equals sign in it", name.get_ref()))
                }
                DeValue::String(value) => Ok(format!("{}={value}", name.get_ref())),
                other => Err(format!(
                    "expected a table of strings, found {} in it",
                    other.type_str()
                )),
            });
            return pairs.collect();
        }
        (Shape::Text, _) => "a string in quotes",
        (Shape::TextOrNumber, _) => "a string in quotes, or a whole number",
        (Shape::Bool, _) => "true or false",
        (Shape::BoolOrList, _) => "true, false, or a list of strings",
        (Shape::Pairs, _) => "a table of strings, such as { team = \"a\" }",
        (Shape::List, _) => "a list of strings, such as [\"a\", \"b\"]",
    };
    Err(format!("expected {expected}, found {}", value.type_str()))
}

/// Puts the settings of the environment over those in `settings`; unknown variables of ours
/// become warnings. An empty variable counts as not set, as Compose files leave them.
pub(super) fn add_environment(
    environment: &dyn Strings,
    settings: &mut Settings,
    warnings: &mut Vec<String>,
) {
    let mut known: BTreeMap<String, Key> = BTreeMap::new();
    for key in keys::KEYS {
        if let Some(variable) = key.variable() {
            known.insert(variable, *key);
        }
    }
    for variable in environment.names() {
        let Some(rest) = variable.strip_prefix(VARIABLE_PREFIX) else {
            continue;
        };
        let Some(key) = known.get(&variable) else {
            if !set_by_kubernetes(rest) {
                let nearest = keys::nearest_variable(&variable);
                warnings.push(format!(
                    "{variable} is ignored: unknown; the nearest known one is {nearest}"
                ));
            }
            continue;
        };
        let value = environment.get(&variable).unwrap_or_default();
        if value.is_empty() {
            continue;
        }
        let values = match key.shape {
            Shape::List | Shape::BoolOrList | Shape::Pairs => value
                .split(',')
                .map(|item| item.trim().to_owned())
                .filter(|item| !item.is_empty())
                .collect(),
            Shape::Text | Shape::TextOrNumber | Shape::Bool => vec![value],
        };
        let origin = Origin::Environment(variable);
        settings.insert(key.path, Setting::new(values, origin));
    }
}

/// Kubernetes sets such variables for every service in reach, one called `ecr-proxy` included.
fn set_by_kubernetes(rest: &str) -> bool {
    rest == "PORT"
        || rest.ends_with("_PORT")
        || rest.starts_with("PORT_")
        || rest.contains("_PORT_")
        || rest.starts_with("SERVICE_")
        || rest.contains("_SERVICE_")
}

/// Puts flags over everything else.
pub(super) fn add_flags(flags: Flags, settings: &mut Settings) {
    for (key, flag, values) in flags.set {
        let origin = Origin::Flag(flag);
        settings.insert(key, Setting::new(values, origin));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Settings, Tables, Vec<String>) {
        let (mut settings, mut tables) = (Settings::new(), Tables::new());
        let mut faults = Vec::new();
        add_file(text, &mut settings, &mut tables, &mut faults);
        let faults = faults.iter().map(ToString::to_string).collect();
        (settings, tables, faults)
    }

    fn file(text: &str) -> (Settings, Vec<String>) {
        let (settings, _, faults) = read(text);
        (settings, faults)
    }

    #[test]
    fn texts_lists_numbers_and_booleans_are_read_with_their_line() {
        let (settings, tables, faults) = read(
            "[server]\nlisten = [\"a\", \"b\"]\n\n[cache]\nmax_size = 1_000\n[tls]\ncert = \"c\"\n[[upstream]]\nregistry = \"r\"\ntrust_manifests = true\n[[upstream]]\n",
        );
        assert!(faults.is_empty(), "{faults:?}");
        assert_eq!(settings["server.listen"].values, ["a", "b"]);
        assert_eq!(settings["server.listen"].origin, Origin::File { line: 2 });
        assert_eq!(settings["cache.max_size"].values, ["1000"]);
        assert_eq!(settings["tls.cert"].origin, Origin::File { line: 7 });
        let [upstream, another] = &tables["upstream"][..] else {
            panic!("two upstreams");
        };
        let trust = &upstream.settings["upstream.trust_manifests"];
        assert_eq!(trust.values, ["true"]);
        assert_eq!(trust.origin, Origin::File { line: 10 });
        assert!(another.settings.is_empty());
    }

    #[test]
    fn all_faults_of_form_are_reported_together() {
        let (_, mut faults) = file(
            "[sever]\nlisten = []\n[server]\nlisten = \"x\"\nlisen = []\n[cache]\ndir = 3\n[upstream]\nname = \"x\"\n",
        );
        faults.sort();
        assert_eq!(
            faults,
            [
                "line 1: sever: unknown section; the nearest known one is [server]",
                "line 4: server.listen: expected a list of strings, such as [\"a\", \"b\"], found string",
                "line 5: server.lisen: unknown key; the nearest known one is server.listen",
                "line 7: cache.dir: expected a string in quotes, found integer",
                "line 8: upstream: is written as [[upstream]]",
            ]
        );
    }

    #[test]
    fn broken_toml_names_its_line() {
        let (_, faults) = file("[server]\nlisten = [\n[cache]\ndir = x\n");
        assert!(!faults.is_empty());
        assert!(faults.iter().all(|f| f.starts_with("line ")), "{faults:?}");
        assert!(faults.iter().any(|f| f.contains("not TOML")), "{faults:?}");
    }

    fn environment(pairs: &[(&str, &str)]) -> (Settings, Vec<String>) {
        let map: BTreeMap<String, String> = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let mut settings = Settings::new();
        let mut warnings = Vec::new();
        add_environment(&map, &mut settings, &mut warnings);
        (settings, warnings)
    }

    #[test]
    fn variables_set_scalars_and_comma_lists() {
        let (settings, warnings) = environment(&[
            ("ECR_PROXY_SERVER_DOMAINS", "a.test, b.test,"),
            ("ECR_PROXY_CACHE_MAX_SIZE", "70%"),
            ("ECR_PROXY_TLS_CERT", ""),
            ("HOME", "/root"),
        ]);
        assert!(warnings.is_empty());
        assert_eq!(settings["server.domains"].values, ["a.test", "b.test"]);
        assert_eq!(settings["cache.max_size"].values, ["70%"]);
        assert!(!settings.contains_key("tls.cert"));
    }

    #[test]
    fn unknown_variables_warn_unless_kubernetes_set_them() {
        let (settings, warnings) = environment(&[
            ("ECR_PROXY_PORT", "tcp://10.0.0.1:443"),
            ("ECR_PROXY_PORT_443_TCP", "tcp://10.0.0.1:443"),
            ("ECR_PROXY_SERVICE_HOST", "10.0.0.1"),
            ("ECR_PROXY_SERVICE_PORT_HTTPS", "443"),
            ("ECR_PROXY_ADMIN_PORT", "tcp://10.0.0.1:443"),
            ("ECR_PROXY_UPSTREAM_REGISTRY", "x"),
            ("ECR_PROXY_SERVER_LISEN", "x"),
        ]);
        assert!(settings.is_empty());
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("ECR_PROXY_SERVER_LISTEN"));
    }
}
