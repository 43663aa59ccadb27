//! What `check` can tell without the network: certificate, clock, disk, ports.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use indicatif::BinaryBytes;
use rustix::fs::statvfs;

use super::Finding;
use crate::cli::chain;
use crate::cli::clients::local_ca;
use crate::cli::listening::without_ipv6;
use crate::clock::{self, Clock};
use crate::config::{Config, Size, Tls};
use crate::tls::{ClientCa, Pair, PairFiles, Standing};

const CACHE_DIR: &str = "cache.dir";

/// Less room than this and a single big image displaces the others.
const SMALL_CACHE_BYTES: u64 = 2 << 30;

pub(super) fn configuration(config: &Config) -> Finding {
    const SUBJECT: &str = "configuration";
    let place = config.file.as_deref().map_or_else(
        || "flags and environment".to_owned(),
        |file| file.display().to_string(),
    );
    if config.warnings.is_empty() {
        Finding::ok(SUBJECT, place)
    } else {
        Finding::warn(
            SUBJECT,
            format!("{place}: {}", config.warnings.join("; ")),
            "",
        )
    }
}

pub(super) fn certificate(config: &Config, clock: &Clock) -> Vec<Finding> {
    const SUBJECT: &str = "certificate";
    let files = match &config.tls {
        Tls::Off => return vec![Finding::ok(SUBJECT, "none needed, no listener speaks TLS")],
        Tls::Files(files) => files.clone(),
        Tls::Acme { options, .. } => {
            let cert = options.certificate();
            if !cert.exists() {
                let text = format!(
                    "will be obtained from {} at the first start",
                    options.directory
                );
                return vec![Finding::ok(SUBJECT, text)];
            }
            let key = cert.clone();
            vec![PairFiles { cert, key }]
        }
        Tls::LocalCa => {
            let folder = config.server.state_dir.join("tls");
            let made = local_ca(config).is_some_and(|ca| ca.exists());
            if !made {
                let text = "a local CA will be made at the first start";
                return vec![Finding::ok(SUBJECT, text)];
            }
            vec![PairFiles {
                cert: folder.join("server.pem"),
                key: folder.join("server.key"),
            }]
        }
    };
    let mut findings = Vec::new();
    let mut pairs = Vec::new();
    for files in &files {
        match files.load() {
            Ok(pair) => {
                findings.push(dates(&pair, clock.now(), &config.tls));
                pairs.push(pair);
            }
            Err(error) => {
                let mend = "tls.cert wants the chain, leaf first, and tls.key its key, both PEM";
                findings.push(Finding::fail(SUBJECT, chain(&error), mend));
            }
        }
    }
    if pairs.len() < files.len() {
        return findings;
    }
    let domains = config.server.domains.iter();
    let missing: Vec<&str> = domains
        .filter(|domain| !pairs.iter().any(|pair| pair.covers(domain)))
        .map(String::as_str)
        .collect();
    let names: Vec<&str> = pairs
        .iter()
        .flat_map(Pair::names)
        .map(String::as_str)
        .collect();
    let names = names.join(", ");
    let of_missing = || format!("is not for {} but for {names}", missing.join(", "));
    findings.push(match &config.tls {
        _ if missing.is_empty() => Finding::ok(SUBJECT, format!("names {names}")),
        Tls::LocalCa => {
            let text = format!("will be issued anew for {}", missing.join(", "));
            Finding::ok(SUBJECT, text)
        }
        Tls::Acme { .. } => Finding::warn(
            SUBJECT,
            of_missing(),
            "the proxy orders one for all names while it runs, and its /readyz says why there is none yet",
        ),
        Tls::Files(_) | Tls::Off => Finding::fail(
            SUBJECT,
            of_missing(),
            "obtain one for every name in server.domains, or correct the names",
        ),
    });
    findings
}

fn dates(pair: &Pair, now: SystemTime, tls: &Tls) -> Finding {
    const SUBJECT: &str = "certificate";
    let renew = match tls {
        Tls::LocalCa => "restart the proxy",
        Tls::Acme { .. } => "the proxy renews it while it runs, and its /readyz says why it is not",
        Tls::Files(_) | Tls::Off => "renew it",
    };
    let standing = pair.standing(now);
    match standing {
        Standing::NotYet { .. } => {
            Finding::fail(SUBJECT, standing.to_string(), "look at this host's clock")
        }
        Standing::Ended { .. } => Finding::fail(SUBJECT, standing.to_string(), renew),
        Standing::EndsSoon { .. } => Finding::warn(SUBJECT, standing.to_string(), renew),
        Standing::Good { .. } => Finding::ok(SUBJECT, format!("{standing}, key matches")),
    }
}

/// Whose client certificates are taken, if any are.
pub(super) fn client_ca(config: &Config) -> Option<Finding> {
    const SUBJECT: &str = "client certificates";
    let clients = config.client_certificates.as_ref()?;
    Some(match ClientCa::load(&clients.ca) {
        Ok(_) => {
            let (ca, user) = (clients.ca.display(), clients.user);
            Finding::ok(SUBJECT, format!("of {ca}, their {user} is the user"))
        }
        Err(error) => Finding::fail(
            SUBJECT,
            chain(&error),
            "tls.client_ca wants the certificates of CAs, PEM",
        ),
    })
}

pub(super) fn clock(clock: &Clock) -> Finding {
    const SUBJECT: &str = "clock";
    let now = clock.now();
    let shown = humantime::format_rfc3339_seconds(now);
    if now < clock::earliest() {
        let text = format!("{shown} is in the past");
        Finding::fail(SUBJECT, text, "set it, for example by an NTP client")
    } else {
        Finding::ok(SUBJECT, shown.to_string())
    }
}

pub(super) fn disk(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (subject, folder) in [
        (CACHE_DIR, &config.cache.dir),
        ("server.state_dir", &config.server.state_dir),
    ] {
        findings.push(folder_works(subject, folder));
    }
    findings.push(space(config));
    findings
}

/// Whether files can be made, synced and renamed in `folder`, or in the nearest folder above it
/// that exists.
fn folder_works(subject: &'static str, folder: &Path) -> Finding {
    let existing = nearest_existing(folder);
    let shown = folder.display();
    match try_folder(&existing) {
        // `serve` refuses it.
        Ok(()) if subject == CACHE_DIR && existing == folder && is_anybodys(folder) => {
            Finding::fail(
                subject,
                format!("{shown} is writable by everybody"),
                format!("`chmod o-w {shown}`, or choose another directory"),
            )
        }
        Ok(()) if existing == folder => Finding::ok(subject, format!("{shown} is writable")),
        Ok(()) => Finding::ok(subject, format!("{shown} will be made at the first start")),
        Err(error) => Finding::fail(
            subject,
            format!("{}: {error}", existing.display()),
            format!("make {shown} and give it to the user that runs the proxy"),
        ),
    }
}

fn is_anybodys(folder: &Path) -> bool {
    folder.metadata().is_ok_and(|it| it.mode() & 0o002 != 0)
}

fn nearest_existing(folder: &Path) -> PathBuf {
    let mut existing = folder;
    while !existing.exists() {
        match existing.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => existing = parent,
            _ => return PathBuf::from("."),
        }
    }
    existing.to_owned()
}

/// The steps of a commit, on a file of our own.
fn try_folder(folder: &Path) -> io::Result<()> {
    let unique = std::process::id();
    let first = folder.join(format!(".ecr-proxy-check-{unique}"));
    let second = folder.join(format!(".ecr-proxy-check-{unique}-renamed"));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&first)?;
    let tried = file
        .write_all(b"check\n")
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&first, &second))
        .and_then(|()| File::open(folder)?.sync_all());
    // At most one of the two is there; the error that counts is the first one above.
    let removed = fs::remove_file(&second).or_else(|_| fs::remove_file(&first));
    tried.and(removed)
}

fn space(config: &Config) -> Finding {
    const SUBJECT: &str = "disk space";
    let folder = nearest_existing(&config.cache.dir);
    let stat = match statvfs(&folder) {
        Ok(stat) => stat,
        Err(error) => {
            let text = format!("{}: {error}", folder.display());
            return Finding::fail(SUBJECT, text, "look at the file system");
        }
    };
    let total = stat.f_blocks.saturating_mul(stat.f_frsize);
    let available = stat.f_bavail.saturating_mul(stat.f_frsize);
    let of = |size: Size| match size {
        Size::Bytes(bytes) => bytes,
        Size::Percent(percent) => share(total, percent),
    };
    let (limit, free) = (of(config.cache.max_size), of(config.cache.min_free));
    let text = format!(
        "{} of {} available; the cache may take {}, leaving {} free",
        BinaryBytes(available),
        BinaryBytes(total),
        BinaryBytes(limit),
        BinaryBytes(free)
    );
    if stat.f_files > 0 && stat.f_favail == 0 {
        let text = format!("{} has no inodes left", folder.display());
        Finding::fail(SUBJECT, text, "remove files, or choose another cache.dir")
    } else if limit > total {
        Finding::fail(
            SUBJECT,
            text,
            "cache.max_size is larger than the file system",
        )
    } else if limit.saturating_add(free) > total {
        let mend = "cache.max_size and cache.min_free together are more than the file system";
        Finding::warn(SUBJECT, text, mend)
    } else if available <= free {
        let mend = "nothing new can be kept: make room, lower cache.min_free, or move cache.dir";
        Finding::warn(SUBJECT, text, mend)
    } else if limit < SMALL_CACHE_BYTES {
        Finding::warn(SUBJECT, text, "cache.max_size holds hardly one big image")
    } else {
        Finding::ok(SUBJECT, text)
    }
}

/// `percent` of `total`, exact to a millionth.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a checked share lies between 0 and 100"
)]
fn share(total: u64, percent: f64) -> u64 {
    let millionths = (percent * 10_000.0).round() as u64;
    let share = u128::from(total) * u128::from(millionths) / 1_000_000;
    u64::try_from(share).unwrap_or(total)
}

/// As `serve` does it.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).or_else(|error| match without_ipv6(address, &error) {
        Some(instead) => TcpListener::bind(instead),
        None => Err(error),
    })
}

/// Whether we can listen where we are to. All are held until the last is tried: one may be in another's way.
pub(super) fn ports(config: &Config) -> Vec<Finding> {
    let admin = config.server.admin.map(|address| ("server.admin", address));
    let challenges = match &config.tls {
        Tls::Acme { http_listen, .. } => *http_listen,
        Tls::Off | Tls::Files(_) | Tls::LocalCa => None,
    };
    let challenges = challenges.map(|address| ("tls.acme.http_listen", address));
    let listen = config.server.listen.iter();
    let all = listen.map(|listen| ("server.listen", listen.address));
    let mut held: Vec<(&str, SocketAddr, TcpListener)> = Vec::new();
    all.chain(challenges)
        .chain(admin)
        .map(|(subject, address)| match bind(address) {
            Ok(socket) => {
                held.push((subject, address, socket));
                Finding::ok(subject, format!("{address} is free"))
            }
            Err(error) => {
                let text = format!("{address}: {error}");
                let mut ours = held.iter();
                let ours = ours.find(|(_, other, _)| {
                    let is_any = |address: &SocketAddr| address.ip().is_unspecified();
                    let meets = other.ip() == address.ip() || is_any(other) || is_any(&address);
                    meets && other.port() == address.port() && address.port() != 0
                });
                match (error.kind(), ours) {
                    (io::ErrorKind::AddrInUse, Some((key, other, _))) => {
                        let mend = format!("{key} is {other}: name addresses that do not meet");
                        Finding::fail(subject, text, mend)
                    }
                    (io::ErrorKind::AddrInUse, None) => {
                        Finding::warn(subject, text, "fine if it is this proxy that runs there")
                    }
                    (io::ErrorKind::PermissionDenied, _) => Finding::fail(
                        subject,
                        text,
                        "give the program CAP_NET_BIND_SERVICE, or choose a port from 1024 up",
                    ),
                    _ => Finding::fail(subject, text, "name an address of this host"),
                }
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::cli::check::Verdict;

    #[test]
    fn a_folder_is_tried_and_left_clean() {
        let folder = tempfile::tempdir().expect("folder");
        let finding = folder_works("cache.dir", folder.path());
        assert_eq!(finding.verdict(), Verdict::Ok, "{finding}");
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 0);
        let anybodys = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(folder.path(), anybodys).expect("the folder is ours");
        let finding = folder_works("cache.dir", folder.path());
        assert_eq!(finding.verdict(), Verdict::Fail, "{finding}");
        let deeper = folder.path().join("a/b");
        let finding = folder_works("cache.dir", &deeper);
        assert_eq!(finding.verdict(), Verdict::Ok, "{finding}");
        assert!(!deeper.exists());
        let file = folder.path().join("file");
        fs::write(&file, "").expect("file");
        let finding = folder_works("cache.dir", &file);
        assert_eq!(finding.verdict(), Verdict::Fail, "{finding}");
    }

    #[test]
    fn shares_are_exact() {
        assert_eq!(share(1_000, 70.0), 700);
        assert_eq!(share(u64::MAX, 100.0), u64::MAX);
        assert_eq!(share(1 << 40, 0.5), (1 << 40) / 200);
    }

    #[test]
    fn a_clock_in_the_past_fails() {
        let past = Clock::settable(SystemTime::UNIX_EPOCH);
        assert_eq!(clock(&past).verdict(), Verdict::Fail);
        assert_eq!(clock(&Clock::system()).verdict(), Verdict::Ok);
    }
}
