//! What is wrong with a configuration, all of it, and where each value came from.

use std::fmt;

use super::DEFAULT_FILE;

/// Where a setting was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// In the file, at this line (counted from 1).
    File {
        /// The line.
        line: usize,
    },
    /// In this environment variable.
    Environment(String),
    /// By this flag.
    Flag(&'static str),
    /// Nowhere: it is missing, or its default does not suit the rest.
    Default,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Where it was written.
    pub origin: Origin,
    /// The key, such as `cache.max_size`; empty for a fault of the file as a whole.
    pub key: String,
    /// What is wrong and how to mend it.
    pub reason: String,
}

/// Everything that is wrong, in the order of the file, then environment, flags, the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    file: Option<String>,
    faults: Vec<Fault>,
}

impl Faults {
    pub(super) fn new(file: Option<String>, mut faults: Vec<Fault>) -> Self {
        faults.sort();
        Self { file, faults }
    }

    /// The faults.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            origin,
            key,
            reason,
        } = self;
        match origin {
            Origin::File { line } => write!(f, "line {line}: ")?,
            Origin::Environment(variable) => write!(f, "{variable}: ")?,
            Origin::Flag(flag) => write!(f, "{flag}: ")?,
            Origin::Default => {}
        }
        if !key.is_empty() {
            write!(f, "{key}: ")?;
        }
        f.write_str(reason)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.faults.len();
        let noun = if count == 1 { "fault" } else { "faults" };
        write!(f, "the configuration has {count} {noun}")?;
        match &self.file {
            Some(file) => write!(f, " (file {file})")?,
            None => write!(
                f,
                " (no file: --config names none, and there is no {DEFAULT_FILE})"
            )?,
        }
        for fault in &self.faults {
            write!(f, "\n  {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
