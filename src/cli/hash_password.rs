//! `hash-password NAME`: a line for the user file.

use std::io::{self, BufRead, IsTerminal, Write};

use super::Failure;
use crate::access::check_user_name;

/// 2^10 rounds: some 60 ms on a server and a quarter of a second on a small board. Each user
/// costs that once a minute, also when hundreds of nodes come back at once; passwords of robots
/// are random, which protects them better than more rounds.
const COST: u32 = 10;

/// What bcrypt takes; more would be cut off silently.
const MAX_PASSWORD_BYTES: usize = 72;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The password is asked for twice, or read as one line where standard input is no terminal.\n\nExample:\n  ecr-proxy hash-password ci >> users.htpasswd"
)]
pub(super) struct Args {
    /// The user
    name: String,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    check_user_name(&args.name)
        .map_err(|reason| Failure::Usage(format!("{:?} is no user: {reason}", args.name)))?;
    let stdin = io::stdin();
    let password = if stdin.is_terminal() {
        let first = rpassword::prompt_password(format!("Password for {}: ", args.name))?;
        let second = rpassword::prompt_password("Once more: ")?;
        if first != second {
            return Err(Failure::Failed("the two passwords differ".to_owned()));
        }
        first
    } else {
        first_line(stdin.lock())?
    };
    check_password(&password)?;
    // The `$2b$` form is the one that every other tool takes, too.
    let hash = bcrypt::hash(password, COST)
        .map_err(|error| Failure::Failed(format!("cannot hash the password: {error}")))?;
    writeln!(out, "{}:{hash}", args.name)?;
    Ok(())
}

fn first_line(input: impl BufRead) -> Result<String, Failure> {
    let mut line = String::new();
    // One byte more than could be accepted, with its line end.
    let limit = u64::try_from(MAX_PASSWORD_BYTES + 3).unwrap_or(u64::MAX);
    input
        .take(limit)
        .read_line(&mut line)
        .map_err(|error| Failure::Failed(format!("cannot read the password: {error}")))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn check_password(password: &str) -> Result<(), Failure> {
    let wrong = |reason: String| Err(Failure::Failed(format!("the password {reason}")));
    if password.is_empty() {
        wrong("is empty".to_owned())
    } else if password.len() > MAX_PASSWORD_BYTES {
        wrong(format!(
            "has more than {MAX_PASSWORD_BYTES} bytes, which bcrypt would cut off"
        ))
    } else if password.chars().any(char::is_control) {
        wrong("has a control character, which clients cannot send".to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_end_is_not_part_of_the_password() {
        for input in ["secret", "secret\n", "secret\r\n", "secret\nmore\n"] {
            assert_eq!(first_line(input.as_bytes()).expect("line"), "secret");
        }
    }

    #[test]
    fn passwords_are_from_1_to_72_bytes() {
        assert!(check_password("").is_err());
        assert!(check_password(&"x".repeat(72)).is_ok());
        assert!(check_password(&"x".repeat(73)).is_err());
        assert!(check_password(&"é".repeat(37)).is_err());
        let long = first_line("y".repeat(1_000_000).as_bytes()).expect("line");
        assert!(check_password(&long).is_err());
        assert!(check_password("a\tb").is_err());
    }
}
