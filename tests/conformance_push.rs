//! What the OCI distribution specification 1.1 asks of a registry for pushes, for the discovery of content and
//! for its management, step by step, of the proxy and of the registry behind it: every step is answered as the
//! specification allows, and as that registry itself answers it. Where it is not,
//! `tests/conformance/differences.md` says so and why (P21).

mod support;

#[path = "conformance/differences.rs"]
mod differences;
#[path = "conformance/script.rs"]
mod script;

use ecr_proxy::simulator::{FULL_ACCESS_KEY, Listener, Simulator};
use script::{BLOB, Script, joined, part, place};
use sha2::{Digest as _, Sha512};
use support::push::{APP, MANIFEST, OTHER, PASSWORD, Rig, bytes, manifest, send, users};
use support::real::DockerRegistry;
use support::store::digest;
use support::users::login;
use support::{Client, Proxy};

const ECR: &str = "ECR";
const DOCKER_REGISTRY: &str = "docker-registry";

/// The headings of `differences.md`.
const PUSHES: &str = "Pushes, discovery and management";
const OUTSIDE: &str = "Neither as the specification has it";

/// An artifact without a config of its own, as ORAS makes one.
fn artifact(of: &str, kind: &str, layer: &[u8]) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","artifactType":"{kind}","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{}","size":2}},"layers":[{{"mediaType":"text/plain","digest":"{}","size":{}}}],"subject":{{"mediaType":"{MANIFEST}","digest":"{of}","size":2}}}}"#,
        digest(b"{}"),
        digest(layer),
        layer.len()
    )
}

fn sha512(content: &[u8]) -> String {
    let hash = Sha512::digest(content);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha512:{hex}")
}

async fn pushes(script: &mut Script) {
    let blob = bytes(3000);
    let blobs = format!("/v2/{APP}/blobs");
    let held = digest(&blob);
    let absent = digest(b"absent");
    let ends =
        |place: &str, digest: &str| format!("PUT {}", joined(place, &format!("digest={digest}")));

    let line = format!("HEAD {blobs}/{absent}");
    script.ask("blob, absent", &[404], &line).await;
    let place_of = script.begin("POST then PUT: POST (end-4a)").await;
    let line = ends(&place_of, &held);
    script
        .send("POST then PUT: PUT (end-6)", &[201], &line, BLOB, &blob)
        .await;
    let line = format!("HEAD {blobs}/{held}");
    script
        .ask("POST then PUT: HEAD of the blob", &[200], &line)
        .await;

    let line = format!("POST {blobs}/uploads/?digest={}", digest(b"{}"));
    let answer = script
        .send("single POST (end-4b)", &[201, 202], &line, BLOB, b"{}")
        .await;
    if answer.status == 202 {
        let place = place(&answer).expect("where it goes on");
        let line = ends(&place, &digest(b"{}"));
        let (method, target) = line.split_once(' ').expect("a method and a target");
        let done = send(&script.client, method, target, &[], b"{}", false).await;
        assert_eq!(done.status, 201, "{}", done.text());
    }
    let line = format!("HEAD {blobs}/{}", digest(b"{}"));
    script
        .ask("single POST: HEAD of the blob", &[200], &line)
        .await;

    let whole = bytes(5000);
    let (first, second) = whole.split_at(2000);
    let mut at = script.begin("chunks: POST").await;
    let line = format!("PATCH {at}");
    let answer = script
        .send(
            "chunks: the first (end-5)",
            &[202],
            &line,
            part("0-1999"),
            first,
        )
        .await;
    at = place(&answer).unwrap_or(at);
    let answer = script
        .ask("chunks: how far (end-13)", &[204], &format!("GET {at}"))
        .await;
    at = place(&answer).unwrap_or(at);
    let line = format!("PATCH {at}");
    let answer = script
        .send(
            "chunks: the second",
            &[202],
            &line,
            part("2000-4999"),
            second,
        )
        .await;
    at = place(&answer).unwrap_or(at);
    let answer = script
        .ask("chunks: how far at the end", &[204], &format!("GET {at}"))
        .await;
    at = place(&answer).unwrap_or(at);
    let line = ends(&at, &digest(&whole));
    script
        .send("chunks: PUT without a body", &[201], &line, BLOB, b"")
        .await;
    let line = format!("GET {blobs}/{}", digest(&whole));
    // ECR has no address for a blob that no image names yet.
    script.ask("chunks: the blob", &[200], &line).await;

    let mut at = script.begin("out of order: POST").await;
    let line = format!("PATCH {at}");
    let answer = script
        .send(
            "out of order: the second first",
            &[416],
            &line,
            part("2000-4999"),
            second,
        )
        .await;
    at = place(&answer).unwrap_or(at);
    let mut at_two = script.begin("twice: POST").await;
    let line = format!("PATCH {at_two}");
    let answer = script
        .send("twice: the first", &[202], &line, part("0-1999"), first)
        .await;
    at_two = place(&answer).unwrap_or(at_two);
    let line = format!("PATCH {at_two}");
    script
        .send(
            "twice: the first again",
            &[416],
            &line,
            part("0-1999"),
            first,
        )
        .await;

    script
        .ask(
            "cancel: DELETE (end-14)",
            &[204, 405],
            &format!("DELETE {at}"),
        )
        .await;
    for (begun, ended, digest) in [
        ("wrong digest: POST", "wrong digest: PUT", &*absent),
        (
            "malformed digest: POST",
            "malformed digest: PUT",
            "sha256:xyz",
        ),
    ] {
        let line = ends(&script.begin(begun).await, digest);
        script.send(ended, &[400], &line, BLOB, &blob).await;
    }
    let line = format!("PUT {}", script.begin("no digest: POST").await);
    script
        .send("no digest: PUT", &[400], &line, BLOB, &blob)
        .await;
    let line = format!("GET {blobs}/uploads/00000000-0000-0000-0000-000000000000");
    script
        .ask("an upload that is none: GET", &[404], &line)
        .await;
    let line = ends(&script.begin("an empty blob: POST").await, &digest(b""));
    script
        .send("an empty blob: PUT", &[201], &line, BLOB, b"")
        .await;
    // Digests of another algorithm than SHA-256 are a registry's to take or not.
    let by_sha512 = sha512(&blob);
    let line = ends(&script.begin("by its SHA-512: POST").await, &by_sha512);
    script
        .send("by its SHA-512: PUT", &[201, 400], &line, BLOB, &blob)
        .await;
    let line = format!("GET {blobs}/{by_sha512}");
    script
        .ask("by its SHA-512: GET of the blob", &[200, 400, 404], &line)
        .await;

    for (name, query) in [
        ("mount (end-11)", format!("mount={held}&from={APP}")),
        (
            "mount of what is not there",
            format!("mount={absent}&from={APP}"),
        ),
        ("mount without from", format!("mount={held}")),
    ] {
        let line = format!("POST /v2/{OTHER}/blobs/uploads/?{query}");
        script.send(name, &[201, 202], &line, BLOB, b"").await;
    }

    let text = manifest(&blob);
    let by_digest = digest(text.as_bytes());
    script
        .put_manifest("manifest, by digest (end-7)", &[201], &by_digest, &text)
        .await;
    for tag in ["v1", "v2", "v3"] {
        script
            .put_manifest("manifest, by tag (end-7)", &[201], tag, &text)
            .await;
    }
    for reference in ["v1", &by_digest] {
        for method in ["HEAD", "GET"] {
            let line = format!("{method} /v2/{APP}/manifests/{reference}");
            script
                .ask("manifest that was pushed (end-3)", &[200], &line)
                .await;
        }
    }
    let lacking = manifest(b"never pushed");
    script
        .put_manifest("manifest under another's digest", &[400], &absent, &text)
        .await;
    script
        .put_manifest(
            "manifest without its layer",
            &[400, 404],
            "lacking",
            &lacking,
        )
        .await;
    script
        .put_manifest("manifest that is none", &[400], "none", "no json")
        .await;
    script
        .put_manifest("manifest under a bad tag", &[400, 404, 405], "v+1", &text)
        .await;
    let line = "PUT /v2/UPPER/manifests/v1";
    let kind = (MANIFEST, None);
    script
        .send(
            "manifest of a bad name",
            &[400, 404],
            line,
            kind,
            text.as_bytes(),
        )
        .await;
}

async fn discovers(script: &mut Script) {
    let layer = bytes(3000);
    let subject = digest(manifest(&layer).as_bytes());
    let absent = digest(b"no manifest");
    let referrers = format!("GET /v2/{APP}/referrers");
    let line = format!("{referrers}/{subject}");
    script
        .ask("referrers, none (end-12a)", &[200, 404], &line)
        .await;
    for (name, of, kind) in [
        ("manifest with a subject", &subject, "application/vnd.one"),
        ("manifest with a subject", &subject, "application/vnd.two"),
        (
            "manifest before its subject",
            &absent,
            "application/vnd.one",
        ),
    ] {
        let text = artifact(of, kind, &layer);
        let reference = digest(text.as_bytes());
        script.put_manifest(name, &[201], &reference, &text).await;
    }
    script.ask("referrers (end-12a)", &[200, 404], &line).await;
    let of_two = format!("{line}?artifactType=application/vnd.two");
    script
        .ask("referrers of a type (end-12b)", &[200, 404], &of_two)
        .await;
    let line = format!("{referrers}/{absent}");
    script
        .ask("referrers of what is not there", &[200, 404], &line)
        .await;
    let line = format!("{referrers}/v1");
    script
        .ask("referrers of no digest", &[400, 404], &line)
        .await;

    for (name, query) in [
        ("tags (end-8a)", ""),
        ("tags, a page of 2 (end-8b)", "?n=2"),
        ("tags, none of them", "?n=0"),
        ("tags, from one on", "?last=v1"),
        ("tags, a page from one on", "?n=1&last=v1"),
    ] {
        let line = format!("GET /v2/{APP}/tags/list{query}");
        script.ask(name, &[200, 404], &line).await;
    }
    let line = "GET /v2/team/absent/tags/list";
    script.ask("tags of no repository", &[404], line).await;
}

async fn manages(script: &mut Script) {
    let tag = |tag: &str| format!("/v2/{APP}/manifests/{tag}");
    let by_digest = tag(&digest(manifest(&bytes(3000)).as_bytes()));
    let blob = |content: &[u8]| format!("/v2/{APP}/blobs/{}", digest(content));
    let (held, absent) = (blob(&bytes(5000)), blob(b"absent"));
    for (name, allowed, method, target) in [
        (
            "delete a tag (end-9)",
            &[202, 400, 405][..],
            "DELETE",
            tag("v1"),
        ),
        // Where tags are not deleted, it is there.
        ("the deleted tag", &[200, 404], "GET", tag("v1")),
        ("its manifest", &[200], "GET", by_digest.clone()),
        (
            "delete a manifest (end-9)",
            &[202, 405],
            "DELETE",
            by_digest.clone(),
        ),
        ("the deleted manifest", &[404], "GET", by_digest.clone()),
        ("its tag", &[404], "GET", tag("v2")),
        ("delete it again", &[404], "DELETE", by_digest),
        (
            "delete a blob (end-10)",
            &[202, 405],
            "DELETE",
            held.clone(),
        ),
        ("the deleted blob", &[404, 200], "GET", held),
        (
            "delete a blob that is not there",
            &[404, 405],
            "DELETE",
            absent,
        ),
        (
            "tags at the end",
            &[200, 404],
            "GET",
            format!("/v2/{APP}/tags/list"),
        ),
    ] {
        script
            .ask(name, allowed, &format!("{method} {target}"))
            .await;
    }
}

/// All steps, each category with what the one before has left.
async fn all(client: Client) -> Script {
    let mut script = Script::new(client);
    pushes(&mut script).await;
    discovers(&mut script).await;
    manages(&mut script).await;
    script
}

/// Fails unless the two differ in what is documented, and in nothing else.
fn compare(behind: &str, theirs: &Script, ours: &Script) {
    let outside = ours.outside.iter();
    let outside: Vec<_> = outside
        .map(|(step, status)| format!("{step}, {status}"))
        .collect();
    let documented = differences::rows(OUTSIDE, behind).into_iter();
    let documented: Vec<_> = documented.map(|cells| cells[..2].join(", ")).collect();
    assert_eq!(
        outside, documented,
        "statuses that the specification does not have"
    );
    let both = theirs.said.iter().zip(&ours.said);
    let steps = both.map(|((step, theirs), (_, ours))| (*step, theirs, ours));
    differences::compare(PUSHES, behind, steps);
}

#[tokio::test(flavor = "multi_thread")]
async fn p21_pushes_lists_and_deletes_are_answered_as_docker_registry_answers_them() {
    let direct = DockerRegistry::start();
    let theirs = all(Client::plain(direct.address())).await;
    let behind = DockerRegistry::start();
    let proxy = Proxy::builder().registry("registry.upstream.test", &behind.endpoint());
    let proxy = users(proxy).start();
    let ours = all(login(proxy.client(), "ann", PASSWORD)).await;
    compare(DOCKER_REGISTRY, &theirs, &ours);
}

#[tokio::test(flavor = "multi_thread")]
async fn p21_pushes_lists_and_deletes_are_answered_as_ecr_answers_them() {
    let direct = Simulator::builder().start().await.expect("a simulator");
    direct.create_repository(APP);
    direct.create_repository(OTHER);
    let token = direct.token(FULL_ACCESS_KEY).expect("a principal");
    let client = Client::plain(direct.address(Listener::Registry));
    let theirs = all(login(client, "AWS", &token.password)).await;
    let rig = Rig::start().await;
    let ours = all(rig.user("ann")).await;
    compare(ECR, &theirs, &ours);
}
