//! How the program is linked where the linker is the one that comes with Rust.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let of = |name: &str| std::env::var(name).unwrap_or_default();
    // Functions that are alike are kept once, and relative relocations are packed: both are a matter of
    // memory, for what is mapped of a program counts while it rests.
    if of("TARGET") == "x86_64-unknown-linux-gnu" && of("PROFILE") == "release" {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
