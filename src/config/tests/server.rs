use super::*;

#[test]
fn the_admin_socket_is_a_path_or_off() {
    let socket = |value: &str| {
        let scene = flags_of_the_first_example();
        scene.flag("server.admin_socket", "--admin-socket", value)
    };
    let config = socket("run/admin.sock").load().expect("config");
    let named = config.server.admin_socket.expect("a socket");
    assert_eq!(named.path, Path::new("run/admin.sock"));
    assert!(named.is_required);
    assert_eq!(
        socket("off").load().expect("config").server.admin_socket,
        None
    );
    for wrong in ["", "..", "/", &format!("/{}", "a".repeat(100))] {
        let faults = socket(wrong).faults();
        assert_eq!(faults.len(), 1, "{wrong}: {faults:?}");
        assert!(faults[0].contains("admin_socket"), "{faults:?}");
    }
}

#[test]
fn loopback_listeners_do_without_domains_and_plain_ones_without_tls() {
    let config = Scene::flags(&[
        ("upstream.registry", "--upstream", "127.0.0.1:5000"),
        ("server.listen", "--listen", "http://127.0.0.1:0"),
    ])
    .load()
    .expect("config");
    assert_eq!(config.tls, Tls::Off);
    assert_eq!(config.upstreams[0].auth, Auth::Anonymous);
    assert_eq!(config.upstreams[0].name, "127.0.0.1_5000");
}
