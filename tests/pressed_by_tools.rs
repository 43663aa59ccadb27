//! Debian's tools for pressing a server: slowhttptest (clients that are slow on purpose) and h2load (clients in
//! great number). Others are served meanwhile, and afterwards nothing is left of them.

mod support;

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use ecr_proxy::simulator::{Listener, Simulator};
use futures_util::future::join_all;
use support::blobs::{MIB, assert_whole, blob, pull, simulator, until};
use support::{Proxy, Stopwatch, program};
use tokio::task::JoinHandle;

/// Within what others are served.
const SERVED: Duration = Duration::from_secs(5);

struct Rig {
    simulator: Simulator,
    proxy: Proxy,
    small: (String, String),
    large: (String, String),
}

/// What a process holds.
#[derive(Debug)]
struct Held {
    descriptors: usize,
    threads: u64,
    memory: u64,
}

impl Rig {
    async fn start() -> Self {
        let simulator = simulator().await;
        let proxy = Proxy::before(&simulator);
        let small = blob(&simulator, 1, 10_000);
        let large = blob(&simulator, 2, 64 * MIB);
        for blob in [&small, &large] {
            pull(&proxy, blob).await;
        }
        Self {
            simulator,
            proxy,
            small,
            large,
        }
    }

    /// Serves others until these tools have ended; what each said.
    async fn press(&self, tools: impl IntoIterator<Item = JoinHandle<Output>>) -> Vec<String> {
        let tools: Vec<_> = tools.into_iter().collect();
        let (plain, tls) = (self.proxy.client(), self.proxy.tls_client());
        let mut longest = Duration::ZERO;
        while !tools.iter().all(JoinHandle::is_finished) {
            for client in [&plain, &tls] {
                let began = Stopwatch::start();
                assert_whole(&client.get(&self.small.1).await, &self.small.0);
                longest = longest.max(began.took());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("others were served within {longest:?}");
        assert!(longest < SERVED, "{longest:?}");
        let said = tools.into_iter().map(async |tool| {
            let output = tool.await.expect("no panic");
            let said = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&said).into_owned()
        });
        join_all(said).await
    }

    /// No connection is left, and nothing that came with one.
    async fn is_left_alone(&self) {
        until(
            "every connection is closed, and no request is left",
            async || {
                let metrics = self.proxy.metrics().await;
                let left = ["ecr_proxy_connections_open", "ecr_proxy_requests_active"];
                left.map(|name| metrics.sum(name, &[])) == [0.0, 0.0]
            },
        )
        .await;
    }

    fn held(&self) -> Held {
        let process = format!("/proc/{}", self.proxy.pid());
        let descriptors = fs::read_dir(format!("{process}/fd")).expect("a process");
        let status = fs::read_to_string(format!("{process}/status")).expect("a process");
        let threads = status
            .lines()
            .find_map(|line| line.strip_prefix("Threads:"));
        Held {
            descriptors: descriptors.count(),
            threads: threads
                .and_then(|t| t.trim().parse().ok())
                .expect("threads"),
            memory: self.proxy.memory(),
        }
    }
}

/// Starts a tool, which ends by itself.
fn start(tool: &str, arguments: &[String]) -> JoinHandle<Output> {
    println!("{tool} {}", arguments.join(" "));
    let mut command = Command::new(program(tool));
    command.args(arguments).stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().expect("it starts"))
}

/// slowhttptest twice, each with 400 connections for 13 s: longer than any that says nothing whole may last.
async fn slow(mode: &[&str], target: impl Fn(&Rig) -> String) {
    let rig = Rig::start().await;
    let before = rig.held();
    let urls = [
        format!("http://{}{}", rig.proxy.http(), target(&rig)),
        format!("https://{}{}", rig.proxy.https(), target(&rig)),
    ];
    let tools = urls.map(|url| {
        // How long its own probe waits is the machine's affair.
        let common = ["-c", "400", "-r", "200", "-l", "13", "-p", "30", "-u", &url];
        let arguments = mode.iter().copied().chain(common).map(str::to_owned);
        start("slowhttptest", &arguments.collect::<Vec<_>>())
    });
    for said in rig.press(tools).await {
        assert!(said.contains("service available"), "{said}");
        let unavailable = said
            .lines()
            .any(|line| line.contains("service available") && line.contains("NO"));
        assert!(!unavailable, "{said}");
    }
    rig.is_left_alone().await;
    let after = rig.held();
    println!("{before:?} before, {after:?} after");
    assert!(after.descriptors <= before.descriptors + 10, "{after:?}");
    // Some 200 KiB for each of 800 that took nothing, of which the allocator keeps what it likes.
    assert!(after.memory < before.memory + 192 * MIB, "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn l04_slowhttptest_with_heads_that_never_end() {
    slow(&["-H", "-i", "2", "-x", "24"], |_| "/v2/".to_owned()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l05_slowhttptest_with_bodies_that_never_end() {
    let upload = |_: &Rig| format!("/v2/{}/blobs/uploads/", support::image::REPOSITORY);
    slow(&["-B", "-i", "2", "-s", "8192", "-x", "10"], upload).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l03_slowhttptest_with_answers_that_are_hardly_read() {
    let mode = [
        "-X", "-w", "10", "-y", "20", "-n", "5", "-z", "32", "-k", "3",
    ];
    slow(&mode, |rig| rig.large.1.clone()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_slowhttptest_with_ranges_beyond_number() {
    let mode = ["-R", "-t", "HEAD", "-a", "10", "-b", "3000"];
    slow(&mode, |rig| rig.small.1.clone()).await;
}

/// What h2load counted.
fn succeeded(said: &str) -> u64 {
    let line = said.lines().find(|line| line.starts_with("requests:"));
    let counts = line.unwrap_or_else(|| panic!("{said}")).split(", ");
    let count = counts.filter_map(|count| count.strip_suffix(" succeeded"));
    count.last().and_then(|n| n.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn l16_h2load_with_a_thousand_streams_on_ten_connections() {
    let rig = Rig::start().await;
    let url = format!("https://{}{}", rig.proxy.https(), rig.small.1);
    let arguments = ["-n", "20000", "-c", "10", "-m", "100", &url].map(str::to_owned);
    let said = rig.press([start("h2load", &arguments)]).await.concat();
    assert_eq!(succeeded(&said), 20_000, "{said}");
    rig.is_left_alone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l15_ten_thousand_tls_connections_a_minute_leave_nothing_behind() {
    /// Connections at once, each for one request: a machine that is slow makes fewer in a minute.
    const AT_ONCE: u64 = 60;
    const TIMES: u64 = 40;
    let rig = Rig::start().await;
    let url = format!("https://{}{}", rig.proxy.https(), rig.small.1);
    let count = AT_ONCE.to_string();
    let arguments = ["-n", &count, "-c", &count, &url].map(str::to_owned);
    let upstream = || rig.simulator.journal().connections(Listener::Registry);
    let mut held = Vec::new();
    let before = upstream();
    for _ in 0..2 {
        for _ in 0..TIMES {
            let said = rig.press([start("h2load", &arguments)]).await.concat();
            assert_eq!(succeeded(&said), AT_ONCE, "{said}");
        }
        rig.is_left_alone().await;
        held.push(rig.held());
    }
    println!("{held:?}");
    let [first, second] = held.as_slice() else {
        unreachable!("two rounds");
    };
    assert!(second.descriptors <= first.descriptors + 5, "{held:?}");
    assert!(second.memory < first.memory + 8 * MIB, "{held:?}");
    // Those for the disk come and go.
    assert!(second.threads < 64, "{held:?}");
    assert!(upstream() <= before + 4, "{} upstream", upstream() - before);
}
