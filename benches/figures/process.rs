//! What a process costs, as the kernel counts it.

use std::fs;
use std::process::Child;

use memmap2::MmapMut;

/// The core that servers run on.
pub const SERVER_CORE: &str = "0";
/// The core that the load and the simulated upstream run on.
pub const LOAD_CORE: &str = "1";

/// glibc gives large buffers back to the system each time they are freed, and faulting them in again
/// would make the client slower than the servers. Set for the load alone.
pub const MALLOC: &str = "GLIBC_TUNABLES";
pub const KEEP_MEMORY: &str =
    "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296";

/// `/proc` counts in hundredths of a second, whatever the kernel's own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a round with a cold blob writes into the page cache at most, in bytes.
const WRITTEN_BYTES: usize = 1 << 30;

/// A virtual machine has to ask its host for memory that it has not used lately, and who fills a cache
/// first would pay for it. So it is used just before.
pub fn have_memory_ready() {
    let mut pages = MmapMut::map_anon(WRITTEN_BYTES).expect("memory");
    for page in pages.chunks_mut(4096) {
        page[0] = 1;
    }
}

/// A started server; killed when dropped.
pub struct Process(pub Child);

/// Memory of a process and its children, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident, file pages included.
    pub resident: u64,
    /// Resident and belonging to no file.
    pub anonymous: u64,
}

impl Process {
    /// The process and its children: nginx works in those.
    fn all(&self) -> Vec<u32> {
        let pid = self.0.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok());
        std::iter::once(pid).chain(children).collect()
    }

    /// Seconds of processor time used so far, in user and kernel.
    pub fn cpu_seconds(&self) -> f64 {
        let all = self.all().into_iter();
        all.filter_map(cpu_seconds).sum()
    }

    /// What it holds at this moment.
    pub fn memory(&self) -> Memory {
        let mut memory = Memory::default();
        for pid in self.all() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            memory.resident += kib(&status, "VmRSS:") * 1024;
            memory.anonymous += kib(&status, "RssAnon:") * 1024;
        }
        memory
    }
}

fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / TICKS_PER_SECOND)
}

/// Processor seconds that everything on this machine has used so far, but for this process and
/// `server`.
pub fn foreign_cpu_seconds(server: &Process) -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers = stat.lines().next().unwrap_or_default().split_whitespace();
    let ticks: Vec<u64> = numbers.filter_map(|number| number.parse().ok()).collect();
    // user, nice, system, (idle, iowait,) irq, softirq, steal
    let busy: u64 = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|at| ticks.get(*at))
        .sum();
    let own = cpu_seconds(std::process::id()).unwrap_or(0.0);
    busy as f64 / TICKS_PER_SECOND - own - server.cpu_seconds()
}

fn kib(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl Drop for Process {
    fn drop(&mut self) {
        // nginx's workers end with their master, and only if it may say so.
        let pid = self.0.id().to_string();
        let _already_ended = std::process::Command::new("kill").arg(&pid).status();
        let _already_waited = self.0.wait();
    }
}
