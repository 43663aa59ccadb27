//! The user file: htpasswd lines, bcrypt only.
//!
//! Invariant: every hash in [`Users`] is a well-formed bcrypt hash of bounded cost, every name is
//! there once. Knows nothing of how a password is checked.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr as _;
use std::thread;
use std::time::Duration;

use crate::files;

/// Reserved for ECR tokens, which log in under this name.
pub const RESERVED_NAME: &str = "AWS";

/// Highest accepted bcrypt cost. Each step doubles the time: 16 is several seconds, and one
/// such user could keep a core busy by logging in.
const MAX_COST: u32 = 16;

/// Why nobody can be called `name`, in rules, the user file or a certificate.
pub(super) fn name_fault(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("the name is empty"),
        RESERVED_NAME => Some("the name is reserved for ECR tokens"),
        _ if name.starts_with('@') => {
            Some("no name begins with @; \"@anonymous\" is nobody in particular")
        }
        _ if name.contains('*') => Some("no name has a *; \"*\" alone is anybody logged in"),
        _ if name.contains(char::is_control) => Some("the name has a control character"),
        _ => None,
    }
}

/// Whether the user file can hold a user of this name, and a login name them.
///
/// # Errors
/// Why not.
pub fn check_user_name(name: &str) -> Result<(), &'static str> {
    if let Some(fault) = name_fault(name) {
        Err(fault)
    } else if name.contains(':') {
        Err("the name has a colon, which ends it in the user file and in a login")
    } else if name.starts_with('#') {
        Err("the name begins with #, as a comment in the user file does")
    } else if name.trim() != name {
        Err("the name begins or ends with a space")
    } else {
        Ok(())
    }
}

/// Named users and their password hashes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// By name, in the order of names: any of them is found as fast as another.
    hashes: Vec<(String, String)>,
}

/// What is wrong with one line of a user file. Never holds the hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserFault {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong and how to mend it.
    pub reason: String,
}

/// Everything that is wrong with a user file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseUsersError(pub Vec<UserFault>);

/// Why a user file cannot be used. Never holds a hash.
#[derive(Debug, thiserror::Error)]
pub enum ReadUsersError {
    /// It cannot be read, is no regular file, not UTF-8, or far too large.
    #[error("cannot be read")]
    Read(#[from] io::Error),
    /// It has no byte, as one that could not be written, on a full disk above all.
    #[error("is empty; if nobody is to be let in, leave a line in it that begins with #")]
    Empty,
    /// Lines of it are wrong.
    #[error(transparent)]
    Parse(#[from] ParseUsersError),
}

impl Users {
    /// How long a file that lost users is given to be written to its end: who rewrites it in place empties
    /// it first, and nobody is to be locked out by that.
    pub const SETTLING: Duration = Duration::from_millis(250);

    /// Reads a user file; one that is empty once more, [`SETTLING`](Self::SETTLING) later, so it may block for as long.
    ///
    /// # Errors
    /// It cannot be read, as [`files::read_text`] says, or has faulty lines.
    pub fn read(file: &Path) -> Result<Self, ReadUsersError> {
        let mut text = files::read_text(file)?;
        if text.is_empty() {
            thread::sleep(Self::SETTLING);
            text = files::read_text(file)?;
        }
        match text.is_empty() {
            true => Err(ReadUsersError::Empty),
            false => Ok(Self::parse(&text)?),
        }
    }

    /// Parses htpasswd lines: `name:hash`, empty lines and lines that begin with `#` ignored.
    ///
    /// # Errors
    /// Every faulty line: no colon, a name that nobody can have, a name given twice, a hash that is
    /// not bcrypt (`$2a$`, `$2b$` or `$2y$`), or one that costs too much to check.
    pub fn parse(text: &str) -> Result<Self, ParseUsersError> {
        let mut hashes = BTreeMap::new();
        let mut faults = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse_line(line) {
                Ok((name, hash)) => {
                    if hashes.insert(name.to_owned(), hash.to_owned()).is_some() {
                        faults.push(UserFault {
                            line: index + 1,
                            reason: format!("user {name:?} is there twice"),
                        });
                    }
                }
                Err(reason) => faults.push(UserFault {
                    line: index + 1,
                    reason,
                }),
            }
        }
        if faults.is_empty() {
            Ok(Self {
                hashes: hashes.into_iter().collect(),
            })
        } else {
            Err(ParseUsersError(faults))
        }
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether somebody of this name is in it.
    pub fn contains(&self, name: &str) -> bool {
        self.hash(name).is_some()
    }

    /// How many users are in it.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    pub(super) fn hash(&self, name: &str) -> Option<&str> {
        let named = self
            .hashes
            .binary_search_by(|(user, _)| user.as_str().cmp(name));
        let (_, hash) = self.hashes.get(named.ok()?)?;
        Some(hash)
    }

    /// The hash of some user, the same one for the same `pick`; `None` if there are no users.
    pub(super) fn any_hash(&self, pick: u64) -> Option<&str> {
        let count = u64::try_from(self.hashes.len()).ok()?;
        let index = usize::try_from(pick.checked_rem(count)?).ok()?;
        self.hashes.get(index).map(|(_, hash)| hash.as_str())
    }
}

fn parse_line(line: &str) -> Result<(&str, &str), String> {
    let Some((name, hash)) = line.split_once(':') else {
        return Err("expected name:hash".to_owned());
    };
    check_user_name(name)?;
    if !["$2a$", "$2b$", "$2y$"]
        .iter()
        .any(|prefix| hash.starts_with(prefix))
    {
        return Err(format!(
            "the password of {name:?} is not a bcrypt hash ($2a$, $2b$ or $2y$); \
             `ecr-proxy hash-password {name}` or `htpasswd -nB {name}` make one"
        ));
    }
    let cost = match bcrypt::HashParts::from_str(hash) {
        Ok(parts) if hash.len() == 60 => parts.get_cost(),
        _ => return Err(format!("the bcrypt hash of {name:?} is damaged")),
    };
    if !(4..=MAX_COST).contains(&cost) {
        return Err(format!(
            "the bcrypt hash of {name:?} has cost {cost}; from 4 to {MAX_COST} are accepted"
        ));
    }
    Ok((name, hash))
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.hashes.iter().map(|(name, _)| name);
        f.debug_set().entries(names).finish()
    }
}

impl fmt::Display for ParseUsersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}line {}: {}", fault.line, fault.reason)?;
        }
        Ok(())
    }
}

impl std::error::Error for ParseUsersError {}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2b$04$abcdefghijklmnopqrstuuEAPhVgmc7bVzTSVxzVkAZnTyYrGVCVq";

    fn faults(text: &str) -> Vec<(usize, String)> {
        let error = Users::parse(text).expect_err("faults");
        error.0.into_iter().map(|f| (f.line, f.reason)).collect()
    }

    #[test]
    fn comments_empty_lines_and_all_three_prefixes_are_accepted() {
        let y = HASH.replace("$2b$", "$2y$");
        let a = HASH.replace("$2b$", "$2a$");
        let text = format!("# team\n\na:{HASH}\r\n b:{y} \nc:{a}");
        let users = Users::parse(&text).expect("users");
        assert_eq!(users.len(), 3);
        assert_eq!(users.hash("a"), Some(HASH));
        assert_eq!(users.hash("b"), Some(y.as_str()));
        assert_eq!(users.hash("d"), None);
    }

    #[test]
    fn every_faulty_line_is_named() {
        let text = format!(
            "a:{HASH}\nno colon\n:{HASH}\nAWS:{HASH}\na:{HASH}\nm:$apr1$x$y\ns:{{SHA}}abc\np:plain\nshort:$2b$04$abc\nslow:{}",
            HASH.replace("$04$", "$20$")
        );
        let faults = faults(&text);
        let lines: Vec<usize> = faults.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert!(faults[2].1.contains("reserved"));
        assert!(faults[3].1.contains("twice"));
        assert!(faults[4].1.contains("bcrypt"));
        assert!(faults[7].1.contains("damaged"));
        assert!(faults[8].1.contains("cost 20"));
    }

    #[test]
    fn names_that_nobody_can_have_are_refused() {
        for name in [
            "",
            "a:b",
            "AWS",
            "@anonymous",
            "@all",
            "*",
            "ci*",
            "#a",
            " a",
            "a ",
            "a\n",
            "a\u{7f}",
        ] {
            assert!(check_user_name(name).is_err(), "{name:?}");
        }
        for name in ["ci-robot@team", "Ann Example", "aws", "ü"] {
            assert_eq!(check_user_name(name), Ok(()), "{name:?}");
            let users = Users::parse(&format!("{name}:{HASH}")).expect(name);
            assert!(users.contains(name));
        }
        let text = format!("b :{HASH}\n@all:{HASH}\n*:{HASH}");
        let lines: Vec<usize> = faults(&text).iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [1, 2, 3]);
    }

    #[test]
    fn hashes_do_not_print() {
        let users = Users::parse(&format!("a:{HASH}")).expect("users");
        assert_eq!(format!("{users:?}"), "{\"a\"}");
        let error = Users::parse("a:hunter2").expect_err("fault");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn some_hash_is_picked_unless_there_is_none() {
        assert_eq!(Users::default().any_hash(7), None);
        let users = Users::parse(&format!("a:{HASH}")).expect("users");
        assert_eq!(users.any_hash(u64::MAX), Some(HASH));
    }
}
