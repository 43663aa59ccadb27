//! Software that knows the real ECR takes the simulator for one.

use ecr_proxy::simulator::{
    BlobSource, DENIED_ACCESS_KEY, FULL_ACCESS_KEY, Flavour, ImageSpec, Layer, LayerFile, Listener,
    Simulator,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::start;

#[tokio::test]
async fn the_aws_sdk_understands_the_api() {
    let simulator = start().await;
    let client = |key: &str| {
        let credentials = aws_sdk_ecr::config::Credentials::new(key, "secret", None, None, "test");
        let config = aws_sdk_ecr::Config::builder()
            .behavior_version(aws_sdk_ecr::config::BehaviorVersion::latest())
            .region(aws_sdk_ecr::config::Region::new("us-west-2"))
            .endpoint_url(simulator.api_endpoint())
            .credentials_provider(credentials)
            .build();
        aws_sdk_ecr::Client::from_conf(config)
    };
    let full = client(FULL_ACCESS_KEY);
    let answer = full.get_authorization_token().send().await.unwrap();
    let data = &answer.authorization_data()[0];
    let host = simulator.registry_host();
    assert_eq!(data.proxy_endpoint(), Some(&*format!("https://{host}")));
    let life = data.expires_at().unwrap().secs()
        - aws_smithy_types::DateTime::from(std::time::SystemTime::now()).secs();
    assert!((12 * 3600 - 60..=12 * 3600).contains(&life), "{life}");
    full.create_repository()
        .repository_name("team/app")
        .send()
        .await
        .unwrap();
    assert_eq!(simulator.repositories(), ["team/app"]);

    let denied = client(DENIED_ACCESS_KEY).get_authorization_token().send();
    let error = denied.await.unwrap_err().into_service_error();
    assert_eq!(error.meta().code(), Some("AccessDeniedException"));
}

#[tokio::test]
async fn registry_and_storage_speak_tls_when_given_a_certificate() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let chain = made.cert.pem();
    let key = made.signing_key.serialize_pem();
    let simulator = Simulator::builder().tls(chain, key).start().await.unwrap();
    let digest = simulator.put_blob("app", "0123456789");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let token = simulator
        .token(FULL_ACCESS_KEY)
        .unwrap()
        .authorization_token;
    let tcp = TcpStream::connect(simulator.address(Listener::Registry))
        .await
        .unwrap();
    let mut stream = connector
        .connect("localhost".try_into().unwrap(), tcp)
        .await
        .unwrap();
    let request = format!(
        "GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Authorization: Basic {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 307"), "{answer}");
    assert!(answer.contains(&format!(
        "https://{}/",
        simulator.address(Listener::Storage)
    )));
}

/// Runs `skopeo copy` with `arguments`.
async fn skopeo(arguments: Vec<String>) {
    let output = tokio::process::Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--all"])
        .args(&arguments)
        .output()
        .await
        .expect("skopeo is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {arguments:?}: {said}");
}

#[tokio::test]
async fn skopeo_pulls_and_pushes_an_image_with_several_platforms() {
    let simulator = start().await;
    let hello = Layer::Files(vec![LayerFile::plain("etc/hello", "hello")]);
    for flavour in [Flavour::Oci, Flavour::Docker] {
        let spec = ImageSpec::layers([
            hello.clone(),
            Layer::Blob(BlobSource::generated(5, 3 << 20)),
        ])
        .platforms(["linux/amd64", "linux/arm64/v8"])
        .flavour(flavour);
        let image = simulator.push_image("app", "v1", spec);
        simulator.create_repository("copy");
        let password = simulator.token(FULL_ACCESS_KEY).unwrap().password;
        let folder = tempfile::tempdir().unwrap();
        let directory = format!("dir:{}", folder.path().display());
        let address = simulator.address(Listener::Registry);
        let mut pull = vec!["--src-tls-verify=false".to_owned()];
        pull.push(format!("--src-creds=AWS:{password}"));
        pull.push(format!("docker://{address}/app:v1"));
        pull.push(directory.clone());
        skopeo(pull).await;
        let mut push = vec!["--dest-tls-verify=false".to_owned()];
        push.push(format!("--dest-creds=AWS:{password}"));
        push.push("--preserve-digests".to_owned());
        push.push(directory);
        push.push(format!("docker://{address}/copy:v1"));
        skopeo(push).await;
        assert_eq!(
            simulator.manifest("copy", "v1"),
            simulator.manifest("app", "v1")
        );
        for blob in image.blobs() {
            let copied = simulator.blob("copy", &blob.digest).unwrap();
            assert_eq!(copied.digest(), blob.digest);
        }
    }
}
