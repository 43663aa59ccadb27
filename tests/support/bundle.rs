//! Bundles taken apart and put together again, and images pulled as a whole.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use ecr_proxy::simulator::Simulator;
use serde_json::Value;

use super::image::REPOSITORY;
use super::store::digest;
use super::{Client, Proxy};

/// What a client says that takes any manifest.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// The files of an archive in their order.
pub type Files = Vec<(String, Vec<u8>)>;

/// Reads an archive.
pub fn read(bundle: &[u8]) -> Files {
    let mut archive = tar::Archive::new(bundle);
    let entries = archive.entries().expect("an archive");
    let files = entries.map(|entry| {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("its content");
        (path, content)
    });
    files.collect()
}

/// An archive of plain files, with their folders left out.
pub fn write(files: &Files) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files.iter().filter(|(path, _)| !path.ends_with('/')) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(1_700_000_000);
        archive
            .append_data(&mut header, path, &content[..])
            .expect("memory");
    }
    archive.into_inner().expect("memory")
}

/// The content of one file of it.
pub fn file<'a>(files: &'a mut Files, path: &str) -> &'a mut Vec<u8> {
    let found = files.iter_mut().find(|(name, _)| name == path);
    &mut found.unwrap_or_else(|| panic!("no {path}")).1
}

/// Where a blob is in it.
pub fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// A proxy that knows a registry by name and never reaches it. It does not take manifests for proof.
pub fn cut_off() -> super::proxy::Builder {
    Proxy::builder().registry("registry.upstream.test", "http://127.0.0.1:1")
}

/// Pulls everything that `reference` leads to, as a client does who wants all platforms; answers every
/// manifest and blob by its digest.
pub async fn pull_all(client: &Client, reference: &str) -> BTreeMap<String, Vec<u8>> {
    pull_all_of(client, REPOSITORY, reference).await
}

/// The same of another repository.
pub async fn pull_all_of(
    client: &Client,
    repository: &str,
    reference: &str,
) -> BTreeMap<String, Vec<u8>> {
    let mut pulled = BTreeMap::new();
    let mut left = vec![format!("/v2/{repository}/manifests/{reference}")];
    while let Some(target) = left.pop() {
        let answer = client.get_with(&target, &[("accept", ACCEPT)]).await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        assert!(answer.clean_end, "{target}");
        if let Some(named) = target.rsplit('/').next().filter(|n| n.contains(':')) {
            assert_eq!(answer.digest(), named, "{target}");
        }
        if target.contains("/manifests/") {
            let manifest = answer.json();
            let listed = |key: &str| manifest[key].as_array().cloned().unwrap_or_default();
            let named = |of: &Value| of["digest"].as_str().expect("a digest").to_owned();
            for child in listed("manifests") {
                left.push(format!("/v2/{repository}/manifests/{}", named(&child)));
            }
            let config = Some(manifest["config"].clone()).filter(Value::is_object);
            for blob in listed("layers").into_iter().chain(config) {
                left.push(format!("/v2/{repository}/blobs/{}", named(&blob)));
            }
        }
        pulled.insert(digest(&answer.body), answer.body);
    }
    pulled
}

/// A proxy whose cache holds all that `tags` lead to.
pub async fn filled(simulator: &Simulator, tags: &[&str]) -> Proxy {
    let proxy = Proxy::before(simulator);
    for tag in tags {
        pull_all(&proxy.client(), tag).await;
    }
    super::blobs::idle(&proxy).await;
    proxy
}

/// Exports from a proxy to a file in its folder.
pub fn export(proxy: &Proxy, name: &str, arguments: &[&str]) -> PathBuf {
    let path = proxy.dir().join(name);
    let output = path.to_str().expect("UTF-8");
    let arguments = ["export", "-o", output]
        .into_iter()
        .chain(arguments.iter().copied());
    proxy.run(arguments).fine();
    path
}

/// Imports a file.
pub fn import(proxy: &Proxy, bundle: &Path, arguments: &[&str]) -> super::Ended {
    let bundle = bundle.to_str().expect("UTF-8");
    let arguments = ["import", bundle, "--json"]
        .into_iter()
        .chain(arguments.iter().copied());
    proxy.run(arguments)
}
