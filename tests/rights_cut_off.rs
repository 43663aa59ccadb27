//! Rights are asked for with upstream gone as they are with it there: who may not gets nothing of what is
//! cached, and what proves that a repository holds a blob outlives a restart.

mod support;

use std::fs;

use ecr_proxy::simulator::{ImageSpec, Outage, Simulator};
use support::blobs::{idle, outcome, until};
use support::image::{REPOSITORY, TAG};
use support::users::{login, user_line};
use support::{Client, Proxy};

const OTHER: &str = "other/app";
const PASSWORD: &str = "correct horse battery staple";

#[tokio::test(flavor = "multi_thread")]
async fn o03_who_may_not_gets_nothing_while_upstream_is_gone_nor_after_a_restart() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let mut images = Vec::new();
    for (seed, repository) in [(1, REPOSITORY), (2, OTHER)] {
        simulator.create_repository(repository);
        let spec = ImageSpec::generated(seed, [100_000, 100_000]);
        images.push(simulator.push_image(repository, TAG, spec));
    }
    let lines = ["ci", "eve", "late"].map(|name| user_line(name, PASSWORD));
    let mut proxy = Proxy::builder()
        .simulator(&simulator)
        .users(&lines.concat())
        .rule("users = ['ci', 'late']\nrepositories = ['team/**']\nactions = ['pull']")
        .rule("users = ['eve']\nrepositories = ['other/**']\nactions = ['pull']")
        .start();
    let paths = |repository: &str, index: usize| {
        let manifest = &images[index].manifests[0];
        vec![
            format!("/v2/{repository}/manifests/{TAG}"),
            format!("/v2/{repository}/manifests/{}", manifest.manifest.digest),
            format!("/v2/{repository}/blobs/{}", manifest.config.digest),
            format!("/v2/{repository}/blobs/{}", manifest.layers[0].digest),
        ]
    };
    let (own, foreign) = (paths(OTHER, 1), paths(REPOSITORY, 0));
    let user = |proxy: &Proxy, name| login(proxy.client(), name, PASSWORD);
    for (name, paths) in [("ci", &foreign), ("eve", &own)] {
        for path in paths {
            assert_eq!(user(&proxy, name).get(path).await.status, 200, "{path}");
        }
    }
    idle(&proxy).await;
    simulator.outage(Outage::Refused).await;
    for turn in ["cut off", "started again"] {
        let eve = user(&proxy, "eve");
        for path in &foreign {
            let wrong = login(proxy.client(), "ci", "wrong");
            for (client, status) in [(&eve, 403), (&proxy.client(), 401), (&wrong, 401)] {
                assert_nothing(client, path, status).await;
            }
            let mine = user(&proxy, "ci").get(path).await;
            let served = ["hit", "stale"].contains(&outcome(&mine).unwrap_or_default());
            assert!(
                mine.status == 200 && served && mine.clean_end,
                "{turn}: {path}"
            );
        }
        // A blob that is on disk, asked for through a repository that upstream never said holds it.
        for path in paths(OTHER, 0).iter().skip(1) {
            let answer = eve.get(path).await;
            assert_eq!(answer.status, 503, "{turn}: {path}");
            assert_eq!(answer.header("etag"), None);
            assert_eq!(eve.head(path).await.status, 503, "{turn}: {path}");
        }
        for path in &own {
            assert_eq!(eve.get(path).await.status, 200, "{turn}: {path}");
        }
        if turn == "cut off" {
            proxy.terminate();
            assert!(proxy.wait().success());
            proxy.restart();
        }
    }
    // Who is taken out meanwhile is out.
    let late = user(&proxy, "late");
    assert_eq!(late.get(&foreign[3]).await.status, 200);
    fs::write(proxy.users_file(), lines[..2].concat()).expect("a file");
    until("the user is out", async || {
        late.get(&foreign[3]).await.status == 401
    })
    .await;
    assert_eq!(user(&proxy, "ci").get(&foreign[3]).await.status, 200);
}

/// However it is asked for, the answer has the status and tells nothing of what is there.
async fn assert_nothing(client: &Client, path: &str, status: u16) {
    let part = [("range", "bytes=0-9")];
    let unchanged = [("if-none-match", "*")];
    for (method, headers) in [
        ("GET", &[][..]),
        ("HEAD", &[]),
        ("GET", &part),
        ("GET", &unchanged),
    ] {
        let answer = client.ask(method, path, headers).await;
        assert_eq!(answer.status, status, "{method} {path} {headers:?}");
        for header in ["etag", "docker-content-digest", "x-cache", "content-range"] {
            assert_eq!(answer.header(header), None, "{method} {path}");
        }
    }
}
