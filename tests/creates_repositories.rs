//! Repositories that appear when they are pushed to: by the template, once, for those who may push, and
//! only where the operator wants it.

mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ecr_proxy::simulator::{
    Action, CannedAnswer, Entry, FULL_ACCESS_KEY, Fault, Gate, Listener, Outage, Pattern,
    Principal, Simulator,
};
use serde_json::{Value, json};
use support::blobs::{metric, until};
use support::proxy::Builder;
use support::store::files_below;
use support::users::{login, user_line};
use support::{Answer, Client, Proxy, Scene, in_place_of, within};
use tempfile::TempDir;
use toml::Table;

const PASSWORD: &str = "open-sesame";
/// An identity that may push, and nothing beside it.
const PUSHER: &str = "AKIASIMULATEDPUSH001";
const POLICY: &str = r#"{"rules": [{"rulePriority": 1, "selection": {"tagStatus": "untagged", "countType":
"sinceImagePushed", "countUnit": "days", "countNumber": 14}, "action": {"type": "expire"}}]}
"#;

struct Rig {
    ecr: Simulator,
    proxy: Proxy,
    /// Where the policy is, if there is one.
    folder: TempDir,
}

impl Rig {
    /// Repositories are created below `team/`; `ann` may push there and elsewhere, `bob` may pull.
    async fn start(key: &str, template: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self::start_beside(folder, key, template).await
    }

    /// What is made has [`POLICY`], and what `template` says besides.
    async fn with_policy(template: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let policy = policy_in(&folder);
        std::fs::write(&policy, POLICY).expect("a file");
        let template = format!("lifecycle_policy = {policy:?}\n{template}");
        Self::start_beside(folder, FULL_ACCESS_KEY, &template).await
    }

    async fn start_beside(folder: TempDir, key: &str, template: &str) -> Self {
        let ecr = Simulator::builder();
        let actions = Action::ALL.into_iter().filter(|action| {
            !matches!(
                action,
                Action::CreateRepository | Action::PutLifecyclePolicy
            )
        });
        let actions: Vec<Action> = actions.collect();
        let pusher = Principal::with_actions(PUSHER, "assumed-role/pusher/simulated", &actions);
        let ecr = ecr.principal(pusher).start().await.expect("a simulator");
        let users = ["ann", "bob"]
            .map(|name| user_line(name, PASSWORD))
            .concat();
        let proxy = Proxy::builder()
            .simulator(&ecr)
            .env("AWS_ACCESS_KEY_ID", key)
            .users(&users)
            .rule("users = ['ann']\nactions = ['pull', 'push']")
            .rule("users = ['bob']\nactions = ['pull']");
        let proxy = creating(proxy, template).start();
        Self { ecr, proxy, folder }
    }

    fn user(&self, name: &str) -> Client {
        login(self.proxy.client(), name, PASSWORD)
    }

    /// How often the API was asked to do this.
    fn asked(&self, operation: &str) -> usize {
        self.ecr
            .journal()
            .count(|entry| entry.operation == operation)
    }
}

fn policy_in(folder: &TempDir) -> PathBuf {
    folder.path().join("lifecycle.json")
}

fn creating(proxy: Builder, template: &str) -> Builder {
    let template: Table = toml::from_str(template).expect("TOML");
    proxy
        .upstream_key("name", "prod")
        .upstream_key("create_repositories", vec!["team/**"])
        .upstream_key("template", template)
}

async fn begin(client: &Client, repository: &str) -> Answer {
    let target = format!("/v2/{repository}/blobs/uploads/");
    client.ask("POST", &target, &[]).await
}

fn code(answer: &Answer) -> String {
    let body: Value = serde_json::from_str(&answer.text()).expect("JSON");
    body["errors"][0]["code"]
        .as_str()
        .expect("a code")
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_into_a_repository_that_is_not_there_yet() {
    let scene = Scene::simulator_with(|proxy| {
        let proxy = proxy
            .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
            .users(&user_line("ci", PASSWORD))
            .rule("users = ['ci']\nactions = ['pull', 'push']");
        creating(proxy, "scan_on_push = true")
    })
    .await;
    let certs = std::path::Path::new("/etc/containers/certs.d").join(scene.host());
    let ca = scene.proxy.pki().ca();
    scene.sandbox.trust(&ca, &certs.join("ca.crt"));
    let from = format!("docker://{}", scene.reference());
    let to = format!("docker://{}/team/new/app:v1", scene.host());
    let login = format!("ci:{PASSWORD}");
    let logins = ["--src-creds", &*login, "--dest-creds", &*login];
    let copy = ["copy", "--all"].into_iter().chain(logins);
    scene.sandbox.must("skopeo", copy.chain([&*from, &*to]));
    let ecr = scene.ecr().expect("a simulator");
    assert!(ecr.manifest("team/new/app", "v1").is_some());
    let made_with = ecr.made_with("team/new/app").expect("a repository");
    assert_eq!(made_with["imageScanningConfiguration"]["scanOnPush"], true);
    // Nothing is made for names that the operator left out, whoever pushes.
    let to = format!("docker://{}/elsewhere/app:v1", scene.host());
    let copy = ["copy", "--all"].into_iter().chain(logins);
    let copy = copy.chain([&*from, &*to]);
    scene.sandbox.must_fail("does not exist", "skopeo", copy);
    assert!(ecr.made_with("elsewhere/app").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_repository_is_as_the_template_says() {
    let template = "mutability = 'immutable'\nmutability_except = ['latest', 'dev-*']\n\
                    scan_on_push = true\nencryption = 'kms'\nkms_key = 'alias/images'\n\
                    tags = { team = 'a', 'cost center' = '7=8' }";
    let rig = Rig::with_policy(template).await;
    let answer = begin(&rig.user("ann"), "team/app").await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let mut made_with = rig.ecr.made_with("team/app").expect("a repository");
    let tags = made_with["tags"].as_array_mut().expect("tags");
    tags.sort_by_key(|tag| tag["Key"].to_string());
    assert_eq!(
        made_with,
        json!({
            "registryId": "000042290000",
            "repositoryName": "team/app",
            "imageTagMutability": "IMMUTABLE_WITH_EXCLUSION",
            "imageTagMutabilityExclusionFilters": [
                {"filterType": "WILDCARD", "filter": "latest"},
                {"filterType": "WILDCARD", "filter": "dev-*"},
            ],
            "imageScanningConfiguration": {"scanOnPush": true},
            "encryptionConfiguration": {"encryptionType": "KMS", "kmsKey": "alias/images"},
            "tags": [
                {"Key": "cost center", "Value": "7=8"},
                {"Key": "team", "Value": "a"},
            ],
        })
    );
    assert_eq!(
        rig.ecr.lifecycle_policy("team/app").as_deref(),
        Some(POLICY)
    );
    let metrics = rig.proxy.metrics().await;
    let created = metrics.sum(
        "ecr_proxy_upstream_repository_creations_total",
        &["result=\"created\""],
    );
    let policies = "ecr_proxy_upstream_lifecycle_policies_total";
    assert_eq!(
        (created, metrics.sum(policies, &["result=\"ok\""])),
        (1.0, 1.0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_pushes_at_once_create_one_repository() {
    let rig = Rig::start(FULL_ACCESS_KEY, "").await;
    let ann = rig.user("ann");
    let pushes = (0..20).map(|_| begin(&ann, "team/app"));
    for answer in futures_util::future::join_all(pushes).await {
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    assert_eq!(rig.asked("CreateRepository"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_that_wait_for_aws_take_its_word_together() {
    let rig = Rig::start(FULL_ACCESS_KEY, "").await;
    let ann = rig.user("ann");
    let gate = Gate::new();
    let faults = rig.ecr.faults();
    let failing = faults.on(Listener::Api, "POST", "CreateRepository");
    failing.all([Fault::Hold(gate.clone()), Fault::status(500, "")]);
    let pushes = (0..20).map(|_| begin(&ann, "team/app"));
    let (answers, ()) = tokio::join!(futures_util::future::join_all(pushes), async {
        until("all of them know that there is none", async || {
            let begun = |entry: &Entry| entry.method == "POST" && entry.path.contains("/uploads/");
            rig.ecr.journal().count(begun) >= 20
        })
        .await;
        gate.open();
    });
    for answer in answers {
        assert_eq!(answer.status, 503, "{}", answer.text());
    }
    // What is asked for once is tried three times; one who came late may ask anew.
    assert!(
        rig.asked("CreateRepository") <= 6,
        "{}",
        rig.asked("CreateRepository")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_another_made_meanwhile_is_pushed_to() {
    let rig = Rig::start(FULL_ACCESS_KEY, "").await;
    let missing = Fault::Answer(CannedAnswer {
        status: 404,
        headers: vec![("content-type", "application/json".to_owned())],
        body: r#"{"errors":[{"code":"NAME_UNKNOWN","message":"The repository with name 'team/app' does not exist in the registry with id '000042290000'"}]}"#.into(),
    });
    // The registry goes on denying it for a moment.
    let faults = rig.ecr.faults();
    faults
        .on(Listener::Registry, "POST", "team/app")
        .times(3)
        .then(missing);
    rig.ecr.create_repository("team/app");
    let answer = begin(&rig.user("ann"), "team/app").await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(rig.asked("CreateRepository"), 1);
    assert_eq!(rig.asked("PutLifecyclePolicy"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ecr_only_closes_is_understood() {
    let rig = Rig::start(FULL_ACCESS_KEY, "").await;
    let faults = rig.ecr.faults();
    let uploads = || Pattern::from("/uploads/");
    for repository in ["team/missing", "team/there"] {
        let closed = faults.on(Listener::Registry, "POST", uploads()).times(1);
        closed.then(Fault::Raw("".into()));
        if repository == "team/there" {
            rig.ecr.create_repository(repository);
        }
        let answer = begin(&rig.user("ann"), repository).await;
        assert_eq!(answer.status, 202, "{repository}: {}", answer.text());
    }
    assert!(rig.ecr.repositories().contains(&"team/missing".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_and_not_asked_for_again_with_each_push() {
    let rig = Rig::start(PUSHER, "").await;
    let ann = rig.user("ann");
    for _ in 0..3 {
        let answer = begin(&ann, "team/app").await;
        assert_eq!((answer.status, &*code(&answer)), (403, "DENIED"));
        let text = answer.text();
        assert!(
            text.contains("the proxy's own identity may not do this"),
            "{text}"
        );
        assert!(
            !text.contains("ecr:") && !text.contains("000042290000"),
            "{text}"
        );
    }
    assert_eq!(rig.asked("CreateRepository"), 1);
    let said = |event: &support::proxy::Event| {
        let action = event.field("aws.action");
        let said = event.field("aws.message").unwrap_or_default();
        action.as_deref() == Some("CreateRepository") && said.contains("ecr:CreateRepository")
    };
    rig.proxy
        .log_until("the action that is missing", said)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_registry_says_so_in_words() {
    let rig = Rig::start(FULL_ACCESS_KEY, "").await;
    let full = Fault::refused_by_aws(
        "LimitExceededException",
        "The maximum number of repositories in the registry with id '000042290000' is reached",
    );
    rig.ecr
        .faults()
        .on(Listener::Api, "POST", "CreateRepository")
        .then(full);
    let answer = begin(&rig.user("ann"), "team/app").await;
    assert_eq!((answer.status, &*code(&answer)), (403, "DENIED"));
    let text = answer.text();
    assert!(
        text.contains("The maximum number of repositories"),
        "{text}"
    );
    assert!(!text.contains("000042290000"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_refused_does_not_hold_up_the_push() {
    let rig = Rig::with_policy("").await;
    let refused = Fault::refused_by_aws(
        "InvalidParameterException",
        "Lifecycle policy validation failure",
    );
    let faults = rig.ecr.faults();
    faults
        .on(Listener::Api, "POST", "PutLifecyclePolicy")
        .then(refused);
    let answer = begin(&rig.user("ann"), "team/app").await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let metrics = rig.proxy.metrics().await;
    let policies = "ecr_proxy_upstream_lifecycle_policies_total";
    assert_eq!(metrics.sum(policies, &["result=\"failed\""]), 1.0);
    let said = |event: &support::proxy::Event| {
        event.field("aws.action").as_deref() == Some("PutLifecyclePolicy")
    };
    rig.proxy
        .log_until("the policy that is missing", said)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_lost_still_leads_to_a_policy() {
    let rig = Rig::with_policy("").await;
    // It is made, and nobody hears of it.
    let faults = rig.ecr.faults();
    let lost = faults
        .on(Listener::Api, "POST", "CreateRepository")
        .times(1);
    lost.then(Fault::ResetAfter(0));
    let answer = begin(&rig.user("ann"), "team/app").await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(rig.asked("CreateRepository"), 2);
    assert_eq!(
        rig.ecr.lifecycle_policy("team/app").as_deref(),
        Some(POLICY)
    );
}

/// What a proxy that makes repositories remembers of those that it has not done with.
fn unfinished(proxy: &Proxy) -> usize {
    files_below(&proxy.state_dir().join("creating")).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn c12_a_repository_that_was_made_when_the_proxy_died_gets_its_policy_with_the_next_push() {
    let mut rig = Rig::with_policy("").await;
    let another = POLICY.replace("14", "30");
    let gate = Gate::new();
    let faults = rig.ecr.faults();
    let held = faults.on(Listener::Api, "POST", "PutLifecyclePolicy");
    let held = held.then(Fault::Hold(gate.clone()));
    let ann = rig.user("ann");
    let mut waiting = Vec::new();
    for repository in ["team/app", "team/other"] {
        let target = format!("/v2/{repository}/blobs/uploads/");
        waiting.push(ann.start("POST", &target, &[]).await);
    }
    within("both are made", gate.arrived(2)).await;
    rig.proxy.kill9();
    held.remove();
    // Of one of them an operator has seen to it meanwhile; a third is none of ours.
    rig.ecr.set_lifecycle_policy("team/other", &another);
    rig.ecr.create_repository("team/third");
    assert_eq!(rig.ecr.lifecycle_policy("team/app"), None);
    assert_eq!(unfinished(&rig.proxy), 2);
    rig.proxy.restart();
    let ann = rig.user("ann");
    for repository in ["team/app", "team/other", "team/third"] {
        let answer = begin(&ann, repository).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    until("nothing is left to do", async || {
        unfinished(&rig.proxy) == 0
    })
    .await;
    for (repository, expected) in [
        ("team/app", Some(POLICY)),
        ("team/other", Some(&*another)),
        ("team/third", None),
    ] {
        let found = rig.ecr.lifecycle_policy(repository);
        assert_eq!(found.as_deref(), expected, "{repository}");
    }
    assert_eq!(rig.asked("GetLifecyclePolicy"), 2);
    // It was done once.
    assert_eq!(begin(&ann, "team/app").await.status, 202);
    assert_eq!(rig.asked("GetLifecyclePolicy"), 2);
}

/// Where the notes of the only registry are.
fn notes(proxy: &Proxy) -> PathBuf {
    let folders = std::fs::read_dir(proxy.state_dir().join("creating")).expect("a folder");
    let folders: Vec<_> = folders.map(|it| it.expect("an entry").path()).collect();
    assert_eq!(folders.len(), 1, "{folders:?}");
    folders[0].clone()
}

/// This was written so long ago.
fn is_of(path: &Path, ago: Duration) {
    let file = File::options().write(true).open(path).expect("a file");
    let at = SystemTime::now() - ago;
    file.set_modified(at).expect("a time of modification");
}

/// A proxy that died when it had made `team/app` and not given it its policy.
async fn died_before_the_policy() -> Rig {
    let mut rig = Rig::with_policy("").await;
    let gate = Gate::new();
    let faults = rig.ecr.faults();
    let held = faults.on(Listener::Api, "POST", "PutLifecyclePolicy");
    let held = held.then(Fault::Hold(gate.clone()));
    let target = "/v2/team/app/blobs/uploads/";
    let waiting = rig.user("ann").start("POST", target, &[]).await;
    within("it is made", gate.arrived(1)).await;
    rig.proxy.kill9();
    drop(waiting);
    held.remove();
    assert_eq!(unfinished(&rig.proxy), 1);
    rig
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_made_by_hand_after_aws_certainly_made_none_is_left_as_it_is() {
    let rig = Rig::with_policy("").await;
    let ann = rig.user("ann");
    rig.ecr.create_repository("team/there");
    assert_eq!(begin(&ann, "team/there").await.status, 202);
    let throttled = Fault::refused_by_aws("ThrottlingException", "Rate exceeded");
    let unknown = Fault::refused_by_aws("UnrecognizedClientException", "invalid token");
    for (repository, fault) in [
        ("team/throttled", Some(throttled)),
        ("team/stranger", Some(unknown)),
        ("team/unreachable", None),
    ] {
        let faults = rig.ecr.faults();
        match fault {
            Some(fault) => drop(
                faults
                    .on(Listener::Api, "POST", "CreateRepository")
                    .then(fault),
            ),
            None => rig.ecr.outage_of(Listener::Api, Outage::Refused).await,
        }
        let answer = begin(&ann, repository).await;
        assert_ne!(answer.status, 202, "{repository}");
        faults.clear();
        rig.ecr.outage_of(Listener::Api, Outage::None).await;
        rig.ecr.create_repository(repository);
        let answer = begin(&ann, repository).await;
        assert_eq!(answer.status, 202, "{repository}: {}", answer.text());
        until("nothing is left to do", async || {
            unfinished(&rig.proxy) == 0
        })
        .await;
        assert_eq!(rig.ecr.lifecycle_policy(repository), None, "{repository}");
    }
    assert_eq!(rig.asked("GetLifecyclePolicy"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_been_made_is_kept_in_mind_until_aws_refuses_to_make_it() {
    let rig = Rig::with_policy("").await;
    let ann = rig.user("ann");
    let faults = rig.ecr.faults();
    let creating = || faults.on(Listener::Api, "POST", "CreateRepository");
    let throttled = || Fault::refused_by_aws("ThrottlingException", "Rate exceeded");
    // It is made, nobody hears of it, and then AWS has no time.
    creating().times(1).then(Fault::Lost);
    creating().then(throttled());
    assert_ne!(begin(&ann, "team/app").await.status, 202);
    faults.clear();
    assert_eq!(unfinished(&rig.proxy), 1);
    assert_eq!(begin(&ann, "team/app").await.status, 202);
    until("nothing is left to do", async || {
        unfinished(&rig.proxy) == 0
    })
    .await;
    let found = rig.ecr.lifecycle_policy("team/app");
    assert_eq!(found.as_deref(), Some(POLICY));
    // What failed may have been done; a throttle says nothing of that, and a refusal that it was not.
    let failing = || Fault::status(500, "");
    let full = || Fault::refused_by_aws("LimitExceededException", "no more");
    for (fault, left) in [(failing(), 1), (throttled(), 1), (full(), 0)] {
        creating().then(fault);
        assert_ne!(begin(&ann, "team/other").await.status, 202);
        faults.clear();
        assert_eq!(unfinished(&rig.proxy), left);
    }
    // Where the registry has closed the connection, and not said that there is none, it may be there.
    for (fault, is_closed) in [(failing(), false), (full(), true)] {
        creating().then(fault);
        if is_closed {
            let closed = faults.on(Listener::Registry, "POST", Pattern::from("/uploads/"));
            closed.then(Fault::Raw("".into()));
        }
        assert_ne!(begin(&ann, "team/closed").await.status, 202);
        faults.clear();
        assert_eq!(unfinished(&rig.proxy), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_hour_nobody_is_sure_whose_repository_it_is_and_it_is_left_as_it_is() {
    let mut rig = died_before_the_policy().await;
    for note in files_below(&notes(&rig.proxy)) {
        is_of(&note, Duration::from_secs(3660));
    }
    rig.proxy.restart();
    assert_eq!(begin(&rig.user("ann"), "team/app").await.status, 202);
    until("nothing is left to do", async || {
        unfinished(&rig.proxy) == 0
    })
    .await;
    assert_eq!(rig.ecr.lifecycle_policy("team/app"), None);
    assert_eq!(rig.asked("GetLifecyclePolicy"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_in_one_registry_is_not_ended_in_another_of_the_same_name() {
    let mut rig = died_before_the_policy().await;
    // The name is given to another account's registry, where an operator has made one of the same name.
    rig.ecr.shutdown().await;
    let another = || Simulator::builder().account("000042290001");
    rig.ecr = in_place_of(&rig.ecr, another).await;
    rig.ecr.create_repository("team/app");
    let host = rig.ecr.registry_host();
    rig.proxy.edit("upstream", |upstreams| {
        upstreams[0].insert("registry".to_owned(), host.into());
    });
    rig.proxy.restart();
    let ann = rig.user("ann");
    for repository in ["team/app", "team/second"] {
        let answer = begin(&ann, repository).await;
        assert_eq!(answer.status, 202, "{repository}: {}", answer.text());
    }
    let given = ["team/app", "team/second"].map(|it| rig.ecr.lifecycle_policy(it));
    assert_eq!(given, [None, Some(POLICY.to_owned())]);
    assert_eq!(rig.asked("GetLifecyclePolicy"), 0);
    assert_eq!(unfinished(&rig.proxy), 1, "it is noted where it was begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_note_hides_none_and_what_a_killed_writer_left_is_removed() {
    let mut rig = died_before_the_policy().await;
    let notes = notes(&rig.proxy);
    std::fs::create_dir(notes.join("lost+found")).expect("a folder");
    std::fs::write(notes.join("bytes"), b"\xff\xfe").expect("a file");
    // All of a name, some of it, and nothing, by those who did not live to say that it is whole.
    let left = [("a", "team/b"), ("b", "team/"), ("c", "")].map(|(name, content)| {
        let left = notes.join(format!(".tmp{name}"));
        std::fs::write(&left, content).expect("a file");
        is_of(&left, Duration::from_secs(120));
        left
    });
    // Another may be writing this one.
    let written = notes.join(".tmpd");
    std::fs::write(&written, "team/").expect("a file");
    rig.proxy.restart();
    assert_eq!(begin(&rig.user("ann"), "team/app").await.status, 202);
    until("it is given", async || {
        rig.ecr.lifecycle_policy("team/app").is_some()
    })
    .await;
    assert!(left.iter().all(|left| !left.exists()), "{left:?}");
    assert!(written.exists());
    let is_told = |event: &support::proxy::Event| {
        event.message() == "cannot read which repositories were being made"
    };
    rig.proxy.log_until("what was not read", is_told).await;
    let told = rig.proxy.logs();
    assert_eq!(told.iter().filter(|event| is_told(event)).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn u12_a_policy_that_aws_throttles_is_given_as_the_push_goes_on() {
    let rig = Rig::with_policy("").await;
    let throttled = Fault::refused_by_aws("ThrottlingException", "Rate exceeded");
    let faults = rig.ecr.faults();
    let throttled = faults
        .on(Listener::Api, "POST", "PutLifecyclePolicy")
        .then(throttled);
    let ann = rig.user("ann");
    assert_eq!(begin(&ann, "team/app").await.status, 202);
    assert_eq!(rig.ecr.lifecycle_policy("team/app"), None);
    throttled.remove();
    until("it is given", async || {
        assert_eq!(begin(&ann, "team/app").await.status, 202);
        rig.ecr.lifecycle_policy("team/app").is_some()
    })
    .await;
    until("nothing is left to do", async || {
        unfinished(&rig.proxy) == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u12_what_aws_throttles_for_one_repository_all_wait_out_and_get() {
    let rig = Rig::start(FULL_ACCESS_KEY, "").await;
    let throttled = Fault::refused_by_aws("ThrottlingException", "Rate exceeded");
    let faults = rig.ecr.faults();
    let throttled = faults
        .on(Listener::Api, "POST", "CreateRepository")
        .then(throttled);
    let push = |number: u32| {
        let ann = rig.user("ann");
        tokio::spawn(async move { begin(&ann, &format!("team/app{number}")).await })
    };
    let first = push(0);
    // What it was told holds for all from here on: it asks once more, and they wait.
    until("it is asked for again", async || throttled.taken() > 1).await;
    let others: Vec<_> = (1..20).map(push).collect();
    until("all are told that there is none", async || {
        let told = |entry: &Entry| {
            entry.listener == Listener::Registry
                && entry.method == "POST"
                && entry.status == Some(404)
        };
        rig.ecr.journal().count(told) == 20
    })
    .await;
    until("it is asked for twice more", async || throttled.taken() > 3).await;
    throttled.remove();
    for pushed in [first].into_iter().chain(others) {
        let answer = pushed.await.expect("no panic");
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    // One probe at a time, each after twice the time, however many wait.
    let asked = rig.asked("CreateRepository");
    assert!(asked <= 20 + 5, "{asked}");
    let metrics = rig.proxy.metrics().await;
    let counted = metrics.sum("ecr_proxy_upstream_throttled_total", &[]);
    assert_eq!(counted, (asked - 20) as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_created_for_those_who_may_not_push_nor_by_a_pull() {
    let rig = Rig::start(FULL_ACCESS_KEY, "").await;
    let (ann, bob) = (rig.user("ann"), rig.user("bob"));
    assert_eq!(begin(&bob, "team/app").await.status, 403);
    assert_eq!(begin(&rig.proxy.client(), "team/app").await.status, 401);
    let digest = format!("sha256:{}", "0".repeat(64));
    for target in [
        "/v2/team/app/manifests/v1".to_owned(),
        format!("/v2/team/app/blobs/{digest}"),
        "/v2/team/app/tags/list".to_owned(),
    ] {
        assert_eq!(ann.get(&target).await.status, 404, "{target}");
        assert_eq!(ann.head(&target).await.status, 404, "{target}");
    }
    // Nor for a name that is none of those that the operator wants.
    let other = begin(&ann, "other/app").await;
    assert_eq!((other.status, &*code(&other)), (404, "NAME_UNKNOWN"));
    assert_eq!(rig.asked("CreateRepository"), 0);
}

/// Pushes a manifest that needs nothing to `team/app`.
async fn put_index(rig: &Rig) -> Answer {
    let index = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let target = "/v2/team/app/manifests/v1";
    let headers = [
        ("content-type", "application/vnd.oci.image.index.v1+json"),
        ("content-length", &*index.len().to_string()),
    ];
    let mut connection = rig.user("ann").start("PUT", target, &headers).await;
    connection.send(index.as_bytes()).await.expect("send");
    connection.answer("PUT").await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_alone_makes_its_repository_too() {
    let rig = Rig::start(FULL_ACCESS_KEY, "").await;
    let answer = put_index(&rig).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert!(rig.ecr.manifest("team/app", "v1").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_breaks_off_says_nothing_of_its_repository() {
    let rig = Rig::start(FULL_ACCESS_KEY, "").await;
    rig.ecr.create_repository("team/app");
    let faults = rig.ecr.faults();
    let closed = faults.on(Listener::Registry, "PUT", Pattern::from("/manifests/"));
    closed.then(Fault::Raw("".into()));
    let answer = put_index(&rig).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(rig.asked("CreateRepository"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_brings_a_token_of_their_own_creates_nothing_by_ours() {
    let ecr = Simulator::builder().start().await.expect("a simulator");
    let proxy = Proxy::builder()
        .simulator(&ecr)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .unset("access.anonymous")
        .set("access.aws_tokens", true);
    let proxy = creating(proxy, "").start();
    let token = ecr.token(FULL_ACCESS_KEY).expect("a token");
    let client = login(proxy.client(), "AWS", &token.password);
    let answer = begin(&client, "team/app").await;
    assert_eq!((answer.status, &*code(&answer)), (404, "NAME_UNKNOWN"));
    let asked = |entry: &ecr_proxy::simulator::Entry| {
        entry.method == "POST" && entry.path.contains("/uploads/")
    };
    assert_eq!(ecr.journal().count(asked), 1);
    assert!(ecr.repositories().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_none_is_created_pushes_to_missing_ones_turn_nobody_else_away() {
    let rig = Rig::start(FULL_ACCESS_KEY, "").await;
    let ann = rig.user("ann");
    let faults = rig.ecr.faults();
    let closed = faults.on(Listener::Registry, "POST", Pattern::from("/uploads/"));
    let closed = closed.then(Fault::Raw("".into()));
    for number in 0..10 {
        let answer = begin(&ann, &format!("elsewhere/app{number}")).await;
        assert!([502, 503].contains(&answer.status), "{}", answer.text());
    }
    closed.remove();
    let opened = "ecr_proxy_upstream_breaker_openings_total";
    assert_eq!(metric(&rig.proxy, opened, &[]).await, 0.0);
    rig.ecr.create_repository("elsewhere/app");
    assert_eq!(begin(&ann, "elsewhere/app").await.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn off_by_default() {
    let ecr = Simulator::builder().start().await.expect("a simulator");
    let proxy = Proxy::builder()
        .simulator(&ecr)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .users(&user_line("ann", PASSWORD))
        .rule("users = ['ann']\nactions = ['pull', 'push']")
        .start();
    let answer = begin(&login(proxy.client(), "ann", PASSWORD), "team/app").await;
    assert_eq!((answer.status, &*code(&answer)), (404, "NAME_UNKNOWN"));
    assert!(ecr.repositories().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_written_anew_is_that_of_the_next_repository() {
    let rig = Rig::with_policy("").await;
    let ann = rig.user("ann");
    assert_eq!(begin(&ann, "team/first").await.status, 202);
    let another = POLICY.replace("14", "30");
    std::fs::write(policy_in(&rig.folder), &another).expect("a file");
    let told = rig.proxy.reload().await;
    assert_eq!(told.message(), "reloaded", "{}", told.line);
    let same = rig.proxy.reload().await;
    assert_eq!(same.message(), "read again, nothing has changed");
    assert_eq!(begin(&ann, "team/second").await.status, 202);
    for (repository, expected) in [("team/first", POLICY), ("team/second", &another)] {
        let found = rig.ecr.lifecycle_policy(repository);
        assert_eq!(found.as_deref(), Some(expected), "{repository}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_of_what_it_cannot_try_that_it_did_not() {
    const ACTION: &str = "ecr:CreateRepository";
    let rig = Rig::start(FULL_ACCESS_KEY, "scan_on_push = true").await;
    let said = rig.proxy.run(["check"]).stdout;
    let told = said.lines().find(|line| line.contains(ACTION));
    assert!(told.is_some_and(|it| it.contains("not tried")), "{said}");
    assert_eq!(rig.asked("CreateRepository"), 0);
    // Who has no repositories made is not told of it.
    let plain = Proxy::builder().simulator(&rig.ecr).start();
    let said = plain.run(["check"]).stdout;
    assert!(said.contains("IAM") && !said.contains(ACTION), "{said}");
}
