//! What the OCI distribution specification 1.1 asks of a registry for pulls and for the discovery of content,
//! section by section, of the proxy and of Debian's docker-registry behind it: the same answers, and every
//! difference is named (P21).

mod support;

use support::image::{REPOSITORY, TAG};
use support::{Answer, Client, Scene};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What of an answer the specification is about.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    status: u16,
    /// The code of an error; empty where there is content.
    code: String,
    media_type: String,
    digest: String,
    length: Option<u64>,
    range: String,
    /// Bytes, but of JSON what they mean.
    body: Vec<u8>,
}

impl Said {
    fn of(method: &str, answer: &Answer) -> Self {
        let header = |name: &str| answer.header(name).unwrap_or_default().to_owned();
        let mut said = Self {
            status: answer.status,
            ..Self::default()
        };
        if answer.status >= 400 {
            // How an error is worded, and how long that is, is anybody's own.
            if method != "HEAD" {
                said.code = answer.error_code();
            }
            return said;
        }
        let media_type = header("content-type");
        said.media_type = media_type.split(';').next().unwrap_or_default().to_owned();
        said.digest = header("docker-content-digest");
        said.range = header("content-range");
        match said.media_type.as_str() {
            "application/json" if method != "HEAD" => said.body = answer.json().to_string().into(),
            _ => {
                said.length = answer.head.content_length();
                said.body = answer.body.clone();
            }
        }
        said
    }
}

/// One question of the specification's, and what is to come of it.
struct Question {
    section: &'static str,
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    status: u16,
}

fn question(section: &'static str, method: &'static str, path: String, status: u16) -> Question {
    Question {
        section,
        method,
        path,
        headers: Vec::new(),
        status,
    }
}

async fn ask(client: &Client, question: &Question) -> Answer {
    let headers: Vec<_> = question
        .headers
        .iter()
        .map(|(n, v)| (*n, v.as_str()))
        .collect();
    client.ask(question.method, &question.path, &headers).await
}

#[tokio::test(flavor = "multi_thread")]
async fn p21_pulls_are_answered_as_the_specification_and_the_registry_behind_have_it() {
    let scene = Scene::docker_registry().await;
    let (ours, theirs) = (scene.proxy.tls_client(), scene.direct());
    let of = |kind: &str, reference: &str| format!("/v2/{REPOSITORY}/{kind}/{reference}");
    let top = &scene.image().top.digest;
    let blob = &scene.image().blobs()[0].digest;
    let absent = format!("sha256:{}", "0".repeat(64));
    let accepting = |mut question: Question| {
        question.headers.push(("accept", INDEX.to_owned()));
        question
    };
    let mut questions = vec![question(
        "Determining Support (end-1)",
        "GET",
        "/v2/".to_owned(),
        200,
    )];
    for method in ["GET", "HEAD"] {
        let each = [
            accepting(question(
                "Pulling manifests (end-3), by tag",
                method,
                of("manifests", TAG),
                200,
            )),
            accepting(question(
                "Pulling manifests (end-3), by digest",
                method,
                of("manifests", top),
                200,
            )),
            question(
                "Pulling manifests (end-3), absent tag",
                method,
                of("manifests", "absent"),
                404,
            ),
            question(
                "Pulling manifests (end-3), absent digest",
                method,
                of("manifests", &absent),
                404,
            ),
            question(
                "Pulling manifests (end-3), absent name",
                method,
                "/v2/no/such/manifests/v1".to_owned(),
                404,
            ),
            question("Pulling blobs (end-2)", method, of("blobs", blob), 200),
            question(
                "Pulling blobs (end-2), absent",
                method,
                of("blobs", &absent),
                404,
            ),
            question(
                "Pulling blobs (end-2), absent name",
                method,
                format!("/v2/no/such/blobs/{blob}"),
                404,
            ),
        ];
        questions.extend(each);
    }
    let path = of("blobs", "sha256:no-digest");
    questions.push(question(
        "Pulling blobs (end-2), no digest",
        "GET",
        path,
        400,
    ));
    let mut part = question(
        "Pulling blobs (end-2), a range",
        "GET",
        of("blobs", blob),
        206,
    );
    part.headers.push(("range", "bytes=1-9".to_owned()));
    questions.push(part);
    questions.push(question(
        "Listing Tags (end-8a)",
        "GET",
        of("tags", "list"),
        200,
    ));
    questions.push(question(
        "Listing Tags (end-8b)",
        "GET",
        of("tags", "list?n=1"),
        200,
    ));
    questions.push(question(
        "Listing Tags (end-8a), absent name",
        "GET",
        "/v2/no/such/tags/list".to_owned(),
        404,
    ));
    for question in &questions {
        let (told, expected) = (ask(&ours, question).await, ask(&theirs, question).await);
        assert_eq!(
            told.status,
            question.status,
            "{}: {}",
            question.section,
            told.text()
        );
        assert!(told.clean_end, "{}", question.section);
        let (told, expected) = (
            Said::of(question.method, &told),
            Said::of(question.method, &expected),
        );
        assert_eq!(told, expected, "{} {}", question.method, question.section);
    }
}

/// docker-registry does not offer referrers, and nobody's errors are worded like another's.
#[tokio::test(flavor = "multi_thread")]
async fn p21_what_the_registry_behind_does_not_offer_is_told_so_and_errors_have_their_form() {
    let scene = Scene::docker_registry().await;
    let (ours, theirs) = (scene.proxy.tls_client(), scene.direct());
    // Listing Referrers (end-12a): 404 is how a client learns that it has to keep the fallback tag itself, so it
    // is passed on. Where they are offered: tests/lists.rs.
    let path = format!("/v2/{REPOSITORY}/referrers/{}", scene.image().top.digest);
    for client in [&ours, &theirs] {
        assert_eq!(client.get(&path).await.status, 404);
    }
    // Pulling manifests (end-3): what can be no tag is not there, and docker-registry has no code for it.
    let no_tag = format!("/v2/{REPOSITORY}/manifests/.NO_TAG");
    for method in ["GET", "HEAD"] {
        for client in [&ours, &theirs] {
            assert_eq!(client.ask(method, &no_tag, &[]).await.status, 404);
        }
    }
    assert_eq!(ours.get(&no_tag).await.error_code(), "MANIFEST_UNKNOWN");
    // Error Codes: every error is JSON of this form.
    for path in ["/v2/no/such/manifests/v1", "/v2/UPPER/manifests/v1", &path] {
        let told = ours.get(path).await;
        let error = &told.json()["errors"][0];
        assert!(
            error["code"].is_string() && error["message"].is_string(),
            "{error}"
        );
    }
}
