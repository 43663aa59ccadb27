//! A network of its own for a test: loopback, and addresses that elsewhere are somebody's.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::Runtime;

use super::program;

/// Runs `test` where these are the machine's addresses, beside those of loopback, and all there is. Programs that it
/// starts are there as well.
pub fn in_own_network(addresses: &[&str], test: impl AsyncFnOnce() + Send) {
    let script: String = addresses
        .iter()
        .map(|address| format!("ip address add {address} dev lo\n"))
        .collect();
    let mut holder = Command::new(program("unshare"))
        .args(["--net", "/bin/sh", "-ec"])
        .arg(format!(
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin\nip link set lo up\n{script}echo made\nread -r _ || true"
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare starts");
    let mut made = String::new();
    let stdout = holder.stdout.take().expect("asked for a pipe");
    let read = BufReader::new(stdout).read_line(&mut made);
    let network = File::open(format!("/proc/{}/ns/net", holder.id()));
    // From here on the file holds it.
    drop(holder.stdin.take());
    let ended = holder.wait().expect("one's own child");
    assert!(
        read.is_ok() && made == "made\n" && ended.success(),
        "no network: it needs root, network namespaces and ip"
    );
    let network = network.expect("its own network");
    let ran = thread::scope(|scope| {
        let in_there = scope.spawn(|| {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(network.as_fd(), kind).expect("root");
            // Its threads are where this one is.
            Runtime::new().expect("a runtime").block_on(test());
        });
        in_there.join()
    });
    if let Err(panic) = ran {
        std::panic::resume_unwind(panic);
    }
}
