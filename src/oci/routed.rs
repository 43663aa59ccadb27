//! What differs by repository.

use super::{Pattern, RepositoryName};

/// A setting that differs by repository: the first pattern that matches decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed<T> {
    routes: Vec<(Pattern, T)>,
    otherwise: T,
}

impl<T> Routed<T> {
    /// `routes` in the order in which they are tried, and what counts where none matches.
    pub fn new(routes: Vec<(Pattern, T)>, otherwise: T) -> Self {
        Self { routes, otherwise }
    }

    /// What counts for this repository.
    pub fn of(&self, repository: &RepositoryName) -> &T {
        self.of_name(repository.as_str())
    }

    /// What counts for the repository of this name.
    pub fn of_name(&self, repository: &str) -> &T {
        let mut routes = self.routes.iter();
        routes
            .find(|(pattern, _)| pattern.matches(repository))
            .map_or(&self.otherwise, |(_, value)| value)
    }

    /// What counts where no pattern matches.
    pub fn otherwise(&self) -> &T {
        &self.otherwise
    }

    /// Every value that may count.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        let routed = self.routes.iter().map(|(_, value)| value);
        routed.chain(std::iter::once(&self.otherwise))
    }
}

impl<T> From<T> for Routed<T> {
    /// The same for every repository.
    fn from(otherwise: T) -> Self {
        Self::new(Vec::new(), otherwise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_match_decides_and_what_matches_none_has_the_default() {
        let pattern = |text: &str| text.parse::<Pattern>().unwrap();
        let routed = Routed::new(vec![(pattern("a/b"), 1), (pattern("a/**"), 2)], 3);
        for (name, value) in [("a/b", 1), ("a/c", 2), ("a", 2), ("b", 3)] {
            assert_eq!(*routed.of(&name.parse().unwrap()), value, "{name}");
        }
        assert_eq!(routed.values().sum::<i32>(), 6);
    }
}
