//! How the program is linked, where that is known to work: by the linker that comes with Rust.
//!
//! Functions that are alike are kept once, and relocations are packed. Both are a matter of memory: what is
//! mapped of a program's file counts while it rests.

use std::env;
use std::path::Path;
use std::process::Command;

/// The first glibc that unpacks relocations, of which it says so by refusing to start what it cannot.
const UNPACKS: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let of = |name: &str| env::var(name).unwrap_or_default();
    let target = of("TARGET");
    if target != "x86_64-unknown-linux-gnu" || of("PROFILE") != "release" || !is_own_linker(&target)
    {
        return;
    }
    println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    if of("HOST") == target && glibc().is_some_and(|version| version >= UNPACKS) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Whether Rust links by its own linker: it has one, and nobody said otherwise.
fn is_own_linker(target: &str) -> bool {
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let linker = format!("rustlib/{target}/bin/gcc-ld/ld.lld");
    let sysroot = env::var_os("RUSTC").and_then(|rustc| said(&rustc, &["--print", "sysroot"]));
    env::var_os("RUSTC_LINKER").is_none()
        && !flags.contains("link")
        && !flags.contains("fuse-ld")
        && sysroot.is_some_and(|sysroot| Path::new(&sysroot).join("lib").join(linker).exists())
}

/// The version of this machine's glibc.
fn glibc() -> Option<(u32, u32)> {
    let version = said("getconf".as_ref(), &["GNU_LIBC_VERSION"])?;
    let (major, minor) = version.strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// What a program prints, if it ends well.
fn said(program: &std::ffi::OsStr, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| said.trim().to_owned())
}
