//! A token service, such as stands beside registries that log in by Bearer tokens: it knows users and what they
//! may do, and signs what it grants, which the registry checks (distribution, `docs/spec/auth/token.md` and
//! `jwt.md`).

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, SigningKey as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::users::basic;

/// Who may do everything.
pub const ACCOUNT: &str = "pusher";
/// Its password.
pub const SECRET: &str = "canary-of-the-account";
/// What registries call themselves to it.
const SERVICE: &str = "registry.upstream.test";
const ISSUER: &str = "tokens.upstream.test";
/// For as long after its end docker-registry still takes a token, for clocks that differ.
const LEEWAY: Duration = Duration::from_secs(60);
/// What it says when it throttles.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// See the module. It ends with the test's runtime.
pub struct TokenService {
    host: &'static str,
    address: SocketAddr,
    folder: TempDir,
    inner: Arc<Inner>,
}

struct Inner {
    key: KeyPair,
    /// What proves the key, in base64.
    certificate: String,
    state: Mutex<State>,
}

struct State {
    form: Form,
    life: Duration,
    told: Option<Duration>,
    denied: Vec<String>,
    asked: Vec<Asked>,
    /// Every token so far.
    issued: Vec<String>,
    /// How many more are throttled, and when the last was.
    to_throttle: u32,
    throttled: Option<Instant>,
    /// How many came before they should.
    early: u32,
}

/// How a token is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// With how long it lives.
    Distribution,
    /// By the other name, which OAuth has for it.
    AccessToken,
    /// Without how long it lives, as GHCR and Quay do.
    Timeless,
    /// Not at all where nothing is granted, as GHCR does.
    AllOrNothing,
    /// Not at all: it fails.
    Failing,
}

/// What was asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Each `scope`.
    pub scopes: Vec<String>,
    /// Each other parameter, as it came.
    pub others: Vec<(String, String)>,
    /// Who asked; `None` is anybody.
    pub account: Option<String>,
}

impl TokenService {
    /// One whose tokens live for five minutes.
    pub async fn start() -> Self {
        Self::start_as("127.0.0.1").await
    }

    /// One that calls itself so.
    pub async fn start_as(host: &'static str) -> Self {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256).expect("a key");
        let parameters = CertificateParams::new([ISSUER.to_owned()]).expect("a name");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        let folder = TempDir::new().expect("a folder");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let service = Self {
            host,
            address: listener.local_addr().expect("an address"),
            folder,
            inner: Arc::new(Inner {
                key,
                certificate: STANDARD.encode(certificate.der()),
                state: Mutex::new(State {
                    form: Form::Distribution,
                    life: Duration::from_secs(300),
                    told: None,
                    denied: Vec::new(),
                    asked: Vec::new(),
                    issued: Vec::new(),
                    to_throttle: 0,
                    throttled: None,
                    early: 0,
                }),
            }),
        };
        fs::write(service.certificate(), certificate.pem()).expect("a file");
        fs::write(service.password_file(), SECRET).expect("a file");
        let inner = Arc::clone(&service.inner);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let inner = Arc::clone(&inner);
                let answer = service_fn(move |request: Request<Incoming>| {
                    let answer = inner.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let stream = TokioIo::new(stream);
                tokio::spawn(async move {
                    let serving = hyper::server::conn::http1::Builder::new();
                    let _ended = serving.serve_connection(stream, answer).await;
                });
            }
        });
        service
    }

    /// Its host and port.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.address.port())
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// A file with [`SECRET`].
    pub fn password_file(&self) -> PathBuf {
        self.folder.path().join("password")
    }

    /// The lines by which docker-registry lets in who has a token of this service, whose address has a query of
    /// its own.
    pub fn registry_lines(&self) -> String {
        format!(
            "auth: {{token: {{realm: \"http://{}/token?tenant=a%20b\", service: {SERVICE}, issuer: {ISSUER}, \
             rootcertbundle: {}}}}}\n",
            self.authority(),
            self.certificate().display()
        )
    }

    /// From now on tokens are good for so long, and are said to be.
    pub fn set_life(&self, life: Duration) {
        let mut state = self.inner.state();
        (state.life, state.told) = (life, None);
    }

    /// From now on tokens are good for less than they are said to be.
    pub fn set_lives(&self, life: Duration, told: Duration) {
        let mut state = self.inner.state();
        (state.life, state.told) = (life, Some(told));
    }

    /// From now on tokens are handed over so.
    pub fn set_form(&self, form: Form) {
        self.inner.state().form = form;
    }

    /// From now on nobody is granted this, as in `push`, `repository:team/app` or `registry:catalog`.
    pub fn deny(&self, what: &str) {
        self.inner.state().denied.push(what.to_owned());
    }

    /// From now on nothing is kept back.
    pub fn deny_nothing(&self) {
        self.inner.state().denied.clear();
    }

    /// The next that comes is told to come again in two seconds.
    pub fn throttle_once(&self) {
        self.inner.state().to_throttle = 1;
    }

    /// Whether that has come.
    pub fn has_throttled(&self) -> bool {
        self.inner.state().throttled.is_some()
    }

    /// How many came in those two seconds.
    pub fn early(&self) -> u32 {
        self.inner.state().early
    }

    /// What was asked so far, in order.
    pub fn asked(&self) -> Vec<Asked> {
        self.inner.state().asked.clone()
    }

    /// Every token that it gave, and the account's password.
    pub fn secrets(&self) -> Vec<String> {
        let issued = self.inner.state().issued.clone();
        issued.into_iter().chain([SECRET.to_owned()]).collect()
    }

    /// How often it was asked for these scopes and no others.
    pub fn asked_for(&self, scopes: &[&str]) -> usize {
        let asked = self.asked();
        asked.iter().filter(|asked| asked.scopes == scopes).count()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let account = match request.headers().get(header::AUTHORIZATION) {
            None => None,
            Some(login) if login.as_bytes() == basic(ACCOUNT, SECRET).as_bytes() => {
                Some(ACCOUNT.to_owned())
            }
            Some(_) => return refusal(401, "UNAUTHORIZED"),
        };
        let query = request.uri().query().unwrap_or_default().as_bytes();
        let (mut scopes, mut others) = (Vec::new(), Vec::new());
        for (name, value) in url::form_urlencoded::parse(query) {
            match &*name {
                "scope" => scopes.push(value.into_owned()),
                _ => others.push((name.into_owned(), value.into_owned())),
            }
        }
        let mut state = self.state();
        if state.form == Form::Failing {
            return refusal(503, "UNAVAILABLE");
        }
        let is_early = state.throttled.is_some_and(|at| at.elapsed() < RETRY_AFTER);
        state.early += u32::from(is_early);
        if let Some(rest) = state.to_throttle.checked_sub(1) {
            (state.to_throttle, state.throttled) = (rest, Some(Instant::now()));
            let mut answer = refusal(429, "TOOMANYREQUESTS");
            let seconds = HeaderValue::from(RETRY_AFTER.as_secs());
            answer.headers_mut().insert(header::RETRY_AFTER, seconds);
            return answer;
        }
        let access: Vec<Value> = scopes
            .iter()
            .filter_map(|scope| granted(scope, account.is_some(), &state.denied))
            .collect();
        state.asked.push(Asked {
            scopes: scopes.clone(),
            others,
            account: account.clone(),
        });
        if state.form == Form::AllOrNothing && access.is_empty() && !scopes.is_empty() {
            return refusal(403, "DENIED");
        }
        let number = state.asked.len();
        let token = self.token(account.as_deref(), &access, state.life, number);
        state.issued.push(token.clone());
        let told = state.told.unwrap_or(state.life).as_secs();
        let body = match state.form {
            Form::Distribution => json!({ "token": token, "expires_in": told }),
            Form::AccessToken => json!({ "access_token": token, "expires_in": told }),
            Form::Timeless | Form::AllOrNothing | Form::Failing => json!({ "token": token }),
        };
        Response::new(Full::from(body.to_string()))
    }

    /// A JSON Web Token of these rights.
    fn token(&self, account: Option<&str>, access: &[Value], life: Duration, id: usize) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.expect("after 1970");
        let head = json!({ "typ": "JWT", "alg": "RS256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": ISSUER,
            "sub": account.unwrap_or_default(),
            "aud": SERVICE,
            "exp": (now + life - LEEWAY).as_secs() + 1,
            "nbf": (now - LEEWAY).as_secs(),
            "iat": now.as_secs(),
            "jti": id.to_string(),
            "access": access,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&head), part(&claims));
        let signature = self.key.sign(signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// What of a scope is granted: all that is not denied, but only reading to anybody.
fn granted(scope: &str, is_known: bool, denied: &[String]) -> Option<Value> {
    let (resource, actions) = scope.rsplit_once(':')?;
    let (kind, name) = resource.split_once(':')?;
    let is_denied = |what: &str| denied.iter().any(|denied| denied == what);
    let mut actions: Vec<_> = actions.split(',').collect();
    actions.retain(|action| !is_denied(action) && (is_known || *action == "pull"));
    let is_granted = !is_denied(resource) && !actions.is_empty();
    is_granted.then(|| json!({ "type": kind, "name": name, "actions": actions }))
}

fn refusal(status: u16, code: &str) -> Response<Full<Bytes>> {
    let body = json!({ "errors": [{ "code": code, "message": "not for you" }] });
    let mut answer = Response::new(Full::from(body.to_string()));
    *answer.status_mut() = http::StatusCode::from_u16(status).expect("a status");
    answer
}
