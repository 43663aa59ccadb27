//! Two accounts in two regions, each a simulated ECR with keys of its own.

use std::fs;

use ecr_proxy::simulator::{BlobSource, FULL_ACCESS_KEY, Simulator};
use tempfile::TempDir;
use toml::Table;

use super::blobs::{assert_whole, outcome};
use super::proxy::Builder;
use super::{Client, Proxy};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Of the layer of each of two tags, in bytes.
const LAYER_SIZE: u64 = 1 << 18;
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Two accounts in two regions, and where their keys are.
pub struct Two {
    /// The first upstream.
    pub prod: Simulator,
    /// The second, called `base`.
    pub base: Simulator,
    folder: TempDir,
}

impl Two {
    /// Both hold nothing yet.
    pub async fn start() -> Self {
        let at = |account: &str, region: &str| {
            let builder = Simulator::builder().account(account).region(region);
            builder.start()
        };
        let prod = at("000042290000", "us-west-2").await.expect("a simulator");
        let base = at("111122223333", "eu-west-1").await.expect("a simulator");
        let folder = TempDir::new().expect("a folder");
        let profile = |name: &str, simulator: &Simulator| {
            format!(
                "[profile {name}]\naws_access_key_id = {FULL_ACCESS_KEY}\n\
                 aws_secret_access_key = secret-of-{name}\nendpoint_url = {}\n",
                simulator.api_endpoint()
            )
        };
        let profiles = profile("prod", &prod) + &profile("base", &base);
        fs::write(folder.path().join("aws"), profiles).expect("a writable folder");
        Self { prod, base, folder }
    }

    /// Before both, with `prod` as the first upstream; nothing leads to either yet.
    pub fn builder(&self) -> Builder {
        self.before(Table::new(), Table::new())
    }

    /// The same, each by the role of this name in its account, which is assumed with this external id.
    pub fn with_roles(&self, prod: (&str, &str), base: (&str, &str)) -> Builder {
        let keys = |simulator: &Simulator, (role, external_id): (&str, &str)| {
            let host = simulator.registry_host();
            let account = host.split('.').next().expect("an account").to_owned();
            let arn = format!("arn:aws:iam::{account}:role/{role}");
            let keys = [("role_arn", arn.as_str()), ("external_id", external_id)];
            let keys = keys.map(|(key, value)| (key.to_owned(), value.into()));
            keys.into_iter().collect()
        };
        self.before(keys(&self.prod, prod), keys(&self.base, base))
    }

    /// Everything leads to `prod`, for which `base` stands in; tags are asked for each time.
    pub fn with_fallback(&self) -> Builder {
        let builder = self.builder().upstream_key("fallback", vec!["base"]);
        builder
            .set("cache.tag_ttl", "0s")
            .route([("repository", "**"), ("upstream", "prod")])
    }

    /// Two tags of `team/app` that both have.
    pub fn put_two_tags(&self) {
        for simulator in [&self.prod, &self.base] {
            for (seed, tag) in [(1, "v1"), (2, "v2")] {
                put(
                    simulator,
                    "team/app",
                    tag,
                    BlobSource::generated(seed, LAYER_SIZE),
                );
            }
        }
    }

    /// With further keys of the two upstreams.
    fn before(&self, prod: Table, base: Table) -> Builder {
        let mut second = upstream(&self.base);
        second.insert("name".to_owned(), "base".into());
        second.insert("profile".to_owned(), "base".into());
        second.extend(base);
        let config = self.folder.path().join("aws");
        let builder = Proxy::builder()
            .upstream_key("registry", self.prod.registry_host())
            .upstream_key("endpoint", self.prod.endpoint())
            .upstream_key("profile", "prod");
        let keys = prod.into_iter();
        keys.fold(builder, |builder, (key, value)| {
            builder.upstream_key(&key, value)
        })
        .another_upstream(second)
        .env("AWS_CONFIG_FILE", config.to_str().expect("a UTF-8 path"))
    }
}

fn upstream(simulator: &Simulator) -> Table {
    let mut table = Table::new();
    table.insert("registry".to_owned(), simulator.registry_host().into());
    table.insert("endpoint".to_owned(), simulator.endpoint().into());
    table
}

/// `base/**` leads to `base`, which knows nothing of that prefix, and all else to `prod`.
pub fn side_by_side(builder: Builder) -> Builder {
    let below = [
        ("repository", "base/**"),
        ("upstream", "base"),
        ("strip_prefix", "base/"),
    ];
    builder
        .route(below)
        .route([("repository", "**"), ("upstream", "prod")])
}

/// Puts an image of one layer: the layer's digest, and the manifest's.
pub fn put(
    simulator: &Simulator,
    repository: &str,
    tag: &str,
    layer: BlobSource,
) -> (String, String) {
    let size = layer.len();
    let layer = simulator.put_blob(repository, layer);
    let config = simulator.put_blob(repository, "{}");
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"{CONFIG}","digest":"{config}","size":2}},"layers":[{{"mediaType":"{LAYER}","digest":"{layer}","size":{size}}}]}}"#
    );
    let manifest = simulator.put_manifest(repository, tag, MANIFEST, text.into_bytes());
    (layer, manifest)
}

/// Pulls an image of `team/app` that [`put`] put, by its tag; what `X-Cache` said of manifest and layer.
pub async fn pull(client: &Client, tag: &str) -> Option<(String, String)> {
    let manifest = client.get(&format!("/v2/team/app/manifests/{tag}")).await;
    if manifest.status != 200 {
        return None;
    }
    let json = manifest.json();
    let layer = json["layers"][0]["digest"].as_str().expect("a layer");
    let blob = client.get(&format!("/v2/team/app/blobs/{layer}")).await;
    if blob.status != 200 {
        return None;
    }
    assert_whole(&blob, layer);
    let said = |answer| outcome(answer).unwrap_or_default().to_owned();
    Some((said(&manifest), said(&blob)))
}
