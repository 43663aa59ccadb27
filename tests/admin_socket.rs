//! The admin socket is its owner's alone, outlives no process to anybody's harm, and is the only door
//! through which anything is changed.

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, kill_process};
use support::blobs::simulator;
use support::{Answer, Client, Connection, Ended, Proxy, program, within};
use tokio::net::UnixStream;

const OPERATIONS: &str = "/api/v1/operations";

async fn connect(socket: &Path) -> Connection {
    let stream = within("connect", UnixStream::connect(socket)).await;
    Connection::over(stream.expect("somebody listens"))
}

/// Sends a body to the socket and reads the answer.
async fn post(socket: &Path, body: &str) -> Answer {
    let mut connection = connect(socket).await;
    let head = format!(
        "POST {OPERATIONS} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.send(head).await.expect("sent");
    connection.answer("POST").await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_its_owners_alone_and_goes_with_the_proxy() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let socket = proxy.admin_socket();
    let metadata = fs::metadata(&socket).expect("a socket");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.mode() & 0o777, 0o600);
    let told = post(&socket, "{\"operation\":\"stats\"}").await;
    assert_eq!(told.status, 200, "{}", told.text());
    assert!(
        told.text().ends_with("{\"event\":\"end\"}\n"),
        "{}",
        told.text()
    );
    proxy.terminate();
    assert!(proxy.wait().success());
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_of_a_killed_proxy_is_replaced_and_a_live_one_is_not() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let socket = proxy.admin_socket();
    proxy.kill9();
    assert!(socket.exists(), "there is nothing to replace");
    proxy.restart();
    assert_eq!(post(&socket, "{\"operation\":\"stats\"}").await.status, 200);

    let mut other = Proxy::builder().simulator(&simulator).start();
    other.set("server.admin_socket", socket.to_str().expect("UTF-8"));
    other.kill9();
    let refused = other.run(["serve"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("server.admin_socket"),
        "{refused:?}"
    );
    assert!(refused.stderr.contains("in use"), "{refused:?}");
    assert_eq!(post(&socket, "{\"operation\":\"stats\"}").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_its_place_is_left_alone() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    proxy.kill9();
    let file = proxy.dir().join("precious");
    fs::write(&file, "text").expect("a file");
    proxy.set("server.admin_socket", "precious");
    let refused = proxy.run(["serve"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("not a socket"), "{refused:?}");
    assert_eq!(fs::read_to_string(&file).expect("the file"), "text");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_default_place_cannot_be_had_the_proxy_does_without() {
    let simulator = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .unset("server.admin_socket")
        .mount("mount -t tmpfs -o ro tmpfs /run")
        .start();
    let warned = |event: &support::Event| event.message().contains("no admin socket");
    let event = proxy.log_until("a warning", warned).await;
    assert_eq!(event.level(), "WARN");
    assert_eq!(proxy.client().get("/v2/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_changed_through_the_admin_listener() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    for method in ["POST", "PUT", "DELETE", "PATCH", "GET"] {
        let mut connection = Connection::plain(proxy.admin()).await;
        let body = "{\"operation\":\"stats\"}";
        let head = format!(
            "{method} {OPERATIONS} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.send(head).await.expect("sent");
        let answer = connection.answer(method).await.expect("an answer");
        assert!(
            matches!(answer.status, 404 | 405),
            "{method}: {}",
            answer.status
        );
        assert!(!answer.text().contains("event"), "{}", answer.text());
    }
    let answer = Client::operator(proxy.admin())
        .ask("POST", "/metrics", &[])
        .await;
    assert_eq!(answer.status, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_refused_and_the_socket_goes_on() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    let socket = proxy.admin_socket();
    for body in [
        "",
        "\n",
        "{",
        "[]\n",
        "{\"operation\":\"format\"}\n",
        "\u{0}\n",
        "{\"operation\":[]}\n",
        // What it does not understand may have been meant to hold it back.
        "{\"operation\":\"remove\",\"images\":[],\"dry-run\":true}\n",
        "{\"operation\":\"warm\",\"images\":[],\"referrers\":true,\"tags\":1}\n",
    ] {
        let answer = post(&socket, body).await;
        assert_eq!(answer.status, 400, "{body:?}: {}", answer.text());
    }
    let mut connection = connect(&socket).await;
    connection
        .send("\u{16}\u{3}\u{1} garbage\r\n\r\n")
        .await
        .expect("sent");
    let _cut = connection.answer("GET").await;
    // One that says nothing holds nobody up, and one that leaves in the middle neither.
    let _silent = connect(&socket).await;
    let mut leaving = connect(&socket).await;
    let head = format!("POST {OPERATIONS} HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{{");
    leaving.send(head).await.expect("sent");
    drop(leaving);
    let wrong_method = {
        let mut connection = connect(&socket).await;
        connection
            .request("GET", OPERATIONS, &[])
            .await
            .expect("sent");
        connection.answer("GET").await.expect("an answer")
    };
    assert_eq!(wrong_method.status, 405);
    let pages = {
        let mut connection = connect(&socket).await;
        connection
            .request("GET", "/readyz", &[])
            .await
            .expect("sent");
        connection.answer("GET").await.expect("an answer")
    };
    assert_eq!(pages.status, 200);
    assert_eq!(post(&socket, "{\"operation\":\"stats\"}").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_say_why_a_running_proxy_cannot_be_reached() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    proxy.run(["cache", "stats"]).fine();
    // The proxy runs, and its socket is not where the command looks.
    let socket = proxy.admin_socket();
    fs::rename(&socket, socket.with_extension("moved")).expect("renamed");
    let lost = proxy.run(["cache", "stats"]);
    assert_eq!(lost.code, Some(1), "{lost:?}");
    assert!(lost.stderr.contains("in use by another"), "{lost:?}");
    assert!(
        lost.stderr.contains("admin.sock cannot be reached"),
        "{lost:?}"
    );
    // One that stands still is reached when it goes on.
    fs::rename(socket.with_extension("moved"), &socket).expect("renamed");
    proxy.signal(Signal::STOP);
    let mut waiting = proxy.command(["cache", "stats"]);
    let waiting = waiting.stdout(Stdio::piped()).spawn().expect("started");
    proxy.signal(Signal::CONT);
    let ended = waiting.wait_with_output().expect("waited for");
    assert!(ended.status.success());
    proxy.kill9();
    proxy.run(["cache", "stats"]).fine();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_for_another_cache_does_not_tend_the_running_one() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    let ours = proxy.cache_dir();
    let other = proxy.dir().join("another");
    let path = other.to_str().expect("UTF-8");
    for arguments in [["cache", "stats"], ["cache", "verify"]] {
        let refused = proxy.run(arguments.into_iter().chain(["--cache-dir", path]));
        assert_eq!(refused.code, Some(2), "{refused:?}");
        for named in [&other, &ours] {
            let named = named.display().to_string();
            assert!(refused.stderr.contains(&named), "{refused:?}");
        }
        assert_eq!(refused.stdout, "");
    }
    assert!(!other.exists());
    std::os::unix::fs::symlink(&ours, &other).expect("a link");
    proxy.run(["cache", "stats", "--cache-dir", path]).fine();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_use_neither_the_socket_nor_the_cache_is_told_so() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    for path in [proxy.admin_socket(), proxy.cache_dir()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).expect("ours");
    }
    let command = proxy.command(["cache", "stats"]);
    let mut powerless = Command::new(program("setpriv"));
    powerless
        .arg("--bounding-set=-dac_override,-dac_read_search")
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear();
    for (name, value) in command.get_envs() {
        powerless.envs(value.map(|value| (name, value)));
    }
    let refused = Ended::from(powerless.output().expect("setpriv"));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for named in [
        "as the cache directory",
        "admin.sock may not be used by this user",
    ] {
        assert!(refused.stderr.contains(named), "{refused:?}");
    }
}

/// Starts `cache stats` on the socket of somebody who takes connections and says nothing, and waits until it
/// is connected.
fn asking(proxy: &Proxy, mute: &UnixListener) -> Child {
    let mut command = proxy.command(["cache", "stats"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the program was built");
    // Closing it would be an answer.
    std::mem::forget(mute.accept().expect("it connects"));
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_says_nothing_is_given_up() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    proxy.kill9();
    fs::remove_file(proxy.admin_socket()).expect("left by it");
    let mute = UnixListener::bind(proxy.admin_socket()).expect("a socket");
    let waiting = asking(&proxy, &mute);
    let interrupted = asking(&proxy, &mute);
    kill_process(Pid::from_child(&interrupted), Signal::INT).expect("ours");
    let interrupted = Ended::of(interrupted);
    assert_eq!(interrupted.code, Some(1), "{interrupted:?}");
    assert!(
        interrupted.stderr.contains("interrupted"),
        "{interrupted:?}"
    );
    let given_up = Ended::of(waiting);
    assert_eq!(given_up.code, Some(1), "{given_up:?}");
    assert!(given_up.stderr.contains("does not answer"), "{given_up:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_the_folder_does_not_hold_up_the_proxy() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    proxy.terminate();
    assert!(proxy.wait().success());
    let folder = fs::File::open(proxy.dir()).expect("a folder");
    rustix::fs::flock(&folder, FlockOperation::LockShared).expect("a lock");
    let mut serve = proxy.command(["serve"]);
    serve.stdout(Stdio::piped()).stderr(Stdio::piped());
    let refused = Ended::of(serve.spawn().expect("the program was built"));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("keeps its folder locked"),
        "{refused:?}"
    );
    drop(folder);
    proxy.restart();
}
