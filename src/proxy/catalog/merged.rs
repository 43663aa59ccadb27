//! The repositories of several registries as clients write them, in one order.
//!
//! A registry's names are in order, and stay so where all lose one prefix and gain another. So what clients
//! write in one way is a run of names in order; runs are merged as far as somebody reads. A page costs what
//! is on it, wherever in the list it is.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::fill::Repositories;
use crate::oci::{Renaming, RepositoryName};

/// Names of one registry as they are written in one way.
struct Run<'a> {
    source: usize,
    /// Those that were not looked at yet, as the registry calls them.
    names: &'a [String],
    loses: String,
    gains: String,
}

impl<'a> Run<'a> {
    /// What comes after `last`.
    fn after(
        last: Option<&str>,
        source: usize,
        found: &'a Repositories,
        renaming: &Renaming,
    ) -> Self {
        let prefix = |name: &Option<RepositoryName>| match name {
            Some(name) => format!("{name}/"),
            None => String::new(),
        };
        let (loses, gains) = (prefix(&renaming.loses), prefix(&renaming.gains));
        let names = match last {
            None => found.names_from(&loses),
            Some(last) => match last.strip_prefix(&gains) {
                Some(rest) => found.names_from(&format!("{loses}{rest}")),
                None if last < &*gains => found.names_from(&loses),
                None => &[],
            },
        };
        Self {
            source,
            names,
            loses,
            gains,
        }
    }

    fn next(&mut self) -> Option<Name<'a>> {
        loop {
            let (own, rest) = self.names.split_first()?;
            let head = own.as_bytes().get(..self.loses.len());
            if !head.is_some_and(|head| head.eq_ignore_ascii_case(self.loses.as_bytes())) {
                // All that begin so stand together.
                self.names = &[];
                return None;
            }
            self.names = rest;
            // What has an upper-case letter is no name, and not in the order of those that are.
            if own.bytes().any(|b| b.is_ascii_uppercase()) {
                continue;
            }
            if let Some(tail) = own.strip_prefix(&self.loses) {
                return Some(Name {
                    written: format!("{}{tail}", self.gains),
                    source: self.source,
                    own,
                });
            }
        }
    }
}

/// A repository's name.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name<'a> {
    /// As a client may write it, if that leads back.
    pub(super) written: String,
    /// Which registry it is of, by its number.
    pub(super) source: usize,
    /// What that calls it.
    pub(super) own: &'a str,
}

/// See the module. Names may stand several times, one after the other.
pub(super) struct Merged<'a> {
    runs: Vec<Run<'a>>,
    /// The next of each run.
    heads: BinaryHeap<Reverse<(Name<'a>, usize)>>,
}

impl<'a> Merged<'a> {
    /// What comes after `last`, and perhaps a little before it, of registries with the ways in which their
    /// names are written.
    pub(super) fn after(
        last: Option<&str>,
        sources: impl Iterator<Item = (&'a Repositories, Vec<Renaming>)>,
    ) -> Self {
        // No name has upper-case letters, so what has some is no name to begin at.
        let last = last.filter(|last| !last.bytes().any(|b| b.is_ascii_uppercase()));
        let runs = sources
            .enumerate()
            .flat_map(|(source, (found, renamings))| {
                let run = move |renaming| Run::after(last, source, found, &renaming);
                renamings.into_iter().map(run)
            });
        let mut merged = Self {
            runs: runs.collect(),
            heads: BinaryHeap::new(),
        };
        for number in 0..merged.runs.len() {
            merged.advance(number);
        }
        merged
    }

    fn advance(&mut self, number: usize) {
        if let Some(name) = self.runs[number].next() {
            self.heads.push(Reverse((name, number)));
        }
    }
}

impl<'a> Iterator for Merged<'a> {
    type Item = Name<'a>;

    fn next(&mut self) -> Option<Name<'a>> {
        let Reverse((name, number)) = self.heads.pop()?;
        self.advance(number);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn renaming(loses: &str, gains: &str) -> Renaming {
        Renaming {
            loses: loses.parse().ok(),
            gains: gains.parse().ok(),
        }
    }

    #[test]
    fn reading_all_pages_looks_at_each_name_about_once() {
        const NAMES: usize = 20_000;
        const WAYS: usize = 40;
        const PAGE: usize = 100;
        let names = (0..NAMES).map(|n| format!("team-{}/app-{n:06}", n % WAYS));
        let found = Repositories::of_test(names.collect());
        let ways: Vec<_> = (0..WAYS)
            .map(|way| renaming(&format!("team-{way}"), &format!("z/{way}")))
            .collect();
        let (mut last, mut read, mut looked_at, mut pages) = (None::<String>, 0, 0, 0);
        loop {
            let mut merged = Merged::after(last.as_deref(), [(&found, ways.clone())].into_iter());
            let after = last.as_deref().unwrap_or_default();
            let mut page = Vec::new();
            while page.len() < PAGE {
                let Some(name) = merged.next() else { break };
                looked_at += 1;
                if *name.written > *after {
                    page.push(name.written);
                }
            }
            looked_at += merged.heads.len();
            pages += 1;
            read += page.len();
            match page.pop() {
                Some(name) => last = Some(name),
                None => break,
            }
        }
        assert_eq!(read, NAMES);
        let most = NAMES + pages * (WAYS + 1);
        assert!(looked_at <= most, "{looked_at} looks, {most} at most");
    }

    proptest! {
        #[test]
        fn names_come_in_order_wherever_somebody_begins(
            names in prop::collection::vec("[a-cB]{1,2}(/[a-cC]{1,2}){0,2}", 0..30),
            ways in prop::collection::vec(("([a-c]{1,2})?", "([a-c]{1,2}(/[a-c])?)?"), 1..4),
            last in prop::option::of("[a-cA]{0,2}(/[a-c]{0,2}){0,2}"),
        ) {
            let ways: Vec<_> =
                ways.iter().map(|(loses, gains)| renaming(loses, gains)).collect();
            let found = Repositories::of_test(names.clone());
            let mut expected = Vec::new();
            for own in &names {
                let Ok(own) = own.parse::<RepositoryName>() else { continue };
                expected.extend(ways.iter().filter_map(|way| way.of(&own)));
            }
            expected.retain(|name| last.as_deref().is_none_or(|last| name.as_str() > last));
            expected.sort();
            expected.dedup();
            let merged = Merged::after(last.as_deref(), [(&found, ways)].into_iter());
            let written: Vec<_> = merged.map(|name| name.written).collect();
            prop_assert!(written.is_sorted());
            let mut told: Vec<RepositoryName> =
                written.iter().filter_map(|name| name.parse().ok()).collect();
            told.retain(|name| last.as_deref().is_none_or(|last| name.as_str() > last));
            told.dedup();
            prop_assert_eq!(told, expected);
        }
    }
}
