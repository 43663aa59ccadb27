//! Settings one by one: text, path or file to a checked value, faults noted with their place.

use std::path::{Path, PathBuf};

use crate::config::faults::{Fault, Faults, Origin};
use crate::config::sources::{self, Settings, Strings, Tables};
use crate::config::{DEFAULT_FILE, Files, Sources};
use crate::files;

/// What is being read, and the faults so far.
pub(super) struct Resolver {
    pub(super) settings: Settings,
    pub(super) tables: Tables,
    faults: Vec<Fault>,
    /// Where a key would have been that is missing.
    place: Origin,
    /// The folder of the file, to which its relative paths are relative.
    base: PathBuf,
    pub(super) files: Files,
    /// Whether the environment leads the AWS API elsewhere.
    pub(super) aws_endpoint: bool,
    /// What the environment says of the way out.
    pub(super) outside: Outside,
}

impl Resolver {
    /// With every setting read, the file that was read, and warnings so far.
    pub(super) fn new(sources: Sources<'_>) -> (Self, Option<PathBuf>, Vec<String>) {
        let default = Path::new(DEFAULT_FILE);
        let file = sources
            .file
            .or_else(|| default.exists().then_some(default))
            .map(Path::to_owned);
        let mut settings = Settings::new();
        let mut tables = Tables::new();
        let mut faults = Vec::new();
        let mut warnings = Vec::new();
        if let Some(file) = &file {
            match files::read_text_once(file) {
                Ok(text) => sources::add_file(&text, &mut settings, &mut tables, &mut faults),
                Err(error) => faults.push(Fault {
                    origin: Origin::Default,
                    key: String::new(),
                    reason: format!("cannot read {}: {error}", file.display()),
                }),
            }
        }
        sources::add_environment(sources.environment, &mut settings, &mut warnings);
        sources::add_flags(sources.flags, &mut settings);
        let resolver = Self {
            settings,
            tables,
            faults,
            place: Origin::Default,
            base: file.as_deref().map(base).unwrap_or_default(),
            files: sources.files,
            aws_endpoint: aws_endpoint(sources.environment),
            outside: Outside::of(sources.environment),
        };
        (resolver, file, warnings)
    }

    /// The value, if nothing was wrong.
    pub(super) fn finish<T>(
        mut self,
        file: Option<PathBuf>,
        value: Option<T>,
    ) -> Result<T, Faults> {
        match value {
            Some(value) if self.faults.is_empty() => Ok(value),
            _ => {
                // Of a file that could not be read to its end, it is not known what is missing.
                if self.faults.iter().any(|fault| fault.key.is_empty()) {
                    self.faults
                        .retain(|fault| fault.key.is_empty() || fault.origin != Origin::Default);
                }
                let file = file.map(|file| file.display().to_string());
                Err(Faults::new(file, self.faults))
            }
        }
    }

    /// Each table of a section that is there several times, whose settings are the only ones for the
    /// moment.
    pub(super) fn each<T>(
        &mut self,
        section: &str,
        mut resolve: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let tables = self.tables.remove(section).unwrap_or_default();
        let resolved = tables.into_iter().map(|table| {
            let others = std::mem::replace(&mut self.settings, table.settings);
            self.place = table.origin;
            let one = resolve(self);
            self.settings = others;
            self.place = Origin::Default;
            one
        });
        // Each is looked at, so that all faults are told.
        let resolved: Vec<Option<T>> = resolved.collect();
        resolved.into_iter().collect()
    }

    /// A scalar: `None` if it is faulty (and noted), `Some(None)` if it is not set.
    pub(super) fn one<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        let mut values = self.many(key, parse)?.unwrap_or_default();
        Some(values.pop())
    }

    /// A list: `None` if any item is faulty (all are noted), `Some(None)` if it is not set.
    pub(super) fn many<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Option<Vec<T>>> {
        let Some(setting) = self.settings.get(key) else {
            return Some(None);
        };
        if setting.is_misshapen {
            return None;
        }
        let mut items = Vec::with_capacity(setting.values.len());
        for value in &setting.values {
            match parse(value) {
                Ok(item) => items.push(item),
                Err(reason) => self.faults.push(Fault {
                    origin: setting.origin.clone(),
                    key: key.to_owned(),
                    reason,
                }),
            }
        }
        (items.len() == setting.values.len()).then_some(Some(items))
    }

    /// A path: relative to the file that it was written in, else to the working directory.
    pub(super) fn path(&self, key: &'static str) -> Option<PathBuf> {
        let setting = self.settings.get(key)?;
        let path = Path::new(setting.values.first()?);
        Some(match setting.origin {
            Origin::File { .. } => self.base.join(path),
            Origin::Environment(_) | Origin::Flag(_) | Origin::Default => path.to_owned(),
        })
    }

    /// A directory that the proxy makes if it is absent.
    pub(super) fn directory(&mut self, key: &'static str, default: &str) -> Option<PathBuf> {
        let path = self.path(key).unwrap_or_else(|| default.into());
        if path.as_os_str().is_empty() {
            self.fault(key, "is empty");
            return None;
        }
        Some(path)
    }

    /// A file that has to be there: `None` if it cannot be opened, `Some(None)` if it is not set.
    pub(super) fn file(&mut self, key: &'static str) -> Option<Option<PathBuf>> {
        let Some(path) = self.path(key) else {
            return Some(None);
        };
        if self.files == Files::Required
            && let Err(error) = files::open(&path)
        {
            self.fault(key, &format!("cannot read {}: {error}", path.display()));
            return None;
        }
        Some(Some(path))
    }

    pub(super) fn fault(&mut self, key: &'static str, reason: &str) {
        let origin = self
            .settings
            .get(key)
            .map_or(&self.place, |setting| &setting.origin)
            .clone();
        self.note(origin, key, reason);
    }

    /// A fault at a place of its own.
    pub(super) fn note(&mut self, origin: Origin, key: &'static str, reason: &str) {
        self.faults.push(Fault {
            origin,
            key: key.to_owned(),
            reason: reason.to_owned(),
        });
    }
}

/// The folder to which relative paths in `file` are relative: the file's, and the working directory for what
/// has no folder, such as `/dev/stdin` and a shell's `/dev/fd/63`.
fn base(file: &Path) -> PathBuf {
    let has_none = ["/dev/stdin", "/dev/fd", "/proc"]
        .iter()
        .any(|of| file.starts_with(of));
    let folder = file.parent().filter(|_| !has_none);
    folder.map(Path::to_owned).unwrap_or_default()
}

/// What the environment says of the way out, as it does to other programs.
#[derive(Default)]
pub(super) struct Outside {
    /// The proxy for HTTPS, after the variable that names it.
    pub(super) proxy: Option<(String, String)>,
    /// What is reached without it.
    pub(super) no_proxy: String,
}

impl Outside {
    fn of(environment: &dyn Strings) -> Self {
        let first = |names: &[&str]| {
            let mut names = names.iter();
            names.find_map(|name| {
                let value = environment.get(name).filter(|value| !value.is_empty())?;
                Some(((*name).to_owned(), value))
            })
        };
        Self {
            proxy: first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
            no_proxy: first(&["NO_PROXY", "no_proxy"]).map_or(String::new(), |(_, hosts)| hosts),
        }
    }
}

/// Whether the AWS SDK will find an endpoint for the ECR APIs in the environment.
fn aws_endpoint(environment: &dyn Strings) -> bool {
    let ignored = environment
        .get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let set = |name| environment.get(name).is_some_and(|value| !value.is_empty());
    let names = [
        "AWS_ENDPOINT_URL_ECR",
        "AWS_ENDPOINT_URL_ECR_PUBLIC",
        "AWS_ENDPOINT_URL",
    ];
    !ignored && names.into_iter().any(set)
}
