//! A bundle that is damaged, cut, hostile or too large changes nothing that anybody could see, and says
//! what is wrong with it; one whose import was killed is imported by trying again.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};

use ecr_proxy::simulator::{ImageSpec, Simulator};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::blobs::{blob_file, simulator, until};
use support::bundle::{Files, cut_off, export, file, filled, import, pull_all, read, write};
use support::image::REPOSITORY;
use support::store::{assert_blobs_are_sound, digest, files_below};
use support::{Ended, Proxy};

/// Two images of three blobs each, and their bundle.
async fn two_images() -> (Simulator, Proxy, Vec<u8>) {
    let simulator = simulator().await;
    for (seed, tag) in [(1, "v1"), (2, "v2")] {
        let spec = ImageSpec::generated(seed, [900_000, 70_000]);
        simulator.push_image(REPOSITORY, tag, spec);
    }
    let home = filled(&simulator, &["v1", "v2"]).await;
    let bundle = export(&home, "site.tar", &["team/app:v1", "team/app:v2"]);
    let bundle = fs::read(bundle).expect("a bundle");
    (simulator, home, bundle)
}

/// Imports bytes.
fn import_bytes(site: &Proxy, bundle: &[u8]) -> Ended {
    let path = site.dir().join("in.tar");
    fs::write(&path, bundle).expect("written");
    import(site, &path, &[])
}

/// No repository knows of anything, and what else there is hashes to its name.
fn assert_nothing_recorded(site: &Proxy) {
    let records = files_below(&site.cache_dir().join("repositories"));
    assert_eq!(records, Vec::<std::path::PathBuf>::new());
    assert_blobs_are_sound(&site.cache_dir());
}

/// An archive of one entry of some kind, behind the files of a good one.
fn with_entry(files: &Files, kind: tar::EntryType, name: &str, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    if kind.is_symlink() || kind.is_hard_link() {
        header.set_link_name("/etc/passwd").expect("short");
    }
    header.set_cksum();
    let mut bytes = write(files);
    bytes.truncate(bytes.len() - 1024); // the end of the archive
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_bundle_is_refused_and_changes_nothing() {
    let (_simulator, home, bundle) = two_images().await;
    let files = read(&bundle);
    let some_blob = files.last().expect("a blob").0.clone();
    let without = |name: &str| -> Files {
        let files = files.iter().filter(|(path, _)| path != name);
        files.cloned().collect()
    };
    let with = |name: &str, content: &[u8]| {
        let mut files = files.clone();
        *file(&mut files, name) = content.to_vec();
        write(&files)
    };
    let twice = |name: &str| {
        let mut again = files.clone();
        let content = file(&mut again, name).clone();
        again.push((name.to_owned(), content));
        write(&again)
    };
    let regular = tar::EntryType::Regular;
    let mut concatenated = bundle.clone();
    concatenated.extend_from_slice(&bundle);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("is empty", Vec::new()),
        ("not a tar archive", b"not an archive".repeat(1000)),
        ("not a tar archive", b"short".to_vec()),
        ("not a tar archive", bundle[..511].to_vec()),
        ("cannot be read", bundle[..1000].to_vec()),
        ("is empty", vec![0; 10_240]),
        ("no index.json", write(&without("index.json"))),
        ("no oci-layout", write(&without("oci-layout"))),
        ("not a tar archive", b"no tar\n".to_vec()),
        (
            "not a tar archive",
            b"no tar either, and longer\n".repeat(100),
        ),
        ("zstd", [&[0x28, 0xb5, 0x2f, 0xfd][..], &[0; 100]].concat()),
        (
            "older dockers",
            write(&vec![("manifest.json".to_owned(), b"[]".to_vec())]),
        ),
        ("index.json", with("index.json", b"{\"schemaVersion\":2")),
        ("index.json", with("index.json", &vec![b' '; 5 << 20])),
        (
            "no image",
            with("index.json", b"{\"schemaVersion\":2,\"manifests\":[]}"),
        ),
        (
            "2.0.0",
            with("oci-layout", b"{\"imageLayoutVersion\":\"2.0.0\"}"),
        ),
        ("twice", twice("index.json")),
        ("twice", twice("oci-layout")),
        ("twice", twice(&some_blob)),
        ("follows its end", concatenated),
        (
            "link",
            with_entry(&files, tar::EntryType::Symlink, "blobs/sha256/x", 0),
        ),
        (
            "link",
            with_entry(&files, tar::EntryType::Link, "index.json", 0),
        ),
        ("device", with_entry(&files, tar::EntryType::Char, "dev", 0)),
        ("pipe", with_entry(&files, tar::EntryType::Fifo, "fifo", 0)),
        (
            "plain relative path",
            with_entry(&files, regular, "../../etc/cron.d/x", 0),
        ),
        (
            "plain relative path",
            with_entry(&files, regular, "/etc/cron.d/x", 0),
        ),
        (
            "cannot be read",
            with_entry(&files, regular, "blobs/sha256/short", 1 << 62),
        ),
        (
            "cannot be read",
            with_entry(&files, regular, "other", u64::MAX),
        ),
    ];
    let mut site = cut_off().start();
    for (why, bytes) in &cases {
        let ended = import_bytes(&site, bytes);
        assert_eq!(ended.code, Some(1), "{why}: {ended:?}");
        assert!(ended.stderr.contains(why), "{why}: {ended:?}");
        assert!(ended.stderr.contains("in.tar: "), "{why}: {ended:?}");
        assert_nothing_recorded(&site);
    }
    site.terminate();
    assert!(site.wait().success());
    for (why, bytes) in &cases {
        let ended = import_bytes(&site, bytes);
        assert_eq!(ended.code, Some(1), "{why}: {ended:?}");
        assert!(ended.stderr.contains(why), "{why}: {ended:?}");
    }
    assert_nothing_recorded(&site);
    import_bytes(&site, &bundle).fine();
    site.restart();
    assert_eq!(
        pull_all(&site.client(), "v1").await,
        pull_all(&home.client(), "v1").await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_is_cut_anywhere_changes_nothing() {
    let (_simulator, _home, bundle) = two_images().await;
    let site = cut_off().start();
    let mut rng = fastrand::Rng::with_seed(1);
    let mut lengths: Vec<usize> = (0..12).map(|_| rng.usize(1..bundle.len() - 1024)).collect();
    lengths.extend([511, 512, 1024, bundle.len() - 1025]);
    for length in lengths {
        let ended = import_bytes(&site, &bundle[..length]);
        assert_eq!(ended.code, Some(1), "{length}: {ended:?}");
        assert!(!ended.stderr.contains("buffer"), "{length}: {ended:?}");
        assert_nothing_recorded(&site);
    }
    let refused = site.run(["import", "/proc/self/fd"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("no image layout"), "{refused:?}");
    import_bytes(&site, &bundle).fine();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_flipped_bit_gets_in() {
    let (_simulator, _home, bundle) = two_images().await;
    let mut rng = fastrand::Rng::with_seed(2);
    let site = cut_off().start();
    let good = read(&bundle);
    let content: usize = good.iter().map(|(_, content)| content.len()).sum();
    for _ in 0..12 {
        // One bit of the content of some file, those of the layout included.
        let (mut files, mut at) = (good.clone(), rng.usize(..content));
        let hit = files.iter_mut().find(|(_, content)| {
            let is_here = at < content.len();
            at -= if is_here { 0 } else { content.len() };
            is_here
        });
        let (name, bytes) = hit.expect("within the content");
        bytes[at] ^= 1 << rng.u8(..8);
        let name = name.clone();
        let ended = import_bytes(&site, &write(&files));
        let told = format!("{name} at {at}: {ended:?}");
        assert_eq!(ended.code, Some(1), "{told}");
        assert_blobs_are_sound(&site.cache_dir());
    }
}

/// An image is refused whose documents disagree, whatever hashes they have.
#[tokio::test(flavor = "multi_thread")]
async fn descriptors_that_lie_are_found() {
    let (_simulator, _home, bundle) = two_images().await;
    let files = read(&bundle);
    let index = |change: &dyn Fn(&mut Value)| {
        let mut files = files.clone();
        let document = file(&mut files, "index.json");
        let mut json: Value = serde_json::from_slice(document).expect("JSON");
        change(&mut json["manifests"][0]);
        // As of a tool that writes no sum; with one, nothing in it can be changed at all.
        json["annotations"] = serde_json::json!({});
        *document = json.to_string().into_bytes();
        write(&files)
    };
    let index_type = "application/vnd.oci.image.index.v1+json";
    let absent = digest(b"absent");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("bytes, not", index(&|image| image["size"] = 7.into())),
        (
            "calls itself",
            index(&|image| image["mediaType"] = index_type.into()),
        ),
        (
            "came as text/html",
            index(&|image| image["mediaType"] = "text/html".into()),
        ),
        (
            "not in the bundle",
            index(&|image| image["digest"] = absent.clone().into()),
        ),
        (
            "tag",
            index(&|image| image["annotations"]["io.ecr-proxy.tag"] = "../x".into()),
        ),
        (
            "repository",
            index(&|image| image["annotations"]["io.ecr-proxy.repository"] = "../../x".into()),
        ),
    ];
    for (why, bytes) in cases {
        let site = cut_off().start();
        let ended = import_bytes(&site, &bytes);
        assert_eq!(ended.code, Some(1), "{why}: {ended:?}");
        let told = ended.json_lines();
        let error = told[0]["error"].as_str().unwrap_or_default();
        assert!(error.contains(why), "{why}: {told:?}");
        assert_eq!(
            told[1].get("error"),
            None,
            "the other one is good: {told:?}"
        );
    }
}

/// Imports from a pipe that has given only the beginning of a bundle.
fn begin(site: &Proxy, beginning: &[u8]) -> Child {
    let mut command = site.command(["import", "-", "--json"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().expect("the program was built");
    let pipe = child.stdin.as_mut().expect("a pipe");
    pipe.write_all(beginning).expect("it reads");
    pipe.flush().expect("a pipe");
    child
}

/// Where in a bundle each of its blobs ends, manifests left out, with its digest.
fn ends_of_blobs(bundle: &[u8]) -> Vec<(usize, String)> {
    let mut archive = tar::Archive::new(bundle);
    let entries = archive.entries().expect("an archive");
    let ends = entries.filter_map(|entry| {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").display().to_string();
        let hex = path.strip_prefix("blobs/sha256/")?;
        let end = entry.raw_file_position() as usize + entry.size() as usize;
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("memory");
        let is_manifest =
            content.starts_with(b"{") && content.windows(13).any(|w| w == b"schemaVersion");
        (!hex.is_empty() && !is_manifest).then(|| (end, format!("sha256:{hex}")))
    });
    ends.collect()
}

/// Imports all but what follows each blob in turn, kills, and imports again.
async fn killed(site: &mut Proxy, bundle: &[u8], kill: impl AsyncFn(&mut Proxy, Child)) {
    let ends = ends_of_blobs(bundle);
    assert_eq!(ends.len(), 6);
    for (end, digest) in &ends {
        let beyond = (end + 100_000).min(bundle.len() - 1024);
        let child = begin(site, &bundle[..beyond]);
        let blob = blob_file(site, digest);
        until("the blob is in the store", async || blob.exists()).await;
        kill(site, child).await;
        assert_nothing_recorded(site);
    }
    let told = import_bytes(site, bundle).fine().json_lines();
    assert_eq!(
        told[2]["new_blobs"], 0,
        "what was committed is not written again: {told:?}"
    );
    assert!(files_below(&site.cache_dir().join("fills")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_on_a_stopped_proxy_that_is_killed_goes_on_when_it_is_tried_again() {
    let (_simulator, home, bundle) = two_images().await;
    let mut site = cut_off().start();
    site.kill9();
    killed(&mut site, &bundle, async |_, mut child| {
        child.kill().expect("a child");
        child.wait().expect("a killed child");
    })
    .await;
    site.restart();
    for tag in ["v1", "v2"] {
        let expected = pull_all(&home.client(), tag).await;
        assert_eq!(pull_all(&site.client(), tag).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_beside_a_proxy_that_is_killed_goes_on_when_it_is_tried_again() {
    let (_simulator, home, bundle) = two_images().await;
    let mut site = cut_off().start();
    killed(&mut site, &bundle, async |site, mut child| {
        site.kill9();
        drop(child.stdin.take());
        let status = child.wait().expect("it ends");
        assert_eq!(status.code(), Some(1));
        site.restart();
    })
    .await;
    for tag in ["v1", "v2"] {
        let expected = pull_all(&home.client(), tag).await;
        assert_eq!(pull_all(&site.client(), tag).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_whose_bytes_stand_still_can_be_interrupted() {
    let (_simulator, _home, bundle) = two_images().await;
    let mut site = cut_off().start();
    for alone in [false, true] {
        if alone {
            site.terminate();
            assert!(site.wait().success());
        }
        let (end, digest) = &ends_of_blobs(&bundle)[usize::from(alone)];
        let mut child = begin(&site, &bundle[..end + 100_000]);
        let blob = blob_file(&site, digest);
        until("the blob is in the store", async || blob.exists()).await;
        // Its input stays open until it has ended.
        let input = child.stdin.take();
        kill_process(Pid::from_child(&child), Signal::INT).expect("ours");
        assert_eq!(Ended::of(child).code, Some(1));
        drop(input);
        assert_nothing_recorded(&site);
    }
    import_bytes(&site, &bundle).fine();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_killed_leaves_the_proxy_as_it_was() {
    let (_simulator, home, bundle) = two_images().await;
    let mut site = cut_off().start();
    killed(&mut site, &bundle, async |site, mut child| {
        child.kill().expect("a child");
        child.wait().expect("a killed child");
        until("nothing is half written", async || {
            files_below(&site.cache_dir().join("fills")).is_empty()
        })
        .await;
    })
    .await;
    let expected = pull_all(&home.client(), "v1").await;
    assert_eq!(pull_all(&site.client(), "v1").await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_the_quota_does_not_hold_is_not_applied() {
    let (_simulator, home, bundle) = two_images().await;
    // Room for one of them, and for what is noted of it.
    let site = cut_off().set("cache.max_size", 1_500_000_i64).start();
    let ended = import_bytes(&site, &bundle);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let told = ended.json_lines();
    let errors: Vec<_> = told[..2]
        .iter()
        .filter_map(|image| image["error"].as_str())
        .collect();
    assert!(!errors.is_empty(), "{told:?}");
    for error in &errors {
        assert!(error.contains("no room"), "{told:?}");
    }
    let smaller = export(&home, "one.tar", &["team/app:v1"]);
    import(&site, &smaller, &[]).fine();
    let expected = pull_all(&home.client(), "v1").await;
    assert_eq!(pull_all(&site.client(), "v1").await, expected);
    assert!(support::store::bytes_below(&site.cache_dir()) < 1_600_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn room_is_made_for_an_import_by_what_was_not_used_for_longest() {
    let (simulator, home, bundle) = two_images().await;
    simulator.push_image(REPOSITORY, "v3", ImageSpec::generated(3, [900_000, 70_000]));
    let newest = export(&home, "new.tar", &["team/app:v3"]);
    let expected = pull_all(&home.client(), "v3").await;
    let site = cut_off().set("cache.max_size", 2_200_000_i64).start();
    import_bytes(&site, &bundle).fine();
    import(&site, &newest, &[]).fine();
    assert_eq!(pull_all(&site.client(), "v3").await, expected);
    assert!(support::store::bytes_below(&site.cache_dir()) < 2_300_000);
    // What had to go went as a whole.
    let listed = site.run(["cache", "list", "--json"]).fine().json_lines();
    let images: Vec<_> = listed
        .iter()
        .filter(|told| told["event"] == "image")
        .collect();
    assert_eq!(images.len(), 2, "{listed:?}");
    assert!(
        images.iter().all(|image| image["state"] == "complete"),
        "{listed:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_blob_ends_an_export_and_nothing_is_left_of_it() {
    let (simulator, home, bundle) = two_images().await;
    let path = home.dir().join("out.tar");
    fs::write(&path, "precious").expect("written");
    let (_, manifest) = simulator.manifest(REPOSITORY, "v1").expect("pushed");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let damaged = manifest["layers"][0]["digest"].as_str().expect("a digest");
    let blob = blob_file(&home, damaged);
    let mut bytes = fs::read(&blob).expect("a blob");
    bytes[77] ^= 1;
    fs::write(&blob, &bytes).expect("a blob");
    let output = path.to_str().expect("UTF-8");
    let ended = home.run(["export", "team/app:v1", "-o", output, "--offline"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains(damaged), "{ended:?}");
    assert_eq!(fs::read_to_string(&path).expect("the file"), "precious");
    let left: Vec<_> = names(home.dir());
    assert!(
        !left.iter().any(|name| name.starts_with(".bundle")),
        "{left:?}"
    );
    assert!(!blob.exists(), "it is still in the cache");
    // What is fetched again is exported again.
    let expected = pull_all(&home.client(), "v1").await;
    assert_eq!(digest(&expected[damaged]), damaged);
    support::blobs::idle(&home).await;
    let again = export(&home, "again.tar", &["team/app:v1", "team/app:v2"]);
    assert_eq!(fs::read(again).expect("a bundle"), bundle);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}
