//! A manifest is verified before anybody sees it; what a tag names is learned as cheaply as may be.

use std::collections::BTreeSet;

use ecr_proxy::oci::{Digest, Reference};
use ecr_proxy::simulator::{
    DENIED_ACCESS_KEY, Fault, ImageSpec, Listener, PULL_ONLY_ACCESS_KEY, Pattern, path_contains,
};
use ecr_proxy::upstream::{Absent, UpstreamError, Wrong};

use super::support::{Rig, app, options, rig, rig_with, upstream};

fn v1() -> Reference {
    "v1".parse().unwrap()
}

/// A rig with an image under `v1`, and the digest of what the tag names.
async fn with_image() -> (Rig, Digest) {
    let rig = rig().await;
    let image = rig
        .sim
        .push_image("app", "v1", ImageSpec::generated(1, [10]));
    let digest = image.top.digest.parse().unwrap();
    (rig, digest)
}

#[tokio::test]
async fn a_manifest_comes_by_tag_and_by_digest_and_a_tag_costs_one_head() {
    let (rig, digest) = with_image().await;
    let (media_type, bytes) = rig.sim.manifest("app", "v1").unwrap();
    for reference in [v1(), Reference::Digest(digest)] {
        let manifest = rig.upstream.manifest(&app(), &reference).await.unwrap();
        assert_eq!(
            (&manifest.media_type, &manifest.bytes),
            (&media_type, &bytes)
        );
        assert_eq!(manifest.digest, digest);
        rig.sim.journal().clear();
        let head = rig
            .upstream
            .head_manifest(&app(), &reference)
            .await
            .unwrap();
        assert_eq!((head.digest, head.size), (digest, Some(bytes.len() as u64)));
        assert_eq!((head.media_type, head.fetched), (media_type.clone(), None));
        assert_eq!(rig.sim.journal().snapshot().len(), 1);
    }
}

#[tokio::test]
async fn u17_absence_is_told_apart_from_refusal() {
    let (rig, _) = with_image().await;
    let missing: Reference = "v2".parse().unwrap();
    let absent = UpstreamError::Absent(Absent::Manifest);
    assert_eq!(
        rig.upstream.manifest(&app(), &missing).await.unwrap_err(),
        absent
    );
    assert_eq!(
        rig.upstream
            .head_manifest(&app(), &missing)
            .await
            .unwrap_err(),
        absent
    );
    let nowhere = "nowhere".parse().unwrap();
    let absent = UpstreamError::Absent(Absent::Repository);
    assert_eq!(
        rig.upstream.manifest(&nowhere, &v1()).await.unwrap_err(),
        absent
    );
    assert!(absent.says_no() && !absent.cannot_answer());

    let pull_only = upstream(options(&rig.sim, PULL_ONLY_ACCESS_KEY));
    pull_only.manifest(&app(), &v1()).await.unwrap();
    let refused = pull_only.tags(&app(), None, None).await.unwrap_err();
    assert_eq!(refused, UpstreamError::Refused);
    assert!(refused.says_no() && !refused.to_string().contains("arn:"));
    let denied = upstream(options(&rig.sim, DENIED_ACCESS_KEY));
    let error = denied.manifest(&app(), &v1()).await.unwrap_err();
    assert!(
        matches!(error, UpstreamError::Refused | UpstreamError::NoToken(_)),
        "{error}"
    );
}

#[tokio::test]
async fn u03_u19_wrong_bytes_and_lying_headers_are_refused() {
    let (rig, digest) = with_image().await;
    let other = Digest::of(b"other").to_string();
    let mismatch = UpstreamError::Wrong(Wrong::DigestMismatch);
    let no_manifest = UpstreamError::Wrong(Wrong::NotAManifest);
    let index = "application/vnd.oci.image.index.v1+json";
    for (fault, by_tag) in [
        (
            Fault::SetHeader("docker-content-digest", other),
            mismatch.clone(),
        ),
        (
            Fault::SetHeader("content-type", index.into()),
            no_manifest.clone(),
        ),
        (Fault::Gzip, UpstreamError::Wrong(Wrong::Encoded)),
        (Fault::rubbish(), UpstreamError::Wrong(Wrong::Intercepted)),
    ] {
        let label = format!("{fault:?}");
        let rule = rig
            .sim
            .faults()
            .on(Listener::Registry, "GET", Pattern::any())
            .then(fault);
        assert_eq!(
            rig.upstream.manifest(&app(), &v1()).await.unwrap_err(),
            by_tag,
            "{label}"
        );
        rule.remove();
    }
    rig.sim
        .faults()
        .on(Listener::Registry, "GET", Pattern::any())
        .then(Fault::Corrupt(20));
    let by_digest = rig
        .upstream
        .manifest(&app(), &Reference::Digest(digest))
        .await;
    assert_eq!(by_digest.unwrap_err(), mismatch);
}

#[tokio::test]
async fn u20_rubbish_is_no_manifest() {
    let (rig, _) = with_image().await;
    for body in [
        "",
        "<html></html>",
        r#"{"errors":[{"code":"UNKNOWN","message":"x"}]}"#,
    ] {
        let rule = rig
            .sim
            .faults()
            .on(Listener::Registry, "GET", path_contains("manifests"));
        let rule = rule.then(Fault::status(200, body));
        let error = rig.upstream.manifest(&app(), &v1()).await.unwrap_err();
        assert_eq!(error, UpstreamError::Wrong(Wrong::NotAManifest), "{body}");
        rule.remove();
    }
}

#[tokio::test]
async fn u21_a_get_decides_where_head_does_not_tell() {
    let (rig, digest) = with_image().await;
    for fault in [
        Fault::status(401, ""),
        Fault::status(403, ""),
        Fault::status(404, ""),
        Fault::status(405, ""),
        Fault::status(400, ""),
        Fault::RemoveHeader("docker-content-digest"),
        Fault::SetHeader("docker-content-digest", "rubbish".into()),
    ] {
        let label = format!("{fault:?}");
        let rule = rig
            .sim
            .faults()
            .on(Listener::Registry, "HEAD", Pattern::any())
            .then(fault);
        let head = rig.upstream.head_manifest(&app(), &v1()).await.unwrap();
        assert_eq!(head.digest, digest, "{label}");
        assert_eq!(head.fetched.unwrap().digest, digest, "{label}");
        rule.remove();
    }
}

#[tokio::test]
async fn a_manifest_beyond_the_limit_is_not_buffered() {
    let rig = rig_with(|options| options.limits.manifest_max_bytes = 1000).await;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let large = format!(r#"{{"schemaVersion":2,"x":"{}"}}"#, "y".repeat(1000));
    rig.sim.put_manifest("app", "v1", media_type, large);
    let too_large = UpstreamError::Wrong(Wrong::TooLarge);
    assert_eq!(
        rig.upstream.manifest(&app(), &v1()).await.unwrap_err(),
        too_large
    );
    rig.sim
        .faults()
        .on(Listener::Registry, "GET", Pattern::any())
        .then(Fault::CloseDelimited(None));
    assert_eq!(
        rig.upstream.manifest(&app(), &v1()).await.unwrap_err(),
        too_large
    );
}

#[tokio::test]
async fn u12_throttling_is_absorbed_and_obeyed_by_all() {
    let (rig, _) = with_image().await;
    rig.upstream.check_token().await.unwrap();
    let rule = rig
        .sim
        .faults()
        .on(Listener::Registry, "GET", Pattern::any())
        .times(1);
    rule.then(Fault::throttled(Some("1")));
    rig.sim.journal().clear();
    let asking: Vec<_> = (0..20)
        .map(|_| {
            let upstream = rig.upstream.clone();
            tokio::spawn(async move { upstream.manifest(&app(), &v1()).await })
        })
        .collect();
    for asked in asking {
        asked.await.unwrap().unwrap();
    }
    assert_eq!(rig.asked(Listener::Registry), 21);
}

#[tokio::test]
async fn u12_throttling_that_lasts_is_told_with_its_end() {
    let rig =
        rig_with(|options| options.limits.absorb_throttle = std::time::Duration::from_millis(1500))
            .await;
    rig.sim
        .faults()
        .on(Listener::Registry, "GET", Pattern::any())
        .then(Fault::throttled(Some("1000000000")));
    for _ in 0..50 {
        let error = rig.upstream.manifest(&app(), &v1()).await.unwrap_err();
        let UpstreamError::Throttled { retry_after } = error else {
            panic!("{error}");
        };
        assert!((1..=60).contains(&retry_after.as_secs()));
    }
    assert_eq!(
        rig.asked(Listener::Registry),
        1,
        "the registry is left alone"
    );
}

#[tokio::test]
async fn u13_failures_are_retried_and_then_told() {
    let (rig, digest) = with_image().await;
    for status in [500, 502, 503, 504] {
        let rule = rig
            .sim
            .faults()
            .on(Listener::Registry, "GET", Pattern::any())
            .times(2);
        rule.then(Fault::status(status, "failing"));
        assert_eq!(
            rig.upstream.manifest(&app(), &v1()).await.unwrap().digest,
            digest
        );
    }
    rig.sim.journal().clear();
    rig.sim
        .faults()
        .on(Listener::Registry, "GET", Pattern::any())
        .then(Fault::status(503, "down"));
    let error = rig.upstream.manifest(&app(), &v1()).await.unwrap_err();
    assert_eq!(error, UpstreamError::Failing { status: 503 });
    assert!(error.cannot_answer() && !error.says_no());
    assert_eq!(rig.asked(Listener::Registry), 3);
}

#[tokio::test]
async fn however_many_ask_there_are_no_more_connections_than_may_be() {
    let rig = rig_with(|options| options.limits.max_connections = 2).await;
    rig.sim
        .push_image("app", "v1", ImageSpec::generated(1, [10]));
    let rule = rig.sim.faults();
    let rule = rule.on(Listener::Registry, "GET", Pattern::any());
    rule.then(Fault::Delay(std::time::Duration::from_millis(20)));
    let asking = (0..20).map(|_| {
        let upstream = rig.upstream.clone();
        tokio::spawn(async move { upstream.manifest(&app(), &v1()).await })
    });
    for asked in asking.collect::<Vec<_>>() {
        asked.await.unwrap().unwrap();
    }
    let entries = rig.sim.journal().snapshot();
    let asked = entries.iter().filter(|e| e.listener == Listener::Registry);
    let connections: BTreeSet<u64> = asked.map(|entry| entry.connection).collect();
    assert_eq!(connections.len(), 2);
}
