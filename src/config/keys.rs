//! The keys there are, and the nearest one to a key there is not.

/// What a key's value looks like before it is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A string.
    Text,
    /// A string, or a whole number.
    TextOrNumber,
    /// A list of strings; in the environment separated by commas.
    List,
    /// `true` or `false`.
    Bool,
    /// `true`, `false`, or a list of strings.
    BoolOrList,
    /// A table of strings; each becomes `name=value`.
    Pairs,
}

/// A known key: its section, its name, its shape.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) path: &'static str,
    pub(super) shape: Shape,
}

impl Key {
    pub(super) fn section(self) -> &'static str {
        self.split().0
    }

    pub(super) fn name(self) -> &'static str {
        self.split().1
    }

    fn split(self) -> (&'static str, &'static str) {
        self.path.rsplit_once('.').unwrap_or(("", self.path))
    }

    /// The environment variable that sets it; what may be there several times is set in the file or by
    /// flags.
    pub(super) fn variable(self) -> Option<String> {
        let section = self.section();
        let outer = section.split_once('.').map_or(section, |(outer, _)| outer);
        (!is_array(section) && !is_array(outer)).then(|| {
            let path = self.path.replace('.', "_").to_ascii_uppercase();
            format!("{VARIABLE_PREFIX}{path}")
        })
    }
}

/// What every environment variable of ours begins with.
pub(super) const VARIABLE_PREFIX: &str = "ECR_PROXY_";

/// Sections, with how they are written; a section inside another has its path.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    ("server", "[server]"),
    ("tls", "[tls]"),
    ("tls.pair", "[[tls.pair]]"),
    ("tls.acme", "[tls.acme]"),
    ("cache", "[cache]"),
    ("access", "[access]"),
    ("access.rule", "[[access.rule]]"),
    ("upstream", "[[upstream]]"),
    ("upstream.template", "[upstream.template]"),
    ("route", "[[route]]"),
    ("warm", "[[warm]]"),
];

/// The section called `path`, with how it is written.
pub(super) fn section(path: &str) -> Option<(&'static str, &'static str)> {
    let mut sections = SECTIONS.iter().copied();
    sections.find(|(name, _)| *name == path)
}

/// True for a section that is written with two brackets, once for each of its kind.
pub(super) fn is_array(section: &str) -> bool {
    self::section(section).is_some_and(|(_, written)| written.starts_with("[["))
}

const fn key(path: &'static str, shape: Shape) -> Key {
    Key { path, shape }
}

/// Every key of this release.
pub(super) const KEYS: &[Key] = &[
    key("server.listen", Shape::List),
    key("server.domains", Shape::List),
    key("server.state_dir", Shape::Text),
    key("server.admin", Shape::Text),
    key("server.admin_socket", Shape::Text),
    key("server.trusted_proxies", Shape::List),
    key("server.drain_timeout", Shape::Text),
    key("tls.cert", Shape::Text),
    key("tls.key", Shape::Text),
    key("tls.client_ca", Shape::Text),
    key("tls.client_user", Shape::Text),
    key("tls.pair.cert", Shape::Text),
    key("tls.pair.key", Shape::Text),
    key("tls.acme.directory", Shape::Text),
    key("tls.acme.email", Shape::Text),
    key("tls.acme.eab_kid", Shape::Text),
    key("tls.acme.eab_key_file", Shape::Text),
    key("tls.acme.challenge", Shape::Text),
    key("tls.acme.http_listen", Shape::Text),
    key("tls.acme.ca", Shape::Text),
    key("cache.dir", Shape::Text),
    key("cache.max_size", Shape::TextOrNumber),
    key("cache.min_free", Shape::TextOrNumber),
    key("cache.tag_ttl", Shape::Text),
    key("cache.tag_wait", Shape::Text),
    key("cache.stale_if_error", Shape::Text),
    key("cache.immutable_tags", Shape::BoolOrList),
    key("cache.offline", Shape::Bool),
    key("cache.absent_ttl", Shape::Text),
    key("cache.record_ttl", Shape::Text),
    key("cache.max_manifest_size", Shape::TextOrNumber),
    key("cache.max_upstream_bandwidth", Shape::Text),
    key("cache.prefetch", Shape::Text),
    key("cache.pins", Shape::List),
    key("access.users", Shape::Text),
    key("access.anonymous", Shape::Text),
    key("access.anonymous_networks", Shape::List),
    key("access.aws_tokens", Shape::Bool),
    key("access.rule.users", Shape::List),
    key("access.rule.domains", Shape::List),
    key("access.rule.upstreams", Shape::List),
    key("access.rule.networks", Shape::List),
    key("access.rule.repositories", Shape::List),
    key("access.rule.actions", Shape::List),
    key("upstream.name", Shape::Text),
    key("upstream.registry", Shape::Text),
    key("upstream.auth", Shape::Text),
    key("upstream.username", Shape::Text),
    key("upstream.password_file", Shape::Text),
    key("upstream.profile", Shape::Text),
    key("upstream.role_arn", Shape::Text),
    key("upstream.external_id", Shape::Text),
    key("upstream.role_session_name", Shape::Text),
    key("upstream.requests_per_second", Shape::List),
    key("upstream.endpoint", Shape::Text),
    key("upstream.endpoint_tls_name", Shape::Text),
    key("upstream.ca", Shape::Text),
    key("upstream.proxy", Shape::Text),
    key("upstream.redirect_hosts", Shape::List),
    key("upstream.token_hosts", Shape::List),
    key("upstream.fallback", Shape::List),
    key("upstream.tag_ttl", Shape::Text),
    key("upstream.stale_if_error", Shape::Text),
    key("upstream.immutable_tags", Shape::BoolOrList),
    key("upstream.offline", Shape::Bool),
    key("upstream.trust_manifests", Shape::Bool),
    key("upstream.max_upstream_bandwidth", Shape::Text),
    key("upstream.create_repositories", Shape::BoolOrList),
    key("upstream.template.lifecycle_policy", Shape::Text),
    key("upstream.template.mutability", Shape::Text),
    key("upstream.template.mutability_except", Shape::List),
    key("upstream.template.scan_on_push", Shape::Bool),
    key("upstream.template.encryption", Shape::Text),
    key("upstream.template.kms_key", Shape::Text),
    key("upstream.template.tags", Shape::Pairs),
    key("route.domain", Shape::Text),
    key("route.ns", Shape::Text),
    key("route.repository", Shape::Text),
    key("route.upstream", Shape::Text),
    key("route.strip_prefix", Shape::Text),
    key("route.add_prefix", Shape::Text),
    key("route.tag_ttl", Shape::Text),
    key("route.stale_if_error", Shape::Text),
    key("route.immutable_tags", Shape::BoolOrList),
    key("route.offline", Shape::Bool),
    key("warm.images", Shape::List),
    key("warm.every", Shape::Text),
    key("warm.platforms", Shape::List),
    key("warm.referrers", Shape::Bool),
];

/// The key called `name` in `section`.
pub(super) fn find(section: &str, name: &str) -> Option<Key> {
    KEYS.iter()
        .copied()
        .find(|key| key.section() == section && key.name() == name)
}

/// What is read at start only, so that another value waits for the next one.
const FIXED: &[&str] = &[
    "server.listen",
    "server.state_dir",
    "server.admin",
    "server.admin_socket",
    "tls.acme.http_listen",
    "cache.dir",
];

/// Whether a known key is read at start only.
pub(super) fn is_fixed(path: &str) -> bool {
    FIXED.contains(&path)
}

/// The section nearest to one that does not exist, as it is written.
pub(super) fn nearest_section(section: &str) -> &'static str {
    nearest(section, SECTIONS.iter().copied(), |(name, _)| name).map_or("", |(_, written)| written)
}

/// The known key nearest to an unknown one. The same name in another section is nearest of all:
/// it was put into the wrong one.
pub(super) fn nearest_key(section: &str, name: &str) -> &'static str {
    let siblings = KEYS.iter().filter(|key| key.section() == section);
    let here = nearest(name, siblings, |key| key.name());
    // A letter too many or too few, rather than in the wrong place: `domain` for `domains`.
    let close = here.filter(|key| strsim::damerau_levenshtein(name, key.name()) <= 1);
    let elsewhere = || KEYS.iter().find(|key| key.name() == name);
    close.or_else(elsewhere).or(here).map_or("", |key| key.path)
}

/// The known variable nearest to an unknown one.
pub(super) fn nearest_variable(variable: &str) -> String {
    let variables = KEYS.iter().filter_map(|key| key.variable());
    let mut best: Option<(usize, String)> = None;
    for candidate in variables {
        let distance = strsim::damerau_levenshtein(variable, &candidate);
        if best.as_ref().is_none_or(|(least, _)| distance < *least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate).unwrap_or_default()
}

fn nearest<T: Copy>(
    name: &str,
    candidates: impl Iterator<Item = T>,
    text: impl Fn(T) -> &'static str,
) -> Option<T> {
    candidates.min_by_key(|candidate| strsim::damerau_levenshtein(name, text(*candidate)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_finds_its_neighbour() {
        assert_eq!(nearest_key("server", "lisen"), "server.listen");
        assert_eq!(nearest_key("cache", "maxsize"), "cache.max_size");
        assert_eq!(nearest_key("upstream", "registri"), "upstream.registry");
        // Which is a key of [[route]].
        assert_eq!(nearest_key("server", "domain"), "server.domains");
    }

    #[test]
    fn a_key_in_the_wrong_section_finds_the_right_one() {
        assert_eq!(nearest_key("server", "max_size"), "cache.max_size");
    }

    #[test]
    fn misspelt_sections_and_variables_find_their_neighbour() {
        assert_eq!(nearest_section("upstreams"), "[[upstream]]");
        assert_eq!(nearest_section("serve"), "[server]");
        assert_eq!(
            nearest_variable("ECR_PROXY_CACHE_MAXSIZE"),
            "ECR_PROXY_CACHE_MAX_SIZE"
        );
    }

    #[test]
    fn what_is_fixed_is_a_key() {
        for path in FIXED {
            assert!(KEYS.iter().any(|key| key.path == *path), "{path}");
        }
        for (path, expected) in [
            ("server.listen", true),
            ("server.domains", false),
            ("tls.acme.email", false),
            ("tls.acme.http_listen", true),
            ("tls.cert", false),
            ("cache.dir", true),
            ("cache.max_size", false),
            ("upstream.registry", false),
            ("access.rule.users", false),
        ] {
            assert_eq!(is_fixed(path), expected, "{path}");
        }
    }

    #[test]
    fn keys_are_unique_and_belong_to_a_section() {
        for (index, key) in KEYS.iter().enumerate() {
            assert!(SECTIONS.iter().any(|(name, _)| *name == key.section()));
            assert!(KEYS[..index].iter().all(|other| other.path != key.path));
        }
    }
}
