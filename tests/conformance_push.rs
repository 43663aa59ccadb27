//! What the OCI distribution specification 1.1 asks of a registry for pushes, for the discovery of content and
//! for its management, step by step, of the proxy and of the registry behind it: every step is answered as the
//! specification allows, and as that registry itself answers it. Where it is not,
//! `tests/conformance/differences.md` says so and why (P21).

mod support;

#[path = "conformance/script.rs"]
mod script;

use ecr_proxy::simulator::{FULL_ACCESS_KEY, Listener, Simulator};
use script::{BLOB, Said, Script, joined, part, place};
use support::push::{APP, MANIFEST, OTHER, PASSWORD, Rig, bytes, manifest, send, users};
use support::real::DockerRegistry;
use support::store::digest;
use support::users::login;
use support::{Client, Proxy};

const ECR: &str = "ECR";
const DOCKER_REGISTRY: &str = "docker-registry";

/// The registry behind, the step, what it says and the proxy does not, what the proxy says instead, and why.
const DIFFERENCES: &str = include_str!("conformance/differences.md");

/// Statuses that the specification does not have: the registry behind, the step, the status, and why.
const OUTSIDE: &[(&str, &str, u16, &str)] = &[(
    ECR,
    "an empty blob: PUT",
    400,
    "ECR takes no blob without a byte, and says so",
)];

/// An artifact without a config of its own, as ORAS makes one.
fn artifact(of: &str, kind: &str, layer: &[u8]) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","artifactType":"{kind}","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{}","size":2}},"layers":[{{"mediaType":"text/plain","digest":"{}","size":{}}}],"subject":{{"mediaType":"{MANIFEST}","digest":"{of}","size":2}}}}"#,
        digest(b"{}"),
        digest(layer),
        layer.len()
    )
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

/// Fails unless the two differ in what [`DIFFERENCES`] says, and in nothing else.
fn compare(behind: &'static str, theirs: &Script, ours: &Script) {
    let of_it = OUTSIDE.iter().filter(|(of, ..)| *of == behind);
    let outside: Vec<_> = of_it.map(|(_, step, status, _)| (*step, *status)).collect();
    assert_eq!(ours.outside, outside);
    let mut found = Vec::new();
    for ((step, theirs), (_, ours)) in theirs.said.iter().zip(&ours.said) {
        let beside = |said: &Said, other: &Said| {
            let own = said
                .iter()
                .filter(|(what, value)| other.get(*what) != Some(value));
            let own: Vec<_> = own
                .map(|(what, value)| format!("{what} {}", short(value)))
                .collect();
            own.join(", ")
        };
        let (told_by_it, told_here) = (beside(theirs, ours), beside(ours, theirs));
        if !(told_by_it.is_empty() && told_here.is_empty()) {
            found.push((*step, told_by_it, told_here));
        }
    }
    found.dedup();
    let rows = DIFFERENCES.lines().filter(|line| line.starts_with("| "));
    let documented: Vec<_> = rows
        .map(|row| row.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells[1] == behind)
        .map(|cells| (cells[2], cells[3].to_owned(), cells[4].to_owned()))
        .collect();
    let new = found.iter().filter(|one| !documented.contains(one));
    let new: Vec<_> = new.collect();
    assert!(new.is_empty(), "not documented: {new:#?}");
    assert_eq!(found, documented, "what is documented is not so");
}

/// With `sha256:…` for every digest.
fn short(value: &str) -> String {
    let (mut out, mut rest) = (String::new(), value);
    while let Some(at) = rest.find("sha256:") {
        let (before, digest) = rest.split_at(at);
        out += before;
        out += "sha256:…";
        rest = digest
            .trim_start_matches("sha256:")
            .trim_start_matches(|c: char| c.is_ascii_hexdigit());
    }
    out + rest
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
