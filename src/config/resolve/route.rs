//! `[[route]]`.

use super::Resolver;
use crate::config::values;
use crate::config::{Route, Upstream};

impl Resolver {
    pub(super) fn routes(&mut self, upstream: Option<&Upstream>) -> Option<Vec<Route>> {
        self.each("route", |this| this.route(upstream))
    }

    fn route(&mut self, upstream: Option<&Upstream>) -> Option<Route> {
        let repository = self.one("route.repository", values::repository_pattern);
        let named = self.one("route.upstream", values::upstream_name);
        let freshness = upstream.map(|upstream| upstream.freshness.clone());
        let freshness = self.freshness(
            [
                "route.tag_ttl",
                "route.stale_if_error",
                "route.immutable_tags",
                "route.offline",
            ],
            freshness.unwrap_or_default(),
        );
        if matches!(repository, Some(None)) {
            self.fault(
                "route.repository",
                "is missing: say which repositories the route is for, such as \"team/**\"",
            );
        }
        if let (Some(Some(named)), Some(upstream)) = (&named, upstream)
            && *named != upstream.name
        {
            let reason = format!("{named:?} is no upstream; there is {:?}", upstream.name);
            self.fault("route.upstream", &reason);
        }
        named?;
        Some(Route {
            repository: repository??,
            freshness: freshness?,
        })
    }
}
