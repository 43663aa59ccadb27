//! AWS as somebody else understands it: moto, a simulator that shares no line with ours, checks the signature of
//! every call and what its identity may do, and docker-registry stands for the content.

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::blobs::until;
use support::pebble::free_port;
use support::proxy::Builder;
use support::push::{PASSWORD, bytes, push_image, users};
use support::python::command;
use support::real::{DockerRegistry, nginx};
use support::store::digest;
use support::users::login;
use support::{Client, DOMAIN, Proxy};
use tempfile::{NamedTempFile, TempDir};
use tokio::net::TcpStream;
use toml::Table;

/// Who the keys belong to.
const OWN: &str = "123456789012";
/// Whose registry it is, where it is not theirs.
const OTHER: &str = "222222222222";
const EXTERNAL_ID: &str = "customer-42";
/// Ends every signature with another than moto expects.
const WRONG_SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// A running moto; it ends with its standard input.
struct Moto {
    url: String,
    child: Child,
}

impl Moto {
    fn start() -> Self {
        let mut child = command("moto_server.py", &[])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Python starts");
        let mut url = String::new();
        let stdout = child.stdout.take().expect("asked for a pipe");
        BufReader::new(stdout)
            .read_line(&mut url)
            .expect("a line of text");
        assert!(!url.is_empty(), "moto ended at start");
        let url = url.trim().to_owned();
        Self { url, child }
    }

    /// What a verb of `with_moto.py` tells.
    fn ask(&self, words: &[&str]) -> Value {
        let words = [&[&*self.url], words].concat();
        let output = command("with_moto.py", &words).output().expect("Python");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// A user who may do what this policy says, who the proxy is. moto looks at it as IAM does.
    fn user(&self, policy: &str) -> Keys {
        let keys = self.ask(&["user", policy]);
        let text = |name: &str| keys[name].as_str().expect("text").to_owned();
        Keys {
            id: text("AccessKeyId"),
            secret: text("SecretAccessKey"),
        }
    }

    /// A role of this account that may do what `policy` says, for those whom `trust` names.
    fn role(&self, account: &str, policy: &str, trust: &str) -> String {
        let role = self.ask(&["role", account, policy, trust]);
        assert_eq!(role, role_of(account));
        role_of(account)
    }

    /// From now on signatures and rights count.
    fn enforce(&self) {
        self.ask(&["enforce", "0"]);
    }

    /// A proxy in front of an account's registry, with no identity yet.
    fn nobody(&self, account: &str, registry: &DockerRegistry) -> Builder {
        users(Proxy::builder())
            .upstream_key("registry", host(account))
            .upstream_key("endpoint", registry.endpoint())
            .env("AWS_ENDPOINT_URL", &self.url)
    }

    /// The same, with these keys.
    fn proxy(&self, keys: &Keys, account: &str, registry: &DockerRegistry) -> Builder {
        self.nobody(account, registry)
            .env("AWS_ACCESS_KEY_ID", &keys.id)
            .env("AWS_SECRET_ACCESS_KEY", &keys.secret)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _already_ended = self.child.wait();
    }
}

struct Keys {
    id: String,
    secret: String,
}

/// moto knows the actions of a policy, and of resources only roles.
fn policy(actions: &[&str]) -> String {
    let statement = json!({"Effect": "Allow", "Action": actions, "Resource": "*"});
    json!({"Version": "2012-10-17", "Statement": [statement]}).to_string()
}

/// What `iam-policy` prints for this account's registry, of which these keys say more.
fn printed_policy(account: &str, keys: &str, words: &[&str]) -> String {
    let folder = TempDir::new().expect("a temporary directory");
    let file = folder.path().join("config.toml");
    let host = host(account);
    let text =
        format!("[server]\ndomains = ['{DOMAIN}']\n[[upstream]]\nregistry = '{host}'\n{keys}\n");
    std::fs::write(&file, text).expect("one's own file");
    let printed = Command::new(env!("CARGO_BIN_EXE_ecr-proxy"))
        .args(["iam-policy", "--config"])
        .arg(&file)
        .args(words)
        .output()
        .expect("the program was built");
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8(printed.stdout).expect("JSON")
}

/// The same for one who creates.
fn creators_policy() -> String {
    printed_policy(OWN, "", &["--push", "--create"])
}

/// What `iam-policy` prints for a proxy that assumes the account's role, and for that role.
fn policies_with_role(account: &str) -> [String; 2] {
    let role = role_of(account);
    let keys = format!("role_arn = '{role}'");
    let of_role = printed_policy(account, &keys, &["--push", "--role", &role]);
    [printed_policy(account, &keys, &["--push"]), of_role]
}

/// The role that [`Moto::role`] makes.
fn role_of(account: &str) -> String {
    format!("arn:aws:iam::{account}:role/pull")
}

fn host(account: &str) -> String {
    format!("{account}.dkr.ecr.eu-west-1.amazonaws.com")
}

/// A registry that takes the token that moto gives for this account.
fn registry(account: &str) -> DockerRegistry {
    DockerRegistry::start_for("AWS", &format!("{account}-auth-token"))
}

fn user(proxy: &Proxy) -> Client {
    login(proxy.client(), "ann", PASSWORD)
}

/// Pushes an image and pulls it by another proxy, which has nothing in its cache.
async fn carries(set_up: impl Fn() -> Builder, secrets: &[String]) {
    let layer = bytes(300_000);
    let pushing = set_up().start();
    let (answer, manifest) = push_image(&user(&pushing), "team/app", "v1", &layer).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let pulling = set_up().start();
    let client = user(&pulling);
    let pulled = client.get("/v2/team/app/manifests/v1").await;
    assert_eq!((pulled.status, pulled.digest()), (200, manifest));
    let blob = format!("/v2/team/app/blobs/{}", digest(&layer));
    let pulled = client.get(&blob).await;
    assert_eq!((pulled.status, pulled.digest()), (200, digest(&layer)));
    for proxy in [pushing, pulling] {
        proxy.assert_no_secrets(secrets).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_signed_with_plain_keys_is_what_aws_would_compute() {
    let moto = Moto::start();
    let keys = moto.user(&policy(&["ecr:GetAuthorizationToken"]));
    moto.enforce();
    let registry = registry(OWN);
    let secrets = [keys.secret.clone(), format!("{OWN}-auth-token")];
    carries(|| moto.proxy(&keys, OWN, &registry), &secrets).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_of_another_account_is_assumed_and_signs_with_its_session() {
    let moto = Moto::start();
    let [own, of_role] = policies_with_role(OTHER);
    let keys = moto.user(&own);
    let role = moto.role(OTHER, &of_role, "{}");
    moto.enforce();
    // Its token is that of the role's account, and no other opens this.
    let registry = registry(OTHER);
    let secrets = [keys.secret.clone(), format!("{OTHER}-auth-token")];
    let set_up = || {
        let proxy = moto.proxy(&keys, OTHER, &registry);
        proxy.upstream_key("role_arn", &*role)
    };
    carries(set_up, &secrets).await;
    // What its own keys may do is no more than to become that role.
    has_no_credentials(moto.proxy(&keys, OWN, &self::registry(OWN))).await;
    let another = moto.proxy(&keys, OTHER, &registry);
    let another = another.upstream_key("role_arn", format!("{role}-others"));
    has_no_credentials(another).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_provider_is_exchanged_for_a_role() {
    const TOKEN: &str = "canary-of-another-provider";
    let moto = Moto::start();
    let registry = registry(OTHER);
    let file = NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), TOKEN).expect("one's own file");
    let file = file.path().to_string_lossy();
    let set_up = || {
        moto.nobody(OTHER, &registry)
            .env("AWS_WEB_IDENTITY_TOKEN_FILE", &file)
            .env("AWS_ROLE_ARN", &format!("arn:aws:iam::{OTHER}:role/edge"))
            .env("AWS_ROLE_SESSION_NAME", "edge-1")
    };
    carries(set_up, &[TOKEN.to_owned()]).await;
}

/// The proxy has no token: its clients are told so, and its operator why.
async fn has_no_credentials(proxy: Builder) {
    let proxy = proxy.start();
    let answer = user(&proxy).get("/v2/team/app/manifests/v1").await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(!answer.text().contains(OWN), "{}", answer.text());
    let ready = Client::operator(proxy.admin()).get("/readyz").await;
    assert!(ready.text().contains("no credentials"), "{}", ready.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_trusts_an_external_id_is_assumed_with_that_and_no_other() {
    let moto = Moto::start();
    let [own, of_role] = policies_with_role(OWN);
    let keys = moto.user(&own);
    let trust = json!({"Version": "2012-10-17", "Statement": [{
        "Effect": "Allow",
        "Principal": {"AWS": "*"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"sts:ExternalId": EXTERNAL_ID}},
    }]});
    let role = moto.role(OWN, &of_role, &trust.to_string());
    moto.enforce();
    let registry = registry(OWN);
    let with = |id: &str| {
        let proxy = moto.proxy(&keys, OWN, &registry);
        let proxy = proxy.upstream_key("role_arn", &*role);
        proxy.upstream_key("external_id", id)
    };
    carries(|| with(EXTERNAL_ID), &[EXTERNAL_ID.to_owned()]).await;
    has_no_credentials(with("customer-43")).await;
    // Nor are its keys good for anything by themselves, nor a signature by others.
    has_no_credentials(moto.proxy(&keys, OWN, &registry)).await;
    let wrong = Keys {
        id: keys.id.clone(),
        secret: WRONG_SECRET.to_owned(),
    };
    let proxy = moto.proxy(&wrong, OWN, &registry);
    has_no_credentials(proxy.upstream_key("role_arn", &*role)).await;
}

/// nginx, which lets pass to the registry what moto knows to be a repository, as ECR does.
struct Gate {
    _dir: TempDir,
    child: Child,
    port: u16,
}

impl Gate {
    async fn start(moto: &Moto, registry: &DockerRegistry) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let (at, port) = (dir.path().display(), free_port());
        let (moto, registry) = (&moto.url, registry.endpoint());
        let config = format!(
            r#"daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;
  fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;
  client_max_body_size 0;
  proxy_http_version 1.1;
  proxy_set_header Host $http_host;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass {registry}; }}
    location ~ "^/v2/(?<repository>.+)/(blobs|manifests|tags)/" {{
      auth_request /known;
      error_page 500 = @unknown;
      proxy_pass {registry};
    }}
    location @unknown {{
      default_type application/json;
      return 404 '{{"errors":[{{"code":"NAME_UNKNOWN","message":"no such repository"}}]}}';
    }}
    location = /known {{
      internal;
      proxy_method POST;
      proxy_set_body '{{"repositoryNames":["$repository"]}}';
      proxy_set_header Authorization "AWS4-HMAC-SHA256 Credential=any/20200101/eu-west-1/ecr/aws4_request";
      proxy_set_header Content-Type application/x-amz-json-1.1;
      proxy_set_header X-Amz-Target AmazonEC2ContainerRegistry_V20150921.DescribeRepositories;
      proxy_pass {moto}/;
    }}
  }}
}}
"#
        );
        let child = nginx(dir.path(), &config);
        let gate = Self {
            _dir: dir,
            child,
            port,
        };
        until("nginx listens", async || {
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        gate
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _already_waited = self.child.wait();
    }
}

/// Makes repositories by this template, with a lifecycle policy of these rules.
fn creating(proxy: Builder, rules: &Value) -> (Builder, NamedTempFile) {
    let file = NamedTempFile::new().expect("a temporary file");
    let text = json!({ "rules": rules }).to_string();
    std::fs::write(file.path(), text).expect("one's own file");
    let template = format!(
        "lifecycle_policy = {:?}\nmutability = 'immutable'\nmutability_except = ['latest', 'dev-*']\n\
         scan_on_push = true\nencryption = 'kms'\nkms_key = 'alias/images'\n\
         tags = {{ team = 'a', 'cost center' = '7=8' }}",
        file.path()
    );
    let template: Table = template.parse().expect("TOML");
    let proxy = proxy
        .upstream_key("create_repositories", vec!["team/**"])
        .upstream_key("template", template);
    (proxy, file)
}

fn rule(priority: u32) -> Value {
    json!({
        "rulePriority": priority,
        "selection": {
            "tagStatus": "untagged",
            "countType": "sinceImagePushed",
            "countUnit": "days",
            "countNumber": 14,
        },
        "action": {"type": "expire"},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_made_by_the_template_as_moto_understands_it() {
    let moto = Moto::start();
    let keys = moto.user(&creators_policy());
    let registry = registry(OWN);
    let gate = Gate::start(&moto, &registry).await;
    let proxy = moto.proxy(&keys, OWN, &registry);
    let rules = json!([rule(1), rule(2)]);
    let (proxy, _policy) = creating(proxy.upstream_key("endpoint", gate.endpoint()), &rules);
    let proxy = proxy.start();
    let client = user(&proxy);
    let unknown = client.get("/v2/team/app/manifests/v1").await;
    assert_eq!(unknown.status, 404, "{}", unknown.text());
    let layer = bytes(300_000);
    let (answer, manifest) = push_image(&client, "team/app", "v1", &layer).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let made = moto.ask(&["repository", "team/app"]);
    assert_eq!(made["registryId"], OWN);
    assert_eq!(made["lifecycle"]["rules"], rules);
    assert_eq!(made["imageTagMutability"], "IMMUTABLE_WITH_EXCLUSION");
    assert_eq!(
        made["imageTagMutabilityExclusionFilters"],
        json!([
            {"filterType": "WILDCARD", "filter": "latest"},
            {"filterType": "WILDCARD", "filter": "dev-*"},
        ])
    );
    assert_eq!(made["imageScanningConfiguration"]["scanOnPush"], true);
    assert_eq!(
        made["encryptionConfiguration"],
        json!({"encryptionType": "KMS", "kmsKey": "alias/images"})
    );
    let mut tags = made["tags"].as_array().expect("tags").clone();
    tags.sort_by_key(ToString::to_string);
    assert_eq!(
        tags,
        [
            json!({"Key": "cost center", "Value": "7=8"}),
            json!({"Key": "team", "Value": "a"}),
        ]
    );
    let pulled = client.get("/v2/team/app/manifests/v1").await;
    assert_eq!((pulled.status, pulled.digest()), (200, manifest));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_moto_says_against_a_template_is_read_and_told_to_the_operator() {
    let moto = Moto::start();
    let keys = moto.user(&creators_policy());
    let registry = registry(OWN);
    let gate = Gate::start(&moto, &registry).await;
    let proxy = moto.proxy(&keys, OWN, &registry);
    // A rule that does nothing: it is JSON, and no policy.
    let mut rules = json!([rule(1)]);
    rules[0]["action"] = json!({});
    let (proxy, _policy) = creating(proxy.upstream_key("endpoint", gate.endpoint()), &rules);
    let proxy = proxy.start();
    let (answer, _) = push_image(&user(&proxy), "team/app", "v1", &bytes(1000)).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let refused = proxy.log_until("the refusal is logged", |event| {
        event.field("aws.action").as_deref() == Some("PutLifecyclePolicy")
    });
    let refused = refused.await;
    assert_eq!(
        refused.field("aws.code").as_deref(),
        Some("InvalidParameterException")
    );
    let said = refused.field("aws.message").unwrap_or_default();
    assert!(said.contains("missing required properties"), "{said}");
}
