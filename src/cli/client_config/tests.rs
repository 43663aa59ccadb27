use std::collections::BTreeMap;

use super::*;
use crate::config::{Flags, Sources};

const PROD: &str = "000042290000.dkr.ecr.us-west-2.amazonaws.com";

fn config(text: &str) -> Config {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.toml");
    fs::write(&file, text).expect("a file");
    Config::load(Sources {
        file: Some(&file),
        environment: &BTreeMap::new(),
        flags: Flags::default(),
        files: Files::Ignored,
    })
    .expect("a configuration")
}

/// Two domains: one for users, with the base images under `hub/`; one that is Docker Hub's for anybody.
fn teams() -> Config {
    config(&format!(
        r#"
        [server]
        domains = ["registry.mydomain.com", "hub.mydomain.com"]
        [[access.rule]]
        users = ["@anonymous"]
        actions = ["pull"]
        domains = ["hub.mydomain.com"]
        [[access.rule]]
        users = ["*"]
        actions = ["pull"]
        domains = ["registry.mydomain.com"]
        [[upstream]]
        name = "prod"
        registry = "{PROD}"
        [[upstream]]
        name = "hub"
        registry = "docker.io"
        auth = "anonymous"
        [[route]]
        domain = "hub.mydomain.com"
        upstream = "hub"
        [[route]]
        repository = "hub/**"
        upstream = "hub"
        strip_prefix = "hub/"
        [[route]]
        domain = "registry.mydomain.com"
        upstream = "prod"
        [[route]]
        ns = "quay.io"
        upstream = "prod"
        add_prefix = "quay"
        "#
    ))
}

fn printed(kind: Kind, config: &Config) -> String {
    text(kind, config, Some("PEM\n")).expect("a script")
}

/// The file that the script writes to this path.
fn file<'a>(script: &'a str, path: &str) -> &'a str {
    let at = format!("{path} <<'END'\n");
    let tee = format!("{path} > /dev/null <<'END'\n");
    let after = script
        .split_once(&at)
        .or_else(|| script.split_once(&tee))
        .unwrap_or_else(|| panic!("no {path} in {script}"))
        .1;
    after.split_once("END\n").expect("an end").0
}

fn toml(text: &str) -> toml::Table {
    text.parse().unwrap_or_else(|why| panic!("{why} in {text}"))
}

#[test]
fn dockerd_is_given_the_domain_that_is_docker_hub_and_asks_for_no_password() {
    let script = printed(Kind::DockerMirror, &teams());
    let json: serde_json::Value =
        serde_json::from_str(file(&script, "/etc/docker/daemon.json")).expect("JSON");
    assert_eq!(
        json["registry-mirrors"],
        serde_json::json!(["https://hub.mydomain.com/"])
    );
    assert!(script.contains("/etc/docker/certs.d/hub.mydomain.com/ca.crt"));
    assert!(!script.contains("registry.mydomain.com/ca.crt"), "{script}");
}

#[test]
fn dockerd_is_not_given_a_mirror_that_does_not_work() {
    let refusal = |upstream: &str, routes: &str, access: &str| {
        let config = config(&format!(
            "[server]\ndomains = ['hub.test']\n{access}\n[[upstream]]\nname = 'one'\nregistry = '{upstream}'\n{routes}"
        ));
        match text(Kind::DockerMirror, &config, None) {
            Ok(script) => panic!("{script}"),
            Err(why) => why.to_string(),
        }
    };
    let open = "[access]\nanonymous = 'pull'";
    let why = refusal("docker.io", "", "");
    assert!(
        why.contains("hub.test") && why.contains("access.anonymous"),
        "{why}"
    );
    // It is anybody's, and not Docker Hub.
    let other = format!(
        "[[access.rule]]\nusers = ['@anonymous']\nactions = ['pull']\nupstreams = ['two']\n\
         [[upstream]]\nname = 'two'\nregistry = '{PROD}'"
    );
    let first = "[[route]]\nupstream = 'one'";
    assert!(refusal("docker.io", first, &other).contains("asks for a password"));
    let why = refusal(PROD, "", open);
    assert!(why.contains("registry = \"docker.io\""), "{why}");
    // This route takes names whatever registry they are of, and is not Docker Hub.
    let any = "[[route]]\nrepository = '**'\nupstream = 'one'";
    assert!(refusal(PROD, any, open).contains("docker.io"));
    // Nor does what dockerd asks for begin so.
    let below = "[[route]]\nrepository = 'hub/**'\nstrip_prefix = 'hub'\nupstream = 'one'";
    assert!(refusal("docker.io", below, open).contains("at its root"));
}

#[test]
fn a_pull_through_cache_of_docker_hub_is_a_mirror_where_the_route_says_so() {
    let config = config(&format!(
        "[server]\ndomains = ['hub.test']\n[access]\nanonymous = 'pull'\n\
         [[upstream]]\nname = 'one'\nregistry = '{PROD}'\n\
         [[route]]\nns = '*'\nupstream = 'one'\nadd_prefix = 'docker-hub'\n"
    ));
    assert!(printed(Kind::DockerMirror, &config).contains("https://hub.test/"));
}

#[test]
fn containerd_has_a_file_for_each_registry_that_ns_leads_to() {
    let script = printed(Kind::Containerd, &teams());
    for (registry, server, host) in [
        (
            "registry.mydomain.com",
            "https://registry.mydomain.com",
            "https://registry.mydomain.com",
        ),
        (
            "hub.mydomain.com",
            "https://hub.mydomain.com",
            "https://hub.mydomain.com",
        ),
        (
            "docker.io",
            "https://registry-1.docker.io",
            "https://hub.mydomain.com",
        ),
        (PROD, &format!("https://{PROD}"), "https://hub.mydomain.com"),
        ("quay.io", "https://quay.io", "https://hub.mydomain.com"),
    ] {
        let file = file(
            &script,
            &format!("/etc/containerd/certs.d/{registry}/hosts.toml"),
        );
        let file = toml(file);
        assert_eq!(file["server"].as_str(), Some(server), "{registry}");
        // What is mirrored is pushed to where it is from.
        let capabilities = file["host"][host]["capabilities"].as_array();
        let pushes =
            capabilities.is_some_and(|all| all.iter().any(|it| it.as_str() == Some("push")));
        assert_eq!(pushes, server == host, "{registry}");
        let ca = file["host"][host]["ca"].as_str();
        let name = host.trim_start_matches("https://");
        assert_eq!(ca, Some(&*format!("/etc/containerd/certs.d/{name}/ca.crt")));
    }
    assert!(
        script.contains("nerdctl login registry.mydomain.com\n"),
        "{script}"
    );
    assert!(!script.contains("nerdctl login hub"), "{script}");
}

#[test]
fn a_mirror_that_asks_for_a_password_tells_where_containerd_has_it() {
    let config = config(&format!(
        "[server]\ndomains = ['a.test']\n[[upstream]]\nname = 'one'\nregistry = '{PROD}'\n"
    ));
    let script = printed(Kind::Containerd, &config);
    assert!(
        script.contains("[host.\"https://a.test\".header]"),
        "{script}"
    );
}

#[test]
fn a_registry_whose_names_are_taken_elsewhere_is_not_mirrored() {
    let config = config(&format!(
        "[server]\ndomains = ['a.test']\n[[upstream]]\nname = 'prod'\nregistry = '{PROD}'\n\
         [[upstream]]\nname = 'hub'\nregistry = 'docker.io'\nauth = 'anonymous'\n\
         [[route]]\nrepository = '**'\nupstream = 'prod'\n"
    ));
    let script = printed(Kind::Containerd, &config);
    assert!(
        script.contains(&format!("certs.d/{PROD}/hosts.toml")),
        "{script}"
    );
    assert!(!script.contains("docker.io"), "{script}");
}

#[test]
fn a_host_where_anybody_may_pull_some_repositories_is_not_preferred() {
    let mirror = |limit: &str| {
        let config = config(&format!(
            "[server]\ndomains = ['open.test', 'users.test']\n\
             [[access.rule]]\nusers = ['@anonymous']\nactions = ['pull']\ndomains = ['open.test']\n{limit}\n\
             [[access.rule]]\nusers = ['*']\nactions = ['pull']\ndomains = ['users.test']\n\
             [[upstream]]\nname = 'one'\nregistry = '{PROD}'\n"
        ));
        let script = printed(Kind::Buildkit, &config);
        let conf = toml(file(&script, "/etc/buildkit/buildkitd.toml"));
        let host = conf["registry"][PROD]["mirrors"][0].as_str();
        host.expect("a mirror").to_owned()
    };
    assert_eq!(mirror(""), "open.test");
    assert_eq!(mirror("repositories = ['base/**']"), "users.test");
    assert_eq!(mirror("upstreams = ['one']"), "open.test");
    assert_eq!(
        mirror("upstreams = ['hub']\n[[upstream]]\nname = 'hub'\nregistry = 'docker.io'"),
        "users.test"
    );
}

/// One upstream for images of any registry, and a route before it for some of these.
fn any_registry(first: &str, any: &str) -> Config {
    config(&format!(
        "[server]\ndomains = ['a.test']\n[access]\nanonymous = 'pull'\n\
         [[upstream]]\nname = 'one'\nregistry = '{PROD}'\n\
         [[upstream]]\nname = 'hub'\nregistry = 'docker.io'\nauth = 'anonymous'\n\
         {first}\n[[route]]\nns = '*'\nupstream = 'one'\n{any}\n"
    ))
}

/// The lines behind this one, up to the next that is none of these, without their marks.
fn unmarked(script: &str, behind: &str, mark: &str) -> String {
    let (_, lines) = script
        .split_once(behind)
        .unwrap_or_else(|| panic!("no {behind:?} in {script}"));
    let lines = lines.lines().skip(1);
    let lines = lines.map_while(|line| line.strip_prefix(mark));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn where_a_route_is_for_any_registry_a_default_stands_in_comments_for_clients_that_have_one() {
    let any = any_registry("[[route]]\nns = 'docker.io'\nupstream = 'hub'", "");
    let script = printed(Kind::Containerd, &any);
    let lines = unmarked(&script, "take the marks from these lines", "#   ");
    let others = toml(file(&lines, "/etc/containerd/certs.d/_default/hosts.toml"));
    // What is not had here is asked of each image's own registry.
    assert_eq!(others.get("server"), None, "{script}");
    let ca = others["host"]["https://a.test"]["ca"].as_str();
    assert_eq!(ca, Some("/etc/containerd/certs.d/a.test/ca.crt"));
    let docker_io = "/etc/containerd/certs.d/docker.io/hosts.toml";
    let server = &toml(file(&script, docker_io))["server"];
    assert_eq!(server.as_str(), Some("https://registry-1.docker.io"));

    let script = printed(Kind::K3s, &any);
    let yaml = file(&script, "/etc/rancher/k3s/registries.yaml");
    let others = unmarked(yaml, "take the marks from these lines", "# ");
    assert_eq!(
        others,
        "  \"*\":\n    endpoint:\n      - \"https://a.test\"\n"
    );

    for kind in [Kind::Docker, Kind::Podman, Kind::Buildkit] {
        let script = printed(kind, &any);
        assert!(script.contains("[[route]] with ns = \"*\""), "{script}");
    }
    // Nothing that is run is about any registry.
    for kind in [
        Kind::Docker,
        Kind::Containerd,
        Kind::Kubernetes,
        Kind::Podman,
        Kind::Buildkit,
        Kind::K3s,
    ] {
        let script = printed(kind, &any);
        let mut run = script
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'));
        assert!(
            run.all(|line| !line.contains("_default") && !line.contains("\"*\"")),
            "{script}"
        );
    }
    for kind in [Kind::Containerd, Kind::Docker, Kind::K3s] {
        let without = printed(kind, &teams());
        assert!(
            !without.contains("_default") && !without.contains("ns = \"*\""),
            "{without}"
        );
    }
}

#[test]
fn of_any_registry_it_is_told_which_routes_are_about_some_of_its_names() {
    let default = |config: &Config| {
        let script = printed(Kind::Containerd, config);
        let (_, behind) = script
            .split_once("take the marks from these lines")
            .expect("a file for any");
        behind
            .split_once("#   sudo mkdir")
            .expect("lines")
            .0
            .to_owned()
    };
    let some = default(&any_registry("", "repository = 'team/**'"));
    assert!(some.contains("# Only by [[route]]"), "{some}");
    let all = default(&any_registry("", ""));
    assert!(!all.contains("[[route]]"), "{all}");
    for narrower in ["repository = 'base/**'", "strip_prefix = 'base'"] {
        let first = format!("[[route]]\nns = '*'\n{narrower}\nupstream = 'hub'");
        let but = default(&any_registry(&first, ""));
        assert!(
            but.contains("# But what [[route]]") && but.contains("base"),
            "{but}"
        );
    }
}

#[test]
fn a_registry_is_mirrored_where_all_of_it_is_led_and_no_later_route_takes_of_it() {
    let config = config(&format!(
        "[server]\ndomains = ['a.test', 'b.test']\n\
         [[upstream]]\nname = 'one'\nregistry = '{PROD}'\n\
         [[route]]\ndomain = 'b.test'\nns = 'quay.io'\nupstream = 'one'\n\
         [[route]]\nns = '*'\nrepository = 'team/**'\nupstream = 'one'\n"
    ));
    let script = printed(Kind::Containerd, &config);
    let hosts = toml(file(&script, "/etc/containerd/certs.d/quay.io/hosts.toml"));
    let hosts = hosts["host"].as_table().expect("hosts");
    assert_eq!(hosts.keys().collect::<Vec<_>>(), ["https://b.test"]);
    let (_, quay) = script.split_once("# Images of quay.io").expect("a file");
    let (remarks, _) = quay.split_once("sudo").expect("lines");
    assert!(!remarks.contains("[[route]]"), "{remarks}");
}

#[test]
fn podman_is_given_the_prefix_under_which_a_registry_is() {
    let script = printed(Kind::Podman, &teams());
    let path = "/etc/containers/registries.conf.d/ecr-proxy.conf";
    let conf = toml(file(&script, path));
    let mirrors: Vec<(&str, &str)> = conf["registry"]
        .as_array()
        .expect("registries")
        .iter()
        .map(|registry| {
            let location = registry["mirror"][0]["location"].as_str();
            (
                registry["prefix"].as_str().expect("a prefix"),
                location.expect("a mirror"),
            )
        })
        .collect();
    assert_eq!(
        mirrors,
        [
            (PROD, "registry.mydomain.com"),
            // Where nobody has to log in.
            ("docker.io", "hub.mydomain.com"),
            ("quay.io", "registry.mydomain.com/quay"),
        ]
    );
}

#[test]
fn buildkit_and_k3s_have_mirrors_and_trust_in_one_file() {
    let teams = teams();
    let script = printed(Kind::Buildkit, &teams);
    let conf = toml(file(&script, "/etc/buildkit/buildkitd.toml"));
    let registries = &conf["registry"];
    assert_eq!(
        registries["docker.io"]["mirrors"][0].as_str(),
        Some("hub.mydomain.com")
    );
    let ca = registries["hub.mydomain.com"]["ca"][0]
        .as_str()
        .expect("a CA");
    assert_eq!(file(&script, ca), "PEM\n");

    let script = printed(Kind::K3s, &teams);
    let yaml = file(&script, "/etc/rancher/k3s/registries.yaml");
    let mirror = "mirrors:\n";
    assert!(yaml.contains(mirror), "{yaml}");
    let hub = "  \"docker.io\":\n    endpoint:\n      - \"https://hub.mydomain.com\"\n";
    assert!(yaml.contains(hub), "{yaml}");
    let own = "configs:\n  \"registry.mydomain.com\":\n    tls:\n      ca_file: \"/etc/rancher/k3s/certs.d/registry.mydomain.com/ca.crt\"\n    auth:\n";
    assert!(yaml.contains(own), "{yaml}");
}

#[test]
fn kubernetes_has_a_secret_for_each_host_that_asks() {
    let script = printed(Kind::Kubernetes, &teams());
    let secret = "kubectl create secret docker-registry ecr-proxy-registry.mydomain.com --docker-server=registry.mydomain.com";
    assert!(script.contains(secret), "{script}");
    assert!(!script.contains("--docker-server=hub"), "{script}");
    assert!(script.contains("/etc/containerd/certs.d/docker.io/hosts.toml"));
}

#[test]
fn nothing_that_is_run_asks_for_anything_or_holds_a_place_for_a_name() {
    for access in [
        "",
        "[access]\naws_tokens = true",
        "[access]\nusers = 'users'\naws_tokens = true",
    ] {
        let config = config(&format!(
            "[server]\ndomains = ['a.test', 'b.test']\n{access}\n[[upstream]]\nname = 'one'\nregistry = '{PROD}'\n"
        ));
        for kind in [
            Kind::Docker,
            Kind::Containerd,
            Kind::Podman,
            Kind::Buildkit,
            Kind::Kubernetes,
            Kind::K3s,
            Kind::Helm,
        ] {
            let script = printed(kind, &config);
            let commands = script
                .lines()
                .filter(|line| !line.trim_start().starts_with('#'));
            for line in commands {
                let asks = [" login ", "sudoedit", "kubectl", "aws "];
                assert!(
                    !asks.iter().any(|word| line.contains(word)),
                    "{line} in {script}"
                );
            }
        }
    }
}

#[test]
fn helm_is_told_of_the_ca_in_every_command() {
    let script = printed(Kind::Helm, &teams());
    let ca = "--ca-file /usr/local/share/ecr-proxy/registry.mydomain.com/ca.crt";
    for line in [
        format!("helm registry login {ca} registry.mydomain.com\n"),
        format!("helm pull oci://registry.mydomain.com/REPOSITORY --version VERSION {ca}\n"),
    ] {
        assert!(script.contains(&line), "{line} in {script}");
    }
}

#[test]
fn where_a_certificate_may_stand_for_a_login_each_client_is_told_where_it_goes() {
    let config = |access: &str| {
        config(&format!(
            "[server]\ndomains = ['a.test']\n[tls]\nclient_ca = 'clients.pem'\n{access}\n\
             [[upstream]]\nname = 'one'\nregistry = '{PROD}'\n"
        ))
    };
    let known = config("[[access.rule]]\nusers = ['node']\nactions = ['pull']");
    for (kind, folder) in [
        (Kind::Docker, "/etc/docker/certs.d"),
        (Kind::Containerd, "/etc/containerd/certs.d"),
        (Kind::Podman, "/etc/containers/certs.d"),
        (Kind::Buildkit, "/etc/buildkit/certs.d"),
        (Kind::Kubernetes, "/etc/containerd/certs.d"),
        (Kind::K3s, "/etc/rancher/k3s/certs.d"),
        (Kind::Helm, "/usr/local/share/ecr-proxy"),
    ] {
        let script = printed(kind, &known);
        let copied = format!("sudo cp client.cert client.key {folder}/a.test/\n");
        assert!(script.contains(&copied), "{script}");
        // Nobody has a password.
        for word in [" login a.test", "Basic BASE64", "PASSWORD"] {
            assert!(!script.contains(word), "{word} in {script}");
        }
        // Where nobody is asked, nobody has to tell.
        let open = printed(kind, &config("[access]\nanonymous = 'pull'"));
        assert!(!open.contains("client.cert"), "{open}");
    }
    let toml_of = |script: &str| {
        let conf = file(script, "/etc/buildkit/buildkitd.toml");
        let lines = conf.lines().map(|line| line.replacen("# ", "", 1) + "\n");
        toml(&lines.collect::<String>())
    };
    let pair = &toml_of(&printed(Kind::Buildkit, &known))["registry"]["a.test"]["keypair"][0];
    assert_eq!(
        (pair["cert"].as_str(), pair["key"].as_str()),
        (
            Some("/etc/buildkit/certs.d/a.test/client.cert"),
            Some("/etc/buildkit/certs.d/a.test/client.key")
        )
    );
}

/// The first block of configuration below this heading of the README.
fn in_readme(heading: &str) -> &'static str {
    const README: &str = include_str!("../../../README.md");
    let after = README.split_once(heading).expect(heading).1;
    let block = after.split_once("```toml\n").expect("a block").1;
    block.split_once("```").expect("its end").0
}

/// What the README says to write for mirrors.
fn readme() -> Config {
    let upstreams = in_readme("\n### Several registries\n");
    let upstreams = upstreams.split_once("[[route]]").expect("routes").0;
    config(&format!("{}\n{upstreams}", in_readme("\n### Mirrors\n")))
}

#[test]
fn what_the_readme_says_of_several_registries_has_each_by_its_own_name_too() {
    let routes = in_readme("\n### Several registries\n");
    let readme = config(&format!("[server]\ndomains = ['a.test']\n{routes}"));
    let script = printed(Kind::Podman, &readme);
    let conf = toml(file(
        &script,
        "/etc/containers/registries.conf.d/ecr-proxy.conf",
    ));
    for (number, registry, location) in [(0, PROD, "a.test"), (1, "docker.io", "a.test/base")] {
        let told = &conf["registry"][number];
        assert_eq!(told["prefix"].as_str(), Some(registry));
        assert_eq!(told["mirror"][0]["location"].as_str(), Some(location));
    }
}

#[test]
fn what_the_readme_says_of_mirrors_makes_all_of_them() {
    let readme = readme();
    assert_eq!(readme.warnings, [""; 0]);
    let docker = printed(Kind::DockerMirror, &readme);
    assert!(
        docker.contains("[\"https://hub.mydomain.com/\"]"),
        "{docker}"
    );
    let podman = printed(Kind::Podman, &readme);
    let conf = toml(file(
        &podman,
        "/etc/containers/registries.conf.d/ecr-proxy.conf",
    ));
    for (number, registry, location) in [
        (0, PROD, "registry.mydomain.com"),
        (1, "docker.io", "hub.mydomain.com"),
    ] {
        let told = &conf["registry"][number];
        assert_eq!(told["prefix"].as_str(), Some(registry));
        assert_eq!(told["mirror"][0]["location"].as_str(), Some(location));
    }
    for (kind, root) in [(Kind::Containerd, "containerd"), (Kind::Docker, "docker")] {
        let script = printed(kind, &readme);
        for (registry, host) in [
            (PROD, "https://registry.mydomain.com"),
            ("docker.io", "https://hub.mydomain.com"),
        ] {
            let path = format!("/etc/{root}/certs.d/{registry}/hosts.toml");
            let hosts = toml(file(&script, &path));
            let told = hosts["host"].as_table().expect("hosts");
            assert_eq!(told.keys().collect::<Vec<_>>(), [host]);
        }
    }
}

#[test]
fn no_name_is_in_a_file_twice() {
    for more in [
        // The proxy takes the place of a registry that is reached by its address now.
        "domains = ['docker.corp']\nlisten = ['https://[::]:443']\n[[upstream]]\nregistry = 'docker.corp'\n\
         endpoint = 'https://10.0.0.5'\nauth = 'anonymous'\n",
        "domains = ['docker.corp']\nlisten = ['http://[::]:80']\n[[upstream]]\nregistry = 'docker.corp'\n\
         endpoint = 'https://10.0.0.5'\nauth = 'anonymous'\n",
        "domains = ['docker.corp']\nlisten = ['https://[::]:5000']\n[[upstream]]\nregistry = 'docker.corp:5000'\n\
         endpoint = 'https://10.0.0.5:5000'\nauth = 'anonymous'\n",
        "domains = ['a.test', 'docker.corp', 'A.test', 'docker.corp']\n[[upstream]]\nregistry = 'b.test'\n\
         auth = 'anonymous'\n",
    ] {
        let config = config(&format!("[access]\nanonymous = 'pull'\n[server]\n{more}"));
        let script = printed(Kind::Buildkit, &config);
        let conf = toml(file(&script, "/etc/buildkit/buildkitd.toml"));
        let registries = conf["registry"].as_table().expect("a table");
        let mut names = registries.keys();
        assert!(
            names.any(|name| name.starts_with("docker.corp")),
            "{script}"
        );
        let podman = printed(Kind::Podman, &config);
        let locations = podman.lines().filter(|line| line.starts_with("location"));
        let of_it = locations.filter(|line| line.contains("docker.corp"));
        assert!(of_it.count() <= 1, "{podman}");
    }
}

#[test]
fn a_registry_whose_own_names_a_route_changes_is_mirrored_with_a_word_of_it() {
    let config = |route: &str| {
        config(&format!(
            "[server]\ndomains = ['a.test']\n[[upstream]]\nname = 'prod'\nregistry = '{PROD}'\n\
             {route}\n[[route]]\nupstream = 'prod'\n"
        ))
    };
    let renaming =
        config("[[route]]\nrepository = 'legacy/**'\nupstream = 'prod'\nstrip_prefix = 'legacy/'");
    let script = printed(Kind::Containerd, &renaming);
    assert!(
        script.contains("# But what [[route]]") && script.contains("legacy"),
        "{script}"
    );
    let any = config("[[route]]\nupstream = 'prod'\nstrip_prefix = 'legacy/'");
    let script = printed(Kind::Containerd, &any);
    assert!(
        script.contains("# But what [[route]]") && script.contains("legacy"),
        "{script}"
    );
    let same = config("[[route]]\nrepository = 'legacy/**'\nupstream = 'prod'");
    let script = printed(Kind::Containerd, &same);
    assert!(!script.contains("# But"), "{script}");
}

#[test]
fn clients_are_told_where_they_can_reach_us() {
    let listen = |listen: &str, more: &str| {
        let config = config(&format!(
            "[server]\ndomains = ['a.test']\nlisten = [{listen}]\n{more}\n[access]\nanonymous = 'pull'\n\
             [[upstream]]\nregistry = '{PROD}'\n"
        ));
        let hosts = clients::hosts(&config, &config.server.listen);
        hosts.first().expect("a domain").url()
    };
    for (addresses, url) in [
        (
            "'http://127.0.0.1:5000', 'http://10.0.0.1:80'",
            "http://a.test",
        ),
        (
            "'https://127.0.0.1:8443', 'https://[::]:443'",
            "https://a.test",
        ),
        (
            "'http://10.0.0.1:80', 'https://[::]:8443'",
            "https://a.test:8443",
        ),
        ("'https://127.0.0.1:8443'", "https://a.test:8443"),
    ] {
        assert_eq!(listen(addresses, ""), url, "{addresses}");
    }
    let behind = "trusted_proxies = ['10.0.0.0/8']";
    assert_eq!(listen("'http://0.0.0.0:8080'", behind), "https://a.test");
    assert_eq!(listen("'http://0.0.0.0:8080'", ""), "http://a.test:8080");
}

#[test]
fn no_network_of_any_rule_is_left_out_where_no_login_is_needed() {
    let script = |first: &str, second: &str| {
        let rule = |more: &str| {
            format!("[[access.rule]]\nusers = ['@anonymous']\nactions = ['pull']\n{more}\n")
        };
        let config = config(&format!(
            "[server]\ndomains = ['a.test']\n{}{}[[upstream]]\nregistry = '{PROD}'\n",
            rule(first),
            rule(second)
        ));
        printed(Kind::Docker, &config)
    };
    let local = "repositories = ['base/**']\nnetworks = ['loopback']";
    assert!(script(local, "").contains("# No login is needed at a.test.\n"));
    let both = script(local, "networks = ['10.0.0.0/8', 'loopback']");
    assert!(
        both.contains("at a.test from: loopback, 10.0.0.0/8."),
        "{both}"
    );
}
