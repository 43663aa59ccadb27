//! The simulated ECR answers as ECR does, oddities included, and goes wrong exactly as told.

use std::io;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_proxy::simulator::{
    BlobSource, DENIED_ACCESS_KEY, End, ExpiredForm, FULL_ACCESS_KEY, Fault, Flavour, Gate,
    ImageSpec, Layer, LayerFile, Listener, Outage, PULL_ONLY_ACCESS_KEY, Pattern, Simulator,
    TokenReply,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What came back over a raw socket, up to the end of the connection.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
    end: io::Result<()>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap().into()
    }

    fn message(&self) -> String {
        self.json()["errors"][0]["message"].as_str().unwrap().into()
    }
}

async fn exchange(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all).await.map(drop);
    let split = all.windows(4).position(|w| w == b"\r\n\r\n");
    let (head, body) = match split {
        Some(at) => (&all[..at], all[at + 4..].to_vec()),
        None => (&all[..], Vec::new()),
    };
    let head = String::from_utf8(head.to_vec()).unwrap();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Answer {
        status: status.unwrap_or(0),
        head,
        body,
        end,
    }
}

/// A client of one simulator that speaks as `access_key`.
struct Client {
    simulator: Simulator,
    credential: String,
}

impl Client {
    fn new(simulator: &Simulator, access_key: &str) -> Self {
        let token = simulator.token(access_key).unwrap();
        Self {
            simulator: simulator.clone(),
            credential: token.authorization_token,
        }
    }

    async fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let host = self.simulator.registry_host();
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Authorization: Basic {}\r\nContent-Length: {}\r\n{headers}\r\n",
            self.credential,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        exchange(self.simulator.address(Listener::Registry), &request).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", b"").await
    }

    async fn head(&self, path: &str) -> Answer {
        self.ask("HEAD", path, "", b"").await
    }

    /// The path and query on storage of a blob.
    async fn signed(&self, repository: &str, digest: &str) -> String {
        let answer = self.get(&format!("/v2/{repository}/blobs/{digest}")).await;
        assert_eq!(answer.status, 307, "{answer:?}");
        let location = answer.header("location").unwrap();
        let origin = self.simulator.storage_endpoint();
        location.strip_prefix(&origin).unwrap().to_owned()
    }
}

async fn storage(simulator: &Simulator, method: &str, path: &str, headers: &str) -> Answer {
    let address = simulator.address(Listener::Storage);
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: s3\r\nConnection: close\r\n{headers}\r\n");
    exchange(address, request.as_bytes()).await
}

async fn api(simulator: &Simulator, key: &str, operation: &str, input: &Value) -> Answer {
    let body = input.to_string();
    let request = format!(
        "POST / HTTP/1.1\r\nHost: api.ecr\r\nConnection: close\r\n\
         Content-Type: application/x-amz-json-1.1\r\n\
         X-Amz-Target: AmazonEC2ContainerRegistry_V20150921.{operation}\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential={key}/20260101/us-west-2/ecr/aws4_request, \
         SignedHeaders=host, Signature=00\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    exchange(simulator.address(Listener::Api), request.as_bytes()).await
}

async fn start() -> Simulator {
    Simulator::builder().start().await.unwrap()
}

async fn start_with_blob(content: &'static str) -> (Simulator, Client, String) {
    let simulator = start().await;
    let digest = simulator.put_blob("app", content);
    let client = Client::new(&simulator, FULL_ACCESS_KEY);
    (simulator, client, digest)
}

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

#[tokio::test]
async fn faults_of_the_body_end_it_as_told_and_the_journal_knows() {
    let (simulator, client, digest) = start_with_blob("0123456789").await;
    let spoiled = async |fault: Fault| {
        let pattern = Pattern::digest(&*digest);
        let rule = simulator.faults().on(Listener::Storage, "GET", pattern);
        let handle = rule.times(1).then(fault);
        let url = client.signed("app", &digest).await;
        let answer = storage(&simulator, "GET", &url, "").await;
        assert_eq!(handle.taken(), 1);
        simulator
            .journal()
            .until(|entries| entries.iter().all(|e| e.end != End::InFlight))
            .await
            .unwrap();
        (answer, simulator.journal().snapshot().pop().unwrap())
    };
    let (reset, entry) = spoiled(Fault::ResetAfter(4)).await;
    assert_eq!(
        reset.end.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
    assert_eq!((entry.body_bytes, entry.end), (4, End::Early));
    let (cut, entry) = spoiled(Fault::TruncateAfter(4)).await;
    assert_eq!(cut.header("content-length"), Some("10"));
    assert_eq!(cut.text(), "0123");
    cut.end.unwrap();
    assert_eq!(entry.end, End::Early);
    let (unframed, _) = spoiled(Fault::CloseDelimited(Some(7))).await;
    assert_eq!(unframed.header("content-length"), None);
    assert_eq!(unframed.header("transfer-encoding"), None);
    assert_eq!(unframed.text(), "0123456");
    let (chunked, _) = spoiled(Fault::TruncateChunked(3)).await;
    assert_eq!(chunked.text(), "3\r\n012\r\n");
    let (flipped, entry) = spoiled(Fault::Corrupt(9)).await;
    assert_eq!(flipped.body, b"012345678\xc6");
    assert_eq!((entry.body_bytes, entry.end), (10, End::Complete));
    let (other, _) = spoiled(Fault::OtherContent(1)).await;
    assert_eq!(other.body.len(), 10);
    assert_ne!(other.body, b"0123456789");
    let (gone, entry) = spoiled(Fault::Reset).await;
    assert!(gone.end.is_err() && gone.head.is_empty());
    assert_eq!((entry.status, entry.end), (None, End::Early));
    let (raw, _) = spoiled(Fault::Raw("HTTP/1.1 200 OK\r\nA: b\r\n\r\n".into())).await;
    assert_eq!(raw.header("a"), Some("b"));
}

#[tokio::test]
async fn an_unsolicited_answer_follows_on_the_open_connection() {
    let (simulator, client, digest) = start_with_blob("0123456789").await;
    let second = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let rule = simulator.faults().on(Listener::Storage, "GET", "/");
    rule.then(Fault::Extra(second.into()));
    let url = client.signed("app", &digest).await;
    let mut stream = TcpStream::connect(simulator.address(Listener::Storage))
        .await
        .unwrap();
    let request = format!("GET {url} HTTP/1.1\r\nHost: s3\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(b"poison") {
        assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
    }
    let text = String::from_utf8(read).unwrap();
    assert!(text.contains("0123456789HTTP/1.1 200 OK"), "{text}");
}

#[tokio::test]
async fn lies_about_a_range_are_told_as_scripted() {
    let (simulator, client, digest) = start_with_blob("0123456789").await;
    let url = client.signed("app", &digest).await;
    let ranged = async |fault: Fault| {
        let rule = simulator.faults().on(Listener::Storage, "GET", "/");
        rule.times(1).then(fault);
        storage(&simulator, "GET", &url, "Range: bytes=4-\r\n").await
    };
    let whole = ranged(Fault::IgnoreRange).await;
    assert_eq!((whole.status, &*whole.text()), (200, "0123456789"));
    let shifted = ranged(Fault::ShiftRange(2)).await;
    assert_eq!(shifted.header("content-range"), Some("bytes 6-9/10"));
    let total = Fault::SetHeader("content-range", "bytes 4-9/11".into());
    let total = ranged(total).await;
    assert_eq!(total.header("content-range"), Some("bytes 4-9/11"));
    assert_eq!(total.text(), "456789");
    let expired = ranged(Fault::Expired).await;
    assert_eq!(expired.status, 403);
    let throttled = ranged(Fault::throttled(Some("7"))).await;
    assert_eq!(
        (throttled.status, throttled.header("retry-after")),
        (429, Some("7"))
    );
}

#[tokio::test]
async fn a_gate_holds_answers_that_the_journal_shows_in_flight() {
    let (simulator, client, digest) = start_with_blob("0123456789").await;
    let gate = Gate::new();
    simulator
        .faults()
        .on(Listener::Storage, "GET", "/")
        .then(Fault::HoldAfter(4, gate.clone()));
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let url = client.signed("app", &digest).await;
        let simulator = simulator.clone();
        let get = async move { storage(&simulator, "GET", &url, "").await };
        waiting.push(tokio::spawn(get));
    }
    gate.arrived(3).await;
    let on_storage = |e: &ecr_proxy::simulator::Entry| e.listener == Listener::Storage;
    let journal = simulator.journal();
    assert_eq!(journal.body_bytes(on_storage), 12);
    assert_eq!(
        journal.count(|e| on_storage(e) && e.end == End::InFlight),
        3
    );
    gate.open();
    for get in waiting {
        assert_eq!(get.await.unwrap().text(), "0123456789");
    }
    assert_eq!(journal.body_bytes(on_storage), 30);
}

#[tokio::test]
async fn a_stalled_body_ends_in_the_journal_when_the_client_leaves() {
    let (simulator, client, digest) = start_with_blob("0123456789").await;
    simulator
        .faults()
        .on(Listener::Storage, "GET", "/")
        .then(Fault::StallAfter(5));
    let url = client.signed("app", &digest).await;
    let mut stream = TcpStream::connect(simulator.address(Listener::Storage))
        .await
        .unwrap();
    let request = format!("GET {url} HTTP/1.1\r\nHost: s3\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let journal = simulator.journal();
    journal
        .until(|entries| entries.iter().any(|e| e.body_bytes == 5))
        .await
        .unwrap();
    drop(stream);
    journal
        .until(|entries| entries.iter().any(|e| e.end == End::Early))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_outage_takes_the_port_away_and_gives_it_back() {
    let (simulator, client, _) = start_with_blob("x").await;
    let address = simulator.address(Listener::Registry);
    simulator.outage(Outage::Refused).await;
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    simulator.outage(Outage::Reset).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert!(stream.read_u8().await.is_err());
    simulator.outage(Outage::None).await;
    assert_eq!(client.get("/v2/").await.status, 200);
    simulator.shutdown().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn bodies_larger_than_memory_should_hold_are_computed_as_they_go() {
    let simulator = start().await;
    let len = 5 << 30;
    simulator.put_blob_as("app", "sha256:00", BlobSource::generated(1, len));
    let client = Client::new(&simulator, FULL_ACCESS_KEY);
    let url = client.signed("app", "sha256:00").await;
    let range = format!("Range: bytes={}-\r\n", len - 10);
    let part = storage(&simulator, "GET", &url, &range).await;
    let total = format!("bytes {}-{}/{len}", len - 10, len - 1);
    assert_eq!(part.header("content-range"), Some(&*total));
    let expected = BlobSource::generated(1, len).read(len - 10..len);
    assert_eq!(part.body, expected);
}

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

/// Runs skopeo with `arguments`, its credentials being `password`'s.
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
