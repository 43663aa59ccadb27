//! One line of `check`.

use std::fmt;

use serde_json::{Value, json};

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It works.
    Ok,
    /// It works, and something about it wants attention.
    Warn,
    /// It does not work.
    Fail,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// What was looked at, how it is, and the mend. Holds no secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    subject: &'static str,
    verdict: Verdict,
    detail: String,
    mend: String,
}

impl Finding {
    pub(crate) fn ok(subject: &'static str, detail: impl Into<String>) -> Self {
        Self::new(subject, Verdict::Ok, detail, "")
    }

    pub(crate) fn warn(
        subject: &'static str,
        detail: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self::new(subject, Verdict::Warn, detail, mend)
    }

    pub(crate) fn fail(
        subject: &'static str,
        detail: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self::new(subject, Verdict::Fail, detail, mend)
    }

    /// The same with what others said of it, unless all is well.
    pub(crate) fn quoting(mut self, said: &[String]) -> Self {
        if self.verdict != Verdict::Ok && !said.is_empty() {
            self.detail = format!("{} ({})", self.detail, said.join("; "));
        }
        self
    }

    /// The same, of one of several.
    pub(crate) fn of(mut self, name: &str) -> Self {
        self.detail = format!("{name}: {}", self.detail);
        self
    }

    fn new(
        subject: &'static str,
        verdict: Verdict,
        detail: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            subject,
            verdict,
            detail: detail.into(),
            mend: mend.into(),
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict
    }

    pub(super) fn to_json(&self) -> Value {
        let mut value = json!({
            "subject": self.subject,
            "verdict": self.verdict.as_str(),
            "detail": self.detail,
        });
        if !self.mend.is_empty() {
            value["mend"] = self.mend.as_str().into();
        }
        value
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            subject,
            verdict,
            detail,
            mend,
        } = self;
        write!(f, "{:<4}  {subject}: {detail}", verdict.as_str())?;
        if !mend.is_empty() {
            write!(f, " -> {mend}")?;
        }
        Ok(())
    }
}
