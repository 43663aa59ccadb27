//! Patterns over names: `team/*`, `team/**`, `v1.*`.

use std::fmt;
use std::str::FromStr;

use super::RepositoryName;

/// A pattern over names of repositories or tags, compared component by component, case and all.
///
/// `*` stands for any characters within one component, also inside it (`app-*`); a component that is `**`
/// stands for any number of components, none included, so `team/**` is `team` and all below it. Matching
/// takes time proportional to pattern times name, whatever the pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern(String);

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParsePatternError {
    /// It is not of the form.
    #[error(
        "a pattern is a name in which * stands for part of a component and ** for whole components, such as team/**"
    )]
    Form,
    /// It is for repositories, whose names have no capitals (distribution-spec, "Pulling manifests").
    #[error("names of repositories have no capitals, so it would match none")]
    Capitals,
}

/// More is no name's length (255), with room for stars.
const MAX_PATTERN_BYTES: usize = 512;

impl Pattern {
    /// A pattern over repositories, which could match one.
    ///
    /// # Errors
    /// It is not a pattern, or has capitals.
    pub fn of_repositories(text: &str) -> Result<Self, ParsePatternError> {
        match text.bytes().any(|b| b.is_ascii_uppercase()) {
            true => Err(ParsePatternError::Capitals),
            false => text.parse(),
        }
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Everything.
    pub fn any() -> Self {
        Self("**".to_owned())
    }

    /// The one name that the pattern describes, where it is one.
    pub fn literal(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(&self.0)
    }

    /// The pattern of the names described that begin with the components of `strip` and have more, without
    /// these and with those of `add` before them; `None` if there are none. What comes after a `**` is
    /// taken to be for names below `strip`.
    pub fn renamed(
        &self,
        strip: Option<&RepositoryName>,
        add: Option<&RepositoryName>,
    ) -> Option<Self> {
        let mut rest = self.0.as_str();
        let stripped = strip.iter().flat_map(|strip| strip.as_str().split('/'));
        for component in stripped {
            let (first, after) = rest.split_once('/').unwrap_or((rest, ""));
            if first == "**" {
                break;
            }
            if !Self(first.to_owned()).matches(component) {
                return None;
            }
            rest = after;
        }
        if rest.is_empty() {
            return None;
        }
        Some(Self(match add {
            None => rest.to_owned(),
            Some(add) => format!("{add}/{rest}"),
        }))
    }

    /// True if `name` is what the pattern describes.
    pub fn matches(&self, name: &str) -> bool {
        let pattern: Vec<&str> = self.0.split('/').collect();
        let name: Vec<&str> = name.split('/').collect();
        glob(&pattern, &name, is_any_components, component_fits)
    }

    /// True if all that the other describes is what this one does. It may be false where that takes more than
    /// one star of this one for a star of the other's.
    pub fn covers(&self, other: &Self) -> bool {
        let pattern: Vec<&str> = self.0.split('/').collect();
        let other: Vec<&str> = other.0.split('/').collect();
        // What a star of the other stands for is taken by a star of ours, or by nothing.
        let fits = |pattern: &&str, component: &&str| {
            !is_any_components(component) && component_fits(pattern, component)
        };
        glob(&pattern, &other, is_any_components, fits)
    }
}

fn is_any_components(component: &&str) -> bool {
    *component == "**"
}

/// Whether a component, of a name or of a pattern, is what this one of a pattern describes. Names have no stars.
fn component_fits(pattern: &&str, component: &&str) -> bool {
    let (pattern, component) = (pattern.as_bytes(), component.as_bytes());
    glob(pattern, component, |b| *b == b'*', |a, b| a == b)
}

impl FromStr for Pattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'*');
        let is_component = |component: &str| {
            !component.is_empty()
                && component.bytes().all(is_named)
                && (component == "**" || !component.contains("**"))
        };
        if text.len() <= MAX_PATTERN_BYTES && text.split('/').all(is_component) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParsePatternError::Form)
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `items` are what `pattern` describes, where a star stands for any run of items. On a mismatch
/// the last star takes one item more, so nothing is tried twice with the same star.
fn glob<P, T>(
    pattern: &[P],
    items: &[T],
    is_star: impl Fn(&P) -> bool,
    fits: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut at, mut item) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while item < items.len() {
        match pattern.get(at) {
            Some(part) if is_star(part) => {
                at += 1;
                retry = Some((at, item));
            }
            Some(part) if fits(part, &items[item]) => {
                at += 1;
                item += 1;
            }
            _ => match retry {
                Some((after_star, taken)) => {
                    retry = Some((after_star, taken + 1));
                    (at, item) = (after_star, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(is_star)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<Pattern>().expect(pattern).matches(name)
    }

    #[test]
    fn a_star_stays_within_its_component_and_two_stars_do_not() {
        for (pattern, name, is_match) in [
            ("team/app", "team/app", true),
            ("team/app", "team/App", false),
            ("team/app", "team/app2", false),
            ("team/*", "team/app", true),
            ("team/*", "team", false),
            ("team/*", "team/a/b", false),
            ("team/*", "teams/a", false),
            ("team/**", "team", true),
            ("team/**", "team/a/b", true),
            ("team/**", "teams/a", false),
            ("**", "a/b/c", true),
            ("*", "a", true),
            ("*", "a/b", false),
            ("**/app", "app", true),
            ("**/app", "a/b/app", true),
            ("**/app", "a/b/app/c", false),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/z/y/z", true),
            ("app-*", "app-", true),
            ("app-*-x", "app-a-x-x", true),
            ("v1.*", "v1.2", true),
            ("v1.*", "v10", false),
        ] {
            assert_eq!(matches(pattern, name), is_match, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_covers_what_is_about_no_more() {
        for (pattern, other, covers) in [
            ("**", "team/**", true),
            ("**", "**", true),
            ("team/**", "team", true),
            ("team/**", "team/*/x", true),
            ("team/**", "team/**/x", true),
            ("team/*", "team/app-*", true),
            ("team/*", "team/**", false),
            ("team/**", "**", false),
            ("team/**", "*/x", false),
            ("team/app", "team/*", false),
            ("a*c", "a*", false),
            ("*/x", "**/x", false),
        ] {
            let parsed = |text: &str| text.parse::<Pattern>().expect(text);
            assert_eq!(
                parsed(pattern).covers(&parsed(other)),
                covers,
                "{pattern} {other}"
            );
        }
    }

    #[test]
    fn a_pattern_that_no_repository_could_match_is_refused() {
        assert!(Pattern::of_repositories("team/app-*").is_ok());
        assert_eq!(
            Pattern::of_repositories("Team/*"),
            Err(ParsePatternError::Capitals)
        );
        assert_eq!(
            Pattern::of_repositories("team//x"),
            Err(ParsePatternError::Form)
        );
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        let long = "a".repeat(MAX_PATTERN_BYTES + 1);
        for text in [
            "", "/", "a/", "/a", "a//b", "a**", "***", "a b", "a:b", "?", &long,
        ] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_name_matches_itself_and_two_stars(name in "[a-z0-9]{1,5}(/[a-z0-9]{1,5}){0,4}") {
            prop_assert!(matches(&name, &name));
            prop_assert!(matches("**", &name));
            let below = format!("{name}/**");
            let within = format!("{name}/x");
            prop_assert!(matches(&below, &within));
        }

        #[test]
        fn what_a_covered_pattern_describes_the_one_that_covers_it_does(
            pattern in "([ab*]|ab|\\*a|a\\*|\\*\\*)(/([ab*]|\\*a|a\\*|\\*\\*)){0,3}",
            other in "([ab*]|ab|\\*a|a\\*|\\*\\*)(/([ab*]|\\*a|a\\*|\\*\\*)){0,3}",
            names in proptest::collection::vec("(a|b|ab|ba)(/(a|b|ab|ba)){0,3}", 20),
        ) {
            let [pattern, other] = [pattern, other].map(|it| it.parse::<Pattern>().unwrap());
            prop_assert!(pattern.covers(&pattern));
            if pattern.covers(&other) {
                for name in names {
                    prop_assert!(!other.matches(&name) || pattern.matches(&name), "{name}");
                }
            }
        }

        #[test]
        fn a_pattern_of_many_stars_ends(name in "a{1,200}") {
            let pattern = "*a".repeat(200);
            let fits = name.len() >= 200;
            prop_assert_eq!(matches(&pattern, &name), fits);
        }
    }
}
