//! What the OCI distribution specification 1.1 asks of a registry for pulls and for the discovery of content,
//! section by section, of the proxy and of the registry behind it, Debian's docker-registry and ECR: the same
//! answers, and every difference is named in `tests/conformance/differences.md` (P21).

mod support;

#[path = "conformance/differences.rs"]
mod differences;

use differences::Said;
use ecr_proxy::simulator::FULL_ACCESS_KEY;
use support::image::{REPOSITORY, TAG};
use support::proxy::Builder;
use support::users::login;
use support::{Answer, Client, Scene};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What of an answer the specification is about.
fn said(method: &str, answer: &Answer) -> Said {
    let mut said = Said::from([("status", answer.status.to_string())]);
    if answer.status >= 400 {
        // How an error is worded, and how long that is, is anybody's own.
        if method != "HEAD" {
            said.insert("code", answer.error_code());
        }
        return said;
    }
    for (name, header) in [
        ("Docker-Content-Digest", "docker-content-digest"),
        ("Content-Range", "content-range"),
    ] {
        said.extend(answer.header(header).map(|value| (name, value.to_owned())));
    }
    let media_type = answer.header("content-type").unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default();
    said.insert("Content-Type", media_type.to_owned());
    // Of JSON what it means, however it is spaced.
    match serde_json::from_slice::<serde_json::Value>(&answer.body) {
        Ok(json) if !json["tags"].is_null() => {
            said.insert("body", json.to_string());
        }
        _ => {
            let length = answer.head.content_length();
            said.extend(length.map(|length| ("Content-Length", length.to_string())));
            said.insert("body", answer.digest());
        }
    }
    said
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
async fn p21_pulls_are_answered_as_the_specification_and_docker_registry_have_it() {
    let scene = Scene::docker_registry().await;
    let theirs = scene.direct();
    compare("docker-registry", &scene, &theirs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p21_pulls_are_answered_as_the_specification_and_ecr_have_it() {
    // Lists take more than a pull.
    let proxy_may_list = |proxy: Builder| proxy.env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY);
    let scene = Scene::simulator_with(proxy_may_list).await;
    let ecr = scene.ecr().expect("a simulator");
    let token = ecr.token(FULL_ACCESS_KEY).expect("a principal");
    let theirs = login(scene.direct(), "AWS", &token.password);
    compare("ECR", &scene, &theirs).await;
}

/// Asks all questions of both, and fails unless the proxy answers as it is to, and as the registry but for what is
/// documented.
async fn compare(behind: &str, scene: &Scene, theirs: &Client) {
    let ours = scene.proxy.tls_client();
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
    let mut answers = Vec::new();
    for question in &questions {
        let (told, expected) = (ask(&ours, question).await, ask(theirs, question).await);
        assert_eq!(
            told.status,
            question.status,
            "{}: {}",
            question.section,
            told.text()
        );
        assert!(told.clean_end, "{}", question.section);
        let method = question.method;
        let step = format!("{method} {}", question.section);
        answers.push((step, said(method, &expected), said(method, &told)));
    }
    let steps = answers.iter();
    let steps = steps.map(|(step, theirs, ours)| (step.as_str(), theirs, ours));
    differences::compare("Pulls", behind, steps);
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
