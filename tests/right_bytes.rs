//! What ends cleanly is what was asked for, and what lies in the cache is what its name says,
//! whatever the upstream sends (promise 4).

mod support;

use ecr_proxy::simulator::{CannedAnswer, Fault, Listener, Pattern};
use support::stage::{REPOSITORY, Stage, assert_never_wrong, assert_whole};
use support::store;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Below, at and above what is sent only when verified.
const SIZES: [u64; 3] = [1000, 64 * KIB, MIB + 17];

/// While every answer of storage is spoiled in this way, no client gets the blob and nothing of it
/// is kept; afterwards it can be pulled as if nothing had been.
async fn assert_never_taken(stage: &Stage, size: u64, fault: Fault) {
    let told = format!("{size} bytes, {fault:?}");
    let blob = stage.blob(size);
    let rule = stage.spoil(&blob, [fault]);
    let answer = stage.proxy.client().get(&blob.path).await;
    assert_never_wrong(&answer, &blob);
    let whole = answer.status == 200 && answer.clean_end;
    assert!(!whole, "{told}: ended cleanly");
    if size <= 64 * KIB {
        assert_eq!(answer.status, 502, "{told}: {}", answer.text());
    }
    if answer.status != 200 {
        assert_eq!(answer.status, 502, "{told}: {}", answer.text());
        assert!(answer.clean_end);
        assert!(!answer.text().contains("://"), "{told}: {}", answer.text());
    }
    assert!(!stage.keeps(&blob).await, "{told}: kept");
    rule.remove();
    stage.assert_pulls(&blob).await;
    assert!(
        stage.keeps(&blob).await,
        "{told}: not kept once it was right"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn u01_a_body_cut_short_is_continued_and_never_passed_on_short() {
    let stage = Stage::new().await;
    for size in SIZES {
        for cut in [0, 1, size / 2, size - 1] {
            // A size of its own makes it another blob.
            let blob = stage.blob(size + cut % 7 + 100 * (cut % 3));
            stage.spoil_times(&blob, 1, Fault::TruncateAfter(cut));
            stage.assert_pulls(&blob).await;
            assert_eq!(stage.bodies(&blob).len(), 2, "{size} cut at {cut}");
            assert_eq!(stage.bytes_sent(&blob), blob.size, "{size} cut at {cut}");
            assert!(stage.keeps(&blob).await);
        }
    }
    let metrics = stage.proxy.metrics().await;
    assert!(metrics.sum("ecr_proxy_upstream_truncated_total", &[]) >= 12.0);
    assert_eq!(metrics.sum("ecr_proxy_digest_mismatch_total", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn u02_a_body_of_unknown_length_is_whole_only_by_its_digest() {
    let stage = Stage::new().await;
    for size in SIZES {
        // The manifest tells the size that the upstream does not.
        let blob = stage.blob(size);
        stage.introduce(&blob).await;
        stage.spoil_times(&blob, 1, Fault::CloseDelimited(Some(size / 2)));
        stage.assert_pulls(&blob).await;
        assert!(stage.keeps(&blob).await);

        let blob = stage.blob(size + 1);
        stage.introduce(&blob).await;
        stage.spoil_times(&blob, 1, Fault::TruncateChunked(size / 2));
        stage.assert_pulls(&blob).await;

        let blob = stage.blob(size + 2);
        stage.introduce(&blob).await;
        stage.spoil(&blob, [Fault::CloseDelimited(None)]);
        stage.assert_pulls(&blob).await;
        assert!(stage.keeps(&blob).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u02_a_body_of_unknown_length_and_size_is_never_passed_on_short() {
    let stage = Stage::new().await;
    for size in SIZES {
        let blob = stage.blob(size);
        stage.spoil(&blob, [Fault::CloseDelimited(Some(size / 2))]);
        let answer = stage.proxy.client().get(&blob.path).await;
        assert_never_wrong(&answer, &blob);
        assert!(answer.status != 200 || !answer.clean_end);
        assert!(!stage.keeps(&blob).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u03_a_flipped_byte_is_never_passed_on_whole_nor_kept() {
    let stage = Stage::new().await;
    for (salt, size) in SIZES.into_iter().enumerate() {
        for (number, at) in [0, size / 2, size - 1].into_iter().enumerate() {
            let size = size - 3 * salt as u64 + number as u64 - 2;
            assert_never_taken(&stage, size, Fault::Corrupt(at.min(size - 1))).await;
        }
    }
    let metrics = stage.proxy.metrics().await;
    assert!(metrics.sum("ecr_proxy_digest_mismatch_total", &[]) >= 9.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn u03_a_small_blob_that_came_wrong_once_is_fetched_once_more_unseen() {
    let stage = Stage::new().await;
    let blob = stage.blob(64 * KIB);
    stage.spoil_times(&blob, 1, Fault::Corrupt(17));
    stage.assert_pulls(&blob).await;
    assert_eq!(stage.bodies(&blob).len(), 2);
    assert!(stage.keeps(&blob).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn u03_every_follower_of_a_wrong_body_is_told_over_h1_and_h2() {
    let stage = Stage::new().await;
    let blob = stage.blob(2 * MIB);
    stage.spoil(&blob, [Fault::Corrupt(MIB), Fault::Rate(4 * MIB)]);
    let (plain, tls) = (stage.proxy.client(), stage.proxy.tls_client());
    let answers = tokio::join!(
        plain.get(&blob.path),
        plain.get(&blob.path),
        tls.get(&blob.path),
        tls.get_h2(&blob.path),
    );
    for answer in [answers.0, answers.1, answers.2, answers.3] {
        assert_never_wrong(&answer, &blob);
        assert!(answer.status != 200 || !answer.clean_end);
    }
    assert!(!stage.keeps(&blob).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn u03_u19_a_wrong_manifest_is_502_and_nothing_of_it_is_kept() {
    let stage = Stage::new().await;
    let client = stage.proxy.client();
    let layer = stage.blob(1000);
    let digest = stage.manifest_of("v1", &layer);
    let (media_type, bytes) = stage
        .simulator
        .manifest(REPOSITORY, &digest)
        .expect("just put");
    let last = bytes.len() as u64 - 1;
    let other = format!("sha256:{}", "0".repeat(64));
    let faults = stage.simulator.faults();
    for fault in [
        Fault::Corrupt(0),
        Fault::Corrupt(last / 2),
        Fault::Corrupt(last),
        Fault::TruncateAfter(last),
        Fault::CloseDelimited(Some(last)),
        Fault::TruncateChunked(last),
        Fault::rubbish(),
        Fault::status(200, ""),
        Fault::status(200, r#"{"errors":[{"code":"DENIED","message":"no"}]}"#),
        Fault::Gzip,
        Fault::SetHeader("docker-content-digest", other.clone()),
        Fault::SetHeader("content-type", "text/html".into()),
    ] {
        let told = format!("{fault:?}");
        let rule = faults
            .on(Listener::Registry, "GET", "/manifests/")
            .then(fault);
        let answer = client
            .get(&format!("/v2/{REPOSITORY}/manifests/{digest}"))
            .await;
        assert_eq!(answer.status, 502, "{told}: {}", answer.text());
        assert!(
            answer.clean_end && !answer.error_code().is_empty(),
            "{told}"
        );
        assert!(
            !answer.text().contains("schemaVersion"),
            "{told}: bytes of it were sent"
        );
        rule.remove();
    }
    let by_tag = client.get(&format!("/v2/{REPOSITORY}/manifests/v1")).await;
    assert_eq!(by_tag.status, 200, "{}", by_tag.text());
    assert!(by_tag.body == bytes);
    assert_eq!(by_tag.header("content-type"), Some(&*media_type));
    assert_eq!(by_tag.header("docker-content-digest"), Some(&*digest));
    stage.proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn u19_a_tag_whose_manifest_is_not_what_its_header_says_is_502() {
    let stage = Stage::new().await;
    let layer = stage.blob(1000);
    stage.manifest_of("v1", &layer);
    let other = store::digest(b"another manifest");
    let lie = Fault::SetHeader("docker-content-digest", other.clone());
    let faults = stage.simulator.faults();
    let rule = faults
        .on(Listener::Registry, "GET", "/manifests/")
        .then(lie);
    let path = format!("/v2/{REPOSITORY}/manifests/v1");
    let answer = stage.proxy.client().get(&path).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    rule.remove();
    let answer = stage.proxy.client().get(&path).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("docker-content-digest"),
        Some(&*answer.digest())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn u04_more_bytes_than_declared_are_never_part_of_an_answer() {
    let stage = Stage::new().await;
    for size in [1001, MIB + 21] {
        let blob = stage.blob(size);
        stage.spoil_times(&blob, 1, Fault::Extra("more than was promised".into()));
        stage.assert_pulls(&blob).await;
        let next = stage.blob(size + 1);
        stage.assert_pulls(&next).await;
        assert!(stage.keeps(&blob).await && stage.keeps(&next).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u04_a_size_other_than_the_manifests_is_refused() {
    let stage = Stage::new().await;
    for size in [1002, MIB + 22] {
        for (salt, false_size) in [size / 2, size + 1000].into_iter().enumerate() {
            let blob = stage.blob(size + 10 * salt as u64);
            stage.introduce(&blob).await;
            let body = blob.part(0, blob.size.min(false_size));
            let mut long = body.to_vec();
            long.resize(false_size as usize, b'x');
            let rule = stage.spoil(
                &blob,
                [Fault::Answer(CannedAnswer {
                    status: 200,
                    headers: Vec::new(),
                    body: long.into(),
                })],
            );
            let answer = stage.proxy.client().get(&blob.path).await;
            assert_eq!(answer.status, 502, "{}", answer.text());
            assert!(!stage.keeps(&blob).await);
            rule.remove();
            stage.assert_pulls(&blob).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u20_rubbish_in_place_of_a_blob_is_never_taken_for_it() {
    let stage = Stage::new().await;
    for (salt, size) in SIZES.into_iter().enumerate() {
        for (number, fault) in [
            Fault::rubbish(),
            Fault::status(200, ""),
            Fault::status(200, r#"{"errors":[{"code":"DENIED"}]}"#),
            Fault::Gzip,
            Fault::OtherContent(99),
        ]
        .into_iter()
        .enumerate()
        {
            let size = size - (10 * salt + number) as u64;
            assert_never_taken(&stage, size, fault).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u20_a_portal_in_place_of_the_registry_is_502() {
    let stage = Stage::new().await;
    let blob = stage.blob(1003);
    let rule = stage
        .simulator
        .faults()
        .on(Listener::Registry, "GET", Pattern::digest(&blob.digest))
        .then(Fault::rubbish());
    let answer = stage.proxy.client().get(&blob.path).await;
    assert_never_wrong(&answer, &blob);
    assert_eq!(answer.status, 502, "{}", answer.text());
    let head = stage.proxy.client().head(&blob.path).await;
    assert_eq!(head.status, 502, "HEAD");
    assert!(!stage.keeps(&blob).await);
    rule.remove();
    stage.assert_pulls(&blob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u22_every_size_around_a_boundary_arrives_whole() {
    let stage = Stage::new().await;
    let around = |edge: u64| [edge - 1, edge, edge + 1];
    let sizes = [0, 1, 2]
        .into_iter()
        .chain(around(64 * KIB))
        .chain(around(128 * KIB))
        .chain(around(256 * KIB))
        .chain(around(512 * KIB));
    for size in sizes {
        let blob = stage.blob(size);
        for outcome in ["miss", "hit"] {
            for client in [stage.proxy.client(), stage.proxy.tls_client()] {
                let head = client.head(&blob.path).await;
                assert_eq!(head.head.content_length(), Some(size), "HEAD of {size}");
            }
            let answer = stage.proxy.client().get(&blob.path).await;
            assert_eq!(answer.status, 200, "{size}: {}", answer.text());
            assert_whole(&answer, &blob);
            assert_eq!(answer.head.content_length(), Some(size));
            assert_eq!(answer.header("x-cache"), Some(outcome), "{size}");
            assert!(stage.keeps(&blob).await, "{size}");
        }
        let over_tls = stage.proxy.tls_client().get(&blob.path).await;
        assert_whole(&over_tls, &blob);
        let over_h2 = stage.proxy.tls_client().get_h2(&blob.path).await;
        assert_whole(&over_h2, &blob);
    }
}
