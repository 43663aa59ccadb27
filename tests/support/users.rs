//! Users: lines of a user file, and their logins.

use std::io::Write as _;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Client;

/// A line of the user file, as the program's own command makes it.
pub fn user_line(name: &str, password: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ecr-proxy"))
        .args(["hash-password", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program was built");
    let mut stdin = child.stdin.take().expect("asked for a pipe");
    writeln!(stdin, "{password}").expect("it reads the password");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("a line of text")
}

/// The value of `Authorization` that `docker login` leads to.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// The client, logged in.
pub fn login(client: Client, user: &str, password: &str) -> Client {
    client.with("authorization", &basic(user, password))
}
