//! The same questions to a registry that is not ECR and not ours: Debian's docker-registry.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ecr_proxy::oci::{Digest, Reference, RepositoryName};
use ecr_proxy::upstream::{Absent, Auth, Secret, Span, Upstream, UpstreamError};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::support::{plain, read, upstream};

struct DockerRegistry {
    process: Child,
    _dir: tempfile::TempDir,
    address: String,
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn start(htpasswd: Option<&str>) -> DockerRegistry {
    let dir = tempfile::tempdir().unwrap();
    // docker-registry cannot be handed a socket nor tell which port it took.
    let address = {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    };
    let auth = htpasswd.map_or(String::new(), |line| {
        let path = dir.path().join("htpasswd");
        std::fs::write(&path, line).unwrap();
        format!(
            "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            path.display()
        )
    });
    let config = dir.path().join("config.yml");
    let mut file = std::fs::File::create(&config).unwrap();
    write!(
        file,
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{auth}",
        dir.path().join("data").display()
    )
    .unwrap();
    let process = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("Debian's docker-registry is installed");
    let registry = DockerRegistry {
        process,
        _dir: dir,
        address,
    };
    tokio::time::timeout(Duration::from_secs(30), async {
        while tokio::net::TcpStream::connect(&registry.address)
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    registry
}

impl DockerRegistry {
    fn options(&self) -> ecr_proxy::upstream::UpstreamOptions {
        plain("registry.example", &format!("http://{}", self.address))
    }

    async fn send(
        &self,
        method: &str,
        target: &str,
        media_type: &str,
        body: Vec<u8>,
    ) -> http::HeaderMap {
        let target = if target.starts_with("http") {
            target.to_owned()
        } else {
            format!("http://{}{target}", self.address)
        };
        let client = Client::builder(TokioExecutor::new()).build_http();
        let request = http::Request::builder()
            .method(method)
            .uri(target)
            .header("content-type", media_type)
            .body(Full::new(bytes::Bytes::from(body)))
            .unwrap();
        let response = client.request(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        assert!(head.status.is_success(), "{}: {body:?}", head.status);
        head.headers
    }

    async fn put_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let begun = self
            .send("POST", "/v2/team/app/blobs/uploads/", "", Vec::new())
            .await;
        let location = begun["location"].to_str().unwrap();
        let target = format!("{location}&digest={digest}");
        self.send("PUT", &target, "application/octet-stream", bytes.to_vec())
            .await;
        digest
    }
}

fn app() -> RepositoryName {
    "team/app".parse().unwrap()
}

async fn blob(upstream: &Upstream, digest: &Digest, span: Span) -> Vec<u8> {
    let mut body = upstream.blob(&app(), digest, span, None).await.unwrap();
    read(&mut body).await.unwrap().to_vec()
}

#[tokio::test]
async fn manifests_blobs_and_tags_of_another_registry() {
    let registry = start(None).await;
    let layer = vec![7; 100_000];
    let layer_digest = registry.put_blob(&layer).await;
    let config_digest = registry.put_blob(b"{}").await;
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{oci}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config_digest}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{layer_digest}","size":100000}}]}}"#
    );
    for tag in ["a", "b", "c"] {
        let target = format!("/v2/team/app/manifests/{tag}");
        registry
            .send("PUT", &target, oci, manifest.clone().into_bytes())
            .await;
    }

    let upstream = upstream(registry.options());
    upstream.ping().await.unwrap();
    assert!(!upstream.trusts_manifests());
    let tag: Reference = "a".parse().unwrap();
    let fetched = upstream.manifest(&app(), &tag).await.unwrap();
    assert_eq!(
        (fetched.bytes.as_ref(), fetched.media_type.as_str()),
        (manifest.as_bytes(), oci)
    );
    let head = upstream.head_manifest(&app(), &tag).await.unwrap();
    assert_eq!((head.digest, head.fetched), (fetched.digest, None));
    let missing: Reference = "z".parse().unwrap();
    let absent = UpstreamError::Absent(Absent::Manifest);
    assert_eq!(
        upstream.manifest(&app(), &missing).await.unwrap_err(),
        absent
    );

    assert_eq!(
        upstream.probe_blob(&app(), &layer_digest).await,
        Ok(Some(100_000))
    );
    assert_eq!(upstream.blob_size(&app(), &layer_digest).await, Ok(100_000));
    assert_eq!(blob(&upstream, &layer_digest, Span::WHOLE).await, layer);
    let span = Span {
        from: 99_990,
        to: None,
    };
    assert_eq!(blob(&upstream, &layer_digest, span).await, layer[99_990..]);
    let absent = UpstreamError::Absent(Absent::Blob);
    let other = Digest::of(b"other");
    assert_eq!(
        upstream.probe_blob(&app(), &other).await.unwrap_err(),
        absent
    );

    // Debian's version neither sorts nor pages.
    let mut page = upstream.tags(&app(), Some(2), None).await.unwrap();
    page.names.sort();
    assert_eq!(
        (page.names.join(","), page.next),
        ("a,b,c".to_owned(), None)
    );
}

#[tokio::test]
async fn a_password_is_sent_when_the_registry_asks_for_it() {
    let line = format!("user:{}", bcrypt::hash("canary", 4).unwrap());
    let registry = start(Some(&line)).await;
    let with = |password: &str| {
        let mut options = registry.options();
        options.auth = Auth::Basic {
            username: "user".into(),
            password: Secret::new(password),
        };
        upstream(options)
    };
    let right = with("canary");
    right.ping().await.unwrap();
    right.ping().await.unwrap();
    assert_eq!(
        with("wrong").ping().await.unwrap_err(),
        UpstreamError::BadCredentials
    );
    let anonymous = upstream(registry.options());
    assert_eq!(
        anonymous.ping().await.unwrap_err(),
        UpstreamError::BadCredentials
    );
}
