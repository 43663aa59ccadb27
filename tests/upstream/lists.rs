//! Tags and referrers, page by page.

use ecr_proxy::oci::Digest;
use ecr_proxy::simulator::{Fault, ImageSpec, Listener, Pattern};
use ecr_proxy::upstream::{Absent, UpstreamError, Wrong};

use super::support::{app, rig};

#[tokio::test]
async fn p10_tags_are_paged_by_what_the_registry_names() {
    let rig = rig().await;
    let image = rig
        .sim
        .push_image("app", "t0", ImageSpec::generated(1, [10]));
    for number in 1..250 {
        rig.sim.tag("app", &format!("t{number}"), &image.top.digest);
    }
    for n in [None, Some(70), Some(1_000_000_000)] {
        let mut names = Vec::new();
        let mut last: Option<String> = None;
        loop {
            let page = rig.upstream.tags(&app(), n, last.as_deref()).await.unwrap();
            names.extend(page.names);
            match page.next {
                Some(next) => last = Some(next),
                None => break,
            }
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 250, "{n:?}");
    }
    let nowhere = "nowhere".parse().unwrap();
    let absent = UpstreamError::Absent(Absent::Repository);
    assert_eq!(
        rig.upstream.tags(&nowhere, None, None).await.unwrap_err(),
        absent
    );
    rig.sim
        .faults()
        .on(Listener::Registry, "GET", Pattern::any())
        .then(Fault::rubbish());
    let error = rig.upstream.tags(&app(), None, None).await.unwrap_err();
    assert_eq!(error, UpstreamError::Wrong(Wrong::Intercepted));
}

#[tokio::test]
async fn referrers_come_as_an_index_page_by_page() {
    let rig = rig().await;
    let image = rig
        .sim
        .push_image("app", "v1", ImageSpec::generated(1, [10]));
    let subject: Digest = image.top.digest.parse().unwrap();
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let config = rig.sim.put_blob("app", b"{}".to_vec());
    let signature = format!(
        r#"{{"schemaVersion":2,"mediaType":"{oci}","artifactType":"application/signature","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{config}","size":2}},"layers":[],"subject":{{"mediaType":"{oci}","digest":"{subject}","size":{}}}}}"#,
        image.top.size
    );
    let digest = rig.sim.put_manifest("app", "", oci, signature);
    let page = rig.upstream.referrers(&app(), &subject, None).await;
    let page = page.unwrap();
    assert_eq!(
        page.list
            .digests()
            .map(|digest| digest.to_string())
            .collect::<Vec<_>>(),
        [digest]
    );
    assert_eq!(page.next, None);
    // What names the next page is given back as it came.
    let link = "</v2/x/referrers/y?nextToken=a%2Bb&n=50>; rel=\"next\"";
    rig.sim
        .faults()
        .on(Listener::Registry, "GET", Pattern::any())
        .times(1)
        .then(Fault::AddHeader("link", link.to_owned()));
    let page = rig.upstream.referrers(&app(), &subject, None).await;
    let next = page.unwrap().next.expect("a next page");
    let page = rig.upstream.referrers(&app(), &subject, Some(&next)).await;
    assert_eq!(page.unwrap().next, None);
    let asked = rig.sim.journal().snapshot();
    assert_eq!(asked.last().unwrap().query, "nextToken=a%2Bb&n=50");
}
