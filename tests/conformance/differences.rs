//! What `differences.md` says, and whether it is so.

use std::collections::BTreeMap;

/// What of an answer the specification is about, by its name.
pub type Said = BTreeMap<&'static str, String>;

const DIFFERENCES: &str = include_str!("differences.md");

/// The rows of the table below this heading that are about this registry, without its name.
pub fn rows(heading: &str, behind: &str) -> Vec<Vec<&'static str>> {
    let sections = DIFFERENCES.split("\n## ");
    let mut sections = sections.filter_map(|section| section.split_once('\n'));
    let section = sections.find(|(name, _)| *name == heading);
    let (_, section) = section.unwrap_or_else(|| panic!("no table of {heading}"));
    let rows = section.lines().filter_map(|line| line.strip_prefix("| "));
    let rows = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    let own = rows.filter(|cells| cells[0] == behind);
    own.map(|cells| cells[1..].to_vec()).collect()
}

/// Fails unless a registry, which says the former, and the proxy before it, which says the latter, differ in what
/// the table below this heading says, and in nothing else.
pub fn compare<'a>(
    heading: &str,
    behind: &str,
    steps: impl IntoIterator<Item = (&'a str, &'a Said, &'a Said)>,
) {
    let mut found = Vec::new();
    for (step, theirs, ours) in steps {
        let (told_by_it, told_here) = (beside(theirs, ours), beside(ours, theirs));
        if !(told_by_it.is_empty() && told_here.is_empty()) {
            found.push((step.to_owned(), told_by_it, told_here));
        }
    }
    found.dedup();
    let documented = rows(heading, behind).into_iter();
    let documented = documented.map(|cells| {
        let [step, theirs, ours, _why, ..] = cells[..] else {
            panic!("{cells:?}");
        };
        (step.to_owned(), theirs.to_owned(), ours.to_owned())
    });
    let documented: Vec<_> = documented.collect();
    let new = found.iter().filter(|one| !documented.contains(one));
    let new: Vec<_> = new.collect();
    assert!(new.is_empty(), "not documented: {new:#?}");
    assert_eq!(found, documented, "what is documented is not so");
}

/// What one says and the other does not.
fn beside(said: &Said, other: &Said) -> String {
    let own = said
        .iter()
        .filter(|(what, value)| other.get(*what) != Some(value));
    let own: Vec<_> = own
        .map(|(what, value)| format!("{what} {}", short(value)))
        .collect();
    own.join(", ")
}

/// With `sha256:…` for every digest.
fn short(value: &str) -> String {
    let (mut out, mut rest) = (String::new(), value);
    while let Some(at) = rest.find("sha256:") {
        let (before, digest) = rest.split_at(at);
        out += before;
        out += "sha256:…";
        rest = digest
            .trim_start_matches("sha256:")
            .trim_start_matches(|c: char| c.is_ascii_hexdigit());
    }
    out + rest
}
