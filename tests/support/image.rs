//! The sample image of the tests: small, of several layers and two platforms, and runnable.

use std::fs;

use ecr_proxy::simulator::{
    FULL_ACCESS_KEY, ImageSpec, Layer, LayerFile, PushedImage, PushedManifest, Simulator,
};

use super::blobs::idle;
use super::{Proxy, program};

/// The repository it is in; a name of two parts, as many are.
pub const REPOSITORY: &str = "team/app";

/// Its tag.
pub const TAG: &str = "v1";

/// What it prints when it is run.
pub const GREETING: &str = "hello from the sample image";

/// A static busybox, a greeting that it prints, and 3 MiB that do not compress.
pub fn spec() -> ImageSpec {
    spec_saying(GREETING)
}

/// The same, with another greeting.
pub fn spec_saying(greeting: &str) -> ImageSpec {
    let busybox = fs::read(program("busybox")).expect("busybox can be read");
    let mut ballast = vec![0; 3 << 20];
    fastrand::Rng::with_seed(1).fill(&mut ballast);
    ImageSpec::layers([
        Layer::Files(vec![LayerFile::executable("bin/busybox", busybox)]),
        Layer::Files(vec![LayerFile::plain("greeting", greeting.to_owned())]),
        Layer::Files(vec![LayerFile::plain("ballast", ballast)]),
    ])
    .platforms(["linux/amd64", "linux/arm64"])
    .command(["/bin/busybox", "cat", "/greeting"])
}

/// Puts the sample image into a simulator.
pub fn push(simulator: &Simulator) -> PushedImage {
    simulator.create_repository(REPOSITORY);
    simulator.push_image(REPOSITORY, TAG, spec())
}

/// `user:password` with which a real client may read everything in `simulator`.
pub fn credentials(simulator: &Simulator) -> String {
    let token = simulator
        .token(FULL_ACCESS_KEY)
        .expect("a predefined principal");
    format!("AWS:{}", token.password)
}

/// Pulls an image of [`REPOSITORY`] with all its platforms, and waits until all of it is kept.
pub async fn pull_all(proxy: &Proxy, tag: &str, image: &PushedImage) {
    for manifest in &image.manifests {
        pull_platform(proxy, tag, manifest).await;
    }
}

/// Pulls one platform of it, as clients do: tag, manifest, config, layers.
pub async fn pull_platform(proxy: &Proxy, tag: &str, manifest: &PushedManifest) {
    let mut paths = vec![
        format!("manifests/{tag}"),
        format!("manifests/{}", manifest.manifest.digest),
    ];
    let blobs = std::iter::once(&manifest.config).chain(&manifest.layers);
    paths.extend(blobs.map(|blob| format!("blobs/{}", blob.digest)));
    for path in paths {
        let answer = proxy
            .client()
            .get(&format!("/v2/{REPOSITORY}/{path}"))
            .await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert!(answer.clean_end, "{path}");
    }
    idle(proxy).await;
}
