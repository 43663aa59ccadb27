use proptest::prelude::*;

use super::*;

fn name(text: &str) -> RepositoryName {
    text.parse().expect(text)
}

fn route(upstream: &str) -> NameRoute {
    NameRoute {
        domain: None,
        ns: None,
        repository: None,
        upstream: upstream.into(),
        strip_prefix: None,
        add_prefix: None,
    }
}

fn routes(routes: Vec<NameRoute>) -> Routes {
    let home = |upstream: &str, registry: &str| Home {
        upstream: upstream.into(),
        registry: registry.to_owned(),
    };
    let homes = vec![
        home("prod", "prod.example:5000"),
        home("hub", "docker.io"),
        home("dev", "dev.example"),
    ];
    let domains = vec!["a.test".to_owned(), "hub.test".to_owned()];
    Routes::new(domains, routes, homes)
}

fn found(routes: &Routes, domain: &str, ns: Option<&str>, repository: &str) -> String {
    let led = routes.find(Some(domain), ns, &name(repository));
    led.map_or("nowhere".to_owned(), |led| led.repo.to_string())
}

#[test]
fn the_first_route_that_is_about_a_name_leads_it() {
    let routes = routes(vec![
        NameRoute {
            domain: Some("hub.test".to_owned()),
            ..route("hub")
        },
        NameRoute {
            repository: Some("team/**".parse().unwrap()),
            strip_prefix: Some(name("team")),
            add_prefix: Some(name("mirror/x")),
            ..route("dev")
        },
        NameRoute {
            ns: Some(Namespace::Registry("quay.io".to_owned())),
            add_prefix: Some(name("quay")),
            ..route("prod")
        },
        route("prod"),
    ]);
    for (domain, ns, repository, expected) in [
        ("hub.test", None, "alpine", "hub/library/alpine"),
        ("hub.test", None, "grafana/loki", "hub/grafana/loki"),
        (
            "hub.test",
            Some("docker.io"),
            "library/alpine",
            "hub/library/alpine",
        ),
        // A route that names neither repository nor ns is for its own registry only.
        ("hub.test", Some("quay.io"), "a", "prod/quay/a"),
        ("a.test", None, "team/app", "dev/mirror/x/app"),
        // One that names a repository is for any.
        ("a.test", Some("ghcr.io"), "team/app", "dev/mirror/x/app"),
        // Nothing is left of it, so the next decides.
        ("a.test", None, "team", "prod/team"),
        ("a.test", None, "teams/app", "prod/teams/app"),
        ("a.test", Some("QUAY.io"), "a/b", "prod/quay/a/b"),
        ("a.test", Some("quay.io:443"), "a/b", "prod/quay/a/b"),
        ("a.test", Some("A.test:8443"), "a/b", "prod/a/b"),
        ("a.test", Some("prod.example:5000"), "a/b", "prod/a/b"),
        ("a.test", Some("prod.example"), "a/b", "nowhere"),
        (
            "a.test",
            Some("registry-1.docker.io"),
            "alpine",
            "hub/library/alpine",
        ),
        ("a.test", Some("dev.example"), "a", "dev/a"),
        ("a.test", Some("169.254.169.254"), "a", "nowhere"),
    ] {
        assert_eq!(
            found(&routes, domain, ns, repository),
            expected,
            "{repository}"
        );
    }
}

#[test]
fn without_a_route_one_upstream_gets_all_that_is_asked_of_us_and_several_get_what_is_theirs() {
    let home = Home {
        upstream: "prod".into(),
        registry: "prod.example".to_owned(),
    };
    let alone = Routes::new(vec!["a.test".to_owned()], Vec::new(), vec![home]);
    for (ns, expected) in [
        (None, "prod/x"),
        (Some("a.test"), "prod/x"),
        (Some("prod.example"), "prod/x"),
        (Some("docker.io"), "nowhere"),
    ] {
        assert_eq!(found(&alone, "a.test", ns, "x"), expected, "{ns:?}");
    }
    let several = routes(Vec::new());
    assert_eq!(found(&several, "a.test", None, "x"), "nowhere");
    assert_eq!(found(&several, "a.test", Some("dev.example"), "x"), "dev/x");
}

#[test]
fn another_server_on_a_host_of_ours_is_another_registry() {
    let home = |upstream: &str, registry: &str| Home {
        upstream: upstream.into(),
        registry: registry.to_owned(),
    };
    let homes = || vec![home("prod", "prod.example"), home("old", "a.test:5000")];
    let of = |ns: &str| NameRoute {
        ns: Some(Namespace::Registry(ns.to_owned())),
        ..route("old")
    };
    for routes in [
        vec![of("a.test:5000"), route("prod")],
        // Its own name leads there, too.
        vec![route("prod")],
    ] {
        let routes = Routes::new(vec!["a.test".to_owned()], routes, homes());
        for (ns, expected) in [
            (Some("a.test:5000"), "old/app"),
            (Some("A.test:5000"), "old/app"),
            (Some("a.test:8443"), "prod/app"),
            (Some("a.test"), "prod/app"),
            (None, "prod/app"),
        ] {
            assert_eq!(found(&routes, "a.test", ns, "app"), expected, "{ns:?}");
        }
    }
}

#[test]
fn the_usual_port_tells_no_other_server() {
    let old = Home {
        upstream: "old".into(),
        registry: "a.test:443".to_owned(),
    };
    let mut prod = old.clone();
    (prod.upstream, prod.registry) = ("prod".into(), "prod.example".to_owned());
    let at_ours = NameRoute {
        domain: Some("a.test".to_owned()),
        ..route("prod")
    };
    let routes = Routes::new(vec!["a.test".to_owned()], vec![at_ours], vec![prod, old]);
    for ns in [None, Some("a.test"), Some("a.test:443")] {
        assert_eq!(found(&routes, "a.test", ns, "app"), "prod/app", "{ns:?}");
    }
}

#[test]
fn any_ns_is_any() {
    let routes = routes(vec![NameRoute {
        ns: Some(Namespace::Any),
        ..route("dev")
    }]);
    for ns in [None, Some("quay.io"), Some("docker.io")] {
        assert_eq!(found(&routes, "a.test", ns, "x"), "dev/x");
    }
}

#[test]
fn a_name_that_would_be_too_long_is_not_made() {
    let routes = routes(vec![NameRoute {
        add_prefix: Some(name("p/".repeat(60).trim_end_matches('/'))),
        ..route("dev")
    }]);
    let long = "a/".repeat(90);
    let long = long.trim_end_matches('/');
    assert_eq!(found(&routes, "a.test", None, long), "nowhere");
}

#[test]
fn what_clients_write_for_a_repository_leads_back_to_it() {
    let routes = routes(vec![
        NameRoute {
            domain: Some("hub.test".to_owned()),
            ..route("hub")
        },
        NameRoute {
            repository: Some("team/**".parse().unwrap()),
            strip_prefix: Some(name("team")),
            ..route("dev")
        },
    ]);
    let written = |upstream: &str, repository: &str| {
        let repo = RepoKey {
            upstream: upstream.into(),
            repository: name(repository),
        };
        let written = routes.written(&repo).expect("a name");
        let domain = written.domain.map(|domain| domain + "/");
        format!("{}{}", domain.unwrap_or_default(), written.repository)
    };
    assert_eq!(written("hub", "library/alpine"), "hub.test/library/alpine");
    assert_eq!(written("dev", "app"), "a.test/team/app");
    assert_eq!(written("prod", "app"), "prod.example:5000/app");
}

#[test]
fn a_repository_is_called_by_every_name_that_leads_to_it_and_by_no_other() {
    let routes = routes(vec![
        NameRoute {
            repository: Some("team/**".parse().unwrap()),
            strip_prefix: Some(name("team")),
            ..route("dev")
        },
        NameRoute {
            domain: Some("hub.test".to_owned()),
            ..route("hub")
        },
        route("prod"),
    ]);
    let called = |domain: &str, ns: Option<&str>, upstream: &str, repository: &str| {
        let repo = RepoKey {
            upstream: upstream.into(),
            repository: name(repository),
        };
        let ways = routes.renamings(Some(domain), ns, upstream).into_iter();
        let leads_back = |name: &RepositoryName| {
            let led = routes.find(Some(domain), ns, name);
            led.is_some_and(|led| led.repo == repo)
        };
        let names = ways.filter_map(|way| way.of(&repo.repository));
        let names = names.filter(leads_back);
        names.map(|name| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(called("a.test", None, "dev", "app"), ["team/app"]);
    assert_eq!(called("a.test", None, "prod", "app"), ["app"]);
    assert_eq!(called("a.test", None, "prod", "team/app"), [""; 0]);
    assert_eq!(called("hub.test", None, "prod", "app"), [""; 0]);
    assert_eq!(
        called("hub.test", None, "hub", "library/app"),
        ["library/app"]
    );
    let both = called("a.test", Some("dev.example"), "dev", "app");
    assert_eq!(both, ["team/app", "app"]);
    let reached = |domain, ns| routes.reached(Some(domain), ns).join(" ");
    assert_eq!(reached("a.test", None), "dev prod");
    assert_eq!(reached("hub.test", None), "dev hub prod");
    assert_eq!(reached("a.test", Some("docker.io")), "dev hub");
}

prop_compose! {
    fn names()(text in "[a-z0-9]{1,4}(/[a-z0-9]{1,4}){0,4}") -> RepositoryName {
        text.parse().unwrap()
    }
}

prop_compose! {
    fn any_route()(
        domain in prop::option::of(prop::sample::select(vec!["a.test", "hub.test"])),
        ns in prop::option::of(prop::sample::select(vec!["*", "docker.io", "quay.io"])),
        repository in prop::option::of("(\\*{1,2}|[ab]{1,2}\\*?)(/(\\*{1,2}|[ab]{1,2})){0,2}"),
        upstream in prop::sample::select(vec!["prod", "hub", "dev"]),
        strip in prop::option::of("[ab]{1,2}(/[ab]{1,2})?"),
        add in prop::option::of("[ab]{1,2}(/[ab]{1,2})?"),
    ) -> NameRoute {
        NameRoute {
            domain: domain.map(str::to_owned),
            ns: ns.map(|ns| match ns {
                "*" => Namespace::Any,
                registry => Namespace::Registry(registry.to_owned()),
            }),
            repository: repository.map(|text| text.parse().unwrap()),
            upstream: upstream.into(),
            strip_prefix: strip.map(|text| text.parse().unwrap()),
            add_prefix: add.map(|text| text.parse().unwrap()),
        }
    }
}

proptest! {
    #[test]
    fn a_name_is_rewritten_by_whole_components_and_back(
        strip in prop::option::of(names()),
        add in prop::option::of(names()),
        rest in names(),
    ) {
        let route = NameRoute { strip_prefix: strip.clone(), add_prefix: add.clone(), ..route("dev") };
        let put = |prefix: &Option<RepositoryName>| match prefix {
            Some(prefix) => name(&format!("{prefix}/{rest}")),
            None => rest.clone(),
        };
        prop_assert_eq!(route.rewritten(&put(&strip)), Some(put(&add)));
        prop_assert_eq!(route.restoring().of(&put(&add)), Some(put(&strip)));
        if let Some(strip) = &strip {
            prop_assert_eq!(route.rewritten(strip), None);
            let longer = name(&format!("{strip}x/{rest}"));
            prop_assert_eq!(route.rewritten(&longer), None);
        }
    }

    #[test]
    fn nothing_leads_to_what_is_not_configured_and_what_is_written_leads_back(
        all in prop::collection::vec(any_route(), 0..4),
        ns in prop::option::of(prop::sample::select(vec!["docker.io", "quay.io", "x.example", ""])),
        asked in "[ab]{1,2}(/[ab]{1,2}){0,3}",
    ) {
        let routes = routes(all.clone());
        let Some(led) = routes.find(Some("a.test"), ns, &name(&asked)) else { return Ok(()) };
        prop_assert!(routes.homes.iter().any(|home| home.upstream == led.repo.upstream));
        if ns == Some("x.example") {
            let Because::Route(number) = led.because else { panic!("no registry of ours") };
            prop_assert!(all[number].ns == Some(Namespace::Any) || all[number].repository.is_some());
        }
        if let Some(written) = routes.written(&led.repo) {
            let (domain, ns) = match written.domain.as_deref() {
                Some("hub.test") => (Some("hub.test"), None),
                other => (Some("a.test"), other),
            };
            let again = routes.find(domain, ns, &written.repository);
            prop_assert_eq!(again.map(|again| again.repo), Some(led.repo));
        }
    }

    #[test]
    fn any_text_of_a_name_and_an_ns_is_borne(ns in ".{0,20}", asked in "[a-z0-9/._-]{1,300}") {
        if let Ok(asked) = asked.parse() {
            let _ = routes(vec![route("prod")]).find(None, Some(&ns), &asked);
        }
    }

    #[test]
    fn a_renamed_pattern_describes_the_renamed_names(
        pattern in "([ab]{1,2}|\\*)(/([ab]{1,2}|\\*)){0,3}(/\\*\\*)?",
        strip in prop::option::of("[ab]{1,2}(/[ab]{1,2})?"),
        add in prop::option::of("[ab]{1,2}"),
        asked in "[ab]{1,2}(/[ab]{1,2}){0,4}",
    ) {
        let route = NameRoute {
            repository: Some(pattern.parse().unwrap()),
            strip_prefix: strip.map(|text| text.parse().unwrap()),
            add_prefix: add.map(|text| text.parse().unwrap()),
            ..route("dev")
        };
        let asked = name(&asked);
        if route.repository.as_ref().unwrap().matches(asked.as_str())
            && let Some(rewritten) = route.rewritten(&asked)
        {
            let renamed = route.upstream_pattern();
            prop_assert!(renamed.unwrap().matches(rewritten.as_str()));
        }
    }

    #[test]
    fn what_an_earlier_route_takes_a_later_one_does_not_lead(
        first in any_route(),
        later in any_route(),
        ns in prop::option::of(prop::sample::select(vec!["docker.io", "quay.io", "dev.example"])),
        asked in prop::collection::vec("[ab]{1,2}(/[ab]{1,2}){0,3}", 20),
    ) {
        let Some(taken) = routes(Vec::new()).taken(&first, &later) else { return Ok(()) };
        let routes = routes(vec![first, later]);
        for (domain, asked) in asked.iter().flat_map(|it| [("a.test", it), ("hub.test", it)]) {
            let led = routes.find(Some(domain), ns, &name(asked));
            let is_later = led.is_some_and(|led| led.because == Because::Route(1));
            prop_assert!(!is_later || (taken == Taken::Untold && ns.is_some()));
        }
    }
}

#[test]
fn a_route_takes_all_of_a_later_one_that_is_about_no_more() {
    let of = |repository: &str| NameRoute {
        repository: Some(repository.parse().unwrap()),
        ..route("hub")
    };
    let below = |prefix: &str| NameRoute {
        strip_prefix: Some(name(prefix)),
        ..route("hub")
    };
    let at = |domain: &str| NameRoute {
        domain: Some(domain.to_owned()),
        ..route("hub")
    };
    let ns = |ns: Namespace| NameRoute {
        ns: Some(ns),
        ..route("hub")
    };
    let told = |registry: &str| ns(Namespace::Registry(registry.to_owned()));
    let routes = routes(Vec::new());
    for (first, later, taken) in [
        (route("prod"), route("prod"), Some(Taken::All)),
        (route("hub"), told("docker.io"), Some(Taken::All)),
        (route("prod"), route("hub"), Some(Taken::Untold)),
        (route("prod"), of("a/**"), Some(Taken::Untold)),
        (route("prod"), below("a"), Some(Taken::Untold)),
        (route("prod"), at("a.test"), Some(Taken::Untold)),
        (route("prod"), told("quay.io"), None),
        (route("prod"), ns(Namespace::Any), None),
        (at("a.test"), route("hub"), None),
        (at("a.test"), at("hub.test"), None),
        (at("a.test"), at("a.test"), Some(Taken::All)),
        (of("a/**"), route("prod"), None),
        (of("a/**"), of("a/b"), Some(Taken::All)),
        (of("a/**"), below("a"), Some(Taken::All)),
        (of("**"), told("quay.io"), Some(Taken::All)),
        (of("a/b"), of("a/**"), None),
        (below("a"), of("a/**"), None),
        (below("a"), of("a/b/*"), Some(Taken::Untold)),
        (below("a"), below("a/b"), Some(Taken::All)),
        (ns(Namespace::Any), of("a/**"), Some(Taken::All)),
        (told("quay.io"), told("Quay.io"), Some(Taken::All)),
        (told("quay.io"), told("gcr.io"), None),
        (told("quay.io"), route("hub"), None),
    ] {
        assert_eq!(routes.taken(&first, &later), taken, "{first:?} {later:?}");
    }
}

#[test]
fn images_of_another_name_of_ours_are_what_they_are_there_or_nothing() {
    let routes = routes(vec![
        NameRoute {
            domain: Some("hub.test".to_owned()),
            ..route("hub")
        },
        NameRoute {
            repository: Some("base/**".parse().unwrap()),
            ..route("hub")
        },
        route("prod"),
    ]);
    for (domain, ns, repository, expected) in [
        ("hub.test", Some("hub.test"), "team/app", "hub/team/app"),
        (
            "hub.test",
            Some("hub.test:5000"),
            "team/app",
            "hub/team/app",
        ),
        ("hub.test", Some("a.test"), "team/app", "nowhere"),
        ("a.test", Some("HUB.test"), "team/app", "nowhere"),
        ("a.test", Some("hub.test:443"), "base/x", "hub/base/x"),
    ] {
        assert_eq!(
            found(&routes, domain, ns, repository),
            expected,
            "{domain} {ns:?}"
        );
    }
}
