//! The program of the demo's image: smaller than any that a compiler makes, so that the image can be run
//! without anything being fetched or installed.

const MESSAGE: &[u8] = b"Hello from your own registry, by way of ecr-proxy.\n";

/// Where the program is loaded; the usual address of a static executable.
const BASE: u64 = 0x40_0000;
/// ELF header and one program header.
const HEADERS: u64 = 64 + 56;

/// A static Linux executable that prints a line, for an architecture as Rust names it. `None` where there
/// is none.
pub(super) fn program(arch: &str) -> Option<Vec<u8>> {
    let length = u8::try_from(MESSAGE.len()).ok()?;
    let (machine, code) = match arch {
        "x86_64" => (62u16, x86_64(length).to_vec()),
        "aarch64" => (183, aarch64(length)),
        _ => return None,
    };
    let size = HEADERS + (code.len() + MESSAGE.len()) as u64;
    let mut elf = Vec::new();
    // ELF header: 64 bit, little endian, executable.
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend(2u16.to_le_bytes());
    elf.extend(machine.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // One segment, readable and executable, that holds the file.
    elf.extend(1u32.to_le_bytes());
    elf.extend(5u32.to_le_bytes());
    for word in [0, BASE, BASE, size, size, 0x1_0000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf.extend(MESSAGE);
    Some(elf)
}

/// `write(1, message, length); exit(0)`
fn x86_64(length: u8) -> [u8; 33] {
    [
        0xb8, 1, 0, 0, 0, // mov eax, 1 (write)
        0xbf, 1, 0, 0, 0, // mov edi, 1
        0x48, 0x8d, 0x35, 16, 0, 0, 0, // lea rsi, [rip + 16]
        0xba, length, 0, 0, 0, // mov edx, length
        0x0f, 0x05, // syscall
        0xb8, 60, 0, 0, 0, // mov eax, 60 (exit)
        0x31, 0xff, // xor edi, edi
        0x0f, 0x05, // syscall
    ]
}

/// The same for 64-bit ARM.
fn aarch64(length: u8) -> Vec<u8> {
    [
        0xd280_0020,                          // mov x0, #1
        0x1000_00e1,                          // adr x1, . + 28
        0xd280_0002 | u32::from(length) << 5, // mov x2, #length
        0xd280_0808,                          // mov x8, #64 (write)
        0xd400_0001,                          // svc #0
        0xd280_0000,                          // mov x0, #0
        0xd280_0ba8,                          // mov x8, #93 (exit)
        0xd400_0001,                          // svc #0
    ]
    .iter()
    .flat_map(|instruction| instruction.to_le_bytes())
    .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_program_runs_on_this_machine() {
        let Some(program) = program(std::env::consts::ARCH) else {
            return;
        };
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("hello");
        std::fs::write(&path, program).expect("file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
        let output = std::process::Command::new(&path)
            .output()
            .expect("it starts");
        assert!(output.status.success());
        assert_eq!(output.stdout, MESSAGE);
    }
}
