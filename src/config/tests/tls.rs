use super::*;
use crate::tls::Proof;

#[test]
fn several_pairs_are_read_in_their_order() {
    let file = "[server]\ndomains = [\"a.test\"]\n[tls]\ncert = \"a.crt\"\nkey = \"a.key\"\n\
                [[tls.pair]]\ncert = \"b.crt\"\nkey = \"b.key\"\n[[tls.pair]]\ncert = \"c.crt\"\n\
                key = \"c.key\"\n[[upstream]]\nregistry = \"docker.io\"\n";
    let mut scene = Scene::file(file);
    for name in ["a.crt", "a.key", "b.crt", "b.key", "c.crt", "c.key"] {
        scene = scene.beside(name, "");
    }
    let config = scene.load().expect("config");
    let Tls::Files(pairs) = &config.tls else {
        panic!("{:?}", config.tls)
    };
    let name = |path: &Path| path.file_name().map(|name| name.display().to_string());
    let names: Vec<_> = pairs.iter().map(|pair| name(&pair.cert)).collect();
    assert_eq!(
        names,
        ["a.crt", "b.crt", "c.crt"].map(|name| Some(name.to_owned()))
    );
    let shown = format!("{:?}", config.effective());
    assert!(
        shown.contains("a.crt") && shown.contains("c.key"),
        "{shown}"
    );

    let alone = file.replace("cert = \"a.crt\"\nkey = \"a.key\"\n", "");
    let mut scene = Scene::file(&alone);
    for name in ["b.crt", "b.key", "c.crt", "c.key"] {
        scene = scene.beside(name, "");
    }
    let config = scene.load().expect("config");
    assert!(matches!(config.tls, Tls::Files(pairs) if pairs.len() == 2));
}

#[test]
fn every_fault_of_every_pair_is_told() {
    let faults = Scene::file(
        "[server]\ndomains = [\"a.test\"]\n[tls]\ncert = \"a.crt\"\npair = [\n\
         { cert = \"b.crt\", key = \"b.key\" },\n{ key = \"c.key\" },\n{},\n{ crt = \"d\" }]\n\
         [[upstream]]\nregistry = \"docker.io\"\n",
    )
    .beside("a.crt", "")
    .beside("c.key", "")
    .faults();
    let told = faults.join("\n");
    for expected in [
        "tls.key: is missing: tls.cert needs its private key",
        "line 6: tls.pair.cert: cannot read",
        "line 6: tls.pair.key: cannot read",
        "tls.pair.cert: is missing: tls.pair.key needs its certificate chain",
        "tls.pair: is empty: name its cert and key",
        "line 9: tls.pair.crt: unknown key; the nearest known one is tls.pair.cert",
    ] {
        assert!(told.contains(expected), "{expected} in\n{told}");
    }
    let [fault] = &Scene::file("[tls.pair]\ncert = \"a\"\n")
        .flag("upstream.registry", "--upstream", ECR)
        .flag("server.domains", "--domain", "a.test")
        .faults()[..]
    else {
        panic!("one fault")
    };
    assert_eq!(fault, "line 1: tls.pair: is written as [[tls.pair]]");
}

fn with_acme(acme: &str) -> Scene {
    Scene::file(&format!(
        "[server]\ndomains = [\"a.test\", \"b.test\"]\nstate_dir = \"state\"\n\
         [[upstream]]\nregistry = \"docker.io\"\n[tls.acme]\n{acme}"
    ))
}

#[test]
fn a_certificate_may_be_obtained_for_all_domains() {
    let scene = with_acme("directory = \"https://acme.test/dir\"\nemail = \"ops@a.test\"\n");
    let Tls::Acme {
        options,
        http_listen,
    } = scene.load().expect("config").tls
    else {
        panic!("not ACME")
    };
    assert_eq!(options.directory, "https://acme.test/dir");
    assert_eq!(options.domains, ["a.test", "b.test"]);
    assert_eq!(options.proof, Proof::TlsAlpn);
    assert_eq!(options.email.as_deref(), Some("ops@a.test"));
    assert!(options.state_dir.ends_with("state"));
    assert_eq!(http_listen, None);
    for (further, at) in [
        ("", "[::]:80"),
        (
            "http_listen = \"http://127.0.0.1:8080\"\n",
            "127.0.0.1:8080",
        ),
    ] {
        let acme =
            format!("directory = \"https://acme.test/dir\"\nchallenge = \"http-01\"\n{further}");
        let Tls::Acme { http_listen, .. } = with_acme(&acme).load().expect("config").tls else {
            panic!("not ACME")
        };
        assert_eq!(http_listen.map(|at| at.to_string()).as_deref(), Some(at));
    }
}

#[test]
fn faults_of_acme_name_their_keys() {
    let whole = "directory = \"https://acme.test/dir\"\n";
    for (acme, expected) in [
        ("email = \"ops@a.test\"", "tls.acme.directory: is missing"),
        (
            "directory = \"http://acme.test/dir\"",
            "line 7: tls.acme.directory: \"http://acme.test/dir\" is not an https:// URL",
        ),
        (
            "directory = \"letsencrypt\"",
            "line 7: tls.acme.directory: \"letsencrypt\" is not an https:// URL",
        ),
        (
            &format!("{whole}challenge = \"dns-01\""),
            "line 8: tls.acme.challenge: \"dns-01\" is neither \"tls-alpn-01\" nor \"http-01\"",
        ),
        (
            &format!("{whole}http_listen = \"http://[::]:80\""),
            "tls.acme.http_listen: belongs to challenge = \"http-01\" only",
        ),
        (
            &format!("{whole}challenge = \"http-01\"\nhttp_listen = \"https://[::]:80\""),
            "line 9: tls.acme.http_listen: \"https://[::]:80\" is not http://",
        ),
        (
            &format!("{whole}email = \"nobody\""),
            "line 8: tls.acme.email: \"nobody\" is not an address",
        ),
        (
            &format!("{whole}eab_kid = \"kid-1\""),
            "tls.acme.eab_key_file: is missing: tls.acme.eab_kid needs its key",
        ),
        (
            &format!("{whole}eab_kid = \"kid 1\"\neab_key_file = \"none.key\""),
            "line 8: tls.acme.eab_kid: \"kid 1\" is no identifier of an account",
        ),
        (
            &format!("{whole}eab_kid = \"kid-1\"\neab_key_file = \"none.key\""),
            "line 9: tls.acme.eab_key_file: cannot read",
        ),
        (
            &format!("{whole}ca = \"none.pem\""),
            "line 8: tls.acme.ca: cannot read",
        ),
        (
            &format!("{whole}mail = \"x\""),
            "line 8: tls.acme.mail: unknown key; the nearest known one is tls.acme.email",
        ),
        (
            &format!("{whole}[tls]\ncert = \"a.pem\"\nkey = \"a.pem\""),
            "tls.acme.directory: is set beside tls.cert",
        ),
    ] {
        let told = with_acme(acme).beside("a.pem", "").faults().join("\n");
        assert!(told.contains(expected), "{expected} in\n{told}");
    }
    let acme = "[tls.acme]\ndirectory = \"https://acme.test/dir\"\n[[upstream]]\nregistry = \"docker.io\"\n";
    for (server, expected) in [
        (
            "listen = [\"https://127.0.0.1:443\"]",
            "server.domains: is missing: tls.acme obtains a certificate for them",
        ),
        (
            "domains = [\"a.test\", \"192.0.2.1\"]",
            "server.domains: 192.0.2.1 is an address: tls.acme is for names",
        ),
        (
            "domains = [\"a.test\"]\nlisten = [\"http://[::]:80\"]",
            "tls.acme.directory: has no use: no listener speaks TLS",
        ),
    ] {
        let scene = Scene::file(&format!("[server]\n{server}\n{acme}"));
        let told = scene.faults().join("\n");
        assert!(told.contains(expected), "{expected} in\n{told}");
    }
}

#[test]
fn a_certificate_without_its_key_is_a_fault() {
    let scene = flags_of_the_first_example().beside("tls.crt", "");
    let folder = scene
        .file
        .as_deref()
        .and_then(Path::parent)
        .expect("folder");
    let cert = folder.join("tls.crt").display().to_string();
    let faults = scene.flag("tls.cert", "--tls-cert", &cert).faults();
    assert_eq!(faults.len(), 1);
    assert!(faults[0].starts_with("tls.key: is missing"), "{faults:?}");
}

#[test]
fn a_certificate_that_no_listener_shows_warns() {
    let warnings = |listen: &str| {
        let file = format!(
            "[server]\ndomains = [\"a.test\"]\nlisten = [\"{listen}\"]\n[tls]\ncert = \"a.crt\"\nkey = \"a.key\"\n\
             [access]\nanonymous = \"pull\"\n[[upstream]]\nregistry = \"docker.io\"\nauth = \"anonymous\"\n"
        );
        let scene = Scene::file(&file).beside("a.crt", "").beside("a.key", "");
        scene.load().expect("config").warnings
    };
    assert_eq!(warnings("https://[::]:443"), [""; 0]);
    let told = warnings("http://[::]:443");
    assert!(
        told.iter()
            .any(|it| it.starts_with("tls.cert: is of no use")),
        "{told:?}"
    );
}
