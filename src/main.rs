//! Steps only: parse, run, exit code.

fn main() {}
