//! Who asks AWS, what the policies let them do, and the tokens they were given.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::content::sha256_hex;

/// Access key id of the predefined principal that may do everything.
pub const FULL_ACCESS_KEY: &str = "AKIASIMULATEDFULL001";
/// Access key id of the predefined principal with AmazonEC2ContainerRegistryPullOnly.
pub const PULL_ONLY_ACCESS_KEY: &str = "AKIASIMULATEDPULL001";
/// Access key id of the predefined principal without any right, not even to a token.
pub const DENIED_ACCESS_KEY: &str = "AKIASIMULATEDNONE001";

/// An IAM action of ECR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the IAM action of its name")]
pub enum Action {
    GetAuthorizationToken,
    BatchGetImage,
    GetDownloadUrlForLayer,
    BatchCheckLayerAvailability,
    ListImages,
    DescribeRepositories,
    InitiateLayerUpload,
    UploadLayerPart,
    CompleteLayerUpload,
    PutImage,
    BatchDeleteImage,
    CreateRepository,
    GetLifecyclePolicy,
    PutLifecyclePolicy,
    TagResource,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 15] = [
        Self::GetAuthorizationToken,
        Self::BatchGetImage,
        Self::GetDownloadUrlForLayer,
        Self::BatchCheckLayerAvailability,
        Self::ListImages,
        Self::DescribeRepositories,
        Self::InitiateLayerUpload,
        Self::UploadLayerPart,
        Self::CompleteLayerUpload,
        Self::PutImage,
        Self::BatchDeleteImage,
        Self::CreateRepository,
        Self::GetLifecyclePolicy,
        Self::PutLifecyclePolicy,
        Self::TagResource,
    ];

    /// What AmazonEC2ContainerRegistryPullOnly allows.
    pub const PULL_ONLY: [Self; 3] = [
        Self::GetAuthorizationToken,
        Self::BatchGetImage,
        Self::GetDownloadUrlForLayer,
    ];
}

/// An identity and its policy.
#[derive(Clone, Debug)]
pub struct Principal {
    /// How requests to the API name it.
    pub access_key_id: String,
    /// The end of its ARN, e.g. `assumed-role/puller/session`.
    pub name: String,
    /// What it may do.
    pub actions: Vec<Action>,
    /// Where it may do so; `None` is everywhere. A token is not bound to a repository.
    pub repositories: Option<Vec<String>>,
}

impl Principal {
    /// May do everything everywhere.
    pub fn full(access_key_id: &str) -> Self {
        Self::with_actions(access_key_id, "assumed-role/full/simulated", &Action::ALL)
    }

    /// May pull and nothing else.
    pub fn pull_only(access_key_id: &str) -> Self {
        let name = "assumed-role/pull-only/simulated";
        Self::with_actions(access_key_id, name, &Action::PULL_ONLY)
    }

    /// May do nothing.
    pub fn denied(access_key_id: &str) -> Self {
        Self::with_actions(access_key_id, "assumed-role/denied/simulated", &[])
    }

    /// May do `actions`, everywhere.
    pub fn with_actions(access_key_id: &str, name: &str, actions: &[Action]) -> Self {
        Self {
            access_key_id: access_key_id.into(),
            name: name.into(),
            actions: actions.to_vec(),
            repositories: None,
        }
    }

    /// Restricts it to these repositories.
    #[must_use]
    pub fn only_in(mut self, repositories: &[&str]) -> Self {
        self.repositories = Some(repositories.iter().map(|&r| r.to_owned()).collect());
        self
    }

    pub(super) fn may(&self, action: Action, repository: Option<&str>) -> bool {
        self.actions.contains(&action)
            && match (&self.repositories, repository) {
                (Some(allowed), Some(asked)) => allowed.iter().any(|r| r == asked),
                _ => true,
            }
    }
}

/// In which form the registry says that a token has expired: published accounts differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpiredForm {
    /// `{"errors":[{"code":"DENIED",…}]}`.
    #[default]
    Json,
    /// Plain text.
    Text,
}

/// What GetAuthorizationToken answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenReply {
    /// A token, as ECR does.
    #[default]
    Normal,
    /// An empty `authorizationData`.
    EmptyList,
    /// A token that is not base64.
    NotBase64,
    /// A token whose decoded form has no colon.
    NoColon,
    /// A good token said to have expired years ago.
    PastExpiry,
    /// A good token with no `expiresAt`.
    NoExpiry,
    /// A `proxyEndpoint` of another registry.
    OtherEndpoint,
    /// `AccessDeniedException`.
    Denied,
    /// `ThrottlingException`.
    Throttled,
    /// `ServerException`.
    ServerError,
    /// Nothing, for ever.
    Hang,
}

/// A token as handed out; prints without itself.
#[derive(Clone)]
pub struct IssuedToken {
    /// What GetAuthorizationToken returns: base64 of `AWS:<password>`.
    pub authorization_token: String,
    /// The password alone.
    pub password: String,
    /// When it expires.
    pub expires_at: SystemTime,
}

impl std::fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedToken")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// The keys of an assumed role.
pub(super) struct TemporaryKeys {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
    pub(super) session_token: String,
    pub(super) expires_at: SystemTime,
}

/// What a registry credential is worth.
pub(super) enum Verdict {
    Good(Principal),
    Expired,
    Malformed,
}

/// The accounts' principals and every token issued.
pub(super) struct Credentials {
    state: Mutex<State>,
}

struct State {
    principals: Vec<Principal>,
    /// Tokens of other identity providers that a role may be assumed with.
    web_identities: Vec<String>,
    /// Who may assume a role: the role, an access key id, the external id that must be given.
    trusts: Vec<(String, String, Option<String>)>,
    /// The session token that belongs to a temporary access key id.
    sessions: HashMap<String, String>,
    tokens: HashMap<String, (Principal, SystemTime)>,
    issued: Vec<String>,
    life: Duration,
    reply: TokenReply,
    form: ExpiredForm,
}

impl Credentials {
    pub(super) fn new(principals: Vec<Principal>) -> Self {
        Self {
            state: Mutex::new(State {
                principals,
                web_identities: Vec::new(),
                trusts: Vec::new(),
                sessions: HashMap::new(),
                tokens: HashMap::new(),
                issued: Vec::new(),
                life: Duration::from_secs(12 * 60 * 60),
                reply: TokenReply::default(),
                form: ExpiredForm::default(),
            }),
        }
    }

    pub(super) fn add(&self, principal: Principal) {
        let mut state = self.state();
        let key = principal.access_key_id.clone();
        state.principals.retain(|p| p.access_key_id != key);
        state.principals.push(principal);
    }

    pub(super) fn principal(&self, access_key_id: &str) -> Option<Principal> {
        let state = self.state();
        let mut known = state.principals.iter();
        known.find(|p| p.access_key_id == access_key_id).cloned()
    }

    /// Who signs with `access_key_id`; temporary keys count only beside their session token.
    pub(super) fn caller(&self, access_key_id: &str, session: Option<&str>) -> Option<Principal> {
        let belongs = self.state().sessions.get(access_key_id).map(String::as_str) == session;
        self.principal(access_key_id).filter(|_| belongs)
    }

    pub(super) fn trust_web_identity(&self, token: &str) {
        self.state().web_identities.push(token.to_owned());
    }

    pub(super) fn trusts_web_identity(&self, token: &str) -> bool {
        self.state()
            .web_identities
            .iter()
            .any(|known| known == token)
    }

    pub(super) fn trust(&self, role: &str, access_key_id: &str, external_id: Option<&str>) {
        let trust = (
            role.into(),
            access_key_id.into(),
            external_id.map(str::to_owned),
        );
        self.state().trusts.push(trust);
    }

    /// Whether `role` may be assumed by these keys; a role that wants an external id wants that one.
    pub(super) fn trusts(
        &self,
        role: &str,
        access_key_id: &str,
        external_id: Option<&str>,
    ) -> bool {
        self.state()
            .trusts
            .iter()
            .any(|(trusting, trusted, wanted)| {
                let is_wanted = wanted.is_none() || wanted.as_deref() == external_id;
                trusting == role && trusted == access_key_id && is_wanted
            })
    }

    /// Keys of an hour's life for `role`, if a principal has it.
    pub(super) fn assume(&self, role: &str, session: &str) -> Option<TemporaryKeys> {
        let mut state = self.state();
        let prefix = format!("assumed-role/{role}/");
        let mut principals = state.principals.iter();
        let holder = principals.find(|p| p.name.starts_with(&prefix))?.clone();
        let now = SystemTime::now();
        let number = state.sessions.len();
        let nanos = epoch(now).as_nanos().to_le_bytes();
        let drawn = |what: &[u8]| sha256_hex(&[what, &number.to_le_bytes(), &nanos]);
        let keys = TemporaryKeys {
            access_key_id: format!("ASIASIMULATED{number:07}"),
            secret_access_key: drawn(b"secret"),
            session_token: drawn(b"session"),
            expires_at: now + Duration::from_secs(60 * 60),
        };
        let (id, token) = (keys.access_key_id.clone(), keys.session_token.clone());
        state.issued.push(keys.secret_access_key.clone());
        state.issued.push(token.clone());
        state.sessions.insert(id.clone(), token);
        state.principals.push(Principal {
            access_key_id: id,
            name: format!("{prefix}{session}"),
            ..holder
        });
        Some(keys)
    }

    /// A new token for `principal`, several KiB long as ECR's may be.
    pub(super) fn issue(&self, principal: &Principal) -> IssuedToken {
        let mut state = self.state();
        let now = SystemTime::now();
        let expires_at = now + state.life;
        let number = state.issued.len().to_le_bytes();
        let nanos = epoch(now).as_nanos().to_le_bytes();
        let mut payload = String::new();
        for part in 0..32_u8 {
            payload += &sha256_hex(&[&number, &nanos, &[part]]);
        }
        let password = STANDARD.encode(format!(
            r#"{{"payload":"{payload}","version":"2","type":"DATA_KEY","expiration":{}}}"#,
            epoch(expires_at).as_secs()
        ));
        let known = (principal.clone(), expires_at);
        state.tokens.insert(password.clone(), known);
        state.issued.push(password.clone());
        IssuedToken {
            authorization_token: authorization_token(&password),
            password,
            expires_at,
        }
    }

    /// Judges the value of an `Authorization` header, already known to say `Basic`.
    pub(super) fn judge(&self, basic: &str) -> Verdict {
        let Some(decoded) = STANDARD
            .decode(basic.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
        else {
            return Verdict::Malformed;
        };
        let Some(password) = decoded.strip_prefix("AWS:") else {
            return Verdict::Malformed;
        };
        let state = self.state();
        let Some((issued_to, expires_at)) = state.tokens.get(password) else {
            return Verdict::Malformed;
        };
        if *expires_at <= SystemTime::now() {
            return Verdict::Expired;
        }
        // Policies may have changed since; a token carries whose it is, not what they may do.
        let mut known = state.principals.iter();
        let current = known.find(|p| p.access_key_id == issued_to.access_key_id);
        Verdict::Good(current.unwrap_or(issued_to).clone())
    }

    pub(super) fn expire_all(&self) {
        for (_, expires_at) in self.state().tokens.values_mut() {
            *expires_at = UNIX_EPOCH;
        }
    }

    /// Every password issued, and every token in which one is wrapped.
    pub(super) fn secrets(&self) -> Vec<String> {
        let passwords = self.state().issued.clone();
        let tokens = passwords
            .iter()
            .map(|password| authorization_token(password));
        tokens.chain(passwords.iter().cloned()).collect()
    }

    pub(super) fn set_life(&self, life: Duration) {
        self.state().life = life;
    }

    pub(super) fn set_reply(&self, reply: TokenReply) {
        self.state().reply = reply;
    }

    pub(super) fn reply(&self) -> TokenReply {
        self.state().reply
    }

    pub(super) fn set_expired_form(&self, form: ExpiredForm) {
        self.state().form = form;
    }

    pub(super) fn expired_form(&self) -> ExpiredForm {
        self.state().form
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn authorization_token(password: &str) -> String {
    STANDARD.encode(format!("AWS:{password}"))
}

/// The time since 1970; a clock before that reads as 1970.
pub(super) fn epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}
