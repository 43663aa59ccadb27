//! What is pushed and is no image: charts as Helm makes them, and files and signatures as ORAS makes them. Their
//! bytes come back as they were, from the cache and with the upstream gone, and who looks for what refers to an image
//! finds it.

mod support;

use support::push::{put, send};
use support::pushed::{
    LOGIN, PASSWORD, TARGET, digest_of, into_docker_registry, into_ecr, pulls_without_upstream,
    target, trust,
};
use support::real::{containerd_hosts, ctr, start_containerd};
use support::store::digest;
use support::users::login;
use support::{Answer, Client, Scene};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// A config that says nothing (image-spec, "Guidance for an empty descriptor").
const EMPTY: (&str, &str) = ("application/vnd.oci.empty.v1+json", "{}");

/// A manifest and the blobs that it names.
struct Artifact {
    manifest: String,
    blobs: Vec<String>,
}

impl Artifact {
    /// Of a config and layers, each with its type.
    fn new(more: &str, config: (&str, &str), layers: &[(&str, &str)]) -> Self {
        let described = |(kind, content): &(&str, &str)| {
            let digest = digest(content.as_bytes());
            let size = content.len();
            format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}"#)
        };
        let layers_described: Vec<_> = layers.iter().map(described).collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}"{more},"config":{},"layers":[{}]}}"#,
            described(&config),
            layers_described.join(",")
        );
        let blobs = std::iter::once(&config).chain(layers);
        let blobs = blobs.map(|(_, content)| (*content).to_owned()).collect();
        Self { manifest, blobs }
    }

    fn digest(&self) -> String {
        digest(self.manifest.as_bytes())
    }

    /// An OCI image layout of it, as tools read one.
    fn layout(&self, scene: &Scene, name: &str) -> String {
        let folder = scene.sandbox.path(name);
        let all = self.blobs.iter().chain([&self.manifest]);
        for content in all {
            let hex = digest(content.as_bytes()).replace("sha256:", "");
            scene
                .sandbox
                .write(&folder.join("blobs/sha256").join(hex), content);
        }
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{MANIFEST}","digest":"{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"it"}}}}]}}"#,
            self.digest(),
            self.manifest.len()
        );
        scene.sandbox.write(&folder.join("index.json"), index);
        let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
        scene.sandbox.write(&folder.join("oci-layout"), version);
        format!("oci:{}:it", folder.display())
    }

    /// Pushes it as ORAS does: blobs in one request each, then the manifest.
    async fn push(&self, client: &Client, reference: &str) -> Answer {
        for blob in &self.blobs {
            let path = format!(
                "/v2/{TARGET}/blobs/uploads/?digest={}",
                digest(blob.as_bytes())
            );
            let done = send(client, "POST", &path, &[], blob.as_bytes(), false).await;
            assert_eq!(done.status, 201, "{}", done.text());
        }
        let path = format!("/v2/{TARGET}/manifests/{reference}");
        let kind = [("content-type", MANIFEST)];
        let done = put(client, &path, &kind, self.manifest.as_bytes()).await;
        assert_eq!(done.status, 201, "{}", done.text());
        done
    }
}

/// As `helm package` and `helm push` have it.
fn chart() -> Artifact {
    let config = r#"{"name":"app","version":"1.2.3+build","apiVersion":"v2","type":"application"}"#;
    Artifact::new(
        r#","annotations":{"org.opencontainers.image.title":"app"}"#,
        ("application/vnd.cncf.helm.config.v1+json", config),
        &[
            (
                "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
                "the chart",
            ),
            (
                "application/vnd.cncf.helm.chart.provenance.v1.prov",
                "its provenance",
            ),
        ],
    )
}

/// As `oras attach` has it: of a type of its own, and about an image.
fn signature(subject: &str, size: usize, content: &str) -> Artifact {
    let more = format!(
        r#","artifactType":"application/vnd.example.signature","subject":{{"mediaType":"{MANIFEST}","digest":"{subject}","size":{size}}}"#
    );
    Artifact::new(&more, EMPTY, &[("text/plain", content)])
}

async fn chart_story(mut scene: Scene) {
    trust(&scene, "/etc/containers/certs.d");
    let chart = chart();
    // Helm writes + as _ in a tag.
    let tag = "1.2.3_build";
    let layout = chart.layout(&scene, "chart");
    let to = format!("docker://{}", target(&scene, tag));
    let copy = [
        "copy",
        "--preserve-digests",
        "--dest-creds",
        LOGIN,
        &layout,
        &to,
    ];
    scene.sandbox.must("skopeo", copy);
    assert_eq!(digest_of(&scene, tag).await, chart.digest());
    // Another client has it from the cache.
    start_containerd(&scene.sandbox);
    let hosts = containerd_hosts(&scene, &["pull", "resolve"], "");
    scene.stop_upstream().await;
    let reference = target(&scene, tag);
    let fetch = [
        "content",
        "fetch",
        "--hosts-dir",
        &hosts,
        "--user",
        LOGIN,
        &reference,
    ];
    ctr(&scene.sandbox, &fetch);
    let content = ctr(&scene.sandbox, &["content", "ls", "--quiet"]);
    for blob in chart.blobs.iter().chain([&chart.manifest]) {
        assert!(content.contains(&digest(blob.as_bytes())), "{content}");
    }
    pulls_without_upstream(scene, tag).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chart_is_pushed_into_ecr_and_fetched_from_the_cache() {
    chart_story(into_ecr().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chart_is_pushed_into_docker_registry_and_fetched_from_the_cache() {
    chart_story(into_docker_registry().await).await;
}

/// What refers to `subject`, as the proxy lists it: digests, and whether it took the filter.
async fn referrers(client: &Client, subject: &str, query: &str) -> (Vec<String>, bool) {
    let path = format!("/v2/{TARGET}/referrers/{subject}{query}");
    let answer = client.get(&path).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let listed = answer.json()["manifests"]
        .as_array()
        .expect("an index")
        .clone();
    let digest = |one: &serde_json::Value| one["digest"].as_str().map(str::to_owned);
    let digests = listed.iter().filter_map(digest).collect();
    (
        digests,
        answer.header("oci-filters-applied") == Some("artifactType"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_attached_to_an_image_is_found_and_pulled_with_ecr_gone() {
    let mut scene = into_ecr().await;
    trust(&scene, "/etc/containers/certs.d");
    let client = login(scene.proxy.tls_client(), "ci", PASSWORD);
    let image = Artifact::new("", EMPTY, &[("text/plain", "a file")]);
    let subject = image.digest();
    // Nothing refers to it yet, and that is not believed once something was pushed.
    image.push(&client, "v1").await;
    assert_eq!(
        referrers(&client, &subject, "").await.0,
        Vec::<String>::new()
    );
    let signatures =
        ["one", "two"].map(|content| signature(&subject, image.manifest.len(), content));
    for signature in &signatures {
        let answer = signature.push(&client, &signature.digest()).await;
        assert_eq!(answer.header("oci-subject"), Some(&*subject));
    }
    let filter = "?artifactType=application/vnd.example.signature";
    let mut all = signatures.each_ref().map(Artifact::digest).to_vec();
    all.sort();
    for query in ["", filter] {
        let (mut found, is_filtered) = referrers(&client, &subject, query).await;
        found.sort();
        assert_eq!((found, is_filtered), (all.clone(), !query.is_empty()));
    }
    scene.stop_upstream().await;
    let (mut found, _) = referrers(&client, &subject, filter).await;
    found.sort();
    assert_eq!(found, all, "from the cache");
    for digest in &all {
        let from = format!("docker://{}/{TARGET}@{digest}", scene.host());
        let to = format!("dir:{}", scene.sandbox.path("pulled").display());
        let copy = [
            "copy",
            "--preserve-digests",
            "--src-creds",
            LOGIN,
            &from,
            &to,
        ];
        scene.sandbox.must("skopeo", copy);
    }
    scene.proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_registry_knows_no_referrers_the_client_keeps_them_under_a_tag_itself() {
    let scene = into_docker_registry().await;
    trust(&scene, "/etc/containers/certs.d");
    let client = login(scene.proxy.tls_client(), "ci", PASSWORD);
    let image = Artifact::new("", EMPTY, &[("text/plain", "a file")]);
    let subject = image.digest();
    image.push(&client, "v1").await;
    let signature = signature(&subject, image.manifest.len(), "one");
    let answer = signature.push(&client, &signature.digest()).await;
    // By this a client knows that it has to.
    assert_eq!(answer.header("oci-subject"), None);
    let path = format!("/v2/{TARGET}/referrers/{subject}");
    assert_eq!(client.get(&path).await.status, 404);
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{MANIFEST}","digest":"{}","size":{},"artifactType":"application/vnd.example.signature"}}]}}"#,
        signature.digest(),
        signature.manifest.len()
    );
    let tag = subject.replace(':', "-");
    let path = format!("/v2/{TARGET}/manifests/{tag}");
    let kind = [("content-type", INDEX)];
    assert_eq!(
        put(&client, &path, &kind, index.as_bytes()).await.status,
        201
    );
    pulls_without_upstream(scene, &tag).await;
}
