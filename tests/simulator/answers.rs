//! What facts are known of ECR's and S3's answers, the simulator keeps.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_proxy::simulator::{
    BlobSource, DENIED_ACCESS_KEY, ExpiredForm, FULL_ACCESS_KEY, ImageSpec, Listener,
    PULL_ONLY_ACCESS_KEY, TokenReply,
};
use serde_json::json;

use crate::client::{Answer, Client, api, exchange, start, start_with_blob, storage};

#[tokio::test]
async fn no_credentials_are_refused_in_plain_text_under_a_basic_challenge() {
    let simulator = start().await;
    let host = simulator.registry_host();
    let request = format!("GET /v2/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let address = simulator.address(Listener::Registry);
    let answer = exchange(address, request.as_bytes()).await;
    assert_eq!((answer.status, &*answer.text()), (401, "Not Authorized\n"));
    let challenge = format!("Basic realm=\"https://{host}/\",service=\"ecr.amazonaws.com\"");
    assert_eq!(answer.header("www-authenticate"), Some(&*challenge));
    assert_eq!(answer.header("sizes"), Some(""));
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
}

#[tokio::test]
async fn a_password_never_issued_is_malformed_and_an_old_one_is_expired() {
    let simulator = start().await;
    let mut client = Client::new(&simulator, FULL_ACCESS_KEY);
    assert_eq!(client.get("/v2/").await.status, 200);
    simulator.expire_tokens();
    let expired = client.get("/v2/").await;
    assert_eq!((expired.status, &*expired.code()), (403, "DENIED"));
    assert!(
        expired
            .message()
            .contains("authorization token has expired")
    );
    simulator.set_expired_form(ExpiredForm::Text);
    let expired = client.get("/v2/").await;
    assert_eq!(expired.status, 403);
    assert!(expired.text().starts_with("Your authorization token has"));
    for wrong in ["AWS:guess", "other:guess", "nocolon"] {
        client.credential = STANDARD.encode(wrong);
        assert_eq!(client.get("/v2/").await.status, 400, "{wrong}");
    }
}

#[tokio::test]
async fn the_api_hands_out_a_numeric_expiry_and_a_long_token() {
    let simulator = start().await;
    let answer = api(
        &simulator,
        FULL_ACCESS_KEY,
        "GetAuthorizationToken",
        &json!({}),
    )
    .await;
    assert_eq!(answer.status, 200);
    let data = &answer.json()["authorizationData"][0];
    assert!(data["expiresAt"].is_number());
    let token = data["authorizationToken"].as_str().unwrap();
    assert!(token.len() > 2048);
    assert!(STANDARD.decode(token).unwrap().starts_with(b"AWS:"));
    let client = Client {
        simulator: simulator.clone(),
        credential: token.into(),
    };
    assert_eq!(client.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn api_refusals_carry_their_type_in_body_and_header() {
    let simulator = start().await;
    let ask = |key| {
        let simulator = simulator.clone();
        async move { api(&simulator, key, "GetAuthorizationToken", &json!({})).await }
    };
    let denied = ask(DENIED_ACCESS_KEY).await;
    assert_eq!(denied.status, 403);
    assert_eq!(
        denied.header("x-amzn-errortype"),
        Some("AccessDeniedException")
    );
    assert_eq!(denied.json()["__type"], "AccessDeniedException");
    assert!(denied.text().contains("ecr:GetAuthorizationToken"));
    let unknown = ask("AKIANOBODY").await;
    assert_eq!(unknown.json()["__type"], "UnrecognizedClientException");
    simulator.set_token_reply(TokenReply::Throttled);
    let throttled = ask(FULL_ACCESS_KEY).await;
    assert_eq!(throttled.status, 400);
    assert_eq!(throttled.json()["__type"], "ThrottlingException");
}

#[tokio::test]
async fn repositories_are_made_once_and_described() {
    let simulator = start().await;
    let input = json!({"repositoryName": "team/app"});
    let made = api(&simulator, FULL_ACCESS_KEY, "CreateRepository", &input).await;
    assert_eq!(made.status, 200);
    let repository = &made.json()["repository"];
    assert_eq!(
        repository["repositoryArn"],
        "arn:aws:ecr:us-west-2:000042290000:repository/team/app"
    );
    let again = api(&simulator, FULL_ACCESS_KEY, "CreateRepository", &input).await;
    assert_eq!(again.json()["__type"], "RepositoryAlreadyExistsException");
    let input = json!({"repositoryNames": ["none"]});
    let none = api(&simulator, FULL_ACCESS_KEY, "DescribeRepositories", &input).await;
    assert_eq!(none.json()["__type"], "RepositoryNotFoundException");
}

#[tokio::test]
async fn a_manifest_names_its_digest_on_head_and_not_on_get() {
    let simulator = start().await;
    let spec = ImageSpec::generated(1, [100]).platforms(["linux/amd64", "linux/arm64"]);
    let image = simulator.push_image("app", "v1", spec);
    assert_eq!(image.manifests.len(), 2);
    let client = Client::new(&simulator, PULL_ONLY_ACCESS_KEY);
    let head = client.head("/v2/app/manifests/v1").await;
    assert_eq!(head.status, 200);
    assert_eq!(
        head.header("docker-content-digest"),
        Some(&*image.top.digest)
    );
    assert_eq!(
        head.header("content-length"),
        Some(&*image.top.size.to_string())
    );
    assert_eq!(head.header("sizes"), Some(""));
    let get = client.get("/v2/app/manifests/v1").await;
    assert_eq!(get.status, 200);
    assert_eq!(get.header("docker-content-digest"), None);
    assert_eq!(get.header("etag"), None);
    assert_eq!(get.header("content-type"), Some(&*image.top.media_type));
    assert_eq!(BlobSource::from(get.body).digest(), image.top.digest);
}

#[tokio::test]
async fn absence_is_told_in_ecrs_words() {
    let (_simulator, client, _) = start_with_blob("x").await;
    let name = client.get("/v2/none/manifests/v1").await;
    assert_eq!((name.status, &*name.code()), (404, "NAME_UNKNOWN"));
    assert_eq!(
        name.message(),
        "The repository with name 'none' does not exist in the registry with id '000042290000'"
    );
    let manifest = client.get("/v2/app/manifests/v1").await;
    assert_eq!(
        (manifest.status, &*manifest.code()),
        (404, "MANIFEST_UNKNOWN")
    );
    assert_eq!(manifest.message(), "Requested image not found");
    let blob = client.get("/v2/app/blobs/sha256:00").await;
    assert_eq!((blob.status, &*blob.code()), (404, "BLOB_UNKNOWN"));
    assert_eq!(client.head("/v2/app/manifests/a+b").await.status, 400);
}

#[tokio::test]
async fn a_pull_only_role_pulls_but_may_not_head_blobs_or_list_tags() {
    let (simulator, full, digest) = start_with_blob("x").await;
    let client = Client::new(&simulator, PULL_ONLY_ACCESS_KEY);
    let blob = format!("/v2/app/blobs/{digest}");
    assert_eq!(client.get(&blob).await.status, 307);
    assert_eq!(client.head(&blob).await.status, 403);
    let tags = client.get("/v2/app/tags/list").await;
    assert_eq!((tags.status, &*tags.code()), (403, "DENIED"));
    assert_eq!(
        tags.message(),
        "User: arn:aws:sts::000042290000:assumed-role/pull-only/simulated is not authorized to \
         perform: ecr:ListImages on resource: \
         arn:aws:ecr:us-west-2:000042290000:repository/app because no identity-based policy \
         allows the ecr:ListImages action"
    );
    let head = full.head(&blob).await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-length"), Some("1"));
    assert_eq!(head.header("docker-content-digest"), Some(&*digest));
}

#[tokio::test]
async fn storage_serves_signed_gets_and_refuses_everything_else() {
    let (simulator, client, digest) = start_with_blob("0123456789").await;
    let url = client.signed("app", &digest).await;
    assert!(!url.contains(&digest[7..]), "{url} names the digest");
    let whole = storage(&simulator, "GET", &url, "").await;
    assert_eq!((whole.status, &*whole.text()), (200, "0123456789"));
    assert!(whole.header("etag").is_some());
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));

    let part = storage(&simulator, "GET", &url, "Range: bytes=2-4\r\n").await;
    assert_eq!((part.status, &*part.text()), (206, "234"));
    assert_eq!(part.header("content-range"), Some("bytes 2-4/10"));
    let several = storage(&simulator, "GET", &url, "Range: bytes=0-1,4-5\r\n").await;
    assert_eq!((several.status, several.body.len()), (200, 10));
    let beyond = storage(&simulator, "GET", &url, "Range: bytes=10-\r\n").await;
    assert_eq!(beyond.status, 416);

    let head = storage(&simulator, "HEAD", &url, "").await;
    assert_eq!((head.status, head.body.len()), (403, 0));
    for header in ["Authorization: Basic QQ==", "Cookie: a=b"] {
        let refused = storage(&simulator, "GET", &url, &format!("{header}\r\n")).await;
        assert_eq!(refused.status, 400);
        assert!(refused.text().contains("<Code>InvalidArgument</Code>"));
    }
    let forged = storage(&simulator, "GET", &format!("{url}0"), "").await;
    assert!(forged.text().contains("SignatureDoesNotMatch"));
    simulator.expire_urls();
    let expired = storage(&simulator, "GET", &url, "").await;
    assert_eq!(expired.status, 403);
    assert!(expired.text().contains("Request has expired"));
}

#[tokio::test]
async fn tags_come_in_pages_of_a_hundred_with_an_absolute_link() {
    let simulator = start().await;
    let digest = simulator.put_manifest("app", "", "application/x", "{}");
    for number in 0..150 {
        simulator.tag("app", &format!("v{number:03}"), &digest);
    }
    let client = Client::new(&simulator, FULL_ACCESS_KEY);
    let first = client.get("/v2/app/tags/list").await;
    assert_eq!(
        first.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
    let tags = |answer: &Answer| -> Vec<String> {
        serde_json::from_value(answer.json()["tags"].clone()).unwrap()
    };
    let mut all = tags(&first);
    assert_eq!(all.len(), 100);
    assert!(!all.is_sorted());
    let origin = format!("<https://{}", simulator.registry_host());
    let link = first.header("link").unwrap();
    let next = link.strip_prefix(&origin).unwrap();
    let next = next.strip_suffix(">; rel=\"next\"").unwrap();
    let second = client.get(next).await;
    assert_eq!(second.header("link"), None);
    all.extend(tags(&second));
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 150);
    let greedy = client.get("/v2/app/tags/list?n=1001").await;
    assert_eq!(greedy.code(), "UNSUPPORTED");
    assert!(greedy.message().contains("'maxResults'"));
    assert_eq!(
        client.get("/v2/app/tags/list?last=v001").await.code(),
        "UNSUPPORTED"
    );
}

#[tokio::test]
async fn referrers_are_found_by_subject_and_filtered_by_type() {
    let simulator = start().await;
    let subject = simulator.put_manifest("app", "v1", "application/x", "{}");
    for artifact_type in ["a/sbom", "a/signature"] {
        let manifest = json!({
            "artifactType": artifact_type, "subject": {"digest": subject}, "layers": []
        });
        simulator.put_manifest("app", "", "application/x", manifest.to_string());
    }
    let client = Client::new(&simulator, FULL_ACCESS_KEY);
    let path = format!("/v2/app/referrers/{subject}");
    let all = client.get(&path).await;
    assert_eq!(all.json()["manifests"].as_array().unwrap().len(), 2);
    let one = client.get(&format!("{path}?artifactType=a/sbom")).await;
    assert_eq!(one.json()["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(one.header("oci-filters-applied"), Some("artifactType"));
    let none = client.get("/v2/app/referrers/sha256:00").await;
    assert_eq!(
        (none.status, none.json()["manifests"].clone()),
        (200, json!([]))
    );
}

#[tokio::test]
async fn a_push_meets_ecrs_departures_from_the_specification() {
    let simulator = start().await;
    simulator.create_repository("app");
    let client = Client::new(&simulator, FULL_ACCESS_KEY);
    let origin = format!("https://{}", simulator.registry_host());
    let open = async || {
        let start = client
            .ask(
                "POST",
                "/v2/app/blobs/uploads/?mount=sha256:0&from=x",
                "",
                b"",
            )
            .await;
        assert_eq!(start.status, 202);
        let location = start.header("location").unwrap();
        location.strip_prefix(&origin).unwrap().to_owned()
    };
    let place = open().await;
    let first = client
        .ask("PATCH", &place, "Content-Range: 0-4\r\n", b"01234")
        .await;
    assert_eq!((first.status, first.header("range")), (201, Some("0-4")));
    let second = client
        .ask("PATCH", &place, "Content-Range: 5-9\r\n", b"56789")
        .await;
    assert_eq!((second.status, second.header("range")), (201, Some("0-4")));
    let again = client
        .ask("PATCH", &place, "Content-Range: 0-4\r\n", b"01234")
        .await;
    assert_eq!(again.status, 416);
    assert_eq!(
        again.message(),
        "First byte of the layer part is 0 instead of 10"
    );
    let digest = BlobSource::from("0123456789").digest();
    let done = format!("{place}?digest={digest}");
    assert_eq!(client.ask("PUT", &done, "", b"").await.status, 201);

    let empty = open().await;
    let refused = client
        .ask("PUT", &format!("{empty}?digest={digest}"), "", b"")
        .await;
    assert_eq!(
        (refused.status, &*refused.code()),
        (400, "BLOB_UPLOAD_INVALID")
    );

    let manifest = |layer: &str| {
        json!({
            "schemaVersion": 2, "mediaType": "application/x",
            "config": {"digest": digest}, "layers": [{"digest": layer}]
        })
        .to_string()
    };
    let put = async |reference: &str, body: String| {
        let path = format!("/v2/app/manifests/{reference}");
        client.ask("PUT", &path, "", body.as_bytes()).await
    };
    let lacking = put("v1", manifest("sha256:00")).await;
    assert_eq!(lacking.code(), "BLOB_UPLOAD_UNKNOWN");
    let blob = format!("/v2/app/blobs/{digest}");
    assert_eq!(client.get(&blob).await.status, 404, "no image names it yet");
    let stored = put("v1", manifest(&digest)).await;
    assert_eq!(stored.status, 201);
    assert!(stored.header("location").unwrap().starts_with(&origin));
    assert_eq!(client.get(&blob).await.status, 307);
    simulator.set_immutable("app", true);
    let immutable = put("v1", manifest(&digest)).await;
    assert_eq!((immutable.status, &*immutable.code()), (400, "TAG_INVALID"));
    let odd = put("v2", "{}".into()).await;
    assert_eq!((odd.status, &*odd.code()), (405, "UNSUPPORTED"));
}
